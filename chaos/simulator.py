"""The simulator as the chaos run uses it: switches, the log of effects, Stripe's own lists."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from dev.settings import SIMULATOR_PUBLISHABLE_KEY, SIMULATOR_SECRET_KEY

_SECONDS = aiohttp.ClientTimeout(total=15)
#: The currencies in which the platform has balances.
SETTLED = ("usd", "eur", "jpy")
AWAY = (aiohttp.ClientError, OSError, TimeoutError)


class Simulator:
    def __init__(self, base_url: str, http: aiohttp.ClientSession) -> None:
        self._base_url = base_url
        self._http = http

    async def control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        url = f"{self._base_url}/_simulator{path}"
        async with self._http.request(method, url, json=body, timeout=_SECONDS) as answer:
            shown = await answer.json()
        if answer.status != 200:
            raise ValueError(f"{method} {path}: {shown}")
        return shown

    async def insist(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = 20
    ) -> Any:
        """Does the same, and repeats it until the simulator is up again."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                return await self.control(method, path, body)
            except AWAY:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def confirm(self, intent: str, client_secret: str, card: str) -> dict[str, Any]:
        """Does what the client's browser does with the secret."""
        async with self._http.post(
            f"{self._base_url}/v1/payment_intents/{intent}/confirm",
            data={"client_secret": client_secret, "payment_method": card},
            headers={"Authorization": f"Bearer {SIMULATOR_PUBLISHABLE_KEY}"},
            timeout=_SECONDS,
        ) as answer:
            shown: dict[str, Any] = await answer.json()
            return shown

    async def read(
        self, path: str, account: str = "", params: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Returns what Stripe's API shows to the platform, or to one of its accounts."""
        headers = {"Authorization": f"Bearer {SIMULATOR_SECRET_KEY}"}
        if account:
            headers["Stripe-Account"] = account
        async with self._http.get(
            f"{self._base_url}/v1{path}", params=params, headers=headers, timeout=_SECONDS
        ) as answer:
            shown: dict[str, Any] = await answer.json()
        if "error" in shown:
            raise ValueError(f"{path}: {shown['error']}")
        return shown

    async def list(self, path: str, account: str = "") -> list[dict[str, Any]]:
        """Returns the whole of one of Stripe's lists."""
        found: list[dict[str, Any]] = []
        params = {"limit": "100"}
        while True:
            page = await self.read(path, account, params)
            found += page["data"]
            if not page["has_more"]:
                return found
            params["starting_after"] = found[-1]["id"]
