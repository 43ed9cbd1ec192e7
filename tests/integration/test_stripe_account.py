"""The books belong to one account at Stripe, and a key of another one is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from payment_service.application.stripe_account import (
    WrongAccount,
    adopt_account,
    check_account,
)
from payment_service.maintenance import CannotRun
from payment_service.maintenance import adopt_account as adopt_by_command
from payment_service.server import serve
from tests.integration.conftest import StartWorld

FIRST, OTHER = "acct_1SimulatorPlatform", "acct_1Other"


async def test_another_account_is_refused_until_it_is_adopted(
    start_world: StartWorld, new_database: Callable[[], str]
) -> None:
    database_url = new_database()
    first = await start_world(database_url=database_url, loops=False)
    other = await start_world(
        database_url=database_url, loops=False, simulator={"platform_account": OTHER}
    )
    assert first.service is not None
    assert other.service is not None
    # The first start stores the account, and later ones of the same account change nothing.
    for _ in range(2):
        await check_account(first.service.app, livemode=False)
    with pytest.raises(WrongAccount) as refused:
        await check_account(other.service.app, livemode=False)
    sentence = str(refused.value)
    assert f"{OTHER} in test mode" in sentence
    assert f"{FIRST} in test mode" in sentence
    assert f"adopt-stripe-account {OTHER}" in sentence
    # The process does not start with it either.
    with pytest.raises(CannotRun):
        await serve(other.service.settings)
    # The other mode of the same account is another account.
    with pytest.raises(WrongAccount):
        await check_account(first.service.app, livemode=True)
    with pytest.raises(WrongAccount):
        await adopt_account(other.service.app, FIRST, livemode=False)
    before = await adopt_by_command(other.service.settings, OTHER)
    assert before == f"{FIRST} in test mode"
    await check_account(other.service.app, livemode=False)
    with pytest.raises(WrongAccount):
        await check_account(first.service.app, livemode=False)
