"""The warm-up in Triton's configuration of a model: a batch of what the versions take that it is to load.

Triton warms up all versions of a model alike, and does not load one that is sent what it does not take. Classifiers of
before 2026.11.29 take no ``event``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.config import PipelineSettings

_Inputs = dict[str, tuple[str, tuple[int, ...]]]
"""Triton's type and the sizes after the batch dimension of each input, by name."""
_BLOCK: Final = re.compile(r"^model_warmup \[.*?^\}\][ \t]*$", re.MULTILINE | re.DOTALL)
_INPUT: Final = re.compile(r'key:\s*"(\w+)".*?data_type:\s*(\w+).*?dims:\s*\[([\d,\s]*)\]', re.DOTALL)
_NONE: Final = "# No model_warmup: the versions that are loaded differ in their inputs, and one warm-up is for all."
_TYPES: Final = {"tensor(float)": "TYPE_FP32", "tensor(bool)": "TYPE_BOOL"}
_ERROR_SEVERITY: Final = 3


def with_warm_up(text: str, models: Sequence[Path]) -> str:
    """``config.pbtxt`` with a warm-up that all of ``models``, ONNX files, take; without one where they differ.

    A warm-up that fits stays as it is, and a configuration that somebody has none in gets none. Where a file cannot be
    read nothing is changed: whoever loads it says so.
    """
    block = _BLOCK.search(text)
    if not models or (block is None and _NONE not in text):
        return text
    try:
        inputs = [_inputs_of(path) for path in models]
    except Exception:  # ONNX Runtime's exceptions have no common base of their own
        return text
    if any(other != inputs[0] for other in inputs):
        new = _NONE
    elif block is not None and _sent(block[0]) == inputs[0]:
        return text
    else:
        new = _warm_up(inputs[0])
    return text.replace(_NONE if block is None else block[0], new)


def _inputs_of(path: Path) -> _Inputs:
    import onnxruntime  # takes long, and whoever only lists a repository's versions needs it not

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERROR_SEVERITY
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return {node.name: (_TYPES[node.type], tuple(map(int, node.shape[1:]))) for node in session.get_inputs()}


def _sent(block: str) -> _Inputs:
    return {name: (kind, tuple(map(int, dims.split(",")))) for name, kind, dims in _INPUT.findall(block)}


def _warm_up(inputs: _Inputs) -> str:
    lines = [
        f'  inputs {{ key: "{name}" value {{ data_type: {kind}, dims: [ {", ".join(map(str, dims))} ], '
        f"{'zero_data' if kind == 'TYPE_BOOL' else 'random_data'}: true }} }}"
        for name, (kind, dims) in inputs.items()
    ]
    size = PipelineSettings().batch_size
    return "\n".join(["model_warmup [{", '  name: "batch"', f"  batch_size: {size}", *lines, "}]"])
