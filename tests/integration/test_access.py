"""All RPCs by all identities, against what the contract says of each: made from the descriptors.

Who is let in gets an answer of the handler. Who is not gets the roles that may, and nothing else:
no row changes, and the answer is the same whatever the request names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from payment_service.access import authenticator_of
from payment_service.domain.caller import Caller, Role
from payment_service.domain.ports.identity import Authenticator
from tests.support.certificates import put
from tests.support.contract import METHODS, path_of, said_of
from tests.support.errors import Refused
from tests.support.identity import NOBODY, BelievingAuthenticator, Metadata, as_caller
from tests.support.issuer import Signer, key_set, token_settings
from tests.support.requests import money, new_key
from tests.support.running import running_world
from tests.support.steps.disputes import disputed
from tests.support.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT: Final = "client-1"
_ROLES: Final = tuple(Role)
#: Identities that act for themselves, by name.
_CALLERS: Final[dict[str, tuple[Role, ...]]] = {
    **{role.value: (role,) for role in Role},
    "NOTIFICATION_SERVICE and FINANCE": (Role.NOTIFICATION_SERVICE, Role.FINANCE),
    "every role": _ROLES,
    "no role": (),
    "an unknown role": ("ROLE_OF_TOMORROW",),  # type: ignore[dict-item]
}


_SIGNER: Final = Signer("one")


class TokensOrBelief(BelievingAuthenticator):
    """Checks a token where there is one, as the service does, and believes other calls."""

    def __init__(self, tokens: Authenticator) -> None:
        self._tokens = tokens

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        given = tuple(metadata)
        proves = any(name == "authorization" for name, _ in given)
        known = self._tokens.authenticate if proves else super().authenticate
        return await known(given, peer)


def token_of(*roles: str, act_for: str = "", **claims: Any) -> Metadata:
    """Returns the metadata of a call with a signed token."""
    more: dict[str, Any] = {"act_for": act_for} if act_for else {}
    return (("authorization", f"Bearer {_SIGNER.token(roles=[*roles], **more, **claims)}"),)


#: How a caller says who it is: as tests do, or as services do.
_PROOFS: Final[dict[str, Callable[..., Metadata]]] = {"believed": as_caller, "token": token_of}
by_either_proof: Final = pytest.mark.parametrize("proof", _PROOFS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    keys = tmp_path_factory.mktemp("keys") / "jwks.json"
    put(keys, key_set(_SIGNER))
    authenticator = TokensOrBelief(authenticator_of(token_settings(keys), lambda *_: None))
    async with running_world(module_database_url, authenticator=authenticator) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(world: World) -> dict[str, Any]:
    """Good values of fields, by name: of one expert and one client, in one disputed payment."""
    expert = await world.expert()
    payment_id, dispute_id = await disputed(world, expert_id=expert, client_id=CLIENT)
    [(operation_id,)] = world.sql(
        "SELECT operation_id FROM operations WHERE payment_id = %s LIMIT 1", payment_id
    )
    await world.settle_down()
    [(event_id,)] = world.sql("SELECT event_id FROM webhook_events LIMIT 1")
    return {
        "payment_id": payment_id,
        "dispute_id": dispute_id,
        "operation_id": operation_id,
        "event_id": event_id,
        "expert_id": expert,
        "client_id": CLIENT,
        "user_id": CLIENT,
        "gig_id": "gig-1",
        "discrepancy_id": "disc_1",
        "name": "Ann",
        "email": "ann@example.com",
        "amount": money(100, "USD"),
        "currency_code": "USD",
        "commission_basis_points": 1,
        "reason": "a test of access",
        "kind": 1,
        "endpoint": 1,
        "payload": b"{}",
        "signature": "t=1,v1=0",
        "onboarding_token": "A" * 43,
    }


_UNKNOWN: Final = {
    "payment_id": "pay_" + "0" * 32,
    "dispute_id": "dp_" + "0" * 24,
    "operation_id": "op_" + "0" * 32,
    "event_id": "evt_nothing",
    "expert_id": "expert-nobody",
    "user_id": "user-nobody",
    "discrepancy_id": f"disc_{2**62}",
}


def request_for(method: MethodDescriptor, values: dict[str, Any]) -> Message:
    """Returns a request with every field for which there is a value."""
    request = GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        value = new_key() if field.name == "idempotency_key" else values.get(field.name)
        if value is None:
            continue
        if isinstance(value, Message):
            getattr(request, field.name).CopyFrom(value)
        elif not (field.name == "reason" and field.enum_type):
            setattr(request, field.name, value)
    return request


async def call(
    world: World, method: MethodDescriptor, request: Message, metadata: Metadata
) -> Message | Refused:
    """Returns the answer, the first one of a stream, or the refusal."""
    path = path_of(method)
    kinds: dict[str, Any] = {
        "request_serializer": type(request).SerializeToString,
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }
    try:
        if not method.server_streaming:
            unary: Any = world.channel.unary_unary(path, **kinds)
            answer: Message = await unary(request, metadata=metadata, timeout=20)
            return answer
        stream: Any = world.channel.unary_stream(path, **kinds)(
            request, metadata=metadata, timeout=20
        )
        first: Message = await stream.read()
        stream.cancel()
        return first
    except aio.AioRpcError as error:
        return Refused.of(error)


def state_of(world: World) -> object:
    """Returns what any effect would change."""
    return (
        world.counts(),
        world.sql("SELECT payment_id, version, head_hash FROM payments ORDER BY 1"),
        world.sql("SELECT expert_id, version FROM experts ORDER BY 1"),
        world.sql("SELECT operation_id, state, tries FROM operations ORDER BY 1"),
        world.sql("SELECT event_id, state, attempts FROM webhook_events ORDER BY 1"),
    )


def rpc_of(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}/{method.name}"


@by_either_proof
@pytest.mark.parametrize("method", METHODS, ids=rpc_of)
async def test_only_the_roles_of_the_contract_are_let_in(
    world: World, real: dict[str, Any], method: MethodDescriptor, proof: str
) -> None:
    roles, _ = said_of(method)
    before = state_of(world)
    seen: list[Refused] = []
    for name, given in _CALLERS.items():
        allowed = not roles.isdisjoint(given)
        # What is let in is wrong in another way, so that nothing comes of it; what is not would
        # have an effect.
        values = {"payment_id": _UNKNOWN["payment_id"]} if allowed else real
        answer = await call(world, method, request_for(method, values), _PROOFS[proof](*given))
        if not allowed:
            assert isinstance(answer, Refused), f"{name} was let in: {answer!r}"
            if proof == "token" and not set(given) & set(Role):
                # A token that names no role of this service is no token for it.
                assert (answer.code, answer.facts) == ("UNAUTHENTICATED", {"fault": "claim"})
            else:
                seen.append(answer)
        elif isinstance(answer, Refused):
            assert answer.code not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), name
            assert answer.reason not in ("", "UNEXPECTED"), (name, answer)
    # The same bytes for everybody who is refused: nothing of what the request names.
    assert len({refused.raw for refused in seen}) == 1
    refused = seen[0]
    assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    assert refused.facts == {"rpc": rpc_of(method), "roles": ",".join(sorted(roles))}
    assert state_of(world) == before


@pytest.mark.parametrize("method", METHODS, ids=rpc_of)
async def test_nobody_is_let_in_without_credentials(
    world: World, real: dict[str, Any], method: MethodDescriptor
) -> None:
    before = state_of(world)
    answers = [
        await call(world, method, request_for(method, values), NOBODY)
        for values in (real, {**real, **_UNKNOWN}, {})
    ]
    # Not even to be told that the bytes are no message.
    path = f"{method.containing_service.name}/{method.name}"
    if not method.server_streaming:
        bad: Any = world.channel.unary_unary(f"/marketplace.payments.v1.{path}")
        with pytest.raises(aio.AioRpcError) as caught:
            await bad(b"\xff\xff\xff", metadata=NOBODY)
        answers.append(Refused.of(caught.value))
    assert all(isinstance(answer, Refused) for answer in answers)
    assert {getattr(answer, "code", "") for answer in answers} == {"UNAUTHENTICATED"}
    assert len({getattr(answer, "raw", b"") for answer in answers}) == 1
    assert state_of(world) == before


@pytest.mark.parametrize("method", [one for one in METHODS if not said_of(one)[1]], ids=rpc_of)
@by_either_proof
async def test_what_is_not_open_to_acting_callers_is_refused_to_all_of_them(
    world: World, real: dict[str, Any], method: MethodDescriptor, proof: str
) -> None:
    before = state_of(world)
    for user in (CLIENT, real["expert_id"], "somebody"):
        metadata = _PROOFS[proof](*_ROLES, act_for=user)
        answer = await call(world, method, request_for(method, real), metadata)
        assert isinstance(answer, Refused), f"{user} was let in: {answer!r}"
        assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "NOT_OPEN_TO_USERS")
        assert answer.facts == {"rpc": rpc_of(method)}
    assert state_of(world) == before


@pytest.mark.parametrize("method", [one for one in METHODS if said_of(one)[1]], ids=rpc_of)
@by_either_proof
async def test_to_another_user_everything_is_unknown(
    world: World, real: dict[str, Any], method: MethodDescriptor, proof: str
) -> None:
    """What exists is answered as what does not, byte for byte, whatever else the request says."""
    before = state_of(world)
    metadata = _PROOFS[proof](*_ROLES, act_for="somebody")
    for more in ({}, {"validate_only": True}, {"expected_version": 99}, {"amount": money(10**7)}):
        known = request_for(method, {**real, "user_id": real["expert_id"], **more})
        unknown = request_for(method, {**real, **_UNKNOWN, **more})
        if method.server_streaming:
            continue  # There is no first event: tests/integration/test_acting_for.py.
        answers = [await call(world, method, one, metadata) for one in (known, unknown)]
        if isinstance(answers[0], Message):
            assert method.name.startswith("List")
            assert answers[0] == type(answers[0])(), f"saw {answers[0]!r}"
            continue
        assert isinstance(answers[0], Refused)
        assert isinstance(answers[1], Refused)
        if method.name == "InitiatePayment":
            assert answers[0].reason == "OTHER_CLIENT"
        else:
            assert answers[0].code == "NOT_FOUND"
        assert _anonymous(answers[0], real) == _anonymous(answers[1], _UNKNOWN)
    assert state_of(world) == before


def _anonymous(refused: Refused, values: dict[str, Any]) -> object:
    """Returns a refusal without the ids that the request named."""
    facts = {name: value == values.get(name) or value for name, value in refused.facts.items()}
    return refused.code, refused.reason, refused.sentence, facts, refused.fields


@pytest.mark.parametrize("method", [one for one in METHODS if said_of(one)[1]], ids=rpc_of)
async def test_a_role_is_needed_to_act_for_a_user(
    world: World, real: dict[str, Any], method: MethodDescriptor
) -> None:
    roles, _ = said_of(method)
    for role in Role:
        if role not in roles:
            metadata = as_caller(role, act_for=CLIENT)
            answer = await call(world, method, request_for(method, real), metadata)
            assert isinstance(answer, Refused)
            assert answer.reason == "ROLE_REQUIRED"


@pytest.mark.parametrize("method", METHODS, ids=rpc_of)
async def test_a_token_that_does_not_prove_itself_opens_nothing(
    world: World, real: dict[str, Any], method: MethodDescriptor
) -> None:
    before = state_of(world)
    request = request_for(method, real)
    stranger = Signer("one").token(roles=[*_ROLES])  # the same key id, another key
    for metadata in (
        (("authorization", f"Bearer {stranger}"),),
        token_of(*_ROLES, exp=1),
        token_of(*_ROLES, aud="another-service"),
        (("authorization", "Bearer "),),
    ):
        answer = await call(world, method, request, metadata)
        assert isinstance(answer, Refused), f"was let in: {answer!r}"
        assert answer.code == "UNAUTHENTICATED"
    assert state_of(world) == before
