"""The table of experiments: which labels a share keeps, resuming, deviations, and real cells from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from broker.errors import ConfigurationError, InputFileError
from training.config import ModelSettings, load_settings
from training.encoders.build import new_model
from training.encoders.trimodal import SUBSETS, Trimodal, subset_name
from training.evaluate import Score
from training.run import TrainingRun
from training.table import (
    Cell,
    CellResult,
    Plan,
    label_subset,
    markdown,
    mean_and_deviation,
    read_results,
    run_table,
    settings_for_labels,
)

QUIET = Console(quiet=True)


def test_shares_of_the_labels_are_nested_and_stratified_by_star() -> None:
    rng = np.random.default_rng(0)
    star = np.concatenate([np.arange(400), np.arange(100)])  # the first hundred stars are there twice
    label = rng.choice(4, 400, p=[0.6, 0.3, 0.09, 0.01])[star]
    rows = np.flatnonzero(np.arange(500) % 7 > 0)
    kept = {f: label_subset(label, star, rows, f, seed=1) for f in (0.1, 0.25, 0.5, 1.0)}
    np.testing.assert_array_equal(kept[1.0], rows)
    for smaller, larger in ((0.1, 0.25), (0.25, 0.5), (0.5, 1.0)):
        assert set(kept[smaller]) < set(kept[larger])
    for fraction, chosen in kept.items():
        own = set(star[chosen])
        assert all((star[r] in own) == (r in chosen) for r in rows)  # all rows of a star, or none
        for c in range(4):
            stars = len(np.unique(star[rows][label[rows] == c]))
            assert len({s for s in own if label[star == s][0] == c}) == max(1, round(fraction * stars))
    assert set(label[kept[0.1]]) == {0, 1, 2, 3}
    assert not np.array_equal(kept[0.25], label_subset(label, star, rows, 0.25, seed=2))


def test_steps_go_down_with_the_root_of_the_labels() -> None:
    settings = load_settings("table").finetune.model_copy(update={"epochs": 8, "batch_size": 256})
    assert settings_for_labels(settings, 25600, 25600) == settings
    quarter = settings_for_labels(settings, 6400, 25600)
    assert (quarter.steps, quarter.batch_size) == (400, 256)  # half of 8 times 100
    few = settings_for_labels(settings, 100, 25600)
    assert (few.steps, few.batch_size) == (50, 100)


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="several modalities"):
        Plan((0,), light_curve_only=True).cells("trifid")
    with pytest.raises(ConfigurationError, match="no survey 'ogle'"):
        Plan((0,), train_survey="ogle").cells("trifid")
    with pytest.raises(ConfigurationError, match="fractions"):
        Plan((0,), fractions=(0.0,)).cells("trifid")
    cells = Plan((0, 1), (1.0, 0.1)).cells("trifid")
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert len(set(cells)) == 8


def test_mean_and_deviation_by_hand() -> None:
    assert mean_and_deviation([0.9, 0.92, 0.94]) == "0.920 ± 0.020"
    assert mean_and_deviation([0.5]) == "0.500"


def result(seed: int, accuracy: float, objects: int = 100, **changes: object) -> CellResult:
    cell = Cell(**{
        "encoder": "trifid", "train_survey": "all", "fraction": 0.25, "pretrained": True,
        "light_curve_only": False, "seed": seed, **changes,
    })  # type: ignore[arg-type]  # fmt: skip
    scores = [
        Score("ASAS", name, objects, accuracy, accuracy / 2, 0.01, 0.9, 1.5, {"EW": accuracy}, {"EW": objects})
        for name in ("light_curve", "light_curve+spectrum+metadata")
    ]
    stage = {"epochs": 3, "steps": None, "batch_size": 64}
    return CellResult(cell, {"pretrain": stage, "finetune": stage | {"steps": 70}}, 1000, 12.5, scores)


def test_the_table_by_hand() -> None:
    results = [result(0, 0.90), result(1, 0.94, objects=120), result(0, 0.8, train_survey="css", pretrained=False)]
    lines = markdown(results).splitlines()
    assert "- `trifid`: pre-training 3 epochs in batches of 64, fine-tuning 70 steps in batches of 64; " in "\n".join(
        lines
    )
    assert "Test objects: light curve (real) 100-120, all three 100-120." in lines
    table = lines[lines.index("Accuracy:") + 2 :]
    assert table[0] == "| encoders | trained on | labels | pre-trained | light curve (real) | all three |"
    assert table[2] == "| trifid | both surveys | 25% | yes | 0.920 ± 0.028 | 0.920 ± 0.028 |"
    assert table[3] == "| trifid | Catalina | 25% | no | 0.800 | 0.800 |"
    macro_f1 = lines[lines.index("Macro-F1:") + 2 :]
    assert macro_f1[2] == "| trifid | both surveys | 25% | yes | 0.460 ± 0.014 | 0.460 ± 0.014 |"


def test_a_line_cut_off_is_dropped_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = json.dumps(asdict(result(0, 0.9))) + "\n"
    path.write_text(line + line[:40])
    assert read_results(path) == [result(0, 0.9)]
    assert path.read_text() == line
    path.write_text(line + '{"cell": 3}\n')
    with pytest.raises(InputFileError, match="line 2"):
        read_results(path)
    assert read_results(tmp_path / "none.jsonl") == []


@pytest.fixture(scope="module")
def settings() -> ModelSettings:
    settings = load_settings("table")
    stages = {
        "pretrain": settings.pretrain.model_copy(update={"steps": 2, "batch_size": 64}),
        "finetune": settings.finetune.model_copy(update={"steps": 20, "batch_size": 64}),
    }
    return settings.model_copy(update=stages)


class Counted:
    """Makes runs, and counts them and the cells they train."""

    def __init__(self, make: Callable[[int], TrainingRun]) -> None:
        self.make = make
        self.seeds: list[int] = []
        self.cells: list[tuple[float, str | None, bool]] = []

    def __call__(self, seed: int) -> TrainingRun:
        self.seeds.append(seed)
        run = self.make(seed)
        train = run.train_cell

        def counted(fraction: float, survey: str | None, pretraining: bool) -> Trimodal:
            self.cells.append((fraction, survey, pretraining))
            return train(fraction, survey, pretraining)

        run.train_cell = counted  # type: ignore[method-assign]
        return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run folders, which share their light curves."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(small: Path, settings: ModelSettings, runs: Path) -> TrainingRun:
    """A run on light curves alone."""
    return TrainingRun(settings, small, runs / "alone", 0, silent, light_curve_only=True)


def silent(*_: object) -> None:
    """A report that nobody hears."""


def test_cells_from_end_to_end_and_resumed(small: Path, settings: ModelSettings, runs: Path) -> None:
    folder = runs / "table"
    make = Counted(lambda seed: TrainingRun(settings, small, folder, seed, silent))
    results = run_table(make, settings, Plan((0,), (1.0, 0.5)), folder, QUIET)
    assert make.cells == [(1.0, None, False), (0.5, None, False), (1.0, None, True), (0.5, None, True)]
    assert [r.labels for r in results[:2]] == [r.labels for r in results[2:]]
    assert results[1].labels == pytest.approx(results[0].labels / 2, abs=5)
    names = {subset_name(subset) for subset in SUBSETS}
    for r in results:
        assert {(s.test_set, s.modalities) for s in r.scores} == {(t, n) for t in ("ASAS", "Catalina") for n in names}
        assert r.cpu_seconds > 0
    # Pre-training changes the model, and so does the share of the labels.
    assert len({json.dumps([asdict(s) for s in r.scores]) for r in results}) == 4

    again = run_table(make, settings, Plan((0,), (1.0, 0.5)), folder, QUIET)
    assert again == results
    assert make.seeds == [0]  # nothing was even loaded
    more = run_table(make, settings, Plan((0,), (1.0,), (False,), train_survey="asas"), folder, QUIET)
    assert more[:-1] == results
    assert make.cells[4:] == [(1.0, "asas", False)]
    assert more[-1].labels < results[0].labels

    text = markdown(more)
    assert "| trifid-short | ASAS | 100% | no |" in text
    longer = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"steps": 30})})
    with pytest.raises(ConfigurationError, match="other settings"):
        run_table(make, longer, Plan((0,)), folder, QUIET)


def test_light_curves_alone_need_no_spectra_and_leave_the_other_encoders_as_they_are(
    alone: TrainingRun, settings: ModelSettings
) -> None:
    run, folder = alone, alone.output
    model = run.train_cell(1.0, None, False)
    untrained = new_model(run.settings, run.seed, run.data, run.labelled_rows())
    changed = {
        name.split(".")[0]
        for (name, before), after in zip(untrained.state_dict().items(), model.state_dict().values(), strict=True)
        if not before.equal(after)
    }
    assert changed == {"light_curve_encoder", "classifier"}
    with pytest.raises(ConfigurationError, match="several modalities"):
        run.train_cell(1.0, None, True)
    results = run_table(lambda _: run, settings, Plan((0,), pretrained=(False,), light_curve_only=True), folder, QUIET)
    assert {(s.test_set, s.modalities) for s in results[0].scores} == {
        ("ASAS", "light_curve"),
        ("Catalina", "light_curve"),
    }
    assert not list(folder.glob("spectra*"))


def test_an_evaluation_leaves_tables_and_figures(alone: TrainingRun) -> None:
    folder = alone.output
    alone.calibrate_and_evaluate(alone.train_cell(1.0, None, False))
    names = {"evaluation.md", "evaluation.json", "calibration.json", "detections.json", "detections.png", "umap.png"}
    names |= {f"{kind}_{test}.png" for kind in ("confusion", "reliability") for test in ("asas", "catalina")}
    assert names <= {path.name for path in folder.iterdir()}
    assert "| ASAS | 10 |" in (folder / "evaluation.md").read_text()
