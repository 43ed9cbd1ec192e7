"""How a caller calls: bytes in and bytes out, with the same key until the outcome is known.

A caller that does not know the outcome of a mutation repeats it with the same key and the same
bytes, now or later, until it gets a definite answer. The service's promises need nothing else.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from grpc import aio

from chaos.history import OWN, Entry, Outcome, Seen, SeenDispute, outcome_of
from chaos.scene import Keyed, Scene
from marketplace.payments.errors import refusal_of
from marketplace.payments.v1 import (
    disputes_pb2,
    experts_pb2,
    operations_pb2,
    payments_pb2,
)

_PACKAGE = "marketplace.payments.v1"
_PATIENCE_SECONDS = 8.0
#: How often a caller forgets a key whose outcome it does not know.
_GIVES_UP = 0.1
#: Seconds after an answer that settles nothing, and while the service is unavailable.
PAUSE_SECONDS = 0.1
#: The service of each RPC, and the type of its answer.
ANSWERS: dict[str, tuple[str, Any]] = {
    "InitiatePayment": ("PaymentService", payments_pb2.InitiatePaymentResponse),
    "CapturePayment": ("PaymentService", payments_pb2.CapturePaymentResponse),
    "RefundPayment": ("PaymentService", payments_pb2.RefundPaymentResponse),
    "GetPayment": ("PaymentService", payments_pb2.GetPaymentResponse),
    "GetPaymentStatus": ("PaymentService", payments_pb2.GetPaymentStatusResponse),
    "ListPayments": ("PaymentService", payments_pb2.ListPaymentsResponse),
    "GetExpert": ("ExpertService", experts_pb2.GetExpertResponse),
    "ReplaceExpertAccount": ("ExpertService", experts_pb2.ReplaceExpertAccountResponse),
    "ListDisputes": ("DisputeService", disputes_pb2.ListDisputesResponse),
    "GetDispute": ("DisputeService", disputes_pb2.GetDisputeResponse),
    "SubmitEvidence": ("DisputeService", disputes_pb2.SubmitEvidenceResponse),
    "AcceptDispute": ("DisputeService", disputes_pb2.AcceptDisputeResponse),
    "WriteOffExpertDebt": ("OperationsService", operations_pb2.WriteOffExpertDebtResponse),
    "ListOperations": ("OperationsService", operations_pb2.ListOperationsResponse),
    "ResumeOperation": ("OperationsService", operations_pb2.ResumeOperationResponse),
    "SettleClientPayable": ("OperationsService", operations_pb2.SettleClientPayableResponse),
    "DismissFraudWarning": ("OperationsService", operations_pb2.DismissFraudWarningResponse),
}
#: Codes that settle nothing: the call must be repeated.
NOT_NOW = ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED", *OWN)


class Asker:
    """A caller of the service. Subclasses say what it calls."""

    #: Whether it may forget a key whose outcome it does not know, as if it had died.
    forgets = True

    def __init__(self, number: int, scene: Scene, seed: str) -> None:
        self.number = number
        self.scene = scene
        self.chance = random.Random(f"{seed}:{number}")
        self.pending: list[Keyed] = []

    async def run(self) -> None:
        """Calls until the scene ends."""
        raise NotImplementedError

    def learn(self, keyed: Keyed, body: bytes) -> None:
        """Uses the first definite success of a key."""
        raise NotImplementedError

    async def resolve(self) -> bool:
        """Repeats every call that is still open. Returns whether none is left."""
        await asyncio.gather(*(self.ask(keyed, patient=True) for keyed in list(self.pending)))
        return not self.pending

    async def ask(self, keyed: Keyed, *, patient: bool = False, again: bool = False) -> None:
        """Makes one call under a key. If it settles nothing, the key stays pending."""
        if keyed.asking and not again:
            return
        keyed.asking = True
        try:
            seconds = _PATIENCE_SECONDS
            if not patient and self.chance.random() < 0.08:
                seconds = self.chance.choice([0.02, 0.05, 0.2])
            code, body = await self.call(keyed.rpc, keyed.key, keyed.bytes, seconds=seconds)
        finally:
            keyed.asking = False
        outcome = outcome_of(code)
        if outcome == "info":
            if keyed.answer is None and keyed not in self.pending:
                if self.forgets and self.chance.random() < _GIVES_UP and not again:
                    return  # As if it had died: recovery must finish the call.
                self.pending.append(keyed)
            await asyncio.sleep(self.chance.uniform(0.5, 1.5) * PAUSE_SECONDS)
            return
        if keyed in self.pending:
            self.pending.remove(keyed)
        if keyed.answer is None or (code == "OK" and keyed.answer[0] != "OK"):
            # A refusal by a guard leaves the key free, so the same call may succeed later.
            keyed.answer = (code, body)
            if code == "OK":
                self.scene.answered.append(keyed)
                self.learn(keyed, body)

    async def call(
        self,
        rpc: str,
        key: str,
        request: bytes,
        name: str = "",
        seconds: float = _PATIENCE_SECONDS,
    ) -> tuple[str, bytes]:
        """Makes one call and returns the bytes of its answer, or of its status if it is refused."""
        service = ANSWERS[rpc][0]
        call: aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = self.scene.channel.unary_unary(f"/{_PACKAGE}.{service}/{rpc}")
        started, reason, text = self.scene.now(), "", ""
        try:
            code, body = "OK", _lasting(rpc, bytes(await call(request, timeout=seconds)))
        except aio.AioRpcError as error:
            code, body, reason = error.code().name, *_status(error)
            text = str(error.details())
            if not key:
                await asyncio.sleep(2 * PAUSE_SECONDS)
        patient = seconds == _PATIENCE_SECONDS
        entry = Entry(
            self.number,
            name or rpc,
            key,
            request,
            started,
            self.scene.now(),
            outcome_of(code),
            code,
            reason,
            body,
            _seen(rpc, body) if code == "OK" else None,
            patient,
            text,
            _disputes(rpc, body) if code == "OK" else (),
        )
        self.scene.history.add(entry)
        return code, body

    def note(
        self, rpc: str, key: str, request: bytes, started: float, outcome: Outcome, code: str
    ) -> None:
        self.scene.history.add(
            Entry(self.number, rpc, key, request, started, self.scene.now(), outcome, code)
        )

    def key(self) -> str:
        return f"chaos-{self.number}-{next(self.scene.numbers)}"


def _status(error: aio.AioRpcError) -> tuple[bytes, str]:
    """Returns the status as it was on the wire, and the reason in it."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            return value, refusal_of(error).reason
    return b"", ""


def _lasting(rpc: str, body: bytes) -> bytes:
    """Returns an answer without the part that each call makes anew: the link to Stripe's form."""
    if rpc != "ReplaceExpertAccount":
        return body
    answer = experts_pb2.ReplaceExpertAccountResponse.FromString(body)
    answer.onboarding_url = ""
    return answer.SerializeToString(deterministic=True)


def _seen(rpc: str, body: bytes) -> Seen | None:
    answer = ANSWERS[rpc][1].FromString(body)
    if "payment" not in answer.DESCRIPTOR.fields_by_name:
        return None
    payment = answer.payment
    return Seen(
        payment.payment_id,
        payment.version,
        payments_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_"),
        (
            payment.held_amount.minor_units,
            payment.captured_amount.minor_units,
            payment.refunded_amount.minor_units,
        ),
    )


def _disputes(rpc: str, body: bytes) -> tuple[SeenDispute, ...]:
    answer = ANSWERS[rpc][1].FromString(body)
    names = answer.DESCRIPTOR.fields_by_name
    if "disputes" in names:
        shown = list(answer.disputes)
    else:
        shown = [answer.dispute] if "dispute" in names else []
    return tuple(
        SeenDispute(
            dispute.dispute_id,
            disputes_pb2.DisputeOutcome.Name(dispute.outcome).removeprefix("DISPUTE_OUTCOME_"),
            (
                dispute.withdrawn_amount.minor_units,
                dispute.reinstated_amount.minor_units,
                dispute.lost_amount.minor_units,
                dispute.submission_count,
            ),
        )
        for dispute in shown
    )
