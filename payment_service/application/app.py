"""The application's ports and policy, wired once in ``bootstrap``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from payment_service.application.feed import Feed
from payment_service.domain.ports.alarms import Alarms
from payment_service.domain.ports.database import Database
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers
from payment_service.domain.ports.signing import Signer
from payment_service.domain.ports.stripe import StripePort


@dataclass(frozen=True, slots=True)
class App:
    """The ports and the policy, wired once in ``bootstrap``."""

    database: Database
    stripe: StripePort
    answers: Answers
    policy: Policy
    alarms: Alarms
    #: Set when there is something new for the background loops to do.
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    #: Signs exported heads; None in development.
    signer: Signer | None = None
    feed: Feed = field(default_factory=Feed)
