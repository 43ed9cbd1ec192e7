"""The endpoints of webhooks, from a file."""

from __future__ import annotations

import fnmatch
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from payment_service.relay.addresses import AddressRefused, Network, check_literal
from payment_service.relay.signatures import read_keys

_MOST_ENDPOINTS: Final = 100

Kind = Annotated[str, Field(pattern=r"^[a-z_.]+\*?$")]


class WrongEndpoints(Exception):
    """The file of endpoints cannot be used; there is a line for each fault."""


class Endpoint(BaseModel):
    """Where events are sent, which ones, and signed by which secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,49}$")
    url: str = Field(max_length=2000)
    #: The first signs since it was rotated in; the second one is the former.
    secret_files: tuple[Path, ...] = Field(min_length=1, max_length=2)
    #: Kinds of events; `payment.dispute_*` stands for all that begin so. Empty: every kind.
    types: tuple[Kind, ...] = ()
    #: Private networks in which the endpoint may be.
    networks: tuple[Network, ...] = ()
    #: Events that were recorded before are not sent.
    since: AwareDatetime | None = None
    disabled: bool = False

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://mail.example.com/events")
        if parts.username or parts.password or parts.fragment:
            raise ValueError("must have no user, password or fragment")
        parts.port  # noqa: B018 - raises ValueError for a port that is none
        return value

    @property
    def host(self) -> str:
        """Returns the name or address in the URL."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_encrypted(self) -> bool:
        """Returns whether the URL is https."""
        return urlsplit(self.url).scheme == "https"

    def wants(self, kind: str, record_time: datetime) -> bool:
        """Returns whether the endpoint gets an event of this kind and time."""
        if self.since is not None and record_time < self.since:
            return False
        return not self.types or any(fnmatch.fnmatchcase(kind, one) for one in self.types)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    endpoints: tuple[Endpoint, ...] = Field(max_length=_MOST_ENDPOINTS)


def read_endpoints(path: Path, *, production: bool) -> tuple[Endpoint, ...]:
    """Reads the file. Raises :class:`WrongEndpoints` with a line for each fault."""
    try:
        endpoints = _File.model_validate(json.loads(path.read_text())).endpoints
    except (OSError, UnicodeDecodeError) as error:
        raise WrongEndpoints(f"{path} cannot be read ({type(error).__name__})") from None
    except json.JSONDecodeError as error:
        raise WrongEndpoints(f"{path} is no JSON (line {error.lineno})") from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise WrongEndpoints(
            "\n".join(
                f"{path}: {'.'.join(map(str, fault['loc']))}: "
                f"{fault['msg'].removeprefix('Value error, ')}"
                for fault in found
            )
        ) from None
    if faults := [*_faults(endpoints, production=production)]:
        raise WrongEndpoints("\n".join(f"{path}: {fault}" for fault in faults))
    return endpoints


def _faults(endpoints: tuple[Endpoint, ...], *, production: bool) -> list[str]:
    faults = []
    names = [endpoint.name for endpoint in endpoints]
    faults += [f"{name} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for endpoint in endpoints:
        if production and not endpoint.is_encrypted:
            faults.append(f"{endpoint.name}: url must be https with ENVIRONMENT=production")
        try:
            check_literal(endpoint.host, endpoint.networks)
        except AddressRefused:
            faults.append(f"{endpoint.name}: url is not public; name its network in networks")
        try:
            read_keys(endpoint.secret_files)
        except ValueError as fault:
            faults.append(f"{endpoint.name}: {fault}")
    return faults
