"""A published model on the stars held back from ASAS and Catalina, for each combination of the modalities.

As ``python -m training evaluate`` scores the model of a run folder; here it is that of a repository, by the way of the
service, as in the other tables of ``evaluate-live``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from broker.assemble import assemble
from broker.assemble.inputs import SpectrumInputs
from broker.records import LightCurve
from broker.taxonomy import CLASS_NAMES
from training.datasets.multiband import first_points
from training.detections import DETECTIONS, MAX_STARS
from training.encoders.trimodal import SUBSETS, subset_name
from training.live.output import Origin
from training.live.rows import CATALOGUED, CLASSES_THEMSELVES, Row, one_band_tests
from training.live.scores import Answers, LiveScore, Repository, live_score
from training.simulate.spectra import Templates, draw_types, load_templates, simulate_spectra

_BATCH = 256
PREFACE = """Stars held back from training and calibration, split by star over both surveys (seed 0), as the service
classifies them: its assembly, ONNX Runtime, rules and prediction sets; NotClassified and Other count as wrong. Light
curves and labels are real, **spectra are simulated** from templates of the class's spectral types that training did not
have, **metadata are partly simulated** (docs/simulation.md), so that rows with these are optimistic. Without a light
curve the thresholds are those of no detection."""


def evaluate_by_modality(
    model: Repository, data: Path, seed: int = 0
) -> tuple[dict[str, list[LiveScore]], dict[str, list[LiveScore]]]:
    """Scores by test set: of each of SUBSETS, and of light curves alone after the first detections of some stars.

    ``data`` is the folder with ``asas_v.parquet`` and ``css_v.parquet``; ``seed`` is of the simulated spectra and of
    the choice of at most MAX_STARS stars for the latter, of which one with fewer detections is there with all.
    """
    templates = load_templates(data)
    subsets: dict[str, list[LiveScore]] = {}
    first: dict[str, list[LiveScore]] = {}
    for row in one_band_tests(data):
        name = row.name.split(",")[0]
        if row.name.endswith(CATALOGUED):
            subsets[name] = subset_scores(model, row, templates, seed)
        elif row.name == f"{name}, one band, held-out stars" and row.groups is CLASSES_THEMSELVES:
            first[name] = _first_scores(model, row, seed)
    return subsets, first


def subset_scores(model: Repository, row: Row, templates: Templates, seed: int = 0) -> list[LiveScore]:
    """A score for each of SUBSETS of the row's stars, which have metadata, and are given a simulated spectrum."""
    objects = row.objects
    rng = np.random.default_rng([seed, 3])
    classes = objects.label.tolist()
    surveys = [objects.name] * len(objects)
    code = draw_types(classes, surveys, rng)
    parts: list[list[Answers]] = [[] for _ in SUBSETS]
    for begin in track(range(0, len(objects), _BATCH), row.name.split(",")[0]):
        own = slice(begin, begin + _BATCH)
        held_out = np.ones(len(classes[own]), np.bool_)
        spectra = simulate_spectra(templates, classes[own], surveys[own], code[own], held_out, rng)
        seen = objects.states[own]
        # What is read off the points counts as metadata, too: without a light curve there is none of it.
        unseen = [replace(state, light_curve=LightCurve.empty()) for state in seen]
        whole, without = (
            replace(assemble(states), spectrum=SpectrumInputs(spectra, held_out)) for states in (seen, unseen)
        )
        for answers, subset in zip(parts, SUBSETS, strict=True):
            inputs = whole if subset[0] else without
            answers.append(model.of_inputs(inputs.only(*subset_name(subset).split("+"))))
    return [
        live_score(subset_name(subset), objects, Answers.joined(answers), CLASSES_THEMSELVES)
        for subset, answers in zip(SUBSETS, parts, strict=True)
    ]


def _first_scores(model: Repository, row: Row, seed: int) -> list[LiveScore]:
    chosen: NDArray[np.intp] = np.random.default_rng([seed, 5]).permutation(len(row.objects))[:MAX_STARS]
    objects = row.objects.take(np.sort(chosen).tolist())
    scores = []
    for n in track(DETECTIONS, f"{row.name.split(',')[0]}, first detections"):
        own = objects if n is None else first_points(objects, n)
        scores.append(live_score("all" if n is None else str(n), own, model(own), CLASSES_THEMSELVES))
    return scores


def markdown(subsets: Mapping[str, Sequence[LiveScore]], first: Mapping[str, Sequence[LiveScore]]) -> str:
    """The scores as tables: of the modalities, of recall by class, and of first detections."""
    head = "objects | accuracy | macro-F1 | ECE | 90 % set covers | mean size | NotClassified | Other |"
    lines = [f"| test set | modalities | {head}", "|---|---|" + "---:|" * 8]
    lines += [f"| {name} | {s.data} | {_cells(s)}" for name, scores in subsets.items() for s in scores]
    lines += ["", "Recall by class (number of objects):", ""]
    lines += ["| test set | modalities | " + " | ".join(CLASS_NAMES) + " |", "|---|---|" + "---:|" * len(CLASS_NAMES)]
    for name, scores in subsets.items():
        for s in scores:
            cells = [f"{s.recall[c]:.2f} ({s.class_counts[c]})" if c in s.recall else "-" for c in CLASS_NAMES]
            lines.append(f"| {name} | {s.data} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Light curve alone, after the first N detections of each star (real light curves; a star with fewer is there "
        "with all it has):",
        "",
    ]
    lines += [f"| test set | detections | {head}", "|---|---:|" + "---:|" * 8]
    lines += [f"| {name} | {s.data} | {_cells(s)}" for name, scores in first.items() for s in scores]
    return "\n".join(lines) + "\n"


def _cells(s: LiveScore) -> str:
    return (
        f"{s.objects} | {s.accuracy:.3f} | {s.macro_f1:.3f} | {s.expected_calibration_error:.3f} | {s.coverage:.3f} "
        f"| {s.set_size:.2f} | {s.not_classified} | {s.called_other} |"
    )


def save(
    subsets: Mapping[str, Sequence[LiveScore]],
    first: Mapping[str, Sequence[LiveScore]],
    origin: Origin,
    output: Path,
) -> str:
    """Write ``modalities.md`` and ``modalities.json`` into ``output``; gives the former's text."""
    output.mkdir(parents=True, exist_ok=True)
    text = f"# On ASAS and Catalina, by modality\n\n{origin}.\n\n{PREFACE}\n\n{markdown(subsets, first)}"
    (output / "modalities.md").write_text(text)
    found = {
        key: {name: [asdict(s) for s in scores] for name, scores in tables.items()}
        for key, tables in (("modalities", subsets), ("first detections", first))
    }
    (output / "modalities.json").write_text(json.dumps({"origin": asdict(origin)} | found, indent=1) + "\n")
    return text
