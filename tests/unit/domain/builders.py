"""Payments in every state, and the few values that all tests of the domain need."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from payment_service.domain import money
from payment_service.domain.adjustments import (
    Adjustment,
    AdjustmentKind,
    AdjustmentLine,
    AdjustmentState,
)
from payment_service.domain.experts import BusinessType
from payment_service.domain.ledger import Posting
from payment_service.domain.operation_payloads import (
    AcceptancePayload,
    CancelPayload,
    CapturePayload,
    CollectionPayload,
    CreateAccountPayload,
    CreateIntentPayload,
    EvidencePayload,
    OperationPayload,
    RefundPayload,
    ReversalPayload,
    TransferPayload,
)
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import ChargeModel, EscrowMode, Failure, Payment, State

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
FAILURE = Failure("card_declined", "generic_decline", "the card was declined", NOW)

BUSY = (State.CAPTURING, State.PROMOTING, State.CANCELING, State.REFUNDING)
PAID_OUT = (State.CAPTURED, State.REFUNDING, State.REFUNDED)
#: A charge with a destination cannot be promoted, so it never stands there.
OF_A_DESTINATION = tuple(state for state in State if state is not State.PROMOTING)
HOLDING = timedelta(days=90)
CARD_HOLD, PLATFORM_HOLD = EscrowMode.CARD_HOLD, EscrowMode.PLATFORM_HOLD


def new_payment(
    amount: int = 10_000, currency: str = "USD", basis_points: int = 1_000, intent: str = "pi_1"
) -> Payment:
    """A payment that waits for its client; without ``intent`` Stripe has not answered yet."""
    quote = money.split_quote(amount, basis_points, currency)
    return Payment(
        payment_id="pay_1",
        client_id="client_1",
        expert_id="expert_1",
        gig_id="gig_1",
        description="A gig",
        destination_account_id="acct_1",
        currency=currency,
        amount=amount,
        commission_basis_points=basis_points,
        commission=quote.commission,
        expert_amount=quote.expert,
        payment_intent_id=intent,
        operation_id="" if intent else "op_create",
        version=1,
        create_time=NOW,
        update_time=NOW,
        payment_expire_time=NOW + timedelta(days=1),
    )


def separate(
    mode: EscrowMode = PLATFORM_HOLD,
    amount: int = 10_000,
    currency: str = "USD",
    basis_points: int = 1_000,
) -> Payment:
    """A payment without a destination, waiting for its client."""
    payment = new_payment(amount, currency, basis_points)
    return replace(payment, charge_model=ChargeModel.SEPARATE, escrow_mode=mode)


def in_state(state: State, base: Payment | None = None) -> Payment:
    """The payment as it would stand in ``state``; the whole is held, captured or refunded.

    What the platform holds was charged; a card hold was only authorized.
    """
    payment = base or (separate(CARD_HOLD) if state is State.PROMOTING else new_payment())
    payment = replace(payment, state=state, operation_id="op_1" if state in BUSY else "")
    by_platform = payment.escrow_mode is PLATFORM_HOLD
    if state is State.FAILED:
        return replace(payment, failure=FAILURE)
    if state is State.CANCELING and by_platform:
        return payment
    if state in (State.IN_ESCROW, State.CAPTURING, State.CANCELING, State.PROMOTING):
        charged = payment.amount if by_platform else 0
        return replace(
            payment, held=payment.amount, charged=charged, charge_id="ch_1", escrow_time=NOW
        )
    if state not in PAID_OUT:
        return payment
    payment = replace(
        payment,
        escrow_mode=PLATFORM_HOLD if payment.is_separate else CARD_HOLD,
        charged=payment.amount,
        captured=payment.amount,
        net_commission=payment.commission,
        processor_fee=320,
        charge_id="ch_1",
        transfer_id="tr_1",
        escrow_time=NOW,
        capture_time=NOW,
    )
    if state is State.REFUNDED:
        return replace(payment, refunded_after_capture=payment.captured, net_commission=0)
    return payment


def new_transfer(commission: int = 0, *, final: bool = False) -> TransferPayload:
    return TransferPayload(
        currency="USD",
        charge_id="ch_1",
        commission=commission,
        debt_offset=0,
        final=final,
        notes="",
    )


#: What an operation of each kind asks for, where a test does not care.
PAYLOADS: Mapping[OperationKind, OperationPayload] = {
    OperationKind.CREATE_INTENT: CreateIntentPayload(
        currency="USD",
        application_fee=1_000,
        destination_account_id="acct_1",
        automatic_capture=False,
        extended_authorization=False,
        description="A gig",
        client_id="client_1",
        expert_id="expert_1",
        gig_id="gig_1",
        expert_account_id="acct_1",
        escrow_mode="CARD_HOLD",
        charge_model="DESTINATION",
        mode_reason="DEFAULT",
        on_deadline="ALERT",
        expected_completion_time="",
        commission_basis_points=1_000,
        commission=1_000,
    ),
    OperationKind.CAPTURE: CapturePayload(payment_intent_id="pi_1", notes=""),
    OperationKind.PROMOTE: CapturePayload(payment_intent_id="pi_1", notes="deadline"),
    OperationKind.CANCEL: CancelPayload(payment_intent_id="pi_1"),
    OperationKind.REFUND: RefundPayload(payment_intent_id="pi_1", reason="asked"),
    OperationKind.TRANSFER: new_transfer(),
    OperationKind.REVERSE_TRANSFER: ReversalPayload(transfer_id="tr_1", transfer_minor_units=0),
    OperationKind.COLLECT_DEBT: CollectionPayload(
        payment_id="pay_1", transfer_id="tr_1", transfer_minor_units=0, currency="USD"
    ),
    OperationKind.CREATE_ACCOUNT: CreateAccountPayload(
        name="Eva",
        email="eva@example.com",
        country="US",
        business_type=BusinessType.INDIVIDUAL,
        commission_basis_points=1_000,
        commission_asked=None,
    ),
    OperationKind.SUBMIT_EVIDENCE: EvidencePayload(
        payment_id="pay_1", evidence={"product_description": "A gig"}, submit=True
    ),
    OperationKind.ACCEPT_DISPUTE: AcceptancePayload(payment_id="pay_1"),
}


def new_operation(
    kind: OperationKind,
    minor_units: int = 0,
    operation_id: str = "op_1",
    *,
    payload: OperationPayload | None = None,
    purpose: OperationPurpose = OperationPurpose.REQUESTED,
) -> Operation:
    return Operation(
        operation_id=operation_id,
        kind=kind,
        purpose=purpose,
        payment_id="pay_1",
        payload=payload or PAYLOADS[kind],
        minor_units=minor_units,
        create_time=NOW,
        attempt_time=NOW,
    )


def sums(postings: Iterable[Posting]) -> dict[tuple[str, str], int]:
    """What is left on each account in each currency, without zeros."""
    totals: dict[tuple[str, str], int] = defaultdict(int)
    for posting in postings:
        totals[posting.account, posting.currency] += posting.minor_units
    return {account: total for account, total in totals.items() if total}


def an_adjustment(
    *lines: AdjustmentLine, expert_id: str = "", state: AdjustmentState = AdjustmentState.PROPOSED
) -> Adjustment:
    """A correction; of the payment ``pay_1`` unless it is an expert's."""
    return Adjustment(
        adjustment_id="adj_1",
        kind=AdjustmentKind.CORRECTION,
        payment_id="" if expert_id else "pay_1",
        expert_id=expert_id,
        lines=lines or (AdjustmentLine("losses", "USD", 5), AdjustmentLine("fx", "USD", -5)),
        ticket="FIN-7",
        reason="the bank has confirmed it",
        reason_salt=b"salt",
        reason_seal="seal",
        proposed_by="ann",
        create_time=NOW,
        expire_time=NOW + timedelta(days=7),
        state=state,
    )
