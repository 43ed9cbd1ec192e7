"""Named places at which a test can kill or stop the process: every phase, every call to Stripe.

The use cases do not know them. They are at the two ports, so a new phase or a new call has its
barriers at once. They are armed by the environment, and only in development:

    BARRIER=phase:claim_and_start:uncommitted   BARRIER_ACTION=kill   BARRIER_NTH=1

The moments of a phase are ``before`` (no transaction yet), ``uncommitted`` (all written, not
committed) and ``after`` (committed); those of a call to Stripe are ``before`` and ``after``.

    BARRIER_FILE=path    arms a running process: the file contains ``PLACE [NTH [ACTION]]``. It is
                         read at every place, and deleted before the action
    BARRIER_TRACE=path   every place that is reached is written there, one in each line
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from payment_service.domain.ports.stripe import StripePort

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_MOMENT_SECONDS = 0.05


@dataclass(slots=True)
class Barriers:
    """Counts how often the armed place is reached, and acts once, at the n-th time."""

    #: ``PLACE NTH ACTION``; empty while nothing is armed.
    order: str = ""
    file: Path | None = None
    trace: Path | None = None
    reached: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Barriers | None:
        """Returns the barriers, or None if none can be armed and none is traced."""
        armed, file, trace = (
            environ.get(name, "") for name in ("BARRIER", "BARRIER_FILE", "BARRIER_TRACE")
        )
        if not armed and not file and not trace:
            return None
        nth, action = environ.get("BARRIER_NTH", "1"), environ.get("BARRIER_ACTION", "kill")
        return cls(
            f"{armed} {nth} {action}" if armed else "",
            Path(file) if file else None,
            Path(trace) if trace else None,
        )

    def reach(self, kind: str, name: str, moment: str) -> None:
        """Acts if this place is armed and is reached for the n-th time."""
        place = f"{kind}:{name}:{moment}"
        if self.trace is not None:
            with self.trace.open("a") as trace:
                trace.write(f"{place}\n")
        self._read_order()
        armed, nth, action = (*self.order.split(), "1", "kill")[:3] if self.order else ("",) * 3
        if place != armed:
            return
        self.reached += 1
        if self.reached != int(nth):
            return
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        os.kill(os.getpid(), _ACTIONS[action])
        # The signal ends or stops the process a moment later. Nothing may happen before.
        time.sleep(_MOMENT_SECONDS)

    def _read_order(self) -> None:
        if self.file is None:
            return
        try:
            order = self.file.read_text()
        except FileNotFoundError:
            order = ""
        if order != self.order:
            self.order, self.reached = order, 0

    def phase(self, name: str, moment: str) -> None:
        """Reaches a moment of a phase of the database."""
        self.reach("phase", name, moment)

    def watch(self, stripe: StripePort) -> StripePort:
        """Returns the same port, with a barrier before and after every call."""
        return cast("StripePort", _Watched(stripe, self))


class _Watched:
    def __init__(self, stripe: StripePort, barriers: Barriers) -> None:
        self._stripe = stripe
        self._barriers = barriers

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stripe, name)
        if not callable(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._barriers.reach("stripe", name, "before")
            result = await method(*args, **kwargs)
            self._barriers.reach("stripe", name, "after")
            return result

        return call
