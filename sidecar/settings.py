"""Settings of a process that calls the core, read once from the environment.

Every field's description is the sentence that corrects a wrong value: it ends the message with
which a start is refused.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from marketplace.payments.channel import target_of

_HOST_AND_PORT: Final = re.compile(
    r"(?:dns:///)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})(?:-[0-9]{1,5})?", re.ASCII
)
#: What only the core may know. An intruder in another process must find none of these.
_SECRETS_OF_THE_CORE: Final = (
    "DATABASE_URL",
    "DATABASE_DIRECT_URL",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_CONNECT_WEBHOOK_SECRET",
)
#: How alike a variable must be to count as a misspelt one of ours.
_ALIKE: Final = 0.9


class RefusedSettings(Exception):
    """The environment holds values with which the process must not start."""


class CoreSettings(BaseSettings):
    """Where the core is, and how the process logs; an empty variable counts as unset."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")

    core_address: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1:50051",),
        description="host:port of the core, or several separated by commas and then each with an "
        "IP address for its host, for example 127.0.0.1:50051,127.0.0.1:50052 or, for the workers "
        "of one machine, 127.0.0.1:50051-50052",
    )
    core_tls_ca_file: Path | None = Field(
        default=None,
        description="the file (PEM) of the authority that signs the core's certificate",
    )
    core_tls_server_name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="the name in the core's certificate, for example payments.internal",
    )
    core_tls_by_mesh: bool = Field(default=False, description="true or false")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR"
    )
    log_format: Literal["console", "json"] | None = Field(
        default=None, description="console or json"
    )
    environment: Literal["development", "production"] = Field(
        default="development", description="development or production"
    )

    @field_validator("core_address", mode="before")
    @classmethod
    def _split_addresses(cls, value: object) -> object:
        return split(value) if isinstance(value, str) else value

    @field_validator("core_address")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no address")
        for address in value:
            match = _HOST_AND_PORT.fullmatch(address)
            if match is None or not 0 < int(match[1]) < 65536:
                raise ValueError("not host:port")
        target_of(value)  # raises ValueError for what the channel could not be made of
        return value

    def check_files(self) -> None:
        """Reads the files that the settings name. Raises RefusedSettings if one cannot be used."""


S = TypeVar("S", bound=CoreSettings)


def load(kind: type[S], whose: str, prefix: str = "") -> S:
    """Reads the environment; raises RefusedSettings with one sentence for each fault.

    ``whose`` ends the sentence about a secret that the process has no use for. Only variables that
    begin with ``prefix`` count as misspelt ones.
    """
    faults = _misspelt(kind, prefix)
    try:
        settings = kind()
    except ValidationError as error:
        faults += [_sentence(kind, dict(fault)) for fault in error.errors(include_url=False)]
        raise RefusedSettings(" ".join(faults)) from None
    settings.check_files()
    if settings.environment == "production":
        faults += _secrets_of_the_core(whose)
    if faults:
        raise RefusedSettings(" ".join(faults))
    return settings


def split(text: str) -> tuple[str, ...]:
    """Returns the parts between commas that are not empty."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _given(environment: Mapping[str, str]) -> set[str]:
    return {name.upper() for name, value in environment.items() if value}


def _misspelt(kind: type[CoreSettings], prefix: str) -> list[str]:
    """Returns a sentence for each variable that resembles one of ours and is none."""
    ours = {name.upper() for name in kind.model_fields}
    return [
        f"{name} is no setting: did you mean {meant[0]}? If not, unset it."
        for name in sorted(_given(os.environ) - ours)
        if name.startswith(prefix) and (meant := difflib.get_close_matches(name, ours, 1, _ALIKE))
    ]


def _secrets_of_the_core(whose: str) -> list[str]:
    """Returns a sentence for each secret that the process was given and has no use for."""
    given = _given(os.environ)
    return [
        f"{name} is a secret of the core's: take it out of {whose}."
        for name in _SECRETS_OF_THE_CORE
        if {name, f"{name}_FILE"} & given
    ]


def _sentence(kind: type[CoreSettings], fault: dict[str, object]) -> str:
    location = fault["loc"]
    if not isinstance(location, tuple) or not location:
        return str(fault["msg"]).removeprefix("Value error, ") + "."
    name = str(location[0])
    correction = kind.model_fields[name].description
    value = str(fault["input"])
    # What stands before an @ is a user and a password, which belong into no log.
    shown = "…" if "@" in value else value if len(value) <= 80 else value[:80] + "…"
    return f'{name.upper()}="{shown}" cannot be used: it must be {correction}.'
