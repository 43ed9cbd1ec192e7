"""The events for which Stripe's endpoints are registered, as docs/runbook/going-live.md says.

The stack registers the simulator's endpoints for the same events. So it gets what a real platform
gets, and no more.
"""

from typing import Final

PLATFORM_EVENTS: Final = (
    "application_fee.refunded",
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.funds_reinstated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.updated",
    "charge.updated",
    "payment_intent.amount_capturable_updated",
    "payment_intent.canceled",
    "payment_intent.payment_failed",
    "payment_intent.succeeded",
    "radar.early_fraud_warning.created",
    "radar.early_fraud_warning.updated",
    "refund.created",
    "refund.failed",
    "refund.updated",
    "review.closed",
    "review.opened",
    "transfer.created",
    "transfer.reversed",
)

CONNECT_EVENTS: Final = (
    "account.application.deauthorized",
    "account.updated",
    "capability.updated",
    "payout.canceled",
    "payout.created",
    "payout.failed",
    "payout.paid",
    "payout.updated",
)

THIN_EVENTS: Final = (
    "v2.core.account.closed",
    "v2.core.account.created",
    "v2.core.account.updated",
    "v2.core.account[configuration.merchant].capability_status_updated",
    "v2.core.account[configuration.merchant].updated",
    "v2.core.account[configuration.recipient].capability_status_updated",
    "v2.core.account[configuration.recipient].updated",
    "v2.core.account[defaults].updated",
    "v2.core.account[future_requirements].updated",
    "v2.core.account[identity].updated",
    "v2.core.account[requirements].updated",
)

REGISTERED_EVENTS: Final = (*PLATFORM_EVENTS, *CONNECT_EVENTS, *THIN_EVENTS)
