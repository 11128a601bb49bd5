"""The local Triton's model ``trifid``: runs the ONNX files in its own process, where the gateway calls the models.

With PyPI's server each model is a Python process of its own, and with batches of 64 a call to one takes a tenth of the
time of a batch. So this one, of which ``deploy/local/triton_in_process.py`` makes the local server's ``trifid``, does
what the gateway does (``gateway.py`` beside it is ``model_repo/trifid/1/model.py``), with sessions of its own instead
of calls (``onnx_models.py`` is ``deploy/local/triton/onnxruntime/model.py``).

Which versions are served remains Triton's to say. Files of the version that the manifest names are loaded at the
start, and have run a batch before this model is ready. Before one is used, and again after ``recheck_s``, the model is
called with the first object of the request: one that Triton has not loaded is found out, one that answers otherwise
than the file is not used, and Triton's statistics show that the version is in use (``broker.models.promote``). The
first request for another version calls the model; once it has answered, a thread loads the version's file. Where a file
has changed since it was loaded here, the model is called from then on. What fails here is tried by a call, so that
errors and their codes are Triton's.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gateway
import numpy as np
import onnx_models
import triton_python_backend_utils as pb_utils

IDLE_S = 300.0
"""A version that nobody has asked for so long is released; looked at when another is called."""
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Answers of one file do not differ by more, whoever runs it."""
NEVER = float("-inf")


class Loaded:
    """A version of a model in this process."""

    def __init__(self, path: Path, threads: int) -> None:
        """Load a file; ``threads`` are those of one operation, 0 for one a core."""
        self._path, self._seen = path, fingerprint(path)
        parameters = {"intra_op_thread_count": {"string_value": str(threads)}}
        self._session = onnx_models.Session(path, parameters, [onnx_models.CPU])
        self.asked, self.called = time.monotonic(), NEVER

    def run(self, inputs: list[Any], outputs: list[str]) -> list[Any]:
        """Triton's tensors of these names, of all rows of the inputs."""
        feed = {tensor.name(): np.from_dlpack(tensor) for tensor in inputs}
        found = onnx_models.in_parts(self._session, outputs, feed, onnx_models.CPU_ROWS)
        # Arrays that live as long as the tensors: see ``onnx_models``.
        return [gateway._tensor(name, np.array(array)) for name, array in zip(outputs, found, strict=True)]

    def changed(self) -> bool:
        """Whether the file is another one now, or gone."""
        try:
            return fingerprint(self._path) != self._seen
        except OSError:
            return True


def fingerprint(path: Path) -> tuple[int, int, int]:
    """What is another one after a file was replaced."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


class TritonPythonModel(gateway.TritonPythonModel):
    """One instance; it handles one request at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load what the manifest names; the rest is loaded when it is asked for."""
        super().initialize(args)
        folder = Path(args["model_repository"])
        config = json.loads(args["model_config"])
        settings = json.loads(config["parameters"]["in_process"]["string_value"])
        self._warm_ups = len(config["model_warmup"])
        """Requests of the server itself that are still to come; they are an instance's first."""
        self._models, self._threads, self._recheck_s = folder.parent, settings["threads"], settings["recheck_s"]
        self._loaded: dict[tuple[str, int], Loaded | None] = {}
        """None while a version is being loaded, and where it is not to be used."""
        self._loader = ThreadPoolExecutor(1)
        self._served = {model: int(version) for model, version in settings["served"].items()}
        for which in self._served.items():
            self._loaded[which] = None
            self._load(which)

    def execute(self, requests: list[Any]) -> list[Any]:
        """As the gateway's; what the server sends to warm up need not be answered where a model is not loaded here."""
        answers = []
        for request in requests:
            answer = self._answer(request)
            if self._warm_ups:
                self._warm_ups -= 1
                if answer.has_error():
                    pb_utils.Logger.log_warn(f"not warmed up: {answer.error().message()}")
                    answer = pb_utils.InferenceResponse([])
            answers.append(answer)
        return answers

    def finalize(self) -> None:
        """A file that is being loaded is loaded first: ONNX Runtime does not take the end of its process meanwhile."""
        self._loader.shutdown(cancel_futures=True)

    def call(self, request: Any, model: str, version: int, inputs: list[Any], outputs: list[str]) -> list[Any]:
        """The outputs of a version of a model, from this process where it is loaded here."""
        if self._warm_ups:
            version = self._served.get(model, version)
        which = model, version
        loaded = self._loaded.get(which)
        if loaded is None:
            if self._warm_ups:
                raise gateway._refused(f"{model} is not in the process of trifid")
            return self._called(request, which, inputs, outputs)
        if not self._warm_ups and not self._to_be_used(request, which, loaded, inputs, outputs):
            return super().call(request, model, version, inputs, outputs)
        try:
            return loaded.run(inputs, outputs)
        except Exception as error:  # whatever it is, the model answers, or says what is wrong
            if self._warm_ups:
                raise gateway._refused(f"{model} {version}: {error}") from error
            pb_utils.Logger.log_warn(f"{model} {version} in the process of trifid: {error}")
            return super().call(request, model, version, inputs, outputs)

    def _called(self, request: Any, which: tuple[str, int], inputs: list[Any], outputs: list[str]) -> list[Any]:
        """As the gateway's; what Triton has is then loaded here, and what it has not is no longer used."""
        try:
            found = super().call(request, *which, inputs, outputs)
        except Exception:
            self._loaded.pop(which, None)
            raise
        if which not in self._loaded and which[1] != gateway.LATEST:
            self._loaded[which] = None
            self._loader.submit(self._load, which)
        return found

    def _to_be_used(
        self, request: Any, which: tuple[str, int], loaded: Loaded, inputs: list[Any], outputs: list[str]
    ) -> bool:
        """Whether this is what Triton serves; raises as the gateway's call where Triton does not serve it."""
        now = time.monotonic()
        loaded.asked = now
        if loaded.changed():  # Triton serves what it loaded, and nobody knows which of the two this is
            self._loaded[which] = None
            return False
        if now - loaded.called < self._recheck_s:
            return True
        for other, one in list(self._loaded.items()):
            if one is not None and now - one.asked > IDLE_S:
                self._loaded.pop(other, None)
        first = [gateway._tensor(tensor.name(), np.array(np.from_dlpack(tensor)[:1])) for tensor in inputs]
        try:
            answers = super().call(request, *which, first, outputs)
        except Exception:
            self._loaded.pop(which, None)
            raise
        own = {tensor.name(): np.from_dlpack(tensor) for tensor in loaded.run(first, outputs)}
        for tensor in answers:  # in an order of their own
            if not np.allclose(np.from_dlpack(tensor), own[tensor.name()], RELATIVE, ABSOLUTE, equal_nan=True):
                pb_utils.Logger.log_warn(f"{which[0]} {which[1]} answers otherwise than its file: it is called")
                self._loaded[which] = None
                return False
        loaded.called = now
        return True

    def _load(self, which: tuple[str, int]) -> None:
        model, version = which
        try:
            loaded = Loaded(self._models / model / str(version) / "model.onnx", self._threads[model])
        except Exception as error:  # whatever it is, the model answers
            pb_utils.Logger.log_warn(f"{model} {version} is not loaded in the process of trifid: {error}")
            return
        if which in self._loaded:  # else a call has failed meanwhile
            self._loaded[which] = loaded
