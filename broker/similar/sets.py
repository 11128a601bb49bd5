"""The vector sets: their keys, what an element says of its object, and who is removed from them.

``<prefix>:similar:{<shard>}:<model>:<kind>`` for each of KINDS, and ``:seen`` beside them, a sorted set of the same
objects by the day on which they were seen last. The shard is the hash tag: all of one object are in one slot.

Scores of ``seen`` say in their fraction what was written of the object (``Written``), so that one command tells for a
whole batch what has to be written again. A whole number is an object whose vectors are being written, or were written
by an earlier release.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES
from broker.redis_client import CommandPipeline, RedisConnection
from broker.sky import unit_vector
from broker.taxonomy import OUTPUT_NAMES

ObjectName = tuple[str, str]
"""Survey and object id."""
KINDS: Final = ("all", *MODALITIES)
"""A vector set each: the fused embeddings, as anomalies are scored by, and those of each modality."""
CLUSTER_SHARDS: Final = 16
"""Vector sets of one kind in a cluster; on a single Redis there is one. More than nodes, so that they spread, and few,
since a query asks each."""
_POSITION_DIGITS: Final = 9
"""Of a unit vector: 0.0002 arcsec."""
_CODE_BITS: Final = len(MODALITIES)
_CLASS_BITS: Final = 5
_DETECTION_BITS: Final = 22
_SAID_BITS: Final = _DETECTION_BITS + _CLASS_BITS + _CODE_BITS
_MOST_DETECTIONS: Final = (1 << _DETECTION_BITS) - 1
OFF: Final = (
    "similar objects are off, as by default: no embeddings are kept to compare with. Set TRIFID_SIMILAR__ENABLED=true, "
    "or enabled = true under [similar], for the workers and for `trifid similar` and `trifid web`; each object is "
    "found from its next alert on (docs/similar.md)"
)
NO_VECTOR_SETS: Final = (
    "has no vector sets (Redis 8 has; Redis 7 and Valkey have not): similar objects are neither kept nor found. All "
    "else works. `similar.enabled = false` (the default) ends this message"
)


@dataclass(frozen=True, slots=True)
class Element:
    """What is kept of an object beside its embeddings, for filters and for whoever reads the answer."""

    class_name: str
    """The published class, ``Other`` included."""
    probability: float
    survey: str
    ra: float
    """ICRS degrees, as ``dec``."""
    dec: float
    magnitude: float | None
    """AB, of the median total flux of the detections; None where no flux is positive."""
    detections: int
    """Photometric points that the embedding was made of."""
    modalities: int
    """As ``broker.assemble.inputs.subset_codes``."""
    day: int
    """MJD on which an alert of the object was seen last."""

    def to_json(self) -> str:
        """As the vector sets' attributes; short names, as each object has them several times."""
        x, y, z = (round(value, _POSITION_DIGITS) for value in unit_vector(self.ra, self.dec))
        content: dict[str, Any] = {
            "c": self.class_name, "p": round(self.probability, 3), "s": self.survey, "x": x, "y": y, "z": z,
            "n": self.detections, "k": self.modalities, "d": self.day,
        }  # fmt: skip
        if self.magnitude is not None:
            content["m"] = round(self.magnitude, 2)
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: bytes) -> Element:
        """The inverse of ``to_json``; raises ValueError or KeyError for anything else."""
        content = json.loads(text)
        x, y, z = content["x"], content["y"], content["z"]
        return cls(
            content["c"], content["p"], content["s"], math.degrees(math.atan2(y, x)) % 360.0,
            math.degrees(math.atan2(z, math.hypot(x, y))), content.get("m"), content["n"], content["k"], content["d"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What was written last of n objects."""

    day: NDArray[np.int64]
    """(n,) MJD."""
    detections: NDArray[np.int64]
    """(n,) at most ``_MOST_DETECTIONS``."""
    class_index: NDArray[np.int64]
    """(n,) ``class_index`` of the published class."""
    modalities: NDArray[np.int64]
    """(n,) as ``broker.assemble.inputs.subset_codes``; 0 where nothing was written, or not all of it."""

    def scores(self) -> NDArray[np.float64]:
        """(n,) of the sorted set: a double has 53 bits, of which this needs 47."""
        said = np.minimum(self.detections, _MOST_DETECTIONS) << (_CLASS_BITS + _CODE_BITS)
        said |= (self.class_index << _CODE_BITS) | self.modalities
        scores: NDArray[np.float64] = self.day + said / float(1 << _SAID_BITS)
        return scores

    @classmethod
    def of_scores(cls, scores: NDArray[np.float64]) -> Written:
        """The inverse; NaN is an object that is not there."""
        known = np.where(np.isfinite(scores), scores, 0.0)
        day = np.floor(known)
        said = ((known - day) * (1 << _SAID_BITS)).astype(np.int64)
        return cls(
            day.astype(np.int64),
            said >> (_CLASS_BITS + _CODE_BITS),
            (said >> _CODE_BITS) & ((1 << _CLASS_BITS) - 1),
            said & ((1 << _CODE_BITS) - 1),
        )


def class_index(name: str) -> int:
    """The number by which ``Written`` knows a published class; one for all that this release does not know."""
    return OUTPUT_NAMES.index(name) if name in OUTPUT_NAMES else (1 << _CLASS_BITS) - 1


class Sets:
    """The keys of one model's vector sets on one Redis or cluster. Two models' embeddings never meet: keys differ."""

    def __init__(self, connection: RedisConnection, model: str, prefix: str = "trifid") -> None:
        """``model`` is ``Manifest.identity``."""
        self.connection, self.model, self.prefix = connection, model, prefix
        self.shards: Final = CLUSTER_SHARDS if connection.is_cluster else 1

    def key(self, shard: int, kind: str) -> str:
        """Of one of KINDS, or ``seen``."""
        return f"{self.prefix}:similar:{{{shard}}}:{self.model}:{kind}"

    def keys(self, shard: int) -> list[str]:
        """Those of all KINDS, and ``seen`` at the end."""
        return [self.key(shard, kind) for kind in (*KINDS, "seen")]

    def shard_of(self, element: str) -> int:
        """Where an object is."""
        return zlib.crc32(element.encode()) % self.shards

    def supported(self) -> bool:
        """Whether this Redis has vector sets; raises DependencyUnavailableError where it does not answer."""
        try:
            self.connection.commands([("VCARD", self.key(0, KINDS[0]))])
        except redis.ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            return False
        return True

    def register(self, expiry: int) -> None:
        """Have ``remove_from_all`` know of this model, for ``expiry`` seconds after a worker last ran it."""
        key = _models_key(self.prefix)
        self.connection.commands([("SADD", key, self.model), ("EXPIRE", key, expiry)])

    def count(self) -> int:
        """Objects that are kept."""
        counts = self.connection.commands([("VCARD", self.key(shard, KINDS[0])) for shard in range(self.shards)])
        return sum(int(count or 0) for count in counts)

    def written(self, elements: Sequence[str]) -> Written:
        """What was written last of objects: one command a shard."""
        rows = self._by_shard(elements)
        asked = [("ZMSCORE", self.key(shard, "seen"), *(elements[row] for row in own)) for shard, own in rows.items()]
        scores = np.full(len(elements), np.nan)
        for own, found in zip(rows.values(), self.connection.commands(asked), strict=True):
            scores[own] = [math.nan if score is None else float(score) for score in found]
        return Written.of_scores(scores)

    def note(self, elements: Sequence[str], scores: NDArray[np.float64]) -> list[Sequence[Any]]:
        """Commands that set the scores of objects, one a shard."""
        values = scores.tolist()
        return [
            ("ZADD", self.key(shard, "seen"), *(word for row in own for word in (repr(values[row]), elements[row])))
            for shard, own in self._by_shard(elements).items()
        ]

    def renew(self, seconds: int) -> list[Sequence[Any]]:
        """Commands by which all sets of the model are kept so long."""
        return [("EXPIRE", key, seconds) for shard in range(self.shards) for key in self.keys(shard)]

    def _by_shard(self, elements: Sequence[str]) -> dict[int, list[int]]:
        if self.shards == 1:
            return {0: list(range(len(elements)))} if elements else {}
        rows: dict[int, list[int]] = {}
        for row, element in enumerate(elements):
            rows.setdefault(self.shard_of(element), []).append(row)
        return rows

    def remove(self, elements: Iterable[str]) -> None:
        """Take objects out of all sets; what is not there is passed over."""
        words: list[Sequence[Any]] = []
        for element in elements:
            shard = self.shard_of(element)
            words += [("VREM", self.key(shard, kind), element) for kind in KINDS]
            words.append(("ZREM", self.key(shard, "seen"), element))
        self.connection.commands(words)

    def remove_expired(self, before: int, most: int) -> int:
        """Take out objects seen last before the MJD ``before``, up to ``most`` a shard; how many there were."""

        def queue(pipeline: CommandPipeline) -> None:
            for shard in range(self.shards):
                pipeline.script(_REMOVE_EXPIRED, self.keys(shard), [before, most])

        return sum(int(count) for count in self.connection.execute(queue))


_REMOVE_EXPIRED: Final = """
local seen = KEYS[#KEYS]
local gone = redis.call('ZRANGEBYSCORE', seen, '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, element in ipairs(gone) do
  for i = 1, #KEYS - 1 do redis.call('VREM', KEYS[i], element) end
  redis.call('ZREM', seen, element)
end
return #gone
"""
"""In one step, so that an object that is seen again meanwhile is not removed."""


def remove_from_all(connection: RedisConnection, prefix: str, name: ObjectName) -> None:
    """Take an object out of the vector sets of all models, as where it is forgotten; nothing where there are none."""
    models = connection.commands([("SMEMBERS", _models_key(prefix))])[0]
    for model in models:
        Sets(connection, model.decode(), prefix).remove([":".join(name)])


def _models_key(prefix: str) -> str:
    return f"{prefix}:similar-models"
