"""The arithmetic of money once more: commission, and how a lost dispute is divided."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from chaos.checks.registry import events_of
from chaos.evidence import Evidence
from marketplace.payments.v1 import operations_pb2


def commission_of(minor_units: int, basis_points: int, currency: str) -> int:
    """Half up, once, in whole steps of the currency."""
    step = {"ISK": 100, "UGX": 100, "BHD": 10, "JOD": 10, "KWD": 10, "OMR": 10, "TND": 10}
    unit = step.get(currency, 1)
    return unit * ((minor_units // unit * basis_points + 5000) // 10000)


@dataclass(frozen=True, slots=True)
class Loss:
    """What the bank keeps of one dispute, and who pays for it."""

    payment_id: str
    sequence: int
    dispute_id: str
    currency: str
    amount: int
    #: Had been owed to the client, was held, was the platform's, was the expert's, and the rest,
    #: which the client had been given back before.
    owed: int
    held: int
    commission: int
    expert: int
    beyond: int

    @property
    def captured(self) -> int:
        return self.commission + self.expert


def losses_of(evidence: Evidence) -> Iterator[Loss]:
    """Every loss as it must be divided, by what each payment stood at in the moment before."""
    payments = {row["payment_id"]: row for row in evidence.payments}
    for payment_id, events in events_of(evidence).items():
        payment = payments.get(payment_id)
        if payment is None:
            continue
        rate, currency = payment["commission_basis_points"], payment["currency"].strip()
        lost = 0
        before = {"held": 0, "captured": 0, "refunded_after_capture": 0}
        for event in events:
            body = json.loads(event["body"])
            amount = body.get("facts", {}).get("amount")
            if event["kind"] == "payment.dispute_lost" and amount:
                net = before["captured"] - before["refunded_after_capture"] - lost
                owed = min(amount, before.get("client_payable", 0))
                held = min(amount - owed, before["held"])
                rest = min(amount - owed - held, net)
                commission = commission_of(net, rate, currency)
                commission -= commission_of(net - rest, rate, currency)
                lost += rest
                yield Loss(
                    payment_id,
                    event["sequence"],
                    body["facts"]["dispute_id"],
                    currency,
                    amount,
                    owed,
                    held,
                    commission,
                    rest - commission,
                    amount - owed - held - rest,
                )
            before = body["amounts"]


def written_off(evidence: Evidence) -> dict[tuple[str, str], list[int]]:
    """Returns what operators' calls wrote off, by expert and currency, one amount for each key."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    keys: set[str] = set()
    for entry in evidence.history.entries:
        if entry.rpc == "WriteOffExpertDebt" and entry.outcome == "ok" and entry.key not in keys:
            keys.add(entry.key)
            answer = operations_pb2.WriteOffExpertDebtResponse.FromString(entry.body)
            part = answer.written_off_amount
            found[answer.expert_id, part.currency_code].append(part.minor_units)
    return found
