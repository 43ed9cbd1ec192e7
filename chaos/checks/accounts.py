"""Experts' accounts: one for each replacement, and money only to the one that the expert had."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from chaos.checks.registry import check, events_of, facts_of
from chaos.evidence import Evidence
from marketplace.payments.v1 import experts_pb2

_EVER, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
#: Stripe's times are whole seconds, and its clock need not be the database's to the second.
_CLOCKS = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Tenure:
    """Whose an account was, and from when until when."""

    expert_id: str
    since: datetime
    until: datetime


def _tenures(evidence: Evidence) -> dict[str, Tenure]:
    found: dict[str, Tenure] = {}
    since: dict[str, datetime] = {}
    for row in evidence.former_accounts:  # In the order of their exchange.
        expert_id = row["expert_id"]
        began = since.get(expert_id, _EVER)
        found[row["stripe_account_id"]] = Tenure(expert_id, began, row["replace_time"])
        since[expert_id] = row["replace_time"]
    for row in evidence.experts:
        began = since.get(row["expert_id"], _EVER)
        found[row["stripe_account_id"]] = Tenure(row["expert_id"], began, _NEVER)
    return found


@check
def one_account_per_exchange(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Stripe made as many as each expert had; the lost ones were replaced, and no others."""
    accounts: dict[str, list[str]] = defaultdict(list)
    for row in (*evidence.former_accounts, *evidence.experts):
        accounts[row["expert_id"]].append(row["stripe_account_id"])
    made: Counter[str] = Counter()
    for effect in evidence.effects:
        if effect["kind"] == "account_created":
            made[effect["metadata"].get("expert_id", "")] += 1
    for expert_id in accounts.keys() | made.keys():
        if made[expert_id] != len(accounts[expert_id]):
            yield f"{expert_id} had {accounts[expert_id]}; {made[expert_id]} were made", ""
    for row in evidence.former_accounts:
        if row["stripe_account_id"] not in evidence.lost_accounts:
            yield f"{row['stripe_account_id']} of {row['expert_id']} was replaced, but well", ""
    for row in evidence.experts:
        if row["stripe_account_id"] in evidence.lost_accounts:
            yield f"{row['expert_id']} still has {row['stripe_account_id']}, which is rejected", ""


@check
def exchanges_are_answered_right(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each key that was answered with another account has one of its own, which the expert got."""
    later = {row["stripe_account_id"]: row["expert_id"] for row in evidence.experts}
    first: dict[str, str] = {}
    for row in evidence.former_accounts:
        later[row["stripe_account_id"]] = row["expert_id"]
        first.setdefault(row["expert_id"], row["stripe_account_id"])
    answered: dict[str, str] = {}
    for entry in evidence.history.entries:
        if entry.rpc != "ReplaceExpertAccount" or entry.outcome != "ok":
            continue
        expert = experts_pb2.ReplaceExpertAccountResponse.FromString(entry.body).expert
        account, expert_id = expert.stripe_account_id, expert.expert_id
        key = answered.setdefault(account, entry.key)
        if key != entry.key:
            yield f"{account} was made for {key} and for {entry.key}", ""
        if later.get(account) != expert_id or first.get(expert_id, account) == account:
            yield f"{entry.key} was answered {account}, which did not come to {expert_id}", ""


@check
def money_goes_to_the_present_account(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A transfer reaches an account that its expert had between the order and the transfer; a
    destination charge pays the account of its initiation, or nobody."""
    whose = _tenures(evidence)
    payments = {row["payment_id"]: row for row in evidence.payments}
    operations = {row["operation_id"]: row for row in evidence.operations}
    movements = {row["movement_id"]: row for row in evidence.movements}
    for transfer in evidence.transfers:
        destination, booked = transfer["destination"], movements.get(transfer["id"])
        payment = payments.get(booked["payment_id"]) if booked else None
        if booked is None or payment is None:
            yield f"{transfer['id']} to {destination} is not on the books", ""
            continue
        payment_id, expert_id = payment["payment_id"], payment["expert_id"]
        tenure = whose.get(destination)
        if tenure is None or tenure.expert_id != expert_id:
            yield f"{transfer['id']} went to {destination}, never {expert_id}'s", payment_id
        elif payment["charge_model"] != "SEPARATE":
            if destination != payment["destination_account_id"]:
                yield f"{transfer['id']} went to {destination}, not as initiated", payment_id
        else:
            begun = operations[booked["operation_id"]]["create_time"]
            sent = datetime.fromtimestamp(transfer["created"], UTC)
            if tenure.until < begun or tenure.since > sent + _CLOCKS:
                yield f"{transfer['id']} went to {destination}, not {expert_id}'s then", payment_id


@check
def no_former_account_is_captured_for(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A destination is fixed when the card is authorized; once it is a former one, none begins."""
    whose = _tenures(evidence)
    payments = {row["payment_id"]: row for row in evidence.payments}
    for payment_id, events in events_of(evidence).items():
        payment = payments.get(payment_id)
        if payment is None or payment["charge_model"] == "SEPARATE":
            continue
        tenure = whose.get(payment["destination_account_id"])
        for event in events:
            begins = event["kind"] == "payment.capture_started"
            if begins and (tenure is None or event["time"] > tenure.until):
                yield f"event {event['sequence']} captures for a former account", payment_id


@check
def what_waited_has_gone_on(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """At rest every expert can be paid, so that no capture waits; and each that did said why."""
    for payment in evidence.payments:
        if payment["waiting_for"] == "expert":
            yield f"it still waits: {payment['waiting_reason']}", payment["payment_id"]
    for payment_id, events in events_of(evidence).items():
        for event in events:
            facts = facts_of(event)
            if facts.get("waiting_for") == "expert" and not facts.get("waiting_reason"):
                yield f"event {event['sequence']} waits and does not say why", payment_id
