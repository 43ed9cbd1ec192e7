"""When a run has come to rest: nothing is left to do, and Stripe shows nothing unknown."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import psycopg2

from chaos import hurry
from chaos.asking import Asker
from chaos.bank import Bank
from chaos.debts import collectible
from chaos.evidence import Row, available, rows
from chaos.injector import top_up
from chaos.operators import Operator
from chaos.report import say
from chaos.scene import Keyed, Scene
from chaos.simulator import AWAY, Simulator
from dev.stack import Stack

#: Charged money is available after two days at Stripe.
_UNTIL_AVAILABLE = 2 * 24 * 3600 + 60
#: In each currency, in minor units: enough for all that still waits then.
_ENOUGH = 50_000_000


class Rest:
    """The end of a run. Open calls and disputes are also brought to their ends."""

    def __init__(
        self, stack: Stack, scene: Scene, bank: Bank, operator: Operator, askers: Sequence[Asker]
    ) -> None:
        self._stack = stack
        self._scene = scene
        self._bank = bank
        self._operator = operator
        self._askers = askers
        #: What waited for the platform's balance before money came.
        self.waiting: list[tuple[Row | None, Row | None]] = []

    async def come(self, patience: float) -> float | None:
        """Seconds until nothing is left to do and Stripe shows nothing that we do not know.

        First everything comes to rest but the refunds that wait for the platform's balance. Then
        Stripe's clock makes what was charged available, so that experts can pay what they owe. At
        last the platform adds what is still missing.
        """
        simulator = self._scene.simulator
        began = time.monotonic()
        if not await self._until(patience, funded=False):
            return None
        self.waiting = await self._for_funds()
        await simulator.insist("POST", "/clock", {"advance_seconds": _UNTIL_AVAILABLE})
        if not await self._until(patience, funded=False):
            return None
        await top_up(simulator, _ENOUGH)
        if not await self._until(patience, funded=True):
            return None
        return time.monotonic() - began

    async def _until(self, patience: float, *, funded: bool) -> bool:
        """Returns whether all came to rest in time; unless ``funded``, refunds may still wait.

        A call for a payment whose refund waits is not answered before that.
        """
        postgres = self._stack.postgres
        assert postgres is not None
        began = time.monotonic()
        said = began
        left = ""
        while time.monotonic() - began < patience:
            with contextlib.suppress(psycopg2.Error, *AWAY):
                await asyncio.to_thread(hurry.account_checks, postgres)
                answered = await asyncio.gather(*(asker.resolve() for asker in self._askers))
                left = await self._free() or await _left(
                    self._stack, self._scene.simulator, funded=funded
                )
                if not left and (all(answered) or not funded):
                    await asyncio.to_thread(hurry.debt_checks, postgres)
                    left = await self._owed()
                    if not left:
                        return True
            if time.monotonic() - said > 5:
                said = time.monotonic()
                unanswered = sum(len(asker.pending) for asker in self._askers)
                say(f"  {said - began:5.1f} s  waiting: {unanswered} unanswered; {left}")
            await asyncio.sleep(0.2)
        return False

    async def _for_funds(self) -> list[tuple[Row | None, Row | None]]:
        """Returns each refund that waits at Stripe with its payment, and payments without one."""
        found = await asyncio.to_thread(rows, self._stack.database_url, "SELECT * FROM payments")
        waiting = {row["payment_intent_id"]: row for row in found}
        pairs: list[tuple[Row | None, Row | None]] = [
            (refund, waiting.pop(refund["payment_intent"], None))
            for refund in await self._scene.simulator.list("/refunds")
            if _waits(refund)
        ]
        alone = [row for row in waiting.values() if row["waiting_reason"] == "REFUND_PENDING_FUNDS"]
        return [*pairs, *((None, row) for row in alone)]

    async def _owed(self) -> str:
        """Returns how many debts could be collected, or an empty string."""
        url, simulator = self._stack.database_url, self._scene.simulator
        postings, payments, movements = [
            await asyncio.to_thread(rows, url, f"SELECT * FROM {table}")  # noqa: S608 - ours
            for table in ("postings", "payments", "movements")
        ]
        transfers = await simulator.list("/transfers")
        accounts = {transfer["destination"] for transfer in transfers}
        has = await available(simulator, accounts)
        found = list(collectible(postings, payments, movements, transfers, has))
        return f"{len(found)} debts can be collected" if found else ""

    async def _free(self) -> str:
        """Removes what keeps captures waiting, and returns what still waits, or an empty string.

        Captures that wait for their expert continue by themselves, except in these cases. A
        disputed one waits for the bank, which decides. A fraud warning is dismissed. A capture
        that can pay only a former account is refunded. One that Stripe refused without a visible
        reason would be retried after a minute, and an operator resumes it before. One that was
        parked because it is disputed is resumed after the bank has given in. Of a failed refund of
        a disputed payment the bank decides first; what it leaves is paid outside of Stripe, which
        refunds nothing of a charge that was lost.
        """
        found = await asyncio.to_thread(
            rows,
            self._stack.database_url,
            "SELECT * FROM payments WHERE waiting_for = 'expert' "
            "OR (waiting_for = 'operator' AND (state = 'CAPTURING' OR client_payable > 0))",
        )
        for row in found:
            payment_id = row["payment_id"]
            if any(payment_id == keyed.request.payment_id for keyed in self._asked()):
                continue
            if row["frozen"] == "FRAUD_WARNING":
                await self._operator.let_pass(payment_id)
            elif row["frozen"] != "NONE":
                is_inquiry, gives_in = row["frozen"] == "INQUIRY", row["state"] == "CAPTURING"
                await self._bank.end(row["frozen_by"], is_inquiry=is_inquiry, gives_in=gives_in)
            elif row["waiting_reason"] == "DESTINATION_ACCOUNT_REPLACED":
                await self._operator.refund(payment_id)
            elif row["client_payable"]:
                await self._settle(payment_id)
            elif row["waiting_for"] == "operator" or row["waiting_reason"] == "EXPERT_REFUSED":
                await self._operator.resume(row["operation_id"])
        reasons = ", ".join(sorted({row["waiting_reason"] for row in found}))
        return f"{len(found)} captures wait: {reasons}" if found else ""

    async def _settle(self, payment_id: str) -> None:
        lost = await asyncio.to_thread(
            rows,
            self._stack.database_url,
            "SELECT payment_id FROM disputes WHERE outcome = 'LOST'",
        )
        if any(row["payment_id"] == payment_id for row in lost):
            await self._operator.settle(payment_id)

    def _asked(self) -> list[Keyed]:
        keys = ("DismissFraudWarning", "RefundPayment", "SettleClientPayable")
        return [keyed for keyed in self._operator.pending if keyed.rpc in keys]


async def _left(stack: Stack, simulator: Simulator, *, funded: bool) -> str:
    """Returns what is still to be done, or an empty string.

    Unless the platform is ``funded``, refunds that wait for its balance do not count.
    """
    paid = await _paid_refunds(stack, simulator)
    if paid:
        return paid
    [counts] = await asyncio.to_thread(
        rows,
        stack.database_url,
        "SELECT (SELECT count(*) FROM operations WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED')) "
        "AS open, (SELECT count(*) FROM operations JOIN payments USING (operation_id) "
        "WHERE waiting_reason = 'REFUND_PENDING_FUNDS') AS for_funds, "
        "(SELECT count(*) FROM webhook_events WHERE state = 'WAITING') AS waiting, "
        "(SELECT count(*) FROM feed_pending) AS unfed",
    )
    counts["open"] -= 0 if funded else counts["for_funds"]
    if counts["open"] or counts["waiting"] or counts["unfed"]:
        return (
            f"{counts['open']} operations open, {counts['waiting']} events waiting, "
            f"{counts['unfed']} not in the feed"
        )
    # A delivery that waits for its next try may take its time, if the event is known already.
    shown = await simulator.control("GET", "/webhooks?limit=1000000")
    known = await asyncio.to_thread(rows, stack.database_url, "SELECT event_id FROM webhook_events")
    ids = {row["event_id"] for row in known}
    coming = [row for row in shown["deliveries"] if row["state"] == "pending"]
    if new := sum(row["event"] not in ids for row in coming):
        return f"{new} webhooks on their way"
    states = {
        row["payment_intent_id"]: row["state"]
        for row in await asyncio.to_thread(
            rows,
            stack.database_url,
            "SELECT payment_intent_id, CASE WHEN state = 'IN_ESCROW' AND charged > 0 "
            "THEN 'ON_PLATFORM' WHEN waiting_reason = 'REFUND_PENDING_FUNDS' THEN 'CAPTURED' "
            "ELSE state END AS state FROM payments",
        )
    }
    behind = [
        intent["id"]
        for intent in await simulator.list("/payment_intents")
        if intent["status"] in _SHOWN_AS
        and states.get(intent["id"]) not in (None, *_SHOWN_AS[intent["status"]])
    ]
    if behind:
        return f"{len(behind)} payments behind Stripe"
    return await _contested(stack, simulator)


async def _paid_refunds(stack: Stack, simulator: Simulator) -> str:
    """Returns a payment that waits for funds although its refund does not, or an empty string."""
    found = await asyncio.to_thread(
        rows,
        stack.database_url,
        "SELECT payment_intent_id FROM payments WHERE waiting_reason = 'REFUND_PENDING_FUNDS'",
    )
    pending = {
        refund["payment_intent"] for refund in await simulator.list("/refunds") if _waits(refund)
    }
    behind = {row["payment_intent_id"] for row in found} - pending
    return f"{len(behind)} refunds are paid and not booked" if behind else ""


def _waits(refund: Row) -> bool:
    return (refund["status"], refund.get("pending_reason")) == ("pending", "insufficient_funds")


async def _contested(stack: Stack, simulator: Simulator) -> str:
    """Returns disputes, failed refunds and warnings that are not recorded as Stripe shows them."""
    ours = {
        row["dispute_id"]: row
        for row in await asyncio.to_thread(rows, stack.database_url, "SELECT * FROM disputes")
    }
    behind = sum(
        _is_behind(ours.get(dispute["id"]), dispute)
        for dispute in await simulator.list("/disputes")
    )
    if behind:
        return f"{behind} disputes behind Stripe"
    booked = await asyncio.to_thread(
        rows, stack.database_url, "SELECT movement_id FROM movements WHERE kind LIKE 'refund%'"
    )
    ids = {row["movement_id"] for row in booked}
    for refund in await simulator.list("/refunds"):
        if refund["status"] == "failed" and f"{refund['id']}:failed" not in ids:
            return f"{refund['id']} came back at Stripe"
    known = {
        row["payment_intent_id"]: row["fraud_warning_id"]
        for row in await asyncio.to_thread(
            rows,
            stack.database_url,
            "SELECT payment_intent_id, fraud_warning_id FROM payments "
            "WHERE state NOT IN ('CANCELED', 'EXPIRED')",
        )
    }
    current = dict.fromkeys(known, "")
    for warning in reversed(await simulator.list("/radar/early_fraud_warnings")):
        if warning["actionable"] and warning["payment_intent"] in known:
            current[warning["payment_intent"]] = warning["id"]
    wrong = sum(known[intent] != warning for intent, warning in current.items())
    return f"{wrong} fraud warnings behind Stripe" if wrong else ""


_SHOWN_AS = {
    "requires_capture": ("IN_ESCROW",),
    "succeeded": ("ON_PLATFORM", "CAPTURED", "REFUNDED"),
    "canceled": ("CANCELED", "EXPIRED"),
}


def _is_behind(row: Row | None, dispute: Row) -> bool:
    """Returns whether a dispute is not recorded so, or is lost and not written off yet."""
    if row is None or row["status"] != dispute["status"]:
        return True
    return bool(row["status"] == "lost" and row["lost"] != row["withdrawn"] - row["reinstated"])
