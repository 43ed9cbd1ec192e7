"""A plan of faults: which requests go wrong, when, and how.

A rule is JSON such as `{"match": {"path": "/capture$", "nth": 2}, "when": "after", "action":
"reset", "times": 1}`. `before` spares the effect, `after` lets it happen and spoils the answer.
Where a fault strikes follows from what it imitates: rate limits, gateway errors and broken
connections in front of or behind the endpoint, a 500 or a slow endpoint inside it (there it holds
the idempotency key, and its answer is stored under it as Stripe stores its own 500s).
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping
from typing import Any

ACTIONS = ("status", "delay", "reset", "hang", "malformed", "truncated")
# Statuses that come from in front of the endpoint and so are not stored under a key (stripe.md:
# rate limits, conflicts, most 401; gateway errors are not the endpoint's either).
UNSTORED = (401, 403, 409, 424, 429, 502, 503, 504)

FRONT, INSIDE, BEHIND = "front", "inside", "behind"


@dataclasses.dataclass(frozen=True)
class Match:
    """Which requests a rule is about; patterns are searched, not anchored."""

    method: str | None = None
    path: str | None = None
    idempotency_key: str | None = None
    account: str | None = None
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nth: int | None = None
    every: int | None = None
    probability: float | None = None


@dataclasses.dataclass
class Rule:
    id: int
    match: Match
    when: str
    action: str
    status: int = 500
    type: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    store: bool | None = None
    delay_ms: int = 1000
    hold_key: bool | None = None
    body: str = '{"id": "pi_'
    times: int | None = None
    matched: int = 0
    fired: int = 0

    @property
    def stored(self) -> bool:
        """Whether the spoiled answer is kept under the idempotency key."""
        return self.store if self.store is not None else self.status not in UNSTORED

    @property
    def holds_key(self) -> bool:
        """A slow endpoint holds its key (409 for others); a slow network does not."""
        return self.hold_key if self.hold_key is not None else self.when == "before"

    @property
    def stage(self) -> str:
        inside = (self.action == "status" and self.stored) or (
            self.action == "delay" and self.holds_key
        )
        if inside:
            return INSIDE
        return FRONT if self.when == "before" else BEHIND


@dataclasses.dataclass(frozen=True)
class Target:
    """What a rule can see of a request."""

    method: str
    path: str
    idempotency_key: str | None
    account: str | None
    parameters: Mapping[str, str]


class Faults:
    def __init__(self, seed: str) -> None:
        self.rules: list[Rule] = []
        self._random = random.Random(seed)
        self._last_id = 0

    def add(self, given: dict[str, Any]) -> Rule:
        """Add a rule from its JSON; ValueError tells what is wrong with it."""
        given = dict(given)
        match = given.pop("match", {})
        _check_names(Match, match, "match")
        _check_names(Rule, given, "a rule", without=("id", "match", "matched", "fired"))
        if given.get("action") not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}")
        if given.setdefault("when", "before") not in ("before", "after"):
            raise ValueError("when must be before or after")
        for name in ("method", "path", "idempotency_key", "account"):
            if match.get(name) is not None:
                re.compile(match[name])
        self._last_id += 1
        rule = Rule(id=self._last_id, match=Match(**match), **given)
        self.rules.append(rule)
        return rule

    def clear(self, id_: int | None = None) -> None:
        self.rules = [] if id_ is None else [rule for rule in self.rules if rule.id != id_]

    def seed(self, seed: str) -> None:
        self._random = random.Random(seed)

    def strike(self, stage: str, target: Target) -> Rule | None:
        """The first rule of a stage that this request falls to, counted as fired."""
        if not self.rules:
            return None
        for rule in self.rules:
            if rule.stage != stage or not _concerns(rule.match, target):
                continue
            rule.matched += 1
            if rule.times is not None and rule.fired >= rule.times:
                continue
            if self._chosen(rule):
                rule.fired += 1
                return rule
        return None

    def _chosen(self, rule: Rule) -> bool:
        match = rule.match
        if match.nth is not None and rule.matched != match.nth:
            return False
        if match.every is not None and rule.matched % match.every:
            return False
        return match.probability is None or self._random.random() < match.probability


def _check_names(
    shape: type, given: Mapping[str, Any], what: str, without: tuple[str, ...] = ()
) -> None:
    known = {field.name for field in dataclasses.fields(shape)} - set(without)
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {name} in {what}; there are {', '.join(sorted(known))}")


def _concerns(match: Match, target: Target) -> bool:
    for pattern, text in (
        (match.method, target.method),
        (match.path, target.path),
        (match.idempotency_key, target.idempotency_key),
        (match.account, target.account),
    ):
        if pattern is not None and (text is None or not re.search(pattern, text)):
            return False
    return all(
        re.search(pattern, target.parameters.get(name, ""))
        for name, pattern in match.parameters.items()
    )


def shown(rule: Rule) -> dict[str, Any]:
    return {**dataclasses.asdict(rule), "stage": rule.stage}
