"""Data that several of the training tests need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def small(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``shared`` folder with a few real stars of each class, of few points each, and all else of the real one."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "data").mkdir()
    for file in (shared / "data").iterdir():
        if file.name not in ("asas_v.parquet", "css_v.parquet"):
            (folder / "data" / file.name).symlink_to(file)
    for name, quota in (("asas_v.parquet", 30), ("css_v.parquet", 20)):
        table = pq.read_table(shared / "data" / name)
        label = np.array([str(v) for v in table["label"].to_pylist()])
        rows = np.concatenate([np.flatnonzero(label == c)[:quota] for c in ("EA", "M", "RRAB", "ROT")])
        table = table.take(pa.array(np.sort(rows)))
        for column in table.column_names:
            if pa.types.is_list(table.schema.field(column).type):
                short = pa.array([v[:40] for v in table[column].to_pylist()], table.schema.field(column).type)
                table = table.set_column(table.column_names.index(column), column, short)
        pq.write_table(table, folder / "data" / name)
    return folder
