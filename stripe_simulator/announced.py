"""Requirements that Stripe announces for a time to come, while the account still works.

`requirements.current_deadline` is when what is due now stops the account. `future_requirements`
becomes due at its own `current_deadline` (Stripe's reference of the Account object). That the
account is restricted at that very moment is our guess: Stripe may give it more time.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import accounts
from stripe_simulator.account_shape import requirements
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row


def register(simulation: Simulation) -> None:
    simulation.due_handlers["requirements_due"] = lambda id_: _come_due(simulation, id_)
    simulation.on_rebuild.append(lambda: _schedule_all(simulation))
    _schedule_all(simulation)


def announce(simulation: Simulation, id_: str, given: dict[str, Any]) -> Row:
    """Announce (control API): {"currently_due", "current_deadline", "future": the same two}."""
    now = {name: value for name, value in given.items() if name != "future"}
    asked = {"now": _asked(now), "later": _asked(given.get("future") or {})}
    account = simulation.store.require("account", id_)
    account = accounts.change(simulation, account, {"_announced": asked})
    _schedule(simulation, account)
    return account


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    unknown = set(given) - {"currently_due", "current_deadline"}
    if unknown:
        raise ValueError(f"unknown names: {', '.join(sorted(unknown))}")
    due = [str(name) for name in given.get("currently_due", [])]
    deadline = given.get("current_deadline")
    return requirements(
        currently_due=due,
        eventually_due=due,
        current_deadline=None if deadline is None else int(deadline),
    )


def _schedule_all(simulation: Simulation) -> None:
    for account in simulation.store.all("account"):
        _schedule(simulation, account)


def _schedule(simulation: Simulation, account: Row) -> None:
    for asked in (account.get("_announced") or {}).values():
        if asked["current_deadline"] is not None:
            simulation.schedule(asked["current_deadline"], "requirements_due", account["id"])


def _come_due(simulation: Simulation, id_: str) -> None:
    """Restrict the account over what nobody has given by its time."""
    account = simulation.store.get("account", id_)
    announced = (account or {}).get("_announced") or {}
    due = sorted(
        {
            name
            for asked in announced.values()
            if (asked["current_deadline"] or simulation.now() + 1) <= simulation.now()
            for name in asked["currently_due"]
        }
    )
    if due:
        accounts.restrict(simulation, id_, {"currently_due": due})
