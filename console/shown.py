"""How amounts, times and states are shown to people, and how an amount that a person types is read.

Amounts are shown in major units: 12.34 USD, 1001 JPY, 10.050 KWD. Times are UTC.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1.money_pb2 import Money

#: Currencies whose minor unit is the whole, and those with three decimals (docs/integrating.md).
ZERO_DECIMAL: Final = frozenset(
    "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF".split()
)
THREE_DECIMAL: Final = frozenset("BHD JOD KWD OMR TND".split())

_TYPED: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,3}))?", re.ASCII)
_NAMES: Final = {
    "IN_ESCROW": "In escrow",
    "UNSPECIFIED": "",
}


class WrongAmount(ValueError):
    """What a person typed is no amount in the currency; the text says why."""


def exponent(currency: str) -> int:
    """Returns how many decimals an amount has: 2 for USD, 0 for JPY, 3 for KWD."""
    if currency in ZERO_DECIMAL:
        return 0
    return 3 if currency in THREE_DECIMAL else 2


def money(amount: Money) -> str:
    """Returns an amount in major units with its currency."""
    return f"{major(amount)} {amount.currency_code}".strip()


def major(amount: Money) -> str:
    """Returns an amount in major units, without its currency."""
    places = exponent(amount.currency_code)
    sign = "-" if amount.minor_units < 0 else ""
    whole, part = divmod(abs(amount.minor_units), 10**places)
    return f"{sign}{whole}.{part:0{places}d}" if places else f"{sign}{whole}"


def typed(text: str, currency: str) -> Money:
    """Returns the amount that a person typed in major units. Raises WrongAmount."""
    match = _TYPED.fullmatch(text.strip())
    places = exponent(currency)
    example = major(Money(minor_units=1234, currency_code=currency))
    if match is None:
        raise WrongAmount(f"Write the amount as digits, with a point: for example {example}.")
    whole, part = match[1], match[2] or ""
    if len(part) > places:
        number = f"{places} decimals" if places else "no decimals"
        raise WrongAmount(f"{currency} has {number}: for example {example}.")
    units = int(whole + part.ljust(places, "0"))
    if not units:
        raise WrongAmount("The amount must be more than zero.")
    return Money(minor_units=units, currency_code=currency)


def time(when: Timestamp) -> str:
    """Returns a time for people, in UTC."""
    if not (when.seconds or when.nanos):
        return "—"
    moment = datetime.fromtimestamp(when.seconds, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def words(message: Message, field: str) -> str:
    """Returns an enum's value in words: `In escrow` for PAYMENT_STATE_IN_ESCROW."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None, f"{field} is no enum"
    number = getattr(message, field)
    value = kind.values_by_number.get(number)
    if value is None:
        return f"Value {number}, which this console does not know"
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper() + "_"
    return plain(value.name.removeprefix(prefix))


def plain(name: str) -> str:
    """Returns a name in capitals as words."""
    if name in _NAMES:
        return _NAMES[name]
    return name.replace("_", " ").capitalize()


def percent(basis_points: int) -> str:
    """Returns a rate in percent: `10 %` for 1000."""
    return f"{basis_points / 100:g} %"


def facts(body_json: str) -> str:
    """Returns the stored bytes of an event, indented for people."""
    try:
        return json.dumps(json.loads(body_json), indent=2, ensure_ascii=False, sort_keys=True)
    except ValueError:
        return body_json


FILTERS: Final[Mapping[str, object]] = {
    "money": money,
    "time": time,
    "percent": percent,
    "facts": facts,
}
