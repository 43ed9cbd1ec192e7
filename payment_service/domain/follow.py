"""From what Stripe shows to what changes here: the table of states against Stripe's.

``follow`` is the one place where an observation becomes transitions. RPCs, webhooks and the sweep
all come through it, so any order and any repetition of them ends in the same state. What the books
cannot explain becomes a :class:`Discrepancy`, never a silent overwrite.

    from \\ intent     unpaid            requires_capture   succeeded        canceled
    PENDING, FAILED   FAILED | PENDING  IN_ESCROW          CAPTURED (*)     CANCELED | EXPIRED
    IN_ESCROW         discrepancy       stay               CAPTURED (*)     CANCELED | EXPIRED
    CAPTURING         discrepancy       stay               CAPTURED         CANCELED | EXPIRED
    PROMOTING         discrepancy       stay               IN_ESCROW        CANCELED | EXPIRED
    CANCELING         stay              stay               CAPTURED (*)     CANCELED | EXPIRED
    CANCELED EXPIRED  discrepancy       discrepancy        CAPTURED (*)     stay
    CAPTURED …        discrepancy       discrepancy        by its refunds   discrepancy

(*) somebody captured at Stripe's dashboard; what Stripe really did is posted. That column is for a
DESTINATION charge. A SEPARATE one is then held by the platform: the payment is IN_ESCROW (CAPTURING
until its transfer is settled), and moves by its transfers and refunds from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from payment_service.domain import escrow, money, plans
from payment_service.domain.errors import Precondition
from payment_service.domain.escrow import EscrowMode, Failure, Payment, State, Transition
from payment_service.domain.followed import Followed, Movement, NextOperation
from payment_service.domain.give_way import (
    end_repayment,
    ended_otherwise,
    on_its_way,
    out_of_band,
    refunds_by_hand,
    rest_not_returned,
    stand_back,
)
from payment_service.domain.ledger import LOSSES, CaptureLines, Settled, Share
from payment_service.domain.observation import (
    UNPAID,
    BalanceLine,
    Charge,
    Decline,
    IntentStatus,
    Observation,
    Refund,
    Reversal,
    Transfer,
)
from payment_service.domain.operations import Operation, OperationKind


def follow(
    payment: Payment,
    seen: Observation,
    *,
    operation: Operation | None,
    known: frozenset[str],
    by_hand: Sequence[str],
    next_operation_id: str,
    holding: timedelta,
    now: datetime,
) -> Followed:
    """What must change so that the payment is what Stripe shows.

    ``operation`` is the payment's open operation, ``known`` the ids of the movements that are on
    the books already, ``by_hand`` describes those that were booked out of band since the open
    operation was recorded or last resumed, ``next_operation_id`` is the id of an operation that may
    have to be recorded, ``holding`` for how long the platform may hold what was charged.
    """
    to = Followed(payment)
    if (seen.minor_units, seen.currency) != (payment.amount, payment.currency):
        shown, asked = money.Money(seen.minor_units, seen.currency), payment.money(payment.amount)
        to.report("amount_mismatch", f"Stripe shows {shown}, asked for {asked}")
        return to
    if not payment.payment_intent_id:
        to.take(escrow.intent_created(payment, seen.payment_intent_id, now))
        to.settle()
        operation = None
    elif payment.payment_intent_id != seen.payment_intent_id:
        to.report("second_intent", f"Stripe shows another intent, {seen.payment_intent_id}")
        return to

    moved = (*by_hand, *out_of_band(seen, operation, known))
    state = to.payment.state
    if seen.status in UNPAID:
        if state in (State.PENDING, State.FAILED):
            _follow_attempt(to, seen, now)
        elif state is not State.CANCELING:
            _report_state(to, seen)
    elif seen.status is IntentStatus.REQUIRES_CAPTURE:
        _follow_authorization(to, seen, now)
    elif seen.status is IntentStatus.SUCCEEDED:
        if payment.is_separate:
            _follow_charge(to, seen, operation, next_operation_id, holding, now)
            _follow_bounces(to, seen, known, now)
            _follow_transfers(to, seen, operation, known, next_operation_id, now)
        else:
            _follow_capture(to, seen, operation, now)
            _follow_bounces(to, seen, known, now)
        _follow_money_back(to, seen, operation, known, next_operation_id, now)
        end_repayment(to, seen, operation, now)
    elif seen.status is IntentStatus.CANCELED:
        _follow_end(to, seen, operation, now)
    else:
        _report_state(to, seen)
    stand_back(to, seen, operation, moved, now)
    return to


def _follow_authorization(to: Followed, seen: Observation, now: datetime) -> None:
    state, charge = to.payment.state, seen.charge
    if state in (State.PENDING, State.FAILED):
        expire_time = charge.capture_before if charge else None
        charge_id = charge.charge_id if charge else ""
        to.take(escrow.authorized(to.payment, charge_id, expire_time, now))
    elif to.payment.charged or state not in (
        State.IN_ESCROW,
        State.CAPTURING,
        State.PROMOTING,
        State.CANCELING,
    ):
        _report_state(to, seen)


def _follow_attempt(to: Followed, seen: Observation, now: datetime) -> None:
    payment, decline = to.payment, seen.decline
    if decline is None:
        if payment.state is State.FAILED:
            to.take(escrow.attempt_restarted(payment, now))
        return
    failure = failure_of(decline, now)
    before = payment.failure
    same = before and (before.code, before.decline_code) == (failure.code, failure.decline_code)
    if payment.state is State.PENDING or not same:
        to.take(escrow.attempt_failed(payment, failure))


def _follow_capture(
    to: Followed, seen: Observation, operation: Operation | None, now: datetime
) -> None:
    charge = seen.charge
    if charge is None:
        to.report("charge_missing", "the intent succeeded but shows no charge")
        return
    if to.payment.state not in (State.CAPTURED, State.REFUNDING, State.REFUNDED):
        _take_capture(to, seen, charge, operation, now)
    _follow_processor_fee(to, charge, now)


def _follow_processor_fee(to: Followed, charge: Charge, now: datetime) -> None:
    if to.payment.charged and to.payment.processor_fee is None and charge.line is not None:
        to.take(escrow.processor_fee_recorded(to.payment, charge.line.fee_settled, now))


def _take_capture(
    to: Followed, seen: Observation, charge: Charge, operation: Operation | None, now: datetime
) -> None:
    payment, part = to.payment, seen.amount_received
    ours = payment.state is State.CAPTURING
    collected = charge.application_fee.minor_units if charge.application_fee else 0
    fee_due = money.split_capture(
        payment.net, part, payment.commission_basis_points, payment.currency
    ).commission
    if not _lines_are_there(charge):
        to.defer(operation=True)  # Whoever captured it: that ends what is under way.
        return
    # What is kept back of the expert's debt comes in with the fee, on top of the commission: where
    # somebody else captured meanwhile, only as far as Stripe really collected it.
    asked = operation.number("netted") if ours and operation else 0
    netted = max(min(asked, collected - fee_due), 0)
    share = Share(part, collected - netted, netted)
    transfer_id = charge.transfer.transfer_id if charge.transfer else ""
    to.take(
        escrow.captured(
            payment,
            share,
            _capture_lines(charge, part, collected, payment.currency),
            charge_id=charge.charge_id,
            transfer_id=transfer_id,
            now=now,
        )
    )
    if transfer_id:
        to.movements.append(Movement(transfer_id, "transfer", part))
    if share.commission != fee_due:
        to.report("commission_mismatch", f"Stripe collected {collected}, due was {fee_due}")
    if not ours:
        to.report("captured_elsewhere", f"captured from {payment.state}, not by this service")
    if operation is None:
        return
    if operation.kind is not OperationKind.CAPTURE:
        to.settle(ended_otherwise(payment, "captured"))
    elif operation.minor_units != part:
        to.settle(_other_amount(to, part, operation))
    else:
        to.settle()


def _other_amount(to: Followed, part: int, operation: Operation) -> Precondition:
    to.report("amount_mismatch", f"captured {part}, asked for {operation.minor_units}")
    return Precondition(
        "DISCREPANCY",
        "Stripe captured another amount than was asked; an operator is told",
        {"payment_id": to.payment.payment_id, "requested": operation.minor_units},
    )


def _lines_are_there(charge: Charge) -> bool:
    """Whether Stripe shows the balance transactions yet; it may make them a moment later."""
    transfer, fee = charge.transfer, charge.application_fee
    return (
        charge.line is not None
        and transfer is not None
        and transfer.line is not None
        and (fee is not None or not charge.application_fee_amount)
    )


def _capture_lines(charge: Charge, part: int, commission: int, currency: str) -> CaptureLines:
    """The balance transactions; where Stripe shows none yet, what they must be."""
    plain_part, plain_fee = Settled(part, currency), Settled(commission, currency)
    transfer, fee = charge.transfer, charge.application_fee
    connected = transfer.connected_line if transfer else None
    transferred = _settled(transfer.line if transfer else None, plain_part)
    received = _settled(connected, transferred)
    fee_line = _settled(fee.line if fee else None, plain_fee)
    # On the connected account the fee is taken out of the very transaction that brought the money.
    fee_paid = connected.fee_settled if connected and connected.fee else fee_line
    return CaptureLines(
        charge=_settled(charge.line, plain_part),
        transferred=transferred,
        received=received,
        fee=fee_line,
        fee_paid=fee_paid,
    )


def _follow_charge(
    to: Followed,
    seen: Observation,
    operation: Operation | None,
    next_operation_id: str,
    holding: timedelta,
    now: datetime,
) -> None:
    """The card was charged onto the platform: once, whoever did it."""
    charge, payment = seen.charge, to.payment
    if charge is None:
        to.report("charge_missing", "the intent succeeded but shows no charge")
        return
    if payment.charged:
        _follow_processor_fee(to, charge, now)
        return
    if charge.line is None:
        to.defer(operation=True)  # As of a capture.
        return
    part = seen.amount_received
    by_us = payment.state in (State.CAPTURING, State.PROMOTING)
    ended = payment.state in (State.CANCELED, State.EXPIRED)
    elsewhere = not by_us and (payment.escrow_mode is EscrowMode.CARD_HOLD or ended)
    goes_on = (
        operation is not None
        and operation.kind is OperationKind.CAPTURE
        and operation.minor_units == part
    )
    to.take(
        escrow.charged(
            payment,
            part,
            charge.line.settled,
            charge_id=charge.charge_id,
            expire_time=now + holding,
            elsewhere=elsewhere,
            next_operation_id=next_operation_id if goes_on else None,
            now=now,
        )
    )
    _follow_processor_fee(to, charge, now)
    if elsewhere:
        to.report("captured_elsewhere", f"captured from {payment.state}, not by this service")
    if charge.line.currency != payment.currency:
        to.report("settled_in_other_currency", f"Stripe settled in {charge.line.currency}")
    if operation is None:
        return
    if operation.kind is OperationKind.CAPTURE and goes_on:
        transfer = operation.mapping("transfer")
        to.next_operation = NextOperation(
            OperationKind.TRANSFER,
            operation.number("part"),
            {**transfer, "charge_id": charge.charge_id},
        )
        to.settle()
    elif operation.kind is OperationKind.CAPTURE:
        to.settle(_other_amount(to, part, operation))
    elif operation.kind is OperationKind.PROMOTE:
        to.settle(_other_amount(to, part, operation) if part != operation.minor_units else None)
    else:
        to.settle(ended_otherwise(payment, "charged"))


def _follow_transfers(
    to: Followed,
    seen: Observation,
    operation: Operation | None,
    known: frozenset[str],
    next_operation_id: str,
    now: datetime,
) -> None:
    """What went to the expert of a SEPARATE charge, by our operations or by hand."""
    for transfer in seen.separate_transfers:
        if transfer.transfer_id in known or not to.payment.charged:
            continue
        ours = operation is not None and transfer.operation_id == operation.operation_id
        if transfer.line is None or transfer.connected_line is None:
            to.defer(operation=ours)
            continue
        sent, received = transfer.line.settled, transfer.connected_line.settled
        part = transfer.minor_units
        covered = operation is not None and operation.minor_units <= to.payment.held
        if operation is not None and ours and covered:
            by_hand = sum(refund.minor_units for refund in refunds_by_hand(seen, known))
            _take_transfer(to, transfer, operation, by_hand, next_operation_id, now)
        else:
            if operation is not None and ours:
                # It arrived after its money was taken to be given back: the platform's loss.
                why = "what it was to send was refunded out of band"
                to.take(escrow.capture_given_up(to.payment, why, now))
                to.settle(ended_otherwise(to.payment, "refunded"))
            to.take(
                escrow.transferred_elsewhere(
                    to.payment, transfer.transfer_id, part, sent, received, now
                )
            )
            to.report("transfer_made_elsewhere", f"{transfer.transfer_id} of {part}")
        to.movements.append(
            Movement(transfer.transfer_id, "transfer", transfer.minor_units, transfer.operation_id)
        )


def _take_transfer(
    to: Followed,
    transfer: Transfer,
    operation: Operation,
    by_hand: int,
    next_operation_id: str,
    now: datetime,
) -> None:
    """The transfer that our open operation asked for; the rest may have to go back.

    ``by_hand`` has gone back already, is seen together with it, and is followed next.
    """
    assert transfer.line is not None
    assert transfer.connected_line is not None
    payment, share = to.payment, operation.share
    final = operation.params.get("final")
    # By hand what is owed to the client is paid first, and only then what is held.
    back = max(by_hand - payment.client_owed, 0)
    rest = max(payment.held - share.part - back, 0) if final else 0
    to.take(
        escrow.transferred(
            payment,
            share,
            transfer.line.settled,
            transfer.connected_line.settled,
            transfer_id=transfer.transfer_id,
            next_operation_id=next_operation_id if rest else None,
            now=now,
        )
    )
    if transfer.minor_units != share.sent:
        to.report("amount_mismatch", f"transferred {transfer.minor_units}, asked for {share.sent}")
    if rest:
        to.next_operation = NextOperation(
            OperationKind.REFUND,
            rest,
            {
                "payment_intent_id": payment.payment_intent_id,
                "reason": operation.text("notes"),
                "after_capture": True,
            },
        )
    to.settle()


def _follow_end(
    to: Followed, seen: Observation, operation: Operation | None, now: datetime
) -> None:
    payment = to.payment
    if payment.state in (State.CANCELED, State.EXPIRED):
        return
    if payment.charged:
        _report_state(to, seen)
        return
    by_deadline = operation is not None and operation.text("because") == "deadline"
    expired = seen.expired or by_deadline
    reason = seen.cancellation_reason or ("deadline" if by_deadline else "")
    to.take(escrow.ended_unpaid(payment, expired=expired, reason=reason, now=now))
    if operation is None:
        return
    if operation.kind is OperationKind.CANCEL:
        to.settle()
    else:
        to.settle(ended_otherwise(payment, to.payment.state.lower()))


def _follow_money_back(
    to: Followed,
    seen: Observation,
    operation: Operation | None,
    known: frozenset[str],
    next_operation_id: str,
    now: datetime,
) -> None:
    """Refunds, reversals and fee refunds that are not on the books yet; ours come first."""
    if not to.payment.charged:
        return
    mine = operation.operation_id if operation else ""
    for refund in sorted(seen.refunds, key=lambda refund: refund.operation_id != mine):
        if refund.refund_id not in known:
            if operation is not None and mine and refund.operation_id == mine:
                _take_refund(to, seen, refund, operation, next_operation_id, now)
            else:
                _take_foreign_refund(to, refund, on_its_way(to, seen, operation, now), now)
    for transfer in seen.transfers:
        for reversal in transfer.reversals:
            if reversal.reversal_id in known:
                continue
            if operation is not None and mine and reversal.operation_id == mine:
                _take_reversal(to, transfer, reversal, operation, next_operation_id, now)
            else:
                _take_foreign_reversal(to, transfer, reversal, now)
    application_fee = seen.charge.application_fee if seen.charge else None
    for fee_refund in application_fee.refunds if application_fee else ():
        if fee_refund.fee_refund_id in known:
            continue
        platform = _settled(fee_refund.line, Settled(fee_refund.minor_units, to.payment.currency))
        to.take(
            escrow.fee_refunded_elsewhere(
                to.payment,
                fee_refund.fee_refund_id,
                fee_refund.minor_units,
                platform,
                Settled(platform.minor_units, platform.currency),
                now,
            )
        )
        to.report("fee_refund_made_elsewhere", f"{fee_refund.fee_refund_id}")
        to.movements.append(
            Movement(fee_refund.fee_refund_id, "fee_refund", fee_refund.minor_units)
        )


def _take_reversal(
    to: Followed,
    transfer: Transfer,
    reversal: Reversal,
    operation: Operation,
    next_operation_id: str,
    now: datetime,
) -> None:
    """The reversal that our open operation asked for; the further ones follow."""
    part, legs, owed = operation.minor_units, operation.items("legs"), operation.number("owed_then")
    platform, connected = _lines_of(reversal, transfer)
    follows = goes_on_with(next_operation_id, legs, owed)
    to.take(
        escrow.expert_reversed(
            to.payment, reversal.reversal_id, part, platform, connected, follows, now
        )
    )
    go_on_reversing(to, legs, owed, now)
    to.settle()
    to.movements.append(_reversed(part, transfer, reversal))


def _take_foreign_reversal(
    to: Followed, transfer: Transfer, reversal: Reversal, now: datetime
) -> None:
    """What it took from the expert is the platform's until an operator settles with the expert."""
    part = _in_payment_currency(reversal.minor_units, transfer, to.payment)
    platform, connected = _lines_of(reversal, transfer)
    to.take(
        escrow.reversed_elsewhere(to.payment, reversal.reversal_id, part, platform, connected, now)
    )
    to.report("reversal_made_elsewhere", f"{reversal.reversal_id} of {part}")
    to.movements.append(_reversed(part, transfer, reversal))


def _lines_of(reversal: Reversal, transfer: Transfer) -> tuple[Settled, Settled]:
    platform = _settled(reversal.line, Settled(reversal.minor_units, transfer.currency))
    return platform, _settled(reversal.connected_line, platform)


def _reversed(part: int, transfer: Transfer, reversal: Reversal) -> Movement:
    return Movement(
        reversal.reversal_id, "reversal", part, reversal.operation_id, transfer.transfer_id
    )


def goes_on_with(next_operation_id: str, legs: Sequence[object], owed: int) -> str | None:
    """For a transition that ``go_on_reversing`` follows: None if nothing does."""
    if legs:
        return next_operation_id
    return "" if owed else None


def go_on_reversing(
    to: Followed, legs: Sequence[Mapping[str, object]], owed: int, now: datetime
) -> None:
    """The next transfer's reversal; or, after the last one, what no transfer covers is owed."""
    if legs:
        first, *others = legs
        units, transfer_units = first["minor_units"], first["transfer_minor_units"]
        assert isinstance(units, int)
        to.next_operation = NextOperation(
            OperationKind.REVERSE_TRANSFER,
            units,
            {
                "transfer_id": first["transfer_id"],
                "transfer_minor_units": transfer_units,
                "legs": others,
                "owed_then": owed,
            },
        )
    elif owed:
        to.take(escrow.expert_owes(to.payment, owed, "nothing_left_to_reverse", now))


def reversal_legs(
    to: Followed, seen: Observation, expert_part: int
) -> tuple[list[Mapping[str, object]], int]:
    """Which transfers the expert's part is taken back from, and what none of them covers."""
    payment = to.payment
    transfers = {transfer.transfer_id: transfer for transfer in seen.transfers}
    reversible = [
        plans.Reversible(
            transfer.transfer_id, _in_payment_currency(transfer.left, transfer, payment)
        )
        for transfer in seen.transfers
    ]
    legs = plans.plan_reversals(expert_part, reversible)
    described: list[Mapping[str, object]] = [
        {
            "transfer_id": leg.transfer_id,
            "minor_units": leg.minor_units,
            "transfer_minor_units": _in_transfer_currency(
                leg.minor_units, transfers[leg.transfer_id], payment
            ),
        }
        for leg in legs
    ]
    return described, expert_part - sum(leg.minor_units for leg in legs)


def _take_refund(
    to: Followed,
    seen: Observation,
    refund: Refund,
    operation: Operation,
    next_operation_id: str,
    now: datetime,
) -> None:
    """The refund that our open operation asked for."""
    payment = to.payment
    if _lacks_line(refund):
        to.defer(operation=True)
        return
    settled = _settled(refund.line, Settled(refund.minor_units, payment.currency))
    to.movements.append(
        Movement(refund.refund_id, "refund", refund.minor_units, refund.operation_id)
    )
    refused = refused_by_processor("refund_failed", "", payment_id=payment.payment_id)
    if operation.params.get("owed") and refund.minor_units > payment.client_owed:
        # While it was on its way somebody else paid it too: it is booked like any other refund.
        to.movements.pop()
        to.take(escrow.repayment_given_up(payment, "paid out of band as well", now))
        to.settle(ended_otherwise(payment, "refunded"))
        _take_foreign_refund(to, refund, 0, now)
        return
    if operation.params.get("owed"):
        to.take(escrow.refund_resent(payment, refund.refund_id, refund.minor_units, settled, now))
        to.settle(refused if refund.failed else None)
        if refund.failed:  # Bounced once more: still owed, under a new operation for the operator.
            _take_bounced_refund(to, refund, now)
        return
    if refund.failed:
        to.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
        _book_both_lines(to, refund, now)
        failure = Failure("refund_failed", "", "Stripe could not refund the client", now)
        to.take(escrow.refund_refused(to.payment, failure))
        if operation.params.get("after_capture"):
            to.discrepancies.append(rest_not_returned(payment, operation, "refund_failed"))
            to.settle()
        else:
            to.settle(refused)
        return
    # Divided anew: a refund made elsewhere may have come in between.
    split = plans.split_refund(payment, refund.minor_units, payment.held)
    legs, owed = reversal_legs(to, seen, split.expert_part)
    follows = goes_on_with(next_operation_id, legs, owed)
    to.take(escrow.client_refunded(payment, refund.refund_id, split, settled, follows, now))
    go_on_reversing(to, legs, owed, now)
    to.settle()


def _take_foreign_refund(to: Followed, refund: Refund, reserved: int, now: datetime) -> None:
    """It pays what is payable to the client first, then what is held but for what is ``reserved``.

    What does not fit beside that waits: out of what it was paid is only known afterwards.
    """
    payment = to.payment
    if _lacks_line(refund):
        to.defer(operation=False)
        return
    if refund.failed:  # It bounced before we ever saw it; at Stripe it cancels out.
        to.movements += [
            Movement(refund.refund_id, "refund", refund.minor_units),
            Movement(failure_id(refund), "refund_failure", refund.minor_units),
        ]
        _book_both_lines(to, refund, now)
        to.report("refund_made_elsewhere", f"{refund.refund_id} bounced")
        return
    settled = _settled(refund.line, Settled(refund.minor_units, payment.currency))
    owed = min(refund.minor_units, payment.client_owed)
    rest = refund.minor_units - owed
    if reserved and rest > payment.held - reserved:
        to.defer(operation=False)
        return
    from_escrow = min(rest, payment.held)
    if rest - from_escrow > payment.net:
        available = owed + from_escrow + payment.net
        to.report("refund_exceeds_net", f"{refund.refund_id}: {refund.minor_units} > {available}")
        return
    split = replace(plans.split_refund(payment, rest, from_escrow), from_owed=owed)
    to.take(escrow.refunded_elsewhere(payment, refund.refund_id, split, settled, LOSSES, now))
    to.movements.append(
        Movement(refund.refund_id, "refund", refund.minor_units, refund.operation_id)
    )
    as_owed = f", {owed} of it as owed" if owed else ""
    to.report("refund_made_elsewhere", f"{refund.refund_id} of {refund.minor_units}{as_owed}")


def _follow_bounces(to: Followed, seen: Observation, known: frozenset[str], now: datetime) -> None:
    """Refunds on the books that came back: before all else, so that what is paid next pays them."""
    for refund in seen.refunds:
        bounced = refund.failed and refund.refund_id in known and failure_id(refund) not in known
        if not bounced or not to.payment.charged:
            continue
        if _lacks_line(refund):
            # Under the refund's own line the failure would never be explained.
            to.defer(operation=False)
        else:
            _take_bounced_refund(to, refund, now)


def _take_bounced_refund(to: Followed, refund: Refund, now: datetime) -> None:
    settled = _settled(
        refund.failure_line or refund.line, Settled(refund.minor_units, to.payment.currency)
    )
    to.take(escrow.refund_failed(to.payment, refund.refund_id, refund.minor_units, settled, now))
    to.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
    to.report("refund_failed", f"{refund.refund_id} of {refund.minor_units} bounced")


def repayment(
    payment: Payment, operation_id: str, now: datetime
) -> tuple[Transition, NextOperation] | None:
    """What is to pay the client again after bounced refunds, to be parked for an operator.

    None while something else is under way: whoever ends that asks again, in the same transaction.
    """
    if not payment.client_owed or payment.operation_id:
        return None
    coming = NextOperation(
        OperationKind.REFUND,
        payment.client_owed,
        {"owed": True, "payment_intent_id": payment.payment_intent_id},
    )
    return escrow.repayment_due(payment, operation_id, now), coming


def _book_both_lines(to: Followed, refund: Refund, now: datetime) -> None:
    """It failed before it was on the books. One that never moved anything has no lines at all."""
    if refund.line is not None and refund.failure_line is not None:
        sent, returned = refund.line.settled, refund.failure_line.settled
        part = refund.minor_units
        to.take(escrow.refund_bounced(to.payment, refund.refund_id, part, sent, returned, now))


def _lacks_line(refund: Refund) -> bool:
    """Stripe has not moved the money yet, or back; postings wait for its line: none is edited."""
    if refund.failed:
        return refund.line is not None and refund.failure_line is None
    return refund.line is None


def failure_id(refund: Refund) -> str:
    """Under which a refund's later failure is known."""
    return f"{refund.refund_id}:failed"


def failure_of(decline: Decline, now: datetime) -> Failure:
    """A decline as the payer may see it: a lost or stolen card is never named (Stripe's advice)."""
    hidden = decline.decline_code in ("lost_card", "stolen_card", "fraudulent", "pickup_card")
    decline_code = "generic_decline" if hidden else decline.decline_code
    return Failure(decline.code, decline_code, sentence_of(decline.code, decline_code), now)


def sentence_of(code: str, decline_code: str = "") -> str:
    """A sentence for people; Stripe's own messages never leave the process."""
    sentences = {
        "insufficient_funds": "the card has insufficient funds",
        "expired_card": "the card has expired",
        "incorrect_cvc": "the card's security code is wrong",
        "processing_error": "the card could not be processed; the same card may be tried again",
        "card_velocity_exceeded": "the card was used too often lately",
        "authentication_required": "the bank asks the payer to authenticate",
        "payment_intent_authentication_failure": "the payer's authentication failed",
    }
    plain = "the card was declined" if "card" in code or decline_code else f"Stripe says {code}"
    return sentences.get(decline_code) or sentences.get(code) or plain


def refused_by_processor(code: str, request_id: str, **facts: str) -> Precondition:
    """Stripe's final refusal, as the caller sees it."""
    return Precondition(
        "REFUSED_BY_PROCESSOR",
        f"Stripe refused for good: {code or 'no reason given'}",
        {"stripe_code": code, "stripe_request_id": request_id, **facts},
    )


def _report_state(to: Followed, seen: Observation) -> None:
    to.report("state_mismatch", f"{to.payment.state} here, {seen.status} at Stripe")


def _settled(line: BalanceLine | None, otherwise: Settled) -> Settled:
    return line.settled if line is not None else otherwise


def _in_payment_currency(part: int, transfer: Transfer, payment: Payment) -> int:
    """A part of a transfer in the payment's currency; exact where they are the same."""
    if transfer.currency == payment.currency:
        return part
    # Only a destination charge is converted: it has one transfer, of all that was captured.
    return part * payment.captured // transfer.minor_units


def _in_transfer_currency(part: int, transfer: Transfer, payment: Payment) -> int:
    if transfer.currency == payment.currency:
        return part
    return part * transfer.minor_units // payment.captured
