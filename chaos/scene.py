"""What all callers share: payments as they know them, keys as they hold them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from grpc import aio

from chaos.history import History
from chaos.simulator import Simulator


@dataclass(slots=True)
class Known:
    """A payment as the callers know it."""

    payment_id: str
    intent: str
    client_secret: str
    currency: str
    amount: int
    client_id: str
    expert_id: str = ""
    #: The platform can hold it, and pays it out in parts.
    is_separate: bool = False


@dataclass(slots=True)
class Keyed:
    """A mutation under its key; the bytes never change."""

    rpc: str
    key: str
    request: Any
    payment: Known | None = None
    answer: tuple[str, bytes] | None = None
    asking: bool = False

    @property
    def bytes(self) -> bytes:
        data: bytes = self.request.SerializeToString(deterministic=True)
        return data


@dataclass(slots=True)
class Scene:
    """What all callers share: the replicas, and the payments that they compete for."""

    channel: aio.Channel
    simulator: Simulator
    gateway_url: str
    webhook_secret: str
    http: aiohttp.ClientSession
    history: History
    began: float = field(default_factory=time.monotonic)
    #: When callers leave.
    until: float = 0.0
    experts: list[str] = field(default_factory=list)
    #: An expert without new payments, so that no capture collects the debt.
    debtor: str = ""
    #: The experts' present accounts.
    accounts: dict[str, str] = field(default_factory=dict)
    #: Accounts that Stripe has rejected and that are not replaced yet, by their experts.
    rejected: dict[str, str] = field(default_factory=dict)
    #: All that were ever rejected; and new ones whose form is to be filled in.
    lost_accounts: set[str] = field(default_factory=set)
    onboarding: list[str] = field(default_factory=list)
    #: Held by the platform and reserved, until their expert cannot be paid; then they are captured.
    spared: list[Known] = field(default_factory=list)
    urgent: list[Known] = field(default_factory=list)
    unpaid: list[Known] = field(default_factory=list)
    held: list[Known] = field(default_factory=list)
    captured: list[Known] = field(default_factory=list)
    every: list[Known] = field(default_factory=list)
    #: Payments that a bank has disputed, and those with a failed refund. None is both: a client
    #: payable that cannot be refunded any more would keep its payment busy for ever.
    contested: set[str] = field(default_factory=set)
    bounced: set[str] = field(default_factory=set)
    #: Disputes to which Stripe has added a further line.
    adjusted: set[str] = field(default_factory=set)
    #: Payments whose issuer has warned of fraud.
    warned: list[str] = field(default_factory=list)
    answered: list[Keyed] = field(default_factory=list)
    #: Answers that must not have been given, as sentences.
    wrong: list[str] = field(default_factory=list)
    #: Those of them that an operator has dismissed.
    releasing: set[str] = field(default_factory=set)
    #: Disputes that an operator has answered, and how.
    answering: dict[str, str] = field(default_factory=dict)
    #: What operators have brought about, by the plan's names.
    deeds: Counter[str] = field(default_factory=Counter)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def now(self) -> float:
        return time.monotonic() - self.began

    def leave(self, known: Known) -> None:
        """Makes this payment one of those that callers choose from."""
        for among in (self.unpaid, self.held, self.captured):
            if known in among:
                among.remove(known)
