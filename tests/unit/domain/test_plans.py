"""What a call would do: the guards, the legs, and how a new payment's money is held."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from payment_service.domain import guards, hold_policy, money, plans
from payment_service.domain.errors import Busy, InvalidArgument, Precondition, Refusal
from payment_service.domain.hold_policy import Hold, HoldRules
from payment_service.domain.ledger import CaptureSplit, RefundSplit
from payment_service.domain.payment import (
    ChargeModel,
    EscrowMode,
    ModeReason,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
)
from payment_service.domain.plans import CapturePlan, RefundPlan, ReversibleTransfer
from tests.unit.domain.builders import (
    BUSY,
    CARD_HOLD,
    NOW,
    PLATFORM_HOLD,
    in_state,
    new_payment,
    separate,
)

# ---- which capture is allowed ----


@pytest.mark.parametrize(
    ("part", "final", "taken"),
    [(None, False, 10_000), (None, True, 10_000), (10_000, False, 10_000), (10_000, True, 10_000)],
)
def test_capture_takes_what_is_held(part: int | None, final: bool, taken: int) -> None:
    plan = plans.plan_capture(in_state(State.IN_ESCROW), part, final)
    assert plan == CapturePlan(CaptureSplit(taken, 1_000), taken, 0, 0)


@pytest.mark.parametrize("part", [1, 4_000, 9_999])
def test_capture_of_a_part_needs_final(part: int) -> None:
    payment = in_state(State.IN_ESCROW)
    plan = plans.plan_capture(payment, part, final=True)
    commission = money.fee(part, 1_000, "USD")
    assert plan == CapturePlan(CaptureSplit(part, commission), part, 10_000 - part, 0)
    with pytest.raises(Precondition) as refusal:
        plans.plan_capture(payment, part, final=False)
    assert refusal.value.reason == "WOULD_RELEASE_REMAINDER"
    assert refusal.value.facts == {
        "payment_id": "pay_1",
        "held": "10000",
        "requested": str(part),
    }


def test_capture_that_would_leave_the_expert_nothing_is_refused() -> None:
    payment = in_state(State.IN_ESCROW, new_payment(basis_points=6_000))
    with pytest.raises(Precondition) as refusal:
        plans.plan_capture(payment, 1, final=True)
    assert refusal.value.reason == "COMMISSION_TOO_LARGE"
    assert refusal.value.facts == {"amount": "1", "commission": "1"}
    assert plans.plan_capture(payment, 2, final=True).split == CaptureSplit(2, 1)


@pytest.mark.parametrize(
    ("payment", "part", "final", "refused"),
    [
        (in_state(State.IN_ESCROW), 49, True, True),
        (in_state(State.IN_ESCROW), 50, True, False),
        (in_state(State.IN_ESCROW, separate(CARD_HOLD)), 49, True, True),
        # All of the hold is charged, or was charged before: only the transfer is small.
        (in_state(State.IN_ESCROW, separate(CARD_HOLD)), 10, False, False),
        (in_state(State.IN_ESCROW, separate(PLATFORM_HOLD)), 10, True, False),
    ],
)
def test_a_card_is_charged_no_less_than_stripe_charges(
    payment: Payment, part: int, final: bool, refused: bool
) -> None:
    plans.plan_capture(payment, part, final)  # Where Stripe converts, it is the judge.
    settled = frozenset({"USD"})
    if not refused:
        plans.plan_capture(payment, part, final, settlement_currencies=settled)
        return
    with pytest.raises(InvalidArgument, match=r"at least 0\.50 USD"):
        plans.plan_capture(payment, part, final, settlement_currencies=settled)


CAPTURE = (State.IN_ESCROW,)
REFUND = (State.PENDING, State.FAILED, State.IN_ESCROW, State.CAPTURED)


def capture_refusal(payment: Payment, part: int | None) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        plans.plan_capture(payment, part, final=True)
    return refusal.value


def refund_refusal(payment: Payment, part: int | None) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        plans.plan_refund(payment, part)
    return refusal.value


@pytest.mark.parametrize("part", [None, 1, 10_000, 10_001, 0, -1])
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("allowed", "refusal_of"), [(CAPTURE, capture_refusal), (REFUND, refund_refusal)]
)
def test_wrong_state_is_named_whatever_the_amount(
    allowed: tuple[State, ...],
    refusal_of: Callable[[Payment, int | None], Refusal],
    state: State,
    part: int | None,
) -> None:
    payment = in_state(state)
    if state in allowed:
        payment = replace(payment, operation_id="op_1")
    refusal = refusal_of(payment, part)
    if state in BUSY or state in allowed:
        assert (type(refusal), refusal.reason) == (Busy, "OPERATION_IN_PROGRESS")
        assert refusal.facts == {"payment_id": "pay_1", "state": state.value}
    else:
        assert (type(refusal), refusal.reason) == (Precondition, "WRONG_STATE")
        assert refusal.facts == {
            "payment_id": "pay_1",
            "state": state.value,
            "allowed_states": ",".join(allowed),
        }


@pytest.mark.parametrize(
    ("currency", "part", "fault"),
    [
        ("USD", 0, "must be more than zero"),
        ("USD", -1, "must be more than zero"),
        ("KWD", 5, "must be a multiple of 10 in KWD"),
        ("ISK", 150, "must be a multiple of 100 in ISK"),
        ("UGX", 1, "must be a multiple of 100 in UGX"),
    ],
)
@pytest.mark.parametrize(
    ("allowed", "refusal_of"), [(CAPTURE, capture_refusal), (REFUND, refund_refusal)]
)
def test_impossible_amount_is_an_invalid_field(
    allowed: tuple[State, ...],
    refusal_of: Callable[[Payment, int | None], Refusal],
    currency: str,
    part: int,
    fault: str,
) -> None:
    for state in allowed:
        refusal = refusal_of(in_state(state, new_payment(currency=currency)), part)
        assert (type(refusal), refusal.reason) == (InvalidArgument, "INVALID_FIELD")
        assert refusal.fields == (("amount.minor_units", fault),)


@pytest.mark.parametrize(
    ("allowed", "refusal_of"), [(CAPTURE, capture_refusal), (REFUND, refund_refusal)]
)
def test_more_than_there_is_is_refused(
    allowed: tuple[State, ...], refusal_of: Callable[[Payment, int | None], Refusal]
) -> None:
    for state in allowed:
        refusal = refusal_of(in_state(state), 10_001)
        assert (type(refusal), refusal.reason) == (Precondition, "AMOUNT_TOO_LARGE")
        assert refusal.facts == {
            "payment_id": "pay_1",
            "requested": "10001",
            "available": "10000",
            "currency": "USD",
        }


# ---- which refund is allowed ----


@pytest.mark.parametrize("part", [None, 10_000])
@pytest.mark.parametrize("state", [State.PENDING, State.FAILED, State.IN_ESCROW])
def test_uncaptured_payment_is_given_back_by_cancelling(state: State, part: int | None) -> None:
    plan = plans.plan_refund(in_state(state), part)
    assert plan == RefundPlan(True, 10_000, RefundSplit())


@pytest.mark.parametrize("part", [1, 9_999])
@pytest.mark.parametrize("state", [State.PENDING, State.FAILED, State.IN_ESCROW])
def test_part_of_an_uncaptured_payment_cannot_be_refunded(state: State, part: int) -> None:
    payment = in_state(state)
    refusal = refund_refusal(payment, part)
    assert (type(refusal), refusal.reason) == (Precondition, "PARTIAL_REFUND_NEEDS_CAPTURE")
    assert refusal.facts == {
        "payment_id": "pay_1",
        "held": str(payment.held),
        "requested": str(part),
    }


@pytest.mark.parametrize(
    ("part", "commission", "expert"),
    [(None, 1_000, 9_000), (10_000, 1_000, 9_000), (5, 0, 5), (6, 1, 5), (3_333, 333, 3_000)],
)
def test_refund_after_capture_divides_by_the_commission_given_back(
    part: int | None, commission: int, expert: int
) -> None:
    plan = plans.plan_refund(in_state(State.CAPTURED), part)
    split = RefundSplit(0, commission, expert)
    assert plan == RefundPlan(False, commission + expert, split)


def test_refund_after_a_refund_is_of_the_remainder() -> None:
    payment = replace(in_state(State.CAPTURED), refunded_after_capture=4_000, net_commission=600)
    assert plans.plan_refund(payment, None) == RefundPlan(False, 6_000, RefundSplit(0, 600, 5_400))
    assert refund_refusal(payment, 6_001).facts["available"] == "6000"


@given(st.data())
def test_refund_never_gives_back_more_than_either_side_has(data: st.DataObject) -> None:
    """Whatever commission Stripe really collected, an operator's included."""
    net = data.draw(st.integers(1, 1_000))
    commission = data.draw(st.integers(0, net))
    payment = replace(
        in_state(State.CAPTURED, new_payment(1_000, basis_points=data.draw(st.integers(0, 9_999)))),
        refunded_after_capture=1_000 - net,
        net_commission=commission,
    )
    part = data.draw(st.integers(1, net))
    split = plans.refund_split_of(payment, part, from_escrow=0)
    assert split.whole == split.from_captured == part
    assert 0 <= split.commission <= commission
    assert 0 <= split.expert_amount <= payment.net_expert
    if part == net:
        assert split == RefundSplit(0, commission, payment.net_expert)


# ---- a separate charge ----


def held_by_us(amount: int = 10_000, currency: str = "USD", basis_points: int = 1_000) -> Payment:
    return in_state(State.IN_ESCROW, separate(PLATFORM_HOLD, amount, currency, basis_points))


def card_hold(amount: int = 10_000) -> Payment:
    return in_state(State.IN_ESCROW, separate(CARD_HOLD, amount))


@pytest.mark.parametrize(
    ("payment", "part", "final", "plan"),
    [
        # Charged before: the amount is transferred, the remainder stays or is refunded.
        (held_by_us(), None, False, CapturePlan(CaptureSplit(10_000, 1_000), 0, 0, 0)),
        (held_by_us(), 6_000, False, CapturePlan(CaptureSplit(6_000, 600), 0, 0, 0)),
        (held_by_us(), 6_000, True, CapturePlan(CaptureSplit(6_000, 600), 0, 0, 4_000)),
        # Only authorized: all of it is charged, unless nothing is to stay in escrow.
        (card_hold(), None, False, CapturePlan(CaptureSplit(10_000, 1_000), 10_000, 0, 0)),
        (card_hold(), 6_000, False, CapturePlan(CaptureSplit(6_000, 600), 10_000, 0, 0)),
        (card_hold(), 6_000, True, CapturePlan(CaptureSplit(6_000, 600), 6_000, 4_000, 0)),
        # With a destination the card is charged that amount, and Stripe releases the remainder.
        (
            in_state(State.IN_ESCROW),
            6_000,
            True,
            CapturePlan(CaptureSplit(6_000, 600), 6_000, 4_000, 0),
        ),
    ],
)
def test_an_award_is_split_by_what_was_charged_already(
    payment: Payment, part: int | None, final: bool, plan: CapturePlan
) -> None:
    assert plans.plan_capture(payment, part, final) == plan


@pytest.mark.parametrize(
    ("payment", "parts", "commissions"),
    [
        (held_by_us(9_999), (3_333, 3_333, 3_333), (333, 334, 333)),
        (held_by_us(1_001, "JPY"), (333, 333, 335), (33, 34, 33)),
        (held_by_us(9_990, "KWD", 1_250), (3_330, 3_330, 3_330), (420, 410, 420)),
        (held_by_us(50_500, "ISK"), (25_000, 25_500), (2_500, 2_600)),
    ],
    ids=["USD", "JPY", "KWD", "ISK"],
)
def test_milestones_leave_the_commission_of_their_sum(
    payment: Payment, parts: tuple[int, ...], commissions: tuple[int, ...]
) -> None:
    for part, commission in zip(parts, commissions, strict=True):
        share = plans.plan_capture(payment, part, final=False).split
        assert (share.commission, share.expert_amount) == (commission, part - commission)
        payment = replace(
            payment,
            held=payment.held - part,
            captured=payment.captured + part,
            net_commission=payment.net_commission + commission,
        )
    quoted = money.fee(sum(parts), payment.commission_basis_points, payment.currency)
    assert payment.net_commission == sum(commissions) == quoted == payment.commission


@st.composite
def _parts(draw: st.DrawFn) -> tuple[Payment, list[int]]:
    """A platform hold in any currency at any rate, and amounts that sum to it."""
    currency = draw(st.sampled_from(sorted(money.CURRENCIES)))
    steps = draw(st.lists(st.integers(1, 60) | st.integers(1, 9_999), min_size=1, max_size=12))
    unit = money.step(currency)
    amount, rate = sum(steps) * unit, draw(st.integers(0, 9_999))
    assume(money.fee(amount, rate, currency) < amount)  # Else it cannot be initiated.
    return held_by_us(amount, currency, rate), [one * unit for one in steps]


@given(_parts(), st.booleans())
def test_any_amounts_that_sum_to_the_whole_can_be_captured(
    given_: tuple[Payment, list[int]], rest_at_last: bool
) -> None:
    """The last cent may be all commission; then nothing is transferred."""
    payment, parts = given_
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        # A deadline captures what is held, without naming it.
        plan = plans.plan_capture(payment, None if last and rest_at_last else part, last)
        share = plan.split
        assert share.amount == part
        assert min(share.commission, share.sent) >= 0
        assert not share.sent % money.step(payment.currency)
        payment = replace(
            payment,
            held=payment.held - part,
            captured=payment.captured + part,
            net_commission=payment.net_commission + share.commission,
        )
    assert (payment.held, payment.net_commission) == (0, payment.commission)


@pytest.mark.parametrize(
    ("currency", "debt", "part", "netted"),
    [
        ("USD", 0, 10_000, 0),
        ("USD", 700, 10_000, 700),
        ("USD", 99_999, 10_000, 8_999),  # A cent is left, so that there is something to show.
        ("USD", 700, 1, 0),
        ("JPY", 99_999, 100, 89),
        ("KWD", 99_990, 1_000, 890),
        # What a conversion left of a debt beyond whole steps is not collected by a card.
        ("KWD", 207, 1_000, 200),
        ("ISK", 199, 1_000, 100),
        ("ISK", 99, 1_000, 0),
        # Somebody was paid twice; that is no debt of the expert's.
        ("USD", -5, 10_000, 0),
    ],
)
@pytest.mark.parametrize("base", [new_payment, held_by_us, card_hold])
def test_debt_is_kept_back_but_never_the_whole_part(
    base: Callable[[], Payment], currency: str, debt: int, part: int, netted: int
) -> None:
    payment = replace(in_state(State.IN_ESCROW, base()), currency=currency)
    share = plans.plan_capture(payment, part, True, debt).split
    assert share.debt_offset == netted
    assert share.sent + share.debt_offset + share.commission == part
    assert share.sent >= money.step(currency)


@pytest.mark.parametrize(
    ("part", "split"),
    [
        (None, RefundSplit(4_000)),  # What was paid out goes back only where it is asked for.
        (1_000, RefundSplit(1_000)),
        (4_000, RefundSplit(4_000)),
        (4_001, RefundSplit(4_000, 0, 1)),
        (7_000, RefundSplit(4_000, 300, 2_700)),
        (10_000, RefundSplit(4_000, 600, 5_400)),
    ],
)
def test_refund_takes_what_is_held_first(part: int | None, split: RefundSplit) -> None:
    payment = replace(held_by_us(), held=4_000, captured=6_000, net_commission=600)
    assert plans.plan_refund(payment, part) == RefundPlan(False, split.whole, split)
    with pytest.raises(Precondition, match="more than the"):
        plans.plan_refund(payment, 10_001)


@pytest.mark.parametrize("state", [State.PENDING, State.FAILED])
def test_an_uncharged_payment_is_canceled_whatever_its_mode(
    state: State,
) -> None:
    for mode in EscrowMode:
        plan = plans.plan_refund(in_state(state, separate(mode)), None)
        assert plan == RefundPlan(True, 10_000, RefundSplit())


@pytest.mark.parametrize(
    ("part", "legs"),
    [
        (0, []),
        (299, [("tr_3", 299)]),
        (300, [("tr_3", 300)]),
        (301, [("tr_3", 300), ("tr_1", 1)]),
        (400, [("tr_3", 300), ("tr_1", 100)]),
        (999, [("tr_3", 300), ("tr_1", 100)]),
    ],
)
def test_reversals_begin_with_the_newest_transfer(part: int, legs: list[tuple[str, int]]) -> None:
    """The second one has nothing left, and the uncovered amount becomes debt."""
    transfers = [
        ReversibleTransfer("tr_1", 100),
        ReversibleTransfer("tr_2", 0),
        ReversibleTransfer("tr_3", 300),
    ]
    assert plans.plan_reversals(part, transfers) == [ReversibleTransfer(*leg) for leg in legs]


def test_only_an_authorized_card_without_a_destination_is_promoted() -> None:
    guards.check_promotion(card_hold())
    for payment in (in_state(State.IN_ESCROW), held_by_us()):
        with pytest.raises(Precondition, match="only an authorized card") as refusal:
            guards.check_promotion(payment)
        assert refusal.value.reason == "WRONG_STATE"
    for state in State:
        if state is State.IN_ESCROW:
            continue
        with pytest.raises(Refusal) as other:
            guards.check_promotion(in_state(state, separate(CARD_HOLD)))
        busy = state in BUSY
        assert other.value.reason == ("OPERATION_IN_PROGRESS" if busy else "WRONG_STATE")


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("waiting_for", WaitingFor)
def test_only_a_capture_that_waits_for_the_expert_can_be_abandoned(
    state: State, waiting_for: WaitingFor
) -> None:
    payment = replace(in_state(state, separate(CARD_HOLD)), waiting_for=waiting_for)
    waits = (state, waiting_for) == (State.CAPTURING, WaitingFor.EXPERT)
    assert guards.waits_for_expert(payment) is waits


def test_version_mismatch_is_refused_with_the_current_payment() -> None:
    payment = replace(new_payment(), version=7)
    guards.check_version(payment, 0)
    guards.check_version(payment, 7)
    with pytest.raises(guards.VersionMismatch) as refusal:
        guards.check_version(payment, 6)
    assert refusal.value.payment == payment
    assert (refusal.value.reason, refusal.value.facts["version"]) == ("VERSION_MISMATCH", "7")


# ---- how the money is held ----

RULES = HoldRules(
    card_hold=timedelta(days=6),
    holding_limit=timedelta(days=90),
    settlement_currencies=frozenset({"USD", "EUR"}),
    platform_country="US",
    expert_country="US",
)
MOMENT = timedelta(microseconds=1)
SOON, LATE = NOW + RULES.card_hold, NOW + RULES.card_hold + MOMENT
WITH_DESTINATION, WITHOUT = ChargeModel.DESTINATION, ChargeModel.SEPARATE
OTHERWISE = [action for action in OnDeadline if action is not OnDeadline.PROMOTE]


def chosen(
    asked: EscrowMode | None,
    on_deadline: OnDeadline = OnDeadline.ALERT,
    done_by: datetime | None = None,
    currency: str = "USD",
    country: str = "US",
) -> Hold:
    rules = replace(RULES, expert_country=country)
    return hold_policy.choose_hold(asked, on_deadline, done_by, currency, rules, NOW)


@pytest.mark.parametrize("asked", [None, CARD_HOLD, PLATFORM_HOLD])
@pytest.mark.parametrize("action", list(OTHERWISE))
def test_an_expert_in_another_region_is_paid_by_transfers(
    asked: EscrowMode | None, action: OnDeadline
) -> None:
    at_home = chosen(asked, action)
    abroad = chosen(asked, action, country="GB")
    assert abroad == replace(at_home, model=WITHOUT)


def test_an_expert_whom_stripe_lets_nobody_pay_from_here_is_refused() -> None:
    with pytest.raises(Precondition) as refusal:
        chosen(None, country="JP")
    assert refusal.value.reason == "COUNTRY_UNSUPPORTED"


def test_transfers_abroad_need_a_currency_that_the_platform_settles() -> None:
    assert chosen(None, currency="GBP").model is WITH_DESTINATION
    with pytest.raises(Precondition) as refusal:
        chosen(None, currency="GBP", country="GB")
    assert refusal.value.reason == "CURRENCY_NOT_SETTLED"


@pytest.mark.parametrize("action", OTHERWISE)
@pytest.mark.parametrize(
    ("asked", "done_by", "hold"),
    [
        (None, None, Hold(CARD_HOLD, WITH_DESTINATION, ModeReason.DEFAULT)),
        (None, NOW + MOMENT, Hold(CARD_HOLD, WITH_DESTINATION, ModeReason.FITS_CARD_HOLD)),
        (None, SOON, Hold(CARD_HOLD, WITH_DESTINATION, ModeReason.FITS_CARD_HOLD)),
        (None, LATE, Hold(PLATFORM_HOLD, WITHOUT, ModeReason.OUTLASTS_CARD_HOLD)),
        (
            None,
            NOW + RULES.holding_limit,
            Hold(PLATFORM_HOLD, WITHOUT, ModeReason.OUTLASTS_CARD_HOLD),
        ),
        *(
            (mode, done_by, Hold(mode, model, ModeReason.REQUESTED))
            for mode, model in ((CARD_HOLD, WITH_DESTINATION), (PLATFORM_HOLD, WITHOUT))
            for done_by in (None, SOON, LATE)
        ),
    ],
)
def test_hold_is_chosen_by_the_mode_asked_for_or_by_the_date(
    asked: EscrowMode | None, done_by: datetime | None, hold: Hold, action: OnDeadline
) -> None:
    assert chosen(asked, action, done_by) == hold


@pytest.mark.parametrize("done_by", [None, SOON, LATE])
@pytest.mark.parametrize(
    ("asked", "reason"), [(None, ModeReason.PROMOTION), (CARD_HOLD, ModeReason.REQUESTED)]
)
def test_hold_that_may_be_promoted_has_no_destination_from_the_start(
    asked: EscrowMode | None, reason: ModeReason, done_by: datetime | None
) -> None:
    assert chosen(asked, OnDeadline.PROMOTE, done_by) == Hold(CARD_HOLD, WITHOUT, reason)


def test_what_the_platform_holds_already_cannot_be_promoted() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        chosen(PLATFORM_HOLD, OnDeadline.PROMOTE)
    assert refusal.value.fields[0][0] == "on_deadline"


@pytest.mark.parametrize("asked", [None, *EscrowMode])
@pytest.mark.parametrize("action", OnDeadline)
def test_gig_that_is_done_in_the_past_or_beyond_the_limit_is_refused(
    asked: EscrowMode | None, action: OnDeadline
) -> None:
    for past in (NOW, NOW - MOMENT):
        with pytest.raises(InvalidArgument, match="expected_completion_time"):
            chosen(asked, action, past)
    latest = NOW + RULES.holding_limit
    with pytest.raises(Precondition) as refusal:
        chosen(asked, action, latest + MOMENT)
    assert refusal.value.reason == "HOLDING_LIMIT_EXCEEDED"
    assert refusal.value.facts["latest"] == latest.isoformat()


@pytest.mark.parametrize(
    ("asked", "action", "done_by", "refused"),
    [
        (None, OnDeadline.ALERT, None, False),
        (CARD_HOLD, OnDeadline.CAPTURE, LATE, False),
        (None, OnDeadline.REFUND, SOON, False),
        (None, OnDeadline.ALERT, LATE, True),
        (PLATFORM_HOLD, OnDeadline.ALERT, None, True),
        (CARD_HOLD, OnDeadline.PROMOTE, None, True),
    ],
)
def test_only_settled_currencies_are_held_without_a_destination(
    asked: EscrowMode | None, action: OnDeadline, done_by: datetime | None, refused: bool
) -> None:
    if not refused:
        chosen(asked, action, done_by, "JPY")
        return
    with pytest.raises(Precondition) as refusal:
        chosen(asked, action, done_by, "JPY")
    assert refusal.value.reason == "CURRENCY_NOT_SETTLED"
    assert refusal.value.facts == {"currency": "JPY", "settled": "EUR,USD"}
