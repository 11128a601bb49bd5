"""Triton's model ``trifid``: a batch of objects in one request, by business-logic calls to the other models.

Runs in the Python backend of NVIDIA's container and of PyPI's server, and needs numpy only. The request says in its
parameters which version of each model it means, so that several versions can be served at a time.

Arrays pass by DLPack: the stub in PyPI's wheel knows numpy 1's memory layout only (see
``deploy/local/triton/onnxruntime/model.py``).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The encoder of each column of `present`, its inputs, and the classifier's input that takes its embedding.
ENCODERS = (
    ("light_curve_encoder", ("points", "points_mask", "folded", "features"), "light_curve"),
    ("spectrum_encoder", ("spectra",), "spectrum"),
    ("metadata_encoder", ("values", "known"), "metadata"),
)
CLASSIFIER = "classifier"
BY_MODALITY = "by_modality"
LATEST = -1  # Triton's number for the latest version


class TritonPythonModel:
    """One instance; it handles one request at a time."""

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails with the error, and its code, of the model that failed."""
        return [await self._answer(request) for request in requests]

    async def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(await _classified(request))
        except _FailedError as failed:
            return pb_utils.InferenceResponse(error=failed.error)


class _FailedError(Exception):
    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = error


def _refused(message: str) -> _FailedError:
    return _FailedError(pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


async def _classified(request: Any) -> list[Any]:
    """The classifier's outputs for the objects of a request, each of which has at least one modality."""
    versions = json.loads(request.parameters() or "{}")
    present_tensor = pb_utils.get_input_tensor_by_name(request, "present")
    present = np.from_dlpack(present_tensor)
    wanted, calls = [], []
    for rows, (encoder, names, name) in zip(present.T, ENCODERS, strict=True):
        tensors = [pb_utils.get_input_tensor_by_name(request, tensor) for tensor in names]
        given = {None if tensor is None else int(tensor.shape()[0]) for tensor in tensors}
        number = int(rows.sum())
        if given != {number} and not (number == 0 and given == {None}):
            raise _refused(
                f"{number} objects have a {name}, but {', '.join(names)} have {sorted(map(str, given))} rows"
            )
        if number:
            wanted.append((name, rows))
            calls.append(_call(request, encoder, versions, tensors, ["embedding"]))
    if not calls:
        return []  # nothing to classify: the warm-up
    embeddings = dict(zip((name for name, _ in wanted), await asyncio.gather(*calls), strict=True))
    inputs = [present_tensor, pb_utils.get_input_tensor_by_name(request, "detections")]
    width = next(iter(embeddings.values()))[0].shape()[1]
    rows_of = dict(wanted)
    outputs = list(request.requested_output_names())
    by_modality = np.zeros((len(present), len(ENCODERS), width), np.float32) if BY_MODALITY in outputs else None
    for column, (_, _, name) in enumerate(ENCODERS):
        full: Any = np.zeros((len(present), width), np.float32)
        if name in embeddings:
            (some,) = embeddings[name]
            if some.shape()[0] == len(present):
                full = some
            else:
                full[rows_of[name]] = np.from_dlpack(some)
        if by_modality is not None and name in embeddings:
            by_modality[:, column] = full if isinstance(full, np.ndarray) else np.from_dlpack(full)
        inputs.append(pb_utils.Tensor.from_dlpack(name, full))
    answers = await _call(request, CLASSIFIER, versions, inputs, [name for name in outputs if name != BY_MODALITY])
    if by_modality is not None:
        answers.append(pb_utils.Tensor.from_dlpack(BY_MODALITY, by_modality))
    return answers


async def _call(request: Any, model: str, versions: dict[str, str], inputs: list[Any], outputs: list[str]) -> list[Any]:
    """The outputs of a model; it has as long as ``request`` has."""
    response = await pb_utils.InferenceRequest(
        model_name=model,
        model_version=int(versions.get(model, LATEST)),
        inputs=inputs,
        requested_output_names=list(outputs),
        timeout=request.timeout(),
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    ).async_exec()
    if response.has_error():
        error = response.error()
        raise _FailedError(pb_utils.TritonError(f"{model}: {error.message()}", error.code()))
    return list(response.output_tensors())
