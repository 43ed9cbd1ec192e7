"""Which of the transfers under a payment's label are the payment's."""

import pytest

from payment_service.domain.snapshot import IntentStatus, PaymentSnapshot, Transfer
from payment_service.domain.sync.transfers import without_foreign_transfers
from tests.unit.domain.builders import separate


@pytest.mark.parametrize(
    ("account", "currency", "operation_id", "known", "own"),
    [
        ("acct_now", "USD", "", (), True),
        ("acct_before", "USD", "", (), True),
        ("acct_other", "USD", "", (), False),
        ("acct_now", "EUR", "", (), False),
        # What is booked, or carries the open operation's id, is never taken for somebody else's.
        ("acct_other", "USD", "", ("tr_1",), True),
        ("acct_now", "EUR", "op_1", ("op_1",), True),
        ("acct_other", "USD", "op_2", ("op_1",), False),
    ],
)
def test_a_transfer_is_the_payments_by_its_account_and_its_currency(
    account: str, currency: str, operation_id: str, known: tuple[str, ...], *, own: bool
) -> None:
    transfer = Transfer("tr_1", 900, currency, operation_id, destination_account_id=account)
    shown = PaymentSnapshot(
        "pi_1", IntentStatus.SUCCEEDED, 10_000, "USD", separate_transfers=(transfer,)
    )
    left, foreign = without_foreign_transfers(
        shown, separate(), {"acct_now", "acct_before"}, {*known}
    )
    assert left.separate_transfers == ((transfer,) if own else ())
    assert [one.kind for one in foreign] == ([] if own else ["foreign_transfer"])
