"""Checks the fields of a request, and reports all faults at once."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import money_pb2
from payment_service.domain import money
from payment_service.domain.errors import invalid_fields
from payment_service.domain.money import InvalidMoney, Money
from payment_service.domain.monthly import Month, month_of
from payment_service.domain.plans import RequestedAmount
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import BEGINNING, FeedCursor
from payment_service.rpc.pagination import MARK, cursor_of

_ID: Final = re.compile(r"[!-~]{1,64}")


_OUR_ID: Final = re.compile(r"[a-z]{2,5}_[0-9a-f]{32}")


_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}\.[^@\s.]{2,63}")


_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")


_MAX_TEXT: Final = 500


_DEFAULT_PAGE: Final = 50


_MAX_PAGE: Final = 200


#: More values than any enum of the contract has.
_MAX_LISTED: Final = 50


#: A caller that sees these many faults corrects more than one.
_MAX_FAULTS: Final = 20


class RequestFields:
    """Collects the faults of one request; :meth:`check` raises them all together."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, str]] = []

    def fault(self, field: str, what: str) -> None:
        if len(self._faults) < _MAX_FAULTS:
            self._faults.append((field, what))

    def check(self) -> None:
        if self._faults:
            raise invalid_fields(self._faults)

    def listed(self, field: str, values: Sequence[int]) -> Sequence[int]:
        """Checks the length of a list before anybody reads it."""
        if len(values) > _MAX_LISTED:
            self.fault(field, f"must hold at most {_MAX_LISTED} values")
            return ()
        return values

    def identifier(self, field: str, value: str) -> str:
        """Checks an id of the user or gig service: at most 64 visible characters."""
        if not value:
            self.fault(field, "is required")
        elif not _ID.fullmatch(value):
            self.fault(field, "must be at most 64 visible ASCII characters")
        return value

    def our_id(self, field: str, value: str) -> str:
        """Checks an id of this service. A malformed one is not found; only absence is a fault."""
        if not value:
            self.fault(field, "is required")
        elif len(value) > 255 or "\x00" in value:
            self.fault(field, "is not an id of this service")
        return value

    def cursor(self, field: str, value: str) -> FeedCursor:
        """Returns a position in the feed; the beginning if there is no cursor."""
        if not value:
            return BEGINNING
        try:
            mark = FeedCursor(
                *MARK.unpack(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
            )
        except (ValueError, struct.error):
            mark = BEGINNING
        if mark.position < 1 or cursor_of(mark) != value:
            self.fault(field, "is not a cursor that this service gave out")
            return BEGINNING
        return mark

    def key(self, value: str) -> str:
        field = "idempotency_key"
        if not value:
            self.fault(field, "is required")
        elif len(value) > 255:
            self.fault(field, "must be at most 255 characters")
        elif not value.isprintable():
            self.fault(field, "must be printable characters")
        return value

    def text(self, field: str, value: str, *, most: int = _MAX_TEXT, required: bool = False) -> str:
        if required and not value.strip():
            self.fault(field, "is required")
        elif len(value) > most:
            self.fault(field, f"must be at most {most} characters")
        elif any(ord(character) < 32 and character not in "\t\n\r" for character in value):
            self.fault(field, "must not contain control characters")
        return value

    def amount(self, given: money_pb2.Money | None, policy: Policy) -> Money:
        """Checks the amount of a new payment: present, a currency of Stripe's, within limits."""
        nothing = Money(0, policy.default_currency)
        if given is None:
            self.fault("amount", "is required")
            return nothing
        try:
            currency = money.check_currency(given.currency_code or policy.default_currency)
        except InvalidMoney as fault:
            self.fault("amount.currency_code", str(fault))
            return nothing
        amount = Money(given.minor_units, currency)
        try:
            money.check_charge(
                amount, policy.maximum_charge_minor_units, policy.settlement_currencies
            )
        except InvalidMoney as fault:
            self.fault("amount.minor_units", str(fault))
        return amount

    def currency(self, field: str, value: str) -> str:
        """Checks a currency that is required."""
        try:
            return money.check_currency(value, former=True)
        except InvalidMoney as fault:
            self.fault(field, str(fault) if value else "is required")
            return value

    def month(self, field: str, value: str) -> Month:
        """Checks a month that is required, such as 2026-11."""
        found = month_of(value)
        if found is None:
            self.fault(field, "must be a month such as 2026-11" if value else "is required")
            return Month(value, datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(0, UTC))
        return found

    def part(self, given: money_pb2.Money | None, policy: Policy) -> RequestedAmount | None:
        """Checks an optional amount. The use case checks its currency."""
        if given is None:
            return None
        currency, most = "", policy.maximum_charge_minor_units or money.MAXIMUM_MINOR_UNITS
        if given.currency_code:
            try:
                currency = money.check_currency(given.currency_code, former=True)
            except InvalidMoney as fault:
                self.fault("amount.currency_code", str(fault))
        if given.minor_units <= 0:
            self.fault("amount.minor_units", "must be more than zero")
        elif given.minor_units > (money.maximum_charge(currency, most) if currency else most):
            self.fault("amount.minor_units", f"must be at most {most} minor units")
        return RequestedAmount(given.minor_units, given.currency_code)

    def email(self, field: str, value: str) -> str:
        if not value:
            self.fault(field, "is required")
        elif len(value) > 254 or not _EMAIL.fullmatch(value) or not value.isprintable():
            self.fault(field, "is not an e-mail address")
        return value

    def country(self, field: str, value: str, default: str) -> str:
        if value and not _COUNTRY.fullmatch(value):
            self.fault(field, "must be two letters (ISO 3166)")
        return (value or default).upper()

    def basis_points(self, field: str, value: int) -> int:
        if not 0 <= value < money.BASIS_POINTS_IN_WHOLE:
            self.fault(field, "must be from 0 to 9999 basis points")
        return value

    def enum(self, field: str, value: int, known: Any) -> int:
        """Refuses an unknown number: proto3 enums are open."""
        if value not in known.values():
            self.fault(field, "is not a value of the contract")
            return 0
        return value

    def version(self, field: str, value: int) -> int:
        if value < 0:
            self.fault(field, "must not be negative; 0 means any")
        return value

    def page_size(self, value: int, *, default: int = _DEFAULT_PAGE, most: int = _MAX_PAGE) -> int:
        if value < 0:
            self.fault("page_size", "must not be negative")
        return min(value or default, most)

    def time(self, field: str, request: Message) -> datetime | None:
        if not request.HasField(field):
            return None
        given: Timestamp = getattr(request, field)
        try:
            moment = given.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fault(field, "is not a time")
            return None
        return moment


def fingerprint(
    request: Message, *, without: frozenset[str] = frozenset({"idempotency_key"})
) -> dict[str, str]:
    """Returns every field except the key as text. Absent differs from explicit."""
    found: dict[str, str] = {}

    def walk(message: Message, prefix: str) -> None:
        for field, value in message.ListFields():
            name = prefix + field.name
            if not prefix and field.name in without:
                continue
            if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
                found[name] = "present"
                walk(value, f"{name}.")
            else:
                found[name] = repr(list(value)) if field.is_repeated else repr(value)

    walk(request, "")
    return found
