"""The port that says who calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from payment_service.domain.caller import Caller


class Authenticator(Protocol):
    """Finds out who calls, from what the call brings along."""

    #: Whether the connection's certificate says who calls, in place of the call's headers.
    by_connection: bool

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        """Returns the caller. Raises :class:`Refusal` with UNAUTHENTICATED if nobody vouches.

        ``peer`` is gRPC's auth context: what the TLS handshake has shown of a client certificate.
        """
        ...
