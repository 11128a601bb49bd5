"""The engine that runs the models in this process, with ONNX Runtime."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError, InferenceError
from broker.inference import Begun, Later, Predictions, equal_parts
from broker.inference.encode import (
    RequestBatch,
    Signature,
    Tensors,
    TensorSpec,
    check_signatures,
    classify_by,
    embedding_width,
    predict_batch,
)
from broker.inference.manifest import MODELS, Manifest, load_manifest

_DATATYPES: Final = {"tensor(float)": "FP32", "tensor(bool)": "BOOL"}
_GPU_PROVIDERS: Final = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider"})
_CPU_ROWS: Final = 64
"""Objects that a model takes at once on a CPU: what its layers hand on then fits the cache of a core (0.2 MB an object
for the light curves' encoder), which saves a tenth of the time that 256 take."""
_LEAST_ROWS: Final = 16
"""Objects of the smallest part that is made for a thread's sake: of 16 one costs a fifth more CPU than of 64."""
_ERROR_SEVERITY: Final = 3  # OrtLoggingLevel: warnings of the graph optimizer tell an operator nothing


def _specs(nodes: Sequence[Any]) -> dict[str, TensorSpec]:
    return {
        node.name: TensorSpec(
            _DATATYPES.get(node.type, node.type),
            tuple(size if isinstance(size, int) else -1 for size in node.shape[1:]),
        )
        for node in nodes
    }


class OnnxEngine:
    """Runs the models of a repository in this process."""

    def __init__(
        self,
        model_repository: Path,
        *,
        version: str | None = None,
        threads: int = 0,
        providers: Sequence[str] | None = None,
        provider_options: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Check and load the models of one ``version`` in the repository, the served one where None.

        ``threads`` is the number of CPU threads that share a batch, 0 for one a core; ``providers`` are
        ONNX Runtime execution providers in order of preference, the CPU's by default, and ``provider_options`` are
        theirs, in the same order. Raises ConfigurationError where a model or provider cannot be used.
        """
        self.manifest: Final[Manifest] = load_manifest(model_repository, version)
        providers = list(providers or ("CPUExecutionProvider",))
        missing = set(providers) - set(onnxruntime.get_available_providers())
        if missing:
            raise ConfigurationError(
                f"this ONNX Runtime has no {', '.join(sorted(missing))}, only "
                f"{', '.join(onnxruntime.get_available_providers())}"
            )
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, "onnx")
        options = onnxruntime.SessionOptions()
        # Threads share the objects of a batch, each with the whole model. Within one operation, which is small here,
        # they take more CPU and no less time (benchmarks/threads.py); of what a GPU leaves to the CPU they do that.
        options.intra_op_num_threads = 1 if providers == ["CPUExecutionProvider"] else threads
        options.log_severity_level = _ERROR_SEVERITY
        # Its idle threads would take the cores from assembly and scores, and from other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions: dict[str, Any] = {}
        for model in MODELS:
            path = model_repository / self.manifest.path_of(model)
            try:
                self._sessions[model] = onnxruntime.InferenceSession(
                    path, options, providers=providers, provider_options=provider_options
                )
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise ConfigurationError(f"{path} cannot be loaded: {error}") from error
        self._signatures = {
            model: Signature(_specs(session.get_inputs()), _specs(session.get_outputs()))
            for model, session in self._sessions.items()
        }
        check_signatures(self._signatures, self.manifest)
        self._classify_part = classify_by(self._run_models, embedding_width(self._signatures))

    @property
    def model_version(self) -> str:
        """Name and version of the model, as published with each annotation."""
        return self.manifest.identity

    def predict(self, inputs: ModelInputs) -> Predictions:
        """Run encoders and classifier, as described at ``predictions_of``.

        Raises InferenceError where ONNX Runtime refuses the batch.
        """
        return predict_batch(inputs, self._signatures, self._classify)

    def parts(self, objects: int) -> Sequence[slice]:
        """The whole batch: nothing is prepared while this process computes."""
        return [slice(0, objects)]

    def begin(self, inputs: ModelInputs) -> Begun:
        """As ``predict``, once the answer is waited for."""
        return Later(lambda: self.predict(inputs))

    def embedding_width(self) -> int:
        """Values of an embedding."""
        return embedding_width(self._signatures)

    def placement(self) -> dict[str, str]:
        """See ``Engine.placement``: ONNX Runtime leaves out a provider that does not start, and says so here only."""
        return {model: session.get_providers()[0] for model, session in self._sessions.items()}

    def device(self) -> str | None:
        """See ``Engine.device``."""
        first = set(self.placement().values())
        if not first or not first <= {"CPUExecutionProvider", *_GPU_PROVIDERS}:
            return None
        return "gpu" if first <= _GPU_PROVIDERS else "cpu"

    def check(self) -> None:
        """The models are loaded when the engine is made."""

    def close(self) -> None:
        """Release the models' memory; the engine cannot be used afterwards."""
        self._sessions.clear()
        self._pool.shutdown()

    def _classify(self, batch: RequestBatch) -> Tensors:
        parts = [batch.part(part.start, part.stop) for part in self._shares(len(batch))]
        if self._threads == 1 or len(parts) == 1:  # here, where its CPU time counts as this stage's
            found = [self._classify_part(part) for part in parts]
            if len(found) == 1:
                return found[0]
        else:
            try:
                under_way = [self._pool.submit(self._classify_part, part) for part in parts]
            except RuntimeError as error:  # of an executor that was shut down
                raise InferenceError("the engine is closed") from error
            found = [one.result() for one in under_way]
        return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}

    def _shares(self, objects: int) -> list[slice]:
        """The parts of a batch that are run by themselves: equally many for each thread, where it is large enough."""
        if self.device() == "gpu":
            return [slice(0, objects)]
        least = math.ceil(objects / _CPU_ROWS)
        for_threads = min(math.ceil(least / self._threads) * self._threads, objects // _LEAST_ROWS)
        return equal_parts(objects, max(least, for_threads), 1)

    def _run_models(self, feeds: Mapping[str, Tensors]) -> dict[str, Tensors]:
        outputs: dict[str, Tensors] = {}
        for model, feed in feeds.items():
            names = list(self._signatures[model].outputs)
            session = self._sessions.get(model)
            if session is None:
                raise InferenceError("the engine is closed")
            try:
                found = session.run(names, dict(feed))
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise InferenceError(f"{model} failed: {error}") from error
            outputs[model] = dict(zip(names, found, strict=True))
        return outputs
