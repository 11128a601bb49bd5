"""Real ZTF packets as templates: an alert of another object at another time is the same bytes with a few overwritten.

So a packet keeps its size, its cutouts, its schema and the length of its history, and making one costs a copy.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import fastavro
import numpy as np
from numpy.typing import NDArray

from broker.avro.container import read_blocks, read_header, read_long, write_long
from broker.errors import DecodeError
from broker.photometry import POGSON
from broker.records import AB_ZERO_POINT_NJY
from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from broker.times import JD_OF_MJD_0

Bytes = NDArray[np.uint8]
ARCHIVES: Final = ("native.tar", "recent_v4.02.avro")
"""Of ``../shared/alerts/ztf``: 1,091 packets as brokers received them."""
_NAME_BYTES: Final = 12
SEQUENCE_BITS: Final = 40
"""The low bits of a candid, which number the alerts of a run."""


class Kind(StrEnum):
    """What an alert is to the broker."""

    NEW = "new"
    """An object of which nothing is known: its packet counts one detection."""
    REPEAT = "repeat"
    """An object with a history."""
    MOVING = "moving"
    """A known body of the solar system."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value of a record: where it stands in the bytes, and which one it is."""

    path: str
    """Names of fields, with ``[]`` for the items of an array: ``prv_candidates[].jd``."""
    item: int
    """Number of the item in its array, 0 elsewhere."""
    kind: str
    """``double``, ``float``, ``int``, ``long``, ``string``, ``bytes``, ``boolean`` or ``null``."""
    start: int
    end: int


def leaves(schema: Any, data: bytes, position: int = 0) -> Iterator[Leaf]:
    """The values of a record in Avro's binary encoding (Avro 1.11, "Binary Encoding"), in their order."""
    named: dict[str, Any] = {}
    found: list[Leaf] = []

    def walk(schema: Any, position: int, path: str, item: int) -> int:
        if isinstance(schema, list):
            branch, position = read_long(data, position)
            return walk(schema[branch], position, path, item)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind == "record":
            named[schema["name"]] = named[f"{schema.get('namespace', '')}.{schema['name']}"] = schema
            for field in schema["fields"]:
                inner = f"{path}.{field['name']}" if path else field["name"]
                position = walk(field["type"], position, inner, item)
            return position
        if kind == "array":
            number = 0
            while True:
                count, position = read_long(data, position)
                if count < 0:
                    _, position = read_long(data, position)
                if count == 0:
                    return position
                for _ in range(abs(count)):
                    position = walk(schema["items"], position, f"{path}[]", number)
                    number += 1
        if isinstance(kind, dict | list):
            return walk(kind, position, path, item)
        if kind in named or kind.split(".")[-1] in named:
            return walk(named.get(kind) or named[kind.split(".")[-1]], position, path, item)
        start = position
        if kind in ("string", "bytes"):
            size, start = read_long(data, position)
            position = start + size
        elif kind in ("int", "long"):
            _, position = read_long(data, position)
        else:
            position += {"double": 8, "float": 4, "boolean": 1, "null": 0}[kind]
        found.append(Leaf(path, item, kind, start, position))
        return position

    walk(schema, position, "", 0)
    return iter(found)


def candid_of(sequence: int, size: int) -> int:
    """A candid that Avro writes in ``size`` bytes, with ``sequence`` in its low bits."""
    # In zigzag code twice the number; each byte has seven bits of it.
    return (1 << (7 * (size - 1))) + sequence


def sequence_of(candid: int) -> int:
    """The inverse of ``candid_of``."""
    return candid & ((1 << SEQUENCE_BITS) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Visits:
    """Consecutive photometry of one star, the latest first: arrays of one length."""

    mjd: NDArray[np.float64]
    band: NDArray[np.uint8]
    """1 for g, 2 for r."""
    flux: NDArray[np.float64]
    """Total, nJy."""
    error: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """One real packet, and where in its bytes stands what differs between alerts."""

    kind: Kind
    payload: Bytes
    jd: float
    name_at: int
    candid_at: tuple[int, ...]
    candid_bytes: int
    position_at: NDArray[np.intp]
    """(2,) of ra and dec of the candidate."""
    jd_at: NDArray[np.intp]
    """Of all times: of the candidate, of earlier detections, and of upper limits and forced photometry."""
    jds: NDArray[np.float64]
    detections: int
    """How many of ``jd_at`` are detections, the candidate first and then the latest."""
    magnitude_at: NDArray[np.intp]
    """(detections,)."""
    error_at: NDArray[np.intp]
    """(detections,)."""
    sign_at: NDArray[np.intp]
    """(detections,)."""
    reference_at: NDArray[np.intp]
    """Of the reference magnitudes of those that have one, -1 where not (detections,)."""
    distance_at: NDArray[np.intp]
    """Of their distances from it, -1 where not."""

    def alert(self, name: str, sequence: int, ra: float, dec: float) -> bytearray:
        """The packet, times and photometry as they were, of another object."""
        out = bytearray(self.payload)
        out[self.name_at : self.name_at + _NAME_BYTES] = name.encode()
        candid = write_long(candid_of(sequence, self.candid_bytes))
        for at in self.candid_at:
            out[at : at + self.candid_bytes] = candid
        struct.pack_into("<d", out, int(self.position_at[0]), ra)
        struct.pack_into("<d", out, int(self.position_at[1]), dec)
        return out

    def repeat(
        self, name: str, sequence: int, ra: float, dec: float, visits: Visits, reference: float
    ) -> bytearray:  # fmt: skip
        """The packet with the photometry of a star: its latest visit, and as many earlier ones as it has detections.

        ``reference`` is the flux of the reference image, nJy, below all of the star's. Upper limits and forced
        photometry stay as long before the alert as they were.
        """
        out = self.alert(name, sequence, ra, dec)
        view = np.frombuffer(out, np.uint8)
        count = min(self.detections, len(visits.mjd))
        jd = self.jds + (visits.mjd[0] + JD_OF_MJD_0 - self.jd)
        jd[:count] = visits.mjd[:count] + JD_OF_MJD_0
        _put(view, self.jd_at, jd)
        # The filter's number follows the time in all of ZTF's schemas; 1 and 2 take one byte.
        view[self.jd_at[:count] + 8] = 2 * visits.band[:count]
        magnitude, error, of_reference = magnitudes(visits.flux[:count], visits.error[:count], reference)
        _put(view, self.magnitude_at[:count], magnitude)
        _put(view, self.error_at[:count], error)
        view[self.sign_at[:count]] = ord("t")
        for at, value in ((self.reference_at, of_reference), (self.distance_at, np.float32(0.2))):
            known = at[:count][at[:count] >= 0]
            _put(view, known, np.full(len(known), value, np.float32))
        return out


def _put(view: Bytes, at: NDArray[np.intp], values: NDArray[Any]) -> None:
    """Overwrite little-endian numbers at ``at``."""
    size = values.dtype.itemsize
    view[at[:, None] + np.arange(size)] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)


def magnitudes(
    flux: NDArray[np.float64], error: NDArray[np.float64], reference: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], np.float32]:
    """What a packet says of a star of total ``flux`` (n,) with ``error`` (n,), nJy.

    That is magnitudes of its difference from the reference image's flux and their errors, each (n,), and the reference
    magnitude.
    """
    difference = flux - reference
    return (
        _magnitude(difference).astype(np.float32),
        (POGSON * error / difference).astype(np.float32),
        np.float32(_magnitude(np.array(reference))),
    )


def _magnitude(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    return -2.5 * np.log10(flux / AB_ZERO_POINT_NJY)


def templates(folder: Path) -> list[Template]:
    """All packets of ARCHIVES in ``folder`` that are of this form; raises FileNotFoundError where they are not."""
    payloads: list[bytes] = []
    for name in ARCHIVES:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name}: the real packets are not here")
        payloads += [packet.payload for packet in iter_packets([folder / name])]
    found = []
    for payload, records in zip(payloads, Decoder().decode_batch(payloads), strict=True):
        if isinstance(records, DecodeError) or len(records) != 1:
            continue
        alert = records[0]
        detections = getattr(alert, "survey_detections", None) or 0
        moving = bool(getattr(alert, "solar_system", False))
        kind = Kind.MOVING if moving else Kind.NEW if detections <= 1 else Kind.REPEAT
        template = _template(payload, kind)
        if template is not None:
            found.append(template)
    return found


def simulated_template(detections: int) -> Template:
    """A packet of the simulator that repeats and has at least so many detections, where there are no real ones.

    Without forced photometry: that of a template is of other times than what its star has, as if points had changed.
    """
    for alert in simulate_alerts(5, 40, seed=3):
        reader: Any = fastavro.reader(io.BytesIO(alert.payload))
        out = io.BytesIO()
        fastavro.writer(out, reader.writer_schema, [record | {"fp_hists": None} for record in reader])
        template = _template(out.getvalue(), Kind.REPEAT)
        if template is not None and template.detections >= detections:
            return template
    raise ValueError(f"no simulated packet has {detections} detections")


def _template(payload: bytes, kind: Kind) -> Template | None:
    """None where a field has another length than those that will be written."""
    header = read_header(payload)
    block = next(iter(read_blocks(payload, header)))
    if header.codec != b"null" or block.number != 1:
        return None
    record = list(leaves(json.loads(header.schema_json), block.data, block.start))
    single = {leaf.path: leaf for leaf in record if "[]" not in leaf.path}
    name, candids = single["objectId"], [single["candid"], single["candidate.candid"]]
    sizes = {leaf.end - leaf.start for leaf in candids}
    if name.end - name.start != _NAME_BYTES or len(sizes) != 1 or 7 * (min(sizes) - 1) <= SEQUENCE_BITS:
        return None
    before: dict[int, dict[str, Leaf]] = {}
    forced: list[Leaf] = []
    for leaf in record:
        if leaf.path.startswith("prv_candidates[]."):
            before.setdefault(leaf.item, {})[leaf.path.rsplit(".", 1)[1]] = leaf
        elif leaf.path == "fp_hists[].jd":
            forced.append(leaf)

    def number(leaf: Leaf) -> float:
        return float(struct.unpack_from("<d" if leaf.kind == "double" else "<f", block.data, leaf.start)[0])

    def detected(row: dict[str, Leaf]) -> bool:
        kinds = [row[name].kind for name in ("magpsf", "sigmapsf", "isdiffpos") if name in row]
        return kinds == ["float", "float", "string"]

    own = {path.rsplit(".", 1)[1]: leaf for path, leaf in single.items() if path.startswith("candidate.")}
    earlier = sorted((row for row in before.values() if detected(row)), key=lambda row: -number(row["jd"]))
    detections = [own, *earlier]
    if not detected(own) or any(row["isdiffpos"].end - row["isdiffpos"].start != 1 for row in detections):
        return None
    if any(row["fid"].start != row["jd"].end or row["fid"].end != row["jd"].end + 1 for row in detections):
        return None
    others = [row["jd"] for row in before.values() if not detected(row)] + forced
    times = [row["jd"] for row in detections] + others

    def at(column: str) -> NDArray[np.intp]:
        known = [row.get(column) for row in detections]
        return np.array([leaf.start if leaf is not None and leaf.kind != "null" else -1 for leaf in known], np.intp)

    return Template(
        kind=kind,
        payload=np.frombuffer(payload, np.uint8),
        jd=number(own["jd"]),
        name_at=name.start,
        candid_at=tuple(leaf.start for leaf in candids),
        candid_bytes=sizes.pop(),
        position_at=np.array([own["ra"].start, own["dec"].start], np.intp),
        jd_at=np.array([leaf.start for leaf in times], np.intp),
        jds=np.array([number(leaf) for leaf in times]),
        detections=len(detections),
        magnitude_at=at("magpsf"),
        error_at=at("sigmapsf"),
        sign_at=at("isdiffpos"),
        reference_at=at("magnr"),
        distance_at=at("distnr"),
    )


def mix_of(kinds: Sequence[Kind]) -> dict[Kind, float]:
    """The share of each kind, which sum to 1."""
    return {kind: sum(one is kind for one in kinds) / len(kinds) for kind in Kind}
