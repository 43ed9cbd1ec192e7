"""Judges requests, answers and events by Stripe's own description of its API.

The description is made by extract.py. A fault is a sentence: where, and what is wrong.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

Schema: TypeAlias = dict[str, Any]
Pairs: TypeAlias = Sequence[tuple[str, str]]

_MOST_LEVELS: Final = 4
#: Connected accounts get it for what a destination charge pays them, and no list has it.
_UNLISTED: Final = frozenset({"payment.created"})
_INDEX: Final = re.compile(r"\[[0-9]+\]")
_FORMS: Final = {
    "integer": re.compile(r"-?\d+"),
    "number": re.compile(r"-?\d+(\.\d+)?"),
    "boolean": re.compile("true|false"),
}
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


@functools.cache
def description() -> dict[str, Any]:
    """What extract.py has kept of Stripe's description."""
    path = Path(__file__).with_name("description.json")
    return dict(json.loads(path.read_text()))


class Judge:
    """Collects the faults of all traffic that it is shown."""

    def __init__(self) -> None:
        described = description()
        self._schemas: dict[str, Schema] = described["schemas"]
        self._event_types = frozenset(described["event_types"])
        self._routes = [
            (re.compile(re.sub(r"{[^}]+}", "[^/]+", name)), name, endpoint)
            for name, endpoint in described["endpoints"].items()
        ]
        # Literal paths come before those with variables.
        self._routes.sort(key=lambda route: route[1].count("{"))
        self._found: dict[str, tuple[str, Any]] = {}
        #: By the identity of a schema, all of which live as long as the description.
        self._options_of: dict[int, list[Schema]] = {}
        self.faults: dict[str, None] = {}
        self._seen: set[int] = set()
        #: How much was judged, by endpoint and by kind of object.
        self.judged: Counter[str] = Counter()

    def take(self) -> list[str]:
        """Returns the faults since the last call."""
        found = list(self.faults)
        self.faults.clear()
        self._seen.clear()
        return found

    def is_new(self, *exchanged: Any) -> bool:
        """Returns whether this test has not shown it yet.

        The service reads the same objects again and again, and one judgement of each is enough.
        """
        number = hash(exchanged)
        known = number in self._seen
        self._seen.add(number)
        return not known

    # ---- what is judged ----

    def request(self, method: str, path: str, pairs: Pairs) -> None:
        """Judges a request that the simulator has accepted."""
        where, endpoint = self._endpoint(method, path)
        if endpoint is None:
            self._note(f"{where}: Stripe describes no such endpoint")
            return
        self.judged[where] += 1
        tree = nested(pairs)
        for fault in self._parameter(endpoint["parameters"], tree, ""):
            self._note(f"{where}: parameter {fault}")
        expand = tree.get("expand", {})
        for path_ in expand.values() if isinstance(expand, dict) else [expand]:
            fault = self._expansion(endpoint["answer"], path_.split("."))
            if fault:
                self._note(f"{where}: expand {path_}: {fault}")

    def answer(self, method: str, path: str, status: int, body: Any) -> None:
        """Judges an answer, with everything that is expanded in it."""
        where, endpoint = self._endpoint(method, path)
        if endpoint is None:
            return
        schema = endpoint["answer"] if status < 400 else self._schemas["error"]
        if where == "GET /v1/events" and status < 400:
            # Each was judged when it was made, and the service reads this list all the time.
            body = {**body, "data": body["data"][:1]}
        self._note_all(f"answer {status} of {where}", self._value(schema, body, ""))

    def event(self, event: Any) -> None:
        """Judges an event and the snapshot in it."""
        self._note_all(f"event {event.get('type')}", self._value(self._schemas["event"], event, ""))
        if event.get("type") not in self._event_types | _UNLISTED:
            self._note(f"event: Stripe has no type {event.get('type')}")
        data = event.get("data", {})
        shown = data.get("object") or {}
        schema = self._schemas.get(shown.get("object", ""))
        if schema is None:
            self._note(f"event {event.get('type')}: an object of no described kind")
            return
        where = f"event {event.get('type')}"
        self._note_all(where, self._value(schema, shown, ""))
        for name in data.get("previous_attributes") or {}:
            if name not in schema["properties"]:
                self._note(f"{where}: previous_attributes.{name} is no field")

    def _note(self, fault: str) -> None:
        self.faults[fault] = None

    def _note_all(self, where: str, faults: Iterator[str]) -> None:
        for fault in faults:
            self._note(f"{where}: {_INDEX.sub('[]', fault)}")

    def _endpoint(self, method: str, path: str) -> tuple[str, Any]:
        called = f"{method} {path}"
        if called not in self._found:
            known = (route for route in self._routes if route[0].fullmatch(called))
            _, name, endpoint = next(known, (None, called, None))
            self._found[called] = (name, endpoint)
        return self._found[called]

    # ---- schemas ----

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rsplit("/", 1)[1]]
        return schema

    def _options(self, schema: Schema) -> list[Schema]:
        known = self._options_of.get(id(schema))
        if known is None:
            plain = self._resolved(schema)
            inner = plain.get("anyOf")
            known = [plain] if inner is None else [o for one in inner for o in self._options(one)]
            self._options_of[id(schema)] = known
        return known

    # ---- requests: everything is text ----

    def _parameter(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        if "anyOf" in schema:
            options = [o for o in schema["anyOf"] if _is_hash(o) is isinstance(value, dict)]
            options = options or schema["anyOf"]
            yield from _fewest([list(self._parameter(o, value, at)) for o in options])
        elif schema.get("type") == "array":
            if not isinstance(value, dict):
                yield f"{at} must be a list"
            else:
                for item in value.values():
                    yield from self._parameter(schema["items"], item, f"{at}[]")
        elif schema.get("type") == "object":
            yield from self._hash(schema, value, at)
        elif not isinstance(value, str):
            yield f"{at} must not be a hash"
        else:
            yield from _text_faults(schema, value, at)

    def _hash(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{at} must be a hash"
            return
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name in schema.get("required", []):
            if name not in value:
                yield f"{_within(at, name)} is missing"
        for name, inner in value.items():
            if name in properties:
                yield from self._parameter(properties[name], inner, _within(at, name))
            elif isinstance(others, dict):
                yield from self._parameter(others, inner, _within(at, "*"))
            elif not others:
                yield f"{_within(at, name)} is unknown"

    def _expansion(self, schema: Schema, steps: list[str]) -> str:
        """Says why a path does not lead to something that can be expanded, or ""."""
        if len([step for step in steps if step != "data"]) > _MOST_LEVELS:
            return f"more than {_MOST_LEVELS} levels"
        currents = self._options(schema)
        for step in steps:
            fields = [
                one["properties"][step] for one in currents if step in one.get("properties", {})
            ]
            if not fields:
                return f"{step} is no field"
            currents = [
                option
                for field in fields
                for option in self._options(field.get("items", field))
                if "properties" in option
            ]
            if not currents and not any("expands" in field for field in fields):
                return f"{step} cannot be expanded"
        return ""

    # ---- answers ----

    def _value(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        nullable = schema.get("nullable", False)
        schema = self._resolved(schema)
        if value is None:
            if not nullable and not schema.get("nullable", False):
                yield f"{at} is null"
        elif "anyOf" in schema:
            options = self._candidates(self._options(schema), value)
            if not options:
                yield f"{at} holds an object {value['object']}, which does not belong there"
            else:
                yield from _fewest([list(self._value(o, value, at)) for o in options])
        elif schema.get("type") == "array":
            if not isinstance(value, list):
                yield f"{at} is no list"
            else:
                for index, item in enumerate(value):
                    yield from self._value(schema["items"], item, f"{at}[{index}]")
        elif "properties" in schema or schema.get("type") == "object":
            yield from self._object(schema, value, at)
        else:
            yield from _scalar_faults(schema, value, at)

    def _candidates(self, options: list[Schema], value: Any) -> list[Schema]:
        """The options of the value's own kind, so that its faults are told and no other's."""
        if not isinstance(value, dict):
            return [option for option in options if "properties" not in option] or options
        if "object" not in value:
            return [option for option in options if "properties" in option] or options
        named = [option for option in options if value["object"] in _kinds(option)]
        deleted = bool(value.get("deleted"))
        return [one for one in named if ("deleted" in one["properties"]) is deleted] or named

    def _object(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{at} is no object"
            return
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        kind = next(iter(_kinds(schema)), "")
        if kind and kind != "list":
            at = kind
            self.judged[kind] += 1
        for name in schema.get("required", []):
            if name not in value:
                yield f"{_within(at, name)} is missing"
        for name, inner in value.items():
            if name in properties:
                yield from self._value(properties[name], inner, _within(at, name))
            elif isinstance(others, dict):
                yield from self._value(others, inner, _within(at, "*"))
            elif properties and not others:
                yield f"{_within(at, name)} is no field"


def _is_hash(schema: Schema) -> bool:
    return schema.get("type") in ("array", "object")


def _kinds(schema: Schema) -> Sequence[str]:
    return list(schema.get("properties", {}).get("object", {}).get("enum", []))


def _within(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _fewest(faults: list[list[str]]) -> list[str]:
    """The faults of the option that fits best."""
    return min(faults, key=len)


def _text_faults(schema: Schema, value: str, at: str) -> Iterator[str]:
    form = _FORMS.get(schema.get("type", ""))
    if form is not None and not form.fullmatch(value):
        yield f"{at} is no {schema['type']}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{at} may not be {value[:40]}"
    elif len(value) > schema.get("maxLength", len(value)):
        yield f"{at} is too long"


def _scalar_faults(schema: Schema, value: Any, at: str) -> Iterator[str]:
    kind = schema.get("type", "")
    if kind not in _TYPES:
        return
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{at} is no {kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{at} may not be {value}"
    elif isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        yield f"{at} is too long"


def nested(pairs: Pairs) -> dict[str, Any]:
    """Form parameters as a tree: `a[b][]=c` is {"a": {"b": {"0": "c"}}}."""
    tree: dict[str, Any] = {}
    for name, value in pairs:
        keys = re.findall(r"[^\[\]]+|(?<=\[)(?=\])", name)
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key or str(len(node)), {})
        node[keys[-1] or str(len(node))] = value
    return tree
