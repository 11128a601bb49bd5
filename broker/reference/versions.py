"""Reference sets that were made from the stream, in Redis, and which of them workers use.

``trifid:reference_set:<model>:made`` is a hash that says of each version what it is, ``...:made:<version>`` the set,
with its calibration where that of any set is (``broker.anomaly.stored``), and ``...:promoted`` names the one in use and
those before it. All of a key's sets are of one model and were made upon one set of its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

import redis

from broker.anomaly.calibration import Calibration
from broker.anomaly.reference_set import ReferenceSet, digest
from broker.anomaly.stored import EXPIRY_S, key_of, scores_key_of
from broker.errors import ConfigurationError
from broker.redis_client import RedisConnection

KEPT: Final = 3
"""The latest so many are kept, and besides the one in use and the one before it."""


@dataclass(frozen=True, slots=True)
class Made:
    """What is known of a set that was made."""

    version: str
    base: str
    """Version of the model's own set that it was made upon."""
    made: str
    """ISO 8601, UTC."""
    sha256: str
    scores_sha256: str
    objects: int
    """Of the stream, in the set or in its calibration."""
    embeddings: int
    strata: int
    """That the stream calibrates."""
    high_before: float
    """Share of known objects, in neither, whose combined score was 0.9 or more by the model's own set."""
    high_after: float
    """The same by this one."""


@dataclass(frozen=True, slots=True)
class Promoted:
    """Which set is in use."""

    version: str | None
    """None for the model's own."""
    before: tuple[str | None, ...] = ()
    """Those that were, the latest last."""


class Versions:
    """The sets of one model; raises DependencyUnavailableError where Redis is unavailable."""

    def __init__(self, connection: RedisConnection, model: str) -> None:
        """``model`` is ``Manifest.identity``."""
        self._redis, self._model = connection, model
        self._promoted = f"{key_of(model)}:promoted"
        self._made = f"{key_of(model)}:made"

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def signature(self) -> bytes | None:
        """What is another one after a set was promoted or rolled back; empty where it is no text."""
        return self._get(self._promoted)

    def promoted(self) -> Promoted:
        """Which set is in use; raises ConfigurationError where that cannot be read."""
        value = self.signature()
        if value is None:
            return Promoted(None)
        try:
            content = json.loads(value)
            return Promoted(content["version"], tuple(content["before"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self._promoted} cannot be read: {error!r}; delete it") from error

    def made(self) -> list[Made]:
        """All that are kept, the latest last; raises ConfigurationError where what is said of one cannot be read."""
        try:
            found = self._redis.call(lambda client: client.hgetall(self._made))
            return sorted((Made(**json.loads(value)) for value in found.values()), key=lambda one: one.made)
        except (ValueError, TypeError, redis.ResponseError) as error:
            raise ConfigurationError(f"{self._made} cannot be read: {error!r}") from error

    def keep(self, reference: ReferenceSet, objects: int, high: tuple[float, float]) -> Made:
        """Store a set that ``broker.reference.rebuild`` made, for ``promote``; older ones that nobody uses go."""
        if reference.scores is None or reference.base is None:
            raise ValueError("a set from the stream has a base and a calibration")
        data, scores = reference.to_bytes(), reference.scores.to_bytes()
        made = Made(
            reference.version, reference.base.version, datetime.now(UTC).isoformat(timespec="seconds"), digest(data),
            digest(scores), objects, len(reference), len(reference.scores.tails), *high,
        )  # fmt: skip
        self._redis.commands(
            [
                ("SET", self._key(made.version), data, "EX", EXPIRY_S),
                ("SET", scores_key_of(reference), scores, "EX", EXPIRY_S),
            ]
        )
        # Last: what is in the list is there.
        self._redis.commands([("HSET", self._made, made.version, json.dumps(asdict(made)))])
        self._redis.commands([("EXPIRE", self._made, EXPIRY_S)])
        self._remove_old()
        return made

    def promote(self, version: str | None) -> None:
        """Have workers use a set, None for the model's own; raises ConfigurationError where it is not there."""
        current = self.promoted()
        if version == current.version:
            raise ConfigurationError(f"reference set {version or 'of the model'} is in use already")
        if version is not None:
            self._known(version)
        self._write(Promoted(version, (*current.before, current.version)[-10:]))

    def rollback(self) -> str | None:
        """Have workers use again what was in use before; its version, None for the model's own."""
        current = self.promoted()
        if not current.before:
            raise ConfigurationError("no other reference set of this model was in use before")
        version = current.before[-1]
        if version is not None:
            self._known(version)
        self._write(Promoted(version, current.before[:-1]))
        return version

    def in_use(self, base: ReferenceSet) -> ReferenceSet:
        """The promoted set, made upon ``base``, which is the model's own; ``base`` where that is in use.

        Raises ConfigurationError where the promoted one is gone, damaged, or was made upon another set.
        """
        version = self.promoted().version
        return base if version is None else self.load(version, base)

    def load(self, version: str, base: ReferenceSet) -> ReferenceSet:
        """One of the sets, as ``in_use``."""
        made = self._known(version)
        if made.base != base.version:
            raise ConfigurationError(
                f"reference set {version} was made upon {made.base}, that of the model is {base.version}: scores of "
                "two spaces have nothing in common; make it again with `trifid reference build`"
            )
        data = self._checked(self._key(version), made.sha256)
        reference = ReferenceSet.from_bytes(data, self._key(version))
        reference.check_model(base.model, base.embeddings.shape[1])
        key = scores_key_of(reference)
        scores = Calibration.from_bytes(self._checked(key, made.scores_sha256), key)
        scores.check(reference)
        for name in (self._key(version), key, self._made, self._promoted):
            self._redis.commands([("EXPIRE", name, EXPIRY_S)])
        return replace(reference, scores=scores, base=base)

    def _checked(self, key: str, sha256: str) -> bytes:
        data = self._get(key)
        if data is None or digest(data) != sha256:
            what = "is gone" if data is None else "is another one than was stored there"
            raise ConfigurationError(f"{key} {what}: make a reference set again with `trifid reference build`")
        return data

    def _get(self, key: str) -> bytes | None:
        try:
            return self._redis.get(key)
        except redis.ResponseError:  # a hash, or whatever else somebody has put there
            return b""

    def _known(self, version: str) -> Made:
        for made in self.made():
            if made.version == version:
                return made
        there = ", ".join(made.version for made in self.made()) or "none"
        raise ConfigurationError(
            f"no reference set {version} of {self._model} was made from the stream; there: {there}"
        )

    def _write(self, promoted: Promoted) -> None:
        self._redis.commands([("SET", self._promoted, json.dumps(asdict(promoted)), "EX", EXPIRY_S)])

    def _remove_old(self) -> None:
        promoted, made = self.promoted(), self.made()
        used = {promoted.version, *promoted.before[-1:]}
        for one in made[:-KEPT]:
            if one.version not in used:
                self._redis.commands([("HDEL", self._made, one.version)])
                self._redis.commands([("DEL", self._key(one.version))])
                self._redis.commands([("DEL", f"{key_of(self._model)}:scores:{one.version}")])

    def _key(self, version: str) -> str:
        return f"{self._made}:{version}"
