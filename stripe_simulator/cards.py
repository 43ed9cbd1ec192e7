"""Stripe's test cards (docs.stripe.com/testing, September 2026) as one table.

A card is named by its number or by a token `pm_card_…`. One card is our own: Stripe grants
extended authorizations by contract and card brand, so a number of ours stands for a card that has
one (`pm_card_extended_authorization`).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Card:
    """How a test card behaves.

    `decline` is (code, decline_code, message), and comes after 3D Secure where there is any;
    `refund` is `succeeds`, `pending` (then succeeds) or `fails_later` (after having succeeded);
    `dispute` is the reason that the cardholder gives for disputing the captured charge, `inquiry`
    whether the bank only asks at first.
    """

    number: str
    tokens: tuple[str, ...]
    says: str
    brand: str = "visa"
    decline: tuple[str, str | None, str] | None = None
    three_d_secure: bool = False
    bypasses_pending: bool = False
    refund: str = "succeeds"
    extended_authorization: bool = False
    dispute: str | None = None
    inquiry: bool = False
    fraud_warning: str | None = None
    country: str = "US"

    @property
    def last4(self) -> str:
        return self.number[-4:]


DECLINED = "Your card was declined."


def _declined(decline_code: str, message: str = DECLINED) -> tuple[str, str | None, str]:
    return ("card_declined", decline_code, message)


CARDS: tuple[Card, ...] = (
    Card("4242424242424242", ("pm_card_visa",), "succeeds"),
    Card("4000056655665556", ("pm_card_visa_debit",), "succeeds (debit)"),
    Card("5555555555554444", ("pm_card_mastercard",), "succeeds", brand="mastercard"),
    Card("378282246310005", ("pm_card_amex",), "succeeds", brand="amex"),
    Card("6011111111111117", ("pm_card_discover",), "succeeds", brand="discover"),
    Card("4000002760000016", ("pm_card_de",), "succeeds (Germany)", country="DE"),
    Card("4000008260000000", ("pm_card_gb",), "succeeds (United Kingdom)", country="GB"),
    Card(
        "4000000000000077",
        ("pm_card_bypassPending",),
        "succeeds, its money available at once",
        bypasses_pending=True,
    ),
    Card(
        "4000000000300030",
        ("pm_card_extended_authorization",),
        "succeeds, and grants an extended authorization of 30 days (the simulator's own card)",
        brand="mastercard",
        extended_authorization=True,
    ),
    Card(
        "4000000000000002",
        ("pm_card_visa_chargeDeclined", "pm_card_chargeDeclined"),
        "is declined",
        decline=_declined("generic_decline"),
    ),
    Card(
        "4000000000009995",
        (
            "pm_card_visa_chargeDeclinedInsufficientFunds",
            "pm_card_chargeDeclinedInsufficientFunds",
        ),
        "is declined: insufficient funds",
        decline=_declined("insufficient_funds", "Your card has insufficient funds."),
    ),
    Card(
        "4000000000009987",
        ("pm_card_visa_chargeDeclinedLostCard", "pm_card_chargeDeclinedLostCard"),
        "is declined: lost",
        decline=_declined("lost_card"),
    ),
    Card(
        "4000000000009979",
        ("pm_card_visa_chargeDeclinedStolenCard", "pm_card_chargeDeclinedStolenCard"),
        "is declined: stolen",
        decline=_declined("stolen_card"),
    ),
    Card(
        "4000000000000069",
        ("pm_card_chargeDeclinedExpiredCard",),
        "is declined: expired",
        decline=("expired_card", None, "Your card has expired."),
    ),
    Card(
        "4000000000000127",
        ("pm_card_chargeDeclinedIncorrectCvc",),
        "is declined: wrong security code",
        decline=("incorrect_cvc", None, "Your card's security code is incorrect."),
    ),
    Card(
        "4000000000000119",
        ("pm_card_chargeDeclinedProcessingError",),
        "is declined: processing error",
        decline=(
            "processing_error",
            None,
            "An error occurred while processing your card. Try again in a little bit.",
        ),
    ),
    Card(
        "4000000000006975",
        (
            "pm_card_visa_chargeDeclinedVelocityLimitExceeded",
            "pm_card_chargeDeclinedVelocityLimitExceeded",
        ),
        "is declined: too often",
        decline=_declined(
            "card_velocity_exceeded",
            "Your card was declined for making repeated attempts too frequently or exceeding its "
            "amount limit.",
        ),
    ),
    Card(
        "4000000000000341",
        ("pm_card_chargeCustomerFail",),
        "can be saved, but charging it fails",
        decline=_declined("generic_decline"),
    ),
    Card(
        "4000002500003155",
        ("pm_card_authenticationRequiredOnSetup",),
        "asks for 3D Secure unless it was set up",
        three_d_secure=True,
    ),
    Card(
        "4000002760003184",
        ("pm_card_authenticationRequired",),
        "always asks for 3D Secure",
        three_d_secure=True,
    ),
    Card(
        "4000000000003220",
        ("pm_card_threeDSecure2Required",),
        "asks for a 3D Secure 2 challenge",
        three_d_secure=True,
    ),
    Card(
        "4000008400001629",
        ("pm_card_threeDSecureRequiredChargeDeclined",),
        "is declined after 3D Secure",
        three_d_secure=True,
        decline=_declined("generic_decline"),
    ),
    Card(
        "4000000000007726",
        ("pm_card_pendingRefund",),
        "succeeds; its refunds are pending first",
        refund="pending",
    ),
    Card(
        "4000000000005126",
        ("pm_card_refundFail",),
        "succeeds; its refunds fail later",
        refund="fails_later",
    ),
    Card(
        "4000000000000259",
        ("pm_card_createDispute",),
        "succeeds, and is disputed as fraudulent once captured",
        dispute="fraudulent",
    ),
    Card(
        "4000000000002685",
        ("pm_card_createDisputeProductNotReceived",),
        "succeeds, and is disputed as product not received once captured",
        dispute="product_not_received",
    ),
    # Which reason Stripe's inquiry gives is our guess.
    Card(
        "4000000000001976",
        ("pm_card_createDisputeInquiry",),
        "succeeds, and the bank inquires about it once captured",
        dispute="fraudulent",
        inquiry=True,
    ),
    Card(
        "4000000000005423",
        ("pm_card_createIssuerFraudRecord",),
        "succeeds, and is reported as early fraud once captured",
        fraud_warning="unauthorized_use_of_card",
    ),
)

BY_NUMBER = {card.number: card for card in CARDS}
BY_TOKEN = {token: card for card in CARDS for token in card.tokens}


def luhn_valid(number: str) -> bool:
    """The check digit that every card number ends in."""
    digits = [int(digit) for digit in reversed(number)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
