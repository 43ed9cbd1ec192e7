"""The kinds of discrepancies, and how an open one of each kind ends.

Each kind that is stored has a page in ``docs/runbook/discrepancies``; all invariants share one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self


class ClosesWhen(StrEnum):
    """What ends an open discrepancy. An operator may always decide it as well."""

    DECIDED = "an operator decides it"  # It says what happened, and nothing undoes that.
    LINE_AGREES = "the ledger has the balance transaction with Stripe's amount"
    LINE_IS_SHOWN = "Stripe shows the balance transaction, or the ledger has it no more"
    COVERED = "a reconciliation of all payments no longer finds it"
    NOTHING_HELD = "the payment holds nothing any more"
    NOTHING_PAYABLE = "the client is owed nothing any more"
    FUNDS_CAME = "the payment no longer waits for the platform's balance"
    SYNC_AGREES = "a sync of the payment finds nothing that does not fit"
    INVARIANT_HOLDS = "the invariant holds for the payment"


class DiscrepancyKind(StrEnum):
    """What does not fit. The value is stored, and is a label of metrics."""

    closes_when: ClosesWhen

    def __new__(cls, value: str, closes_when: ClosesWhen = ClosesWhen.DECIDED) -> Self:
        """Makes a member that is its value and knows how it closes."""
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.closes_when = closes_when
        return kind

    # A sync found something at Stripe that this service did not do, or not like that.
    AMOUNT_MISMATCH = "amount_mismatch", ClosesWhen.DECIDED
    CAPTURED_OUT_OF_BAND = "captured_out_of_band", ClosesWhen.DECIDED
    COMMISSION_MISMATCH = "commission_mismatch", ClosesWhen.DECIDED
    DISPUTE_BEFORE_CAPTURE = "dispute_before_capture", ClosesWhen.DECIDED
    DISPUTE_LINES_UNEXPLAINED = "dispute_lines_unexplained", ClosesWhen.DECIDED
    FOREIGN_TRANSFER = "foreign_transfer", ClosesWhen.DECIDED
    INTENT_WITHOUT_PAYMENT = "intent_without_payment", ClosesWhen.DECIDED
    LINE_NEVER_CAME = "line_never_came", ClosesWhen.DECIDED
    OUT_OF_BAND_FEE_REFUND = "out_of_band_fee_refund", ClosesWhen.DECIDED
    OUT_OF_BAND_REFUND = "out_of_band_refund", ClosesWhen.DECIDED
    OUT_OF_BAND_REVERSAL = "out_of_band_reversal", ClosesWhen.DECIDED
    OUT_OF_BAND_TRANSFER = "out_of_band_transfer", ClosesWhen.DECIDED
    REFUND_EXCEEDS_NET = "refund_exceeds_net", ClosesWhen.DECIDED
    REINSTATED_AFTER_LOSS = "reinstated_after_loss", ClosesWhen.DECIDED
    SETTLED_IN_OTHER_CURRENCY = "settled_in_other_currency", ClosesWhen.DECIDED
    #: An alarm only. It is not stored, because no snapshot can be applied without the intent.
    INTENT_MISSING = "intent_missing", ClosesWhen.DECIDED

    # Every sync reports these again for as long as they are so.
    CHARGE_MISSING = "charge_missing", ClosesWhen.SYNC_AGREES
    INTENT_MISMATCH = "intent_mismatch", ClosesWhen.SYNC_AGREES
    STATE_MISMATCH = "state_mismatch", ClosesWhen.SYNC_AGREES

    # Money that must still go to the client.
    REFUND_FAILED = "refund_failed", ClosesWhen.NOTHING_PAYABLE
    REMAINDER_NOT_RETURNED = "remainder_not_returned", ClosesWhen.NOTHING_HELD
    #: Stripe takes a refund, or a transfer, out of the platform's available balance only.
    REFUND_WAITS_FOR_FUNDS = "refund_waits_for_funds", ClosesWhen.FUNDS_CAME

    # Reconciliation compared the ledger with Stripe's balance.
    ACCOUNT_UNREAD = "account_unread", ClosesWhen.COVERED
    ESCROW_UNDERFUNDED = "escrow_underfunded", ClosesWhen.COVERED
    LINE_DIFFERS = "line_differs", ClosesWhen.LINE_AGREES
    MISSING_AT_STRIPE = "missing_at_stripe", ClosesWhen.LINE_IS_SHOWN
    MISSING_IN_LEDGER = "missing_in_ledger", ClosesWhen.LINE_AGREES
    UNKNOWN_BALANCE_TRANSACTION = "unknown_balance_transaction", ClosesWhen.LINE_AGREES

    # The stored rows contradict one another: the audit of a payment's hash chain.
    EVENT_HASHES_CHAIN = "invariant_event_hashes_chain", ClosesWhen.INVARIANT_HOLDS
    ROW_IS_AS_RECORDED = "invariant_row_is_as_recorded", ClosesWhen.INVARIANT_HOLDS
    POSTINGS_ARE_AS_RECORDED = "invariant_postings_are_as_recorded", ClosesWhen.INVARIANT_HOLDS
    MOVEMENTS_ARE_AS_RECORDED = "invariant_movements_are_as_recorded", ClosesWhen.INVARIANT_HOLDS
    TEXTS_ARE_AS_RECORDED = "invariant_texts_are_as_recorded", ClosesWhen.INVARIANT_HOLDS
    # The same, by a query between tables.
    POSTINGS_SUM_TO_ZERO = "invariant_postings_sum_to_zero", ClosesWhen.INVARIANT_HOLDS
    EACH_VERSION_HAS_ONE_EVENT = "invariant_each_version_has_one_event", ClosesWhen.INVARIANT_HOLDS
    LAST_EVENT_IS_HEAD = "invariant_last_event_is_head", ClosesWhen.INVARIANT_HOLDS
    EACH_EVENT_IS_IN_FEED = "invariant_each_event_is_in_feed", ClosesWhen.INVARIANT_HOLDS
    FEED_KEEPS_EVENT_ORDER = "invariant_feed_keeps_event_order", ClosesWhen.INVARIANT_HOLDS
    AUTHORIZED_EQUALS_HOLD_ACCOUNT = (
        "invariant_authorized_equals_hold_account",
        ClosesWhen.INVARIANT_HOLDS,
    )
    HELD_EQUALS_ESCROW_ACCOUNT = "invariant_held_equals_escrow_account", ClosesWhen.INVARIANT_HOLDS
    CHARGED_IS_ACCOUNTED_FOR = "invariant_charged_is_accounted_for", ClosesWhen.INVARIANT_HOLDS
    NET_COMMISSION_EQUALS_ACCOUNT = (
        "invariant_net_commission_equals_account",
        ClosesWhen.INVARIANT_HOLDS,
    )
    CLIENT_PAYABLE_EQUALS_ACCOUNT = (
        "invariant_client_payable_equals_account",
        ClosesWhen.INVARIANT_HOLDS,
    )
    DISPUTED_EQUALS_DISPUTE_HOLD_ACCOUNT = (
        "invariant_disputed_equals_dispute_hold_account",
        ClosesWhen.INVARIANT_HOLDS,
    )
    LOST_IS_WITHIN_DISPUTES = "invariant_lost_is_within_disputes", ClosesWhen.INVARIANT_HOLDS
    DUE_IS_TAKEN_BACK_ONCE = "invariant_due_is_taken_back_once", ClosesWhen.INVARIANT_HOLDS
    DISPUTED_PAYMENT_IS_FROZEN = "invariant_disputed_payment_is_frozen", ClosesWhen.INVARIANT_HOLDS
    PAYMENT_NAMES_ITS_OPEN_OPERATION = (
        "invariant_payment_names_its_open_operation",
        ClosesWhen.INVARIANT_HOLDS,
    )
    CLIENT_PAYABLE_HAS_OPEN_REPAYMENT = (
        "invariant_client_payable_has_open_repayment",
        ClosesWhen.INVARIANT_HOLDS,
    )
    BUSY_STATE_HAS_OPEN_OPERATION = (
        "invariant_busy_state_has_open_operation",
        ClosesWhen.INVARIANT_HOLDS,
    )
    EACH_ROW_HAS_ITS_PAYMENT = "invariant_each_row_has_its_payment", ClosesWhen.INVARIANT_HOLDS
    EXPERT_POSTINGS_SUM_TO_ZERO = (
        "invariant_expert_postings_sum_to_zero",
        ClosesWhen.INVARIANT_HOLDS,
    )
    BALANCES_EQUAL_POSTINGS = "invariant_balances_equal_postings", ClosesWhen.INVARIANT_HOLDS
    ADJUSTMENTS_ARE_AS_APPROVED = (
        "invariant_adjustments_are_as_approved",
        ClosesWhen.INVARIANT_HOLDS,
    )
    PAYOUT_HAS_ITS_POSTINGS = "invariant_payout_has_its_postings", ClosesWhen.INVARIANT_HOLDS

    @property
    def is_invariant(self) -> bool:
        """Returns whether the kind says that stored rows contradict one another."""
        return self.closes_when is ClosesWhen.INVARIANT_HOLDS

    @property
    def invariant_name(self) -> str:
        """Returns the name of the invariant, as reports and metrics have it."""
        return self.value.removeprefix("invariant_")

    @property
    def describes_a_state(self) -> bool:
        """Returns whether the kind says how things are, and not what happened once.

        It is reported again for as long as it is so, even if an operator has decided it.
        """
        return self.closes_when in _STATES


_STATES: Final = (
    ClosesWhen.SYNC_AGREES,
    ClosesWhen.COVERED,
    ClosesWhen.FUNDS_CAME,
    ClosesWhen.INVARIANT_HOLDS,
)
#: The kinds that concern balance transactions, and not one payment's objects.
BALANCE_KINDS: Final = tuple(
    kind
    for kind in DiscrepancyKind
    if kind.closes_when in (ClosesWhen.LINE_AGREES, ClosesWhen.LINE_IS_SHOWN, ClosesWhen.COVERED)
)
