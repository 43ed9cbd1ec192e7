"""The three services in Python, each in a process of its own and with its own role."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.browser import look, submit
from tests.acceptance.conftest import new_name, until
from tests.examples.conftest import EXAMPLES, Program, Town

PYTHON = EXAMPLES / "python"


class Services:
    """The commands of the three services, run in a directory of the test's own."""

    def __init__(self, town: Town, place: Path) -> None:
        self.town, self.place = town, place
        self.started: list[Program] = []

    def gig(self, *arguments: str, refused: bool = False) -> str:
        return self._run("gig", arguments, refused)

    def user(self, *arguments: str, refused: bool = False) -> str:
        return self._run("user", arguments, refused)

    def start(self, service: str, *arguments: str) -> Program:
        command = [sys.executable, str(PYTHON / f"{service}_service.py"), *arguments]
        program = self.town.start(f"{service}-service", command, self.place)
        self.started.append(program)
        return program

    def _run(self, service: str, arguments: Sequence[str], refused: bool) -> str:
        command = [sys.executable, str(PYTHON / f"{service}_service.py"), *arguments]
        done = self.town.run(f"{service}-service", command, self.place)
        assert done.returncode == int(refused), done.stdout + done.stderr
        return (done.stderr if refused else done.stdout).strip()

    def booked(self, expert: str) -> tuple[str, dict[str, Any]]:
        gig = new_name("gig")
        return gig, json.loads(self.gig("book", gig, "--client", "bob", "--expert", expert))

    def sql(self, database: str, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.place / database)
        with connection:
            rows = connection.execute(query).fetchall()
        connection.close()
        return rows


@pytest.fixture
def services(town: Town, tmp_path: Path) -> Any:
    opened = Services(town, tmp_path)
    yield opened
    for program in opened.started:
        program.end()


def test_a_user_becomes_an_expert(services: Services) -> None:
    ann = new_name("ann")
    become = ("become", ann, "--name", "Ann", "--email", f"{ann}@example.com")
    form = services.user(*become)
    assert services.user("status", ann).splitlines()[0] == "ONBOARDING, commission 10 %"
    assert "more details now" in services.user("status", ann)
    refused = services.user("dashboard", ann, refused=True)
    assert refused.startswith("ONBOARDING_INCOMPLETE: ")
    assert services.user("form", ann) != form
    submit(form)
    until(lambda: services.user("status", ann) == "READY, commission 10 %", "ann is ready")
    assert look(services.user("dashboard", ann)).status == 200
    assert services.user("history", ann) == ""


def test_the_gig_service_pays_and_refunds(services: Services, expert: str) -> None:
    town = services.town
    follow = services.start("gig", "follow")
    gig, made = services.booked(expert)
    # The same command is the same payment, and shows the client's secret again.
    again = services.gig("book", gig, "--client", "bob", "--expert", expert)
    assert json.loads(again) == made
    refused = services.gig("done", gig, refused=True)
    assert refused == "WRONG_STATE: the payment is PENDING; this needs IN_ESCROW"
    town.world.pay(made["client_secret"])
    follow.wait_for(f"{gig}: payment.authorized")
    assert services.gig("show", gig) == "IN_ESCROW"
    # The first decision was refused, and has changed nothing: the next one has a key of its own.
    assert services.gig("done", gig) == "CAPTURED"
    keys = services.sql("gigs.sqlite", "SELECT key, refused FROM requests ORDER BY rowid")
    assert keys == [
        (f"initiate-{gig}-1", None),
        (f"accept-{gig}-1", "WRONG_STATE"),
        (f"accept-{gig}-2", None),
    ]
    assert services.gig("done", gig) == "CAPTURED"
    intent = made["client_secret"].partition("_secret_")[0]
    assert town.effects("captured", intent) == 1
    assert services.gig("cancel", gig, "--reason", "agreed") == "REFUNDED"
    assert town.effects("refunded", intent) == 1
    follow.wait_for(f"{gig}: payment.client_refunded")
    assert f"{gig}: REFUNDED, earned 0 USD" in services.user("history", expert)
    assert services.gig("show", "nobody", refused=True) == "the gig nobody was not booked"
    assert follow.end() != 0


def test_the_gig_service_repeats_a_call_whose_outcome_is_unknown(
    services: Services, expert: str
) -> None:
    gig, made = services.booked(expert)
    services.town.world.pay(made["client_secret"])
    until(lambda: services.gig("show", gig) == "IN_ESCROW", "the gig is paid")
    with services.town.silent_stripe():
        done = services.start("gig", "done", gig)
        done.wait_for("again with the same key")
    assert done.wait() == 0
    assert done.lines[-1] == "CAPTURED"
    intent = made["client_secret"].partition("_secret_")[0]
    assert services.town.effects("captured", intent) == 1


def test_no_message_is_lost_and_only_a_crash_sends_one_again(
    services: Services, expert: str
) -> None:
    first = services.start("notification")
    gig, made = services.booked(expert)
    services.town.world.pay(made["client_secret"])
    secured = first.wait_for(f"is held on your card ({gig})")
    assert "to bob: " in secured
    first.end(kill=True)  # as a crash does
    assert services.gig("done", gig) == "CAPTURED"
    second = services.start("notification")
    paid = second.wait_for(f"You have been paid ({gig})")
    assert f"to {expert}: " in paid
    assert second.end() == 0
    sent = [line for line in first.lines + second.lines if f"({gig})" in line]
    # A crash between a message and the storing of its cursor sends the message again.
    assert list(dict.fromkeys(sent)) == [secured, paid]
    assert sent.count(paid) == 1
    # It begins again without its cursor, and knows the events by their ids.
    services.sql("notifications.sqlite", "DELETE FROM feed")
    third = services.start("notification")
    gig, made = services.booked(expert)
    services.town.world.pay(made["client_secret"])
    third.wait_for(f"is held on your card ({gig})")
    assert third.end() == 0
    assert not [line for line in third.lines if line in sent]
