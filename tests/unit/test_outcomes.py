"""What Stripe said of a failed request is kept for operators, and tells nothing private."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from payment_service.adapters.stripe.client import StripeResource
from payment_service.adapters.stripe.fields import Unreadable
from payment_service.adapters.stripe.outcomes import outcome_of
from payment_service.domain.ports.stripe import Misconfigured, Refused, Unknown


def _error(message: str, status: int = 400, **fields: Any) -> stripe.StripeError:
    error = {"type": "invalid_request_error", "message": message, **fields}
    kind = stripe.AuthenticationError if status == 401 else stripe.InvalidRequestError
    body: dict[str, Any] = {"http_status": status, "json_body": {"error": error}}
    if kind is stripe.InvalidRequestError:
        return stripe.InvalidRequestError(message, fields.get("param"), **body)  # type: ignore[no-untyped-call]  # Stripe's
    return stripe.AuthenticationError(message, **body)


def test_a_refusal_without_a_code_keeps_what_stripe_said() -> None:
    error = _error("Cannot create a destination charge for it.", param="transfer_data[destination]")
    outcome = outcome_of(error)
    assert isinstance(outcome, Refused)
    assert outcome.last_error == (
        "refused: invalid_request_error transfer_data[destination]: "
        "Cannot create a destination charge for it."
    )


def test_a_refusal_with_a_code_begins_with_it() -> None:
    outcome = outcome_of(_error("No such destination", code="resource_missing"))
    assert isinstance(outcome, Refused)
    assert outcome.last_error.startswith("resource_missing: invalid_request_error: No such")


@pytest.mark.parametrize(
    "private",
    [
        "ann@example.com",
        "sk_test_51AbCdEf",
        "rk_live_****************9876",
        "whsec_abc123",
        "pi_3Q_secret_xyz",
        "4242 4242 4242 4242",
        "4242424242424242",
    ],
)
@pytest.mark.parametrize("status", [400, 401])
def test_private_words_are_masked(private: str, status: int) -> None:
    outcome = outcome_of(_error(f"Invalid value: '{private}' is not known", status))
    assert isinstance(outcome, Refused | Misconfigured)
    assert private not in outcome.said
    assert "Invalid value: '***' is not known" in outcome.said


def test_a_long_message_is_cut() -> None:
    outcome = outcome_of(_error("x " * 5_000))
    assert isinstance(outcome, Refused)
    assert len(outcome.said) <= 600


@pytest.mark.parametrize("status", [400, 402])
@pytest.mark.parametrize("body", [b"", b"<html>Bad Request</html>", b"[]", b"{}", b"\xff"])
def test_a_refusal_that_is_not_stripes_is_no_answer(status: int, body: bytes) -> None:
    """A proxy answers the second try so. The first one may have had its effect."""
    client = stripe.StripeClient("sk_test_1", http_client=stripe.AIOHTTPClient())
    with pytest.raises(stripe.StripeError) as caught:
        client._requestor._interpret_response(body, status, {}, "V1")
    assert outcome_of(caught.value) == Unknown(f"http_{status}")


class _Answering:
    """Stands in for the HTTP client: every request gets this answer."""

    def __init__(self, status: int, content: bytes) -> None:
        self._answer = content, status, dict[str, str]()

    async def request_async(self, *_: object) -> tuple[bytes, int, dict[str, str]]:
        return self._answer


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", stripe.APIError),
        (b"<html>Welcome</html>", stripe.APIError),
        (b"\xff", stripe.APIError),
        (b'{"id": "\xed\xa0\x80"}', stripe.APIError),
        ('{"id": "re_1"}'.encode("utf-16"), stripe.APIError),
        (b"[" * 100_000, stripe.APIError),
        (b"null", Unreadable),
        (b"[]", Unreadable),
    ],
)
async def test_a_success_that_is_not_stripes_is_no_answer(
    status: int, body: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    stripe_side = StripeResource("sk_test_1")
    monkeypatch.setattr(stripe_side, "_http", _Answering(status, body))
    with pytest.raises(error) as caught:
        await stripe_side._post("/v1/refunds", {}, "op_1-1")
    assert isinstance(outcome_of(caught.value), Unknown)


async def test_answers_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stripe_side = StripeResource("sk_test_1")
    monkeypatch.setattr(stripe_side, "_http", _Answering(200, '{"id": "ré_1", "n": [1]}'.encode()))
    assert await stripe_side._post("/v1/refunds", {}) == {"id": "ré_1", "n": [1]}
    monkeypatch.setattr(stripe_side, "_http", _Answering(404, b'{"error": {"message": "gone"}}'))
    with pytest.raises(stripe.InvalidRequestError):
        await stripe_side._get("/v1/refunds/re_1")


@pytest.mark.parametrize(("status", "is_spent"), [(400, True), (409, False)])
def test_a_key_that_is_in_use_just_now_is_not_spent(status: int, is_spent: bool) -> None:
    """Under a new key the request would act beside the one that is under way."""
    error = stripe.IdempotencyError("a key", http_status=status)
    outcome = outcome_of(error)
    assert isinstance(outcome, Unknown)
    assert outcome.replayed is is_spent
