"""The cause of an event, written into its body and read from it."""

from __future__ import annotations

import json

import pytest

from payment_service.domain.audit_trail import cause_in, cause_values
from payment_service.domain.ports.records import Cause


def test_a_cause_is_read_as_it_was_written() -> None:
    cause = Cause("gig-service", "CapturePayment", "request-7", "bob")
    assert cause_in(json.dumps({"by": cause_values(cause)})) == cause


def test_a_job_acts_for_nobody() -> None:
    assert cause_values(Cause("payment_service", "deadline"))["act_for"] == ""


def test_what_a_newer_release_says_besides_is_left_out() -> None:
    by = {**cause_values(Cause("a", "B", "c")), "tenant": "d"}
    assert cause_in(json.dumps({"by": by})) == Cause("a", "B", "c")


@pytest.mark.parametrize("body", ["{}", "", "[]", "7", '{"by": 7}', '{"by": null}', "altered"])
def test_an_altered_body_can_still_be_shown(body: str) -> None:
    assert cause_in(body) == Cause("", "")
