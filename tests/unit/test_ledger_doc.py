"""docs/LEDGER.md against the code: every rule is performed with its own example, line by line."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from payment_service.domain import adjustments, ledger, payouts, transitions
from payment_service.domain.adjustments import AdjustmentLine
from payment_service.domain.ledger import (
    LOSSES,
    CaptureSplit,
    CaptureTransactions,
    Posting,
    RefundSplit,
    StripeAmount,
)
from payment_service.domain.opening import Beginning, leaving_lines, opening_lines
from payment_service.domain.payment import FreezeReason, OnDeadline, Payment, State, WaitingFor
from payment_service.domain.payouts import PayoutChange, PayoutState, PayoutTransaction
from payment_service.domain.platform_lines import PlatformLine, account_of
from payment_service.domain.state_machine import TRANSITIONS, EventKind, Transition
from tests.unit.domain.builders import (
    CARD_HOLD,
    FAILURE,
    NOW,
    PLATFORM_HOLD,
    an_adjustment,
    in_state,
    new_payment,
    separate,
)

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = (ROOT / "docs" / "LEDGER.md").read_text()
DOMAIN: Final = sorted((ROOT / "payment_service" / "domain").rglob("*.py"))
APPLICATION: Final = sorted((ROOT / "payment_service" / "application").rglob("*.py"))
#: By what the domain makes postings.
MAKERS: Final = frozenset(
    {"Posting", "line", "stripe_line", "fx_line", "into_stripe", "between", "_lines"}
)


@dataclass(frozen=True)
class Posted:
    """What a use case posts for an expert under an event of its own."""

    kind: str
    currency: str
    postings: tuple[Posting, ...]


Amounts = Mapping[str, int]
Done = Transition | PayoutChange | Posted
#: What a rule's example is performed by.
Performer = Callable[[Amounts], Done]
#: An account as the document names it, minor units, and the currency if it is not the payment's.
Line = tuple[str, int, str]


# ---- the document ----


@dataclass
class Rule:
    """One rule of the document: its postings as formulas, and the example's numbers."""

    event: str
    case: str
    amounts: Amounts
    accounts: list[tuple[str, str]] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    sum: int | None = None

    @property
    def name(self) -> str:
        return f"{self.event}: {self.case}"

    @property
    def lines(self) -> list[Line]:
        """The postings that the formulas come to."""
        return [
            (account, value_of(formula, self.amounts), currency)
            for (account, currency), formula in zip(self.accounts, self.formulas, strict=True)
        ]


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    _, found, section = DOCUMENT.partition(f"\n## {heading}\n")
    assert found, f"docs/LEDGER.md has no section {heading!r}"
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def read_rules() -> list[Rule]:
    rules: list[Rule] = []
    for event, case, account, formula, number in rows_of("The rules"):
        if event:
            name, _, given = case.partition(":")
            amounts = {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", given)}
            rules.append(Rule(event.strip("`"), name, amounts))
        rule = rules[-1]
        assert rule.sum is None, f"{rule.name} goes on after its sum"
        minor_units = int(number)
        if formula == "sum":
            rule.sum = minor_units
            continue
        named = re.fullmatch(r"`([^`]+)`(?: \[([A-Z]{3})\])?", account)
        assert named, f"{rule.name}: {account!r} is no account"
        rule.accounts.append((named[1], named[2] or ""))
        rule.formulas.append(formula)
        rule.numbers.append(minor_units)
    return rules


def value_of(formula: str, amounts: Amounts) -> int:
    """`+c -n` with the amounts put in."""
    terms = formula.split()
    assert all(re.fullmatch(r"[+-]\w+", term) for term in terms), f"{formula!r} is no formula"
    return sum(amounts[term[1:]] * (1 if term[0] == "+" else -1) for term in terms)


RULES: Final = read_rules()
SILENT: Final = [row[0].strip("`") for row in rows_of("Events that post nothing")]
ACCOUNTS: Final = [row[0].strip("`") for row in rows_of("The accounts")]


# ---- the code, performed ----


def usd(minor_units: int) -> StripeAmount:
    return StripeAmount(minor_units, "USD")


def held_by_card(a: Amounts, currency: str = "USD") -> Payment:
    return in_state(State.IN_ESCROW, new_payment(a["A"], currency))


def held_by_platform(minor_units: int = 10_000) -> Payment:
    return in_state(State.IN_ESCROW, separate(PLATFORM_HOLD, minor_units))


def busy(payment: Payment, state: State) -> Payment:
    return replace(payment, state=state, operation_id="op_1")


def charged(
    payment: Payment, part: int, *, out_of_band: bool = False, goes_on: bool = False
) -> Done:
    return transitions.charged(
        payment,
        part,
        usd(part),
        charge_id="ch_1",
        expire_time=NOW + timedelta(days=90),
        out_of_band=out_of_band,
        next_operation_id="op_2" if goes_on else None,
        now=NOW,
    )


def captured(a: Amounts, payment: Payment, *, ours: bool = True) -> Done:
    share = CaptureSplit(a["X"], a["c"], a.get("n", 0))
    whole, fee = usd(a.get("Xs", a["X"])), usd(a.get("cs", share.commission + share.debt_offset))
    return transitions.captured(
        busy(payment, State.CAPTURING) if ours else payment,
        share,
        CaptureTransactions(charge=whole, transferred=whole, received=whole, fee=fee, fee_paid=fee),
        charge_id="ch_1",
        transfer_id="tr_1",
        now=NOW,
    )


def transferred(a: Amounts) -> Done:
    share = CaptureSplit(a["X"], a["c"], a.get("n", 0))
    return transitions.transferred(
        busy(held_by_platform(), State.CAPTURING),
        share,
        usd(share.sent),
        usd(share.sent),
        transfer_id="tr_1",
        next_operation_id=None,
        now=NOW,
    )


def ended(a: Amounts, *, expired: bool) -> Done:
    payment = busy(held_by_card(a), State.CANCELING)
    return transitions.ended_unpaid(payment, expired=expired, reason="", now=NOW)


def partly_paid_out(a: Amounts) -> Payment:
    """The platform holds the amount that is refunded out of escrow; the remainder was captured."""
    whole = held_by_platform()
    held = a.get("h", 0)
    captured_ = whole.amount - held
    return replace(whole, held=held, captured=captured_, net_commission=captured_ // 10)


def split_of(a: Amounts) -> RefundSplit:
    split = RefundSplit(a.get("h", 0), a.get("g", 0), a.get("e", 0))
    return split if split.whole else RefundSplit(a["R"])


def client_refunded(a: Amounts) -> Done:
    payment = partly_paid_out(a) if "e" in a else held_by_platform()
    return transitions.client_refunded(
        busy(payment, State.REFUNDING), "re_1", split_of(a), usd(a["R"]), "op_2", NOW
    )


def refund_accepted(a: Amounts) -> Done:
    payment = busy(partly_paid_out(a), State.REFUNDING)
    return transitions.refund_accepted(payment, "re_1", split_of(a), "no funds", NOW)


def accepted(a: Amounts) -> Payment:
    """A payment whose refund waits for the platform's balance."""
    payment = busy(partly_paid_out(a), State.REFUNDING)
    return replace(payment, refunded_after_capture=a["R"], pending_refund=a["R"])


def accepted_refund_paid(a: Amounts) -> Done:
    split = RefundSplit(from_pending=a["R"])
    return transitions.client_refunded(accepted(a), "re_1", split, usd(a["R"]), None, NOW)


def accepted_refund_failed(a: Amounts) -> Done:
    return transitions.refund_refused(accepted(a), FAILURE)


def debt_collected(a: Amounts) -> Done:
    return transitions.debt_collected(
        partly_paid_out(a),
        "trr_1",
        a["v"],
        platform=usd(a["v"]),
        connected=usd(a["v"]),
        operation_id="op_9",
        now=NOW,
    )


def refunded_out_of_band(a: Amounts) -> Done:
    payment = replace(partly_paid_out(a), client_payable=a.get("o", 0))
    split = replace(split_of(a), from_payable=a.get("o", 0))
    return transitions.refunded_out_of_band(payment, "re_1", split, usd(a["R"]), LOSSES, NOW)


def transfer_reversed(a: Amounts) -> Done:
    payment = busy(partly_paid_out(a), State.REFUNDING)
    return transitions.transfer_reversed(
        payment,
        "trr_1",
        a["v"],
        platform=usd(a["v"]),
        connected=usd(a["v"]),
        next_operation_id=None,
        now=NOW,
    )


def reversed_out_of_band(a: Amounts) -> Done:
    return transitions.reversed_out_of_band(
        partly_paid_out(a), "trr_1", a["v"], usd(a["v"]), usd(a["v"]), NOW
    )


def fee_refunded_out_of_band(a: Amounts) -> Done:
    payment = in_state(State.REFUNDED if "b" in a else State.CAPTURED)
    return transitions.fee_refunded_out_of_band(
        payment, "fr_1", a["g"], usd(a["g"]), usd(a["g"]), NOW
    )


def transferred_out_of_band(a: Amounts) -> Done:
    return transitions.transferred_out_of_band(
        held_by_platform(), "tr_9", a["t"], usd(a["t"]), usd(a["t"]), NOW
    )


def refund_failed(a: Amounts) -> Done:
    refunded = replace(held_by_platform(), held=10_000 - a["R"], refunded_from_escrow=a["R"])
    return transitions.refund_failed(refunded, "re_1", a["R"], usd(a["R"]), NOW)


def refund_failed_unbooked(a: Amounts) -> Done:
    return transitions.refund_failed_unbooked(
        held_by_platform(), "re_1", a["R"], usd(a["R"]), usd(a["R"]), NOW
    )


def client_repaid(a: Amounts) -> Done:
    owed = replace(
        busy(held_by_platform(), State.REFUNDING),
        held=10_000 - a["R"],
        refunded_from_escrow=a["R"],
        client_payable=a["R"],
    )
    return transitions.client_repaid(owed, "re_2", a["R"], usd(a["R"]), NOW)


def client_payable_settled(a: Amounts) -> Done:
    owed = replace(
        held_by_platform(),
        held=10_000 - a["R"],
        refunded_from_escrow=a["R"],
        client_payable=a["R"] + 500,
    )
    return transitions.client_payable_settled(owed, a["R"], "paid by cheque", NOW)


def payout(a: Amounts, state: PayoutState) -> Done:
    """As Stripe shows it when the money has just left the account, or has just come back."""
    seen = payouts.PayoutSnapshot(
        payout_id="po_1",
        minor_units=a["p"],
        currency="USD",
        state=PayoutState.IN_TRANSIT,
        automatic=True,
        arrival_time=NOW,
        create_time=NOW,
        line=PayoutTransaction("txn_1", "USD", -a["p"]),
    )

    def follow(known: payouts.Payout | None, seen: payouts.PayoutSnapshot) -> PayoutChange:
        change = payouts.apply_payout_snapshot(
            known, seen, expert_id="expert_1", stripe_account_id="acct_1", now=NOW
        ).change
        assert change is not None
        return change

    out = follow(None, seen)
    if state is PayoutState.IN_TRANSIT:
        return out
    back = PayoutTransaction("txn_2", "USD", a["p"])
    return follow(out.after, replace(seen, state=state, failure_line=back))


def dispute_funds(a: Amounts, *, taken: bool, written_off: bool = False) -> Done:
    payment = held_by_platform()
    word = "dispute_withdrawn" if taken else "dispute_reinstated"
    sign = 1 if taken else -1
    postings = payment.book.dispute_funds(word, sign, a["D"], usd(a["D"]), usd(a.get("d", 0)))
    if written_off:
        postings += payment.book.reinstated_after_loss(a["D"])
    return transitions.dispute_funds_moved(payment, {}, postings, FreezeReason(), NOW, taken=taken)


def dispute_lost(a: Amounts) -> Done:
    beyond = a.get("b", 0)
    split = RefundSplit(a.get("h", 0), a.get("g", 0), a.get("e", 0), a.get("o", 0))
    if not split.whole and not beyond:
        split = RefundSplit(a["D"])
    payment = partly_paid_out(a) if "e" in a else held_by_platform()
    payment = replace(payment, client_payable=split.from_payable)
    if beyond:  # All of it was given back already, so nothing is left to lose.
        payment = replace(in_state(State.REFUNDED, separate(PLATFORM_HOLD)))
    return transitions.dispute_lost(
        payment,
        split,
        beyond,
        facts={},
        frozen=FreezeReason(),
        next_operation_id="op_2" if "e" in a else None,
        now=NOW,
    )


def debt_written_off(a: Amounts) -> Done:
    event = "expert.debt_written_off"
    assert any(f'"{event}"' in path.read_text() for path in APPLICATION)
    return Posted(event, "USD", tuple(ledger.written_off("expert_1", a["w"], "USD")))


def adjusted(event: str, *lines: tuple[str, int]) -> Posted:
    """What two people post that no rule covers; only a payment's has a transition."""
    # The platform's own corrections belong to no event.
    assert event == "platform.adjusted" or any(
        f'"{event}"' in path.read_text() for path in APPLICATION
    )
    given = [AdjustmentLine(account, "USD", units) for account, units in lines]
    return Posted(event, "USD", tuple(adjustments.adjusted(given)))


def payment_adjusted(a: Amounts) -> Done:
    lines = ("expert_debt:expert_1", a["a"]), ("losses", -a["a"])
    given = [AdjustmentLine(account, "USD", units) for account, units in lines]
    return transitions.adjusted(in_state(State.CAPTURED), an_adjustment(*given), NOW)


def platform_line(type_: str, category: str = "", description: str = "") -> Performer:
    def perform(a: Amounts) -> Done:
        line = PlatformLine(
            line_id="txn_1",
            type=type_,
            description=description,
            account=account_of(type_, category, description, ""),
            net=-a["L"],
            currency="USD",
            create_time=NOW,
        )
        return Posted("platform.line", "USD", tuple(line.postings))

    return perform


def opening(a: Amounts) -> Done:
    beginning = Beginning("acct_1", NOW)
    lines = opening_lines(beginning, {"USD": a["B"]} if "B" in a else {"USD": -a["M"]})
    return Posted("platform.opening", "USD", tuple(lines[0].postings))


def leaving(a: Amounts) -> Done:
    lines = leaving_lines(Beginning("acct_1", NOW), {"USD": a["B"]})
    return Posted("platform.opening", "USD", tuple(lines[0].postings))


#: Event and case, as the document names them.
PERFORMERS: Final[Mapping[tuple[str, str], Performer]] = {
    (EventKind.AUTHORIZED, "card hold"): lambda a: transitions.authorized(
        new_payment(a["A"]), "ch_1", NOW + timedelta(days=7), NOW
    ),
    (EventKind.CHARGED, "by the client's confirmation"): lambda a: charged(
        separate(PLATFORM_HOLD, a["A"]), a["A"]
    ),
    (EventKind.CHARGED, "by a promotion, or ahead of a part"): lambda a: charged(
        in_state(State.PROMOTING, separate(CARD_HOLD, a["A"])), a["A"]
    ),
    (EventKind.CHARGED, "ahead of a final capture, the remainder released"): lambda a: charged(
        in_state(State.CAPTURING, separate(CARD_HOLD, a["A"])), a["X"], goes_on=True
    ),
    (EventKind.CHARGED_OUT_OF_BAND, "captured at the dashboard, SEPARATE"): lambda a: charged(
        in_state(State.IN_ESCROW, separate(CARD_HOLD, a["A"])), a["A"], out_of_band=True
    ),
    (EventKind.CAPTURED, "DESTINATION"): lambda a: captured(a, held_by_card(a)),
    (EventKind.CAPTURED, "DESTINATION, debt netted"): lambda a: captured(a, held_by_card(a)),
    (EventKind.CAPTURED, "DESTINATION, euros settled in dollars"): lambda a: captured(
        a, held_by_card(a, "EUR")
    ),
    (EventKind.CAPTURED, "SEPARATE, a part"): transferred,
    (EventKind.CAPTURED, "SEPARATE, debt netted"): transferred,
    (EventKind.CAPTURED_OUT_OF_BAND, "captured at the dashboard, DESTINATION"): lambda a: captured(
        a, held_by_card(a), ours=False
    ),
    (EventKind.PROCESSOR_FEE, "Stripe's own fee"): lambda a: transitions.processor_fee_recorded(
        in_state(State.CAPTURED), usd(a["f"]), NOW
    ),
    (EventKind.CANCELED, "hold released"): lambda a: ended(a, expired=False),
    (EventKind.EXPIRED, "hold released"): lambda a: ended(a, expired=True),
    (EventKind.CLIENT_REFUNDED, "out of escrow"): client_refunded,
    (EventKind.CLIENT_REFUNDED, "after capture"): client_refunded,
    (EventKind.CLIENT_REFUNDED, "both"): client_refunded,
    (EventKind.CLIENT_REFUNDED, "accepted before"): accepted_refund_paid,
    (EventKind.REFUND_ACCEPTED, "waits for the platform's balance"): refund_accepted,
    (EventKind.PENDING_REFUND_FAILED, "Stripe never paid it"): accepted_refund_failed,
    (EventKind.DEBT_COLLECTED, "from a transfer of this payment"): debt_collected,
    (EventKind.TRANSFER_REVERSED, "a transfer, or a part of it, taken back"): transfer_reversed,
    (EventKind.REFUND_FAILED, "the client's bank gave it back"): refund_failed,
    (
        EventKind.REFUND_FAILED_UNBOOKED,
        "gone and come back before it was on the books",
    ): refund_failed_unbooked,
    (EventKind.CLIENT_REPAID, "paid by another refund"): client_repaid,
    (
        EventKind.CLIENT_PAYABLE_SETTLED,
        "by an operator (SettleClientPayable)",
    ): client_payable_settled,
    (EventKind.REFUNDED_OUT_OF_BAND, "at the dashboard"): refunded_out_of_band,
    (EventKind.REFUNDED_OUT_OF_BAND, "what was owed, and more"): refunded_out_of_band,
    (EventKind.REVERSED_OUT_OF_BAND, "at the dashboard"): reversed_out_of_band,
    (EventKind.FEE_REFUNDED_OUT_OF_BAND, "at the dashboard"): fee_refunded_out_of_band,
    (
        EventKind.FEE_REFUNDED_OUT_OF_BAND,
        "given back to the client before",
    ): fee_refunded_out_of_band,
    (EventKind.TRANSFERRED_OUT_OF_BAND, "at the dashboard"): transferred_out_of_band,
    (EventKind.DISPUTE_FUNDS_WITHDRAWN, "a chargeback"): lambda a: dispute_funds(a, taken=True),
    (EventKind.DISPUTE_FUNDS_REINSTATED, "won, the fee kept"): lambda a: dispute_funds(
        a, taken=False
    ),
    (EventKind.DISPUTE_FUNDS_REINSTATED, "on appeal, written off before"): lambda a: dispute_funds(
        a, taken=False, written_off=True
    ),
    (EventKind.DISPUTE_LOST, "in escrow"): dispute_lost,
    (EventKind.DISPUTE_LOST, "held money first, then what was paid out"): dispute_lost,
    (EventKind.DISPUTE_LOST, "refunded before"): dispute_lost,
    (EventKind.DISPUTE_LOST, "owed after a bounce first, then held money"): dispute_lost,
    ("expert.payout_in_transit", "paid out to the bank"): lambda a: payout(
        a, PayoutState.IN_TRANSIT
    ),
    ("expert.payout_failed", "the bank gave it back"): lambda a: payout(a, PayoutState.FAILED),
    ("expert.debt_written_off", "by an operator (WriteOffExpertDebt)"): debt_written_off,
    (EventKind.ADJUSTED, "approved by a second person, for example"): payment_adjusted,
    ("expert.adjusted", "approved by a second person, for example"): lambda a: adjusted(
        "expert.adjusted", ("expert_debt:expert_1", -a["a"]), ("commission", a["a"])
    ),
    ("platform.adjusted", "approved by a second person, for example"): lambda a: adjusted(
        "platform.adjusted", ("account_deficits", a["a"]), ("platform_fees", -a["a"])
    ),
    ("platform.line", "a fee of Stripe's"): platform_line("stripe_fee"),
    ("platform.line", "the fee for countering a dispute"): platform_line(
        "adjustment", "fee", "Card Dispute Countered Fee (2026-07-13)"
    ),
    ("platform.line", "held back by Stripe"): platform_line("reserve_transaction"),
    ("platform.line", "a payout to the platform's bank"): platform_line("payout"),
    ("platform.line", "a connected account below zero"): platform_line(
        "connect_collection_transfer"
    ),
    ("platform.line", "an advance that is taken back"): platform_line("anticipation_repayment"),
    ("platform.line", "a contribution"): platform_line("contribution"),
    ("platform.opening", "there before the books began"): opening,
    ("platform.opening", "less than nothing was there"): opening,
    ("platform.opening", "the books are of another account now"): leaving,
}

_SHARE: Final = CaptureSplit(10_000, 1_000)
_SPLIT: Final = RefundSplit(0, 1_000, 9_000)

#: What happens to a dispute and moves no money.
_DISPUTED: Final = (
    EventKind.DISPUTE_OPENED,
    EventKind.DISPUTE_ESCALATED,
    EventKind.DISPUTE_UPDATED,
    EventKind.DISPUTE_WON,
    EventKind.DISPUTE_CLOSED,
    EventKind.DISPUTE_ANSWER_STARTED,
    EventKind.DISPUTE_ANSWER_REFUSED,
)


def disputed(kind: EventKind) -> Transition:
    return transitions.dispute_changed(in_state(State.CAPTURED), kind, {}, FreezeReason(), NOW)


def warned(kind: EventKind) -> Transition:
    return transitions.fraud_warned(in_state(State.CAPTURED), kind, {}, "", FreezeReason(), NOW)


#: One of each that posts nothing.
SILENT_PERFORMERS: Final[Mapping[str, Callable[[], Transition]]] = {
    EventKind.INITIATED: lambda: transitions.initiate(replace(new_payment(), version=0)),
    EventKind.INTENT_CREATED: lambda: transitions.intent_created(
        new_payment(intent=""), "pi_1", NOW
    ),
    EventKind.CREATION_REFUSED: lambda: transitions.creation_refused(
        new_payment(intent=""), FAILURE
    ),
    EventKind.ATTEMPT_FAILED: lambda: transitions.attempt_failed(new_payment(), FAILURE),
    EventKind.ATTEMPT_RESTARTED: lambda: transitions.attempt_restarted(in_state(State.FAILED), NOW),
    EventKind.CAPTURE_STARTED: lambda: transitions.start_capture(
        in_state(State.IN_ESCROW), _SHARE, "op_1", "", NOW
    ),
    EventKind.CAPTURE_REFUSED: lambda: transitions.capture_refused(
        in_state(State.CAPTURING), FAILURE
    ),
    EventKind.CAPTURE_ABANDONED: lambda: transitions.capture_abandoned(
        in_state(State.CAPTURING), "", NOW
    ),
    EventKind.EXPERT_DEBT_RECORDED: lambda: transitions.expert_debt_recorded(
        in_state(State.REFUNDING), 9_000, "nothing_left_to_reverse", NOW
    ),
    EventKind.PROMOTE_STARTED: lambda: transitions.start_promotion(
        in_state(State.IN_ESCROW, separate(CARD_HOLD)), "op_1", NOW
    ),
    EventKind.PROMOTE_REFUSED: lambda: transitions.promotion_refused(
        in_state(State.PROMOTING), FAILURE
    ),
    EventKind.CANCEL_STARTED: lambda: transitions.start_cancel(
        in_state(State.IN_ESCROW), "op_1", "", NOW
    ),
    EventKind.CANCEL_REFUSED: lambda: transitions.cancel_refused(
        in_state(State.CANCELING), FAILURE
    ),
    EventKind.REFUND_STARTED: lambda: transitions.start_refund(
        in_state(State.CAPTURED), _SPLIT, "op_1", "", NOW
    ),
    EventKind.REFUND_REFUSED: lambda: transitions.refund_refused(
        in_state(State.REFUNDING), FAILURE
    ),
    EventKind.WAITING_CHANGED: lambda: transitions.waiting_changed(
        in_state(State.CAPTURING), WaitingFor.PROCESSOR, "timeout", NOW
    ),
    EventKind.DEADLINE_NEAR: lambda: transitions.deadline_near(
        in_state(State.IN_ESCROW), "", NOW, OnDeadline.ALERT, NOW
    ),
    EventKind.DEADLINE_PASSED: lambda: transitions.deadline_passed(
        in_state(State.IN_ESCROW), "", NOW, NOW
    ),
    **{kind: lambda kind=kind: disputed(kind) for kind in _DISPUTED},  # type: ignore[misc]
    EventKind.REPAYMENT_DUE: lambda: transitions.repayment_due(
        replace(in_state(State.REFUNDED), client_payable=100), "op_2", NOW
    ),
    EventKind.REPAYMENT_ABANDONED: lambda: transitions.repayment_abandoned(
        in_state(State.REFUNDING), "", NOW
    ),
    EventKind.FRAUD_WARNING_DISMISSED: lambda: transitions.fraud_warning_dismissed(
        in_state(State.IN_ESCROW), "looked into", NOW
    ),
    EventKind.FRAUD_WARNING: lambda: warned(EventKind.FRAUD_WARNING),
    EventKind.FRAUD_WARNING_OVER: lambda: warned(EventKind.FRAUD_WARNING_OVER),
    EventKind.EXPIRE_TIME_KNOWN: lambda: transitions.expire_time_known(
        in_state(State.IN_ESCROW), NOW, NOW
    ),
    EventKind.REVIEW_OPENED: lambda: transitions.review_changed(
        in_state(State.IN_ESCROW), "prv_1", FreezeReason(), NOW
    ),
    EventKind.REVIEW_CLOSED: lambda: transitions.review_changed(
        in_state(State.IN_ESCROW), "", FreezeReason(), NOW
    ),
}


def written(done: Done) -> list[Line]:
    """The postings as the document writes them."""
    currency = done.currency if isinstance(done, Posted) else done.after.currency
    return [
        (
            generic(posting.account),
            posting.minor_units,
            "" if posting.currency == currency else posting.currency,
        )
        for posting in done.postings
    ]


def generic(account: str) -> str:
    return account.replace("pay_1", "{payment}").replace("expert_1", "{expert}")


def kinds_that_post() -> set[str]:
    """The events whose transitions are made with postings, read from the source."""
    found: set[str] = set()
    for path in DOMAIN:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and any(k.arg == "postings" for k in node.keywords):
                found |= {
                    EventKind[part.attr].value
                    for argument in node.args
                    for part in ast.walk(argument)
                    if isinstance(part, ast.Attribute)
                    and isinstance(part.value, ast.Name)
                    and part.value.id == "EventKind"
                }
    return found


def kinds_of_postings() -> set[str]:
    """What the domain can write into a posting's kind, read from the source."""
    found: set[str] = set()
    for path in DOMAIN:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if isinstance(node.func, ast.Name):
                name = node.func.id
            if name in MAKERS:
                constants = [part for part in node.args if isinstance(part, ast.Constant)]
                found |= {part.value for part in constants if isinstance(part.value, str)}
    return found


# ---- the one against the other ----


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_example_is_what_the_code_posts(rule: Rule) -> None:
    perform = PERFORMERS.get((rule.event, rule.case))
    assert perform, "give it a function in PERFORMERS, under this event and case"
    done = perform(rule.amounts)
    assert done.kind == rule.event
    assert written(done) == rule.lines


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_examples_numbers_are_what_its_formulas_come_to(rule: Rule) -> None:
    assert rule.numbers == [minor_units for _, minor_units, _ in rule.lines]
    sums: Counter[str] = Counter()
    for (_, currency), minor_units in zip(rule.accounts, rule.numbers, strict=True):
        sums[currency] += minor_units
    assert rule.sum == 0
    assert set(sums.values()) == {0}


def test_no_rule_is_missing_and_none_is_invented() -> None:
    documented = [(rule.event, rule.case) for rule in RULES]
    assert Counter(documented) == Counter(PERFORMERS.keys())
    of_payments = {event for event, _ in documented if event.startswith("payment.")}
    assert of_payments == kinds_that_post()
    assert Counter(SILENT) == Counter(kind.value for kind in EventKind if kind not in of_payments)
    assert {*TRANSITIONS, EventKind.INITIATED} == set(EventKind)


def test_every_kind_of_posting_is_in_an_example() -> None:
    performed = [PERFORMERS[rule.event, rule.case](rule.amounts) for rule in RULES]
    shown = {posting.kind for done in performed for posting in done.postings}
    assert kinds_of_postings() <= shown


@pytest.mark.parametrize("event", SILENT)
def test_what_is_said_to_post_nothing_posts_nothing(event: str) -> None:
    done = SILENT_PERFORMERS[event]()
    assert (done.kind, done.postings) == (event, ())


def test_the_accounts_are_those_that_are_posted_to() -> None:
    posted = {account for rule in RULES for account, _ in rule.accounts}
    assert Counter(ACCOUNTS) == Counter(posted)


def test_a_wrong_line_would_be_noticed() -> None:
    """The comparison itself, tried on lines that are not as they must be."""
    done = PERFORMERS[EventKind.PROCESSOR_FEE, "Stripe's own fee"]({"f": 320})
    other = replace(done, postings=(Posting("processor_fee", 321, "USD", "processor_fee"),))
    assert written(done)[0] == ("processor_fee", 320, "")
    assert written(other) != written(done)
