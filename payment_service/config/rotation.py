"""Webhook secrets that change while the service runs, because their file changes.

A secret of Stripe's is rolled by having two of them valid for a time. So that no webhook is lost,
the service must accept both from the moment at which the file has both, without a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from payment_service.config.settings import Settings
from payment_service.config.sources import read_secret
from payment_service.config.values import webhook_secrets

log = structlog.get_logger(__name__)


class RotatedSecrets:
    """The secrets of one endpoint: those of its file, or those that the environment had.

    A file is read again when it was written or replaced. A mounted secret of Kubernetes is replaced
    by a link to another file, so the number of the file is looked at, too.
    """

    def __init__(self, settings: Settings, field: str) -> None:
        given = getattr(settings, field)
        self._secrets = tuple(secret.get_secret_value() for secret in given)
        self._variable = f"{field.upper()}_FILE"
        self._path = settings.secret_files.get(field)
        self._seen: tuple[int, ...] = ()

    def current(self) -> Sequence[str]:
        """Returns the secrets that are valid now.

        A file that is wrong changes nothing: the former secrets stay, and the log says what to do.
        """
        if self._path is not None and (seen := _state_of(self._path)) != self._seen:
            self._seen = seen
            self._read(self._path)
        return self._secrets

    def _read(self, path: Path) -> None:
        try:
            secrets = webhook_secrets(read_secret(path))
        except ValueError as fault:
            log.error("webhook_secrets_kept", variable=self._variable, why=str(fault))
            return
        if secrets != self._secrets:
            self._secrets = secrets
            log.info("webhook_secrets_changed", variable=self._variable, count=len(secrets))


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
