"""A request of every RPC that is valid, except for what a test puts into it."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from marketplace.payments.v1 import (
    disputes_pb2,
    events_pb2,
    experts_pb2,
    explain_pb2,
    ledger_pb2,
    onboarding_pb2,
    operations_pb2,
    payments_pb2,
    report_pb2,
)
from tests.support.contract import METHODS
from tests.support.requests import capture_request, new_key, new_name, refund_request
from tests.support.stripe import ingestion, new_event
from tests.support.world import World


async def valid_requests(world: World) -> dict[str, Message]:
    """Returns a request by the name of its RPC. Some name what does not exist."""
    expert = await world.expert()
    held = await world.escrowed(expert)
    paid = await world.captured(expert)
    event = new_event("payout.paid", {"object": "payout", "id": "po_1"})
    expert_id: dict[str, Any] = {"expert_id": expert}
    payment_id: dict[str, Any] = {"payment_id": held.payment_id}
    keyed: dict[str, Any] = {"reason": "asked for", "idempotency_key": new_key()}
    evidence = disputes_pb2.Evidence(uncategorized_text="It was delivered.")
    requests: list[Message] = [
        world.initiation(expert),
        capture_request(held.payment_id, 1_000, final=True),
        refund_request(paid.payment_id, 1_000),
        payments_pb2.GetPaymentRequest(**payment_id),
        payments_pb2.GetPaymentStatusRequest(**payment_id),
        payments_pb2.ListPaymentsRequest(user_id=expert),
        experts_pb2.CreateExpertAccountRequest(
            expert_id=new_name("new"), name="Ann", email="ann@example.com"
        ),
        experts_pb2.ReplaceExpertAccountRequest(**expert_id, **keyed),
        experts_pb2.GetExpertRequest(**expert_id),
        experts_pb2.ListExpertsRequest(statuses=[experts_pb2.EXPERT_STATUS_READY]),
        experts_pb2.CreateDashboardLinkRequest(**expert_id),
        experts_pb2.RefreshOnboardingRequest(**expert_id),
        experts_pb2.SetCommissionRequest(**expert_id, commission_basis_points=1_000),
        experts_pb2.ListPayoutsRequest(**expert_id),
        experts_pb2.GetExpertBalanceRequest(**expert_id),
        ingestion(event),
        events_pb2.ListPaymentEventsRequest(**payment_id),
        events_pb2.WatchEventsRequest(),
        ledger_pb2.ListPostingsRequest(**payment_id),
        ledger_pb2.ListBalancesRequest(account_prefix="escrow:"),
        report_pb2.GetMonthlyReportRequest(month="2026-11"),
        report_pb2.GetExpertStatementRequest(**expert_id, month="2026-11"),
        disputes_pb2.ListDisputesRequest(**payment_id),
        disputes_pb2.GetDisputeRequest(dispute_id="dp_1"),
        disputes_pb2.SubmitEvidenceRequest(
            dispute_id="dp_1", evidence=evidence, idempotency_key=new_key()
        ),
        disputes_pb2.AcceptDisputeRequest(dispute_id="dp_1", idempotency_key=new_key()),
        onboarding_pb2.GetOnboardingStatusRequest(onboarding_token="A" * 43),
        onboarding_pb2.CreateOnboardingLinkRequest(onboarding_token="A" * 43),
        operations_pb2.ListOperationsRequest(**payment_id),
        explain_pb2.ExplainPaymentRequest(id=payment_id["payment_id"]),
        operations_pb2.ResumeOperationRequest(operation_id="op_" + "0" * 32),
        operations_pb2.AbandonOperationRequest(operation_id="op_" + "0" * 32, reason="asked for"),
        operations_pb2.WriteOffExpertDebtRequest(**expert_id, currency_code="USD", **keyed),
        operations_pb2.DismissFraudWarningRequest(**payment_id, **keyed),
        operations_pb2.SettleClientPayableRequest(**payment_id, **keyed),
        operations_pb2.ListWebhookEventsRequest(state=operations_pb2.WEBHOOK_EVENT_STATE_APPLIED),
        operations_pb2.RetryWebhookEventRequest(event_id="evt_nothing"),
        operations_pb2.RunReconciliationRequest(**payment_id),
        operations_pb2.ListDiscrepanciesRequest(**payment_id),
        operations_pb2.ResolveDiscrepancyRequest(discrepancy_id="disc_1", reason="asked for"),
        operations_pb2.EraseUserRequest(
            kind=operations_pb2.USER_KIND_CLIENT, user_id="nobody", reason="asked for"
        ),
    ]
    found = {type(one).DESCRIPTOR.name.removesuffix("Request"): one for one in requests}
    for method in METHODS:  # An RPC that is added later.
        found.setdefault(method.name, GetMessageClass(method.input_type)())
    return found
