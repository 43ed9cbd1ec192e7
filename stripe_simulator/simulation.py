"""The simulated Stripe: one object that the endpoints, the pages and the control API act upon.

Everything that changes state is synchronous and runs on one event loop, so that a request is
atomic without locks. `acting` frames one such change: what it did is committed together, and the
webhook deliveries that it caused are handed over only afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from stripe_simulator.clock import Clock
from stripe_simulator.config import API_VERSION, Config, Settings
from stripe_simulator.errors import no_such
from stripe_simulator.ids import Ids, scrambled
from stripe_simulator.store import Row, Store

if TYPE_CHECKING:
    from stripe_simulator.balance import Balances


@dataclasses.dataclass(frozen=True)
class Cause:
    """What an event's `request` names: nothing when Stripe itself acts."""

    request_id: str | None = None
    idempotency_key: str | None = None


def _settings(config: Config) -> Settings:
    return Settings(latency_ms=config.latency_ms, webhook_events=config.webhook_events)


class Simulation:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = Store(config.state)
        self.clock = Clock()
        self.settings = _settings(config)
        self.base_url = config.public_url or ""
        self.cause = Cause()
        # Deliveries that the present change caused; given to `dispatch` once it is committed.
        self.new_deliveries: list[str] = []
        self.dispatch: Callable[[list[str]], None] = lambda _ids: None
        self._due: list[tuple[int, int, str, str]] = []
        self.due_handlers: dict[str, Callable[[str], None]] = {}
        # Told when rows were undone or loaded, so that what is derived from rows is made anew.
        self.on_rebuild: list[Callable[[], None]] = []
        self.ids = Ids("")
        self.requests = 0
        self.balances: Balances
        self.boot = 0
        self._open()

    @property
    def platform(self) -> str:
        return self.config.platform_account

    @property
    def application(self) -> str:
        """The platform as an application, the same for one seed."""
        return "ca_" + scrambled(f"{self.ids.seed}:application", 32)

    def _open(self) -> None:
        """Read what a former run left: seed, counters, clock and switches."""
        saved = self.store.get("meta", "ids")
        if saved is not None:
            self.ids = Ids(saved["seed"])
            self.ids.counters = dict(saved["counters"])
        else:
            self.ids = Ids(self.config.seed or secrets.token_hex(8))
        clock = self.store.get("meta", "clock")
        if clock is not None:
            self.clock.load(clock["clock"])
        settings = self.store.get("meta", "settings")
        if settings is not None:
            self.settings = Settings(**settings["settings"])
            if self.config.latency_ms:
                self.settings.latency_ms = self.config.latency_ms
            if self.config.webhook_events != Config.webhook_events:
                self.settings.webhook_events = self.config.webhook_events
        boot = self.store.get("meta", "boot")
        self.boot = (boot["boot"] if boot else 0) + 1
        self.store.put("meta", "boot", boot=self.boot)
        self._save_ids()
        self.store.commit()

    def _save_ids(self) -> None:
        self.store.put("meta", "ids", seed=self.ids.seed, counters=dict(self.ids.counters))
        self.ids.changed = False

    def save_clock_and_settings(self) -> None:
        self.store.put("meta", "clock", clock=self.clock.dump())
        self.store.put("meta", "settings", settings=dataclasses.asdict(self.settings))

    def rebuild(self) -> None:
        """Make anew what is derived from rows: balances and due times."""
        self._due.clear()
        for callback in self.on_rebuild:
            callback()

    def reset(self) -> None:
        """Back to an empty Stripe with the same seed; the clock and the switches too."""
        seed = self.ids.seed
        self.store.clear()
        self.ids = Ids(seed)
        self.clock = Clock()
        self.settings = _settings(self.config)
        self.new_deliveries.clear()
        self._save_ids()
        self.store.put("meta", "boot", boot=self.boot)
        self.store.commit()
        self.rebuild()

    def now(self) -> int:
        return self.clock.now()

    def new_id(self, prefix: str, length: int = 24) -> str:
        return self.ids.new(prefix, length)

    def new_request_id(self) -> str:
        """Not counted with the objects' ids: how often a test polls must not change those."""
        self.requests += 1
        return Ids(f"{self.ids.seed}:{self.boot}:{self.requests}").new("req_", 14)

    @contextlib.contextmanager
    def acting(self, cause: Cause | None = None) -> Iterator[None]:
        """One change: all of it or nothing, then the deliveries that it caused."""
        before, self.cause = self.cause, cause or Cause()
        try:
            yield
        except BaseException:
            self.undo()
            raise
        finally:
            self.cause = before
        if self.ids.changed:
            self._save_ids()
        self.store.commit()
        deliveries, self.new_deliveries = self.new_deliveries, []
        if deliveries:
            self.dispatch(deliveries)

    @contextlib.contextmanager
    def unasked(self) -> Iterator[None]:
        """What others do on the occasion of a request: its key and its id do not cover that."""
        before, self.cause = self.cause, Cause()
        try:
            yield
        finally:
            self.cause = before

    def undo(self) -> None:
        """Take back what the present change has done so far."""
        self.new_deliveries.clear()
        if self.store.changed:
            self.store.rollback()
            self.rebuild()

    def schedule(self, moment: int, action: str, id_: str) -> None:
        """Have `due_handlers[action]` called with `id` once the clock has reached `moment`.

        The schedule itself is not stored: whoever schedules can tell from the rows what is due,
        and does so in a callback of `on_rebuild`.
        """
        heapq.heappush(self._due, (moment, len(self._due), action, id_))

    def process_due(self) -> None:
        """Do what the clock has reached, each thing as though at its own time."""
        while self._due and self._due[0][0] <= self.clock.now():
            moment, _order, action, id_ = heapq.heappop(self._due)
            with self.clock.pinned(moment), self.acting():
                self.due_handlers[action](id_)

    def effect(
        self,
        kind: str,
        object_id: str,
        *,
        payment_intent: str | None = None,
        amount: int | None = None,
        currency: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Note that something really happened, for tests to count; replays note nothing."""
        number = self.store.count("effect") + 1
        self.store.insert(
            "effect",
            {
                "id": str(number),
                "sequence": number,
                "kind": kind,
                "object": object_id,
                "payment_intent": payment_intent,
                "amount": amount,
                "currency": currency,
                "metadata": metadata or {},
                "idempotency_key": self.cause.idempotency_key,
                "request": self.cause.request_id,
                "time": self.now(),
            },
        )


def merged_metadata(current: dict[str, str], given: dict[str, str] | None) -> dict[str, str]:
    """Metadata as Stripe merges it: an empty value removes its key, unsetting it removes all."""
    if given is None:
        return {}
    merged = {**current, **given}
    return {key: value for key, value in merged.items() if value != ""}


@dataclasses.dataclass(frozen=True)
class Call:
    """One request that has passed authentication and parsing, as an endpoint sees it."""

    simulation: Simulation
    account: str
    params: dict[str, Any]
    path: dict[str, str]
    publishable: bool = False
    api_version: str = API_VERSION

    def get(self, name: str, default: Any = None) -> Any:
        return self.params.get(name, default)

    def object(self, kind: str, param: str, noun: str | None = None) -> Row:
        """The object that the path names, if it is the caller's."""
        id_ = self.path[param]
        row = self.simulation.store.get(kind, id_)
        if row is None or row["_account"] != self.account:
            raise no_such(noun or kind, id_, param, in_path=True)
        return row
