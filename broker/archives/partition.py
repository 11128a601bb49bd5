"""What a worker does: classify the light curves of one partition and write what was found, completely or not at all.

A partition's results are one Parquet file: the annotation's columns (``broker.publish.arrow``), the embedding and, of
HATS, the spatial index. It is written under another name and renamed when it is complete. Its entry in the ledger
comes after it: what has an entry is done, whenever the run was killed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.build import local_pipeline
from broker.catalog.memory import MemoryCatalogs
from broker.catalog.presets import KNOWN
from broker.config import Settings
from broker.lightcurves.files import read_light_curves
from broker.offline import batched, classify_curves
from broker.pipeline import Pipeline
from broker.publish import arrow
from broker.records import Annotation, TimeSystem
from broker.replaced import Replaced
from broker.sky import cells
from broker.tables.parquet import ParquetTable
from broker.tables.table import Table
from broker.times import mjd_now

DATASET: Final = "dataset"
"""Folder of the results, as HATS has it; a partition is ``<key>.parquet`` below it."""
LEDGER: Final = "trifid/partitions"
"""Folder of the ledger, flat, since readers of HATS look for partitions in all folders: a JSON file for each partition
that is done or could not be classified."""
HEALPIX: Final = "_healpix_29"
"""HATS's spatial index: the HEALPix pixel of order 29, nested."""
_ROWS: Final = 2048
"""Annotations that are held, and of a row group of the results."""
_COMPRESSED: Final[dict[str, Any]] = {"compression": "zstd", "use_dictionary": False}
"""How results are written. Without dictionaries, which do not suit numbers that are all different and which zstd does
not need of text: of 2,048 rows each takes 1.1 kB and 5 microseconds, with them 1.4 kB and 12."""
_MOST_REMARKS: Final = 20
"""Lines that the ledger keeps of what is to be said of a partition."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all partitions of a run; it is sent to the workers."""

    output: Path
    settings: Settings
    columns: tuple[tuple[str, str], ...] = ()
    """Names of columns by role, where they are given."""
    time_system: TimeSystem | None = None
    known: tuple[tuple[str, Path], ...] = ()
    """Catalogues of known variable stars, by name."""
    version: str | None = None
    """Of the model, for all partitions, whatever is promoted while the run lasts; the served one where None."""

    def results(self, key: str) -> Path:
        """The file of a partition's results."""
        return self.output / DATASET / f"{key}.parquet"

    def entry(self, key: str) -> Path:
        """The file of a partition's entry in the ledger."""
        return self.output / LEDGER / f"{quote(key, safe='=').replace('%2F', ',')}.json"


_local = threading.local()


def _pipeline(job: Job) -> tuple[Pipeline, MemoryCatalogs]:
    """This thread's, made once a run: a model is loaded in seconds, a partition may be classified in less."""
    made = getattr(_local, "made", None)
    if made is None or made[0] != job:
        catalogs = MemoryCatalogs()
        for name, file in job.known:
            catalogs.load(name, file, KNOWN)
        made = _local.made = (job, local_pipeline(job.settings, catalogs, job.version), catalogs)
    return made[1], made[2]


def classify_file(path: Path, key: str, job: Job) -> dict[str, Any]:
    """Classify the objects of a Parquet file, in pieces; returns the entry of the ledger. Raises InputFileError."""
    return classify_table(ParquetTable(path), key, job)


def classify_table(table: Table, key: str, job: Job, pixel: tuple[int, int] | None = None) -> dict[str, Any]:
    """Classify the objects of an open table, write them and their entry in the ledger, and return the entry.

    ``pixel`` is the order and number of a HATS partition. A table without rows gives an entry and no file. Raises
    InputFileError where the table has no light curves, ConfigurationError where the model cannot be used.
    """
    start = time.monotonic()
    remarks: list[str] = []
    classes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    if table.rows != 0:
        pipeline, catalogs = _pipeline(job)
        curves = read_light_curves(table, remarks.append, job.time_system, dict(job.columns))
        found = classify_curves(pipeline, curves, job.settings.pipeline.batch_size, catalogs)
        for annotation in _written(job.results(key), found, job.settings.publish.broker_name, pixel):
            classes[annotation.best_class] += 1
            if not annotation.classified:
                reasons[_kind(annotation.reason or "")] += 1
    entry = {
        "objects": classes.total(),
        "classes": dict(classes.most_common()),
        "reasons": dict(reasons.most_common(_MOST_REMARKS)),
        "remarks": remarks[:_MOST_REMARKS],
        "seconds": round(time.monotonic() - start, 3),
    }
    write_entry(job, key, entry)
    return entry


def _kind(reason: str) -> str:
    """A reason without what is of one object alone."""
    return reason.partition(" (")[0].partition(":")[0]


def write_entry(job: Job, key: str, entry: dict[str, Any]) -> None:
    """Write a partition's entry in the ledger, at once."""
    with Replaced(job.entry(key)) as path:
        path.write_text(json.dumps(entry, indent=1) + "\n")


def schema(hats: bool) -> pa.Schema:
    """Of a file of results: the annotation's fields, ``embedding`` and, of HATS, the spatial index."""
    fields: list[Any] = [*arrow.SCHEMA, pa.field("embedding", pa.list_(pa.float32()))]
    return pa.schema([*fields, pa.field(HEALPIX, pa.int64())] if hats else fields)


def _written(
    path: Path,
    found: Iterator[tuple[Annotation, NDArray[np.float32] | None]],
    broker_name: str,
    pixel: tuple[int, int] | None,
) -> Iterator[Annotation]:
    """Each annotation as it is written; the file is there when all are."""
    ordered, last = True, -1
    with Replaced(path) as partial:
        with pq.ParquetWriter(partial, schema(pixel is not None), **_COMPRESSED) as writer:
            for rows in batched(found, _ROWS):
                annotations = [annotation for annotation, _ in rows]
                table = arrow.to_table(annotations, broker_name, mjd_now())
                embeddings = _lists([embedding for _, embedding in rows])
                table = table.append_column(pa.field("embedding", embeddings.type), embeddings)
                if pixel is not None:
                    index = _spatial_index(annotations, *pixel)
                    ordered &= bool((np.diff(index, prepend=last) >= 0).all())
                    last = int(index[-1])
                    table = table.append_column(pa.field(HEALPIX, pa.int64()), pa.array(index))
                writer.write_table(table, row_group_size=_ROWS)
                yield from annotations
        if not ordered:  # HATS keeps its rows in order of the index
            whole = pq.read_table(partial)
            whole = whole.take(pc.sort_indices(whole, [(HEALPIX, "ascending")]))
            pq.write_table(whole, partial, row_group_size=_ROWS, **_COMPRESSED)


def _lists(embeddings: Sequence[NDArray[np.float32] | None]) -> Any:
    """Lists of floats; null for None."""
    known = [embedding for embedding in embeddings if embedding is not None]
    size = np.array([0 if embedding is None else len(embedding) for embedding in embeddings], np.int32)
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(size)]).astype(np.int32))
    missing: Any = pa.array([embedding is None for embedding in embeddings], pa.bool_())
    flat: Any = pa.array(np.concatenate([np.empty(0, np.float32), *known]))
    return pa.ListArray.from_arrays(offsets, flat, mask=missing)


def _spatial_index(annotations: Sequence[Annotation], order: int, number: int) -> NDArray[np.int64]:
    """(n,) HATS's index of objects in the pixel: an object at its border, or without a position, stays in it."""
    ra, dec = (np.array([getattr(a, name) for a in annotations], np.float64) for name in ("ra", "dec"))
    known = np.isfinite(ra) & np.isfinite(dec)
    index = np.zeros(len(annotations), np.int64)
    index[known] = cells(ra[known], dec[known], 29)
    shift = 2 * (29 - order)
    return np.clip(index, number << shift, ((number + 1) << shift) - 1)
