"""Counts in Redis, where those of all workers meet, and the baseline that they are compared with.

``trifid:drift:{<space>}:hour:<n>`` and ``...:day:<n>``, hours and days since 1970: a hash whose fields are ``<process>|
<survey>|<band>``. Each process writes its own fields, as what it has counted in that hour or day altogether: writing
twice does no harm, and what a process that has ended wrote stays. A reader adds the fields up. The space names the
model and the reference set (``space_of``): counts of two versions are in different keys and never meet.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.drift.compare import MIN_BLOCKS, add
from broker.drift.counts import LAYOUT, SIZE, Counts
from broker.errors import ConfigurationError
from broker.npz import from_npz, to_npz
from broker.redis_client import CommandPipeline, RedisConnection

Span = Literal["hour", "day"]
SECONDS: Final[Mapping[Span, int]] = {"hour": 3600, "day": 86_400}
KEPT: Final[Mapping[Span, int]] = {"hour": 72, "day": 60}
"""So many hours and days are kept."""
MAX_HOURS: Final = KEPT["hour"] - 1
_BASELINE_EXPIRY_S: Final = 180 * 86_400
"""As that of reference sets: a baseline that no worker has read for so long is a replaced model's."""


def space_of(reference: ReferenceSet) -> str:
    """What counts may be added and compared in: one model, one reference set, one layout of the counts."""
    return f"{reference.model}:{reference.version}:{LAYOUT}"


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """What the stream was like when it was in order."""

    space: str
    made: float
    """Unix time."""
    spans: str
    """What it was made of, for people: ``7 days``."""
    blocks: tuple[Counts, ...]
    """One for each day, or hour."""

    @property
    def alerts(self) -> int:
        """Of all blocks."""
        return sum(int(vector[0]) for block in self.blocks for vector in block.values())

    def to_bytes(self) -> bytes:
        """As one .npz file."""
        rows = [
            (number, survey, band, vector)
            for number, block in enumerate(self.blocks)
            for (survey, band), vector in block.items()
        ]
        return to_npz(
            space=self.space, made=self.made, spans=self.spans, block=np.array([row[0] for row in rows], np.int32),
            survey=[row[1] for row in rows], band=[row[2] for row in rows],
            counts=np.stack([row[3] for row in rows]).astype(np.int64),
        )  # fmt: skip

    @staticmethod
    def from_bytes(data: bytes, space: str) -> Baseline:
        """The inverse; raises ConfigurationError for anything else, and for one of another space than ``space``."""
        refusal = "the baseline of drift in Redis cannot be read"
        advice = "; make it again with `trifid drift baseline`"
        found = from_npz(data, ("space", "made", "spans", "block", "survey", "band", "counts"), refusal, advice)
        try:
            numbers = found["block"]
            if not 0 <= numbers.min() <= numbers.max() < len(numbers):  # each block has a row, or more
                raise ValueError(f"blocks {numbers.min()} to {numbers.max()} in {len(numbers)} rows")
            blocks: list[Counts] = [{} for _ in range(int(numbers.max()) + 1)]
            if found["counts"].shape[1:] != (SIZE,) or found["counts"].dtype != np.int64:
                raise ValueError(f"counts of shape {found['counts'].shape} and type {found['counts'].dtype}")
            for number, survey, band, vector in zip(
                numbers, found["survey"], found["band"], found["counts"], strict=True
            ):
                blocks[number][str(survey), str(band)] = vector
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise ConfigurationError(f"{refusal}: {error!r}{advice}") from error
        if str(found["space"]) != space:
            raise ConfigurationError(f"the baseline of drift is that of {found['space']}, not of {space}")
        return Baseline(space, float(found["made"]), str(found["spans"]), tuple(blocks))


class DriftStore:
    """Counts and baseline of one space. Raises DependencyUnavailableError where Redis is unavailable."""

    def __init__(self, connection: RedisConnection, space: str) -> None:
        """``space`` as ``space_of``."""
        self.connection, self.space = connection, space

    def key(self, span: Span, number: int) -> str:
        """Where the counts of an hour or day since 1970 are."""
        return f"trifid:drift:{{{self.space}}}:{span}:{number}"

    def baseline_key(self) -> str:
        """Where the baseline is."""
        return f"trifid:drift:{{{self.space}}}:baseline"

    def write(self, process: str, counts: Mapping[tuple[Span, int], Counts]) -> None:
        """What a process has counted in some hours and days, altogether."""

        def queue(pipeline: CommandPipeline) -> None:
            for (span, number), groups in counts.items():
                key = self.key(span, number)
                fields = [
                    word
                    for (survey, band), vector in groups.items()
                    for word in (f"{process}|{survey}|{band}", zlib.compress(vector.astype("<i8").tobytes(), 1))
                ]
                if fields:
                    pipeline.command("HSET", key, *fields)
                    pipeline.command("EXPIRE", key, KEPT[span] * SECONDS[span])

        self.connection.execute(queue)

    def read(self, span: Span, numbers: Iterable[int]) -> list[Counts]:
        """The counts of hours or days since 1970, those of all processes together; empty where there are none."""
        keys = [self.key(span, number) for number in numbers]
        answers = self.connection.commands([("HGETALL", key) for key in keys])
        return [add([_counts(field, value) for field, value in _pairs(answer)]) for answer in answers]

    def window(self, now: float, hours: int) -> Counts:
        """The counts of the last hours, the one that ``now`` (Unix time) is in and ``hours`` before it."""
        last = int(now // SECONDS["hour"])
        return add(self.read("hour", range(last - hours, last + 1)))

    def baseline(self) -> Baseline | None:
        """None where there is none; raises ConfigurationError where it cannot be used."""
        data = self.connection.get(self.baseline_key())
        if data is None:
            return None
        self.connection.commands([("EXPIRE", self.baseline_key(), _BASELINE_EXPIRY_S)])
        return Baseline.from_bytes(data, self.space)

    def make_baseline(self, now: float, days: int) -> Baseline:
        """Make the last ``days`` days, today's among them, the baseline, and store it.

        A block a day; where there are fewer than MIN_BLOCKS days with alerts, a block an hour. Raises
        ConfigurationError where there are fewer hours, too.
        """
        tried: list[str] = []
        for span, most in (("day", days), ("hour", min(days * 24, MAX_HOURS))):
            last = int(now // SECONDS[span])  # type: ignore[index]
            blocks = [block for block in self.read(span, range(last - most + 1, last + 1)) if block]  # type: ignore[arg-type]
            if len(blocks) >= MIN_BLOCKS:
                made = Baseline(self.space, now, f"{len(blocks)} {span}s", tuple(blocks))
                self.connection.commands([("SET", self.baseline_key(), made.to_bytes(), "EX", _BASELINE_EXPIRY_S)])
                return made
            tried.append(f"{len(blocks)} {span}s")
        raise ConfigurationError(
            f"no baseline can be made: of the model and reference set in use ({self.space}) there are alerts of "
            f"{' and '.join(tried)}, of {MIN_BLOCKS} at least it takes"
        )


def _pairs(answer: Any) -> Iterable[tuple[bytes, bytes]]:
    return answer.items() if isinstance(answer, Mapping) else zip(answer[::2], answer[1::2], strict=True)


def _counts(field: bytes, value: bytes) -> Counts:
    """One field of a hash; nothing where it is none, as where somebody else wrote there."""
    try:
        _, survey, band = field.decode().split("|")
        vector: NDArray[np.int64] = np.frombuffer(zlib.decompress(value), "<i8").astype(np.int64)
    except (ValueError, zlib.error):
        return {}
    return {(survey, band): vector} if vector.shape == (SIZE,) else {}
