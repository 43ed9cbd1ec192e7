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
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from payment_service.domain import guards, money
from payment_service.domain.errors import Refusal
from payment_service.domain.operations import OperationKind
from payment_service.domain.payment import EscrowMode, Payment
from payment_service.domain.snapshot import PaymentSnapshot
from payment_service.domain.state_machine import EventKind
from tests.unit.domain.builders import (
    CARD_HOLD,
    NOW,
    PLATFORM_HOLD,
    new_payment,
    separate,
    sums,
)
from tests.unit.domain.fake_intent import (
    SAME_CURRENCY,
    Exchange,
    RefusedByStripe,
)
from tests.unit.domain.fake_service import serve

pytestmark = pytest.mark.slow

#: Done by the client, by time, or by a hand at Stripe's dashboard; more often what is common.
THEIRS = (
    *("decline", "require_action", "authorize", "authorize", "refund", "refund", "reverse"),
    *("capture", "cancel", "refund_fee", "bounce", "bounce", "transfer"),
)
OURS = ("capture", "capture", "refund", "refund", "refund", "resend", "promote")
#: What may come between the start of ours and its effect.
MEANWHILE = ("authorize", "capture", "cancel", "refund", "reverse", "transfer")


@dataclass(frozen=True)
class Step:
    ours: bool
    action: str
    #: Of whatever there is, in percent.
    share: int
    #: Stripe says no, whatever it is asked.
    refused: bool = False
    meanwhile: str = ""
    #: Of a capture: whether nothing is to stay in escrow, and whether the expert's account is well.
    final: bool = False
    waits: bool = False
    #: Which of our requests Stripe says no to, if it does.
    leg: int = 1


THEIR_STEPS = st.builds(Step, st.just(False), st.sampled_from(THEIRS), st.integers(1, 100))
OUR_STEPS = st.builds(
    Step,
    st.just(True),
    st.sampled_from(OURS),
    st.sampled_from([1, 33, 50, 100, 100]),
    st.sampled_from([False, False, False, True]),
    final=st.booleans(),
    waits=st.sampled_from([False, False, False, True]),
    leg=st.integers(1, 3),
)
OUR_DISTURBED_STEPS = st.builds(
    Step,
    st.just(True),
    st.sampled_from(OURS),
    st.sampled_from([1, 33, 50, 100, 100]),
    meanwhile=st.sampled_from(MEANWHILE),
    final=st.booleans(),
)
#: Most scripts begin like most payments do, so that the later steps have an effect.
BEGINNINGS = st.sampled_from(
    [
        [],
        [Step(False, "decline", 1), Step(False, "require_action", 1)],
        [Step(False, "authorize", 100)],
        [Step(False, "authorize", 100), Step(True, "capture", 100)],
        [Step(False, "authorize", 100), Step(True, "capture", 67)],
        [Step(False, "authorize", 100), Step(True, "capture", 100, refused=True)],
        [Step(False, "authorize", 100), Step(False, "capture", 80)],
        [Step(False, "authorize", 100), Step(True, "promote", 100), Step(True, "capture", 33)],
        [Step(False, "authorize", 100), Step(True, "promote", 100, refused=True)],
        [Step(False, "authorize", 100), Step(True, "capture", 33), Step(True, "capture", 50)],
        [Step(False, "authorize", 100), Step(True, "capture", 50), Step(True, "refund", 80)],
    ]
)


def scripts(steps: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return st.builds(lambda first, then: first + then, BEGINNINGS, st.lists(steps, max_size=8))


#: In steps of the currency.
AMOUNTS = st.sampled_from([50, 99, 1_001, 10_000, 9_999_999])
BASIS_POINTS = st.sampled_from([0, 1, 1_000, 1_250, 3_333, 9_999])
DEBTS = st.sampled_from([0, 0, 7, 700])
SEEDS = st.integers(0, 2**32)


@dataclass(frozen=True)
class World:
    currency: str = "USD"
    exchange: Exchange = SAME_CURRENCY
    #: Of a charge without a destination; None where there is one.
    mode: EscrowMode | None = None

    def payment(self, steps: int, basis_points: int) -> Payment:
        amount = steps * money.step(self.currency)
        if self.mode is None:
            return new_payment(amount, self.currency, basis_points)
        return separate(self.mode, amount, self.currency, basis_points)


CURRENCIES = ("USD", "JPY", "KWD")
ONE_CURRENCY = {
    **{f"{currency}, a destination": World(currency) for currency in CURRENCIES},
    **{f"{currency}, a card hold": World(currency, mode=CARD_HOLD) for currency in CURRENCIES},
    **{f"{currency}, held by us": World(currency, mode=PLATFORM_HOLD) for currency in CURRENCIES},
}
#: A separate charge is only made in a currency that the platform settles.
WORLDS = {
    **ONE_CURRENCY,
    "settled in EUR": World(exchange=Exchange("EUR", Fraction(9, 10))),
    "settled in EUR, received in JPY": World(
        exchange=Exchange("EUR", Fraction(9, 10), "JPY", Fraction(3, 2))
    ),
}


class Player:
    """Plays a script; ``chance`` decides what is seen when, None means everything at once."""

    def __init__(self, payment: Payment, world: World, debt: int, chance: Random | None = None):
        self.unit = money.step(world.currency)
        # Debt is offset only in the payment's currency.
        debt = debt * self.unit if world.exchange == SAME_CURRENCY else 0
        self.service = serve(payment, world.exchange, debt_before=debt)
        self.chance = chance
        self.shown: list[PaymentSnapshot] = [self.service.intent.observe()]
        self.bounced = False

    def play(self, script: list[Step]) -> None:
        for step in script:
            if step.ours:
                self.catch_up()
                self.act(step)
            else:
                self.happen(step)
        self.catch_up()
        if self.waits or self.service.is_parked:  # Its account is well again, for one.
            self.carry_out(Step(True, "capture", 100))

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
            # A bank that returns a refund, or an answer to it, comes days after the snapshot.
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
                part = self.share_of(intent.amount, step.share)
                fee = money.fee(part, step.share * 50, intent.currency)
                intent.capture(part, fee if intent.has_destination else 0)
            case "cancel":
                intent.cancel(["requested_by_customer", "automatic"][step.share % 2])
            case "refund":
                owed = self.service.payment.client_payable
                part = self.share_of(intent.refundable, step.share)
                # The client payable, or something else, or everything.
                intent.refund([owed or part, part, intent.refundable][step.share % 3])
            case "reverse":
                left = intent.all_transfers[-1].left if intent.all_transfers else 0
                intent.reverse(self.share_of(left, step.share))
            case "transfer":
                intent.transfer(self.share_of(intent.amount, step.share))
            case "refund_fee":
                self._refund_fee(step.share)
            case "bounce":
                self._bounce(step.share)

    def _bounce(self, share: int) -> None:
        made = [refund for refund in self.service.intent.refunds if not refund.failed]
        if made:
            self.service.intent.bounce(made[share % len(made)].refund_id)
            self.bounced = True

    def _refund_fee(self, share: int) -> None:
        intent = self.service.intent
        exchange = intent.exchange
        if intent.charge and intent.charge.application_fee and not exchange.connected:
            intent.refund_fee(self.share_of(intent.charge.application_fee.minor_units, share))

    # ---- what we do ----

    def act(self, step: Step) -> None:
        if self.waits or self.service.is_parked:
            if step.action != "refund":
                self.carry_out(step)
                return
            self.service.abandon()
            self.catch_up()
        if not self.start(step):
            return
        # A client payable paid out of band *while* we repay it is paid twice, and no sync helps.
        if step.meanwhile and step.action != "resend":
            self.happen(replace(step, action=step.meanwhile))
        self.carry_out(step)

    def start(self, step: Step) -> bool:
        service, payment = self.service, self.service.payment
        try:
            match step.action:
                case "resend":
                    return self.parked
                case "promote":
                    service.start_promotion()
                case "capture":
                    service.start_capture(
                        self.share_of(payment.held, step.share),
                        final=step.final or not payment.is_separate,
                    )
                case _:
                    part = self.share_of(payment.held + payment.net, step.share)
                    whole = step.share == 100 or not payment.charged
                    service.start_give_back(None if whole else part)
        except Refusal:
            return False
        return True

    def carry_out(self, step: Step) -> None:
        leg = 0
        while self.busy:
            owed = self.parked
            self.look()
            if self.service.is_parked and not self.operate():
                self.catch_up()
                continue
            if self.busy:
                leg += 1
                if step.waits and self.pays:
                    self.service.wait_for_expert()
                    return
                self.service.send(refused=step.refused and leg == step.leg)
            self.catch_up()
            if owed or self.parked:
                return

    def operate(self) -> bool:
        """Resume what is parked, or abandon what is more than there is; whether it was resumed."""
        try:
            self.service.resume()
        except Refusal:
            self.service.abandon()
            return False
        return True

    @property
    def pays(self) -> bool:
        """Whether what is under way needs the expert's account."""
        operation, separately = self.service.operation, self.service.payment.is_separate
        kind = OperationKind.TRANSFER if separately else OperationKind.CAPTURE
        return operation is not None and operation.kind is kind

    @property
    def waits(self) -> bool:
        return guards.waits_for_expert(self.service.payment)

    @property
    def busy(self) -> bool:
        return self.service.operation is not None

    @property
    def parked(self) -> bool:
        operation = self.service.operation
        return operation is not None and operation.is_repayment

    def share_of(self, whole: int, share: int) -> int:
        return max(whole // self.unit * share // 100, 1) * self.unit


def compared(payment: Payment) -> Payment:
    """Without what only tells the way: how many steps, which failures, a hold that was missed."""
    return replace(
        payment,
        version=0,
        update_time=NOW,
        failure=None,
        operation_id="",
        charge_id=payment.charge_id if payment.charged else "",
        escrow_time=None,
        escrow_expire_time=None,
    )


@pytest.mark.parametrize("world", WORLDS)
@given(AMOUNTS, BASIS_POINTS, DEBTS, scripts(THEIR_STEPS | OUR_STEPS), SEEDS)
def test_any_order_and_repetition_ends_in_the_same_payment_and_books(
    world: str, steps: int, basis_points: int, debt: int, script: list[Step], seed: int
) -> None:
    around = WORLDS[world]
    payment = around.payment(steps, basis_points)
    in_order = Player(payment, around, debt)
    in_order.play(script)
    shuffled = Player(payment, around, debt, Random(seed))
    shuffled.play(script)
    assert compared(shuffled.service.payment) == compared(in_order.service.payment)
    assert sums(shuffled.service.postings) == sums(in_order.service.postings)
    assert shuffled.service.known == in_order.service.known


@pytest.mark.parametrize("world", ONE_CURRENCY)
@given(AMOUNTS, BASIS_POINTS, DEBTS, scripts(THEIR_STEPS | OUR_DISTURBED_STEPS), SEEDS)
def test_out_of_band_changes_during_an_operation_end_in_the_same_payment(
    world: str, steps: int, basis_points: int, debt: int, script: list[Step], seed: int
) -> None:
    """The books then may differ in who bears a unit of rounding, but agree with Stripe's."""
    around = WORLDS[world]
    payment = around.payment(steps, basis_points)
    in_order = Player(payment, around, debt)
    in_order.play(script)
    shuffled = Player(payment, around, debt, chance=Random(seed))
    shuffled.play(script)
    assert compared(shuffled.service.payment) == compared(in_order.service.payment)


def test_the_scripts_reach_every_kind_of_event_that_following_can_bring() -> None:
    """So that the two tests above do not pass by doing nothing.

    Some kinds are rare, so it plays until all have come, at most as often as would be a fault.
    """
    reached: Counter[EventKind] = Counter()

    @settings(max_examples=250, database=None, derandomize=False)
    @given(
        st.sampled_from(list(ONE_CURRENCY.values())),
        AMOUNTS,
        scripts(THEIR_STEPS | OUR_STEPS | OUR_DISTURBED_STEPS),
    )
    def play(world: World, steps: int, script: list[Step]) -> None:
        player = Player(world.payment(steps, 1_000), world, 700)
        player.play(script)
        reached.update(player.service.kinds)

    creation = {EventKind.INITIATED, EventKind.INTENT_CREATED, EventKind.CREATION_REFUSED}
    by_the_clock = {EventKind.DEADLINE_NEAR, EventKind.DEADLINE_PASSED}
    # Disputes, fraud warnings and reviews have scripts of their own.
    disputes = {
        kind for kind in EventKind if any(word in kind for word in ("dispute", "fraud", "review"))
    }
    # An out-of-band refund beyond the client payable brings it too, rarely; so does one that fails
    # before any sync: the modules test_derive_*.py have both. So does an authorization whose end
    # Stripe shows only later.
    seldom = {
        EventKind.REPAYMENT_ABANDONED,
        EventKind.REFUND_FAILED_UNBOOKED,
        EventKind.EXPIRE_TIME_KNOWN,
    }
    # The word of operators alone, which nothing at Stripe brings.
    by_word = {EventKind.CLIENT_PAYABLE_SETTLED, EventKind.ADJUSTED}
    # Where the platform's balance, or the expert's, is too low: the integration tests have both.
    funds = {
        EventKind.REFUND_ACCEPTED,
        EventKind.PENDING_REFUND_FAILED,
        EventKind.DEBT_COLLECTED,
    }
    never = creation | by_the_clock | disputes | by_word | funds
    for number in range(8):
        begin_from = seed(number)
        begin_from(play)()
        if not set(EventKind) - set(reached) - seldom - never:
            break
    assert set(EventKind) - set(reached) - seldom == never
