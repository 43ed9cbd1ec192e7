"""What must be true: after every step, and whenever everything was heard and healed."""

from __future__ import annotations

from collections import Counter

from hypothesis.stateful import invariant, rule

from payment_service.application.abandon_operation import abandon_operation
from payment_service.application.resume_operation import resume_operation
from payment_service.domain.audit_trail import chain_hash
from payment_service.domain.errors import Refusal
from payment_service.domain.payment import EscrowMode, Payment
from payment_service.domain.ports.records import Cause
from tests.reliability.model.clock import Clock
from tests.reliability.model.trouble import BASIS_POINTS
from tests.reliability.oracle import (
    OK,
    Asked,
    Parts,
    Truth,
    check_refunds,
    check_transfers,
    fee,
    parts_of,
)


class Convergence(Clock):
    @rule()
    def heal(self) -> None:
        self._converge()

    def teardown(self) -> None:
        if self.asked:
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
        """Everything is heard, every key answered, every operation settled; then check it all."""
        lab = self.lab
        lab.heal()
        infos: list[Asked] = []
        events: object = ()
        if len(self.asked) % 2:  # Recovery comes first, or the events do.
            lab.sweep()
        for _ in range(12):
            self.deliver_all()
            lab.sweep()
            if self.dropped:
                lab.poll()
                self.dropped = 0
            lab.apply()
            for key in [key for key, one in self.asked.items() if one.is_info]:
                self._ask(key, None)
            for (operation_id,) in self._mine("operations", "operation_id", "state = 'PARKED'"):
                self._operate(operation_id)
            infos = [one for one in self.asked.values() if one.is_info]
            events = lab.sql("SELECT 1 FROM webhook_events WHERE state IN ('WAITING', 'PARKED')")
            if not infos and not events and not self._open_operations():
                break
        else:
            raise AssertionError(f"never converged: {infos}, {self._open_operations()}, {events}")
        self._take_effects()
        for payment_id, truth in self.truths.items():
            self._check_payment(payment_id, truth)
        self._check_books()

    def _operate(self, operation_id: str) -> None:
        """Resume what is parked; abandon what something out of band left too little for."""
        lab = self.lab
        try:
            lab.run(resume_operation(lab.app, operation_id, Cause("ops", "Resume")))
        except Refusal as refused:
            if refused.reason == "AMOUNT_TOO_LARGE":
                cause = Cause("ops", "AbandonOperation")
                lab.run(abandon_operation(lab.app, operation_id, "model", cause))
            elif refused.reason not in ("CONCURRENT_CHANGE", "WRONG_STATE"):
                raise

    def _check_payment(self, payment_id: str, truth: Truth) -> None:
        payment = self.lab.payment(payment_id)
        assert payment is not None, "an acknowledged payment is gone"
        intent = self.lab.api("GET", f"/payment_intents/{payment.payment_intent_id}")
        declined = bool(intent["last_payment_error"])
        begun = [self.asked[key] for key in self.begun if key in self.asked]
        parts = parts_of(truth, [one for one in begun if one.payment_id == payment_id])
        assert payment.state.value in truth.final_states(declined, parts), (payment, truth, parts)
        if truth.separate:
            self._check_parts(payment, truth, parts)
        else:
            assert (payment.held, payment.captured, payment.refunded_after_capture) == (
                truth.amount if truth.status == "held" else 0,
                truth.captured,
                truth.refunded,
            ), (payment, truth)
        assert not payment.client_payable
        assert not payment.operation_id
        assert not payment.waiting_for
        asked = [one for one in self.asked.values() if one.payment_id == payment_id]
        check_refunds(truth, asked, truth.bounced)
        if not truth.touched:
            assert payment.net_commission == fee(payment.net, BASIS_POINTS), (payment, truth)
            for (kind,) in self.lab.sql(
                "SELECT kind FROM discrepancies WHERE payment_id = %s", payment_id
            ):
                assert (kind, bool(truth.bounced)) == ("refund_failed", True)
        captured = [one for one in asked if one.rpc == "CapturePayment" and one.told == OK]
        if not truth.separate:
            assert len(captured) <= 1, "two captures were acknowledged"
            for one in captured:
                assert one.amount == truth.captured
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

    def _check_parts(self, payment: Payment, truth: Truth, parts: Parts) -> None:
        """What the platform charged, where it went, and that the expert has what is due."""
        shown = (
            payment.held,
            payment.captured,
            payment.refunded_from_escrow,
            payment.refunded_after_capture,
        )
        assert shown == parts, (payment, truth, parts)
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
        for currency, debt in self.lab.sql(
            "SELECT currency, sum(minor_units)::bigint FROM postings WHERE account = %s GROUP BY 1",
            f"expert_debt:{self.expert}",
        ):
            assert debt >= 0, f"{-debt} {currency} too much was kept back"
        theirs: Counter[tuple[str, str]] = Counter()
        for line in lines:
            theirs[line["id"], line["currency"].upper()] += line["net"]
        assert {k: v for k, v in ours.items() if v} == {k: v for k, v in theirs.items() if v}
