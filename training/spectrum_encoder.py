"""The spectrum encoder trained by itself, on simulated spectra whole and in part, with heads that are thrown away.

The encoder learns what a spectrum says of class and spectral type. Heads for all modalities are then trained on the
frozen encoders (``training.stream``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from broker.taxonomy import CLASS_NAMES
from training.data import Labels
from training.datasets.splits import part_of_each, split
from training.datasets.tables import load_objects
from training.encoders.lightcurve import EMBEDDING
from training.encoders.spectrum import SpectrumEncoder, lines_and_continuum
from training.export import export_spectrum_encoder, rewrite_checksums
from training.schedules import one_cycle
from training.simulate.spectra import PARTIAL, Templates, draw_types, load_templates, simulate_spectra

STEPS = 4000
"""The loss on new simulated spectra hardly falls after 2,500."""
BATCH = 128
BATCHES_DRAWN = 8
"""Batches simulated at once."""
TIMES_SEEN = 3
"""How often each spectrum is learnt from: simulating one takes half as long as learning."""
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
CLASS_BALANCE = 0.5
TYPE_WEIGHT = 0.2
LABEL_SMOOTHING = 0.02
_MEAN_TYPE, _TYPE_DEVIATION = 40.0, 15.0
REPORT_EVERY = 200


@dataclass(frozen=True, slots=True, eq=False)
class Stars:
    """n stars, of whose classes spectra are simulated."""

    label: NDArray[np.object_]
    survey: NDArray[np.object_]
    index: NDArray[np.int64]
    """Position in CLASSES."""
    part: NDArray[np.intp]
    """0 for training, 1 for validation, 2 for test."""

    def of_part(self, part: int) -> NDArray[np.intp]:
        """The rows of one part."""
        return np.flatnonzero(self.part == part)

    def spectra(
        self, rows: NDArray[np.intp], templates: Templates, partial: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Model inputs (m, 3, 2575) of ``rows`` (m,) and their type codes (m,), drawn anew.

        Test and validation stars have templates that no training star has.
        """
        label, survey = list(self.label[rows]), list(self.survey[rows])
        code = draw_types(label, survey, rng)
        spectra = simulate_spectra(templates, label, survey, code, self.part[rows] > 0, rng, partial)
        return spectra, code.astype(np.float32)


def load_stars(data: Path, seed: int) -> Stars:
    """ASAS's and Catalina's stars with a label that is scored, and their parts as in ``training.run``."""
    table = load_objects(data)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    part = part_of_each(len(table), split(table, seed))
    # Coarse labels train, too: what lumps EB with EW here has the class EW.
    rows = np.flatnonzero((labels.index >= 0) & (labels.scored | ((part == 0) & (labels.weight == 1.0))))
    return Stars(table.label[rows], table.survey[rows], labels.index[rows], part[rows])


class SpectrumModel(nn.Module):
    """The encoder and the heads that are thrown away: class and spectral type."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SpectrumEncoder()
        self.head = nn.Linear(EMBEDDING, len(CLASS_NAMES) + 1)

    def forward(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, 2575) of ``lines_and_continuum`` to logits (batch, 10) and the scaled type code (batch,)."""
        out: Tensor = self.head(self.encoder.embed(lines) * EMBEDDING**0.5)
        return out[:, :-1], out[:, -1]


def train_spectrum_encoder(
    data: Path, repository: Path, output: Path, seed: int, report: Callable[[str], None]
) -> SpectrumModel:
    """Train the encoder, write ``spectrum_encoder.safetensors`` to ``output`` and the ONNX model to ``repository``.

    The repository's manifest, if there is one, gets the new model's checksum.
    """
    output.mkdir(parents=True, exist_ok=True)
    stars, templates = load_stars(data, seed), load_templates(data)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 21])
    model = SpectrumModel().train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    training = stars.of_part(0)
    probability = _balanced(stars, training)
    losses: list[float] = []
    for step, (lines, code, label) in enumerate(_batches(stars, training, probability, templates, STEPS, rng)):
        rate, momentum = one_cycle(step, STEPS)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate * LEARNING_RATE, (momentum, group["betas"][1])
        logits, predicted = model(lines)
        loss = functional.cross_entropy(logits, label, label_smoothing=LABEL_SMOOTHING)
        loss = loss + TYPE_WEIGHT * functional.smooth_l1_loss(predicted, (code - _MEAN_TYPE) / _TYPE_DEVIATION)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % REPORT_EVERY == 0:
            report(f"step {step + 1} of {STEPS}: loss {np.mean(losses[-REPORT_EVERY:]):.3f}")
    model.eval()
    save_file(model.encoder.state_dict(), output / "spectrum_encoder.safetensors")
    export_spectrum_encoder(model.encoder, repository)
    rewrite_checksums(repository)
    scores = validation_scores(model, stars, templates, seed)
    (output / "validation.json").write_text(json.dumps(scores, indent=1) + "\n")
    for name, value in scores.items():
        report(f"{name}: {value:.3f}")
    return model


@torch.no_grad()
def validation_scores(model: SpectrumModel, stars: Stars, templates: Templates, seed: int) -> dict[str, float]:
    """Accuracy of the heads on simulated spectra of validation stars, whole and in part, by survey."""
    scores = {}
    rng = np.random.default_rng([seed, 22])
    rows = stars.of_part(1)
    for name, partial in (("whole", 0.0), ("in part", 1.0)):
        right = []
        for part in np.array_split(rows, max(1, len(rows) // BATCH)):
            spectra, _ = stars.spectra(part, templates, partial, rng)
            right.append(
                model(lines_and_continuum(torch.from_numpy(spectra)))[0].argmax(dim=1).numpy() == stars.index[part]
            )
        correct = np.concatenate(right)
        for survey in np.unique(stars.survey[rows].astype(str)):
            own = stars.survey[rows] == survey
            scores[f"{survey}, {name}, {int(own.sum())} validation stars"] = float(correct[own].mean())
    return scores


def _balanced(stars: Stars, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Probability (m,) with which each of ``rows`` is drawn."""
    counts = np.bincount(stars.index[rows], minlength=len(CLASS_NAMES)).clip(min=1)
    weight = counts[stars.index[rows]] ** -CLASS_BALANCE
    return np.asarray(weight / weight.sum())


def _batches(
    stars: Stars,
    rows: NDArray[np.intp],
    probability: NDArray[np.float64],
    templates: Templates,
    steps: int,
    rng: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``lines_and_continuum`` (b, 3, 2575) of spectra, type codes (b,) and classes (b,) of each step's batch."""
    size = BATCH * BATCHES_DRAWN
    done = 0
    while done < steps:
        drawn = rng.choice(rows, size, p=probability)
        parts = [stars.spectra(part, templates, PARTIAL, rng) for part in np.split(drawn, BATCHES_DRAWN)]
        spectra, code = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
        lines = lines_and_continuum(spectra)
        label = torch.from_numpy(stars.index[drawn])
        for _ in range(TIMES_SEEN):
            order = torch.from_numpy(rng.permutation(size))
            for chosen in torch.split(order, BATCH)[: steps - done]:
                yield lines[chosen], code[chosen], label[chosen]
                done += 1
