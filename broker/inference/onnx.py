"""The engine that runs the models in this process, with ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError, InferenceError
from broker.inference import Begun, Later, Predictions
from broker.inference.encode import (
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

        ``threads`` is the number of CPU threads within one operation, 0 for one a core; ``providers`` are
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
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
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
        self._classify = classify_by(self._run_models, embedding_width(self._signatures))

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

    def _run_models(self, feeds: Mapping[str, Tensors]) -> dict[str, Tensors]:
        outputs: dict[str, Tensors] = {}
        for model, feed in feeds.items():
            names = list(self._signatures[model].outputs)
            if model not in self._sessions:
                raise InferenceError("the engine is closed")
            try:
                parts = [self._sessions[model].run(names, part) for part in self._parts(feed)]
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise InferenceError(f"{model} failed: {error}") from error
            arrays = parts[0] if len(parts) == 1 else [np.concatenate(several) for several in zip(*parts, strict=True)]
            outputs[model] = dict(zip(names, arrays, strict=True))
        return outputs

    def _parts(self, feed: Tensors) -> Iterator[dict[str, Any]]:
        """``feed`` in as many parts of equal size as are best for the device; at least one."""
        rows = max((len(tensor) for tensor in feed.values()), default=0)
        parts = 1 if self.device() == "gpu" else max(math.ceil(rows / _CPU_ROWS), 1)
        size = max(math.ceil(rows / parts), 1)
        for first in range(0, max(rows, 1), size):
            yield {name: tensor[first : first + size] for name, tensor in feed.items()}
