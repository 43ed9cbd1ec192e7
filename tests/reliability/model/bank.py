"""What a client's bank does: it contests a payment, adds lines to the dispute, and decides."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.reliability.model.account import Account
from tests.reliability.model.trouble import ANY, WHICH
from tests.reliability.oracle import LOSS, OK, Asked, Contested, Truth


class Bank(Account):
    """One dispute a payment at most, and none where somebody has touched it by hand."""

    @rule(which=WHICH, part=st.sampled_from([None, 50, 777, 2_500, 9_999]))
    def the_bank_contests(self, which: int, part: int | None) -> None:
        """The service may not hear of it for long: callers go on."""
        self._contest(which, part)

    @rule(
        which=WHICH,
        hold=st.sampled_from(["destination", "platform"]),
        part=st.sampled_from([None, 777, 9_999]),
    )
    def the_bank_contests_what_was_paid(self, which: int, hold: str, part: int | None) -> None:
        state = "CAPTURED" if hold == "destination" else "IN_ESCROW"
        self._contest(self._one_in(state, which, hold=hold), part)

    @rule(which=ANY, amount=st.sampled_from([-60, -1, 1, 60]))
    def the_dispute_has_a_further_line(self, which: int, amount: int) -> None:
        """As Stripe adds one when an exchange rate has moved; negative takes."""
        if not self._disputed():
            self.the_bank_contests_what_was_paid(which, "platform", 777)
        found = self._disputed()
        if not found:
            return
        _, dispute = found[which % len(found)]
        if amount <= dispute.taken:
            body = {"amount": amount}
            self.lab.control("POST", f"/disputes/{dispute.dispute_id}/adjust", body)
            dispute.lines.append(-amount)

    @rule(which=ANY, keeps_it=st.booleans())
    def the_bank_decides(self, which: int, keeps_it: bool) -> None:
        found = self._disputed()
        if found:
            self._decide_dispute(*found[which % len(found)], keeps_it=keeps_it)

    @rule()
    def losses_are_written_off(self) -> None:
        self.lab.write_off_losses()

    def _contest(self, which: int, part: int | None) -> None:
        payment_id, truth, view = self._pick(which)
        infos = [one for one in self.asked.values() if one.is_open and one.payment_id == payment_id]
        if view.busy or infos or truth.status != "captured" or self._is_settled(truth):
            return
        amount = min(part or truth.captured, truth.captured)
        intent = self.lab.api("GET", f"/payment_intents/{self._intent_of(payment_id)}")
        path = f"/charges/{intent['latest_charge']}/dispute"
        shown = self.lab.control("POST", path, {"amount": amount})
        truth.dispute = Contested(shown["id"], amount, [amount])

    def _is_settled(self, truth: Truth) -> bool:
        """Whether what a bank could do to it would be too much for the model."""
        return bool(truth.touched or truth.bounced or truth.foreign_refunds or truth.dispute)

    def _disputed(self) -> list[tuple[str, Contested]]:
        return [
            (payment_id, truth.dispute)
            for payment_id, truth in self.truths.items()
            if truth.dispute is not None and truth.dispute.status == "OPEN"
        ]

    def _decide_dispute(self, payment_id: str, dispute: Contested, *, keeps_it: bool) -> None:
        """The service has heard of the dispute by then, so nothing new begins before the loss."""
        self.deliver_all()
        if self.dropped:
            self.lab.poll()
            self.dropped = 0
            self.lab.apply()
        word = "lose" if keeps_it else "win"
        self.lab.control("POST", f"/disputes/{dispute.dispute_id}/{word}")
        if keeps_it:
            dispute.status = "LOST"
            name = f"loss-{payment_id}"
            self.losses[name] = Asked(LOSS, name, dispute.taken, payment_id, told=OK)
            self.begun.append(name)
        else:
            dispute.status = "WON"
