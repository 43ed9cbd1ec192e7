"""Named places at which a test can kill or stop the process: every phase, every call to Stripe.

Nothing in the use cases knows of them: they sit at the two ports, so a new phase or a new call has
its barriers from the first day. Armed by the environment, and only in development:

    BARRIER=phase:begin_capture:uncommitted   BARRIER_ACTION=kill   BARRIER_NTH=1

The moments of a phase are ``before`` (no transaction yet), ``uncommitted`` (all written, not
committed) and ``after`` (committed); those of a call to Stripe are ``before`` and ``after``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from payment_service.domain.ports import StripePort

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True)
class Barriers:
    """Counts how often the armed place is reached, and acts at the n-th time, once."""

    armed: str
    number: signal.Signals
    nth: int
    reached: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Barriers | None:
        """None unless a barrier is armed."""
        armed = environ.get("BARRIER", "")
        if not armed:
            return None
        action = _ACTIONS[environ.get("BARRIER_ACTION", "kill")]
        return cls(armed, action, int(environ.get("BARRIER_NTH", "1")))

    def reach(self, kind: str, name: str, moment: str) -> None:
        if f"{kind}:{name}:{moment}" != self.armed:
            return
        self.reached += 1
        if self.reached == self.nth:
            os.kill(os.getpid(), self.number)

    def phase(self, name: str, moment: str) -> None:
        self.reach("phase", name, moment)

    def watch(self, stripe: StripePort) -> StripePort:
        """The same port, with a barrier before and after every call."""
        return cast("StripePort", _Watched(stripe, self))


class _Watched:
    def __init__(self, stripe: StripePort, barriers: Barriers) -> None:
        self._stripe = stripe
        self._barriers = barriers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stripe, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._barriers.reach("stripe", name, "before")
            result = await method(*args, **kwargs)
            self._barriers.reach("stripe", name, "after")
            return result

        return call
