"""Commands of an operator that need the whole service and serve nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from payment_service.application import stripe_account
from payment_service.application.app import App
from payment_service.application.recover_after_restore import Recovered, recover_after_restore
from payment_service.application.stripe_account import WrongAccount
from payment_service.bootstrap import wire
from payment_service.config import Settings
from payment_service.domain.errors import Refusal


class CannotRun(Exception):
    """The command, or the service, cannot run here. The text says why."""


def sentence_of(fault: Refusal) -> str:
    """Returns a refusal's sentence, for a command: it has no key with which to ask again."""
    fact, advice, _ = fault.sentence.partition("; ask again")
    return f"{fact}; run the command again later" if advice else fault.sentence


async def adopt_account(settings: Settings, account_id: str) -> str:
    """Binds the books to the account of the secret key. Returns the one that they were of before.

    Raises :class:`CannotRun`.
    """
    async with wired_app(settings) as app:
        return await stripe_account.adopt_account(app, account_id, livemode=settings.is_live)


async def recover_books(settings: Settings, since: datetime, say: Callable[[str], None]) -> None:
    """Recovers what a restored database has lost, and says what it does. Raises CannotRun."""
    async with wired_app(settings) as app:
        await stripe_account.check_account(app, livemode=settings.is_live, as_of=since)
        async for line in recover_after_restore(app, since, Recovered()):
            say(line)


@asynccontextmanager
async def wired_app(settings: Settings) -> AsyncIterator[App]:
    """Yields the application, and serves nothing. What is refused becomes :class:`CannotRun`."""
    wired = wire(settings)
    try:
        yield wired.app
    except WrongAccount as fault:
        raise CannotRun(str(fault)) from None
    except Refusal as fault:
        raise CannotRun(sentence_of(fault)) from None
    finally:
        await wired.stripe.close()
        await wired.database.close()
