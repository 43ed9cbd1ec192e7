"""What was answered, in which order, and whether it is still so."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC
from math import inf

from chaos.checks.registry import check, events_of
from chaos.evidence import Evidence
from chaos.history import SeenDispute

#: The states that this service may move each state to.
EDGES: dict[str, set[str]] = {
    "PENDING": {"PENDING", "FAILED", "IN_ESCROW", "CANCELING", "CANCELED", "EXPIRED"},
    "FAILED": {"PENDING", "FAILED", "IN_ESCROW", "CANCELING", "CANCELED", "EXPIRED"},
    "IN_ESCROW": {"IN_ESCROW", "CAPTURING", "CANCELING", "CANCELED", "EXPIRED"},
    "CAPTURING": {"CAPTURING", "IN_ESCROW", "CAPTURED", "CANCELED", "EXPIRED"},
    "CANCELING": {"CANCELING", "PENDING", "IN_ESCROW", "CANCELED", "EXPIRED"},
    "CAPTURED": {"CAPTURED", "REFUNDING"},
    "REFUNDING": {"REFUNDING", "CAPTURED", "REFUNDED"},
    "REFUNDED": {"REFUNDED"},
    "CANCELED": set(),
    "EXPIRED": set(),
}
#: And where else, if the platform charges and transfers by itself.
SEPARATE_EDGES: dict[str, set[str]] = {
    "IN_ESCROW": {"PROMOTING", "REFUNDING"},
    "PROMOTING": {"PROMOTING", "IN_ESCROW", "CANCELED", "EXPIRED"},
    "CAPTURING": {"REFUNDING"},
    "REFUNDING": {"IN_ESCROW"},
}


#: The states that the bank's decision may lead to, for every charge model.
LOSS_EDGES: dict[str, set[str]] = {
    "IN_ESCROW": {"IN_ESCROW", "REFUNDING", "CAPTURED", "REFUNDED"},
    "CAPTURED": {"CAPTURED", "REFUNDING", "REFUNDED"},
    "REFUNDED": {"REFUNDED"},
}


def _leads_to(kind: str, former: str, model: str) -> set[str]:
    """Returns the states that an event of this kind may lead to."""
    if kind == "payment.dispute_lost":
        return LOSS_EDGES.get(former, set())
    if kind == "payment.repayment_due":
        return {"REFUNDING"} if former in ("IN_ESCROW", "CAPTURED", "REFUNDED") else set()
    if kind.startswith(("payment.dispute_", "payment.fraud_", "payment.refund_failed")):
        return {former} - {"PENDING", "FAILED", "CANCELED", "EXPIRED"}
    more = SEPARATE_EDGES if model == "SEPARATE" else {}
    return EDGES.get(former, set()) | more.get(former, set())


@check
def states_move_along_edges(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each version has one event, which begins where the event before ended, on a declared edge."""
    models = {row["payment_id"]: row["charge_model"] for row in evidence.payments}
    for payment_id, events in events_of(evidence).items():
        model, former = models.get(payment_id, ""), ""
        for number, event in enumerate(events, 1):
            body = json.loads(event["body"])
            if event["sequence"] != number:
                yield f"event {number} is missing", payment_id
                break
            if (body["from"] or "") != former:
                yield f"event {number} is from {body['from']}, but it was {former}", payment_id
            if former and body["to"] not in _leads_to(event["kind"], former, model):
                yield f"event {number} goes from {former} to {body['to']}", payment_id
            former = body["to"]
    histories = events_of(evidence)
    for payment in evidence.payments:
        payment_id = payment["payment_id"]
        last = histories[payment_id][-1:]
        if not last or last[0]["sequence"] != payment["version"]:
            yield f"version {payment['version']} has no event of its own", payment_id
        elif json.loads(last[0]["body"])["to"] != payment["state"]:
            yield f"the row says {payment['state']}, its last event does not", payment_id


@check
def feed_has_every_version_once(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each version of a payment has one place in the feed, and they come in their order."""
    places: dict[str, list[int]] = defaultdict(list)
    for row in sorted(evidence.feed, key=lambda row: row["position"]):
        places[row["payment_id"]].append(row["sequence"])
    for payment in evidence.payments:
        payment_id, version = payment["payment_id"], payment["version"]
        fed = places.pop(payment_id, [])
        if fed != list(range(1, version + 1)):
            yield f"version {version}, but the feed has {fed}", payment_id
    for payment_id in places:
        yield "the feed has an event of a payment that does not exist", payment_id


@check
def chain_is_intact(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The hashes computed again over the stored bytes, and each head on its payment's row."""
    heads = {}
    for payment_id, events in events_of(evidence).items():
        head = b""
        for event in events:
            digest = hashlib.sha256(head)
            moment = event["time"].astimezone(UTC).isoformat(timespec="microseconds")
            for part in (
                payment_id,
                str(event["sequence"]),
                event["kind"],
                moment,
                event["body"],
            ):
                digest.update(len(part.encode()).to_bytes(8, "big") + part.encode())
            head = digest.digest()
            if bytes(event["hash"]) != head:
                yield f"the chain breaks at event {event['sequence']}", payment_id
                break
        heads[payment_id] = head
    for payment in evidence.payments:
        if heads.get(payment["payment_id"]) != bytes(payment["head_hash"]):
            yield "the chain's head is not the payment's", payment["payment_id"]


@check
def acknowledged_is_kept(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """An answer shows a payment as its history records that version."""
    bodies = {
        (event["payment_id"], event["sequence"]): json.loads(event["body"])
        for event in evidence.events
    }
    for entry in evidence.history.entries:
        seen = entry.seen
        if entry.outcome != "ok" or seen is None:
            continue
        body = bodies.get((seen.payment_id, seen.version))
        if body is None:
            what = f"{entry.rpc} {entry.key} was answered with version {seen.version}, now gone"
            yield what, seen.payment_id
            continue
        amounts = body["amounts"]
        kept = (amounts["held"], amounts["captured"], amounts["refunded_after_capture"])
        if body["to"] != seen.state or kept != seen.amounts:
            what = f"{entry.rpc} {entry.key} showed {seen.state} {seen.amounts} at version "
            yield f"{what}{seen.version}, history has {body['to']} {kept}", seen.payment_id


@check
def no_answer_goes_back(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A read that begins after an answer with a version shows that version or a later one."""
    moments: list[tuple[float, int, str, int, str]] = []
    for entry in evidence.history.entries:
        if entry.seen is not None:
            moments.append((entry.ended, 0, entry.seen.payment_id, entry.seen.version, ""))
            if entry.rpc == "GetPayment":
                what = f"call at {entry.started:.3f} s"
                moments.append((entry.started, 1, entry.seen.payment_id, entry.seen.version, what))
    newest: dict[str, int] = defaultdict(int)
    for _, is_read, payment_id, version, what in sorted(moments):
        if is_read:
            if version < newest[payment_id]:
                told = newest[payment_id]
                yield f"{what} showed version {version} after {told} was told", payment_id
        else:
            newest[payment_id] = max(newest[payment_id], version)


@check
def same_key_same_bytes(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Every success of one key is the same, byte for byte, and no refusal comes after it.

    A refusal by a guard leaves the key free, so a success may come after a refusal.
    """
    answers: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    succeeded: dict[tuple[str, str], float] = {}
    entries = [entry for entry in evidence.history.entries if entry.key]
    for entry in entries:
        if entry.code == "OK":
            name = entry.rpc, entry.key
            answers[name].add(entry.body)
            succeeded[name] = min(entry.ended, succeeded.get(name, entry.ended))
    for (rpc, key), given in answers.items():
        if len(given) > 1:
            yield f"{rpc} {key} got {len(given)} different answers", ""
    for entry in entries:
        name = entry.rpc, entry.key
        if entry.code == "FAILED_PRECONDITION" and entry.started > succeeded.get(name, inf):
            yield f"{entry.rpc} {entry.key} was refused after its success", ""


@check
def every_key_is_answered(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for key in evidence.unanswered:
        yield f"{key} never got a definite answer", ""
    open_ = {row["operation_id"] for row in evidence.operations if row["settle_time"] is None}
    for claim in evidence.idempotency_keys:
        if claim["answer"] is None and claim["operation_id"] not in open_:
            yield (
                f"the claim of {claim['key']} has no answer and no operation",
                str(claim["payment_id"] or ""),
            )


@check
def only_declared_errors(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """No answer is UNKNOWN, INTERNAL or a deadline of the service itself; no code is unexpected."""
    declared = {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS"),
        *("ABORTED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"),
    }
    found: Counter[str] = Counter()
    for entry in evidence.history.entries:
        own = entry.code in ("DEADLINE_EXCEEDED", "CANCELLED")
        if (
            entry.rpc == "Confirm"
            or own
            or (entry.code in declared and entry.reason != "UNEXPECTED")
        ):
            continue
        found[f"{entry.rpc} was answered {entry.code} {entry.reason}: {entry.text[:120]}"] += 1
    for what, count in found.items():
        yield f"{what} ({count} times)", ""


@check
def nothing_was_wrong_on_the_way(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What callers noticed themselves: an accepted forged webhook, or a key with other content."""
    for what in evidence.wrong:
        yield what, ""
    for what in evidence.ended:
        yield what, ""


@check
def told_of_disputes_is_kept(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What an answer showed of a dispute is not taken back, by a later answer or in the end."""
    moments: list[tuple[float, int, SeenDispute, str]] = []
    for entry in evidence.history.entries:
        for seen in entry.disputes:
            moments.append((entry.ended, 0, seen, ""))
            # An answer under a key may be an old one.
            if entry.rpc in ("GetDispute", "ListDisputes"):
                moments.append((entry.started, 1, seen, f"{entry.rpc} at {entry.started:.3f} s"))
    for row in evidence.disputes:
        counts = (row["withdrawn"], row["reinstated"], row["lost"], row["submission_count"])
        last = SeenDispute(row["dispute_id"], row["outcome"], counts)
        moments.append((float("inf"), 1, last, "the record"))
    newest: dict[str, tuple[int, ...]] = {}
    over: dict[str, str] = {}
    for _, is_read, seen, what in sorted(moments, key=lambda moment: moment[:2]):
        told = newest.get(seen.dispute_id, seen.counts)
        outcome = over.get(seen.dispute_id, seen.outcome)
        if is_read and (seen.outcome != outcome or min(map(int.__sub__, seen.counts, told)) < 0):
            shown = f"{seen.outcome} {seen.counts} of {seen.dispute_id}"
            yield f"{what} shows {shown} after {outcome} {told} was told", ""
        elif not is_read:
            newest[seen.dispute_id] = tuple(map(max, seen.counts, told))
            if seen.outcome != "OPEN":
                over[seen.dispute_id] = seen.outcome
