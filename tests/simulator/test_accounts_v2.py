"""Accounts v2: recipients, their requirements, links and thin events, through the real SDK."""

import json
from typing import Any

import pytest
import stripe

from tests.simulator.conftest import CONNECT_SECRETS, EXPRESS, Receiver, World, settle

INCLUDE: Any = ["configuration.recipient", "defaults", "identity", "requirements"]
RECIPIENT: Any = {
    "contact_email": "expert@example.com",
    "display_name": "Ann",
    "dashboard": "express",
    "identity": {"country": "us", "entity_type": "individual"},
    "configuration": {
        "recipient": {"capabilities": {"stripe_balance": {"stripe_transfers": {"requested": True}}}}
    },
    "defaults": {
        "responsibilities": {"fees_collector": "application", "losses_collector": "application"}
    },
    "metadata": {"expert_id": "ann"},
    "include": INCLUDE,
}


async def recipient(world: World, **changes: Any) -> stripe.v2.core.Account:
    params: Any = {**RECIPIENT, **changes}
    return await world.client.v2.core.accounts.create_async(params=params)


async def read(world: World, account: str) -> Any:
    params: Any = {"include": INCLUDE}
    found = await world.client.v2.core.accounts.retrieve_async(account, params=params)
    return found.to_dict()


def transfers_of(account: Any) -> Any:
    return account["configuration"]["recipient"]["capabilities"]["stripe_balance"][
        "stripe_transfers"
    ]


async def thin_types(world: World, account: str) -> list[str]:
    page = await world.client.v2.core.events.list_async(params={"object_id": account})
    return [event.type for event in page.data][::-1]


async def test_a_fresh_recipient_owes_everything(world: World) -> None:
    account = (await recipient(world)).to_dict()
    assert account["object"] == "v2.core.account"
    assert account["applied_configurations"] == ["recipient"]
    assert account["defaults"]["responsibilities"] == {
        "fees_collector": "application",
        "losses_collector": "application",
        "requirements_collector": "stripe",
    }
    assert transfers_of(account) == {
        "status": "restricted",
        "status_details": [{"code": "requirements_past_due", "resolution": "provide_info"}],
    }
    entries = account["requirements"]["entries"]
    assert {entry["awaiting_action_from"] for entry in entries} == {"user"}
    assert "external_account" in [entry["description"] for entry in entries]
    assert account["requirements"]["summary"]["minimum_deadline"]["status"] == "past_due"


async def test_what_is_not_included_is_null(world: World) -> None:
    account = await recipient(world, include=[])
    shown = await world.client.v2.core.accounts.retrieve_async(account.id)
    for found in (account, shown):
        assert (found.configuration, found.requirements, found.identity) == (None, None, None)
        assert found.contact_email == "expert@example.com"


@pytest.mark.parametrize(
    "missing", ["contact_email", "identity", "defaults"], ids=["email", "country", "collectors"]
)
async def test_a_recipient_needs_these(world: World, missing: str) -> None:
    params: Any = {name: value for name, value in RECIPIENT.items() if name != missing}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await world.client.v2.core.accounts.create_async(params=params)
    assert refused.value.code == "parameter_missing"


async def test_express_needs_a_platform_that_bears_fees_and_losses(world: World) -> None:
    collectors = {"fees_collector": "stripe", "losses_collector": "stripe"}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await recipient(world, defaults={"responsibilities": collectors})
    code = "account_controller_express_dash_without_application_losses_or_fees"
    assert refused.value.code == code


async def test_onboarding_activates_transfers_and_reports_it_by_thin_events(world: World) -> None:
    account = await recipient(world)
    link = await world.client.v2.core.account_links.create_async(
        params={
            "account": account.id,
            "use_case": {
                "type": "account_onboarding",
                "account_onboarding": {
                    "collection_options": {"fields": "eventually_due"},
                    "refresh_url": "http://127.0.0.1:1/again",
                    "return_url": "http://127.0.0.1:1/done",
                },
            },
        }
    )
    assert link.object == "v2.core.account_link"
    async with world.http.post(link.url, allow_redirects=False) as answer:
        assert answer.headers["Location"] == "http://127.0.0.1:1/done"

    shown = await read(world, account.id)
    assert transfers_of(shown) == {"status": "active", "status_details": []}
    assert shown["requirements"]["entries"] == []
    assert await thin_types(world, account.id) == [
        "v2.core.account.created",
        "v2.core.account[configuration.recipient].capability_status_updated",
        "v2.core.account[configuration.recipient].capability_status_updated",
        "v2.core.account[requirements].updated",
    ]
    assert await world.event_types(account.id) == []
    login = await world.client.v1.accounts.login_links.create_async(account.id)
    assert login.url.startswith(world.url)


async def test_v1_shows_the_same_account(world: World) -> None:
    account = await recipient(world)
    await world.control("POST", f"/accounts/{account.id}/complete_onboarding")
    shown = await world.client.v1.accounts.retrieve_async(account.id)
    assert shown.capabilities is not None
    assert shown.capabilities.to_dict() == {"transfers": "active"}
    assert (shown.charges_enabled, shown.payouts_enabled) == (False, True)
    charge = await world.charged()
    transfer = await world.client.v1.transfers.create_async(
        params={
            "amount": 500,
            "currency": "usd",
            "destination": account.id,
            "source_transaction": charge.id,
        }
    )
    assert transfer.amount == 500


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("rejected.terms_of_service", "rejected", "rejected_terms_of_service"),
        ("requirements.past_due", "restricted", "requirements_past_due"),
        ("requirements.pending_verification", "pending", "requirements_pending_verification"),
        ("platform_paused", "restricted", "restricted_other"),
    ],
)
async def test_a_restriction_says_its_kind(
    world: World, reason: str, status: str, code: str
) -> None:
    account = await recipient(world)
    await world.control("POST", f"/accounts/{account.id}/complete_onboarding")
    await world.control("POST", f"/accounts/{account.id}/restrict", {"disabled_reason": reason})
    transfers = transfers_of(await read(world, account.id))
    assert (transfers["status"], transfers["status_details"][0]["code"]) == (status, code)


async def test_who_must_act_on_a_requirement(world: World) -> None:
    account = await recipient(world)
    await world.control(
        "POST", f"/accounts/{account.id}/complete_onboarding", {"outcome": "pending"}
    )
    [entry] = (await read(world, account.id))["requirements"]["entries"]
    assert entry["awaiting_action_from"] == "stripe"
    assert entry["requested_reasons"] == [{"code": "routine_verification"}]


async def test_an_account_of_v1_is_known_to_v2_after_a_while(world: World) -> None:
    account = await world.client.v1.accounts.create_async(params=EXPRESS)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await read(world, account.id)
    assert refused.value.code == "account_not_yet_compatible_with_v2"
    await world.control("POST", "/clock", {"advance_seconds": 601})
    shown = await read(world, account.id)
    assert shown["applied_configurations"] == ["merchant", "recipient"]


async def test_v1_is_refused_unless_the_platform_supports_it(world: World) -> None:
    await world.control("POST", "/settings", {"accounts_v1_support": False})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await world.client.v1.accounts.create_async(params=EXPRESS)
    assert refused.value.user_message is not None
    assert "enable Accounts v1 support in the Dashboard" in refused.value.user_message
    assert (refused.value.code, refused.value.param) == (None, None)


async def test_closing_names_every_configuration(world: World) -> None:
    account = await recipient(world)
    accounts = world.client.v2.core.accounts
    with pytest.raises(stripe.InvalidRequestError):
        await accounts.close_async(account.id, params={"applied_configurations": []})
    closed = await accounts.close_async(
        account.id, params={"applied_configurations": ["recipient"]}
    )
    assert closed.closed
    assert (await read(world, account.id))["closed"]
    assert (await accounts.list_async()).data == []
    assert len((await accounts.list_async({"closed": True})).data) == 1
    assert (await thin_types(world, account.id))[-1] == "v2.core.account.closed"
    with pytest.raises(stripe.PermissionError):
        await world.client.v1.accounts.retrieve_async(account.id)


async def test_update(world: World) -> None:
    account = await recipient(world)
    params: Any = {"contact_email": "new@example.com", "metadata": {"expert_id": "", "more": "1"}}
    updated = await world.client.v2.core.accounts.update_async(account.id, params=params)
    assert updated.contact_email == "new@example.com"
    assert updated.to_dict()["metadata"] == {"more": "1"}
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v2.core.accounts.update_async(
            account.id, params={"identity": {"country": "de"}}
        )


async def test_lists_have_pages(world: World) -> None:
    made = [(await recipient(world)).id for _ in range(3)]
    page = await world.client.v2.core.accounts.list_async({"limit": 2})
    assert [account.id for account in page.data] == made[:0:-1]
    assert [account.id async for account in page.auto_paging_iter()] == made[::-1]


async def test_errors_have_v2s_codes(world: World) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await read(world, "acct_none")
    assert (refused.value.http_status, refused.value.code) == (404, "not_found")
    account = await recipient(world)
    await world.control("POST", f"/accounts/{account.id}/deauthorize")
    with pytest.raises(stripe.PermissionError):
        await read(world, account.id)


async def test_bodies_are_json_and_indexes_exact(world: World) -> None:
    headers = {"Stripe_Version": "2026-10-28.endive"}
    status, body, _ = await world.curl("POST", "/v2/core/accounts", "contact_email=a", **headers)
    assert status == 400
    assert "application/json" in body["error"]["message"]
    status, body, _ = await world.curl(
        "GET", "/v2/core/accounts?applied_configurations[]=recipient", **headers
    )
    assert status == 400
    assert "exact indexes" in body["error"]["message"]
    status, body, _ = await world.curl("GET", "/v2/core/accounts")
    assert (status, body["error"]["message"]) == (400, "The Stripe-Version header is required.")


async def test_a_key_gives_a_success_again_and_a_failure_another_try(world: World) -> None:
    options: Any = {"idempotency_key": "op_1"}
    await world.control(
        "POST",
        "/faults",
        {
            "match": {"path": "/v2/core/accounts$"},
            "action": "status",
            "status": 500,
            "when": "before",
            "times": 1,
        },
    )
    create = world.client.v2.core.accounts.create_async
    with pytest.raises(stripe.APIError):
        await create(params=RECIPIENT, options=options)
    first = await create(params=RECIPIENT, options=options)
    await world.control("POST", "/clock", {"advance_seconds": 29 * 86_400})
    assert (await create(params=RECIPIENT, options=options)).id == first.id
    other: Any = {**RECIPIENT, "display_name": "Bob"}
    with pytest.raises(stripe.IdempotencyError):
        await create(params=other, options=options)
    assert len(await world.effects("account_created")) == 1


async def test_a_lost_answer_is_given_at_the_next_try(world: World) -> None:
    options: Any = {"idempotency_key": "op_1"}
    rule = {"match": {"path": "/v2/core/accounts$"}, "action": "status", "status": 500}
    await world.control("POST", "/faults", {**rule, "when": "after", "times": 1})
    create = world.client.v2.core.accounts.create_async
    with pytest.raises(stripe.APIError):
        await create(params=RECIPIENT, options=options)
    account = await create(params=RECIPIENT, options=options)
    [made] = await world.effects("account_created")
    assert made["object"] == account.id


async def test_thin_events_arrive_signed_and_can_be_fetched(
    hooked: World, receiver: Receiver
) -> None:
    account = await recipient(hooked)
    await hooked.control("POST", f"/accounts/{account.id}/complete_onboarding")
    await settle(hooked)
    assert {name for name, _, _ in receiver.deliveries} == {"connect"}
    _, body, signature = receiver.deliveries[1]
    notification = hooked.client.parse_event_notification(body, signature, CONNECT_SECRETS[1])
    assert notification.type == (
        "v2.core.account[configuration.recipient].capability_status_updated"
    )
    shown = json.loads(body)
    assert "data" not in shown
    assert shown["related_object"]["id"] == account.id
    event = (await notification.fetch_event_async()).to_dict()
    assert event["data"] == {"updated_capability": "stripe_balance.stripe_transfers"}


async def test_thin_events_are_listed_by_time_and_type(world: World) -> None:
    account = await recipient(world)
    await world.control("POST", "/clock", {"advance_seconds": 60})
    await world.control("POST", f"/accounts/{account.id}/complete_onboarding")
    created = (await world.client.v2.core.events.list_async()).data[-1].created
    later = await world.client.v2.core.events.list_async({"created": {"gt": created}})
    assert len(later.data) == 3
    types = ["v2.core.account.created"]
    assert len((await world.client.v2.core.events.list_async({"types": types})).data) == 1


@pytest.mark.parametrize(
    ("setting", "thin", "snapshot"),
    [
        ("thin", True, False),
        ("snapshot", False, True),
        ("both", True, True),
        ("none", False, False),
    ],
)
async def test_in_which_form_accounts_report_changes(
    world: World, setting: str, thin: bool, snapshot: bool
) -> None:
    await world.control("POST", "/settings", {"account_event_form": setting})
    account = await recipient(world)
    await world.control("POST", f"/accounts/{account.id}/complete_onboarding")
    assert bool(await thin_types(world, account.id)) is thin
    assert bool(await world.event_types(account.id)) is snapshot
