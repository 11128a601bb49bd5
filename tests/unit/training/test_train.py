"""``train`` through the command line, by AstroM3's recipe, on a few real stars."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from safetensors.torch import load_file

from training.__main__ import main
from training.config import CONFIGS

SMALL = {
    "layers = 8": "layers = 1",
    "width = 128": "width = 16",
    "\nepochs = 100": "\nepochs = 2",
    "\nepochs = 50": "\nepochs = 3",
    "batch_size = 512": "batch_size = 32",
    "warmup_epochs = 10": "warmup_epochs = 1",
}


def test_train_by_astrom3s_recipe(small: Path, tmp_path: Path) -> None:
    text = (CONFIGS / "astrom3.toml").read_text()
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    config = tmp_path / "small.toml"
    config.write_text(text)
    run = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--shared", str(small), "--output", str(run)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "**AstroM3's recipe:** each encoder was trained by itself" in result.stdout
    for stage, epochs in (("pretrain", 2), *((f"finetune-{m}", 3) for m in ("light_curve", "spectrum", "metadata"))):
        assert f"{stage} epoch {epochs}/{epochs}: loss" in result.output
        assert f"{stage}: done after epoch {epochs}, kept is epoch" in result.output
    scores = json.loads((run / "evaluation.json").read_text())
    assert {score["modalities"] for score in scores} >= {"light_curve", "spectrum", "light_curve+spectrum+metadata"}
    weights = load_file(run / "model.safetensors")
    assert weights["log_scale"].shape == (3,)
    assert {key.split(".")[2] for key in weights if key.startswith("classifier.heads")} == {"0", "1", "2"}
