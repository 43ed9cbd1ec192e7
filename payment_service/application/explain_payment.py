"""Explain one payment: what happened to it, and what comes next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from payment_service.application.app import App
from payment_service.domain.errors import payment_not_found
from payment_service.domain.payment import Payment
from payment_service.domain.ports.reader import Reader
from payment_service.domain.story.entries import Entry, entries_of
from payment_service.domain.story.outlook import Outlook, outlook_of

#: How many payments an id may name before it is too vague to list all.
MOST_MATCHES: Final = 20
#: An id of ours or of Stripe's. Anything else may be a person's words, which no error repeats.
_ID: Final = re.compile(r"[a-z]{2,8}_\w{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Story:
    """A page of the story of one payment. ``next_after`` is 0 on the last page."""

    payment: Payment
    entries: Sequence[Entry]
    outlook: Outlook
    next_after: int
    left_out: bool


@dataclass(frozen=True, slots=True)
class Explained:
    """The payments that an id names, and the story if it is one."""

    matches: Sequence[Payment]
    story: Story | None


async def explain_payment(app: App, given: str, after: int, limit: int) -> Explained:
    """Returns the story of the payment that an id names, or the payments if they are several.

    ``after`` is the sequence of the last event of the page before.
    """
    return await app.database.read_at_once(_read, given, after, limit)


def _read(reader: Reader, given: str, after: int, limit: int) -> Explained:
    matches = reader.payments_named(given, MOST_MATCHES)
    if not matches:
        raise payment_not_found(given if _ID.fullmatch(given) else "")
    if len(matches) > 1:
        return Explained(matches, None)
    records = reader.story(matches[0].payment_id, after, limit)
    if records is None:
        raise payment_not_found(matches[0].payment_id)
    last = records.events[-1].sequence if records.events else after
    story = Story(
        payment=records.payment,
        entries=entries_of(records),
        outlook=outlook_of(records),
        next_after=last if records.has_more else 0,
        left_out=records.left_out,
    )
    return Explained(matches, story)
