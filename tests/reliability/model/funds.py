"""The platform's balance: it is emptied, so that refunds wait, and money comes again.

Stripe keeps a refund pending while the available balance is too low, or refuses it. The caller was
answered, so the model holds it for done; `convergence` says what the books must show meanwhile.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.reliability.model.clock import Clock
from tests.reliability.model.trouble import WHICH
from tests.reliability.model.world import CURRENCIES


class Funds(Clock):
    @rule(refuses=st.booleans())
    def the_platform_runs_dry(self, refuses: bool) -> None:
        """Its money leaves, and later refunds are kept pending, or are refused for want of it."""
        shown = self.lab.api("GET", "/balance")["available"]
        for one in shown:
            if one["currency"] in CURRENCIES and one["amount"] > 0:
                self._move_money(-one["amount"], one["currency"])
        self.is_poor = self.was_poor = True
        self.refuses_the_poor = refuses
        self._on_low_balance("refused" if refuses else "pending")

    @rule(which=WHICH, part=st.sampled_from([None, 777, 2_500]), refuses=st.booleans())
    def a_refund_finds_no_money(self, which: int, part: int | None, refuses: bool) -> None:
        number = self._one_in("CAPTURED", which)
        self.the_platform_runs_dry(refuses)
        self._refund(number, part, None)

    @rule(amount=st.sampled_from([1, 500, 9_000]))
    def a_little_money_comes(self, amount: int) -> None:
        """Enough for some of the refunds that wait, perhaps."""
        if self.is_poor:
            for currency in CURRENCIES:
                self._move_money(amount, currency)

    @rule()
    def debts_are_collected(self) -> None:
        self.lab.collect()
