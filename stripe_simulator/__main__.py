"""`python -m stripe_simulator`: flags first, environment second, then defaults."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from stripe_simulator.config import Config, WebhookTarget
from stripe_simulator.server import start


def webhook_target(text: str) -> WebhookTarget:
    """`platform=URL,SECRET[,SECRET]`; two secrets sign as during a rotation."""
    scope, _, rest = text.partition("=")
    url, *secrets = rest.split(",")
    known = scope in ("platform", "connect")
    if not known or not url.startswith("http") or not secrets or not all(secrets):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not platform=URL,SECRET or connect=URL,SECRET"
        )
    return WebhookTarget(scope, url, tuple(secrets))


def parse(arguments: list[str]) -> Config:
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m stripe_simulator", description="A stateful stand-in for Stripe's HTTP API."
    )
    add = parser.add_argument
    add("--host", default=environment.get("STRIPE_SIMULATOR_HOST", "127.0.0.1"))
    add(
        "--port",
        type=int,
        default=int(environment.get("STRIPE_SIMULATOR_PORT", "12111")),
        help="0 takes a free port (STRIPE_SIMULATOR_PORT, default 12111)",
    )
    add(
        "--seed",
        default=environment.get("STRIPE_SIMULATOR_SEED"),
        help="makes ids and behaviour reproducible; random when not given",
    )
    add(
        "--secret-key",
        default=environment.get("STRIPE_SIMULATOR_SECRET_KEY", "sk_test_simulator"),
    )
    add(
        "--publishable-key",
        default=environment.get("STRIPE_SIMULATOR_PUBLISHABLE_KEY", "pk_test_simulator"),
    )
    add(
        "--webhook",
        action="append",
        type=webhook_target,
        metavar="SCOPE=URL,SECRET",
        help="an endpoint, scope platform or connect; may be repeated "
        "(STRIPE_SIMULATOR_WEBHOOKS, separated by spaces)",
    )
    add(
        "--state",
        type=Path,
        default=environment.get("STRIPE_SIMULATOR_STATE") or None,
        help="an SQLite file that keeps everything across restarts; in memory when not given",
    )
    add(
        "--latency-ms",
        type=int,
        default=int(environment.get("STRIPE_SIMULATOR_LATENCY_MS", "0")),
        help="added to every API call, half before its effect and half after",
    )
    add(
        "--country",
        default=environment.get("STRIPE_SIMULATOR_COUNTRY", "US"),
        help="the platform's country",
    )
    add(
        "--settlement-currencies",
        default=environment.get("STRIPE_SIMULATOR_SETTLEMENT_CURRENCIES", "usd,eur,gbp,jpy"),
        help="in which the platform holds money; others are converted",
    )
    add(
        "--platform-account",
        default=environment.get("STRIPE_SIMULATOR_PLATFORM_ACCOUNT", "acct_1SimulatorPlatform"),
    )
    add(
        "--webhook-events",
        default=environment.get("STRIPE_SIMULATOR_WEBHOOK_EVENTS", "*"),
        metavar="TYPE,TYPE",
        help="the events that the endpoints get; `*`, the default, is all",
    )
    add(
        "--public-url",
        default=environment.get("STRIPE_SIMULATOR_PUBLIC_URL") or None,
        help="what links to the hosted pages begin with, when it is not the address listened on",
    )
    add(
        "--platform-funds",
        type=int,
        default=int(environment.get("STRIPE_SIMULATOR_PLATFORM_FUNDS", "10000000")),
        help="what a new platform has of its own in each settlement currency, in minor units; 0 is "
        "a marketplace that has nothing but its commissions",
    )
    given = parser.parse_args(arguments)
    webhooks = given.webhook
    if webhooks is None:
        text = environment.get("STRIPE_SIMULATOR_WEBHOOKS", "")
        webhooks = [webhook_target(item) for item in text.split()]
    return Config(
        host=given.host,
        port=given.port,
        seed=given.seed,
        secret_key=given.secret_key,
        publishable_key=given.publishable_key,
        webhooks=tuple(webhooks),
        state=Path(given.state) if given.state else None,
        latency_ms=given.latency_ms,
        country=given.country.upper(),
        settlement_currencies=tuple(given.settlement_currencies.lower().split(",")),
        platform_account=given.platform_account,
        public_url=given.public_url.rstrip("/") if given.public_url else None,
        platform_funds=given.platform_funds,
        webhook_events=given.webhook_events,
    )


async def run(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    simulator = await start(config)
    sys.stdout.write(f"stripe_simulator listening on {simulator.base_url}\n")
    sys.stdout.flush()
    await stopping.wait()
    await simulator.close()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(parse(sys.argv[1:])))
    except OSError as error:
        sys.exit(f"stripe_simulator cannot start: {error}")


if __name__ == "__main__":
    main()
