"""Measured spectra: of RR Lyrae stars, observed at McDonald Observatory, six of which have a light curve of ASAS.

These six are the only stars here of which more than one modality is real. Each spectrum is taken by itself: it covers a
fifth of the grid. None was trained on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.errors import InputFileError
from broker.records import LightCurve, ObjectState, Spectrum
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES, PARENT_OF, PARENTS
from training.datasets.multiband import LabelledObjects
from training.datasets.splits import part_of_each, split
from training.datasets.tables import TIME_SYSTEM, load_objects
from training.live.scores import Classify

FILE = "spectra_rrlyrae_mcdonald.parquet"
PARENT = PARENT_OF["RRAB"]


@dataclass(frozen=True, slots=True)
class StarScore:
    """One star from one choice of modalities, or all stars from their spectra.

    Shares and means are over the spectra (a light curve alone is one case).
    """

    star: str
    label: str
    seen: bool
    """Whether the encoders were trained or calibrated on the star's light curve; never on its spectra."""
    points: int
    modalities: str
    cases: int
    classified: int
    right: float
    """Share whose leading class is the label, or one of its classes where it is a parent."""
    parent_right: float
    """Share whose parent with the largest sum is that of the label."""
    probability: dict[str, float]
    """Mean probabilities of classes of at least 0.005."""


def stars_with_both(classify: Classify, data: Path) -> list[StarScore]:
    """Three rows for each star with both: light curve alone, each spectrum alone, both; at last one of all spectra.

    Nothing without the files. Raises InputFileError where the spectra cannot be read.
    """
    path = data / "multiband" / FILE
    if not path.exists() or not (data / "asas_v.parquet").exists():
        return []
    try:
        columns = ["name", "label", "asas_name", "ra", "dec", "wave", "flux", "noise"]
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"{path}: {error}") from error
    spectra: defaultdict[tuple[str, str], list[Spectrum]] = defaultdict(list)
    without_light_curve: list[ObjectState] = []
    for row in rows:
        wavelength, flux, noise = (np.asarray(row[c]) for c in ("wave", "flux", "noise"))
        spectrum = Spectrum(wavelength.astype(np.float64), flux.astype(np.float32), noise.astype(np.float32))
        name = f"mcdonald:{row['name']}"
        if PARENT_OF.get(row["label"]) == PARENT:  # a few have neither label nor place
            without_light_curve.append(
                ObjectState(name, row["ra"], row["dec"], LightCurve.empty(), spectrum, time_system=TIME_SYSTEM)
            )
        if row["asas_name"]:
            spectra[row["asas_name"], row["name"]].append(spectrum)
    table = load_objects(data)
    part = part_of_each(len(table), split(table, 0))
    index = {str(name): i for i, name in enumerate(table.object_id)}
    scores = []
    for (asas_name, star), own in sorted(spectra.items(), key=lambda item: item[0][1]):
        if (i := index.get(f"asas:{asas_name}")) is None:
            continue
        state = table.states([i])[0]
        label, points = str(table.label[i]), len(state.light_curve)
        dark = replace(state, light_curve=LightCurve.empty())
        for name, states in (
            ("light curve", [state]),
            ("spectrum", [replace(dark, spectrum=s) for s in own]),
            ("both", [replace(state, spectrum=s) for s in own]),
        ):
            scores.append(_score(star, label, part[i] < 2, points, name, _probabilities(classify, states, label)))
    stars = len({state.object_id for state in without_light_curve})
    probabilities = _probabilities(classify, without_light_curve, PARENT)
    scores.append(_score(f"all {stars} stars", PARENT, False, 0, "spectrum", probabilities))
    return scores


def _probabilities(classify: Classify, states: list[ObjectState], label: str) -> NDArray[np.float64]:
    columns = (np.full(len(states), value, object) for value in (label, "gold", None))
    return classify(LabelledObjects("both", states, *columns)).probabilities


def _score(
    star: str, label: str, seen: bool, points: int, modalities: str, probabilities: NDArray[np.float64]
) -> StarScore:
    """``label`` is a class, or a parent."""
    classified = probabilities.any(axis=1)
    leading = probabilities.argmax(axis=1)
    wanted = [CLASS_INDEX[c] for c in PARENTS.get(label, (label,))]
    sums = np.stack([probabilities[:, [CLASS_INDEX[c] for c in own]].sum(axis=1) for own in PARENTS.values()], axis=1)
    parent = np.array(list(PARENTS), object)[sums.argmax(axis=1)]
    mean = probabilities.mean(axis=0)
    return StarScore(
        star, label, bool(seen), points, modalities, len(probabilities), int(classified.sum()),
        float(np.mean(classified & np.isin(leading, wanted))),
        float(np.mean(classified & (parent == PARENT_OF.get(label, label)))),
        {CLASS_NAMES[c]: float(mean[c]) for c in np.argsort(-mean) if mean[c] >= 0.005},
    )  # fmt: skip


def both_markdown(scores: Sequence[StarScore]) -> str:
    """The table; empty without stars."""
    if not scores:
        return ""
    lines = [
        "", "Measured light curve (ASAS) and measured spectra (McDonald Observatory, a fifth of the grid):",
        "", "| star | label | light curve seen in training | points | from | cases | classified | right "
        "| parent right | mean probabilities |",
        "|---|---|---|---:|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for s in scores:
        said = ", ".join(f"{name} {value:.2f}" for name, value in s.probability.items())
        lines.append(
            f"| {s.star} | {s.label} | {'yes' if s.seen else 'no'} | {s.points} | {s.modalities} | {s.cases} "
            f"| {s.classified} | {s.right:.2f} | {s.parent_right:.2f} | {said} |"
        )
    return "\n".join(lines) + "\n"
