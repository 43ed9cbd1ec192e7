"""Ports that are chosen before their servers start."""

import subprocess
import sys
from pathlib import Path

from dev.ports import first_free_port

ROOT = Path(__file__).parents[2]
_PROGRAM = """
from dev.ports import first_free_port
print(*(first_free_port(1) for _ in range(50)), flush=True)
input()
"""


def test_no_two_processes_are_given_the_same_port() -> None:
    """Although nobody listens on any of them yet."""
    given = [first_free_port(1) for _ in range(50)]
    others = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    # Each waits for a line: a process that has ended has no ports any more.
    for other in others:
        assert other.stdout is not None
        given += [int(port) for port in other.stdout.readline().split()]
    for other in others:
        other.communicate("\n")
    assert len(given) == len(set(given)) == 200


def test_consecutive_ports_are_returned_once() -> None:
    starts = [first_free_port(3) for _ in range(20)]
    ports = [start + number for start in starts for number in range(3)]
    assert len(set(ports)) == 60
