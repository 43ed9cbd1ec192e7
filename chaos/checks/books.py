"""The ledger, the amounts of payments, and what is owed: to the unit."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from chaos.checks.arithmetic import commission_of, losses_of, written_off
from chaos.checks.registry import check, events_of, facts_of, failed_refunds_of
from chaos.evidence import Evidence


@check
def postings_sum_to_zero(evidence: Evidence) -> Iterator[tuple[str, str]]:
    sums: Counter[tuple[str, str, int, str]] = Counter()
    for row in evidence.postings:
        whose = (row["payment_id"] or "", row["expert_id"] or "")
        sums[*whose, row["sequence"], row["currency"]] += row["minor_units"]
    for (payment_id, expert_id, sequence, currency), total in sums.items():
        if total:
            of = f" of {expert_id}" if expert_id else ""
            yield f"event {sequence}{of} is off by {total} {currency}", payment_id


@check
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
        if line.get("source", "") is None and line["id"] not in payment_of:
            continue  # Stripe's own, such as the fee for countering: reconciliation books it.
        theirs[name, line["currency"].upper(), line["id"]] += line["net"]
    for key in ours.keys() | theirs.keys():
        if ours[key] != theirs[key]:
            account, currency, line_id = key
            what = f"{account} {line_id}: ours {ours[key]}, Stripe's {theirs[key]} {currency}"
            yield what, payment_of.get(line_id, "")


@check
def nothing_stays_between_accounts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """At rest the escrow account is what the platform holds, and the memo what cards hold."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in evidence.postings:
        sums[row["account"], row["currency"].strip()] += row["minor_units"]
    held: Counter[str] = Counter()
    # What disputes took that the client had been given back before is the platform's loss, and so
    # is what operators wrote off.
    wanted: Counter[tuple[str, str]] = Counter()
    for loss in losses_of(evidence):
        wanted["losses", loss.currency] += loss.beyond
    for (_, currency), parts in written_off(evidence).items():
        wanted["losses", currency] += sum(parts)
    for payment in evidence.payments:
        currency = payment["currency"].strip()
        if payment["charged"]:
            wanted[f"escrow:{payment['payment_id']}", currency] = -payment["held"]
        else:
            held[currency] += payment["held"]
    for account, currency in sums.keys() | wanted.keys():
        total, due = sums[account, currency], wanted[account, currency]
        known = account.startswith(("escrow:", "client_payable:", "pending_refund:", "losses"))
        if known and total != due:
            what = f"{account} stands at {total} {currency}, not at {due}"
            yield what, account.partition(":")[2]
        # What Stripe does not take back from an expert is owed; no more of it is kept back.
        if account.startswith("expert_debt:") and total < 0:
            yield f"{account} was kept back {-total} {currency} too much", ""
    for currency in held.keys() | {c for account, c in sums if account == "hold"}:
        if sums["hold", currency] != held[currency]:
            yield f"hold is {sums['hold', currency]}, payments hold {held[currency]} {currency}", ""


@check
def amounts_add_up(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Refunded and lost ≤ captured ≤ authorized; the commission is exact, in any order."""
    for row in evidence.payments:
        payment_id, currency = row["payment_id"], row["currency"].strip()
        rate = row["commission_basis_points"]
        gone = row["refunded_after_capture"] + row["lost"]
        if not 0 <= gone <= row["captured"] <= row["amount"]:
            yield f"{gone} ≤ {row['captured']} ≤ {row['amount']} is false", payment_id
        is_separate = row["charge_model"] == "SEPARATE"
        if row["held"] and row["captured"] and not is_separate:
            yield "held and captured at once", payment_id
        parts = row["held"] + row["captured"] + row["refunded_from_escrow"] + row["lost_held"]
        if row["charged"] and row["charged"] != parts:
            yield f"charged {row['charged']}, which is not {parts} as it went on", payment_id
        if not row["charged"] and row["captured"] + row["refunded_from_escrow"] + row["lost_held"]:
            yield "paid out, given back or lost without a charge", payment_id
        if row["commission"] != commission_of(row["amount"], rate, currency):
            yield f"commission {row['commission']} of {row['amount']} at {rate}", payment_id
        if row["commission"] + row["expert_amount"] != row["amount"]:
            yield "commission and expert's amount are not the whole", payment_id
        net = row["captured"] - gone
        if row["net_commission"] != commission_of(net, rate, currency):
            yield f"net commission {row['net_commission']} of {net} at {rate}", payment_id


@check
def held_money_is_paid_once(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Of a charge on the platform no more goes out than came in, and the expert has what is due."""
    owed: Counter[str] = Counter()
    for row in evidence.postings:
        if row["account"].startswith("expert_debt:"):
            owed[row["payment_id"]] += row["minor_units"]
    paid_otherwise = Counter(_settled(evidence))
    for loss in losses_of(evidence):
        paid_otherwise[loss.payment_id] += loss.owed
    at_stripe: dict[str, Counter[str]] = defaultdict(Counter)
    for effect in evidence.effects:
        at_stripe[effect["payment_intent"] or ""][effect["kind"]] += effect["amount"] or 0
    for row in evidence.payments:
        if row["charge_model"] != "SEPARATE" or not row["payment_intent_id"]:
            continue
        payment_id, moved = row["payment_id"], at_stripe[row["payment_intent_id"]]
        back = row["refunded_from_escrow"] + row["refunded_after_capture"]
        got = moved["refunded"] - moved["refund_failed"]
        otherwise = paid_otherwise[payment_id]
        if got + otherwise != back:
            yield f"the client got {got} back at Stripe, {back} less {otherwise} here", payment_id
        if got > moved["captured"]:
            yield f"{got} came back of {moved['captured']}", payment_id
        held = row["held"] + row["lost_held"] if row["charged"] else 0
        out = moved["transferred"] + row["refunded_from_escrow"] + held
        if out > moved["captured"]:
            yield f"{out} is held, gone or transferred of {moved['captured']}", payment_id
        has = moved["transferred"] - moved["reversed"]
        net = row["captured"] - row["refunded_after_capture"] - row["lost"]
        due = net - row["net_commission"] + owed[payment_id]
        if has != due:
            yield f"the expert has {has} of it, due is {due}", payment_id


def _settled(evidence: Evidence) -> Counter[str]:
    """Returns what clients were paid outside of Stripe, by payment."""
    found: Counter[str] = Counter()
    for payment_id, events in events_of(evidence).items():
        for event in events:
            if event["kind"] == "payment.client_payable_settled":
                found[payment_id] += facts_of(event)["amount"]
    return found


#: Events by which the expert's part is to come back.
_TAKEN_BACK = ("payment.client_refunded", "payment.dispute_lost")


def _came_due(evidence: Evidence) -> Counter[tuple[str, str]]:
    """By expert and currency what was to come back, less what did and what was kept back."""
    owners = {row["payment_id"]: row for row in evidence.payments}
    due: Counter[tuple[str, str]] = Counter()
    for payment_id, events in events_of(evidence).items():
        if payment_id not in owners:
            continue
        whose = (owners[payment_id]["expert_id"], owners[payment_id]["currency"].strip())
        for event in events:
            facts = facts_of(event)
            if event["kind"] in (*_TAKEN_BACK, "payment.refund_accepted"):
                due[whose] += facts.get("expert_amount") or 0
            elif event["kind"] in ("payment.transfer_reversed", "payment.debt_collected"):
                due[whose] -= facts["amount"]
            elif event["kind"] == "payment.captured":
                due[whose] -= facts.get("debt_offset") or 0
    return due


@check
def debts_are_what_is_left(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """An expert owes what was to come back, less what did, was kept back or was written off: each
    of it once."""
    due = _came_due(evidence)
    booked: dict[tuple[str, str], list[int]] = defaultdict(list)
    owed: Counter[tuple[str, str]] = Counter()
    for row in evidence.postings:
        name, _, expert_id = row["account"].partition(":")
        if name == "expert_debt":
            owed[expert_id, row["currency"].strip()] += row["minor_units"]
            if row["kind"] == "debt_written_off":
                booked[expert_id, row["currency"].strip()].append(-row["minor_units"])
    told = written_off(evidence)
    for whose in due.keys() | owed.keys() | told.keys():
        expert_id, currency = whose
        if sorted(booked[whose]) != sorted(told[whose]):
            what = f"{sorted(booked[whose])} {currency} were written off of {expert_id}"
            yield f"{what}, told was {sorted(told[whose])}", ""
        left = due[whose] - sum(told[whose])
        if owed[whose] != left:
            yield f"{expert_id} owes {owed[whose]} {currency}, left of it should be {left}", ""


@check
def debts_have_a_reason(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What an expert must give back is reversed, or owed: because Stripe refused the reversal,
    because it was kept back for an older debt and so never transferred, or because it is less than
    one unit of what Stripe has converted."""
    unit = _converted_units(evidence)
    refused = {
        row["payment_id"]
        for row in evidence.operations
        if row["kind"] == "reverse_transfer" and row["state"] == "REFUSED"
    }
    for payment_id, events in events_of(evidence).items():
        sums: Counter[str] = Counter()
        for event in events:
            facts = facts_of(event)
            name = "expert_amount" if event["kind"] in _TAKEN_BACK else "amount"
            sums[event["kind"]] += facts.get(name) or 0
            if event["kind"] == "payment.captured":
                sums["debt_offset"] += facts.get("debt_offset") or 0
            elif event["kind"] == "payment.expert_debt_recorded":
                sums["too small"] += facts["amount"] if facts["amount"] < unit[payment_id] else 0
        due, owed = sum(sums[kind] for kind in _TAKEN_BACK), sums["payment.expert_debt_recorded"]
        if due != sums["payment.transfer_reversed"] + owed:
            settled = f"{sums['payment.transfer_reversed']} was reversed, {owed} is owed"
            yield f"{due} was to come back from the expert; {settled}", payment_id
        unexplained = owed - sums["debt_offset"] - sums["too small"]
        if unexplained > 0 and payment_id not in refused:
            yield f"{owed} is owed, though Stripe refused no reversal", payment_id


def _converted_units(evidence: Evidence) -> Counter[str]:
    """By payment what one unit of its transfer is worth, rounded up, if Stripe has converted it."""
    payments = {row["payment_id"]: row for row in evidence.payments}
    owner = {row["movement_id"]: row["payment_id"] for row in evidence.movements}
    units: Counter[str] = Counter()
    for transfer in evidence.transfers:
        payment = payments.get(owner.get(transfer["id"], ""))
        if payment and payment["currency"].strip() != transfer["currency"].upper():
            units[payment["payment_id"]] = -(-payment["captured"] // transfer["amount"])
    return units


@check
def due_is_taken_back_once(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Of each payment no more is taken back from its expert than came due: what the expert owes for
    other payments comes out of their transfers."""
    for payment_id, events in events_of(evidence).items():
        due = taken = 0
        for event in events:
            facts = facts_of(event)
            if event["kind"] in (*_TAKEN_BACK, "payment.refund_accepted"):
                due += facts.get("expert_amount") or 0
            elif event["kind"] in ("payment.transfer_reversed", "payment.debt_collected"):
                taken += facts["amount"]
        if taken > due:
            yield f"{taken} was taken back from the expert, due was {due}", payment_id


#: Events by which a refund that the client was promised is payable again.
_FAILED = ("payment.refund_failed", "payment.pending_refund_failed")


def _told_of_bounces(evidence: Evidence) -> dict[str, Counter[str]]:
    """By payment what failed, what was repaid at Stripe, and what was paid or kept otherwise."""
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for payment_id, events in events_of(evidence).items():
        for event in events:
            if event["kind"] in _FAILED:
                told[payment_id]["failed"] += facts_of(event)["amount"]
            elif event["kind"] == "payment.client_repaid":
                told[payment_id]["repaid"] += facts_of(event)["amount"]
            elif event["kind"] in ("payment.client_refunded", "payment.refund_accepted"):
                told[payment_id]["otherwise"] += facts_of(event).get("from_payable") or 0
    for payment_id, amount in _settled(evidence).items():
        told[payment_id]["otherwise"] += amount
    for loss in losses_of(evidence):
        told[loss.payment_id]["otherwise"] += loss.owed
    return told


@check
def bounces_are_paid_again(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each failed refund is booked as such, once; and the same amount was repaid, by operations
    for nothing else, paid outside of Stripe, or kept by the client's bank."""
    movements = {row["movement_id"]: row for row in evidence.movements}
    told = _told_of_bounces(evidence)
    failed: Counter[str] = Counter()
    for refund in failed_refunds_of(evidence):
        booked = movements.get(refund["id"])
        if booked is None:
            continue
        payment_id = booked["payment_id"]
        failed[payment_id] += refund["amount"]
        back = movements.get(f"{refund['id']}:failed")
        if back is None or back["minor_units"] != refund["amount"]:
            yield f"{refund['id']} came back, and is not on the books as such", payment_id
    repaid: Counter[str] = Counter()
    for row in evidence.operations:
        if row["purpose"] == "REPAYMENT" and row["state"] == "SUCCEEDED":
            repaid[row["payment_id"]] += row["minor_units"]
    for payment_id in told.keys() | failed.keys() | repaid.keys():
        sums = told[payment_id]
        came, paid = sums["failed"], sums["repaid"] + sums["otherwise"]
        if not came == paid == failed[payment_id] or sums["repaid"] != repaid[payment_id]:
            what = f"{failed[payment_id]} came back at Stripe, {came} here; {paid} was paid again"
            yield f"{what}, {repaid[payment_id]} of it by operations", payment_id
