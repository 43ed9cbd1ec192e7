"""Takes payments through a running stack, prints each step, and compares the books with Stripe's.

The chapters are in `dev/chapters.py`, their steps are here. A :class:`Target` names the simulator,
or Stripe.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from dev.books import Books, Place
from dev.caller import Caller, Mismatch, call_of, expect, state_name
from dev.standing import Held, Standing, Walked
from dev.story import Story, amount, money
from dev.stripe_side import SimulatorSide, StripeSide
from marketplace.payments.errors import refusal_of
from marketplace.payments.v1 import events_pb2, experts_pb2, money_pb2, payments_pb2

CLIENT = "client-grace"
EXPERT = "expert-ada"

VISA = "pm_card_visa"
DECLINED_CARD = "pm_card_visa_chargeDeclined"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The stack and the Stripe account of a walk."""

    channel: grpc.Channel
    stripe: StripeSide
    #: Makes the expert ready to be paid, and prints the steps.
    onboard: Callable[["Walk"], None]
    #: Whether only this walk uses the Stripe account.
    alone: bool
    #: How long webhooks and Stripe's books may take.
    patience_seconds: float
    #: The simulator; without it, the chapters that need it are left out.
    simulator: SimulatorSide | None = None
    #: Raises :class:`Interrupted` after a signal.
    check_interrupted: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Chapter:
    """A part of a walk. `tell` goes through it and says what it leaves in the ledger.

    That is every balance which is not Stripe's to decide, as plain numbers: debit positive.
    """

    title: str
    tell: Callable[["Walk"], Mapping[Place, int]]
    #: Requirements: the simulator's clock and banks; a platform that may hold money for others.
    needs_simulator: bool = False
    needs_manual_payouts: bool = False

    def obstacle(self, *, simulated: bool, pays_out_by_hand: bool) -> str:
        """Returns why it must be left out, or an empty text."""
        if self.needs_simulator and not simulated:
            return "it needs the simulator"
        if self.needs_manual_payouts and not pays_out_by_hand:
            return "the platform's payouts at Stripe are automatic"
        return ""


class Walk:
    """One walk; `run` goes through all chapters, or raises at the first unexpected answer."""

    def __init__(self, target: Target, story: Story) -> None:
        self.target = target
        self.story = story
        self.caller = Caller(
            target.channel,
            patience_seconds=target.patience_seconds,
            check_interrupted=target.check_interrupted,
        )
        self._books = Books(self.caller, story, target.stripe, alone=target.alone)
        self._walked: list[Walked] = []
        #: What the chapters so far have left in the ledger.
        self.left: defaultdict[Place, int] = defaultdict(int)
        #: Payments that a later chapter continues, by name.
        self.kept: dict[str, Walked] = {}
        self.expert_account = ""

    def run(self, chapters: Sequence[Chapter]) -> None:
        """Runs the chapters in order; then the books must contain their sum."""
        self.story.chapter("An expert")
        self.target.onboard(self)
        self._read_expert()
        for number, chapter in enumerate(self._possible(chapters), start=1):
            self.story.chapter(f"{number}. {chapter.title}")
            for place, minor_units in chapter.tell(self).items():
                self.left[place] += minor_units
        self.story.chapter("The books")
        paid = Counter[str]()
        for payment in self._walked:
            paid[payment.currency] += payment.paid
        left = {place: total for place, total in self.left.items() if total}
        self._books.close(self._payment_ids, left, paid)

    def _possible(self, chapters: Sequence[Chapter]) -> list[Chapter]:
        simulated = self.target.simulator is not None
        by_hand = self.target.stripe.pays_out_by_hand()
        possible = []
        for chapter in chapters:
            obstacle = chapter.obstacle(simulated=simulated, pays_out_by_hand=by_hand)
            if obstacle:
                self.story.note(f"left out, since {obstacle}: {chapter.title}")
            else:
                possible.append(chapter)
        return possible

    @property
    def payments(self) -> int:
        """Returns how many payments were made."""
        return len(self._walked)

    @property
    def simulator(self) -> SimulatorSide:
        """Returns the simulator, for chapters that need it."""
        assert self.target.simulator is not None
        return self.target.simulator

    # The steps of chapters

    def initiate(
        self,
        minor_units: int,
        currency: str,
        *,
        commission: int,
        expert: int,
        held: Held | None = None,
        on_deadline: payments_pb2.OnDeadline.ValueType = payments_pb2.ON_DEADLINE_UNSPECIFIED,
        done_in: timedelta | None = None,
    ) -> Walked:
        """Initiates a payment of these amounts. `held` is how its money must be held, and why."""
        number = len(self._walked) + 1
        done_by = None
        if done_in is not None:
            done_by = Timestamp()
            done_by.FromDatetime(datetime.now(UTC) + done_in)
        request = payments_pb2.InitiatePaymentRequest(
            client_id=CLIENT,
            expert_id=EXPERT,
            gig_id=f"gig-{number}",
            amount=money_pb2.Money(minor_units=minor_units, currency_code=currency),
            description=f"Gig number {number}",
            idempotency_key=f"walk-{number}-initiate",
            on_deadline=on_deadline,
            expected_completion_time=done_by,
        )
        answer, seconds = self.caller.timed(self.caller.payments.InitiatePayment, request)
        given = answer.payment
        expect("amount", amount(minor_units, currency), money(given.amount))
        expect("commission", amount(commission, currency), money(given.commission))
        expect("application_fee", amount(commission, currency), money(answer.application_fee))
        expect("expert_amount", amount(expert, currency), money(given.expert_amount))
        self.expect_standing(given, Standing(state="PENDING"))
        self.story.step(
            "gig service",
            "InitiatePayment",
            "PENDING",
            f"{money(given.amount)}:",
            f"{money(given.expert_amount)} for Ada,",
            f"{money(given.commission)} commission",
            seconds=seconds,
        )
        if held is not None:
            expect("how the money is held, and why", held, Held.of(given))
            self.story.step("", "", *held.told)
        payment = Walked(
            payment_id=given.payment_id,
            intent_id=given.payment_intent_id,
            client_secret=answer.client_secret,
            amount=minor_units,
            currency=currency,
            number=number,
            escrow_mode=Held.of(given).mode,
        )
        self._walked.append(payment)
        return payment

    def pay(self, payment: Walked, card: str = "") -> None:
        """Pays with a good card, unless another one is named."""
        began = time.perf_counter()
        answer = self.target.stripe.pay(payment.intent_id, payment.client_secret, card or VISA)
        charged = payment.escrow_mode == "PLATFORM_HOLD"
        wanted = "succeeded" if charged else "requires_capture"
        expect("the card's answer", "declined" if card == DECLINED_CARD else wanted, answer.status)
        said = "the card is charged" if charged else "Stripe holds the amount on the card"
        self.story.step(
            "client",
            "pays with a bad card" if card == DECLINED_CARD else "pays by card",
            answer.sentence or said,
            seconds=time.perf_counter() - began,
        )

    def hear(self, payment: Walked, standing: Standing) -> payments_pb2.Payment:
        """Polls as a caller does, until a webhook has moved the payment."""
        request = payments_pb2.GetPaymentStatusRequest(payment_id=payment.payment_id)

        shown = payments_pb2.Payment()

        def reached() -> bool:
            answer = self.caller.ask(self.caller.payments.GetPaymentStatus, request)
            if state_name(answer.state) != standing.state:
                return False
            shown.CopyFrom(self.read(payment))
            return Standing.of(shown) == standing  # It may have changed in between.

        seconds = self.caller.poll(reached)
        self.expect_standing(shown if shown.payment_id else self.read(payment), standing)
        self.show("Stripe", "reports by webhook", payment, standing, seconds)
        return shown

    def read(self, payment: Walked) -> payments_pb2.Payment:
        request = payments_pb2.GetPaymentRequest(payment_id=payment.payment_id)
        return self.caller.ask(self.caller.payments.GetPayment, request).payment

    def capture(
        self,
        payment: Walked,
        standing: Standing,
        *,
        part: int = 0,
        final: bool = False,
        version: int = 0,
    ) -> payments_pb2.Payment:
        """Captures all that is held, or a `part`; `version` is that of an earlier preview."""
        request = self._capture_request(payment, part, final=final)
        request.idempotency_key = self.key(payment)
        request.expected_version = version
        answer, seconds = self.caller.timed(self.caller.payments.CapturePayment, request)
        self.expect_standing(answer.payment, standing)
        what = f"CapturePayment {amount(part, payment.currency)}" if part else "CapturePayment"
        self.show("gig service", what, payment, standing, seconds)
        return answer.payment

    def capture_twice(self, payment: Walked, standing: Standing) -> None:
        """Captures twice with the same key, which must give the same answer."""
        request = self._capture_request(payment, 0, final=False)
        request.idempotency_key = self.key(payment)
        answer, seconds = self.caller.timed(self.caller.payments.CapturePayment, request)
        self.expect_standing(answer.payment, standing)
        self.show("gig service", "CapturePayment", payment, standing, seconds)
        again, seconds = self.caller.timed(self.caller.payments.CapturePayment, request)
        expect(
            "the answer to a repeated key",
            answer.SerializeToString(deterministic=True).hex(),
            again.SerializeToString(deterministic=True).hex(),
        )
        self.story.step(
            "gig service",
            "CapturePayment, same key",
            "the same answer, nothing moved",
            seconds=seconds,
        )

    def look_before_capture(
        self, payment: Walked, standing: Standing, legs: Sequence[tuple[str, int]]
    ) -> int:
        """Previews a full capture, which must move nothing, and returns the payment's version."""
        request = self._capture_request(payment, 0, final=False)
        # `validate_only` does not use up the key.
        request.idempotency_key, request.validate_only = f"walk-{payment.number}-look", True
        answer, seconds = self.caller.timed(self.caller.payments.CapturePayment, request)
        shown = [
            (
                payments_pb2.LegKind.Name(leg.kind).removeprefix("LEG_KIND_"),
                leg.amount.minor_units,
            )
            for leg in answer.preview.legs
        ]
        expect("the legs that a capture would have", list(legs), shown)
        self.expect_standing(answer.preview.payment, standing)
        version = self.read(payment).version
        expect("the version after looking", answer.payment.version, version)
        told = [f"{name} {amount(minor_units, payment.currency)}" for name, minor_units in shown]
        self.story.step(
            "gig service", "CapturePayment, preview", "would do:", *told, seconds=seconds
        )
        return version

    def _capture_request(
        self, payment: Walked, part: int, *, final: bool
    ) -> payments_pb2.CapturePaymentRequest:
        return payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id,
            amount=_part(part, payment),
            final=final,
            notes="delivered",
        )

    def refund(
        self, payment: Walked, standing: Standing, *, part: int = 0, reason: str = ""
    ) -> None:
        request = payments_pb2.RefundPaymentRequest(
            payment_id=payment.payment_id,
            amount=_part(part, payment),
            reason=reason,
            idempotency_key=self.key(payment),
        )
        answer, seconds = self.caller.timed(self.caller.payments.RefundPayment, request)
        self.expect_standing(answer.payment, standing)
        what = f"RefundPayment {amount(part, payment.currency)}" if part else "RefundPayment"
        self.show("gig service", what, payment, standing, seconds, reason)

    def refused_capture(self, payment: Walked) -> None:
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id, idempotency_key=self.key(payment)
        )
        try:
            self.caller.timed(self.caller.payments.CapturePayment, request)
        except grpc.RpcError as error:
            code, reason = call_of(error).code(), refusal_of(error).reason
            expect("the code of the refusal", grpc.StatusCode.FAILED_PRECONDITION, code)
            expect("the reason of the refusal", "WRONG_STATE", reason)
            self.story.step("gig service", "CapturePayment", f"refused: {reason}")
            return
        raise Mismatch("capturing a cancelled payment", "a refusal", "an answer")

    def audit(self, payment: Walked, wanted: list[str]) -> None:
        """Checks the payment's audit trail (complete, in order, unbroken) and the books."""
        self._books.agree(self._payment_ids)
        request = events_pb2.ListPaymentEventsRequest(payment_id=payment.payment_id)
        answer = self.caller.ask(self.caller.events.ListPaymentEvents, request)
        expect("chain_intact", True, answer.chain_intact)
        expect(
            "the events' numbers",
            list(range(1, len(answer.events) + 1)),
            [event.sequence for event in answer.events],
        )
        kinds = [event.kind.removeprefix("payment.") for event in answer.events]
        expect("the events", wanted, [kind for kind in kinds if kind in wanted])
        first, *rest = wanted
        self.story.step(
            "auditor",
            "audit trail",
            first,
            *(f"→ {kind}" for kind in rest),
            f"({len(kinds)} events, hash chain intact)",
        )

    def _read_expert(self) -> None:
        request = experts_pb2.GetExpertRequest(expert_id=EXPERT)
        answer, seconds = self.caller.timed(self.caller.experts.GetExpert, request)
        status = experts_pb2.ExpertStatus.Name(answer.expert.status)
        expect("the expert's status", "EXPERT_STATUS_READY", status)
        expect("transfers_active", True, answer.expert.transfers_active)
        expect("commission_basis_points", 1_000, answer.expert.commission_basis_points)
        account = answer.expert.stripe_account_id
        self._books.accounts[f"stripe:connected:{EXPERT}"] = account
        self.expert_account = account
        self.story.step(
            "user service", "GetExpert", "READY", account, "commission 10 %", seconds=seconds
        )

    @property
    def _payment_ids(self) -> list[str]:
        return [payment.payment_id for payment in self._walked]

    def key(self, payment: Walked) -> str:
        payment.keys += 1
        return f"walk-{payment.number}-{payment.keys}"

    def show(
        self,
        who: str,
        what: str,
        payment: Walked,
        standing: Standing,
        seconds: float | None = None,
        *said: str,
    ) -> None:
        """Prints a step that moved the payment, and who holds its money now."""
        self.story.step(who, what, standing.state, *said, seconds=seconds)
        if standing.state not in ("PENDING", "FAILED"):
            shares = standing.shares(payment.amount)
            payment.paid = payment.amount - shares["Grace"]
            self.story.shares(shares, payment.currency)

    def expect_standing(self, payment: payments_pb2.Payment, standing: Standing) -> None:
        currency = payment.amount.currency_code
        wanted, got = standing.told(currency), Standing.of(payment).told(currency)
        expect(payment.payment_id, "  ".join(wanted), "  ".join(got))


def _part(minor_units: int, payment: Walked) -> money_pb2.Money | None:
    if not minor_units:
        return None
    return money_pb2.Money(minor_units=minor_units, currency_code=payment.currency)
