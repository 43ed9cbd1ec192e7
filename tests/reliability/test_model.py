"""The whole service against a model, step by step, in any order of calls, events and faults.

After every step nothing may have happened at Stripe that nobody asked for; whenever everything was
heard and healed, every answer, every row and every line of the books must be what the model says.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from payment_service.application.abandon_operation import abandon_operation
from payment_service.application.capture_payment import CapturePayment, capture_payment
from payment_service.application.create_expert_account import (
    CreateExpertAccount,
    create_expert_account,
)
from payment_service.application.initiate_payment import InitiatePayment, initiate_payment
from payment_service.application.refund_payment import RefundPayment, refund_payment
from payment_service.application.resume_operation import resume_operation
from payment_service.application.sync.payment import apply
from payment_service.domain.audit_trail import chain_hash
from payment_service.domain.errors import Refusal
from payment_service.domain.experts import BusinessType
from payment_service.domain.money import Money
from payment_service.domain.payment import EscrowMode, OnDeadline, Payment
from payment_service.domain.plans import RequestedAmount
from payment_service.domain.ports.records import Cause
from payment_service.domain.snapshot import PaymentSnapshot
from tests.reliability import proving
from tests.reliability.lab import IMPATIENT, PATIENT, Lab, Reply
from tests.reliability.oracle import (
    AGAIN,
    INVALID,
    OK,
    Asked,
    Parts,
    Truth,
    View,
    capture_answer,
    check_refunds,
    check_transfers,
    fee,
    parts_of,
    refund_answer,
)

_EXAMPLES = proving.by_profile(6, 210)
#: Each from a seed of its own, in a database and a simulator of its own: they can run side by side.
_HALVES = proving.by_profile([0], [0, 1])
_STEPS = proving.by_profile(40, 60)
_BASIS_POINTS = 1_000
_numbers = itertools.count(1)

#: Faults at Stripe: the action, when it strikes, and what else the rule says.
_FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "500 before": ("status", "before", {"status": 500}),
    "500 after": ("status", "after", {"status": 500}),
    "503 before": ("status", "before", {"status": 503}),
    "503 after": ("status", "after", {"status": 503}),
    "429": ("status", "before", {"status": 429}),
    "reset before": ("reset", "before", {}),
    "reset after": ("reset", "after", {}),
    "timeout": ("hang", "after", {}),
    "malformed": ("malformed", "after", {}),
    "truncated": ("truncated", "after", {}),
}
#: Half of the calls meet no trouble; the others a fault at Stripe, or their process dies.
_TROUBLE = st.one_of(
    st.none(), st.none(), st.sampled_from(sorted(_FAULTS)), st.integers(min_value=1, max_value=12)
)
_SURE_TROUBLE = st.one_of(st.sampled_from(sorted(_FAULTS)), st.integers(min_value=1, max_value=12))
Trouble = str | int | None
_PATHS = {
    "InitiatePayment": "/payment_intents$",
    "CapturePayment": "(/capture|/transfers|/refunds)$",
    "RefundPayment": "(/cancel|/refunds|/reversals)$",
}
_CARDS = {
    "pm_card_visa": "good",
    "pm_card_bypassPending": "good, and transfers of it can be taken back at once",
    "pm_card_visa_chargeDeclined": "declined",
    "pm_card_authenticationRequired": "three_d_secure",
}
#: How the money is held: the mode, and what is done when an authorization is about to lapse.
_HOLDS = {
    "destination": (EscrowMode.CARD_HOLD, OnDeadline.ALERT),
    "platform": (EscrowMode.PLATFORM_HOLD, OnDeadline.ALERT),
    "promoted": (EscrowMode.CARD_HOLD, OnDeadline.PROMOTE),
}
_HOLD = st.sampled_from(["destination", "destination", "platform", "promoted"])
_WHICH = st.integers(min_value=0, max_value=5)
#: Taken modulo what there is. What is drawn must not depend on what happened: time is real here.
_ANY = st.integers(min_value=0, max_value=999)
_PARTS = st.sampled_from([None, 1, 10, 777, 2_500, 5_000, 10_000, 10_001])


class Machine(RuleBasedStateMachine):
    """One expert, up to three payments, and everything that can happen to them."""

    lab: Lab

    def __init__(self) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.expert = f"model-expert-{self.number}"
        self.asked: dict[str, Asked] = {}
        self.calls: dict[str, Callable[[], Any]] = {}
        self.truths: dict[str, Truth] = {}
        #: The keys in the order in which something was begun for them.
        self.begun: list[str] = []
        self.payment_of_intent: dict[str, str] = {}
        self.effects = 0
        self.last_event = ""
        self.undelivered: list[dict[str, Any]] = []
        self.delivered: list[dict[str, Any]] = []
        self.dropped = 0
        self.clock_moved = False
        #: What was seen of which payment when it had which version, and is not written down yet.
        self.slow: list[tuple[str, PaymentSnapshot, int]] = []

    @initialize(
        stages=st.lists(
            st.tuples(st.sampled_from(["unpaid", "held", "captured"]), _HOLD),
            min_size=1,
            max_size=3,
        )
    )
    def begin(self, stages: list[tuple[str, str]]) -> None:
        """An expert who is ready, and some payments that are on their way."""
        self._begin_expert()
        for which, (stage, hold) in enumerate(stages):
            self._initiate(10_000, "USD", None, hold)
            if stage != "unpaid":
                self.confirm(which, "pm_card_visa")
        self.deliver_all()
        for which, (stage, _) in enumerate(stages):
            if stage == "captured":
                self._capture(which, None, final=False, trouble=None)

    def _begin_expert(self) -> None:
        lab = self.lab
        lab.heal()
        lab.bomb.left = 0
        lab.deadlines()  # Of former examples: this one's books must show its own promotions alone.
        command = CreateExpertAccount(
            cause=Cause("local", "CreateExpertAccount", "model"),
            expert_id=self.expert,
            name="Ann Expert",
            email="ann@example.com",
            country="US",
            business_type=BusinessType.INDIVIDUAL,
            commission_basis_points=_BASIS_POINTS,
            continue_url="",
        )
        expert, _ = lab.run(create_expert_account(lab.app, command))
        self.account = expert.account.stripe_account_id
        lab.control("POST", f"/accounts/{self.account}/complete_onboarding")
        self.effects = lab.control("GET", f"/effects?since={10**9}")["last"]
        newest = lab.api("GET", "/events", limit=1)["data"]
        self.last_event = newest[0]["id"] if newest else ""
        # Stripe's clock may be days ahead by now, and what seems so young is not passed for good:
        # a poll, which reads so many at once, would begin further and further back.
        lab.sql(
            "UPDATE event_cursors SET after_event_id = %s WHERE scope = 'platform'", self.last_event
        )
        line = lab.api("GET", "/balance_transactions", limit=1)["data"]
        self.last_line = line[0]["id"] if line else ""

    # ---- callers ----

    @rule(
        amount=st.sampled_from([10_000, 5_001]),
        currency=st.sampled_from(["USD", "JPY"]),
        hold=_HOLD,
    )
    def initiate(self, amount: int, currency: str, hold: str) -> None:
        if self._count("InitiatePayment") < 8:
            self._initiate(amount, currency, None, hold)

    @rule(trouble=_SURE_TROUBLE, hold=_HOLD)
    def initiate_in_trouble(self, trouble: Trouble, hold: str) -> None:
        if self._count("InitiatePayment") < 12:
            self._initiate(10_000, "USD", trouble, hold)

    @rule(trouble=st.sampled_from([5, "reset after", "503 after", "timeout"]))
    def an_initiation_without_an_answer_is_swept(self, trouble: Trouble) -> None:
        """Before any event tells of the intent: only the stored key keeps it the only one."""
        if self._count("InitiatePayment") < 12:
            self._initiate(10_000, "USD", trouble)
            self.lab.sweep()

    def _initiate(
        self, amount: int, currency: str, trouble: Trouble, hold: str = "destination"
    ) -> None:
        key = self._new_key("InitiatePayment", amount)
        mode, on_deadline = _HOLDS[hold]

        def call() -> Any:
            command = InitiatePayment(
                cause=Cause("local", "InitiatePayment", "model"),
                key=key,
                fields={"amount": str(amount), "currency": currency, "expert_id": self.expert},
                client_id="client-1",
                expert_id=self.expert,
                gig_id="gig-1",
                amount=Money(amount, currency),
                description="A website",
                escrow_mode=mode,
                on_deadline=on_deadline,
            )
            return initiate_payment(self.lab.app, command)

        self.calls[key] = call
        reply = self._ask(key, trouble)
        assert reply.told == OK or (reply.told == AGAIN and trouble is not None), reply

    @rule(which=_WHICH, part=_PARTS, final=st.booleans(), trouble=_TROUBLE)
    def capture(self, which: int, part: int | None, final: bool, trouble: Trouble) -> None:
        self._capture(which, part, final=final, trouble=trouble)

    @rule(which=_WHICH, part=_PARTS, trouble=_TROUBLE)
    def refund(self, which: int, part: int | None, trouble: Trouble) -> None:
        self._refund(which, part, trouble)

    @rule(
        which=_WHICH,
        part=st.sampled_from([None, 1, 777, 2_500, 5_000]),
        final=st.booleans(),
        trouble=_TROUBLE,
    )
    def milestone(self, which: int, part: int | None, final: bool, trouble: Trouble) -> None:
        """A part of what the platform holds, or will by this."""
        number = self._one_in("IN_ESCROW", which, hold="platform")
        self._capture(number, part, final=final, trouble=trouble)

    @rule(which=_WHICH, part=st.sampled_from([None, 1, 2_500, 9_000]), trouble=_TROUBLE)
    def refund_of_held(self, which: int, part: int | None, trouble: Trouble) -> None:
        """Out of escrow, and beyond it where parts were paid out."""
        self._refund(self._one_in("IN_ESCROW", which, hold="platform"), part, trouble)

    @rule(which=_WHICH, part=st.sampled_from([None, 777, 2_500]), trouble=_SURE_TROUBLE)
    def capture_in_trouble(self, which: int, part: int | None, trouble: Trouble) -> None:
        self._capture(self._one_in("IN_ESCROW", which), part, final=True, trouble=trouble)

    @rule(which=_WHICH, trouble=_SURE_TROUBLE)
    def cancel_in_trouble(self, which: int, trouble: Trouble) -> None:
        self._refund(self._one_in("IN_ESCROW", which), None, trouble)

    @rule(which=_WHICH, part=st.sampled_from([None, 1, 777, 2_500]), trouble=_SURE_TROUBLE)
    def refund_in_trouble(self, which: int, part: int | None, trouble: Trouble) -> None:
        self._refund(self._one_in("CAPTURED", which), part, trouble)

    @rule(which=_WHICH, trouble=_SURE_TROUBLE)
    def refund_in_other_trouble(self, which: int, trouble: Trouble) -> None:
        self._refund(self._one_in("CAPTURED", which), 333, trouble)

    def _one_in(self, state: str, which: int, hold: str = "destination") -> int:
        """A payment in this state; one is brought there if there is none (so held, if it is)."""
        for at in range(len(self.truths)):
            number = (which + at) % len(self.truths)
            _, truth, view = self._pick(number)
            if view.state == state and (truth.separate or hold == "destination"):
                return number
        number = len(self.truths)
        self._initiate(10_000, "USD", None, hold)
        self.confirm(number, "pm_card_visa")
        self.deliver_all()
        if state == "CAPTURED":
            self._capture(number, None, final=False, trouble=None)
        return number

    def _capture(self, which: int, part: int | None, *, final: bool, trouble: Trouble) -> None:
        payment_id, truth, view = self._pick(which)
        key = self._new_key("CapturePayment", part or view.held, payment_id)
        self.asked[key].part, self.asked[key].final = part, final

        def call() -> Any:
            command = CapturePayment(
                cause=Cause("local", "CapturePayment", "model"),
                key=key,
                fields={"payment_id": payment_id, "amount": str(part), "final": str(final)},
                payment_id=payment_id,
                part=None if part is None else RequestedAmount(part),
                final=final,
                notes="",
            )
            return capture_payment(self.lab.app, command)

        self.calls[key] = call
        expected = capture_answer(view, truth, part, final)
        if expected == INVALID:
            reply = self.lab.ask(call())
            assert "Stripe's minimum" in reply.sentence, reply
            del self.calls[key], self.asked[key]
            return
        self._expect(self._ask(key, trouble), expected, trouble, touched=truth.touched)

    def _refund(self, which: int, part: int | None, trouble: Trouble) -> None:
        payment_id, truth, view = self._pick(which)
        key = self._new_key("RefundPayment", 0, payment_id)
        self.asked[key].part = part

        def call() -> Any:
            command = RefundPayment(
                cause=Cause("local", "RefundPayment", "model"),
                key=key,
                fields={"payment_id": payment_id, "amount": str(part)},
                payment_id=payment_id,
                part=None if part is None else RequestedAmount(part),
                reason="",
            )
            return refund_payment(self.lab.app, command)

        self.calls[key] = call
        if view.busy:
            # What it will be asked for is only known once the payment is free: not our matter.
            del self.calls[key], self.asked[key]
            return
        expected = refund_answer(view, truth, part)
        self._expect(self._ask(key, trouble), expected, trouble, touched=truth.touched)

    @rule(which=_ANY)
    def retry_with_the_same_key(self, which: int) -> None:
        key = list(self.asked)[which % len(self.asked)]
        before = self.asked[key]
        told, body = before.told, before.body
        # A refusal by a guard leaves the key free: the call is decided anew.
        stored = key in self.begun
        reply = self._ask(key, None)
        if told and stored:
            assert (reply.told, reply.body) == (told, body), "another answer to the same key"

    @rule(which=_ANY)
    def same_key_with_other_content(self, which: int) -> None:
        known = [key for key in self.begun if key in self.asked and not self.asked[key].is_info]
        if not known:
            return
        key = known[which % len(known)]
        command = self._command_with_other_content(key)
        before = self._rows()
        reply = self.lab.ask(command)
        assert reply.told == AGAIN, reply
        assert "REUSED" in reply.sentence, reply
        assert self._rows() == before

    # ---- the client, and the Stripe dashboard ----

    @rule(which=_WHICH, card=st.sampled_from(sorted(_CARDS)))
    def confirm(self, which: int, card: str) -> None:
        intent = self._intent(which)
        if intent:
            shown = self.lab.api("POST", f"/payment_intents/{intent}/confirm", payment_method=card)
            note(f"confirm {intent}: {shown.get('status') or shown['error'].get('code')}")

    @rule(which=_WHICH, outcome=st.sampled_from(["approve", "fail"]))
    def authenticate(self, which: int, outcome: str) -> None:
        intent = self._intent(which)
        if intent and self.lab.api("GET", f"/payment_intents/{intent}")["status"] == (
            "requires_action"
        ):
            path = f"/payment_intents/{intent}/authenticate"
            self.lab.control("POST", path, {"outcome": outcome})

    @rule(which=_WHICH, act=st.sampled_from(["capture", "cancel"]))
    def at_the_dashboard(self, which: int, act: str) -> None:
        intent = self._intent(which)
        truth = self._pick(which)[1]
        if intent and truth.status == "held":
            truth.touched = True
            shown = self.lab.api("POST", f"/payment_intents/{intent}/{act}")
            assert "error" not in shown, shown

    # Out-of-band refunds, transfers and reversals of a separate charge are not modelled.

    @rule(which=_WHICH, part=st.sampled_from([1, 300, 5_000]))
    def refund_at_the_dashboard(self, which: int, part: int) -> None:
        intent = self._intent(which)
        truth = self._pick(which)[1]
        if truth.separate:
            return
        if intent and truth.status == "captured" and part <= truth.net and not truth.bounced:
            truth.touched = True
            truth.foreign_refunds[part] += 1
            shown = self.lab.api("POST", "/refunds", payment_intent=intent, amount=part)
            assert "error" not in shown, shown

    @rule(which=_WHICH, part=st.sampled_from([1, 200]))
    def reverse_at_the_dashboard(self, which: int, part: int) -> None:
        intent = self._intent(which)
        truth = self._pick(which)[1]
        if not intent or truth.status != "captured" or truth.separate:
            return
        charge = self.lab.api("GET", f"/payment_intents/{intent}", **{"expand[]": "latest_charge"})
        transfer = charge["latest_charge"]["transfer"]
        shown = self.lab.api("POST", f"/transfers/{transfer}/reversals", amount=part)
        truth.touched = truth.touched or "error" not in shown

    @rule(which=_WHICH)
    def a_refund_bounces(self, which: int) -> None:
        payment_id, truth, view = self._pick(which)
        if view.busy or truth.foreign_refunds or truth.bounced:
            return
        done = self.lab.sql(
            "SELECT movement_id FROM movements WHERE payment_id = %s AND kind = 'refund' "
            "ORDER BY time DESC LIMIT 1",
            payment_id,
        )
        if done:
            self.lab.control("POST", f"/refunds/{done[0][0]}/fail")

    # ---- webhooks ----

    @rule()
    def events_come_into_being(self) -> None:
        """Stripe lists them; when they are delivered is another matter."""
        events = self.lab.newer("/events", self.last_event)
        if events:
            self.last_event = events[-1]["id"]
            self.undelivered += events

    @rule(which=_ANY, fate=st.sampled_from(["once", "once", "twice", "drop", "again"]))
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

    # ---- time ----

    @rule(bomb=st.integers(min_value=0, max_value=10))
    def sweep(self, bomb: int) -> None:
        if len(self._open_operations()) == 1:  # Else others would go on after the crash.
            self.lab.bomb.left = bomb
        self.lab.sweep()

    @rule(trouble=_TROUBLE)
    def authorizations_are_about_to_lapse(self, trouble: Trouble) -> None:
        """Those that are to be are charged onto the platform, if nothing comes in between."""
        if isinstance(trouble, str):
            action, when, more = _FAULTS[trouble]
            self.lab.arm("/capture$", action, when, **more)
        elif trouble is not None:
            self.lab.bomb.left = trouble
        with self.lab.patience(IMPATIENT if trouble == "timeout" else PATIENT):
            self.lab.deadlines()
        if isinstance(trouble, str):
            self.lab.disarm(trouble)

    @rule(which=_WHICH)
    def a_slow_replica_looks(self, which: int) -> None:
        """It asks Stripe, and then sleeps for who knows how long."""
        payment_id, _, view = self._pick(which)
        intent = self._intent(which)
        if intent and view.state not in ("PENDING", "FAILED"):
            seen = self.lab.run(self.lab.app.stripe.observe(intent))
            self.slow.append((payment_id, seen, view.version))

    @rule(which=_ANY)
    def a_slow_replica_writes_down_what_it_saw(self, which: int) -> None:
        if not self.slow:
            return
        payment_id, seen, version = self.slow.pop(which % len(self.slow))
        cause = Cause("payment_service", "slow")
        self.lab.run(apply(self.lab.app, payment_id, seen, version, cause))

    @rule(which=_WHICH, state=st.sampled_from(["IN_ESCROW", "CAPTURED"]))
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
        if not self.clock_moved and not infos and not self._open_operations():
            self.clock_moved = True
            self.lab.control("POST", "/clock", {"advance_seconds": 8 * 86_400})

    @rule()
    def heal(self) -> None:
        self._converge()

    def teardown(self) -> None:
        if self.asked:
            self._converge()

    # ---- what must be true ----

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
            assert payment.net_commission == fee(payment.net, _BASIS_POINTS), (payment, truth)
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

    # ---- helpers ----

    def _ask(self, key: str, trouble: Trouble) -> Reply:
        asked = self.asked[key]
        name = f"{asked.rpc} {trouble}"
        begun = key in self.begun
        if not begun and asked.payment_id:  # So what it comes to is decided now.
            view = self._pick(list(self.truths).index(asked.payment_id))[2]
            self._decide(asked, view)
        if isinstance(trouble, str):
            action, when, more = _FAULTS[trouble]
            self.lab.arm(_PATHS[asked.rpc], action, when, **more)
        elif trouble is not None:
            self.lab.bomb.left = trouble
        with self.lab.patience(IMPATIENT if trouble == "timeout" else PATIENT):
            reply = self.lab.ask(self.calls[key]())
        if isinstance(trouble, str):
            self.lab.disarm(trouble)
        note(f"{key} {name}: {reply.told} {reply.sentence}")
        if not begun and self.lab.sql("SELECT 1 FROM idempotency_keys WHERE key = %s", key):
            self.begun.append(key)
        if reply.told != AGAIN:
            asked.told, asked.body = reply.told, reply.body
        self._take_effects()
        return reply

    def _decide(self, asked: Asked, view: View) -> None:
        """What a call will move, by how its payment stands when it begins."""
        separate = self.truths[asked.payment_id].separate
        if asked.rpc == "CapturePayment":
            asked.amount = asked.part or view.held
            commission = fee(view.net + asked.amount, _BASIS_POINTS) - fee(view.net, _BASIS_POINTS)
            asked.sends_nothing = separate and commission == asked.amount
            back = separate and asked.final and view.charged
            asked.rest = max(view.held - asked.amount, 0) if back else 0
        elif separate:
            asked.amount = (asked.part or view.held or view.net) if view.charged else 0
        else:
            asked.amount = (asked.part or view.net) if view.state == "CAPTURED" else 0

    def _expect(self, reply: Reply, expected: str, trouble: Trouble, *, touched: bool) -> None:
        """Trouble may leave it open; it never changes what the answer is.

        So may what somebody moved out of band: what follows then waits for an operator.
        """
        if reply.told == AGAIN and (trouble is not None or touched):
            return
        assert reply.told == expected, f"told {reply}, expected {expected}"

    def _take_effects(self) -> None:
        given = self.lab.control("GET", f"/effects?since={self.effects}")
        self.effects = given["last"]
        for one in given["effects"]:
            intent = one["payment_intent"]
            if one["kind"] == "intent_created":
                payment_id = one["metadata"]["payment_id"]
                self.payment_of_intent[intent] = payment_id
                payment = self.lab.payment(payment_id)
                separate = payment is not None and payment.is_separate
                self.truths.setdefault(payment_id, Truth(one["amount"], separate))
            if intent in self.payment_of_intent:
                truth = self.truths[self.payment_of_intent[intent]]
                truth.happened(one["kind"], one["amount"] or 0)

    def _pick(self, which: int) -> tuple[str, Truth, View]:
        self._take_effects()
        ids = list(self.truths)
        payment_id = ids[which % len(ids)]
        payment = self.lab.payment(payment_id)
        assert payment is not None
        # A parked repayment that is not in progress blocks nothing.
        parked = (payment.held or payment.net) and self.lab.sql(
            "SELECT 1 FROM operations WHERE operation_id = %s AND state = 'PARKED' "
            "AND purpose = 'REPAYMENT' AND unsure_until IS NULL",
            payment.operation_id,
        )
        view = View(
            payment.resting_state.value if parked else payment.state.value,
            payment.held,
            payment.net,
            payment.version,
            bool(payment.operation_id) and not parked,
            payment.charged if payment.is_separate else 0,
        )
        return payment_id, self.truths[payment_id], view

    def _intent(self, which: int) -> str:
        wanted = self._pick(which)[0]
        return next((intent for intent, one in self.payment_of_intent.items() if one == wanted), "")

    def _new_key(self, rpc: str, amount: int, payment_id: str = "") -> str:
        key = f"{self.number}-{len(self.asked)}-{rpc}-{len(self.calls)}"
        self.asked[key] = Asked(rpc, key, amount, payment_id)
        return key

    def _count(self, rpc: str) -> int:
        return sum(one.rpc == rpc for one in self.asked.values())

    def _command_with_other_content(self, key: str) -> Any:
        asked = self.asked[key]
        if asked.rpc == "InitiatePayment":
            command = InitiatePayment(
                cause=Cause("local", "InitiatePayment", "model"),
                key=key,
                fields={"amount": "9", "currency": "USD", "expert_id": self.expert},
                client_id="client-1",
                expert_id=self.expert,
                gig_id="gig-1",
                amount=Money(9_999, "USD"),
                description="Another",
                escrow_mode=EscrowMode.CARD_HOLD,
            )
            return initiate_payment(self.lab.app, command)
        fields = {"payment_id": asked.payment_id, "amount": "other"}
        cause = Cause("local", asked.rpc, "model")
        if asked.rpc == "CapturePayment":
            return capture_payment(
                self.lab.app,
                CapturePayment(
                    cause=cause,
                    key=key,
                    fields=fields,
                    payment_id=asked.payment_id,
                    part=RequestedAmount(5),
                    final=True,
                    notes="",
                ),
            )
        return refund_payment(
            self.lab.app,
            RefundPayment(
                cause=cause,
                key=key,
                fields=fields,
                payment_id=asked.payment_id,
                part=RequestedAmount(5),
                reason="",
            ),
        )

    def _rows(self) -> object:
        ids = list(self.truths)
        return self.lab.sql(
            "SELECT payment_id, version, state FROM payments WHERE payment_id = ANY(%s) "
            "UNION ALL SELECT operation_id, attempt, state FROM operations "
            "WHERE payment_id = ANY(%s) ORDER BY 1",
            ids,
            ids,
        )

    def _open_operations(self) -> list[tuple[Any, ...]]:
        which = "state IN ('STARTED', 'UNKNOWN', 'PARKED')"
        return self._mine("operations", "operation_id, kind, state, last_error", which)

    def _mine(self, table: str, columns: str, which: str) -> list[tuple[Any, ...]]:
        return list(
            self.lab.sql(
                f"SELECT {columns} FROM {table} WHERE {which} AND payment_id IN "  # noqa: S608 - ours
                "(SELECT payment_id FROM payments WHERE expert_id = %s)",
                self.expert,
            )
        )

    def _mine_postings(self) -> list[tuple[Any, ...]]:
        columns = "balance_transaction_id, currency, sum(minor_units)"
        return list(
            self.lab.sql(
                f"SELECT {columns} FROM postings WHERE account LIKE 'stripe:%%' "  # noqa: S608 - ours
                "AND payment_id IN (SELECT payment_id FROM payments WHERE expert_id = %s) "
                "GROUP BY 1, 2",
                self.expert,
            )
        )


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    opened = Lab(database_url)
    yield opened
    opened.close()


@pytest.mark.timeout(proving.by_profile(240, 3600))
@pytest.mark.parametrize("half", _HALVES)
def test_the_service_is_what_the_model_says(lab: Lab, half: int) -> None:
    examples = itertools.count(1)

    @seed(proving.SEED + half)
    class Proved(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.lab = lab
            number = next(examples)
            if number % 20 == 0:
                proving.progress(f"model {half}: {number} examples, {lab.steps} steps")

    run_state_machine_as_test(
        Proved,
        settings=settings(
            max_examples=_EXAMPLES,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
    fired = sum(lab.faults_fired.values())
    least = min(lab.faults_fired.get(name, 0) for name in _FAULTS)
    assert fired
    assert lab.bomb.went_off
    if proving.FULL:
        assert least >= 5, f"some fault hardly ever struck: {lab.faults_fired}"
    proving.figure(
        "C",
        f"model, seed {proving.SEED + half}: {lab.steps} steps, {next(examples) - 1} examples, "
        f"{fired} faults and {lab.bomb.went_off} crashes struck "
        f"({len(_FAULTS)} kinds, each {least} times or more)",
    )
