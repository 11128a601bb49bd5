"""Messages of the topic ``spectra``: Avro object containers of the records that ``spectrum.avsc`` describes."""

from __future__ import annotations

import io
import json
from importlib import resources
from typing import Any, Final

import fastavro
import numpy as np

from broker.avro.container import ContainerWriter
from broker.errors import DecodeError
from broker.records import ObservedSpectrum
from broker.spectra.normalise import MAX_PIXELS, RawSpectrum, UnusableSpectrumError, to_observed

SCHEMA_TEXT: Final = resources.files(__package__).joinpath("spectrum.avsc").read_text("utf-8")
"""The schema with its documentation."""
SCHEMA: Final[Any] = fastavro.parse_schema(json.loads(SCHEMA_TEXT))

MAX_MESSAGE_BYTES: Final = 16_000_000
MAX_SPECTRA: Final = 1000
"""In one message."""
_MAX_SCHEMA_BYTES: Final = 64_000
_MAX_DEPTH: Final = 20
_MEDIA: Final = {"vacuum": False, "air": True}
_PRIMITIVES: Final = frozenset({"boolean", "int", "long", "float", "double", "bytes", "string"})
"""Those that take at least one byte: all but null."""


_write_record: Final = ContainerWriter(SCHEMA_TEXT)


def write(
    spectrum: ObservedSpectrum,
    *,
    medium: str = "vacuum",
    wavelength_unit: str = "Angstrom",
    flux_unit: str | None = None,
    redshift: float | None = None,
    instrument: str | None = None,
    resolution: float | None = None,
) -> bytes:
    """The message for one spectrum.

    The arrays are sent as they are. Without further words they are what ``read_spectra`` gives; otherwise the
    fields of ``spectrum.avsc`` say what they are, and the reader converts.
    """
    record = {
        "spectrumId": spectrum.spectrum_id,
        "ra": float(spectrum.ra),
        "dec": float(spectrum.dec),
        "mjd": float(spectrum.mjd) if np.isfinite(spectrum.mjd) else None,
        "survey": spectrum.survey,
        "objectId": spectrum.object_id,
        "wavelength": np.asarray(spectrum.spectrum.wavelength, np.float64).tolist(),
        "flux": np.asarray(spectrum.spectrum.flux, np.float32).tolist(),
        "fluxError": np.asarray(spectrum.spectrum.flux_error, np.float32).tolist(),
        "wavelengthMedium": medium,
        "wavelengthUnit": wavelength_unit,
        "fluxUnit": flux_unit,
        "redshift": redshift,
        "instrument": instrument,
        "resolution": resolution,
    }
    return _write_record(record)


def read(payload: bytes) -> list[ObservedSpectrum]:
    """The spectra of one message, normalised as those of files are.

    Raises DecodeError, with the reason, where the bytes are not such a message or one of the spectra is not
    usable; the others are then not returned, as the message is one.
    """
    spectra: list[ObservedSpectrum] = []
    for raw in read_raw(payload):
        try:
            spectra.append(to_observed(raw))
        except UnusableSpectrumError as error:
            raise DecodeError(f"spectrum {raw.spectrum_id[:80]!r}: {error}") from error
    return spectra


def read_raw(payload: bytes) -> list[RawSpectrum]:
    """The spectra of one message as they stand there; raises DecodeError as ``read`` does."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise DecodeError(f"a message of {len(payload)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    spectra: list[RawSpectrum] = []
    try:
        # Checked before any record is read: a container brings its own schema and codec, with which few bytes
        # could become many pixels.
        reader = fastavro.reader(io.BytesIO(payload), reader_schema=SCHEMA)
        _check_header(reader)
        for record in reader:
            spectra.append(_raw(record))
            if len(spectra) > MAX_SPECTRA:
                raise DecodeError(f"more than {MAX_SPECTRA} spectra in one message")
    except DecodeError:
        raise
    except Exception as error:  # fastavro lets many kinds through on damaged bytes
        raise DecodeError(f"not a message of spectra: {type(error).__name__}: {str(error)[:500]}") from error
    if not spectra:
        raise DecodeError("a message without a spectrum")
    return spectra


def _check_header(reader: Any) -> None:
    if reader.codec != "null":
        raise DecodeError(f"codec {reader.codec!r}: only containers that are not compressed are read")
    if len(reader.metadata.get("avro.schema", "")) > _MAX_SCHEMA_BYTES:
        raise DecodeError(f"its schema has more than {_MAX_SCHEMA_BYTES} bytes")
    schema = reader.writer_schema
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise DecodeError("its schema is not that of a record")
    if not all(_bounded(field["type"]) for field in schema["fields"]):
        raise DecodeError("its schema has fields of a kind that no spectrum has")


def _bounded(schema: Any, depth: int = 0) -> bool:
    """Whether data of this type, at the top of a record, cannot be of many items in few bytes."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(schema, list):
        return all(_bounded(branch, depth + 1) for branch in schema)
    if isinstance(schema, dict):
        kind = schema["type"]
        if kind in ("array", "map"):
            items = schema["items" if kind == "array" else "values"]
            items = items["type"] if isinstance(items, dict) else items
            return isinstance(items, str) and items in _PRIMITIVES
        return kind == "enum" or _bounded(kind, depth + 1)
    return schema == "null" or schema in _PRIMITIVES


def _raw(record: Any) -> RawSpectrum:
    medium = record["wavelengthMedium"]
    if medium not in _MEDIA:
        raise DecodeError(f"wavelengthMedium is {medium[:80]!r}, not vacuum or air")
    wavelength = np.asarray(record["wavelength"], np.float64)
    for name in ("flux", "fluxError"):
        if record[name] is not None and len(record[name]) != len(wavelength):
            raise DecodeError(f"{name} has {len(record[name])} pixels, wavelength {len(wavelength)}")
    if len(wavelength) > MAX_PIXELS:
        raise DecodeError(f"{len(wavelength)} pixels; {MAX_PIXELS} are allowed")
    if not (np.isfinite(wavelength).all() and (np.diff(wavelength) > 0).all()):
        raise DecodeError("its wavelengths do not increase")
    return RawSpectrum(
        wavelength=wavelength,
        flux=np.asarray(record["flux"], np.float64),
        error=None if record["fluxError"] is None else np.asarray(record["fluxError"], np.float64),
        wavelength_unit=record["wavelengthUnit"],
        flux_unit=record["fluxUnit"],
        air=_MEDIA[medium],
        redshift=record["redshift"],
        ra=record["ra"],
        dec=record["dec"],
        mjd=np.nan if record["mjd"] is None else record["mjd"],
        spectrum_id=record["spectrumId"],
        survey=record["survey"],
        object_id=record["objectId"],
        format="Trifid message",
    )
