"""Stripe's idempotency keys.

In v1 the first answer of an endpoint that ran is kept under the key for a day of the simulator's
clock, whatever its status, and given again to the same request. In v2 a success is given again for
thirty days, and a request that failed is executed anew. In both, another request under the key is
refused, and so is the same one while the first still runs. Keys belong to an account.
"""

from __future__ import annotations

import dataclasses
import hashlib

from stripe_simulator.errors import ApiError
from stripe_simulator.forms import Pairs
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row

KEPT_SECONDS = {"idempotency_key": 24 * 3600, "idempotency_key_v2": 30 * 24 * 3600}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A request under its key; the same for every repetition of it."""

    account: str
    key: str
    path: str
    fingerprint: str

    @property
    def id(self) -> str:
        return f"{self.account}:{self.key}"

    @property
    def kind(self) -> str:
        """Where it is stored: the versions keep keys for different times."""
        return "idempotency_key_v2" if self.path.startswith("/v2/") else "idempotency_key"


def claim(account: str, key: str | None, path: str, pairs: Pairs) -> Claim | None:
    if key is None:
        return None
    if not key or len(key) > 255:
        raise ApiError(
            400,
            "Idempotency keys must be between 1 and 255 characters long.",
            kind="idempotency_error",
            stored=False,
        )
    text = "\n".join(f"{name}\t{value}" for name, value in sorted(pairs))
    return Claim(account, key, path, hashlib.sha256(text.encode()).hexdigest())


class IdempotencyKeys:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._running: set[str] = set()

    def find(self, claim: Claim) -> Row | None:
        """The stored answer, if this very request has one; refuses another under the same key."""
        row = None
        for kind in KEPT_SECONDS:
            found = self._simulation.store.get(kind, claim.id)
            if found is not None and not self._is_over(kind, found):
                row = found
        if row is not None:
            if row["path"] != claim.path:
                raise _mismatch(
                    "Keys for idempotent requests can only be used for the same endpoint they "
                    f"were first used for ('{claim.path}' vs '{row['path']}'). Try using a key "
                    f"other than '{claim.key}' if you meant to execute a different request."
                )
            if row["fingerprint"] != claim.fingerprint:
                raise _mismatch(
                    "Keys for idempotent requests can only be used with the same parameters they "
                    f"were first used with. Try using a key other than '{claim.key}' if you meant "
                    "to execute a different request."
                )
        if claim.id in self._running:
            raise ApiError(
                409,
                "There is currently another in-progress request using this Idempotent Key (that "
                "probably means you submitted twice, and the other request is still going "
                f"through): {claim.key}. Please try again later.",
                code="idempotency_key_in_use",
                stored=False,
                headers={"Stripe-Should-Retry": "true"},
            )
        if row is not None and row["status"] >= 400 and claim.path.startswith("/v2/"):
            return None
        return row

    def _is_over(self, kind: str, row: Row) -> bool:
        kept: int = row["created"] + KEPT_SECONDS[kind]
        return kept <= self._simulation.now()

    def begin(self, claim: Claim) -> None:
        self._running.add(claim.id)

    def end(self, claim: Claim) -> None:
        self._running.discard(claim.id)

    def keep(self, claim: Claim, request_id: str, status: int, body: str) -> None:
        """Store an answer; part of the change that produced it, so that neither is lost alone."""
        self._prune(claim.kind)
        self._simulation.store.put(
            claim.kind,
            claim.id,
            path=claim.path,
            fingerprint=claim.fingerprint,
            request=request_id,
            status=status,
            body=body,
            created=self._simulation.now(),
        )

    def _prune(self, kind: str) -> None:
        """Forget a few of the oldest keys that are past their time."""
        store = self._simulation.store
        for row in store.first(kind, 3):
            if self._is_over(kind, row):
                store.remove(kind, row["id"])


def _mismatch(message: str) -> ApiError:
    return ApiError(400, message, kind="idempotency_error", stored=False)
