"""Stores what people wrote, beside the event that has its seal."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

from payment_service.domain.texts import KeptText


def kept(owner: str) -> str:
    """Returns a CTE that inserts the texts of the event in ``recorded``; see `rows.posted`."""
    return f"""kept AS (
    INSERT INTO texts ({owner}, sequence, name, salt, text)
    SELECT {owner}, sequence, one.* FROM recorded, unnest(
        CAST(:text_names AS text[]), CAST(:salts AS bytea[]), CAST(:texts AS text[])) AS one
)"""


def text_values(texts: Sequence[KeptText]) -> dict[str, Any]:
    """Returns texts as bound parameters, one list for each column."""
    return {
        "text_names": [one.name for one in texts],
        "salts": [one.salt for one in texts],
        "texts": [one.text for one in texts],
    }


def new_salt() -> bytes:
    """Returns what a text is hashed with, so that nobody can guess it from the hash."""
    return secrets.token_bytes(16)


#: Selects the texts of the event in the table ``events``, by name.
TEXTS_OF_EVENT: Final = (
    "(SELECT jsonb_object_agg(name, text) FROM texts WHERE texts.payment_id = events.payment_id "
    "AND texts.sequence = events.sequence) AS texts"
)
