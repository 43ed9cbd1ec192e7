"""Worlds: one a test, or one for the tests of a module that leave each other alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg2
import pytest
import pytest_asyncio

from dev.postgres import EmbeddedPostgres
from payment_service.application.jobs import scheduler
from tests.integration.world import World, running_world

StartWorld = Callable[..., Awaitable[World]]


@pytest.fixture(autouse=True, scope="module")
def impatience() -> Iterator[None]:
    """Shortens the service's pauses between tries, so that a test sees many; nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "_POLL_SECONDS", 0.2)
        patch.setattr(scheduler, "_SELDOM_SECONDS", 1.0)
        yield


@pytest.fixture
async def start_world(new_database: Callable[[], str]) -> AsyncIterator[StartWorld]:
    """Starts worlds with these settings; all end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(**settings: Any) -> World:
            given = {"database_url": new_database(), **settings}
            world: World = await stack.enter_async_context(running_world(**given))
            return world

        yield begin


@pytest.fixture
async def world(start_world: StartWorld) -> World:
    """A world of this test's own."""
    return await start_world()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(module_database_url: str) -> AsyncIterator[World]:
    """The world of one module. Its tests make experts and payments of their own, and turn no
    switch of the simulator that others would feel.

    Such a module says ``pytestmark = pytest.mark.asyncio(loop_scope="module")``.
    """
    async with running_world(module_database_url) as world:
        yield world


@pytest.fixture
def as_superuser(postgres: EmbeddedPostgres) -> Callable[..., int]:
    """Does to a world's database what no service may: with triggers off, as superuser."""

    def do(world: World, statement: str, *values: object) -> int:
        name = world.database_url.rpartition("/")[2]
        options = "-c session_replication_role=replica -c default_transaction_read_only=off"
        with contextlib.closing(
            psycopg2.connect(postgres.admin_url(name), options=options)
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return int(cursor.rowcount)

    return do
