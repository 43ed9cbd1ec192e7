"""What the crash sweep is about: every money RPC, and what the service does by itself, each from a
prepared state to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import (
    adjustments_pb2,
    disputes_pb2,
    experts_pb2,
    operations_pb2,
    payments_pb2,
    webhooks_pb2,
)
from stripe_simulator.webhooks import sign
from tests.support.requests import capture_request, money, new_key, new_name, refund_request
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET
from tests.support.stripe import Stripe
from tests.support.world import (
    CAPTURED,
    CAPTURING,
    IN_ESCROW,
    REFUNDED,
    REFUNDING,
    Payment,
    World,
    until,
)

CONVERGENCE_SECONDS = 10.0
#: A replica that was up all the time checks the deadlines every fifteen seconds.
_DEADLINE_SECONDS = 25.0


@dataclass
class Subject:
    """What one case is about: a keyed call, a webhook that is redelivered until it is taken, or
    (without a method) what the service does by itself."""

    method: str
    request: Message
    payment_id: str = ""
    #: Whether the payment is where it must end, if no answer says so.
    ended: Callable[[Payment], bool] | None = None
    #: Brings to an end what the scenario leaves to people.
    afterwards: Callable[[World], Awaitable[None]] | None = None
    #: The kind of what people are told of meanwhile.
    discrepancy: str = ""


@dataclass(frozen=True)
class Scenario:
    """A money RPC (or the inbox) from a prepared state to its end."""

    name: str
    prepare: Callable[[World, str], Awaitable[Subject]]
    #: Places of the loops that belong to it.
    loops: frozenset[str] = frozenset()
    #: Faults at Stripe that make the loops finish it: (path, action, when).
    fault: tuple[str, str, str] | None = None
    #: The victim is down when it begins, and does it as soon as it has started: with the payment
    #: given, the deadline is moved near meanwhile.
    by_deadline: bool = False
    #: It pauses the webhooks itself, before what must not be told too soon.
    pauses: bool = False
    seconds: float = CONVERGENCE_SECONDS

    @property
    def by_loops(self) -> bool:
        """Whether it is a loop that must die, and so not another replica's."""
        return bool(self.loops)


async def set_webhooks(stripe: Stripe, *, paused: bool) -> None:
    await stripe.control("POST", "/webhooks", {"paused": paused})


async def _initiation(world: World, expert: str) -> Subject:
    return Subject("PaymentService/InitiatePayment", world.initiation(expert))


async def _capture(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert)
    return Subject("PaymentService/CapturePayment", capture_request(held.payment_id))


async def _capture_part(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert)
    request = capture_request(held.payment_id, 3_335, final=True, notes="a part")
    return Subject("PaymentService/CapturePayment", request)


async def _cancel(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert)
    return Subject("PaymentService/RefundPayment", refund_request(held.payment_id))


async def _refund(world: World, expert: str) -> Subject:
    captured = await world.captured(expert)
    return Subject("PaymentService/RefundPayment", refund_request(captured.payment_id, 3_333))


async def _account(world: World, expert: str) -> Subject:
    expert_id = new_name("crash-expert")
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id=expert_id, name="Ann Expert", email=f"{expert_id}@example.com"
    )
    return Subject("ExpertService/CreateExpertAccount", request)


async def _authorization(world: World, expert: str) -> Subject:
    """The client has paid; Stripe delivers the event, and delivers it again until it is taken."""
    initiated = await world.initiate(expert)
    await world.settle_down()
    await set_webhooks(world.stripe, paused=True)
    await world.confirm(initiated)
    return Subject(
        "WebhookService/IngestEvent",
        await event_of(
            world,
            "payment_intent.amount_capturable_updated",
            initiated.payment.payment_intent_id,
        ),
        initiated.payment.payment_id,
        lambda payment: payment.state == IN_ESCROW,
    )


async def event_of(
    world: World, kind: str, object_id: str, account: str = ""
) -> webhooks_pb2.IngestEventRequest:
    """The newest of Stripe's events of a kind about an object, as the gateway would hand it on."""
    listed = await world.stripe.api("GET", "/events", account=account, type=kind, limit=20)
    event = next(one for one in listed["data"] if one["data"]["object"]["id"] == object_id)
    return _handed_on(event, of_account=bool(account))


async def account_event(world: World, account: str) -> webhooks_pb2.IngestEventRequest:
    """The newest of Stripe's thin events about an account, as the gateway would hand it on."""
    listed = await world.stripe.api_v2("GET", "/core/events", object_id=account)
    return _handed_on(listed["data"][0], of_account=True)


def _handed_on(event: Any, *, of_account: bool) -> webhooks_pb2.IngestEventRequest:
    payload = json.dumps(event)
    endpoint, secret = (
        (webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT, CONNECT_SECRET)
        if of_account
        else (webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM, PLATFORM_SECRET)
    )
    return webhooks_pb2.IngestEventRequest(
        endpoint=endpoint,
        payload=payload.encode(),
        signature=sign(payload, (secret,), int(time.time())),
    )


# What the platform holds itself: charged there, and each part transferred.

_PLATFORM: dict[str, Any] = {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD}
_PROMOTED: dict[str, Any] = {"on_deadline": payments_pb2.ON_DEADLINE_PROMOTE}
#: Charged money is available at once, so that Stripe lets transfers of it be reversed.
_AVAILABLE = "pm_card_bypassPending"


def _part_of(
    hold: dict[str, Any], amount: int = 0, *, final: bool = False
) -> Callable[[World, str], Awaitable[Subject]]:
    async def prepare(world: World, expert: str) -> Subject:
        held = await world.escrowed(expert, **hold)
        request = capture_request(held.payment_id, amount, final=final)
        return Subject("PaymentService/CapturePayment", request)

    return prepare


async def _refund_of_held(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert, **_PLATFORM)
    await world.capture(held.payment_id, 3_000)
    return Subject("PaymentService/RefundPayment", refund_request(held.payment_id, 2_500))


async def _refund_beyond_held(world: World, expert: str) -> Subject:
    """All that is held, all of the newer milestone, and a part of the older."""
    held = await world.escrowed(expert, card=_AVAILABLE, **_PLATFORM)
    await world.capture(held.payment_id, 3_000)
    await world.capture(held.payment_id, 4_000)
    return Subject("PaymentService/RefundPayment", refund_request(held.payment_id, 8_500))


async def _capture_of_a_debtor(world: World, expert: str) -> Subject:
    """Stripe cannot take the first payment back out of money that is not available yet."""
    debtor = await world.expert(new_name("crash-debtor"))
    first = await world.captured(debtor, **_PLATFORM)
    await world.refund(first.payment_id)
    held = await world.escrowed(debtor, 20_000, **_PLATFORM)
    return Subject("PaymentService/CapturePayment", capture_request(held.payment_id))


async def _refund_in_part(world: World, expert: str) -> Subject:
    """The account has half of what is to come back: the reversal is refused, a job takes that."""
    debtor = await world.expert(new_name("crash-debtor"))
    paid = await world.captured(debtor, card=_AVAILABLE, **_PLATFORM)
    account = world.account_of(debtor)
    await world.stripe.api("POST", "/payouts", account=account, amount=4_500, currency="usd")
    collected = "SELECT 1 FROM events WHERE payment_id = %s AND kind = 'payment.debt_collected'"
    return Subject(
        "PaymentService/RefundPayment",
        refund_request(paid.payment_id),
        paid.payment_id,
        lambda payment: bool(world.sql(collected, payment.payment_id)),
    )


async def _disputed(world: World, expert: str) -> tuple[Payment, str]:
    """Captured on the platform, of money that can be taken back at once, and contested."""
    payment = await world.captured(expert, card=_AVAILABLE, **_PLATFORM)
    shown = await world.stripe.control("POST", f"/charges/{payment.charge_id}/dispute", {})
    dispute_id = str(shown["id"])

    async def on_record() -> bool:
        return bool(world.sql("SELECT 1 FROM disputes WHERE dispute_id = %s", dispute_id))

    await until(on_record, f"{dispute_id} on record")
    return payment, dispute_id


async def _evidence(world: World, expert: str) -> Subject:
    payment, dispute_id = await _disputed(world, expert)
    request = disputes_pb2.SubmitEvidenceRequest(
        dispute_id=dispute_id,
        evidence=disputes_pb2.Evidence(uncategorized_text="It was delivered."),
        submit=True,
        idempotency_key=new_key(),
    )
    return Subject("DisputeService/SubmitEvidence", request, payment.payment_id)


def _is_lost(payment: Payment) -> bool:
    return payment.state == REFUNDED and bool(payment.lost_amount.minor_units)


async def _acceptance(world: World, expert: str) -> Subject:
    payment, dispute_id = await _disputed(world, expert)
    request = disputes_pb2.AcceptDisputeRequest(dispute_id=dispute_id, idempotency_key=new_key())
    return Subject("DisputeService/AcceptDispute", request, payment.payment_id, _is_lost)


async def _loss(world: World, expert: str) -> Subject:
    """The bank decides for the client: written off, and the expert's part is reversed."""
    payment, dispute_id = await _disputed(world, expert)
    await world.settle_down()
    await set_webhooks(world.stripe, paused=True)
    await world.stripe.control("POST", f"/disputes/{dispute_id}/lose", {})
    request = await event_of(world, "charge.dispute.closed", dispute_id)
    return Subject("WebhookService/IngestEvent", request, payment.payment_id, _is_lost)


async def _write_off(world: World, expert: str) -> Subject:
    debtor = await world.expert(new_name("crash-debtor"))
    first = await world.captured(debtor, **_PLATFORM)
    await world.refund(first.payment_id)
    request = operations_pb2.WriteOffExpertDebtRequest(
        expert_id=debtor,
        currency_code="USD",
        amount=money(4_000, "USD"),
        reason="left us",
        idempotency_key=new_key(),
    )
    return Subject("OperationsService/WriteOffExpertDebt", request, first.payment_id)


async def _restricted(world: World) -> tuple[Payment, str]:
    """A hold, and the account of its expert, who cannot be paid."""
    expert = await world.expert(new_name("crash-restricted"))
    held = await world.escrowed(expert, **_PLATFORM)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    await world.settle_down()
    return held, account


async def _capture_that_waits(world: World, expert: str) -> Subject:
    held, _ = await _restricted(world)
    return Subject(
        "PaymentService/CapturePayment",
        capture_request(held.payment_id),
        held.payment_id,
        lambda payment: (
            payment.state == CAPTURING and payment.waiting_for == payments_pb2.WAITING_FOR_EXPERT
        ),
    )


async def _capture_that_waited(world: World, expert: str) -> Subject:
    """The account is ready again, and the event says so; the jobs do the rest."""
    held, account = await _restricted(world)
    waiting = await world.capture(held.payment_id)
    assert waiting.waiting_for == payments_pb2.WAITING_FOR_EXPERT, waiting
    await world.settle_down()
    await set_webhooks(world.stripe, paused=True)
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    return Subject(
        "WebhookService/IngestEvent",
        await account_event(world, account),
        held.payment_id,
        lambda payment: payment.state == CAPTURED and not payment.waiting_for,
    )


async def _rejected(world: World) -> tuple[Payment, str]:
    """A hold, and its expert, whose account Stripe has rejected for good."""
    held, account = await _restricted(world)
    body = {"disabled_reason": "rejected.fraud"}
    await world.stripe.control("POST", f"/accounts/{account}/restrict", body)
    await world.expert_status(held.expert_id, experts_pb2.EXPERT_STATUS_REJECTED)
    return held, account


def _exchange_of(expert_id: str) -> experts_pb2.ReplaceExpertAccountRequest:
    return experts_pb2.ReplaceExpertAccountRequest(
        expert_id=expert_id, reason="rejected", idempotency_key=new_key()
    )


async def _exchange(world: World, expert: str) -> Subject:
    held, _ = await _rejected(world)
    await world.refund(held.payment_id)
    return Subject("ExpertService/ReplaceExpertAccount", _exchange_of(held.expert_id))


async def _capture_after_exchange(world: World, expert: str) -> Subject:
    """The money waited; the new account is ready, and the event says so; the jobs do the rest."""
    held, _ = await _rejected(world)
    waiting = await world.capture(held.payment_id)
    assert waiting.waiting_for == payments_pb2.WAITING_FOR_EXPERT, waiting
    answer = await world.experts.ReplaceExpertAccount(_exchange_of(held.expert_id))
    account = answer.expert.stripe_account_id
    await world.settle_down()
    await set_webhooks(world.stripe, paused=True)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding", {})
    return Subject(
        "WebhookService/IngestEvent",
        await account_event(world, account),
        held.payment_id,
        lambda payment: payment.state == CAPTURED and not payment.waiting_for,
    )


async def _bounce(world: World, expert: str) -> Subject:
    """A refund fails: the amount is client payable, and an operator has to repay it."""
    captured = await world.captured(expert, card=_AVAILABLE, **_PLATFORM)
    await world.refund(captured.payment_id)
    [(refund_id,)] = world.sql(
        "SELECT movement_id FROM movements WHERE payment_id = %s AND kind = 'refund'",
        captured.payment_id,
    )
    await world.settle_down()
    await set_webhooks(world.stripe, paused=True)
    await world.stripe.control("POST", f"/refunds/{refund_id}/fail")

    async def pay(world: World) -> None:
        [(operation_id,)] = world.sql(
            "SELECT operation_id FROM operations WHERE payment_id = %s AND state = 'PARKED'",
            captured.payment_id,
        )
        request = operations_pb2.ResumeOperationRequest(operation_id=str(operation_id))
        await world.operations.ResumeOperation(request)
        await world.in_state(captured.payment_id, REFUNDED)

    return Subject(
        "WebhookService/IngestEvent",
        await event_of(world, "refund.failed", str(refund_id)),
        captured.payment_id,
        lambda payment: (
            payment.state == REFUNDING and payment.waiting_for == payments_pb2.WAITING_FOR_OPERATOR
        ),
        pay,
        "refund_failed",
    )


async def _fraud_release(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert, **_PLATFORM)
    path = f"/charges/{held.charge_id}/early_fraud_warning"
    warning_id = str((await world.stripe.control("POST", path))["id"])

    async def frozen() -> bool:
        return bool((await world.get(held.payment_id)).freeze)

    await until(frozen, f"{warning_id} seen")
    request = operations_pb2.DismissFraudWarningRequest(
        payment_id=held.payment_id,
        warning_id=warning_id,
        reason="the client called",
        idempotency_key=new_key(),
    )
    return Subject("OperationsService/DismissFraudWarning", request, held.payment_id)


async def _settlement(world: World, expert: str) -> Subject:
    """The client payable of a failed refund is settled outside of Stripe."""
    # Out of escrow: nothing is to be taken back from the expert.
    held = await world.escrowed(expert, **_PLATFORM)
    await world.refund(held.payment_id)
    [(refund_id,)] = world.sql(
        "SELECT movement_id FROM movements WHERE payment_id = %s AND kind = 'refund'",
        held.payment_id,
    )
    await world.stripe.control("POST", f"/refunds/{refund_id}/fail")
    await world.in_state(held.payment_id, REFUNDING)
    request = operations_pb2.SettleClientPayableRequest(
        payment_id=held.payment_id, reason="paid by cheque", idempotency_key=new_key()
    )
    return Subject(
        "OperationsService/SettleClientPayable",
        request,
        held.payment_id,
        discrepancy="refund_failed",
    )


async def _adjustment(world: World, expert: str) -> Subject:
    """Approved by its proposer, as the system's settings allow: nobody is authenticated here."""
    captured = await world.captured(expert)
    lines = [
        adjustments_pb2.AdjustmentLine(account=account, amount=money(units, "USD"))
        for account, units in (("losses", 500), ("fx", -500))
    ]
    proposed = await world.operations.ProposeAdjustment(
        adjustments_pb2.ProposeAdjustmentRequest(
            payment_id=captured.payment_id,
            lines=lines,
            ticket="FIN-7",
            reason="a test",
            idempotency_key=new_key(),
        )
    )
    request = adjustments_pb2.ApproveAdjustmentRequest(
        adjustment_id=proposed.adjustment.adjustment_id, idempotency_key=new_key()
    )
    return Subject("OperationsService/ApproveAdjustment", request, captured.payment_id)


def _agreed(
    on_deadline: payments_pb2.OnDeadline.ValueType, state: payments_pb2.PaymentState.ValueType
) -> Callable[[World, str], Awaitable[Subject]]:
    """Held by the platform for a gig of some days, at whose end something was agreed."""

    async def prepare(world: World, expert: str) -> Subject:
        due = Timestamp()
        due.FromSeconds(int(time.time()) + 5 * 86_400)
        held = await world.escrowed(
            expert, on_deadline=on_deadline, expected_completion_time=due, **_PLATFORM
        )
        return Subject(
            "",
            payments_pb2.GetPaymentRequest(),
            held.payment_id,
            lambda payment: payment.state == state,
        )

    return prepare


async def _promotion(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert, **_PROMOTED)
    return Subject("", payments_pb2.GetPaymentRequest(), held.payment_id, _is_promoted)


def _is_promoted(payment: Payment) -> bool:
    platform = payment.escrow_mode == payments_pb2.ESCROW_MODE_PLATFORM_HOLD
    return platform and payment.state == IN_ESCROW


_SWEEP = frozenset({"lease_due"})
_AWAKE = frozenset({"lease_events", "lease_due"})
DESTINATION = (
    Scenario("InitiatePayment", _initiation),
    Scenario("CapturePayment whole", _capture),
    Scenario("CapturePayment part", _capture_part),
    Scenario("RefundPayment cancel", _cancel),
    Scenario("RefundPayment both legs", _refund),
    Scenario("CreateExpertAccount", _account),
    Scenario("webhook_events", _authorization, frozenset({"lease_events"}), pauses=True),
    Scenario("sweep of a capture", _capture, _SWEEP, ("/capture$", "reset", "after")),
    Scenario("sweep of a refund", _refund, _SWEEP, ("/refunds$", "reset", "after")),
)
SEPARATE = (
    Scenario("authorized, whole", _part_of(_PROMOTED)),
    Scenario("authorized, milestone", _part_of(_PROMOTED, 3_335)),
    Scenario("authorized, final part", _part_of(_PROMOTED, 3_335, final=True)),
    Scenario("platform, whole", _part_of(_PLATFORM)),
    Scenario("platform, milestone", _part_of(_PLATFORM, 3_335)),
    Scenario("platform, final part", _part_of(_PLATFORM, 3_335, final=True)),
    Scenario("platform, refund of held", _refund_of_held),
    Scenario("platform, refund beyond held", _refund_beyond_held),
    Scenario("platform, debt netted", _capture_of_a_debtor),
    Scenario(
        "promotion",
        _promotion,
        frozenset({"due_deadline", "claim_turn"}),
        by_deadline=True,
        seconds=_DEADLINE_SECONDS,
    ),
    Scenario("sweep of a transfer", _part_of(_PLATFORM), _SWEEP, ("/transfers$", "reset", "after")),
    Scenario("sweep of a reversal", _refund_beyond_held, _SWEEP, ("/reversals$", "reset", "after")),
)
#: What nobody calls for on a good day: deadlines, disputes, debts, an account that is not well.
BESIDES = (
    Scenario(
        "deadline, capture",
        _agreed(payments_pb2.ON_DEADLINE_CAPTURE, CAPTURED),
        frozenset({"due_deadline", "claim_turn"}),
        by_deadline=True,
        seconds=_DEADLINE_SECONDS,
    ),
    Scenario(
        "deadline, refund",
        _agreed(payments_pb2.ON_DEADLINE_REFUND, REFUNDED),
        frozenset({"due_deadline", "claim_turn"}),
        by_deadline=True,
        seconds=_DEADLINE_SECONDS,
    ),
    Scenario("SubmitEvidence", _evidence),
    Scenario("AcceptDispute", _acceptance),
    Scenario("a dispute is lost", _loss, frozenset({"lease_events"}), pauses=True),
    Scenario("WriteOffExpertDebt", _write_off),
    Scenario("a debt is collected", _refund_in_part, frozenset({"lease_check", "pause_check"})),
    Scenario("capture that waits", _capture_that_waits),
    Scenario("capture that waited", _capture_that_waited, _AWAKE, pauses=True),
    Scenario("ReplaceExpertAccount", _exchange),
    Scenario("capture after exchange", _capture_after_exchange, _AWAKE, pauses=True),
    Scenario("a refund bounces", _bounce, frozenset({"lease_events"}), pauses=True),
    Scenario("DismissFraudWarning", _fraud_release),
    Scenario("SettleClientPayable", _settlement),
    Scenario("ApproveAdjustment", _adjustment),
    Scenario("the feed", _capture, frozenset({"_sequence"})),
)
