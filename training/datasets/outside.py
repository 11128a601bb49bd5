"""Objects that are none of the ten classes, as far as is known: what ``Other`` is trained and scored on.

- Catalina's Cepheids of type II, anomalous Cepheids and RRd stars; Gaia's Cepheids; the Cepheids, ellipsoidal and
  reflection variables among VSX's stars in ZTF's data release: labelled by catalogues.
- Real ZTF packets that nobody labelled: moving objects (the survey's own match), sources that are galaxies by shape,
  detections that the survey's score takes for bogus. These labels are weak.
- ELAsTiCC's objects with a host galaxy, which are supernovae, active nuclei and the like: simulated, for tests only.
- Real ZTF packets of what was brighter than the reference in all of 5 detections and more, over more than a day, where
  there is no star: supernovae and the like. The labels are weak, and these are for tests only.
- EROS-2's Cepheids, which are for tests only (``training.datasets.multiband``).
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fastavro
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.bands import BAND_CODE
from broker.photometry import magnitude_to_flux
from broker.records import (
    SOURCE_FEATURES,
    Alert,
    LightCurve,
    ObjectState,
    PhotometryKind,
    SourceMetadata,
    TimeSystem,
)
from broker.taxonomy import CLASS_INDEX
from training.datasets.multiband import (
    LabelledObjects,
    alerts_of_objects,
    last_states,
    load_archive,
    object_array,
    packet_paths,
)
from training.datasets.tables import ObjectTable

OUTSIDE_TYPES = ("CEP", "DCEP", "CW", "ACEP", "ELL", "R")
"""Beginnings of VSX types that are none of the ten. An uncertain or composite type is none of these."""
ELASTICC = "../alerts/elasticc/alerce_elasticc_v0_9_5607.tar.xz"
GALAXY_SCORE = 0.2
"""Star/galaxy scores below this are galaxies (Tachibana & Miller 2018, figure 8)."""
BOGUS_SCORE = 0.3
NO_STAR_SCORE, REAL_SCORE = 0.5, 0.65
"""Of a transient: the source in reach is no star, and the survey's own score takes the detections for real."""
LEAST_OF_TRANSIENT, LEAST_DAYS = 5, 1.0


def outside_of_archive(table: ObjectTable, data: Path) -> LabelledObjects:
    """Catalina's stars whose class is none of the ten: RRd stars, and Cepheids of type II and anomalous ones.

    ``table`` is that of the folder ``data``.
    """
    own = pq.read_table(data / "css_v.parquet", columns=["css_id", "css_class"])
    name = dict(zip((f"css:{i}" for i in own["css_id"].to_pylist()), own["css_class"].to_pylist(), strict=True))
    rows = [i for i in range(len(table)) if table.survey[i] == "css" and table.label[i] is None]
    states = table.states(rows)
    return _unlabelled("css", states, ["RRd" if name[s.object_id] == "RRd" else "cepheid" for s in states])


def outside_of_ztf(data: Path) -> LabelledObjects:
    """Stars of ZTF's data releases with a VSX type outside the ten."""
    objects = load_archive(data, "ztf_dr")
    kept = [
        i
        for i, (label, original) in enumerate(zip(objects.label, objects.original, strict=True))
        if label is None and original is not None and is_outside(str(original))
    ]
    outside = objects.take(kept)
    outside.original[:] = ["cepheid" if "C" in str(own) else str(own) for own in outside.original]
    return replace(outside, name="ztf_dr")


def is_outside(vsx_type: str) -> bool:
    """Whether a VSX type is surely none of the ten: not uncertain, and of a class of its own."""
    if ":" in vsx_type or "|" in vsx_type:
        return False
    return any(vsx_type == t or (t in ("CEP", "DCEP", "CW") and vsx_type.startswith(t)) for t in OUTSIDE_TYPES)


def gaia_stars(data: Path) -> tuple[LabelledObjects, LabelledObjects]:
    """Gaia's G light curves with BP - RP: Cepheids, and stars of the ten classes."""
    table = pq.read_table(data / "multiband" / "gaia_g_cbm.parquet").to_pylist()
    code = BAND_CODE["gaia:G"]
    states, original, label = [], [], []
    for row in table:
        magnitude, error = np.array(row["mag"], np.float64), np.array(row["mag_err"], np.float64)
        flux, flux_error = magnitude_to_flux(magnitude, error)
        size = len(magnitude)
        curve = LightCurve(
            np.array(row["mjd"], np.float64), flux.astype(np.float32), flux_error.astype(np.float32),
            np.zeros(size, np.float32), np.full(size, code, np.uint8), np.zeros(size, np.uint8),
        )  # fmt: skip
        values = np.full(len(SOURCE_FEATURES), np.nan, np.float32)
        if row["bp_rp"] is not None:
            values[SOURCE_FEATURES.index("bp_rp")] = row["bp_rp"]
        states.append(
            ObjectState(
                f"gaia:{row['gaia_source_id']}", float(row["ra_pix"]), float(row["dec_pix"]), curve,
                metadata=SourceMetadata(values), time_system=TimeSystem.BARYCENTRIC,
            )
        )  # fmt: skip
        original.append(row["gaia_class"])
        label.append(row["label"])
    everything = replace(_unlabelled("gaia", states, original), label=object_array(label))
    cepheids = everything.take([i for i, c in enumerate(original) if c == "CEP"])
    return cepheids, everything.take([i for i, c in enumerate(label) if c in CLASS_INDEX])


def unlabelled_packets(data: Path, labelled: frozenset[str]) -> LabelledObjects:
    """Real ZTF objects that are no variable star by what the packets say; ``labelled`` are left out."""
    alerts = alerts_of_objects(packet_paths(data))
    kind = {name: outside_kind(own) for name, own in alerts.items() if name not in labelled}
    names = sorted(name for name, own in kind.items() if own is not None)
    return _unlabelled("ztf_packets", last_states([alerts[n] for n in names]), [kind[n] for n in names])


def transient_packets(data: Path, labelled: frozenset[str]) -> LabelledObjects:
    """Real ZTF objects that are transients by what the packets say, and none of ``outside_kind``."""
    alerts = alerts_of_objects(packet_paths(data))
    names = [n for n in sorted(alerts) if n not in labelled and outside_kind(alerts[n]) is None]
    states = last_states([alerts[n] for n in names])
    found = [s for n, s in zip(names, states, strict=True) if is_transient(alerts[n], s.light_curve)]
    return _unlabelled("ztf_packets", found, ["transient"] * len(found))


def is_transient(alerts: Sequence[Alert], curve: LightCurve) -> bool:
    """Whether an object with these alerts and light curve has never been fainter than the reference, and is no star."""
    own = curve.take(np.flatnonzero(curve.kind != PhotometryKind.LIMIT))
    if len(own) < LEAST_OF_TRANSIENT or not np.all(own.flux > 0) or np.ptp(own.mjd) < LEAST_DAYS:
        return False
    star, scores = alerts[-1].star_score, [a.real_bogus for a in alerts if a.real_bogus is not None]
    return (star is None or star < NO_STAR_SCORE) and bool(scores) and min(scores) >= REAL_SCORE


def outside_kind(alerts: Sequence[Alert]) -> str | None:
    """``moving``, ``galaxy`` or ``bogus`` by the survey's own values, or None: which of these an object surely is."""
    if any(a.solar_system for a in alerts):
        return "moving"
    scores = [a.real_bogus for a in alerts if a.real_bogus is not None]
    if scores and max(scores) < BOGUS_SCORE:
        return "bogus"
    star = alerts[-1].star_score
    return "galaxy" if star is not None and star < GALAXY_SCORE else None


def elasticc_objects(data: Path) -> LabelledObjects:
    """ELAsTiCC's simulated objects that have a host galaxy, each after its last alert."""
    path = data / ELASTICC
    hosted: set[str] = set()
    with lzma.open(path) as plain, tarfile.open(fileobj=plain) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".avro") else None
            if file is not None:
                for record in fastavro.reader(io.BytesIO(file.read())):
                    if isinstance(record, dict) and record["diaObject"]["hostgal_snsep"] >= 0:
                        hosted.add(str(record["diaObject"]["diaObjectId"]))
    alerts = alerts_of_objects([path])
    names = sorted(alerts.keys() & hosted)
    states = last_states([alerts[n] for n in names])
    return _unlabelled("elasticc", states, ["simulated"] * len(states))


def _unlabelled(name: str, states: list[ObjectState], original: Sequence[object]) -> LabelledObjects:
    none: NDArray[np.object_] = np.full(len(states), None, object)
    return LabelledObjects(name, states, none, none, object_array(original))
