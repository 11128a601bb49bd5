"""What a light curve costs to encode: Trifid's encoder against AstroM3's Informer.

Both encoders have random weights, are exported as for service and run in ONNX Runtime on one thread. CPU time,
not wall time, so that other work on the machine does not count; the two take turns, and medians are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from broker.assemble.lightcurve import (
    FOLDED_CHANNELS,
    LIGHT_CURVE_FEATURES,
    PHASE_BINS,
    POINT_CHANNELS,
    POINTS,
)
from training.config import load_settings
from training.encoders.build import build_model
from training.export import export_models

BATCH, REPEATS = 256, 9
BAR = 1 / 8


def light_curves() -> dict[str, NDArray[np.generic]]:
    """Inputs of a batch; both encoders do the same work whatever the values are."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=(BATCH, *shape)).astype(np.float32)

    return {
        "points": normal(POINTS, POINT_CHANNELS),
        "points_mask": np.arange(POINTS) < rng.integers(5, POINTS + 1, (BATCH, 1)),
        "folded": normal(FOLDED_CHANNELS, PHASE_BINS),
        "features": normal(len(LIGHT_CURVE_FEATURES)),
    }


def session(name: str, folder: Path) -> onnxruntime.InferenceSession:
    """The light-curve encoder of the settings ``name``, exported and loaded."""
    torch.manual_seed(0)
    export_models(build_model(load_settings(name)), folder / name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / name / "light_curve_encoder" / "1" / "model.onnx", options)


def main() -> None:
    inputs = light_curves()
    with tempfile.TemporaryDirectory() as folder:
        sessions = {name: session(name, Path(folder)) for name in ("trifid", "astrom3")}
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in range(REPEATS + 1):
        for name, encoder in sessions.items():
            start = time.process_time()
            encoder.run(None, inputs)
            if repeat:  # the first run also allocates
                spent[name].append((time.process_time() - start) / BATCH)
    ours, informer = (statistics.median(spent[name]) for name in ("trifid", "astrom3"))
    verdict = "met" if ours / informer <= BAR else "missed"
    print(f"light-curve encoder, batches of {BATCH}, one thread, median of {REPEATS}, CPU time an object:")
    print(f"Trifid {1e3 * ours:.3f} ms, Informer {1e3 * informer:.3f} ms")
    print(f"ratio 1/{informer / ours:.0f}, bar 1/{1 / BAR:.0f}: {verdict}")


if __name__ == "__main__":
    main()
