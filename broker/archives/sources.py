"""Archives as partitions that workers can be given: catalogues in HATS by LSDB, and folders of Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import dask
import lsdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from dask.delayed import Delayed
from hats.io import file_io, paths
from hats.pixel_math import HealpixPixel

from broker.archives.partition import HEALPIX, Job, classify_file, classify_table, write_entry
from broker.errors import ConfigurationError, InputFileError, TrifidError
from broker.lightcurves.columns import Columns
from broker.tables.memory import MemoryTable
from broker.tables.parquet import is_list, names_of

_PROPERTIES: Final = ("hats.properties", "properties", "collection.properties")
"""Files of which a HATS catalogue, or a collection of them, has one."""
_SUFFIXES: Final = (".parquet", ".pq")
_META: Final = pd.DataFrame({"objects": pd.Series(dtype=np.int64), "not_classified": pd.Series(dtype=np.int64)})
"""What the map over the partitions gives, a row each."""


class Archive(Protocol):
    """Many light curves in partitions."""

    @property
    def name(self) -> str:
        """As the user named it."""

    @property
    def columns(self) -> dict[str, str]:
        """Names of columns by role where the archive itself says them."""

    @property
    def keys(self) -> list[str]:
        """A name for each partition: the path of its results, without ``.parquet``."""

    def task(self, key: str, job: Job) -> Delayed:
        """What classifies a partition, with a graph of its own; gives a frame as _META."""


def open_archive(name: str, columns: Mapping[str, str] | None = None) -> Archive:
    """The archive at a path or, of HATS, at an address such as ``https://`` or ``s3://``; raises InputFileError.

    ``columns`` are names of columns by role, where they need not be found.
    """
    path = Path(name)
    if "://" in name or any((path / file).is_file() for file in _PROPERTIES):
        return HatsArchive.open(name, columns or {})
    if not path.is_dir():
        raise InputFileError(f"{name}: neither a HATS catalogue nor a folder of Parquet files")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in _SUFFIXES and not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    )
    if not files:
        raise InputFileError(f"{name}: no HATS catalogue (hats.properties) and no Parquet file in it")
    keys = [file.relative_to(path).with_suffix("").as_posix() for file in files]
    if len(set(keys)) < len(keys):
        raise InputFileError(f"{name}: two files whose names differ in their endings only")
    return ParquetFolder(name, dict(zip(keys, files, strict=True)))


@dataclass(frozen=True, slots=True)
class ParquetFolder:
    """A folder of Parquet files, each with its own objects; a file is a partition."""

    name: str
    files: dict[str, Path]
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """See ``Archive``."""
        return list(self.files)

    def task(self, key: str, job: Job) -> Delayed:
        """See ``Archive``."""
        return dask.delayed(_classify_file, pure=False)(self.files[key], key, job)


@dataclass(frozen=True, slots=True)
class HatsArchive:
    """A HATS catalogue of objects with nested light curves."""

    name: str
    catalog: Any
    columns: dict[str, str]
    pixels: dict[str, HealpixPixel]

    @staticmethod
    def open(name: str, columns_given: Mapping[str, str]) -> HatsArchive:
        """Read the catalogue's properties and schema, and choose its columns; raises InputFileError."""
        try:
            catalog = lsdb.open_catalog(name, columns="all")
            if not isinstance(catalog, lsdb.Catalog):
                raise ValueError("not a catalogue of objects")
            structure = catalog.hc_structure
            given = {"ra": structure.catalog_info.ra_column, "dec": structure.catalog_info.dec_column}
            given |= columns_given
            names = [column for column in names_of(structure.schema) if column != HEALPIX]
            columns = Columns.of(names, given)
            if not columns.has_lists(structure.schema):
                raise ValueError(
                    f"column {columns.time} has one time a row: points of one object may be in two partitions. Nest "
                    "them first (lsdb: objects.join_nested(sources, ...))"
                )
            catalog = lsdb.open_catalog(name, columns=_loadable(columns.all, structure.catalog_base_dir))
        except InputFileError:
            raise
        except Exception as error:  # lsdb, hats, fsspec and what they call raise many kinds
            raise InputFileError(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error
        pixels = {_key(pixel): pixel for pixel in catalog.get_healpix_pixels()}
        return HatsArchive(name, catalog, given, pixels)

    @property
    def keys(self) -> list[str]:
        """See ``Archive``."""
        return list(self.pixels)

    def task(self, key: str, job: Job) -> Delayed:
        """See ``Archive``."""
        pixel = self.pixels[key]
        one = self.catalog.get_partition(pixel.order, pixel.pixel)
        info = one.hc_structure.catalog_info
        file = paths.pixel_catalog_file(one.hc_structure.catalog_base_dir, pixel, npix_suffix=info.npix_suffix)
        mapped = one.map_partitions(_classify_frame, self.name, job, file, include_pixel=True, meta=_META)
        (task,) = mapped.to_delayed()
        return task


def _loadable(names: Sequence[str], folder: Any) -> list[str]:
    """These columns as LSDB can load them: of a list of structs not its fields, but the whole."""
    schema = file_io.read_parquet_metadata(paths.get_common_metadata_pointer(folder)).schema.to_arrow_schema()
    tops = [name if name in schema.names else name.partition(".")[0] for name in names]
    whole = {top for top in tops if is_list(schema.field(top).type)}
    return list(dict.fromkeys(top if top in whole else name for top, name in zip(tops, names, strict=True)))


def _key(pixel: HealpixPixel) -> str:
    return f"Norder={pixel.order}/Dir={pixel.dir}/Npix={pixel.pixel}"


def pixel_of(key: str) -> HealpixPixel:
    """The inverse of a HATS partition's name."""
    order, _, number = (int(part.partition("=")[2]) for part in key.split("/"))
    return HealpixPixel(order, number)


def _classify_file(path: Path, key: str, job: Job) -> pd.DataFrame:
    return _attempt(lambda: classify_file(path, key, job), key, job)


def _classify_frame(frame: Any, pixel: HealpixPixel, name: str, job: Job, file: Any) -> pd.DataFrame:
    key = _key(pixel)

    def classify() -> dict[str, Any]:
        loaded = frame.to_pyarrow()
        # LSDB fills columns that a file lacks with nulls, as if its stars had no points.
        for part in _files(file):
            there = pq.read_schema(part, filesystem=file.fs).names
            missing = [column for column in loaded.schema.names if column not in (*there, HEALPIX)]
            if missing:
                raise InputFileError(f"no column {', '.join(missing)}; the partition has {', '.join(there)}")
        return classify_table(MemoryTable(loaded, Path(f"{name}/{key}")), key, job, (pixel.order, pixel.pixel))

    return _attempt(classify, key, job)


def _files(partition: Any) -> list[str]:
    """The Parquet files of a partition, which is one or, as of ZTF's catalogues at IRSA, a folder of them."""
    if not partition.is_dir():
        return [partition.path]
    found = [str(name) for name in partition.fs.find(partition.path)]
    return [name for name in found if not name.rpartition("/")[2].startswith(("_", "."))]


def _attempt(classify: Callable[[], dict[str, Any]], key: str, job: Job) -> pd.DataFrame:
    """Classify a partition; a reason to fail goes into the ledger, since LSDB makes another error of what is raised."""
    try:
        return _row(classify())
    except TrifidError as error:
        write_entry(job, key, {"failed": str(error), "configuration": isinstance(error, ConfigurationError)})
        return _row({"objects": 0, "classes": {}})


def _row(entry: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({"objects": [entry["objects"]], "not_classified": [entry["classes"].get("NotClassified", 0)]})
