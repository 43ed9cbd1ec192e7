"""Five payments through a running stack, told as they happen, and the books held against Stripe's.

Everything that is expected stands here as plain numbers, so that the walk proves the arithmetic
instead of repeating it. It runs against whatever a :class:`Target` names: the simulator, or Stripe.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from dev.books import Books
from dev.caller import Caller, Mismatch, call_of, expect, reason_of, state_name
from dev.story import Story, amount, money
from dev.stripe_side import StripeSide
from marketplace.payments.v1 import (
    events_pb2,
    experts_pb2,
    money_pb2,
    payments_pb2,
)

CLIENT = "client-grace"
EXPERT = "expert-ada"

_VISA = "pm_card_visa"
_DECLINED_CARD = "pm_card_visa_chargeDeclined"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a walk is made against."""

    channel: grpc.Channel
    stripe: StripeSide
    #: Makes the expert ready to be paid, and tells how.
    onboard: Callable[["Walk"], None]
    #: Whether the Stripe account has seen nothing but this walk.
    alone: bool
    #: How long webhooks and Stripe's books may take.
    patience_seconds: float
    #: Raises :class:`Interrupted` when somebody wants an end.
    check_interrupted: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a payment must stand: the state and the amounts, in minor units."""

    state: str
    held: int = 0
    captured: int = 0
    refunded: int = 0
    commission: int = 0
    expert: int = 0

    @classmethod
    def of(cls, payment: payments_pb2.Payment) -> "Standing":
        return cls(
            state=state_name(payment.state),
            held=payment.held_amount.minor_units,
            captured=payment.captured_amount.minor_units,
            refunded=payment.refunded_amount.minor_units,
            commission=payment.net_commission.minor_units,
            expert=payment.net_expert_amount.minor_units,
        )

    def told(self, currency: str) -> list[str]:
        amounts = [
            f"{name} {amount(value, currency)}"
            for name in ("held", "captured", "refunded", "commission", "expert")
            if (value := getattr(self, name))
        ]
        return [self.state, *amounts]


@dataclass(kw_only=True)
class Walked:
    """A payment on its way."""

    payment_id: str
    intent_id: str
    client_secret: str
    currency: str
    number: int
    keys: int = 0


class Walk:
    """One walk; `run` goes all the way, or raises at the first thing that is not as it must be."""

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

    def run(self) -> None:
        self.story.chapter("An expert")
        self.target.onboard(self)
        self._read_expert()
        self._captured()
        self._partly_refunded()
        self._cancelled()
        self._declined_then_paid()
        self._yen()
        self.story.chapter("The books")
        self._books.close(
            self._payment_ids,
            {
                ("commission", "USD"): -(1_000 + 1_667 + 900),
                ("commission", "JPY"): -125,
                (f"expert_funds:{EXPERT}", "USD"): -(9_000 + 15_000 + 8_100),
                (f"expert_funds:{EXPERT}", "JPY"): -876,
            },
        )

    # The five payments

    def _captured(self) -> None:
        self.story.chapter("1. Captured: the gig is done, the expert is paid")
        payment = self._initiate(10_000, "USD", commission=1_000, expert=9_000)
        self._pay(payment, _VISA)
        self._await(payment, Standing(state="IN_ESCROW", held=10_000))
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id, notes="delivered", idempotency_key=self._key(payment)
        )
        answer, seconds = self.caller.timed(self.caller.payments.CapturePayment, request)
        standing = Standing(state="CAPTURED", captured=10_000, commission=1_000, expert=9_000)
        self._expect_standing(answer.payment, standing)
        self.story.step("gig service", "CapturePayment", *standing.told("USD"), seconds=seconds)
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
        self._audit(payment, ["initiated", "authorized", "captured"])

    def _partly_refunded(self) -> None:
        self.story.chapter("2. Partly refunded: a third of the work was not done")
        payment = self._initiate(25_000, "USD", commission=2_500, expert=22_500)
        self._pay(payment, _VISA)
        self._await(payment, Standing(state="IN_ESCROW", held=25_000))
        self._capture(
            payment,
            Standing(state="CAPTURED", captured=25_000, commission=2_500, expert=22_500),
        )
        # 166.67 remain; a tenth of that is 16.667, so 8.33 of commission go back.
        self._refund(
            payment,
            Standing(
                state="CAPTURED", captured=25_000, refunded=8_333, commission=1_667, expert=15_000
            ),
            part=8_333,
            reason="a third was not delivered",
        )
        self._audit(
            payment, ["initiated", "authorized", "captured", "client_refunded", "expert_reversed"]
        )

    def _cancelled(self) -> None:
        self.story.chapter("3. Cancelled: the client is never charged")
        payment = self._initiate(7_500, "USD", commission=750, expert=6_750)
        self._pay(payment, _VISA)
        self._await(payment, Standing(state="IN_ESCROW", held=7_500))
        self._refund(payment, Standing(state="CANCELED"), reason="the gig was called off")
        self._refused_capture(payment)
        self._audit(payment, ["initiated", "authorized", "canceled"])

    def _declined_then_paid(self) -> None:
        self.story.chapter("4. Declined, then paid; captured in part, the rest released")
        payment = self._initiate(12_000, "USD", commission=1_200, expert=10_800)
        self._pay(payment, _DECLINED_CARD)
        failed = self._await(payment, Standing(state="FAILED"))
        expect("last_failure.code", "card_declined", failed.last_failure.code)
        self.story.step("client", "reads last_failure", failed.last_failure.message)
        self._pay(payment, _VISA)
        paid = self._await(payment, Standing(state="IN_ESCROW", held=12_000))
        expect("last_failure once it is overcome", False, paid.HasField("last_failure"))
        self._capture(
            payment,
            Standing(state="CAPTURED", captured=9_000, commission=900, expert=8_100),
            part=9_000,
        )
        self._audit(payment, ["initiated", "attempt_failed", "authorized", "captured"])

    def _yen(self) -> None:
        self.story.chapter("5. Yen, which have no cents, at another commission")
        request = experts_pb2.SetCommissionRequest(expert_id=EXPERT, commission_basis_points=1_250)
        answer, seconds = self.caller.timed(self.caller.experts.SetCommission, request)
        expect("commission_basis_points", 1_250, answer.expert.commission_basis_points)
        self.story.step("operator", "SetCommission", "12.5 % from now on", seconds=seconds)
        payment = self._initiate(1_001, "JPY", commission=125, expert=876)
        self._pay(payment, _VISA)
        self._await(payment, Standing(state="IN_ESCROW", held=1_001))
        self._capture(
            payment, Standing(state="CAPTURED", captured=1_001, commission=125, expert=876)
        )
        self._audit(payment, ["initiated", "authorized", "captured"])

    # Their steps

    def _initiate(self, minor_units: int, currency: str, *, commission: int, expert: int) -> Walked:
        number = len(self._walked) + 1
        request = payments_pb2.InitiatePaymentRequest(
            client_id=CLIENT,
            expert_id=EXPERT,
            gig_id=f"gig-{number}",
            amount=money_pb2.Money(minor_units=minor_units, currency_code=currency),
            description=f"Gig number {number}",
            idempotency_key=f"walk-{number}-initiate",
        )
        answer, seconds = self.caller.timed(self.caller.payments.InitiatePayment, request)
        given = answer.payment
        expect("amount", amount(minor_units, currency), money(given.amount))
        expect("commission", amount(commission, currency), money(given.commission))
        expect("application_fee", amount(commission, currency), money(answer.application_fee))
        expect("expert_amount", amount(expert, currency), money(given.expert_amount))
        self._expect_standing(given, Standing(state="PENDING"))
        self.story.step(
            "gig service",
            "InitiatePayment",
            "PENDING",
            f"{money(given.amount)} =",
            f"commission {money(given.commission)} +",
            f"expert {money(given.expert_amount)}",
            seconds=seconds,
        )
        payment = Walked(
            payment_id=given.payment_id,
            intent_id=given.payment_intent_id,
            client_secret=answer.client_secret,
            currency=currency,
            number=number,
        )
        self._walked.append(payment)
        return payment

    def _pay(self, payment: Walked, card: str) -> None:
        began = time.perf_counter()
        answer = self.target.stripe.pay(payment.intent_id, payment.client_secret, card)
        expect(
            "the card's answer",
            "declined" if card == _DECLINED_CARD else "requires_capture",
            answer.status,
        )
        self.story.step(
            "client",
            "pays with a bad card" if card == _DECLINED_CARD else "pays by card",
            answer.sentence or "Stripe holds the amount on the card",
            seconds=time.perf_counter() - began,
        )

    def _await(self, payment: Walked, standing: Standing) -> payments_pb2.Payment:
        """Poll as a caller would; a webhook moves the payment."""
        request = payments_pb2.GetPaymentStatusRequest(payment_id=payment.payment_id)

        def reached() -> bool:
            answer = self.caller.ask(self.caller.payments.GetPaymentStatus, request)
            return state_name(answer.state) == standing.state

        seconds = self.caller.poll(reached)
        read = payments_pb2.GetPaymentRequest(payment_id=payment.payment_id)
        shown = self.caller.ask(self.caller.payments.GetPayment, read).payment
        self._expect_standing(shown, standing)
        self.story.step(
            "Stripe", "tells by webhook", *standing.told(payment.currency), seconds=seconds
        )
        return shown

    def _capture(self, payment: Walked, standing: Standing, part: int = 0) -> None:
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id,
            amount=_part(part, payment),
            final=bool(part),
            notes="delivered",
            idempotency_key=self._key(payment),
        )
        answer, seconds = self.caller.timed(self.caller.payments.CapturePayment, request)
        self._expect_standing(answer.payment, standing)
        what = f"CapturePayment {amount(part, payment.currency)}" if part else "CapturePayment"
        self.story.step("gig service", what, *standing.told(payment.currency), seconds=seconds)

    def _refund(
        self, payment: Walked, standing: Standing, *, part: int = 0, reason: str = ""
    ) -> None:
        request = payments_pb2.RefundPaymentRequest(
            payment_id=payment.payment_id,
            amount=_part(part, payment),
            reason=reason,
            idempotency_key=self._key(payment),
        )
        answer, seconds = self.caller.timed(self.caller.payments.RefundPayment, request)
        self._expect_standing(answer.payment, standing)
        what = f"RefundPayment {amount(part, payment.currency)}" if part else "RefundPayment"
        self.story.step("gig service", what, *standing.told(payment.currency), seconds=seconds)

    def _refused_capture(self, payment: Walked) -> None:
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id, idempotency_key=self._key(payment)
        )
        try:
            self.caller.timed(self.caller.payments.CapturePayment, request)
        except grpc.RpcError as error:
            code, reason = call_of(error).code(), reason_of(error)
            expect("the code of the refusal", grpc.StatusCode.FAILED_PRECONDITION, code)
            expect("the reason of the refusal", "WRONG_STATE", reason)
            self.story.step("gig service", "CapturePayment", f"refused: {reason}")
            return
        raise Mismatch("capturing a cancelled payment", "a refusal", "an answer")

    def _audit(self, payment: Walked, wanted: list[str]) -> None:
        """The payment's audit trail: complete, in order, unbroken; and the books agree."""
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
        self.story.table(
            f"Audit trail of {payment.payment_id}",
            ["#>", "time (UTC)", "event", "state", "because of", "hash"],
            [_event_row(event) for event in answer.events],
        )
        self.story.holds("the chain of hashes is intact")

    def _read_expert(self) -> None:
        request = experts_pb2.GetExpertRequest(expert_id=EXPERT)
        answer, seconds = self.caller.timed(self.caller.experts.GetExpert, request)
        status = experts_pb2.ExpertStatus.Name(answer.expert.status)
        expect("the expert's status", "EXPERT_STATUS_READY", status)
        expect("transfers_active", True, answer.expert.transfers_active)
        expect("commission_basis_points", 1_000, answer.expert.commission_basis_points)
        account = answer.expert.stripe_account_id
        self._books.accounts[f"stripe:connected:{EXPERT}"] = account
        self.story.step(
            "user service", "GetExpert", "READY", account, "commission 10 %", seconds=seconds
        )

    @property
    def _payment_ids(self) -> list[str]:
        return [payment.payment_id for payment in self._walked]

    def _key(self, payment: Walked) -> str:
        payment.keys += 1
        return f"walk-{payment.number}-{payment.keys}"

    def _expect_standing(self, payment: payments_pb2.Payment, standing: Standing) -> None:
        currency = payment.amount.currency_code
        wanted, got = standing.told(currency), Standing.of(payment).told(currency)
        expect(payment.payment_id, "  ".join(wanted), "  ".join(got))


def _event_row(event: events_pb2.PaymentEvent) -> list[str]:
    body = json.loads(event.body_json)
    return [
        str(event.sequence),
        event.time.ToDatetime().strftime("%H:%M:%S.%f")[:-3],
        event.kind.removeprefix("payment."),
        body["to"],
        body["by"]["rpc"],
        event.hash.hex()[:8],
    ]


def _part(minor_units: int, payment: Walked) -> money_pb2.Money | None:
    if not minor_units:
        return None
    return money_pb2.Money(minor_units=minor_units, currency_code=payment.currency)
