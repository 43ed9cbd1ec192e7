"""The expert's account changes at Stripe, and no event tells of it: only the clock finds out."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.reliability.model.funds import Funds
from tests.reliability.model.trouble import HOLD, WHICH


class Account(Funds):
    @rule(is_noticed=st.booleans())
    def the_account_is_restricted(self, is_noticed: bool) -> None:
        """Captures wait from now on, whether or not the service knows why."""
        if not self.is_restricted:
            self.lab.control("POST", f"/accounts/{self.account}/restrict")
            self.is_restricted = True
        if is_noticed:
            self.lab.look_at_accounts()

    @rule(which=WHICH, hold=HOLD, part=st.sampled_from([None, 2_500]), final=st.booleans())
    def a_capture_finds_no_account(
        self, which: int, hold: str, part: int | None, final: bool
    ) -> None:
        number = self._one_in("IN_ESCROW", which, hold=hold)
        self.the_account_is_restricted(is_noticed=False)
        self._capture(number, part, final=final, trouble=None)

    @rule(is_noticed=st.booleans())
    def the_account_is_restored(self, is_noticed: bool) -> None:
        if is_noticed:
            self._restore_account()
        elif self.is_restricted:
            self.lab.control("POST", f"/accounts/{self.account}/restore")
            self.is_restricted = False

    @rule()
    def the_clock_looks_at_accounts(self) -> None:
        self.lab.look_at_accounts()
