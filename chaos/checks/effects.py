"""What was done at Stripe, compared with our records of it."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from chaos.checks.registry import check, operation_of, payment_id_of
from chaos.evidence import Evidence


@check
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
        elif kind in ("evidence_submitted", "evidence_staged"):
            done[kind, operation_of(effect) or effect["object"]] += 1
        elif kind == "dispute_accepted":
            done[kind, effect["object"]] += 1
        elif kind == "intent_created":
            done[kind, metadata.get("payment_id", effect["object"])] += 1
        elif kind == "account_created":
            done[kind, operation_of(effect) or effect["object"]] += 1
        if kind not in ("authorized", "declined") and effect["idempotency_key"]:
            done[f"{kind} under one key", effect["idempotency_key"]] += 1
    for (kind, whose), count in done.items():
        if count > 1:
            payment = payment_of.get(whose, {}).get("payment_id", whose)
            yield f"{kind} {count} times for {whose}", payment


@check
def one_end_per_payment(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """An authorization is captured, cancelled or expired: exactly one of them."""
    ends: dict[str, set[str]] = defaultdict(set)
    for effect in evidence.effects:
        if effect["kind"] in ("captured", "canceled", "expired"):
            ends[effect["payment_intent"]].add(effect["kind"])
    for intent, kinds in ends.items():
        if len(kinds) > 1:
            yield f"{intent} was {' and '.join(sorted(kinds))}", payment_id_of(evidence, intent)


#: Movements on our side, and what each is at Stripe.
_MOVED = {"refund": "refunded", "reversal": "reversed", "transfer": "transferred"}


@check
def no_phantom_effect(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Everything that we did at Stripe is recorded on our side, with its amount."""
    payment_of = evidence.payment_of_intent()
    movements = {row["movement_id"]: row for row in evidence.movements}
    everyone = (*evidence.experts, *evidence.former_accounts)
    accounts = {row["stripe_account_id"] for row in everyone}
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
            # What Stripe converted is booked in the payment's currency.
            same = effect["currency"].upper() == payment["currency"].strip()
            if booked is None or (same and booked["minor_units"] != effect["amount"]):
                yield f"{kind} {id_} of {effect['amount']} is not on the books", payment_id


@check
def no_effect_lost(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What our side says was done at Stripe was done there."""
    done = {(effect["kind"], effect["object"]) for effect in evidence.effects}
    captured = {e["payment_intent"] for e in evidence.effects if e["kind"] == "captured"}
    kept = {e["object"] for e in evidence.effects if e["kind"] == "dispute_lost"}
    # A refund that waited for funds and was never paid had no effect.
    unpaid = {
        refund["id"]
        for refund in evidence.refunds
        if refund["status"] == "failed" and refund["balance_transaction"] is None
    }
    keys: Counter[str] = Counter(
        operation_of(effect)
        for effect in evidence.effects
        if effect["idempotency_key"]
        and effect["kind"] not in ("authorized", "declined")
        and effect["object"] not in unpaid
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
        # An acceptance is known only by its result, and the bank may have decided so by itself.
        same = operation["kind"] == "accept_dispute" and operation["dispute_id"] in kept
        if operation["state"] == "SUCCEEDED" and not count and not same:
            yield f"{what} succeeded without an effect", payment_id
        if operation["state"] == "REFUSED" and count:
            yield f"{what} was refused, yet had an effect", payment_id


@check
def states_agree_with_stripe(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The state of a payment agrees with the state of its intent."""
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
