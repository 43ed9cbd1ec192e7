"""What the client does, and what somebody does at the Stripe dashboard."""

from __future__ import annotations

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.reliability.model.events import Events
from tests.reliability.model.trouble import CARDS, WHICH


class StripeSide(Events):
    @rule(which=WHICH, card=st.sampled_from(sorted(CARDS)))
    def confirm(self, which: int, card: str) -> None:
        intent = self._intent(which)
        if intent:
            shown = self.lab.api("POST", f"/payment_intents/{intent}/confirm", payment_method=card)
            note(f"confirm {intent}: {shown.get('status') or shown['error'].get('code')}")

    @rule(which=WHICH, outcome=st.sampled_from(["approve", "fail"]))
    def authenticate(self, which: int, outcome: str) -> None:
        intent = self._intent(which)
        if intent and self.lab.api("GET", f"/payment_intents/{intent}")["status"] == (
            "requires_action"
        ):
            path = f"/payment_intents/{intent}/authenticate"
            self.lab.control("POST", path, {"outcome": outcome})

    @rule(which=WHICH, act=st.sampled_from(["capture", "cancel"]))
    def at_the_dashboard(self, which: int, act: str) -> None:
        intent = self._intent(which)
        truth = self._pick(which)[1]
        if act == "capture" and self.is_restricted:  # Stripe refuses that to everybody.
            return
        if intent and truth.status == "held":
            truth.touched = True
            shown = self.lab.api("POST", f"/payment_intents/{intent}/{act}")
            assert "error" not in shown, shown

    # Out-of-band refunds, transfers and reversals of a separate charge are not modelled.

    @rule(which=WHICH, part=st.sampled_from([1, 300, 5_000]))
    def refund_at_the_dashboard(self, which: int, part: int) -> None:
        intent = self._intent(which)
        truth = self._pick(which)[1]
        if truth.separate or truth.dispute or self.refuses_the_poor:
            return
        if intent and truth.status == "captured" and part <= truth.net and not truth.bounced:
            truth.touched = True
            truth.foreign_refunds[part] += 1
            shown = self.lab.api("POST", "/refunds", payment_intent=intent, amount=part)
            assert "error" not in shown, shown

    @rule(which=WHICH, part=st.sampled_from([1, 200]))
    def reverse_at_the_dashboard(self, which: int, part: int) -> None:
        intent = self._intent(which)
        truth = self._pick(which)[1]
        if not intent or truth.status != "captured" or truth.separate or truth.dispute:
            return
        charge = self.lab.api("GET", f"/payment_intents/{intent}", **{"expand[]": "latest_charge"})
        transfer = charge["latest_charge"]["transfer"]
        shown = self.lab.api("POST", f"/transfers/{transfer}/reversals", amount=part)
        truth.touched = truth.touched or "error" not in shown

    @rule(which=WHICH)
    def a_refund_bounces(self, which: int) -> None:
        payment_id, truth, view = self._pick(which)
        if view.busy or truth.foreign_refunds or truth.bounced or truth.dispute:
            return
        done = self.lab.sql(
            "SELECT movement_id FROM movements WHERE payment_id = %s AND kind = 'refund' "
            "ORDER BY time DESC LIMIT 1",
            payment_id,
        )
        if done:
            self.lab.control("POST", f"/refunds/{done[0][0]}/fail")
