"""A stateful stand-in for Stripe that speaks Stripe's HTTP API.

There is no Stripe account and no internet where this project is built and tested, and the public
stand-ins know nothing of Connect. This process keeps accounts, payments, transfers and balances as
Stripe does, so that the `stripe` SDK, `curl` and our own service can be run against it unchanged.
It imports nothing from the rest of the project.
"""

from stripe_simulator.config import Config, WebhookTarget
from stripe_simulator.server import RunningSimulator, start

__all__ = ["Config", "RunningSimulator", "WebhookTarget", "start"]
