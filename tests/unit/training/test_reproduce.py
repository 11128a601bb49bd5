"""AstroM3's training on a small Parquet of the published structure, from end to end, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from click.testing import CliRunner

from broker.taxonomy import CLASS_NAMES
from tests.unit.training.test_astrom3_dataset import PROCESSED, processed_row, write
from training.__main__ import main
from training.config import CONFIGS

STARS = {"train": 24, "validation": 10, "test": 10}
SMALL = {
    "layers = 8": "layers = 1",
    "width = 128": "width = 16",
    "steps = 500\n": "",
    "\nepochs = ": "\nsteps = 3\nepochs = ",
}


@pytest.mark.parametrize("config", ["astrom3", "informer", "trifid"])
def test_trains_and_scores_from_local_parquet(config: str, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    for split, size in STARS.items():
        rows = [processed_row(int(rng.integers(1000)), CLASS_NAMES[i % 10]) for i in range(size)]
        write(rows, PROCESSED, tmp_path / "published" / f"{split}.parquet")
    text = (CONFIGS / f"{config}.toml").read_text()
    for old, new in SMALL.items():
        text = text.replace(old, new)
    text = "\n".join("batch_size = 8" if line.startswith("batch_size") else line for line in text.splitlines())
    small = tmp_path / "small.toml"
    small.write_text(text)
    arguments = ["reproduce", str(tmp_path / "published"), "--config", str(small), "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "| AstroM3 | light_curve+spectrum+metadata | 10 |" in result.stdout
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len(scores) == 7  # every subset of the modalities
    assert all(score["class_counts"] == dict.fromkeys(CLASS_NAMES, 1) for score in scores)
    said = (tmp_path / "run" / "evaluation.md").read_text()
    assert ("AstroM3's recipe" in said) == (config == "astrom3")
    stages = {path.stem.removeprefix("checkpoint-") for path in (tmp_path / "run").glob("checkpoint-*")}
    own = {"finetune-light_curve", "finetune-spectrum", "finetune-metadata"}
    assert stages == {"pretrain", *(own if config == "astrom3" else ["finetune"])}
    for name in ("model.safetensors", "evaluation.md", "confusion.png", "reliability.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
