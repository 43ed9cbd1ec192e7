"""Random walks over everything that can happen to money, with the books held to Stripe's after each
step: ours, Stripe's balances per account, and the sum of events must agree to the minor unit."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from marketplace.payments.v1 import money_pb2, operations_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import Refused, refusal
from tests.support.requests import capture_request, money, new_key, refund_request
from tests.support.world import CAPTURED, IN_ESCROW, PATIENCE, World, until

_CURRENCIES = {"USD": 1, "JPY": 1, "KWD": 10}
#: What Stripe holds against its own balance per account; some of it waits for days.
_EXPECTED = {
    "WRONG_STATE",
    "AMOUNT_TOO_LARGE",
    "WOULD_RELEASE_REMAINDER",
    "PARTIAL_REFUND_NEEDS_CAPTURE",
    "COMMISSION_TOO_LARGE",
    "PAYMENT_DISPUTED",
    "FRAUD_WARNING_NOT_ACTIVE",
    "OPERATION_IN_PROGRESS",
    "REFUSED_BY_PROCESSOR",
}


_STEPS = int(os.environ.get("STEPS", "30"))


@dataclass
class Walk:
    """One world, and the dice."""

    world: World
    dice: random.Random
    experts: list[str] = field(default_factory=list)
    payments: list[str] = field(default_factory=list)
    unwell: set[str] = field(default_factory=set)

    async def step(self) -> str:
        """One thing happens; its name."""
        chosen = self.dice.choice(self._steps())
        await chosen()
        return chosen.__name__

    def _steps(self) -> list[Callable[[], Awaitable[None]]]:
        first: list[Callable[[], Awaitable[None]]] = [self.initiate, self.initiate]
        if not self.payments:
            return first
        often = [self.capture, self.capture, self.capture, self.refund, self.refund]
        seldom = [
            self.refund_out_of_band,
            self.reverse_by_hand,
            self.bounce,
            self.resume,
            self.turn_an_expert,
            self.days_pass,
            self.write_off,
            self.contest,
            self.decide,
            self.decide,
            self.appeal,
            self.warn,
            self.release,
            self.settle_client_payable,
        ]
        return [*first, *often, *seldom]

    # ---- what callers do ----

    async def initiate(self) -> None:
        currency, step = self.dice.choice(list(_CURRENCIES.items()))
        # No client would order from an expert who is not ready.
        well = [expert for expert in self.experts if expert not in self.unwell]
        if not well:
            return
        fields: dict[str, Any] = self.dice.choice(
            [
                {},
                {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD},
                {"on_deadline": payments_pb2.ON_DEADLINE_PROMOTE},
            ]
        )
        amount = self.dice.randrange(1_000, 20_000) * step
        card = self.dice.choice(["pm_card_visa", "pm_card_bypassPending"])
        expert = self.dice.choice(well)
        payment = await self.world.escrowed(expert, amount, currency, card, **fields)
        self.payments.append(payment.payment_id)

    async def capture(self) -> None:
        payment = await self._some()
        amount = self._part(payment, payment.held_amount.minor_units)
        final = self.dice.random() < 0.3
        request = capture_request(payment.payment_id, amount, final=final)
        await self._may_be_refused(self.world.payments.CapturePayment(request))

    async def refund(self) -> None:
        payment = await self._some()
        there = payment.held_amount.minor_units + payment.net_amount.minor_units
        amount = self._part(payment, there)
        request = refund_request(payment.payment_id, amount)
        await self._may_be_refused(self.world.payments.RefundPayment(request))

    # ---- what others do ----

    async def refund_out_of_band(self) -> None:
        payment = await self._some()
        left = payment.held_amount.minor_units + payment.net_amount.minor_units
        if payment.state in (IN_ESCROW, CAPTURED) and payment.charge_id and left:
            amount = self._part(payment, left)
            await self.world.stripe.api(
                "POST",
                "/refunds",
                payment_intent=payment.payment_intent_id,
                amount=amount.minor_units if isinstance(amount, money_pb2.Money) else left,
            )

    async def reverse_by_hand(self) -> None:
        transfers = self.world.sql("SELECT movement_id FROM movements WHERE kind = 'transfer'")
        if transfers:
            [transfer] = self.dice.choice(transfers)
            await self.world.stripe.api("POST", f"/transfers/{transfer}/reversals", amount=10)

    async def bounce(self) -> None:
        refunds = self.world.sql(
            "SELECT movement_id FROM movements AS made JOIN payments USING (payment_id) "
            "WHERE kind = 'refund' AND NOT EXISTS "
            "(SELECT FROM movements WHERE movement_id = made.movement_id || ':failed')"
        )
        if refunds:
            [refund] = self.dice.choice(refunds)
            await self.world.stripe.control("POST", f"/refunds/{refund}/fail")
            await self.resume()

    async def turn_an_expert(self) -> None:
        expert = self.dice.choice(self.experts)
        action = "restore" if expert in self.unwell else "restrict"
        self.unwell ^= {expert}
        account = self.world.account_of(expert)
        await self.world.stripe.control("POST", f"/accounts/{account}/{action}")
        if action == "restore":  # What waited for the account goes on by itself.
            await until(lambda: self._goes_on(expert), "the captures that waited", PATIENCE)

    async def _goes_on(self, expert: str) -> bool:
        return not self.world.sql(
            "SELECT 1 FROM payments WHERE expert_id = %s AND waiting_for = 'expert' "
            "AND frozen = 'NONE'",
            expert,
        )

    async def days_pass(self) -> None:
        """Two days: what was pending becomes available, and is paid out."""
        await self.world.stripe.advance(2 * 86_400)

    async def write_off(self) -> None:
        expert, currency = self.dice.choice(self.experts), self.dice.choice(list(_CURRENCIES))
        request = operations_pb2.WriteOffExpertDebtRequest(
            expert_id=expert, currency_code=currency, reason="walk", idempotency_key=new_key()
        )
        await self._may_be_refused(self.world.operations.WriteOffExpertDebt(request))

    async def contest(self) -> None:
        """The client's bank takes a charge back, or asks about it."""
        payment = await self._some()
        if _is_charged(payment) and payment.freeze == payments_pb2.PAYMENT_FREEZE_NONE:
            inquiry = self.dice.random() < 0.4
            await self.world.stripe.control(
                "POST", f"/charges/{payment.charge_id}/dispute", {"inquiry": inquiry}
            )

    async def warn(self) -> None:
        """The issuer calls a charge fraud."""
        payment = await self._some()
        if _is_charged(payment):
            await self.world.stripe.control(
                "POST", f"/charges/{payment.charge_id}/early_fraud_warning"
            )

    async def release(self) -> None:
        payment = await self._some()
        request = operations_pb2.DismissFraudWarningRequest(
            payment_id=payment.payment_id, reason="walk", idempotency_key=new_key()
        )
        await self._may_be_refused(self.world.operations.DismissFraudWarning(request))

    async def settle_client_payable(self) -> None:
        payment = await self._some()
        request = operations_pb2.SettleClientPayableRequest(
            payment_id=payment.payment_id, reason="walk", idempotency_key=new_key()
        )
        await self._may_be_refused(self.world.operations.SettleClientPayable(request))

    async def decide(self) -> None:
        """The bank decides on one of the disputes that are open."""
        open_ones = self.world.sql("SELECT dispute_id, stage FROM disputes WHERE outcome = 'OPEN'")
        if open_ones:
            dispute_id, stage = self.dice.choice(open_ones)
            words = ["win", "lose"] if stage == "CHARGEBACK" else ["escalate", "close_warning"]
            word = self.dice.choice(words)
            await self.world.stripe.control("POST", f"/disputes/{dispute_id}/{word}")

    async def appeal(self) -> None:
        """Somebody appeals a decision, and the bank decides once more."""
        decided = self.world.sql("SELECT dispute_id FROM disputes WHERE outcome IN ('WON', 'LOST')")
        if decided:
            [dispute_id] = self.dice.choice(decided)
            for word in ("appeal", self.dice.choice(["win", "win", "lose"])):
                await self.world.stripe.control("POST", f"/disputes/{dispute_id}/{word}")

    # ---- helpers ----

    async def _some(self) -> payments_pb2.Payment:
        return await self.world.get(self.dice.choice(self.payments[-4:]))

    def _part(self, payment: payments_pb2.Payment, most: int) -> money_pb2.Money | int:
        """Now and then nothing, which means all of it."""
        step = _CURRENCIES[payment.amount.currency_code]
        if self.dice.random() < 0.2 or most < 2 * step:
            return 0
        return money(self.dice.randrange(1, most // step) * step)

    async def _may_be_refused(self, call: Awaitable[object]) -> None:
        try:
            refused: Refused = await refusal(call)
        except AssertionError:
            return  # It was not.
        assert refused.reason in _EXPECTED, refused

    async def resume(self) -> None:
        """An operator sends on whatever is parked for one, and can be sent.

        Not while the bank decides; and of a charge that was lost Stripe refunds nothing.
        """

        async def none_left() -> bool:
            parked = self.world.sql(
                "SELECT operations.operation_id FROM operations JOIN payments USING (payment_id) "
                "WHERE operations.state = 'PARKED' AND waiting_for = 'operator' "
                "AND frozen <> 'CHARGEBACK' AND last_error NOT LIKE 'charge_disputed%%'"
            )
            for (operation_id,) in parked:
                await self._end(operation_id)
            # The client payable of a second failed refund is parked when the first one is repaid.
            waiting = self.world.sql("SELECT 1 FROM webhook_events WHERE state = 'WAITING'")
            return not parked and not waiting

        await self.world.stripe.control("POST", "/webhooks/settle", {"seconds": PATIENCE})
        await until(none_left, "nothing parked for an operator", PATIENCE)

    async def _end(self, operation_id: str) -> None:
        """Resumes it; or abandons it, where something out of band left too little for it."""
        asked: Any = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
        reply = await self.world.raw("OperationsService/ResumeOperation", asked.SerializeToString())
        if reply.refused is not None and reply.refused.reason == "AMOUNT_TOO_LARGE":
            asked = operations_pb2.AbandonOperationRequest(operation_id=operation_id, reason="walk")
            await self.world.raw("OperationsService/AbandonOperation", asked.SerializeToString())


def _is_charged(payment: payments_pb2.Payment) -> bool:
    on_the_platform = payment.escrow_mode == payments_pb2.ESCROW_MODE_PLATFORM_HOLD
    return bool(payment.charge_id and (on_the_platform or payment.captured_amount.minor_units))


@pytest.mark.parametrize("seed", [int(os.environ.get("SEED", "1")), 2])
async def test_the_books_are_stripes_after_every_step(start_world: StartWorld, seed: int) -> None:
    names = tuple(_CURRENCIES)
    world = await start_world(
        platform_settlement_currencies=names,
        simulator={"settlement_currencies": tuple(name.lower() for name in names)},
    )
    walk = Walk(world, random.Random(seed))
    walk.experts = [await world.expert(commission_basis_points=rate) for rate in (1_000, 333)]
    done: list[str] = []
    for _ in range(_STEPS):
        done.append(await walk.step())
        try:
            await check_books(world)
            _check_events(world)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {done}") from error
    # A walk on which nothing happens shows nothing.
    assert len(_kinds(world)) > 8, f"seed {seed}: {Counter(done)}, {_kinds(world)}"


def _kinds(world: World) -> dict[str, int]:
    return dict(world.sql("SELECT kind, count(*)::int FROM events GROUP BY kind ORDER BY kind"))


def _check_events(world: World) -> None:
    """The last event of each payment says what its row says."""
    rows = world.sql(
        "SELECT body, held, charged, captured, refunded_after_capture, "
        "refunded_from_escrow, net_commission, client_payable "
        "FROM payments JOIN events ON events.payment_id = payments.payment_id "
        "AND events.sequence = payments.version"
    )
    names = (
        *("held", "charged", "captured", "refunded_after_capture", "refunded_from_escrow"),
        *("net_commission", "client_payable"),
    )
    for body, *amounts in rows:
        stated = json.loads(body)["amounts"]
        assert [stated[name] for name in names] == amounts
