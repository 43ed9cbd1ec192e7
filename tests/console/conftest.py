"""A console in front of a real service and the simulator, and operators with tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from console.app import running
from console.settings import Settings
from payment_service.access import authenticator_of
from payment_service.domain.caller import LOCAL, Caller
from payment_service.domain.ports.identity import Authenticator
from tests.support.issuer import Signer, key_set, token_settings
from tests.support.running import running_world
from tests.support.world import World


class TokensOrNobody:
    """Checks tokens as the service does. A call without one is local: it prepares a test."""

    by_connection = False

    def __init__(self, tokens: Authenticator) -> None:
        self._tokens = tokens

    async def ready(self) -> bool:
        return True

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        given = tuple(metadata)
        if not any(name == "authorization" for name, _ in given):
            return LOCAL
        return await self._tokens.authenticate(given, peer)


@dataclass(frozen=True)
class Page:
    """What a browser got."""

    status: int
    url: str
    text: str
    headers: Mapping[str, str]

    @property
    def words(self) -> str:
        """The text that a person reads."""
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", self.text)).split())

    def form(self, action: str) -> dict[str, str]:
        """The hidden fields of the form that is sent there."""
        found = re.search(
            rf'<form [^>]*action="{re.escape(action)}".*?</form>', self.text, re.DOTALL
        )
        assert found is not None, self.words
        return {
            name: unescape(value)
            for name, value in re.findall(
                r'<input type="hidden" name="([^"]*)" value="([^"]*)"', found[0]
            )
        }


class Operator:
    """A person at the console: keeps cookies, sends forms as a browser does."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self.http = url, http
        self.token = ""

    async def get(self, path: str, **headers: str) -> Page:
        return await self._ask("GET", path, None, headers)

    async def post(self, path: str, form: Mapping[str, str], **headers: str) -> Page:
        return await self._ask("POST", path, form, {"Origin": self.url, **headers})

    async def _ask(
        self, method: str, path: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> Page:
        async with self.http.request(
            method, f"{self.url}{path}", data=form, headers=headers
        ) as answer:
            return Page(answer.status, str(answer.url), await answer.text(), answer.headers)

    async def sign_in(self, token: str) -> Page:
        self.token = token
        return await self.post("/sign-in", {"token": token})

    async def confirm_page(self, action: str, target: str, **entered: str) -> Page:
        """The page that says what will happen."""
        currency = entered.pop("currency", "")
        form = await self.get(f"/act?action={action}&id={target}&currency={currency}")
        assert form.status == 200, form.words
        return await self.post("/act/check", form.form("/act/check") | entered)

    async def do(self, action: str, target: str, **entered: str) -> Page:
        """All three steps."""
        page = await self.confirm_page(action, target, **entered)
        assert page.status == 200, page.words
        return await self.post("/act/do", page.form("/act/do"))


NewOperator = Callable[..., Awaitable[Operator]]


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer("key-1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    module_database_url: str, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """The world of one module, whose service takes tokens."""
    keys = Path(tmp_path_factory.mktemp("keys")) / "jwks.json"
    keys.write_bytes(key_set(signer))
    tokens = authenticator_of(token_settings(keys), lambda source, fault: None)
    async with running_world(module_database_url, authenticator=TokensOrNobody(tokens)) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def console_url(shared: World) -> AsyncIterator[str]:
    settings = Settings(console_port=0, core_address=(shared.address,))
    async with running(settings) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def new_operator(console_url: str, signer: Signer) -> AsyncIterator[NewOperator]:
    """Makes operators who are signed in with these roles."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*roles: str, name: str = "ann", **claims: Any) -> Operator:
            jar = aiohttp.CookieJar(unsafe=True)
            http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
            operator = Operator(console_url, http)
            if roles:
                page = await operator.sign_in(signer.token(sub=name, roles=list(roles), **claims))
                assert page.status == 200, page.words
            return operator

        yield make
