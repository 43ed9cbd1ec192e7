"""Connected accounts: onboarding through the hosted page, capabilities, restriction, leaving."""

from typing import Any

import pytest
import stripe

from tests.simulator.conftest import EXPRESS, World

LINK: Any = {
    "type": "account_onboarding",
    "return_url": "http://127.0.0.1:1/done",
    "refresh_url": "http://127.0.0.1:1/again",
}


async def account_link(world: World, account: str) -> stripe.AccountLink:
    params: Any = {"account": account, **LINK}
    return await world.client.v1.account_links.create_async(params=params)


async def follow(world: World, method: str, url: str, **form: str) -> tuple[int, str, str]:
    async with world.http.request(method, url, data=form or None, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location", ""), await answer.text()


async def test_fresh_account_owes_everything_and_can_do_nothing(world: World) -> None:
    account = await world.client.v1.accounts.create_async(params=EXPRESS)
    assert account.type == "express"
    assert account.details_submitted is False
    assert (account.charges_enabled, account.payouts_enabled) == (False, False)
    assert account.capabilities is not None
    assert account.capabilities.to_dict() == {"card_payments": "inactive", "transfers": "inactive"}
    assert account.requirements is not None
    assert "external_account" in (account.requirements.currently_due or [])
    assert account.requirements.disabled_reason == "requirements.past_due"


async def test_controller_instead_of_type(world: World) -> None:
    account = await world.client.v1.accounts.create_async(
        params={
            "controller": {
                "fees": {"payer": "application"},
                "losses": {"payments": "application"},
                "stripe_dashboard": {"type": "express"},
            },
            "country": "DE",
        }
    )
    assert account.controller is not None
    assert account.controller.stripe_dashboard is not None
    assert account.controller.stripe_dashboard.type == "express"
    assert account.default_currency == "eur"
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.accounts.create_async(
            params={"type": "express", "controller": {"fees": {"payer": "application"}}}
        )


async def test_onboarding_page_completes_the_account_once(world: World) -> None:
    account = await world.client.v1.accounts.create_async(params=EXPRESS)
    link = await account_link(world, account.id)
    assert link.expires_at == link.created + 300

    status, _, page = await follow(world, "GET", link.url)
    assert status == 200
    assert account.id in page
    assert "SIMULATOR" in page
    assert await follow(world, "POST", link.url) == (303, LINK["return_url"], "")
    again = await follow(world, "POST", link.url)
    assert again[:2] == (303, LINK["refresh_url"])
    assert (await follow(world, "GET", link.url))[:2] == (303, LINK["refresh_url"])

    account = await world.client.v1.accounts.retrieve_async(account.id)
    assert account.details_submitted
    assert account.charges_enabled
    assert account.payouts_enabled
    assert account.requirements is not None
    assert account.requirements.currently_due == []
    types = await world.event_types(account.id)
    assert types.count("capability.updated") == 2
    assert "account.updated" in types


async def test_link_expires_after_five_minutes(world: World) -> None:
    account = await world.client.v1.accounts.create_async(params=EXPRESS)
    link = await account_link(world, account.id)
    await world.control("POST", "/clock", {"advance_seconds": 301})
    assert (await follow(world, "POST", link.url))[:2] == (303, LINK["refresh_url"])
    assert (await follow(world, "GET", world.url + "/_pages/onboarding/none"))[0] == 404


@pytest.mark.parametrize(
    ("outcome", "submitted", "transfers"),
    [("complete", True, "active"), ("pending", True, "pending"), ("unfinished", False, "inactive")],
)
async def test_buttons_of_the_onboarding_page(
    world: World, outcome: str, submitted: bool, transfers: str
) -> None:
    account = await world.client.v1.accounts.create_async(params=EXPRESS)
    link = await account_link(world, account.id)
    assert (await follow(world, "POST", link.url, outcome=outcome))[1] == LINK["return_url"]
    account = await world.client.v1.accounts.retrieve_async(account.id)
    assert account.details_submitted is submitted
    assert account.capabilities is not None
    assert account.capabilities.transfers == transfers
    capability = await world.client.v1.accounts.capabilities.retrieve_async(account.id, "transfers")
    assert capability.status == transfers


async def test_login_link_needs_an_onboarded_express_account(world: World) -> None:
    account = await world.client.v1.accounts.create_async(params=EXPRESS)
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.accounts.login_links.create_async(account.id)
    await world.control("POST", f"/accounts/{account.id}/complete_onboarding")
    link = await world.client.v1.accounts.login_links.create_async(account.id)
    assert (await follow(world, "GET", link.url))[0] == 200
    standard = await world.client.v1.accounts.create_async(params={"type": "standard"})
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.accounts.login_links.create_async(standard.id)


async def test_update_list_and_delete(world: World) -> None:
    first = await world.client.v1.accounts.create_async(params=EXPRESS)
    params: Any = {**EXPRESS, "metadata": {"a": "1", "b": "2"}}
    second = await world.client.v1.accounts.create_async(params=params)
    changed = await world.client.v1.accounts.update_async(
        second.id, params={"email": "new@example.com", "metadata": {"a": "", "c": "3"}}
    )
    assert changed.email == "new@example.com"
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"b": "2", "c": "3"}

    page = await world.client.v1.accounts.list_async(
        params={"limit": 1, "created": {"gte": first.created or 0}}
    )
    assert [account.id for account in page.data] == [second.id]
    assert page.has_more
    assert [account.id async for account in page.auto_paging_iter()] == [second.id, first.id]

    gone = await world.client.v1.accounts.delete_async(first.id)
    assert gone.deleted
    with pytest.raises(stripe.PermissionError):
        await world.client.v1.accounts.retrieve_async(first.id)


async def test_card_payments_needs_transfers(world: World) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.accounts.create_async(
            params={"type": "express", "capabilities": {"card_payments": {"requested": True}}}
        )


async def test_restriction_stops_transfers_until_it_is_lifted(world: World) -> None:
    expert = await world.expert()
    await world.control(
        "POST",
        f"/accounts/{expert}/restrict",
        {"disabled_reason": "rejected.fraud", "currently_due": ["individual.id_number"]},
    )
    account = await world.client.v1.accounts.retrieve_async(expert)
    assert account.requirements is not None
    assert account.requirements.disabled_reason == "rejected.fraud"
    assert account.payouts_enabled is False
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.intent(transfer_data={"destination": expert})
    assert caught.value.code == "insufficient_capabilities_for_transfer"

    await world.control("POST", f"/accounts/{expert}/restore")
    intent = await world.intent(transfer_data={"destination": expert})
    assert intent.status == "requires_payment_method"


async def test_deauthorized_account_is_out_of_reach(world: World) -> None:
    expert = await world.expert()
    await world.control("POST", f"/accounts/{expert}/deauthorize")
    with pytest.raises(stripe.PermissionError) as caught:
        await world.client.v1.balance.retrieve_async(options={"stripe_account": expert})
    assert caught.value.error is not None
    assert caught.value.error.code == "account_invalid"
    with pytest.raises(stripe.InvalidRequestError):
        await world.intent(transfer_data={"destination": expert})
    await world.control("POST", f"/accounts/{expert}/reauthorize")
    assert (await world.event_types(expert))[-1] == "account.application.deauthorized"


async def test_accounts_can_be_silent(world: World) -> None:
    await world.control("POST", "/settings", {"account_event_form": "none"})
    expert = await world.expert()
    await world.control("POST", f"/accounts/{expert}/deauthorize")
    await world.control("POST", f"/accounts/{expert}/reauthorize")
    assert await world.event_types(expert) == []
    await world.control("POST", "/settings", {"account_event_form": "by_api"})
    await world.control("POST", f"/accounts/{expert}/restrict")
    assert "account.updated" in await world.event_types(expert)
