"""Finds what an action is done to, and says what it is.

The service has no RPC that reads one operation, discrepancy or adjustment, so these are searched
for in its lists.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from console.actions import Subject
from console.core import Core, Refused
from console.shown import money, time, words
from marketplace.payments.v1 import (
    adjustments_pb2,
    disputes_pb2,
    operations_pb2,
    payments_pb2,
)

#: How many pages of a list are searched.
_PAGES: Final = 25
_PAGE_SIZE: Final = 200
_WAITING: Final = "/waiting"


async def pages(
    core: Core, method: Any, request: Any, field: str, most: int = _PAGES
) -> AsyncIterator[Any]:
    """Yields the entries of a list, page by page."""
    request.page_size = _PAGE_SIZE
    for _ in range(most):
        answer = await core.ask(method, request)
        for entry in getattr(answer, field):
            yield entry
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def link(path: str, **query: str) -> str:
    """Returns the address of a page of the console."""
    return f"{path}?{urlencode(query)}"


def own_page(sought: str) -> str:
    """Returns the page to which a sign-in leads; never an address of another site."""
    inside = sought.startswith("/") and not sought.startswith(("//", "/sign-"))
    return sought if inside and sought.isprintable() and "\\" not in sought else "/"


async def _payment(core: Core, target: str) -> Subject:
    request = payments_pb2.GetPaymentRequest(payment_id=target)
    payment = (await core.ask(core.stubs.payments.GetPayment, request)).payment
    facts = (
        ("State", words(payment, "state")),
        ("Amount", money(payment.amount)),
        ("In escrow", money(payment.held_amount)),
        ("Paid out", money(payment.net_amount)),
        ("Payable to the client", money(payment.client_payable)),
        ("Frozen by", payment.frozen_by or "nothing"),
    )
    return Subject(
        f"Payment {payment.payment_id}",
        link("/payment", id=payment.payment_id),
        facts,
        payment.amount.currency_code,
        payment.version,
        payment.client_payable,
        payment.frozen_by if payment.freeze == payments_pb2.PAYMENT_FREEZE_FRAUD_WARNING else "",
    )


async def _operation(core: Core, target: str) -> Subject:
    request = operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_PARKED)
    async for one in pages(core, core.stubs.operations.ListOperations, request, "operations"):
        if one.operation_id == target:
            facts = (
                ("What it does", words(one, "kind")),
                ("State", words(one, "state")),
                ("Waits for", words(one, "waiting_for")),
                ("Tried", str(one.attempts)),
                ("Last error", one.last_error or "—"),
            )
            back = link("/payment", id=one.payment_id) if one.payment_id else _WAITING
            return Subject(f"Operation {one.operation_id}", back, facts)
    raise Refused("NOT_FOUND", "OPERATION_NOT_FOUND", f"No operation {target} is parked.")


async def _discrepancy(core: Core, target: str) -> Subject:
    request = operations_pb2.ListDiscrepanciesRequest(open_only=True)
    method = core.stubs.operations.ListDiscrepancies
    async for one in pages(core, method, request, "discrepancies"):
        if one.discrepancy_id == target:
            facts = (
                ("Kind", words(one, "kind")),
                ("What was found", one.detail),
                ("What to do", one.remediation or "—"),
            )
            back = link("/payment", id=one.payment_id) if one.payment_id else _WAITING
            return Subject(f"Discrepancy {one.discrepancy_id}", back, facts)
    raise Refused("NOT_FOUND", "DISCREPANCY_NOT_FOUND", f"No discrepancy {target} is open.")


async def _adjustment(core: Core, target: str) -> Subject:
    request = adjustments_pb2.ListAdjustmentsRequest(
        state=adjustments_pb2.ADJUSTMENT_STATE_PROPOSED
    )
    async for one in pages(core, core.stubs.operations.ListAdjustments, request, "adjustments"):
        if one.adjustment_id == target:
            lines = [(f"Posts to {line.account}", money(line.amount)) for line in one.lines]
            facts = (
                ("Kind", words(one, "kind")),
                ("Proposed by", one.proposed_by),
                ("Ticket", one.ticket or "—"),
                ("Reason", one.reason or "—"),
                ("Can be approved until", time(one.expire_time)),
                *lines,
            )
            return Subject(f"Adjustment {one.adjustment_id}", _WAITING, facts)
    raise Refused("NOT_FOUND", "ADJUSTMENT_NOT_FOUND", f"No adjustment {target} waits.")


async def _dispute(core: Core, target: str) -> Subject:
    request = disputes_pb2.GetDisputeRequest(dispute_id=target)
    one = (await core.ask(core.stubs.disputes.GetDispute, request)).dispute
    facts = (
        ("Stage", words(one, "stage")),
        ("Outcome", words(one, "outcome")),
        ("Amount", money(one.amount)),
        ("Evidence is due", time(one.evidence_due_time)),
    )
    return Subject(f"Dispute {one.dispute_id}", link("/payment", id=one.payment_id), facts)


async def _debt(core: Core, target: str) -> Subject:
    return Subject(f"Expert {target}", link("/expert", id=target))


async def _webhook(core: Core, target: str) -> Subject:
    return Subject(f"Webhook event {target}", _WAITING)


SUBJECTS: Final[Mapping[str, Callable[[Core, str], Awaitable[Subject]]]] = {
    "payment": _payment,
    "operation": _operation,
    "discrepancy": _discrepancy,
    "adjustment": _adjustment,
    "dispute": _dispute,
    "debt": _debt,
    "webhook": _webhook,
}
