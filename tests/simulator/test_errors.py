"""What is refused before an endpoint runs, and the shape of every refusal; lists and expansion."""

from typing import Any

import pytest
import stripe

from tests.simulator.conftest import World


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "code", "param"),
    [
        ("POST", "/v1/payment_intents", "amount=2000", 400, "parameter_missing", "currency"),
        ("POST", "/v1/payment_intents", "amount=2000&currency=usd&colour=red", 400,
         "parameter_unknown", "colour"),
        ("POST", "/v1/payment_intents", "amount=2000&currency=usd&transfer_data[to]=x", 400,
         "parameter_unknown", "transfer_data[to]"),
        ("POST", "/v1/payment_intents", "amount=12.5&currency=usd", 400,
         "parameter_invalid_integer", "amount"),
        ("POST", "/v1/payment_intents", "amount=&currency=usd", 400,
         "parameter_invalid_empty", "amount"),
        ("POST", "/v1/payment_intents", "amount=2000&currency=xyz", 400, None, "currency"),
        ("POST", "/v1/payment_intents", "amount=2000&currency=usd&capture_method=later", 400,
         None, "capture_method"),
        ("POST", "/v1/payment_intents", "amount=2000&currency=usd&confirm=perhaps", 400, None,
         "confirm"),
        ("POST", "/v1/payment_intents", "amount=2000&currency=usd&customer=cus_1", 400, None,
         "customer"),
        ("GET", "/v1/payment_intents/pi_none", None, 404, "resource_missing", "intent"),
        ("GET", "/v1/charges/ch_none", None, 404, "resource_missing", "charge"),
        ("GET", "/v1/accounts/acct_none", None, 403, "account_invalid", None),
        ("GET", "/v1/nothing", None, 404, None, None),
        ("GET", "/v1/payment_intents?limit=101", None, 400, "parameter_invalid_integer", "limit"),
        ("GET", "/v1/payment_intents?starting_after=pi_none", None, 400, "resource_missing",
         "starting_after"),
        ("GET", "/v1/payment_intents?expand[]=latest_charge", None, 400, None, "expand[0]"),
        ("POST", "/v1/refunds", "payment_intent=pi_none", 400, "resource_missing",
         "payment_intent"),
        ("POST", "/v1/transfers", "amount=5&currency=usd&destination=acct_no", 400,
         "resource_missing", "destination"),
    ],
)  # fmt: skip
async def test_refusals(
    world: World,
    method: str,
    path: str,
    data: str | None,
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    answered, body, headers = await world.curl(method, path, data)
    error = body["error"]
    assert (answered, error.get("code"), error.get("param")) == (status, code, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert headers["Request-Id"] in error["request_log_url"]
    if code is not None:
        assert error["doc_url"].endswith(code.replace("_", "-"))


@pytest.mark.parametrize(
    ("key", "headers", "status"),
    [
        (None, {}, 401),
        ("sk_wrong_and_long_enough", {}, 401),
        (None, {"Authorization": "Basic c2tfdGVzdF9zaW11bGF0b3I6"}, 200),
        ("pk_test_simulator", {}, 401),
        ("sk_test_simulator", {"Stripe_Account": "acct_none"}, 403),
        ("sk_test_simulator", {"Stripe_Version": "yesterday"}, 400),
        ("sk_test_simulator", {"Stripe_Version": "2025-03-31.basil"}, 200),
    ],
)
async def test_authentication(
    world: World, key: str | None, headers: dict[str, str], status: int
) -> None:
    answered, body, answer = await world.curl("GET", "/v1/balance", key=key, **headers)
    assert answered == status, body
    assert answer["Request-Id"].startswith("req_")
    assert "sk_wrong_and_long_enough" not in str(body)


async def test_sdk_exceptions(world: World) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.charges.retrieve_async("ch_none")
    assert (caught.value.http_status, caught.value.request_id is not None) == (404, True)
    options: Any = {"api_key": "sk_test_wrong"}
    with pytest.raises(stripe.AuthenticationError):
        await world.client.v1.balance.retrieve_async(options=options)


@pytest.mark.parametrize(
    "form",
    [
        "allowed_payment_method_types[]=card&metadata[a][b]=1",
        "metadata[" + "k" * 41 + "]=v",
        "metadata[k]=" + "v" * 501,
        "&".join(f"metadata[k{n}]=v" for n in range(51)),
        "description=%00",
        "description=%ff",
    ],
)
async def test_metadata_and_text_limits(world: World, form: str) -> None:
    status, _, _ = await world.curl(
        "POST", "/v1/payment_intents", f"amount=2000&currency=usd&{form}"
    )
    assert status == 400


async def test_text_of_any_language_survives(world: World) -> None:
    text = "Übersetzung & Lektorat, 原稿 🎻 [1]=%"
    intent = await world.intent(description=text, metadata={"note": text})
    found = await world.client.v1.payment_intents.retrieve_async(intent.id)
    assert (found.description, found.metadata["note"]) == (text, text)


async def test_expansion(world: World) -> None:
    expert = await world.expert()
    paid = await world.destination_charge(expert)
    intents = world.client.v1.payment_intents
    found = await intents.retrieve_async(
        paid.id,
        params={
            "expand": [
                "latest_charge.balance_transaction",
                "latest_charge.transfer.destination_payment.balance_transaction",
                "latest_charge.refunds",
                "transfer_data.destination",
                "payment_method",
            ]
        },
    )
    charge: Any = found.latest_charge
    assert charge.balance_transaction.type == "charge"
    assert charge.transfer.destination_payment.balance_transaction.fee == 1_000
    assert charge.refunds.data == []
    data: Any = found.transfer_data
    assert data.destination.id == expert
    again: Any = (await intents.retrieve_async(paid.id)).transfer_data
    assert again.destination == expert
    page = await intents.list_async(params={"expand": ["data.latest_charge"]})
    expanded: Any = page.data[0].latest_charge
    assert expanded.id == charge.id
    for wrong in ("nothing", "latest_charge.a", "latest_charge.transfer.destination_payment.b.c"):
        with pytest.raises(stripe.InvalidRequestError):
            await intents.retrieve_async(paid.id, params={"expand": [wrong]})


async def test_source_of_a_balance_transaction_expands_to_whatever_it_is(world: World) -> None:
    await world.fund()
    expert = await world.expert()
    paid = await world.destination_charge(expert)
    await world.client.v1.refunds.create_async(params={"payment_intent": paid.id, "amount": 100})
    page = await world.client.v1.balance_transactions.list_async(
        params={"limit": 4, "expand": ["data.source"]}
    )
    kinds: list[Any] = [line.source for line in page.data]
    assert [kind.object for kind in kinds] == ["refund", "application_fee", "transfer", "charge"]
    page = await world.client.v1.balance_transactions.list_async(params={"type": "refund"})
    assert len(page.data) == 1


async def test_events_are_listed_by_type_and_account(world: World) -> None:
    expert = await world.expert()
    paid = await world.destination_charge(expert)
    events = world.client.v1.events
    page = await events.list_async(params={"types": ["charge.captured", "transfer.*"]})
    assert [event.type for event in page.data] == ["charge.captured", "transfer.created"]
    event = page.data[0]
    assert event.request is not None
    assert event.request.id is not None
    assert event.request.idempotency_key is not None
    assert (await events.retrieve_async(event.id)).data.object["id"] == paid.latest_charge.id  # type: ignore[union-attr]
    page = await events.list_async(options={"stripe_account": expert})
    assert {event.account for event in page.data} == {expert}
    with pytest.raises(stripe.InvalidRequestError):
        await events.retrieve_async(page.data[0].id)


async def test_head_of_an_answer(world: World) -> None:
    _, _, headers = await world.curl("GET", "/v1/balance", Stripe_Version="2025-03-31.basil")
    assert headers["Stripe-Version"] == "2025-03-31.basil"
    assert headers["Content-Type"].startswith("application/json")
    assert headers["Access-Control-Allow-Origin"] == "*"
