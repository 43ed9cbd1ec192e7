"""Two releases: trees of the code from which the processes of a stack are started."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaos.mutants import Edit, Mutant, apply, copy_tree
from dev.settings import COMMANDS, ROOT

_MIGRATIONS: Final = "payment_service/migrations"
#: Enters the tree, whose stubs come before those of the environment, and becomes the command.
_ENTER: Final = 'cd "$0" && PYTHONPATH="$0/client/src" exec "$@"'

#: The next release adds a field of a payment, in the steps of CONTRIBUTING.md, and fills it.
_NEXT: Final = Mutant(
    "the next release",
    (
        Edit(
            "payment_service/domain/payment.py",
            '    charge_id: str = ""\n    transfer_id',
            '    charge_id: str = ""\n    next_note: str = ""\n    transfer_id',
        ),
        Edit(
            "payment_service/adapters/postgres/rows.py",
            '"processor_fee payment_intent_id charge_id transfer_id ',
            '"processor_fee payment_intent_id charge_id next_note transfer_id ',
        ),
        Edit(
            "payment_service/domain/transitions/hold.py",
            "        held=payment.amount,\n        charge_id=charge_id,\n        escrow_time=now,\n"
            "        escrow_expire_time=expire_time,\n        failure=None,\n",
            "        held=payment.amount,\n        charge_id=charge_id,\n        escrow_time=now,\n"
            "        escrow_expire_time=expire_time,\n        failure=None,\n"
            '        next_note="of the next release",\n',
        ),
        Edit(
            "payment_service/domain/audit_trail.py",
            "WRITER: Final = 1\n",
            "WRITER: Final = 2\n",
        ),
        Edit(
            "payment_service/domain/audit_trail.py",
            "_FIELD_WRITERS: Final[Mapping[str, int]] = {}\n",
            '_FIELD_WRITERS: Final[Mapping[str, int]] = {"next_note": 2}\n',
        ),
    ),
)
_EXPANDS: Final = '''"""Adds what only the next release knows."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column with a default, which rewrites no row."""
    op.execute("ALTER TABLE payments ADD COLUMN next_note text NOT NULL DEFAULT ''")
'''


class Unsuitable(Exception):
    """An upgrade from that release cannot be rehearsed; the text says why."""


def commands_of(tree: Path) -> dict[str, Sequence[str]]:
    """Returns the commands of a stack with this tree's service and gateway.

    The simulator is of this tree: it plays Stripe, which both releases call.
    """
    enter = ("/bin/sh", "-c", _ENTER, str(tree))
    return {
        name: command if name == "simulator" else [*enter, *command]
        for name, command in COMMANDS.items()
    }


def former_release(commit: str, tree: Path) -> None:
    """Puts a commit's code into the tree, with its own stubs.

    Raises :class:`Unsuitable` if the present code does not migrate that commit's database.
    """
    git = shutil.which("git")
    if git is None:
        raise Unsuitable("git is not installed, and has the former release")
    archived = subprocess.run(
        [git, "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if archived.returncode != 0:
        raise Unsuitable(f"{commit} is no commit here: {archived.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as files:
        files.extractall(tree, filter="data")
    changed = [
        str(path.relative_to(tree))
        for path in sorted((tree / _MIGRATIONS).rglob("*.py"))
        if _differs(path, ROOT / path.relative_to(tree))
    ]
    if changed:
        raise Unsuitable(
            f"{', '.join(changed)}: changed since {commit}, so no migration leads from its "
            "database to the present one. Name a later commit"
        )
    protos = sorted(str(path.relative_to(tree)) for path in tree.glob("protos/**/*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iprotos"),
            *("--python_out=client/src", "--grpc_python_out=client/src", *protos),
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": ""},
        check=True,
    )


def next_release(tree: Path) -> None:
    """Puts this tree's code with a further migration and a further field of payments there."""
    tree.mkdir()
    copy_tree(tree)
    shutil.copytree(ROOT / "client", tree / "client", ignore=shutil.ignore_patterns("build"))
    apply(_NEXT, tree)
    (tree / _MIGRATIONS / "versions" / "0002_next_note.py").write_text(_EXPANDS)


def _differs(former: Path, present: Path) -> bool:
    return not present.exists() or former.read_bytes() != present.read_bytes()
