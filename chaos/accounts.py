"""What happens to experts' accounts: restricted for some seconds, or rejected for good."""

from __future__ import annotations

import asyncio
import random

from chaos.plan import WAITED
from chaos.scene import Known, Scene

#: At least this many experts can be paid at any time.
_WELL = 3
_STEP_SECONDS = 0.1
#: On a slow machine it may take this many seconds until a caller has tried.
_PATIENCE_SECONDS = 10.0


class Accounts:
    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._chance = random.Random(f"accounts:{seed}")

    async def restrict(self, seconds: float) -> bool:
        """Restricts an expert for some seconds, in which at least one capture is tried."""
        known = self._held()
        expert_id = known.expert_id if known else self._chance.choice(self._well())
        account, scene = self._scene.accounts[expert_id], self._scene
        waited = scene.deeds[WAITED]
        await scene.simulator.insist("POST", f"/accounts/{account}/restrict")
        await self._until_one_waits(known, waited)
        await asyncio.sleep(seconds)
        await scene.simulator.insist("POST", f"/accounts/{account}/restore")
        return True

    async def restrict_unheard(self, seconds: float) -> bool:
        """Restricts and restores an expert while Stripe sends no event about accounts.

        Whatever waits for the expert then goes on by the clock, or not at all.
        """
        simulator = self._scene.simulator
        await simulator.insist("POST", "/settings", {"account_event_form": "none"})
        done = await self.restrict(seconds)
        await simulator.insist("POST", "/settings", {"account_event_form": "by_api"})
        return done

    async def reject(self) -> bool:
        """Money may be held for this expert, whom only another account can bring it."""
        scene = self._scene
        known = self._held()
        well = self._well()
        if len(well) <= _WELL:
            return False
        expert_id = known.expert_id if known else self._chance.choice(well)
        account, waited = scene.accounts[expert_id], scene.deeds[WAITED]
        scene.lost_accounts.add(account)
        body = {"disabled_reason": "rejected.fraud"}
        await scene.simulator.insist("POST", f"/accounts/{account}/restrict", body)
        await self._until_one_waits(known, waited)
        scene.rejected[expert_id] = account
        return True

    async def _until_one_waits(self, known: Known | None, waited: int) -> None:
        """Waits until a caller has tried to pay the expert."""
        scene, patience = self._scene, _PATIENCE_SECONDS
        if known is not None:
            scene.urgent.append(known)
        # Nobody tries any more after the callers have left.
        while scene.deeds[WAITED] == waited and patience > 0 and scene.now() < scene.until:
            await asyncio.sleep(_STEP_SECONDS)
            patience -= _STEP_SECONDS

    def _well(self) -> list[str]:
        return [one for one in self._scene.experts if one not in self._scene.rejected]

    def _held(self) -> Known | None:
        """A payment that was spared for this, of an expert who can be paid."""
        spared = self._scene.spared
        for known in spared:
            if known.expert_id not in self._scene.rejected:
                spared.remove(known)
                return known
        held = [
            known
            for known in self._scene.held
            if known.is_separate and known.expert_id not in self._scene.rejected
        ]
        return self._chance.choice(held) if held else None
