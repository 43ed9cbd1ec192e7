"""All the arithmetic of money: currencies, their steps and limits, the commission.

Amounts are integers in the minor units that Stripe takes; there is no float and no decimal.
A currency has a *step*: every amount is a multiple of it. Most steps are 1. ISK and UGX have no
minor unit in use but are sent times 100 (step 100); BHD, JOD, KWD, OMR and TND have three decimals
and the last is always zero (step 10).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

BASIS_POINTS_IN_WHOLE: Final = 10_000

# Stripe's currencies as of November 2026. Sources: docs.stripe.com/currencies, and the limit of
# eight digits in the API reference of PaymentIntent.amount.

ZERO_DECIMAL: Final = frozenset(
    "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF".split()
)
THREE_DECIMAL: Final = frozenset("BHD JOD KWD OMR TND".split())
#: Sent times 100 although nothing smaller than the whole exists (Stripe's special case).
WHOLE_BUT_SENT_AS_HUNDREDTHS: Final = frozenset("ISK UGX".split())
TWO_DECIMAL: Final = frozenset(
    (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BWP BYN BZD "
        "CAD CDF CHF CNY COP CRC CVE CZK DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GIP GMD GTQ GYD "
        "HKD HNL HTG HUF IDR ILS INR JMD KES KGS KHR KYD KZT LAK LBP LKR LRD LSL MAD MDL MKD MMK "
        "MNT MOP MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON "
        "RSD RUB SAR SBD SCR SEK SGD SHP SLE SOS SRD SZL THB TJS TOP TRY TTD TWD TZS UAH USD "
        "UYU UZS WST XCD YER ZAR ZMW"
    ).split()
)
#: Currencies that have ended. No new payment is made in them, but old ones can be refunded and
#: debts written off. All of these have two decimals.
FORMER_CURRENCIES: Final = frozenset("ANG BGN HRK STD".split())
#: The currencies in which Stripe charges.
CURRENCIES: Final = ZERO_DECIMAL | THREE_DECIMAL | WHOLE_BUT_SENT_AS_HUNDREDTHS | TWO_DECIMAL

#: The least that Stripe charges, in minor units. Stripe holds the rule against the *settlement*
#: currency, so a currency that is not listed here is left to Stripe to judge.
MINIMUM_CHARGE: Final[dict[str, int]] = {
    **dict.fromkeys("USD EUR ARS AUD BRL CAD CHF COP IDR ILS INR NZD PHP RUB SGD ZAR".split(), 50),
    **dict.fromkeys("AED PLN RON MYR".split(), 200),
    **dict.fromkeys("NOK SEK".split(), 300),
    **{"GBP": 30, "CZK": 1500, "DKK": 250, "HKD": 400, "HUF": 17500},
    **{"JPY": 50, "KRW": 50, "MXN": 1000, "THB": 1000},
}
#: How many digits the largest charge has. A card network may take less.
MAXIMUM_DIGITS: Final[dict[str, int]] = {
    **dict.fromkeys("COP HUF IDR JPY LBP".split(), 12),
    "INR": 9,
}
_MAXIMUM_DIGITS_OF_OTHERS: Final = 8
#: No charge in any currency is larger.
MAXIMUM_MINOR_UNITS: Final = 10 ** max(MAXIMUM_DIGITS.values()) - 1

_CODE: Final = re.compile("[A-Za-z]{3}")


class InvalidMoney(ValueError):
    """An amount that no charge can have; the text says which rule and is safe to show."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in one currency. ``minor_units`` is the integer that Stripe takes."""

    minor_units: int
    currency: str

    def __str__(self) -> str:
        return format_money(self)


def exponent(currency: str) -> int:
    """How many decimals the minor unit stands for: 2 for USD, 0 for JPY, 3 for KWD."""
    if currency in ZERO_DECIMAL:
        return 0
    return 3 if currency in THREE_DECIMAL else 2


def step(currency: str) -> int:
    """Every amount in the currency is a multiple of this, in minor units."""
    if currency in THREE_DECIMAL:
        return 10
    return 100 if currency in WHOLE_BUT_SENT_AS_HUNDREDTHS else 1


def format_money(money: Money) -> str:
    """``12.34 USD``, ``1001 JPY``, ``10.050 KWD``: for people, never parsed again."""
    places = exponent(money.currency)
    if places == 0:
        return f"{money.minor_units} {money.currency}"
    sign = "-" if money.minor_units < 0 else ""
    whole, part = divmod(abs(money.minor_units), 10**places)
    return f"{sign}{whole}.{part:0{places}d} {money.currency}"


def check_currency(currency: str, *, former: bool = False) -> str:
    """Returns the currency in upper case. Raises :class:`InvalidMoney`.

    ``former`` also takes a currency that has ended, for what concerns an old payment.
    """
    # The form comes first: upper() makes three letters of other alphabets ASCII as well.
    code = currency.upper() if _CODE.fullmatch(currency) else ""
    if code not in CURRENCIES and not (former and code in FORMER_CURRENCIES):
        raise InvalidMoney("is not a currency that Stripe charges (ISO 4217, three letters)")
    return code


def check_part(money: Money) -> None:
    """Raises InvalidMoney for an amount that is not positive, or no multiple of the step."""
    if money.minor_units <= 0:
        raise InvalidMoney("must be more than zero")
    unit = step(money.currency)
    if money.minor_units % unit:
        raise InvalidMoney(f"must be a multiple of {unit} in {money.currency}")


def maximum_charge(currency: str, most: int | None = None) -> int:
    """Returns the largest charge in minor units: Stripe's, or ``most`` where that is less."""
    stripes: int = 10 ** MAXIMUM_DIGITS.get(currency, _MAXIMUM_DIGITS_OF_OTHERS) - 1
    return stripes if most is None else min(most, stripes)


def check_charge(
    money: Money,
    maximum: int | None = None,
    settlement_currencies: frozenset[str] = CURRENCIES,
) -> None:
    """Raises InvalidMoney for an amount beyond the currency's step, minimum or maximum.

    ``maximum`` is the platform's own, in minor units.
    """
    check_part(money)
    most = maximum_charge(money.currency, maximum)
    if money.minor_units > most:
        raise InvalidMoney(f"must be at most {most} minor units")
    check_minimum(money, settlement_currencies)


def check_minimum(money: Money, settlement_currencies: frozenset[str]) -> None:
    """Raises InvalidMoney for less than Stripe charges.

    The minimum is one of the settlement currency; where Stripe converts first, it is the judge.
    """
    settled = money.currency in settlement_currencies
    minimum = MINIMUM_CHARGE.get(money.currency, 0) if settled else 0
    if money.minor_units < minimum:
        least = format_money(Money(minimum, money.currency))
        raise InvalidMoney(f"must be at least {least} (Stripe's minimum)")


def fee(minor_units: int, basis_points: int, currency: str) -> int:
    """The commission on an amount that the expert keeps, in minor units.

    ``fee(n) = u * floor((n/u * b + 5000) / 10000)``: half up, once, in steps of the currency.
    It is applied to *cumulative* amounts and parts are differences of it, so that the commission
    kept is ``fee`` of what remains whatever the order of parts and refunds; nothing can drift.
    """
    unit = step(currency)
    steps = minor_units // unit
    half = BASIS_POINTS_IN_WHOLE // 2
    return unit * ((steps * basis_points + half) // BASIS_POINTS_IN_WHOLE)


@dataclass(frozen=True, slots=True)
class Split:
    """An amount in two: ``commission + expert`` is always the amount."""

    commission: int
    expert: int


def split_quote(amount: int, basis_points: int, currency: str) -> Split:
    """The quote for a whole payment, as frozen at initiation."""
    commission = fee(amount, basis_points, currency)
    return Split(commission, amount - commission)


def split_capture(net: int, part: int, basis_points: int, currency: str) -> Split:
    """Splits a captured ``part`` when ``net`` was captured before and not returned since."""
    commission = fee(net + part, basis_points, currency) - fee(net, basis_points, currency)
    return Split(commission, part - commission)


def split_refund(net: int, part: int, basis_points: int, currency: str) -> Split:
    """Splits what the commission and the expert return if ``part`` of ``net`` is refunded."""
    commission = fee(net, basis_points, currency) - fee(net - part, basis_points, currency)
    return Split(commission, part - commission)
