"""Columns of numpy, as astropy gives them, as columns of Arrow."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_arrow(name: str, values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.Array[Any]:
    """A column (n,) or, of lists, (n, ...), with null where ``missing`` (of the same shape) says so.

    Columns of objects may hold text, bytes or arrays of different lengths. Raises ValueError for what is neither
    numbers nor text.
    """
    if values.dtype == object:
        return _of_objects(values, missing)
    if values.dtype.kind not in "fiubSU":
        raise ValueError(f"column {name} holds {values.dtype}, neither numbers nor text")
    if values.ndim > 1:
        length = int(np.prod(values.shape[1:]))
        flat = to_arrow(name, values.reshape(-1), None if missing is None else missing.reshape(-1))
        offsets: Any = pa.array(np.arange(len(values) + 1, dtype=np.int64) * length)
        return cast("pa.Array[Any]", pa.LargeListArray.from_arrays(offsets, flat))
    native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return cast("pa.Array[Any]", pa.array(native, mask=missing if missing is not None and missing.any() else None))


def _of_objects(values: NDArray[Any], missing: NDArray[np.bool_] | None) -> pa.Array[Any]:
    found: list[Any] = []
    for row, value in enumerate(values.tolist() if values.ndim == 1 else [v.ravel() for v in values]):
        gone = False if missing is None else missing[row]
        if isinstance(value, np.ndarray):
            mask = np.broadcast_to(np.ma.getmaskarray(value) | gone, value.shape).ravel()
            flat = np.ma.getdata(value).ravel().tolist()
            found.append([None if m else v for v, m in zip(flat, mask.tolist(), strict=True)])
        else:
            found.append(None if np.any(gone) else value)
    return cast("pa.Array[Any]", pa.array(found))
