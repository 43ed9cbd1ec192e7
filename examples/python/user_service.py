"""The payments of a user service: users become experts, see what Stripe asks for, and earn.

    python user_service.py become ann --name Ann --email ann@example.com
    python user_service.py status ann
    python user_service.py form ann         # another link to Stripe's form
    python user_service.py dashboard ann
    python user_service.py history ann

Links to Stripe work once and for five minutes: make one when a person asks for it, redirect the
browser to it at once, and store none.
"""

import argparse
import asyncio
import os
import sys
from datetime import UTC
from pathlib import Path

import grpc

from marketplace.payments.channel import connect
from marketplace.payments.credentials import Tls, Token
from marketplace.payments.errors import refusal_of, until_answered
from marketplace.payments.v1 import (
    experts_pb2,
    experts_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
)


def open_channel() -> grpc.aio.Channel:
    """Opens one channel for the whole process, by the settings of the deployment."""
    ca, token = os.environ.get("PAYMENTS_CA_FILE"), os.environ.get("PAYMENTS_TOKEN_FILE")
    return connect(
        *os.environ.get("PAYMENTS_ADDRESS", "127.0.0.1:50051").split(","),
        tls=Tls(Path(ca)) if ca else None,
        token=Token(Path(token)) if token else None,
    )


class UserService:
    """What a user service asks of the payment service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._experts: experts_pb2_grpc.ExpertServiceAsyncStub
        self._experts = experts_pb2_grpc.ExpertServiceStub(channel)
        self._payments: payments_pb2_grpc.PaymentServiceAsyncStub
        self._payments = payments_pb2_grpc.PaymentServiceStub(channel)

    async def become_expert(
        self, expert_id: str, name: str, email: str, country: str
    ) -> experts_pb2.CreateExpertAccountResponse:
        """Creates the expert's account at Stripe. `expert_id` makes the call repeatable."""
        request = experts_pb2.CreateExpertAccountRequest(
            expert_id=expert_id, name=name, email=email, country=country
        )
        return await until_answered(self._experts.CreateExpertAccount, request)

    async def expert(self, expert_id: str) -> experts_pb2.Expert:
        """Reads the expert. Only READY means that payments can be initiated."""
        request = experts_pb2.GetExpertRequest(expert_id=expert_id)
        return (await self._experts.GetExpert(request)).expert

    async def form_link(self, expert_id: str) -> str:
        """Returns another link to Stripe's form, for an expert who has not finished it."""
        # Not repeated after a lost answer, because each call makes a link: the person asks again.
        request = experts_pb2.RefreshOnboardingRequest(expert_id=expert_id)
        return (await self._experts.RefreshOnboarding(request)).onboarding_url

    async def dashboard_link(self, expert_id: str) -> str:
        """Returns a link to the expert's own pages at Stripe."""
        request = experts_pb2.CreateDashboardLinkRequest(expert_id=expert_id)
        return (await self._experts.CreateDashboardLink(request)).url

    async def history(self, user_id: str) -> list[payments_pb2.Payment]:
        """Reads all payments of a user, page by page, newest first."""
        found: list[payments_pb2.Payment] = []
        request = payments_pb2.ListPaymentsRequest(user_id=user_id, page_size=100)
        while True:
            page = await self._payments.ListPayments(request)
            found += page.payments
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def described(expert: experts_pb2.Expert) -> str:
    """Returns what the expert's page shows. Stripe's form says in words what is missing."""
    status = experts_pb2.ExpertStatus.Name(expert.status).removeprefix("EXPERT_STATUS_")
    lines = [f"{status}, commission {expert.commission_basis_points / 100:g} %"]
    if expert.requirements_due:
        lines.append(f"Stripe needs {len(expert.requirements_due)} more details now")
    if expert.future_requirements:
        by = expert.future_requirements_due_time.ToDatetime(UTC)
        lines.append(f"Stripe needs {len(expert.future_requirements)} details by {by:%Y-%m-%d}")
    if expert.status == experts_pb2.EXPERT_STATUS_RESTRICTED and not expert.requirements_due:
        lines.append("Stripe has paused the account and asks for nothing: wait")
    return "\n".join(lines)


def line_of(payment: payments_pb2.Payment, user_id: str) -> str:
    """Returns a payment as the user sees it: what was paid, or what is earned."""
    state = payments_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_")
    earns = payment.expert_id == user_id
    amount = payment.net_expert_amount if earns else payment.amount
    word = "earned" if earns else "asked to pay"
    return f"{payment.gig_id}: {state}, {word} {amount.minor_units} {amount.currency_code}"


async def main() -> str:
    """Runs one command, and returns why it failed."""
    parser = argparse.ArgumentParser()
    commands = ["become", "status", "form", "dashboard", "history"]
    parser.add_argument("command", choices=commands)
    parser.add_argument("user")
    parser.add_argument("--name", default="Ann")
    parser.add_argument("--email", default="ann@example.com")
    parser.add_argument("--country", default="US")
    given = parser.parse_args()
    async with open_channel() as channel:
        service = UserService(channel)
        try:
            if given.command == "become":
                made = await service.become_expert(
                    given.user, given.name, given.email, given.country
                )
                print(made.onboarding_url or described(made.expert))
            elif given.command == "status":
                print(described(await service.expert(given.user)))
            elif given.command == "form":
                print(await service.form_link(given.user))
            elif given.command == "dashboard":
                print(await service.dashboard_link(given.user))
            else:
                for payment in await service.history(given.user):
                    print(line_of(payment, given.user))
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            return f"{refusal.reason or refusal.code.name}: {refusal.sentence}"
    return ""


if __name__ == "__main__":
    sys.exit(asyncio.run(main()) or 0)
