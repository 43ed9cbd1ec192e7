"""The events that endpoints are registered for: one list in code, stack and runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dev import registered_events as registered
from payment_service.domain import webhook_event

_GOING_LIVE = Path("docs/runbook/going-live.md")
_PLATFORM = webhook_event.PAYMENT_EVENTS
_CONNECT = webhook_event.ACCOUNT_EVENTS | webhook_event.PAYOUT_EVENTS


def test_the_stack_gets_what_is_acted_upon_and_no_more() -> None:
    assert set(registered.PLATFORM_EVENTS) == _PLATFORM
    assert set(registered.CONNECT_EVENTS) == _CONNECT
    assert set(registered.THIN_EVENTS) == webhook_event.THIN_ACCOUNT_EVENTS


@pytest.mark.parametrize(
    ("title", "events"),
    [("Events of your account", _PLATFORM), ("Events of connected accounts", _CONNECT)],
)
def test_the_runbook_lists_what_is_acted_upon(title: str, events: frozenset[str]) -> None:
    found = re.search(rf"{title}:\n\n\s*```text\n(.*?)```", _GOING_LIVE.read_text(), re.DOTALL)
    assert found is not None
    assert set(found[1].split()) == events
