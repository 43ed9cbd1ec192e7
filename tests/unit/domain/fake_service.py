"""The service around the domain, as small as it can be: memory for a database, no network.

It records operations, calls the fake intent and follows what it sees, and after *every* step it
checks what must always be true of a payment and its books.
"""

from dataclasses import dataclass, field, replace

from payment_service.domain import guards, plans, transitions
from payment_service.domain.deadlines import deadlines_of
from payment_service.domain.disputes import Dispute
from payment_service.domain.ledger import STRIPE_PLATFORM, Posting, imbalance
from payment_service.domain.operation_payloads import (
    CapturePayload,
    OperationPayload,
    ReversalPayload,
    TransferPayload,
)
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import Freeze, Payment, State, WaitingFor
from payment_service.domain.snapshot import DisputeSnapshot, PaymentSnapshot
from payment_service.domain.state_machine import TRANSITIONS, EventKind, Transition
from payment_service.domain.sync.changes import ChangeSet, NextOperation, SyncContext
from payment_service.domain.sync.derive_changes import derive_changes
from payment_service.domain.sync.derive_dispute_changes import derive_dispute_changes
from payment_service.domain.sync.money_back import repayment
from payment_service.domain.sync.superseded import check_covered, debt_if_not_reversed, described
from tests.unit.domain.builders import (
    BUSY,
    FAILURE,
    HOLDING,
    NOW,
    PLATFORM_HOLD,
    new_operation,
    sums,
)
from tests.unit.domain.fake_intent import (
    CONNECTED,
    SAME_CURRENCY,
    Exchange,
    FakeIntent,
    RefusedByStripe,
    nonzero,
)

DEBT = "expert_debt:expert_1"
FUNDS = "expert_funds:expert_1"
#: Kinds of movements that somebody else may have made.
OUT_OF_BAND = ("refund", "transfer", "reversal", "fee_refund")


@dataclass
class FakeService:
    payment: Payment
    intent: FakeIntent
    operation: Operation | None = None
    known: set[str] = field(default_factory=set)
    postings: list[Posting] = field(default_factory=list)
    discrepancies: list[str] = field(default_factory=list)
    kinds: list[EventKind] = field(default_factory=list)
    ids: int = 1
    #: The operations that a sync has led to. None may come twice.
    operation_ids: set[str] = field(default_factory=set)
    #: The expert's earlier debt: from another client's refund whose reversal Stripe refused.
    debt_before: int = 0
    #: Disputes as Stripe shows them, and as they are on record.
    shown: dict[str, DisputeSnapshot] = field(default_factory=dict)
    records: dict[str, Dispute] = field(default_factory=dict)
    #: What was booked out of band since the open operation was recorded, or last resumed.
    out_of_band: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.debt_before:
            return
        book, part = self.payment.book, self.debt_before
        self.intent.balances[STRIPE_PLATFORM, book.currency] -= part
        self.postings += [
            book.line("client_refunded", DEBT, part),
            book.line("client_refunded", STRIPE_PLATFORM, -part),
        ]

    # ---- following ----

    def observe(self) -> PaymentSnapshot:
        return replace(self.intent.observe(), disputes=tuple(self.shown.values()))

    def follow(self, seen: PaymentSnapshot | None = None) -> ChangeSet:
        shown = seen or self.observe()
        context = SyncContext(
            snapshot=shown,
            operation=self.operation,
            booked_ids=frozenset(self.known),
            out_of_band=tuple(self.out_of_band),
            next_operation_id=f"op_{self.ids + 1}",
            holding_limit=HOLDING,
            dispute_records=self.records,
            freezes_on_warning=True,
            now=NOW,
        )
        followed = derive_changes(self.payment, context)
        if shown.disputes or shown.fraud_warnings is not None:
            derive_dispute_changes(followed, context)
        self.records = {**self.records, **followed.disputes}
        for transition in followed.transitions:
            self.record(transition)
        assert followed.payment == self.payment
        new = [movement.movement_id for movement in followed.movements]
        assert len(set(new)) == len(new)
        assert not self.known & set(new)
        self.known |= set(new)
        ours = self.operation.operation_id if self.operation else ""
        self.out_of_band += [
            described(one.kind, one.movement_id, one.minor_units)
            for one in followed.movements
            if one.kind in OUT_OF_BAND and (not one.operation_id or one.operation_id != ours)
        ]
        self.discrepancies += [found.kind for found in followed.discrepancies]
        if followed.settled:
            self.operation = None
        if followed.next_operation:
            wanted = followed.next_operation
            assert self.operation is None
            self.operation = self._open(
                wanted.kind, wanted.minor_units, wanted.payload, wanted.purpose
            )
            operation_id = self.payment.operation_id
            assert operation_id not in self.operation_ids
            self.operation_ids.add(operation_id)
            self.operation = replace(self.operation, operation_id=operation_id)
            if wanted.parked:
                self.operation = replace(self.operation, state=OperationState.PARKED)
        self.park_repayment()
        self.check()
        later = followed.deferred or "refund_exceeds_net" in reported(followed)
        if seen is None and not later:
            self.check_reconciled()
        return followed

    def park_repayment(self) -> None:
        """As settle.park_repayment: in the same transaction that frees the place."""
        due = repayment(self.payment, f"op_{self.ids + 1}", NOW)
        if due is None:
            return
        transition, wanted = due
        operation = self._open_next(wanted)
        self.operation = replace(operation, state=OperationState.PARKED)
        self.record(transition)

    def catch_up(self) -> None:
        """Follow what Stripe shows until there is nothing more to follow."""
        while self.follow().transitions:
            pass

    def record(self, transition: Transition) -> None:
        assert transition.before == self.payment
        assert transition.after.version == self.payment.version + 1
        assert transition.after.state in TRANSITIONS[transition.kind][self.payment.state]
        assert not imbalance(transition.postings)
        assert all(posting.minor_units for posting in transition.postings)
        self.payment = transition.after
        self.postings += transition.postings
        self.kinds.append(transition.kind)

    # ---- our own operations, in steps, so that anything can come in between ----

    def start_capture(self, part: int | None = None, *, final: bool = True) -> plans.CapturePlan:
        """One operation for the first leg, which carries what the next one needs."""
        if way := self._repayment_making_way():
            plans.plan_capture(way.after, part, final, self.balance(DEBT))
            self._make_way(way)
        payment = self.payment
        plan = plans.plan_capture(payment, part, final, self.balance(DEBT))
        share = plan.split
        transfer = TransferPayload(
            currency=payment.currency,
            charge_id=payment.charge_id,
            commission=share.commission,
            debt_offset=share.debt_offset,
            final=final,
            notes="",
        )
        if payment.charged:
            operation = self._open(OperationKind.TRANSFER, share.amount, transfer)
        elif payment.is_separate:
            capture = CapturePayload(
                payment_intent_id=payment.payment_intent_id,
                notes="",
                transfer=transfer,
                transfer_amount=share.amount,
            )
            operation = self._open(OperationKind.CAPTURE, plan.charges, capture)
        else:
            capture = CapturePayload(
                payment_intent_id=payment.payment_intent_id,
                notes="",
                application_fee=share.commission + share.debt_offset,
                debt_offset=share.debt_offset,
            )
            operation = self._open(OperationKind.CAPTURE, plan.charges, capture)
        self.operation = operation
        self.record(transitions.start_capture(payment, share, operation.operation_id, "", NOW))
        return plan

    def start_give_back(self, part: int | None = None, because: str = "asked") -> plans.RefundPlan:
        if guards.waits_for_expert(self.payment):
            # Planned first: what is refused gives up nothing.
            plans.plan_refund(transitions.capture_abandoned(self.payment, because, NOW).after, part)
            self.abandon_capture(because)
        if way := self._repayment_making_way():
            plans.plan_refund(way.after, part)
            self._make_way(way)
        plan = plans.plan_refund(self.payment, part)
        kind = OperationKind.CANCEL if plan.cancels else OperationKind.REFUND
        self.operation = self._open(kind, plan.minor_units)
        operation_id = self.operation.operation_id
        if plan.cancels:
            self.record(transitions.start_cancel(self.payment, operation_id, because, NOW))
        else:
            self.record(
                transitions.start_refund(self.payment, plan.split, operation_id, because, NOW)
            )
        return plan

    def abandon_capture(self, because: str = "asked") -> None:
        abandoned = transitions.capture_abandoned(self.payment, because, NOW)
        self.operation = None
        self.record(abandoned)

    def _repayment_making_way(self) -> Transition | None:
        """As `make_way.plan_preemption`, of which nothing here is ever on its way."""
        owed = self.operation is not None and self.operation.is_repayment
        if not owed or not (self.payment.held or self.payment.net):
            return None
        return transitions.repayment_abandoned(self.payment, "something else comes first", NOW)

    def _make_way(self, abandoned: Transition) -> None:
        self.operation = None
        self.record(abandoned)

    def start_promotion(self) -> None:
        guards.check_promotion(self.payment)
        self.operation = self._open(OperationKind.PROMOTE, self.payment.held)
        self.record(transitions.start_promotion(self.payment, self.operation.operation_id, NOW))

    def park(self) -> None:
        """The open operation waits for an operator, and no request of it is on its way."""
        assert self.operation is not None
        self.operation = replace(self.operation, state=OperationState.PARKED)
        if self.payment.waiting_for is not WaitingFor.OPERATOR:
            self.record(
                transitions.waiting_changed(self.payment, WaitingFor.OPERATOR, "parked", NOW)
            )
        self.check()

    @property
    def is_parked(self) -> bool:
        """Whether an operator has to resume or abandon what is open; a repayment apart."""
        operation = self.operation
        return (
            operation is not None
            and operation.state is OperationState.PARKED
            and not operation.is_repayment
        )

    def resume(self) -> None:
        """As `operate.unpark`: the guards hold, and what was moved by now is known."""
        assert self.operation is not None
        check_covered(self.payment, self.operation)
        self.operation = replace(self.operation, state=OperationState.UNKNOWN)
        self.out_of_band.clear()
        self.record(transitions.waiting_changed(self.payment, WaitingFor.PROCESSOR, "resumed", NOW))
        self.check()

    def abandon(self) -> None:
        """As `abandon_operation`: it ends as a final no of Stripe would end it."""
        assert self.operation is not None
        if self.operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
            self.abandon_capture("by an operator")
            self.park_repayment()
        else:
            self._take_refusal(self.operation)
        self.check()

    def wait_for_expert(self) -> None:
        """Stripe refused what the capture asked for because the expert's account is not well."""
        assert self.operation is not None
        self.operation = replace(self.operation, state=OperationState.PARKED)
        self.record(transitions.waiting_changed(self.payment, WaitingFor.EXPERT, "refused", NOW))
        self.check()

    def send(self, *, refused: bool = False) -> None:
        """Send the open operation to Stripe; a refusal is believed after looking once more."""
        operation = self.operation
        assert operation is not None
        try:
            if refused:
                raise RefusedByStripe
            self._effect(operation)
        except RefusedByStripe:
            self.follow()
            if self.operation is operation:
                self._take_refusal(operation)
        self.check()

    def _effect(self, operation: Operation) -> None:
        part, name = operation.minor_units, operation.operation_id
        match operation.kind:
            case OperationKind.CAPTURE | OperationKind.PROMOTE:
                payload = operation.payload_as(CapturePayload)
                self.intent.capture(part, payload.application_fee or 0)
            case OperationKind.CANCEL:
                self.intent.cancel("requested_by_customer")
            case OperationKind.REFUND:
                self.intent.refund(part, name)
            case OperationKind.TRANSFER:
                if operation.sends_nothing:
                    self.intent.empty_transfer = name
                else:
                    self.intent.transfer(operation.capture_split.sent, name)
            case _:
                reversal = operation.payload_as(ReversalPayload)
                self.intent.reverse(reversal.transfer_minor_units, name, reversal.transfer_id)

    def _take_refusal(self, operation: Operation) -> None:
        payment = self.payment
        if operation.is_repayment:
            return  # Stays parked: an operator tries again.
        match operation.kind:
            case OperationKind.CAPTURE | OperationKind.TRANSFER:
                transition = transitions.capture_refused(payment, FAILURE)
            case OperationKind.PROMOTE:
                transition = transitions.promotion_refused(payment, FAILURE)
            case OperationKind.CANCEL:
                transition = transitions.cancel_refused(payment, FAILURE)
            case OperationKind.REFUND:
                transition = transitions.refund_refused(payment, FAILURE)
            case _:
                owed = debt_if_not_reversed(operation)
                transition = transitions.expert_debt_recorded(payment, owed, FAILURE.code, NOW)
        self.operation = None
        self.record(transition)
        self.park_repayment()

    def _open_next(self, wanted: NextOperation) -> Operation:
        return self._open(wanted.kind, wanted.minor_units, wanted.payload, wanted.purpose)

    def _open(
        self,
        kind: OperationKind,
        minor_units: int,
        payload: OperationPayload | None = None,
        purpose: OperationPurpose = OperationPurpose.REQUESTED,
    ) -> Operation:
        self.ids += 1
        self.out_of_band.clear()
        return new_operation(kind, minor_units, f"op_{self.ids}", payload=payload, purpose=purpose)

    # ---- whole walks ----

    def finish(self, *, reversal_refused: bool = False) -> None:
        """Send the open operation and whatever follows from it, until nothing is under way.

        What was parked is resumed.
        """
        while self.operation and not self.operation.is_repayment:
            if self.is_parked:
                self.resume()
            reverses = self.operation.kind is OperationKind.REVERSE_TRANSFER
            self.send(refused=reversal_refused and reverses)
            self.follow()

    def capture(self, part: int | None = None, *, final: bool = True) -> None:
        self.start_capture(part, final=final)
        self.finish()

    def give_back(self, part: int | None = None, *, reversal_refused: bool = False) -> None:
        self.start_give_back(part)
        self.finish(reversal_refused=reversal_refused)

    def promote(self) -> None:
        self.start_promotion()
        self.finish()

    # ---- what is always true ----

    def check(self) -> None:
        check_payment(self.payment)
        self._check_operation()
        self._check_books()

    def _check_operation(self) -> None:
        operation, payment = self.operation, self.payment
        assert bool(operation) == bool(payment.operation_id) == (payment.state in BUSY)
        if operation:
            assert operation.operation_id == payment.operation_id
        if payment.client_payable:
            # Every client payable has an operation: the one that repays it, or one before that.
            assert operation is not None
        if operation and operation.is_repayment:
            assert payment.state is State.REFUNDING
            assert payment.waiting_for is not WaitingFor.NOTHING
            assert operation.minor_units > 0
            if operation.state is OperationState.PARKED:
                assert operation.minor_units <= payment.client_payable

    def _check_books(self) -> None:
        payment = self.payment
        authorized = 0 if payment.charged else payment.held
        books = sums(self.postings)

        def balance(account: str) -> int:
            return books.get((account, payment.currency), 0)

        assert balance("hold") == -balance("client") == authorized
        assert balance("escrow:pay_1") == (-payment.held if payment.charged else 0)
        assert balance("client_payable:pay_1") == -payment.client_payable
        assert balance("commission") == -payment.net_commission
        # The offset never exceeds the debt, not even with the capture in progress.
        assert balance(DEBT) >= payment.debt_offset
        if self.intent.exchange == SAME_CURRENCY:
            assert balance(CONNECTED) == -balance(FUNDS)
        assert imbalance(self.postings) == {}
        if payment.state in (State.CANCELED, State.EXPIRED):
            assert balance(DEBT) == self.debt_before
            assert balance(STRIPE_PLATFORM) == -self.debt_before
            assert len(books) == 2 * bool(self.debt_before)

    def stripe_lines(self) -> dict[tuple[str, str], int]:
        """Our books' view of Stripe's balances."""
        ours = {STRIPE_PLATFORM, CONNECTED}
        return sums(posting for posting in self.postings if posting.account in ours)

    def check_reconciled(self) -> None:
        """Our books and Stripe's balances agree to the minor unit, by account and currency."""
        assert self.stripe_lines() == nonzero(self.intent.balances)

    def balance(self, account: str) -> int:
        return sums(self.postings).get((account, self.payment.currency), 0)


def serve(
    payment: Payment, exchange: Exchange = SAME_CURRENCY, *, debt_before: int = 0
) -> FakeService:
    """A service with this payment alone, and its intent at Stripe."""
    intent = FakeIntent(
        payment.amount,
        payment.currency,
        exchange,
        has_destination=not payment.is_separate,
        automatic=payment.escrow_mode is PLATFORM_HOLD,
    )
    return FakeService(payment, intent, debt_before=debt_before)


def check_payment(payment: Payment) -> None:
    """State and amounts agree, and every amount is within its bounds."""
    assert (
        0 <= payment.refunded_after_capture <= payment.captured <= payment.charged <= payment.amount
    )
    assert 0 <= payment.lost <= payment.captured - payment.refunded_after_capture
    assert (payment.frozen is Freeze.NONE) == (not payment.frozen_by)
    assert 0 <= payment.net_commission <= payment.net
    assert payment.net_commission + payment.net_expert == payment.net
    assert (
        0 <= payment.client_payable <= payment.refunded_after_capture + payment.refunded_from_escrow
    )
    assert payment.debt_offset == 0 or payment.state is State.CAPTURING
    if payment.charged:
        assert payment.held >= 0
        assert payment.refunded_from_escrow >= 0
        assert payment.lost_held >= 0
        whole = payment.held + payment.captured + payment.refunded_from_escrow + payment.lost_held
        assert payment.charged == whole
    else:
        assert payment.held in (0, payment.amount)
        assert payment.refunded_from_escrow == payment.lost_held == 0
    _check_model(payment)
    _check_state(payment)


def _check_model(payment: Payment) -> None:
    if payment.is_separate:
        # Once charged, whatever it began as, the platform holds it.
        assert payment.escrow_mode is PLATFORM_HOLD or not payment.charged
    else:
        assert payment.charged == payment.captured
        assert payment.state is not State.PROMOTING
        assert payment.escrow_mode is not PLATFORM_HOLD


def _check_state(payment: Payment) -> None:
    match payment.state:
        case State.IN_ESCROW:
            assert payment.held > 0
        case State.CAPTURING:
            # All that was held may have been refunded out of band meanwhile.
            assert payment.held > 0 or payment.charged
        case State.PROMOTING:
            assert (payment.held, payment.charged) == (payment.amount, 0)
        case State.REFUNDING:
            assert payment.charged > 0
        case State.CAPTURED:
            assert (payment.held, payment.net > 0) == (0, True)
        case State.REFUNDED:
            assert (payment.held, payment.net) == (0, 0)
            assert payment.charged > 0
        case State.CANCELING:
            assert payment.charged == 0
        case _:
            assert (payment.held, payment.charged) == (0, 0)
    assert not deadlines_of(payment) or payment.held


def followed_kinds(followed: ChangeSet) -> list[str]:
    return [transition.kind.value.removeprefix("payment.") for transition in followed.transitions]


def reported(followed: ChangeSet) -> list[str]:
    return [found.kind for found in followed.discrepancies]
