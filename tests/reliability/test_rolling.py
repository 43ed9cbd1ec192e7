"""Replicas are asked to leave and come back, one after the other, and no caller ever notices."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from payment_service.config import Settings
from tests.reliability import proving
from tests.reliability.callers import calling
from tests.reliability.system import System

_ROLLS = proving.by_profile(3, 100)
#: A full run ends after so long even if the machine is too busy for all of them.
_SECONDS = proving.by_profile(60.0, 1500.0)
_GRACE = float(Settings.model_fields["shutdown_grace"].default)
#: Beyond the grace: closing the pools, and the interpreter's own end.
_EXIT_SLACK = 1.0


@pytest.mark.timeout(proving.by_profile(180, 1800))
def test_callers_notice_no_rolling_restart(system: System) -> None:
    async def run() -> None:
        async with system.worlds() as worlds, calling(system, worlds[0]) as load:
            exits: list[float] = []
            began = time.monotonic()
            replicas = len(system.stack.services)
            while len(exits) < _ROLLS and time.monotonic() - began < _SECONDS:
                await asyncio.sleep(load.chance.uniform(0.0, 0.4))
                exits.append(await system.roll(len(exits) % replicas))
                if not len(exits) % 10:
                    proving.progress(
                        f"rolling: {len(exits)} of {_ROLLS}, {len(load.failures)} failures in "
                        f"{load.calls.total()} calls"
                    )
        assert not load.failures, "\n".join(load.failures[:20])
        assert max(exits) <= _GRACE + _EXIT_SLACK
        for name in ("initiate", "capture", "refund", "read"):
            assert load.calls[name] > len(exits) // 2, load.calls
        proving.figure(
            "K",
            f"rolling: {len(exits)} SIGTERMs over {replicas} replicas under {load.calls.total()} "
            f"calls ({dict(load.calls)}), 0 failed, slowest {max(load.seconds):.2f} s; left after "
            f"{statistics.median(exits):.2f} s, at most {max(exits):.2f} s (grace {_GRACE:.0f} s)",
        )

    asyncio.run(run())
