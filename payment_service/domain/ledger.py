"""The double-entry books: account names and the postings of every step that moves money.

Debit is positive, credit negative; every transition's postings sum to zero in every currency.
Postings are never edited: what was wrong is corrected by new ones. Lines on ``stripe:*`` carry the
id of Stripe's balance transaction, so that the books can be held against Stripe's line by line.

    assets       stripe:platform   stripe:connected:{expert}   expert_debt:{expert}
                 dispute_hold:{payment}
    liabilities  escrow:{payment}  client_payable:{payment}    expert_funds:{expert}
    result       commission   processor_fee   dispute_fee   losses   settled_out_of_band   fx
    memo         hold   client

A charge may settle in another currency than it was presented in. Lines on ``stripe:*`` are then in
the currency that Stripe settled, all others in the payment's, and ``fx`` stands between.
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
    """How a captured ``part`` divides: ``commission + expert_part``.

    ``netted`` is what the expert owed from before and is kept back out of the expert's part.
    """

    part: int
    commission: int
    netted: int = 0

    @property
    def expert_part(self) -> int:
        return self.part - self.commission

    @property
    def sent(self) -> int:
        """What really reaches the expert."""
        return self.expert_part - self.netted


@dataclass(frozen=True, slots=True)
class RefundSplit:
    """Out of what the client is paid, or a lost dispute is: the order is that of the fields below.

    What is owed to the client comes first, then escrow, then the commission and the expert's part.
    """

    from_escrow: int = 0
    commission: int = 0
    expert_part: int = 0
    #: Owed since a refund bounced: the client has it by this, and is not paid it once more.
    from_owed: int = 0

    @property
    def from_captured(self) -> int:
        return self.commission + self.expert_part

    @property
    def whole(self) -> int:
        return self.from_owed + self.from_escrow + self.from_captured


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
        """The other half of ``stripe_line``, in the payment's currency."""
        if settled.currency == self.currency:
            return []
        return [Posting(FX, sign * minor_units, self.currency, kind)]

    def into_stripe(
        self, kind: str, account: str, sign: int, minor_units: int, settled: StripeAmount
    ) -> list[Posting]:
        """``sign * minor_units`` of the payment's currency into a ``stripe:*`` account."""
        return [
            *self.stripe_line(kind, account, sign, settled),
            *self.fx_line(kind, sign, minor_units, settled),
        ]

    def between(
        self, kind: str, debit: str, debited: StripeAmount, credit: str, credited: StripeAmount
    ) -> list[Posting]:
        """Money from one ``stripe:*`` account to another; over ``fx`` if Stripe converted it."""
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
        if debited.currency != credited.currency:
            lines += [
                Posting(FX, -debited.minor_units, debited.currency, kind),
                Posting(FX, credited.minor_units, credited.currency, kind),
            ]
        return lines

    # ---- the rules, one a step ----

    def authorized(self, amount: int) -> list[Posting]:
        """The issuer reserved the funds; a memo, for no money has moved."""
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

    def charged(self, part: int, settled: StripeAmount) -> list[Posting]:
        """The card was charged onto the platform; the money belongs to nobody yet (SEPARATE)."""
        return [
            *self.into_stripe("charged", STRIPE_PLATFORM, 1, part, settled),
            self.line("charged", escrow(self.payment_id), -part),
        ]

    def transferred(
        self,
        share: CaptureSplit,
        sent: StripeAmount,
        received: StripeAmount,
        *,
        kind: str = "captured",
    ) -> list[Posting]:
        """A part of what the platform holds went to the expert, less commission and debt."""
        connected = stripe_connected(self.expert_id)
        return without_zeros(
            [
                *self.between("transferred", connected, received, STRIPE_PLATFORM, sent),
                *self._earned(share, kind),
            ]
        )

    def _earned(self, share: CaptureSplit, kind: str = "captured") -> list[Posting]:
        """Out of escrow: the expert's part less what the expert owed, and the commission."""
        return [
            self.line(kind, escrow(self.payment_id), share.part),
            self.line(kind, expert_funds(self.expert_id), share.netted - share.expert_part),
            self.line(kind, COMMISSION, -share.commission),
            self.line("debt_netted", expert_debt(self.expert_id), -share.netted),
        ]

    def transferred_out_of_band(
        self, part: int, sent: StripeAmount, received: StripeAmount
    ) -> list[Posting]:
        """Somebody sent the expert money by hand; the platform bears it until it is decided."""
        return [
            *self.between(
                "transferred_out_of_band",
                stripe_connected(self.expert_id),
                received,
                STRIPE_PLATFORM,
                sent,
            ),
            self.line("transferred_out_of_band", LOSSES, part),
            self.line("transferred_out_of_band", expert_funds(self.expert_id), -part),
        ]

    def captured(self, share: CaptureSplit, lines: CaptureTransactions) -> list[Posting]:
        """A destination charge was captured: through the platform to the expert, the fee back."""
        part = share.part
        platform, connected = STRIPE_PLATFORM, stripe_connected(self.expert_id)
        held = escrow(self.payment_id)
        postings = [
            *self.into_stripe("charged", platform, 1, part, lines.charge),
            self.line("charged", held, -part),
            *self.between("transferred", connected, lines.received, platform, lines.transferred),
        ]
        if share.commission + share.netted:
            postings += self.between(
                "commission_collected", platform, lines.fee, connected, lines.fee_paid
            )
        return without_zeros([*postings, *self._earned(share)])

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
        """The client got money back: owed, in escrow, of the commission, and of whom owes it."""
        return without_zeros(
            [
                self.line("client_refunded", client_payable(self.payment_id), split.from_owed),
                self.line("client_refunded", escrow(self.payment_id), split.from_escrow),
                self.line("client_refunded", COMMISSION, split.commission),
                self.line("client_refunded", owed_by, split.expert_part),
                *self.into_stripe("client_refunded", STRIPE_PLATFORM, -1, split.whole, settled),
            ]
        )

    def transfer_reversed(
        self, part: int, platform: StripeAmount, connected: StripeAmount, *, pays: str
    ) -> list[Posting]:
        """The expert's ``part`` came back to the platform.

        It pays what the expert owed; or it is in ``losses`` if it was taken out of band.
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
                self.line("transfer_reversed", expert_funds(self.expert_id), part),
                self.line("transfer_reversed", pays, -part),
            ]
        )

    def fee_refunded(
        self, part: int, commission: int, platform: StripeAmount, connected: StripeAmount
    ) -> list[Posting]:
        """Commission went to the expert, by a hand at Stripe's dashboard.

        ``commission`` of it was still the platform's; the rest had gone back to the client before.
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
                self.line("fee_refunded", LOSSES, part - commission),
                self.line("fee_refunded", expert_funds(self.expert_id), -part),
            ]
        )

    def refund_failed(self, part: int, settled: StripeAmount) -> list[Posting]:
        """A refund bounced: Stripe gave the money back to us, and we owe it to the client."""
        return [
            *self.into_stripe("refund_failed", STRIPE_PLATFORM, 1, part, settled),
            self.line("refund_failed", client_payable(self.payment_id), -part),
        ]

    def refund_failed_unbooked(
        self, part: int, sent: StripeAmount, returned: StripeAmount
    ) -> list[Posting]:
        """Stripe paid a refund and had it back before it was on the books: both of its lines."""
        return [
            *self.into_stripe("refund_failed_unbooked", STRIPE_PLATFORM, -1, part, sent),
            *self.into_stripe("refund_failed_unbooked", STRIPE_PLATFORM, 1, part, returned),
        ]

    def client_repaid(self, part: int, settled: StripeAmount) -> list[Posting]:
        """What was owed to the client after a bounced refund was paid by another."""
        return [
            self.line("client_repaid", client_payable(self.payment_id), part),
            *self.into_stripe("client_repaid", STRIPE_PLATFORM, -1, part, settled),
        ]

    def client_payable_settled(self, part: int) -> list[Posting]:
        """What was owed to the client is not any more; what it cost is in other books."""
        return [
            self.line("client_payable_settled", client_payable(self.payment_id), part),
            self.line("client_payable_settled", SETTLED_OUT_OF_BAND, -part),
        ]

    def dispute_funds(
        self, kind: str, sign: int, part: int, settled: StripeAmount, fee: StripeAmount
    ) -> list[Posting]:
        """``sign`` 1: Stripe withdrew ``part`` over a dispute; -1: it reinstated it.

        ``fee`` is what Stripe took beside it, negative where it gave a fee back.
        """
        return without_zeros(
            [
                self.line(kind, dispute_hold(self.payment_id), sign * part),
                *self.into_stripe(kind, STRIPE_PLATFORM, -sign, part, settled),
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

    def reinstated_after_loss(self, part: int) -> list[Posting]:
        """It was written off before it came back: the platform's, until an operator decides."""
        return [
            self.line("reinstated_after_loss", dispute_hold(self.payment_id), part),
            self.line("reinstated_after_loss", LOSSES, -part),
        ]

    def dispute_lost(self, split: RefundSplit, borne: int) -> list[Posting]:
        """The bank keeps it: of what the client is owed, of escrow, then of commission and expert.

        ``borne`` by the platform: it was given back to the client before, who has it twice then.
        """
        return without_zeros(
            [
                self.line("dispute_lost", client_payable(self.payment_id), split.from_owed),
                self.line("dispute_lost", escrow(self.payment_id), split.from_escrow),
                self.line("dispute_lost", COMMISSION, split.commission),
                self.line("dispute_lost", expert_debt(self.expert_id), split.expert_part),
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

    What Stripe took for it is in the net: it is the expert's, as the payout is. No payment is
    behind it, for one payout sweeps up many.
    """
    return [
        Posting(expert_funds(expert_id), -net, currency, kind),
        Posting(stripe_connected(expert_id), net, currency, kind, balance_transaction_id),
    ]


def written_off(expert_id: str, part: int, currency: str) -> list[Posting]:
    """An expert's debt that will not be paid: the platform's loss."""
    return [
        Posting(LOSSES, part, currency, "debt_written_off"),
        Posting(expert_debt(expert_id), -part, currency, "debt_written_off"),
    ]


def without_zeros(postings: Iterable[Posting]) -> list[Posting]:
    return [posting for posting in postings if posting.minor_units]


def imbalance(postings: Iterable[Posting]) -> dict[str, int]:
    """What the postings sum to in each currency that is not at zero; empty means balanced."""
    totals: dict[str, int] = defaultdict(int)
    for posting in postings:
        totals[posting.currency] += posting.minor_units
    return {currency: total for currency, total in totals.items() if total}
