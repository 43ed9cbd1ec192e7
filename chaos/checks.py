"""Every promise as a small check of its own over the evidence; each names what it found.

Nothing here is taken from the service: edges, commission and hash chain are written out again, so
that a mistake there is not repeated here. A check yields violations and nothing else.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC

from chaos.evidence import Evidence, Row

Check = Callable[[Evidence], Iterator["Violation"]]


@dataclass(frozen=True, slots=True)
class Violation:
    check: str
    what: str
    payment_id: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.what}" + (f" [{self.payment_id}]" if self.payment_id else "")


CHECKS: dict[str, Check] = {}


def _check(check: Callable[[Evidence], Iterator[tuple[str, str]]]) -> Check:
    """Register a check under its name; it yields (what, payment_id)."""
    name = check.__name__

    def run(evidence: Evidence) -> Iterator[Violation]:
        for what, payment_id in check(evidence):
            yield Violation(name, what, payment_id)

    CHECKS[name] = run
    return run


def violations(evidence: Evidence) -> list[Violation]:
    return [found for check in CHECKS.values() for found in check(evidence)]


# ---- effects ----


@_check
def at_most_one_effect(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """No (payment, operation) was done twice at Stripe."""
    payment_of = evidence.payment_of_intent()
    done: Counter[tuple[str, str]] = Counter()
    for effect in evidence.effects:
        kind, metadata = effect["kind"], effect["metadata"]
        operation = metadata.get("operation_id", "")
        if kind in ("captured", "canceled", "expired"):
            done[kind, effect["payment_intent"]] += 1
        elif kind in ("refunded", "reversed", "transferred"):
            done[kind, operation or effect["object"]] += 1
        elif kind == "intent_created":
            done[kind, metadata.get("payment_id", effect["object"])] += 1
        elif kind == "account_created":
            done[kind, metadata.get("expert_id", effect["object"])] += 1
        if kind not in ("authorized", "declined") and effect["idempotency_key"]:
            done[f"{kind} under one key", effect["idempotency_key"]] += 1
    for (kind, whose), count in done.items():
        if count > 1:
            payment = payment_of.get(whose, {}).get("payment_id", whose)
            yield f"{kind} {count} times for {whose}", payment


@_check
def one_end_per_payment(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """An authorization is captured, cancelled or expired: exactly one of them."""
    ends: dict[str, set[str]] = defaultdict(set)
    for effect in evidence.effects:
        if effect["kind"] in ("captured", "canceled", "expired"):
            ends[effect["payment_intent"]].add(effect["kind"])
    for intent, kinds in ends.items():
        if len(kinds) > 1:
            yield f"{intent} was {' and '.join(sorted(kinds))}", _payment_id(evidence, intent)


#: Movements on our side, and what each is at Stripe.
_MOVED = {"refund": "refunded", "reversal": "reversed", "transfer": "transferred"}


@_check
def no_phantom_effect(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Everything that happened at Stripe by our hand stands on our side, with its amount."""
    payment_of = evidence.payment_of_intent()
    movements = {row["movement_id"]: row for row in evidence.movements}
    accounts = {row["stripe_account_id"] for row in evidence.experts}
    for effect in evidence.effects:
        kind, id_ = effect["kind"], effect["object"]
        if kind == "account_created":
            if id_ not in accounts:
                yield f"account {id_} is nobody's", ""
            continue
        if kind not in ("intent_created", "captured", "canceled", *_MOVED.values()):
            continue
        payment = payment_of.get(effect["payment_intent"])
        if payment is None:
            owner = effect["metadata"].get("payment_id", "")
            yield f"{kind} of {effect['payment_intent']}, which no payment has", owner
            continue
        payment_id = payment["payment_id"]
        if kind == "captured" and payment["charged"] != effect["amount"]:
            yield f"charged {effect['amount']}, on our side {payment['charged']}", payment_id
        if kind == "canceled" and payment["state"] not in ("CANCELED", "EXPIRED"):
            yield f"cancelled at Stripe, {payment['state']} on our side", payment_id
        if kind in _MOVED.values():
            booked = movements.get(id_)
            if booked is None or booked["minor_units"] != effect["amount"]:
                yield f"{kind} {id_} of {effect['amount']} is not on the books", payment_id


@_check
def no_effect_lost(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What our side says was done at Stripe was done there."""
    done = {(effect["kind"], effect["object"]) for effect in evidence.effects}
    captured = {e["payment_intent"] for e in evidence.effects if e["kind"] == "captured"}
    keys: Counter[str] = Counter(
        effect["idempotency_key"].rpartition("-")[0]
        for effect in evidence.effects
        if effect["idempotency_key"] and effect["kind"] not in ("authorized", "declined")
    )
    for payment in evidence.payments:
        if payment["charged"] and payment["payment_intent_id"] not in captured:
            yield "charged on our side alone", payment["payment_id"]
    for movement in evidence.movements:
        kind = _MOVED.get(movement["kind"])
        if kind and (kind, movement["movement_id"]) not in done:
            yield f"{movement['movement_id']} is on our side alone", movement["payment_id"]
    for operation in evidence.operations:
        count, payment_id = keys[operation["operation_id"]], operation["payment_id"] or ""
        what = f"{operation['kind']} {operation['operation_id']}"
        if operation["state"] == "SUCCEEDED" and not count:
            yield f"{what} succeeded without an effect", payment_id
        if operation["state"] == "REFUSED" and count:
            yield f"{what} was refused, yet had an effect", payment_id


@_check
def states_agree_with_stripe(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Where a payment stands is where its intent stands."""
    allowed = {
        "requires_payment_method": {"PENDING", "FAILED"},
        "requires_confirmation": {"PENDING", "FAILED"},
        "requires_action": {"PENDING", "FAILED"},
        "processing": {"PENDING"},
        "requires_capture": {"IN_ESCROW"},
        "succeeded": {"CAPTURED", "REFUNDED", "held by the platform"},
        "canceled": {"CANCELED", "EXPIRED"},
    }
    payment_of = evidence.payment_of_intent()
    for intent in evidence.intents:
        payment = payment_of.get(intent["id"])
        if payment is None:
            continue
        state = payment["state"]
        if state == "IN_ESCROW" and payment["charged"]:
            state = "held by the platform"
        if state not in allowed[intent["status"]]:
            yield f"{intent['status']} at Stripe, {state} on our side", payment["payment_id"]


# ---- books ----


@_check
def postings_sum_to_zero(evidence: Evidence) -> Iterator[tuple[str, str]]:
    sums: Counter[tuple[str, int, str]] = Counter()
    for row in evidence.postings:
        sums[row["payment_id"], row["sequence"], row["currency"]] += row["minor_units"]
    for (payment_id, sequence, currency), total in sums.items():
        if total:
            yield f"event {sequence} is off by {total} {currency}", payment_id


@_check
def books_equal_stripe(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each of Stripe's balance transactions moved what our postings on it say, to the unit."""
    ours: Counter[tuple[str, str, str]] = Counter()
    payment_of: dict[str, str] = {}
    for row in evidence.postings:
        if row["account"].startswith("stripe:"):
            line = row["balance_transaction_id"]
            ours[row["account"], row["currency"].strip(), line] += row["minor_units"]
            payment_of[line] = row["payment_id"]
    theirs: Counter[tuple[str, str, str]] = Counter()
    for name, line in evidence.lines:
        theirs[name, line["currency"].upper(), line["id"]] += line["net"]
    for key in ours.keys() | theirs.keys():
        if ours[key] != theirs[key]:
            account, currency, line_id = key
            what = f"{account} {line_id}: ours {ours[key]}, Stripe's {theirs[key]} {currency}"
            yield what, payment_of.get(line_id, "")


@_check
def nothing_stays_between_accounts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """At rest escrow is what the platform holds, the memo what cards hold, and none is overpaid."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in evidence.postings:
        sums[row["account"], row["currency"].strip()] += row["minor_units"]
    held: Counter[str] = Counter()
    escrow: Counter[tuple[str, str]] = Counter()
    for payment in evidence.payments:
        currency = payment["currency"].strip()
        if payment["charged"]:
            escrow[f"escrow:{payment['payment_id']}", currency] = -payment["held"]
        else:
            held[currency] += payment["held"]
    for account, currency in sums.keys() | escrow.keys():
        total, wanted = sums[account, currency], escrow[account, currency]
        known = account.startswith(("escrow:", "client_payable:", "losses"))
        if known and total != wanted:
            what = f"{account} stands at {total} {currency}, not at {wanted}"
            yield what, account.partition(":")[2]
        # What Stripe does not take back from an expert is owed; no more of it is kept back.
        if account.startswith("expert_debt:") and total < 0:
            yield f"{account} was kept back {-total} {currency} too much", ""
    for currency in held.keys() | {c for account, c in sums if account == "hold"}:
        if sums["hold", currency] != held[currency]:
            yield f"hold is {sums['hold', currency]}, payments hold {held[currency]} {currency}", ""


def commission_of(minor_units: int, basis_points: int, currency: str) -> int:
    """Half up, once, in whole steps of the currency."""
    step = {"ISK": 100, "UGX": 100, "BHD": 10, "JOD": 10, "KWD": 10, "OMR": 10, "TND": 10}
    unit = step.get(currency, 1)
    return unit * ((minor_units // unit * basis_points + 5000) // 10000)


@_check
def amounts_add_up(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """refunded ≤ captured ≤ authorised; the commission is exact, whatever the order of parts."""
    for row in evidence.payments:
        payment_id, currency = row["payment_id"], row["currency"].strip()
        rate = row["commission_basis_points"]
        if not 0 <= row["refunded"] <= row["captured"] <= row["amount"]:
            yield f"{row['refunded']} ≤ {row['captured']} ≤ {row['amount']} is false", payment_id
        is_separate = row["charge_model"] == "SEPARATE"
        if row["held"] and row["captured"] and not is_separate:
            yield "held and captured at once", payment_id
        parts = row["held"] + row["captured"] + row["returned"]
        if row["charged"] and row["charged"] != parts:
            yield f"charged {row['charged']}, which is not {parts} as it went on", payment_id
        if not row["charged"] and row["captured"] + row["returned"]:
            yield "paid out or given back without a charge", payment_id
        if row["commission"] != commission_of(row["amount"], rate, currency):
            yield f"commission {row['commission']} of {row['amount']} at {rate}", payment_id
        if row["commission"] + row["expert_amount"] != row["amount"]:
            yield "commission and expert's amount are not the whole", payment_id
        net = row["captured"] - row["refunded"]
        if row["net_commission"] != commission_of(net, rate, currency):
            yield f"net commission {row['net_commission']} of {net} at {rate}", payment_id


@_check
def held_money_is_paid_once(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Of a charge on the platform no more goes out than came in, and the expert has what is due."""
    owed: Counter[str] = Counter()
    for row in evidence.postings:
        if row["account"].startswith("expert_debt:"):
            owed[row["payment_id"]] += row["minor_units"]
    at_stripe: dict[str, Counter[str]] = defaultdict(Counter)
    for effect in evidence.effects:
        at_stripe[effect["payment_intent"] or ""][effect["kind"]] += effect["amount"] or 0
    for row in evidence.payments:
        if row["charge_model"] != "SEPARATE" or not row["payment_intent_id"]:
            continue
        payment_id, moved = row["payment_id"], at_stripe[row["payment_intent_id"]]
        back = row["returned"] + row["refunded"]
        if moved["refunded"] != back:
            yield f"the client got {moved['refunded']} back at Stripe, {back} here", payment_id
        if moved["refunded"] > moved["captured"]:
            yield f"{moved['refunded']} came back of {moved['captured']}", payment_id
        held = row["held"] if row["charged"] else 0
        out = moved["transferred"] + row["returned"] + held
        if out > moved["captured"]:
            yield f"{out} is held, returned or transferred of {moved['captured']}", payment_id
        has = moved["transferred"] - moved["reversed"]
        due = row["captured"] - row["refunded"] - row["net_commission"] + owed[payment_id]
        if has != due:
            yield f"the expert has {has} of it, due is {due}", payment_id


@_check
def debts_have_a_reason(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What an expert must give back is reversed, or owed: because Stripe refused the reversal, or
    because it was kept back for an older debt and so never transferred."""
    refused = {
        row["payment_id"]
        for row in evidence.operations
        if row["kind"] == "reverse_transfer" and row["state"] == "REFUSED"
    }
    for payment_id, events in _events(evidence).items():
        sums: Counter[str] = Counter()
        for event in events:
            facts = json.loads(event["body"]).get("facts", {})
            name = "expert_part" if event["kind"] == "payment.client_refunded" else "amount"
            sums[event["kind"]] += facts.get(name) or 0
            if event["kind"] == "payment.captured":
                sums["netted"] += facts.get("netted") or 0
        due, owed = sums["payment.client_refunded"], sums["payment.expert_owes"]
        if due != sums["payment.expert_reversed"] + owed:
            settled = f"{sums['payment.expert_reversed']} was reversed, {owed} is owed"
            yield f"{due} was to come back from the expert; {settled}", payment_id
        if owed > sums["netted"] and payment_id not in refused:
            yield f"{owed} is owed, though Stripe refused no reversal", payment_id


# ---- history ----

#: Where each state may lead by this service's own doing.
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


@_check
def states_move_along_edges(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """One event a version, each from where the former ended, along an edge that is declared."""
    models = {row["payment_id"]: row["charge_model"] for row in evidence.payments}
    for payment_id, events in _events(evidence).items():
        more = SEPARATE_EDGES if models.get(payment_id) == "SEPARATE" else {}
        former = ""
        for number, event in enumerate(events, 1):
            body = json.loads(event["body"])
            if event["sequence"] != number:
                yield f"event {number} is missing", payment_id
                break
            if (body["from"] or "") != former:
                yield f"event {number} is from {body['from']}, but it was {former}", payment_id
            if former and body["to"] not in EDGES.get(former, set()) | more.get(former, set()):
                yield f"event {number} goes from {former} to {body['to']}", payment_id
            former = body["to"]
    histories = _events(evidence)
    for payment in evidence.payments:
        payment_id = payment["payment_id"]
        last = histories[payment_id][-1:]
        if not last or last[0]["sequence"] != payment["version"]:
            yield f"version {payment['version']} has no event of its own", payment_id
        elif json.loads(last[0]["body"])["to"] != payment["state"]:
            yield f"the row says {payment['state']}, its last event does not", payment_id


@_check
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
        yield "the feed tells of a payment that is not there", payment_id


@_check
def chain_is_intact(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The hashes computed again over the stored bytes, and each head on its payment's row."""
    heads = {}
    for payment_id, events in _events(evidence).items():
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


@_check
def acknowledged_is_kept(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What an answer showed of a payment is what its history says of that version."""
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
        kept = (amounts["held"], amounts["captured"], amounts["refunded"])
        if body["to"] != seen.state or kept != seen.amounts:
            what = f"{entry.rpc} {entry.key} showed {seen.state} {seen.amounts} at version "
            yield f"{what}{seen.version}, history has {body['to']} {kept}", seen.payment_id


@_check
def no_answer_goes_back(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Whoever reads after somebody was told a version gets that version or a later one."""
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


@_check
def same_key_same_bytes(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Every definite answer to one key is the same, byte for byte."""
    answers: dict[tuple[str, str], set[tuple[str, bytes]]] = defaultdict(set)
    for entry in evidence.history.entries:
        # What was never stored is evaluated anew.
        if entry.key and entry.code in ("OK", "FAILED_PRECONDITION"):
            answers[entry.rpc, entry.key].add((entry.code, entry.body))
    for (rpc, key), given in answers.items():
        if len(given) > 1:
            codes = ", ".join(sorted(code for code, _ in given))
            yield f"{rpc} {key} got {len(given)} different answers: {codes}", ""


@_check
def every_key_is_answered(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for key in evidence.unanswered:
        yield f"{key} never got a definite answer", ""
    open_ = {row["operation_id"] for row in evidence.operations if row["settle_time"] is None}
    for claim in evidence.claims:
        if claim["answer"] is None and claim["operation_id"] not in open_:
            yield (
                f"the claim of {claim['key']} has no answer and no operation",
                str(claim["payment_id"] or ""),
            )


@_check
def only_declared_errors(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Never UNKNOWN, INTERNAL or a deadline of the service's making; nothing unforeseen."""
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


@_check
def nothing_was_wrong_on_the_way(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What callers themselves noticed: a forged webhook taken, a key with other content taken."""
    for what in evidence.wrong:
        yield what, ""
    for what in evidence.ended:
        yield what, ""


# ---- rest ----


@_check
def everything_is_settled(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if not evidence.converged:
        yield "it did not come to rest in time", ""
    for row in evidence.operations:
        if row["state"] in ("STARTED", "UNKNOWN", "PARKED"):
            what = f"{row['kind']} {row['operation_id']} is {row['state']} ({row['last_error']})"
            yield what, row["payment_id"] or ""
    for row in evidence.inbox:
        if row["state"] in ("WAITING", "PARKED"):
            yield f"{row['type']} {row['event_id']} is {row['state']} ({row['last_error']})", ""


@_check
def no_discrepancies(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for row in evidence.discrepancies:
        yield f"{row['kind']}: {row['detail']}", row["payment_id"]


@_check
def no_webhook_lost(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """An event whose webhook was acknowledged is in the inbox, and nothing else is there."""
    known = {row["event_id"] for row in evidence.inbox}
    sent = {row["event"] for row in evidence.deliveries}
    for row in evidence.deliveries:
        if row["state"] == "delivered" and row["event"] not in known:
            yield f"{row['type']} {row['event']} was acknowledged and is not stored", ""
    for row in evidence.inbox:
        if row["event_id"] not in sent:
            yield f"{row['type']} {row['event_id']} is stored, but Stripe never sent it", ""


@_check
def no_secret_in_sight(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for line in evidence.leaks:
        yield line, ""


@_check
def every_fault_struck(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A run in which an armed fault never came about proves nothing about it."""
    for kind in evidence.armed:
        if evidence.injected[kind] < evidence.least:
            yield f"{kind} struck {evidence.injected[kind]} times, wanted {evidence.least}", ""


def _events(evidence: Evidence) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for event in evidence.events:
        found[event["payment_id"]].append(event)
    return found


def _payment_id(evidence: Evidence, intent: str) -> str:
    return str(evidence.payment_of_intent().get(intent, {}).get("payment_id", ""))
