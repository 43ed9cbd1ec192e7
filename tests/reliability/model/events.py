"""How webhooks arrive: late, twice, in any order, or never."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.reliability.model.trouble import ANY
from tests.reliability.model.world import World


class Events(World):
    @rule()
    def events_come_into_being(self) -> None:
        """Stripe lists them; when they are delivered is another matter."""
        events = self.lab.newer("/events", self.last_event)
        if events:
            self.last_event = events[-1]["id"]
            self.undelivered += events

    @rule(which=ANY, fate=st.sampled_from(["once", "once", "twice", "drop", "again"]))
    def deliver_in_any_order(self, which: int, fate: str) -> None:
        if not self.undelivered:
            self.events_come_into_being()
        if not self.undelivered:
            return
        event = self.undelivered.pop(which % len(self.undelivered))
        if fate == "drop":
            self.dropped += 1
            return
        for _ in range(2 if fate == "twice" else 1):
            self.lab.deliver(event)
        self.delivered.append(event)
        if fate == "again":
            self.lab.deliver(self.delivered[which % len(self.delivered)])

    @rule()
    def deliver_all(self) -> None:
        self.events_come_into_being()
        for event in self.undelivered:
            self.lab.deliver(event)
        self.delivered += self.undelivered
        self.undelivered.clear()
        self.lab.apply()

    @rule()
    def apply_the_inbox(self) -> None:
        self.lab.apply()
