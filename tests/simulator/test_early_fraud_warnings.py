"""Early fraud warnings, and when there is nothing left to act upon."""

from tests.simulator.conftest import World


async def test_early_fraud_warning(world: World) -> None:
    charge = await world.charged(card="pm_card_createIssuerFraudRecord")
    assert (await world.event_types())[-3:] == [
        "charge.succeeded",
        "radar.early_fraud_warning.created",
        "payment_intent.succeeded",
    ]
    api = world.client.v1.radar.early_fraud_warnings
    (warning,) = (await api.list_async(params={"charge": charge.id})).data
    assert warning.id.startswith("issfr_")
    assert (warning.actionable, warning.fraud_type) == (True, "unauthorized_use_of_card")
    assert warning.payment_intent == charge.payment_intent
    other = await world.charged()
    shown = await world.control(
        "POST", f"/charges/{other.id}/early_fraud_warning", {"fraud_type": "misc"}
    )
    found = await api.list_async(params={"payment_intent": str(other.payment_intent)})
    assert [row.id for row in found.data] == [shown["id"]]

    # A dispute or a full refund leaves nothing to prevent; a failed refund does again.
    await world.control("POST", f"/charges/{charge.id}/dispute")
    refund = await world.client.v1.refunds.create_async(params={"charge": other.id})
    updated = "radar.early_fraud_warning.updated"
    assert (await world.event_types()).count(updated) == 2
    assert not (await api.retrieve_async(warning.id)).actionable
    assert not (await api.retrieve_async(shown["id"])).actionable
    await world.control("POST", f"/refunds/{refund.id}/fail")
    opened = await api.retrieve_async(shown["id"], params={"expand": ["charge"]})
    assert opened.actionable
    assert opened.charge.id == other.id  # type: ignore[union-attr]
    assert len(await world.effects("fraud_warning_raised")) == 2
