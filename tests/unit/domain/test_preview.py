"""What is shown before a move is what the move then does."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain import money
from payment_service.domain.errors import Refusal
from payment_service.domain.ledger import Posting, RefundSplit
from payment_service.domain.payment import EscrowMode, Payment, State
from payment_service.domain.plans import (
    CapturePlan,
    RefundPlan,
    ReversibleTransfer,
    plan_capture,
    plan_refund,
)
from payment_service.domain.preview import Leg, LegKind, Preview, preview_capture, preview_refund
from tests.unit.domain.builders import (
    CARD_HOLD,
    PLATFORM_HOLD,
    in_state,
    new_payment,
    separate,
    sums,
)
from tests.unit.domain.fake_intent import CONNECTED
from tests.unit.domain.fake_service import DEBT, FakeService, serve


def legs(preview: Preview) -> list[tuple[str, int]]:
    return [(leg.kind.value, leg.minor_units) for leg in preview.legs]


def capture(payment: Payment, part: int | None, final: bool, debt: int = 0) -> Preview:
    return preview_capture(payment, plan_capture(payment, part, final, debt))


@pytest.mark.parametrize(
    ("payment", "part", "final", "shown"),
    [
        (
            new_payment(),
            6_000,
            True,
            [("CHARGE_CARD", 6_000), ("RELEASE_HOLD", 4_000), ("PAY_EXPERT", 4_700)],
        ),
        (separate(CARD_HOLD), 6_000, False, [("CHARGE_CARD", 10_000), ("PAY_EXPERT", 4_700)]),
        (
            separate(CARD_HOLD),
            6_000,
            True,
            [("CHARGE_CARD", 6_000), ("RELEASE_HOLD", 4_000), ("PAY_EXPERT", 4_700)],
        ),
        (separate(), 6_000, False, [("PAY_EXPERT", 4_700)]),
    ],
)
def test_legs_of_a_capture_are_those_that_move_something(
    payment: Payment, part: int, final: bool, shown: list[tuple[str, int]]
) -> None:
    preview = capture(in_state(State.IN_ESCROW, payment), part, final, debt=700)
    assert legs(preview) == [*shown, ("OFFSET_DEBT", 700), ("COLLECT_COMMISSION", 600)]


def test_split_award_refunds_the_remainder_last() -> None:
    preview = capture(in_state(State.IN_ESCROW, separate()), 6_000, final=True)
    assert legs(preview) == [
        ("PAY_EXPERT", 5_400),
        ("COLLECT_COMMISSION", 600),
        ("REFUND_CLIENT", 4_000),
    ]
    assert preview.after.state is State.CAPTURED


def test_cancellation_shows_the_release_alone() -> None:
    payment = in_state(State.IN_ESCROW, separate(CARD_HOLD))
    preview = preview_refund(payment, plan_refund(payment, None), [])
    assert (legs(preview), preview.after.state) == ([("RELEASE_HOLD", 10_000)], State.CANCELED)
    unpaid = preview_refund(new_payment(), plan_refund(new_payment(), None), [])
    assert (unpaid.legs, unpaid.after.state) == ((), State.CANCELED)


def test_refund_preview_shows_the_transfers_and_the_remaining_debt() -> None:
    payment = replace(
        in_state(State.CAPTURED, separate()), held=1_000, captured=9_000, net_commission=900
    )
    transfers = [ReversibleTransfer("tr_1", 5_000), ReversibleTransfer("tr_2", 3_000)]
    preview = preview_refund(
        replace(payment, state=State.IN_ESCROW),
        RefundPlan(False, 10_000, _all_of(payment)),
        transfers,
    )
    assert preview.legs == (
        Leg(LegKind.REFUND_CLIENT, 10_000),
        Leg(LegKind.RETURN_COMMISSION, 900),
        Leg(LegKind.REVERSE_TRANSFER, 3_000, "tr_2"),
        Leg(LegKind.REVERSE_TRANSFER, 5_000, "tr_1"),
        Leg(LegKind.RECORD_DEBT, 100),
    )
    assert preview.after.state is State.REFUNDED


def _all_of(payment: Payment) -> RefundSplit:
    return RefundSplit(payment.held, payment.net_commission, payment.net_expert)


# ---- against what then happens ----

AMOUNTS_OF = (
    "held",
    "charged",
    "captured",
    "refunded_after_capture",
    "refunded_from_escrow",
    "net_commission",
)


def amounts(payment: Payment) -> dict[str, object]:
    return {
        **{name: getattr(payment, name) for name in AMOUNTS_OF},
        "state": payment.state,
        "mode": payment.escrow_mode,
    }


def reversible(service: FakeService) -> list[ReversibleTransfer]:
    return [
        ReversibleTransfer(transfer.transfer_id, transfer.left)
        for transfer in service.intent.all_transfers
    ]


def total(preview: Preview, *kinds: LegKind) -> int:
    return sum(leg.minor_units for leg in preview.legs if leg.kind in kinds)


def moved(before: list[Posting], after: list[Posting]) -> dict[str, int]:
    return {account: units for (account, _), units in sums(after[len(before) :]).items()}


@given(
    model=st.sampled_from([None, CARD_HOLD, PLATFORM_HOLD]),
    currency=st.sampled_from(["USD", "JPY", "KWD"]),
    basis_points=st.integers(0, 4_999),
    steps=st.integers(100, 20_000),
    debt=st.sampled_from([0, 0, 3, 500]),
    moves=st.lists(
        st.tuples(st.sampled_from(["capture", "refund"]), st.integers(1, 100), st.booleans()),
        min_size=1,
        max_size=6,
    ),
)
def test_what_is_shown_is_what_then_happens(
    model: EscrowMode | None,
    currency: str,
    basis_points: int,
    steps: int,
    debt: int,
    moves: list[tuple[str, int, bool]],
) -> None:
    unit = money.step(currency)
    payment = (
        new_payment(steps * unit, currency, basis_points)
        if model is None
        else separate(model, steps * unit, currency, basis_points)
    )
    service = serve(payment, debt_before=debt * unit)
    service.intent.authorize()
    service.follow()
    for what, share, whole_or_final in moves:
        try:
            if what == "capture":
                preview = shown_capture(service, share, unit, final=whole_or_final)
            else:
                preview = shown_refund(service, share, unit, whole=whole_or_final)
        except Refusal:
            continue
        assert preview.before.version < service.payment.version
        assert amounts(preview.after) == amounts(service.payment)


def shown_capture(service: FakeService, share: int, unit: int, *, final: bool) -> Preview:
    before, postings = service.payment, list(service.postings)
    part = max(before.held // unit * share // 100, 1) * unit
    plan: CapturePlan = plan_capture(before, part, final, service.balance(DEBT))
    preview = preview_capture(before, plan)
    service.capture(part, final=final)
    books = moved(postings, service.postings)
    assert books.get(CONNECTED, 0) == total(preview, LegKind.PAY_EXPERT)
    assert books.get(DEBT, 0) == -total(preview, LegKind.OFFSET_DEBT)
    assert books.get("commission", 0) == -total(preview, LegKind.COLLECT_COMMISSION)
    held = total(preview, LegKind.CHARGE_CARD, LegKind.RELEASE_HOLD)
    assert books.get("client", 0) == held
    return preview


def shown_refund(service: FakeService, share: int, unit: int, *, whole: bool) -> Preview:
    before, postings = service.payment, list(service.postings)
    there = before.held + before.net if before.charged else before.held
    part = None if whole else max(there // unit * share // 100, 1) * unit
    preview = preview_refund(before, plan_refund(before, part), reversible(service))
    service.give_back(part)
    books = moved(postings, service.postings)
    assert books.get(CONNECTED, 0) == -total(preview, LegKind.REVERSE_TRANSFER)
    assert books.get(DEBT, 0) == total(preview, LegKind.RECORD_DEBT)
    assert books.get("commission", 0) == total(preview, LegKind.RETURN_COMMISSION)
    assert books.get("client", 0) == total(preview, LegKind.RELEASE_HOLD)
    return preview
