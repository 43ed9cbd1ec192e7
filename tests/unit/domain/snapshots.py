"""What Stripe shows of an intent after some steps, and what is derived from it."""

from collections.abc import Callable

from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import PaymentSnapshot
from payment_service.domain.sync.changes import ChangeSet, SyncContext
from payment_service.domain.sync.derive_changes import derive_changes
from tests.unit.domain.builders import HOLDING, NOW, new_operation, new_payment
from tests.unit.domain.fake_intent import SAME_CURRENCY, Exchange, FakeIntent
from tests.unit.domain.fake_service import FakeService, serve

REFUND = new_operation(OperationKind.REFUND, 10_000)


def followed(
    payment: Payment, seen: PaymentSnapshot, operation: Operation | None = None, *known: str
) -> ChangeSet:
    context = SyncContext(
        snapshot=seen,
        operation=operation,
        booked_ids=frozenset(known),
        next_operation_id="op_next",
        holding_limit=HOLDING,
        now=NOW,
    )
    return derive_changes(payment, context)


def intent(*steps: Callable[[FakeIntent], object]) -> PaymentSnapshot:
    """What Stripe shows of an intent of 100.00 USD after some steps."""
    shown = FakeIntent(10_000, "USD")
    for step in steps:
        step(shown)
    return shown.observe()


def captured(part: int = 10_000, fee: int = 1_000) -> Callable[[FakeIntent], None]:
    def step(shown: FakeIntent) -> None:
        shown.authorize()
        shown.capture(part, fee)

    return step


SUCCEEDED = intent(captured())


def paid_out(exchange: Exchange = SAME_CURRENCY) -> FakeService:
    """A payment of 10000 that was captured, with its books."""
    service = serve(new_payment(), exchange)
    service.intent.authorize()
    service.follow()
    service.capture()
    return service


def bounced() -> FakeService:
    service = paid_out()
    service.give_back()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    return service
