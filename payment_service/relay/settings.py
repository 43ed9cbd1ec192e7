"""The relay's settings. Its credentials for the service have the names that the gateway's have."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from grpc import aio
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from marketplace.payments.channel import connect, is_loopback, target_of
from marketplace.payments.credentials import Tls, Token, WrongCertificate
from payment_service.config import values
from payment_service.config.settings import WrongSettings
from payment_service.config.sources import read_secret
from payment_service.relay.endpoints import Endpoint, WrongEndpoints, read_endpoints

#: How alike a variable must be to count as a misspelt one of ours.
_ALIKE: Final = 0.9
_SECRETS: Final = ("relay_database_url", "relay_nats_url")


class RelaySettings(BaseSettings):
    """What the environment says; an empty variable counts as unset."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")

    environment: Literal["development", "production"] = "development"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] | None = None

    core_address: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1:50051",)
    core_token_file: Path | None = None
    core_tls_ca_file: Path | None = None
    core_tls_certificate_file: Path | None = None
    core_tls_key_file: Path | None = None
    core_tls_server_name: str = ""
    core_tls_by_mesh: bool = False

    #: Where the relay keeps its place, as a role that owns the schema `payments_relay`.
    relay_database_url: SecretStr | None = None
    database_ca_file: str = ""
    #: The `source` of the CloudEvents.
    relay_source: str = Field(default="/payments", min_length=1, max_length=200, pattern=r"^\S+$")
    #: Empty: nothing is published to NATS.
    relay_nats_url: SecretStr | None = None
    relay_nats_stream: str = Field(default="PAYMENTS", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    relay_nats_ca_file: Path | None = None
    relay_nats_certificate_file: Path | None = None
    relay_nats_key_file: Path | None = None
    #: Empty: no webhooks.
    relay_endpoints_file: Path | None = None
    #: How long a webhook is tried before it is parked, or its endpoint disabled.
    relay_retry_seconds: float = Field(default=3 * 86400.0, ge=1, le=30 * 86400)
    relay_metrics_host: str = "127.0.0.1"
    relay_metrics_port: int = Field(default=9466, ge=0, le=65535)

    @field_validator("core_address", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("core_address")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        target_of(value)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("relay_database_url")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            values.database_address(value.get_secret_value())
        return value

    @field_validator("relay_nats_url")
    @classmethod
    def _nats(cls, value: SecretStr | None) -> SecretStr | None:
        for server in _servers(value):
            parts = urlsplit(server)
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                raise ValueError(
                    "must be addresses of NATS servers, separated by commas, such as nats://nats:4222"
                )
        return value

    @model_validator(mode="after")
    def _agree(self) -> RelaySettings:
        if (self.relay_nats_certificate_file is None) != (self.relay_nats_key_file is None):
            raise ValueError(
                "RELAY_NATS_CERTIFICATE_FILE and RELAY_NATS_KEY_FILE belong together: set both"
            )
        if self.relay_nats_certificate_file is not None and self.relay_nats_ca_file is None:
            raise ValueError("RELAY_NATS_CERTIFICATE_FILE needs RELAY_NATS_CA_FILE beside it")
        if self.is_production:
            self._agree_with_production()
        return self

    def _agree_with_production(self) -> None:
        plain = [one for one in self.nats_servers() if not _is_encrypted(one)]
        if plain and self.relay_nats_ca_file is None and not self.core_tls_by_mesh:
            raise ValueError(
                "RELAY_NATS_URL: events and password would be sent in plain text: use tls://, or "
                "CORE_TLS_BY_MESH=true if a service mesh encrypts every connection"
            )
        if self.relay_database_url is not None:
            address = values.database_address(self.require_database_url())
            if not (address.is_local or address.is_verified):
                raise ValueError(
                    "RELAY_DATABASE_URL: nobody proves that it is our database: add "
                    "sslmode=verify-full to it, or set DATABASE_CA_FILE"
                )

    @property
    def is_production(self) -> bool:
        """Returns whether what suits only development is refused."""
        return self.environment == "production"

    @property
    def effective_log_format(self) -> str | None:
        """Returns LOG_FORMAT, or what ENVIRONMENT implies; None asks the terminal."""
        return self.log_format or ("json" if self.is_production else None)

    def nats_servers(self) -> list[str]:
        """Returns the addresses of RELAY_NATS_URL."""
        return _servers(self.relay_nats_url)

    def require_database_url(self) -> str:
        """Returns RELAY_DATABASE_URL. Raises WrongSettings without it."""
        if self.relay_database_url is None:
            raise WrongSettings(
                "RELAY_DATABASE_URL is not set: give the PostgreSQL where the relay keeps its "
                "place, as a role that owns the schema payments_relay (docs/runbook/relay.md)"
            )
        return values.verified(self.relay_database_url.get_secret_value(), self.database_ca_file)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Reads RELAY_ENDPOINTS_FILE. Raises WrongSettings with a line for each fault."""
        if self.relay_endpoints_file is None:
            return ()
        try:
            return read_endpoints(self.relay_endpoints_file, production=self.is_production)
        except WrongEndpoints as fault:
            raise WrongSettings(f"RELAY_ENDPOINTS_FILE: {fault}") from None

    def open_channel(self) -> aio.Channel:
        """Opens the channel to the service. Raises WrongSettings if its files do not fit."""
        try:
            return connect(
                *self.core_address,
                tls=self._tls(),
                token=Token(self.core_token_file) if self.core_token_file else None,
                encrypted_by_mesh=self.core_tls_by_mesh,
            )
        except (WrongCertificate, ValueError) as fault:
            raise WrongSettings(f"CORE_TLS_CA_FILE and its companions: {fault}") from None
        except OSError as error:
            raise WrongSettings(
                f"CORE_TLS_CA_FILE and its companions: {error.filename} cannot be read"
            ) from None

    def _tls(self) -> Tls | None:
        if self.core_tls_ca_file is None:
            return None
        return Tls(
            self.core_tls_ca_file,
            self.core_tls_certificate_file,
            self.core_tls_key_file,
            self.core_tls_server_name,
        )


def _misspelt(environment: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each variable that resembles one of the relay's and is none.

    Not for every RELAY_…: Kubernetes sets such variables for a service of that name.
    """
    ours = {name.upper() for name in RelaySettings.model_fields}
    ours |= {f"{field.upper()}_FILE" for field in _SECRETS}
    return [
        f"{name} is no setting: did you mean {meant[0]}? If not, unset it"
        for name in sorted(environment.keys() - ours)
        if name.startswith("RELAY_") and environment[name]
        if (meant := difflib.get_close_matches(name, ours, 1, _ALIKE))
    ]


def _servers(value: SecretStr | None) -> list[str]:
    listed = value.get_secret_value().split(",") if value is not None else []
    return [server.strip() for server in listed if server.strip()]


def _is_encrypted(server: str) -> bool:
    parts = urlsplit(server)
    return parts.scheme == "tls" or is_loopback(f"{parts.hostname}:{parts.port or 4222}")


def load_relay_settings(environment: Mapping[str, str] = os.environ) -> RelaySettings:
    """Reads the environment. Raises WrongSettings with a sentence for every fault."""
    given, faults = {}, _misspelt(environment)
    for field in _SECRETS:
        name = field.upper()
        path = environment.get(f"{name}_FILE", "")
        if not path:
            continue
        if environment.get(name):
            faults.append(f"{name} and {name}_FILE are both set: unset one of the two")
            continue
        try:
            given[field] = read_secret(Path(path))
        except ValueError as fault:
            faults.append(f"{name}_FILE: {path} {fault}")
    try:
        settings = RelaySettings(**given)  # type: ignore[arg-type]  # texts, which pydantic converts
    except ValidationError as error:
        for one in error.errors(include_input=False, include_url=False, include_context=False):
            name = "_".join(str(part) for part in one["loc"][:1]).upper()
            text = one["msg"].removeprefix("Value error, ")
            faults.append(f"{name}: {text}" if name else text)
        raise WrongSettings("\n".join(faults)) from None
    if faults:
        raise WrongSettings("\n".join(faults))
    return settings
