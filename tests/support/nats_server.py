"""A real NATS server with JetStream, built by Go once and kept beside the other tools."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

import nats
from nats.aio.client import Client

from tests.support.go_programs import built

VERSION: Final = "v2.15.2"


def program() -> Path | None:
    """Returns the server's program; None without Go."""
    return built("github.com/nats-io/nats-server/v2", VERSION, "nats-server")


class NatsServer:
    """One server. Killed and started again, it has its port and its streams."""

    def __init__(self, path: Path, directory: Path, *options: str) -> None:
        self._path = path
        self._options = options
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._child = subprocess.Popen(
            [
                *(str(self._path), "--addr", "127.0.0.1", "--port", str(self.port)),
                *("--jetstream", "--store_dir", str(self._directory)),
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def send(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    async def client(self, seconds: float = 10) -> Client:
        """Connects, as soon as the server listens."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(OSError, nats.errors.Error):
                    return await nats.connect(self.url, allow_reconnect=False, error_cb=_ignore)
                await asyncio.sleep(0.05)

    async def messages(self, stream: str) -> list[Any]:
        """Everything that a stream holds, in its order."""
        client = await self.client()
        try:
            context = client.jetstream()
            try:
                state = (await context.stream_info(stream)).state
            except nats.js.errors.NotFoundError:
                return []
            return [
                await context.get_msg(stream, seq=number)
                for number in range(state.first_seq, state.last_seq + 1)
                if number
            ]
        finally:
            await client.close()


async def _ignore(_: Exception) -> None:
    """Leaves out what the client says by itself."""
