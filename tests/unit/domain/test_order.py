"""Any order and any repetition of what is seen ends in the same payment and the same books.

A script of what clients, Stripe, operators and we do to one intent is played twice. Once everything
is followed at once and in order. Once only some of it is seen, late, twice and shuffled (old
observations after new ones included); only the latest comes last before we act ourselves.
"""

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payment_service.domain import money
from payment_service.domain.errors import Refusal
from payment_service.domain.escrow import Kind, Payment
from payment_service.domain.observation import Observation
from tests.unit.domain.builders import NOW, new_payment, sums
from tests.unit.domain.fake_intent import (
    SAME_CURRENCY,
    Exchange,
    FakeIntent,
    RefusedByStripe,
)
from tests.unit.domain.fake_service import FakeService

#: Done by the client, by time, or by a hand at Stripe's dashboard; more often what is common.
THEIRS = (
    *("decline", "require_action", "authorize", "authorize", "refund", "refund", "reverse"),
    *("capture", "cancel", "refund_fee", "bounce", "bounce"),
)
OURS = ("capture", "capture", "refund", "refund", "refund", "resend")
#: What may come between the start of ours and its effect.
MEANWHILE = ("authorize", "capture", "cancel", "refund", "reverse")


@dataclass(frozen=True)
class Step:
    ours: bool
    action: str
    #: Of whatever there is, in percent.
    share: int
    #: Stripe says no, whatever it is asked.
    refused: bool = False
    meanwhile: str = ""


THEIR_STEPS = st.builds(Step, st.just(False), st.sampled_from(THEIRS), st.integers(1, 100))
OUR_STEPS = st.builds(
    Step,
    st.just(True),
    st.sampled_from(OURS),
    st.sampled_from([1, 33, 50, 100, 100]),
    st.sampled_from([False, False, False, True]),
)
OUR_DISTURBED_STEPS = st.builds(
    Step,
    st.just(True),
    st.sampled_from(OURS),
    st.sampled_from([1, 33, 50, 100, 100]),
    meanwhile=st.sampled_from(MEANWHILE),
)
#: Most scripts begin like most payments do, so that the rest has something to happen to.
BEGINNINGS = st.sampled_from(
    [
        [],
        [Step(False, "decline", 1), Step(False, "require_action", 1)],
        [Step(False, "authorize", 100)],
        [Step(False, "authorize", 100), Step(True, "capture", 100)],
        [Step(False, "authorize", 100), Step(True, "capture", 67)],
        [Step(False, "authorize", 100), Step(True, "capture", 100, refused=True)],
        [Step(False, "authorize", 100), Step(False, "capture", 80)],
    ]
)


def scripts(steps: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return st.builds(lambda first, then: first + then, BEGINNINGS, st.lists(steps, max_size=8))


AMOUNTS = st.sampled_from([50, 99, 1_001, 10_000, 99_999_999])
BASIS_POINTS = st.sampled_from([0, 1, 1_000, 1_250, 3_333, 9_999])
SEEDS = st.integers(0, 2**32)
EXCHANGES = {
    "same": SAME_CURRENCY,
    "settled in EUR": Exchange("EUR", Fraction(9, 10)),
    "settled in EUR, received in JPY": Exchange("EUR", Fraction(9, 10), "JPY", Fraction(3, 2)),
}


class Player:
    """Plays a script; ``chance`` decides what is seen when, None means everything at once."""

    def __init__(
        self,
        amount: int,
        basis_points: int,
        exchange: Exchange = SAME_CURRENCY,
        chance: Random | None = None,
    ) -> None:
        self.service = FakeService(
            new_payment(amount, basis_points=basis_points),
            FakeIntent(amount, "USD", exchange),
        )
        self.chance = chance
        self.shown: list[Observation] = [self.service.intent.observe()]
        self.bounced = False

    def play(self, script: list[Step]) -> None:
        for step in script:
            if step.ours:
                self.catch_up()
                self.act(step)
            else:
                self.happen(step)
        self.catch_up()

    # ---- seeing ----

    def look(self) -> None:
        """Something changed at Stripe, or might have."""
        self.shown.append(self.service.intent.observe())
        if self.chance is None:
            self.service.follow()
            return
        for _ in range(self.chance.randrange(4)):
            seen = self.chance.choice(self.shown)
            refunds = list(seen.refunds)
            self.chance.shuffle(refunds)
            for _ in range(self.chance.choice([1, 1, 2])):
                self.service.follow(replace(seen, refunds=tuple(refunds)))

    def catch_up(self) -> None:
        self.look()
        self.service.catch_up()

    # ---- what others do ----

    def happen(self, step: Step) -> None:
        if step.action == "bounce" or self.bounced:
            # Whoever makes a refund bounce, or answers to it, does so days after it was seen.
            self.catch_up()
        try:
            self._happen(step)
        except RefusedByStripe:
            return
        self.look()

    def _happen(self, step: Step) -> None:
        intent = self.service.intent
        match step.action:
            case "decline":
                intent.decline("card_declined", ["lost_card", "generic_decline"][step.share % 2])
            case "require_action":
                intent.require_action()
            case "authorize":
                intent.authorize()
            case "capture":
                part = share_of(intent.amount, step.share)
                intent.capture(part, money.fee(part, step.share * 50, "USD"))
            case "cancel":
                intent.cancel(["requested_by_customer", "automatic"][step.share % 2])
            case "refund":
                owed = self.service.payment.client_owed
                intent.refund(owed or share_of(intent.refundable, step.share))
            case "reverse":
                if intent.charge and intent.charge.transfer:
                    intent.reverse(share_of(intent.reversible, step.share))
            case "refund_fee":
                self._refund_fee(step.share)
            case "bounce":
                made = [refund for refund in intent.refunds if not refund.failed]
                if made:
                    intent.bounce(made[step.share % len(made)].refund_id)
                    self.bounced = True

    def _refund_fee(self, share: int) -> None:
        intent = self.service.intent
        exchange = intent.exchange
        if intent.charge and intent.charge.application_fee and not exchange.connected:
            intent.refund_fee(share_of(intent.charge.application_fee.minor_units, share))

    # ---- what we do ----

    def act(self, step: Step) -> None:
        service = self.service
        try:
            if step.action == "resend":
                if not self.parked:
                    return
            elif step.action == "capture":
                service.start_capture(share_of(service.payment.held, step.share))
            else:
                base = service.payment.net if service.payment.captured else service.payment.held
                part = share_of(base, step.share)
                whole = step.share == 100 or not service.payment.captured
                service.start_give_back(None if whole else part)
        except Refusal:
            return
        # What is owed and paid by hand *while* we pay it is paid twice, and no following helps.
        if step.meanwhile and step.action != "resend":
            self.happen(replace(step, action=step.meanwhile))
        while self.busy:
            owed = self.parked
            self.look()
            if self.busy:
                service.send(refused=step.refused)
            self.catch_up()
            if owed or step.refused or self.parked:
                return

    @property
    def busy(self) -> bool:
        return self.service.operation is not None

    @property
    def parked(self) -> bool:
        operation = self.service.operation
        return operation is not None and bool(operation.params.get("owed"))


def share_of(whole: int, share: int) -> int:
    return max(whole * share // 100, 1)


def compared(payment: Payment) -> Payment:
    """Without what only tells the way: how many steps, which failures, a hold that was missed."""
    return replace(
        payment,
        version=0,
        update_time=NOW,
        failure=None,
        operation_id="",
        charge_id=payment.charge_id if payment.captured else "",
        escrow_time=None,
        escrow_expire_time=None,
    )


@pytest.mark.parametrize("exchange", EXCHANGES)
@given(AMOUNTS, BASIS_POINTS, scripts(THEIR_STEPS | OUR_STEPS), SEEDS)
def test_any_order_and_repetition_ends_in_the_same_payment_and_books(
    exchange: str, amount: int, basis_points: int, script: list[Step], seed: int
) -> None:
    in_order = Player(amount, basis_points, EXCHANGES[exchange])
    in_order.play(script)
    shuffled = Player(amount, basis_points, EXCHANGES[exchange], Random(seed))
    shuffled.play(script)
    assert compared(shuffled.service.payment) == compared(in_order.service.payment)
    assert sums(shuffled.service.postings) == sums(in_order.service.postings)
    assert shuffled.service.known == in_order.service.known


@given(AMOUNTS, BASIS_POINTS, scripts(THEIR_STEPS | OUR_DISTURBED_STEPS), SEEDS)
def test_what_others_do_while_we_are_at_it_ends_in_the_same_payment(
    amount: int, basis_points: int, script: list[Step], seed: int
) -> None:
    """The books then may differ in who bears a unit of rounding, but agree with Stripe's."""
    in_order = Player(amount, basis_points)
    in_order.play(script)
    shuffled = Player(amount, basis_points, chance=Random(seed))
    shuffled.play(script)
    assert compared(shuffled.service.payment) == compared(in_order.service.payment)


def test_the_scripts_reach_every_kind_of_event_that_following_can_bring() -> None:
    """So that the two tests above do not pass by doing nothing."""
    reached: Counter[Kind] = Counter()

    @settings(max_examples=300, database=None)
    @given(AMOUNTS, scripts(THEIR_STEPS | OUR_STEPS | OUR_DISTURBED_STEPS))
    def play(amount: int, script: list[Step]) -> None:
        player = Player(amount, 1_000)
        player.play(script)
        reached.update(player.service.kinds)

    play()
    creation = {Kind.INITIATED, Kind.INTENT_CREATED, Kind.CREATION_REFUSED, Kind.WAITING}
    assert set(Kind) - set(reached) == creation
