"""The relay's parts that need no process: events, signatures, addresses, the file of endpoints."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import events_pb2
from payment_service.config import WrongSettings
from payment_service.relay.addresses import AddressRefused, check_literal, is_allowed
from payment_service.relay.cloud_events import outgoing
from payment_service.relay.endpoints import Endpoint, WrongEndpoints, read_endpoints
from payment_service.relay.process import Relay
from payment_service.relay.settings import RelaySettings, load_relay_settings
from payment_service.relay.signatures import headers_of, key_of

#: The example of the standard's own reference libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TIME = datetime(2026, 11, 30, 12, 0, 0, 123000, tzinfo=UTC)


def event(**fields: Any) -> events_pb2.PaymentEvent:
    moment = Timestamp()
    moment.FromDatetime(TIME)
    given: dict[str, Any] = {
        "payment_id": "pay_1",
        "sequence": 3,
        "kind": "payment.captured",
        "record_time": moment,
        "body_json": '{"from":"AUTHORIZED","to":"CAPTURED","facts":{"note":"salted"}}',
        "hash": bytes(range(32)),
        "texts": {"note": "a person's words"},
        "cause": events_pb2.EventCause(caller="gig-service", rpc="CapturePayment"),
    }
    return events_pb2.PaymentEvent(**{**given, **fields})


# --- events ---


def test_an_event_is_a_cloud_event() -> None:
    made = outgoing(event(), "/payments")
    assert json.loads(made.body) == {
        "specversion": "1.0",
        "id": "pay_1.3.0001020304050607",
        "source": "/payments",
        "type": "payment.captured",
        "subject": "pay_1",
        "time": "2026-11-30T12:00:00.123Z",
        "datacontenttype": "application/json",
        "partitionkey": "pay_1",
        "sequence": "0000000000000000003",
        "data": {
            "payment_id": "pay_1",
            "sequence": 3,
            "kind": "payment.captured",
            "body": {"from": "AUTHORIZED", "to": "CAPTURED", "facts": {"note": "salted"}},
            "cause": {"caller": "gig-service", "rpc": "CapturePayment"},
            "hash": bytes(range(32)).hex(),
        },
    }


def test_what_people_wrote_is_left_out() -> None:
    assert "a person's words" not in outgoing(event(), "/payments").body


def test_an_event_that_took_the_place_of_a_lost_one_has_another_id() -> None:
    assert outgoing(event(), "/").id == outgoing(event(), "/other").id
    assert outgoing(event(), "/").id != outgoing(event(hash=bytes(32)), "/").id


# --- signatures ---


def test_a_signature_is_that_of_the_standard() -> None:
    made = headers_of(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [key_of(SECRET)]
    )
    assert made == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_a_secret_is_rotated_both_sign() -> None:
    keys = [key_of(SECRET), bytes(24)]
    both = headers_of("id", 1, b"{}", keys)["webhook-signature"].split(" ")
    assert both == [headers_of("id", 1, b"{}", [key])["webhook-signature"] for key in keys]


@pytest.mark.parametrize("secret", ["", SECRET.removeprefix("whsec_"), "whsec_x!", "whsec_AAAA"])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="is no secret") as fault:
        key_of(secret)
    assert not secret or secret.removeprefix("whsec_") not in str(fault.value)


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.9.9", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),  # noqa: S104 - it is judged, and nothing listens there
        ("224.0.0.251", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::1", False),
    ],
)
def test_only_public_addresses_get_webhooks(address: str, public: bool) -> None:
    assert is_allowed(ipaddress.ip_address(address), ()) is public


def test_a_private_network_is_allowed_by_name() -> None:
    network = ipaddress.ip_network("10.1.0.0/16")
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), (network,))
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), (network,))
    assert not is_allowed(ipaddress.ip_address("10.2.0.1"), (network,))


def test_an_address_in_place_of_a_name_is_judged_too() -> None:
    check_literal("mail.example.com", ())
    for host in ("127.0.0.1", "[::1]", "169.254.169.254"):
        with pytest.raises(AddressRefused):
            check_literal(host, ())


# --- the file of endpoints ---


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


def write(tmp_path: Path, *endpoints: dict[str, Any]) -> Path:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"endpoints": endpoints}))
    return path


def good(secret_file: Path, **fields: Any) -> dict[str, Any]:
    return {
        "name": "mail",
        "url": "https://mail.example.com/events",
        "secret_files": [str(secret_file)],
        **fields,
    }


def test_a_file_of_endpoints_is_read(tmp_path: Path, secret_file: Path) -> None:
    [read] = read_endpoints(
        write(tmp_path, good(secret_file, types=["payment.captured", "payment.dispute_*"])),
        production=True,
    )
    assert (read.name, read.host, read.disabled) == ("mail", "mail.example.com", False)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "http://mail.example.com/events"}, "url must be https"),
        ({"url": "https://127.0.0.1/events"}, "name its network in networks"),
        ({"url": "https://[::1]/events"}, "name its network in networks"),
        ({"url": "ftp://mail.example.com"}, "must be an address"),
        ({"url": "https://user:pw@mail.example.com"}, "no user, password or fragment"),
        ({"url": "https://mail.example.com:99999/"}, "url"),
        ({"secret_files": []}, "secret_files"),
        ({"secret_files": ["/nowhere/secret"]}, "/nowhere/secret cannot be read"),
        ({"types": ["*"]}, "types"),
        ({"networks": ["10.0.0.0/99"]}, "networks"),
        ({"since": "2026-11-30T00:00:00"}, "since"),
        ({"typo": True}, "typo"),
        ({"name": "Mail Service"}, "name"),
    ],
)
def test_a_wrong_endpoint_is_refused_by_field(
    tmp_path: Path, secret_file: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(WrongEndpoints, match=re.escape(said)):
        read_endpoints(write(tmp_path, good(secret_file, **fields)), production=True)


def test_two_endpoints_of_one_name_are_refused(tmp_path: Path, secret_file: Path) -> None:
    path = write(tmp_path, good(secret_file), good(secret_file))
    with pytest.raises(WrongEndpoints, match="mail stands twice"):
        read_endpoints(path, production=True)


@pytest.mark.parametrize(
    ("types", "kind", "wanted"),
    [
        ((), "payment.captured", True),
        (("payment.captured",), "payment.captured", True),
        (("payment.captured",), "payment.captured_more", False),
        (("payment.dispute_*",), "payment.dispute_opened", True),
        (("payment.dispute_*",), "payment.captured", False),
    ],
)
def test_an_endpoint_gets_the_kinds_that_it_wants(
    secret_file: Path, types: tuple[str, ...], kind: str, wanted: bool
) -> None:
    endpoint = Endpoint.model_validate(good(secret_file, types=types))
    assert endpoint.wants(kind, TIME) is wanted


def test_an_endpoint_gets_nothing_from_before_its_time(secret_file: Path) -> None:
    endpoint = Endpoint.model_validate(good(secret_file, since="2026-11-30T12:00:00Z"))
    assert endpoint.wants("payment.captured", TIME)
    assert not endpoint.wants("payment.captured", TIME.replace(hour=11))


# --- settings ---


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("nats://user:secret@nats:4222\n")
    monkeypatch.setenv("RELAY_NATS_URL_FILE", str(file))
    settings = load_relay_settings()
    assert settings.relay_nats_url is not None
    assert settings.relay_nats_url.get_secret_value() == "nats://user:secret@nats:4222"
    monkeypatch.setenv("RELAY_NATS_URL", "nats://nats:4222")
    with pytest.raises(WrongSettings, match="both set"):
        load_relay_settings(
            {"RELAY_NATS_URL_FILE": str(file), "RELAY_NATS_URL": "nats://nats:4222"}
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"relay_nats_url": "http://oN1yHere@nats"}, "must be addresses of NATS servers"),
        ({"relay_database_url": "mysql://x:oN1yHere@y/z"}, "must be a PostgreSQL's address"),
        (
            {"environment": "production", "relay_nats_url": "nats://x:oN1yHere@nats:4222"},
            "in plain text",
        ),
        (
            {"environment": "production", "relay_database_url": "postgresql://x:oN1yHere@db/r"},
            "sslmode=verify-full",
        ),
        ({"relay_nats_key_file": "/k"}, "belong together"),
        ({"relay_retry_seconds": 0}, "greater than or equal to 1"),
        ({"core_address": "a:1,b:2"}, "several targets must be IP addresses"),
    ],
)
def test_a_wrong_setting_is_refused_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name.upper(), str(value))
    with pytest.raises(WrongSettings, match=said) as fault:
        load_relay_settings()
    assert "oN1yHere" not in str(fault.value)


def test_a_misspelt_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_NATS_ULR", "nats://nats:4222")
    with pytest.raises(WrongSettings, match="did you mean RELAY_NATS_URL"):
        load_relay_settings()


def test_a_token_goes_nowhere_in_plain_text() -> None:
    settings = RelaySettings(core_address=("10.0.0.9:50051",), core_token_file=Path("/token"))
    with pytest.raises(WrongSettings, match="in plain text"):
        settings.open_channel()


def test_a_relay_with_nowhere_to_publish_does_not_start() -> None:
    with pytest.raises(WrongSettings, match="set RELAY_NATS_URL, or RELAY_ENDPOINTS_FILE"):
        Relay(RelaySettings())


# --- what the documentation tells consumers ---


def test_the_documented_verification_accepts_what_the_relay_signs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrating.md").read_text()
    [code] = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    documented: dict[str, Any] = {}
    exec(code, documented)  # noqa: S102 - our own page
    verify = documented["verify"]
    other = base64.b64encode(bytes(24)).decode()
    now = int(time.time())
    signed = headers_of("id", now, b"{}", [key_of(SECRET), bytes(24)])
    verify(SECRET, signed, b"{}")
    verify(f"whsec_{other}", signed, b"{}")
    with pytest.raises(ValueError, match="not signed"):
        verify(SECRET, signed, b"{} ")
    with pytest.raises(ValueError, match="too old"):
        verify(SECRET, headers_of("id", now - 400, b"{}", [key_of(SECRET)]), b"{}")
