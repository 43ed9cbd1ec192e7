"""Every variable that the service reads, and what the service makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from payment_service.config import values
from payment_service.config.access import AccessSettings
from payment_service.config.rules import SIMULATOR_KEY, broken
from payment_service.domain.money import CURRENCIES
from payment_service.domain.ports.policy import Policy
from payment_service.domain.quotas import quotas_of

SIMULATOR_PUBLISHABLE_KEY: Final = "pk_test_simulator"

Port = Annotated[int, Field(ge=0, le=65535)]
Names = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]
_YEAR: Final = 365 * 24 * 3600.0


class WrongSettings(Exception):
    """The environment is wrong; the sentences say how to fix it."""


class Settings(AccessSettings):
    """Every variable that the service reads. Durations are seconds. See ``.env.example``."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )
    #: The files of the secrets that were given as NAME_FILE, by their field's names.
    _secret_files: Mapping[str, Path] = PrivateAttr(default_factory=dict)

    environment: Literal["development", "production"] = "development"
    debug: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: None: console in development if a terminal reads it, else JSON.
    log_format: Literal["console", "json"] | None = None

    database_url: SecretStr | None = None
    #: What stands between this process and PostgreSQL. PgBouncer's session mode counts as none.
    database_pooler: Literal["none", "transaction"] = "none"
    #: The same database without the pooler: for LISTEN and for migrations.
    database_direct_url: SecretStr | None = None
    #: The certificates that vouch for the database: a PEM file, or `system`.
    database_ca_file: str = ""
    #: Which role the service runs as, if `migrate` runs as another one; it gets its grants.
    database_service_role: str = Field("", pattern="^[A-Za-z_][A-Za-z0-9_$-]{0,62}$|^$")
    database_write_connections: int = Field(12, ge=1, le=200)
    database_read_connections: int = Field(4, ge=1, le=200)
    #: For what reads a large part of the books: its own, so that it starves nobody.
    database_expensive_connections: int = Field(2, ge=1, le=20)
    #: How many connections all workers together may open: PostgreSQL's own limit of 100, less the
    #: three that it keeps for its administrators.
    database_connections: int = Field(97, ge=1, le=100_000)

    stripe_secret_key: SecretStr | None = None
    stripe_publishable_key: str = ""
    stripe_webhook_secret: Secrets = ()
    stripe_connect_webhook_secret: Secrets = ()
    #: Which version of Stripe's API creates and reads connected accounts.
    stripe_accounts_api: Literal["v1", "v2"] = "v2"
    stripe_api_base: str = ""
    stripe_simulator_port: Port = 12111
    stripe_timeout: float = Field(15.0, gt=0, le=120)
    stripe_connections: int = Field(256, ge=1, le=10_000)

    grpc_host: str = "127.0.0.1"
    grpc_port: Port = 50051
    #: How many processes serve: on GRPC_PORT and the ports after it.
    workers: int = Field(1, ge=1, le=64)
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    reflection: bool = True
    #: Where traces are sent (OTLP over gRPC), or "" for none. The SDK reads its other variables.
    otel_exporter_otlp_endpoint: str = ""
    shutdown_grace: float = Field(20.0, ge=0, le=3600)
    #: How many streams of WatchEvents may be open.
    event_watchers: int = Field(50, ge=0, le=500)
    #: Ports of the processes beside this one, to find out that two are the same. They are looked
    #: at only if the environment names them: on another machine they take none of ours.
    gateway_port: Port = 8005
    gateway_metrics_port: Port = 0
    console_port: Port = 8006
    relay_metrics_port: Port = 9466

    #: How many calls of each class may be in progress; half as many more may wait.
    money_calls: int = Field(64, ge=1, le=5000)
    read_calls: int = Field(64, ge=1, le=5000)
    stripe_read_calls: int = Field(64, ge=1, le=5000)
    webhook_calls: int = Field(64, ge=1, le=5000)
    expensive_calls: int = Field(16, ge=1, le=1000)
    call_queue_seconds: float = Field(0.5, ge=0, le=10)
    #: How many calls that change something a caller may make: a second (0: any), and at once.
    money_rate: float = Field(300.0, ge=0, le=100_000)
    money_burst: int = Field(600, ge=1, le=1_000_000)
    #: The same for single callers: caller=rate/burst.
    money_quotas: Names = ()

    default_commission_basis_points: int = Field(1000, ge=0, le=9999)
    default_currency: str = "USD"
    default_country: str = Field("US", pattern="^[A-Z]{2}$")
    platform_country: str = Field("US", pattern="^[A-Z]{2}$")
    platform_settlement_currencies: Names = ("USD",)
    #: Lowers Stripe's own limits; it cannot raise them.
    maximum_charge_minor_units: int | None = Field(None, ge=1)
    payment_window: float = Field(24 * 3600.0, gt=0, le=_YEAR)
    #: Whether longer authorizations are asked for. Stripe refuses every payment of a platform that
    #: it has not made eligible.
    extended_authorization: Literal["never", "if_available"] = "never"
    #: For how long a balance transaction is waited for of what Stripe calls final.
    line_patience: float = Field(300.0, ge=10, le=24 * 3600.0)
    #: How long before Stripe ends a hold its deadline's action is taken, and how long before a
    #: deadline a warning is recorded.
    deadline_margin: float = Field(12 * 3600.0, ge=0, le=6 * 24 * 3600.0)
    deadline_warning: float = Field(48 * 3600.0, ge=0, le=_YEAR)
    #: What an early fraud warning does: it keeps the payment from being captured, or only alerts.
    fraud_warning: Literal["freeze", "alert"] = "freeze"
    #: For how long applied and ignored events of Stripe are kept. Stripe lists its events for 30
    #: days, and the poller must not store one again.
    webhook_event_retention: float = Field(35 * 24 * 3600.0, ge=31 * 24 * 3600.0, le=100 * _YEAR)
    #: For how long a repeated idempotency key gets its answer; after it, a refusal.
    answer_retention: float = Field(400 * 24 * 3600.0, ge=7 * 24 * 3600.0, le=100 * _YEAR)
    #: The most that an adjustment may move in one currency, and for how long it can be approved.
    adjustment_limit_minor_units: int = Field(1_000_000, ge=1)
    adjustment_life: float = Field(7 * 24 * 3600.0, ge=60, le=90 * 24 * 3600.0)
    #: Lets the proposer approve. For development alone, where nobody is authenticated.
    adjustments_by_one_person: bool = False
    #: The most that one person may write off of an expert's debt within 30 days.
    write_off_limit_minor_units: int = Field(50_000, ge=0)
    #: How often the heads of the audit trail are exported, and the key that signs them.
    heads_interval: float = Field(3600.0, ge=60, le=24 * 3600.0)
    heads_signing_key_file: Path | None = None
    gateway_public_url: str = "http://127.0.0.1:8005"
    allowed_origins: Names = ()

    @field_validator(
        "platform_settlement_currencies", "allowed_origins", "money_quotas", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("stripe_webhook_secret", "stripe_connect_webhook_secret", mode="before")
    @classmethod
    def _webhook_secrets(cls, value: object) -> object:
        return values.webhook_secrets(value) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("default_currency")
    @classmethod
    def _currency(cls, value: str) -> str:
        if value.upper() not in CURRENCIES:
            raise ValueError("must be a currency that Stripe charges, such as USD")
        return value.upper()

    @field_validator("platform_settlement_currencies")
    @classmethod
    def _currencies(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        upper = tuple(value.upper() for value in values)
        if not upper or not CURRENCIES.issuperset(upper):
            raise ValueError("must be currencies that Stripe charges, such as USD,EUR")
        return upper

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            values.database_address(value.get_secret_value())
        return value

    @field_validator("stripe_secret_key")
    @classmethod
    def _secret_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            values.secret_key(value.get_secret_value())
        return value

    @field_validator("stripe_publishable_key")
    @classmethod
    def _publishable_key(cls, value: str) -> str:
        return values.publishable_key(value)

    @field_validator("gateway_public_url", "stripe_api_base", "otel_exporter_otlp_endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        if value:
            values.web_address(value)
        return value.rstrip("/")

    @field_validator("grpc_host", "metrics_host")
    @classmethod
    def _listener(cls, value: str) -> str:
        return values.listener(value)

    @field_validator("money_quotas")
    @classmethod
    def _quotas(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        quotas_of(texts)
        return texts

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(values.origin, sites))

    @model_validator(mode="after")
    def _contradictions(self) -> Settings:
        if faults := broken(self):
            raise ValueError("\n".join(faults))
        return self

    @classmethod
    def secret_fields(cls) -> tuple[str, ...]:
        """Returns the fields that hold secrets. Each can be given by a file, as NAME_FILE."""
        return tuple(
            name
            for name, field in cls.model_fields.items()
            if field.annotation in (SecretStr, SecretStr | None, tuple[SecretStr, ...])
        )

    def read_from(self, files: Mapping[str, Path]) -> None:
        """Remembers which file each secret was read from, so that it can be read again."""
        self._secret_files = dict(files)

    @property
    def secret_files(self) -> Mapping[str, Path]:
        """Returns the files that secrets were read from, by their field's names."""
        return self._secret_files

    @property
    def effective_auth(self) -> Literal["jwt", "mtls", "off"]:
        """Returns AUTH, or off if it is not set, which is accepted on loopback only."""
        return self.auth_of(self.grpc_host)

    @property
    def effective_log_level(self) -> str:
        """Returns LOG_LEVEL, or DEBUG if it is not set and DEBUG=true."""
        return (
            "DEBUG" if self.debug and "log_level" not in self.model_fields_set else self.log_level
        )

    @property
    def effective_log_format(self) -> str | None:
        """Returns LOG_FORMAT, or what DEBUG and ENVIRONMENT imply; None asks the terminal."""
        if self.log_format is not None:
            return self.log_format
        if self.environment == "production":
            return "json"
        return "console" if self.debug else None

    @property
    def is_live(self) -> bool:
        """Returns whether real money moves."""
        key = self.stripe_secret_key.get_secret_value() if self.stripe_secret_key else ""
        return key.startswith(("sk_live_", "rk_live_"))

    @property
    def is_simulated(self) -> bool:
        """Returns whether Stripe is the simulator."""
        key = self.stripe_secret_key
        return key is None or key.get_secret_value() == SIMULATOR_KEY

    @property
    def effective_stripe_key(self) -> str:
        """Returns the key, or the simulator's key if none is set."""
        return (
            self.stripe_secret_key.get_secret_value() if self.stripe_secret_key else SIMULATOR_KEY
        )

    @property
    def effective_api_base(self) -> str | None:
        """Returns the address of Stripe's API; None means Stripe's own."""
        if self.stripe_api_base:
            return self.stripe_api_base
        return f"http://127.0.0.1:{self.stripe_simulator_port}" if self.is_simulated else None

    @property
    def is_pooled(self) -> bool:
        """Returns whether DATABASE_URL is a pooler that gives a session to each transaction."""
        return self.database_pooler == "transaction"

    @property
    def effective_direct_url(self) -> str:
        """Returns DATABASE_DIRECT_URL with DATABASE_CA_FILE, or ""."""
        if self.database_direct_url is None:
            return ""
        return values.verified(self.database_direct_url.get_secret_value(), self.database_ca_file)

    @property
    def simulator_port(self) -> int:
        """Returns the simulator's port, or 0 if it is not used."""
        return self.stripe_simulator_port if self.is_simulated and not self.stripe_api_base else 0

    @property
    def connections_of_a_worker(self) -> int:
        """Returns how many connections to the database one worker may open, LISTEN included."""
        expensive = 2 * self.database_expensive_connections
        return self.database_write_connections + self.database_read_connections + expensive + 1

    def of_worker(self, number: int) -> Settings:
        """Returns the settings of one worker: all are the same except the port."""
        return self.model_copy(update={"grpc_port": self.grpc_port + number})

    @property
    def policy(self) -> Policy:
        """Returns the settings that rules depend on."""
        return Policy(
            default_commission_basis_points=self.default_commission_basis_points,
            default_currency=self.default_currency,
            default_country=self.default_country,
            platform_country=self.platform_country,
            maximum_charge_minor_units=self.maximum_charge_minor_units,
            settlement_currencies=frozenset(self.platform_settlement_currencies),
            publishable_key=self.stripe_publishable_key or SIMULATOR_PUBLISHABLE_KEY,
            gateway_public_url=self.gateway_public_url,
            allowed_origins=frozenset(self.allowed_origins),
            payment_window=self.payment_window,
            line_patience=self.line_patience,
            holding_limit=holding_limit(self.platform_country),
            extended_authorization=self.extended_authorization == "if_available",
            webhook_event_retention=self.webhook_event_retention,
            answer_retention=self.answer_retention,
            adjustment_limit_minor_units=self.adjustment_limit_minor_units,
            adjustment_life=self.adjustment_life,
            heads_seconds=self.heads_interval,
            adjustments_by_one_person=self.adjustments_by_one_person,
            write_off_limit_minor_units=self.write_off_limit_minor_units,
            freeze_on_fraud_warning=self.fraud_warning == "freeze",
            deadline_margin=self.deadline_margin,
            deadline_warning=self.deadline_warning,
            # It is renewed while its holder lives, so it may be shorter than a call to Stripe.
            lease=min(6.0, 2 * self.stripe_timeout),
        )

    def require_database_url(self) -> str:
        """Returns DATABASE_URL with DATABASE_CA_FILE. Raises :class:`WrongSettings` without it."""
        if self.database_url is None:
            raise WrongSettings(
                "DATABASE_URL is not set: give the address of a PostgreSQL, such as "
                "postgresql://user:password@host:5432/payments, or use `make run`, which brings "
                "one along"
            )
        return values.verified(self.database_url.get_secret_value(), self.database_ca_file)


#: For how many days the platform may hold money in other countries than these 90 (Stripe's rule).
_HOLDING_DAYS: Final = {"US": 2 * 365, "TH": 10}


def holding_limit(platform_country: str) -> float:
    """Returns for how many seconds the platform may hold money."""
    return _HOLDING_DAYS.get(platform_country, 90) * 24 * 3600.0
