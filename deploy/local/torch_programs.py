"""The ONNX files of a model repository as programs of PyTorch (``torch.export``), with the same weights.

    python -m deploy.local.torch_programs model_repo FOLDER

copies the repository to FOLDER and puts a ``model.pt2`` beside each ``model.onnx``, which the local Triton's backend
runs on a GPU where PyTorch has CUDA and ONNX Runtime has not (``deploy/local/triton/onnxruntime``). Needs ``torch`` and
``onnx``. A program is written where its answers, on the CPU, are those of ONNX's reference implementation. It knows the
operators that Trifid's models have; another one is refused by name.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as f

TOLERANCE: Final = 1e-4
"""As that of ``broker.models.variants``: single precision, sums in another order."""
_TYPES: Final = {1: torch.float32, 7: torch.int64, 9: torch.bool}
_CHECKED: Final = 5
"""Objects of the check."""

# Values are tensors, or where they come from shapes and integer constants lists and numbers of Python: shapes are
# symbols while a program is exported, which a tensor cannot hold.
Attributes = Mapping[str, Any]


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return value.tolist() if isinstance(value, Tensor) else [value]


def _reduced(reduce: Callable[..., Tensor]) -> Callable[..., Any]:
    def run(attributes: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        dims = _listed(axes if axes is not None else attributes["axes"])
        return reduce(x, dim=dims, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _elementwise(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *values: run(*values)


def _concat(attributes: Attributes, *values: Any) -> Any:
    if any(isinstance(value, Tensor) for value in values):
        return torch.cat(values, dim=attributes["axis"])
    return [each for value in values for each in _listed(value)]


def _gather(attributes: Attributes, x: Any, index: Any) -> Any:
    axis = attributes.get("axis", 0)
    if isinstance(x, list):
        return [x[i] for i in index] if isinstance(index, list) else x[index]
    if isinstance(index, Tensor):
        return torch.index_select(x, axis, index.flatten()).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.select(axis, index)


def _slice(_: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    starts, ends = _listed(starts), _listed(ends)
    axes = range(len(starts)) if axes is None else _listed(axes)
    if steps is not None and set(_listed(steps)) != {1}:
        raise NotImplementedError("Slice with steps")
    if isinstance(x, list):
        return x[starts[0] : ends[0]]
    for axis, start, end in zip(axes, starts, ends, strict=True):
        x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end),)]
    return x


def _unsqueeze(_: Attributes, x: Any, axes: Any) -> Any:
    if not isinstance(x, Tensor):
        return _listed(x)
    for axis in sorted(_listed(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(_: Attributes, x: Any, axes: Any) -> Any:
    return x[0] if isinstance(x, list) else x.squeeze(tuple(_listed(axes)))


def _cast(attributes: Attributes, x: Any) -> Any:
    return x.to(_TYPES[attributes["to"]]) if isinstance(x, Tensor) else x


def _gather_nd(attributes: Attributes, x: Tensor, index: Any) -> Tensor:
    if attributes.get("batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[torch.as_tensor(index, device=x.device).unbind(-1)]


def _pad(attributes: Attributes, x: Tensor, pads: Any) -> Tensor:
    if attributes["mode"] != b"wrap":
        raise NotImplementedError(f"Pad {attributes['mode']!r}")
    pads = _listed(pads)
    first, last = pads[x.dim() - 1], pads[-1]
    return torch.cat([x[..., x.shape[-1] - first :], x, x[..., :last]], dim=-1)


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    first, last = attributes.get("pads", [0, 0])
    strides, dilations = attributes.get("strides", [1]), attributes.get("dilations", [1])
    return f.conv1d(f.pad(x, (first, last)), weight, bias, strides, 0, dilations, attributes.get("group", 1))


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    first, last = attributes.get("pads", [0, 0])
    if attributes.get("ceil_mode", 0) or ((first or last) and not attributes.get("count_include_pad", 0)):
        raise NotImplementedError("AveragePool with ceil_mode, or with padding that does not count")
    return f.avg_pool1d(f.pad(x, (first, last)), attributes["kernel_shape"], attributes["strides"])


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Any = 0.0) -> Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b) + attributes.get("beta", 1.0) * c
    return product


def _top_k(attributes: Attributes, x: Tensor, k: Any) -> tuple[Tensor, Tensor]:
    (number,) = _listed(k)
    values, index = torch.topk(x, number, attributes["axis"], bool(attributes["largest"]), bool(attributes["sorted"]))
    return values, index


def _clip(_: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return torch.clamp(x, low, high)


def _reshape(attributes: Attributes, x: Any, shape: Any) -> Any:
    if not isinstance(x, Tensor):
        return _listed(x)
    copied = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and copied else size for i, size in enumerate(_listed(shape))])


def _shape(attributes: Attributes, x: Tensor) -> list[Any]:
    return list(x.shape)[attributes.get("start", 0) : attributes.get("end")]


OPERATORS: Final[Mapping[str, Callable[..., Any]]] = {
    "Add": _elementwise(lambda a, b: a + b),
    "And": _elementwise(torch.logical_and),
    "Asinh": _elementwise(torch.asinh),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Cos": _elementwise(torch.cos),
    "Div": _elementwise(lambda a, b: a / b if isinstance(a, Tensor) or isinstance(b, Tensor) else a // b),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": lambda _, x, shape: x.expand(_listed(shape)),
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gather": _gather,
    "GatherElements": lambda attributes, x, index: torch.gather(x, attributes["axis"], index),
    "GatherND": _gather_nd,
    "Gelu": lambda attributes, x: f.gelu(x, approximate=attributes["approximate"].decode()),
    "Gemm": _gemm,
    "Greater": _elementwise(lambda a, b: a > b),
    "GreaterOrEqual": _elementwise(lambda a, b: a >= b),
    "InstanceNormalization": lambda attributes, x, scale, bias: f.instance_norm(
        x, weight=scale, bias=bias, eps=attributes["epsilon"]
    ),
    "LayerNormalization": lambda attributes, x, scale, bias: f.layer_norm(
        x, scale.shape, scale, bias, attributes["epsilon"]
    ),
    "Less": _elementwise(lambda a, b: a < b),
    "Log": _elementwise(torch.log),
    "LogSoftmax": lambda attributes, x: torch.log_softmax(x, attributes["axis"]),
    "MatMul": _elementwise(torch.matmul),
    "Mul": _elementwise(lambda a, b: a * b),
    "Not": _elementwise(torch.logical_not),
    "Pad": _pad,
    "Pow": _elementwise(lambda a, b: a**b),
    "ReduceL2": _reduced(torch.linalg.vector_norm),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sin": _elementwise(torch.sin),
    "Slice": _slice,
    "Softmax": lambda attributes, x: torch.softmax(x, attributes["axis"]),
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "TopK": _top_k,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(torch.where),
}


class Program(nn.Module):
    """An ONNX graph, operator by operator."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises NotImplementedError for an operator that is not in OPERATORS."""
        super().__init__()
        graph = model.graph
        unknown = {node.op_type for node in graph.node} - set(OPERATORS)
        if unknown or model.functions:
            raise NotImplementedError(f"operators {sorted(unknown)}, functions {len(model.functions)}")
        self.constants: dict[str, Any] = {}
        self.buffers_of: dict[str, str] = {}
        for number, initializer in enumerate(graph.initializer):
            array = numpy_helper.to_array(initializer)
            if array.dtype == np.int64 and array.ndim < 2:
                self.constants[initializer.name] = array.tolist()
            else:
                self.register_buffer(f"b{number}", torch.from_numpy(array.copy()))
                self.buffers_of[initializer.name] = f"b{number}"
        self.nodes = [
            (
                OPERATORS[node.op_type],
                {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute},
                list(node.input),
                list(node.output),
            )
            for node in graph.node
        ]
        self.names = [each.name for each in graph.input if each.name not in self.buffers_of]
        self.outputs = [each.name for each in graph.output]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the graph's order, of the inputs in the graph's order."""
        values: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        values |= self.constants
        values |= {name: getattr(self, buffer) for name, buffer in self.buffers_of.items()}
        for run, attributes, names, outputs in self.nodes:
            found = run(attributes, *(values[name] if name else None for name in names))
            values |= zip(outputs, found if isinstance(found, tuple) else (found,), strict=False)
        return tuple(values[name] for name in self.outputs)


def export(path: Path) -> float:
    """Write the program of ``model.onnx`` beside it; the largest difference of an output from the reference.

    Raises NotImplementedError for an operator that is not known, ValueError where answers differ by over TOLERANCE.
    """
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    module = Program(model).eval()
    arrays = _inputs(model)
    tensors = tuple(torch.from_numpy(array) for array in arrays.values())
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(module, tensors, dynamic_shapes=(tuple({0: batch} for _ in tensors),), strict=False)
    expected = ReferenceEvaluator(model).run(None, arrays)
    got = program.module()(*tensors)
    difference = max(float(np.abs(g.numpy() - e).max()) for g, e in zip(got, expected, strict=True))
    if not math.isfinite(difference) or difference > TOLERANCE:
        raise ValueError(f"{path}: answers differ by {difference:.1e} from the reference, {TOLERANCE:.0e} are allowed")
    described = {"inputs": _described(model.graph.input), "outputs": _described(model.graph.output)}
    torch.export.save(program, path.with_suffix(".pt2"), extra_files={"tensors.json": json.dumps(described)})
    return difference


def _described(tensors: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, str, list[int]]]:
    """Names, types as ONNX Runtime has them, and shapes, of which -1 is any size."""
    kinds: dict[int, str] = {onnx.TensorProto.FLOAT: "tensor(float)", onnx.TensorProto.BOOL: "tensor(bool)"}
    return [
        (each.name, kinds[kind.elem_type], [dim.dim_value or -1 for dim in kind.shape.dim])
        for each in tensors
        for kind in [each.type.tensor_type]
    ]


def _inputs(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Random inputs of a few objects."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for each in model.graph.input:
        kind = each.type.tensor_type
        shape = (_CHECKED, *(dim.dim_value for dim in kind.shape.dim[1:]))
        if kind.elem_type == onnx.TensorProto.BOOL:
            arrays[each.name] = rng.random(shape) < 0.8
        else:
            arrays[each.name] = rng.random(shape, np.float32)
    return arrays


@click.command()
@click.argument("repository", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def main(repository: Path, folder: Path) -> None:
    """Copy REPOSITORY to FOLDER, with a program beside each ONNX file."""
    shutil.copytree(repository, folder, dirs_exist_ok=True)
    for path in sorted(folder.glob("*/*/model.onnx")):
        try:
            difference = export(path)
        except (NotImplementedError, ValueError) as error:
            sys.exit(f"{path}: {error}")
        click.echo(f"{path.with_suffix('.pt2')}: at most {difference:.1e} from the reference")


if __name__ == "__main__":
    main()
