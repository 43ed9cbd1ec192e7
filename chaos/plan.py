"""What a seed does: which process is killed or stopped when, and how Stripe misbehaves.

A plan is a pure function of seed and length, and can be printed. The timing of real processes
varies, so the seed makes two runs comparable, not identical.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

REPLICAS = 2

KILL_REPLICA = "kill replica"
STOP_REPLICA = "stop replica"
KILL_GATEWAY = "kill gateway"
KILL_BACKEND = "kill postgres backend"
KILL_POSTMASTER = "kill postmaster"
KILL_SIMULATOR = "kill simulator"
STRIPE_AWAY = "stripe away"
DEADLINES_NEAR = "deadlines near"
NO_WEBHOOKS = "no webhook at all"

PAID_CONTESTED = "bank contests what was paid"
HELD_CONTESTED = "bank contests what is held"
BANK_ASKS = "bank asks first"
INQUIRY_ENDS = "bank's question ends"
BANK_GIVES_BACK = "bank gives it back"
BANK_KEEPS = "bank keeps it"
ISSUER_WARNS = "issuer warns of fraud"
REFUND_BOUNCES = "refund bounces"
FURTHER_LINE = "dispute has a further line"
EXPERT_RESTRICTED = "expert restricted"
EXPERT_REJECTED = "expert rejected"
EXPERT_UNHEARD = "expert restricted, no event"
TOPPED_UP = "platform topped up"
#: What operators do about it, as soon as they see it.
EVIDENCE = "evidence submitted"
ACCEPTED = "dispute accepted"
RELEASED = "warning released"
REPLACED = "account replaced"
WRITTEN_OFF = "debt written off"
REPAID = "repayment resumed"
#: And what becomes of a capture while its expert cannot be paid, and of a refund while the platform
#: has no money for it.
WAITED = "capture waited for its expert"
REFUND_WAITED = "refund waited for funds"
DEEDS = (EVIDENCE, ACCEPTED, RELEASED, REPLACED, WRITTEN_OFF, REPAID, WAITED, REFUND_WAITED)
#: What is due by the end, when experts' accounts have their money.
COLLECTED = "debt collected"

#: One accident of a kind for every this many seconds of a run.
_EVERY_SECONDS = {
    KILL_REPLICA: 6.0,
    STOP_REPLICA: 5.0,
    KILL_GATEWAY: 10.0,
    KILL_BACKEND: 7.0,
    KILL_POSTMASTER: 14.0,
    KILL_SIMULATOR: 10.0,
    STRIPE_AWAY: 20.0,
}
#: And of what clients' banks do.
_BANK_EVERY_SECONDS = {
    PAID_CONTESTED: 4.0,
    HELD_CONTESTED: 6.0,
    BANK_ASKS: 10.0,
    INQUIRY_ENDS: 10.0,
    BANK_GIVES_BACK: 8.0,
    BANK_KEEPS: 5.0,
    ISSUER_WARNS: 4.0,
    REFUND_BOUNCES: 6.0,
    FURTHER_LINE: 5.0,
}
BANK = tuple(_BANK_EVERY_SECONDS)
#: And of what happens to experts' accounts: for some seconds, or for good.
_ACCOUNTS_EVERY_SECONDS = {EXPERT_RESTRICTED: 8.0, EXPERT_REJECTED: 15.0, EXPERT_UNHEARD: 10.0}
ACCOUNTS = tuple(_ACCOUNTS_EVERY_SECONDS)
#: How often the platform, which has nothing but its commissions, gets some money of its own.
_MONEY_EVERY_SECONDS = 5.0
#: How often open authorizations are moved near to their end, so that they are promoted.
_DEADLINES_EVERY_SECONDS = 3.0
_SILENCE_SECONDS = 2.5
KILLS = frozenset({KILL_REPLICA, KILL_GATEWAY, KILL_BACKEND, KILL_POSTMASTER, KILL_SIMULATOR})

#: Not what the client's browser does: it has no key, and so no second chance.
_OURS = r"^/v1/(?!payment_intents/[^/]+/confirm$)"
_MUTATIONS = {"method": "POST", "path": _OURS}
_INTENTS = {"method": "POST", "path": r"^/v1/payment_intents(/[^/]+/(capture|cancel))?$"}
#: After a 500 that Stripe stores under a refund's key, the service waits a minute
#: (`Policy.arrival_seconds`); here a refund meets such answers as are not stored.
_MONEY_BACK = {"method": "POST", "path": r"^/v1/(refunds|transfers/[^/]+/reversals)$"}

#: Name, rule without its rhythm, and about every how many requests it strikes.
_STRIPE_RULES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("500 stored, nothing done", {"match": _INTENTS, "status": 500}, 31),
    ("500 stored, but done", {"match": _INTENTS, "status": 500, "when": "after"}, 29),
    ("500 of a refund", {"match": _MONEY_BACK, "status": 500, "store": False}, 5),
    (
        "500 of a done refund",
        {"match": _MONEY_BACK, "status": 500, "store": False, "when": "after"},
        4,
    ),
    ("503 in front", {"match": {"path": _OURS}, "status": 503}, 59),
    ("503 behind", {"match": _MUTATIONS, "status": 503, "when": "after"}, 47),
    ("429 rate limit", {"match": {"path": _OURS}, "status": 429}, 67),
    ("429 lock timeout", {"match": _MUTATIONS, "status": 429, "code": "lock_timeout"}, 43),
    ("reset in front", {"match": {"path": _OURS}, "action": "reset"}, 71),
    ("reset behind", {"match": _MUTATIONS, "action": "reset", "when": "after"}, 41),
    (
        "hang, but done",
        {"match": _MUTATIONS, "action": "hang", "delay_ms": 2500, "when": "after"},
        43,
    ),
    ("slow", {"match": _MUTATIONS, "action": "delay", "delay_ms": 400}, 31),
    ("done after we gave up", {"match": _MUTATIONS, "action": "delay", "delay_ms": 3000}, 41),
    ("malformed", {"match": _MUTATIONS, "action": "malformed", "when": "after"}, 47),
    ("truncated", {"match": _MUTATIONS, "action": "truncated", "when": "after"}, 53),
)
_WEBHOOK_RULES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("webhook dropped", {"action": "drop"}, 11),
    ("webhook doubled", {"action": "duplicate", "copies": 2}, 7),
    ("webhook late", {"action": "delay", "delay_ms": 1500}, 13),
    ("webhooks shuffled", {"action": "reorder", "window": 5, "flush_ms": 700}, 5),
    ("webhook forged", {"action": "forge"}, 17),
)


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One accident: when, what, to whom, and for how long."""

    at: float
    kind: str
    target: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        which = f" {self.target + 1}" if "replica" in self.kind else ""
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:6.2f} s  {self.kind}{which}{lasting}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the simulator, and the name under which its strikes are counted."""

    name: str
    body: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    seconds: float
    steps: tuple[Step, ...]
    stripe_rules: tuple[Rule, ...]
    webhook_rules: tuple[Rule, ...]

    @property
    def armed(self) -> list[str]:
        """Every kind of fault that must have struck by the end, or the run proves nothing."""
        kinds = dict.fromkeys(step.kind for step in self.steps)
        return [
            *kinds,
            *DEEDS,
            COLLECTED,
            *(rule.name for rule in (*self.stripe_rules, *self.webhook_rules)),
        ]

    def lane(self, *kinds: str, target: int | None = None) -> list[Step]:
        """Returns the steps that happen to the same process one after the other."""
        return [
            step
            for step in self.steps
            if step.kind in kinds and (target is None or step.target == target)
        ]

    def lines(self) -> Iterator[str]:
        yield f"seed {self.seed}, {self.seconds:g} s"
        yield from (str(step) for step in self.steps)
        yield f"  and what comes of it: {', '.join((*DEEDS, COLLECTED))}"
        for rule in (*self.stripe_rules, *self.webhook_rules):
            yield f"  {rule.name}: {rule.body}"


def plan_of(seed: int, seconds: float) -> Plan:
    """Returns the plan, which is always the same for the same seed and length."""
    chance = random.Random(f"chaos:{seed}")
    steps = [
        step
        for kind, every in _EVERY_SECONDS.items()
        for step in _spread(chance, kind, every, seconds)
    ]
    deadlines = random.Random(f"deadlines:{seed}")
    steps += _spread(deadlines, DEADLINES_NEAR, _DEADLINES_EVERY_SECONDS, seconds)
    bank = random.Random(f"bank:{seed}")
    for kind, every in _BANK_EVERY_SECONDS.items():
        steps += _spread(bank, kind, every, seconds)
    accounts = random.Random(f"accounts:{seed}")
    for kind, every in _ACCOUNTS_EVERY_SECONDS.items():
        steps += _spread(accounts, kind, every, seconds)
    money = random.Random(f"money:{seed}")
    steps += _spread(money, TOPPED_UP, _MONEY_EVERY_SECONDS, seconds)
    # The service learns of the last payments only by polling.
    steps.append(Step(round(seconds - _SILENCE_SECONDS, 3), NO_WEBHOOKS, 0, _SILENCE_SECONDS))
    # Each must still happen in a short run, so the rhythm is faster there.
    haste = min(1.0, max(0.35, seconds / 30))
    return Plan(
        seed,
        seconds,
        tuple(sorted(steps)),
        tuple(_rules(chance, _STRIPE_RULES, haste, inside="match")),
        tuple(_rules(chance, _WEBHOOK_RULES, haste, inside="")),
    )


def _spread(chance: random.Random, kind: str, every: float, seconds: float) -> Iterator[Step]:
    """Returns times of one kind, one in each of equal spans, so that they are spread."""
    count = max(1, math.ceil(seconds / every - 0.01))
    span = (seconds - 1.5) / count
    first = chance.randrange(REPLICAS)
    for number in range(count):
        at = 1.0 + span * (number + chance.uniform(0.1, 0.9))
        lasting = {
            STOP_REPLICA: chance.choice([0.2, 0.5, 1.0, 2.0, 3.0]),
            STRIPE_AWAY: 1.5,
            KILL_REPLICA: chance.uniform(0.0, 0.6),
            KILL_GATEWAY: chance.uniform(0.0, 0.8),
            KILL_SIMULATOR: chance.uniform(0.0, 0.8),
            KILL_POSTMASTER: chance.uniform(0.0, 0.5),
            EXPERT_RESTRICTED: chance.uniform(1.0, 3.0),
            EXPERT_UNHEARD: chance.uniform(1.0, 2.0),
        }.get(kind, 0.0)
        target = (first + number) % REPLICAS if "replica" in kind else 0
        yield Step(round(at, 3), kind, target, round(lasting, 3))


def _rules(
    chance: random.Random,
    table: tuple[tuple[str, dict[str, Any], int], ...],
    haste: float,
    *,
    inside: str,
) -> Iterator[Rule]:
    for name, given, rhythm in table:
        every = max(2, round(rhythm * haste * chance.uniform(0.8, 1.2)))
        if inside:
            body = {"action": "status", "when": "before", **given}
            body[inside] = {**given[inside], "every": every}
        else:
            body = {**given, "every": every}
        yield Rule(name, body)
