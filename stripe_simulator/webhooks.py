"""Delivering events: signed, retried, in order, or as badly as a test wants.

Signatures follow Stripe's scheme: `t` is fresh for each attempt and in *real* time (a receiver
compares it with its own clock, which the simulator's does not move), and every secret of an
endpoint adds one `v1`. A delivery that is not answered with 2xx is tried again; that never holds
up the deliveries behind it, so a retried event arrives late, as at Stripe.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import hmac
import json
import logging
import random
import re
import time
from typing import Any

import aiohttp

from stripe_simulator.config import WebhookTarget
from stripe_simulator.events import add_delivery, kind_of, of_delivery, targets
from stripe_simulator.rendering import plain
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row
from stripe_simulator.thin_events import notification

log = logging.getLogger("stripe_simulator")

ACTIONS = ("drop", "duplicate", "delay", "reorder", "forge")


@dataclasses.dataclass
class DeliverySettings:
    """Moved by `POST /_simulator/webhooks`."""

    paused: bool = False
    # Seconds before each further attempt; the last one repeats until `max_attempts`.
    retry_seconds: list[float] = dataclasses.field(
        default_factory=lambda: [1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0]
    )
    max_attempts: int = 20
    timeout_seconds: float = 10.0
    # Deliveries to one endpoint at the same time; more than one gives up their order.
    concurrency: int = 1


@dataclasses.dataclass
class Rule:
    """Which deliveries are mistreated, and how.

    `drop` never sends it; `duplicate` sends `copies` more; `delay` sends it `delay_ms` later;
    `reorder` holds `window` deliveries back and sends them shuffled; `forge` first sends a copy
    with a signature by a wrong secret.
    """

    id: int
    action: str
    type: str | None = None
    scope: str | None = None
    nth: int | None = None
    every: int | None = None
    probability: float | None = None
    times: int | None = None
    copies: int = 1
    delay_ms: int = 1000
    window: int = 5
    flush_ms: int = 1000
    matched: int = 0
    fired: int = 0


def sign(payload: str, secrets: tuple[str, ...], moment: int) -> str:
    """The Stripe-Signature header: HMAC-SHA256 of `t.body`, one v1 for each secret."""
    signed = f"{moment}.{payload}".encode()
    digests = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={moment}", *(f"v1={digest}" for digest in digests)])


class Webhooks:
    def __init__(self, simulation: Simulation) -> None:
        self.settings = DeliverySettings()
        self.rules: list[Rule] = []
        self._simulation = simulation
        # Chance for tests, no secret.
        self._random = random.Random(f"{simulation.ids.seed}:webhooks")
        # Deliveries that are neither done nor given up, and whether there are none.
        self._outstanding: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_rule = 0
        self._queues: dict[str, asyncio.Queue[str]] = {}
        self._workers: dict[str, list[asyncio.Task[None]]] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._windows: dict[int, list[str]] = collections.defaultdict(list)
        self._session: aiohttp.ClientSession | None = None
        self._running = asyncio.Event()
        self._running.set()
        simulation.dispatch = self.dispatch

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
        )
        self.resume_stored()

    def resume_stored(self) -> None:
        """Take up again what a former run had not delivered."""
        for row in self._simulation.store.all("delivery"):
            if row["state"] == "pending":
                self._outstanding.add(row["id"])
                self._enqueue(row["id"], row["url"])
        self._note_idle()

    def _note_idle(self) -> None:
        if self._outstanding:
            self._idle.clear()
        else:
            self._idle.set()

    async def close(self) -> None:
        tasks = [*self._later, *(task for tasks in self._workers.values() for task in tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def forget(self) -> None:
        """Drop what waits (after a reset); rules and settings go too."""
        for task in self._later:
            task.cancel()
        for tasks in self._workers.values():
            for task in tasks:
                task.cancel()
        self._workers.clear()
        self._queues.clear()
        self._windows.clear()
        self.rules.clear()
        self._outstanding.clear()
        self._idle.set()
        self.move(dataclasses.asdict(DeliverySettings()))

    def move(self, changes: dict[str, Any]) -> None:
        """Change the settings; pausing keeps deliveries waiting until it is lifted."""
        known = dataclasses.asdict(self.settings)
        for name in changes:
            if name not in known:
                raise ValueError(f"unknown webhook setting {name}; there are {', '.join(known)}")
        for name, value in changes.items():
            setattr(self.settings, name, value)
        if self.settings.paused:
            self._running.clear()
        else:
            self._running.set()
        for url in list(self._workers):
            self._staff(url)

    def add_rule(self, given: dict[str, Any]) -> Rule:
        known = {field.name for field in dataclasses.fields(Rule)} - {"id", "matched", "fired"}
        for name in given:
            if name not in known:
                raise ValueError(f"unknown {name} in a rule; there are {', '.join(sorted(known))}")
        if given.get("action") not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}")
        if given.get("type") is not None:
            re.compile(given["type"])
        self._last_rule += 1
        rule = Rule(id=self._last_rule, **given)
        self.rules.append(rule)
        return rule

    # Planning -----------------------------------------------------------------------------------

    def dispatch(self, ids: list[str]) -> None:
        """Send new deliveries on their way, as the rules have it."""
        self._outstanding.update(ids)
        self._note_idle()
        for id_ in ids:
            self._plan(id_)

    def _plan(self, id_: str) -> None:
        store = self._simulation.store
        row = store.get("delivery", id_)
        if row is None:
            return
        rule = self._strike(row)
        action = rule.action if rule else None
        if rule is None or action in ("duplicate", "forge"):
            if rule is not None and action == "forge":
                self._soon(self._send_forged(row), 0)
            self._enqueue(id_, row["url"])
            for _ in range(rule.copies if rule and action == "duplicate" else 0):
                self._enqueue(id_, row["url"])
        elif action == "drop":
            with self._simulation.acting():
                store.change("delivery", id_, state="dropped")
            self._outstanding.discard(id_)
            self._note_idle()
        elif action == "delay":
            self._soon(self._enqueue_later(id_, row["url"]), rule.delay_ms / 1000)
        else:
            self._hold(rule, id_)

    def _strike(self, row: Row) -> Rule | None:
        for rule in self.rules:
            scope = of_delivery(self._simulation, row)["_scope"]
            if rule.type is not None and not re.search(rule.type, row["type"]):
                continue
            if rule.scope is not None and rule.scope != scope:
                continue
            rule.matched += 1
            if rule.times is not None and rule.fired >= rule.times:
                continue
            if rule.nth is not None and rule.matched != rule.nth:
                continue
            if rule.every is not None and rule.matched % rule.every:
                continue
            if rule.probability is not None and self._random.random() >= rule.probability:
                continue
            rule.fired += 1
            return rule
        return None

    def _hold(self, rule: Rule, id_: str) -> None:
        """Collect a window; send it shuffled when it is full, or after a while as it is."""
        window = self._windows[rule.id]
        window.append(id_)
        if len(window) >= rule.window:
            self._flush(rule.id)
        elif len(window) == 1:
            self._soon(self._flush_later(rule.id), rule.flush_ms / 1000)

    async def _flush_later(self, rule: int) -> None:
        self._flush(rule)

    def _flush(self, rule: int) -> None:
        held = self._windows.pop(rule, [])
        self._random.shuffle(held)
        for id_ in held:
            row = self._simulation.store.get("delivery", id_)
            if row is not None:
                self._enqueue(id_, row["url"])

    # Sending ------------------------------------------------------------------------------------

    def _enqueue(self, id_: str, url: str) -> None:
        self._queues.setdefault(url, asyncio.Queue()).put_nowait(id_)
        self._staff(url)

    async def _enqueue_later(self, id_: str, url: str) -> None:
        self._enqueue(id_, url)

    def _soon(self, coroutine: Any, seconds: float) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await coroutine

        task = asyncio.get_running_loop().create_task(wait())
        self._later.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._later.discard(task)
            coroutine.close()

        task.add_done_callback(done)

    def _staff(self, url: str) -> None:
        """As many workers for an endpoint as the settings allow."""
        workers = [task for task in self._workers.get(url, []) if not task.done()]
        wanted = max(1, self.settings.concurrency)
        while len(workers) < wanted:
            queue = self._queues.setdefault(url, asyncio.Queue())
            workers.append(asyncio.get_running_loop().create_task(self._work(queue)))
        for surplus in workers[wanted:]:
            surplus.cancel()
        self._workers[url] = workers[:wanted]

    async def _work(self, queue: asyncio.Queue[str]) -> None:
        while True:
            id_ = await queue.get()
            try:
                await self._running.wait()
                await self._attempt(id_)
            except asyncio.CancelledError:
                # A worker that is dismissed leaves its delivery to the others.
                queue.put_nowait(id_)
                raise
            except Exception:
                # One bad delivery must not end the others.
                log.exception("delivery %s could not be attempted", id_)
                self._record(id_, "failed", None)

    def _target(self, row: Row) -> WebhookTarget | None:
        scope = of_delivery(self._simulation, row)["_scope"]
        for target in targets(self._simulation):
            if target.url == row["url"] and target.scope == scope:
                return target
        return None

    async def _attempt(self, id_: str) -> None:
        """One attempt; what follows from its answer is stored before anything else happens."""
        row = self._simulation.store.get("delivery", id_)
        if row is None:
            return
        target = self._target(row)
        if target is None:
            self._record(id_, "abandoned", None)
            return
        status = await self._post(target, self._payload(row), target.secrets)
        if status is not None and 200 <= status < 300:
            self._record(id_, "delivered", status)
            return
        row = self._simulation.store.get("delivery", id_)
        if row is None or row["state"] == "delivered":
            return
        attempts = row["attempts"] + 1
        if attempts >= self.settings.max_attempts:
            self._record(id_, "failed", status)
            return
        self._record(id_, "pending", status)
        waits = self.settings.retry_seconds or [1.0]
        self._soon(self._enqueue_later(id_, row["url"]), waits[min(attempts, len(waits)) - 1])

    def _payload(self, row: Row) -> str:
        event = plain(self._simulation, of_delivery(self._simulation, row))
        return json.dumps(notification(event) if "related_object" in event else event, indent=2)

    async def _post(
        self, target: WebhookTarget, payload: str, secrets: tuple[str, ...]
    ) -> int | None:
        """The status of the answer, or None where there was none."""
        assert self._session is not None
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Cache-Control": "no-cache",
            "Stripe-Signature": sign(payload, secrets, int(time.time())),
        }
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_seconds)
        try:
            async with self._session.post(
                target.url,
                data=payload.encode(),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def _send_forged(self, row: Row) -> None:
        target = self._target(row)
        if target is not None:
            await self._post(target, self._payload(row), ("whsec_forged",))

    def _record(self, id_: str, state: str, status: int | None) -> None:
        store = self._simulation.store
        row = store.get("delivery", id_)
        if row is None:
            return
        with self._simulation.acting():
            if row["state"] != "delivered":
                attempts = row["attempts"] + 1
                store.change("delivery", id_, state=state, attempts=attempts, last_status=status)
            if state == "delivered" and row["state"] != "delivered":
                event = of_delivery(self._simulation, row)
                pending = max(0, event["_pending"] - 1)
                store.change(
                    kind_of(event["id"]), event["id"], _pending=pending, _delivered=pending == 0
                )
        if state != "pending":
            self._outstanding.discard(id_)
            self._note_idle()

    # For the control API ------------------------------------------------------------------------

    def redeliver(self, event_id: str) -> int:
        """Send an event once more to every endpoint that it concerns, as the Dashboard can."""
        simulation = self._simulation
        event = simulation.store.get(kind_of(event_id), event_id)
        if event is None:
            raise ValueError(f"no such event: {event_id}")
        scope = event["_scope"]
        sent = 0
        earlier = len(list(simulation.store.select("delivery", {"event": event_id})))
        with simulation.acting():
            for target in targets(simulation):
                if target.scope == scope:
                    id_ = f"{event_id}:{earlier + sent}"
                    add_delivery(simulation, event_id, target.url, id_, event["type"])
                    sent += 1
            # Redelivery is asked for, so no rule may take it away.
            ids, simulation.new_deliveries = simulation.new_deliveries, []
        self._outstanding.update(ids)
        self._note_idle()
        for id_ in ids:
            self._enqueue(id_, simulation.store.require("delivery", id_)["url"])
        return sent

    def status(self, limit: int) -> dict[str, Any]:
        rows = self._simulation.store.all("delivery")
        counts = collections.Counter(row["state"] for row in rows)
        return {
            "settings": dataclasses.asdict(self.settings),
            "rules": [dataclasses.asdict(rule) for rule in self.rules],
            "targets": [dataclasses.asdict(target) for target in targets(self._simulation)],
            "counts": dict(counts),
            "deliveries": [
                {name: value for name, value in row.items() if name[0] != "_"}
                for row in rows[-limit:]
            ],
        }

    async def settle(self, seconds: float) -> bool:
        """Wait until nothing is pending, for tests; False when it takes longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
                return True
        return False
