"""Worlds: one a test, or one for the tests of a module that leave each other alone."""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
import pytest_asyncio

from dev.postgres import EmbeddedPostgres
from stripe_simulator import api, webhooks
from tests.support.derived import derive_columns
from tests.support.running import running_world
from tests.support.stripe_api.plugin import judge, stripe_approves  # noqa: F401
from tests.support.world import World

StartWorld = Callable[..., Awaitable[World]]

#: The certificates take 25 ms to read, which a process does once, and here each world would.
_tls_context = functools.cache(ssl.create_default_context)


def _dumps(what: Any, indent: int = 0) -> str:
    return json.dumps(what)


@pytest.fixture(autouse=True, scope="module")
def cheapness() -> Iterator[None]:
    """Leaves out what only costs time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", _tls_context)
        # Indented JSON is for people, and Python writes it ten times as slowly.
        for module in (api, webhooks):
            patch.setattr(module, "json", SimpleNamespace(dumps=_dumps, loads=json.loads))
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
    """Does to a world's database what no service may: with triggers off, as superuser.

    After a change of a payment, an expert or a dispute, the derived columns follow, as they do when
    the service writes the row; but not after a change of the schedule itself.
    """

    def do(world: World, statement: str, *values: object) -> int:
        name = world.database_url.rpartition("/")[2]
        options = "-c session_replication_role=replica -c default_transaction_read_only=off"
        with contextlib.closing(
            psycopg2.connect(postgres.admin_url(name), options=options)
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                changed = int(cursor.rowcount)
            derived_from = ("UPDATE payments", "UPDATE experts", "UPDATE disputes")
            if statement.startswith(derived_from) and "warn_due_time" not in statement:
                assert world.service is not None
                derive_columns(connection, world.service.app.policy)
            return changed

    return do
