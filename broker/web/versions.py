"""Which version of the model the server uses: the served one, also after another was promoted."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from broker.build import build_similar
from broker.config import Settings
from broker.errors import ConfigurationError
from broker.inference.manifest import load_manifest
from broker.models.repository import fingerprint
from broker.similar.search import Similar

log = logging.getLogger(__name__)

_KEPT: Final = 2
"""Versions that are asked for at a time: the served one, and while it cannot be loaded the one before."""
_PAUSE_S: Final = 60.0
"""Before a manifest that could not be read, and has not changed since, is read again."""


class Versions:
    """The repository's ``manifest.json``, read again when it was replaced. Safe for several threads."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is read yet."""
        self._settings = settings
        self._path = settings.inference.model_repository / "manifest.json"
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._failed: tuple[int, int, int] | None = None
        self._again = 0.0
        """When the manifest of ``_failed`` is read again, by the monotonic clock."""
        self._served: str | None = None

    def served(self) -> str:
        """The served version; with ``inference.follow_promotions = false`` the one that was served first.

        Where ``manifest.json`` cannot be read at present it is the one that was read before. Raises ConfigurationError
        where there was none.
        """
        with self._lock:
            if self._served is not None and not self._settings.inference.follow_promotions:
                return self._served
            found = fingerprint(self._path)
            rests = found == self._failed and time.monotonic() < self._again
            if self._served is None or (found is not None and found != self._seen and not rests):
                try:
                    repository = self._settings.inference.model_repository
                    self._served = load_manifest(repository, verify_models=False).model_version
                except ConfigurationError as error:
                    if self._served is None:
                        raise
                    log.error("%s goes on: %s", self._served, error)
                    self._failed, self._again = found, time.monotonic() + _PAUSE_S
                else:
                    self._seen = found
            return self._served


class Similars:
    """What finds similar objects, by each version that is asked for."""

    def __init__(self, settings: Settings, versions: Versions) -> None:
        """Raises ConfigurationError where the manifest of the served version cannot be read."""
        self._settings, self._versions = settings, versions
        self._lock = threading.Lock()
        self._made: dict[str, Similar] = {}
        self.now()

    def now(self) -> Similar:
        """By the served version; raises ConfigurationError where its manifest cannot be read."""
        return self.of(self._versions.served())

    def of(self, version: str) -> Similar:
        """By a version, such as the one that made the embeddings to compare; raises ConfigurationError."""
        with self._lock:
            if version not in self._made:
                self._made[version] = build_similar(self._settings, version)
                while len(self._made) > _KEPT:
                    self._made.pop(next(iter(self._made))).close()
            return self._made[version]

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for similar in self._made.values():
                similar.close()
            self._made.clear()
