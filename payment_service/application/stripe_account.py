"""Binds the database to one account at Stripe, and refuses every other one.

With the key of another account the service would charge clients there, while the payments of its
books are unknown to Stripe.
"""

from __future__ import annotations

from datetime import datetime

from payment_service.application.app import App
from payment_service.domain.opening import leaving_lines
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import StripeBinding


class WrongAccount(Exception):
    """The key belongs to another account or mode than the books. The text says what to do."""


async def check_account(app: App, *, livemode: bool, as_of: datetime | None = None) -> None:
    """Compares the key's account with the one that the books are of; the first one is stored.

    The books of the first one begin now. Those of a restored database begin ``as_of`` the moment
    that it is of, because what it has lost since then is recorded again.

    Raises :class:`WrongAccount`, and :class:`Unavailable` if Stripe or the database is unavailable.
    """
    present = StripeBinding(await app.stripe.own_account_id(), livemode)
    bound = await app.database.transact(bind_account, present, as_of)
    if bound != present:
        raise WrongAccount(
            f"STRIPE_SECRET_KEY: it is of {present}, and the books at DATABASE_URL are of {bound}. "
            f"Set the key of {bound}, or the database of {present}. Only if these books are to "
            "be kept at that account from now on, run: python -m payment_service "
            f"adopt-stripe-account {present.stripe_account_id}"
        )


async def adopt_account(app: App, account_id: str, *, livemode: bool) -> str:
    """Binds the books to the key's account on purpose. Returns what they were bound to before.

    Raises :class:`WrongAccount` if the key is not of the account that the operator named.
    """
    present = StripeBinding(await app.stripe.own_account_id(), livemode)
    if present.stripe_account_id != account_id:
        raise WrongAccount(f"STRIPE_SECRET_KEY: it is of {present}, not of {account_id}")
    before = await app.database.transact(rebind_account, present)
    return str(before) if before else "no account"


def bind_account(
    tx: Transaction, present: StripeBinding, as_of: datetime | None = None
) -> StripeBinding:
    """Returns the account of the books: the present one if they have none yet."""
    bound = tx.stripe_binding()
    if bound is None:
        tx.bind_stripe_account(present, min(tx.now, as_of or tx.now))
    return bound or present


def rebind_account(tx: Transaction, present: StripeBinding) -> StripeBinding | None:
    """Binds the books anew. Returns the account that they were of.

    What that one has goes off the books, so that they begin at the present one with nothing.
    """
    before, left = tx.stripe_binding(), tx.lock_beginning()
    if before == present:
        return before
    if left is not None:
        for line in leaving_lines(left, tx.platform_balances()):
            tx.book_platform_line(line)
    tx.bind_stripe_account(present, tx.now)
    return before
