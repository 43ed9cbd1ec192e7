"""What several settings mean together: a table of (broken?, the sentence that fixes it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payment_service.config.values import (
    database_address,
    has_certificates,
    web_address,
)

if TYPE_CHECKING:
    from payment_service.config.settings import Settings

Rules = list[tuple[bool, str]]

#: The fields with the ports of processes that may run beside this one.
_NEIGHBOURS: Final = ("gateway_port", "gateway_metrics_port", "console_port", "relay_metrics_port")
_LAST_PORT: Final = 65_535
#: The key that the simulator accepts. It is published, so it opens nothing.
SIMULATOR_KEY: Final = "sk_test_simulator"


def broken(settings: Settings) -> list[str]:
    """Returns the sentence of every rule that is broken. No sentence shows a secret."""
    rules = [
        *_stripe(settings),
        *_database(settings),
        *_ports(settings),
        *_browsers(settings),
        *settings.access_rules(
            production=settings.environment == "production", host=settings.grpc_host
        ),
    ]
    return [sentence for is_broken, sentence in rules if is_broken]


def _stripe(settings: Settings) -> Rules:
    production = settings.environment == "production"
    key = settings.stripe_secret_key.get_secret_value() if settings.stripe_secret_key else ""
    publishable = settings.stripe_publishable_key
    live = settings.is_live
    own_stripe = bool(key) and key != SIMULATOR_KEY and not settings.stripe_api_base
    platform = {secret.get_secret_value() for secret in settings.stripe_webhook_secret}
    connect = {secret.get_secret_value() for secret in settings.stripe_connect_webhook_secret}
    return [
        (
            production and not key,
            (
                "ENVIRONMENT=production needs STRIPE_SECRET_KEY; without it only the simulator "
                "would be charged"
            ),
        ),
        (
            live and bool(settings.stripe_api_base),
            (
                "a live STRIPE_SECRET_KEY never goes to another server than Stripe's: unset "
                "STRIPE_API_BASE, or use a test key"
            ),
        ),
        (
            production and not live and bool(settings.stripe_api_base),
            "ENVIRONMENT=production asks Stripe alone: unset STRIPE_API_BASE, which is for tests",
        ),
        (live and not production, "a live STRIPE_SECRET_KEY needs ENVIRONMENT=production"),
        (
            production and key == SIMULATOR_KEY,
            "ENVIRONMENT=production needs a key of Stripe's, not the simulator's",
        ),
        (
            bool(publishable) and bool(key) and publishable.startswith("pk_live_") != live,
            (
                "STRIPE_PUBLISHABLE_KEY and STRIPE_SECRET_KEY must be of the same mode, both test "
                "or both live"
            ),
        ),
        (
            own_stripe and not publishable,
            (
                "STRIPE_SECRET_KEY needs STRIPE_PUBLISHABLE_KEY beside it (pk_…), with which the "
                "browser confirms payments"
            ),
        ),
        (
            (own_stripe or production) and not (platform and connect),
            (
                "STRIPE_SECRET_KEY needs STRIPE_WEBHOOK_SECRET and STRIPE_CONNECT_WEBHOOK_SECRET "
                "(whsec_…), one for each endpoint; several are separated by a comma"
            ),
        ),
        (
            bool(platform & connect),
            (
                "STRIPE_WEBHOOK_SECRET and STRIPE_CONNECT_WEBHOOK_SECRET must differ: each "
                "endpoint has its own"
            ),
        ),
    ]


def _database(settings: Settings) -> Rules:
    production = settings.environment == "production"
    rules: Rules = [
        (
            production and settings.database_url is None,
            (
                "DATABASE_URL is not set: ENVIRONMENT=production needs the address of a "
                "PostgreSQL, such as postgresql://payments:password@db.example.com/payments?sslmode=verify-full"
            ),
        ),
        (
            bool(settings.database_ca_file) and not has_certificates(settings.database_ca_file),
            (
                "DATABASE_CA_FILE must be a readable file with the certificates that vouch for the "
                "database (PEM), or `system`"
            ),
        ),
    ]
    for name, url in (
        ("DATABASE_URL", settings.database_url),
        ("DATABASE_DIRECT_URL", settings.database_direct_url),
    ):
        if url is None:
            continue
        address = database_address(url.get_secret_value())
        ca_file = address.ca_file or settings.database_ca_file
        verified = address.is_verified or bool(settings.database_ca_file and not address.sslmode)
        rules += [
            (
                production and not address.is_local and not verified,
                (
                    f"{name} leads to another machine; anybody between could read and alter the "
                    "books: add sslmode=verify-full to it, or set DATABASE_CA_FILE"
                ),
            ),
            (
                bool(settings.database_ca_file) and not verified,
                (
                    f"{name} says sslmode={address.sslmode}, which does not verify the database, "
                    "and DATABASE_CA_FILE is set: say sslmode=verify-full, or leave it out"
                ),
            ),
            (
                verified and not ca_file,
                (
                    f"{name} verifies the database, but does not say by which certificates: set "
                    "DATABASE_CA_FILE (a PEM file, or `system`), or add sslrootcert to it"
                ),
            ),
            (
                bool(address.ca_file) and not has_certificates(address.ca_file),
                f"{name}: sslrootcert must be a readable file with certificates (PEM), or `system`",
            ),
        ]
    return rules


def _ports(settings: Settings) -> Rules:
    production = settings.environment == "production"
    ports = {
        "METRICS_PORT": settings.metrics_port,
        "STRIPE_SIMULATOR_PORT": settings.simulator_port,
        **{
            name.upper(): getattr(settings, name)
            for name in _NEIGHBOURS
            if name in settings.model_fields_set
        },
    }
    used = [port for port in ports.values() if port]
    first, last = settings.grpc_port, settings.grpc_port + settings.workers - 1
    same = [name for name, port in ports.items() if port and used.count(port) > 1]
    taken = [name for name, port in ports.items() if first and first <= port <= last]
    several = settings.workers > 1
    each, most = settings.connections_of_a_worker, settings.database_connections
    return [
        (
            bool(same),
            f"{' and '.join(same)} are the same port: give each a port of its own",
        ),
        (
            bool(taken) and not several,
            f"GRPC_PORT and {' and '.join(taken)} are the same port: give each a port of its own",
        ),
        (
            bool(taken) and several,
            (
                f"WORKERS={settings.workers} listen on the ports {first} to {last}, and "
                f"{' and '.join(taken)} is among them: set another port"
            ),
        ),
        (
            several and not first,
            "WORKERS listen on GRPC_PORT and the ports after it: set GRPC_PORT, or WORKERS=1",
        ),
        (
            last > _LAST_PORT,
            f"WORKERS={settings.workers} would listen up to port {last}: lower GRPC_PORT",
        ),
        (
            settings.workers * each > most,
            (
                f"WORKERS={settings.workers} with {each} connections each need "
                f"{settings.workers * each}, more than DATABASE_CONNECTIONS={most}: "
                "lower DATABASE_WRITE_CONNECTIONS or DATABASE_READ_CONNECTIONS, or raise it if "
                "PostgreSQL (max_connections) or its pooler allows more"
            ),
        ),
        (
            production and not settings.grpc_port,
            "GRPC_PORT=0 is any free port, where no caller would find the service: set a port",
        ),
        (
            production and settings.debug,
            "DEBUG=true is not for ENVIRONMENT=production: set DEBUG=false",
        ),
        (
            production and settings.adjustments_by_one_person,
            (
                "ADJUSTMENTS_BY_ONE_PERSON=true is not for ENVIRONMENT=production: another person "
                "approves an adjustment there"
            ),
        ),
    ]


def _browsers(settings: Settings) -> Rules:
    production = settings.environment == "production"
    public = web_address(settings.gateway_public_url)
    plain = [site for site in settings.allowed_origins if not site.startswith("https://")]
    return [
        (
            production and (public.scheme != "https" or not public.is_public),
            (
                "ENVIRONMENT=production needs GATEWAY_PUBLIC_URL, the https address of the gateway "
                "as browsers see it"
            ),
        ),
        (
            production and bool(plain),
            (
                f"ALLOWED_ORIGINS: {', '.join(plain)} is not https, so anybody between could "
                "change its pages: ENVIRONMENT=production needs https origins"
            ),
        ),
    ]
