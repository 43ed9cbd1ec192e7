"""All RPCs by all certificates, over real TLS: made from the descriptors and from the roles.

What an RPC does is of no interest here, so each answers nothing. Whoever gets that answer was let
in.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc import aio

from payment_service.access import authenticator_of, grpc_credentials
from payment_service.bootstrap import SERVICES
from payment_service.domain.caller import Role
from payment_service.rpc.access import AccessControl
from payment_service.rpc.interceptor import CallInterceptor
from tests.support.access import OWN_CONNECTION, refusal_of
from tests.support.certificates import Authority
from tests.support.contract import METHODS, path_of, said_of
from tests.support.site import Site

_ACTS: Final = "acts"


def _identity(name: str) -> str:
    return f"spiffe://example.org/{name.lower()}"


class _Nothing(grpc.GenericRpcHandler):
    """Answers every RPC with an empty message."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return b""

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b""

        for method in METHODS:
            if handler_call_details.method == path_of(method):
                if method.server_streaming:
                    return grpc.unary_stream_rpc_method_handler(stream)
                return grpc.unary_unary_rpc_method_handler(answer)
        return None


@contextlib.asynccontextmanager
async def _serving(site: Site) -> AsyncIterator[str]:
    settings = site.settings()
    access = AccessControl(authenticator_of(settings), SERVICES)
    server = aio.server(interceptors=[CallInterceptor(lambda *_: None, access)])
    server.add_generic_rpc_handlers((_Nothing(),))
    credentials = grpc_credentials(settings)
    assert credentials is not None
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def _outcomes(
    site: Site, address: str, *names: str, authority: Authority | None = None
) -> dict[str, str]:
    """Calls every RPC with a certificate. Returns "let in" or the refusal's reason, by path."""
    found = {}
    credentials = site.credentials(*names, authority=authority)
    async with aio.secure_channel(address, credentials, OWN_CONNECTION) as channel:
        for method in METHODS:
            try:
                if method.server_streaming:
                    opened: Any = channel.unary_stream(path_of(method))
                    stream = opened(b"", timeout=10)
                    await stream.read()
                    stream.cancel()
                else:
                    call: Any = channel.unary_unary(path_of(method))
                    await call(b"", timeout=10)
                found[path_of(method)] = "let in"
            except aio.AioRpcError as error:
                code, reason, _ = refusal_of(error)
                found[path_of(method)] = reason or code
    return found


async def test_a_certificate_opens_what_the_contract_says_of_its_roles(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.put_callers(
        [
            {"identity": _identity(role), "name": f"the-{role.lower()}", "roles": [role]}
            for role in Role
        ]
        + [
            {
                "identity": _identity(_ACTS),
                "name": "an-app",
                "roles": [*Role],
                "act_for": "client-1",
            }
        ]
    )
    async with _serving(site) as address:
        for role in Role:
            found = await _outcomes(site, address, _identity(role))
            for method in METHODS:
                roles, _ = said_of(method)
                expected = "let in" if role in roles else "ROLE_REQUIRED"
                assert found[path_of(method)] == expected, method.name
        found = await _outcomes(site, address, _identity(_ACTS))
        for method in METHODS:
            _, acts = said_of(method)
            assert found[path_of(method)] == ("let in" if acts else "NOT_OPEN_TO_USERS"), (
                method.name
            )


@pytest.mark.parametrize(
    ("names", "is_ours", "outcome"),
    [
        (["spiffe://example.org/stranger"], True, "UNAUTHENTICATED"),
        ([_identity(Role.OPERATOR) + "/more"], True, "UNAUTHENTICATED"),
        (["dns:gateway"], True, "UNAUTHENTICATED"),
        ([_identity(Role.OPERATOR)], False, "UNAVAILABLE"),
        ([], True, "UNAVAILABLE"),
    ],
    ids=["unknown", "longer", "of another kind", "another authority's", "none"],
)
async def test_any_other_certificate_opens_nothing(
    tmp_path: Path, names: list[str], is_ours: bool, outcome: str
) -> None:
    site = Site(tmp_path)
    site.put_callers(
        [{"identity": _identity(Role.OPERATOR), "name": "the-operator", "roles": [*Role]}]
    )
    authority = None if is_ours else Authority("another")
    async with _serving(site) as address:
        found = await _outcomes(site, address, *names, authority=authority)
    assert set(found.values()) == {outcome}
