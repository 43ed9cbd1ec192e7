"""No authentication: every caller is the local one, with every role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from payment_service.domain.caller import LOCAL, Caller


class LocalAuthenticator:
    """Vouches for everybody. For development, on loopback."""

    by_connection = False

    async def ready(self) -> bool:
        return True

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        return LOCAL
