"""Disputes: what they freeze, whom they take from, and that no order of looking changes either."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payment_service.domain import disputes, money, plans
from payment_service.domain.disputes import Outcome, Stage
from payment_service.domain.errors import Busy, Precondition, Refusal
from payment_service.domain.ledger import STRIPE_PLATFORM
from payment_service.domain.operations import OperationState
from payment_service.domain.payment import Freeze, State, WaitingFor
from payment_service.domain.snapshot import DisputeSnapshot, DisputeTransaction, FraudWarning
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet
from tests.unit.domain.builders import NOW, new_payment, separate
from tests.unit.domain.fake_intent import RefusedByStripe
from tests.unit.domain.fake_service import FakeService, reported, serve

FEE = 15


class Bank:
    """The client's bank, and Stripe between it and us: the disputes of one charge."""

    def __init__(self, service: FakeService) -> None:
        self.service = service

    def contest(self, amount: int, *, inquiry: bool = False) -> str:
        name = f"dp_{len(self.service.shown) + 1}"
        self.service.shown[name] = DisputeSnapshot(
            dispute_id=name,
            charge_id="ch_1",
            status="warning_needs_response" if inquiry else "needs_response",
            reason="fraudulent",
            minor_units=amount,
            due_by=NOW + timedelta(days=9),
            create_time=NOW + timedelta(seconds=len(self.service.shown)),
        )
        if not inquiry:
            self.line(name, -amount, FEE)
        return name

    def line(self, name: str, minor_units: int, fee: int = 0, currency: str = "") -> None:
        shown, currency = self.service.shown[name], currency or self.service.payment.currency
        line = DisputeTransaction(f"txn_{name}_{len(shown.lines)}", currency, minor_units, fee)
        self.service.shown[name] = replace(shown, lines=(*shown.lines, line))
        self.service.intent.balances[STRIPE_PLATFORM, currency] += minor_units - fee

    def status(self, name: str, status: str) -> None:
        self.service.shown[name] = replace(self.service.shown[name], status=status)

    def escalate(self, name: str) -> None:
        self.status(name, "needs_response")
        self.line(name, -self.service.shown[name].minor_units, FEE)

    def lose(self, name: str) -> None:
        """By an appeal too: what was won is then taken once more."""
        if self.service.shown[name].status == "won":
            self.line(name, -self.service.shown[name].minor_units)
        self.status(name, "lost")

    def win(self, name: str) -> None:
        self.status(name, "won")
        self.line(name, self.service.shown[name].minor_units)


def held(amount: int = 10_000, currency: str = "USD") -> FakeService:
    """Charged onto the platform, nothing captured yet."""
    service = serve(separate(amount=amount, currency=currency))
    service.intent.authorize()
    service.follow()
    assert service.payment.state is State.IN_ESCROW
    return service


def paid_out(amount: int = 10_000, currency: str = "USD") -> FakeService:
    service = serve(new_payment(amount, currency))
    service.intent.authorize()
    service.follow()
    service.capture()
    return service


def reason_of(service: FakeService, *, capture: bool) -> str:
    try:
        if capture:
            plans.plan_capture(service.payment, None, final=True)
        else:
            plans.plan_refund(service.payment, None)
    except Refusal as refusal:
        return f"{refusal.reason} {refusal.facts.get('dispute_id')} {refusal.facts.get('stage')}"
    return ""


# ---- freezes ----


def test_an_inquiry_freezes_capture_and_a_chargeback_refunds_too() -> None:
    service = held()
    bank = Bank(service)
    inquiry = bank.contest(4_000, inquiry=True)
    service.follow()
    assert reason_of(service, capture=True) == "PAYMENT_DISPUTED dp_1 INQUIRY"
    assert not reason_of(service, capture=False)
    chargeback = bank.contest(1_000)
    service.follow()
    assert reason_of(service, capture=True) == "PAYMENT_DISPUTED dp_2 CHARGEBACK"
    assert reason_of(service, capture=False) == "PAYMENT_DISPUTED dp_2 CHARGEBACK"
    bank.win(chargeback)
    service.follow()
    assert (service.payment.frozen, service.payment.frozen_by) == (Freeze.INQUIRY, inquiry)
    bank.status(inquiry, "warning_closed")
    service.follow()
    assert (service.payment.frozen, service.payment.frozen_by) == (Freeze.NONE, "")
    assert not service.follow().transitions


def test_a_fraud_warning_is_reported_once_and_freezes_while_it_is_actionable() -> None:
    service = held()

    def warned(*, actionable: bool) -> list[EventKind]:
        warning = FraudWarning("issfr_1", "misc", actionable)
        to = service.follow(replace(service.observe(), fraud_warnings=(warning,)))
        return [transition.kind for transition in to.transitions]

    assert warned(actionable=True) == [EventKind.FRAUD_WARNING]
    assert reason_of(service, capture=True) == "PAYMENT_DISPUTED issfr_1 FRAUD_WARNING"
    assert not reason_of(service, capture=False)
    assert not warned(actionable=True)
    assert not service.follow().transitions  # Nobody asked for warnings: nothing is concluded.
    assert warned(actionable=False) == [EventKind.FRAUD_WARNING_OVER]
    assert service.payment.frozen is Freeze.NONE


def test_an_unknown_status_is_an_open_chargeback() -> None:
    """Stripe's enums are open: what we do not know must freeze rather than let through."""
    service = held()
    name = Bank(service).contest(1_000)
    Bank(service).status(name, "pondered_by_the_network")
    service.follow()
    record = service.records[name]
    assert (record.stage, record.outcome) == (Stage.CHARGEBACK, Outcome.OPEN)
    assert service.payment.frozen is Freeze.CHARGEBACK


# ---- money ----


@pytest.mark.parametrize(
    ("currency", "amount", "basis_points", "commissions"),
    [
        ("JPY", 1_001, 1_000, [67, 34, 0]),
        ("KWD", 10_050, 1_250, [840, 420, 0]),
        ("ISK", 50_500, 1_000, [3_400, 1_700, 0]),
    ],
)
def test_the_commission_kept_is_always_that_of_what_is_left(
    currency: str, amount: int, basis_points: int, commissions: list[int]
) -> None:
    service = serve(new_payment(amount, currency, basis_points))
    service.intent.authorize()
    service.follow()
    service.capture()
    bank = Bank(service)
    step = money.step(currency)
    third = amount // 3 // step * step
    for part, commission in zip((third, third, amount - 2 * third), commissions, strict=True):
        name = bank.contest(part)
        bank.status(name, "lost")
        service.follow()
        service.finish()
        assert service.payment.net_commission == commission
        assert service.payment.net_expert == service.payment.net - commission
    assert service.balance("losses") == 0
    assert service.balance("expert_debt:expert_1") == 0
    assert service.payment.state is State.REFUNDED


def test_a_refund_before_the_loss_is_the_platforms_loss() -> None:
    service = paid_out()
    service.give_back(4_000)
    name = Bank(service).contest(10_000)
    Bank(service).status(name, "lost")
    service.follow()
    service.finish()
    assert (service.payment.lost, service.payment.refunded_after_capture) == (6_000, 4_000)
    assert service.balance("losses") == 4_000
    assert service.records[name].lost == 10_000


def test_a_reversal_that_stripe_refuses_leaves_the_debt() -> None:
    service = paid_out()
    name = Bank(service).contest(10_000)
    Bank(service).status(name, "lost")
    service.follow()
    assert service.kinds[-1] is EventKind.DISPUTE_LOST
    service.finish(reversal_refused=True)
    assert service.payment.state is State.REFUNDED
    assert service.balance("expert_debt:expert_1") == 9_000


def test_a_loss_waits_for_the_capture_under_way_and_divides_what_that_leaves() -> None:
    service = held()
    service.start_capture(4_000, final=False)
    name = Bank(service).contest(10_000)
    Bank(service).status(name, "lost")
    service.follow()
    assert service.records[name].unsettled == 10_000
    assert service.payment.frozen is Freeze.CHARGEBACK
    assert not service.follow().transitions
    service.send()
    service.follow()  # The capture, and the loss right after it.
    assert service.payment.lost_held == 6_000
    assert service.payment.lost == 4_000
    service.finish()
    assert service.payment.state is State.REFUNDED
    assert service.balance("stripe:connected:expert_1") == 0


def test_a_loss_without_its_line_is_written_off_when_the_line_appears() -> None:
    service = held()
    name = Bank(service).contest(3_000, inquiry=True)
    Bank(service).status(name, "lost")
    service.follow()
    assert (service.records[name].outcome, service.payment.lost_held) == (Outcome.LOST, 0)
    Bank(service).line(name, -3_000, FEE)
    service.follow()
    assert service.payment.lost_held == 3_000
    assert not service.follow().transitions


def test_money_returned_after_a_loss_is_the_platforms_until_an_operator_decides() -> None:
    service = paid_out()
    name = Bank(service).contest(10_000)
    Bank(service).status(name, "lost")
    service.follow()
    service.finish()
    Bank(service).win(name)
    service.follow()
    assert service.balance("losses") == -10_000
    assert service.balance("dispute_hold:pay_1") == 0
    assert "reinstated_after_loss" in service.discrepancies
    assert service.records[name].outcome is Outcome.WON
    assert not service.follow().transitions


def test_lost_won_on_appeal_and_lost_again_is_written_off_again() -> None:
    service = paid_out()
    bank = Bank(service)
    name = bank.contest(10_000)
    for _ in range(3):
        bank.lose(name)
        service.follow()
        service.finish()
        record = service.records[name]
        assert (record.outcome, record.lost) == (Outcome.LOST, 10_000)
        assert not record.freezes
        # The expert's part was taken back once; what the platform had of the appeal is gone.
        assert (service.balance("losses"), service.payment.lost) == (0, 10_000)
        bank.win(name)
        service.follow()
        record = service.records[name]
        assert (record.outcome, record.lost) == (Outcome.WON, 0)
        assert service.balance("losses") == -10_000


def test_a_second_loss_is_divided_like_any_other_loss() -> None:
    service = held()
    bank = Bank(service)
    name = bank.contest(4_000)
    bank.status(name, "lost")
    service.follow()
    bank.win(name)
    service.follow()
    assert (service.payment.held, service.balance("losses")) == (6_000, -4_000)
    bank.lose(name)
    service.follow()
    # What the appeal brought back is the operator's to decide about.
    assert (service.payment.held, service.balance("losses")) == (2_000, -4_000)
    assert service.payment.lost_held == 8_000


def test_refund_that_bounces_after_a_won_appeal_is_client_payable() -> None:
    service = paid_out()
    service.give_back(10_000)
    bank = Bank(service)
    name = bank.contest(10_000)
    bank.status(name, "lost")
    service.follow()
    assert service.balance("losses") == 10_000
    bank.win(name)
    service.follow()
    assert service.balance("losses") == 0
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    assert (service.payment.client_payable, service.balance("losses")) == (10_000, 0)


def test_a_failed_refund_beside_a_dispute_lost_twice_is_client_payable() -> None:
    """The bank gave the client 6,000 in the end, and not the 4,000 that were refunded."""
    service = paid_out()
    service.give_back(4_000)
    bank = Bank(service)
    name = bank.contest(6_000)
    bank.status(name, "lost")
    service.follow()
    service.finish()
    bank.win(name)
    service.follow()
    bank.lose(name)
    service.follow()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    assert (service.payment.client_payable, service.balance("losses")) == (4_000, 0)


def test_a_loss_reduces_the_client_payable_and_an_appeal_does_not_restore_it() -> None:
    """4,000 of 10,000 were refunded, and bounce; the bank gives the client all, then nothing."""
    service = paid_out()
    service.give_back(4_000)
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    bank = Bank(service)
    name = bank.contest(10_000)
    bank.lose(name)
    service.follow()
    service.finish()
    assert (service.payment.client_payable, service.balance("losses")) == (0, 0)
    bank.win(name)
    to = service.follow()
    assert reported(to) == ["reinstated_after_loss"]
    assert (service.payment.client_payable, service.balance("losses")) == (0, -10_000)
    assert service.operation is None


def test_a_refund_that_fails_after_a_loss_is_payable_and_parked_for_an_operator() -> None:
    """The bank has paid the client, so the operator settles it; nothing is sent by itself."""
    service = paid_out()
    service.give_back(4_000)
    bank = Bank(service)
    bank.lose(bank.contest(10_000))
    service.follow()
    service.finish()
    assert service.balance("losses") == 4_000
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    assert (service.payment.client_payable, service.balance("losses")) == (4_000, 4_000)
    assert service.operation is not None
    assert service.operation.state is OperationState.PARKED
    assert service.payment.waiting_for is WaitingFor.OPERATOR


def test_a_parked_capture_is_abandoned_for_the_loss_and_not_before() -> None:
    service = held()
    service.start_capture(4_000, final=False)
    service.park()
    bank = Bank(service)
    name = bank.contest(10_000)
    service.follow()
    assert service.payment.state is State.CAPTURING
    bank.lose(name)
    service.follow()
    assert (service.payment.state, service.payment.lost_held) == (State.REFUNDED, 10_000)


def test_a_dispute_before_capture_is_reported_and_changes_nothing() -> None:
    service = serve(new_payment())
    service.intent.authorize()
    service.follow()
    Bank(service).contest(10_000)
    to = service.follow(service.observe())
    assert not to.transitions
    assert service.discrepancies == ["dispute_before_capture"]


# ---- any lifecycle, synced at any moments ----


ACTIONS = (
    "contest",
    "inquire",
    "lose",
    "lose",
    "win",
    "escalate",
    "close",
    "ours",
    "begin",
    "bounce",
    "repay",
)


def live(service: FakeService, seed: int, steps: int, *, looks: float) -> None:
    """A random life of captures, refunds and disputes; seen only now and then."""
    script, chance = Random(seed), Random(seed + 1)
    bank = Bank(service)
    for _ in range(steps):
        action = script.choice(ACTIONS)
        part, which = script.randrange(1, 101), script.random()
        names = list(service.shown)
        name = names[int(which * len(names))] if names else ""
        status = service.shown[name].status if name else ""
        amount = service.payment.amount * part // 100
        if action in ("contest", "inquire") and len(names) < 4:
            bank.contest(amount, inquiry=action == "inquire")
        elif action == "lose" and status in ("needs_response", "won"):
            bank.lose(name)
        elif action == "win" and status in ("needs_response", "lost"):
            bank.win(name)
        elif action == "escalate" and status == "warning_needs_response":
            bank.escalate(name)
        elif action == "close" and status == "warning_needs_response":
            bank.status(name, "warning_closed")
        elif action == "begin" and service.payment.state is State.IN_ESCROW:
            with suppress(Refusal):  # Left under way, for whatever comes meanwhile.
                service.start_capture(service.payment.held * part // 300 or None, final=False)
        elif action in ("bounce", "repay"):
            _bounce_or_repay(service, action, which)
        elif action == "ours":
            service.catch_up()
            service.finish()
            _act(service, part, refunds=which < 0.4, refused=which > 0.8)
        if chance.random() < looks:
            service.follow()
            if chance.random() < 0.5:
                service.finish(reversal_refused=chance.random() < 0.2)
    service.catch_up()
    service.finish()
    service.catch_up()


def _bounce_or_repay(service: FakeService, action: str, which: float) -> None:
    refunds, operation = service.intent.refunds, service.operation
    if action == "bounce":
        with suppress(RefusedByStripe, IndexError):  # It has bounced already, or there is none.
            service.intent.bounce(refunds[int(which * len(refunds))].refund_id)
        return
    # Of a charge that is disputed, or was lost, Stripe gives nothing back.
    gives_back = all(shown.status == "won" for shown in service.shown.values())
    if gives_back and operation is not None and operation.is_repayment:
        service.send()
        service.catch_up()


def _act(service: FakeService, part: int, *, refunds: bool, refused: bool) -> None:
    payment = service.payment
    available = payment.held + payment.net if refunds else payment.held
    step = money.step(payment.currency)
    amount = available * part // 100 // step * step
    if amount == 0:
        return
    with suppress(Refusal):  # Frozen, or nothing is left for it.
        if refunds:
            service.give_back(amount, reversal_refused=refused)
        else:
            service.capture(amount, final=False)


def paid_as_owed(service: FakeService) -> int:
    """What losses paid of bounced refunds."""
    return sum(
        line.minor_units
        for line in service.postings
        if (line.kind, line.account) == ("dispute_lost", "client_payable:pay_1")
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["USD", "JPY", "KWD"]), st.floats(0, 1))
def test_any_lifecycle_leaves_books_that_agree_with_stripes(
    seed: int, currency: str, looks: float
) -> None:
    service = held(10_010, currency)
    live(service, seed, 25, looks=looks)
    payment, records = service.payment, service.records.values()
    assert set(service.records) == set(service.shown)
    assert bool(payment.operation_id) == bool(payment.client_payable)
    assert not any(record.unsettled for record in records)
    assert service.balance("dispute_hold:pay_1") == sum(
        record.withdrawn - record.reinstated - record.lost for record in records
    )
    assert sum(record.lost for record in records) == (
        payment.lost_held + payment.lost + service.balance("losses") + paid_as_owed(service)
    )
    reinstated = sum(
        line.minor_units
        for line in service.postings
        if (line.kind, line.account) == ("reinstated_after_loss", "losses")
    )
    assert -reinstated <= sum(record.reinstated for record in records)
    assert service.balance("dispute_fee") == FEE * sum(
        len(d.lines) > 0 for d in service.shown.values()
    )
    due = money.fee(payment.net, payment.commission_basis_points, currency)
    assert payment.net_commission == due
    assert (payment.frozen is Freeze.NONE) == all(not record.is_open for record in records)
    # Client payable: what failed and was not repaid, less what the bank has given.
    bounced = sum(refund.minor_units for refund in service.intent.refunds if refund.failed)
    resent = sum(
        line.minor_units
        for line in service.postings
        if (line.kind, line.account) == ("client_repaid", "client_payable:pay_1")
    )
    assert payment.client_payable == bounced - resent - paid_as_owed(service)
    before = payment
    assert not service.follow().transitions
    assert service.payment == before


# ---- more lines than Stripe documents ----


def converted(
    *lines: tuple[int, str], outcome: str = "needs_response"
) -> tuple[FakeService, ChangeSet]:
    """10,000.00 INR, disputed and withdrawn in dollars; each further line is (amount, currency)."""
    service = held(1_000_000, "INR")
    bank = Bank(service)
    name = bank.contest(1_000_000, inquiry=True)
    bank.status(name, outcome)
    for amount, currency in [(-12_000, "USD"), *lines]:
        bank.line(name, amount, currency=currency)
    return service, service.follow()


@pytest.mark.parametrize(
    ("lines", "withdrawn", "reinstated"),
    [
        ([], 1_000_000, 0),
        ([(-7, "USD")], 1_000_000, 0),
        ([(7, "USD")], 1_000_000, 583),
        ([(6_000, "USD")], 1_000_000, 500_000),
        ([(4_000, "USD"), (4_000, "USD"), (4_000, "USD")], 1_000_000, 1_000_000),
        ([(12_000, "USD")], 1_000_000, 1_000_000),
        ([(12_007, "USD")], 1_000_000, 1_000_000),
        ([(-7, "USD"), (12_007, "USD")], 1_000_000, 1_000_000),
        ([(12_000, "USD"), (-12_000, "USD")], 2_000_000, 1_000_000),
        ([(-700, "INR")], 1_000_700, 0),
        # Nothing says what euros are worth here.
        ([(300, "EUR")], 1_000_000, 0),
    ],
)
def test_a_further_line_is_valued_in_proportion_to_the_first_withdrawal(
    lines: list[tuple[int, str]], withdrawn: int, reinstated: int
) -> None:
    service, _ = converted(*lines)
    [record] = service.records.values()
    assert (record.withdrawn, record.reinstated) == (withdrawn, reinstated)
    assert service.balance("dispute_hold:pay_1") == withdrawn - reinstated


@pytest.mark.parametrize(
    ("lines", "outcome", "told"),
    [
        ([(-7, "USD")], "needs_response", False),
        ([(12_000, "USD")], "won", False),
        ([(6_000, "USD")], "lost", False),
        ([(6_000, "USD")], "won", True),
        ([(7, "USD"), (-7, "USD")], "needs_response", True),
        ([(-700, "INR")], "needs_response", True),
        ([(300, "EUR")], "needs_response", True),
        ([(300, "EUR")], "lost", True),
        ([(11_000, "EUR")], "won", True),
    ],
)
def test_lines_that_nothing_explains_are_reported(
    lines: list[tuple[int, str]], outcome: str, *, told: bool
) -> None:
    service, changes = converted(*lines, outcome=outcome)
    assert ("dispute_lines_unexplained" in reported(changes)) is told
    [record] = service.records.values()
    lost = record.withdrawn - record.reinstated if outcome == "lost" else 0
    assert record.lost == lost


# ---- answers ----


def test_guards_of_answers_name_the_reason() -> None:
    service = held()
    name = Bank(service).contest(1_000)
    service.follow()
    record = service.records[name]
    words = {"uncategorized_text": "It was delivered."}

    def refused(record: disputes.Dispute, *, accepts: bool = False) -> str:
        with pytest.raises(Refusal) as refusal:
            if accepts:
                disputes.check_acceptance(record)
            else:
                disputes.check_evidence(record, words, submit=True, now=NOW)
        return refusal.value.reason

    disputes.check_evidence(record, words, submit=True, now=NOW)
    disputes.check_acceptance(record)
    assert refused(replace(record, evidence_due_time=NOW)) == "EVIDENCE_PAST_DUE"
    assert refused(replace(record, status="under_review")) == "EVIDENCE_ALREADY_SUBMITTED"
    lost = replace(record, status="lost", outcome=Outcome.LOST)
    assert refused(lost) == refused(lost, accepts=True) == "DISPUTE_CLOSED"
    inquiry = replace(record, stage=Stage.INQUIRY, status="warning_needs_response")
    disputes.check_evidence(inquiry, words, submit=True, now=NOW)
    assert refused(inquiry, accepts=True) == "DISPUTE_IS_INQUIRY"
    with pytest.raises(Busy):
        disputes.check_acceptance(replace(record, operation_id="op_1"))
    with pytest.raises(Precondition):
        disputes.check_acceptance(lost)


@pytest.mark.parametrize(("given_text", "staged"), [(False, False), (False, True), (True, False)])
def test_there_must_be_something_to_submit(*, given_text: bool, staged: bool) -> None:
    service = held()
    name = Bank(service).contest(1_000)
    service.follow()
    record = replace(service.records[name], has_evidence=staged)
    words = {"uncategorized_text": "x"} if given_text else {}
    if given_text or staged:
        disputes.check_evidence(record, words, submit=True, now=NOW)
    else:
        with pytest.raises(Refusal, match="nothing is staged"):
            disputes.check_evidence(record, words, submit=True, now=NOW)


def test_all_evidence_together_has_a_limit() -> None:
    texts = dict.fromkeys(disputes.LONG_TEXTS, "x" * 20_000)
    with pytest.raises(Refusal, match="150000"):
        disputes.check_evidence_fields(texts)


def test_a_dispute_that_our_refund_prevented_ends_during_the_reversal() -> None:
    service = paid_out()
    bank = Bank(service)
    name = bank.contest(10_000, inquiry=True)
    service.follow()
    service.start_give_back()
    service.send()
    assert service.payment.state is State.REFUNDING
    bank.status(name, "prevented")
    service.follow()
    assert service.records[name].outcome is Outcome.PREVENTED
    assert service.payment.state is State.REFUNDING
    assert service.payment.frozen is Freeze.NONE


def test_a_dispute_without_money_ends_while_a_capture_waits_for_its_expert() -> None:
    service = held()
    service.start_capture()
    service.wait_for_expert()
    bank = Bank(service)
    name = bank.contest(10_000, inquiry=True)
    bank.status(name, "prevented")
    service.follow()
    assert service.records[name].outcome is Outcome.PREVENTED
    assert service.payment.state is State.CAPTURING
