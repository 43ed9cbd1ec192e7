"""Balance transactions that Stripe makes on the platform's own account, for no payment.

Stripe's fees, reserves, collections and the platform's own payouts have no object of ours. Their
type says what they are, so each is posted to the account of its type. Only what no type explains is
reported to an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from payment_service.domain.ledger import DISPUTE_FEE, STRIPE_PLATFORM, Posting

PLATFORM_FEES: Final = "platform_fees"
RESERVES: Final = "reserves"
PLATFORM_BANK: Final = "platform_bank"
ACCOUNT_DEFICITS: Final = "account_deficits"
ADVANCES: Final = "advances"
CONTRIBUTIONS: Final = "contributions"

#: Stripe's types of balance transactions that never belong to a payment.
_BY_TYPE: Final[Mapping[str, str]] = {
    "stripe_fee": PLATFORM_FEES,
    "stripe_fx_fee": PLATFORM_FEES,
    "tax_fee": PLATFORM_FEES,
    "fee_credit_funding": PLATFORM_FEES,
    "stripe_balance_payment_debit": PLATFORM_FEES,
    "stripe_balance_payment_debit_reversal": PLATFORM_FEES,
    "reserve_transaction": RESERVES,
    "reserved_funds": RESERVES,
    "reserve_hold": RESERVES,
    "reserve_release": RESERVES,
    "payment_network_reserve_hold": RESERVES,
    "payment_network_reserve_release": RESERVES,
    "payout_minimum_balance_hold": RESERVES,
    "payout_minimum_balance_release": RESERVES,
    "payout": PLATFORM_BANK,
    "payout_cancel": PLATFORM_BANK,
    "payout_failure": PLATFORM_BANK,
    "topup": PLATFORM_BANK,
    "topup_reversal": PLATFORM_BANK,
    "connect_collection_transfer": ACCOUNT_DEFICITS,
    "advance": ADVANCES,
    "advance_funding": ADVANCES,
    "anticipation_repayment": ADVANCES,
    "contribution": CONTRIBUTIONS,
    "climate_order_purchase": CONTRIBUTIONS,
    "climate_order_refund": CONTRIBUTIONS,
}
#: An adjustment can be anything; its reporting category says what it is.
_BY_CATEGORY: Final[Mapping[str, str]] = {
    "fee": PLATFORM_FEES,
    "tax": PLATFORM_FEES,
    "connect_reserved_funds": RESERVES,
    "risk_reserved_funds": RESERVES,
}
#: Stripe's fee for countering a dispute names its dispute nowhere. Only its description says it.
_COUNTERED: Final = "dispute countered fee"


@dataclass(frozen=True, slots=True)
class PlatformLine:
    """A balance transaction of the platform, signed and net, and the account that explains it."""

    line_id: str
    type: str
    description: str
    account: str
    net: int
    currency: str
    #: When Stripe made it.
    create_time: datetime

    @property
    def postings(self) -> list[Posting]:
        """The line on the platform's balance, and the other side on its account."""
        return [
            Posting(STRIPE_PLATFORM, self.net, self.currency, "platform_line", self.line_id),
            Posting(self.account, -self.net, self.currency, "platform_line"),
        ]


@dataclass(frozen=True, slots=True)
class OpeningLine(PlatformLine):
    """The sum of lines that are not on the books one by one. So Stripe has none with its id."""

    @property
    def postings(self) -> list[Posting]:
        """The sum on the platform's balance, without a line of Stripe's, and the other side."""
        return [
            Posting(STRIPE_PLATFORM, self.net, self.currency, "opening_balance"),
            Posting(self.account, -self.net, self.currency, "opening_balance"),
        ]


def account_of(type_: str, category: str, description: str, source_id: str) -> str:
    """Returns the ledger account that explains a line of the platform, or "" if none does."""
    if type_ != "adjustment":
        return _BY_TYPE.get(type_, "")
    if source_id:  # A dispute's, or another object's.
        return ""
    if _COUNTERED in description.lower():
        return DISPUTE_FEE
    return _BY_CATEGORY.get(category, "")
