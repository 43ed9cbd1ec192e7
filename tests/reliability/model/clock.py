"""What time does: jobs run, replicas are slow, authorizations lapse."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from payment_service.application.sync.payment import apply
from payment_service.domain.ports.records import Cause
from tests.reliability.lab import IMPATIENT, PATIENT
from tests.reliability.model.callers import Callers
from tests.reliability.model.trouble import ANY, FAULTS, TROUBLE, WHICH, Trouble


class Clock(Callers):
    @rule(bomb=st.integers(min_value=0, max_value=10))
    def sweep(self, bomb: int) -> None:
        if len(self._open_operations()) == 1:  # Else others would go on after the crash.
            self.lab.bomb.left = bomb
        self.lab.sweep()

    @rule(trouble=TROUBLE)
    def authorizations_are_about_to_lapse(self, trouble: Trouble) -> None:
        """Those that are to be are charged onto the platform, if nothing comes in between."""
        if isinstance(trouble, str):
            action, when, more = FAULTS[trouble]
            self.lab.arm("/capture$", action, when, **more)
        elif trouble is not None:
            self.lab.bomb.left = trouble
        with self.lab.patience(IMPATIENT if trouble == "timeout" else PATIENT):
            self.lab.deadlines()
        if isinstance(trouble, str):
            self.lab.disarm(trouble)

    @rule(which=WHICH)
    def a_slow_replica_looks(self, which: int) -> None:
        """It asks Stripe, and then sleeps for who knows how long."""
        payment_id, _, view = self._pick(which)
        intent = self._intent(which)
        if intent and view.state not in ("PENDING", "FAILED"):
            seen = self.lab.run(self.lab.app.stripe.observe(intent))
            self.slow.append((payment_id, seen, view.version))

    @rule(which=ANY)
    def a_slow_replica_writes_down_what_it_saw(self, which: int) -> None:
        if not self.slow:
            return
        payment_id, seen, version = self.slow.pop(which % len(self.slow))
        cause = Cause("payment_service", "slow")
        self.lab.run(apply(self.lab.app, payment_id, seen, version, cause))

    @rule(which=WHICH, state=st.sampled_from(["IN_ESCROW", "CAPTURED"]))
    def a_slow_replica_comes_too_late(self, which: int, state: str) -> None:
        """The snapshot was true when it was read, and is outdated when it is written."""
        number = self._one_in(state, which)
        waiting = len(self.slow)
        self.a_slow_replica_looks(number)
        if state == "IN_ESCROW":
            self._capture(number, None, final=False, trouble=None)
        else:
            self._refund(number, 1, None)
        for payment_id, seen, version in self.slow[waiting:]:
            cause = Cause("payment_service", "slow")
            self.lab.run(apply(self.lab.app, payment_id, seen, version, cause))
        del self.slow[waiting:]

    @rule()
    def holds_expire(self) -> None:
        """Eight days pass at Stripe, and nothing is under way that a key would outlive."""
        infos = any(one.is_info for one in self.asked.values())
        # An unanswered dispute would be lost meanwhile.
        open_disputes = any(truth.is_charged_back for truth in self.truths.values())
        if open_disputes or infos or self._open_operations():
            return
        if not self.clock_moved:
            self.clock_moved = True
            self.lab.control("POST", "/clock", {"advance_seconds": 8 * 86_400})
