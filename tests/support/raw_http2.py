"""One gRPC call as bytes on a socket, without the checks that gRPC's own client makes."""

from __future__ import annotations

import asyncio
import struct
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


async def send_call(target: str, path: str, message: bytes, headers: dict[bytes, bytes]) -> None:
    """Sends a call and does not look at its answer."""
    host, _, port = target.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    block = b"".join(
        _literal(name, value)
        for name, value in {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": path.encode(),
            b":authority": target.encode(),
            b"te": b"trailers",
            b"content-type": b"application/grpc",
            **headers,
        }.items()
    )
    writer.write(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, block)
        + _frame(_DATA, _END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message)
    )
    await writer.drain()
    # The server cancels the call of a connection that is closed.
    await asyncio.sleep(1)
    writer.close()


def _literal(name: bytes, value: bytes) -> bytes:
    """Returns a header as HPACK writes it without compression."""
    return b"\x00" + b"".join(bytes([len(text)]) + text for text in (name, value))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
