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

from payment_service.domain import escrow, ledger, payouts
from payment_service.domain.escrow import (
    Frozen,
    Kind,
    OnDeadline,
    Payment,
    State,
    Transition,
    WaitingFor,
)
from payment_service.domain.ledger import (
    LOSSES,
    CaptureLines,
    Posting,
    RefundSplit,
    Settled,
    Share,
)
from payment_service.domain.payouts import PayoutChange, PayoutLine, PayoutState
from tests.unit.domain.builders import (
    CARD_HOLD,
    FAILURE,
    NOW,
    PLATFORM_HOLD,
    in_state,
    new_payment,
    separate,
)

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = (ROOT / "docs" / "LEDGER.md").read_text()
DOMAIN: Final = sorted((ROOT / "payment_service" / "domain").glob("*.py"))
APPLICATION: Final = sorted((ROOT / "payment_service" / "application").glob("*.py"))
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


def usd(minor_units: int) -> Settled:
    return Settled(minor_units, "USD")


def held_by_card(a: Amounts, currency: str = "USD") -> Payment:
    return in_state(State.IN_ESCROW, new_payment(a["A"], currency))


def held_by_platform(minor_units: int = 10_000) -> Payment:
    return in_state(State.IN_ESCROW, separate(PLATFORM_HOLD, minor_units))


def busy(payment: Payment, state: State) -> Payment:
    return replace(payment, state=state, operation_id="op_1")


def charged(payment: Payment, part: int, *, elsewhere: bool = False, goes_on: bool = False) -> Done:
    return escrow.charged(
        payment,
        part,
        usd(part),
        charge_id="ch_1",
        expire_time=NOW + timedelta(days=90),
        elsewhere=elsewhere,
        next_operation_id="op_2" if goes_on else None,
        now=NOW,
    )


def captured(a: Amounts, payment: Payment, *, ours: bool = True) -> Done:
    share = Share(a["X"], a["c"], a.get("n", 0))
    whole, fee = usd(a.get("Xs", a["X"])), usd(a.get("cs", share.commission + share.netted))
    return escrow.captured(
        busy(payment, State.CAPTURING) if ours else payment,
        share,
        CaptureLines(charge=whole, transferred=whole, received=whole, fee=fee, fee_paid=fee),
        charge_id="ch_1",
        transfer_id="tr_1",
        now=NOW,
    )


def transferred(a: Amounts) -> Done:
    share = Share(a["X"], a["c"], a.get("n", 0))
    return escrow.transferred(
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
    return escrow.ended_unpaid(payment, expired=expired, reason="", now=NOW)


def partly_paid_out(a: Amounts) -> Payment:
    """The platform holds as much as goes back out of escrow; the rest was captured."""
    whole = held_by_platform()
    held = a.get("h", 0)
    captured_ = whole.amount - held
    return replace(whole, held=held, captured=captured_, net_commission=captured_ // 10)


def split_of(a: Amounts) -> RefundSplit:
    split = RefundSplit(a.get("h", 0), a.get("g", 0), a.get("e", 0))
    return split if split.whole else RefundSplit(a["R"])


def client_refunded(a: Amounts) -> Done:
    payment = partly_paid_out(a) if "e" in a else held_by_platform()
    return escrow.client_refunded(
        busy(payment, State.REFUNDING), "re_1", split_of(a), usd(a["R"]), "op_2", NOW
    )


def refunded_elsewhere(a: Amounts) -> Done:
    payment = replace(partly_paid_out(a), client_owed=a.get("o", 0))
    split = replace(split_of(a), from_owed=a.get("o", 0))
    return escrow.refunded_elsewhere(payment, "re_1", split, usd(a["R"]), LOSSES, NOW)


def expert_reversed(a: Amounts) -> Done:
    payment = busy(partly_paid_out(a), State.REFUNDING)
    return escrow.expert_reversed(payment, "trr_1", a["v"], usd(a["v"]), usd(a["v"]), None, NOW)


def reversed_elsewhere(a: Amounts) -> Done:
    return escrow.reversed_elsewhere(
        partly_paid_out(a), "trr_1", a["v"], usd(a["v"]), usd(a["v"]), NOW
    )


def fee_refunded_elsewhere(a: Amounts) -> Done:
    payment = in_state(State.REFUNDED if "b" in a else State.CAPTURED)
    return escrow.fee_refunded_elsewhere(payment, "fr_1", a["g"], usd(a["g"]), usd(a["g"]), NOW)


def transferred_elsewhere(a: Amounts) -> Done:
    return escrow.transferred_elsewhere(
        held_by_platform(), "tr_9", a["t"], usd(a["t"]), usd(a["t"]), NOW
    )


def refund_failed(a: Amounts) -> Done:
    refunded = replace(held_by_platform(), held=10_000 - a["R"], returned=a["R"])
    return escrow.refund_failed(refunded, "re_1", a["R"], usd(a["R"]), NOW)


def refund_bounced(a: Amounts) -> Done:
    return escrow.refund_bounced(held_by_platform(), "re_1", a["R"], usd(a["R"]), usd(a["R"]), NOW)


def refund_resent(a: Amounts) -> Done:
    owed = replace(
        busy(held_by_platform(), State.REFUNDING),
        held=10_000 - a["R"],
        returned=a["R"],
        client_owed=a["R"],
    )
    return escrow.refund_resent(owed, "re_2", a["R"], usd(a["R"]), NOW)


def owed_settled(a: Amounts) -> Done:
    owed = replace(
        held_by_platform(), held=10_000 - a["R"], returned=a["R"], client_owed=a["R"] + 500
    )
    return escrow.owed_settled(owed, a["R"], "paid by cheque", NOW)


def payout(a: Amounts, state: PayoutState) -> Done:
    """As Stripe shows it when the money has just left the account, or has just come back."""
    seen = payouts.SeenPayout(
        payout_id="po_1",
        minor_units=a["p"],
        currency="USD",
        state=PayoutState.IN_TRANSIT,
        automatic=True,
        arrival_time=NOW,
        create_time=NOW,
        line=PayoutLine("txn_1", "USD", -a["p"]),
    )

    def follow(known: payouts.Payout | None, seen: payouts.SeenPayout) -> PayoutChange:
        change = payouts.follow_payout(
            known, seen, expert_id="expert_1", stripe_account_id="acct_1", now=NOW
        ).change
        assert change is not None
        return change

    out = follow(None, seen)
    if state is PayoutState.IN_TRANSIT:
        return out
    back = PayoutLine("txn_2", "USD", a["p"])
    return follow(out.after, replace(seen, state=state, failure_line=back))


def dispute_funds(a: Amounts, *, taken: bool, written_off: bool = False) -> Done:
    payment = held_by_platform()
    word = "dispute_withdrawn" if taken else "dispute_reinstated"
    sign = 1 if taken else -1
    postings = payment.book.dispute_funds(word, sign, a["D"], usd(a["D"]), usd(a.get("d", 0)))
    if written_off:
        postings += payment.book.reinstated_after_loss(a["D"])
    return escrow.dispute_funds_moved(payment, {}, postings, Frozen(), NOW, taken=taken)


def dispute_lost(a: Amounts) -> Done:
    beyond = a.get("b", 0)
    split = RefundSplit(a.get("h", 0), a.get("g", 0), a.get("e", 0), a.get("o", 0))
    if not split.whole and not beyond:
        split = RefundSplit(a["D"])
    payment = partly_paid_out(a) if "e" in a else held_by_platform()
    payment = replace(payment, client_owed=split.from_owed)
    if beyond:  # All of it was given back already, so nothing is left to lose.
        payment = replace(in_state(State.REFUNDED, separate(PLATFORM_HOLD)))
    return escrow.dispute_lost(
        payment, split, beyond, {}, Frozen(), "op_2" if "e" in a else None, NOW
    )


def debt_written_off(a: Amounts) -> Done:
    event = "expert.debt_written_off"
    assert any(f'"{event}"' in path.read_text() for path in APPLICATION)
    return Posted(event, "USD", tuple(ledger.written_off("expert_1", a["w"], "USD")))


#: Event and case, as the document names them.
PERFORMERS: Final[Mapping[tuple[str, str], Performer]] = {
    (Kind.AUTHORIZED, "card hold"): lambda a: escrow.authorized(
        new_payment(a["A"]), "ch_1", NOW + timedelta(days=7), NOW
    ),
    (Kind.CHARGED, "by the client's confirmation"): lambda a: charged(
        separate(PLATFORM_HOLD, a["A"]), a["A"]
    ),
    (Kind.CHARGED, "by a promotion, or ahead of a part"): lambda a: charged(
        in_state(State.PROMOTING, separate(CARD_HOLD, a["A"])), a["A"]
    ),
    (Kind.CHARGED, "ahead of a final capture, the remainder released"): lambda a: charged(
        in_state(State.CAPTURING, separate(CARD_HOLD, a["A"])), a["X"], goes_on=True
    ),
    (Kind.CHARGED_ELSEWHERE, "captured at the dashboard, SEPARATE"): lambda a: charged(
        in_state(State.IN_ESCROW, separate(CARD_HOLD, a["A"])), a["A"], elsewhere=True
    ),
    (Kind.CAPTURED, "DESTINATION"): lambda a: captured(a, held_by_card(a)),
    (Kind.CAPTURED, "DESTINATION, debt netted"): lambda a: captured(a, held_by_card(a)),
    (Kind.CAPTURED, "DESTINATION, euros settled in dollars"): lambda a: captured(
        a, held_by_card(a, "EUR")
    ),
    (Kind.CAPTURED, "SEPARATE, a part"): transferred,
    (Kind.CAPTURED, "SEPARATE, debt netted"): transferred,
    (Kind.CAPTURED_ELSEWHERE, "captured at the dashboard, DESTINATION"): lambda a: captured(
        a, held_by_card(a), ours=False
    ),
    (Kind.PROCESSOR_FEE, "Stripe's own fee"): lambda a: escrow.processor_fee_recorded(
        in_state(State.CAPTURED), usd(a["f"]), NOW
    ),
    (Kind.CANCELED, "hold released"): lambda a: ended(a, expired=False),
    (Kind.EXPIRED, "hold released"): lambda a: ended(a, expired=True),
    (Kind.CLIENT_REFUNDED, "out of escrow"): client_refunded,
    (Kind.CLIENT_REFUNDED, "after capture"): client_refunded,
    (Kind.CLIENT_REFUNDED, "both"): client_refunded,
    (Kind.EXPERT_REVERSED, "a transfer, or a part of it, taken back"): expert_reversed,
    (Kind.REFUND_FAILED, "the client's bank gave it back"): refund_failed,
    (Kind.REFUND_BOUNCED, "gone and come back before it was on the books"): refund_bounced,
    (Kind.REFUND_RESENT, "paid by another refund"): refund_resent,
    (Kind.OWED_SETTLED, "by an operator (SettleOwed)"): owed_settled,
    (Kind.REFUNDED_ELSEWHERE, "at the dashboard"): refunded_elsewhere,
    (Kind.REFUNDED_ELSEWHERE, "what was owed, and more"): refunded_elsewhere,
    (Kind.REVERSED_ELSEWHERE, "at the dashboard"): reversed_elsewhere,
    (Kind.FEE_REFUNDED_ELSEWHERE, "at the dashboard"): fee_refunded_elsewhere,
    (Kind.FEE_REFUNDED_ELSEWHERE, "given back to the client before"): fee_refunded_elsewhere,
    (Kind.TRANSFERRED_ELSEWHERE, "at the dashboard"): transferred_elsewhere,
    (Kind.DISPUTE_FUNDS_WITHDRAWN, "a chargeback"): lambda a: dispute_funds(a, taken=True),
    (Kind.DISPUTE_FUNDS_REINSTATED, "won, the fee kept"): lambda a: dispute_funds(a, taken=False),
    (Kind.DISPUTE_FUNDS_REINSTATED, "on appeal, written off before"): lambda a: dispute_funds(
        a, taken=False, written_off=True
    ),
    (Kind.DISPUTE_LOST, "in escrow"): dispute_lost,
    (Kind.DISPUTE_LOST, "held money first, then what was paid out"): dispute_lost,
    (Kind.DISPUTE_LOST, "refunded before"): dispute_lost,
    (Kind.DISPUTE_LOST, "owed after a bounce first, then held money"): dispute_lost,
    ("expert.payout_in_transit", "paid out to the bank"): lambda a: payout(
        a, PayoutState.IN_TRANSIT
    ),
    ("expert.payout_failed", "the bank gave it back"): lambda a: payout(a, PayoutState.FAILED),
    ("expert.debt_written_off", "by an operator (WriteOffDebt)"): debt_written_off,
}

_SHARE: Final = Share(10_000, 1_000)
_SPLIT: Final = RefundSplit(0, 1_000, 9_000)

#: What happens to a dispute and moves no money.
_DISPUTED: Final = (
    Kind.DISPUTE_OPENED,
    Kind.DISPUTE_ESCALATED,
    Kind.DISPUTE_UPDATED,
    Kind.DISPUTE_WON,
    Kind.DISPUTE_CLOSED,
    Kind.DISPUTE_ANSWER_STARTED,
    Kind.DISPUTE_ANSWER_REFUSED,
)


def disputed(kind: Kind) -> Transition:
    return escrow.dispute_changed(in_state(State.CAPTURED), kind, {}, Frozen(), NOW)


def warned(kind: Kind) -> Transition:
    return escrow.fraud_warned(in_state(State.CAPTURED), kind, {}, "", Frozen(), NOW)


#: One of each that posts nothing.
SILENT_PERFORMERS: Final[Mapping[str, Callable[[], Transition]]] = {
    Kind.INITIATED: lambda: escrow.initiate(replace(new_payment(), version=0)),
    Kind.INTENT_CREATED: lambda: escrow.intent_created(new_payment(intent=""), "pi_1", NOW),
    Kind.CREATION_REFUSED: lambda: escrow.creation_refused(new_payment(intent=""), FAILURE),
    Kind.ATTEMPT_FAILED: lambda: escrow.attempt_failed(new_payment(), FAILURE),
    Kind.ATTEMPT_RESTARTED: lambda: escrow.attempt_restarted(in_state(State.FAILED), NOW),
    Kind.CAPTURE_STARTED: lambda: escrow.start_capture(
        in_state(State.IN_ESCROW), _SHARE, "op_1", "", NOW
    ),
    Kind.CAPTURE_REFUSED: lambda: escrow.capture_refused(in_state(State.CAPTURING), FAILURE),
    Kind.CAPTURE_GIVEN_UP: lambda: escrow.capture_given_up(in_state(State.CAPTURING), "", NOW),
    Kind.EXPERT_OWES: lambda: escrow.expert_owes(
        in_state(State.REFUNDING), 9_000, "nothing_left_to_reverse", NOW
    ),
    Kind.PROMOTE_STARTED: lambda: escrow.start_promotion(
        in_state(State.IN_ESCROW, separate(CARD_HOLD)), "op_1", NOW
    ),
    Kind.PROMOTE_REFUSED: lambda: escrow.promotion_refused(in_state(State.PROMOTING), FAILURE),
    Kind.CANCEL_STARTED: lambda: escrow.start_cancel(in_state(State.IN_ESCROW), "op_1", "", NOW),
    Kind.CANCEL_REFUSED: lambda: escrow.cancel_refused(in_state(State.CANCELING), FAILURE),
    Kind.REFUND_STARTED: lambda: escrow.start_refund(
        in_state(State.CAPTURED), _SPLIT, "op_1", "", NOW
    ),
    Kind.REFUND_REFUSED: lambda: escrow.refund_refused(in_state(State.REFUNDING), FAILURE),
    Kind.WAITING: lambda: escrow.waiting(
        in_state(State.CAPTURING), WaitingFor.PROCESSOR, "timeout", NOW
    ),
    Kind.DEADLINE_NEAR: lambda: escrow.deadline_near(
        in_state(State.IN_ESCROW), "", NOW, OnDeadline.ALERT, NOW
    ),
    Kind.DEADLINE_PASSED: lambda: escrow.deadline_passed(in_state(State.IN_ESCROW), "", NOW, NOW),
    **{kind: lambda kind=kind: disputed(kind) for kind in _DISPUTED},  # type: ignore[misc]
    Kind.REPAYMENT_DUE: lambda: escrow.repayment_due(
        replace(in_state(State.REFUNDED), client_owed=100), "op_2", NOW
    ),
    Kind.REPAYMENT_GIVEN_UP: lambda: escrow.repayment_given_up(in_state(State.REFUNDING), "", NOW),
    Kind.FRAUD_WARNING_RELEASED: lambda: escrow.fraud_warning_released(
        in_state(State.IN_ESCROW), "looked into", NOW
    ),
    Kind.FRAUD_WARNING: lambda: warned(Kind.FRAUD_WARNING),
    Kind.FRAUD_WARNING_OVER: lambda: warned(Kind.FRAUD_WARNING_OVER),
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
    """The events whose transitions are made with postings, told from the source."""
    found: set[str] = set()
    for path in DOMAIN:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and any(k.arg == "postings" for k in node.keywords):
                found |= {
                    Kind[part.attr].value
                    for argument in node.args
                    for part in ast.walk(argument)
                    if isinstance(part, ast.Attribute)
                    and isinstance(part.value, ast.Name)
                    and part.value.id == "Kind"
                }
    return found


def kinds_of_postings() -> set[str]:
    """What the domain can write into a posting's kind, told from the source."""
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


def test_no_rule_is_missing_and_none_is_made_up() -> None:
    documented = [(rule.event, rule.case) for rule in RULES]
    assert Counter(documented) == Counter(PERFORMERS.keys())
    of_payments = {event for event, _ in documented if event.startswith("payment.")}
    assert of_payments == kinds_that_post()
    assert Counter(SILENT) == Counter(kind.value for kind in Kind if kind not in of_payments)
    assert {*escrow.TRANSITIONS, Kind.INITIATED} == set(Kind)


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
    done = PERFORMERS[Kind.PROCESSOR_FEE, "Stripe's own fee"]({"f": 320})
    other = replace(done, postings=(Posting("processor_fee", 321, "USD", "processor_fee"),))
    assert written(done)[0] == ("processor_fee", 320, "")
    assert written(other) != written(done)
