"""At the end of a run: nothing is left, nothing was lost, and the run was worth it."""

from collections.abc import Iterator

from chaos.checks.registry import check, failed_refunds_of
from chaos.evidence import Evidence, Row


@check
def everything_is_settled(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if not evidence.converged:
        yield "it did not come to rest in time", ""
    for row in evidence.operations:
        if row["state"] in ("STARTED", "UNKNOWN", "PARKED"):
            what = f"{row['kind']} {row['operation_id']} is {row['state']} ({row['last_error']})"
            yield what, row["payment_id"] or ""
    for row in evidence.webhook_events:
        if row["state"] in ("WAITING", "PARKED"):
            yield f"{row['type']} {row['event_id']} is {row['state']} ({row['last_error']})", ""


#: Why Stripe refunds nothing of a charge that the bank has, or has kept.
_DISPUTED = "charge_disputed"


@check
def no_discrepancies(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """There is no open discrepancy, except for a remainder that is kept because the charge is
    disputed, and for failed refunds. Each of them is reported once."""
    contested = {row["payment_id"] for row in evidence.disputes if row["stage"] == "CHARGEBACK"}
    kept_back = {
        f"{row['operation_id']}: {_DISPUTED}"
        for row in evidence.operations
        if (row["kind"], row["state"]) == ("refund", "REFUSED")
        and row["last_error"].partition(":")[0] == _DISPUTED
        and row["purpose"] == "REMAINDER"
        and row["payment_id"] in contested
    }
    bounced = {
        f"{refund['id']} of {refund['amount']} {'bounced' if _was_paid(refund) else 'not paid'}"
        for refund in failed_refunds_of(evidence)
    }
    for row in evidence.discrepancies:
        if row["kind"] == "remainder_not_returned" and row["detail"] in kept_back:
            continue
        if row["kind"] == "refund_failed" and row["detail"] in bounced:
            bounced.remove(row["detail"])
            continue
        if row["kind"] == "refund_waits_for_funds" and row["resolve_time"] is not None:
            continue
        if row["kind"] == "dispute_lines_unexplained" and (
            row["detail"].partition(" ")[0] in evidence.adjusted
        ):
            continue
        yield f"{row['kind']}: {row['detail']}", row["payment_id"]
    for detail in bounced:
        yield f"no discrepancy says that {detail}", ""


def _was_paid(refund: Row) -> bool:
    return refund["balance_transaction"] is not None


@check
def no_webhook_lost(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """An event whose webhook was acknowledged is stored, and no other event is."""
    known = {row["event_id"] for row in evidence.webhook_events}
    sent = {row["event"] for row in evidence.deliveries}
    for row in evidence.deliveries:
        if row["state"] == "delivered" and row["event"] not in known:
            yield f"{row['type']} {row['event']} was acknowledged and is not stored", ""
    for row in evidence.webhook_events:
        if row["event_id"] not in sent:
            yield f"{row['type']} {row['event_id']} is stored, but Stripe never sent it", ""


@check
def no_secret_in_sight(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for line in evidence.leaks:
        yield line, ""


@check
def every_fault_struck(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Every armed fault has struck. Otherwise the run proves nothing about it."""
    for kind in evidence.armed:
        if evidence.injected[kind] < evidence.least:
            yield f"{kind} struck {evidence.injected[kind]} times, wanted {evidence.least}", ""
