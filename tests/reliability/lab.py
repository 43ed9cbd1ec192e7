"""The service in this process, driven one step at a time, over the real PostgreSQL and simulator.

Nothing runs by itself: the loops of the service are steps that a test takes. A crash is an
exception that no code catches, raised at a barrier: whatever was committed stays, the rest is gone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import psycopg2
from google.rpc import error_details_pb2, status_pb2

from dev.postgres import owner_url
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.stripe import client as stripe_client
from payment_service.application.app import App
from payment_service.application.execution import executor
from payment_service.application.idempotency import ReplayedRefusal
from payment_service.application.ingest_event import WebhookSecrets, ingest_event
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.jobs.check_accounts import check_accounts
from payment_service.application.jobs.collect_debts import collect_debts
from payment_service.application.jobs.poll_events import poll_events
from payment_service.application.jobs.recover_operations import recover_operations
from payment_service.application.jobs.retry_waiting_captures import retry_waiting_captures
from payment_service.application.jobs.write_off_lost_disputes import write_off_lost_disputes
from payment_service.application.recover_after_restore import Recovered, recover_after_restore
from payment_service.barriers import Barriers
from payment_service.bootstrap import Wired, wire
from payment_service.config import Settings
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.payment import Payment
from payment_service.rpc.errors import refusal_answer
from stripe_simulator import Config, RunningSimulator, start
from stripe_simulator.webhooks import sign
from tests.reliability.backups import Backups
from tests.reliability.oracle import AGAIN, OK
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET, SECRET_KEY
from tests.support.stripe import Stripe

#: How many seconds Stripe has: enough on a busy machine, and little where it will not answer.
PATIENT, IMPATIENT = 10.0, 0.3
#: Seconds: a card's authorization is always nearer its end, what the platform holds never is.
_LONGER_THAN_ANY_HOLD = 30 * 86_400.0


class Crashed(BaseException):
    """The process is gone; not an Exception, so that nothing survives it by mistake."""


class Bomb(Barriers):
    """Crashes at the n-th place that is reached from now on."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.went_off = 0

    def reach(self, kind: str, name: str, moment: str) -> None:
        if not self.left:
            return
        self.left -= 1
        if self.left:
            return
        self.went_off += 1
        raise Crashed(f"{kind}:{name}:{moment}")


@dataclass(frozen=True)
class Reply:
    """``OK``, a final refusal's reason, or ``again``."""

    told: str
    body: bytes = b""
    sentence: str = ""


class Lab:
    """Everything, on one event loop that only runs while a step is taken."""

    def __init__(self, database_url: str, backups: Backups) -> None:
        self.backups = backups
        self.runner = asyncio.Runner()
        self.bomb = Bomb()
        self.steps = 0
        self.faults_armed = 0
        self.faults_fired: dict[str, int] = {}
        #: What was there to be looked at when the model said what must be seen.
        self.seen: Counter[str] = Counter()
        self._connection = psycopg2.connect(owner_url(database_url))
        self._connection.autocommit = True
        self.runner.run(self._open(database_url))

    async def _open(self, database_url: str) -> None:
        self.simulator: RunningSimulator = await start(
            Config(port=0, seed="model", platform_funds=10_000_000)
        )
        # A payout would empty the very balances that the model expects reversals to be taken from.
        self.simulator.simulation.settings.payout_interval = "manual"
        self.http = aiohttp.ClientSession()
        self.stripe = Stripe(self.simulator.base_url, self.http)
        given: dict[str, Any] = {
            "database_url": database_url,
            "stripe_secret_key": SECRET_KEY,
            "stripe_api_base": self.simulator.base_url,
            "stripe_webhook_secret": (PLATFORM_SECRET,),
            "stripe_connect_webhook_secret": (CONNECT_SECRET,),
            "stripe_timeout": PATIENT,
            "platform_settlement_currencies": ("USD", "JPY"),
            "metrics_port": 0,
        }
        settings = Settings(**given)
        self.wired: Wired = wire(settings)
        self.database = SqlDatabase(
            database_url,
            policy=settings.policy,
            write_connections=2,
            read_connections=1,
            on_phase=self.bomb.phase,
        )
        self.app: App = replace(
            self.wired.app,
            database=self.database,
            expensive_database=None,
            stripe=self.bomb.watch(self.wired.stripe),
            policy=replace(self.wired.app.policy, claim_wait=0.05),
        )
        impatient = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0))
        for module in (executor, stripe_client):  # Pauses are for a Stripe that needs time.
            setattr(module, "asyncio", impatient)  # noqa: B010 - replaced for a test

    def close(self) -> None:
        async def close() -> None:
            await self.http.close()
            await self.wired.stripe.close()
            await self.simulator.close()
            await self.database.close()
            await self.wired.database.close()

        for module in (executor, stripe_client):
            setattr(module, "asyncio", asyncio)  # noqa: B010 - as it was
        self.runner.run(close())
        self.runner.close()
        self._connection.close()

    # ---- steps ----

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def ask(self, work: Coroutine[Any, Any, Any]) -> Reply:
        """Makes a caller's call and returns its answer."""
        try:
            told = self.runner.run(work)
        except ReplayedRefusal as refusal:
            return Reply(_reason(refusal.answer.body), refusal.answer.body)
        except Precondition as refusal:
            return Reply(refusal.reason, refusal_answer(refusal).body)
        except Refusal as refusal:
            return Reply(AGAIN, sentence=f"{refusal.reason}: {refusal}")
        except Crashed as crash:
            return Reply(AGAIN, sentence=f"crashed at {crash}")
        finally:
            self.bomb.left = 0
        return Reply(OK, told.body)

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        self.wired.stripe._http._timeout = aiohttp.ClientTimeout(total=seconds)
        yield
        self.wired.stripe._http._timeout = aiohttp.ClientTimeout(total=PATIENT)

    def sweep(self) -> None:
        """Ends every lease and every pause, then runs one round of recovery."""
        self.sql(
            "UPDATE operations SET next_try_time = now(), lease_until = NULL "
            "WHERE state IN ('STARTED', 'UNKNOWN')"
        )
        try:
            self.run(recover_operations(self.app))
            # The minute in which a request may still arrive is over: what is parked can be ended.
            self.sql(
                "UPDATE operations SET unsure_until = now() "
                "WHERE state = 'PARKED' AND unsure_until IS NOT NULL"
            )
        except (Refusal, Crashed):
            pass
        finally:
            self.bomb.left = 0

    def deadlines(self) -> None:
        """Brings every authorization near its end, then runs one round of the deadline job."""
        policy = replace(self.app.policy, deadline_margin=_LONGER_THAN_ANY_HOLD)
        try:
            self.run(act_on_deadlines(replace(self.app, policy=policy)))
        except (Refusal, Crashed):
            pass
        finally:
            self.bomb.left = 0

    def look_at_accounts(self) -> None:
        """The clock asks Stripe about the experts' accounts; what waits for them goes on."""
        self.sql("UPDATE experts SET check_due_time = now() WHERE check_due_time > now()")
        self._round(check_accounts(self.app))
        self._round(retry_waiting_captures(self.app))

    def collect(self) -> None:
        """The collection of debts has its turn."""
        self.sql("UPDATE debt_checks SET next_time = now(), pause = interval '0'")
        self._round(collect_debts(self.app))

    def write_off_losses(self) -> None:
        self._round(write_off_lost_disputes(self.app))

    def _round(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self.run(work)
        except (Refusal, Crashed):
            pass
        finally:
            self.bomb.left = 0

    def apply(self) -> None:
        self.sql("UPDATE webhook_events SET next_try_time = now() WHERE state = 'WAITING'")
        self.run(apply_waiting(self.app))

    def deliver(self, event: dict[str, Any]) -> None:
        """As the gateway would hand it on."""
        payload = json.dumps(event)
        signature = sign(payload, (PLATFORM_SECRET,), int(time.time()))
        secrets = WebhookSecrets((PLATFORM_SECRET,), livemode=False)
        self.run(ingest_event(self.app, "platform", payload.encode(), signature, secrets))

    def poll(self) -> None:
        """The poller's time has come."""
        self.sql(
            "UPDATE event_cursors SET next_time = now() + "
            "CASE WHEN scope = 'platform' THEN interval '0' ELSE interval '1 day' END"
        )
        self.run(poll_events(self.app))

    def nothing_is_polled(self) -> None:
        """The poller has found nothing new just now, as it does every ten seconds.

        Otherwise the books count as older than Stripe's after a minute.
        """
        self.sql("UPDATE event_cursors SET seen_until = now() WHERE scope = 'platform'")

    def recover(self, since: datetime) -> list[str]:
        """Runs `recover-after-restore` and returns what it said."""

        async def read() -> list[str]:
            return [line async for line in recover_after_restore(self.app, since, Recovered())]

        return list(self.run(read()))

    def heal(self) -> None:
        """Stripe answers again, and is known to."""
        self.run(self.stripe.clear_faults())
        self.wired.stripe._calls.breaker.answered()  # Else a second's pause.

    def arm(self, path: str, action: str, when: str, **more: Any) -> None:
        self.faults_armed += 1
        self.run(self.stripe.fault(path, action, when, **more))

    def disarm(self, name: str) -> bool:
        """Take the fault away again; whether it had struck."""
        fired: int = self.run(self.stripe.fired())
        if fired:
            self.faults_fired[name] = self.faults_fired.get(name, 0) + 1
        self.run(self.stripe.clear_faults())
        self.wired.stripe._calls.breaker.answered()  # As after a second.
        return bool(fired)

    # ---- reads ----

    def payment(self, payment_id: str) -> Payment | None:
        found: Payment | None = self.run(
            self.database.read(lambda reader: reader.payment(payment_id))
        )
        return found

    def sql(self, query: str, *values: object) -> Sequence[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall()) if cursor.description else []

    def api(self, method: str, path: str, **params: Any) -> Any:
        return self.run(self.stripe.api(method, path, **params))

    def control(self, method: str, path: str, body: Any = None) -> Any:
        return self.run(self.stripe.control(method, path, body))

    def newer(self, path: str, last: str, account: str = "") -> list[dict[str, Any]]:
        """The objects of one of Stripe's lists that are newer than one, oldest first."""
        if not last:
            return self._all(path, account)
        found: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", path, account=account, limit=100, ending_before=last)
            found += page["data"][::-1]
            if not page["has_more"]:
                return found
            last = found[-1]["id"]

    def _all(self, path: str, account: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            page = self.api("GET", path, account=account, limit=100, **more)
            found += page["data"]
            if not page["has_more"]:
                return found[::-1]
            more = {"starting_after": found[-1]["id"]}


def _reason(body: bytes) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(body).details:
        if detail.Unpack(info):
            return info.reason
    return "without a reason"
