"""The schemas of LSST's alerts by their ids, as the installed lsst-alert-packet has them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from broker.avro.schema import AvroSchema
from broker.errors import DecodeError

# The package is imported at the first message without a schema in it: it brings file systems of clouds.


@cache
def _lsst_versions() -> frozenset[tuple[int, int]]:
    from lsst.alert.packet.schema import get_schema_root

    found = (path.parts[-2:] for path in Path(get_schema_root()).glob("[0-9]*/[0-9]*"))
    return frozenset((int(major), int(minor)) for major, minor in found)


def lsst_schema(schema_id: int) -> AvroSchema:
    """The schema of an LSST alert by its id, 100 major + minor (https://github.com/lsst/alert_packet).

    Raises DecodeError, naming the id, where this release of lsst-alert-packet has no such version.
    """
    from lsst.alert.packet.schema import Schema, get_schema_path

    version = divmod(schema_id, 100)
    if version not in _lsst_versions():
        newest = max(_lsst_versions())
        raise DecodeError(
            f"unknown schema id {schema_id}: the newest of LSST's alert schemas known here is {newest[0]}.{newest[1]}"
        )
    folder = get_schema_path(*version)
    definition: AvroSchema = Schema.from_file(f"{folder}/lsst.v{version[0]}_{version[1]}.alert.avsc").definition
    return definition
