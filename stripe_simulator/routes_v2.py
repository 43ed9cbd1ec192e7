"""Every endpoint under /v2, as a table, and its lists with page tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from stripe_simulator import account_links, accounts_v2, own_account, schemas_v2, thin_events
from stripe_simulator.errors import ApiError
from stripe_simulator.rendering import plain
from stripe_simulator.routes import Answer, Endpoint
from stripe_simulator.simulation import Call
from stripe_simulator.store import Row

DEFAULT_LIMIT = 20


@dataclasses.dataclass(frozen=True)
class PageV2:
    """One page of a list, newest first; the next one is behind `next_page_url`."""

    kind: str
    keep: Callable[[Call, Row], bool]
    shown: Callable[[Call, Row], Answer]

    def __call__(self, call: Call) -> Answer:
        limit = call.get("limit", DEFAULT_LIMIT)
        before = _sequence_of(call.get("page"))
        found: list[Row] = []
        more = False
        for row in call.simulation.store.select(self.kind, {}, before=before):
            if not self.keep(call, row):
                continue
            if len(found) == limit:
                more = True
                break
            found.append(row)
        next_page = None
        if more:
            query = [("page", f"page_{found[-1]['_sequence']}"), *_pairs(call.params)]
            next_page = f"{call.path['*']}?{urlencode(query)}"
        return {
            "data": [self.shown(call, row) for row in found],
            "next_page_url": next_page,
            "previous_page_url": None,
        }


def _sequence_of(token: str | None) -> int | None:
    if token is None:
        return None
    number = token.removeprefix("page_")
    if not number.isdigit():
        raise ApiError(400, "The page token is invalid.", code="invalid_page", stored=False)
    return int(number)


def _pairs(params: dict[str, Any]) -> list[tuple[str, str]]:
    """The request's own parameters again, as a query has them."""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items():
        if name == "page":
            continue
        if isinstance(value, dict):
            pairs += [(f"{name}[{key}]", str(inner)) for key, inner in value.items()]
        elif isinstance(value, list):
            pairs += [(f"{name}[{index}]", str(inner)) for index, inner in enumerate(value)]
        elif isinstance(value, bool):
            pairs.append((name, "true" if value else "false"))
        else:
            pairs.append((name, str(value)))
    return pairs


def _event(call: Call, event: Row) -> Answer:
    return plain(call.simulation, event)


S = schemas_v2
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/v2/core/accounts", S.ACCOUNT, accounts_v2.create),
    Endpoint(
        "GET",
        "/v2/core/accounts",
        S.ACCOUNT_LIST,
        PageV2("account", accounts_v2.is_listed, accounts_v2.shown_in_list),
    ),
    Endpoint("GET", "/v2/core/accounts/{account}", S.ACCOUNT_RETRIEVE, accounts_v2.retrieve),
    Endpoint("POST", "/v2/core/accounts/{account}", S.ACCOUNT, accounts_v2.update),
    Endpoint("POST", "/v2/core/accounts/{account}/close", S.ACCOUNT_CLOSE, accounts_v2.close),
    Endpoint("POST", "/v2/core/account_links", S.ACCOUNT_LINK_CREATE, account_links.create_v2),
    Endpoint(
        "GET",
        "/v2/core/event_destinations",
        S.DESTINATION_LIST,
        own_account.event_destinations,
    ),
    Endpoint(
        "GET",
        "/v2/core/events",
        S.EVENT_LIST,
        PageV2(thin_events.KIND, thin_events.wanted, _event),
    ),
    Endpoint(
        "GET",
        "/v2/core/events/{id}",
        S.USAGE,
        lambda call: _event(call, thin_events.retrieve(call)),
    ),
)
