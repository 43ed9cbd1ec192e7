"""Balance transactions, and the balances that are their sums.

Every movement of money is one line on one account; an account's balance is the sum of its lines'
`net`, available or pending by their `available_on`. The sums are kept as lines are written and
made anew from the rows after a restart.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable
from typing import Any

from stripe_simulator import currencies
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

# What Stripe takes for a card payment on the platform: 2.9 % and 30 minor units, the price list
# of a US account, used alike in every settlement currency.
PROCESSING_BASIS_POINTS = 290
PROCESSING_FIXED = 30

# How long before the start the platform's own money was topped up.
FUNDED_BEFORE_SECONDS = 30 * 24 * 3_600

REPORTING_CATEGORIES = {
    "charge": "charge",
    "payment": "charge",
    "refund": "refund",
    "payment_refund": "refund",
    "refund_failure": "refund_failure",
    "transfer": "transfer",
    "transfer_refund": "transfer_reversal",
    "application_fee": "platform_earning",
    "application_fee_refund": "platform_earning_refund",
    "adjustment": "other_adjustment",
    "topup": "topup",
    "topup_reversal": "topup_reversal",
    "payout": "payout",
    "payout_cancel": "payout_reversal",
    "payout_failure": "payout_reversal",
    # What Stripe moves by itself; only the control API makes these.
    "stripe_fee": "fee",
    "stripe_fx_fee": "fee",
    "tax_fee": "tax",
    "reserve_transaction": "connect_reserved_funds",
    "reserved_funds": "risk_reserved_funds",
    "connect_collection_transfer": "connect_collection_transfer",
    "payout_minimum_balance_hold": "payout_minimum_balance_hold",
    "payout_minimum_balance_release": "payout_minimum_balance_release",
    "advance": "advance",
    "contribution": "contribution",
}
# What the control API may put on a balance: what no object of the API brings about.
BY_HAND = (
    "topup",
    "topup_reversal",
    "adjustment",
    "payout",
    "stripe_fee",
    "stripe_fx_fee",
    "tax_fee",
    "reserve_transaction",
    "reserved_funds",
    "connect_collection_transfer",
    "payout_minimum_balance_hold",
    "payout_minimum_balance_release",
    "advance",
    "contribution",
)


@dataclasses.dataclass
class Sums:
    available: int = 0
    pending: int = 0
    # (available_on, net) of the lines that are still pending.
    maturing: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class Balances:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._sums: dict[tuple[str, str], Sums] = {}
        # Told of every new line, so that a payout can be planned for when its money is there.
        self.on_line: list[Callable[[Row], None]] = []
        simulation.on_rebuild.append(self.rebuild)
        self.rebuild()

    def rebuild(self) -> None:
        self._sums.clear()
        for row in self._simulation.store.all("balance_transaction"):
            self._add(row)

    def _add(self, row: Row) -> None:
        sums = self._sums.setdefault((row["_account"], row["currency"]), Sums())
        if row["available_on"] <= self._simulation.now():
            sums.available += row["net"]
        else:
            sums.pending += row["net"]
            heapq.heappush(sums.maturing, (row["available_on"], row["net"]))

    def _matured(self, account: str, currency: str) -> Sums:
        sums = self._sums.get((account, currency)) or Sums()
        now = self._simulation.now()
        while sums.maturing and sums.maturing[0][0] <= now:
            _, net = heapq.heappop(sums.maturing)
            sums.pending -= net
            sums.available += net
        return sums

    def available(self, account: str, currency: str) -> int:
        return self._matured(account, currency).available

    def total(self, account: str, currency: str) -> int:
        sums = self._matured(account, currency)
        return sums.available + sums.pending

    def maturing(self, account: str, currency: str) -> list[int]:
        """When money that is pending becomes available."""
        return sorted({moment for moment, _ in self._matured(account, currency).maturing})

    def currencies(self, account: str) -> list[str]:
        return sorted(currency for owner, currency in self._sums if owner == account)

    def record(
        self,
        account: str,
        type_: str,
        source: str | None,
        amount: int,
        currency: str,
        *,
        available_on: int | None = None,
        fee_details: list[dict[str, Any]] | None = None,
        description: str | None = None,
        exchange_rate: float | None = None,
        reporting_category: str | None = None,
        created: int | None = None,
    ) -> Row:
        """Write one line; without `available_on` its money moves at once.

        A conversion that rounds to nothing gets no line: what is returned then has no id. That
        Stripe does so is what users of transfers report; for refunds it is our guess.
        """
        if not amount and not fee_details and exchange_rate is not None:
            return {"id": None, "amount": 0, "currency": currency}
        now = created or self._simulation.now()
        details = fee_details or []
        fee = sum(detail["amount"] for detail in details)
        row = self._simulation.store.insert(
            "balance_transaction",
            {
                "id": self._simulation.new_id("txn_3"),
                "object": "balance_transaction",
                "amount": amount,
                "available_on": max(now, available_on or now),
                "balance_type": "payments",
                "created": now,
                "currency": currency,
                "description": description,
                "exchange_rate": exchange_rate,
                "fee": fee,
                "fee_details": details,
                "net": amount - fee,
                "reporting_category": reporting_category or REPORTING_CATEGORIES[type_],
                "source": source,
                "status": "pending",
                "type": type_,
                "_account": account,
            },
        )
        self._add(row)
        for tell in self.on_line:
            tell(row)
        return row


def fund_platform(simulation: Simulation) -> None:
    """Give a new platform money of its own, as a top-up of long ago; only once."""
    amount = simulation.config.platform_funds
    if not amount or simulation.store.count("balance_transaction"):
        return
    with simulation.acting():
        for currency in simulation.config.settlement_currencies:
            simulation.balances.record(
                simulation.platform,
                "topup",
                None,
                amount,
                currency,
                description="STRIPE TOPUP",
                created=simulation.now() - FUNDED_BEFORE_SECONDS,
            )


def processing_fee(amount: int, currency: str) -> list[dict[str, Any]]:
    """Stripe's own fee on a charge, never more than the charge."""
    fee = (amount * PROCESSING_BASIS_POINTS + 5_000) // 10_000 + PROCESSING_FIXED
    return [
        {
            "amount": min(fee, amount),
            "application": None,
            "currency": currency,
            "description": "Stripe processing fees",
            "type": "stripe_fee",
        }
    ]


def application_fee_detail(amount: int, currency: str, application: str) -> list[dict[str, Any]]:
    return [
        {
            "amount": amount,
            "application": application,
            "currency": currency,
            "description": "Application fee",
            "type": "application_fee",
        }
    ]


def retrieve_balance(call: Call) -> Row:
    """GET /v1/balance: of the platform, or of the account in Stripe-Account."""
    simulation = call.simulation
    balances = simulation.balances
    names = balances.currencies(call.account)
    if call.account == simulation.platform:
        known: list[str] = sorted({*names, *simulation.config.settlement_currencies})
    else:
        account = simulation.store.require("account", call.account)
        known = sorted({*names, account["default_currency"]})

    def lines(read: Any) -> list[dict[str, Any]]:
        return [
            {"amount": read(name), "currency": name, "source_types": {"card": read(name)}}
            for name in known
        ]

    shown: Row = {
        "object": "balance",
        "available": lines(lambda name: balances.available(call.account, name)),
        "livemode": False,
        "pending": lines(
            lambda name: balances.total(call.account, name) - balances.available(call.account, name)
        ),
    }
    if call.account == simulation.platform:
        # What Stripe holds back on the platform against connected accounts below zero.
        shown["connect_reserved"] = [
            {"amount": _reserved(simulation, name), "currency": name} for name in known
        ]
    return shown


def _reserved(simulation: Simulation, currency: str) -> int:
    return sum(
        max(0, -simulation.balances.total(account["id"], currency))
        for account in simulation.store.all("account")
    )


def settle(simulation: Simulation, amount: int, currency: str) -> tuple[int, str, float | None]:
    """A charge's amount as it reaches the platform: settled amount, currency, exchange rate."""
    target = currencies.settlement(currency, simulation.config.settlement_currencies)
    if target == currency:
        return amount, currency, None
    settled = currencies.convert(amount, currency, target)
    return settled, target, float(currencies.rate(currency, target))
