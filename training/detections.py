"""How well a light curve is classified after its first few detections, which is when a stream needs it most."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from broker.assemble.inputs import MODALITIES, LightCurveInputs
from broker.assemble.lightcurve import assemble_light_curves
from broker.child_process import end_with_parent
from broker.lightcurves.histories import first_detections
from broker.records import LightCurve, PhotometryKind
from broker.taxonomy import NOT_CLASSIFIED
from training.calibrate import Encoded, probabilities
from training.encoders.lightcurve import EMBEDDING
from training.encoders.trimodal import LIGHT_CURVE_ONLY, Trimodal
from training.evaluate import score_probabilities

DETECTIONS: tuple[int | None, ...] = (5, 10, 20, 50, 100, 200, None)
"""Numbers of first detections; None stands for all of them."""
MAX_STARS = 1000
CHUNK = 64


@dataclass(frozen=True, slots=True)
class DetectionScore:
    """Scores of light curves cut after their first detections; the last three are over the classified stars alone."""

    detections: int | None
    """How many detections were kept; None for all."""
    objects: int
    """Stars tried: the same ones for every number of detections."""
    shorter: int
    """Stars that have fewer detections altogether, and are there with all they have."""
    not_classified: int
    """Stars with too few usable points, which the service would publish as NotClassified."""
    accuracy: float
    """NaN where no star could be classified, as the next two."""
    macro_f1: float
    expected_calibration_error: float

    @property
    def name(self) -> str:
        """The number of detections, or ``all``."""
        return "all" if self.detections is None else str(self.detections)


def accuracy_by_detections(
    model: Trimodal,
    light_curves: Sequence[LightCurve],
    label: NDArray[np.int64],
    detections: Sequence[int | None] = DETECTIONS,
    max_stars: int = MAX_STARS,
    seed: int = 0,
    processes: int = 2,
) -> list[DetectionScore]:
    """Scores of the light curve alone after each number of first detections.

    ``light_curves`` are whole, with labels (n,); at most ``max_stars`` of them are used, chosen at random with
    ``seed``. A star with fewer than N detections is there with all it has, so that every row of the result is
    over the same stars. The inputs are assembled anew by the service's own code (the period is searched in the
    first N points alone), in ``processes`` processes, or in this one if that is 1. The temperature is the model's.
    """
    chosen = np.sort(np.random.default_rng([seed, 5]).permutation(len(light_curves))[:max_stars])
    curves, label = [light_curves[i] for i in chosen], label[chosen]
    size = np.array([np.sum(c.kind != PhotometryKind.LIMIT) for c in curves])
    cut = [first_detections(curve, n) for n in detections for curve in curves]
    all_predicted, all_present = _classify(model, cut, processes)
    results = []
    for step, n in enumerate(detections):
        own = slice(step * len(curves), (step + 1) * len(curves))
        predicted, present = all_predicted[own], all_present[own]
        accuracy = macro_f1 = error = float("nan")
        if present.any():
            scored = score_probabilities("", MODALITIES[0], predicted[present], label[present], threshold=0.5)
            accuracy, macro_f1, error = scored.accuracy, scored.macro_f1, scored.expected_calibration_error
        shorter = 0 if n is None else int(np.sum(size < n))
        results.append(DetectionScore(n, len(curves), shorter, int(np.sum(~present)), accuracy, macro_f1, error))
    return results


def _classify(
    model: Trimodal, curves: list[LightCurve], processes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities (m, 10) and whether there are enough points (m,), from light curves alone."""
    chunks = [curves[first : first + CHUNK] for first in range(0, len(curves), CHUNK)]
    title = "Assembling first detections"
    if processes == 1:
        parts = [assemble_light_curves(chunk) for chunk in track(chunks, title)]
    else:
        # The service's function itself is what the processes run: they need not import torch.
        with multiprocessing.get_context("spawn").Pool(processes, end_with_parent) as pool:
            parts = list(track(pool.imap(assemble_light_curves, chunks), title, total=len(chunks)))
    embeddings = torch.cat([_embed(model, part) for part in parts])
    present = np.concatenate([part.present for part in parts])
    joined = torch.zeros(len(embeddings), len(MODALITIES), EMBEDDING)
    joined[:, 0] = embeddings
    encoded = Encoded(
        np.arange(len(present)), joined, torch.from_numpy(present)[:, None] & torch.tensor(LIGHT_CURVE_ONLY),
        np.concatenate([part.detections for part in parts]),
    )  # fmt: skip
    return probabilities(model.classifier, encoded, LIGHT_CURVE_ONLY), present


@torch.no_grad()
def _embed(model: Trimodal, inputs: LightCurveInputs) -> Tensor:
    device = model.log_scale.device
    columns = (inputs.points, inputs.points_mask, inputs.folded, inputs.features)
    embeddings: Tensor = model.eval().light_curve_encoder(*(torch.from_numpy(c).to(device) for c in columns))
    return embeddings.cpu()


def detections_markdown(scores: Mapping[str, Sequence[DetectionScore]]) -> str:
    """One table, with the rows of each test set of ``scores``."""
    lines = [
        "Light curve alone, after the first N detections of each star (real light curves; a star with fewer is there "
        "with all it has; scores are over the stars that could be classified):",
        "",
        f"| test set | detections | objects | of which shorter | {NOT_CLASSIFIED.name} | accuracy | macro-F1 | ECE |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rows in scores.items():
        lines += [
            f"| {name} | {s.name} | {s.objects} | {s.shorter} | {s.not_classified} | {s.accuracy:.3f} "
            f"| {s.macro_f1:.3f} | {s.expected_calibration_error:.3f} |"
            for s in rows
        ]
    return "\n".join(lines) + "\n"


def save_detections(scores: Mapping[str, Sequence[DetectionScore]], path: Path) -> None:
    """Write the scores as JSON: a list for each test set, null for a score that is NaN."""
    rows = {
        name: [{key: None if value != value else value for key, value in asdict(s).items()} for s in own]
        for name, own in scores.items()
    }
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
