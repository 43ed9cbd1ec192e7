"""What an operation asks Stripe for besides its amount: one type for each kind of operation.

The payload is stored as JSON beside the operation. Its keys are the names of the fields here, so a
renamed field is a change of the stored format. Reading is strict: a missing key, an unknown key or
a value of the wrong type raises :class:`MalformedPayload`, because a request that was stored and is
only half understood must not be sent.

What a person wrote is dropped from the payload when the operation is settled. A field for such a
text also belongs into ``drop_operation_texts`` (``migrations/schema/operations.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from payment_service.domain.experts import BusinessType


class MalformedPayload(ValueError):
    """A stored payload is not what its kind of operation needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateIntentPayload:
    """Creates the payment intent. ``application_fee`` is in minor units of ``currency``."""

    currency: str
    application_fee: int
    destination_account_id: str
    automatic_capture: bool
    #: Stored, so that a later try is the same request even if the setting has changed.
    extended_authorization: bool
    description: str
    client_id: str
    expert_id: str
    gig_id: str
    #: What else the payment was recorded with, so that it can be recorded again from the intent.
    expert_account_id: str
    escrow_mode: str
    charge_model: str
    mode_reason: str
    on_deadline: str
    #: In ISO 8601; empty if none was named.
    expected_completion_time: str
    commission_basis_points: int
    commission: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPayload:
    """Sends the expert's amount of a SEPARATE charge to the expert's account.

    ``commission`` and ``debt_offset`` are kept back from the operation's amount; minor units.
    """

    currency: str
    charge_id: str
    commission: int
    debt_offset: int
    #: Whether the client gets back what is still held after this transfer.
    final: bool
    notes: str
    #: Empty until the transfer is recorded as an operation: then it is the expert's account of now.
    destination_account_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePayload:
    """Charges the authorized card: a capture, or a promotion to a hold by the platform."""

    payment_intent_id: str
    notes: str
    #: What Stripe collects for the platform, in minor units. None leaves it out of the request.
    application_fee: int | None = None
    #: The amount of the application fee that pays an expert's debt; minor units.
    debt_offset: int = 0
    #: The transfer that follows the charge, and its amount before commission in minor units.
    transfer: TransferPayload | None = None
    transfer_amount: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelPayload:
    """Cancels a payment intent that was never charged."""

    payment_intent_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundPayload:
    """Refunds the client out of the platform's balance."""

    payment_intent_id: str
    destination_account_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversalLeg:
    """The reversal of one transfer, in the payment's currency and in the transfer's."""

    transfer_id: str
    minor_units: int
    transfer_minor_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversalPayload:
    """Takes money back from the expert's account, one transfer at a time."""

    transfer_id: str
    #: What Stripe is asked for, in minor units of the transfer's currency.
    transfer_minor_units: int
    #: The reversals that follow this one, in their order.
    remaining_legs: tuple[ReversalLeg, ...] = ()
    #: What no transfer covers: the expert's debt once the last reversal is done; minor units of the
    #: payment's currency.
    debt_after: int = 0

    @property
    def unrecovered(self) -> int:
        """What is still to be taken back or owed after this reversal, in minor units."""
        return sum(leg.minor_units for leg in self.remaining_legs) + self.debt_after


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionPayload:
    """Collects an expert's debt by the reversal of a transfer of this payment."""

    payment_id: str
    transfer_id: str
    #: What Stripe is asked for, in minor units of the transfer's currency.
    transfer_minor_units: int
    #: The currency of the debt and of the operation's amount.
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAccountPayload:
    """Creates an expert's connected account."""

    name: str
    email: str
    country: str
    business_type: BusinessType
    #: What else the expert was recorded with.
    commission_basis_points: int
    commission_asked: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePayload:
    """Stages evidence on a dispute or, with ``submit``, sends it to the client's bank."""

    payment_id: str
    #: By Stripe's field names.
    evidence: Mapping[str, str] = field(default_factory=dict)
    submit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptancePayload:
    """Accepts a chargeback as lost."""

    payment_id: str


OperationPayload = (
    CreateIntentPayload
    | CapturePayload
    | CancelPayload
    | RefundPayload
    | TransferPayload
    | ReversalPayload
    | CollectionPayload
    | CreateAccountPayload
    | EvidencePayload
    | AcceptancePayload
)

T = TypeVar("T")


def payload_to_json(payload: OperationPayload) -> dict[str, Any]:
    """Returns the payload as JSON values, with every field."""
    values: dict[str, Any] = _plain(payload)
    return values


def _plain(value: Any) -> Any:
    """Returns a value of a payload as JSON values. ``asdict`` would also copy every text."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return dict(value)
    return {name: _plain(getattr(value, name)) for name in _types_of(value.__class__)}


def payload_from_json(type_: type[T], stored: object) -> T:
    """Returns the payload of this type that ``payload_to_json`` made.

    Raises :class:`MalformedPayload`.
    """
    payload: T = _read(type_, stored, type_.__name__)
    return payload


def _read(type_: Any, value: object, where: str) -> Any:
    """Returns ``value`` as the annotated ``type_``. ``where`` names it in the error."""
    if type(value) is type_:  # Not isinstance: a bool is no amount.
        return value
    origin, arguments = get_origin(type_), get_args(type_)
    if isinstance(type_, type) and is_dataclass(type_) and isinstance(value, Mapping):
        return _read_fields(type_, value, where)
    if origin is UnionType:  # Only "one type, or None" is used here.
        (present,) = (one for one in arguments if one is not NoneType)
        return None if value is None else _read(present, value, where)
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_read(arguments[0], one, f"{where}[{n}]") for n, one in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {
            _read(arguments[0], name, where): _read(arguments[1], one, f"{where}.{name}")
            for name, one in value.items()
        }
    if type_ is BusinessType and value in list(BusinessType):
        return BusinessType(str(value))
    raise MalformedPayload(f"the payload's {where} is no {type_}: a {type(value).__name__}")


def _read_fields(type_: Any, value: Mapping[str, object], where: str) -> Any:
    types = _types_of(type_)
    if wrong := types.keys() ^ value.keys():
        raise MalformedPayload(f"the payload of {where} misses or adds {', '.join(sorted(wrong))}")
    return type_(
        **{name: _read(known, value[name], f"{where}.{name}") for name, known in types.items()}
    )


@cache
def _types_of(type_: Any) -> Mapping[str, Any]:
    """Returns the annotated type of each field: to evaluate annotations takes long."""
    hints = get_type_hints(type_)
    return {one.name: hints[one.name] for one in fields(type_)}
