"""Compares the account at Stripe with that of the books: at the start, or once Stripe answers."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.stripe_account import WrongAccount, check_account

log = structlog.get_logger(__name__)

#: How long a start waits for Stripe to say which account the key belongs to.
_START_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 1.0


class AccountWatch:
    """Refuses a start with another account. An outage of Stripe does not prevent a start."""

    def __init__(self, app: App, *, livemode: bool) -> None:
        self._app = app
        self._livemode = livemode
        self._later: asyncio.Task[None] | None = None
        #: Set if the account was found to be another one after the start.
        self.fault: WrongAccount | None = None

    async def begin(self, stop: asyncio.Event) -> None:
        """Compares now or, if that is not possible yet, later; then another account sets ``stop``.

        Raises :class:`WrongAccount`.
        """
        if not await self._is_known():
            self._later = asyncio.create_task(self._try_again(stop))

    def end(self) -> None:
        """Ends the comparison."""
        if self._later is not None:
            self._later.cancel()

    async def _is_known(self) -> bool:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await check_account(self._app, livemode=self._livemode)
        except WrongAccount as fault:
            log.error("stripe_account_differs", why=str(fault))
            raise
        except Exception as error:  # noqa: BLE001 - an outage, or a schema that is not migrated yet
            log.info("stripe_account_not_known_yet", error=type(error).__name__)
            return False
        return True

    async def _try_again(self, stop: asyncio.Event) -> None:
        known = False
        try:
            while not known:
                await asyncio.sleep(_PAUSE_SECONDS)
                known = await self._is_known()
        except WrongAccount as fault:
            self.fault = fault
            stop.set()
