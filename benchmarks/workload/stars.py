"""Real light curves of variable stars as objects of a survey: the first part is known, the rest comes as alerts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import SecretStr
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.workload.packets import Kind, Template, Visits, magnitudes
from broker.batch import IncomingMessage, Received
from broker.build import build_keeper, load_reference_set
from broker.child_process import end_with_parent
from broker.config import RedisSettings, Settings, SimilarSettings
from broker.inference.onnx import OnnxEngine
from broker.photometry import magnitude_to_flux
from broker.pipeline import Pipeline
from broker.records import BAND_CODE, Alert, KeptSearch, LightCurve
from broker.similar.keeper import Keeper
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.times import jd_of_mjd, mjd_of_jd

CATALOGUES: Final = (("asas_v.parquet", "hjd"), ("css_v.parquet", "mjd"))
"""Of ``../shared/data``: V-band light curves of ASAS and of the Catalina survey, with the name of their times."""
_LEAST_GAP: Final = 1e-4
"""Days between two points: nearer ones would be one exposure."""
_LAST: Final = 61_300.0
"""MJD of the last point of every star, 2026 September: none may be in the future."""
_REFERENCE: Final = 0.9
"""The reference image's flux, in units of the star's faintest, so that all differences are positive."""
_BATCH: Final = 512
_SEARCH: Final = KeptSearch(0, 2, 100, 59_000.0, 60_000.0, (1,) * 8, ((1.0, 0.5),) * 16)
"""Of the size of those that are kept."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_BANDS: Final = np.array([0, BAND_CODE["ztf:g"], BAND_CODE["ztf:r"]], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Real light curves: those of curve i are ``start[i]:start[i + 1]`` of the columns, in order of time."""

    start: NDArray[np.intp]
    mjd: NDArray[np.float64]
    flux: NDArray[np.float64]
    """nJy."""
    error: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> NDArray[np.intp]:
        return np.diff(self.start)


def read_curves(folder: Path, least: int) -> Curves:
    """All curves of CATALOGUES with at least so many points; raises FileNotFoundError where they are not."""
    columns: list[list[NDArray[Any]]] = [[], [], [], []]
    for name, time in CATALOGUES:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name}: the real light curves are not here")
        table = pq.read_table(folder / name, columns=[time, "vmag", "vmag_err"])
        lists: list[Any] = [pa.concat_arrays(table.column(column).chunks) for column in (time, "vmag", "vmag_err")]
        row = np.repeat(np.arange(len(table)), np.diff(lists[0].offsets.to_numpy()))
        flat = [column.flatten().to_numpy(zero_copy_only=False).astype(np.float64) for column in lists]
        mjd, magnitude, error = flat
        if np.nanmedian(mjd) > 2_000_000:
            mjd = mjd - 2_400_000.5
        good = np.isfinite(mjd) & np.isfinite(magnitude) & (error > 0) & (magnitude > 0) & (magnitude < 25)
        row, mjd, magnitude, error = row[good], mjd[good], magnitude[good], error[good]
        order = np.lexsort((mjd, row))
        row, mjd, magnitude, error = row[order], mjd[order], magnitude[order], error[order]
        apart = np.ones(len(row), np.bool_)
        apart[1:] = (row[1:] != row[:-1]) | (np.diff(mjd) > _LEAST_GAP)
        row, mjd, magnitude, error = row[apart], mjd[apart], magnitude[apart], error[apart]
        keep = np.bincount(row, minlength=len(table))[row] >= least
        flux = 3631e9 * 10.0 ** (-0.4 * magnitude[keep])
        for column, values in zip(
            columns, (row[keep], mjd[keep], flux, flux * error[keep] * np.log(10.0) / 2.5), strict=True
        ):
            column.append(values)
    first, second = columns[0]
    row = np.concatenate([first, second + (first.max() + 1 if len(first) else 0)])
    _, counts = np.unique(row, return_counts=True)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
    return Curves(start, *(np.concatenate(column) for column in columns[1:]))


class Sky:
    """Objects at random positions, each with a real curve; curves are used again where there are more objects."""

    def __init__(self, curves: Curves, objects: int, least: int, most: int, reserve: int, seed: int) -> None:
        """Of each curve the last ``reserve`` points are kept for alerts, and ``least`` to ``most`` before are known.

        Raises ValueError where no curve is long enough.
        """
        rng = np.random.default_rng(seed)
        usable = np.flatnonzero(curves.lengths >= least + reserve)
        if not len(usable):
            raise ValueError(f"no light curve has {least} points and {reserve} more for alerts: ask for more objects")
        order = np.concatenate([rng.permutation(usable) for _ in range(math.ceil(objects / len(usable)))])
        self.curves, self.reserve = curves, reserve
        self.distinct = min(objects, len(usable))
        self.curve = order[:objects]
        self.end = curves.start[self.curve + 1]
        self.next = self.end - reserve
        """Of each object, the number of the point that its next alert brings."""
        self.first = np.maximum(curves.start[self.curve], self.next - most)
        self.ra, self.dec = positions(objects, rng)
        faintest = np.minimum.reduceat(curves.flux, curves.start[:-1])
        self.reference = _REFERENCE * faintest[self.curve]
        self.shift = _LAST - curves.mjd[self.end - 1]

    def __len__(self) -> int:
        return len(self.curve)

    @property
    def points(self) -> NDArray[np.intp]:
        """How many points are known of each object before any alert."""
        points: NDArray[np.intp] = self.end - self.reserve - self.first
        return points

    def known(self, number: int, share: float = 1.0) -> Alert:
        """An alert with the first ``share`` of what is to be known of an object, at least one point.

        The points are as packets bring them, to the last bit: a packet's earlier detections are no new ones.
        """
        return self._alert(number, self._history(number, share))

    def alike(self, numbers: Iterable[int]) -> Iterator[Alert]:
        """As ``known``, of many objects: where several have one curve, its points are made once."""
        made: dict[int, LightCurve] = {}
        for number in numbers:
            curve = int(self.curve[number])
            if curve not in made:
                made[curve] = self._history(number, 1.0)
            yield self._alert(number, made[curve])

    def _history(self, number: int, share: float) -> LightCurve:
        begin = int(self.first[number])
        end = begin + max(1, round(share * int(self.points[number])))
        mjd = mjd_of_jd(jd_of_mjd(self.curves.mjd[begin:end] + self.shift[number]))
        magnitude, magnitude_error, reference = (
            np.asarray(column, np.float64)
            for column in magnitudes(
                self.curves.flux[begin:end], self.curves.error[begin:end], float(self.reference[number])
            )
        )
        flux, error = magnitude_to_flux(magnitude, magnitude_error)
        reference_flux, _ = magnitude_to_flux(reference, np.zeros(()))
        return LightCurve(
            mjd,
            flux.astype(np.float32),
            error.astype(np.float32),
            np.full(end - begin, reference_flux, np.float32),
            _BANDS[band_of(np.arange(begin, end))],
            np.zeros(end - begin, np.uint8),
        )

    def _alert(self, number: int, curve: LightCurve) -> Alert:
        return Alert(
            "ztf", number + 1, number + 1, object_name("ZTF17", number), float(self.ra[number]),
            float(self.dec[number]), float(curve.mjd[-1]), "ztf:g", curve, "4.02", real_bogus=0.9,
        )  # fmt: skip

    def visit(self, number: int, count: int) -> Visits:
        """The next point of an object, and the ``count`` - 1 before it, the latest first; moves on by one.

        Raises IndexError where all points of the object are used up.
        """
        at = int(self.next[number])
        if at >= self.end[number]:
            raise IndexError(f"object {number} has no point left for another alert")
        self.next[number] += 1
        index = np.arange(at, max(int(self.first[number]), at - count + 1) - 1, -1)
        return Visits(
            self.curves.mjd[index] + self.shift[number], band_of(index), self.curves.flux[index],
            self.curves.error[index],
        )  # fmt: skip


def band_of(index: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The filter under which a point is given: 1 and 2 in turn. The curves have one, and ZTF's objects have two."""
    return (1 + index % 2).astype(np.uint8)


def positions(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascensions and declinations, uniform on the sphere."""
    return rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


def object_name(prefix: str, number: int) -> str:
    """A name as ZTF's, of seven letters after the prefix."""
    return prefix + "".join(_LETTERS[(number // 26**power) % 26] for power in reversed(range(7)))


class Stream:
    """The alerts of a run, one after another, of which those that repeat go round all objects in random order."""

    def __init__(self, sky: Sky, templates: Sequence[Template], seed: int) -> None:
        self._sky, self._rng = sky, np.random.default_rng(seed)
        self._templates: Mapping[Kind, list[Template]] = {
            kind: [template for template in templates if template.kind is kind] for kind in Kind
        }
        self._order = self._rng.permutation(len(sky))
        self._turn = 0
        self.sent: list[Kind] = []
        """What each alert so far was, by its number."""

    def first(self, count: int) -> list[int]:
        """The objects of the first ``count`` alerts that repeat, each once."""
        numbers: list[int] = self._order[:count].tolist()
        return numbers

    def kinds(self, mix: Mapping[Kind, float], count: int) -> list[Kind]:
        """``count`` kinds in random order, as many of each as its share of ``mix``, to within one alert."""
        ends = np.rint(np.cumsum([mix.get(kind, 0.0) for kind in Kind]) * count).astype(int)
        numbers = np.diff(ends, prepend=0)
        drawn = [kind for kind, number in zip(Kind, numbers, strict=True) for _ in range(number)]
        return [drawn[i] for i in self._rng.permutation(len(drawn))]

    def next(self, kind: Kind) -> bytearray:
        """The next alert; its candid tells its number (``sequence_of``)."""
        sequence = len(self.sent)
        template = self._templates[kind][self._rng.integers(len(self._templates[kind]))]
        self.sent.append(kind)
        if kind is not Kind.REPEAT:
            (ra,), (dec,) = positions(1, self._rng)
            return template.alert(object_name("ZTF26", sequence), sequence, float(ra), float(dec))
        number = int(self._order[self._turn % len(self._order)])
        self._turn += 1
        visits = self._sky.visit(number, template.detections)
        name, ra, dec = object_name("ZTF17", number), self._sky.ra[number], self._sky.dec[number]
        return template.repeat(name, sequence, ra, dec, visits, float(self._sky.reference[number]))


_SKY: Sky | None = None
"""That of a process that writes objects: it comes with the fork, not through a pipe."""
_PIPELINES: dict[str, tuple[RedisStore, Pipeline, Keeper | None]] = {}


def _pipeline(url: str, similar: bool) -> tuple[RedisStore, Pipeline, Keeper | None]:
    """One a process, made by its first batch."""
    if url not in _PIPELINES:
        settings = Settings(redis=RedisSettings(url=SecretStr(url)), similar=SimilarSettings(enabled=similar))
        store = RedisStore(url, timeout=60)
        engine = OnnxEngine(settings.inference.model_repository, threads=1)
        keeper = build_keeper(settings, engine.model_version)
        if keeper is not None:
            keeper.start()
        reference = load_reference_set(settings)
        pipeline = Pipeline(Decoder(), store, engine, engine.manifest, reference, similar=keeper)
        _PIPELINES[url] = store, pipeline, keeper
    return _PIPELINES[url]


def _write(task: tuple[str, Sequence[int], float, bool]) -> int:
    url, numbers, growth, similar = task
    assert _SKY is not None
    store, pipeline, keeper = _pipeline(url, similar)
    write_known(_SKY, numbers, store, pipeline, growth)
    if keeper is not None:
        keeper.drain()
    return len(numbers)


def write_known(sky: Sky, numbers: Sequence[int], store: RedisStore, pipeline: Pipeline, growth: float) -> None:
    """Write some objects of ``sky`` as ``preload`` says."""
    if not growth:
        store.update([sky.known(number) for number in numbers])
        return
    rng = np.random.default_rng(numbers[0])
    shares = (1.0 + growth) ** -rng.random(len(numbers))
    for alerts in (
        [sky.known(number, share) for number, share in zip(numbers, shares, strict=True)],
        [sky.known(number) for number in numbers],
    ):
        pipeline.annotate([Received(alert, IncomingMessage(b"", alert.mjd)) for alert in alerts])


def preload(
    sky: Sky, url: str, processes: int, growth: float, similar: bool = False, only: Sequence[int] | None = None
) -> Iterator[int]:
    """Write all objects to Redis as a worker does, in batches; yields how many each batch had.

    A worker keeps what it found in a light curve, and searches it anew only when it has grown by the fraction
    ``growth``. Of objects that are followed for long, some are about to be searched and some have just been: each is
    classified here, and so searched, when it had between 1 / (1 + growth) of its points and all of them, and again with
    all of them, as if its last alert before the run had brought the rest. With a growth of 0 objects are written and
    nothing is found in them, as after a migration: the first alert of each has its period searched.

    With ``similar`` their embeddings are in the vector sets as well, as of a service that had kept them all along.
    ``only`` are the objects to write, all where it is not given.
    """
    global _SKY
    _SKY = sky
    numbers = range(len(sky)) if only is None else only
    tasks = [(url, numbers[first : first + _BATCH], growth, similar) for first in range(0, len(numbers), _BATCH)]
    with get_context("fork").Pool(processes, end_with_parent) as pool:
        yield from pool.imap_unordered(_write, tasks)


def _write_plain(task: tuple[str, Sequence[int]]) -> int:
    url, numbers = task
    assert _SKY is not None
    store = RedisStore(url, timeout=60)
    for first in range(0, len(numbers), _BATCH):
        some = numbers[first : first + _BATCH]
        alerts = list(_SKY.alike(some))
        store.update(alerts)
        store.keep_searches({(alert.survey, alert.object_id): _SEARCH for alert in alerts})
    store.close()
    return len(numbers)


def preload_plain(sky: Sky, url: str, processes: int, but: Sequence[int]) -> None:
    """Write all objects to Redis but some, with a period search that says nothing, of the size that others have.

    For objects that no alert is of, so that there can be many: nothing is classified.
    """
    global _SKY
    _SKY = sky
    numbers = np.setdiff1d(np.arange(len(sky)), but)
    numbers = numbers[np.argsort(sky.curve[numbers], kind="stable")]  # so that a batch has few curves
    pieces = [piece.tolist() for piece in np.array_split(numbers, 16 * processes)]
    with (
        Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar,
        get_context("fork").Pool(processes, end_with_parent) as pool,
    ):
        task = bar.add_task("objects into Redis, unsearched", total=len(numbers))
        for count in pool.imap_unordered(_write_plain, [(url, piece) for piece in pieces]):
            bar.advance(task, count)


def preload_with_progress(
    sky: Sky, url: str, processes: int, growth: float, similar: bool = False, only: Sequence[int] | None = None
) -> None:
    """``preload`` with a bar on the terminal."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("objects into Redis", total=len(sky) if only is None else len(only))
        for count in preload(sky, url, processes, growth, similar, only):
            bar.advance(task, count)
