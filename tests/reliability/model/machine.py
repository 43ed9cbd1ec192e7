"""The whole model: with a database that comes back older than Stripe."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import note
from hypothesis.stateful import rule

from tests.reliability.model.convergence import Convergence
from tests.reliability.oracle import OK


class Machine(Convergence):
    """Everything that can happen to one expert's payments, in any order."""

    backup_time: datetime | None = None

    @rule()
    def a_backup_is_taken(self) -> None:
        """At any moment: operations are open, events wait, answers are missing."""
        self.lab.backups.take()
        self.backup_time = datetime.now(UTC)

    @rule()
    def the_backup_is_restored(self) -> None:
        """What was done since is only at Stripe. Nothing of it happens twice.

        Everything is settled before, so that the model knows what there must be again. What
        somebody did at the dashboard, and what an operator ended, no caller repeats.
        """
        if self.backup_time is None or any(truth.touched for truth in self.truths.values()):
            return
        self._converge()
        before = self._effects()
        since, self.backup_time = self.backup_time, None
        self.slow.clear()
        self.lab.backups.restore()
        for line in self.lab.recover(since - timedelta(minutes=1)):
            note(line)
        for key, asked in list(self.asked.items()):
            if asked.told == OK:
                self._repeat(key)
        self._converge()
        assert self._effects() == before, "something was done again"
        self.lab.seen["a backup was restored"] += 1

    def _repeat(self, key: str) -> None:
        """The caller asks again until there is an answer: what was done remains done."""
        reply = self.lab.ask(self.calls[key]())
        for _ in range(6):
            if reply.told == OK:
                break
            self.deliver_all()
            self.lab.sweep()
            for operation_id, state in self._unsettled(waiting=False):
                if state == "PARKED":  # As the command has told the operator.
                    self._operate(operation_id)
            reply = self.lab.ask(self.calls[key]())
        assert reply.told == OK, f"{self.asked[key]} was done before the restore, and now: {reply}"
        self.asked[key].body = reply.body

    def _effects(self) -> Counter[str]:
        """What happened at Stripe to this example's payments."""
        shown = self.lab.control("GET", "/effects")["effects"]
        mine = [one["kind"] for one in shown if one["payment_intent"] in self.payment_of_intent]
        return Counter(mine)
