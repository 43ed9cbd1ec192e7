"""When a run has come to rest: nothing is left to do, and Stripe shows nothing unknown."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import psycopg2

from chaos.asking import Asker
from chaos.bank import Bank
from chaos.evidence import Row, rows
from chaos.operators import Operator
from chaos.report import say
from chaos.scene import Keyed, Scene
from chaos.simulator import AWAY, Simulator
from dev.stack import Stack


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

    async def come(self, patience: float) -> float | None:
        """Seconds until nothing is left to do and Stripe shows nothing that we do not know."""
        began = time.monotonic()
        said = began
        left = ""
        while time.monotonic() - began < patience:
            with contextlib.suppress(psycopg2.Error, *AWAY):
                answered = await asyncio.gather(*(asker.resolve() for asker in self._askers))
                left = await self._free() or await _left(self._stack, self._scene.simulator)
                if all(answered) and not left:
                    return time.monotonic() - began
            if time.monotonic() - said > 5:
                said = time.monotonic()
                unanswered = sum(len(asker.pending) for asker in self._askers)
                say(f"  {said - began:5.1f} s  waiting: {unanswered} unanswered; {left}")
            await asyncio.sleep(0.2)
        return None

    async def _free(self) -> str:
        """Removes what keeps captures waiting, and returns what still waits, or an empty string.

        Captures that wait for their expert continue by themselves, except in these cases. A
        disputed one waits for the bank, which decides. A fraud warning is dismissed. A capture
        that can pay only a former account is refunded. One that Stripe refused without a visible
        reason would be retried after a minute, and an operator resumes it before. One that was
        parked because it is disputed is resumed after the bank has given in.
        """
        found = await asyncio.to_thread(
            rows,
            self._stack.database_url,
            "SELECT * FROM payments WHERE waiting_for = 'expert' "
            "OR (waiting_for = 'operator' AND state = 'CAPTURING')",
        )
        for row in found:
            payment_id = row["payment_id"]
            if any(payment_id == keyed.request.payment_id for keyed in self._asked()):
                continue
            if row["frozen"] == "FRAUD_WARNING":
                await self._operator.let_pass(payment_id)
            elif row["frozen"] != "NONE":
                is_inquiry, gives_in = row["frozen"] == "INQUIRY", row["waiting_for"] == "operator"
                await self._bank.end(row["frozen_by"], is_inquiry=is_inquiry, gives_in=gives_in)
            elif row["waiting_reason"] == "DESTINATION_ACCOUNT_REPLACED":
                await self._operator.refund(payment_id)
            elif row["waiting_for"] == "operator" or row["waiting_reason"] == "EXPERT_REFUSED":
                await self._operator.resume(row["operation_id"])
        reasons = ", ".join(sorted({row["waiting_reason"] for row in found}))
        return f"{len(found)} captures wait: {reasons}" if found else ""

    def _asked(self) -> list[Keyed]:
        keys = ("DismissFraudWarning", "RefundPayment")
        return [keyed for keyed in self._operator.pending if keyed.rpc in keys]


async def _left(stack: Stack, simulator: Simulator) -> str:
    """Returns what is still to be done, or an empty string."""
    [counts] = await asyncio.to_thread(
        rows,
        stack.database_url,
        "SELECT (SELECT count(*) FROM operations WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED')) "
        "AS open, "
        "(SELECT count(*) FROM webhook_events WHERE state = 'WAITING') AS waiting, "
        "(SELECT count(*) FROM feed_pending) AS unfed",
    )
    if any(counts.values()):
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
            "THEN 'ON_PLATFORM' ELSE state END AS state FROM payments",
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
