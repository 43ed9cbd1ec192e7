"""Stripe's form encoding, and the parameter schemas that endpoints declare as data.

A body such as `capabilities[transfers][requested]=true&expand[0]=latest_charge` becomes nested
dictionaries; a schema then reads it into typed values and refuses what the endpoint does not know.
An empty value clears a field where Stripe allows that: it is read as None, which differs from
a parameter that is absent.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

from stripe_simulator import currencies
from stripe_simulator.errors import (
    ApiError,
    invalid_parameter,
    not_simulated,
    parameter_empty,
    parameter_missing,
    parameter_unknown,
)

Raw = Any  # str, or a dict of Raw
Pairs = list[tuple[str, str]]

_NAME = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_PART = re.compile(r"\[([^\[\]]*)\]")


def decode(body: str) -> Pairs:
    """The name/value pairs of a query string or form body."""
    try:
        pairs = parse_qsl(body, keep_blank_values=True, errors="strict", max_num_fields=2000)
    except (UnicodeDecodeError, ValueError) as error:
        raise ApiError(
            400, "Invalid request: the parameters are not valid UTF-8 form data.", stored=False
        ) from error
    for name, value in pairs:
        if "\x00" in name or "\x00" in value:
            raise invalid_parameter(name, "Invalid request: null bytes are not allowed.")
    return pairs


def decode_json(body: str) -> Pairs:
    """A JSON body as pairs, so that v2's bodies are read by the same schemas as v1's forms."""
    try:
        given = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ApiError(400, "The request body is not a JSON object.", stored=False)
    pairs: Pairs = []
    for name, value in given.items():
        _flatten(name, value, pairs)
    return pairs


def _flatten(name: str, value: Any, pairs: Pairs) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{name}[{key}]", inner, pairs)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _flatten(f"{name}[{index}]", inner, pairs)
    elif isinstance(value, bool):
        pairs.append((name, "true" if value else "false"))
    else:
        pairs.append((name, "" if value is None else str(value)))


def check_exact_indexes(pairs: Pairs) -> None:
    """The query of v2 takes `include[0]`, and no `include[]`."""
    if any("[]" in name for name, _ in pairs):
        raise ApiError(
            400,
            "Query parameters with the [] array syntax are unsupported. Please provide exact "
            "indexes, i.e. value[0], value[1], etc.",
            stored=False,
        )


def nest(pairs: Pairs) -> dict[str, Raw]:
    """Pairs with brackets in their names, as nested dictionaries; lists have numbers for keys."""
    root: dict[str, Raw] = {}
    for name, value in pairs:
        match = _NAME.match(name)
        parts = [match.group(1), *_PART.findall(match.group(2))] if match else [name]
        level = root
        for index, given in enumerate(parts):
            # Empty brackets take the next place of a list.
            part = given or str(len(level))
            if index == len(parts) - 1:
                level[part] = value
                break
            inner = level.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = level[part] = {}
            level = inner
    return root


class Kind(Protocol):
    """How one parameter is read."""

    def read(self, raw: Raw, name: str) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Required:
    """A parameter without which the endpoint does not run."""

    kind: Kind

    def read(self, raw: Raw, name: str) -> Any:
        return self.kind.read(raw, name)


Fields = Mapping[str, Kind]


def _text(raw: Raw, name: str) -> str:
    if not isinstance(raw, str):
        raise invalid_parameter(name, "Invalid string: expected a string, got a hash.")
    return raw


@dataclasses.dataclass(frozen=True)
class Text:
    maximum: int = 5000
    clearable: bool = False

    def read(self, raw: Raw, name: str) -> str | None:
        text = _text(raw, name)
        if text == "":
            if self.clearable:
                return None
            raise parameter_empty(name)
        if len(text) > self.maximum:
            raise invalid_parameter(
                name,
                f"Invalid string: {text[:10]}...; must be at most {self.maximum} characters",
                "parameter_invalid_string_blank" if not text.strip() else None,
            )
        return text


@dataclasses.dataclass(frozen=True)
class Integer:
    minimum: int | None = None
    maximum: int | None = None
    clearable: bool = False

    def read(self, raw: Raw, name: str) -> int | None:
        text = _text(raw, name)
        if text == "":
            if self.clearable:
                return None
            raise parameter_empty(name)
        if not re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII):
            raise invalid_parameter(
                name, f"Invalid integer: {text[:40]}", "parameter_invalid_integer"
            )
        value = int(text)
        bound = None
        if self.minimum is not None and value < self.minimum:
            bound = f"greater than or equal to {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            bound = f"less than or equal to {self.maximum}"
        if bound is not None:
            raise invalid_parameter(
                name,
                f"Invalid value: this value must be {bound} (you passed {value}).",
                "parameter_invalid_integer",
            )
        return value


@dataclasses.dataclass(frozen=True)
class Boolean:
    def read(self, raw: Raw, name: str) -> bool:
        text = _text(raw, name)
        if text == "":
            raise parameter_empty(name)
        if text not in ("true", "false"):
            raise invalid_parameter(name, f"Invalid boolean: {text[:40]}")
        return text == "true"


@dataclasses.dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]
    clearable: bool = False

    def read(self, raw: Raw, name: str) -> str | None:
        text = _text(raw, name)
        if text == "" and self.clearable:
            return None
        if text not in self.values:
            *most, last = self.values
            options = f"{', '.join(most)}, or {last}" if most else last
            raise invalid_parameter(name, f"Invalid {name}: must be one of {options}")
        return text


@dataclasses.dataclass(frozen=True)
class CurrencyCode:
    def read(self, raw: Raw, name: str) -> str:
        text = _text(raw, name)
        if text == "":
            raise parameter_empty(name)
        if text.lower() not in currencies.SUPPORTED:
            raise invalid_parameter(
                name,
                f"Invalid currency: {text[:20]}. Stripe currently supports these currencies: "
                f"{', '.join(sorted(currencies.SUPPORTED))}",
            )
        return text.lower()


@dataclasses.dataclass(frozen=True)
class Hash:
    fields: Fields
    clearable: bool = False

    def read(self, raw: Raw, name: str) -> dict[str, Any] | None:
        if raw == "" and self.clearable:
            return None
        if not isinstance(raw, dict):
            raise invalid_parameter(name, "Invalid object", "parameter_invalid_empty")
        return read_fields(self.fields, raw, name)


@dataclasses.dataclass(frozen=True)
class ListOf:
    item: Kind
    maximum: int = 100
    clearable: bool = False

    def read(self, raw: Raw, name: str) -> list[Any] | None:
        if raw == "" and self.clearable:
            return None
        if not isinstance(raw, dict) or not all(key.isdigit() for key in raw):
            raise invalid_parameter(name, "Invalid array")
        if len(raw) > self.maximum:
            raise invalid_parameter(name, f"Array too long; maximum {self.maximum} items")
        return [self.item.read(raw[key], f"{name}[{key}]") for key in sorted(raw, key=int)]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """At most 50 keys of 40 characters, values of 500; an empty value removes its key."""

    def read(self, raw: Raw, name: str) -> dict[str, str] | None:
        if raw == "":
            return None
        if not isinstance(raw, dict):
            raise invalid_parameter(name, "Invalid object")
        if len(raw) > 50:
            raise invalid_parameter(name, "Metadata can have at most 50 keys.")
        for key, value in raw.items():
            if not isinstance(value, str):
                raise invalid_parameter(
                    f"{name}[{key}]", "Metadata values must be strings, not hashes."
                )
            if len(key) > 40:
                raise invalid_parameter(
                    name, f"Metadata keys must be at most 40 characters; '{key[:10]}...' is longer."
                )
            if len(value) > 500:
                raise invalid_parameter(
                    f"{name}[{key}]",
                    f"Metadata values can have up to 500 characters, but you passed in a value "
                    f"that is {len(value)} characters. Invalid value: {value[:20]}...",
                )
        return dict(raw)


@dataclasses.dataclass(frozen=True)
class TimeRange:
    """A moment, or a hash of gt, gte, lt and lte; read as a hash always."""

    def read(self, raw: Raw, name: str) -> dict[str, int]:
        if isinstance(raw, dict):
            bound = Integer()
            fields = dict.fromkeys(("gt", "gte", "lt", "lte"), bound)
            return read_fields(fields, raw, name)
        moment = Integer().read(raw, name)
        assert moment is not None
        return {"gte": moment, "lte": moment}


@dataclasses.dataclass(frozen=True)
class Anything:
    """Accepted and shown again as it came, with no effect of its own (a shipping address)."""

    def read(self, raw: Raw, name: str) -> Any:
        return None if raw == "" else raw


@dataclasses.dataclass(frozen=True)
class NotSimulated:
    """A parameter that Stripe knows and the simulator would have to ignore: it refuses instead."""

    def read(self, raw: Raw, name: str) -> Any:
        raise not_simulated(f"the parameter '{name}' is not simulated.", name)


def unsimulated(*names: str) -> Fields:
    """Parameters that Stripe knows and the simulator refuses."""
    return dict.fromkeys(names, NotSimulated())


def read_fields(fields: Fields, raw: dict[str, Raw], within: str = "") -> dict[str, Any]:
    """Read a hash of parameters: unknown names first, then what is missing, then each value."""
    for name in raw:
        if name not in fields:
            raise parameter_unknown(f"{within}[{name}]" if within else name)
    values: dict[str, Any] = {}
    for name, kind in fields.items():
        full = f"{within}[{name}]" if within else name
        if name in raw:
            values[name] = kind.read(raw[name], full)
        elif isinstance(kind, Required):
            raise parameter_missing(full)
    return values
