"""Payouts: connected accounts' available balances on their way to a bank.

Funds become available on their lines' `available_on`; the first UTC midnight after that, on a day
of the account's schedule, pays out what is available of each currency. A payout is `pending`,
`in_transit` an hour later and `paid` a day after it was made; hours of the day, business days and
minimum amounts are left out. A bank that fails gives the money back by a line of its own and stops
the schedule until it is mended, as Stripe disables such a bank account. The platform's own balance
is never paid out by itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from stripe_simulator import account_shape, currencies
from stripe_simulator.accounts import change, is_deauthorized, reachable
from stripe_simulator.errors import refused
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row
from stripe_simulator.transfers import insufficient_funds

HOUR = 3_600
DAY = 24 * HOUR
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

# Stripe's test bank accounts (documentation of testing): what becomes of a payout to them.
BANK_NUMBERS: dict[str, str | None] = {
    "000123456789": None,
    "000111111116": "no_account",
    "000111111113": "account_closed",
    "000222222227": "insufficient_funds",
    "000333333335": "debit_not_authorized",
    "000444444440": "invalid_currency",
}
OPEN = ("pending", "in_transit")


def register(simulation: Simulation) -> None:
    Schedule(simulation)


class Schedule:
    """When which account's balance is paid out, told from its balance transactions."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._planned: set[tuple[str, int]] = set()
        simulation.due_handlers["payout_run"] = self._run
        simulation.due_handlers["payout_step"] = lambda id_: _step(simulation, id_)
        simulation.balances.on_line.append(self._plan)
        simulation.on_rebuild.append(self.rebuild)
        self.rebuild()

    def rebuild(self) -> None:
        self._planned.clear()
        for account in self._simulation.store.all("account"):
            for line in self._simulation.store.select(
                "balance_transaction", {"_account": account["id"]}
            ):
                self._plan(line)
        for payout in self._simulation.store.all("payout"):
            if payout["_next_at"] is not None:
                self._simulation.schedule(payout["_next_at"], "payout_step", payout["id"])

    def _plan(self, line: Row) -> None:
        """A run at the first midnight at which a line's money is there; once for many lines."""
        if line["_account"] == self._simulation.platform or line["net"] <= 0:
            return
        moment = max(line["available_on"], self._simulation.now())
        self._plan_run(line["_account"], _midnight_after(moment))

    def _plan_run(self, account: str, moment: int) -> None:
        if (account, moment) not in self._planned:
            self._planned.add((account, moment))
            self._simulation.schedule(moment, "payout_run", account)

    def _run(self, id_: str) -> None:
        simulation = self._simulation
        now = simulation.now()
        self._planned.discard((id_, now))
        account = simulation.store.get("account", id_)
        if account is None:
            return
        schedule = account["settings"]["payouts"]["schedule"]
        if _may_pay_out(account) and _is_day_of(schedule, now):
            pay_out(simulation, account, automatic=True)
        if any(amount > 0 for amount in _available(simulation, id_).values()):
            # Not now: another day of the schedule, or once somebody has changed what is in the way.
            self._plan_run(id_, _midnight_after(now + 1))


def _midnight_after(moment: int) -> int:
    return -(-moment // DAY) * DAY


def _is_day_of(schedule: Mapping[str, Any], moment: int) -> bool:
    day = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    interval = schedule["interval"]
    if interval == "weekly":
        return bool(WEEKDAYS[day.weekday()] == schedule.get("weekly_anchor", "monday"))
    if interval == "monthly":
        tomorrow = day + datetime.timedelta(days=1)
        anchor: int = schedule.get("monthly_anchor", 1)
        return day.day == anchor or (day.day < anchor and tomorrow.day == 1)
    return bool(interval == "daily")


def _may_pay_out(account: Row) -> bool:
    return bool(account["payouts_enabled"] and not account["_deauthorized"] and _bank(account))


def _bank(account: Row) -> bool:
    """Whether there is a bank account that has not been disabled by a failure."""
    return any(bank["status"] != "errored" for bank in account["external_accounts"]["data"])


def _available(simulation: Simulation, account: str) -> dict[str, int]:
    balances = simulation.balances
    return {name: balances.available(account, name) for name in balances.currencies(account)}


def pay_out(simulation: Simulation, account: Row, *, automatic: bool) -> list[Row]:
    """Pay out everything that is available, a payout for each currency."""
    return [
        _insert(simulation, account, amount, currency, automatic=automatic, metadata={})
        for currency, amount in _available(simulation, account["id"]).items()
        if amount > 0
    ]


def _insert(
    simulation: Simulation,
    account: Row,
    amount: int,
    currency: str,
    *,
    automatic: bool,
    metadata: dict[str, str],
    **fields: Any,
) -> Row:
    id_ = simulation.new_id("po_1")
    now = simulation.now()
    line = simulation.balances.record(
        account["id"], "payout", id_, -amount, currency, description="STRIPE PAYOUT"
    )
    payout = simulation.store.insert(
        "payout",
        {
            "id": id_,
            "object": "payout",
            "amount": amount,
            "application_fee": None,
            "application_fee_amount": None,
            "arrival_date": now + DAY,
            "automatic": automatic,
            "balance_transaction": line["id"],
            "created": now,
            "currency": currency,
            "description": "STRIPE PAYOUT" if automatic else None,
            "destination": account["external_accounts"]["data"][0]["id"],
            "failure_balance_transaction": None,
            "failure_code": None,
            "failure_message": None,
            "livemode": False,
            "metadata": metadata,
            "method": "standard",
            "original_payout": None,
            "payout_method": None,
            "reconciliation_status": "in_progress" if automatic else "not_applicable",
            "reversed_by": None,
            "source_type": "card",
            "statement_descriptor": None,
            "status": "pending",
            "trace_id": None,
            "type": "bank_account",
            **fields,
            "_account": account["id"],
            "_next_at": now + HOUR,
        },
    )
    simulation.schedule(payout["_next_at"], "payout_step", id_)
    simulation.effect("payout_created", id_, amount=amount, currency=currency, metadata=metadata)
    emit(simulation, "payout.created", payout)
    return payout


def _step(simulation: Simulation, id_: str) -> None:
    """What the time brings: on its way, then at the bank, then perhaps back from it."""
    payout = simulation.store.get("payout", id_)
    if payout is None or payout["_next_at"] is None or payout["_next_at"] > simulation.now():
        return
    fails, after_paid = _failure_of(simulation, payout)
    if payout["status"] == "pending":
        _move(simulation, payout, "in_transit", payout["arrival_date"], "payout.updated")
    elif payout["status"] == "in_transit" and fails and not after_paid:
        fail(simulation, payout, fails)
    elif payout["status"] == "in_transit":
        paid(simulation, payout, then_at=simulation.now() + DAY if fails else None)
    elif payout["status"] == "paid" and fails:
        fail(simulation, payout, fails)


def _failure_of(simulation: Simulation, payout: Row) -> tuple[str | None, bool]:
    account = simulation.store.require("account", payout["_account"])
    failure = account.get("_bank_failure") or {}
    return failure.get("code"), bool(failure.get("after_paid"))


def _move(simulation: Simulation, payout: Row, status: str, next_at: int | None, event: str) -> Row:
    before = {"status": payout["status"]}
    payout = simulation.store.change("payout", payout["id"], status=status, _next_at=next_at)
    if next_at is not None:
        simulation.schedule(next_at, "payout_step", payout["id"])
    emit(simulation, event, payout, before if event == "payout.updated" else None)
    return payout


def paid(simulation: Simulation, payout: Row, *, then_at: int | None = None) -> Row:
    """The bank took it; which it may take back later (Stripe: `paid` may become `failed`)."""
    payout = _move(simulation, payout, "paid", then_at, "payout.paid")
    simulation.effect(
        "payout_paid", payout["id"], amount=payout["amount"], currency=payout["currency"]
    )
    return payout


def fail(simulation: Simulation, payout: Row, code: str) -> Row:
    """The bank refused it: the money is back, and the bank account disabled."""
    payout = _give_back(
        simulation,
        payout,
        "payout_failure",
        status="failed",
        failure_code=code,
        failure_message=f"The bank refused the payout ({code}).",
    )
    emit(simulation, "payout.failed", payout)
    _set_bank_status(simulation, payout["_account"], "errored")
    return payout


def _give_back(simulation: Simulation, payout: Row, type_: str, **changes: Any) -> Row:
    line = simulation.balances.record(
        payout["_account"], type_, payout["id"], payout["amount"], payout["currency"]
    )
    simulation.effect(
        f"payout_{changes['status']}",
        payout["id"],
        amount=payout["amount"],
        currency=payout["currency"],
    )
    return simulation.store.change(
        "payout",
        payout["id"],
        failure_balance_transaction=line["id"],
        _next_at=None,
        **changes,
    )


def _set_bank_status(simulation: Simulation, id_: str, status: str) -> Row:
    account = simulation.store.require("account", id_)
    banks = [{**bank, "status": status} for bank in account["external_accounts"]["data"]]
    listed = {**account["external_accounts"], "data": banks}
    return change(simulation, account, {"external_accounts": listed})


# Endpoints ----------------------------------------------------------------------------------------


def create(call: Call) -> Row:
    """POST /v1/payouts with Stripe-Account: by hand, out of what is available."""
    simulation = call.simulation
    if call.account == simulation.platform:
        raise refused("stripe_simulator: the platform's own payouts are not simulated")
    account = reachable(simulation, call.account)
    amount, currency = call.params["amount"], call.params["currency"]
    currencies.check_step(amount, currency)
    if not account["payouts_enabled"] or not _bank(account):
        raise refused(
            "Cannot create payouts; this account has no bank account that can be paid out to.",
            code="payouts_not_allowed",
        )
    if amount > simulation.balances.available(call.account, currency):
        raise insufficient_funds()
    return _insert(
        simulation,
        account,
        amount,
        currency,
        automatic=False,
        metadata=merged_metadata({}, call.get("metadata") or {}),
        description=call.get("description"),
        statement_descriptor=call.get("statement_descriptor"),
    )


def cancel(call: Call) -> Row:
    """POST /v1/payouts/:id/cancel: by-hand ones that have not been submitted to the bank."""
    payout = call.object("payout", "payout")
    if payout["status"] != "pending" or payout["automatic"]:
        raise refused("Payouts can only be canceled while they are pending and not automatic.")
    payout = _give_back(call.simulation, payout, "payout_cancel", status="canceled")
    emit(call.simulation, "payout.canceled", payout)
    return payout


# Control API --------------------------------------------------------------------------------------


def pay_out_now(simulation: Simulation, id_: str) -> dict[str, Any]:
    """Everything available now, whatever the schedule says; as an automatic payout."""
    account = simulation.store.require("account", id_)
    if is_deauthorized(simulation, id_) or not account["external_accounts"]["data"]:
        raise ValueError("the account has no bank account, or has left")
    made = pay_out(simulation, account, automatic=True)
    return {"object": "account", "id": id_, "payouts": [payout["id"] for payout in made]}


def set_bank(simulation: Simulation, id_: str, given: Mapping[str, Any]) -> Row:
    """{"number": one of Stripe's test numbers} or {"failure": code}, {"after_paid": true}.

    A payout that reaches such a bank fails; with `after_paid` a day after it was paid.
    """
    account = simulation.store.require("account", id_)
    number = str(given.get("number", "000123456789"))
    if number not in BANK_NUMBERS:
        raise ValueError(f"number must be one of {', '.join(BANK_NUMBERS)}")
    code = given.get("failure", BANK_NUMBERS[number])
    simulation.store.change(
        "account",
        id_,
        _bank_failure={"code": code, "after_paid": bool(given.get("after_paid"))},
    )
    if not account["external_accounts"]["data"]:
        bank = account_shape.bank_account(simulation.new_id("ba_1"), account)
        listed = {**account["external_accounts"], "data": [bank]}
        simulation.store.change("account", id_, external_accounts=listed)
    return _set_bank_status(simulation, id_, "new")


def act(simulation: Simulation, id_: str, action: str, given: Mapping[str, Any]) -> Row:
    """`pay` or `fail` a payout now: {"failure"?: code}. Also one that was paid may fail."""
    payout = simulation.store.get("payout", id_)
    if payout is None:
        raise ValueError(f"no such payout: {id_}")
    if action == "pay" and payout["status"] in OPEN:
        return paid(simulation, payout)
    if action == "fail" and payout["status"] in (*OPEN, "paid"):
        return fail(simulation, payout, str(given.get("failure", "account_closed")))
    raise ValueError(f"a payout that is {payout['status']} cannot {action}")
