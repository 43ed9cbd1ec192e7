"""Where calls are traced across processes, in the words of W3C's Trace Context.

A trace shows one call on its way: the caller, our transactions, the requests to Stripe. Without a
tracer nothing is made and nothing is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

#: version, trace, span, flags. Version ff is forbidden, and so are ids of zeros.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.{0,256})?"
)

Facts = Mapping[str, str | int]


class Span(Protocol):
    """One step of a trace. No amount, no name and no secret is a fact of it."""

    def note(self, name: str, value: str | int) -> None: ...
    def failed(self, why: str) -> None: ...


class Tracer(Protocol):
    """Begins spans. Each is the present one while its block runs."""

    def serve(self, name: str, facts: Facts, parent: str) -> AbstractContextManager[Span]:
        """Begins a span for a call; ``parent`` is the caller's ``traceparent``, or ""."""

    def work(
        self, name: str, facts: Facts, links: Sequence[str] = ()
    ) -> AbstractContextManager[Span]:
        """Begins a trace for work in the background, linked to the spans that gave reason to it."""

    def step(self, name: str, facts: Facts) -> AbstractContextManager[Span]:
        """Begins a span within the present one. Without one it does nothing."""

    def request(self, name: str, facts: Facts) -> AbstractContextManager[Span]:
        """Begins such a span for a request to another system."""

    def traceparent(self) -> str:
        """Returns the present span in W3C's form, or ""."""

    def close(self) -> None:
        """Sends what has not been sent. It may take some seconds."""


class _NoSpan:
    def note(self, name: str, value: str | int) -> None: ...
    def failed(self, why: str) -> None: ...


_NO_SPAN: Final = nullcontext(_NoSpan())


class NoTracer:
    """Traces nothing."""

    def serve(self, name: str, facts: Facts, parent: str) -> AbstractContextManager[Span]:
        return _NO_SPAN

    def work(
        self, name: str, facts: Facts, links: Sequence[str] = ()
    ) -> AbstractContextManager[Span]:
        return _NO_SPAN

    def step(self, name: str, facts: Facts) -> AbstractContextManager[Span]:
        return _NO_SPAN

    def request(self, name: str, facts: Facts) -> AbstractContextManager[Span]:
        return _NO_SPAN

    def traceparent(self) -> str:
        return ""

    def close(self) -> None: ...


NO_TRACER: Final = NoTracer()


def parts_of(traceparent: str) -> tuple[str, str, str] | None:
    """Returns the ids of trace and span and the flags, or None if this is no ``traceparent``."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return (found[1], found[2], found[3]) if found else None


def trace_id_of(traceparent: str) -> str:
    """Returns the id of the trace, or ""."""
    parts = parts_of(traceparent)
    return parts[0] if parts else ""
