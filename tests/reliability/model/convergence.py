"""What must be true: after every step, and whenever everything was heard and healed."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from hypothesis.stateful import invariant, rule

from payment_service.application.abandon_operation import abandon_operation
from payment_service.application.resume_operation import resume_operation
from payment_service.domain.audit_trail import chain_hash
from payment_service.domain.errors import Refusal
from payment_service.domain.payment import EscrowMode, Payment
from payment_service.domain.ports.records import Cause
from tests.reliability.model.bank import Bank
from tests.reliability.model.trouble import BASIS_POINTS
from tests.reliability.oracle import (
    LOSS,
    OK,
    Asked,
    Parts,
    Truth,
    check_refunds,
    check_transfers,
    fee,
    parts_of,
    promised_refunds,
)

#: Less than this is not collected, unless it is all that is owed.
_LEAST = 100
#: What was withdrawn, and what came back.
_DOCUMENTED_LINES = 2


class Convergence(Bank):
    @rule()
    def heal(self) -> None:
        self._converge()

    def teardown(self) -> None:
        # After a failure only the failure counts. An example that Hypothesis merely ends, which is
        # no Exception, must leave nothing that goes on in the next.
        if self.asked and not isinstance(sys.exc_info()[1], Exception):
            self._converge()

    @invariant()
    def nothing_happened_that_nobody_asked_for(self) -> None:
        self.lab.steps += 1
        self._take_effects()
        for payment_id, truth in self.truths.items():
            asked = [one for one in self.asked.values() if one.payment_id == payment_id]
            check_refunds(truth, asked, truth.bounced)
            if truth.separate:
                check_transfers(truth, [one for one in asked if one.is_info or one.told == OK])

    def _converge(self) -> None:
        """Everything is heard, every key answered, every operation settled; then check it all.

        First what waits for money or for the expert's account goes on waiting, and says so. Then
        both come, and nobody is told.
        """
        lab = self.lab
        lab.heal()
        if len(self.asked) % 2:  # Recovery comes first, or the events do.
            lab.sweep()
        if self.is_poor or self.is_restricted or self._disputed():
            self._settle(waiting=True)
            self._take_effects()
            for payment_id, truth in self.truths.items():
                self._check_waiting(payment_id, truth)
                self._check_dispute(payment_id, truth, None)
            self._check_books()
        if self.is_poor:
            self._be_rich()
        self._restore_account()
        for at, (payment_id, dispute) in enumerate(self._disputed()):
            self._decide_dispute(payment_id, dispute, keeps_it=at % 2 == 0)
        self._settle(waiting=False)
        for asked in self.asked.values():
            asked.promised = False
        self._take_effects()
        for payment_id, truth in self.truths.items():
            self._check_payment(payment_id, truth)
        self._check_books()
        self._check_debts()

    def _settle(self, *, waiting: bool) -> None:
        """Goes on until nothing is open; or with ``waiting``, nothing that does not wait."""
        lab = self.lab
        infos: list[Asked] = []
        events: object = ()
        for _ in range(12):
            self.deliver_all()
            lab.sweep()
            if self.dropped:
                lab.poll()
                self.dropped = 0
            lab.nothing_is_polled()
            lab.apply()
            lab.write_off_losses()
            lab.collect()
            for key in [key for key, one in self.asked.items() if one.is_info]:
                self._ask(key, None)
            for operation_id, state in self._unsettled(waiting=waiting):
                if state == "PARKED":
                    self._operate(operation_id)
            infos = [one for one in self.asked.values() if one.is_info]
            if waiting:  # What was never begun has to wait for what waits.
                infos = [
                    one
                    for one in infos
                    if one.key in self.begun and not self._is_contested(one.payment_id)
                ]
            events = lab.sql(
                "SELECT type, payment_ref, state, last_error FROM webhook_events "
                "WHERE state = 'PARKED' OR (state = 'WAITING' "
                "AND NOT (last_error = 'DEFERRED' AND payment_ref = ANY(%s)))",
                self._pending_by_hand() if waiting else [],
            )
            if not infos and not events and not self._unsettled(waiting=waiting):
                return
        left = self._open_operations()
        raise AssertionError(f"never converged: {infos}, {left}, {events}")

    def _pending_by_hand(self) -> list[str]:
        """The payments, and their intents, with a dashboard refund that waits for the balance.

        Nothing books it before it takes its course, so its events wait as long.
        """
        found: list[str] = []
        for payment_id, truth in self.truths.items():
            if self.is_poor and truth.foreign_refunds:
                intent = self._intent_of(payment_id)
                refunds = self.lab.api("GET", "/refunds", limit=100, payment_intent=intent)["data"]
                if any(one["status"] == "pending" and not one["metadata"] for one in refunds):
                    found += [payment_id, intent]
        return found

    def _unsettled(self, *, waiting: bool) -> list[tuple[Any, ...]]:
        """The open operations; with ``waiting`` without those of payments that say they wait."""
        return list(
            self.lab.sql(
                "SELECT operations.operation_id, operations.state FROM operations "
                "LEFT JOIN payments USING (payment_id) WHERE operations.state "
                "IN ('STARTED', 'UNKNOWN', 'PARKED') "
                "AND coalesce(payments.expert_id, operations.expert_id) = %s AND NOT (%s AND "
                "(waiting_for = 'expert' OR waiting_reason LIKE '%%_PENDING_FUNDS' "
                "OR purpose = 'REPAYMENT' OR frozen <> 'NONE'))",
                self.expert,
                waiting,
            )
        )

    def _check_waiting(self, payment_id: str, truth: Truth) -> None:
        """What was promised and is not done is a liability, and the payment says what it awaits."""
        payment = self.lab.payment(payment_id)
        assert payment is not None
        if truth.touched or truth.bounced:
            return
        told = [one for one in self._in_order(payment_id) if one.told == OK and one.rpc != LOSS]
        sent = [one for one in told if one.rpc == "CapturePayment" and not one.sends_nothing]
        done = truth.transfers if truth.separate else int(truth.status == "captured")
        # Only the newest can wait, and what a last capture gives back comes after it.
        waiting = sent[done:]
        waits = payment.state.value == "CAPTURING" and payment.waiting_for.value == "expert"
        assert waits == bool(waiting), (payment, truth, told)
        self.lab.seen["a capture waited"] += waits
        intent = self._intent_of(payment_id)
        refunds = self.lab.api("GET", "/refunds", limit=100, payment_intent=intent)["data"]
        paid = sum(one["amount"] for one in refunds if one["status"] == "succeeded")
        pending = promised_refunds(one for one in told if one not in waiting) - paid
        assert payment.pending_refund == pending, (payment, truth, told)
        assert payment.waits_for_funds == bool(pending), (payment, truth, told)
        self.lab.seen["a refund waited"] += bool(pending)
        [(liability,)] = self.lab.sql(
            "SELECT coalesce(-sum(minor_units), 0)::bigint FROM postings WHERE account = %s",
            f"pending_refund:{payment_id}",
        )
        assert liability == pending, (payment, truth, told)

    def _is_contested(self, payment_id: str) -> bool:
        truth = self.truths.get(payment_id)
        return truth is not None and truth.dispute is not None and truth.dispute.status == "OPEN"

    def _check_dispute(self, payment_id: str, truth: Truth, parts: Parts | None) -> None:
        """What the bank has is set aside until it decides; then somebody bears what it keeps.

        While refunds wait (without ``parts``) it is not settled who bears what was lost.
        """
        dispute = truth.dispute
        [(hold, losses)] = self.lab.sql(
            "SELECT coalesce(sum(minor_units) FILTER (WHERE account = %s), 0)::bigint, "
            "coalesce(sum(minor_units) FILTER (WHERE account = 'losses'), 0)::bigint "
            "FROM postings WHERE payment_id = %s",
            f"dispute_hold:{payment_id}",
            payment_id,
        )
        rows = self.lab.sql(
            "SELECT dispute_id, amount, withdrawn - reinstated, outcome, lost FROM disputes "
            "WHERE payment_id = %s",
            payment_id,
        )
        if dispute is None:
            assert (hold, list(rows)) == (0, []), (truth, rows)
            return
        kept = 0 if dispute.status == "WON" else dispute.taken
        lost = kept if dispute.status == "LOST" else 0
        [row] = rows
        assert row == (dispute.dispute_id, dispute.amount, kept, dispute.status, lost), truth
        assert hold == kept - lost, (truth, hold)
        if parts is None and dispute.status != "LOST":
            parts = Parts(0, 0)
        if parts is not None and (dispute.status != "OPEN" or not truth.touched):
            assert losses == parts.beyond, (truth, parts, losses)
        self.lab.seen["a dispute was open"] += dispute.status == "OPEN"
        self.lab.seen["a dispute was lost"] += dispute.status == "LOST"
        self.lab.seen["a dispute had further lines"] += len(dispute.lines) > 1
        reported = self.lab.sql(
            "SELECT 1 FROM discrepancies WHERE payment_id = %s AND kind = %s",
            payment_id,
            "dispute_lines_unexplained",
        )
        if len(dispute.lines) > _DOCUMENTED_LINES:
            assert reported, (truth, "further lines that nobody is told of")

    def _check_debts(self) -> None:
        """What the expert owes was collected, as far as the account had it."""
        if any(truth.touched for truth in self.truths.values()):
            return
        shown = self.lab.api("GET", "/balance", account=self.account)["available"]
        available = {one["currency"].upper(): one["amount"] for one in shown}
        for currency, debt in self._debts():
            has = available.get(currency, 0)
            assert has < max(min(debt, _LEAST), 1), f"{debt} {currency} is owed, and {has} is there"

    def _debts(self) -> list[tuple[str, int]]:
        return [
            (str(currency).strip(), int(debt))
            for currency, debt in self.lab.sql(
                "SELECT currency, sum(minor_units)::bigint FROM postings WHERE account = %s "
                "GROUP BY 1 HAVING sum(minor_units) <> 0",
                f"expert_debt:{self.expert}",
            )
        ]

    def _operate(self, operation_id: str) -> None:
        """Resumes what is parked; abandons what has nothing to take any more, as the runbook says.

        After a restore the collection that is found has paid for the same refund: everything was
        settled before it.
        """
        lab = self.lab
        [(why,)] = lab.sql(
            "SELECT last_error FROM operations WHERE operation_id = %s", operation_id
        )
        if "recovered beside it" in why:
            self._abandon(operation_id)
            return
        try:
            lab.run(resume_operation(lab.app, operation_id, Cause("ops", "Resume")))
        except Refusal as refused:
            if refused.reason == "AMOUNT_TOO_LARGE":
                self._abandon(operation_id)
            elif refused.reason not in ("CONCURRENT_CHANGE", "WRONG_STATE"):
                raise

    def _abandon(self, operation_id: str) -> None:
        cause = Cause("ops", "AbandonOperation")
        self.lab.run(abandon_operation(self.lab.app, operation_id, "model", cause))

    def _check_payment(self, payment_id: str, truth: Truth) -> None:
        payment = self.lab.payment(payment_id)
        assert payment is not None, "an acknowledged payment is gone"
        intent = self.lab.api("GET", f"/payment_intents/{payment.payment_intent_id}")
        declined = bool(intent["last_payment_error"])
        parts = parts_of(truth, self._in_order(payment_id))
        assert payment.state.value in truth.final_states(declined, parts), (payment, truth, parts)
        if truth.separate:
            self._check_parts(payment, truth, parts)
        else:
            assert (payment.held, payment.captured, payment.refunded_after_capture) == (
                truth.amount if truth.status == "held" else 0,
                truth.captured,
                truth.refunded,
            ), (payment, truth)
        assert (payment.lost_held, payment.lost) == (parts.lost_held, parts.lost), (payment, truth)
        self._check_dispute(payment_id, truth, parts)
        assert not payment.client_payable
        assert not payment.operation_id
        assert not payment.waiting_for
        asked = [one for one in self.asked.values() if one.payment_id == payment_id]
        check_refunds(truth, asked, truth.bounced)
        if not truth.touched:
            assert payment.net_commission == fee(payment.net, BASIS_POINTS), (payment, truth)
            self._check_discrepancies(payment_id, truth)
        captured = [one for one in asked if one.rpc == "CapturePayment" and one.told == OK]
        if not truth.separate:
            assert len(captured) <= 1, "two captures were acknowledged"
            for one in captured:
                if one.amount != truth.captured:
                    self._check_ended_by_hand(one, truth)
        head = b""
        rows = self.lab.sql(
            "SELECT sequence, kind, time, body, hash FROM events WHERE payment_id = %s "
            "ORDER BY sequence",
            payment_id,
        )
        for at, (sequence, kind, moment, body, stored) in enumerate(rows, 1):
            head = chain_hash(head, payment_id, sequence, kind, moment, body)
            assert (sequence, head) == (at, bytes(stored))
        assert len(rows) == payment.version

    def _check_ended_by_hand(self, capture: Asked, truth: Truth) -> None:
        """A capture that waited is not made any more after somebody has canceled or captured.

        A cancellation shows in the payment's state; that another amount was captured is reported.
        """
        assert truth.touched, (capture, truth)
        assert capture.waited, (capture, truth)
        if truth.status != "canceled":
            assert self.lab.sql(
                "SELECT 1 FROM discrepancies WHERE payment_id = %s AND kind = 'amount_mismatch'",
                capture.payment_id,
            ), (capture, truth)

    def _check_discrepancies(self, payment_id: str, truth: Truth) -> None:
        """Only what happened is reported, and what is over is resolved."""
        known = {"refund_failed": bool(truth.bounced), "refund_waits_for_funds": self.was_poor}
        lines = truth.dispute.lines if truth.dispute else []
        known["dispute_lines_unexplained"] = len(lines) > 1
        for kind, is_resolved in self.lab.sql(
            "SELECT kind, resolve_time IS NOT NULL FROM discrepancies WHERE payment_id = %s",
            payment_id,
        ):
            assert known.get(kind), (kind, truth)
            assert is_resolved or kind != "refund_waits_for_funds", (kind, truth)

    def _check_parts(self, payment: Payment, truth: Truth, parts: Parts) -> None:
        """What the platform charged, where it went, and that the expert has what is due."""
        shown = (
            payment.held,
            payment.captured,
            payment.refunded_from_escrow,
            payment.refunded_after_capture,
        )
        assert shown == parts[:4], (payment, truth, parts)
        charged = truth.captured if truth.status == "captured" else 0
        assert payment.charged == charged, (payment, truth)
        if charged:
            assert payment.escrow_mode is EscrowMode.PLATFORM_HOLD
            assert (
                payment.refunded_from_escrow + payment.refunded_after_capture == truth.refunded
            ), (payment, truth)
        [(debt,)] = self.lab.sql(
            "SELECT coalesce(sum(minor_units), 0)::bigint FROM postings "
            "WHERE account = %s AND payment_id = %s",
            f"expert_debt:{self.expert}",
            payment.payment_id,
        )
        assert truth.transferred - truth.reversed == payment.net_expert + debt, (payment, truth)

    def _check_books(self) -> None:
        """Each of Stripe's lines of this example moved what the postings on it say."""
        ours: Counter[tuple[str, str]] = Counter()
        for line, currency, total in self._mine_postings():
            ours[line, currency] += int(total)
        lines = self.lab.newer("/balance_transactions", self.last_line)
        lines += self.lab.newer("/balance_transactions", "", account=self.account)
        for currency, debt in self._debts():
            assert debt >= 0, f"{-debt} {currency} too much was kept back"
        # What the expert owes for one payment is not taken out of another one's transfer.
        twice = self.lab.sql(
            "SELECT payment_id, sum(minor_units)::bigint FROM postings WHERE account = %s "
            "AND payment_id IS NOT NULL AND kind <> 'debt_netted' "
            "GROUP BY 1 HAVING sum(minor_units) < 0",
            f"expert_debt:{self.expert}",
        )
        assert not twice, f"taken back twice: {twice}"
        theirs: Counter[tuple[str, str]] = Counter()
        for line in (one for one in lines if one["id"] not in self.by_hand):
            theirs[line["id"], line["currency"].upper()] += line["net"]
        ours.subtract(theirs)
        differences = {line: total for line, total in ours.items() if total}
        assert not differences, [
            (line, differences[line["id"], line["currency"].upper()])
            for line in lines
            if (line["id"], line["currency"].upper()) in differences
        ] or differences
