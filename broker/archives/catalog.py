"""The results as a HATS catalogue: what LSDB reads beside the partitions' files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from hats.catalog import CatalogType, PartitionInfo, TableProperties
from hats.io.parquet_metadata import write_parquet_metadata
from hats.io.skymap import write_skymap
from hats.pixel_math.sparse_histogram import HistogramAggregator, SparseHistogram

from broker import __version__
from broker.archives.partition import DATASET, HEALPIX
from broker.archives.sources import pixel_of

_SKYMAP_ORDER: Final = 8
"""HEALPix order of the map of how many objects lie where: LSDB's own."""


def write_catalog(folder: Path, keys: Sequence[str], source: str) -> None:
    """Write the properties, the list of partitions, the metadata and the sky map of the partitions ``keys``."""
    pixels = [pixel_of(key) for key in keys]
    order = max(_SKYMAP_ORDER, *(pixel.order for pixel in pixels))
    total, most = 0, 0
    counts: Any = HistogramAggregator(order)
    for key in keys:
        index = pq.read_table(folder / DATASET / f"{key}.parquet", columns=[HEALPIX]).column(0).to_numpy()
        cell, number = np.unique(index >> 2 * (29 - order), return_counts=True)
        counts.add(SparseHistogram(cell, number, order))
        total, most = total + len(index), max(most, len(index))
    write_parquet_metadata(folder)
    partitions = PartitionInfo(pixels)
    partitions.write_to_file(folder / "partition_info.csv")
    write_skymap(histogram=counts.full_histogram, catalog_dir=folder, orders=None)
    properties = TableProperties(
        catalog_name=folder.name,
        catalog_type=CatalogType.OBJECT,
        total_rows=total,
        ra_column="ra",
        dec_column="dec",
        healpix_column=HEALPIX,
        healpix_order=29,
        npix_suffix=".parquet",
        skymap_order=order,
        hats_max_rows=most,
        hats_order=int(partitions.get_highest_order()),
        moc_sky_fraction=float(f"{partitions.calculate_fractional_coverage():.5g}"),
        **TableProperties.new_provenance_dict(
            folder, builder=f"Trifid v{__version__}", obs_description=f"classes of {source}"
        ),
    )
    properties.to_properties_file(folder)
