"""Reads the fields of Stripe's answers, which are plain JSON.

Every field is checked for its type where it is read. So an answer that is not what Stripe documents
is unreadable at once, and names the field. It never becomes an amount or an id.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeAlias

#: An object of Stripe's, as its JSON shows it. A field that has nothing is null or left out.
Json: TypeAlias = Mapping[str, Any]


class Unreadable(Exception):
    """A field of an answer is missing, or has another type than Stripe documents."""


def text(shown: Json, name: str) -> str:
    """Returns a text that is always there."""
    value = shown.get(name)
    return value if isinstance(value, str) else _unreadable(shown, name, "text")


def text_or_empty(shown: Json | None, name: str) -> str:
    """Returns a text, or "" where there is none."""
    return "" if shown is None or shown.get(name) is None else text(shown, name)


def number(shown: Json, name: str) -> int:
    """Returns a whole number that is always there."""
    value = shown.get(name)
    return value if type(value) is int else _unreadable(shown, name, "whole number")


def number_or_none(shown: Json | None, name: str) -> int | None:
    """Returns a whole number, or None where there is none."""
    return None if shown is None or shown.get(name) is None else number(shown, name)


def flag(shown: Json, name: str) -> bool:
    """Returns a yes or no that is always there."""
    value = shown.get(name)
    return value if isinstance(value, bool) else _unreadable(shown, name, "yes or no")


def flag_or_false(shown: Json, name: str) -> bool:
    """Returns a yes or no. One that is not shown is a no."""
    return False if shown.get(name) is None else flag(shown, name)


def moment(shown: Json, name: str) -> datetime:
    """Returns a time that is always there."""
    return datetime.fromtimestamp(number(shown, name), UTC)


def moment_or_none(shown: Json | None, name: str) -> datetime | None:
    """Returns a time, or None where there is none: Stripe shows null or 0 then."""
    seconds = number_or_none(shown, name)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def part(shown: Json | None, name: str) -> Json | None:
    """Returns the object in a field, or None if there is none or only its id is shown."""
    value = None if shown is None else shown.get(name)
    if value is None or isinstance(value, str):
        return None
    return value if isinstance(value, dict) else _unreadable(shown, name, "object")


def parts(shown: Json | None, name: str) -> list[Json]:
    """Returns the objects of a list, or none where there is no list."""
    found = _listed(shown, name)
    if not all(isinstance(one, dict) for one in found):
        _unreadable(shown, name, "list of objects")
    return found


def items(page: Json | None) -> list[Json]:
    """Returns the items of a page of a list, which may be empty; none where there is no list.

    An answer that has no list is unreadable: it must not say that there is nothing at Stripe.
    """
    if page is not None and page.get("data") is None:
        _unreadable(page, "data", "list")
    return parts(page, "data")


def texts(shown: Json | None, name: str) -> list[str]:
    """Returns the texts of a list, or none where there is no list."""
    found = _listed(shown, name)
    if not all(isinstance(one, str) for one in found):
        _unreadable(shown, name, "list of texts")
    return found


def id_in(shown: Json, name: str) -> str:
    """Returns the id of the object in a field, expanded or not; "" where there is none."""
    expanded = part(shown, name)
    return text_or_empty(shown, name) if expanded is None else text(expanded, "id")


def metadata_of(shown: Json) -> dict[str, str]:
    """Returns the metadata of an object, or an empty dictionary."""
    return dict(part(shown, "metadata") or {})


def _listed(shown: Json | None, name: str) -> list[Any]:
    value = None if shown is None else shown.get(name)
    if value is None:
        return []
    return value if isinstance(value, list) else _unreadable(shown, name, "list")


def _unreadable(shown: Json | None, name: str, kind: str) -> NoReturn:
    where = str((shown or {}).get("object") or "object")
    raise Unreadable(f"{where}.{name} is no {kind}")
