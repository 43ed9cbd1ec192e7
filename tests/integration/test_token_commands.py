"""`python -m payment_service token`: the service takes what it makes, and nobody else reads it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from payment_service.__main__ import app
from payment_service.access import Access, authenticator_of
from payment_service.config import Settings
from payment_service.domain.caller import Caller, Role


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "access"


def run(directory: Path, *arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["token", *arguments, "--directory", str(directory)])
    assert done.exit_code == status, done.output
    return done.output.strip()


def access(directory: Path) -> Access:
    given: dict[str, Any] = {
        "auth": "jwt",
        "auth_jwks": str(directory / "jwks.json"),
        "auth_issuer": "development",
    }
    return authenticator_of(Settings(**given))


async def caller_of(access: Access, token: str) -> Caller:
    return await access.authenticate([("authorization", f"Bearer {token}")], {})


async def test_a_token_that_was_made_here_is_taken(directory: Path) -> None:
    run(directory, "keys")
    token = run(
        directory,
        *("issue", "--name", "gig-service", "--role", "GIG_SERVICE", "--role", "FINANCE"),
        *("--act-for", "client-1", "--lifetime", "1h"),
    )
    told = await caller_of(access(directory), token)
    roles = frozenset({Role.GIG_SERVICE, Role.FINANCE})
    assert told == Caller("gig-service", roles, "client-1")


async def test_a_new_key_leaves_the_tokens_of_the_former_one_valid(directory: Path) -> None:
    issue = ("issue", "--name", "gateway", "--role", "GATEWAY")
    tokens = []
    for _ in range(4):
        run(directory, "keys")
        tokens.append(run(directory, *issue))
    taken = access(directory)
    for token in tokens[1:]:
        assert (await caller_of(taken, token)).name == "gateway"
    with pytest.raises(Exception, match="no key with the token's kid"):
        await caller_of(taken, tokens[0])


def test_only_the_owner_reads_what_is_secret(directory: Path) -> None:
    run(directory, "keys")
    token = directory / "gateway.token"
    run(directory, "issue", "--name", "g", "--role", "GATEWAY", "--output", str(token))
    assert token.read_text().count(".") == 2
    for path, mode in (
        (directory, 0o700),
        (directory / "signing-key.pem", 0o600),
        (token, 0o600),
        (directory / "jwks.json", 0o644),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert '"d"' not in (directory / "jwks.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (("--role", "GATEWAY", "--name", "local"), "cannot be the name of a caller"),
        (("--role", "GATEWAY", "--name", "a b"), "cannot be the name of a caller"),
        (("--role", "GATEWAY", "--name", "g", "--lifetime", "2d"), "such as 900s, 15m or 1h"),
        (("--role", "GATEWAY", "--name", "g", "--lifetime", "48h"), "at most 24h"),
        (("--role", "GATEWAY", "--name", "g", "--output", "/no/where"), "cannot be written"),
    ],
)
def test_a_wrong_wish_is_refused_with_the_fix(
    directory: Path, arguments: tuple[str, ...], fix: str
) -> None:
    run(directory, "keys")
    assert fix in run(directory, "issue", *arguments, status=2)


def test_without_a_key_it_says_how_to_make_one(directory: Path) -> None:
    told = run(directory, "issue", "--name", "g", "--role", "GATEWAY", status=2)
    assert "token keys" in told
