"""What callers do: they initiate, capture and refund, in trouble or not, and ask again."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from payment_service.domain.money import Money
from tests.reliability.model import calls
from tests.reliability.model.stripe_side import StripeSide
from tests.reliability.model.trouble import ANY, HOLD, PARTS, SURE_TROUBLE, TROUBLE, WHICH, Trouble
from tests.reliability.oracle import AGAIN, INVALID, OK, capture_answer, refund_answer


class Callers(StripeSide):
    @initialize(
        stages=st.lists(
            st.tuples(st.sampled_from(["unpaid", "held", "captured"]), HOLD),
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
        self._be_rich()  # A former example may have failed while the platform was poor.
        lab.sql("DELETE FROM debt_checks")
        lab.deadlines()  # Of former examples: this one's books must show its own promotions alone.
        expert, _ = lab.run(calls.create_expert(lab.app, self.expert))
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
        lab.nothing_is_polled()
        line = lab.api("GET", "/balance_transactions", limit=1)["data"]
        self.last_line = line[0]["id"] if line else ""

    @rule(
        amount=st.sampled_from([10_000, 5_001]),
        currency=st.sampled_from(["USD", "JPY"]),
        hold=HOLD,
    )
    def initiate(self, amount: int, currency: str, hold: str) -> None:
        if self._count("InitiatePayment") < 8:
            self._initiate(amount, currency, None, hold)

    @rule(trouble=SURE_TROUBLE, hold=HOLD)
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
        if self.is_restricted:  # Nothing new begins while the expert cannot be paid.
            self._restore_account()
        key = self._new_key("InitiatePayment", amount)
        money = Money(amount, currency)
        self.calls[key] = lambda: calls.initiate(self.lab.app, key, self.expert, money, hold)
        reply = self._ask(key, trouble)
        assert reply.told == OK or (reply.told == AGAIN and trouble is not None), reply

    @rule(which=WHICH, part=PARTS, final=st.booleans(), trouble=TROUBLE)
    def capture(self, which: int, part: int | None, final: bool, trouble: Trouble) -> None:
        self._capture(which, part, final=final, trouble=trouble)

    @rule(which=WHICH, part=PARTS, trouble=TROUBLE)
    def refund(self, which: int, part: int | None, trouble: Trouble) -> None:
        self._refund(which, part, trouble)

    @rule(
        which=WHICH,
        part=st.sampled_from([None, 1, 777, 2_500, 5_000]),
        final=st.booleans(),
        trouble=TROUBLE,
    )
    def milestone(self, which: int, part: int | None, final: bool, trouble: Trouble) -> None:
        """A part of what the platform holds, or will by this."""
        number = self._one_in("IN_ESCROW", which, hold="platform")
        self._capture(number, part, final=final, trouble=trouble)

    @rule(which=WHICH, part=st.sampled_from([None, 1, 2_500, 9_000]), trouble=TROUBLE)
    def refund_of_held(self, which: int, part: int | None, trouble: Trouble) -> None:
        """Out of escrow, and beyond it where parts were paid out."""
        self._refund(self._one_in("IN_ESCROW", which, hold="platform"), part, trouble)

    @rule(which=WHICH, part=st.sampled_from([None, 777, 2_500]), trouble=SURE_TROUBLE)
    def capture_in_trouble(self, which: int, part: int | None, trouble: Trouble) -> None:
        self._capture(self._one_in("IN_ESCROW", which), part, final=True, trouble=trouble)

    @rule(which=WHICH, trouble=SURE_TROUBLE)
    def cancel_in_trouble(self, which: int, trouble: Trouble) -> None:
        self._refund(self._one_in("IN_ESCROW", which), None, trouble)

    @rule(which=WHICH, part=st.sampled_from([None, 1, 777, 2_500]), trouble=SURE_TROUBLE)
    def refund_in_trouble(self, which: int, part: int | None, trouble: Trouble) -> None:
        self._refund(self._one_in("CAPTURED", which), part, trouble)

    @rule(which=WHICH, trouble=SURE_TROUBLE)
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
        if truth.is_charged_back:
            if self.is_restricted:  # It would be promised, and then the bank could keep it.
                return
            final = False  # What is left cannot be refunded.
        key = self._new_key("CapturePayment", part or view.held, payment_id)
        self.asked[key].part, self.asked[key].final = part, final

        def call() -> calls.Call:
            return calls.capture(self.lab.app, key, payment_id, part, final=final)

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

        self.calls[key] = lambda: calls.refund(self.lab.app, key, payment_id, part)
        if view.busy:
            # What it will be asked for is only known once the payment is free: not our matter.
            del self.calls[key], self.asked[key]
            return
        expected = refund_answer(view, truth, part)
        self._expect(self._ask(key, trouble), expected, trouble, touched=truth.touched)

    @rule(which=ANY)
    def retry_with_the_same_key(self, which: int) -> None:
        key = list(self.asked)[which % len(self.asked)]
        before = self.asked[key]
        told, body = before.told, before.body
        # A refusal by a guard leaves the key free: the call is decided anew.
        stored = key in self.begun
        reply = self._ask(key, None)
        if told and stored:
            assert (reply.told, reply.body) == (told, body), "another answer to the same key"

    @rule(which=ANY)
    def same_key_with_other_content(self, which: int) -> None:
        known = [key for key in self.begun if key in self.asked and not self.asked[key].is_info]
        if not known:
            return
        key = known[which % len(known)]
        command = calls.with_other_content(self.lab.app, self.asked[key], self.expert)
        before = self._rows()
        reply = self.lab.ask(command)
        assert reply.told == AGAIN, reply
        assert "REUSED" in reply.sentence, reply
        assert self._rows() == before
