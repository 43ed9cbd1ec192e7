"""OnboardingService: the links of the landing pages."""

from __future__ import annotations

from marketplace.payments.v1 import onboarding_pb2, onboarding_pb2_grpc
from payment_service.application import onboarding
from payment_service.application.app import App
from payment_service.rpc.call_context import Context, cause_of
from payment_service.rpc.fields import RequestFields
from payment_service.rpc.messages.common import time_message
from payment_service.rpc.messages.experts import expert_status_value


class OnboardingServicer(onboarding_pb2_grpc.OnboardingServiceServicer):
    def __init__(self, app: App) -> None:
        self._app = app

    async def GetOnboardingStatus(
        self, request: onboarding_pb2.GetOnboardingStatusRequest, context: Context
    ) -> onboarding_pb2.GetOnboardingStatusResponse:
        expert, continue_url = await onboarding.get_onboarding_status(
            self._app, _token(request.onboarding_token), cause_of(context, "GetOnboardingStatus")
        )
        account = expert.account
        return onboarding_pb2.GetOnboardingStatusResponse(
            status=expert_status_value(expert.status),
            requirements_due_count=len(account.requirements_due),
            continue_url=continue_url,
            requirements_due_time=time_message(account.requirements_due_time),
            future_requirements_count=len(account.future_requirements),
            future_requirements_due_time=time_message(account.future_requirements_due_time),
        )

    async def CreateOnboardingLink(
        self, request: onboarding_pb2.CreateOnboardingLinkRequest, context: Context
    ) -> onboarding_pb2.CreateOnboardingLinkResponse:
        url = await onboarding.create_onboarding_link(
            self._app, _token(request.onboarding_token), cause_of(context, "CreateOnboardingLink")
        )
        return onboarding_pb2.CreateOnboardingLinkResponse(onboarding_url=url)


def _token(value: str) -> str:
    fields = RequestFields()
    fields.text("onboarding_token", value, most=128, required=True)
    fields.check()
    return value
