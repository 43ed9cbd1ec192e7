"""The chapters of a walk, one function each; `CHAPTERS` gives their order.

Every expected amount is a plain number here, so that a walk proves the arithmetic instead of
repeating it. To add a chapter, write a function that uses the steps of :class:`Walk` and returns
what it leaves in the ledger, and add it to the list.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Final

import grpc

from dev.books import Place
from dev.caller import Mismatch, expect
from dev.standing import Held, Standing, Walked
from dev.story import amount, money
from dev.walk import DECLINED_CARD, EXPERT, Chapter, Walk
from marketplace.payments.errors import refusal_of
from marketplace.payments.v1 import disputes_pb2, experts_pb2, payments_pb2

FUNDS: Final = f"expert_funds:{EXPERT}"

#: Some banks hold for so long, others for seven days.
_SHORT_HOLD_DAYS: Final = 5
#: What the service of `make demo` is told, which is at most six days: it acts so long before a hold
#: lapses. So a short one is promoted at once, and the holds of seven days are let be.
DEADLINE_MARGIN_SECONDS: Final = 6 * 86_400

#: The service looks for deadlines every 7 to 15 seconds; on a busy machine it may take longer.
_PROMOTION_SECONDS: Final = 45.0


def captured(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(10_000, "USD", commission=1_000, expert=9_000)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=10_000))
    standing = Standing(state="CAPTURED", captured=10_000, commission=1_000, expert=9_000)
    walk.capture_twice(payment, standing)
    walk.audit(payment, ["initiated", "authorized", "captured"])
    return {("commission", "USD"): -1_000, (FUNDS, "USD"): -9_000}


def partly_refunded(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(25_000, "USD", commission=2_500, expert=22_500)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=25_000))
    walk.capture(
        payment, Standing(state="CAPTURED", captured=25_000, commission=2_500, expert=22_500)
    )
    # 166.67 remain; a tenth of that is 16.667, so 8.33 of commission go back.
    walk.refund(
        payment,
        Standing(
            state="CAPTURED", captured=25_000, refunded=8_333, commission=1_667, expert=15_000
        ),
        part=8_333,
        reason="a third was not delivered",
    )
    walk.audit(
        payment, ["initiated", "authorized", "captured", "client_refunded", "transfer_reversed"]
    )
    return {("commission", "USD"): -1_667, (FUNDS, "USD"): -15_000}


def cancelled(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(7_500, "USD", commission=750, expert=6_750)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=7_500))
    walk.refund(payment, Standing(state="CANCELED"), reason="the gig was called off")
    walk.refused_capture(payment)
    walk.audit(payment, ["initiated", "authorized", "canceled"])
    return {}


def declined_then_paid(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(12_000, "USD", commission=1_200, expert=10_800)
    walk.pay(payment, DECLINED_CARD)
    failed = walk.hear(payment, Standing(state="FAILED"))
    expect("last_failure.code", "card_declined", failed.last_failure.code)
    walk.story.step("client", "reads last_failure", failed.last_failure.message)
    walk.pay(payment)
    paid = walk.hear(payment, Standing(state="IN_ESCROW", held=12_000))
    expect("last_failure once it is overcome", False, paid.HasField("last_failure"))
    walk.capture(
        payment,
        Standing(state="CAPTURED", captured=9_000, commission=900, expert=8_100),
        part=9_000,
        final=True,
    )
    walk.audit(payment, ["initiated", "attempt_failed", "authorized", "captured"])
    return {("commission", "USD"): -900, (FUNDS, "USD"): -8_100}


def yen(walk: Walk) -> Mapping[Place, int]:
    request = experts_pb2.SetCommissionRequest(expert_id=EXPERT, commission_basis_points=1_250)
    answer, seconds = walk.caller.timed(walk.caller.experts.SetCommission, request)
    expect("commission_basis_points", 1_250, answer.expert.commission_basis_points)
    walk.story.step("operator", "SetCommission", "12.5 % from now on", seconds=seconds)
    payment = walk.initiate(1_001, "JPY", commission=125, expert=876)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=1_001))
    walk.capture(payment, Standing(state="CAPTURED", captured=1_001, commission=125, expert=876))
    walk.audit(payment, ["initiated", "authorized", "captured"])
    return {("commission", "JPY"): -125, (FUNDS, "JPY"): -876}


def milestones(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(
        99_999,
        "USD",
        commission=12_500,
        expert=87_499,
        done_in=timedelta(days=30),
        held=Held("PLATFORM_HOLD", "OUTLASTS_CARD_HOLD"),
    )
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=99_999))
    # An eighth of each part is 41.66625, and of all three 124.99875.
    commissions = [0]
    for standing, part in [
        (
            Standing(
                state="IN_ESCROW", held=66_666, captured=33_333, commission=4_167, expert=29_166
            ),
            33_333,
        ),
        (
            Standing(
                state="IN_ESCROW", held=33_333, captured=66_666, commission=8_333, expert=58_333
            ),
            33_333,
        ),
        (Standing(state="CAPTURED", captured=99_999, commission=12_500, expert=87_499), 0),
    ]:
        shown = walk.capture(payment, standing, part=part)
        commissions.append(shown.net_commission.minor_units)
    of_each = [after - before for before, after in pairwise(commissions)]
    expect("the commission of each milestone", [4_167, 4_166, 4_167], of_each)
    walk.story.holds(
        f"commission {' + '.join(amount(one, 'USD') for one in of_each)} = "
        f"{amount(sum(of_each), 'USD')}: that of the whole, whatever the parts"
    )
    walk.audit(payment, ["initiated", "charged", "captured", "captured", "captured"])
    return {("commission", "USD"): -12_500, (FUNDS, "USD"): -87_499}


def hold_that_runs_out(walk: Walk) -> Mapping[Place, int]:
    """Starts long before `promoted`, because the service checks deadlines every 15 seconds."""
    walk.simulator.switch(authorization_days=_SHORT_HOLD_DAYS)
    payment = walk.initiate(
        30_000,
        "USD",
        commission=3_000,
        expert=27_000,
        on_deadline=payments_pb2.ON_DEADLINE_PROMOTE,
        held=Held("CARD_HOLD", "PROMOTION"),
    )
    walk.pay(payment)
    walk.simulator.switch(authorization_days=7)
    shown = walk.hear(payment, Standing(state="IN_ESCROW", held=30_000))
    if Held.of(shown).mode == "CARD_HOLD":  # Else it came in this very moment.
        _tell_deadline(walk, shown)
    walk.story.note(
        f"Grace's bank holds the money for {_SHORT_HOLD_DAYS} days only. This service acts "
        f"{DEADLINE_MARGIN_SECONDS // 86_400} days before the end (DEADLINE_MARGIN; the default is "
        "12 hours), so it charges the card soon: it checks every 15 seconds. See the last chapter."
    )
    walk.kept["hold that runs out"] = payment
    return {}


def paid_out_then_refunded(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(5_000, "USD", commission=625, expert=4_375)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=5_000))
    walk.capture(payment, Standing(state="CAPTURED", captured=5_000, commission=625, expert=4_375))
    walk.simulator.advance(days=3)
    walk.story.step("Stripe", "three days later", "Ada's money is available")
    # All that the chapters before have earned her, and this one.
    funds = {
        currency: -total
        for (account, currency), total in walk.left.items()
        if account == FUNDS and total
    }
    funds["USD"] += 4_375
    _pay_out(walk, funds)
    walk.refund(
        payment,
        Standing(state="REFUNDED", captured=5_000, refunded=5_000),
        reason="the work was a copy",
    )
    walk.story.note("Stripe cannot take 43.75 USD back from an empty account, so Ada owes them.")
    _expect_debt(walk, 4_375, "USD")
    walk.audit(
        payment, ["initiated", "authorized", "captured", "client_refunded", "expert_debt_recorded"]
    )
    return {
        (FUNDS, "USD"): funds["USD"] - 4_375,
        **{(FUNDS, other): total for other, total in funds.items() if other != "USD"},
        (f"expert_debt:{EXPERT}", "USD"): 4_375,
    }


def debt_netted(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(12_000, "USD", commission=1_500, expert=10_500)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=12_000))
    standing = Standing(state="CAPTURED", captured=12_000, commission=1_500, expert=10_500)
    # 105.00 are Ada's; 43.75 of them pay her debt.
    version = walk.look_before_capture(
        payment,
        standing,
        [
            ("CHARGE_CARD", 12_000),
            ("PAY_EXPERT", 6_125),
            ("OFFSET_DEBT", 4_375),
            ("COLLECT_COMMISSION", 1_500),
        ],
    )
    walk.capture(payment, standing, version=version)
    _expect_debt(walk, 0, "USD")
    walk.audit(payment, ["initiated", "authorized", "captured"])
    return {
        ("commission", "USD"): -1_500,
        (FUNDS, "USD"): -10_500 + 4_375,
        (f"expert_debt:{EXPERT}", "USD"): -4_375,
    }


def promoted(walk: Walk) -> Mapping[Place, int]:
    payment = walk.kept["hold that runs out"]
    held = Standing(state="IN_ESCROW", held=30_000)

    def on_the_platform() -> bool:
        return walk.read(payment).escrow_mode == payments_pb2.ESCROW_MODE_PLATFORM_HOLD

    seconds = walk.caller.poll(on_the_platform, _PROMOTION_SECONDS)
    shown = walk.read(payment)
    expect("how the money is held", "PLATFORM_HOLD", Held.of(shown).mode)
    walk.expect_standing(shown, held)
    walk.story.step(
        "service", "acts on the deadline", "PLATFORM_HOLD:", "the card is charged", seconds=seconds
    )
    walk.story.shares(held.shares(30_000), "USD")
    walk.simulator.advance(days=_SHORT_HOLD_DAYS)
    walk.expect_standing(walk.read(payment), held)
    walk.story.step(
        "Stripe",
        "five days later",
        "the authorization would have ended;",
        f"{money(shown.amount)} are still in escrow",
    )
    walk.capture(
        payment, Standing(state="CAPTURED", captured=30_000, commission=3_000, expert=27_000)
    )
    walk.audit(payment, ["initiated", "authorized", "promote_started", "charged", "captured"])
    return {("commission", "USD"): -3_000, (FUNDS, "USD"): -27_000}


def dispute_lost(walk: Walk) -> Mapping[Place, int]:
    payment = walk.initiate(8_000, "USD", commission=1_000, expert=7_000)
    walk.pay(payment)
    walk.hear(payment, Standing(state="IN_ESCROW", held=8_000))
    walk.capture(
        payment, Standing(state="CAPTURED", captured=8_000, commission=1_000, expert=7_000)
    )
    walk.simulator.contest(walk.read(payment).charge_id)
    seconds = walk.caller.poll(lambda: bool(_disputes(walk, payment)))
    [dispute] = _disputes(walk, payment)
    walk.story.step(
        "Stripe",
        "Grace's bank takes it back",
        f"{money(dispute.withdrawn_amount)} and a fee of {money(dispute.fee)}",
        seconds=seconds,
    )
    _refused_refund(walk, payment)
    accepted = disputes_pb2.AcceptDisputeRequest(
        dispute_id=dispute.dispute_id, idempotency_key=walk.key(payment)
    )
    _, seconds = walk.caller.timed(walk.caller.disputes.AcceptDispute, accepted)
    walk.story.step("operator", "AcceptDispute", "the client was right", seconds=seconds)
    lost = Standing(state="REFUNDED", captured=8_000)
    seconds = walk.caller.poll(lambda: Standing.of(walk.read(payment)) == lost)
    told = "10.00 USD of commission and 70.00 USD of Ada's pay Grace's bank"
    walk.show("service", "takes the shares back", payment, lost, seconds, told)
    walk.audit(
        payment,
        [
            "initiated",
            "authorized",
            "captured",
            "dispute_opened",
            "dispute_funds_withdrawn",
            "dispute_lost",
            "transfer_reversed",
        ],
    )
    return {("dispute_fee", "USD"): 1_500}


# What they do besides the steps of a walk


def _tell_deadline(walk: Walk, payment: payments_pb2.Payment) -> None:
    [deadline] = payment.deadlines
    kind = payments_pb2.DeadlineKind.Name(deadline.kind).removeprefix("DEADLINE_KIND_")
    expect("what runs out", "CARD_AUTHORIZATION", kind)
    expect("what is done then", payments_pb2.ON_DEADLINE_PROMOTE, deadline.action)
    until = deadline.due_time.ToDatetime().strftime("%Y-%m-%d %H:%M UTC")
    walk.story.step("gig service", "GetPayment", f"{kind} until {until},", "then PROMOTE")


def _disputes(walk: Walk, payment: Walked) -> Sequence[disputes_pb2.Dispute]:
    request = disputes_pb2.ListDisputesRequest(payment_id=payment.payment_id)
    listed = walk.caller.ask(walk.caller.disputes.ListDisputes, request).disputes
    return [dispute for dispute in listed if dispute.withdrawn_amount.minor_units]


def _refused_refund(walk: Walk, payment: Walked) -> None:
    """What the bank has taken back must not be given back once more."""
    request = payments_pb2.RefundPaymentRequest(
        payment_id=payment.payment_id, idempotency_key=walk.key(payment)
    )
    try:
        walk.caller.timed(walk.caller.payments.RefundPayment, request)
    except grpc.RpcError as error:
        expect("the reason of the refusal", "PAYMENT_DISPUTED", refusal_of(error).reason)
        walk.story.step("gig service", "RefundPayment", f"refused: {refusal_of(error).reason}")
        return
    raise Mismatch("refunding a disputed payment", "a refusal", "an answer")


def _pay_out(walk: Walk, wanted: Mapping[str, int]) -> None:
    """Stripe sends the expert's money to the bank; the service hears of it."""
    began = time.perf_counter()
    walk.simulator.pay_out(walk.expert_account)
    request = experts_pb2.ListPayoutsRequest(expert_id=EXPERT)
    seen: dict[str, int] = {}

    def all_seen() -> bool:
        payouts = walk.caller.ask(walk.caller.experts.ListPayouts, request).payouts
        seen.update({p.amount.currency_code: p.amount.minor_units for p in payouts})
        return seen == wanted

    walk.caller.poll(all_seen)
    expect("the payouts", dict(wanted), seen)
    told = [amount(minor_units, currency) for currency, minor_units in wanted.items()]
    seconds = time.perf_counter() - began
    walk.story.step("expert", "is paid out to the bank", *told, seconds=seconds)


def _expect_debt(walk: Walk, minor_units: int, currency: str) -> None:
    """What the expert owes, as an expert's caller sees it."""
    request = experts_pb2.GetExpertBalanceRequest(expert_id=EXPERT)
    answer, seconds = walk.caller.timed(walk.caller.experts.GetExpertBalance, request)
    [balance] = [one for one in answer.balances if one.debt.currency_code == currency]
    expect("the expert's debt", amount(minor_units, currency), money(balance.debt))
    walk.story.step(
        "user service",
        "GetExpertBalance",
        f"available {money(balance.available)}",
        f"pending {money(balance.pending)}",
        f"debt {money(balance.debt)}",
        seconds=seconds,
    )


CHAPTERS: Final = (
    Chapter("Captured: the gig is done, the expert is paid", captured),
    Chapter(
        "A card hold that ends too early, first half", hold_that_runs_out, needs_simulator=True
    ),
    Chapter("Partly refunded: a third of the work was not done", partly_refunded),
    Chapter("Cancelled: the client is never charged", cancelled),
    Chapter("Declined, then paid; captured in part, the rest released", declined_then_paid),
    Chapter("Yen, which have no cents, at another commission", yen),
    Chapter(
        "Three milestones: a gig of a month, held by the platform",
        milestones,
        needs_manual_payouts=True,
    ),
    Chapter(
        "Refunded after the payout: the expert owes it",
        paid_out_then_refunded,
        needs_simulator=True,
    ),
    Chapter("The debt is deducted from the next gig", debt_netted, needs_simulator=True),
    Chapter("Disputed and lost: the bank takes it back", dispute_lost, needs_simulator=True),
    Chapter(
        "Promoted: the card hold, second half; charged before it ended",
        promoted,
        needs_simulator=True,
    ),
)
