"""A small honest stand-in for one PaymentIntent at Stripe, with the balances that it moves.

It does what it is told like Stripe does it, and nothing else: what is impossible raises
:class:`RefusedByStripe`. Its balances are kept apart from the service's books on purpose: at the
end both must say the same.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fractions import Fraction

from payment_service.domain.ledger import STRIPE_PLATFORM, stripe_connected
from payment_service.domain.snapshot import (
    UNPAID,
    ApplicationFee,
    BalanceTransaction,
    Charge,
    Decline,
    FeeRefund,
    IntentStatus,
    PaymentSnapshot,
    Refund,
    Reversal,
    Transfer,
)
from tests.unit.domain.builders import NOW

CONNECTED = stripe_connected("expert_1")


class RefusedByStripe(Exception):
    """Stripe's 400 or 402."""


@dataclass(frozen=True)
class Exchange:
    """In which currencies Stripe settles, and at which rates: with the platform, to the expert."""

    platform: str = ""
    platform_rate: Fraction = Fraction(1)
    connected: str = ""
    connected_rate: Fraction = Fraction(1)


SAME_CURRENCY = Exchange()


@dataclass
class FakeIntent:
    amount: int
    currency: str
    exchange: Exchange = SAME_CURRENCY
    #: Whether Stripe sends the money on itself; fixed when the card is authorized.
    has_destination: bool = True
    #: Charged by the client's confirmation, without a capture of ours.
    automatic: bool = False
    status: IntentStatus = IntentStatus.REQUIRES_PAYMENT_METHOD
    decline_shown: Decline | None = None
    cancellation_reason: str = ""
    charge: Charge | None = None
    refunds: list[Refund] = field(default_factory=list)
    #: Those made apart from the charge, oldest first.
    transfers: list[Transfer] = field(default_factory=list)
    #: The last operation whose transfer was empty.
    empty_transfer: str = ""
    #: What Stripe's balances are by now, by our name of the account and by currency.
    balances: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    ids: int = 0

    # ---- what Stripe shows ----

    def observe(self) -> PaymentSnapshot:
        """Stripe lists the newest refund first."""
        return PaymentSnapshot(
            payment_intent_id="pi_1",
            status=self.status,
            minor_units=self.amount,
            currency=self.currency,
            amount_received=self.charge.amount_captured if self.charge else 0,
            cancellation_reason=self.cancellation_reason,
            decline=self.decline_shown,
            charge=self.charge,
            refunds=tuple(reversed(self.refunds)),
            separate_transfers=tuple(self.transfers),
            empty_transfer=self.empty_transfer,
        )

    @property
    def refundable(self) -> int:
        taken = self.charge.amount_captured if self.charge else 0
        return taken - sum(refund.minor_units for refund in self.refunds if not refund.failed)

    @property
    def all_transfers(self) -> list[Transfer]:
        own = self.charge.transfer if self.charge else None
        return [*([own] if own else []), *self.transfers]

    @property
    def reversible(self) -> int:
        """What is left of the transfers together, in their currency."""
        return sum(transfer.left for transfer in self.all_transfers)

    # ---- the client ----

    def require_action(self) -> None:
        self._only(*UNPAID)
        self.status, self.decline_shown = IntentStatus.REQUIRES_ACTION, None

    def decline(self, code: str = "card_declined", decline_code: str = "generic_decline") -> None:
        self._only(*UNPAID)
        self.status = IntentStatus.REQUIRES_PAYMENT_METHOD
        self.decline_shown = Decline(code, decline_code)

    def authorize(self) -> None:
        self._only(*UNPAID)
        self.status, self.decline_shown = IntentStatus.REQUIRES_CAPTURE, None
        self.charge = Charge("ch_1", False, 0, capture_before=NOW + timedelta(days=7))
        if self.automatic:
            self.capture(self.amount)

    # ---- the platform, by this service or out of band ----

    def capture(self, part: int, fee: int = 0) -> None:
        self._only(IntentStatus.REQUIRES_CAPTURE)
        self._between(1, part, self.amount)
        self._between(0, fee, part if self.has_destination else 0)
        self.status = IntentStatus.SUCCEEDED
        charged = replace(self._platform_line(1, part), fee=part * 29 // 1000 + 30)
        self._book(STRIPE_PLATFORM, -charged.fee, charged.currency)
        self.charge = Charge("ch_1", captured=True, amount_captured=part, line=charged)
        if self.has_destination:
            self._send_on(charged, fee)

    def _send_on(self, charged: BalanceTransaction, fee: int) -> None:
        """All of it goes to the expert, and the fee comes back from there."""
        assert self.charge is not None
        sent = self._line(STRIPE_PLATFORM, -1, charged.minor_units, charged.currency)
        received = self._connected_line(1, sent.minor_units)
        collected = self._platform_line(1, fee) if fee else None
        if collected:
            paid = self._to_connected(collected.minor_units)
            received = replace(received, fee=paid)
            self._book(CONNECTED, -paid, received.currency)
        self.charge = replace(
            self.charge,
            transfer=Transfer(
                "tr_1", sent.minor_units, sent.currency, line=sent, connected_line=received
            ),
            application_fee=ApplicationFee("fee_1", fee, collected) if fee else None,
        )

    def transfer(self, part: int, operation_id: str = "") -> Transfer:
        """Sourced by the charge: all of them together stay within what was charged."""
        self._only(IntentStatus.SUCCEEDED)
        assert self.charge is not None
        if self.has_destination:
            raise RefusedByStripe("its own transfer sent everything on")
        sent = sum(transfer.minor_units for transfer in self.transfers)
        self._between(1, part, self.charge.amount_captured - sent)
        line = self._line(STRIPE_PLATFORM, -1, part, self.currency)
        made = Transfer(
            self._id("tr"),
            part,
            self.currency,
            operation_id,
            line,
            self._connected_line(1, part),
        )
        self.transfers.append(made)
        return made

    def cancel(self, reason: str = "requested_by_customer") -> None:
        self._only(*UNPAID, IntentStatus.REQUIRES_CAPTURE)
        self.status, self.cancellation_reason = IntentStatus.CANCELED, reason

    def refund(self, part: int, operation_id: str = "") -> Refund:
        self._only(IntentStatus.SUCCEEDED)
        self._between(1, part, self.refundable)
        line = self._platform_line(-1, part)
        made = Refund(self._id("re"), part, "succeeded", operation_id, line)
        self.refunds.append(made)
        return made

    def bounce(self, refund_id: str) -> None:
        at = [refund.refund_id for refund in self.refunds].index(refund_id)
        refund = self.refunds[at]
        if refund.failed:
            raise RefusedByStripe
        line = self._platform_line(1, refund.minor_units)
        self.refunds[at] = replace(refund, status="failed", failure_line=line)

    def reverse(self, part: int, operation_id: str = "", transfer_id: str = "") -> Reversal:
        """``part`` is in the transfer's currency; of the newest transfer unless one is named."""
        self._only(IntentStatus.SUCCEEDED)
        known = {transfer.transfer_id: transfer for transfer in self.all_transfers}
        if not known:
            raise RefusedByStripe("nothing was sent")
        transfer = known[transfer_id or list(known)[-1]]
        self._between(1, part, transfer.left)
        line = self._line(STRIPE_PLATFORM, 1, part, transfer.currency)
        made = Reversal(self._id("trr"), part, operation_id, line, self._connected_line(-1, part))
        less = replace(transfer, reversals=(*transfer.reversals, made))
        if transfer in self.transfers:
            self.transfers[self.transfers.index(transfer)] = less
        else:
            self._show(transfer=less)
        return made

    def refund_fee(self, part: int) -> None:
        assert self.charge is not None
        fee = self.charge.application_fee
        if fee is None:
            raise RefusedByStripe
        self._between(1, part, fee.minor_units - sum(made.minor_units for made in fee.refunds))
        line = self._platform_line(-1, part)
        self._connected_line(1, line.minor_units)
        made = FeeRefund(self._id("fr"), part, line)
        self._show(application_fee=replace(fee, refunds=(*fee.refunds, made)))

    # ---- helpers ----

    def _show(
        self, transfer: Transfer | None = None, application_fee: ApplicationFee | None = None
    ) -> None:
        assert self.charge is not None
        self.charge = replace(
            self.charge,
            transfer=transfer or self.charge.transfer,
            application_fee=application_fee or self.charge.application_fee,
        )

    def _only(self, *statuses: IntentStatus) -> None:
        if self.status not in statuses:
            raise RefusedByStripe(f"the intent is {self.status}")

    def _between(self, least: int, part: int, most: int) -> None:
        if not least <= part <= most:
            raise RefusedByStripe(f"{part} is not between {least} and {most}")

    def _id(self, prefix: str) -> str:
        self.ids += 1
        return f"{prefix}_{self.ids}"

    def _book(self, account: str, minor_units: int, currency: str) -> None:
        self.balances[account, currency] += minor_units

    def _line(self, account: str, sign: int, minor_units: int, currency: str) -> BalanceTransaction:
        self._book(account, sign * minor_units, currency)
        return BalanceTransaction(self._id("txn"), currency, minor_units)

    def _platform_line(self, sign: int, minor_units: int) -> BalanceTransaction:
        settled = round(minor_units * self.exchange.platform_rate)
        return self._line(STRIPE_PLATFORM, sign, settled, self.exchange.platform or self.currency)

    def _connected_line(self, sign: int, transferred: int) -> BalanceTransaction:
        currency = self.exchange.connected or self.exchange.platform or self.currency
        return self._line(CONNECTED, sign, self._to_connected(transferred), currency)

    def _to_connected(self, transferred: int) -> int:
        return round(transferred * self.exchange.connected_rate)


def nonzero(balances: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    return {account: balance for account, balance in balances.items() if balance}
