"""When an escrow's time runs out, and what is done about it: once, and again where refused."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain import transitions
from payment_service.domain.deadlines import (
    Deadline,
    DeadlineKind,
    deadline_due,
    deadline_near,
    deadlines_of,
)
from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.payment import OnDeadline, Payment, State
from tests.unit.domain.builders import CARD_HOLD, FAILURE, HOLDING, NOW, in_state, separate
from tests.unit.domain.fake_service import FakeService, serve

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MOMENT = timedelta(microseconds=1)
MARGIN, AGAIN, AHEAD = timedelta(hours=12), HOUR, DAY
CARD, LIMIT, RELEASE = (
    DeadlineKind.CARD_AUTHORIZATION,
    DeadlineKind.HOLDING_LIMIT,
    DeadlineKind.RELEASE_DUE,
)
ALERT, CAPTURE, REFUND, PROMOTE = (
    OnDeadline.ALERT,
    OnDeadline.CAPTURE,
    OnDeadline.REFUND,
    OnDeadline.PROMOTE,
)


def held(
    action: OnDeadline,
    *,
    expires: timedelta | None = 7 * DAY,
    release: timedelta | None = None,
    charged: bool = False,
) -> Payment:
    base = separate() if charged else separate(CARD_HOLD)
    return replace(
        in_state(State.IN_ESCROW, base),
        on_deadline=action,
        escrow_expire_time=None if expires is None else NOW + expires,
        release_due_time=None if release is None else NOW + release,
    )


def due(payment: Payment, at: timedelta) -> Deadline | None:
    return deadline_due(payment, NOW + at, MARGIN, AGAIN)


def near(payment: Payment, at: timedelta) -> Deadline | None:
    return deadline_near(payment, NOW + at, AHEAD)


# ---- which there are ----


@pytest.mark.parametrize("action", OnDeadline)
@pytest.mark.parametrize("charged", [False, True])
def test_promotion_is_for_the_authorization_alone(action: OnDeadline, *, charged: bool) -> None:
    payment = held(action, expires=7 * DAY, release=5 * DAY, charged=charged)
    otherwise = ALERT if action is PROMOTE else action
    assert deadlines_of(payment) == [
        Deadline(RELEASE, NOW + 5 * DAY, otherwise),
        Deadline(LIMIT, NOW + 7 * DAY, otherwise)
        if charged
        else Deadline(CARD, NOW + 7 * DAY, action),
    ]


def test_the_earliest_comes_first() -> None:
    payment = held(CAPTURE, expires=5 * DAY, release=7 * DAY)
    assert [deadline.kind for deadline in deadlines_of(payment)] == [CARD, RELEASE]


def test_what_has_no_date_has_no_deadline() -> None:
    assert deadlines_of(held(CAPTURE, expires=None)) == []
    assert [d.kind for d in deadlines_of(held(CAPTURE, expires=None, release=DAY))] == [RELEASE]


@pytest.mark.parametrize("state", State)
def test_only_what_is_held_has_deadlines(state: State) -> None:
    payment = replace(
        in_state(state, separate()), escrow_expire_time=NOW + DAY, release_due_time=NOW + DAY
    )
    assert bool(deadlines_of(payment)) is bool(payment.held)


def test_promotion_begins_a_new_time() -> None:
    """The card's date is gone: the platform's own limit is warned of and acted upon anew."""
    service = serve(replace(separate(CARD_HOLD), on_deadline=PROMOTE))
    service.intent.authorize()
    service.follow()
    service.record(
        transitions.deadline_near(service.payment, "CARD_AUTHORIZATION", NOW + DAY, PROMOTE, NOW)
    )
    service.promote()
    payment = service.payment
    assert deadlines_of(payment) == [Deadline(LIMIT, NOW + HOLDING, ALERT)]
    assert (payment.warn_time, payment.deadline_time) == (None, NOW)
    assert due(payment, HOLDING - MARGIN - MOMENT) is None
    assert due(payment, HOLDING - MARGIN) == Deadline(LIMIT, NOW + HOLDING, ALERT)


# ---- due ----


@pytest.mark.parametrize("action", OnDeadline)
@pytest.mark.parametrize("charged", [False, True])
def test_a_deadline_is_due_before_stripe_ends_the_hold(
    action: OnDeadline, *, charged: bool
) -> None:
    payment = held(action, charged=charged)
    assert due(payment, 7 * DAY - MARGIN - MOMENT) is None
    assert due(payment, 7 * DAY - MARGIN) == deadlines_of(payment)[0]


@pytest.mark.parametrize("action", OnDeadline)
def test_our_own_date_is_due_when_it_comes(action: OnDeadline) -> None:
    payment = held(action, release=3 * DAY)
    assert due(payment, 3 * DAY - MOMENT) is None
    found = due(payment, 3 * DAY)
    assert found == Deadline(RELEASE, NOW + 3 * DAY, ALERT if action is PROMOTE else action)


def test_alert_is_given_once_for_each_deadline() -> None:
    payment = held(ALERT, expires=7 * DAY, release=3 * DAY)
    first = due(payment, 3 * DAY)
    assert first is not None
    told = transitions.deadline_passed(payment, first.kind, first.time, NOW + 3 * DAY).after
    assert [due(told, 3 * DAY + wait) for wait in (MOMENT, AGAIN, 2 * DAY)] == [None] * 3
    second = due(told, 7 * DAY - MARGIN)
    assert second is not None
    assert second.kind is CARD
    told = transitions.deadline_passed(told, second.kind, second.time, NOW + 7 * DAY - MARGIN).after
    assert due(told, 7 * DAY) is None


def acted(payment: Payment, at: timedelta) -> Payment:
    """What was tried at that time and refused by Stripe."""
    now = NOW + at
    match payment.on_deadline:
        case OnDeadline.CAPTURE:
            share = CaptureSplit(payment.held, 1_000)
            tried = transitions.start_capture(
                payment, share, "op_1", "", now, by_deadline=True
            ).after
            return transitions.capture_refused(tried, FAILURE).after
        case OnDeadline.REFUND:
            tried = transitions.start_cancel(payment, "op_1", "", now, by_deadline=True).after
            return transitions.cancel_refused(tried, FAILURE).after
        case OnDeadline.PROMOTE:
            return transitions.promotion_refused(
                transitions.start_promotion(payment, "op_1", now).after, FAILURE
            ).after
        case _:
            return transitions.deadline_passed(payment, "", now, now).after


@pytest.mark.parametrize("action", [CAPTURE, REFUND, PROMOTE])
def test_a_refused_deadline_action_is_tried_again_later(action: OnDeadline) -> None:
    at = 7 * DAY - MARGIN
    payment = acted(held(action), at)
    assert payment.state is State.IN_ESCROW
    assert due(payment, at + AGAIN - MOMENT) is None
    again = due(payment, at + AGAIN)
    assert again is not None
    assert again.action is action
    assert due(acted(payment, at + AGAIN), at + AGAIN + MOMENT) is None


def test_what_a_caller_tried_before_the_deadline_is_not_the_deadlines_own_try() -> None:
    payment = held(CAPTURE)
    tried = transitions.start_capture(payment, CaptureSplit(10_000, 1_000), "op_1", "", NOW).after
    refused = transitions.capture_refused(tried, FAILURE).after
    assert refused.deadline_time is None
    assert due(refused, 7 * DAY - MARGIN) is not None


@pytest.mark.parametrize("late", [MOMENT, HOUR, 6 * HOUR])
def test_gigs_date_does_not_keep_a_hold_from_being_promoted(late: timedelta) -> None:
    """Both passed before the job ran; only the card's ends the escrow if nothing is done."""
    at = 7 * DAY - MARGIN
    payment = held(PROMOTE, release=at + late)
    found = due(payment, at + late)
    assert found is not None
    assert (found.kind, found.action) == (CARD, PROMOTE)


def test_gigs_date_does_not_end_the_tries_to_promote() -> None:
    """Refused once, and the gig's date was reported meanwhile: the authorization still ends."""
    at = 7 * DAY - MARGIN
    refused = acted(held(PROMOTE, release=at + 2 * HOUR), at)
    told_at = at + 2 * HOUR
    told = transitions.deadline_passed(refused, RELEASE, NOW + told_at, NOW + told_at).after
    again = due(told, told_at + AGAIN)
    assert again is not None
    assert again.action is PROMOTE


@given(
    action=st.sampled_from([ALERT, CAPTURE, REFUND]),
    expires=st.integers(1, 200),
    release=st.none() | st.integers(1, 200),
    charged=st.booleans(),
    gaps=st.lists(st.integers(1, 60), min_size=1, max_size=8),
)
def test_nothing_is_due_before_its_time_nor_alerted_twice(
    action: OnDeadline, expires: int, release: int | None, charged: bool, gaps: list[int]
) -> None:
    payment = held(
        action,
        expires=expires * HOUR,
        release=None if release is None else release * HOUR,
        charged=charged,
    )
    at, alerts = timedelta(0), 0
    for gap in gaps:
        at += gap * HOUR
        found = due(payment, at)
        if found is None:
            continue
        assert found.act_time(MARGIN) <= NOW + at
        alerts += found.action is ALERT
        payment = replace(payment, deadline_time=NOW + at)
        assert due(payment, at) is None
    assert alerts <= len(deadlines_of(payment))


def on_the_platform(agreed: OnDeadline) -> FakeService:
    """10,000 are held, and the gig has a date."""
    service = serve(replace(separate(), on_deadline=agreed, release_due_time=NOW + DAY))
    service.intent.authorize()
    service.follow()
    return service


@pytest.mark.parametrize(
    ("agreed", "action"),
    [(CAPTURE, REFUND), (REFUND, REFUND), (ALERT, ALERT), (PROMOTE, ALERT)],
)
def test_the_remainder_of_a_final_capture_is_never_captured_by_a_deadline(
    agreed: OnDeadline, action: OnDeadline
) -> None:
    service = on_the_platform(agreed)
    service.start_capture(3_000, final=True)
    service.send()
    service.follow()
    assert service.operation is not None  # The refund of the rest, and Stripe refuses it.
    refused = transitions.refund_refused(service.payment, FAILURE)
    assert (refused.after.state, refused.after.held) == (State.IN_ESCROW, 7_000)
    assert [found.action for found in deadlines_of(refused.after)] == [action] * 2


def test_a_milestone_leaves_the_remainder_to_the_agreed_deadline_action() -> None:
    service = on_the_platform(CAPTURE)
    service.capture(3_000, final=False)
    assert service.payment.held == 7_000
    assert [found.action for found in deadlines_of(service.payment)] == [CAPTURE] * 2


# ---- near ----


def warned(payment: Payment, at: timedelta) -> Payment:
    found = near(payment, at)
    assert found is not None
    return transitions.deadline_near(payment, found.kind, found.time, found.action, NOW + at).after


@pytest.mark.parametrize("kind", [CARD, LIMIT, RELEASE])
def test_warning_is_given_ahead_and_once(kind: DeadlineKind) -> None:
    payment = held(
        CAPTURE,
        expires=None if kind is RELEASE else 7 * DAY,
        release=7 * DAY if kind is RELEASE else None,
        charged=kind is LIMIT,
    )
    assert near(payment, 7 * DAY - AHEAD - MOMENT) is None
    for at in (7 * DAY - AHEAD, 7 * DAY):
        found = near(payment, at)
        assert found is not None
        assert found.kind is kind
    assert near(payment, 7 * DAY + MOMENT) is None
    told = warned(payment, 7 * DAY - AHEAD)
    assert near(told, 7 * DAY - AHEAD) is None
    assert near(told, 7 * DAY) is None


def test_each_deadline_is_warned_of_in_its_turn() -> None:
    payment = held(ALERT, expires=7 * DAY, release=3 * DAY)
    told = warned(payment, 3 * DAY - AHEAD)
    assert near(told, 3 * DAY) is None
    later = near(told, 7 * DAY - AHEAD)
    assert later is not None
    assert later.kind is CARD
    assert near(warned(told, 7 * DAY - AHEAD), 7 * DAY) is None


def test_deadlines_that_come_near_together_are_both_warned_of() -> None:
    """One is the gig's date, at which nothing happens; at the other the hold lapses."""
    payment = held(ALERT, expires=7 * DAY, release=7 * DAY - HOUR)
    at = 7 * DAY - AHEAD
    first = near(payment, at)
    assert first is not None
    assert first.kind is RELEASE
    second = near(warned(payment, at), at + HOUR)
    assert second is not None
    assert second.kind is CARD


def test_warning_says_what_and_when_and_what_will_be_done() -> None:
    payment = held(CAPTURE)
    told = transitions.deadline_near(payment, CARD.value, NOW + 7 * DAY, CAPTURE, NOW)
    time: datetime = NOW + 7 * DAY
    assert told.facts == {
        "deadline": "CARD_AUTHORIZATION",
        "time": time.isoformat(),
        "action": "CAPTURE",
    }
    assert (told.after.warn_time, told.postings) == (time, ())
