"""Light-curve encoders of nine classes: what an anomaly score makes of a class that nothing was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from broker.errors import ConfigurationError
from broker.taxonomy import CLASS_INDEX
from training.config import load_settings, trifid_recipe
from training.encoders.build import build_model
from training.encoders.trimodal import Trimodal
from training.run import TrainingRun


def left_out_path(output: Path, name: str) -> Path:
    """Where the model without the class ``name`` is kept."""
    return output / f"without-{name}.safetensors"


def train_without(
    shared: Path, output: Path, name: str, epochs: int, versions: int, report: Callable[..., None]
) -> Trimodal:
    """Encoder of light curves and head that were trained on no star of the class ``name``, and kept in ``output``.

    The recipe is that of ``training/configs/trifid.toml`` for light curves alone, with fewer epochs and without the
    teacher, whose opinions of unlabelled stars could be of the class. Prepared light curves are looked for beside
    ``output``, as for ``train``, ``versions`` of each. Raises ConfigurationError for another name than one of the ten.
    """
    if name not in CLASS_INDEX:
        raise ConfigurationError(f"{name!r} is none of {', '.join(CLASS_INDEX)}")
    settings = trifid_recipe(load_settings("trifid"), "leaving out a class")
    finetune = settings.finetune.model_copy(update={"epochs": epochs, "teacher_share": 0.0})
    run = TrainingRun(settings.model_copy(update={"finetune": finetune}), shared, output, None, report, True, versions)
    labelled = run.labelled_rows()
    run.train_rows = labelled[run.labels.index[labelled] != CLASS_INDEX[name]]
    report(f"without {name}: {len(run.train_rows)} of {len(labelled)} labelled training stars, {epochs} epochs")
    model = run.train_cell(1.0, None, pretraining=False)
    save_file(model.state_dict(), left_out_path(output, name))
    return model.eval()


def load_without(output: Path, name: str) -> Trimodal:
    """The model that ``train_without`` kept; ConfigurationError where there is none."""
    path = left_out_path(output, name)
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist: run `python -m training train-without {name}` first")
    model = build_model(load_settings("trifid"))
    model.load_state_dict(load_file(path))
    return model.eval()


def left_out_classes(output: Path) -> list[str]:
    """The classes for which ``output`` has a model without them, in the order of the taxonomy."""
    return [name for name in np.array(list(CLASS_INDEX)).tolist() if left_out_path(output, name).exists()]
