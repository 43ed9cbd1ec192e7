"""What may be adjusted, how much, by whom, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from payment_service.domain import adjustments
from payment_service.domain.adjustments import (
    AdjustmentKind,
    AdjustmentLine,
    AdjustmentState,
    Draft,
)
from payment_service.domain.errors import Precondition
from payment_service.domain.ports.policy import Policy
from payment_service.domain.texts import KeptText, seal_of
from tests.unit.domain.builders import NOW, an_adjustment

POLICY = Policy()


def line(account: str, units: int, currency: str = "USD") -> AdjustmentLine:
    return AdjustmentLine(account, currency, units)


def test_no_account_can_be_adjusted_that_stripe_or_a_row_repeats() -> None:
    of_payment = adjustments.adjustable_accounts("ann", of_payment=True)
    of_expert = adjustments.adjustable_accounts("ann", of_payment=False)
    own = adjustments.adjustable_accounts("", of_payment=False)
    assert of_payment == {
        *("losses", "settled_out_of_band", "fx", "platform_fees", "contributions"),
        *("account_deficits", "expert_debt:ann"),
    }
    assert of_expert - of_payment == {"commission", "processor_fee", "dispute_fee"}
    assert of_expert - own == {"expert_debt:ann"}
    assert own - of_expert == {"opening_balance"}
    repeated = ("stripe:", "escrow:", "client_payable:", "pending_refund:", "dispute_hold:")
    for account in of_payment | of_expert | own:
        assert not account.startswith((*repeated, "expert_funds:"))
        assert account not in {"hold", "client", "reserves", "platform_bank", "advances"}


def test_each_currency_must_sum_to_zero_by_itself() -> None:
    accounts = adjustments.adjustable_accounts("", of_payment=False)
    both = [line("losses", 5), line("fx", -5), line("fx", 7, "EUR"), line("losses", -7, "EUR")]
    assert adjustments.faults_of_lines(both, accounts) == []
    crossed = [line("losses", 5), line("fx", -5, "EUR")]
    assert [field for field, _ in adjustments.faults_of_lines(crossed, accounts)] == [
        "lines",
        "lines",
    ]


def test_the_limit_is_for_each_currency_and_counts_debits() -> None:
    both = [line("losses", 60), line("fx", 40), line("losses", -100), line("fx", 90, "EUR")]
    adjustments.check_size(both, 100)
    with pytest.raises(Precondition) as refused:
        adjustments.check_size([*both, line("losses", 1)], 100)
    assert refused.value.facts == {"currency": "USD", "requested": "101", "limit": "100"}


def test_a_proposal_expires_at_its_time_and_not_before() -> None:
    adjustment = an_adjustment()
    before = adjustment.expire_time - timedelta(microseconds=1)
    assert adjustment.state_at(before) is AdjustmentState.PROPOSED
    approved = adjustments.approve(adjustment, "bob", before, POLICY)
    assert approved.state_at(adjustment.expire_time) is AdjustmentState.APPROVED
    assert adjustment.state_at(adjustment.expire_time) is AdjustmentState.EXPIRED
    with pytest.raises(Precondition) as refused:
        adjustments.approve(adjustment, "bob", adjustment.expire_time, POLICY)
    assert refused.value.reason == "ADJUSTMENT_EXPIRED"


def test_one_person_is_not_two() -> None:
    adjustment = an_adjustment()
    for name in (adjustment.proposed_by, adjustment.proposed_by.upper()):
        with pytest.raises(Precondition) as refused:
            adjustments.approve(adjustment, name, NOW, POLICY)
        assert refused.value.reason == "APPROVER_IS_PROPOSER"
    alone = replace(POLICY, adjustments_by_one_person=True)
    assert adjustments.approve(adjustment, "ann", NOW, alone).decided_by == "ann"
    assert adjustments.reject(adjustment, "ann", "not so", NOW).decide_reason == "not so"


@pytest.mark.parametrize("state", [AdjustmentState.APPROVED, AdjustmentState.REJECTED])
def test_what_is_decided_stays_decided(state: AdjustmentState) -> None:
    with pytest.raises(Precondition) as refused:
        adjustments.approve(an_adjustment(state=state), "bob", NOW, POLICY)
    assert refused.value.reason == "WRONG_STATE"
    with pytest.raises(Precondition) as refused:
        adjustments.reject(an_adjustment(state=state), "bob", "", NOW)
    assert refused.value.reason == "WRONG_STATE"


def test_only_what_lowers_a_debt_is_relief() -> None:
    lines = [line("expert_debt:ann", -5), line("losses", 5), line("expert_debt:ann", 9, "EUR")]
    adjustment = an_adjustment(*lines, expert_id="ann")
    assert adjustments.debt_relief(adjustment) == {"USD": 5}


def test_the_reason_of_a_proposal_can_be_proven() -> None:
    draft = Draft(
        kind=AdjustmentKind.WRITE_OFF,
        payment_id="",
        expert_id="ann",
        lines=adjustments.write_off_lines("ann", 700, "USD"),
        ticket="",
        reason="left us",
        proposed_by="ann",
    )
    proposed = adjustments.proposed(draft, "adj_1", b"salt", NOW, POLICY)
    assert proposed.reason_seal == seal_of(KeptText("reason", b"salt", "left us"))
    assert {posting.kind for posting in proposed.postings} == {"debt_written_off"}
    assert proposed.transaction_id == ""
    assert replace(proposed, sequence=3).transaction_id == "ann:3"
