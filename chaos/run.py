"""One run: bring everything up, let the callers and the accidents loose, heal, wait, check."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psycopg2

from chaos.callers import CANARY, Caller
from chaos.checks import CHECKS, Violation, violations
from chaos.evidence import Evidence, Row, read_stripe, read_tables, rows
from chaos.history import History
from chaos.injector import Injector
from chaos.plan import KILLS, REPLICAS, STOP_REPLICA, Plan, plan_of
from chaos.scene import Scene
from chaos.simulator import AWAY, Simulator
from dev.settings import SIMULATOR_SECRET_KEY, StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect
from marketplace.payments.v1 import experts_pb2, experts_pb2_grpc

#: Shorter than in production, so that what a crash leaves is taken up within the run, and so that a
#: stopped replica outsleeps its leases, which are twice as long.
_STRIPE_TIMEOUT_SECONDS = 1.2
_EXPERTS = 6
_SHOWN_VIOLATIONS = 25
_SHOWN_STORIES = 2


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run came to."""

    plan: Plan
    evidence: Evidence
    violations: list[Violation]
    #: None if it never came to rest.
    converged_after: float | None
    seconds: float
    requests: list[dict[str, object]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.violations

    @property
    def kills(self) -> int:
        return sum(self.evidence.injected[kind] for kind in KILLS)

    @property
    def stops(self) -> int:
        return self.evidence.injected[STOP_REPLICA]


class Logs:
    """Keeps the children's lines and notices secrets in them."""

    def __init__(self, file: Path | None) -> None:
        self.leaks: dict[str, int] = {}
        self.secrets: list[str] = [SIMULATOR_SECRET_KEY, "whsec_", "_secret_", CANARY]
        self._file = file.open("w") if file else None

    def take(self, name: str, line: str) -> None:
        if self._file is not None:
            self._file.write(f"{name} {line}\n")
        if name == "simulator":  # It stands for Stripe and may say what it likes.
            return
        for secret in self.secrets:
            if secret in line:
                what = f"the log of {name} holds {secret[:12]}…: {line[:160]}"
                self.leaks[what] = self.leaks.get(what, 0) + 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(
    seed: int, seconds: float, *, callers: int = 24, patience: float = 60, logs: Path | None = None
) -> Report:
    """Run once on a stack of its own, which is gone afterwards."""
    plan = plan_of(seed, seconds)
    directory = Path(tempfile.mkdtemp(prefix="payments-chaos-"))
    directory.chmod(0o711)  # PostgreSQL may have to run as somebody else.
    lines = Logs(logs)
    began = time.monotonic()
    try:
        settings = StackSettings.on_free_ports(
            directory / "data",
            replicas=REPLICAS,
            simulator_arguments=["--seed", str(seed)],
        )
        environment = {**settings.environment, "STRIPE_TIMEOUT": str(_STRIPE_TIMEOUT_SECONDS)}
        settings = StackSettings.on_free_ports(
            directory / "data",
            replicas=REPLICAS,
            simulator_arguments=["--seed", str(seed)],
            environment=environment,
        )
        (directory / "data").mkdir(mode=0o711)
        with Stack(settings, sink=lines.take) as stack:
            say(f"seed {seed}: {seconds:g} s, up after {time.monotonic() - began:.1f} s")
            report = asyncio.run(_run(stack, plan, callers, patience, lines))
        report.seconds = time.monotonic() - began
        return report
    finally:
        lines.close()
        shutil.rmtree(directory, ignore_errors=True)


async def _run(stack: Stack, plan: Plan, count: int, patience: float, lines: Logs) -> Report:
    channel = connect(*stack.settings.grpc_addresses)
    async with channel, aiohttp.ClientSession() as http:
        simulator = Simulator(stack.simulator_url, http)
        secret = stack.settings.data_dir / "secrets" / "stripe_webhook_secret"
        scene = Scene(
            channel,
            simulator,
            stack.gateway_url,
            f"whsec_{secret.read_text().strip()}",
            http,
            History(),
        )
        experts = experts_pb2_grpc.ExpertServiceStub(channel)
        for number in range(_EXPERTS):
            scene.experts.append(await _expert(experts, simulator, number))
        injector = Injector(plan, stack, simulator)
        callers = [
            Caller(number, scene, f"callers:{plan.seed}", reads_only=number % 3 == 2)
            for number in range(count)
        ]
        scene.began = time.monotonic()
        progress = asyncio.create_task(_progress(scene, injector, callers))
        scene.until = plan.seconds
        await asyncio.gather(
            injector.run(), _prolong(scene, injector), *(caller.run() for caller in callers)
        )
        progress.cancel()
        say(f"{scene.now():5.1f} s  healing")
        await injector.heal()
        evidence = Evidence(history=scene.history, armed=plan.armed, injected=injector.injected)
        after = await _converge(stack, simulator, callers, patience)
        evidence.converged = after is not None
        await asyncio.gather(*(_ask_again(caller) for caller in callers))
        evidence.unanswered = [keyed.key for caller in callers for keyed in caller.pending]
        injector.watch()
        evidence.ended = injector.ended
        evidence.wrong = scene.wrong
        evidence.leaks = [f"{what} ({times} times)" for what, times in lines.leaks.items()]
        await asyncio.to_thread(
            read_tables, evidence, stack.database_url, [SIMULATOR_SECRET_KEY, "_secret_"]
        )
        await read_stripe(evidence, simulator)
        shown = await simulator.control("GET", "/requests?limit=5000")
        return Report(
            plan=plan,
            evidence=evidence,
            violations=await asyncio.to_thread(violations, evidence),
            converged_after=after,
            seconds=0,
            requests=shown["requests"],
        )


async def _prolong(scene: Scene, injector: Injector) -> None:
    """On a slow machine callers stay until every rule has struck, but not for ever."""
    limit = scene.until * 1.5
    while (left := scene.until - scene.now()) > 0:
        await asyncio.sleep(left - 0.5 if left > 1 else 0.1)
        if scene.until - scene.now() < 1 and injector.missing and scene.until < limit:
            scene.until += 1


async def _expert(
    experts: experts_pb2_grpc.ExpertServiceAsyncStub, simulator: Simulator, number: int
) -> str:
    expert_id = f"expert-{number}"
    answer = await experts.CreateExpertAccount(
        experts_pb2.CreateExpertAccountRequest(
            expert_id=expert_id,
            name=f"Ann {CANARY}",
            email=f"{expert_id}@example.com",
            commission_basis_points=[1000, 333, 1250, 0, 2000, 1000][number],
        )
    )
    account = answer.expert.stripe_account_id
    await simulator.control("POST", f"/accounts/{account}/complete_onboarding")
    for _ in range(200):
        request = experts_pb2.GetExpertRequest(expert_id=expert_id)
        status = (await experts.GetExpert(request)).expert.status
        if status == experts_pb2.EXPERT_STATUS_READY:
            return expert_id
        await asyncio.sleep(0.05)
    raise AssertionError(f"{expert_id} did not become ready")


async def _progress(scene: Scene, injector: Injector, callers: list[Caller]) -> None:
    """A line a second."""
    while True:
        await asyncio.sleep(1)
        await injector.count()
        injected, history = injector.injected, scene.history
        kills = sum(injected[kind] for kind in KILLS)
        open_ = sum(len(caller.pending) for caller in callers)
        faults = sum(injected.values()) - kills - injected[STOP_REPLICA]
        say(
            f"{scene.now():5.1f} s  {history.operations} calls, {len(scene.every)} payments, "
            f"{open_} unanswered; {kills} kills, {injected[STOP_REPLICA]} stops, {faults} faults"
        )


async def _converge(
    stack: Stack, simulator: Simulator, callers: list[Caller], patience: float
) -> float | None:
    """Seconds until nothing is left to do and Stripe shows nothing that we do not know."""
    began = time.monotonic()
    said = began
    left = ""
    while time.monotonic() - began < patience:
        with contextlib.suppress(psycopg2.Error, *AWAY):
            answered = await asyncio.gather(*(caller.resolve() for caller in callers))
            left = await _left(stack, simulator)
            if all(answered) and not left:
                return time.monotonic() - began
        if time.monotonic() - said > 5:
            said = time.monotonic()
            unanswered = sum(len(caller.pending) for caller in callers)
            say(f"  {said - began:5.1f} s  waiting: {unanswered} unanswered; {left}")
        await asyncio.sleep(0.2)
    return None


async def _left(stack: Stack, simulator: Simulator) -> str:
    """What is still to be done, or empty."""
    [counts] = await asyncio.to_thread(
        rows,
        stack.database_url,
        "SELECT (SELECT count(*) FROM operations WHERE state IN ('STARTED', 'UNKNOWN')) AS open, "
        "(SELECT count(*) FROM inbox WHERE state = 'WAITING') AS waiting",
    )
    if counts["open"] or counts["waiting"]:
        return f"{counts['open']} operations open, {counts['waiting']} events waiting"
    # A delivery that waits for its next try may take its time, if the event is known already.
    shown = await simulator.control("GET", "/webhooks?limit=1000000")
    known = await asyncio.to_thread(rows, stack.database_url, "SELECT event_id FROM inbox")
    ids = {row["event_id"] for row in known}
    coming = [row for row in shown["deliveries"] if row["state"] == "pending"]
    if new := sum(row["event"] not in ids for row in coming):
        return f"{new} webhooks on their way"
    states = {
        row["payment_intent_id"]: row["state"]
        for row in await asyncio.to_thread(
            rows, stack.database_url, "SELECT payment_intent_id, state FROM payments"
        )
    }
    behind = [
        intent["id"]
        for intent in await simulator.list("/payment_intents")
        if intent["status"] in _SHOWN_AS
        and states.get(intent["id"]) not in (None, *_SHOWN_AS[intent["status"]])
    ]
    return f"{len(behind)} payments behind Stripe" if behind else ""


_SHOWN_AS = {
    "requires_capture": ("IN_ESCROW",),
    "succeeded": ("CAPTURED", "REFUNDED"),
    "canceled": ("CANCELED", "EXPIRED"),
}


async def _ask_again(caller: Caller) -> None:
    """At rest, a sample of the keys once more: from every replica, the same bytes."""
    for keyed in caller.scene.answered[caller.number :: max(1, len(caller.scene.answered) // 40)]:
        await caller.ask(keyed, patient=True)


# ---- what is printed ----


def show(report: Report) -> None:
    evidence, history = report.evidence, report.evidence.history
    say()
    say(f"seed {report.plan.seed}, {report.plan.seconds:g} s, {report.seconds:.1f} s in all")
    rest = report.converged_after
    came = "did not come to rest" if rest is None else f"at rest {rest:.1f} s after healing"
    say(
        f"  {history.operations} calls ({history.operations / report.plan.seconds:.0f}/s), "
        f"{len(evidence.payments)} payments, {len(evidence.effects)} effects, "
        f"{report.kills} SIGKILLs, {report.stops} SIGSTOPs; {came}"
    )
    say(f"  codes: {_counts(history.codes)}")
    say(f"  calls: {_counts(history.by_rpc)}")
    say()
    say("  injected")
    for kind in evidence.armed:
        mark = "" if evidence.injected[kind] >= evidence.least else "   NEVER ENOUGH"
        say(f"    {kind:28s} {evidence.injected[kind]:6d}{mark}")
    say()
    say("  found")
    found: dict[str, int] = {}
    for violation in report.violations:
        found[violation.check] = found.get(violation.check, 0) + 1
    for name in CHECKS:
        say(f"    {name:32s} {found.get(name, 0):6d}{'' if name not in found else '   VIOLATED'}")
    for violation in report.violations[:_SHOWN_VIOLATIONS]:
        say(f"  ! {violation}")
    if len(report.violations) > _SHOWN_VIOLATIONS:
        say(f"  … and {len(report.violations) - _SHOWN_VIOLATIONS} more")
    about = dict.fromkeys(v.payment_id for v in report.violations if v.payment_id)
    for payment_id in list(about)[:_SHOWN_STORIES]:
        for line in story(report, payment_id):
            say(f"    {line}")
    say("  all holds" if report.holds else "  FAILED")


def story(report: Report, payment_id: str) -> Iterator[str]:
    """All that is known of one payment, in few lines."""
    evidence = report.evidence
    yield f"--- {payment_id}"
    intent = ""
    for row in _about(evidence.payments, payment_id):
        intent = row["payment_intent_id"] or ""
        shown = ("state", "version", "amount", "held", "captured", "refunded", "operation_id")
        yield "row: " + ", ".join(f"{name} {row[name]}" for name in shown) + f", {intent}"
    for row in _about(evidence.events, payment_id):
        body = json.loads(row["body"])
        yield (
            f"event {row['sequence']} {row['time']:%H:%M:%S.%f} {row['kind']} "
            f"{body['from']} → {body['to']} {body['facts']} by {body['by']['rpc']}"
        )
    ids = [payment_id, *([intent] if intent else [])]
    for row in _about(evidence.operations, payment_id):
        ids.append(row["operation_id"])
        yield (
            f"operation {row['operation_id']} {row['kind']} {row['state']} "
            f"attempt {row['attempt']} tries {row['tries']} {row['last_error']} "
            f"{row['create_time']:%H:%M:%S.%f} {row['minor_units']} {row['params']}"
        )
    for row in _about(evidence.discrepancies, payment_id):
        yield f"discrepancy {row['time']:%H:%M:%S.%f} {row['kind']} {row['detail']}"
    yield from _at_stripe(report, intent, ids)
    for entry in evidence.history.entries:
        about = entry.seen is not None and entry.seen.payment_id == payment_id
        if entry.rpc != "GetPayment" and (about or payment_id.encode() in entry.request):
            yield (
                f"call {entry.started:.3f} to {entry.ended:.3f} s {entry.rpc} {entry.key} "
                f"{entry.code} {entry.reason} {entry.seen or ''}"
            )


def _at_stripe(report: Report, intent: str, ids: list[str]) -> Iterator[str]:
    for effect in report.evidence.effects:
        if intent and effect["payment_intent"] == intent:
            yield (
                f"effect {effect['sequence']} {effect['kind']} {effect['amount']} "
                f"{effect['object']} {effect['idempotency_key']} {effect['time']}"
            )
    for request in report.requests:
        text = json.dumps(request)
        if any(id_ in text for id_ in ids):
            yield (
                f"request {request['method']} {request['path']} {request['status']} "
                f"{request['idempotency_key']} fault {request['fault']} "
                f"{request['milliseconds']} ms {request['time']}"
            )


def _about(found: list[Row], payment_id: str) -> Iterator[Row]:
    return (row for row in found if row["payment_id"] == payment_id)


def _counts(counter: dict[str, int]) -> str:
    ranked = sorted(counter.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in ranked)
