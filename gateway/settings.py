"""The gateway's settings, read once from the environment and never changed after.

Every field's description is the sentence that corrects a wrong value: it ends the message with
which a start is refused.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from gateway.addresses import Network, parse_network
from gateway.urls import parse_origin, parse_web_address
from marketplace.payments.channel import is_loopback
from sidecar.settings import CoreSettings, RefusedSettings, load, split

Seconds = Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)]


class Settings(CoreSettings):
    """What the environment sets; an empty variable counts as unset."""

    gateway_host: str = Field(
        default="127.0.0.1",
        pattern=r"^[A-Za-z0-9.:_-]+$",
        description="the name or address of one interface, for example 127.0.0.1",
    )
    gateway_port: int = Field(
        default=8005,
        ge=0,
        le=65535,
        description="a port from 1 to 65535, or 0 for any free one, for example 8005",
    )
    gateway_public_url: str = Field(
        default="http://127.0.0.1:8005",
        description="the gateway's address as browsers see it, for example https://pay.example.com",
    )
    gateway_metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="a port from 1 to 65535 other than GATEWAY_PORT, for example 9465, "
        "or 0 for no metrics",
    )
    core_token_file: Path | None = Field(
        default=None,
        description="the file of a token with the role GATEWAY, for example /var/run/token",
    )
    core_tls_certificate_file: Path | None = Field(
        default=None, description="the file (PEM) of the gateway's own certificate"
    )
    core_tls_key_file: Path | None = Field(
        default=None, description="the file (PEM) of the key of CORE_TLS_CERTIFICATE_FILE"
    )
    otel_exporter_otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^\s@]+)?$",
        description="the address of a collector that takes OTLP over gRPC, for example "
        "http://127.0.0.1:4317",
    )
    allowed_origins: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(),
        description="origins separated by commas, each http:// or https:// with a host and "
        "perhaps a port, without a path and without `*`, for example https://app.example.com",
    )
    gateway_stripe_addresses: Annotated[frozenset[Network], NoDecode] = Field(
        default=frozenset(),
        description="IP addresses or ranges separated by commas, those from which Stripe sends "
        "webhooks, for example 192.0.2.7,198.51.100.0/28, or empty for any address",
    )
    gateway_stripe_addresses_file: Path | None = Field(
        default=None,
        description="a file of IP addresses or ranges, one in a line, those from which Stripe "
        "sends webhooks, for example /etc/gateway/ips_webhooks.txt",
    )
    gateway_trusted_proxies: Annotated[frozenset[Network], NoDecode] = Field(
        default=frozenset(),
        description="IP addresses or ranges separated by commas, those of the proxies in front "
        "of the gateway, for example 10.0.0.0/24",
    )
    debug: bool = Field(default=False, description="true or false")

    # The limits against the internet. The defaults suit Stripe: an event shows a whole object, with
    # metadata of 27 kB in each of its parts, and Stripe names no limit for it.
    gateway_max_body_bytes: int = Field(
        default=4_194_304,
        ge=1024,
        le=4_194_304,
        description="a number of bytes from 1024 to 4194304",
    )
    gateway_max_line_bytes: int = Field(
        default=4096, ge=512, le=65536, description="a number of bytes from 512 to 65536"
    )
    gateway_max_field_bytes: int = Field(
        default=4096, ge=512, le=65536, description="a number of bytes from 512 to 65536"
    )
    gateway_max_headers: int = Field(
        default=48, ge=16, le=1024, description="a number of headers from 16 to 1024"
    )
    gateway_max_header_bytes: int = Field(
        default=16_384, ge=2048, le=1_048_576, description="a number of bytes from 2048 to 1048576"
    )
    gateway_body_timeout_seconds: Seconds = Field(
        default=5.0, description="a number of seconds above 0, at most 300"
    )
    # Also how long a connection may take over its request line and headers (see connections.py).
    gateway_keepalive_seconds: Seconds = Field(
        default=15.0, description="a number of seconds above 0, at most 300"
    )
    gateway_max_connections: int = Field(
        default=256, ge=1, le=100_000, description="a number of connections from 1 to 100000"
    )
    gateway_max_forwards: int = Field(
        default=64, ge=1, le=10_000, description="a number of calls from 1 to 10000"
    )
    gateway_max_page_calls: int = Field(
        default=32, ge=1, le=10_000, description="a number of calls from 1 to 10000"
    )
    gateway_page_calls_per_minute: int = Field(
        default=30, ge=1, le=10_000, description="a number of calls of one page from 1 to 10000"
    )
    # Our own deadlines towards the core.
    gateway_ingest_timeout_seconds: Seconds = Field(
        default=8.0, description="a number of seconds above 0, at most 300"
    )
    gateway_page_timeout_seconds: Seconds = Field(
        default=15.0, description="a number of seconds above 0, at most 300"
    )
    gateway_shutdown_seconds: Seconds = Field(
        default=10.0, description="a number of seconds above 0, at most 300"
    )

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return frozenset(split(value)) if isinstance(value, str) else value

    @field_validator("allowed_origins")
    @classmethod
    def _normalize_origins(cls, value: frozenset[str]) -> frozenset[str]:
        origins = set()
        for text in value:
            origin = parse_origin(text)
            if origin is None:
                raise ValueError("not an origin")
            origins.add(origin)
        return frozenset(origins)

    @field_validator("gateway_stripe_addresses", "gateway_trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return _networks(split(value)) if isinstance(value, str) else value

    @field_validator("gateway_public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        if parse_web_address(value) is None:
            raise ValueError("not a web address")
        return value

    @field_validator("log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.debug and self.environment == "production":
            raise ValueError(
                "DEBUG=true cannot be used with ENVIRONMENT=production: unset one of the two"
            )
        if self.gateway_stripe_addresses and self.gateway_stripe_addresses_file is not None:
            raise ValueError(
                "GATEWAY_STRIPE_ADDRESSES and GATEWAY_STRIPE_ADDRESSES_FILE say the same: set one"
            )
        for network in self.gateway_trusted_proxies:
            if not network.prefixlen:
                raise ValueError(
                    f"GATEWAY_TRUSTED_PROXIES={network} is every address, so anybody could claim "
                    "to be Stripe: name the proxies' own addresses"
                )
        for fault in self._core_faults():
            raise ValueError(fault)
        if self.gateway_metrics_port and self.gateway_metrics_port == self.gateway_port:
            raise ValueError(
                f"GATEWAY_METRICS_PORT and GATEWAY_PORT are both {self.gateway_port}: metrics must "
                "not be on the public port, so choose another one"
            )
        if self.environment == "production":
            self._agree_with_production()
        return self

    def _agree_with_production(self) -> None:
        plain = sorted(site for site in self.allowed_origins if not site.startswith("https://"))
        if plain:
            raise ValueError(
                f"ALLOWED_ORIGINS: {', '.join(plain)} is not https, so anybody between could alter "
                "its pages: ENVIRONMENT=production needs https origins"
            )
        if not self.gateway_public_url.startswith("https://"):
            raise ValueError(
                f"GATEWAY_PUBLIC_URL={self.gateway_public_url} is not https, so its links would "
                "cross the internet in plain text: ENVIRONMENT=production needs the https address "
                "of the gateway, the same one that the core has"
            )
        if not self.gateway_port:
            raise ValueError(
                "GATEWAY_PORT=0 is any free port, where nobody would find the gateway: set a port"
            )

    def _core_faults(self) -> Iterator[str]:
        """Yields what is wrong with the credentials for the core."""
        tls = self.core_tls_ca_file is not None
        if (self.core_tls_certificate_file is None) != (self.core_tls_key_file is None):
            yield "CORE_TLS_CERTIFICATE_FILE and CORE_TLS_KEY_FILE belong together: set both"
        if not tls and (self.core_tls_certificate_file is not None or self.core_tls_server_name):
            yield "a certificate or a server name needs CORE_TLS_CA_FILE beside it"
        if tls and self.core_tls_by_mesh:
            yield (
                "CORE_TLS_CA_FILE and CORE_TLS_BY_MESH=true exclude each other: either the "
                "gateway encrypts or the mesh does"
            )
        local = all(is_loopback(address) for address in self.core_address)
        if self.core_token_file is not None and not (tls or self.core_tls_by_mesh or local):
            yield (
                "CORE_TOKEN_FILE would be sent to CORE_ADDRESS in plain text: set "
                "CORE_TLS_CA_FILE, or CORE_TLS_BY_MESH=true if a service mesh encrypts it"
            )

    def check_files(self) -> None:
        self.stripe_networks()

    def stripe_networks(self) -> frozenset[Network]:
        """From where webhooks are taken; empty for anywhere.

        Raises RefusedSettings for a file that cannot be used: an empty one would let all pass.
        """
        file = self.gateway_stripe_addresses_file
        if file is None:
            return self.gateway_stripe_addresses
        name = "GATEWAY_STRIPE_ADDRESSES_FILE"
        try:
            lines = file.read_text("utf-8").splitlines()
            found = _networks([line.strip() for line in lines if line.strip()])
        except OSError as error:
            raise RefusedSettings(f"{name}: {file} cannot be read ({error.strerror}).") from None
        except ValueError as error:
            raise RefusedSettings(f"{name}: {file} holds {error}.") from None
        if not found:
            raise RefusedSettings(f"{name}: {file} is empty, so no webhook would be taken.")
        return found

    @property
    def effective_log_level(self) -> str:
        """DEBUG=true speaks up unless LOG_LEVEL was given."""
        return (
            "DEBUG" if self.debug and "log_level" not in self.model_fields_set else self.log_level
        )

    @property
    def effective_log_format(self) -> str | None:
        """LOG_FORMAT, or what DEBUG and ENVIRONMENT imply; None leaves it to the terminal."""
        if self.log_format is not None:
            return self.log_format
        if self.environment == "production":
            return "json"
        return "console" if self.debug else None


def load_settings() -> Settings:
    """Reads the environment; raises RefusedSettings with one sentence for each fault."""
    return load(Settings, "the gateway's environment, which faces the internet")


def _networks(texts: Iterable[str]) -> frozenset[Network]:
    found = set()
    for number, text in enumerate(texts, 1):
        network = parse_network(text)
        if network is None:
            raise ValueError(f"no IP address or range as entry {number}")
        found.add(network)
    return frozenset(found)
