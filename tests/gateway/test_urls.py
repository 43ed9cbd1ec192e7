"""Where a browser may be sent: every known trick of open redirects, and what must still pass."""

import pytest

from gateway.urls import may_go_onward, may_go_to_onboarding, parse_origin
from tests.gateway.tricks import TRICKS

ALLOWED = frozenset({"https://allowed.example", "http://localhost:3000", "https://b.example:8443"})


@pytest.mark.parametrize(
    "url",
    [
        "https://allowed.example",
        "https://allowed.example/",
        "https://allowed.example/done?a=1&b=%2F#top",
        "https://allowed.example?x=https://evil.example",
        "https://allowed.example#x",
        "https://allowed.example:443/done",
        "HTTPS://Allowed.Example/Done",
        "http://localhost:3000/x",
        "https://b.example:8443/x",
    ],
)
def test_allowed_origins_are_accepted(url: str) -> None:
    assert may_go_onward(url, ALLOWED)


@pytest.mark.parametrize("url", TRICKS)
def test_other_origins_are_refused(url: str) -> None:
    assert not may_go_onward(url, ALLOWED)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://connect.stripe.com/setup/e/acct_1/x", True),
        ("https://accounts.stripe.com/r/acct_1#alu_1", True),
        ("https://127.0.0.1:12111/x", True),
        ("http://127.0.0.1:12111/onboarding/x", True),
        ("http://127.8.9.1/x", True),
        ("http://localhost:12111/x", True),
        ("http://[::1]:12111/x", True),
        ("http://connect.stripe.com/setup", False),
        ("https://connect.stripe.com:8443/setup", False),
        ("https://evil.example/connect.stripe.com", False),
        ("https://connect.stripe.com.evil.example/", False),
        ("https://evilstripe.com/", False),
        ("https://connect.stripe.com@evil.example/", False),
        ("http://127.0.0.1.evil.example/x", False),
        ("http://localhost.evil.example/x", False),
        ("http://10.0.0.1/x", False),
        ("http://0.0.0.0/x", False),
        ("http://2130706433/x", False),
        ("http://[::ffff:10.0.0.1]/x", False),
        ("http://127.0.0.1@evil.example/x", False),
        ("//connect.stripe.com/x", False),
        ("javascript:alert(1)", False),
        ("", False),
    ],
)
def test_onboarding_is_stripe_or_this_machine(url: str, allowed: bool) -> None:
    assert may_go_to_onboarding(url, simulated=True) is allowed
    assert may_go_to_onboarding(url, simulated=False) is (allowed and ".stripe.com/" in url)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://APP.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("https://app.example/", None),
        ("https://app.example/path", None),
        ("https://app.example?x", None),
        ("https://*.example", None),
        ("*", None),
        ("null", None),
        ("app.example", None),
        ("https://", None),
        ("https://user@app.example", None),
        ("https://a..example", None),
    ],
)
def test_origins_are_read_strictly_and_spelled_as_browsers_do(
    text: str, origin: str | None
) -> None:
    assert parse_origin(text) == origin
