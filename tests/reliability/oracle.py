"""The model: what a payment at Stripe comes to, what callers must be answered, what must add up.

Plain Python that knows nothing of the service's code. Stripe's truth is folded from the simulator's
log of effects; an operation whose outcome nobody knows may or may not have happened until its key
was answered, and both are accepted as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

#: An answer that is not final: the caller repeats the call with the same key.
AGAIN = "again"
#: What the bank keeps: it stands among the calls, where it comes between them.
LOSS = "Loss"
#: Refused because of a field, before anything is looked at under the key.
INVALID = "invalid"
#: The least that Stripe charges, in minor units; the same in the currencies of the model.
MINIMUM = 50
OK = "OK"
DISPUTED = "PAYMENT_DISPUTED"

_BUSY = ("CAPTURING", "CANCELING", "REFUNDING", "PROMOTING")
_UNCAPTURED = ("PENDING", "FAILED", "IN_ESCROW")


def fee(minor_units: int, basis_points: int) -> int:
    """Half up, once. The currencies of the model have steps of one minor unit."""
    return (minor_units * basis_points + 5000) // 10000


class Parts(NamedTuple):
    """Held, captured, given back out of escrow and after a capture; what a lost dispute took."""

    held: int
    captured: int
    returned: int = 0
    refunded: int = 0
    lost_held: int = 0
    lost: int = 0
    #: Of a lost dispute: the client had it already, so the platform bears it.
    beyond: int = 0


@dataclass
class Contested:
    """A dispute, as the client's bank and Stripe decide it."""

    dispute_id: str
    amount: int
    #: What Stripe took and returned, a line each; taken is positive.
    lines: list[int]
    status: str = "OPEN"

    @property
    def taken(self) -> int:
        return sum(self.lines)


@dataclass(frozen=True)
class View:
    """What the service says of a payment before it is asked for something."""

    state: str
    held: int
    net: int
    version: int
    has_operation: bool
    #: What the platform was paid for it (SEPARATE), as far as the service has heard.
    charged: int = 0
    is_frozen: bool = False

    @property
    def busy(self) -> bool:
        return self.state in _BUSY or self.has_operation


@dataclass
class Truth:
    """One payment as it stands at Stripe."""

    amount: int
    #: The platform charges it and transfers parts of it, instead of Stripe at one capture.
    separate: bool = False
    status: str = "unpaid"
    captured: int = 0
    transferred: int = 0
    transfers: int = 0
    refunds: Counter[int] = field(default_factory=Counter)
    bounced: Counter[int] = field(default_factory=Counter)
    reversed: int = 0
    intents: int = 0
    #: The out-of-band changes; ours is what remains.
    foreign_refunds: Counter[int] = field(default_factory=Counter)
    touched: bool = False
    dispute: Contested | None = None

    @property
    def refunded(self) -> int:
        return _total(self.refunds) - _total(self.bounced)

    @property
    def net(self) -> int:
        return self.captured - self.refunded

    @property
    def is_charged_back(self) -> bool:
        """Whether Stripe refuses refunds of it."""
        return self.dispute is not None and self.dispute.status != "WON"

    def happened(self, kind: str, amount: int) -> None:
        if kind == "intent_created":
            self.intents += 1
        elif kind == "authorized":
            self.status = "held"
        elif kind in ("canceled", "expired"):
            assert self.status in ("unpaid", "held"), f"{kind} when {self.status}"
            self.status = "canceled"
        elif kind == "captured":
            assert self.status == "held", f"captured when {self.status}"
            self.status, self.captured = "captured", amount
        elif kind == "refunded":
            self.refunds[amount] += 1
        elif kind == "refund_failed":
            self.bounced[amount] += 1
        elif kind == "reversed":
            self.reversed += amount
        elif kind == "transferred":
            self.transferred += amount
            self.transfers += 1
        assert self.captured <= self.amount
        assert self.refunded <= self.captured
        assert self.intents <= 1, "a second intent for one payment"
        assert self.transferred <= self.captured, "more paid out than was charged"

    def final_states(self, declined: bool, parts: Parts) -> set[str]:
        """Where the payment must be once everything was heard and done."""
        if self.status == "unpaid":
            return {"FAILED"} if declined else {"PENDING"}
        if self.status == "held":
            return {"IN_ESCROW"}
        if self.status == "canceled":
            return {"CANCELED", "EXPIRED"}
        if self.separate:
            net = parts.captured - parts.refunded - parts.lost
            return {"IN_ESCROW" if parts.held else "CAPTURED" if net > 0 else "REFUNDED"}
        return {"CAPTURED"} if self.net > parts.lost else {"REFUNDED"}


@dataclass
class Asked:
    """A mutation that a caller asked for under a key: a line of the history."""

    rpc: str
    key: str
    #: What it moves; of a refund the part that is given back, 0 for a cancellation.
    amount: int
    payment_id: str = ""
    #: What was asked for; None means all.
    part: int | None = None
    final: bool = False
    #: Of a last capture: what the client is given back with it, out of what the platform holds.
    rest: int = 0
    #: Of a capture: all of it is commission, so that nothing is transferred.
    sends_nothing: bool = False
    #: Why it was refused for good, or OK; empty while it may or may not have happened.
    told: str = ""
    body: bytes = b""
    #: It was promised, but Stripe does it later: the platform or the expert's account is not able.
    promised: bool = False
    #: It was promised at one time, whether or not Stripe has done it since.
    waited: bool = False

    @property
    def is_info(self) -> bool:
        return not self.told

    @property
    def is_sure(self) -> bool:
        """Whether Stripe must have done it."""
        return self.told == OK and not self.promised

    @property
    def is_open(self) -> bool:
        """Whether Stripe may have done it, or not."""
        return self.is_info or (self.told == OK and self.promised)


def capture_answer(view: View, truth: Truth, part: int | None, final: bool) -> str:
    """Returns the answer of a capture if nothing fails on the way.

    A payment whose intent is still being created can be captured neither now nor right after that.
    """
    if view.busy and view.state not in ("PENDING", "FAILED"):
        return AGAIN
    if view.state != "IN_ESCROW":
        return "WRONG_STATE"
    if view.is_frozen:
        return DISPUTED
    wanted = view.held if part is None else part
    if wanted > view.held:
        return "AMOUNT_TOO_LARGE"
    if truth.separate:
        if view.charged:
            return OK
        charges = wanted if final else view.held
        if charges < MINIMUM:
            return INVALID
        if truth.status == "captured":
            return OK if truth.captured == charges else "DISCREPANCY"
        return OK if truth.status == "held" else "WRONG_STATE"
    if wanted < view.held and not final:
        return "WOULD_RELEASE_REMAINDER"
    return INVALID if wanted < MINIMUM else _split_at_capture(truth, wanted)


def _split_at_capture(truth: Truth, wanted: int) -> str:
    if truth.status == "captured":  # By a hand at the dashboard; we had not heard of it.
        return OK if truth.captured == wanted else "DISCREPANCY"
    return OK if truth.status == "held" else "WRONG_STATE"


def refund_answer(view: View, truth: Truth, part: int | None) -> str:
    """Returns the answer of a refund if nothing fails on the way."""
    if view.busy:
        return AGAIN
    if view.is_frozen and (view.state in _UNCAPTURED or view.state == "CAPTURED"):
        return DISPUTED
    answer = _refund_answer(view, truth, part)
    return DISPUTED if answer == OK and truth.is_charged_back else answer


def _refund_answer(view: View, truth: Truth, part: int | None) -> str:
    if view.charged and view.state in ("IN_ESCROW", "CAPTURED"):
        wanted = (view.held or view.net) if part is None else part
        return OK if wanted <= view.held + view.net else "AMOUNT_TOO_LARGE"
    if view.state == "CAPTURED":
        wanted = view.net if part is None else part
        if wanted > view.net:
            return "AMOUNT_TOO_LARGE"
        if wanted <= truth.net:
            return OK
        return "AMOUNT_TOO_LARGE" if truth.net else "WRONG_STATE"
    if view.state not in _UNCAPTURED:
        return "WRONG_STATE"
    whole = view.held or truth.amount
    if part is not None and part != whole:
        return "AMOUNT_TOO_LARGE" if part > whole else "PARTIAL_REFUND_NEEDS_CAPTURE"
    return "WRONG_STATE" if truth.status == "captured" else OK


def check_refunds(truth: Truth, asked: Iterable[Asked], resent: Counter[int]) -> None:
    """Every refund was requested and was made once; every acknowledged refund exists.

    ``resent`` are those that bounced and may have been sent once more.
    """
    refunds = [(one, one.amount if one.rpc == "RefundPayment" else one.rest) for one in asked]
    sure = Counter(part for one, part in refunds if part and one.is_sure) + truth.foreign_refunds
    perhaps = Counter(part for one, part in refunds if part and one.is_open) + resent
    missing = sure - truth.refunds
    assert not missing, f"acknowledged, but not at Stripe: {dict(missing)}"
    surplus = truth.refunds - sure - perhaps
    assert not surplus, f"at Stripe, but nobody asked for it: {dict(surplus)}"


def promised_refunds(told: Iterable[Asked]) -> int:
    """What clients were promised by acknowledged calls, whether or not Stripe has paid it."""
    return sum(one.amount if one.rpc == "RefundPayment" else one.rest for one in told)


def check_transfers(truth: Truth, asked: Iterable[Asked]) -> None:
    """Every payout was requested and was made once; every acknowledged one exists."""
    captures = [one for one in asked if one.rpc == "CapturePayment" and not one.sends_nothing]
    sure = sum(one.is_sure for one in captures)
    perhaps = sum(one.is_open for one in captures)
    assert sure <= truth.transfers <= sure + perhaps, f"{truth} with {captures}"


def parts_of(truth: Truth, begun: Iterable[Asked]) -> Parts:
    """How what the platform was charged went on, by what was done for callers in its order."""
    if truth.status != "captured":
        return Parts(truth.amount if truth.status == "held" else 0, 0)
    if not truth.separate:  # After a loss nothing is given back any more.
        taken = truth.dispute.taken if truth.dispute and truth.dispute.status == "LOST" else 0
        lost = min(taken, truth.net)
        return Parts(0, truth.captured, 0, truth.refunded, 0, lost, taken - lost)
    held, captured, returned, refunded = truth.captured, 0, 0, 0
    lost_held = lost = beyond = 0
    for one in begun:
        if one.told != OK or one.rpc not in ("CapturePayment", "RefundPayment", LOSS):
            continue
        if one.rpc == "CapturePayment":
            held -= one.amount + one.rest
            captured += one.amount
            returned += one.rest
        elif one.rpc == LOSS:
            lost_held = min(one.amount, held)
            lost = min(one.amount - lost_held, captured - refunded)
            beyond = one.amount - lost_held - lost
            held -= lost_held
        else:
            from_escrow = min(one.amount, held)
            held -= from_escrow
            returned += from_escrow
            refunded += one.amount - from_escrow
    assert min(held, captured - refunded) >= 0, f"more paid than held: {truth}"
    return Parts(held, captured, returned, refunded, lost_held, lost, beyond)


def _total(counted: Counter[int]) -> int:
    return sum(amount * times for amount, times in counted.items())
