"""Callers: what the gig service and clients' browsers do, many at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from chaos.asking import ANSWERS, NOT_NOW, Asker
from chaos.plan import REFUND_WAITED, WAITED
from chaos.scene import Keyed, Known, Scene
from chaos.simulator import AWAY
from marketplace.payments.v1 import experts_pb2, money_pb2, payments_pb2

_OPEN_ENDS = 4
#: A mark in the texts that callers send; it must never appear in a log.
CANARY = "canary-7f3a91"
CARDS = ["pm_card_visa"] * 7 + [
    "pm_card_visa_chargeDeclined",
    "pm_card_authenticationRequired",
    "pm_card_authenticationRequired",
]
#: Charged money is available at once, and so are transfers of it: Stripe lets them be reversed.
_AVAILABLE = "pm_card_bypassPending"
Action = Callable[[], Awaitable[None]]
#: What the debtor was paid, and owes for the whole run.
_DEBT = 50_000
#: Rupees are converted: the platform settles in the others.
_MONEY = {"USD": (100, 50_000), "EUR": (100, 50_000), "JPY": (100, 90_000), "INR": (9_000, 900_000)}
#: How the money is held: authorized with a destination, charged at once, or authorized and charged
#: before the authorization expires.
_PROMOTED: dict[str, Any] = {"on_deadline": payments_pb2.ON_DEADLINE_PROMOTE}
_READING_SECONDS = 0.02
_ON_PLATFORM: dict[str, Any] = {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD}
_HOLDS: list[dict[str, Any]] = [{}, _ON_PLATFORM, _PROMOTED]


class Caller(Asker):
    """One of many callers. A reader only reads payments, as the user service does."""

    def __init__(self, number: int, scene: Scene, seed: str, *, reads_only: bool = False) -> None:
        super().__init__(number, scene, seed)
        self.reads_only = reads_only
        self._actions: list[Action] = [self.read]
        self._weights = [1]
        if not reads_only:
            self._actions += [self.initiate, self.confirm, self.capture, self.refund]
            self._actions += [self.repeat, self.contradict, self.race, self.forge]
            self._weights = [36, 13, 16, 12, 13, 5, 2, 2, 1]

    async def run(self) -> None:
        while self.scene.now() < self.scene.until:
            # If many keys are open, they come first. A caller that only makes new calls would
            # leave too many operations open.
            owed = len(self.pending)
            if owed and (owed >= _OPEN_ENDS or self.chance.random() < 0.3):
                await self.ask(self.chance.choice(self.pending))
            else:
                await self.chance.choices(self._actions, self._weights)[0]()

    # What a caller does

    async def initiate(self, hold: dict[str, Any] | None = None, expert_id: str = "") -> None:
        scene, chance = self.scene, self.chance
        currency = "USD" if expert_id else chance.choices(list(_MONEY), [8, 1, 1, 1])[0]
        request = payments_pb2.InitiatePaymentRequest(
            client_id=f"client-{chance.randrange(20)}",
            expert_id=expert_id or chance.choice(scene.experts),
            gig_id=f"gig-{chance.randrange(50)}",
            amount=money_pb2.Money(
                minor_units=_DEBT if expert_id else chance.randint(*_MONEY[currency]),
                currency_code=currency,
            ),
            description=f"A website {CANARY}",
            idempotency_key=self.key(),
            **(hold or chance.choices(_HOLDS, [5, 3, 2])[0]),
        )
        await self.ask(Keyed("InitiatePayment", request.idempotency_key, request))

    async def leave_to_its_deadline(self) -> None:
        """Holds a payment that no caller captures soon, so that it is promoted."""
        while not self.scene.unpaid:  # On a slow machine the first answer may come too late.
            await self.initiate(_PROMOTED)
        known = self.scene.unpaid.pop()
        await self.scene.simulator.confirm(known.intent, known.client_secret, "pm_card_visa")

    async def spare(self) -> None:
        """Makes a held payment, to be captured while its expert cannot be paid."""
        while not self.scene.unpaid:
            await self.initiate(_ON_PLATFORM)
        known = self.scene.unpaid.pop()
        await self.scene.simulator.confirm(known.intent, known.client_secret, _AVAILABLE)
        if known.is_separate:
            self.scene.spared.append(known)

    async def run_into_debt(self) -> None:
        """Captures and refunds a payment before the money can be taken back from the expert."""
        debtor = self.scene.debtor
        await self.initiate(_ON_PLATFORM, debtor)
        known = next(known for known in self.scene.every if known.expert_id == debtor)
        self.scene.leave(known)
        await self.scene.simulator.confirm(known.intent, known.client_secret, "pm_card_visa")
        await self._held(known)
        for request in (
            payments_pb2.CapturePaymentRequest(payment_id=known.payment_id),
            payments_pb2.RefundPaymentRequest(payment_id=known.payment_id),
        ):
            request.idempotency_key = self.key()
            name = type(request).__name__.removesuffix("Request")
            await self.ask(Keyed(name, request.idempotency_key, request))

    async def _held(self, known: Known) -> None:
        look = payments_pb2.GetPaymentRequest(payment_id=known.payment_id)
        for _ in range(100):
            code, body = await self.call("GetPayment", "", look.SerializeToString())
            if code == "OK":
                payment = payments_pb2.GetPaymentResponse.FromString(body).payment
                if payment.state == payments_pb2.PAYMENT_STATE_IN_ESCROW:
                    return
            await asyncio.sleep(0.1)

    async def confirm(self) -> None:
        """Confirms in the client's browser, with one of the test cards."""
        scene, chance = self.scene, self.chance
        if not scene.unpaid:
            return await self.initiate()
        known = scene.unpaid.pop(chance.randrange(len(scene.unpaid)))
        started = scene.now()
        status = "away"
        try:
            shown = await scene.simulator.confirm(
                known.intent, known.client_secret, self._card(known)
            )
            if shown.get("status") == "requires_action":
                shown = await scene.simulator.control(
                    "POST",
                    f"/payment_intents/{known.intent}/authenticate",
                    {"outcome": chance.choice(["approve", "approve", "fail"])},
                )
            status = str(shown.get("status") or shown.get("error", {}).get("code") or "odd")
        except (*AWAY, ValueError):
            pass  # The browser's page is reloaded.
        if status == "requires_capture" or (status == "succeeded" and known.is_separate):
            scene.held.append(known)
        elif status in ("away", "card_declined", "requires_payment_method", "lock_timeout"):
            scene.unpaid.append(known)
        self.note("Confirm", "", b"", started, "ok" if status != "away" else "info", status)
        return None

    async def capture(self) -> None:
        if self.scene.urgent:
            return await self.ask(self._capture(self.scene.urgent.pop()))
        known = self._pick(self.scene.held, 0.85)
        if known is None:
            return await self.confirm()
        return await self.ask(self._capture(known))

    async def refund(self) -> None:
        chance, scene = self.chance, self.scene
        among = chance.choices([scene.captured, scene.held, scene.unpaid], [6, 2, 1])[0]
        known = self._pick(among, 0.95)
        if known is None:
            return await self.confirm()
        return await self.ask(self._refund(known))

    async def read(self) -> None:
        scene, chance = self.scene, self.chance
        known = self._pick(scene.every, 1.0)
        if known is None:
            return await self.initiate()
        which = chance.random()
        if which < 0.55:
            request: Any = payments_pb2.GetPaymentRequest(payment_id=known.payment_id)
            await self.call("GetPayment", "", request.SerializeToString())
        elif which < 0.8:
            request = payments_pb2.GetPaymentStatusRequest(payment_id=known.payment_id)
            await self.call("GetPaymentStatus", "", request.SerializeToString())
        elif which < 0.9:
            request = payments_pb2.ListPaymentsRequest(user_id=known.client_id, page_size=10)
            await self.call("ListPayments", "", request.SerializeToString())
        else:
            request = experts_pb2.GetExpertRequest(expert_id=chance.choice(scene.experts))
            await self.call("GetExpert", "", request.SerializeToString())
        # Reads are so cheap that readers without a pause would leave no time to those who pay.
        await asyncio.sleep(self.chance.uniform(0.5, 1.5) * _READING_SECONDS)
        return None

    async def repeat(self) -> None:
        """Repeats an answered key: the same bytes must come back (see checks)."""
        if self.scene.answered:
            await self.ask(self.chance.choice(self.scene.answered[-400:]))

    async def contradict(self) -> None:
        """Calls with a known key and other content."""
        known = [keyed for keyed in self.scene.answered[-200:] if keyed.rpc in _SAYS_MORE]
        if not known:
            return
        keyed = self.chance.choice(known)
        other = type(keyed.request)()
        other.CopyFrom(keyed.request)
        _SAYS_MORE[keyed.rpc](other)
        code, _ = await self.call(keyed.rpc, "", other.SerializeToString(), "Contradict")
        if code not in ("ALREADY_EXISTS", *NOT_NOW):
            self.scene.wrong.append(f"key {keyed.key} with other content was answered {code}")

    async def race(self) -> None:
        """Uses two keys for one payment, each in several calls at the same moment."""
        known = self._pick(self.scene.held, 1.0)
        if known is None:
            return await self.confirm()
        first = self._capture(known)
        second = self._refund(known) if self.chance.random() < 0.5 else self._capture(known)
        await asyncio.gather(*(self.ask(keyed, again=True) for keyed in [first, second] * 2))
        return None

    async def forge(self) -> None:
        """Sends a webhook without a valid signature, or with one that is too old."""
        scene = self.scene
        moment, secret = int(time.time()), b"whsec_of_a_forger"
        if self.chance.random() < 0.5:
            moment, secret = moment - 3600, scene.webhook_secret.encode()
        event = {
            "id": f"evt_forged_{next(scene.numbers)}",
            "object": "event",
            "type": "payment_intent.succeeded",
            "created": moment,
            "livemode": False,
            "data": {"object": {"id": "pi_forged", "object": "payment_intent"}},
        }
        body = json.dumps(event).encode()
        signature = hmac.new(secret, f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
        with contextlib.suppress(*AWAY):
            async with scene.http.post(
                f"{scene.gateway_url}/api/v1/webhooks/stripe",
                data=body,
                headers={"Stripe-Signature": f"t={moment},v1={signature}"},
                timeout=aiohttp.ClientTimeout(total=5),
            ) as answer:
                if answer.status not in (400, 503):
                    scene.wrong.append(f"a forged webhook was answered {answer.status}")

    def learn(self, keyed: Keyed, body: bytes) -> None:
        scene = self.scene
        payment = ANSWERS[keyed.rpc][1].FromString(body).payment
        if keyed.rpc == "InitiatePayment":
            told = payments_pb2.InitiatePaymentResponse.FromString(body)
            known = Known(
                payment.payment_id,
                payment.payment_intent_id,
                told.client_secret,
                payment.amount.currency_code,
                payment.amount.minor_units,
                payment.client_id,
                payment.expert_id,
                payment.charge_model == payments_pb2.CHARGE_MODEL_SEPARATE,
            )
            scene.unpaid.append(known)
            scene.every.append(known)
        elif keyed.payment is not None:
            for among in (scene.unpaid, scene.held):
                if keyed.payment in among:
                    among.remove(keyed.payment)
            if (
                payment.held_amount.minor_units
            ):  # A milestone was paid, and the remainder stays in escrow.
                scene.held.append(keyed.payment)
            if payment.captured_amount.minor_units > payment.refunded_amount.minor_units:
                if keyed.payment not in scene.captured:
                    scene.captured.append(keyed.payment)
            elif keyed.payment in scene.captured:
                scene.captured.remove(keyed.payment)
            waits = payment.waiting_reason == payments_pb2.WAITING_REASON_REFUND_PENDING_FUNDS
            scene.deeds[REFUND_WAITED] += waits
            scene.deeds[WAITED] += payment.waiting_for == payments_pb2.WAITING_FOR_EXPERT

    def _capture(self, known: Known) -> Keyed:
        request = payments_pb2.CapturePaymentRequest(
            payment_id=known.payment_id, notes=f"done {CANARY}", idempotency_key=self.key()
        )
        if known.is_separate and self.chance.random() < 0.7:
            # Partial captures, sometimes of more than there is; few of them are final.
            request.amount.minor_units = self.chance.randint(60, max(60, known.amount // 2))
            request.final = self.chance.random() < 0.25
        elif self.chance.random() < 0.4:
            request.amount.minor_units = self.chance.randint(60, known.amount)
            request.final = True
        return Keyed("CapturePayment", request.idempotency_key, request, known)

    def _refund(self, known: Known) -> Keyed:
        request = payments_pb2.RefundPaymentRequest(
            payment_id=known.payment_id, reason=f"late {CANARY}", idempotency_key=self.key()
        )
        if self.chance.random() < 0.6:
            # More than half: often more than is held of a SEPARATE payment.
            most = known.amount if known.is_separate else known.amount // 2
            request.amount.minor_units = self.chance.randint(1, max(1, most))
        return Keyed("RefundPayment", request.idempotency_key, request, known)

    def _card(self, known: Known) -> str:
        """Returns a card. With half of the cards transfers can be reversed; others leave debts."""
        if known.is_separate and self.chance.random() < 0.5:
            return _AVAILABLE
        return self.chance.choice(CARDS)

    def _pick(self, likely: list[Known], probability: float) -> Known | None:
        every = self.scene.every
        among = likely if likely and self.chance.random() < probability else every
        return self.chance.choice(among[-300:]) if among else None


def _more(name: str) -> Callable[[Any], None]:
    def say(request: Any) -> None:
        setattr(request, name, f"{getattr(request, name)} or not")

    return say


def _other_amount(request: Any) -> None:
    request.amount.minor_units += 1


def _other_evidence(request: Any) -> None:
    request.evidence.product_description += "another"


#: The field whose change makes another request, by RPC.
_SAYS_MORE: dict[str, Callable[[Any], None]] = {
    "InitiatePayment": _other_amount,
    "CapturePayment": _more("notes"),
    "RefundPayment": _more("reason"),
    "SubmitEvidence": _other_evidence,
    "DismissFraudWarning": _more("reason"),
    "WriteOffExpertDebt": _more("reason"),
    "ReplaceExpertAccount": _more("reason"),
}
