"""The state machine: its edges, its refusals, and what each step leaves on the books."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain import money, plans, transitions
from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import (
    LOSSES,
    CaptureSplit,
    CaptureTransactions,
    Posting,
    RefundSplit,
    StripeAmount,
    imbalance,
)
from payment_service.domain.payment import (
    Freeze,
    FreezeReason,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
)
from payment_service.domain.state_machine import (
    TRANSITIONS,
    EventKind,
    IllegalTransition,
    Transition,
    Unbalanced,
)
from tests.unit.domain.builders import (
    CARD_HOLD,
    FAILURE,
    HOLDING,
    NOW,
    an_adjustment,
    in_state,
    new_payment,
    separate,
    sums,
)
from tests.unit.domain.fake_intent import SAME_CURRENCY, Exchange
from tests.unit.domain.fake_service import FakeService, check_payment, serve

USD = StripeAmount(100, "USD", "txn_1")
SHARE = CaptureSplit(400, 40)


def lines(part: int, commission: int) -> CaptureTransactions:
    whole, fee = StripeAmount(part, "USD", "txn_1"), StripeAmount(commission, "USD", "txn_2")
    return CaptureTransactions(
        charge=whole, transferred=whole, received=whole, fee=fee, fee_paid=fee
    )


def captured(payment: Payment) -> Transition:
    return transitions.captured(
        payment, SHARE, lines(400, 40), charge_id="ch_1", transfer_id="tr_1", now=NOW
    )


def charged(payment: Payment, *, out_of_band: bool = False, then: str | None = None) -> Transition:
    return transitions.charged(
        payment,
        10_000,
        StripeAmount(10_000, "USD", "txn_1"),
        charge_id="ch_1",
        expire_time=NOW + HOLDING,
        out_of_band=out_of_band,
        next_operation_id=then,
        now=NOW,
    )


def transferred(payment: Payment, part: int, then: str | None = None) -> Transition:
    sent = StripeAmount(part, "USD", "txn_1")
    return transitions.transferred(
        payment,
        CaptureSplit(part, 0),
        sent,
        sent,
        transfer_id="tr_1",
        next_operation_id=then,
        now=NOW,
    )


def whole_of(payment: Payment) -> RefundSplit:
    """All that could still go back, so that nothing is left anywhere."""
    return RefundSplit(payment.held, payment.net_commission, payment.net_expert)


def client_refunded(payment: Payment, split: RefundSplit, then: str | None) -> Transition:
    settled = StripeAmount(split.whole, payment.currency, "txn_1")
    return transitions.client_refunded(payment, "re_1", split, settled, then, NOW)


def refund_accepted(payment: Payment, split: RefundSplit) -> Transition:
    return transitions.refund_accepted(payment, "re_1", split, "no funds", NOW)


def debt_collected(payment: Payment) -> Transition:
    return transitions.debt_collected(
        payment,
        "trr_1",
        100,
        platform=USD,
        connected=USD,
        operation_id="op_9",
        now=NOW,
    )


def refunded_out_of_band(payment: Payment, split: RefundSplit) -> Transition:
    settled = StripeAmount(split.whole, payment.currency, "txn_1")
    return transitions.refunded_out_of_band(payment, "re_1", split, settled, LOSSES, NOW)


def transfer_reversed(payment: Payment, then: str | None) -> Transition:
    return transitions.transfer_reversed(
        payment,
        "trr_1",
        100,
        platform=USD,
        connected=USD,
        next_operation_id=then,
        now=NOW,
    )


CONTESTED = FreezeReason(Freeze.CHARGEBACK, "dp_1")


def dispute_lost(
    payment: Payment, split: RefundSplit, then: str | None = None, beyond: int = 0
) -> Transition:
    return transitions.dispute_lost(
        payment,
        split,
        beyond,
        facts={},
        frozen=FreezeReason(),
        next_operation_id=then,
        now=NOW,
    )


def dispute_changed(kind: EventKind) -> Callable[[Payment], Transition]:
    return lambda payment: transitions.dispute_changed(payment, kind, {}, CONTESTED, NOW)


def dispute_funds(*, taken: bool) -> Callable[[Payment], Transition]:
    def moved(payment: Payment) -> Transition:
        fee = StripeAmount(15, payment.currency, "txn_1")
        settled = StripeAmount(100, payment.currency, "txn_1")
        sign = 1 if taken else -1
        postings = payment.book.dispute_funds("dispute_funds", sign, 100, settled, fee)
        return transitions.dispute_funds_moved(payment, {}, postings, CONTESTED, NOW, taken=taken)

    return moved


def warned(kind: EventKind) -> Callable[[Payment], Transition]:
    return lambda payment: transitions.fraud_warned(payment, kind, {}, "issfr_1", CONTESTED, NOW)


HELD_PART, EXPERTS_PART = RefundSplit(from_escrow=100), RefundSplit(expert_amount=100)

#: Every transition function there is, in every way that leads to another state.
FUNCTIONS: dict[str, Callable[[Payment], Transition]] = {
    "intent_created": lambda p: transitions.intent_created(p, "pi_1", NOW),
    "creation_refused": lambda p: transitions.creation_refused(p, FAILURE),
    "attempt_failed": lambda p: transitions.attempt_failed(p, FAILURE),
    "attempt_restarted": lambda p: transitions.attempt_restarted(p, NOW),
    "authorized": lambda p: transitions.authorized(p, "ch_1", NOW, NOW),
    "charged": charged,
    "charged, then transferred": lambda p: charged(p, then="op_2"),
    "charged elsewhere": lambda p: charged(p, out_of_band=True),
    "start_promotion": lambda p: transitions.start_promotion(p, "op_2", NOW),
    "promotion_refused": lambda p: transitions.promotion_refused(p, FAILURE),
    "start_capture": lambda p: transitions.start_capture(p, SHARE, "op_2", "", NOW),
    "capture_refused": lambda p: transitions.capture_refused(p, FAILURE),
    "capture_abandoned": lambda p: transitions.capture_abandoned(p, "asked", NOW),
    "captured": captured,
    "transferred, a part": lambda p: transferred(p, 100),
    "transferred, the whole": lambda p: transferred(p, p.held or 100),
    "transferred, the rest goes back": lambda p: transferred(p, 100, "op_2"),
    "start_cancel": lambda p: transitions.start_cancel(p, "op_2", "asked", NOW),
    "cancel_refused": lambda p: transitions.cancel_refused(p, FAILURE),
    "canceled": lambda p: transitions.ended_unpaid(p, expired=False, reason="", now=NOW),
    "expired": lambda p: transitions.ended_unpaid(p, expired=True, reason="", now=NOW),
    "start_refund": lambda p: transitions.start_refund(p, EXPERTS_PART, "op_2", "", NOW),
    "refund_refused": lambda p: transitions.refund_refused(p, FAILURE),
    "refund_accepted": lambda p: refund_accepted(p, EXPERTS_PART),
    "debt_collected": debt_collected,
    "client_refunded, out of escrow": lambda p: client_refunded(p, HELD_PART, None),
    "client_refunded, a part": lambda p: client_refunded(p, EXPERTS_PART, None),
    "client_refunded, the whole": lambda p: client_refunded(p, whole_of(p), None),
    "client_refunded, then the expert": lambda p: client_refunded(p, EXPERTS_PART, "op_2"),
    "transfer_reversed": lambda p: transfer_reversed(p, None),
    "transfer_reversed, then another": lambda p: transfer_reversed(p, "op_2"),
    "expert_debt_recorded": lambda p: transitions.expert_debt_recorded(
        p, 100, "account_closed", NOW
    ),
    "refunded_out_of_band, out of escrow": lambda p: refunded_out_of_band(p, HELD_PART),
    "refunded_out_of_band, all that is held": lambda p: refunded_out_of_band(
        p, RefundSplit(p.held or 100)
    ),
    "refunded_out_of_band, a part": lambda p: refunded_out_of_band(p, EXPERTS_PART),
    "refunded_out_of_band, the whole": lambda p: refunded_out_of_band(p, whole_of(p)),
    "transferred_out_of_band": lambda p: transitions.transferred_out_of_band(
        p, "tr_2", 100, USD, USD, NOW
    ),
    "reversed_out_of_band": lambda p: transitions.reversed_out_of_band(
        p, "trr_1", 100, USD, USD, NOW
    ),
    "fee_refunded_out_of_band": lambda p: transitions.fee_refunded_out_of_band(
        p, "fr_1", 100, USD, USD, NOW
    ),
    "refund_failed": lambda p: transitions.refund_failed(p, "re_1", 100, USD, NOW),
    "repayment_due": lambda p: transitions.repayment_due(p, "op_2", NOW),
    "repayment_abandoned": lambda p: transitions.repayment_abandoned(p, "lost", NOW),
    "refund_failed_unbooked": lambda p: transitions.refund_failed_unbooked(
        p, "re_1", 100, USD, USD, NOW
    ),
    "refunded_out_of_band, as owed": lambda p: refunded_out_of_band(
        p, RefundSplit(from_payable=100)
    ),
    "client_payable_settled": lambda p: transitions.client_payable_settled(
        p, 100, "paid by cheque", NOW
    ),
    "client_repaid": lambda p: transitions.client_repaid(p, "re_1", 100, USD, NOW),
    "processor_fee_recorded": lambda p: transitions.processor_fee_recorded(p, USD, NOW),
    **{
        kind.value: dispute_changed(kind)
        for kind in (
            EventKind.DISPUTE_OPENED,
            EventKind.DISPUTE_ESCALATED,
            EventKind.DISPUTE_UPDATED,
            EventKind.DISPUTE_WON,
            EventKind.DISPUTE_CLOSED,
            EventKind.DISPUTE_ANSWER_STARTED,
            EventKind.DISPUTE_ANSWER_REFUSED,
        )
    },
    "dispute, withdrawn": dispute_funds(taken=True),
    "dispute, reinstated": dispute_funds(taken=False),
    "dispute_lost, without money": lambda p: transitions.dispute_changed(
        p, EventKind.DISPUTE_LOST, {}, FreezeReason(), NOW
    ),
    "dispute_lost, out of escrow": lambda p: dispute_lost(p, HELD_PART),
    "dispute_lost, all that is held": lambda p: dispute_lost(p, RefundSplit(p.held or 100)),
    "dispute_lost, a part": lambda p: dispute_lost(p, EXPERTS_PART),
    "dispute_lost, the whole": lambda p: dispute_lost(p, whole_of(p)),
    "dispute_lost, then the expert": lambda p: dispute_lost(p, EXPERTS_PART, "op_2"),
    "dispute_lost, after a refund": lambda p: dispute_lost(p, RefundSplit(), beyond=100),
    "fraud_warning": warned(EventKind.FRAUD_WARNING),
    "fraud_warning_over": warned(EventKind.FRAUD_WARNING_OVER),
    "fraud_warning_dismissed": lambda p: transitions.fraud_warning_dismissed(p, "looked into", NOW),
    "expire_time_known": lambda p: transitions.expire_time_known(p, NOW, NOW),
    "review_opened": lambda p: transitions.review_changed(p, "prv_1", CONTESTED, NOW),
    "review_closed": lambda p: transitions.review_changed(p, "", CONTESTED, NOW),
    "waiting": lambda p: transitions.waiting_changed(p, WaitingFor.PROCESSOR, "timeout", NOW),
    "adjusted": lambda p: transitions.adjusted(p, an_adjustment(), NOW),
    "deadline_near": lambda p: transitions.deadline_near(
        p, "RELEASE_DUE", NOW, OnDeadline.ALERT, NOW
    ),
    "deadline_passed": lambda p: transitions.deadline_passed(p, "RELEASE_DUE", NOW, NOW),
}


def standing_in(state: State) -> Iterator[Payment]:
    """The payments that can stand in a state, as far as it makes a difference."""
    if state is not State.PROMOTING:
        yield in_state(state)
    yield in_state(state, separate(CARD_HOLD))
    if state is not State.PROMOTING:
        yield in_state(state, separate())
    if state is State.CANCELING:
        yield replace(in_state(state), held=0)
    if state in (State.IN_ESCROW, State.CAPTURING, State.REFUNDING):
        # Of three milestones two were paid, and of the third a part went back to the client.
        paid = replace(
            in_state(state, separate()), charged=10_000, captured=6_666, refunded_after_capture=0
        )
        part = replace(paid, held=3_234, refunded_from_escrow=100, net_commission=667)
        yield part
        yield replace(part, client_payable=100)
    if state is State.CAPTURING:
        # All that was held was refunded out of band while the capture waited.
        gone = replace(in_state(state, separate()), held=0, refunded_from_escrow=10_000)
        yield gone
        yield replace(gone, captured=4_000, refunded_from_escrow=6_000, net_commission=400)
    if state is State.CAPTURED:
        part = replace(in_state(state), refunded_after_capture=100, net_commission=990)
        yield part
        yield replace(part, client_payable=100)
    if state is State.REFUNDED:
        yield replace(in_state(state), client_payable=100)
    if state is State.REFUNDING:
        yield from going_back()


def going_back() -> Iterator[Payment]:
    """What is left when the client was refunded; and the same once the refund has bounced."""
    payment = in_state(State.REFUNDING)
    # Out of escrow alone: nothing was ever paid to the expert.
    held = replace(in_state(State.IN_ESCROW, separate()), state=State.REFUNDING, operation_id="op")
    for left in (
        replace(payment, refunded_after_capture=100, net_commission=990),
        replace(payment, refunded_after_capture=payment.captured, net_commission=0),
        replace(held, held=9_900, refunded_from_escrow=100),
    ):
        yield left
        yield replace(left, client_payable=100, waiting_for=WaitingFor.OPERATOR)
        yield replace(left, pending_refund=100, waiting_for=WaitingFor.PROCESSOR)


def test_payments_of_every_state_are_consistent() -> None:
    for state in State:
        for payment in standing_in(state):
            check_payment(payment)


def possible() -> set[tuple[EventKind, State, State]]:
    found = set()
    for state in State:
        for payment in standing_in(state):
            for function in FUNCTIONS.values():
                try:
                    done = function(payment)
                    check_payment(done.after)  # Else it was a step that such a payment never takes.
                except (IllegalTransition, AssertionError):
                    continue
                found.add((done.kind, payment.state, done.after.state))
    return found


POSSIBLE = possible()


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind is not EventKind.INITIATED])
def test_exactly_the_listed_edges_are_possible(kind: EventKind, before: State) -> None:
    reached = {target for what, source, target in POSSIBLE if (what, source) == (kind, before)}
    assert reached == set(TRANSITIONS[kind].get(before, ()))


def test_every_kind_but_the_first_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(EventKind) - {EventKind.INITIATED}


def test_final_states_are_left_by_corrections_only() -> None:
    corrections = {
        State.CANCELED: {EventKind.CAPTURED_OUT_OF_BAND, EventKind.CHARGED_OUT_OF_BAND},
        State.EXPIRED: {EventKind.CAPTURED_OUT_OF_BAND, EventKind.CHARGED_OUT_OF_BAND},
        State.REFUNDED: {EventKind.REPAYMENT_DUE},
    }
    for state, kinds in corrections.items():
        left = {kind for kind, source, target in POSSIBLE if source is state is not target}
        assert left == kinds


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_transition_is_one_version_and_balances(function: str) -> None:
    tried = 0
    for state in State:
        for payment in standing_in(state):
            try:
                done = FUNCTIONS[function](payment)
            except IllegalTransition:
                continue
            tried += 1
            assert done.before == payment
            assert done.after.version == payment.version + 1
            assert imbalance(done.postings) == {}
            assert all(posting.minor_units for posting in done.postings)
            assert done.after.update_time == NOW
    assert tried


def test_illegal_transition_names_the_edge() -> None:
    with pytest.raises(IllegalTransition, match=r"pay_1: payment\.authorized from CAPTURED to IN_"):
        transitions.authorized(in_state(State.CAPTURED), "ch_1", None, NOW)


def test_unbalanced_postings_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    stray = Posting("hold", 1, "USD", "stray")
    monkeypatch.setattr("payment_service.domain.ledger.Book.authorized", lambda *_: [stray])
    with pytest.raises(Unbalanced, match=r"off by \{.USD.: 1\}"):
        transitions.authorized(new_payment(), "ch_1", None, NOW)


# ---- initiation ----


def test_initiation_is_the_first_version_and_moves_no_money() -> None:
    done = transitions.initiate(replace(new_payment(intent=""), version=0))
    assert (done.before, done.after.version, done.postings) == (None, 1, ())


@pytest.mark.parametrize(("amount", "basis_points"), [(1, 5_000), (4, 9_000), (50, 9_999)])
def test_commission_of_the_whole_amount_is_refused(amount: int, basis_points: int) -> None:
    with pytest.raises(Precondition) as refusal:
        transitions.initiate(new_payment(amount, basis_points=basis_points))
    assert refusal.value.reason == "COMMISSION_TOO_LARGE"
    assert refusal.value.facts == {"amount": str(amount), "commission": str(amount)}


# ---- refused ----


def test_refused_refund_of_an_emptied_payment_leaves_it_refunded() -> None:
    """While ours was in progress an operator refunded everything out of band."""
    emptied = replace(in_state(State.REFUNDING), refunded_after_capture=10_000, net_commission=0)
    assert transitions.refund_refused(emptied, FAILURE).after.state is State.REFUNDED


# ---- what complete lives leave on the books ----

PLATFORM, CONNECTED = "stripe:platform", "stripe:connected:expert_1"
FUNDS, DEBT = "expert_funds:expert_1", "expert_debt:expert_1"
OWED = "client_payable:pay_1"
TO_EURO = Exchange("EUR", Fraction(9, 10), "GBP", Fraction(4, 5))


def live(exchange: Exchange = SAME_CURRENCY, currency: str = "USD") -> FakeService:
    """A payment of 10000 whose card was authorized."""
    service = serve(new_payment(currency=currency), exchange)
    service.intent.authorize()
    service.follow()
    assert service.balance("hold") == 10_000
    assert service.balance("client") == -10_000
    return service


def books(service: FakeService) -> dict[str, int]:
    service.check_reconciled()
    totals: dict[str, int] = {}
    for posting in service.postings:
        totals[posting.account] = totals.get(posting.account, 0) + posting.minor_units
    return {account: total for account, total in totals.items() if total}


# Stripe's own fee is 320 of 10000 and 146 of 4000.


def test_books_after_capture() -> None:
    service = live()
    service.capture()
    assert books(service) == {
        PLATFORM: 1_000 - 320,
        CONNECTED: 9_000,
        FUNDS: -9_000,
        "commission": -1_000,
        "processor_fee": 320,
    }
    assert service.payment.processor_fee == 320


def test_books_after_capture_of_a_part() -> None:
    service = live()
    service.capture(4_000)
    assert service.payment.state is State.CAPTURED
    assert books(service) == {
        PLATFORM: 400 - 146,
        CONNECTED: 3_600,
        FUNDS: -3_600,
        "commission": -400,
        "processor_fee": 146,
    }


def test_books_are_empty_after_a_cancellation() -> None:
    service = live()
    service.give_back()
    assert service.payment.state is State.CANCELED
    assert books(service) == {}


def test_books_are_empty_after_expiry() -> None:
    service = live()
    service.intent.cancel("automatic")
    service.follow()
    assert service.payment.state is State.EXPIRED
    assert books(service) == {}


def test_books_after_a_full_refund_show_only_stripes_fee() -> None:
    service = live()
    service.capture()
    service.give_back()
    assert service.payment.state is State.REFUNDED
    assert books(service) == {PLATFORM: -320, "processor_fee": 320}


def test_books_after_a_refund_of_a_part() -> None:
    service = live()
    service.capture()
    service.give_back(3_333)
    assert service.payment.state is State.CAPTURED
    assert books(service) == {
        PLATFORM: 667 - 320,
        CONNECTED: 6_000,
        FUNDS: -6_000,
        "commission": -667,
        "processor_fee": 320,
    }


def test_a_refused_reversal_is_the_experts_debt() -> None:
    service = live()
    service.capture()
    service.give_back(reversal_refused=True)
    assert service.payment.state is State.REFUNDED
    assert books(service) == {
        PLATFORM: 1_000 - 320 - 10_000,
        CONNECTED: 9_000,
        FUNDS: -9_000,
        DEBT: 9_000,
        "processor_fee": 320,
    }


def test_failed_refund_is_client_payable_until_it_is_sent_again() -> None:
    service = live()
    service.capture()
    service.give_back()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    assert service.payment.state is State.REFUNDING
    assert service.payment.waiting_for is WaitingFor.OPERATOR
    assert books(service) == {PLATFORM: 10_000 - 320, OWED: -10_000, "processor_fee": 320}
    service.send()
    service.follow()
    assert (service.payment.state, service.payment.client_payable) == (State.REFUNDED, 0)
    assert books(service) == {PLATFORM: -320, "processor_fee": 320}


def test_out_of_band_refund_is_the_platforms_loss() -> None:
    service = live()
    service.capture()
    service.intent.refund(4_000)
    service.follow()
    assert books(service) == {
        PLATFORM: 1_000 - 320 - 4_000,
        CONNECTED: 9_000,
        FUNDS: -9_000,
        "commission": -600,
        LOSSES: 3_600,
        "processor_fee": 320,
    }


def test_out_of_band_reversal_offsets_a_loss() -> None:
    service = live()
    service.capture()
    service.intent.refund(4_000)
    service.intent.reverse(3_600)
    service.follow()
    assert books(service) == {
        PLATFORM: 600 - 320,
        CONNECTED: 5_400,
        FUNDS: -5_400,
        "commission": -600,
        "processor_fee": 320,
    }


def test_out_of_band_fee_refund_goes_to_the_expert() -> None:
    service = live()
    service.capture()
    service.intent.refund_fee(250)
    service.follow()
    assert books(service) == {
        PLATFORM: 750 - 320,
        CONNECTED: 9_250,
        FUNDS: -9_250,
        "commission": -750,
        "processor_fee": 320,
    }


def test_books_after_capture_in_another_currency_stand_over_fx() -> None:
    """Charged in USD, settled in EUR at 0.9, received in GBP at 0.8 of that."""
    service = live(TO_EURO)
    service.capture()
    service.check_reconciled()
    assert sums(service.postings) == {
        (PLATFORM, "EUR"): 900 - 320,
        (CONNECTED, "GBP"): 7_200 - 720,
        (FUNDS, "USD"): -9_000,
        ("commission", "USD"): -1_000,
        ("processor_fee", "EUR"): 320,
        ("fx", "USD"): 10_000,
        ("fx", "EUR"): -900,
        ("fx", "GBP"): -(7_200 - 720),
    }
    service.give_back()
    assert service.payment.state is State.REFUNDED
    service.check_reconciled()
    assert [service.balance(account) for account in (FUNDS, DEBT, "commission", "fx")] == [0] * 4


@given(
    currency=st.sampled_from(["USD", "JPY", "KWD", "ISK"]),
    basis_points=st.integers(0, 4_999),
    steps=st.integers(2, 100_000),
    cut=st.integers(1, 100),
    refunds=st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=5),
)
def test_books_agree_with_stripe_after_any_lifecycle(
    currency: str, basis_points: int, steps: int, cut: int, refunds: list[tuple[int, bool]]
) -> None:
    unit = money.step(currency)
    amount = steps * unit
    service = serve(new_payment(amount, currency, basis_points))
    service.intent.authorize()
    service.follow()
    service.capture(max(steps * cut // 100, 1) * unit)
    refused = 0
    for share, reversal_refused in refunds:
        payment = service.payment
        part = max(payment.net // unit * share // 100, 1) * unit
        if payment.state is State.REFUNDED:
            break
        expert_part = plans.plan_refund(payment, part).split.expert_amount
        refused += expert_part if reversal_refused else 0
        service.give_back(part, reversal_refused=reversal_refused)
    payment = service.payment
    service.check_reconciled()
    assert service.balance("commission") == -payment.net_commission
    assert payment.net_commission == money.fee(payment.net, basis_points, currency)
    assert service.balance(DEBT) == refused
    assert service.balance(FUNDS) == -payment.net_expert - refused
    assert service.balance(LOSSES) == 0
    assert not service.discrepancies
