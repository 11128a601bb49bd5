"""AstroM3's table: modalities, with and without pre-training, on shares of the labels, over several seeds.

AstroM3 (arXiv 2411.08842, section 5) trains one model for each column of its table: photometry, spectra, metadata,
all three. Trifid's model is fine-tuned on every subset of the modalities at once, so here **one training gives all
four columns**, and a column is one model's score when it is shown that subset alone. As in AstroM3, pre-training
sees the inputs of all training stars and none of their labels, whatever share of the labels fine-tuning gets, and
a seed decides which stars train as well as the weights, so that the deviation over seeds holds both.

Unlike AstroM3's, the spectra here and most metadata are drawn by a star's class, so that pre-training can learn the
classes from them even where the label itself is held back. What it gains here is an upper limit of what it would gain
with measured spectra.

The same cells compare surveys (trained on one, tested on the other) and encoders (light curves alone).
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError, InputFileError
from broker.taxonomy import CLASS_NAMES
from training.config import FinetuneSettings, ModelSettings
from training.data import TrainingSet
from training.encoders.trimodal import Trimodal
from training.evaluate import TEST_SETS, Score, calibrate_and_score

ALL_SURVEYS = "all"
COLUMNS: dict[str, str] = {
    "light_curve": "light curve (real)",
    "spectrum": "spectrum (simulated)",
    "metadata": "metadata (partly simulated)",
    "+".join(MODALITIES): "all three",
}
"""Subsets of the modalities that the table shows, with the heading of each."""
MEASURES: dict[str, str] = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "expected_calibration_error": "Expected calibration error",
}


class CellRun(Protocol):
    """What the table needs of ``training.run.Run``: the data of one seed, and training on a part of it."""

    data: TrainingSet
    validation_rows: NDArray[np.intp]
    test_rows: NDArray[np.intp]

    def scored(self, rows: NDArray[np.intp], survey: str | None = None) -> NDArray[np.intp]:
        """Those of ``rows`` that may be scored, of one survey or all."""

    def labelled_rows(self, fraction: float, survey: str | None) -> NDArray[np.intp]:
        """Training rows whose labels a cell may see."""

    def train_cell(self, fraction: float, survey: str | None, pretraining: bool) -> Trimodal:
        """A model trained on them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One training."""

    encoder: str
    """Name in the settings of the model."""
    train_survey: str
    """``asas``, ``css`` or ALL_SURVEYS."""
    fraction: float
    """Share of the labelled training stars whose labels are used."""
    pretrained: bool
    light_curve_only: bool
    """Whether the model was trained on light curves alone, without the other encoders."""
    seed: int


@dataclass(frozen=True, slots=True)
class CellResult:
    """What one training came to."""

    cell: Cell
    settings: dict[str, Any]
    """The model's settings, less their seed, as JSON holds them."""
    labels: int
    """Labelled objects fine-tuned on."""
    cpu_seconds: float
    """Processor time of the training; pre-training is in that of the first cell of its seed, which the others reuse."""
    scores: list[Score]
    """For each test set and each subset of the modalities."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cells to run."""

    seeds: tuple[int, ...]
    fractions: tuple[float, ...] = (1.0,)
    pretrained: tuple[bool, ...] = (False, True)
    train_survey: str = ALL_SURVEYS
    light_curve_only: bool = False

    def cells(self, encoder: str) -> list[Cell]:
        """All cells, those of a seed together; ConfigurationError where the plan makes no sense."""
        if self.train_survey not in (ALL_SURVEYS, *TEST_SETS):
            raise ConfigurationError(
                f"no survey {self.train_survey!r} to train on: {ALL_SURVEYS}, {', '.join(TEST_SETS)}"
            )
        if self.light_curve_only and any(self.pretrained):
            raise ConfigurationError("pre-training needs several modalities: light curves alone go with --pretrain no")
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ConfigurationError(f"fractions of the labels lie in (0, 1]: {self.fractions}")
        return [
            Cell(encoder, self.train_survey, fraction, pretrained, self.light_curve_only, seed)
            for seed in self.seeds
            for pretrained in self.pretrained
            for fraction in self.fractions
        ]


def label_subset(
    index: NDArray[np.int64], star: NDArray[np.intp], rows: NDArray[np.intp], fraction: float, seed: int
) -> NDArray[np.intp]:
    """Those of ``rows`` (m,) whose labels are kept: a share of the stars of each class, at least one star a class.

    ``index`` (n,) is each object's class and ``star`` (n,) its physical star; all rows of a star go together, and
    the class of a star that is labelled differently twice is that of its first row. A smaller share is part of a
    larger one of the same seed. Rows come back in order.
    """
    stars, first = np.unique(star[rows], return_index=True)
    label = index[rows[first]]
    rng = np.random.default_rng([seed, 7])
    kept = []
    for c in np.unique(label):
        own = rng.permutation(stars[label == c])
        kept.append(own[: max(1, round(fraction * len(own)))])
    return np.sort(rows[np.isin(star[rows], np.concatenate(kept))])


def settings_for_labels(settings: FinetuneSettings, labels: int, all_labels: int) -> FinetuneSettings:
    """The settings with as many steps as suit ``labels`` objects out of ``all_labels``.

    Steps go down with the root of the number of labels. The same number of epochs would leave a tenth of the labels
    a tenth of the steps, too few to learn anything; the same number of steps would go over them ten times as
    often, and cost as much as all labels do.
    """
    if labels == all_labels:
        return settings
    steps = settings.steps or settings.epochs * max(1, all_labels // settings.batch_size)
    return settings.model_copy(
        update={
            "steps": max(1, round(steps * (labels / all_labels) ** 0.5)),
            "batch_size": min(settings.batch_size, labels),
        }
    )


def run_table(
    make_run: Callable[[int], CellRun], settings: ModelSettings, plan: Plan, folder: Path, console: Console
) -> list[CellResult]:
    """Train and score all cells of ``plan``; returns all results in ``folder``, of earlier plans too.

    ``make_run`` loads the data of a seed; it is called once a seed, and not where all its cells are done. Each result
    is appended to ``results.jsonl`` when it is there, and a cell that is in that file is not trained again, so that
    an interrupted table goes on where it was. Raises ConfigurationError where that file has results of a model of
    the same name with other settings, InputFileError where it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    results = read_results(path)
    own_settings = settings.model_dump(mode="json", exclude={"seed"})
    if any(r.cell.encoder == settings.name and r.settings != own_settings for r in results):
        raise ConfigurationError(
            f"{path} has results of {settings.name} with other settings; take another output folder or name"
        )
    cells = plan.cells(settings.name)
    done = {result.cell for result in results}
    missing = [cell for cell in cells if cell not in done]
    progress, task = _progress(len(cells), len(cells) - len(missing))
    console.print(progress.get_renderable())
    for seed in dict.fromkeys(cell.seed for cell in missing):
        run = make_run(seed)
        for cell in missing:
            if cell.seed != seed:
                continue
            result = _train_and_score(run, cell, own_settings)
            _append(path, result)
            results.append(result)
            console.log(f"{cell}: {_in_short(result)}")
            progress.advance(task)
            console.print(progress.get_renderable())
    return results


def _train_and_score(run: CellRun, cell: Cell, settings: dict[str, Any]) -> CellResult:
    survey = None if cell.train_survey == ALL_SURVEYS else cell.train_survey
    start = time.process_time()
    model = run.train_cell(cell.fraction, survey, cell.pretrained)
    cpu_seconds = time.process_time() - start
    tests = {name: run.scored(run.test_rows, key) for key, name in TEST_SETS.items()}
    # Calibrated on the survey trained on: a model taken to another survey has no labels there.
    found = calibrate_and_score(model, run.data, run.scored(run.validation_rows, survey), tests)
    labels = len(run.labelled_rows(cell.fraction, survey))
    return CellResult(cell, settings, labels, round(cpu_seconds, 1), found.scores)


def _progress(total: int, done: int) -> tuple[Progress, Any]:
    """A bar that is printed after each cell, not a live one: each training shows a live bar of its own."""
    columns = [TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    progress = Progress(*columns, speed_estimate_period=1e9, auto_refresh=False)
    return progress, progress.add_task("cells", total=total, completed=done)


def _in_short(result: CellResult) -> str:
    accuracies = [f"{s.test_set} {s.accuracy:.3f}" for s in result.scores if s.modalities == MODALITIES[0]]
    return f"light curve alone {', '.join(accuracies)}; {result.cpu_seconds:.0f} s of processor time"


def read_results(path: Path) -> list[CellResult]:
    """The results in a JSON-lines file, none if there is no file; InputFileError where a line is no result.

    A last line without its end, left by a process that was killed, is cut off.
    """
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    results = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values = json.loads(line)
            values["cell"] = Cell(**values["cell"])
            values["scores"] = [Score(**score) for score in values["scores"]]
            results.append(CellResult(**values))
        except (ValueError, TypeError, KeyError) as error:
            raise InputFileError(f"{path}, line {number}: no result of a table: {error}") from error
    return results


def _append(path: Path, result: CellResult) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def mean_and_deviation(values: Sequence[float]) -> str:
    """``0.912 ± 0.004``: mean and sample standard deviation; the mean alone of one value."""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def markdown(results: Sequence[CellResult]) -> str:
    """All results as Markdown: for each test set, each measure over modalities, then recall by class."""
    groups: dict[Cell, list[CellResult]] = {}
    for result in sorted(results, key=lambda r: _order(r.cell)):
        groups.setdefault(replace(result.cell, seed=0), []).append(result)
    parts = [_PREFACE, _schedules(results), _costs(groups)]
    for test_set in TEST_SETS.values():
        parts.append(f"## {test_set}\n\n{_object_counts(results, test_set)}")
        parts += [_measure_table(groups, test_set, measure) for measure in MEASURES]
        parts.append(_recall_table(groups, test_set))
    return "\n".join(parts)


_PREFACE = """# Modalities, pre-training and shares of the labels

Mean ± sample standard deviation over seeds. A seed decides which stars train and which calibrate, the simulated
spectra and the weights; the test stars are the same for all.
Light curves and labels are real, **spectra are simulated, metadata partly so** (docs/simulation.md): only the light
curve's column is a result on real data. One training gives all columns, since the model is fine-tuned on every
subset of the modalities; AstroM3 trains one model a column. Pre-training sees the inputs of all training stars and no
labels, fine-tuning the labels of the share of the stars that is named, chosen within each class. But simulated
spectra and metadata are drawn by class, so that pre-training on them can learn classes whose labels are held back: its
gain is an upper limit.
"""


def _order(cell: Cell) -> tuple[object, ...]:
    return cell.light_curve_only, cell.train_survey, cell.encoder, -cell.fraction, cell.pretrained, cell.seed


def _schedules(results: Sequence[CellResult]) -> str:
    lines = []
    for name, settings in {r.cell.encoder: r.settings for r in results}.items():
        stages = [
            f"{title} {_length(settings[stage])} in batches of {settings[stage]['batch_size']}"
            for stage, title in (("pretrain", "pre-training"), ("finetune", "fine-tuning"))
        ]
        lines.append(f"- `{name}`: {', '.join(stages)}; a share of the labels takes the root of it of the steps.")
    return "\n".join(lines) + "\n"


def _length(stage: dict[str, Any]) -> str:
    return f"{stage['steps']} steps" if stage.get("steps") else f"{stage['epochs']} epochs"


_ROW_HEADING = "| encoders | trained on | labels | pre-trained |"
_ROW_RULE = "|---|---|---:|---|"


def _row(cell: Cell) -> str:
    survey = TEST_SETS.get(cell.train_survey, "both surveys")
    inputs = ", light curves alone" if cell.light_curve_only else ""
    return f"| {cell.encoder} | {survey}{inputs} | {cell.fraction:.0%} | {'yes' if cell.pretrained else 'no'} |"


def _costs(groups: dict[Cell, list[CellResult]]) -> str:
    lines = [f"{_ROW_HEADING} seeds | labelled objects | CPU seconds a training |", f"{_ROW_RULE}---:|---:|---:|"]
    for cell, own in groups.items():
        seconds = statistics.fmean(r.cpu_seconds for r in own)
        lines.append(f"{_row(cell)} {len(own)} | {_span(r.labels for r in own)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _span(counts: Iterable[int]) -> str:
    counts = list(counts)
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _of(results: Iterable[CellResult], test_set: str, modalities: str) -> list[Score]:
    return [s for r in results for s in r.scores if s.test_set == test_set and s.modalities == modalities]


def _columns(results: Iterable[CellResult], test_set: str) -> dict[str, str]:
    """Those of COLUMNS that were scored."""
    scored = {s.modalities for r in results for s in r.scores if s.test_set == test_set}
    return {modalities: heading for modalities, heading in COLUMNS.items() if modalities in scored}


def _object_counts(results: Sequence[CellResult], test_set: str) -> str:
    counts = [
        f"{heading} {_span(s.objects for s in _of(results, test_set, modalities))}"
        for modalities, heading in _columns(results, test_set).items()
    ]
    return f"Test objects: {', '.join(counts)}.\n"


def _measure_table(groups: dict[Cell, list[CellResult]], test_set: str, measure: str) -> str:
    columns = _columns([r for own in groups.values() for r in own], test_set)
    lines = [f"{MEASURES[measure]}:", "", f"{_ROW_HEADING} {' | '.join(columns.values())} |"]
    lines.append(_ROW_RULE + "---:|" * len(columns))
    for cell, own in groups.items():
        values = [[getattr(s, measure) for s in _of(own, test_set, modalities)] for modalities in columns]
        lines.append(f"{_row(cell)} {' | '.join(mean_and_deviation(v) if v else '-' for v in values)} |")
    return "\n".join(lines) + "\n"


def _recall_table(groups: dict[Cell, list[CellResult]], test_set: str) -> str:
    lines = ["Recall by class, light curve alone:", "", f"{_ROW_HEADING} {' | '.join(CLASS_NAMES)} |"]
    lines.append(_ROW_RULE + "---:|" * len(CLASS_NAMES))
    for cell, own in groups.items():
        scores = _of(own, test_set, MODALITIES[0])
        recalls = [[s.recall[name] for s in scores if name in s.recall] for name in CLASS_NAMES]
        lines.append(f"{_row(cell)} {' | '.join(f'{statistics.fmean(r):.2f}' if r else '-' for r in recalls)} |")
    return "\n".join(lines) + "\n"
