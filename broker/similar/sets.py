"""The vector sets: their keys, what an element says of its object, and who is removed from them.

``<prefix>:similar:{<shard>}:<model>:<kind>`` for each of KINDS, and ``:seen`` beside them, a sorted set of the same
objects by the day on which they were seen last. The shard is the hash tag: all of one object are in one slot.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from broker.assemble.inputs import MODALITIES
from broker.redis_client import CommandPipeline, RedisConnection

ObjectName = tuple[str, str]
"""Survey and object id."""
KINDS: Final = ("all", *MODALITIES)
"""A vector set each: the fused embeddings, as anomalies are scored by, and those of each modality."""
CLUSTER_SHARDS: Final = 16
"""Vector sets of one kind in a cluster; on a single Redis there is one. More than nodes, so that they spread, and few,
since a query asks each."""
_POSITION_DIGITS: Final = 9
"""Of a unit vector: 0.0002 arcsec."""
NO_VECTOR_SETS: Final = (
    "has no vector sets (Redis 8 has; Redis 7 and Valkey have not): similar objects are neither kept nor found. All "
    "else works. similar.enabled = false ends this message"
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


def unit_vector(ra: float, dec: float) -> tuple[float, float, float]:
    """A position (degrees) on the unit sphere."""
    ra, dec = math.radians(ra), math.radians(dec)
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)


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
