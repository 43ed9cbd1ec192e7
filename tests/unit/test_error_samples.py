"""The samples in errors.proto against the code: refusals carry the metadata that they show."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2

from payment_service.rpc.errors import DOMAIN
from tests.unit.protos import ROOT, error_reasons

_SOURCES: Final = sorted((ROOT / "payment_service").rglob("*.py"))
_REASONS: Final = {name: text for name, text in error_reasons().items() if name != "UNSPECIFIED"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Site:
    """A place that builds a refusal, with the keys of its facts."""

    where: str
    reason: str
    keys: frozenset[str]


def _sample(reason: str) -> dict[str, object]:
    found = re.findall(r"^\{.*?\}$", _REASONS[reason], re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{reason} shows one sample"
    sample = json.loads(found[0])
    assert isinstance(sample, dict)
    return sample


def _metadata(reason: str) -> set[str]:
    metadata = _sample(reason).get("metadata", {})
    assert isinstance(metadata, Mapping)
    return set(metadata)


def _optional(reason: str) -> set[str]:
    text = _REASONS[reason].partition("Optional metadata")[2]
    return set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|\bstate\b|\bstatus\b|\brequested\b", text))


def _called(call: ast.Call) -> str:
    """Returns the last part of the name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


class Reader:
    """Finds the places that build refusals, and follows their facts to the names of the keys."""

    def __init__(self) -> None:
        self._trees = {path: ast.parse(path.read_text()) for path in _SOURCES}
        self._functions: dict[tuple[Path, str], _Function] = {}
        self._within: dict[ast.AST, _Function] = {}
        self._path: dict[_Function, Path] = {}
        self._calls: list[tuple[Path, ast.Call]] = []
        self._callers: dict[str, list[ast.Call]] = defaultdict(list)
        for path, tree in self._trees.items():
            for found in ast.walk(tree):
                if isinstance(found, _Function):
                    self._functions[path, found.name] = found
                    self._path[found] = path
                    for node in ast.walk(found):
                        self._within[node] = found
                elif isinstance(found, ast.Call):
                    self._calls.append((path, found))
                    self._callers[_called(found)].append(found)

    def sites(self) -> Iterator[Site]:
        for path, call in self._calls:
            reasons = [
                argument.value
                for argument in call.args[:1]
                if isinstance(argument, ast.Constant) and argument.value in _REASONS
            ]
            if reasons:
                where = f"{path.relative_to(ROOT)}:{call.lineno}"
                for keys in self._facts(call):
                    yield Site(where, str(reasons[0]), frozenset(keys))

    def _facts(self, call: ast.Call) -> list[set[str]]:
        if len(call.args) < 3:
            return [set()]
        return self._keys(call.args[2], self._within[call])

    def _keys(self, node: ast.expr, function: _Function) -> list[set[str]]:
        """Returns the possible sets of keys of an expression, as seen in a function."""
        if isinstance(node, ast.Dict):
            known = {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
            found = [known]
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    found = [one | more for one in found for more in self._keys(value, function)]
            return found
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("self.")
            called = self._functions[self._path[function], name]
            returned = [one.value for one in ast.walk(called) if isinstance(one, ast.Return)]
            return [keys for value in returned if value for keys in self._keys(value, called)]
        assert isinstance(node, ast.Name), ast.unparse(node)
        if function.args.kwarg is not None and function.args.kwarg.arg == node.id:
            return self._passed(function)
        return self._assigned(node.id, function)

    def _passed(self, function: _Function) -> list[set[str]]:
        """Returns the keywords that the callers of a function pass beyond its parameters."""
        own = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        found = []
        for call in self._callers[function.name]:
            keys = {keyword.arg for keyword in call.keywords if keyword.arg} - own
            spread = [keyword.value for keyword in call.keywords if keyword.arg is None]
            sets = [keys]
            for value in spread:
                within = self._within[call]
                sets = [one | more for one in sets for more in self._keys(value, within)]
            found += sets
        return found

    def _assigned(self, name: str, function: _Function) -> list[set[str]]:
        found, added = [set[str]()], set()
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            [target] = node.targets
            if isinstance(target, ast.Name) and target.id == name:
                found = self._keys(node.value, function)
            subscript = isinstance(target, ast.Subscript) and ast.unparse(target.value) == name
            if subscript and isinstance(target, ast.Subscript):
                assert isinstance(target.slice, ast.Constant)
                added.add(str(target.slice.value))
        return [*found, *[one | added for one in found if added]]


@cache
def _sites() -> Sequence[Site]:
    return list(Reader().sites())


@pytest.mark.parametrize("reason", _REASONS)
def test_a_sample_is_an_error_info(reason: str) -> None:
    info = json_format.ParseDict(_sample(reason), error_details_pb2.ErrorInfo())
    assert (info.reason, info.domain) == (reason, DOMAIN)


@pytest.mark.parametrize("reason", sorted(set(_REASONS) - {"MALFORMED_MESSAGE"}))
def test_refusals_carry_the_metadata_of_their_sample(reason: str) -> None:
    shown, optional = _metadata(reason), _optional(reason)
    sites = [site for site in _sites() if site.reason == reason]
    assert sites, f"nothing is refused with {reason}"
    for site in sites:
        assert shown - optional <= site.keys, f"{site.where} lacks {shown - optional - site.keys}"
        extra = site.keys - shown - optional
        assert not extra, f"{site.where} has {extra}, which the sample does not show"
    assert shown | optional == {key for site in sites for key in site.keys}
