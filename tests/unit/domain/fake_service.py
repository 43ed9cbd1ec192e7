"""The service around the domain, as small as it can be: memory for a database, no network.

It records operations, calls the fake intent and follows what it sees, and after *every* step it
checks what must always be true of a payment and its books.
"""

from dataclasses import dataclass, field

from payment_service.domain import escrow, money
from payment_service.domain.escrow import Payment, State, Transition, WaitingFor
from payment_service.domain.follow import Followed, follow
from payment_service.domain.ledger import STRIPE_PLATFORM, Posting, imbalance
from payment_service.domain.observation import Observation
from payment_service.domain.operations import Operation, OperationKind
from tests.unit.domain.builders import BUSY, FAILURE, NOW, PAID_OUT, new_operation, sums
from tests.unit.domain.fake_intent import CONNECTED, FakeIntent, RefusedByStripe, nonzero


@dataclass
class FakeService:
    payment: Payment
    intent: FakeIntent
    operation: Operation | None = None
    known: set[str] = field(default_factory=set)
    postings: list[Posting] = field(default_factory=list)
    discrepancies: list[str] = field(default_factory=list)
    kinds: list[escrow.Kind] = field(default_factory=list)
    ids: int = 1

    # ---- following ----

    def follow(self, seen: Observation | None = None) -> Followed:
        followed = follow(
            self.payment,
            seen or self.intent.observe(),
            operation=self.operation,
            known=frozenset(self.known),
            next_operation_id=f"op_{self.ids + 1}",
            now=NOW,
        )
        for transition in followed.transitions:
            self.record(transition)
        assert followed.payment == self.payment
        new = [movement.movement_id for movement in followed.movements]
        assert len(set(new)) == len(new)
        assert not self.known & set(new)
        self.known |= set(new)
        self.discrepancies += [found.kind for found in followed.discrepancies]
        if followed.settled:
            self.operation = None
        if followed.next_operation:
            wanted = followed.next_operation
            assert self.operation is None
            self.operation = self._open(wanted.kind, wanted.minor_units, **wanted.params)
        self.check()
        return followed

    def catch_up(self) -> None:
        """Follow what Stripe shows until there is nothing more to follow."""
        last = self.follow()
        while last.transitions:
            last = self.follow()
        if not last.deferred:
            self.check_reconciled()

    def record(self, transition: Transition) -> None:
        assert transition.before == self.payment
        assert transition.after.version == self.payment.version + 1
        assert transition.after.state in escrow.TRANSITIONS[transition.kind][self.payment.state]
        assert not imbalance(transition.postings)
        assert all(posting.minor_units for posting in transition.postings)
        self.payment = transition.after
        self.postings += transition.postings
        self.kinds.append(transition.kind)

    # ---- our own operations, in steps, so that anything can come in between ----

    def start_capture(self, part: int | None = None, *, final: bool = True) -> None:
        part = escrow.check_capture(self.payment, part, final)
        self.operation = self._open(OperationKind.CAPTURE, part)
        started = escrow.start_capture(self.payment, part, self.operation.operation_id, "", NOW)
        self.record(started)

    def start_give_back(self, part: int | None = None, because: str = "asked") -> None:
        plan = escrow.check_refund(self.payment, part)
        kind = OperationKind.CANCEL if plan.cancels else OperationKind.REFUND
        self.operation = self._open(kind, plan.minor_units, because=because)
        if plan.cancels:
            self.record(
                escrow.start_cancel(self.payment, self.operation.operation_id, because, NOW)
            )
        else:
            self.record(
                escrow.start_refund(self.payment, plan, self.operation.operation_id, because, NOW)
            )

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
        payment, part = self.payment, operation.minor_units
        if operation.kind is OperationKind.CAPTURE:
            due = money.split_capture(
                payment.net, part, payment.commission_basis_points, payment.currency
            )
            self.intent.capture(part, due.commission)
        elif operation.kind is OperationKind.CANCEL:
            self.intent.cancel("requested_by_customer")
        elif operation.kind is OperationKind.REFUND:
            self.intent.refund(part, operation.operation_id)
        else:
            self.intent.reverse(operation.number("transfer_minor_units"), operation.operation_id)

    def _take_refusal(self, operation: Operation) -> None:
        payment = self.payment
        if operation.params.get("owed"):
            return  # Stays parked: an operator tries again.
        transition = {
            OperationKind.CAPTURE: lambda: escrow.capture_refused(payment, FAILURE),
            OperationKind.CANCEL: lambda: escrow.cancel_refused(payment, FAILURE),
            OperationKind.REFUND: lambda: escrow.refund_refused(payment, FAILURE),
            OperationKind.REVERSE_TRANSFER: lambda: escrow.expert_owes(
                payment, operation.minor_units, FAILURE
            ),
        }[operation.kind]()
        self.operation = None
        self.record(transition)

    def _open(self, kind: OperationKind, minor_units: int, **params: object) -> Operation:
        self.ids += 1
        return new_operation(kind, minor_units, f"op_{self.ids}", **params)

    # ---- whole walks ----

    def capture(self, part: int | None = None) -> None:
        self.start_capture(part)
        self.send()
        self.follow()

    def give_back(self, part: int | None = None, *, reversal_refused: bool = False) -> None:
        self.start_give_back(part)
        self.send()
        self.follow()
        if self.operation:
            self.send(refused=reversal_refused)
            self.follow()

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
        if payment.client_owed:
            assert payment.state is State.REFUNDING
            assert payment.waiting_for is WaitingFor.OPERATOR

    def _check_books(self) -> None:
        payment, left = self.payment, sums(self.postings)
        assert self.balance("hold") == -self.balance("client") == payment.held
        assert self.balance("escrow:pay_1") == 0
        assert self.balance("client_payable:pay_1") == -payment.client_owed
        assert imbalance(self.postings) == {}
        if payment.state in (State.CANCELED, State.EXPIRED):
            assert left == {}

    def stripe_lines(self) -> dict[tuple[str, str], int]:
        """Our books' view of Stripe's balances."""
        ours = {STRIPE_PLATFORM, CONNECTED}
        return sums(posting for posting in self.postings if posting.account in ours)

    def check_reconciled(self) -> None:
        """Our books and Stripe's balances agree to the minor unit, by account and currency."""
        assert self.stripe_lines() == nonzero(self.intent.balances)

    def balance(self, account: str) -> int:
        return sums(self.postings).get((account, self.payment.currency), 0)


def check_payment(payment: Payment) -> None:
    """State and amounts agree, and every amount is within its bounds."""
    assert payment.held in (0, payment.amount)
    assert 0 <= payment.refunded <= payment.captured <= payment.amount
    assert 0 <= payment.net_commission <= payment.net
    assert payment.net_commission + payment.net_expert == payment.net
    assert 0 <= payment.client_owed <= payment.refunded
    state = payment.state
    if state in (State.IN_ESCROW, State.CAPTURING):
        assert payment.held == payment.amount
    elif state is not State.CANCELING:
        assert payment.held == 0
    if state in PAID_OUT:
        assert payment.captured > 0
    else:
        assert payment.captured == 0
    if state is State.CAPTURED:
        assert payment.net > 0
    elif state is State.REFUNDED:
        assert payment.net == 0


def followed_kinds(followed: Followed) -> list[str]:
    return [transition.kind.value.removeprefix("payment.") for transition in followed.transitions]


def reported(followed: Followed) -> list[str]:
    return [found.kind for found in followed.discrepancies]
