"""The clients' banks: they dispute charges, inquire about them, warn of fraud, and decide.

All of it happens at Stripe, by the simulator's controls. The service learns of it as always.
"""

from __future__ import annotations

import random
from typing import Any

from chaos.scene import Known, Scene
from chaos.simulator import AWAY

#: Payments are tried until one can be disputed; most can.
_TRIES = 12
#: How much a further line of a dispute moves at most, in minor units.
_FURTHER = 60
#: The statuses in which a bank has the money and nothing is decided.
_UNDECIDED = ("needs_response", "under_review")
#: The effect by which there is a charge.
_MADE = "authorized"


class Bank:
    """All banks in one. If the platform is to answer a dispute, the bank does not decide it."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._chance = random.Random(f"bank:{seed}")
        self._chargebacks: list[str] = []
        self._inquiries: list[str] = []

    async def contest(self, among: list[Known], *, leave: bool | None = None) -> bool:
        """Opens a chargeback of all or a part. The platform is to answer half of them."""
        dispute_id = await self._open(among, inquiry=False)
        if dispute_id and not (self._chance.random() < 0.5 if leave is None else leave):
            self._chargebacks.append(dispute_id)
        return bool(dispute_id)

    async def contest_held(self) -> bool:
        """Opens a chargeback of money that the platform holds; of reserved money if need be."""
        scene = self._scene
        if await self.contest([known for known in scene.held if known.is_separate]):
            return True
        if not await self.contest(scene.spared[-1:]):
            return False
        scene.spared.pop()
        return True

    async def inquire(self) -> bool:
        """Opens an inquiry, which takes no money yet."""
        dispute_id = await self._open(self._everything(), inquiry=True)
        if dispute_id:
            self._inquiries.append(dispute_id)
        return bool(dispute_id)

    async def decide(self, word: str) -> bool:
        """Decides a chargeback (`win` or `lose`). If none is open, opens one first."""
        if not self._chargebacks and not await self.contest(self._everything(), leave=False):
            return False
        return await self._say(self._chargebacks, word)

    async def adjust(self) -> bool:
        """Adds a further line to a chargeback, as Stripe does if an exchange rate has moved.

        It is in the currency of the first line: the dispute's own, or what that converts to.
        """
        scene = self._scene
        try:
            listed = await scene.simulator.list("/disputes")
        except (*AWAY, ValueError):
            return False
        chargebacks = [one for one in listed if one["status"] in _UNDECIDED]
        if not chargebacks:
            await self.contest(self._everything())
            return False
        # Those that Stripe converts come first, because there are few of them.
        converted = [one for one in chargebacks if _is_converted(one)]
        dispute = self._chance.choice(converted or chargebacks)
        taken = -sum(line["amount"] for line in dispute["balance_transactions"])
        amount = self._chance.choice([-1, 1]) * self._chance.randint(1, _FURTHER)
        amount = min(amount, taken) or -1  # No more comes back than was taken.
        if not await self._control("POST", f"/disputes/{dispute['id']}/adjust", {"amount": amount}):
            return False
        scene.adjusted.add(str(dispute["id"]))
        return True

    async def end_inquiry(self) -> bool:
        """Escalates an inquiry to a chargeback, or closes it."""
        if not self._inquiries and not await self.inquire():
            return False
        return await self._say(self._inquiries, self._chance.choice(["escalate", "close_warning"]))

    async def end(self, dispute_id: str, *, is_inquiry: bool, gives_in: bool = False) -> bool:
        """Decides a dispute now; or in favor of the platform, if the bank gives in."""
        words = ["close_warning", "escalate"] if is_inquiry else ["win", "lose"]
        words = words[:1] if gives_in else words
        return await self._say([dispute_id], self._chance.choice(words))

    async def warn(self, *, leave: bool = False) -> bool:
        """The issuer calls a charge fraud, or a hold that may become one; not where a bank did.

        Callers take no notice, or leave it to the operators alone.
        """
        among = [one for one in self._everything() if one.payment_id not in self._scene.contested]
        for known in self._some(among):
            charge = await self._charge(known)
            if charge and await self._control("POST", f"/charges/{charge}/early_fraud_warning"):
                self._scene.warned.append(known.payment_id)
                if leave:
                    self._scene.leave(known)
                    self._scene.every.remove(known)
                return True
        return False

    async def bounce(self, refunds: list[tuple[str, str]]) -> bool:
        """Makes one of these booked refunds fail. Each is given with its payment."""
        for refund, payment_id in self._chance.sample(refunds, min(len(refunds), _TRIES)):
            if payment_id in self._scene.contested:
                continue
            self._scene.bounced.add(payment_id)
            if await self._control("POST", f"/refunds/{refund}/fail"):
                return True
        return False

    def _everything(self) -> list[Known]:
        return [*self._scene.captured, *self._scene.held]

    def _some(self, among: list[Known]) -> list[Known]:
        return self._chance.sample(among, min(len(among), _TRIES))

    async def _open(self, among: list[Known], *, inquiry: bool) -> str:
        scene = self._scene
        for known in self._some([one for one in among if one.payment_id not in scene.bounced]):
            charge = await self._charge(known)
            if known.payment_id in scene.bounced:
                continue
            scene.contested.add(known.payment_id)
            body: dict[str, Any] = {"inquiry": inquiry}
            if self._chance.random() < 0.4:
                body["amount"] = self._chance.randint(1, known.amount)
            shown = charge and await self._control("POST", f"/charges/{charge}/dispute", body)
            if shown:
                return str(shown["id"])
        return ""

    async def _say(self, ids: list[str], word: str) -> bool:
        """Applies it to the first dispute that is still open."""
        while ids:
            if await self._control("POST", f"/disputes/{ids.pop(0)}/{word}"):
                return True
        return False

    async def _charge(self, known: Known) -> str:
        """Reads the log of effects, which no fault of Stripe hides."""
        shown = await self._control("GET", f"/effects?payment_intent={known.intent}")
        made = [one["object"] for one in (shown or {}).get("effects", ()) if one["kind"] == _MADE]
        return str(made[-1]) if made else ""

    async def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Returns the result; None if it is impossible, or the simulator is unavailable."""
        try:
            return await self._scene.simulator.control(method, path, body)
        except (*AWAY, ValueError):
            return None


def _is_converted(dispute: dict[str, Any]) -> bool:
    lines = dispute["balance_transactions"]
    return any(line["currency"] != dispute["currency"] for line in lines)
