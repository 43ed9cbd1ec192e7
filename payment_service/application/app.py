"""The application's ports and policy, wired once in ``bootstrap``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from payment_service.application.feed import Feed
from payment_service.application.gathered_events import GatheredEvents
from payment_service.application.single_flight import SingleFlight
from payment_service.domain.ports.alarms import Alarms
from payment_service.domain.ports.database import Database
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers
from payment_service.domain.ports.signing import Signer
from payment_service.domain.ports.stripe import StripePort
from payment_service.domain.ports.tracing import NO_TRACER, Tracer


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
    tracer: Tracer = NO_TRACER
    feed: Feed = field(default_factory=Feed)
    gathered_events: GatheredEvents = field(default_factory=GatheredEvents)
    #: The same database with connections of its own, for what reads a large part of the books.
    expensive_database: Database | None = None
    flights: SingleFlight = field(default_factory=SingleFlight)

    def aside(self) -> App:
        """Returns the application with the connections of expensive work."""
        return replace(self, database=self.expensive_database or self.database)
