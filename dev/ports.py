"""Ports for processes that are told where to listen before they start.

A port that is free now can be taken before its server starts. So a process first claims a block of
ports for itself, and finds free ones only there. The claim is a UDP socket on the block's first
port. It keeps nobody from listening by TCP, but each other process that looks for ports sees it.
The kernel removes it when the process ends, however that happens.
"""

import random
import socket
from contextlib import ExitStack

#: Below the ports of outgoing connections, which may take a port that was free a moment ago.
_FREE_PORTS = range(12_500, 19_900)
_BLOCK = 20

_claims: list[socket.socket] = []
#: What is left of the last claimed block.
_left = range(0)


class NoFreePortError(RuntimeError):
    """No port is left in the range; the text says so."""


def first_free_port(length: int) -> int:
    """Returns the first of this many consecutive ports that are free and were never returned."""
    global _left  # noqa: PLW0603 - the claim is this process's, as the ports are
    while True:
        if len(_left) < length:
            _left = _claim()
        ports, _left = _left[:length], _left[length:]
        if _all_free(ports):
            return ports.start


def _claim() -> range:
    """Claims a block that no process has claimed."""
    starts = list(_FREE_PORTS)[::_BLOCK]
    random.shuffle(starts)
    for start in starts:
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", start))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return range(start, start + _BLOCK)
    raise NoFreePortError(f"no free ports on 127.0.0.1 from {_FREE_PORTS.start}")


def _all_free(ports: range) -> bool:
    with ExitStack() as probes:
        try:
            for port in ports:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
