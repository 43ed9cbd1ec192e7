"""Webhook secrets are rolled while the service runs, so that no webhook is refused meanwhile."""

from __future__ import annotations

from pathlib import Path

from grpc import aio

from tests.integration.conftest import StartWorld
from tests.support.stripe import ingestion, new_event


async def test_a_secret_is_rolled_without_a_restart(
    start_world: StartWorld, tmp_path: Path
) -> None:
    file = tmp_path / "webhook_secret"
    file.write_text("whsec_old\n")
    world = await start_world(
        stripe_webhook_secret=("whsec_old",), secret_files={"stripe_webhook_secret": file}
    )

    async def accepts(secret: str) -> bool:
        event = new_event("payout.paid", {"object": "payout", "id": "po_1"})
        try:
            await world.webhooks.IngestEvent(ingestion(event, secret=secret))
        except aio.AioRpcError:
            return False
        return True

    async def valid() -> set[str]:
        return {secret for secret in ("whsec_old", "whsec_new") if await accepts(secret)}

    assert await valid() == {"whsec_old"}
    file.write_text("whsec_old\nwhsec_new\n")
    assert await valid() == {"whsec_old", "whsec_new"}
    # As Kubernetes does it: the name leads to another file.
    replacement = tmp_path / "..data_tmp"
    replacement.write_text("whsec_new")
    replacement.rename(file)
    assert await valid() == {"whsec_new"}
    # What is wrong changes nothing.
    for wrong in ("", "whsec_old,", "nonsense"):
        file.write_text(wrong)
        assert await valid() == {"whsec_new"}
    file.unlink()
    assert await valid() == {"whsec_new"}
    file.write_text("whsec_old")
    assert await valid() == {"whsec_old"}
