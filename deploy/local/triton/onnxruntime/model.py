"""Triton's ``onnxruntime`` backend as a Python-based backend, for servers that lack the C++ one.

PyPI's tritonserver (in ``nvidia-pytriton``) carries only the Python backend. Triton takes any folder
``<backend-directory>/<name>/model.py`` as the backend ``<name>``, so with this file the same model repository
runs there as in NVIDIA's container with its C++ onnxruntime backend. Of that backend's options it knows the
model parameters ``intra_op_thread_count`` and ``inter_op_thread_count``.

An instance that Triton puts on a GPU runs there by ONNX Runtime's CUDA; where that has none and PyTorch has, by the
program ``model.pt2`` of the same weights (``deploy/local/torch_programs.py``); or it is not loaded. It never runs on
the CPU in silence. On the CPU ONNX Runtime is used where it is installed, else the program.

Tensors pass to and from Triton by way of DLPack: the stub in PyPI's wheel knows numpy 1's memory layout only,
so that under numpy 2 ``as_numpy`` and ``pb_utils.Tensor`` silently give wrong values.
"""

from __future__ import annotations

import ctypes
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import onnxruntime
except ImportError:  # a machine that has PyTorch alone
    onnxruntime = None

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
# A batch is divided among threads into parts of no fewer: of 16 an object costs a fifth more than of 64.
LEAST_ROWS = 16
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TENSORS = "tensors.json"  # in a program: names, ONNX types and shapes of its inputs and outputs


class Session:
    """A model by ONNX Runtime."""

    def __init__(self, path: Path, parameters: dict[str, Any], providers: list[Any]) -> None:
        threads = int(parameters.get("intra_op_thread_count", {}).get("string_value", 0))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.threads = 1
        if providers[0] == CPU:
            # These models' operations are too small to be shared: threads within one take more CPU and no less time.
            # A batch's rows are what threads share, each with the whole model (benchmarks/threads.py).
            options.intra_op_num_threads = 1
            self.threads = threads or len(os.sched_getaffinity(0))
        self.map: Any = ThreadPoolExecutor(self.threads).map if self.threads > 1 else map
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", {}).get("string_value", 0))
        # Each model is a process of its own here: threads that spin while idle would take the others' cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        if self._session.get_providers()[0] != _name(providers[0]):  # left out by ONNX Runtime where it does not start
            raise pb_utils.TritonModelException("CUDA does not start for ONNX Runtime: see its own message in the log")
        self.inputs = [(node.name, node.type, node.shape) for node in self._session.get_inputs()]
        self.outputs = [(node.name, node.type, node.shape) for node in self._session.get_outputs()]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        """The outputs of these names."""
        return self._session.run(names, feed)


class Program:
    """A model by PyTorch."""

    def __init__(self, path: Path, parameters: dict[str, Any], device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        if device == "cpu" and (threads := int(parameters.get("intra_op_thread_count", {}).get("string_value", 0))):
            torch.set_num_threads(threads)
        extra = {TENSORS: ""}
        program = torch.export.load(path, extra_files=extra)
        self._module = program.module().to(device)
        tensors = json.loads(extra[TENSORS])
        self.inputs, self.outputs = tensors["inputs"], tensors["outputs"]
        self.threads, self.map = 1, map  # PyTorch has threads of its own

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        """The outputs of these names."""
        with self._torch.inference_mode():
            found = self._module(*(self._moved(feed[name]) for name, _, _ in self.inputs))
            by_name = dict(zip((name for name, _, _ in self.outputs), found, strict=True))
            return [by_name[name].cpu().numpy() for name in names]

    def _moved(self, array: Any) -> Any:
        # What Triton gives is read-only, which PyTorch does not take; and from pinned memory a GPU copies by itself.
        kind = self._torch.bool if array.dtype == np.bool_ else self._torch.float32
        tensor = self._torch.empty(array.shape, dtype=kind, pin_memory=self._device != "cpu")
        np.copyto(tensor.numpy(), array)
        return tensor.to(self._device, non_blocking=True)


def _name(provider: Any) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _loaded(path: Path, parameters: dict[str, Any], kind: str, device: int) -> Session | Program:
    """The model of an instance of a kind (``CPU``, ``GPU``); raises where there is nothing to run it there."""
    program = path.with_suffix(".pt2")
    if kind == "CPU":
        if onnxruntime is not None:
            return Session(path, parameters, [CPU])
        if program.exists():
            return Program(program, parameters, "cpu")
        raise pb_utils.TritonModelException(f"neither onnxruntime nor {program} is there")
    if kind != "GPU":
        raise pb_utils.TritonModelException(
            f"instance_group asks for KIND_{kind}; give KIND_CPU, KIND_GPU or KIND_AUTO"
        )
    providers = [] if onnxruntime is None else onnxruntime.get_available_providers()
    if CUDA in providers:
        return Session(path, parameters, [(CUDA, {"device_id": device}), CPU])
    if program.exists() and _torch_has_cuda():
        return Program(program, parameters, f"cuda:{device}")
    raise pb_utils.TritonModelException(
        f"instance_group puts this model on GPU {device} (KIND_AUTO does so where Triton sees a GPU), but this "
        f"ONNX Runtime has {', '.join(providers) or 'nothing'} only, and "
        + ("PyTorch has no CUDA" if program.exists() else f"there is no {program.name} for PyTorch")
        + ": install onnxruntime-gpu (python -m deploy.local.triton_server setup --gpu), make programs "
        "(python -m deploy.local.torch_programs), or ask for KIND_CPU"
    )


def _torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _tensor_config(tensor: tuple[str, str, list[Any]], batching: bool) -> dict[str, Any]:
    name, kind, sizes = tensor
    if kind not in TRITON_TYPES:
        raise pb_utils.TritonModelException(f"tensor {name}: type {kind} is not supported")
    shape = [size if isinstance(size, int) else -1 for size in sizes]
    if batching and shape[0] != -1:
        raise pb_utils.TritonModelException(f"tensor {name}: the first dimension must be the batch")
    return {
        "name": name,
        "data_type": TRITON_TYPES[kind],
        "dims": shape[1:] if batching else shape,
    }


def in_parts(session: Session | Program, names: list[str], batch: dict[str, Any], rows: int) -> list[Any]:
    """The outputs of these names of a batch, which is run in parts of equal size of at most ``rows``."""
    total = len(next(iter(batch.values())))
    size = -(-total // parts_of(total, rows, session.threads))
    parts = list(
        session.map(
            lambda start: session.run(names, {name: array[start : start + size] for name, array in batch.items()}),
            range(0, total, size),
        )
    )
    return parts[0] if len(parts) == 1 else [np.concatenate(several) for several in zip(*parts, strict=True)]


def parts_of(total: int, rows: int, threads: int) -> int:
    """In how many parts a batch is run: as many as ``rows`` ask for, and for each thread equally many.

    Of fewer than LEAST_ROWS no part is made for a thread's sake.
    """
    least = -(-total // rows)
    return max(least, min(-(-least // threads) * threads, total // LEAST_ROWS))


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
        model = _loaded(path, config["parameters"], "CPU", 0)
        for tensor in model.inputs:
            auto_complete_model_config.add_input(_tensor_config(tensor, batching))
        for tensor in model.outputs:
            auto_complete_model_config.add_output(_tensor_config(tensor, batching))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``<model>/<version>/model.onnx``, or the program beside it."""
        config = json.loads(args["model_config"])
        file_name = config["default_model_filename"] or "model.onnx"
        path = Path(args["model_repository"], args["model_version"], file_name)
        kind = args["model_instance_kind"]
        self._session = _loaded(path, config["parameters"], kind, int(args["model_instance_device_id"]))
        self._inputs = [name for name, _, _ in self._session.inputs]
        self._outputs = [name for name, _, _ in self._session.outputs]
        self._batching = config["max_batch_size"] > 0
        self._rows = CPU_ROWS if kind == "CPU" else config["max_batch_size"]

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
        split = [np.split(output, ends) for output in in_parts(self._session, self._outputs, batch, self._rows)]
        return [self._response(outputs) for outputs in zip(*split, strict=True)]

    def _response(self, outputs: Any) -> Any:
        # Arrays that live as long as the response: what an OrtValue was made of is freed before the stub has sent it.
        return pb_utils.InferenceResponse(
            [_tensor(name, np.array(output)) for name, output in zip(self._outputs, outputs, strict=True)]
        )


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
