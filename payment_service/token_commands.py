"""``python -m payment_service token …``: keys and tokens for development."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from payment_service.adapters.identity.files import WrongFile
from payment_service.adapters.identity.issuing import (
    KEY_SET,
    PRIVATE_KEY,
    issue_token,
    make_keys,
    write_whole,
)
from payment_service.domain.caller import Caller, Role

#: The issuer of tokens that were made here.
DEVELOPMENT: Final = "development"
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONGEST: Final = 24 * 3600

tokens = typer.Typer(
    help="Make keys and tokens for development, as an identity provider does in production.",
    no_args_is_help=True,
)

Directory = Annotated[Path, typer.Option(help=f"Where {PRIVATE_KEY} and {KEY_SET} are.")]


@tokens.command("keys")
def make(directory: Directory = Path(".data/access")) -> None:
    """Make a signing key and add it to the key set; the former two stay in the set."""
    try:
        key_id = make_keys(directory)
    except OSError as error:
        _refuse(f"{directory} cannot be written ({type(error).__name__})")
    typer.echo(f"key {key_id}: {directory / PRIVATE_KEY} signs, {directory / KEY_SET} is public")
    typer.echo(f"start the service with AUTH=jwt AUTH_JWKS={directory / KEY_SET}")
    typer.echo(f"AUTH_ISSUER={DEVELOPMENT}")


@tokens.command("issue")
def issue(
    name: Annotated[str, typer.Option(help="The caller's name, such as gig-service.")],
    role: Annotated[list[Role], typer.Option(help="A role of the caller; may be repeated.")],
    act_for: Annotated[str, typer.Option(help="The only user for whom the caller acts.")] = "",
    lifetime: Annotated[str, typer.Option(help="Such as 15m or 1h; at most 24h.")] = "1h",
    issuer: Annotated[str, typer.Option(envvar="AUTH_ISSUER", help="The iss.")] = DEVELOPMENT,
    audience: Annotated[
        str, typer.Option(envvar="AUTH_AUDIENCE", help="The aud.")
    ] = "payments.marketplace",
    output: Annotated[
        Path | None, typer.Option(help="Write the token to this file, which only its owner reads.")
    ] = None,
    directory: Directory = Path(".data/access"),
) -> None:
    """Print a token that the service takes, if its key set is the one beside the signing key."""
    caller = Caller(name, frozenset(role), act_for)
    try:
        token = issue_token(
            directory, caller, issuer=issuer, audience=audience, lifetime=_seconds(lifetime)
        )
        if output is not None:
            write_whole(output, token.encode(), 0o600)
    except WrongFile as fault:
        _refuse(str(fault))
    except OSError as error:
        _refuse(f"{output} cannot be written ({type(error).__name__})")
    if output is None:
        typer.echo(token)


def _seconds(lifetime: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([smh]?)", lifetime)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST:
        _refuse(f"--lifetime {lifetime}: give a time such as 900s, 15m or 1h, at most 24h")
    return seconds


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    # For dev.access: the other commands take five times as long to import.
    tokens(prog_name="python -m payment_service token")
