"""Currencies as Stripe counts them: exponents, special cases, smallest amounts, conversion.

Sources: Stripe's currencies page and its multi-currency notes. The exchange rates are our own and
fixed, so that a test can compute what a conversion gives.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from stripe_simulator.errors import ApiError, refused

ZERO_DECIMAL = frozenset("bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf".split())
THREE_DECIMAL = frozenset("bhd jod kwd omr tnd".split())
# No minor unit in practice, yet sent with two decimals, so that every amount ends in 00.
TWO_DECIMAL_BUT_WHOLE = frozenset(("isk", "ugx"))

# What one whole unit is worth in US dollars.
RATES: dict[str, Decimal] = {
    code: Decimal(rate)
    for code, rate in (
        pair.split("=")
        for pair in (
            "usd=1 eur=1.10 gbp=1.25 jpy=0.0070 chf=1.12 cad=0.73 aud=0.65 nzd=0.60 sek=0.095 "
            "nok=0.094 dkk=0.147 pln=0.25 czk=0.043 huf=0.0028 ron=0.22 isk=0.0072 "
            "ugx=0.00027 krw=0.00075 hkd=0.128 sgd=0.74 thb=0.028 myr=0.22 mxn=0.055 brl=0.19 "
            "inr=0.012 aed=0.272 kwd=3.25 bhd=2.65 jod=1.41 omr=2.60 tnd=0.32 clp=0.0011 "
            "vnd=0.00004 xaf=0.0017 xof=0.0017 xpf=0.0092 bif=0.00034 djf=0.0056 gnf=0.000116 "
            "kmf=0.0022 mga=0.00022 pyg=0.000133 rwf=0.00075 vuv=0.0084 twd=0.031 zar=0.055 "
            "ils=0.27 try=0.03 idr=0.000063 php=0.0175 cny=0.14 sar=0.267 qar=0.275 egp=0.02 "
            "mad=0.1 kes=0.0077 ngn=0.00065 ghs=0.065 cop=0.00025 pen=0.27 ars=0.001 uyu=0.025 "
            "uah=0.024 rsd=0.0094 all=0.011 mkd=0.018 gel=0.37 kzt=0.0019 pkr=0.0036 bdt=0.0084"
        ).split()
    )
}
SUPPORTED = frozenset(RATES)

# Smallest charge, in minor units of the *settlement* currency, as of November 2026.
MINIMUMS = {
    "usd": 50, "eur": 50, "ars": 50, "aud": 50, "brl": 50, "cad": 50, "chf": 50, "cop": 50,
    "idr": 50, "ils": 50, "inr": 50, "nzd": 50, "php": 50, "sgd": 50, "zar": 50, "gbp": 30,
    "aed": 200, "pln": 200, "ron": 200, "myr": 200, "czk": 1500, "dkk": 250, "hkd": 400,
    "huf": 17500, "jpy": 50, "krw": 50, "mxn": 1000, "nok": 300, "sek": 300, "thb": 1000,
}  # fmt: skip

# Digits of the largest charge: eight by the API reference; more where every edition of the
# currencies page since 2025 has more.
MAXIMUM_DIGITS = {"cop": 12, "huf": 12, "idr": 12, "jpy": 12, "inr": 9}

SYMBOLS = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥"}

COUNTRY_CURRENCIES = {
    "AE": "aed", "AT": "eur", "AU": "aud", "BE": "eur", "BG": "eur", "BR": "brl", "CA": "cad",
    "CH": "chf", "CY": "eur", "CZ": "czk", "DE": "eur", "DK": "dkk", "EE": "eur", "ES": "eur",
    "FI": "eur", "FR": "eur", "GB": "gbp", "GI": "gbp", "GR": "eur", "HK": "hkd", "HR": "eur",
    "HU": "huf", "IE": "eur", "IN": "inr", "IT": "eur", "JP": "jpy", "LI": "chf", "LT": "eur",
    "LU": "eur", "LV": "eur", "MT": "eur", "MX": "mxn", "MY": "myr", "NL": "eur", "NO": "nok",
    "NZ": "nzd", "PL": "pln", "PT": "eur", "RO": "ron", "SE": "sek", "SG": "sgd", "SI": "eur",
    "SK": "eur", "TH": "thb", "US": "usd",
}  # fmt: skip


def exponent(currency: str) -> int:
    """How many decimals Stripe's integer has."""
    if currency in ZERO_DECIMAL:
        return 0
    return 3 if currency in THREE_DECIMAL else 2


def formatted(amount: int, currency: str) -> str:
    """An amount for a person to read, as Stripe's messages have it: `$12.50`, `12.50 chf`."""
    places = exponent(currency)
    number = f"{Decimal(amount).scaleb(-places):,.{places}f}"
    symbol = SYMBOLS.get(currency)
    return f"{symbol}{number}" if symbol else f"{number} {currency}"


def rate(source: str, target: str) -> Decimal:
    """Units of `target` for one unit of `source`, as on a balance transaction."""
    return (RATES[source] / RATES[target]).quantize(Decimal("0.00000001"))


def convert(amount: int, source: str, target: str) -> int:
    """An amount in another currency, rounded half up once."""
    if source == target:
        return amount
    value = Decimal(amount).scaleb(-exponent(source)) * rate(source, target)
    return int(value.scaleb(exponent(target)).quantize(Decimal(1), ROUND_HALF_UP))


def settlement(currency: str, settlement_currencies: tuple[str, ...]) -> str:
    """The currency in which a charge reaches the platform: its own, or else US dollars."""
    if currency in settlement_currencies:
        return currency
    return "usd" if "usd" in settlement_currencies else settlement_currencies[0]


def check_step(amount: int, currency: str, param: str = "amount") -> None:
    """The currencies in which not every integer is an amount."""
    if currency in TWO_DECIMAL_BUT_WHOLE and amount % 100:
        raise refused(
            f"Invalid amount: {currency} is a currency without decimals; the amount must be "
            "divisible by 100.",
            code="invalid_charge_amount_no_decimal_compatible",
            param=param,
        )
    if currency in THREE_DECIMAL and amount % 10:
        raise refused(
            f"Invalid amount: the last digit of a {currency} amount must be 0.",
            code="parameter_invalid_integer",
            param=param,
        )


def check_charge_amount(amount: int, currency: str, settles_in: str, param: str = "amount") -> None:
    """Refuse what cannot be charged; the minimum counts after conversion."""
    check_step(amount, currency, param)
    check_minimum(amount, currency, settles_in, param)
    maximum = 10 ** MAXIMUM_DIGITS.get(currency, 8) - 1
    if amount > maximum:
        raise too_large(maximum, currency, param)


def check_minimum(amount: int, currency: str, settles_in: str, param: str) -> None:
    minimum = MINIMUMS.get(settles_in, 50)
    if convert(amount, currency, settles_in) < minimum:
        verb = "be" if currency == settles_in else "convert to"
        raise refused(
            f"Amount must {verb} at least {formatted(minimum, settles_in)}.",
            code="amount_too_small",
            param=param,
        )


def too_large(maximum: int, currency: str, param: str) -> ApiError:
    return refused(
        f"Amount must be no more than {formatted(maximum, currency)}.",
        code="amount_too_large",
        param=param,
    )
