"""Triton's ``onnxruntime`` backend as a Python-based backend, for servers that lack the C++ one.

PyPI's tritonserver (in ``nvidia-pytriton``) carries only the Python backend. Triton takes any folder
``<backend-directory>/<name>/model.py`` as the backend ``<name>``, so with this file the same model repository
runs there as in NVIDIA's container with its C++ onnxruntime backend. Of that backend's options it knows the
model parameters ``intra_op_thread_count`` and ``inter_op_thread_count``. An instance that Triton puts on a GPU
runs there by CUDA, or is not loaded: it never runs on the CPU in silence.

Tensors pass to and from Triton by way of DLPack: the stub in PyPI's wheel knows numpy 1's memory layout only,
so that under numpy 2 ``as_numpy`` and ``pb_utils.Tensor`` silently give wrong values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

# ONNX element type -> Triton data type, for the types that DLPack can carry to and from Triton.
TRITON_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(bool)": "TYPE_BOOL",
}


# As many rows at a time as fit the CPU's cache (``broker.inference.onnx``): larger batches take longer an object.
CPU_ROWS = 64
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def _providers(kind: str, device: int) -> list[Any]:
    """ONNX Runtime's providers for an instance of a kind (``CPU``, ``GPU``); raises where there is none for it."""
    if kind == "CPU":
        return [CPU]
    if kind != "GPU":
        raise pb_utils.TritonModelException(
            f"instance_group asks for KIND_{kind}; give KIND_CPU, KIND_GPU or KIND_AUTO"
        )
    if CUDA not in onnxruntime.get_available_providers():
        raise pb_utils.TritonModelException(
            f"instance_group puts this model on GPU {device} (KIND_AUTO does so where Triton sees a GPU), but this "
            f"ONNX Runtime has {', '.join(onnxruntime.get_available_providers())} only: install onnxruntime-gpu "
            "(python -m deploy.local.triton_server setup --gpu) or ask for KIND_CPU"
        )
    return [(CUDA, {"device_id": device}), CPU]


def _on_gpu(path: Path, parameters: dict[str, Any], providers: list[Any]) -> onnxruntime.InferenceSession:
    session = _session(path, parameters, providers)
    if session.get_providers()[0] != CUDA:  # ONNX Runtime leaves out a provider that does not start
        raise pb_utils.TritonModelException("CUDA does not start for ONNX Runtime: see its own message in the log")
    return session


def _session(
    path: Path, parameters: dict[str, Any], providers: list[Any] | tuple[str, ...] = (CPU,)
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", {}).get("string_value", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", {}).get("string_value", 0))
    # Each model is a process of its own here: threads that spin while idle would take the others' cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=list(providers))


def _tensor_config(node: onnxruntime.NodeArg, batching: bool) -> dict[str, Any]:
    if node.type not in TRITON_TYPES:
        raise pb_utils.TritonModelException(f"tensor {node.name}: type {node.type} is not supported")
    shape = [size if isinstance(size, int) else -1 for size in node.shape]
    if batching and shape[0] != -1:
        raise pb_utils.TritonModelException(f"tensor {node.name}: the first dimension must be the batch")
    return {
        "name": node.name,
        "data_type": TRITON_TYPES[node.type],
        "dims": shape[1:] if batching else shape,
    }


class TritonPythonModel:
    """One instance of a model in ONNX format."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Add the inputs and outputs that the model declares, as the C++ backend does."""
        # Triton tells this hook the configuration but not the folder; the model file's path is the first
        # argument of the backend's process (which, embedding Python, leaves sys.argv empty).
        path = Path(Path("/proc/self/cmdline").read_text().split("\0")[1])
        config = auto_complete_model_config.as_dict()
        batching = config["max_batch_size"] > 0
        session = _session(path, config["parameters"])
        for node in session.get_inputs():
            auto_complete_model_config.add_input(_tensor_config(node, batching))
        for node in session.get_outputs():
            auto_complete_model_config.add_output(_tensor_config(node, batching))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``<model>/<version>/model.onnx``."""
        config = json.loads(args["model_config"])
        file_name = config["default_model_filename"] or "model.onnx"
        path = Path(args["model_repository"], args["model_version"], file_name)
        providers = _providers(args["model_instance_kind"], int(args["model_instance_device_id"]))
        load = _session if providers == [CPU] else _on_gpu
        self._session = load(path, config["parameters"], providers)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._batching = config["max_batch_size"] > 0
        self._rows = CPU_ROWS if providers == [CPU] else config["max_batch_size"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests that Triton's dynamic batcher put together as one batch, one response for each."""
        feeds = [
            {name: np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs}
            for request in requests
        ]
        if not self._batching:
            return [self._response(self._session.run(self._outputs, feed)) for feed in feeds]
        batch = feeds[0]
        if len(feeds) > 1:
            batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])[:-1]
        split = [np.split(output, ends) for output in self._run(batch)]
        return [self._response(outputs) for outputs in zip(*split, strict=True)]

    def _run(self, batch: dict[str, Any]) -> list[Any]:
        """Outputs of a batch, in parts of equal size of at most ``self._rows``."""
        total = len(batch[self._inputs[0]])
        size = -(-total // -(-total // self._rows))
        parts = [
            self._session.run(self._outputs, {name: array[start : start + size] for name, array in batch.items()})
            for start in range(0, total, size)
        ]
        return parts[0] if len(parts) == 1 else [np.concatenate(several) for several in zip(*parts, strict=True)]

    def _response(self, outputs: Any) -> Any:
        # Arrays that live as long as the response: what an OrtValue was made of is freed before the stub has sent it.
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor.from_dlpack(name, np.array(output))
                for name, output in zip(self._outputs, outputs, strict=True)
            ]
        )
