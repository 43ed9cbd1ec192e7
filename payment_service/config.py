"""The environment as frozen settings. A wrong value is refused with a sentence how to fix it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from payment_service.domain.money import CURRENCIES
from payment_service.domain.ports.policy import Policy

SIMULATOR_KEY: Final = "sk_test_simulator"
SIMULATOR_PUBLISHABLE_KEY: Final = "pk_test_simulator"

Port = Annotated[int, Field(ge=0, le=65535)]
Names = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]


class WrongSettings(Exception):
    """The environment is wrong; the sentences say how to fix it."""


class Settings(BaseSettings):
    """Every variable that the service reads. Durations are seconds. See ``.env.example``."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

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
    database_write_threads: int = Field(12, ge=1, le=200)
    database_read_threads: int = Field(4, ge=1, le=200)

    stripe_secret_key: SecretStr | None = None
    stripe_publishable_key: str = ""
    stripe_webhook_secret: Secrets = ()
    stripe_connect_webhook_secret: Secrets = ()
    #: Which version of Stripe's API creates and reads connected accounts.
    stripe_accounts_api: Literal["v1", "v2"] = "v2"
    stripe_api_base: str = ""
    stripe_simulator_port: Port = 12111
    stripe_timeout: float = Field(15.0, gt=0, le=120)
    stripe_connections: int = Field(256, ge=1)

    grpc_host: str = "127.0.0.1"
    grpc_port: Port = 50051
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    reflection: bool = True
    shutdown_grace: float = Field(20.0, ge=0)
    #: How many streams of WatchEvents may be open.
    event_watchers: int = Field(50, ge=0, le=500)

    default_commission_basis_points: int = Field(1000, ge=0, le=9999)
    default_currency: str = "USD"
    default_country: str = Field("US", pattern="^[A-Z]{2}$")
    platform_country: str = Field("US", pattern="^[A-Z]{2}$")
    platform_settlement_currencies: Names = ("USD",)
    #: Lowers Stripe's own limits; it cannot raise them.
    maximum_charge_minor_units: int | None = Field(None, ge=1)
    payment_window: float = Field(24 * 3600.0, gt=0)
    #: Whether longer authorizations are asked for. Stripe refuses every payment of a platform that
    #: it has not made eligible.
    extended_authorization: Literal["never", "if_available"] = "never"
    #: For how long a balance transaction is waited for of what Stripe calls final.
    line_patience: float = Field(300.0, ge=10, le=24 * 3600.0)
    #: How long before Stripe ends a hold its deadline's action is taken, and how long before a
    #: deadline a warning is recorded.
    deadline_margin: float = Field(12 * 3600.0, ge=0, le=6 * 24 * 3600.0)
    deadline_warning: float = Field(48 * 3600.0, ge=0)
    #: What an early fraud warning does: it keeps the payment from being captured, or only alerts.
    fraud_warning: Literal["freeze", "alert"] = "freeze"
    #: For how long applied and ignored events of Stripe are kept. Stripe lists its events for 30
    #: days, and the poller must not store one again.
    webhook_event_retention: float = Field(35 * 24 * 3600.0, ge=31 * 24 * 3600.0)
    #: For how long a repeated idempotency key gets its answer; after it, a refusal.
    answer_retention: float = Field(400 * 24 * 3600.0, ge=7 * 24 * 3600.0)
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
        "platform_settlement_currencies",
        "allowed_origins",
        "stripe_webhook_secret",
        "stripe_connect_webhook_secret",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

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
        if value is not None and not _is_postgres(value.get_secret_value()):
            raise ValueError("must be a PostgreSQL's address: postgresql://user:password@host/name")
        return value

    @field_validator("gateway_public_url", "stripe_api_base")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("must be an http(s) address such as https://pay.example.com")
        return value.rstrip("/")

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            parts = urlsplit(value)
            rest = parts.path or parts.query or parts.fragment or parts.username
            if parts.scheme not in ("http", "https") or not parts.hostname or rest:
                raise ValueError(
                    f"{value!r} is not an origin; write scheme and host alone, "
                    "such as https://app.example.com"
                )
        return tuple(value.lower() for value in values)

    @model_validator(mode="after")
    def _contradictions(self) -> Settings:
        faults = [sentence for wrong, sentence in self._rules() if wrong]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _rules(self) -> list[tuple[bool, str]]:
        """Returns every rule: whether it is broken, and the sentence how to fix it."""
        key = self.stripe_secret_key.get_secret_value() if self.stripe_secret_key else ""
        live = self.is_live
        production = self.environment == "production"
        publishable = self.stripe_publishable_key
        public = urlsplit(self.gateway_public_url)
        own_stripe = bool(key) and key != SIMULATOR_KEY and not self.stripe_api_base
        return [
            (
                production and not key,
                (
                    "ENVIRONMENT=production needs STRIPE_SECRET_KEY; without it only the simulator "
                    "would be charged"
                ),
            ),
            (
                bool(key) and not key.startswith(("sk_test_", "sk_live_", "rk_test_", "rk_live_")),
                "STRIPE_SECRET_KEY must begin with sk_test_, sk_live_, rk_test_ or rk_live_",
            ),
            (
                live and bool(self.stripe_api_base),
                (
                    "a live STRIPE_SECRET_KEY never goes to another server than Stripe's: unset "
                    "STRIPE_API_BASE, or use a test key"
                ),
            ),
            (
                live and not production,
                "a live STRIPE_SECRET_KEY needs ENVIRONMENT=production",
            ),
            (
                production and key == SIMULATOR_KEY,
                "ENVIRONMENT=production needs a key of Stripe's, not the simulator's",
            ),
            (
                bool(publishable) and bool(key) and publishable.startswith("pk_live_") != live,
                (
                    "STRIPE_PUBLISHABLE_KEY and STRIPE_SECRET_KEY must be of the same mode, "
                    "both test or both live"
                ),
            ),
            (
                own_stripe and not publishable.startswith("pk_"),
                (
                    "STRIPE_SECRET_KEY needs STRIPE_PUBLISHABLE_KEY beside it (pk_…), with which "
                    "the browser confirms payments"
                ),
            ),
            (
                own_stripe
                and not (self.stripe_webhook_secret and self.stripe_connect_webhook_secret),
                (
                    "STRIPE_SECRET_KEY needs STRIPE_WEBHOOK_SECRET and "
                    "STRIPE_CONNECT_WEBHOOK_SECRET (whsec_…), one for each endpoint; several are "
                    "separated by a comma"
                ),
            ),
            (
                bool(
                    {secret.get_secret_value() for secret in self.stripe_webhook_secret}
                    & {secret.get_secret_value() for secret in self.stripe_connect_webhook_secret}
                ),
                (
                    "STRIPE_WEBHOOK_SECRET and STRIPE_CONNECT_WEBHOOK_SECRET must differ: each "
                    "endpoint has its own"
                ),
            ),
            (
                production and (public.scheme != "https" or public.hostname in _LOOPBACK),
                (
                    "ENVIRONMENT=production needs GATEWAY_PUBLIC_URL, the https address of the "
                    "gateway as browsers see it"
                ),
            ),
            (
                production and self.adjustments_by_one_person,
                (
                    "ADJUSTMENTS_BY_ONE_PERSON=true is not for ENVIRONMENT=production: another "
                    "person approves an adjustment there"
                ),
            ),
            (
                production and self.debug,
                "DEBUG=true is not for ENVIRONMENT=production: set DEBUG=false",
            ),
        ]

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
        """Returns DATABASE_DIRECT_URL, or ""."""
        return self.database_direct_url.get_secret_value() if self.database_direct_url else ""

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
        """Returns DATABASE_URL. Raises :class:`WrongSettings` if it is not set."""
        if self.database_url is None:
            raise WrongSettings(
                "DATABASE_URL is not set: give the address of a PostgreSQL, such as "
                "postgresql://user:password@host:5432/payments, or use `make run`, which brings "
                "one along"
            )
        return self.database_url.get_secret_value()


#: For how many days the platform may hold money in other countries than these 90 (Stripe's rule).
_HOLDING_DAYS: Final = {"US": 2 * 365, "TH": 10}


def holding_limit(platform_country: str) -> float:
    """Returns for how many seconds the platform may hold money."""
    return _HOLDING_DAYS.get(platform_country, 90) * 24 * 3600.0


#: All of them are connected to by psycopg2.
_DATABASE_SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg2")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def _is_postgres(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in _DATABASE_SCHEMES and parts.port != 0
    except ValueError:  # The port is no number. The error's own text would show the password.
        return False


def load_settings(env_file: Path | None = None) -> Settings:
    """Reads the environment. Raises :class:`WrongSettings` with a sentence for every fault."""
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]  # known to pydantic-settings
    except ValidationError as error:
        raise WrongSettings("\n".join(_sentences(error))) from None


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        name = "_".join(str(part) for part in fault["loc"]).upper()
        text = fault["msg"].removeprefix("Value error, ")
        sentences.append(f"{name}: {text}" if name else text)
    return sentences
