"""Extracts what the simulator serves from Stripe's OpenAPI description.

The whole description is 8 MB. What is kept: the endpoints of the simulator, their parameters, and
the objects that they answer with, for cards alone. Texts are left out. Stripe's description is at
github.com/stripe/openapi; a Go module carries a copy:

    cd "$(mktemp -d)" && go mod init x && go get github.com/stripe/stripe-mock@v0.203.0
    .venv/bin/python -m tests.support.stripe_api.extract \
        "$(go env GOMODCACHE)/github.com/stripe/stripe-mock@v0.203.0/embed/openapi/spec3.json"
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from stripe_simulator.config import API_VERSION
from stripe_simulator.routes import ENDPOINTS

DESCRIPTION: Final = Path(__file__).with_name("description.json")

#: The objects that are kept, with the class of the `stripe` package that has their fields at the
#: pinned version. A link to any other object is kept as an id alone.
OBJECTS: Final = {
    "account": "stripe.Account",
    "account_link": "stripe.AccountLink",
    "application": "stripe.Application",
    "application_fee": "stripe.ApplicationFee",
    "balance": "stripe.Balance",
    "balance_transaction": "stripe.BalanceTransaction",
    "capability": "stripe.Capability",
    "charge": "stripe.Charge",
    "dispute": "stripe.Dispute",
    "event": "stripe.Event",
    "fee_refund": "stripe.ApplicationFeeRefund",
    "login_link": "stripe.LoginLink",
    "payment_intent": "stripe.PaymentIntent",
    "payment_method": "stripe.PaymentMethod",
    "payout": "stripe.Payout",
    "radar.early_fraud_warning": "stripe.radar.EarlyFraudWarning",
    "refund": "stripe.Refund",
    "review": "stripe.Review",
    "transfer": "stripe.Transfer",
    "transfer_reversal": "stripe.TransferReversal",
    "bank_account": "",
    "person": "",
}
_TEXTS: Final = frozenset(
    "description title style explode operationId deprecated example x-expandableFields "
    "x-expansionResources x-resourceId x-stripeBypassValidation x-stripeError x-stripeMostCommon "
    "x-stripeOperations x-stripeParam x-stripeResource".split()
)
_INTENTS: Final = "/v1/payment_intents"
_TEXT: Final = {"type": "string", "nullable": True}

#: What the pinned version has beyond the description's (docs.stripe.com/changelog). The fields of
#: the objects themselves come from the `stripe` package.
_NESTED: Final = {
    "dispute_evidence": {"appeal": {"nullable": True}},
    "dispute_evidence_details": {"submission_method": _TEXT},
    "payment_method_details_card": {
        "electronic_commerce_indicator": _TEXT,
        "setup_credential_usage": _TEXT,
        "stored_credential_usage": _TEXT,
        "transaction_link_id": _TEXT,
    },
}
_NEW_VALUES: Final = {
    ("dispute", "status"): ["appeal_needs_response", "appeal_under_review"],
}
_NEW_PARAMETERS: Final = {"/v1/disputes/{dispute}": {"intended_submission_method": _TEXT}}
_REMOVED_PARAMETERS: Final = {
    path: ["payment_method_types"]
    for path in (_INTENTS, f"{_INTENTS}/{{intent}}", f"{_INTENTS}/{{intent}}/confirm")
}
#: Stripe sends it and describes it nowhere.
_UNDESCRIBED: Final = {
    "api_errors": ["message_code"],
    "charge": ["source"],
    "payment_intent": ["source"],
}


class Extract:
    """One run over one description."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._paths = spec["paths"]
        self._schemas = spec["components"]["schemas"]
        types = self._schemas["payment_intent"]["properties"]["allowed_payment_method_types"]
        self._other_methods = set(types["items"]["enum"]) - {"card"}
        self._version = spec["info"]["version"]

    def run(self) -> dict[str, Any]:
        schemas = self._reachable()
        endpoints = self._endpoints()
        _lay_over(schemas, endpoints)
        hooks = self._form("/v1/webhook_endpoints")["enabled_events"]["items"]["enum"]
        return {
            "origin": "Extracted from Stripe's OpenAPI description by extract.py; MIT license, see "
            f"LICENSE. Version {self._version}, with what {API_VERSION} has beyond it.",
            "event_types": sorted(set(hooks) - {"*"}),
            "endpoints": dict(sorted(endpoints.items())),
            "schemas": dict(sorted(schemas.items())),
        }

    def _form(self, path: str) -> Any:
        content = self._paths[path]["post"]["requestBody"]["content"]
        return content["application/x-www-form-urlencoded"]["schema"]["properties"]

    def _endpoints(self) -> dict[str, Any]:
        found = {}
        for endpoint in ENDPOINTS:
            path = self._described(endpoint.path)
            operation = self._paths.get(path, {}).get(endpoint.method.lower())
            if operation is None:  # The second version of the API is not described there.
                continue
            found[f"{endpoint.method} {path}"] = {
                "parameters": self._parameters(operation),
                "answer": self._strip(_answer_of(operation)),
            }
        return found

    def _described(self, path: str) -> str:
        """The path as the description names its variables."""
        shape = re.sub(r"{[^}]+}", "{}", path)
        same = [known for known in self._paths if re.sub(r"{[^}]+}", "{}", known) == shape]
        return same[0] if same else path

    def _parameters(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Query and form alike, as one schema of an object."""
        properties: dict[str, Any] = {}
        required: list[str] = []
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query":
                properties[parameter["name"]] = parameter["schema"]
                required += [parameter["name"]] if parameter.get("required") else []
        content = operation.get("requestBody", {}).get("content", {})
        form = content.get("application/x-www-form-urlencoded", {}).get("schema", {})
        properties.update(form.get("properties", {}))
        required += form.get("required", [])
        schema = {"type": "object", "properties": properties, "required": required}
        return dict(self._strip(schema))

    def _reachable(self) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        todo = ["error", *(name for name in self._schemas if self._kind(name) in OBJECTS)]
        for endpoint in self._endpoints().values():
            todo += _refs(endpoint)
        while todo:
            name = todo.pop()
            if name not in kept:
                kept[name] = self._strip(self._schemas[name])
                todo += _refs(kept[name])
        return kept

    def _kind(self, name: str) -> str:
        """The `object` that a schema describes, or ""."""
        kinds = self._schemas[name].get("properties", {}).get("object", {}).get("enum") or [""]
        return str(kinds[0])

    def _is_kept(self, option: Any) -> bool:
        """Whether it is no link to an object that the simulator does not have."""
        if not isinstance(option, dict) or "$ref" not in option:
            return True
        kind = self._kind(_name(option["$ref"]))
        return not kind or kind in OBJECTS

    def _strip(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._strip(item) for item in value if self._is_kept(item)]
        if not isinstance(value, dict):
            return value
        out = {name: self._strip(item) for name, item in value.items() if name not in _TEXTS}
        if "properties" in value:
            out["properties"] = {
                name: self._strip(item)
                for name, item in value["properties"].items()
                if name not in self._other_methods and self._is_kept(item)
            }
        targets = value.get("x-expansionResources", {}).get("oneOf", [])
        if targets:
            out["expands"] = [_name(one["$ref"]) for one in targets if self._is_kept(one)]
        return out


def _answer_of(operation: dict[str, Any]) -> dict[str, Any]:
    return dict(operation["responses"]["200"]["content"]["application/json"]["schema"])


def _name(reference: str) -> str:
    return reference.rsplit("/", 1)[1]


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _refs(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name == "$ref":
                yield _name(item)
            else:
                yield from _refs(item)


def fields_of(path: str) -> set[str]:
    """The fields of an object, as the `stripe` package at the pinned version knows them."""
    module, _, name = path.rpartition(".")
    return set(getattr(importlib.import_module(module), name).__annotations__)


def _lay_over(schemas: dict[str, Any], endpoints: dict[str, Any]) -> None:
    """Adds what the pinned version has, and removes what it has no longer."""
    for kind, path in OBJECTS.items():
        if not path:
            continue
        properties = schemas[kind]["properties"]
        now = fields_of(path) - {"OBJECT_NAME", "deleted"}
        for name in now - set(properties):
            properties[name] = {"nullable": True}
        for name in set(properties) - now - {"object"}:
            del properties[name]
    for kind, names in _UNDESCRIBED.items():
        schemas[kind]["properties"].update({name: {"nullable": True} for name in names})
    for name, fields in _NESTED.items():
        schemas[name]["properties"].update(fields)
    for (name, field), values in _NEW_VALUES.items():
        schemas[name]["properties"][field]["enum"] += values
    for path, fields in _NEW_PARAMETERS.items():
        endpoints[f"POST {path}"]["parameters"]["properties"].update(fields)
    for path, names in _REMOVED_PARAMETERS.items():
        for name in names:
            endpoints[f"POST {path}"]["parameters"]["properties"].pop(name, None)


def _as_lines(description: dict[str, Any]) -> str:
    """One line for each endpoint and each schema, so that a change can be read."""
    parts = []
    for name, part in description.items():
        if isinstance(part, dict):
            lines = [f"{json.dumps(key)}:{_compact(value)}" for key, value in part.items()]
            parts.append(f"{json.dumps(name)}:{{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(name)}:{_compact(part)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


if __name__ == "__main__":
    described = Extract(json.loads(Path(sys.argv[1]).read_text())).run()
    DESCRIPTION.write_text(_as_lines(described))
