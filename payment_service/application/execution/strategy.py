"""What the executor's steps mean for one kind of object at Stripe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.domain.operations import Operation
from payment_service.domain.ports.stripe import Outcome

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """What Stripe showed, as it was applied, and whether the operation has ended by now."""

    applied: SyncResult
    is_closed: bool


class Strategy(Protocol[T]):
    """Finds, sends and records the operations of one kind of object at Stripe."""

    @property
    def awaits_followups(self) -> bool:
        """Whether the operation's caller waits for the operations that follow from it."""

    def facts(self, operation: Operation) -> Mapping[str, str]:
        """Returns the facts that name the subject in an error."""

    async def find(self, operation: Operation) -> Found:
        """Finds out what Stripe has of an operation that may have been sent before.

        Raises :class:`Refusal`, once the lease is released, if it must not be sent now.
        """

    async def send(self, operation: Operation) -> Outcome[T]:
        """Makes the one request to Stripe, under the operation's stored key."""

    async def may_resend_unsent(self, operation: Operation) -> bool:
        """Whether a request that certainly had no effect is sent again after a short pause.

        Stripe is not read again before that, so what is booked by now must not forbid it.
        """

    async def record(self, operation: Operation, outcome: Outcome[T], version: int) -> SyncResult:
        """Records what Stripe answered. ``version`` is the payment's before the request.

        Raises :class:`Refusal`, once the lease is released, if the outcome is not known yet.
        """
