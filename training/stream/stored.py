"""Networks that an earlier training wrote, read back from their ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from broker.errors import ConfigurationError
from training.encoders.trimodal import ConcatClassifier
from training.stream.head import Head
from training.stream.other_network import OtherHead

_WITHOUT, _WITH, _OTHER = "classifier.without_metadata.", "classifier.with_metadata.", "other."
_CALIBRATIONS = ("log_temperature", "slope", "offset")


def stored_head(repository: Path) -> Head:
    """The metadata encoder and the ten-class head of a repository that ``train_stream`` wrote.

    Temperatures are not read: the head gives logits. Raises ConfigurationError where the models are others.
    """
    classifier = _weights(repository / "classifier" / "1" / "model.onnx")
    encoder = _weights(repository / "metadata_encoder" / "1" / "model.onnx")
    without = ConcatClassifier()
    _load(without, classifier, _WITHOUT, repository)
    head = Head(without.eval())
    _load(head.ensemble, classifier, _WITH, repository)
    _load(head.metadata_encoder, encoder, "", repository)
    return head.eval()


@dataclass(frozen=True, slots=True, eq=False)
class StoredOther:
    """Networks of ``Other``, without their calibration; None for one that is to be trained."""

    total: OtherHead | None = None
    difference: OtherHead | None = None


def stored_other(repository: Path, *, difference: bool = True) -> StoredOther:
    """The networks of ``Other`` of such a repository; with or without that for ``difference`` photometry.

    Before 2026.11.29 there was one for both, which is then that of total fluxes. Raises as ``stored_head``.
    """
    weights = _weights(repository / "classifier" / "1" / "model.onnx")
    both = any(name.startswith(_OTHER + "total.") for name in weights)
    total = OtherHead()
    _load(total, weights, _OTHER + "total." if both else _OTHER, repository)
    if not difference:
        return StoredOther(total.eval())
    own = OtherHead(with_event=True)
    _load(own, weights, _OTHER + "difference.", repository)
    return StoredOther(total.eval(), own.eval())


def _weights(path: Path) -> dict[str, NDArray[np.generic]]:
    return {w.name: np.array(numpy_helper.to_array(w)) for w in onnx.load(path).graph.initializer}


def _load(module: nn.Module, weights: Mapping[str, NDArray[np.generic]], prefix: str, repository: Path) -> None:
    """Put those of ``weights`` whose names begin with ``prefix`` into ``module``: all but its calibration."""
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    wanted = {n: value for n, value in module.state_dict().items() if n not in _CALIBRATIONS}
    missing = [n for n, value in wanted.items() if n not in found or found[n].shape != tuple(value.shape)]
    if missing:
        raise ConfigurationError(f"{repository} holds no head of `python -m training stream`: no {', '.join(missing)}")
    module.load_state_dict({n: torch.from_numpy(found[n]) for n in wanted}, strict=False)
