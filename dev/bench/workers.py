"""One worker and two on the same machine, one after the other: what each number carries.

The callers, the simulator and PostgreSQL run on the same processors. So a second worker shows what
it adds only on a machine that has processors to spare.
"""

import asyncio
from dataclasses import replace
from typing import Any, Final

from dev.bench.run import FULL, Bench
from dev.bench.stand import Say, started

NUMBERS: Final = (1, 2)
_IN_FLIGHT: Final = 128
_TOTAL_SECONDS: Final = 300.0
_CALLS: Final = ("InitiatePayment", "CapturePayment", "GetPayment")


async def compare(say: Say) -> list[dict[str, Any]]:
    """Returns throughput and latencies for each number of workers; all calls by one channel."""
    rows: list[dict[str, Any]] = []
    size = replace(FULL, in_flight=(_IN_FLIGHT,))
    for workers in NUMBERS:
        say(f"{workers} worker(s)")
        async with asyncio.timeout(_TOTAL_SECONDS), started(say, workers=workers) as stand:
            bench = Bench(stand)
            await bench.market.prepare()
            for latency_ms in (0, 300):
                cells = await bench.cells(size, latency_ms, say)
                chosen = [cell for cell in cells if cell["call"] in _CALLS]
                rows += [{"workers": workers, **cell} for cell in chosen]
    return rows
