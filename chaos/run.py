"""One run: start everything, let callers and accidents run, heal, wait, check."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import aiohttp

from chaos.asking import Asker
from chaos.callers import CANARY, Caller
from chaos.checks import violations
from chaos.evidence import Evidence, read_stripe, read_tables
from chaos.findings import Finding, keep, look_up
from chaos.history import History
from chaos.injector import Injector
from chaos.operators import Operator
from chaos.plan import COLLECTED, KILLS, REPLICAS, STOP_REPLICA, Plan, plan_of
from chaos.report import Report, say
from chaos.rest import Rest
from chaos.scene import Scene
from chaos.simulator import Simulator
from dev.probes import taken
from dev.settings import ROOT, SIMULATOR_SECRET_KEY, StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect
from marketplace.payments.v1 import experts_pb2, experts_pb2_grpc

#: Shorter than in production, so that recovery happens within the run, and so that a stopped
#: replica sleeps for longer than its leases, which are twice as long.
_STRIPE_TIMEOUT_SECONDS = 1.2
#: Where violations are kept.
FOUND = ROOT / ".data" / "chaos"
_EXPERTS = 6
_CAPTURED_BEFORE = 8
_LEFT_ALONE = 3
_CONTESTED_BEFORE = 2
_SPARED = 4
_OPERATORS = 2


class Logs:
    """Keeps the lines of the child processes, and finds secrets in them."""

    def __init__(self, path: Path) -> None:
        self.leaks: dict[str, int] = {}
        self.secrets: list[str] = [SIMULATOR_SECRET_KEY, "whsec_", "_secret_", CANARY]
        self.path = path
        self._file = path.open("w")

    def take(self, name: str, line: str) -> None:
        self._file.write(f"{name} {line}\n")
        if name == "simulator":  # It plays Stripe, and may log anything.
            return
        for secret in self.secrets:
            if secret in line:
                what = f"the log of {name} holds {secret[:12]}…: {line[:160]}"
                self.leaks[what] = self.leaks.get(what, 0) + 1

    def close(self) -> None:
        self._file.close()


def run(
    seed: int,
    seconds: float,
    *,
    callers: int = 24,
    patience: float = 90,
    logs: Path | None = None,
    found: Path = FOUND,
) -> Report:
    """Run once on a stack of its own, which is gone afterwards.

    What was violated is kept below ``found``, with all that is known about it.
    """
    plan = plan_of(seed, seconds)
    directory = Path(tempfile.mkdtemp(prefix="payments-chaos-"))
    directory.chmod(0o711)  # PostgreSQL may have to run as another user.
    lines = Logs(logs or directory / "log.txt")
    began = time.monotonic()
    try:
        settings = _settings(directory / "data", seed)
        (directory / "data").mkdir(mode=0o711)
        with Stack(settings, sink=lines.take) as stack:
            say(f"seed {seed}: {seconds:g} s, up after {time.monotonic() - began:.1f} s")
            report, findings = asyncio.run(_run(stack, plan, callers, patience, lines))
        report.seconds = time.monotonic() - began
        lines.close()
        if report.violations:
            report.kept = keep(report, findings, lines.path, found)
        return report
    finally:
        lines.close()
        shutil.rmtree(directory, ignore_errors=True)


def _settings(data_dir: Path, seed: int) -> StackSettings:
    """Returns ports below those that the system assigns: a dead replica's port must stay free."""
    settings = StackSettings.on_free_ports(data_dir, replicas=REPLICAS)
    first = _free_block(2 * REPLICAS + 2)
    return replace(
        settings,
        grpc_port=first,
        metrics_port=first + REPLICAS,
        gateway_port=first + 2 * REPLICAS,
        simulator_port=first + 2 * REPLICAS + 1,
        # A marketplace that has nothing but its commissions.
        simulator_arguments=["--seed", str(seed), "--platform-funds", "0"],
        environment={
            **settings.environment,
            "STRIPE_TIMEOUT": str(_STRIPE_TIMEOUT_SECONDS),
            # The operator of the chaos is one person, who writes off every debt.
            "WRITE_OFF_LIMIT_MINOR_UNITS": "1000000000",
        },
    )


def _free_block(length: int) -> int:
    """Returns the first of several free ports in a row. Other processes may search too."""
    for _ in range(200):
        first = random.randrange(20_000, 32_000)
        if not any(taken(port) for port in range(first, first + length)):
            return first
    raise RuntimeError("no free ports between 20000 and 32000")


async def _run(
    stack: Stack, plan: Plan, count: int, patience: float, lines: Logs
) -> tuple[Report, dict[str, Finding]]:
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
        # Payouts would take the money to the banks at the end, before debts are collected.
        await simulator.insist("POST", "/settings", {"payout_interval": "manual"})
        experts = experts_pb2_grpc.ExpertServiceStub(channel)
        for number in range(_EXPERTS):
            expert_id, account = await _expert(experts, simulator, number)
            scene.experts.append(expert_id)
            scene.accounts[expert_id] = account
        scene.debtor, _ = await _expert(experts, simulator, _EXPERTS)
        injector = Injector(plan, stack, scene)
        callers = [
            Caller(number, scene, f"callers:{plan.seed}", reads_only=number % 3 == 2)
            for number in range(count)
        ]
        operators = [
            Operator(count + number, scene, f"operators:{plan.seed}")
            for number in range(_OPERATORS)
        ]
        everybody: list[Asker] = [*callers, *operators]
        progress = asyncio.create_task(_progress(scene, injector, everybody))
        await _prepare(scene, injector, [caller for caller in callers if not caller.reads_only])
        scene.until = scene.now() + plan.seconds
        await asyncio.gather(
            injector.run(), _prolong(scene, injector), *(asker.run() for asker in everybody)
        )
        progress.cancel()
        say(f"{scene.now():5.1f} s  healing")
        await injector.heal()
        evidence = Evidence(history=scene.history, armed=plan.armed)
        rest = Rest(stack, scene, injector.bank, operators[0], everybody)
        after = await rest.come(patience)
        evidence.converged = after is not None
        evidence.injected = injector.injected + scene.deeds
        await asyncio.gather(*(_ask_again(caller) for caller in callers))
        evidence.unanswered = [keyed.key for asker in everybody for keyed in asker.pending]
        evidence.lost_accounts = scene.lost_accounts
        evidence.adjusted = scene.adjusted
        evidence.waiting = rest.waiting
        injector.watch()
        evidence.ended = injector.ended
        evidence.wrong = scene.wrong
        evidence.leaks = [f"{what} ({times} times)" for what, times in lines.leaks.items()]
        await asyncio.to_thread(
            read_tables, evidence, stack.database_url, [SIMULATOR_SECRET_KEY, "_secret_"]
        )
        await read_stripe(evidence, simulator)
        evidence.injected[COLLECTED] = sum(
            event["kind"] == "payment.debt_collected" for event in evidence.events
        )
        shown = await simulator.control("GET", "/requests?limit=5000")
        report = Report(
            plan=plan,
            evidence=evidence,
            violations=await asyncio.to_thread(violations, evidence),
            converged_after=after,
            seconds=0,
            requests=shown["requests"],
        )
        return report, await look_up(evidence, report.violations, channel, simulator)


async def _prepare(scene: Scene, injector: Injector, callers: list[Caller]) -> None:
    """Before anything goes wrong: a few payments to read, to capture, refund and promote, and
    something for operators to answer."""
    for caller in callers[:_LEFT_ALONE]:
        await caller.leave_to_its_deadline()
    for caller in callers[:_SPARED]:
        await caller.spare()
    await callers[0].run_into_debt()
    for _ in range(20):
        if len(scene.captured) >= _CAPTURED_BEFORE:
            break
        for action in ("initiate", "confirm", "capture"):
            await asyncio.gather(*(getattr(caller, action)() for caller in callers[:8]))
            await asyncio.sleep(0.3)
    for _ in range(_CONTESTED_BEFORE):
        await injector.bank.contest(scene.captured, leave=True)
    await injector.bank.warn(leave=True)


async def _prolong(scene: Scene, injector: Injector) -> None:
    """Lets callers stay on a slow machine until every rule has struck, up to a limit."""
    limit = scene.now() + 2.5 * (scene.until - scene.now())
    while (left := scene.until - scene.now()) > 0:
        await asyncio.sleep(left - 0.5 if left > 1 else 0.1)
        if scene.until - scene.now() < 1 and injector.missing and scene.until < limit:
            scene.until += 1


async def _expert(
    experts: experts_pb2_grpc.ExpertServiceAsyncStub, simulator: Simulator, number: int
) -> tuple[str, str]:
    """An expert who can be paid, and the account."""
    expert_id = f"expert-{number}"
    answer = await experts.CreateExpertAccount(
        experts_pb2.CreateExpertAccountRequest(
            expert_id=expert_id,
            name=f"Ann {CANARY}",
            email=f"{expert_id}@example.com",
            commission_basis_points=[1000, 333, 1250, 0, 2000, 1000, 500][number],
        )
    )
    account = answer.expert.stripe_account_id
    await simulator.control("POST", f"/accounts/{account}/complete_onboarding")
    for _ in range(200):
        request = experts_pb2.GetExpertRequest(expert_id=expert_id)
        status = (await experts.GetExpert(request)).expert.status
        if status == experts_pb2.EXPERT_STATUS_READY:
            return expert_id, account
        await asyncio.sleep(0.05)
    raise AssertionError(f"{expert_id} did not become ready")


async def _progress(scene: Scene, injector: Injector, everybody: list[Asker]) -> None:
    """A line a second."""
    while True:
        await asyncio.sleep(1)
        await injector.count()
        injected, history = injector.injected, scene.history
        kills = sum(injected[kind] for kind in KILLS)
        open_ = sum(len(asker.pending) for asker in everybody)
        faults = sum(injected.values()) - kills - injected[STOP_REPLICA]
        say(
            f"{scene.now():5.1f} s  {history.operations} calls, {len(scene.every)} payments, "
            f"{open_} unanswered; {kills} kills, {injected[STOP_REPLICA]} stops, {faults} faults"
        )


async def _ask_again(caller: Caller) -> None:
    """Repeats a sample of the keys at rest: every replica must answer with the same bytes."""
    for keyed in caller.scene.answered[caller.number :: max(1, len(caller.scene.answered) // 40)]:
        await caller.ask(keyed, patient=True)
