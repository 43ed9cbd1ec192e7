"""The double-entry books: account names and the postings of every step that moves money.

Debit is positive, credit negative; every transition's postings sum to zero in every currency.
Postings are never edited: a mistake is corrected by new ones. Postings on ``stripe:*`` carry the
id of Stripe's balance transaction, so that each can be compared with Stripe's own record. Only the
opening balance has none: it is the sum of all of them from before the books began.

    assets       stripe:platform   stripe:connected:{expert}   expert_debt:{expert}
                 dispute_hold:{payment}
    liabilities  escrow:{payment}  client_payable:{payment}    expert_funds:{expert}
                 pending_refund:{payment}
    result       commission   processor_fee   dispute_fee   losses   settled_out_of_band   fx
    equity       opening_balance
    memo         hold   client

Stripe may settle a charge in another currency than the payment's. Postings on ``stripe:*`` are then
in the settled currency, all others in the payment's, and ``fx`` balances both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

STRIPE_PLATFORM: Final = "stripe:platform"
COMMISSION: Final = "commission"
PROCESSOR_FEE: Final = "processor_fee"
DISPUTE_FEE: Final = "dispute_fee"
LOSSES: Final = "losses"
SETTLED_OUT_OF_BAND: Final = "settled_out_of_band"
FX: Final = "fx"
OPENING_BALANCE: Final = "opening_balance"
MEMO_HOLD: Final = "hold"
MEMO_CLIENT: Final = "client"


def stripe_connected(expert_id: str) -> str:
    return f"stripe:connected:{expert_id}"


def expert_debt(expert_id: str) -> str:
    return f"expert_debt:{expert_id}"


def expert_funds(expert_id: str) -> str:
    return f"expert_funds:{expert_id}"


def escrow(payment_id: str) -> str:
    return f"escrow:{payment_id}"


def client_payable(payment_id: str) -> str:
    return f"client_payable:{payment_id}"


def pending_refund(payment_id: str) -> str:
    return f"pending_refund:{payment_id}"


def dispute_hold(payment_id: str) -> str:
    return f"dispute_hold:{payment_id}"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line: ``minor_units`` are positive for a debit, negative for a credit."""

    account: str
    minor_units: int
    currency: str
    kind: str
    balance_transaction_id: str = ""


@dataclass(frozen=True, slots=True)
class StripeAmount:
    """What one of Stripe's balance transactions moved, without sign and without Stripe's fee."""

    minor_units: int
    currency: str
    balance_transaction_id: str = ""


@dataclass(frozen=True, slots=True)
class CaptureSplit:
    """How a captured ``amount`` splits into ``commission`` and ``expert_amount``; minor units.

    ``debt_offset`` is the expert's earlier debt that is kept back out of the expert's amount.
    """

    amount: int
    commission: int
    debt_offset: int = 0

    @property
    def expert_amount(self) -> int:
        return self.amount - self.commission

    @property
    def sent(self) -> int:
        """The amount that reaches the expert."""
        return self.expert_amount - self.debt_offset


@dataclass(frozen=True, slots=True)
class RefundSplit:
    """What pays for a refund or a lost dispute, in minor units.

    The client payable comes first, then escrow, then the commission and the expert's amount.
    """

    from_escrow: int = 0
    commission: int = 0
    expert_amount: int = 0
    #: Payable since an earlier refund failed. This pays it, so that nobody pays it again.
    from_payable: int = 0
    #: The same refund was accepted before, and was divided then.
    from_pending: int = 0

    @property
    def from_captured(self) -> int:
        return self.commission + self.expert_amount

    @property
    def whole(self) -> int:
        return self.from_payable + self.from_pending + self.from_escrow + self.from_captured


@dataclass(frozen=True, slots=True)
class Book:
    """Where a payment's postings go: its own accounts and its expert's."""

    payment_id: str
    expert_id: str
    currency: str

    def line(self, kind: str, account: str, minor_units: int) -> Posting:
        return Posting(account, minor_units, self.currency, kind)

    def stripe_line(
        self, kind: str, account: str, sign: int, settled: StripeAmount
    ) -> list[Posting]:
        """A line on ``stripe:*``; balanced over ``fx`` to the payment's currency if need be."""
        line = Posting(
            account,
            sign * settled.minor_units,
            settled.currency,
            kind,
            settled.balance_transaction_id,
        )
        if settled.currency == self.currency:
            return [line]
        return [line, Posting(FX, -sign * settled.minor_units, settled.currency, kind)]

    def fx_line(
        self, kind: str, sign: int, minor_units: int, settled: StripeAmount
    ) -> list[Posting]:
        """The other half of ``stripe_line``, in the payment's currency.

        In the same currency there is one only if Stripe's line never came: what it should have
        moved.
        """
        if settled.currency != self.currency:
            return [Posting(FX, sign * minor_units, self.currency, kind)]
        if settled.balance_transaction_id or minor_units == settled.minor_units:
            return []
        return [Posting(FX, sign * (minor_units - settled.minor_units), self.currency, kind)]

    def into_stripe(
        self, kind: str, account: str, sign: int, minor_units: int, settled: StripeAmount
    ) -> list[Posting]:
        """``sign * minor_units`` of the payment's currency into a ``stripe:*`` account."""
        return without_zeros(
            [
                *self.stripe_line(kind, account, sign, settled),
                *self.fx_line(kind, sign, minor_units, settled),
            ]
        )

    def between(
        self, kind: str, debit: str, debited: StripeAmount, credit: str, credited: StripeAmount
    ) -> list[Posting]:
        """Money from one ``stripe:*`` account to another; over ``fx`` if Stripe converted it.

        Also over ``fx`` goes what left the one account and never arrived on the other.
        """
        lines = [
            Posting(
                debit, debited.minor_units, debited.currency, kind, debited.balance_transaction_id
            ),
            Posting(
                credit,
                -credited.minor_units,
                credited.currency,
                kind,
                credited.balance_transaction_id,
            ),
        ]
        both = debited.balance_transaction_id and credited.balance_transaction_id
        if debited.currency != credited.currency or not both:
            lines += [
                Posting(FX, -debited.minor_units, debited.currency, kind),
                Posting(FX, credited.minor_units, credited.currency, kind),
            ]
            if debited.currency == credited.currency:
                moved = credited.minor_units - debited.minor_units
                lines[2:] = [Posting(FX, moved, debited.currency, kind)]
        return without_zeros(lines)

    # ---- the rules, one a step ----

    def authorized(self, amount: int) -> list[Posting]:
        """The issuer reserved the funds. A memo: no money has moved."""
        return [
            self.line("authorized", MEMO_HOLD, amount),
            self.line("authorized", MEMO_CLIENT, -amount),
        ]

    def hold_released(self, amount: int) -> list[Posting]:
        """The reservation ended: by capture, cancellation or expiry."""
        if not amount:
            return []
        return [
            self.line("hold_released", MEMO_HOLD, -amount),
            self.line("hold_released", MEMO_CLIENT, amount),
        ]

    def charged(self, amount: int, settled: StripeAmount) -> list[Posting]:
        """SEPARATE: the card was charged onto the platform's balance; the money is in escrow."""
        return [
            *self.into_stripe("charged", STRIPE_PLATFORM, 1, amount, settled),
            self.line("charged", escrow(self.payment_id), -amount),
        ]

    def transferred(
        self,
        split: CaptureSplit,
        sent: StripeAmount,
        received: StripeAmount,
        *,
        kind: str = "captured",
    ) -> list[Posting]:
        """SEPARATE: an amount out of escrow went to the expert, less commission and debt offset."""
        connected = stripe_connected(self.expert_id)
        return without_zeros(
            [
                *self.between("transferred", connected, received, STRIPE_PLATFORM, sent),
                *self._earned(split, kind),
            ]
        )

    def _earned(self, split: CaptureSplit, kind: str = "captured") -> list[Posting]:
        """Out of escrow: the commission, and the expert's amount less the debt offset."""
        return [
            self.line(kind, escrow(self.payment_id), split.amount),
            self.line(kind, expert_funds(self.expert_id), split.debt_offset - split.expert_amount),
            self.line(kind, COMMISSION, -split.commission),
            self.line("debt_netted", expert_debt(self.expert_id), -split.debt_offset),
        ]

    def transferred_out_of_band(
        self, amount: int, sent: StripeAmount, received: StripeAmount
    ) -> list[Posting]:
        """A transfer made out of band: the platform's loss until an operator decides."""
        return [
            *self.between(
                "transferred_out_of_band",
                stripe_connected(self.expert_id),
                received,
                STRIPE_PLATFORM,
                sent,
            ),
            self.line("transferred_out_of_band", LOSSES, amount),
            self.line("transferred_out_of_band", expert_funds(self.expert_id), -amount),
        ]

    def captured(self, split: CaptureSplit, lines: CaptureTransactions) -> list[Posting]:
        """DESTINATION: a capture. All goes to the expert, and the application fee comes back."""
        amount = split.amount
        platform, connected = STRIPE_PLATFORM, stripe_connected(self.expert_id)
        held = escrow(self.payment_id)
        postings = [
            *self.into_stripe("charged", platform, 1, amount, lines.charge),
            self.line("charged", held, -amount),
            *self.between("transferred", connected, lines.received, platform, lines.transferred),
        ]
        if split.commission + split.debt_offset:
            postings += self.between(
                "commission_collected", platform, lines.fee, connected, lines.fee_paid
            )
        return without_zeros([*postings, *self._earned(split)])

    def processor_fee(self, fee: StripeAmount) -> list[Posting]:
        """Stripe's own fee, known when its balance transaction appears."""
        return [
            Posting(PROCESSOR_FEE, fee.minor_units, fee.currency, "processor_fee"),
            Posting(
                STRIPE_PLATFORM,
                -fee.minor_units,
                fee.currency,
                "processor_fee",
                fee.balance_transaction_id,
            ),
        ]

    def client_refunded(
        self, split: RefundSplit, settled: StripeAmount, *, owed_by: str
    ) -> list[Posting]:
        """The client got a refund. ``owed_by`` is the account that bears the expert's amount."""
        return without_zeros(
            [
                self.line("client_refunded", client_payable(self.payment_id), split.from_payable),
                self.line("client_refunded", pending_refund(self.payment_id), split.from_pending),
                self.line("client_refunded", escrow(self.payment_id), split.from_escrow),
                self.line("client_refunded", COMMISSION, split.commission),
                self.line("client_refunded", owed_by, split.expert_amount),
                *self.into_stripe("client_refunded", STRIPE_PLATFORM, -1, split.whole, settled),
            ]
        )

    def refund_accepted(self, split: RefundSplit, *, owed_by: str) -> list[Posting]:
        """A refund waits for the platform's balance. ``owed_by`` bears the expert's amount."""
        return without_zeros(
            [
                self.line("refund_accepted", escrow(self.payment_id), split.from_escrow),
                self.line("refund_accepted", COMMISSION, split.commission),
                self.line("refund_accepted", owed_by, split.expert_amount),
                self.line("refund_accepted", pending_refund(self.payment_id), -split.whole),
            ]
        )

    def pending_refund_failed(self, amount: int) -> list[Posting]:
        """A refund that waited for the platform's balance was not paid: the client is owed it."""
        return without_zeros(
            [
                self.line("pending_refund_failed", pending_refund(self.payment_id), amount),
                self.line("pending_refund_failed", client_payable(self.payment_id), -amount),
            ]
        )

    def transfer_reversed(
        self, amount: int, platform: StripeAmount, connected: StripeAmount, *, pays: str
    ) -> list[Posting]:
        """``amount`` of a transfer came back to the platform.

        It is credited to the account ``pays``: the expert's debt or, out of band, ``losses``.
        """
        return without_zeros(
            [
                *self.between(
                    "transfer_reversed",
                    STRIPE_PLATFORM,
                    platform,
                    stripe_connected(self.expert_id),
                    connected,
                ),
                self.line("transfer_reversed", expert_funds(self.expert_id), amount),
                self.line("transfer_reversed", pays, -amount),
            ]
        )

    def fee_refunded(
        self, amount: int, commission: int, platform: StripeAmount, connected: StripeAmount
    ) -> list[Posting]:
        """Commission was paid back to the expert out of band.

        ``commission`` of it was still the platform's. The client had the remainder already.
        """
        return without_zeros(
            [
                *self.between(
                    "fee_refunded",
                    stripe_connected(self.expert_id),
                    connected,
                    STRIPE_PLATFORM,
                    platform,
                ),
                self.line("fee_refunded", COMMISSION, commission),
                self.line("fee_refunded", LOSSES, amount - commission),
                self.line("fee_refunded", expert_funds(self.expert_id), -amount),
            ]
        )

    def refund_failed(self, amount: int, settled: StripeAmount) -> list[Posting]:
        """A refund failed: Stripe returned the money, and it is payable to the client."""
        return [
            *self.into_stripe("refund_failed", STRIPE_PLATFORM, 1, amount, settled),
            self.line("refund_failed", client_payable(self.payment_id), -amount),
        ]

    def refund_failed_unbooked(
        self, amount: int, sent: StripeAmount, returned: StripeAmount
    ) -> list[Posting]:
        """A refund failed before it was booked: both of its balance transactions."""
        return [
            *self.into_stripe("refund_failed_unbooked", STRIPE_PLATFORM, -1, amount, sent),
            *self.into_stripe("refund_failed_unbooked", STRIPE_PLATFORM, 1, amount, returned),
        ]

    def client_repaid(self, amount: int, settled: StripeAmount) -> list[Posting]:
        """A repayment: the client payable of a failed refund was paid by another refund."""
        return [
            self.line("client_repaid", client_payable(self.payment_id), amount),
            *self.into_stripe("client_repaid", STRIPE_PLATFORM, -1, amount, settled),
        ]

    def client_payable_settled(self, amount: int) -> list[Posting]:
        """The client was paid outside Stripe, from money that is in other books."""
        return [
            self.line("client_payable_settled", client_payable(self.payment_id), amount),
            self.line("client_payable_settled", SETTLED_OUT_OF_BAND, -amount),
        ]

    def dispute_funds(
        self, kind: str, sign: int, amount: int, settled: StripeAmount, fee: StripeAmount
    ) -> list[Posting]:
        """``sign`` 1: Stripe withdrew ``amount`` for a dispute; -1: Stripe reinstated it.

        ``fee`` is Stripe's fee for it, negative if Stripe paid a fee back.
        """
        return without_zeros(
            [
                self.line(kind, dispute_hold(self.payment_id), sign * amount),
                *self.into_stripe(kind, STRIPE_PLATFORM, -sign, amount, settled),
                Posting(DISPUTE_FEE, fee.minor_units, fee.currency, "dispute_fee"),
                Posting(
                    STRIPE_PLATFORM,
                    -fee.minor_units,
                    fee.currency,
                    "dispute_fee",
                    fee.balance_transaction_id,
                ),
            ]
        )

    def reinstated_after_loss(self, amount: int) -> list[Posting]:
        """Money that was written off came back: the platform's until an operator decides."""
        return [
            self.line("reinstated_after_loss", dispute_hold(self.payment_id), amount),
            self.line("reinstated_after_loss", LOSSES, -amount),
        ]

    def dispute_lost(self, split: RefundSplit, borne: int) -> list[Posting]:
        """The client's bank keeps the disputed amount. ``split`` says who pays for it.

        ``borne`` is the platform's loss: the client had it by a refund already and has it twice.
        """
        return without_zeros(
            [
                self.line("dispute_lost", client_payable(self.payment_id), split.from_payable),
                self.line("dispute_lost", escrow(self.payment_id), split.from_escrow),
                self.line("dispute_lost", COMMISSION, split.commission),
                self.line("dispute_lost", expert_debt(self.expert_id), split.expert_amount),
                self.line("dispute_lost", LOSSES, borne),
                self.line("dispute_lost", dispute_hold(self.payment_id), -split.whole - borne),
            ]
        )


@dataclass(frozen=True, slots=True)
class CaptureTransactions:
    """The balance transactions of one captured destination charge, each as Stripe settled it."""

    charge: StripeAmount
    #: Out of the platform's balance, and into the connected account's.
    transferred: StripeAmount
    received: StripeAmount
    #: The application fee into the platform's balance, and out of the connected account's.
    fee: StripeAmount
    fee_paid: StripeAmount


def paid_out(
    expert_id: str, kind: str, net: int, currency: str, balance_transaction_id: str
) -> list[Posting]:
    """Stripe moved ``net`` (signed) on a connected account: out to the bank, or back from it.

    Stripe's fee is in the net: the expert pays it. A payout belongs to no payment, since it pays
    out the balance of many.
    """
    return [
        Posting(expert_funds(expert_id), -net, currency, kind),
        Posting(stripe_connected(expert_id), net, currency, kind, balance_transaction_id),
    ]


def written_off(expert_id: str, amount: int, currency: str) -> list[Posting]:
    """Writes an expert's debt off as the platform's loss."""
    return [
        Posting(LOSSES, amount, currency, "debt_written_off"),
        Posting(expert_debt(expert_id), -amount, currency, "debt_written_off"),
    ]


def without_zeros(postings: Iterable[Posting]) -> list[Posting]:
    return [posting for posting in postings if posting.minor_units]


def imbalance(postings: Iterable[Posting]) -> dict[str, int]:
    """What the postings sum to in each currency that is not at zero; empty means balanced."""
    totals: dict[str, int] = defaultdict(int)
    for posting in postings:
        totals[posting.currency] += posting.minor_units
    return {currency: total for currency, total in totals.items() if total}
