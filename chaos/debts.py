"""What experts owe although their accounts could pay it, by the books and by Stripe."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

#: Less than this is not worth a reversal, unless it is all; minor units.
_LEAST = 100


def collectible(
    postings: Sequence[Row],
    payments: Sequence[Row],
    movements: Sequence[Row],
    transfers: Sequence[Row],
    available: Mapping[tuple[str, str], int],
) -> Iterator[tuple[str, str]]:
    """Yields what could be taken and whose payment it is of.

    A debt is taken out of the transfers of the payment that left it. ``available`` is what each
    account has, by its id and the currency.
    """
    owed: Counter[tuple[str, str]] = Counter()
    left_by: Counter[str] = Counter()
    for row in postings:
        name, _, expert_id = row["account"].partition(":")
        if name == "expert_debt":
            owed[expert_id, row["currency"].strip()] += row["minor_units"]
            left_by[row["payment_id"] or ""] += row["minor_units"]
    owner = {row["movement_id"]: row["payment_id"] for row in movements}
    made: dict[str, list[Row]] = defaultdict(list)
    for transfer in transfers:
        made[owner.get(transfer["id"], "")].append(transfer)
    for payment in payments:
        payment_id, currency = payment["payment_id"], payment["currency"].strip()
        debt = min(owed[payment["expert_id"], currency], left_by[payment_id])
        for transfer in made[payment_id] if debt > 0 else ():
            account = transfer["destination"]
            has = available.get((account, transfer["currency"]), 0)
            bearable = min(transfer["amount"] - transfer["amount_reversed"], has)
            amount = min(debt, _valued(bearable, transfer, payment))
            if amount > 0 and amount >= min(debt, _LEAST):
                yield f"{debt} {currency} is owed, and {account} could pay {amount}", payment_id


def _valued(minor_units: int, transfer: Row, payment: Row) -> int:
    """Returns an amount of a transfer in the payment's currency; less rather than more."""
    if transfer["currency"].upper() == payment["currency"].strip():
        return minor_units
    one = -(-payment["captured"] // transfer["amount"])
    return int(minor_units * payment["captured"] // transfer["amount"] - 2 * one)
