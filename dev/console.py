"""What a person sees of a running stack: one stream of lines, and a banner with the next steps."""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from dev import loglines
from dev.settings import ROOT, StackSettings
from dev.stack import ChildFailedError, Stack

_COLOURS = {"service": "cyan", "gateway": "green", "simulator": "magenta", "migrate": "blue"}
_NAME_WIDTH = 10
_PLACE_WIDTH = 12
_LAST_LINES = 10
_PACKAGE = "marketplace.payments.v1"

#: The file is started anew when it is larger than this; the one before is kept beside it.
_LOG_BYTES = 20_000_000


class Lines:
    """Prints lines as they come; colours on a terminal (unless NO_COLOR is set), else plain text.

    Every line of the processes is also written to a file, complete and as it was.
    """

    def __init__(
        self, *, verbose: bool = False, as_json: bool = False, log_file: Path | None = None
    ) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.as_json = as_json
        self._verbose = verbose
        self._log_file = log_file
        self._file: TextIO | None = None
        self._file_lock = threading.Lock()  # each process has a thread that reads its lines

    @classmethod
    def for_run(cls, settings: StackSettings) -> "Lines":
        """Returns the lines that the settings ask for."""
        return cls(
            verbose=is_verbose(settings.environment),
            as_json=wants_json(settings.environment),
            log_file=settings.data_dir / "logs" / "run.log",
        )

    def child(self, name: str, line: str) -> None:
        """Prints a line of a process, unless a person needs it only on request."""
        self._keep(name, line)
        if self.as_json:
            self.say(_with_process(name, line))
            return
        parsed = loglines.parse(line)
        if self._verbose or not parsed.minor:
            self._print(name, parsed)

    def step(self, text: str) -> None:
        """Prints what the stack itself does."""
        if self.as_json:
            self.say(_with_process("make", text))
        else:
            line = loglines.LogLine(loglines.now(), "info", text)
            self.console.print(line.text("make", "bold", _NAME_WIDTH))

    def say(self, text: str = "", style: str = "") -> None:
        """Prints a line as it is, fit for copying."""
        self.console.print(Text(text, style=style))

    def fail(self, text: str) -> None:
        """Prints a sentence about a failure."""
        self.console.print(Text(text, style="bold red"))

    def explain(self, failed: ChildFailedError) -> None:
        """Prints which process failed, its last lines, and what to do."""
        self.fail(f"The process {failed.sentence} Everything else was stopped.")
        for line in list(failed.child.tail)[-_LAST_LINES:]:
            self._print(failed.child.name, loglines.parse(line))
        where = f", in full in {_short(self._log_file)}" if self._log_file else ""
        self.say(f"Its last lines are above{where}. Correct the cause and start again: make run")

    def _print(self, name: str, line: loglines.LogLine) -> None:
        colour = _COLOURS.get(name.partition("-")[0], "bold")
        text = line.text(name, colour, _NAME_WIDTH)
        if self.console.is_terminal and not line.important:
            text.truncate(self.console.width, overflow="ellipsis")
        elif self.console.is_terminal and len(text) > self.console.width > 2 * _NAME_WIDTH:
            first, *rest = text.wrap(self.console, self.console.width - 4)
            self.console.print(first, soft_wrap=False)
            for more in rest:
                self.console.print(Padding(more, (0, 0, 0, 4)), soft_wrap=False)
            return
        self.console.print(text)

    def _keep(self, name: str, line: str) -> None:
        if self._log_file is None:
            return
        with self._file_lock:
            if self._file is None or self._file.tell() > _LOG_BYTES:
                self._file = self._opened(self._log_file)
            self._file.write(f"{name:<{_NAME_WIDTH}} {line}\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with self._file_lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _opened(self, path: Path) -> TextIO:
        """Returns the new file; called with the first line, when the directory is locked."""
        path.parent.mkdir(exist_ok=True)
        if self._file is not None:
            self._file.close()
        if path.exists():
            path.replace(path.with_suffix(".previous.log"))
        return path.open("w")


def wants_json(environment: Mapping[str, str]) -> bool:
    """Whether LOG_FORMAT, or else ENVIRONMENT, asks for JSON."""
    default = "json" if environment.get("ENVIRONMENT") == "production" else "console"
    return environment.get("LOG_FORMAT", default).lower() == "json"


def is_verbose(environment: Mapping[str, str]) -> bool:
    """Whether VERBOSE=1 or LOG_LEVEL=debug asks for every line."""
    asked = environment.get("VERBOSE", "").lower() not in ("", "0", "false", "no")
    return asked or environment.get("LOG_LEVEL", "").lower() == "debug"


def _with_process(name: str, line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        entry = {"event": line, "level": "info", "timestamp": loglines.now().isoformat()}
    return json.dumps({"process": name, **entry}, ensure_ascii=False)


def summarize(lines: Lines, stack: Stack, seconds: float) -> None:
    """Prints what listens where, and the commands to paste."""
    if lines.as_json:
        lines.step(f"ready after {seconds:.1f} s: gRPC {stack.grpc_target}")
        return
    with lines.console:  # written at once, so that no log line comes between
        _banner(lines, stack, seconds)


def _banner(lines: Lines, stack: Stack, seconds: float) -> None:
    lines.say()
    lines.say(f"Ready after {seconds:.1f} s. Ctrl-C stops everything; the data stays.", "bold")
    lines.say()
    for what, where in _places(stack):
        lines.console.print(Text.assemble("  ", (f"{what:<{_PLACE_WIDTH}}", "cyan"), " ", where))
    lines.say()
    lines.say("What to do next, in another terminal:", "bold")
    lines.say()
    for title, command in _invitations(stack):
        lines.say(f"  {title}")
        lines.console.print(Text(f"    {command}", style="bold"))
        lines.say()
    if not is_verbose(stack.settings.environment):
        lines.say("  The log follows. make run VERBOSE=1 also shows every webhook.", "bright_black")
        lines.say()


def _places(stack: Stack) -> list[tuple[str, str]]:
    settings = stack.settings
    embedded = stack.postgres is not None
    # The password is in a file that only the owner can read, so it need not be in every log.
    database = stack.database_url.rpartition("@")[2]
    password = _short(settings.data_dir / "postgres" / "password")
    places = [
        ("gRPC", ", ".join(settings.grpc_addresses)),
        ("metrics", ", ".join(stack.metrics_urls)),
        ("gateway", f"{stack.gateway_url}/health"),
        (
            "PostgreSQL",
            f"{database} (user payments, password in {password})" if embedded else database,
        ),
    ]
    if stack.access.issues:
        places.append(
            ("callers", f"need a token; {_short(stack.access.developer_token)} has all roles")
        )
    if settings.simulated:
        places.append(("Stripe", f"{stack.simulator_url} (the simulator: no money moves)"))
        places.append(("pay page", f"{stack.simulator_url}/_pages/pay"))
    else:
        key = settings.environment["STRIPE_SECRET_KEY"]
        places.append(("Stripe", f"with your own key {key[:8]}..."))
        places.append(("webhooks", f"stripe listen --forward-to {stack.gateway_url}/api/v1/..."))
    places.append(("logs", f"{_short(settings.data_dir / 'logs' / 'run.log')} (complete, JSON)"))
    places.append(("data", f"{_short(settings.data_dir)} (make reset deletes it)"))
    return places


def _invitations(stack: Stack) -> list[tuple[str, str]]:
    pay_page = (
        f"on {stack.simulator_url}/_pages/pay"
        if stack.settings.simulated
        else "with Stripe.js or the Stripe CLI"
    )
    return [
        (
            "1. Create an expert, then open the onboarding_url of the answer and submit the form:",
            _call(
                stack,
                "ExpertService/CreateExpertAccount",
                '{"expert_id": "expert-1", "name": "Ada Lovelace", "email": "ada@example.com"}',
            ),
        ),
        (
            f"2. Start a payment to the expert, then pay its client_secret {pay_page}:",
            _call(
                stack,
                "PaymentService/InitiatePayment",
                '{"client_id": "client-1", "expert_id": "expert-1", "gig_id": "gig-1", "amount": '
                # A key means one payment, so each try has a key of its own.
                '{"minor_units": 10000, "currency_code": "USD"}, '
                '"idempotency_key": "\'"$(date +%s)"\'"}',
            ),
        ),
        (
            "3. See its state:",
            _call(stack, "PaymentService/ListPayments", '{"user_id": "client-1"}'),
        ),
        ("4. Read its whole story, with every line of the books:", "make explain ID=gig-1"),
        (
            "Watch all events as they happen (Ctrl-C ends it):",
            _call(stack, "EventService/WatchEvents", "{}"),
        ),
    ]


def _call(stack: Stack, method: str, request: str) -> str:
    """Returns a command for grpcurl where its package has the program, else for buf."""
    tools = ROOT / ".venv" / "bin"
    if shutil.which("grpcurl", path=str(tools)):
        return (
            f"{_short(tools / 'grpcurl')} {_access(stack, '-plaintext', '-')} -d '{request}' "
            f"{stack.grpc_target} {_PACKAGE}.{method}"
        )
    scheme = "http" if stack.access.tls is None else "https"
    return (
        f"{_short(tools / 'buf')} curl --protocol grpc "
        f"{_access(stack, '--http2-prior-knowledge', '--')} -d '{request}' "
        f"{scheme}://{stack.grpc_target}/{_PACKAGE}.{method}"
    )


def _access(stack: Stack, plain: str, dashes: str) -> str:
    """Returns the options for TLS and token; ``plain`` is the one for no TLS."""
    tls = stack.access.tls
    if tls is None:
        return " ".join([plain, *_token_header(stack)])
    words = [f"{dashes}cacert {_short(tls.ca)}"]
    if tls.certificate and tls.key:
        words.append(f"{dashes}cert {_short(tls.certificate)} {dashes}key {_short(tls.key)}")
    if tls.server_name:
        words.append(f"{dashes}servername {tls.server_name}")
    return " ".join([*words, *_token_header(stack)])


def _token_header(stack: Stack) -> list[str]:
    """Returns the option with a token: out of its file, so that no log shows it."""
    if not stack.access.issues:
        return []
    return [f'-H "authorization: Bearer $(cat {_short(stack.access.developer_token)})"']


def _short(path: Path) -> str:
    """Returns the path as one would type it in the current directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
