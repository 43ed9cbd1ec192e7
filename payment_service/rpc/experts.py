"""ExpertService: accounts, onboarding links, commission and payouts of experts."""

from __future__ import annotations

from contextlib import suppress

from marketplace.payments.v1 import experts_pb2, experts_pb2_grpc
from payment_service.application import get_expert, onboarding, set_commission
from payment_service.application.app import App
from payment_service.application.create_expert_account import (
    CreateExpertAccount,
    create_expert_account,
)
from payment_service.application.get_expert_balance import get_expert_balance
from payment_service.application.list_payouts import list_payouts
from payment_service.application.replace_expert_account import (
    ReplaceExpertAccount,
    replace_expert_account,
)
from payment_service.domain.errors import Precondition, Unavailable
from payment_service.domain.experts import ExpertStatus
from payment_service.domain.payouts import PayoutState
from payment_service.rpc import pagination
from payment_service.rpc.call_context import CallRegistry, Context, acting_for, cause_of
from payment_service.rpc.fields import RequestFields, fingerprint
from payment_service.rpc.messages.experts import (
    business_type_of,
    expert_balance_message,
    expert_message,
    expert_status_of,
    payout_message,
    payout_state_of,
)


class ExpertServicer(experts_pb2_grpc.ExpertServiceServicer):
    def __init__(self, app: App, calls: CallRegistry) -> None:
        self._app = app
        self._calls = calls

    async def CreateExpertAccount(
        self, request: experts_pb2.CreateExpertAccountRequest, context: Context
    ) -> experts_pb2.CreateExpertAccountResponse:
        fields, policy = RequestFields(), self._app.policy
        rate = (
            fields.basis_points("commission_basis_points", request.commission_basis_points)
            if request.HasField("commission_basis_points")
            else None
        )
        fields.enum("business_type", request.business_type, experts_pb2.BusinessType)
        expert_id = fields.identifier("expert_id", request.expert_id)
        name = fields.text("name", request.name, most=200, required=True)
        email = fields.email("email", request.email)
        country = fields.country("country", request.country, policy.default_country)
        fields.check()
        command = CreateExpertAccount(
            cause=cause_of(context, "CreateExpertAccount"),
            expert_id=expert_id,
            name=name,
            email=email,
            country=country,
            business_type=business_type_of(request.business_type),
            commission_basis_points=rate,
            continue_url=onboarding.check_continue_url(policy, request.continue_url),
        )
        expert, url = await self._calls.run(create_expert_account(self._app, command))
        return experts_pb2.CreateExpertAccountResponse(
            expert=expert_message(expert), onboarding_url=url
        )

    async def ReplaceExpertAccount(
        self, request: experts_pb2.ReplaceExpertAccountRequest, context: Context
    ) -> experts_pb2.ReplaceExpertAccountResponse:
        fields, policy = RequestFields(), self._app.policy
        former = fields.text("former_account_id", request.former_account_id, most=255)
        if request.replace_working_account and not former:
            fields.fault("former_account_id", "is required with replace_working_account")
        kind = fields.enum("business_type", request.business_type, experts_pb2.BusinessType)
        country = fields.country("country", request.country, "") if request.country else ""
        email = fields.email("email", request.email) if request.email else ""
        command = ReplaceExpertAccount(
            cause=cause_of(context, "ReplaceExpertAccount"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request, without=frozenset({"idempotency_key", "continue_url"})),
            expert_id=fields.identifier("expert_id", request.expert_id),
            reason=fields.text("reason", request.reason, required=True),
            former_account_id=former,
            replace_working_account=request.replace_working_account,
            country=country,
            email=email,
            business_type=business_type_of(kind) if kind else None,
        )
        fields.check()
        continue_url = onboarding.check_continue_url(policy, request.continue_url)
        cause = command.cause
        body, expert = await self._calls.run(replace_expert_account(self._app, command))
        answer = experts_pb2.ReplaceExpertAccountResponse.FromString(body)
        # Stripe creates the link anew for each answer. A lost account has none.
        is_present = answer.expert.stripe_account_id == expert.account.stripe_account_id
        if is_present and not expert.is_lost:
            # Without Stripe the answer has no link, and so if the account is lost since.
            with suppress(Unavailable, Precondition):
                answer.onboarding_url = await onboarding.mint_onboarding_link(
                    self._app, expert, continue_url, cause
                )
        return answer

    async def GetExpert(
        self, request: experts_pb2.GetExpertRequest, context: Context
    ) -> experts_pb2.GetExpertResponse:
        expert_id = _expert_id(request.expert_id)
        expert = await get_expert.get_expert(self._app, expert_id, cause_of(context, "GetExpert"))
        return experts_pb2.GetExpertResponse(expert=expert_message(expert))

    async def ListExperts(
        self, request: experts_pb2.ListExpertsRequest, context: Context
    ) -> experts_pb2.ListExpertsResponse:
        fields = RequestFields()
        page_size = fields.page_size(request.page_size)
        statuses = [
            _expert_status(fields, value) for value in fields.listed("statuses", request.statuses)
        ]
        due_until = fields.time("max_requirements_due_time", request)
        fields.check()
        wanted = sorted({status for status in statuses if status is not None})
        filters = " ".join([*wanted, due_until.isoformat() if due_until else ""])
        keyset = pagination.read_page_token("experts", filters, request.page_token, 1)
        after = keyset[0] if keyset else ""
        found = await self._app.database.read(
            lambda reader: reader.experts(wanted, due_until, after, page_size + 1)
        )
        page, token = pagination.page_of(
            found, page_size, "experts", filters, lambda expert: [expert.expert_id]
        )
        return experts_pb2.ListExpertsResponse(
            experts=[expert_message(expert) for expert in page], next_page_token=token
        )

    async def CreateDashboardLink(
        self, request: experts_pb2.CreateDashboardLinkRequest, context: Context
    ) -> experts_pb2.CreateDashboardLinkResponse:
        url = await onboarding.create_dashboard_link(
            self._app, _expert_id(request.expert_id), cause_of(context, "CreateDashboardLink")
        )
        return experts_pb2.CreateDashboardLinkResponse(url=url)

    async def RefreshOnboarding(
        self, request: experts_pb2.RefreshOnboardingRequest, context: Context
    ) -> experts_pb2.RefreshOnboardingResponse:
        expert_id = _expert_id(request.expert_id)
        continue_url = onboarding.check_continue_url(self._app.policy, request.continue_url)
        cause = cause_of(context, "RefreshOnboarding")
        url = await onboarding.refresh_onboarding(self._app, expert_id, continue_url, cause)
        return experts_pb2.RefreshOnboardingResponse(onboarding_url=url)

    async def SetCommission(
        self, request: experts_pb2.SetCommissionRequest, context: Context
    ) -> experts_pb2.SetCommissionResponse:
        fields = RequestFields()
        expert_id = fields.identifier("expert_id", request.expert_id)
        rate = fields.basis_points("commission_basis_points", request.commission_basis_points)
        if not request.HasField("commission_basis_points"):
            fields.fault("commission_basis_points", "is required")
        fields.check()
        expert = await self._calls.run(
            set_commission.set_commission(
                self._app, expert_id, rate, cause_of(context, "SetCommission")
            )
        )
        return experts_pb2.SetCommissionResponse(expert=expert_message(expert))

    async def ListPayouts(
        self, request: experts_pb2.ListPayoutsRequest, context: Context
    ) -> experts_pb2.ListPayoutsResponse:
        fields = RequestFields()
        expert_id = fields.identifier("expert_id", request.expert_id)
        page_size = fields.page_size(request.page_size)
        states = [_payout_state(fields, value) for value in fields.listed("states", request.states)]
        fields.check()
        wanted = [state for state in states if state is not None]
        filters = " ".join([expert_id, *sorted(wanted)])
        keyset = pagination.read_page_token("payouts", filters, request.page_token, 2)
        before = (pagination.token_time(keyset[0]), keyset[1]) if keyset else None
        found = await list_payouts(
            self._app, expert_id, acting_for(), wanted, before, page_size + 1
        )
        page, token = pagination.page_of(
            found,
            page_size,
            "payouts",
            filters,
            lambda payout: [payout.create_time.isoformat(), payout.payout_id],
        )
        return experts_pb2.ListPayoutsResponse(
            payouts=[payout_message(payout) for payout in page], next_page_token=token
        )

    async def GetExpertBalance(
        self, request: experts_pb2.GetExpertBalanceRequest, context: Context
    ) -> experts_pb2.GetExpertBalanceResponse:
        balances = await get_expert_balance(
            self._app, _expert_id(request.expert_id), cause_of(context, "GetExpertBalance")
        )
        return experts_pb2.GetExpertBalanceResponse(
            balances=[expert_balance_message(balance) for balance in balances]
        )


def _expert_id(value: str) -> str:
    fields = RequestFields()
    fields.identifier("expert_id", value)
    fields.check()
    return value


def _expert_status(fields: RequestFields, value: int) -> ExpertStatus | None:
    fields.enum("statuses", value, experts_pb2.ExpertStatus)
    if value not in experts_pb2.ExpertStatus.values():
        return None
    if value == experts_pb2.EXPERT_STATUS_UNSPECIFIED:
        fields.fault("statuses", "must not hold UNSPECIFIED")
        return None
    return expert_status_of(value)


def _payout_state(fields: RequestFields, value: int) -> PayoutState | None:
    fields.enum("states", value, experts_pb2.PayoutState)
    if value not in experts_pb2.PayoutState.values():
        return None
    if value == experts_pb2.PAYOUT_STATE_UNSPECIFIED:
        fields.fault("states", "must not hold UNSPECIFIED")
        return None
    return payout_state_of(value)
