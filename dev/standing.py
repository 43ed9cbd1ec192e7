"""A payment of a walk: its identifiers, its state and amounts, and how its money is held."""

from dataclasses import dataclass

from dev.caller import state_name
from dev.story import amount
from marketplace.payments.v1 import payments_pb2


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The state and the amounts that a payment must have, in minor units."""

    state: str
    held: int = 0
    captured: int = 0
    refunded: int = 0
    commission: int = 0
    expert: int = 0

    @classmethod
    def of(cls, payment: payments_pb2.Payment) -> "Standing":
        return cls(
            state=state_name(payment.state),
            held=payment.held_amount.minor_units,
            captured=payment.captured_amount.minor_units,
            refunded=payment.refunded_amount.minor_units,
            commission=payment.net_commission.minor_units,
            expert=payment.net_expert_amount.minor_units,
        )

    def told(self, currency: str) -> list[str]:
        amounts = [
            f"{name} {amount(value, currency)}"
            for name in ("held", "captured", "refunded", "commission", "expert")
            if (value := getattr(self, name))
        ]
        return [self.state, *amounts]

    def shares(self, whole: int) -> dict[str, int]:
        """Returns who holds which part of the whole amount. Grace has what nobody else holds."""
        rest = whole - self.held - self.expert - self.commission
        return {
            "in escrow": self.held,
            "Ada": self.expert,
            "platform": self.commission,
            "Grace": rest,
        }


@dataclass(frozen=True, slots=True)
class Held:
    """How a payment's money is held, and why, in the words of the contract."""

    mode: str
    reason: str

    @classmethod
    def of(cls, payment: payments_pb2.Payment) -> "Held":
        return cls(
            payments_pb2.EscrowMode.Name(payment.escrow_mode).removeprefix("ESCROW_MODE_"),
            payments_pb2.ModeReason.Name(payment.mode_reason).removeprefix("MODE_REASON_"),
        )

    @property
    def told(self) -> list[str]:
        whys = {
            "OUTLASTS_CARD_HOLD": "longer than a card holds",
            "PROMOTION": "on_deadline=PROMOTE was asked for",
        }
        return [self.mode, f"{self.reason}: {whys[self.reason]}"]


@dataclass(kw_only=True)
class Walked:
    """A payment of the walk."""

    payment_id: str
    intent_id: str
    client_secret: str
    amount: int
    currency: str
    number: int
    escrow_mode: str
    keys: int = 0
    #: What Grace has paid and not got back, as of the last step.
    paid: int = 0
