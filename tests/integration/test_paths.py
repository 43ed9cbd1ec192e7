"""The path of a call through the files, traced, against the tables of docs/ARCHITECTURE.md.

A path is the list of files that a call enters on its way down, in the order of their first entry:

- A file of the application or the domain is entered when a function of another such file calls
  into it, or when the rpc layer or a test calls the use case itself. What rpc and the adapters ask
  of the domain while they convert values is not part of the path.
- A package below `application/` or `domain/` has one duty, so it is entered once: through the first
  file of it that is called. Calls between its files stay inside.
- ``VALUES`` and ``SIDE_STEPS`` are left out: values of which every step speaks, and questions that
  are asked on every path and that usually have no answer.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from marketplace.payments.v1 import payments_pb2
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.jobs.apply_webhooks import apply_waiting
from tests.integration.conftest import StartWorld
from tests.support.requests import capture_request, refund_request
from tests.support.world import CAPTURED, IN_ESCROW, PATIENCE, REFUNDED, Payment, World, until

ROOT: Final = Path(__file__).resolve().parents[2]
SERVICE: Final = ROOT / "payment_service"
ARCHITECTURE: Final = ROOT / "docs" / "ARCHITECTURE.md"

#: Values, their arithmetic and the words for errors: every step speaks of them.
VALUES: Final = {
    *("domain/payment.py", "domain/operations.py", "domain/operation_payloads.py"),
    *("domain/money.py", "domain/ledger.py", "domain/experts.py", "domain/snapshot.py"),
    *("domain/state_machine.py", "domain/errors.py", "domain/processor_errors.py"),
    *("domain/webhook_event.py", "application/clock.py", "application/app.py"),
    *("domain/marks.py", "domain/ids.py"),
}
#: Functions that are asked on every path and usually return at once: is a repayment parked, or to
#: be parked; was something moved out of band; was an operation recovered after a restore?
SIDE_STEPS: Final = {
    *("plan_preemption", "preempt", "park_repayment", "record_out_of_band"),
    "recovered_operation",
}

LOCKS: Final = ("lock_payment", "lock_expert")

#: Recording a transition asks the domain what to store with it: the row, the digest, the times.
RECORDING: Final = ("adapters/", "domain/schedule.py")

#: The deepest path that a money RPC may have.
MOST_FILES: Final = 9


@dataclass
class Trace:
    """The files that are entered while it is active, and the locks of each transaction."""

    is_active: bool = False
    entered: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    locks: dict[int, list[str]] = field(default_factory=dict)
    #: Kept, so that a coroutine that is resumed is not counted again, nor an id used twice.
    kept: dict[int, Any] = field(default_factory=dict)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not self.is_active or id(frame) in self.kept:
            return
        name, function = _file_of(frame), frame.f_code.co_name
        if name.startswith("adapters/postgres") and function.startswith(LOCKS):
            transaction = frame.f_locals["self"]
            self.kept[id(transaction)] = transaction
            self.locks.setdefault(id(transaction), []).append(function)
        if not name.startswith(("application/", "domain/")) or name.startswith("domain/ports/"):
            return
        self.kept[id(frame)] = frame
        self.calls[function] += 1
        caller = _caller_of(frame)
        if name in VALUES or function in SIDE_STEPS or caller.startswith(RECORDING):
            return
        if caller and _package(caller) == _package(name):
            return
        if caller.startswith("rpc/") and name.startswith("domain/"):
            return
        if _package(name) not in map(_package, self.entered):
            self.entered.append(name)


def _file_of(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(SERVICE).as_posix() if path.is_relative_to(SERVICE) else ""


def _caller_of(frame: FrameType) -> str:
    """Returns the nearest file of the service above the frame, or ""."""
    above = frame.f_back
    while above is not None and not _file_of(above):
        above = above.f_back
    return _file_of(above) if above is not None else ""


def _package(name: str) -> str:
    """Returns what is entered once: a package with one duty, or a file that stands by itself."""
    layer, _, rest = name.partition("/")
    return f"{layer}/{rest.partition('/')[0]}"


@contextmanager
def tracing() -> Iterator[Trace]:
    """Traces this thread, on which the calls and their phases run."""
    trace = Trace()
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(None)
        trace.is_active = False
        trace.kept.clear()


def documented(title: str) -> list[str]:
    """Returns the files of application and domain in a path's table, in their order."""
    section = ARCHITECTURE.read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    files = re.findall(r"^\| `payment_service/([^`]+)` \|", section, re.MULTILINE)
    return [name for name in files if name.startswith(("application/", "domain/"))]


def check_lock_order(trace: Trace) -> None:
    """The payment is locked before the expert, in every transaction."""
    assert trace.locks
    for locks in trace.locks.values():
        assert locks == sorted(locks, reverse=True), locks


async def in_escrow(world: World, **fields: Any) -> Payment:
    """A payment in escrow, in a world without background jobs."""
    app = world.service.app  # type: ignore[union-attr]
    expert_id = await world.expert()
    initiated = await world.initiate(expert_id, **fields)
    await world.confirm(initiated)

    async def applied() -> Payment | None:
        await apply_waiting(app)
        payment = await world.get(initiated.payment.payment_id)
        return payment if payment.state == IN_ESCROW else None

    payment = await until(applied, "the payment in escrow")
    await delivered(world)
    await world.pause_webhooks()  # A webhook of what follows would be a path of its own.
    return payment


async def delivered(world: World) -> None:
    """Waits until the simulator has delivered every webhook."""
    settled = await world.stripe.control("POST", "/webhooks/settle", {"seconds": PATIENCE})
    assert settled["settled"]


async def test_capture_payment(start_world: StartWorld) -> None:
    """A plan is made once, a snapshot is applied once, and the answer is not polled for."""
    with tracing() as trace:
        world = await start_world(loops=False)
        payment = await in_escrow(world)
        trace.is_active = True
        captured = await world.payments.CapturePayment(capture_request(payment.payment_id))
        trace.is_active = False
        assert captured.payment.state == CAPTURED
        assert trace.entered == documented("The path of CapturePayment")
        assert len(trace.entered) <= MOST_FILES
        once = ("claim_and_start", "plan_capture", "apply_snapshot", "derive_changes")
        # `plan_capture` is the use case's, which locks, and the domain's, which decides.
        assert [trace.calls[name] for name in once] == [1, 2, 1, 1]
        assert trace.calls["wait_for_answer"] == 0
        assert next(iter(trace.locks.values())) == ["lock_payment", "lock_expert_with_debt"]
        check_lock_order(trace)


async def test_refund_after_a_payout(start_world: StartWorld) -> None:
    with tracing() as trace:
        world = await start_world(loops=False)
        payment = await in_escrow(world)
        await world.capture(payment.payment_id)
        trace.is_active = True
        refunded = await world.payments.RefundPayment(refund_request(payment.payment_id))
        trace.is_active = False
        assert refunded.payment.state == REFUNDED
        assert world.sql("SELECT kind FROM operations ORDER BY create_time DESC LIMIT 1") == [
            ("reverse_transfer",)
        ]
        assert trace.entered == documented("The path of a refund after a payout")
        assert len(trace.entered) <= MOST_FILES
        assert [trace.calls[name] for name in ("claim_and_start", "plan_refund")] == [1, 2]
        assert trace.calls["wait_for_answer"] == 0
        check_lock_order(trace)


async def test_webhook(start_world: StartWorld) -> None:
    with tracing() as trace:
        world = await start_world(loops=False)
        initiated = await world.initiate(await world.expert())
        app = world.service.app  # type: ignore[union-attr]
        await delivered(world)
        await apply_waiting(app)
        trace.is_active = True
        await world.confirm(initiated)
        await delivered(world)
        await apply_waiting(app)
        trace.is_active = False
        assert (await world.get(initiated.payment.payment_id)).state == IN_ESCROW
        assert trace.entered == documented("The path of a webhook")
        check_lock_order(trace)


async def test_deadline(start_world: StartWorld) -> None:
    with tracing() as trace:
        # Every deadline is within so wide a margin.
        world = await start_world(loops=False, policy={"deadline_margin": 100 * 86_400.0})
        payment = await in_escrow(world, on_deadline=payments_pb2.ON_DEADLINE_CAPTURE)
        app = world.service.app  # type: ignore[union-attr]
        trace.is_active = True
        await act_on_deadlines(app)
        trace.is_active = False
        assert (await world.get(payment.payment_id)).state == CAPTURED
        assert trace.entered == documented("The path of a deadline")
        check_lock_order(trace)
