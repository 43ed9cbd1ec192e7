"""The parent of workers, with small processes in place of theirs; and their one metrics page."""

from __future__ import annotations

import asyncio
import re
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dev.ports import first_free_port
from payment_service.metrics import Metrics
from payment_service.metrics_site import MetricsSite
from payment_service.workers import pages as pages_module
from payment_service.workers.pages import WorkerPages, merged
from tests.support.nursery import Nursery

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(nursery: Nursery) -> Run:
    """Runs a script in a process of its own: a parent forks, and takes the signals."""
    beginning = """
        import os, signal, sys, threading, time
        from payment_service.workers import parent as module
        from payment_service.workers.parent import Parent, Post

        def main(*works, pages=None, grace=2.0):
            posts = [Post(f"worker {number}", work) for number, work in enumerate(works)]
            sys.exit(Parent(posts, pages and Post("pages", pages), grace).run())

        def lives(starts, tie):
            while tie.heard():
                tie.beat()
                time.sleep(0.05)
            return 0
    """

    def run(script: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        return nursery.run_code(textwrap.dedent(beginning) + textwrap.dedent(script), seconds)

    return run


def test_a_worker_that_dies_again_and_again_ends_all(run: Run) -> None:
    done = run(
        """
        module._PAUSES = (0.01,)
        main(lives, lambda starts, tie: 7)
        """
    )
    assert done.returncode == 1
    assert "worker 1 has died 5 times in a row" in done.stderr
    assert "the last time by exit code 7" in done.stderr
    assert done.stdout.count("worker_died") == 5


def test_who_cannot_start_ends_all_with_its_code(run: Run) -> None:
    done = run("main(lives, lambda starts, tie: 2)")
    assert done.returncode == 2
    assert "worker_died" not in done.stdout


def test_a_death_is_followed_by_a_start_and_counted(run: Run) -> None:
    """Four deaths at once are survived; the end is asked for by the fifth process."""
    done = run(
        """
        module._PAUSES = (0.01,)
        def work(starts, tie):
            print("start", starts, flush=True)
            if starts < 5:
                os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getppid(), signal.SIGTERM)
            return lives(starts, tie)
        main(work)
        """
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"start (\d)", done.stdout) == ["1", "2", "3", "4", "5"]


def test_a_fork_that_fails_is_tried_again(run: Run) -> None:
    done = run(
        """
        module._PAUSES = (0.01,)
        fork, tries = os.fork, []
        def failing():
            tries.append(1)
            if len(tries) < 3:
                raise BlockingIOError
            return fork()
        os.fork = failing
        def work(starts, tie):
            print("start", starts, flush=True)
            os.kill(os.getppid(), signal.SIGTERM)
            return lives(starts, tie)
        main(work)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "start 1" in done.stdout
    assert done.stdout.count("worker_failed") == 2


def test_a_child_never_returns_even_if_nobody_reads_its_output(run: Run) -> None:
    """It would go on as a second parent, with workers of its own."""
    done = run(
        """
        def work(starts, tie):
            sys.stdout = open(os.pipe()[1], "w")
            sys.stdout.write("not read")  # It is buffered, and cannot be written.
            os.close(sys.stdout.fileno())
            return 2
        main(work)
        """
    )
    assert done.returncode == 2


def test_a_stuck_worker_is_killed(run: Run) -> None:
    done = run(
        """
        module.STUCK_SECONDS = 0.5
        def work(starts, tie):
            if starts == 1:
                time.sleep(60)  # It beats no more.
            os.kill(os.getppid(), signal.SIGTERM)
            return lives(starts, tie)
        main(work)
        """,
        seconds=20,
    )
    assert done.returncode == 0, done.stderr
    assert "worker_stuck" in done.stdout
    assert "SIGKILL" in done.stdout


def test_a_parent_that_was_paused_itself_kills_nobody(run: Run) -> None:
    """A container that was paused for a minute comes back, and all its workers work."""
    done = run(
        """
        module.STUCK_SECONDS, module._PAUSED_SECONDS = 2.5, 2.2
        def work(starts, tie):
            parent = os.getppid()
            for _ in range(20):
                tie.beat()
                time.sleep(0.1)
            os.kill(parent, signal.SIGSTOP)
            time.sleep(4)
            os.kill(parent, signal.SIGCONT)
            time.sleep(1)  # The parent comes first.
            os.kill(parent, signal.SIGTERM)
            return lives(starts, tie)
        main(work)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "worker_stuck" not in done.stdout


def test_who_takes_too_long_to_end_is_killed(run: Run) -> None:
    done = run(
        """
        module._OVERTIME_SECONDS = 0.2
        def work(starts, tie):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.kill(os.getppid(), signal.SIGTERM)
            while True:
                tie.beat()
                time.sleep(0.05)
        main(work, grace=0.2)
        """,
        seconds=20,
    )
    assert done.returncode == 1


def test_the_pages_end_after_the_workers(run: Run) -> None:
    done = run(
        """
        def pages(starts, tie):
            code = lives(starts, tie)
            print("pages ended", flush=True)
            return code
        def work(starts, tie):
            ended = []
            signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
            os.kill(os.getppid(), signal.SIGTERM)
            while not ended:
                tie.beat()
                time.sleep(0.01)
            time.sleep(0.3)
            print("worker ended", flush=True)
            return 0
        main(work, pages=pages)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["worker ended", "pages ended"]


def test_no_process_inherits_the_tie_of_another(run: Run) -> None:
    """Otherwise the end of the parent would not be seen while another worker lives."""
    done = run(
        """
        def work(starts, tie):
            links = []
            for number in os.listdir("/proc/self/fd"):
                try:
                    links.append(os.readlink(f"/proc/self/fd/{number}"))
                except FileNotFoundError:
                    pass  # That of the list itself.
            sockets = [link for link in links if link.startswith("socket:")]
            os.write(1, b"%d\\n" % len(sockets))
            time.sleep(0.5)
            os.kill(os.getppid(), signal.SIGTERM)
            return lives(starts, tie)
        main(work, work, work)
        """
    )
    assert done.stdout.split() == ["1", "1", "1"], done.stdout + done.stderr


def test_every_series_gets_its_worker_and_nothing_else_changes() -> None:
    first, second = Metrics(), Metrics()
    first.begun(workers=2, starts=1)
    second.begun(workers=2, starts=3)
    first.stripe_seconds.labels("/v1/refunds", "done").observe(0.2)
    texts = {
        number: generate_latest(one.registry).decode() for number, one in ((0, first), (1, second))
    }
    page = merged(texts).decode()
    assert 'payments_worker_starts_total{worker="0"} 1.0' in page
    assert 'payments_worker_starts_total{worker="1"} 3.0' in page
    for number, text in texts.items():
        expected = {
            (family.name, family.type, sample.name, frozenset(sample.labels.items()), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        found = {
            (
                family.name,
                family.type,
                sample.name,
                frozenset(sample.labels.items()) - {("worker", str(number))},
                sample.value,
            )
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.labels["worker"] == str(number)
        }
        assert found == expected
    names = re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)
    assert len(names) == len(set(names)), "each family is written once"


@pytest.mark.parametrize("answering", [0, 1, 2])
async def test_the_pages_say_what_is_true_of_all(
    answering: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers are expected; so many answer, and the last of them is not ready yet."""
    sockets = {number: tmp_path / f"{number}.sock" for number in range(2)}
    sites = []
    for number in range(answering):
        site = MetricsSite(Metrics().registry, lambda number=number: number == 0)  # type: ignore[misc]  # bound now
        await site.start_on_socket(sockets[number])
        sites.append(site)
    pages, port = WorkerPages(sockets), first_free_port(1)
    await pages.start("127.0.0.1", port)
    try:
        async with ClientSession(f"http://127.0.0.1:{port}") as web:
            async with web.get("/ready") as ready:
                assert ready.status == (200 if answering else 503)
                states = (await ready.json())["workers"]
                assert states == {"0": "ok" if answering else "not ready", "1": "not ready"}
            async with web.get("/metrics") as metrics:
                assert metrics.status == (200 if answering else 503)
                text = await metrics.text()
                assert len(re.findall("^payments_build_info", text, re.MULTILINE)) == answering
            async with web.get("/live") as live:
                assert live.status == 200
            monkeypatch.setattr(pages_module, "_SILENCE_SECONDS", 0.0)
            await asyncio.sleep(0.01)
            async with web.get("/live") as live:
                assert live.status == 503, "nobody supervises"
            monkeypatch.undo()
            pages.parent_beats()
            async with web.get("/live") as live:
                assert live.status == 200
    finally:
        await pages.stop()
        for site in sites:
            await site.stop()
