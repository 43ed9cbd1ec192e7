"""Ids that are derived from what they stand for, so that a lost record gets the same id again."""

from __future__ import annotations

import hashlib
import json


def derived_id(prefix: str, installation_id: str, *origin: str) -> str:
    """Returns the id that an installation gives to what has this origin.

    Nobody can guess it without the installation's id, and no two installations have the same one.
    """
    digest = hashlib.sha256(json.dumps([prefix, installation_id, *origin]).encode())
    return f"{prefix}_{digest.hexdigest()[:32]}"
