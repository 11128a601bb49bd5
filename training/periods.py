"""Published periods against those of the catalogues, by class, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.assemble import assemble
from broker.errors import InputFileError
from broker.inference import Engine
from broker.inference.orbital import ECLIPSING, orbital_periods
from broker.inference.physics import rule_out
from broker.records import ObjectState
from broker.taxonomy import CLASS_INDEX
from training.datasets.multiband import load_archive
from training.datasets.splits import split
from training.datasets.tables import load_objects

CLASSES = ("EA", "EB", "EW", "RRAB", "RRC", "HADS", "DSCT", "M", "ROT")
TOLERANCE = 0.01
_RATIOS = (1.0, 0.5, 2.0)
_BATCH = 256


def period_table(engine: Engine, data: Path, most: int, seed: int = 0) -> str:
    """How often the period that was found, and that published, are the catalogue's, half or twice, within TOLERANCE.

    Catalina's held-out stars and those of the ZTF data release with a period in VSX, at most ``most`` of a class.
    """
    lines = [
        "| stars | class | number | found: right | half | twice | published: right | half | twice "
        "| not ambiguous | of these right |",
        "|---|---|---:|" + "---:|" * 8,
    ]
    for name, states, label, period in (_catalina(data), _ztf(data)):
        rng = np.random.default_rng(seed)
        for which in CLASSES:
            rows = np.flatnonzero((label == which) & (period > 0))
            rows = np.sort(rng.permutation(rows)[:most])
            if not len(rows):
                continue
            found, published, sure = _periods(engine, [states[row] for row in rows])
            shares = [*_shares(found, period[rows]), *_shares(published, period[rows])]
            cells = [f"{share:.3f}" for share in shares]
            right = _shares(published[sure], period[rows][sure])[0] if sure.any() else np.nan
            cells += [f"{sure.mean():.2f}", f"{right:.3f}"] if which in ECLIPSING else ["", ""]
            lines.append(f"| {name} | {which} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _periods(
    engine: Engine, states: Sequence[ObjectState]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Found and published periods of n objects, each (n,), and which are said to be unambiguous orbits."""
    parts = []
    for first in range(0, len(states), _BATCH):
        inputs = assemble(states[first : first + _BATCH])
        probabilities, period, _ = rule_out(engine.predict(inputs).probabilities, inputs.light_curve)
        leading, classified = probabilities.argmax(axis=1), np.any(probabilities, axis=1)
        published = orbital_periods(inputs.light_curve, period, leading, classified)
        binary = classified & np.isin(leading, [CLASS_INDEX[name] for name in ECLIPSING])
        parts.append((period, published.period, binary & np.isfinite(period) & ~published.ambiguous))
    found, orbital, sure = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, orbital, sure


def _shares(period: NDArray[np.float64], true: NDArray[np.float64]) -> list[float]:
    """Of n periods, the shares that are the true one, half and twice."""
    return [float(np.mean(np.abs(period / (ratio * true) - 1.0) < TOLERANCE)) for ratio in _RATIOS]


Stars = tuple[str, list[ObjectState], NDArray[np.object_], NDArray[np.float64]]


def _catalina(data: Path) -> Stars:
    """Catalina's stars that are for tests, with the survey's own periods."""
    table = load_objects(data)
    rows = split(table, 0)[2]
    rows = rows[table.survey[rows] == "css"]
    period = {f"css:{row['css_id']}": row["period"] for row in _rows(data / "css_v.parquet", ["css_id", "period"])}
    states = table.states(rows)
    return "Catalina, held out", states, table.label[rows], np.array([period[s.object_id] for s in states], np.float64)


def _ztf(data: Path) -> Stars:
    """Stars of the ZTF data release with VSX's periods, or those that their observers give."""
    objects = load_archive(data, "ztf_dr")
    period = {
        f"ztf_dr:{row['name']}": row["period"]
        for file in ("ztf_dr3_vsx.parquet", "ztf_dr_lcurvemaker.parquet")
        for row in _rows(data / "multiband" / file, ["name", "period"])
    }
    values = np.array([period[s.object_id] for s in objects.states], np.float64)
    return "ZTF data release", objects.states, objects.label, values


def _rows(path: Path, columns: list[str]) -> list[dict[str, object]]:
    try:
        return pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"{path}: {error}") from error
