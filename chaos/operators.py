"""Operators: people who look at what is contested and answer for the platform, under keys too."""

from __future__ import annotations

import asyncio
from collections import Counter

from chaos.asking import PAUSE_SECONDS, Asker
from chaos.callers import CANARY
from chaos.plan import ACCEPTED, EVIDENCE, RELEASED
from chaos.scene import Keyed
from marketplace.payments.v1 import disputes_pb2, operations_pb2, payments_pb2

_OPEN_ENDS = 3
_UNANSWERED = ("needs_response", "warning_needs_response")
#: What the bank makes of it: the first two decide, an inquiry is escalated by the third, and of the
#: last it may think what it likes.
_TEXTS = ("winning_evidence", "losing_evidence", "escalate_inquiry_evidence", f"done {CANARY}")


class Operator(Asker):
    """One at a desk. Nobody asks in its place, so it forgets no key."""

    forgets = False

    async def run(self) -> None:
        while self.scene.now() < self.scene.until:
            owed = len(self.pending)
            if owed and (owed >= _OPEN_ENDS or self.chance.random() < 0.4):
                await self.ask(self.chance.choice(self.pending))
                continue
            await self.chance.choices([self.answer, self.release, self.read], [4, 4, 2])[0]()
            await asyncio.sleep(self.chance.uniform(1, 3) * PAUSE_SECONDS)

    async def answer(self) -> None:
        """Evidence for one of the disputes that wait for it, or none: it is given up."""
        disputes = [dispute for dispute in await self._open() if dispute.status in _UNANSWERED]
        answering = self.scene.answering
        fresh = [one for one in reversed(disputes) if one.dispute_id not in answering]
        if fresh:  # The oldest, by whatever was done less so far.
            dispute = fresh[0]
            can_be_lost = dispute.stage == disputes_pb2.DISPUTE_STAGE_CHARGEBACK
            tried = Counter(answering.values())
            deed = ACCEPTED if can_be_lost and tried[ACCEPTED] < tried[EVIDENCE] else EVIDENCE
            answering[dispute.dispute_id] = deed
        else:  # Another word on the same matter, when the first has come of what it was for.
            others = [one for one in disputes if self.scene.deeds[answering[one.dispute_id]]]
            if not others:
                return
            dispute, deed = self.chance.choice(others), self.chance.choice([EVIDENCE, ACCEPTED])
        if deed == EVIDENCE:
            submit = bool(fresh) or self.chance.random() < 0.5
            await self.ask(self._evidence(dispute.dispute_id, submit=submit))
        else:
            await self.ask(self._acceptance(dispute.dispute_id))

    async def release(self) -> None:
        """An issuer's warning was looked into, and is let pass."""
        if not self.scene.warned:
            return
        payment_id = self.chance.choice(self.scene.warned)
        look = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        code, body = await self.call("GetPayment", "", look.SerializeToString())
        if code != "OK":
            return
        payment = payments_pb2.GetPaymentResponse.FromString(body).payment
        # Now and then although nothing is to be released.
        if payment.freeze == payments_pb2.PAYMENT_FREEZE_FRAUD_WARNING or (
            self.chance.random() < 0.05
        ):
            request = operations_pb2.ReleaseFraudWarningRequest(
                payment_id=payment_id, note=f"looked {CANARY}", idempotency_key=self.key()
            )
            await self.ask(Keyed("ReleaseFraudWarning", request.idempotency_key, request))

    async def read(self) -> None:
        for dispute in (await self._open())[:3]:
            request = disputes_pb2.GetDisputeRequest(dispute_id=dispute.dispute_id)
            await self.call("GetDispute", "", request.SerializeToString())

    def learn(self, keyed: Keyed, body: bytes) -> None:
        deeds = self.scene.deeds
        if keyed.rpc == "SubmitEvidence":
            deeds[EVIDENCE] += keyed.request.submit
        elif keyed.rpc == "AcceptDispute":
            deeds[ACCEPTED] += 1
        elif keyed.rpc == "ReleaseFraudWarning":
            deeds[RELEASED] += 1

    async def _open(self) -> list[disputes_pb2.Dispute]:
        request = disputes_pb2.ListDisputesRequest(open_only=True, page_size=100)
        code, body = await self.call("ListDisputes", "", request.SerializeToString())
        found = disputes_pb2.ListDisputesResponse.FromString(body) if code == "OK" else None
        return list(found.disputes) if found else []

    def _evidence(self, dispute_id: str, *, submit: bool) -> Keyed:
        request = disputes_pb2.SubmitEvidenceRequest(
            dispute_id=dispute_id,
            evidence=disputes_pb2.Evidence(
                uncategorized_text=self.chance.choice(_TEXTS), product_description=CANARY
            ),
            # Else it is only laid ready at Stripe.
            submit=submit,
            idempotency_key=self.key(),
        )
        return Keyed("SubmitEvidence", request.idempotency_key, request)

    def _acceptance(self, dispute_id: str) -> Keyed:
        request = disputes_pb2.AcceptDisputeRequest(
            dispute_id=dispute_id, idempotency_key=self.key()
        )
        return Keyed("AcceptDispute", request.idempotency_key, request)
