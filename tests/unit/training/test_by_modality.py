"""The published model by modality: what a subset of the modalities sees, and what the tables say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.assemble.inputs import ModelInputs
from broker.records import SOURCE_FEATURES, SourceMetadata
from tests.random_models import build_random_repository
from training.live.by_modality import markdown, save, subset_scores
from training.live.output import Origin
from training.live.rows import CLASSES_THEMSELVES, Row, one_band_tests
from training.live.scores import Answers, Repository
from training.simulate.spectra import load_templates


class _Seen(Repository):
    """Keeps what the model is given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.inputs: list[ModelInputs] = []

    def of_inputs(self, inputs: ModelInputs) -> Answers:
        self.inputs.append(inputs)
        return super().of_inputs(inputs)


def test_each_subset_sees_its_own_modalities_alone(shared: Path, tmp_path: Path) -> None:
    rows = {row.name: row.objects for row in one_band_tests(shared / "data")}
    stars = rows["ASAS, one band, held-out stars"].take(range(6))
    known = SourceMetadata(np.full(len(SOURCE_FEATURES), 12.0, np.float32))
    stars = replace(stars, states=[replace(state, metadata=known) for state in stars.states])
    model = _Seen(build_random_repository(tmp_path / "model", 3))
    row = Row("ASAS, made up", stars, CLASSES_THEMSELVES)
    scores = subset_scores(model, row, load_templates(shared / "data"))
    assert [score.data for score in scores] == [
        "light_curve+spectrum+metadata", "light_curve+spectrum", "light_curve+metadata", "light_curve",
        "spectrum+metadata", "spectrum", "metadata",
    ]  # fmt: skip
    assert all(score.objects == 6 for score in scores)
    for score, inputs in zip(scores, model.inputs, strict=True):
        present = {"light_curve": inputs.light_curve, "spectrum": inputs.spectrum, "metadata": inputs.metadata}
        assert {name for name, own in present.items() if own.present.all()} == set(score.data.split("+"))
        assert not any(own.present.any() for name, own in present.items() if name not in score.data.split("+"))
    whole, alone = model.inputs[0].metadata, model.inputs[-1].metadata
    assert alone.known.sum() < whole.known.sum()  # nothing that is read off the points
    assert not model.inputs[-1].light_curve.detections.any()

    text = save({"ASAS": scores}, {"ASAS": scores[:1]}, Origin("1", "command", "code"), tmp_path)
    assert f"| ASAS | spectrum | 6 | {scores[5].accuracy:.3f} |" in markdown({"ASAS": scores}, {})
    assert "Model 1, code code: `command`" in text
    assert (tmp_path / "modalities.md").read_text() == text
    stored = json.loads((tmp_path / "modalities.json").read_text())
    assert [score["data"] for score in stored["modalities"]["ASAS"]] == [score.data for score in scores]
