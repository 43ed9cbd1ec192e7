"""What the platform's account at Stripe had before the books began, or before it left them.

The books begin a little before they were bound to the account. What Stripe has from then on is on
the books line by line. What was there before is one sum in each currency, the *opening balance*:
Stripe's balance, less the lines since then. Both grow by the same lines, so the sum is the same
whenever it is computed. That is why a restored database, another replica and a repeated run come to
the same amounts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from payment_service.domain.ledger import OPENING_BALANCE
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.platform_lines import OpeningLine
from payment_service.domain.ports.stripe import BalanceEntry

#: Stripe's clock has whole seconds, and is not ours: a line of ours must not seem to be older than
#: the books.
_MARGIN: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Beginning:
    """Since when the books are of an account at Stripe."""

    stripe_account_id: str
    bind_time: datetime
    #: When the opening balance was booked; None before.
    opening_time: datetime | None = None

    @property
    def first_line_time(self) -> datetime:
        """Returns the time from which on each line of the account is on the books."""
        return (self.bind_time - _MARGIN).replace(microsecond=0)


def opening_amounts(
    balances: Iterable[AccountBalance], lines: Iterable[BalanceEntry], left: Mapping[str, int]
) -> Mapping[str, int]:
    """Returns what was there before these lines, by currency. Nothing is left out as zero.

    ``left`` is what was posted of the lines before the books came back to this account. It went
    off the books with the balance that they left, and is not posted again.
    """
    amounts: dict[str, int] = defaultdict(int)
    for balance in balances:
        amounts[balance.currency] += balance.available + balance.pending
    for line in lines:
        amounts[line.currency] -= line.net
    for currency, posted in left.items():
        amounts[currency] += posted
    return {currency: amount for currency, amount in sorted(amounts.items()) if amount}


def opening_lines(beginning: Beginning, amounts: Mapping[str, int]) -> list[OpeningLine]:
    """Returns what books the opening balance of an account."""
    return _summed("opening", beginning, amounts, f"{beginning.stripe_account_id} had this before")


def leaving_lines(left: Beginning, amounts: Mapping[str, int]) -> list[OpeningLine]:
    """Returns what takes the balance of an account off the books, which are of another one now."""
    taken = {currency: -amount for currency, amount in amounts.items()}
    return _summed("leaving", left, taken, f"{left.stripe_account_id} is no account of the books")


def _summed(
    what: str, beginning: Beginning, amounts: Mapping[str, int], description: str
) -> list[OpeningLine]:
    # The time is part of the id: the books may come back to an account.
    since = f"{beginning.bind_time:%Y%m%dT%H%M%S.%f}"
    return [
        OpeningLine(
            line_id=f"{what}:{beginning.stripe_account_id}:{since}:{currency}",
            type=f"{what}_balance",
            description=description,
            account=OPENING_BALANCE,
            net=amount,
            currency=currency,
            create_time=beginning.first_line_time,
        )
        for currency, amount in amounts.items()
    ]
