"""A small archive in HATS, as ZTF's data releases have it, from real light curves of Catalina."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

FIRST_ID = 1_000_000_000_000_000

_MAKE = """
import sys, warnings
warnings.simplefilter("ignore")
import lsdb, nested_pandas, numpy as np, pandas as pd, pyarrow.parquet as pq
source, output, number, rows, first = *sys.argv[1:3], *map(int, sys.argv[3:])
table = pq.read_table(source).slice(0, number).combine_chunks()
row = np.repeat(np.arange(number), table["mjd"].combine_chunks().value_lengths().to_numpy())
stars = pd.DataFrame({
    "objectid": first + np.arange(number), "filterid": np.ones(number, np.int8),
    "objra": table["ra"].to_numpy(), "objdec": table["dec"].to_numpy(),
    "nepochs": np.bincount(row, minlength=number),
})
points = {new: table[old].combine_chunks().flatten().to_numpy()
          for new, old in (("hmjd", "mjd"), ("mag", "vmag"), ("magerr", "vmag_err"))}
points |= {"clrcoeff": np.zeros(len(row), np.float32), "catflags": np.zeros(len(row), np.int32)}
stars = nested_pandas.NestedFrame(stars).join_nested(pd.DataFrame(points, index=row), "lightcurve")
catalog = lsdb.from_dataframe(
    stars, ra_column="objra", dec_column="objdec", partition_rows=rows, catalog_name="dr", margin_threshold=None
)
catalog.write_catalog(output, as_collection=False, progress_bar=False)
"""


def make_hats(shared: Path, output: Path, stars: int, rows: int) -> list[Path]:
    """Write ``stars`` real stars as a HATS catalogue of partitions of at most ``rows``; returns the partitions' files.

    The columns are those of ZTF's data releases at IRSA (s3://ipac-irsa-ztf/contributed/dr23/lc/hats): one row an
    object and filter, with a nested column ``lightcurve``.
    """
    # In a process of its own: LSDB and Dask warn of this and that, and warnings are errors here.
    arguments = [shared / "data" / "css_v.parquet", output, stars, rows, FIRST_ID]
    subprocess.run([sys.executable, "-c", _MAKE, *map(str, arguments)], check=True, capture_output=True, timeout=300)
    files = sorted((output / "dataset").rglob("Npix=*.parquet"))
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == stars
    return files
