"""The platform's balance and the experts' accounts: what waits says so, and what can be is paid."""

from collections.abc import Iterator

from chaos.checks.registry import check
from chaos.debts import collectible
from chaos.evidence import Evidence


@check
def what_waits_for_funds_says_so(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Before money came, each payment whose refund waited at Stripe said so, and no other did."""
    for refund, payment in evidence.waiting:
        if payment is None:
            yield f"{refund and refund['id']} waits at Stripe, for no payment of ours", ""
            continue
        payment_id = payment["payment_id"]
        if refund is None:
            yield "it waited for the platform's balance, and nothing waits at Stripe", payment_id
            continue
        said = (payment["state"], payment["waiting_for"], payment["waiting_reason"])
        if said != ("REFUNDING", "processor", "REFUND_PENDING_FUNDS"):
            yield f"{refund['id']} waits at Stripe, and the payment said {said}", payment_id
        promised = payment["pending_refund"] or payment["client_payable"]
        if promised != refund["amount"]:
            yield f"{refund['id']} of {refund['amount']} waits, promised is {promised}", payment_id


@check
def accepted_refunds_are_paid(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Once there is money, no refund waits any more: not here and not at Stripe."""
    for payment in evidence.payments:
        if payment["pending_refund"]:
            yield f"a refund of {payment['pending_refund']} still waits", payment["payment_id"]
    for refund in evidence.refunds:
        if refund["status"] == "pending":
            yield f"{refund['id']} is still pending at Stripe", ""


@check
def no_debt_is_left_that_can_be_paid(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What an expert owes is collected as far as the account has money."""
    yield from collectible(
        evidence.postings,
        evidence.payments,
        evidence.movements,
        evidence.transfers,
        evidence.available,
    )
