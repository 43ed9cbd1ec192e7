"""A payment's money as a picture: who has what now. The parts sum to what the card was charged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from console.shown import money
from marketplace.payments.v1.money_pb2 import Money
from marketplace.payments.v1.payments_pb2 import EscrowMode, Payment

#: The width of the bar in units of the picture.
WIDTH: Final = 640
#: The least width of a part that is not zero, so that it can be seen.
_LEAST: Final = 8


@dataclass(frozen=True)
class Part:
    """Who has a part of the money."""

    name: str
    #: Its colour, by a class of the style sheet.
    css: str
    amount: Money
    x: int = 0
    width: int = 0

    @property
    def sentence(self) -> str:
        """The part for people who do not see the picture."""
        return f"{self.name}: {money(self.amount)}"


@dataclass(frozen=True)
class Picture:
    """The bar, and what was charged in all."""

    charged: Money
    parts: Sequence[Part]
    note: str

    @property
    def sentence(self) -> str:
        """The whole picture in a sentence."""
        return "; ".join(part.sentence for part in self.parts) or self.note


def draw(payment: Payment) -> Picture:
    """Returns the picture of a payment.

    Refunds count as returned when they were made. A part that Stripe has not paid yet, or gave
    back, is not the client's yet, and so is a part of its own.
    """
    currency = payment.amount.currency_code
    waiting = payment.pending_refund_amount.minor_units
    payable = payment.client_payable.minor_units
    returned = payment.refunded_amount.minor_units + payment.returned_amount.minor_units
    units = (
        ("In escrow", "escrow", payment.held_amount.minor_units),
        ("Expert", "expert", payment.net_expert_amount.minor_units),
        ("Platform: commission", "platform", payment.net_commission.minor_units),
        ("Client: returned", "client", returned - waiting - payable),
        ("Refund that waits for the platform's balance", "waiting", waiting),
        ("Platform: must be paid to the client again", "payable", payable),
        ("Client's bank: lost disputes", "bank", payment.lost_amount.minor_units),
    )
    shown = [(name, css, number) for name, css, number in units if number]
    charged = sum(number for _, _, number in shown)
    parts: list[Part] = []
    x = 0
    for (name, css, number), width in zip(shown, _widths([n for *_, n in shown]), strict=True):
        amount = Money(minor_units=number, currency_code=currency)
        parts.append(Part(name, css, amount, x, width))
        x += width
    return Picture(Money(minor_units=charged, currency_code=currency), parts, _note(payment))


def _widths(numbers: Sequence[int]) -> list[int]:
    """Returns widths in proportion that fill the bar, each wide enough to be seen."""
    total = sum(abs(number) for number in numbers)
    if not total:
        return []
    widths = [max(_LEAST, abs(number) * WIDTH // total) for number in numbers]
    widest = widths.index(max(widths))
    widths[widest] += WIDTH - sum(widths)
    return widths


def _note(payment: Payment) -> str:
    if not payment.escrow_time.seconds:
        return "Nothing is secured yet: all the money is the client's."
    if payment.held_amount.minor_units and payment.escrow_mode == EscrowMode.ESCROW_MODE_CARD_HOLD:
        return "What is in escrow is a card hold: the card is charged when it is captured."
    if not (payment.captured_amount.minor_units or payment.held_amount.minor_units):
        return "Nothing of the client's money is held or was paid out."
    return ""
