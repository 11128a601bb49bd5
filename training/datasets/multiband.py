"""Real labelled stars as a stream or an archive shows them: light curves in several bands, and ZTF packets.

Everything is read by the service's own code (``broker.lightcurves.files``, ``broker.surveys``), so that what is scored
is what a user gets. Where the files come from, and how they were labelled: ../shared/data/multiband/README.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.bands import BAND_CODE, BANDS
from broker.errors import DecodeError, InputFileError
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.histories import first_detections
from broker.records import Alert, LightCurve, ObjectState, TimeSystem
from broker.sources import iter_packets
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.datasets.vsx import DISPUTED, contradicted

ARCHIVES: dict[str, tuple[str, ...]] = {
    "ztf_dr": ("ztf_dr3_vsx.parquet", "ztf_dr_lcurvemaker.parquet"),
    "ztf_rebuilt": ("ztf_alerce_corrected.parquet",),
    "stripe82": ("sdss_s82_rrlyrae.parquet",),
    "asassn": ("asassn_lc_gaia.parquet",),
    "eros2": ("eros2_lmc.parquet",),
}
"""Files of light curves of total flux in ``data/multiband``, by the name of the set."""
_TIME_SYSTEM = {"ztf_dr3_vsx.parquet": TimeSystem.HELIOCENTRIC}
"""Where the column's name does not tell."""
ALERT_LABELS = "ztf_alert_labels.parquet"
_PACKETS = ("multiband/ztf_labelled_packets.tar", "../alerts/ztf/native.tar", "../alerts/ztf/recent_v4.02.avro")
_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class LabelledObjects:
    """n objects of one set, each in the state in which the service would classify it."""

    name: str
    states: list[ObjectState]
    label: NDArray[np.object_]
    """Class name or None; for EROS-2, whose experts give no more, the name of the parent."""
    quality: NDArray[np.object_]
    """gold, std, weak, disputed (VSX has another class at the place) or None."""
    original: NDArray[np.object_]
    """The catalogue's own type, None where the file has none."""

    def __len__(self) -> int:
        return len(self.states)

    @property
    def counts(self) -> NDArray[np.bool_]:
        """(n,) which labels are neither weak nor disputed."""
        return np.array([quality not in ("weak", DISPUTED) for quality in self.quality], np.bool_)

    def take(self, rows: Iterable[int]) -> LabelledObjects:
        """Some of the objects."""
        index = np.fromiter(rows, np.intp)
        return LabelledObjects(
            self.name,
            [self.states[i] for i in index],
            self.label[index],
            self.quality[index],
            self.original[index],
        )

    def with_light_curves(self, curves: Sequence[LightCurve]) -> LabelledObjects:
        """The same objects with other light curves."""
        states = [replace(state, light_curve=curve) for state, curve in zip(self.states, curves, strict=True)]
        return replace(self, states=states)


def has_archive(data: Path, name: str) -> bool:
    """Whether all files of one of ARCHIVES are there."""
    return all((data / "multiband" / file).exists() for file in ARCHIVES[name])


def load_archive(data: Path, name: str) -> LabelledObjects:
    """One of ARCHIVES, as ``trifid classify --lightcurves`` reads it; InputFileError where it cannot be read."""
    states: list[ObjectState] = []
    columns: defaultdict[str, list[object]] = defaultdict(list)
    for file in ARCHIVES[name]:
        path = data / "multiband" / file
        curves = {curve.name: curve for curve in read_light_curves(path, time_system=_TIME_SYSTEM.get(file))}
        for row in _rows(path):
            curve = curves.get(str(row["name"]))
            if curve is None:
                continue
            states.append(
                ObjectState(
                    f"{name}:{curve.name}", curve.ra, curve.dec, curve.light_curve, time_system=curve.time_system
                )
            )
            columns["label"].append(row.get("label", row.get("parent")))
            columns["quality"].append(row.get("label_quality"))
            columns["original"].append(row.get("label_original"))
    label, quality, original = (object_array(columns[c]) for c in ("label", "quality", "original"))
    ra, dec = (np.array([getattr(state, axis) for state in states], np.float64) for axis in ("ra", "dec"))
    # Parents, the labels of EROS-2, are none of our classes.
    own = object_array([name if name in CLASS_NAMES else None for name in label])
    differs = contradicted(data, own, np.zeros(len(states), np.bool_), ra, dec)
    quality[differs & np.array([q != "weak" for q in quality], np.bool_)] = DISPUTED
    return LabelledObjects(name, states, label, quality, original)


def load_packets(data: Path) -> LabelledObjects:
    """The labelled ZTF objects of which there are packets, each after all of its packets, in order of time."""
    labels = {str(row["name"]): row for row in _rows(data / "multiband" / ALERT_LABELS)}
    alerts = alerts_of_objects(packet_paths(data))
    names = sorted(alerts.keys() & labels.keys())
    states = last_states([alerts[name] for name in names])
    return LabelledObjects(
        "ztf_packets",
        states,
        *(object_array([labels[n][c] for n in names]) for c in ("label", "label_quality", "label_original")),
    )


def alerts_of_objects(paths: Sequence[Path]) -> dict[str, list[Alert]]:
    """Alerts of the packets in files by object, in order of time; what cannot be decoded is left out."""
    decoder = Decoder()
    alerts: defaultdict[str, list[Alert]] = defaultdict(list)
    payloads = [packet.payload for packet in iter_packets(paths)]
    for first in range(0, len(payloads), _BATCH):
        for records in decoder.decode_batch(payloads[first : first + _BATCH]):
            if isinstance(records, DecodeError):
                continue
            for record in records:
                if isinstance(record, Alert):
                    alerts[record.object_id].append(record)
    return {name: sorted(own, key=lambda alert: alert.mjd) for name, own in alerts.items()}


def last_states(alerts: Iterable[Sequence[Alert]]) -> list[ObjectState]:
    """The state that the service would have of each object after all its alerts."""
    store = MemoryStore()
    return [store.update(own)[-1] for own in alerts]


def packet_paths(data: Path) -> list[Path]:
    """The files of real ZTF packets that are there."""
    return [path for part in _PACKETS if (path := (data / part)).exists()]


def scored(objects: LabelledObjects) -> LabelledObjects:
    """Those with a label among the ten that is neither weak nor disputed by VSX."""
    return objects.take([i for i, c in enumerate(objects.label) if c in CLASS_INDEX and objects.counts[i]])


def first_points(objects: LabelledObjects, n: int) -> LabelledObjects:
    """The light curves up to their ``n``-th detection."""
    return objects.with_light_curves([first_detections(s.light_curve, n) for s in objects.states])


def in_bands_of(objects: LabelledObjects, survey: str, other: str) -> LabelledObjects:
    """The same objects with the bands of ``survey`` called by the names of ``other``, as ``lsst:g`` for ``sdss:g``."""
    code = np.arange(256, dtype=np.uint8)
    for band in BANDS:
        owner, _, letter = band.partition(":")
        if owner == survey:
            code[BAND_CODE[band]] = BAND_CODE[f"{other}:{letter}"]
    curves = [replace(s.light_curve, band=code[s.light_curve.band]) for s in objects.states]
    return replace(objects.with_light_curves(curves), name=f"{objects.name} as {other}:*")


def _rows(path: Path) -> list[dict[str, object]]:
    """The columns of a file that say what its objects are."""
    wanted = ("name", "label", "parent", "label_quality", "label_original")
    try:
        names = [name for name in pq.read_schema(path).names if name in wanted]
        return pq.read_table(path, columns=names).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"{path}: {error}") from error


def object_array(values: Sequence[object]) -> NDArray[np.object_]:
    """(n,) of values of any kind, also where all are sequences of one length."""
    result = np.empty(len(values), object)
    result[:] = values
    return result
