"""Triton's model ``trifid``: a batch of objects in one request, by business-logic calls to the other models.

Runs in the Python backend of NVIDIA's container and of PyPI's server, and needs numpy only. The request says in its
parameters which version of each model it means, so that several versions can be served at a time.

Arrays pass by DLPack: the stub in PyPI's wheel knows numpy 1's memory layout only (see
``deploy/local/triton/onnxruntime/model.py``).
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
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

    def initialize(self, args: dict[str, str]) -> None:
        """Make the threads that wait for encoders."""
        # Not a coroutine with async_exec: for each request the stub would make an event loop, with threads of its own.
        self._waiting = ThreadPoolExecutor(len(ENCODERS) - 1)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails with the error, and its code, of the model that failed."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(_classified(request, self._waiting, self.call))
        except _FailedError as failed:
            return pb_utils.InferenceResponse(error=failed.error)

    def call(self, request: Any, model: str, version: int, inputs: list[Any], outputs: list[str]) -> list[Any]:
        """The outputs, by these names, of a version of a model for a request; the local Triton has its own way."""
        return _call(request, model, version, inputs, outputs)


class _FailedError(Exception):
    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = error


def _refused(message: str) -> _FailedError:
    return _FailedError(pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def _classified(request: Any, waiting: ThreadPoolExecutor, call: Callable[..., list[Any]]) -> list[Any]:
    """The classifier's outputs for the objects of a request, each of which has at least one modality."""
    asked = json.loads(request.parameters() or "{}")
    versions = {
        model: int(asked.get(model, LATEST)) for model in (*(encoder for encoder, _, _ in ENCODERS), CLASSIFIER)
    }
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
            calls.append((request, encoder, versions[encoder], tensors, ["embedding"]))
    if not calls:
        return []  # nothing to classify: the warm-up
    *others, last = calls
    under_way = [waiting.submit(call, *one) for one in others]
    try:
        embedded = call(*last)
    finally:
        wait(under_way)  # they read the request's tensors
    answers = [*(one.result() for one in under_way), embedded]
    embeddings = dict(zip((name for name, _ in wanted), answers, strict=True))
    # Classifiers before 2026.11.29 take no "event", and it is not sent for them.
    as_they_are = [pb_utils.get_input_tensor_by_name(request, name) for name in ("detections", "event")]
    inputs = [present_tensor, *(tensor for tensor in as_they_are if tensor is not None)]
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
        inputs.append(_tensor(name, full))
    answers = call(request, CLASSIFIER, versions[CLASSIFIER], inputs, [name for name in outputs if name != BY_MODALITY])
    if by_modality is not None:
        answers.append(_tensor(BY_MODALITY, by_modality))
    return answers


def _call(request: Any, model: str, version: int, inputs: list[Any], outputs: list[str]) -> list[Any]:
    """The outputs of a model; it has as long as ``request`` has."""
    response = pb_utils.InferenceRequest(
        model_name=model,
        model_version=version,
        inputs=inputs,
        requested_output_names=list(outputs),
        timeout=request.timeout(),
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    ).exec()
    if response.has_error():
        error = response.error()
        raise _FailedError(pb_utils.TritonError(f"{model}: {error.message()}", error.code()))
    return list(response.output_tensors())


# A capsule that was consumed, as DLPack's specification names it. The stub gives it another name, by which numpy takes
# it for one that was not, and writes a traceback to the log for each tensor. The function is an object of its own:
# other packages give that of ctypes.pythonapi argument types of their own (dill, which PyTorch imports).
USED_CAPSULE = ctypes.create_string_buffer(b"used_dltensor")
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(("PyCapsule_SetName", ctypes.pythonapi))


def _tensor(name: str, array: Any) -> Any:
    """Triton's tensor of an array, or of another of its tensors, which it keeps and does not copy."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _set_name(capsule, ctypes.addressof(USED_CAPSULE))
    return tensor
