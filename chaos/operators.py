"""Operators: people who answer disputes for the platform, also under keys."""

from __future__ import annotations

import asyncio
from collections import Counter

from chaos.asking import PAUSE_SECONDS, Asker
from chaos.callers import CANARY
from chaos.plan import ACCEPTED, EVIDENCE, RELEASED, REPAID, REPLACED, WRITTEN_OFF
from chaos.scene import Keyed
from marketplace.payments.v1 import (
    disputes_pb2,
    experts_pb2,
    money_pb2,
    operations_pb2,
    payments_pb2,
)

_OPEN_ENDS = 3
_REPLACE = "ReplaceExpertAccount"
_UNANSWERED = ("needs_response", "warning_needs_response")
#: What the bank makes of it: the first two decide, an inquiry is escalated by the third, and of the
#: last it may think what it likes.
_TEXTS = ("winning_evidence", "losing_evidence", "escalate_inquiry_evidence", f"done {CANARY}")
#: Where a warning is of no use any more.
_OVER = (
    payments_pb2.PAYMENT_STATE_CANCELED,
    payments_pb2.PAYMENT_STATE_EXPIRED,
    payments_pb2.PAYMENT_STATE_REFUNDED,
)


class Operator(Asker):
    """One operator. Nothing repeats its calls in its place, so it forgets no key."""

    forgets = False

    async def run(self) -> None:
        while self.scene.now() < self.scene.until:
            owed = len(self.pending)
            if owed and (owed >= _OPEN_ENDS or self.chance.random() < 0.4):
                await self.ask(self.chance.choice(self.pending))
                continue
            await self.replace()
            actions = [self.answer, self.release, self.write_off, self.repay, self.read]
            await self.chance.choices(actions, [4, 5, 2, 3, 1])[0]()
            await asyncio.sleep(self.chance.uniform(1, 3) * PAUSE_SECONDS)

    async def answer(self) -> None:
        """Submits evidence for one of the disputes that wait for it, or accepts the dispute."""
        disputes = [dispute for dispute in await self._open() if dispute.status in _UNANSWERED]
        answering = self.scene.answering
        fresh = [one for one in reversed(disputes) if one.dispute_id not in answering]
        if fresh:  # The oldest, by the kind of answer that was given less often so far.
            dispute = fresh[0]
            can_be_lost = dispute.stage == disputes_pb2.DISPUTE_STAGE_CHARGEBACK
            tried = Counter(answering.values())
            deed = ACCEPTED if can_be_lost and tried[ACCEPTED] < tried[EVIDENCE] else EVIDENCE
            answering[dispute.dispute_id] = deed
        else:  # More evidence for the same dispute, after the first was stored.
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
        """Dismisses an issuer's fraud warning."""
        scene = self.scene
        fresh = [one for one in scene.warned if one not in scene.releasing]
        # Sometimes a warning that was dismissed before, so that there is nothing to dismiss.
        if scene.releasing and self.chance.random() < 0.05:
            return await self.let_pass(self.chance.choice(sorted(scene.releasing)))
        for payment_id in fresh:
            look = payments_pb2.GetPaymentRequest(payment_id=payment_id)
            code, body = await self.call("GetPayment", "", look.SerializeToString())
            if code != "OK":
                return None
            payment = payments_pb2.GetPaymentResponse.FromString(body).payment
            if payment.freeze == payments_pb2.PAYMENT_FREEZE_FRAUD_WARNING:
                return await self.let_pass(payment_id)
            if payment.state in _OVER:
                scene.releasing.add(payment_id)
        return None

    async def let_pass(self, payment_id: str) -> None:
        self.scene.releasing.add(payment_id)
        request = operations_pb2.DismissFraudWarningRequest(
            payment_id=payment_id, reason=f"looked {CANARY}", idempotency_key=self.key()
        )
        await self.ask(Keyed("DismissFraudWarning", request.idempotency_key, request))

    async def refund(self, payment_id: str) -> None:
        """Refunds payments that can only pay an account that the expert no longer has."""
        request = payments_pb2.RefundPaymentRequest(
            payment_id=payment_id, reason="another account", idempotency_key=self.key()
        )
        await self.ask(Keyed("RefundPayment", request.idempotency_key, request))

    async def write_off(self) -> None:
        """Writes off a part of the debtor's debt, or all of another expert's debt."""
        chance, scene = self.chance, self.scene
        is_debtor = chance.random() < 0.5
        amount = money_pb2.Money(minor_units=chance.randint(1, 400)) if is_debtor else None
        request = operations_pb2.WriteOffExpertDebtRequest(
            expert_id=scene.debtor if is_debtor else chance.choice(scene.experts),
            currency_code="USD" if is_debtor else chance.choice(["USD", "EUR", "JPY"]),
            amount=amount,
            reason=f"gone {CANARY}",
            idempotency_key=self.key(),
        )
        await self.ask(Keyed("WriteOffExpertDebt", request.idempotency_key, request))

    async def repay(self) -> None:
        """Resumes a parked repayment of a failed refund."""
        look = operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_PARKED)
        code, body = await self.call("ListOperations", "", look.SerializeToString())
        if code != "OK":
            return
        for operation in operations_pb2.ListOperationsResponse.FromString(body).operations:
            is_refund = operation.kind == operations_pb2.OPERATION_KIND_REFUND
            if is_refund and await self.resume(operation.operation_id):
                self.scene.deeds[REPAID] += 1

    async def resume(self, operation_id: str) -> bool:
        request = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
        code, _ = await self.call("ResumeOperation", "", request.SerializeToString())
        return code == "OK"

    async def settle(self, payment_id: str) -> None:
        """Pays a client outside of Stripe, which refunds nothing of a charge that was lost."""
        request = operations_pb2.SettleClientPayableRequest(
            payment_id=payment_id, reason=f"by bank {CANARY}", idempotency_key=self.key()
        )
        await self.ask(Keyed("SettleClientPayable", request.idempotency_key, request))

    async def replace(self) -> None:
        """Replaces each rejected account, and completes the form of the new one."""
        scene = self.scene
        asked = {keyed.request.expert_id for keyed in self.pending if keyed.rpc == _REPLACE}
        for expert_id, account in list(scene.rejected.items()):
            if expert_id in asked:
                continue
            request = experts_pb2.ReplaceExpertAccountRequest(
                expert_id=expert_id, reason=f"rejected {CANARY}", idempotency_key=self.key()
            )
            if self.chance.random() < 0.5:
                request.former_account_id = account
            await self.ask(Keyed(_REPLACE, request.idempotency_key, request))
        while scene.onboarding:
            account = scene.onboarding.pop()
            await scene.simulator.insist("POST", f"/accounts/{account}/complete_onboarding")

    async def resolve(self) -> bool:
        """Does all that only an operator can do, and completes the forms of new accounts."""
        await self.replace()
        await self.repay()
        # What was not possible under the faults is done now.
        for deed, act in {
            EVIDENCE: self.answer,
            ACCEPTED: self.answer,
            RELEASED: self.release,
            WRITTEN_OFF: self.write_off,
        }.items():
            if not self.scene.deeds[deed]:
                await act()
        return await super().resolve() and not self.scene.rejected

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
        elif keyed.rpc == "DismissFraudWarning":
            deeds[RELEASED] += 1
        elif keyed.rpc == "WriteOffExpertDebt":
            deeds[WRITTEN_OFF] += 1
        elif keyed.rpc == _REPLACE:
            deeds[REPLACED] += 1
            expert = experts_pb2.ReplaceExpertAccountResponse.FromString(body).expert
            self.scene.accounts[expert.expert_id] = expert.stripe_account_id
            self.scene.onboarding.append(expert.stripe_account_id)
            self.scene.rejected.pop(expert.expert_id, None)

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
            # Otherwise it is only staged at Stripe.
            submit=submit,
            idempotency_key=self.key(),
        )
        return Keyed("SubmitEvidence", request.idempotency_key, request)

    def _acceptance(self, dispute_id: str) -> Keyed:
        request = disputes_pb2.AcceptDisputeRequest(
            dispute_id=dispute_id, idempotency_key=self.key()
        )
        return Keyed("AcceptDispute", request.idempotency_key, request)
