"""A payment whose charge the platform holds, and its books."""

from payment_service.domain.operations import OperationKind
from payment_service.domain.payment import EscrowMode
from payment_service.domain.snapshot import PaymentSnapshot
from tests.unit.domain.builders import PLATFORM_HOLD, new_operation, new_transfer, separate, sums
from tests.unit.domain.fake_intent import FakeIntent
from tests.unit.domain.fake_service import FakeService, serve

PLATFORM, CONNECTED = "stripe:platform", "stripe:connected:expert_1"
ESCROW, OWED = "escrow:pay_1", "client_payable:pay_1"


def shown(*, charged: int = 0, held: bool = False, canceled: str = "") -> PaymentSnapshot:
    intent = FakeIntent(10_000, "USD", has_destination=False)
    if held or charged:
        intent.authorize()
    if charged:
        intent.capture(charged)
    if canceled:
        intent.cancel(canceled)
    return intent.observe()


HELD, SUCCEEDED = shown(held=True), shown(charged=10_000)
TRANSFER = new_operation(OperationKind.TRANSFER, 4_000, payload=new_transfer(400))


def held(mode: EscrowMode = PLATFORM_HOLD, *, debt: int = 0) -> FakeService:
    """A payment of 100.00 USD that its client confirmed."""
    service = serve(separate(mode), debt_before=debt)
    service.intent.authorize()
    service.follow()
    return service


def books(service: FakeService) -> dict[str, int]:
    service.check_reconciled()
    return {account: total for (account, _), total in sums(service.postings).items()}


# Stripe's own fee is 320 of 10000 and 204 of 6000.
FEE = {"processor_fee": 320}
