"""Stripe's own package for Node finds in the simulator what it finds at Stripe.

It is written by Stripe for Stripe, and shares no line with this repository. npm installs it once,
beside the tools of the virtual environment.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from stripe_simulator.config import API_VERSION
from tests.simulator.conftest import World

_HERE: Final = Path(__file__).with_name("node")
_STEPS: Final = (
    "version webhook_endpoint account account_link intent confirm partial_capture refund reversal "
    "fee_refund cancel idempotency paging payout dispute evidence decline "
    "what_this_version_has_no_longer webhooks"
).split()


@pytest.fixture(scope="module")
def modules() -> Path:
    """Installs what package-lock.json pins, unless it is there."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; Stripe's package for Node needs it")
    place = Path(sys.prefix) / "node"
    place.mkdir(exist_ok=True)
    lock = (_HERE / "package-lock.json").read_text()
    installed = place / "package-lock.json"
    if not installed.exists() or installed.read_text() != lock:
        shutil.copy(_HERE / "package.json", place)
        npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        shutil.copy(_HERE / "package-lock.json", place)
        done = subprocess.run(npm, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            installed.unlink()
            pytest.fail(f"npm could not install Stripe's package:\n{done.stderr}")
        installed.write_text(lock)
    return place


@pytest.mark.timeout(180)
async def test_stripes_package_for_node_walks_through(world: World, modules: Path) -> None:
    await world.control("POST", "/settings", {"payout_interval": "manual"})
    walk = await asyncio.create_subprocess_exec(
        "node",
        str(_HERE / "walk.mjs"),
        world.url,
        str(modules),
        env={**os.environ, "API_VERSION": API_VERSION},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, failed = await walk.communicate()
    assert walk.returncode == 0, failed.decode()
    assert said.decode().split() == _STEPS
