"""Floating-point operations of a model for one object, counted from its graphs."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import shape_inference

ENCODERS: Final = ("light_curve_encoder", "metadata_encoder", "classifier")
"""Of an object without a spectrum, as alerts have."""


def model_flops(repository: Path) -> int:
    """Of one object with a light curve and metadata: two a multiplication in products and convolutions."""
    return sum(graph_flops(onnx.load(str(repository / name / "1" / "model.onnx"))) for name in ENCODERS)


def graph_flops(model: Any) -> int:
    """Those of MatMul, Gemm and Conv, for a batch of one; other operators have too few to matter."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        output = prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            inner = prod(shapes[node.input[1]][1:])  # channels of a group, and the kernel
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shapes[node.input[0]][-2 if transposed else -1]
        total += 2 * output * inner
    return total
