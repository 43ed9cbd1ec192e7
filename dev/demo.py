"""`make demo` and `make smoke-stripe`: the same walk, with the simulator or with Stripe itself."""

import os
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
import psycopg2
import stripe

from dev.caller import Interrupted, Mismatch, call_of, expect
from dev.chapters import CHAPTERS, DEADLINE_MARGIN_SECONDS
from dev.forwarding import Forwarder
from dev.scratch import scratch
from dev.settings import (
    SIMULATOR_PUBLISHABLE_KEY,
    SIMULATOR_SECRET_KEY,
    RefusedError,
    StackSettings,
)
from dev.stack import Stack
from dev.story import Story
from dev.stripe_side import SimulatorSide, StripeSide, post
from dev.walk import EXPERT, Target, Walk
from marketplace.payments.channel import connect_sync
from marketplace.payments.errors import refusal_of
from marketplace.payments.v1 import experts_pb2, operations_pb2, payments_pb2

_LOG_LINES = 15
_ONBOARDING_SECONDS = 15 * 60.0

#: Not inherited, so that a walk's stack is independent of a running `make run`.
_NOT_INHERITED = ("DATABASE_URL", "DATA_DIR", "GATEWAY_", "GRPC_", "METRICS_", "STRIPE_SIMULATOR_")

#: The only variables that the demo's processes get from the caller's environment.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_", "TMPDIR", "PYTHON", "VIRTUAL_ENV", "COVERAGE")


class Failed(Exception):
    """The walk failed; the reason has been printed."""


class Ending:
    """Stops a walk between two steps after a signal."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._stack: Stack | None = None

    def ask(self) -> None:
        self._asked.set()
        if self._stack is not None:
            self._stack.ask_to_stop()

    def watch(self, stack: Stack) -> None:
        self._stack = stack

    def check(self) -> None:
        if self._asked.is_set():
            raise Interrupted


def demo(ending: Ending) -> None:
    """Walks all chapters with the simulator. Raises :class:`Failed` at a wrong answer."""
    story = Story()
    began = time.monotonic()
    story.introduce(
        "Escrow, from beginning to end",
        "Grace, the client, buys gigs from Ada, the expert. Each payment is held in escrow until "
        "the gig is done. Then it goes to Ada minus the platform's commission, or back to Grace. "
        "The demo has its own PostgreSQL, service and gateway, on free ports and in a temporary "
        "directory, so it can run beside `make run`. Stripe is simulated: no money moves.",
    )
    with scratch("payments-walk-") as directory:
        told = {**_plain_environment(), "DEADLINE_MARGIN": str(DEADLINE_MARGIN_SECONDS)}
        settings = StackSettings.on_free_ports(directory, environment=told)
        with _stack(settings, story, ending) as stack:
            simulator = SimulatorSide(stack.simulator_url)
            # Ada is paid out when the story says so, not at the simulator's next midnight.
            simulator.switch(payout_interval="manual")
            side = StripeSide(
                SIMULATOR_SECRET_KEY,
                publishable_key=SIMULATOR_PUBLISHABLE_KEY,
                api_base=stack.simulator_url,
            )
            with _connect(stack) as channel:
                target = Target(
                    channel=channel,
                    stripe=side,
                    onboard=onboard_by_form,
                    alone=True,
                    patience_seconds=20,
                    simulator=simulator,
                    check_interrupted=ending.check,
                )
                walk = Walk(target, story)
                walk.run(CHAPTERS)
                _explain(stack, walk)
    story.verdict(
        f"All {walk.payments} payments ended as expected, and our books agree with Stripe's "
        f"({time.monotonic() - began:.0f} s).",
        good=True,
    )


def smoke_stripe(ending: Ending) -> None:
    """Walks with Stripe's test mode, with the keys of the environment."""
    given = StackSettings.from_environment().environment
    _refuse_without_keys(given)
    story = Story()
    base = given.get("STRIPE_API_BASE")
    story.introduce(
        "The walk against Stripe",
        f"The demo's payments at {base or 'Stripe itself, in test mode'}, except those that need "
        "the simulator. Cards are confirmed "
        "with your secret key. Stripe cannot reach this machine, so the demo reads Stripe's events "
        "from its list and sends them to the gateway, as `stripe listen` does.",
    )
    hooks = {
        name: f"whsec_{secrets.token_hex(16)}"
        for name in ("STRIPE_WEBHOOK_SECRET", "STRIPE_CONNECT_WEBHOOK_SECRET")
    }
    kept = {name: value for name, value in given.items() if not name.startswith(_NOT_INHERITED)}
    with scratch("payments-walk-") as directory:
        settings = StackSettings.on_free_ports(directory, environment={**kept, **hooks})
        side = StripeSide(given["STRIPE_SECRET_KEY"], api_base=base)
        with _stack(settings, story, ending) as stack:
            forwarder = Forwarder(
                side,
                stack.gateway_url,
                platform_secret=hooks["STRIPE_WEBHOOK_SECRET"],
                connect_secret=hooks["STRIPE_CONNECT_WEBHOOK_SECRET"],
                tell=story.note,
            )

            def onboard(walk: Walk) -> None:
                account = given.get("SMOKE_EXPERT_ACCOUNT", "")
                if account:
                    _adopt(walk, stack.database_url, side.account(account))
                else:
                    account = _onboard_by_hand(walk)
                forwarder.listen_to(account)

            _examine(stack, story)
            with _connect(stack) as channel, forwarder:
                target = Target(
                    channel=channel,
                    stripe=side,
                    onboard=onboard,
                    alone=False,
                    patience_seconds=90,
                    check_interrupted=ending.check,
                )
                Walk(target, story).run(CHAPTERS)
    story.verdict(
        f"Stripe agrees to the minor unit; {forwarder.forwarded} of its events were forwarded.",
        good=True,
    )


def _examine(stack: Stack, story: Story) -> None:
    """Says what `doctor` finds. The walk brings its own webhooks, so it goes on in any case."""
    done = subprocess.run(
        [sys.executable, "-m", "payment_service", "doctor", "--no-round-trip"],
        env={**os.environ, **stack.services[0].environment},
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        story.note(line)


def _explain(stack: Stack, walk: Walk) -> None:
    """Prints the story of the payment to which most happened, as support reads it."""
    request = payments_pb2.ListPaymentsRequest(user_id=EXPERT, page_size=200)
    listed = walk.caller.ask(walk.caller.payments.ListPayments, request).payments
    told = max(listed, key=lambda payment: payment.version)
    console = walk.story.console
    walk.story.chapter("A client asks: where is my money?")
    walk.story.note(f"$ python -m payment_service explain {told.payment_id}")
    coloured = {"FORCE_COLOR": "1"} if console.is_terminal else {}
    done = subprocess.run(
        [sys.executable, "-m", "payment_service", "explain", told.payment_id],
        env={**stack.services[0].environment, "COLUMNS": str(console.width), **coloured},
        capture_output=True,
        text=True,
        check=False,
    )
    expect("the status of explain", 0, done.returncode)
    expect("whether it is that payment", True, told.payment_id in done.stdout)
    console.out(done.stdout, end="", highlight=False)


def _refuse_without_keys(given: Mapping[str, str]) -> None:
    missing = [n for n in ("STRIPE_SECRET_KEY", "STRIPE_PUBLISHABLE_KEY") if n not in given]
    if missing:
        raise RefusedError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: make "
            "smoke-stripe walks through Stripe's own test mode and needs your test keys (sk_test_… "
            "and pk_test_…) in the environment or in .env. SMOKE_EXPERT_ACCOUNT (acct_…) may name "
            "a connected account that can receive transfers; without it you are asked to fill in "
            "Stripe's onboarding form. make demo needs nothing"
        )
    if not given["STRIPE_SECRET_KEY"].startswith(("sk_test_", "rk_test_")):
        raise RefusedError(
            "STRIPE_SECRET_KEY is not a test key: make smoke-stripe pays with test cards, so give "
            "it one that begins with sk_test_ or rk_test_"
        )


def _plain_environment() -> dict[str, str]:
    """Returns the environment without settings, so that the demo is the same everywhere.

    Only AUTH=jwt is taken over: the same walk, with keys and tokens of its own.
    """
    jwt = {"AUTH": "jwt"} if os.environ.get("AUTH", "").lower() == "jwt" else {}
    kept = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
    return kept | jwt


def _connect(stack: Stack) -> grpc.Channel:
    return connect_sync(
        *stack.settings.grpc_addresses, tls=stack.access.tls, token=stack.access.token
    )


# How the expert becomes able to be paid


def _create_expert(walk: Walk) -> experts_pb2.CreateExpertAccountResponse:
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id=EXPERT,
        name="Ada Lovelace",
        email="ada@example.com",
        country="US",
        commission_basis_points=1_000,
    )
    try:
        answer, seconds = walk.caller.timed(walk.caller.experts.CreateExpertAccount, request)
    except grpc.RpcError as error:
        if refusal_of(error).reason == "PROCESSOR_MISCONFIGURED":
            _say_what_stripe_lacks(walk)
        raise
    status = experts_pb2.ExpertStatus.Name(answer.expert.status).removeprefix("EXPERT_STATUS_")
    walk.story.step(
        "user service",
        "CreateExpertAccount",
        status,
        answer.expert.stripe_account_id,
        "and a link to Stripe's form",
        seconds=seconds,
    )
    return answer


def _say_what_stripe_lacks(walk: Walk) -> None:
    """Shows Stripe's own text, which says what the platform's Stripe account needs first."""
    listed = walk.caller.ask(
        walk.caller.operations.ListOperations, operations_pb2.ListOperationsRequest()
    )
    for operation in listed.operations:
        walk.story.note(f"Stripe creates no account for this platform: {operation.last_error}")
    walk.story.note("docs/runbook/accounts.md has the steps before the first expert.")


def onboard_by_form(walk: Walk) -> None:
    """Submits the simulator's form; Stripe's redirect leads to the gateway's landing page."""
    answer = _create_expert(walk)
    began = time.perf_counter()
    status, page = post(answer.onboarding_url)
    expect("the status of the landing page", 200, status)
    expect("whether the landing page says so", True, "You can be paid" in page)
    walk.story.step(
        "expert",
        "submits Stripe's form",
        "back at the gateway: “You can be paid”",
        seconds=time.perf_counter() - began,
    )


def _onboard_by_hand(walk: Walk) -> str:
    answer = _create_expert(walk)
    walk.story.note("Open this link, fill in the form with Stripe's test data, and come back here:")
    walk.story.console.print(answer.onboarding_url, style="bold", soft_wrap=True)
    request = experts_pb2.GetExpertRequest(expert_id=EXPERT)

    def ready() -> bool:
        shown = walk.caller.ask(walk.caller.experts.GetExpert, request).expert
        return shown.status == experts_pb2.EXPERT_STATUS_READY

    walk.caller.poll(ready, _ONBOARDING_SECONDS)
    return answer.expert.stripe_account_id


def _adopt(walk: Walk, database_url: str, account: stripe.Account) -> None:
    """Writes an account that exists already into the walk's own, empty database."""
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO experts (expert_id, name, email, country, business_type,"
            " commission_basis_points, stripe_account_id, status, create_time, update_time)"
            " VALUES (%s, 'Ada Lovelace', %s, %s, 'individual', 1000, %s, 'ONBOARDING', now(),"
            " now())",
            (EXPERT, account.email or "ada@example.com", account.country or "US", account.id),
        )
    connection.close()
    walk.story.step("operator", "SMOKE_EXPERT_ACCOUNT", f"{account.id} is Ada's account")


# The stack around a walk


@contextmanager
def _stack(settings: StackSettings, story: Story, ending: Ending) -> Iterator[Stack]:
    """Yields a running stack. Prints a failure in the block with the processes' last lines."""
    log: deque[str] = deque(maxlen=_LOG_LINES)

    def keep(name: str, line: str) -> None:
        log.append(f"{name}: {line}")

    began = time.monotonic()
    stack = Stack(settings, sink=keep, progress=lambda text: story.note(f"  {text} ..."))
    ending.watch(stack)
    with stack:
        story.note(
            f"  ready after {time.monotonic() - began:.1f} s: gRPC {stack.grpc_target}, gateway "
            f"{stack.gateway_url}"
            + (f", Stripe simulator {stack.simulator_url}" if settings.simulated else "")
        )
        try:
            yield stack
        except Interrupted:
            story.verdict("stopped before the end", good=False)
            raise Failed from None
        except (Mismatch, grpc.RpcError, stripe.StripeError, psycopg2.Error) as fault:
            _tell(story, fault, log)
            raise Failed from fault


def _tell(story: Story, fault: Exception, log: deque[str]) -> None:
    if isinstance(fault, Mismatch):
        story.fails(str(fault))
    elif isinstance(fault, grpc.RpcError):
        call = call_of(fault)
        said = f"{call.code().name} {refusal_of(fault).reason}: {call.details()}"
        story.fails(f"the service answered {said}")
    else:
        story.fails(f"{type(fault).__name__}: {fault}")
    story.note("The last lines of the processes:")
    for line in list(log):
        story.note(f"  {line}")
    story.verdict("An answer was not as expected: see the line marked ✗ above.", good=False)
