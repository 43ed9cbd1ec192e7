"""Executes a plan: kills, stops, and the rules by which Stripe and its webhooks misbehave.

Each process has a lane of its own, in which one accident follows the other. The lanes run in
parallel, so that accidents coincide. Only processes of the given stack are touched.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg2

from chaos import hurry
from chaos.accounts import Accounts
from chaos.bank import Bank
from chaos.evidence import Row, rows
from chaos.plan import (
    ACCOUNTS,
    BANK,
    BANK_ASKS,
    BANK_GIVES_BACK,
    BANK_KEEPS,
    DEADLINES_NEAR,
    DEEDS,
    EXPERT_REJECTED,
    EXPERT_RESTRICTED,
    EXPERT_UNHEARD,
    FURTHER_LINE,
    HELD_CONTESTED,
    INQUIRY_ENDS,
    ISSUER_WARNS,
    KILL_BACKEND,
    KILL_GATEWAY,
    KILL_POSTMASTER,
    KILL_REPLICA,
    KILL_SIMULATOR,
    NO_WEBHOOKS,
    PAID_CONTESTED,
    REFUND_BOUNCES,
    REPLICAS,
    STOP_REPLICA,
    STRIPE_AWAY,
    TOPPED_UP,
    Plan,
    Rule,
    Step,
)
from chaos.scene import Scene
from chaos.simulator import AWAY, SETTLED, Simulator
from dev.child import Child
from dev.stack import Stack

#: A webhook that is not answered is tried again soon, so that a run need not last days.
_WEBHOOK_SETTINGS = {
    "retry_seconds": [0.3, 0.6, 1.0],
    "max_attempts": 1000,
    "timeout_seconds": 5.0,
    "concurrency": 4,
}
#: Refunds that are on the books and have not come back yet.
_REFUNDS = (
    "SELECT movement_id, payment_id FROM movements AS made WHERE kind = 'refund' AND NOT EXISTS "
    "(SELECT FROM movements WHERE movement_id = made.movement_id || ':failed')"
)
#: What the platform adds to its balances, in minor units of each currency.
_TOP_UPS = (5_000, 20_000, 60_000)
#: How many seconds the bank reads evidence before it decides.
_SIMULATOR_SETTINGS = {"dispute_review_seconds": 1}


class Injector:
    def __init__(self, plan: Plan, stack: Stack, scene: Scene) -> None:
        self.plan = plan
        self.bank = Bank(scene, plan.seed)
        self._accounts = Accounts(scene, plan.seed)
        self.injected: Counter[str] = Counter()
        #: Processes that ended although the plan did not end them.
        self.ended: list[str] = []
        self._stack = stack
        self._scene = scene
        self._simulator = scene.simulator
        self._began = time.monotonic()
        self._chance = random.Random(f"money:{plan.seed}")
        #: Strikes of rules in the simulator's present life, by name.
        self._counted: Counter[str] = Counter()
        self._names: dict[str, dict[int, str]] = {"faults": {}, "webhooks": {}}

    async def run(self) -> None:
        """Runs all lanes to their ends, with the rules armed."""
        self._began = time.monotonic()
        await self._arm()
        lanes = [
            *(self.plan.lane(KILL_REPLICA, STOP_REPLICA, target=n) for n in range(REPLICAS)),
            self.plan.lane(KILL_GATEWAY),
            self.plan.lane(KILL_BACKEND, KILL_POSTMASTER),
            self.plan.lane(KILL_SIMULATOR, STRIPE_AWAY, NO_WEBHOOKS),
            self.plan.lane(DEADLINES_NEAR),
            self.plan.lane(*BANK),
            self.plan.lane(*ACCOUNTS),
            self.plan.lane(TOPPED_UP),
        ]
        async with asyncio.TaskGroup() as tasks:
            for lane in lanes:
                tasks.create_task(self._lane(lane))

    async def heal(self) -> None:
        """No more faults, and everything up."""
        await asyncio.to_thread(self._bring_up)
        await self.count()
        await self._simulator.insist("DELETE", "/faults")
        await self._simulator.insist("DELETE", "/webhooks/rules")
        await self._simulator.insist("POST", "/webhooks", _WEBHOOK_SETTINGS)

    async def count(self) -> None:
        """Reads how often each rule has struck, because the simulator forgets it when it dies."""
        with contextlib.suppress(*AWAY, ValueError):
            shown = await self._simulator.control("GET", "/faults")
            self._take("faults", shown["rules"])
            shown = await self._simulator.control("GET", "/webhooks?limit=0")
            self._take("webhooks", shown["rules"])

    def _take(self, which: str, rules: list[dict[str, Any]]) -> None:
        for rule in rules:
            name = self._names[which].get(rule["id"])
            if name is not None:
                self.injected[name] += rule["fired"] - self._counted[name]
                self._counted[name] = rule["fired"]

    def watch(self) -> None:
        """Records and restarts processes that ended by themselves."""
        for child in self._stack.children:
            if not child.running and child.returncode not in (None, -signal.SIGKILL):
                last = child.tail[-1] if child.tail else ""
                self.ended.append(f"{child.name} ended by itself with {child.returncode}: {last}")

    # The lanes

    async def _lane(self, steps: list[Step]) -> None:
        for step in steps:
            await asyncio.sleep(max(0.0, self._began + step.at - time.monotonic()))
            at_stripe = step.kind in (*BANK, *ACCOUNTS, TOPPED_UP)
            done = await (self._at_stripe(step) if at_stripe else self._do(step))
            if done:
                self.injected[step.kind] += 1

    async def _do(self, step: Step) -> bool:
        stack = self._stack
        match step.kind:
            case "kill replica":
                return await self._kill(stack.services[step.target], step.seconds)
            case "stop replica":
                child = stack.services[step.target]
                child.pause()
                await asyncio.sleep(step.seconds)
                child.resume()
                return True
            case "kill gateway":
                assert stack.gateway is not None
                return await self._kill(stack.gateway, step.seconds)
            case "kill postgres backend":
                return await self._soon(self._kill_backend)  # They may just be coming back.
            case "kill postmaster":
                return await asyncio.to_thread(self._kill_postmaster, step.seconds)
            case "kill simulator":
                assert stack.simulator is not None
                await self.count()
                done = await self._kill(stack.simulator, step.seconds)
                await self._arm()
                return done
            case "stripe away":
                return await self._stripe_away(step.seconds)
            case "deadlines near":
                postgres = stack.postgres
                assert postgres is not None
                # There may be none just now.
                return await self._soon(lambda: hurry.deadlines(postgres) > 0)
            case "no webhook at all":
                return await self._silence(step.seconds)
        raise AssertionError(step.kind)

    async def _at_stripe(self, step: Step) -> bool:
        """What it is about may not be there yet, or Stripe may just be coming back."""
        bank, scene = self.bank, self._scene
        acts: dict[str, Callable[[], Awaitable[bool]]] = {
            PAID_CONTESTED: lambda: bank.contest(scene.captured),
            HELD_CONTESTED: bank.contest_held,
            BANK_ASKS: bank.inquire,
            INQUIRY_ENDS: bank.end_inquiry,
            BANK_GIVES_BACK: lambda: bank.decide("win"),
            BANK_KEEPS: lambda: bank.decide("lose"),
            ISSUER_WARNS: bank.warn,
            REFUND_BOUNCES: self._bounce,
            FURTHER_LINE: bank.adjust,
            EXPERT_RESTRICTED: lambda: self._accounts.restrict(step.seconds),
            EXPERT_UNHEARD: lambda: self._restrict_unheard(step.seconds),
            EXPERT_REJECTED: self._accounts.reject,
            TOPPED_UP: lambda: top_up(self._simulator, self._chance.choice(_TOP_UPS)),
        }
        for _ in range(20):
            if await acts[step.kind]():
                return True
            await asyncio.sleep(0.2)
        return False

    async def _restrict_unheard(self, seconds: float) -> bool:
        done = await self._accounts.restrict_unheard(seconds)
        postgres = self._stack.postgres
        assert postgres is not None
        await asyncio.to_thread(hurry.account_checks, postgres)
        return done

    async def _bounce(self) -> bool:
        found: list[Row] = []
        with contextlib.suppress(psycopg2.Error):
            found = await asyncio.to_thread(rows, self._stack.database_url, _REFUNDS)
        return await self.bank.bounce([(row["movement_id"], row["payment_id"]) for row in found])

    async def _soon(self, work: Callable[[], bool]) -> bool:
        for _ in range(20):
            if await asyncio.to_thread(work):
                return True
            await asyncio.sleep(0.1)
        return False

    async def _kill(self, child: Child, down_seconds: float) -> bool:
        self.watch()
        await asyncio.to_thread(child.kill)
        await asyncio.sleep(down_seconds)
        await asyncio.to_thread(child.start)
        return True

    def _kill_backend(self) -> bool:
        """Kills one session of the service; PostgreSQL then ends all others and recovers."""
        postgres = self._stack.postgres
        assert postgres is not None
        with contextlib.suppress(psycopg2.Error):
            with (
                contextlib.closing(psycopg2.connect(postgres.admin_url())) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = "
                    "'payment_service' ORDER BY state <> 'active', query_start DESC LIMIT 1"
                )
                found = cursor.fetchone()
            if found is not None and _parent(found[0]) == postgres.pid:
                os.kill(found[0], signal.SIGKILL)
                return True
        return False

    def _kill_postmaster(self, down_seconds: float) -> bool:
        postgres = self._stack.postgres
        assert postgres is not None
        postgres.kill()
        time.sleep(down_seconds)
        postgres.start()
        return True

    async def _stripe_away(self, seconds: float) -> bool:
        """Refuses every request to Stripe, for longer than the circuit breaker needs to open."""
        try:
            shown = await self._simulator.control(
                "POST",
                "/faults",
                {"match": {"path": r"^/v1/(?!.*/confirm$)"}, "action": "status", "status": 503},
            )
            await asyncio.sleep(seconds)
            await self._simulator.control("DELETE", f"/faults/{shown['rules'][-1]['id']}")
        except AWAY:
            return False
        return True

    async def _silence(self, seconds: float) -> bool:
        """Loses every webhook; none is sent again."""
        try:
            await self.count()
            await self._simulator.control("DELETE", "/webhooks/rules")
            self._names["webhooks"] = {}
            await self._simulator.control("POST", "/webhooks/rules", {"action": "drop"})
        except AWAY:
            return False
        await asyncio.sleep(seconds)
        await self._arm_webhooks()
        return True

    async def _arm(self) -> None:
        """Gives its rules to a simulator that has just started."""
        await self._simulator.insist("POST", "/webhooks", _WEBHOOK_SETTINGS)
        await self._simulator.insist("POST", "/settings", _SIMULATOR_SETTINGS)
        rules = self.plan.stripe_rules
        self._forget(rules)
        shown = await self._simulator.insist(
            "POST",
            "/faults",
            {"rules": [r.body for r in rules], "seed": str(self.plan.seed), "replace": True},
        )
        self._names["faults"] = _named(shown["rules"], [rule.name for rule in rules])
        await self._arm_webhooks()

    async def _arm_webhooks(self) -> None:
        rules = self.plan.webhook_rules
        self._forget(rules)
        await self._simulator.insist("DELETE", "/webhooks/rules")
        shown = await self._simulator.insist(
            "POST", "/webhooks/rules", {"rules": [rule.body for rule in rules]}
        )
        self._names["webhooks"] = _named(shown["rules"], [rule.name for rule in rules])

    def _forget(self, rules: Sequence[Rule]) -> None:
        """Starts to count new rules at zero."""
        for rule in rules:
            self._counted.pop(rule.name, None)

    @property
    def missing(self) -> list[str]:
        """Returns the rules that have not struck yet, and what operators have not done yet."""
        rules = (*self.plan.stripe_rules, *self.plan.webhook_rules)
        done = self.injected + self._scene.deeds
        return [name for name in (*(rule.name for rule in rules), *DEEDS) if not done[name]]

    def _bring_up(self) -> None:
        self.watch()
        postgres = self._stack.postgres
        assert postgres is not None
        if not postgres.running:
            postgres.start()
        for child in self._stack.children:
            if child.running:
                child.resume()
            else:
                child.wait()
                child.start()


async def top_up(simulator: Simulator, amount: int) -> bool:
    """Adds money of its own to each of the platform's balances."""
    for currency in SETTLED:
        await simulator.insist(
            "POST", "/balance", {"amount": amount, "currency": currency, "type": "topup"}
        )
    return True


def _named(rules: list[dict[str, Any]], names: list[str]) -> dict[int, str]:
    return {rule["id"]: name for rule, name in zip(rules, names, strict=True)}


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat[stat.rindex(")") + 2 :].split()[1])
