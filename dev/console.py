"""What a person sees of a running stack: one stream of lines, each marked by who wrote it."""

import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dev.settings import ROOT
from dev.stack import Stack

_COLOURS = ["cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green"]
_NAME_WIDTH = 10
_PACKAGE = "marketplace.payments.v1"


class Lines:
    """Prints lines as they come; colours on a terminal, plain text everywhere else."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._colours: dict[str, str] = {}

    def child(self, name: str, line: str) -> None:
        """A child's line, with whatever colours it has brought itself."""
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        readable = _readable(line) if self.console.is_terminal else line
        self._print(name, colour, Text.from_ansi(readable))

    def step(self, text: str) -> None:
        self._print("stack", "bold", Text(text, style="bold"))

    def _print(self, name: str, style: str, line: Text) -> None:
        self.console.print(Text.assemble((f"{name:<{_NAME_WIDTH}} | ", style), line))

    def say(self, text: str = "") -> None:
        """A line as it is, fit for copying."""
        self.console.print(Text(text))

    def fail(self, text: str) -> None:
        self.console.print(Text(text, style="bold red"))


def _readable(line: str) -> str:
    """A structured log line as a person reads it; whatever else it is, as it is."""
    if not line.startswith("{"):
        return line
    try:
        entry = json.loads(line)
        event, level = entry.pop("event"), entry.pop("level", "info")
    except (ValueError, KeyError, RecursionError):
        return line
    entry.pop("timestamp", None)
    facts = [f"{name}={value}" for name, value in entry.items() if value not in ("", None, [])]
    return "  ".join([*([level.upper()] if level != "info" else []), str(event), *facts])


def summarize(lines: Lines, stack: Stack, seconds: float) -> None:
    """What listens where, and the commands to paste."""
    lines.say()
    lines.say(f"Ready after {seconds:.1f} s. Ctrl-C stops everything.")
    lines.say()
    for what, where in _places(stack):
        lines.say(f"  {what:<20} {where}")
    lines.say()
    for title, command in _invitations(stack):
        lines.say(f"  {title}")
        lines.console.print(Text(f"    {command}", style="bold"))
        lines.say()


def _places(stack: Stack) -> list[tuple[str, str]]:
    settings = stack.settings
    embedded = stack.postgres is not None
    # The password stands in a file of one's own, and so need not stand in every log.
    database = stack.database_url.rpartition("@")[2]
    password = _short(settings.data_dir / "postgres" / "password")
    places = [
        ("gRPC (reflection)", ", ".join(settings.grpc_addresses)),
        ("metrics", ", ".join(stack.metrics_urls)),
        ("gateway", f"{stack.gateway_url}/health"),
        (
            "PostgreSQL",
            f"{database} (user payments, password in {password})" if embedded else database,
        ),
    ]
    if settings.simulated:
        places.append(("Stripe", f"{stack.simulator_url} (the simulator: no money moves)"))
        places.append(("pay page", f"{stack.simulator_url}/_pages/pay"))
    else:
        key = settings.environment["STRIPE_SECRET_KEY"]
        places.append(("Stripe", f"with your own key {key[:8]}..."))
        places.append(("webhooks", f"stripe listen --forward-to {stack.gateway_url}/api/v1/..."))
    places.append(("data", _short(settings.data_dir)))
    return places


def _invitations(stack: Stack) -> list[tuple[str, str]]:
    pay_page = (
        f"on {stack.simulator_url}/_pages/pay"
        if stack.settings.simulated
        else "with Stripe.js or the Stripe CLI"
    )
    return [
        (
            "An expert (open the onboarding_url that it answers with, and finish the form):",
            _call(
                stack,
                "ExpertService/CreateExpertAccount",
                '{"expert_id": "expert-1", "name": "Ada Lovelace", "email": "ada@example.com"}',
            ),
        ),
        (
            f"A payment to the expert (pay its client_secret {pay_page}):",
            _call(
                stack,
                "PaymentService/InitiatePayment",
                '{"client_id": "client-1", "expert_id": "expert-1", "gig_id": "gig-1", "amount": '
                # Refusals are answered again under their key, so each try has a key of its own.
                '{"minor_units": 10000, "currency_code": "USD"}, '
                '"idempotency_key": "\'"$(date +%s)"\'"}',
            ),
        ),
        (
            "How it stands, and everything else that there is to call:",
            _call(stack, "PaymentService/ListPayments", '{"user_id": "client-1"}'),
        ),
        ("Everything that happens, as it happens:", _call(stack, "EventService/WatchEvents", "{}")),
    ]


def _call(stack: Stack, method: str, request: str) -> str:
    """grpcurl where its package carries the program, else buf, which comes for every system."""
    tools = ROOT / ".venv" / "bin"
    if shutil.which("grpcurl", path=str(tools)):
        return (
            f"{_short(tools / 'grpcurl')} -plaintext -d '{request}' "
            f"{stack.grpc_target} {_PACKAGE}.{method}"
        )
    return (
        f"{_short(tools / 'buf')} curl --protocol grpc --http2-prior-knowledge -d '{request}' "
        f"http://{stack.grpc_target}/{_PACKAGE}.{method}"
    )


def _short(path: Path) -> str:
    """As one would type it from where one stands."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
