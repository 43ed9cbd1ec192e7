"""A task that ends is reported and begins again, until it is cancelled."""

import asyncio

import pytest

from payment_service.application.jobs.supervision import supervised
from payment_service.metrics import Metrics


class Work:
    """Fails, ends, and then runs for ever."""

    def __init__(self) -> None:
        self.begun = 0
        self.runs = asyncio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        if self.begun == 1:
            raise ValueError("a secret")
        if self.begun == 2:
            return
        self.runs.set()
        await asyncio.Event().wait()


async def test_it_begins_again_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    metrics, work = Metrics(), Work()
    task = asyncio.create_task(supervised(metrics, "gauges", work, pause=0))
    await asyncio.wait_for(work.runs.wait(), 10)
    failures = metrics.registry.get_sample_value(
        "payments_background_failures_total", {"task": "gauges"}
    )
    assert failures == 2
    said = capsys.readouterr().out
    assert "ValueError" in said
    assert "a secret" not in said
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.begun == 3
