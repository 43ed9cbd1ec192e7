"""Page tokens: opaque texts that belong to one list and its filters."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from payment_service.domain.errors import invalid_field
from payment_service.domain.ports.records import CURSOR_BYTES, FeedCursor

T = TypeVar("T")


#: A cursor of the feed as bytes.
MARK: Final = struct.Struct(f">q{CURSOR_BYTES}s")


def page_token(kind: str, filters: str, *keyset: str) -> str:
    """Returns an opaque text: where the page ended, and with which filters it is valid."""
    text = json.dumps([kind, _digest(filters), *keyset], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_page_token(kind: str, filters: str, token: str, parts: int) -> list[str] | None:
    """Returns the keyset in a token, None for the first page. Raises :class:`InvalidArgument`."""
    if not token:
        return None
    wrong = invalid_field("page_token", "is not from a previous page with the same filters")
    if len(token) > 1000:
        raise wrong
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        values = json.loads(text)
    except (ValueError, binascii.Error, RecursionError):
        raise wrong from None
    well_formed = isinstance(values, list) and all(
        isinstance(value, str) and value.isprintable() for value in values
    )
    if not well_formed or len(values) != 2 + parts or values[:2] != [kind, _digest(filters)]:
        raise wrong
    return [str(value) for value in values[2:]]


def page_of(
    found: Sequence[T], size: int, kind: str, filters: str, keyset: Callable[[T], Sequence[str]]
) -> tuple[Sequence[T], str]:
    """Returns a page and its next token. ``found`` is one item more than the page, if there is."""
    page = found[:size]
    if len(found) <= size:
        return page, ""
    return page, page_token(kind, filters, *keyset(page[-1]))


def cursor_of(mark: FeedCursor) -> str:
    """Returns an opaque text: a position in the feed."""
    return base64.urlsafe_b64encode(MARK.pack(mark.position, mark.digest)).decode().rstrip("=")


def token_time(text: str) -> datetime:
    """Returns a time out of a token."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid_field("page_token", "is not from a previous page") from None


def token_number(text: str) -> int:
    """Returns a number out of a token."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid_field("page_token", "is not from a previous page")
    return int(text)


def token_id(text: str) -> str:
    """Returns an id of ours out of a token."""
    if not re.fullmatch(r"[a-z]{2,5}_[0-9a-z]{1,64}", text):
        raise invalid_field("page_token", "is not from a previous page")
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
