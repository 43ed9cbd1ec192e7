"""The arithmetic of money, held against its published examples and against exact fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain import money
from payment_service.domain.money import InvalidMoney, Money, Split

CURRENCIES = sorted(money.CURRENCIES)
BASIS_POINTS = st.integers(0, 9_999)
#: One of every step, and the usual ones more often.
SOME_CURRENCIES = st.sampled_from(["USD", "EUR", "JPY", "ISK", "UGX", "KWD", "BHD"])


def exact_fee(minor_units: int, basis_points: int, unit: int) -> int:
    """Half up once, in steps of the currency, by rational numbers instead of integer tricks."""
    steps = Fraction(minor_units, unit) * Fraction(basis_points, 10_000)
    return unit * math.floor(steps + Fraction(1, 2))


# ---- currencies ----


@pytest.mark.parametrize("currency", CURRENCIES)
def test_exponent_and_step_of_every_currency_are_stripes(currency: str) -> None:
    zero = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF".split()
    three, whole = "BHD JOD KWD OMR TND".split(), ("ISK", "UGX")
    places = 0 if currency in zero else 3 if currency in three else 2
    unit = 10 if currency in three else 100 if currency in whole else 1
    assert (money.exponent(currency), money.step(currency)) == (places, unit)


def test_every_currency_has_exactly_one_kind() -> None:
    kinds = (
        money.ZERO_DECIMAL,
        money.THREE_DECIMAL,
        money.WHOLE_BUT_SENT_AS_HUNDREDTHS,
        money.TWO_DECIMAL,
    )
    assert sum(map(len, kinds)) == len(money.CURRENCIES)


def test_every_minimum_is_of_a_known_currency_and_in_steps() -> None:
    for currency, least in money.MINIMUM_CHARGE.items():
        money.check_charge(Money(least, money.check_currency(currency)))


@pytest.mark.parametrize("code", ["usd", "Usd", "USD"])
def test_currency_is_taken_in_any_case(code: str) -> None:
    assert money.check_currency(code) == "USD"


@pytest.mark.parametrize(
    "code",
    [
        "",
        "US",
        "USDX",
        "XXX",
        "€",
        "USD ",
        "U\0D",
        "USDC",
        "123",
        "\u017fek",
        "\u0131nr",
        "ANG",
        "BGN",
        "HRK",
        "STD",
    ],
)
def test_unknown_currency_is_refused(code: str) -> None:
    with pytest.raises(InvalidMoney, match="not a currency"):
        money.check_currency(code)


# ---- the published examples ----


@pytest.mark.parametrize(
    ("currency", "basis_points", "amount", "quote", "captures", "refunds"),
    [
        (
            *("JPY", 1_000, 1_001, (100, 901)),
            [(1_001, 100, 901)],
            [(333, 33, 300), (333, 33, 300), (335, 34, 301)],
        ),
        ("KWD", 1_250, 10_050, (1_260, 8_790), [(3_330, 420, 2_910)], [(1_110, 140, 970)] * 3),
        (
            *("USD", 1_000, 9_999, (1_000, 8_999)),
            [(3_333, 333, 3_000), (3_333, 334, 2_999), (3_333, 333, 3_000)],
            [],
        ),
        ("ISK", 1_000, 50_500, (5_100, 45_400), [(50_500, 5_100, 45_400)], []),
    ],
    ids=["JPY", "KWD", "USD", "ISK"],
)
def test_published_examples(
    currency: str,
    basis_points: int,
    amount: int,
    quote: tuple[int, int],
    captures: list[tuple[int, int, int]],
    refunds: list[tuple[int, int, int]],
) -> None:
    assert money.split_quote(amount, basis_points, currency) == Split(*quote)
    net = 0
    for part, commission, expert in captures:
        assert money.split_capture(net, part, basis_points, currency) == Split(commission, expert)
        net += part
    for part, commission, expert in refunds:
        assert money.split_refund(net, part, basis_points, currency) == Split(commission, expert)
        net -= part


# ---- the rule ----


@given(st.integers(0, 10**12), BASIS_POINTS, SOME_CURRENCIES)
def test_fee_is_half_up_once_in_steps(steps: int, basis_points: int, currency: str) -> None:
    unit = money.step(currency)
    taken = money.fee(steps * unit, basis_points, currency)
    assert taken == exact_fee(steps * unit, basis_points, unit)
    assert taken % unit == 0
    assert 0 <= taken <= steps * unit


@pytest.mark.parametrize(
    ("minor_units", "currency", "taken"),
    [
        (4, "USD", 0),
        (5, "USD", 1),
        (14, "JPY", 1),
        (15, "JPY", 2),
        (40, "KWD", 0),
        (50, "KWD", 10),
        (400, "UGX", 0),
        (500, "UGX", 100),
        (1_400, "ISK", 100),
        (1_500, "ISK", 200),
    ],
)
def test_exactly_half_a_step_goes_up(minor_units: int, currency: str, taken: int) -> None:
    assert money.fee(minor_units, 1_000, currency) == taken


@given(st.integers(1, 10**9), BASIS_POINTS, SOME_CURRENCIES)
def test_quote_sums_to_the_amount(steps: int, basis_points: int, currency: str) -> None:
    amount = steps * money.step(currency)
    quote = money.split_quote(amount, basis_points, currency)
    assert quote.commission == money.fee(amount, basis_points, currency)
    assert quote.commission + quote.expert == amount


@given(
    SOME_CURRENCIES,
    BASIS_POINTS,
    st.lists(st.tuples(st.booleans(), st.integers(1, 10_000)), max_size=30),
)
def test_commission_kept_never_drifts_whatever_the_order_of_parts(
    currency: str, basis_points: int, walk: list[tuple[bool, int]]
) -> None:
    unit, net, kept, expert = money.step(currency), 0, 0, 0
    for captures, steps in walk:
        part = steps * unit if captures else min(steps * unit, net)
        if captures:
            share, sign = money.split_capture(net, part, basis_points, currency), 1
        else:
            share, sign = money.split_refund(net, part, basis_points, currency), -1
        assert 0 <= share.commission <= part
        assert 0 <= share.expert <= part
        assert share.commission + share.expert == part
        assert share.commission % unit == 0
        net, kept = net + sign * part, kept + sign * share.commission
        expert += sign * share.expert
        assert kept == money.fee(net, basis_points, currency)
        assert kept + expert == net


# ---- refusals ----


@pytest.mark.parametrize(
    ("minor_units", "currency", "fault"),
    [
        (0, "USD", "more than zero"),
        (-1, "USD", "more than zero"),
        (-1_000, "ISK", "more than zero"),
        (1, "KWD", "multiple of 10 in KWD"),
        (10_055, "BHD", "multiple of 10 in BHD"),
        (50_550, "ISK", "multiple of 100 in ISK"),
        (1, "UGX", "multiple of 100 in UGX"),
    ],
)
def test_impossible_part_is_refused(minor_units: int, currency: str, fault: str) -> None:
    for check in (money.check_part, money.check_charge):
        with pytest.raises(InvalidMoney, match=fault):
            check(Money(minor_units, currency))


@pytest.mark.parametrize("currency", CURRENCIES)
def test_one_step_is_a_possible_part(currency: str) -> None:
    money.check_part(Money(money.step(currency), currency))


@pytest.mark.parametrize(
    ("minor_units", "currency", "fault"),
    [
        (49, "USD", r"at least 0\.50 USD"),
        (29, "GBP", r"at least 0\.30 GBP"),
        (49, "JPY", "at least 50 JPY"),
        (17_499, "HUF", r"at least 175\.00 HUF"),
        (100_000_000, "USD", "at most 99999999"),
        (100_000_000, "EUR", "at most 99999999"),
        (1_000_000_000_000, "JPY", "at most 999999999999"),
        (1_000_000_000_000, "IDR", "at most 999999999999"),
        (1_000_000_000, "INR", "at most 999999999"),
    ],
)
def test_charge_beyond_stripes_limits_is_refused(
    minor_units: int, currency: str, fault: str
) -> None:
    with pytest.raises(InvalidMoney, match=fault):
        money.check_charge(Money(minor_units, currency))


@pytest.mark.parametrize(
    ("minor_units", "currency"),
    [(50, "USD"), (99_999_999, "USD"), (50, "JPY"), (10, "KWD"), (100, "ISK"), (99_999_900, "UGX")],
)
def test_charge_at_the_limits_is_taken(minor_units: int, currency: str) -> None:
    money.check_charge(Money(minor_units, currency))


def test_maximum_can_only_be_lowered() -> None:
    money.check_charge(Money(100_000_000, "IDR"))
    with pytest.raises(InvalidMoney, match="at most 99999999 minor units"):
        money.check_charge(Money(100_000_000, "USD"), maximum=10**12)
    with pytest.raises(InvalidMoney, match="at most 999 minor units"):
        money.check_charge(Money(1_000, "USD"), maximum=999)


@pytest.mark.parametrize("currency", ["ANG", "BGN", "HRK", "STD"])
def test_an_old_payment_in_a_currency_that_has_ended_is_still_computed(currency: str) -> None:
    assert money.check_currency(currency.lower(), former=True) == currency
    assert str(Money(1_234, currency)) == f"12.34 {currency}"
    assert money.split_refund(10_000, 3_333, 1_000, currency) == Split(333, 3_000)


# ---- for people ----


@pytest.mark.parametrize(
    ("minor_units", "currency", "text"),
    [
        (1_234, "USD", "12.34 USD"),
        (5, "USD", "0.05 USD"),
        (0, "USD", "0.00 USD"),
        (-5, "USD", "-0.05 USD"),
        (-1_234, "EUR", "-12.34 EUR"),
        (1_001, "JPY", "1001 JPY"),
        (-3, "JPY", "-3 JPY"),
        (10_050, "KWD", "10.050 KWD"),
        (-10, "TND", "-0.010 TND"),
        (50_500, "ISK", "505.00 ISK"),
    ],
)
def test_money_reads_with_the_currencys_decimals(
    minor_units: int, currency: str, text: str
) -> None:
    assert str(Money(minor_units, currency)) == money.format_money(Money(minor_units, currency))
    assert str(Money(minor_units, currency)) == text


@given(st.integers(-(10**12), 10**12), st.sampled_from(CURRENCIES))
def test_money_as_text_loses_nothing(minor_units: int, currency: str) -> None:
    number, _, code = str(Money(minor_units, currency)).partition(" ")
    assert code == currency
    assert Fraction(number) * 10 ** money.exponent(currency) == minor_units
