"""Has PostgreSQL prepare the statements that a connection sends again and again.

To parse and plan a statement takes it longer than to execute it. A statement is prepared after the
transaction in which it was sent a second time, so that a failure disturbs nothing. Behind a pooler
in transaction mode nothing is prepared: a transaction there may have any server's session.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias

from psycopg2 import Error

from payment_service.adapters.postgres.waiting import WaitingConnection

#: A value's name in a statement: `:name`, but not `::type`.
_NAME: Final = re.compile(r"(?<![:\w]):(\w+)(?!:)")
#: A statement that was sent so often on a connection is prepared there.
_OFTEN: Final = 2
#: Some statements are put together from parts: not every combination is kept.
_MOST: Final = 200
_INT4: Final = 2**31

#: Of values that the driver writes with a type. All others PostgreSQL takes for what they are used
#: as, prepared or not; the most frequent of them are here, too.
_TYPES: Final[Mapping[type, str]] = {
    bool: "bool",
    float: "numeric",
    timedelta: "interval",
    datetime: "timestamptz",
    bytes: "bytea",
    str: "unknown",
    type(None): "unknown",
}

#: A statement with the types of its values, in the order in which they occur.
_Key: TypeAlias = tuple[str, tuple[str, ...]]


@lru_cache(maxsize=512)
def driver_text(sql: str) -> tuple[str, tuple[str, ...]]:
    """Returns a statement as the driver expects it, and the names of its values as they occur.

    Each text is converted once; there are a few dozen.
    """
    names = tuple(_NAME.findall(sql))
    return (_NAME.sub(r"%(\1)s", sql.replace("%", "%%")) if names else sql), names


class PreparingConnection(WaitingConnection):
    """A connection that knows which statements are prepared on it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prepares = True
        self._sent: Counter[_Key] = Counter()
        #: What is sent in place of a statement, in the driver's form.
        self._prepared: dict[_Key, str] = {}
        self._wanted: list[_Key] = []

    def text_of(self, sql: str, values: Mapping[str, Any]) -> tuple[str, bool]:
        """Returns what the driver is to send for a statement, and whether it takes values."""
        text, names = driver_text(sql)
        if not self.prepares:
            return text, bool(names)
        key = sql, tuple([_type_of(values[name]) for name in names])
        prepared = self._prepared.get(key)
        if prepared is not None:
            return prepared, bool(names)
        self._sent[key] += 1
        if self._sent[key] == _OFTEN and len(self._prepared) < _MOST:
            self._wanted.append(key)
        return text, bool(names)

    def prepare(self) -> None:
        """Prepares what was sent often. To be called outside of transactions."""
        while self._wanted:
            key = self._wanted.pop()
            sql, types = key
            text, names = driver_text(sql)
            number = itertools.count(1)
            body = _NAME.sub(lambda _, n=number: f"${next(n)}", sql)  # type: ignore[misc]
            # A name stands for one text and its types, for all connections.
            name = "s_" + hashlib.sha256(repr(key).encode()).hexdigest()[:24]
            taken = f" ({', '.join(types)})" if names else ""
            given = f" ({', '.join(f'%({one})s' for one in names)})" if names else ""
            execute = f"EXECUTE {name}{given}"
            try:
                with self.cursor() as cursor:
                    cursor.execute(f"PREPARE {name}{taken} AS {body}")
            except Error:
                # As it was before: PostgreSQL cannot tell a type, or the connection has died.
                execute = text
            self._prepared[key] = execute


def _type_of(value: object) -> str:
    known = _TYPES.get(type(value))
    if known is not None:
        return known
    if isinstance(value, int):
        return "int4" if -_INT4 <= value < _INT4 else "int8"
    if isinstance(value, list) and value:
        return f"{_ELEMENTS.get(type(value[0]), 'text')}[]"
    return "unknown"


_ELEMENTS: Final[Mapping[type, str]] = {int: "int8", bytes: "bytea", bool: "bool"}
