"""Who may call what, as the contract says it: every RPC says it, and says it with care."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from dev.contract import without_roles
from dev.settings import ROOT
from marketplace.payments.v1 import access_pb2, payments_pb2
from payment_service.bootstrap import SERVICES
from payment_service.domain.caller import Role
from payment_service.rpc.access import NOBODY, Rule, rule_of, rules_of

_OURS: Final = {
    path.removeprefix("/marketplace.payments.v1."): rule
    for path, rule in rules_of(SERVICES).items()
    if path.startswith("/marketplace.")
}
_OPERATORS: Final = {Role.OPERATOR, Role.OPERATOR_READ_ONLY}
#: What changes nothing: its name says so.
_READS: Final = {
    rpc for rpc in _OURS if rpc.partition("/")[2].startswith(("Get", "List", "Watch", "Explain"))
}


@pytest.mark.parametrize("rpc", _OURS)
def test_every_rpc_names_who_may_call_it(rpc: str) -> None:
    assert _OURS[rpc].roles, f"say in the proto who may call {rpc}: option (access)"


def test_lint_names_an_rpc_without_roles(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    assert without_roles(tmp_path / "protos") == []
    file = tmp_path / "protos" / "marketplace" / "payments" / "v1" / "disputes.proto"
    text = file.read_text()
    option = re.search(r"    option \(access\) = \{.*?\};?\n", text, re.DOTALL)
    assert option, "the option is written in another way"
    file.write_text(text.replace(option[0], "", 1))
    assert len(found := without_roles(tmp_path / "protos")) == 1
    assert found[0].startswith("marketplace/payments/v1/disputes.proto: DisputeService.")


def test_the_contract_and_the_code_know_the_same_roles() -> None:
    names = {name.removeprefix("ROLE_") for name in access_pb2.Role.keys()}  # noqa: SIM118
    assert names - {"UNSPECIFIED"} == {role.value for role in Role}


def test_an_rpc_without_the_option_is_open_to_nobody() -> None:
    plain = payments_pb2.DESCRIPTOR.services_by_name["PaymentService"].methods[0]

    class Unmarked:
        @staticmethod
        def GetOptions() -> object:  # noqa: N802 - protobuf's name
            return type(plain.GetOptions())()

    assert rule_of(Unmarked()) == NOBODY  # type: ignore[arg-type]
    assert Rule(frozenset(), acts_for_user=False, is_public=False) == NOBODY


def test_readers_change_nothing() -> None:
    """OPERATOR_READ_ONLY and the notification service only read."""
    for role in (Role.OPERATOR_READ_ONLY, Role.NOTIFICATION_SERVICE):
        may = {rpc for rpc, rule in _OURS.items() if role in rule.roles}
        assert may
        assert may <= _READS, role


def test_who_reads_as_an_operator_reads_all_that_operators_read() -> None:
    for rpc in _READS:
        seen_by = _OURS[rpc].roles & _OPERATORS
        assert seen_by in (set(), _OPERATORS), rpc


def test_the_gateway_passes_on_webhooks_and_landing_pages_and_nothing_else() -> None:
    may = {rpc for rpc, rule in _OURS.items() if Role.GATEWAY in rule.roles}
    assert may == {
        "WebhookService/IngestEvent",
        "OnboardingService/GetOnboardingStatus",
        "OnboardingService/CreateOnboardingLink",
    }
    assert {_OURS[rpc].roles for rpc in may} == {frozenset({Role.GATEWAY})}


def test_only_some_rpcs_are_open_to_callers_that_act_for_a_user() -> None:
    """A new one needs the predicate in SQL first, and a row in the matrix of acting callers."""
    opened = {rpc.partition("/")[2] for rpc, rule in _OURS.items() if rule.acts_for_user}
    assert opened == {
        *("InitiatePayment", "CapturePayment", "RefundPayment"),
        *("GetPayment", "GetPaymentStatus", "ListPayments"),
        *("GetExpert", "CreateDashboardLink", "RefreshOnboarding"),
        *("ListPayouts", "GetExpertBalance"),
        *("ListDisputes", "GetDispute"),
        *("ListPaymentEvents", "WatchEvents"),
    }


def test_health_is_public_and_reflection_is_for_operators() -> None:
    rules = rules_of(SERVICES)
    public = {path for path, rule in rules.items() if rule.is_public}
    assert {path.rpartition("/")[0] for path in public} == {"/grpc.health.v1.Health"}
    for version in ("v1", "v1alpha"):
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        assert rules[path] == Rule(frozenset(_OPERATORS))
