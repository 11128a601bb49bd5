"""All real packets decode, with as many points as a plain reading of them counts; nothing else does."""

from __future__ import annotations

import io
import json
import os
import re
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from broker.avro.container import container_message, read_blocks, read_header, write_long
from broker.avro.wire import confluent_message
from broker.errors import ConfigurationError, DecodeError, DependencyUnavailableError
from broker.records import (
    METADATA_FEATURES,
    SOURCE_FEATURES,
    Alert,
    LightCurve,
    ObservedSpectrum,
    PhotometryKind,
    Spectrum,
)
from broker.sources import Packet, iter_packets
from broker.surveys import MODULES, SURVEYS, Decoder, load_surveys
from broker.surveys import decoder as decoder_module
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.simulator import SCHEMA_JSON, simulate_alerts

RNG = np.random.default_rng(20261124)
Result = list[Alert | ObservedSpectrum] | DecodeError


def decode_all(decoder: Decoder, payloads: Sequence[bytes], size: int) -> list[Result]:
    return [r for k in range(0, len(payloads), size) for r in decoder.decode_batch(payloads[k : k + size])]


def alerts_of(result: Result) -> list[Alert]:
    if isinstance(result, DecodeError):
        raise result
    assert all(isinstance(alert, Alert) for alert in result)
    return result  # type: ignore[return-value]


def assert_equal(first: Sequence[Alert], second: Sequence[Alert]) -> None:
    """All fields, bit by bit."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for field in fields(Alert):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if field.name == "light_curve":
                for column in fields(LightCurve):
                    assert getattr(a, column.name).tobytes() == getattr(b, column.name).tobytes(), column.name
            elif field.name == "metadata" and a is not None:
                assert a.values.tobytes() == b.values.tobytes()
            else:
                assert a == b, field.name


def plain(payload: bytes) -> dict[str, Any]:
    """The packet as fastavro alone reads it, whole."""
    if payload[:1] == b"O":
        return next(fastavro.reader(io.BytesIO(payload)))  # type: ignore[return-value]
    schema = fastavro.parse_schema(lsst_schema(int.from_bytes(payload[1:5], "big")))
    return fastavro.schemaless_reader(io.BytesIO(payload[5:]), schema, None)  # type: ignore[return-value]


def expected_counts(survey: str, record: dict[str, Any]) -> tuple[int, int, int]:
    """Detections, forced points and limits, counted point by point."""
    if survey == "ztf":
        candidates = [record["candidate"], *(record["prv_candidates"] or [])]
        detections = sum(c.get("magpsf") is not None and c["sigmapsf"] > 0 and not c.get("nbad") for c in candidates)
        limits = sum(c.get("magpsf") is None and (c["diffmaglim"] or -999) > -99 for c in candidates)
        forced = sum(
            f["procstatus"] == "0"
            and f["forcediffimflux"] is not None
            and f["forcediffimflux"] > -99999
            and f["forcediffimfluxunc"] > 0
            for f in record.get("fp_hists") or []
        )
        return detections, forced, limits

    def usable(point: dict[str, Any]) -> bool:
        flux = point.get("psfFlux", point.get("psFlux"))
        error = point.get("psfFluxErr", point.get("psFluxErr"))
        failed = any(point.get(name) for name in ("psfFlux_flag", "psfFlux_flag_edge", "psfFlux_flag_noGoodPixels"))
        return flux is not None and error is not None and np.isfinite(flux) and error > 0 and not failed

    detections = [record["diaSource"], *(record["prvDiaSources"] or [])]
    limits = [p for p in record.get("prvDiaNondetectionLimits") or [] if p["diaNoise"] > 0]
    return sum(map(usable, detections)), sum(map(usable, record["prvDiaForcedSources"] or [])), len(limits)


FOLDERS = {"ztf": 1091, "lsst": 157, "elasticc": 5607}


@pytest.fixture(scope="module")
def packets(shared: Path) -> list[Packet]:
    """All real packets of all surveys, mixed."""
    found = [packet for folder in FOLDERS for packet in iter_packets([shared / "alerts" / folder])]
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def test_all_packets_decode_to_as_many_points_as_they_hold(packets: list[Packet]) -> None:
    decoder = Decoder()
    seen: Counter[str] = Counter()
    decoded = decode_all(decoder, [packet.payload for packet in packets], 256)
    for packet, result in zip(packets, decoded, strict=True):
        (alert,) = alerts_of(result)
        seen[alert.survey] += 1
        kinds = np.bincount(alert.light_curve.kind, minlength=3)
        assert tuple(kinds.tolist()) == expected_counts(alert.survey, plain(packet.payload)), packet.name
        assert np.all(np.diff(alert.light_curve.mjd) >= 0)
        assert np.all(np.isfinite(alert.light_curve.flux) | (alert.light_curve.kind == PhotometryKind.LIMIT))
    assert dict(seen) == FOLDERS


def test_a_batch_is_decoded_as_its_messages_are_one_by_one(packets: list[Packet]) -> None:
    some = [packet.payload for packet in packets[::7]]
    for number in range(0, len(some), 5):
        some[number] = _damaged(some[number])
    decoder = Decoder()
    refused = 0
    for together, payload in zip(decode_all(decoder, some, 100), some, strict=True):
        (alone,) = decoder.decode_batch([payload])
        if isinstance(alone, DecodeError):
            assert str(together) == str(alone)
            refused += 1
        else:
            assert_equal(alerts_of(together), alerts_of(alone))
    assert 50 < refused < len(some) / 4


def test_ztf_fluxes_are_those_of_the_magnitudes(shared: Path) -> None:
    decoder = Decoder()
    negative = totals = 0
    for packet in iter_packets([shared / "alerts" / "ztf" / "native.tar"]):
        (alert,) = alerts_of(decoder.decode(packet.payload))
        candidate = plain(packet.payload)["candidate"]
        if candidate.get("nbad"):
            continue
        row = np.flatnonzero(
            (alert.light_curve.mjd == candidate["jd"] - 2400000.5)
            & (alert.light_curve.kind == PhotometryKind.DETECTION)
        )[-1]
        sign = -1 if candidate["isdiffpos"] in ("f", "0") else 1
        assert alert.light_curve.flux[row] == pytest.approx(
            sign * 10 ** (-0.4 * (candidate["magpsf"] - 31.4)), rel=1e-4
        )
        reference = alert.light_curve.reference_flux[row]
        if 0 <= candidate["distnr"] <= 1.4 and candidate["magnr"] > 0:
            assert reference == pytest.approx(10 ** (-0.4 * (candidate["magnr"] - 31.4)), rel=1e-4)
            totals += 1
        else:
            assert np.isnan(reference)
        negative += sign < 0
    assert negative > 50
    assert totals > 50


def test_lsst_reference_flux_makes_the_science_flux(shared: Path) -> None:
    decoder = Decoder()
    checked = 0
    for packet in iter_packets([shared / "alerts" / "lsst" / "rubin_v9_0.avro"]):
        (alert,) = alerts_of(decoder.decode(packet.payload))
        source = plain(packet.payload)["diaSource"]
        if len(alert.light_curve) == 1 and source["scienceFlux"] is not None:
            total = alert.light_curve.flux[0] + alert.light_curve.reference_flux[0]
            assert total == pytest.approx(source["scienceFlux"], rel=1e-4, abs=0.1)
            assert alert.mjd == pytest.approx(source["midpointMjdTai"] - 37 / 86400, abs=1e-9)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"hello", "neither an Avro container"),
        (b"Obj\x01", "cut short"),
        (b"\x00\x00", "wire format"),
        (confluent_message(987654, b"xyz"), "unknown schema id 987654"),
        (confluent_message(900, b"xyz"), "damaged Avro record"),
    ],
)
def test_what_is_no_alert_is_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        Decoder().decode(payload)


def test_a_container_of_something_else_is_refused() -> None:
    schema = fastavro.parse_schema({"type": "record", "name": "x", "fields": [{"name": "a", "type": "int"}]})
    out = io.BytesIO()
    fastavro.writer(out, schema, [{"a": 1}])
    with pytest.raises(DecodeError, match="no alerts of a known survey"):
        Decoder().decode(out.getvalue())


def _damaged(payload: bytes) -> bytes:
    data = bytearray(payload)
    kind = RNG.integers(4)
    if kind == 0:
        return bytes(data[: RNG.integers(len(data))])
    for _ in range(1 if kind == 1 else RNG.integers(1, 20)):
        where = RNG.integers(len(data))
        data[where] = RNG.integers(256) if kind == 2 else data[where] ^ (1 << RNG.integers(8))
    return bytes(data)


# One packet of ZTF, with this and that changed.

SCHEMA: dict[str, Any] = json.loads(SCHEMA_JSON)
PAYLOAD = max((a.payload for a in simulate_alerts(3, 30, seed=3)), key=len)
RECORD = plain(PAYLOAD)


def ztf(schema: dict[str, Any] | None = None, candidate: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """The packet with fields of it, or of its candidate, changed."""
    record = {**RECORD, **changes}
    if candidate is not None:
        record["candidate"] = {**RECORD["candidate"], **candidate}
    return container(schema or SCHEMA, [record])


def container(schema: dict[str, Any], records: list[dict[str, Any]], codec: str = "null") -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema), records, codec=codec)
    return out.getvalue()


def retyped(name: str, type_of: Any, schema: Any = SCHEMA) -> Any:
    """The schema with another type for all fields of that name."""
    if isinstance(schema, list):
        return [retyped(name, type_of, part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: retyped(name, type_of, value) for key, value in schema.items() if not key.startswith("__")}
    if changed.get("name") == name and "type" in changed and "fields" not in changed:
        changed = {"name": name, "type": type_of}
    return changed


def with_signs(sign: Any) -> dict[str, Any]:
    """The packet's candidate and its earlier detections, all with this ``isdiffpos``."""
    earlier = [c if c["isdiffpos"] is None else {**c, "isdiffpos": sign} for c in RECORD["prv_candidates"]]
    return {"candidate": {"isdiffpos": sign}, "prv_candidates": earlier}


@pytest.mark.parametrize(
    ("type_of", "sign", "expected"),
    [
        *[(["null", "string"], text, 1) for text in ("t", "1", "true", "T", "True", "TRUE", " t", "t ", "true  ")],
        *[(["null", "string"], text, -1) for text in ("f", "0", "false", "F", "False", " f ", "\tf\n")],
        *[(["null", "string"], text, 0) for text in ("", "x", "tt", "2", "-2", "positively so", "\u00e9", "trueeeee")],
        *[(["null", "string"], text, 1) for text in ("+1", "+", "1.0")],
        *[(["null", "string"], text, -1) for text in ("-1", " -1", "-", "0.0", "-1.0")],
        (["null", "boolean"], True, 1),
        (["null", "boolean"], False, -1),
        *[
            (["null", kind], number, sign)
            for kind in ("int", "long")
            for number, sign in ((1, 1), (0, -1), (2, 0), (-1, -1), (10, 0), (-10, 0), (123_456_789, 0))
        ],
        *[
            (["null", kind], number, sign)
            for kind in ("float", "double")
            for number, sign in ((1.0, 1), (-1.0, -1), (0.0, -1), (0.5, 0), (float("nan"), 0), (1e300, 0))
            if kind == "double" or number < 1e30
        ],
        (["boolean", "null", "string"], "t", 1),
        (["boolean", "null", "string"], False, -1),
        (["null", "bytes"], b"f", -1),
    ],
)
def test_every_spelling_of_the_sign(type_of: Any, sign: Any, expected: int) -> None:
    decoder = Decoder()
    (alert,) = alerts_of(decoder.decode(ztf(retyped("isdiffpos", type_of), **with_signs(sign))))
    detected = alert.light_curve.flux[alert.light_curve.kind == PhotometryKind.DETECTION]
    count = 1 + sum(c["magpsf"] is not None for c in RECORD["prv_candidates"])
    assert count > 2
    if expected:
        assert np.sign(detected).tolist() == [expected] * count
        assert not decoder.take_left_out()
    else:
        assert not len(detected)  # without a sign there is no flux
        assert decoder.take_left_out() == {("ztf", "sign"): count}


def test_types_of_a_kind_serve_for_each_other() -> None:
    whole = {"jd": 2459000, "fid": True, "ra": 10, "dec": -5, "magpsf": 17, "rb": 1}
    schema = SCHEMA
    for name, kind in {
        "jd": "long",
        "fid": "boolean",
        "ra": "int",
        "dec": "float",
        "magpsf": "int",
        "rb": "long",
    }.items():
        schema = retyped(name, ["null", kind], schema)
    record = ztf(schema, candidate={**whole, "drb": None}, prv_candidates=None, fp_hists=None)
    (alert,) = alerts_of(Decoder().decode(record))
    assert (alert.mjd, alert.band, alert.ra, alert.dec, alert.real_bogus) == (58999.5, "ztf:g", 10, -5, 1)
    assert abs(alert.light_curve.flux[0]) == pytest.approx(3631e9 * 10 ** (-0.4 * 17), rel=1e-6)


@pytest.mark.parametrize(
    ("field", "type_of", "reason"),
    [
        ("jd", "string", "field candidate.jd is of type string, which is no number"),
        ("magpsf", ["null", "string"], "field candidate.magpsf is of type string, which is no number"),
        ("objectId", "long", "field objectId is of type long, which is no text"),
        ("candid", "string", "field candid is of type string, which is no integer"),
        ("candidate", "string", "field candidate is of type string, which is no record"),
        ("fp_hists", "double", "field fp_hists is of type double, which is no array"),
    ],
)
def test_a_type_that_cannot_serve_is_named(field: str, type_of: Any, reason: str) -> None:
    header = container(retyped(field, type_of), [])
    assert isinstance(Decoder().decode_batch([header])[0], DecodeError)
    with pytest.raises(DecodeError, match=reason):
        Decoder().decode(header)


def test_a_field_that_the_writer_lacks_is_unknown() -> None:
    candidate = next(f for f in SCHEMA["fields"] if f["name"] == "candidate")
    kept = [f for f in candidate["type"]["fields"] if f["name"] not in ("drb", "rb", "ssdistnr", "distnr", "sgscore1")]
    fields_of = [
        {**f, "type": {**f["type"], "fields": kept}} if f is candidate else f
        for f in SCHEMA["fields"]
        if f["name"] not in ("fp_hists", "schemavsn")
    ]
    (alert,) = alerts_of(Decoder().decode(container({**SCHEMA, "fields": fields_of}, [RECORD])))
    assert (alert.real_bogus, alert.solar_system, alert.schema_version, alert.star_score) == (None, False, "", None)
    assert np.all(alert.light_curve.kind != PhotometryKind.FORCED)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objectId": ""}, "empty objectId"),
        ({"objectId": "Z" * 257}, "object id of more than 256 characters"),
        ({"candidate": {"fid": 4}}, "fid 4 is no filter of ZTF"),
        ({"candidate": {"ra": 361.0}}, "ra 361.0, dec .* is no position"),
        ({"candidate": {"dec": float("nan")}}, "dec nan is no position"),
        ({"candidate": {"jd": 0.0}}, "MJD -2400000.5 is no time"),
        ({"candidate": {"jd": float("inf")}}, "MJD inf is no time"),
    ],
)
def test_what_identifies_or_places_the_detection_must_be_there(changes: Any, reason: str) -> None:
    good, bad = ztf(), ztf(**changes)
    first, result, last = Decoder().decode_batch([good, bad, good])
    assert_equal(alerts_of(first), alerts_of(last))
    with pytest.raises(DecodeError, match=reason):
        alerts_of(result)


@pytest.mark.parametrize("name", ["objectId", "candid", "candidate"])
def test_nulls_of_what_must_be_there_are_refused(name: str) -> None:
    field = next(f for f in SCHEMA["fields"] if f["name"] == name)
    schema = {**SCHEMA, "fields": [{**f, "type": ["null", f["type"]]} if f is field else f for f in SCHEMA["fields"]]}
    record = container(schema, [{**RECORD, name: None}])
    with pytest.raises(DecodeError, match=f"the packet has no {name}"):
        Decoder().decode(record)


NEAR = {"distpsnr1": 0.3, "sgscore1": 0.9, "sgmag1": 17.0, "srmag1": 16.5, "neargaia": 0.2, "maggaia": 16.7}


@pytest.mark.parametrize(
    ("candidate", "star", "v", "g"),
    [
        (NEAR, 0.9, 16.5 + 0.006 + 0.474 * 0.5, 16.7),
        ({**NEAR, "distpsnr1": 1.6}, None, None, 16.7),
        ({**NEAR, "distpsnr1": -999.0}, None, None, 16.7),
        ({**NEAR, "distpsnr1": None}, None, None, 16.7),
        ({**NEAR, "sgscore1": -999.0, "sgmag1": -999.0}, None, None, 16.7),
        ({**NEAR, "srmag1": None, "sgscore1": 0.0}, 0.0, None, 16.7),
        ({**NEAR, "neargaia": 1.5}, 0.9, 16.743, None),
        ({**NEAR, "maggaia": -999.0, "sgmag1": float("nan")}, 0.9, None, None),
        ({**NEAR, "maggaia": 0.0, "srmag1": 1e30}, 0.9, None, None),
    ],
)
def test_catalogue_values_of_ztf(candidate: Any, star: float | None, v: float | None, g: float | None) -> None:
    (alert,) = alerts_of(Decoder().decode(ztf(candidate=candidate)))
    assert alert.star_score == (None if star is None else pytest.approx(star))
    expected = {"mean_vmag": v, "phot_g_mean_mag": g}
    assert_metadata(alert, {name: value for name, value in expected.items() if value is not None})
    assert known_values(alert).get("star_score") == (None if star is None else pytest.approx(star))
    color = known_values(alert).get("ps1_g_r")
    assert color == (None if v is None else pytest.approx(0.5, abs=1e-4))


def known_values(alert: Alert) -> dict[str, float]:
    if alert.metadata is None:
        return {}
    values = dict(zip(SOURCE_FEATURES, alert.metadata.values.tolist(), strict=True))
    return {name: value for name, value in values.items() if value == value}


def assert_metadata(alert: Alert, expected: dict[str, float]) -> None:
    """Of a catalogue's columns, just these."""
    known = {name: value for name, value in known_values(alert).items() if name in METADATA_FEATURES}
    assert known == pytest.approx(expected)


def test_what_a_packet_says_of_its_source() -> None:
    candidate = {
        **NEAR, "simag1": 16.3, "szmag1": 16.25, "maggaiabright": 13.2, "ndethist": 40, "ncovhist": 160,
        "jdstarthist": 2458200.0, "jdendhist": 2458299.9,
    }  # fmt: skip
    known = known_values(alerts_of(Decoder().decode(ztf(candidate=candidate)))[0])
    assert known["ps1_r_i"] == pytest.approx(0.2, abs=1e-4)
    assert known["ps1_i_z"] == pytest.approx(0.05, abs=1e-4)
    assert known["ps1_r_mag"] == pytest.approx(16.5)
    assert known["gaia_bright_mag"] == pytest.approx(13.2, abs=1e-5)
    assert known["log10_detections_ever"] == pytest.approx(np.log10(40))
    assert known["log10_visits_ever"] == pytest.approx(np.log10(160))
    assert known["detected_ever_share"] == pytest.approx(0.25)
    assert known["log10_history_days"] == pytest.approx(2.0, abs=1e-3)
    strange = {"ndethist": 400, "ncovhist": 160, "jdstarthist": float("inf"), "jdendhist": float("inf")}
    known = known_values(alerts_of(Decoder().decode(ztf(candidate={**NEAR, **strange})))[0])
    assert not {"detected_ever_share", "log10_history_days"} & set(known)


OBJECT = {"parallax": 2.0, "parallaxErr": 0.1, "pmRa": -3.0, "pmRaErr": 0.2, "pmDec": 4.0, "pmDecErr": 0.3}


@pytest.mark.parametrize("version", [300, 704])
@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, ()),
        ({"parallax": None}, ("parallax",)),
        ({"parallaxErr": float("nan"), "pmRa": float("inf")}, ("parallax", "pmra")),
        ({"pmDecErr": 0.0, "pmRa": 0.0}, ("pmdec", "pmra")),
        ({"parallax": 1e9, "pmRaErr": -1.0, "pmDec": 1e30}, ("parallax", "pmra", "pmdec")),
    ],
)
def test_catalogue_values_of_lsst(version: int, changes: Any, missing: tuple[str, ...]) -> None:
    values = {**OBJECT, **changes}
    if version < 500:
        values["pmDecl"], values["pmDeclErr"] = values.pop("pmDec"), values.pop("pmDecErr")
    (alert,) = alerts_of(Decoder().decode(lsst(version, object_values=values)))
    expected = {
        "parallax": 2.0, "parallax_error": 0.1, "pmra": -3.0, "pmra_error": 0.2, "pmdec": 4.0, "pmdec_error": 0.3,
    }  # fmt: skip
    assert_metadata(alert, {name: value for name, value in expected.items() if name.split("_")[0] not in missing})


@pytest.mark.parametrize(
    ("source", "object_id", "moving"),
    [
        ({"diaObjectId": 12, "ssObjectId": None}, "12", False),
        ({"diaObjectId": 12, "ssObjectId": 34}, "12", True),
        ({"diaObjectId": 0, "ssObjectId": 34}, "sso:34", True),
        ({"diaObjectId": None, "ssObjectId": 0}, "source:5", False),
        ({"diaObjectId": None, "ssObjectId": None}, "source:5", False),
    ],
)
def test_names_of_lsst_objects(source: Any, object_id: str, moving: bool) -> None:
    (alert,) = alerts_of(Decoder().decode(lsst(900, {**source, "extendedness": 0.25, "reliability": 1.5})))
    assert (alert.object_id, alert.solar_system, alert.star_score, alert.real_bogus) == (object_id, moving, 0.75, None)
    assert (alert.alert_id, alert.source_id, alert.schema_version) == (5, 5, "9.0")


def lsst(version: int, source: dict[str, Any] | None = None, object_values: dict[str, Any] | None = None) -> bytes:
    """A packet of LSST's of zeros and nulls, but for what is needed and given."""
    schema: Any = lsst_schema(version)
    named: dict[str, Any] = {}
    record = blank(schema, named)
    names = {
        "diaSourceId": 5,
        "ra": 10.0,
        "midpointMjdTai": 61000.0,
        "midPointTai": 61000.0,
        "band": "r",
        "filterName": "r",
    }
    record["diaSource"] |= {k: v for k, v in names.items() if k in record["diaSource"]} | (source or {})
    if object_values is not None:
        branch = next(f for f in schema["fields"] if f["name"] == "diaObject")["type"][1]
        record["diaObject"] = blank(branch, named) | object_values
    if "diaSourceId" in record:
        record["diaSourceId"] = 5
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return confluent_message(version, out.getvalue())


def blank(schema: Any, named: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return None if "null" in schema else blank(schema[0], named)
    if isinstance(schema, str):
        zeros = {"int": 0, "long": 0, "float": 0.0, "double": 0.0, "boolean": False, "string": "", "bytes": b""}
        return zeros[schema] if schema in zeros else blank(named[schema], named)
    if schema["type"] == "record":
        named[schema["name"]] = schema
        return {f["name"]: blank(f["type"], named) for f in schema["fields"]}
    return [] if schema["type"] == "array" else blank(schema["type"], named)


def test_numbers_and_blocks_of_a_container_without_end_are_refused() -> None:
    header = read_header(PAYLOAD).raw
    sync = b"s" * 16
    for number, reason in (
        (b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (HUGE[0], "says that it has"),
        (HUGE[3], "says that it has"),
    ):
        for message in (header + sync + number + write_long(1) + b"x" + sync, header + sync + write_long(1) + number):
            with pytest.raises(DecodeError, match=f"{reason}|cut short"):
                Decoder().decode(message)
    with pytest.raises(DecodeError, match="10000 blocks"):
        Decoder().decode(header + sync + (b"\x00\x00" + sync) * 10_001)


# Ids, surveys, codecs, spectra, and what nobody thought of.


def test_an_unavailable_registry_is_not_the_packets_fault() -> None:
    def schema_of_id(schema_id: int) -> dict[str, Any]:
        if schema_id == 1:
            raise DependencyUnavailableError("the registry is unavailable")
        if schema_id == 2:
            raise DecodeError("no schema of id 2")
        return lsst_schema(900)

    decoder = Decoder(schema_of_id=schema_of_id)
    packet = lsst(900)[5:]
    good, bad = decoder.decode_batch([confluent_message(3, packet), confluent_message(2, packet)])
    assert len(alerts_of(good)) == 1
    assert str(bad) == "no schema of id 2"
    with pytest.raises(DependencyUnavailableError):
        decoder.decode_batch([confluent_message(3, packet), confluent_message(1, packet)])
    with pytest.raises(DependencyUnavailableError):
        decoder.decode(confluent_message(1, packet))


def test_an_id_that_becomes_known_is_read_then() -> None:
    answers = iter([DecodeError("not yet"), lsst_schema(900)])

    def schema_of_id(_: int) -> dict[str, Any]:
        answer = next(answers)
        if isinstance(answer, DecodeError):
            raise answer
        return answer

    decoder = Decoder(schema_of_id=schema_of_id)
    message = confluent_message(77, lsst(900)[5:])
    assert str(decoder.decode_batch([message])[0]) == "not yet"
    assert len(alerts_of(decoder.decode(message))) == 1


MODULE = """
from broker.records import Alert, LightCurve
from broker.avro.layout import Column, Table
from broker.avro.machine import Kind

class Mine:
    name = "mine"
    tables = {"record": Table(("",), {"x": Column(Kind.NUMBER, ("x",))})}

    def recognises(self, schema_name, fields):
        return schema_name == "mine.alert"

    def to_alerts(self, records):
        x = records.tables["record"].numbers("x").tolist()
        if 13.0 in x:
            raise RuntimeError("thirteen")
        return [
            Alert("mine", int(value), int(value), str(value), 0.0, 0.0, 60000.0, "ztf:g", LightCurve.empty(), "1")
            for value in x
        ]

SURVEY = Mine()
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trifid_test_own_survey.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "trifid_test_own_survey"


def own(x: float) -> bytes:
    fields_of = [{"name": "x", "type": "double"}, {"name": "diaSource", "type": "int"}]
    schema = {"type": "record", "name": "mine.alert", "fields": fields_of}
    return container(schema, [{"x": x, "diaSource": 0}])


def test_a_survey_of_ones_own_and_errors_that_nobody_thought_of(own_module: str) -> None:
    decoder = Decoder(surveys=[*MODULES, own_module])
    results = decoder.decode_batch([own(1.0), PAYLOAD, own(13.0), own(2.0)])
    assert [alerts_of(results[k])[0].survey for k in (0, 1, 3)] == ["mine", "ztf", "mine"]
    assert str(results[2]) == "the packet cannot be read: RuntimeError: thirteen"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["no.such.module"], "'no.such.module'.*ModuleNotFoundError"),
        (["broker.avro.wire"], "'broker.avro.wire'.*SURVEY"),
        (["broker.surveys.ztf", "broker.surveys.ztf"], "there is a survey 'ztf' already"),
        ([], "no survey module"),
    ],
)
def test_a_module_that_is_no_surveys_is_named(names: list[str], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_surveys(names)


def test_tables_of_ones_own_that_cannot_be_filled_are_named(own_module: str, tmp_path: Path) -> None:
    module = tmp_path / f"{own_module}.py"
    module.write_text(MODULE.replace('Table(("",)', 'Table(("y",)').replace('"mine"', '"other"', 1))
    module.rename(tmp_path / "trifid_test_other_survey.py")
    with pytest.raises(ConfigurationError, match="survey 'other': the first table"):
        Decoder(surveys=["trifid_test_other_survey"])


def test_the_surveys() -> None:
    assert SURVEYS == ("ztf", "lsst", "elasticc")
    assert [survey.name for survey in load_surveys(MODULES)] == list(SURVEYS)


def recoded(codec: str, compress: Callable[[bytes], bytes], size: int | None = None) -> bytes:
    """The packet in a container of another codec."""
    header = read_header(PAYLOAD)
    (block,) = read_blocks(PAYLOAD, header)
    body = compress(block.data[block.start : block.end])
    metadata = {b"avro.schema": header.schema_json, b"avro.codec": codec.encode()}
    out = [b"Obj\x01", write_long(len(metadata))]
    for name, value in metadata.items():
        out += [write_long(len(name)), name, write_long(len(value)), value]
    sync = b"s" * 16
    return b"".join([*out, write_long(0), sync, write_long(1), write_long(len(body)), body, sync])


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def snappy(data: bytes) -> bytes:
    return pa.compress(data, "snappy", asbytes=True) + zlib.crc32(data).to_bytes(4, "big")  # type: ignore[no-any-return]


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)  # type: ignore[no-any-return]


CODECS = {"deflate": deflate, "snappy": snappy, "zstandard": zstandard}


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_containers(codec: str) -> None:
    decoder = Decoder()
    assert_equal(alerts_of(decoder.decode(recoded(codec, CODECS[codec]))), alerts_of(decoder.decode(PAYLOAD)))


@pytest.mark.parametrize(
    ("codec", "compress", "reason"),
    [
        ("deflate", lambda data: deflate(data)[:-9], "cut short"),
        ("deflate", lambda data: b"\xff" * 30, "invalid"),
        ("snappy", lambda data: snappy(data)[:-1] + b"?", "checksum"),
        ("snappy", lambda data: snappy(data)[:-30], "damaged snappy|checksum"),
        ("snappy", lambda data: b"\xff\xff\xff\xff\x0f" + data, "cannot hold"),
        ("snappy", lambda data: b"", "checksum|damaged"),
        ("zstandard", lambda data: zstandard(data)[:-9], "zstandard|Avro"),
        ("zstandard", lambda data: data, "damaged zstandard"),
        ("lzma2000", lambda data: data, "codec 'lzma2000' is not one of null, deflate, snappy, zstandard"),
    ],
)
def test_damaged_blocks(codec: str, compress: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        Decoder().decode(recoded(codec, compress))


@pytest.mark.parametrize("codec", CODECS)
def test_a_block_that_inflates_without_end_is_refused(codec: str) -> None:
    with pytest.raises(DecodeError, match=r"more than 1000000 bytes once inflated \(pipeline.max_message_mib\)"):
        Decoder(max_bytes=1_000_000).decode(recoded(codec, lambda _: CODECS[codec](bytes(5_000_000))))


def blocks_of(codec: str, *blocks: tuple[int, bytes]) -> bytes:
    """A container of the packet's schema with blocks of any numbers and bytes."""
    header = read_header(recoded(codec, CODECS[codec] if codec != "null" else bytes))
    sync = b"s" * 16
    out = [header.raw, sync]
    for number, body in blocks:
        out += [write_long(number), write_long(len(body)), body, sync]
    return b"".join(out)


@pytest.mark.parametrize("codec", ["null", *CODECS])
def test_the_bound_is_that_of_all_blocks_and_is_checked_before_memory_is_taken(codec: str) -> None:
    """Each block is within the bound; of 60 that hold 16 MB each, no more is inflated than the bound allows."""
    body = bytes(16_000_000)
    message = blocks_of(
        codec, *[(1, CODECS[codec](body) if codec != "null" else body)] * (60 if codec != "null" else 2)
    )
    decoder = Decoder(max_bytes=20_000_000)
    tracemalloc.start()
    try:
        (result,) = decoder.decode_batch([message])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(result) == "the message has more than 20000000 bytes once inflated (pipeline.max_message_mib)"
    assert peak < 45_000_000


def test_as_many_alerts_as_the_bound_allows_and_not_one_more() -> None:
    decoder = Decoder(max_alerts=3)
    assert len(decoder.decode(container(SCHEMA, [RECORD] * 3))) == 3
    with pytest.raises(DecodeError, match=r"has 4 records; pipeline.max_message_alerts allows 3"):
        decoder.decode(container(SCHEMA, [RECORD] * 4))
    header, sync = read_header(PAYLOAD).raw, PAYLOAD[len(read_header(PAYLOAD).raw) :][:16]
    (block,) = read_blocks(PAYLOAD, read_header(PAYLOAD))
    record = block.data[block.start : block.end]
    one = [write_long(1), write_long(len(record)), record, sync]
    assert len(decoder.decode(b"".join([header, sync, *one * 3]))) == 3
    with pytest.raises(DecodeError, match="has 4 records"):
        decoder.decode(b"".join([header, sync, *one * 4]))
    # A number that is not true gets no further: there are the bytes of six records.
    with pytest.raises(DecodeError, match="damaged Avro record"):
        decoder.decode(b"".join([header, sync, write_long(1), write_long(6 * len(record)), record * 6, sync]))


def test_the_next_messages_are_those_of_a_batch() -> None:
    """As many messages as hold ``most`` alerts together, and one that holds more by itself."""
    decoder = Decoder()
    messages = [container(SCHEMA, [RECORD] * count) for count in (2, 2, 1, 7, 1, 0, 2)] + [b"nonsense"]
    taken, first = [], 0
    while first < len(messages):
        results = decoder.decode_next(messages[first:], most=4)
        taken.append([len(r) if isinstance(r, list) else -1 for r in results])
        first += len(results)
    assert taken == [[2, 2], [1], [7], [1, 0, 2, -1]]


def test_the_next_messages_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = read_blocks(PAYLOAD, read_header(PAYLOAD))
    monkeypatch.setattr(decoder_module, "_MAX_RUN_BYTES", 3 * (block.end - block.start))
    results = Decoder().decode_next([PAYLOAD] * 20)
    assert len(results) == 4
    for result in results:
        assert_equal(alerts_of(result), Decoder().decode(PAYLOAD))


def test_spectra_are_given_to_what_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "record", "name": "spectrum", "namespace": "trifid", "fields": [{"name": "x", "type": "int"}]}
    message = container(schema, [{"x": 1}])
    empty = np.empty(0, np.float64)
    spectrum = ObservedSpectrum("s1", 1.0, 2.0, float("nan"), Spectrum(empty, np.float32(empty), np.float32(empty)))

    def read(payload: bytes) -> list[ObservedSpectrum]:
        if payload != message:
            raise DecodeError("no spectrum")
        return [spectrum]

    monkeypatch.setattr("broker.spectra.message.read", read)
    alert, found, refused = Decoder().decode_batch([PAYLOAD, message, container(schema, [{"x": 2}])])
    assert len(alerts_of(alert)) == 1
    assert found == [spectrum]
    assert str(refused) == "no spectrum"


def test_a_container_of_many_and_one_of_none() -> None:
    many, none = container(SCHEMA, [RECORD, {**RECORD, "objectId": "ZTF18other"}]), container(SCHEMA, [])
    decoder = Decoder()
    results = decoder.decode_batch([many, none, PAYLOAD])
    assert [[alert.object_id for alert in alerts_of(result)] for result in results] == [
        [RECORD["objectId"], "ZTF18other"], [], [RECORD["objectId"]],
    ]  # fmt: skip
    assert decoder.decode_batch([]) == []
    bad = container(SCHEMA, [RECORD, {**RECORD, "objectId": ""}])
    found = decoder.decode(bad)
    assert [alert.object_id for alert in alerts_of(found)] == [RECORD["objectId"]]
    assert [str(error) for error in found.refused] == ["the packet has an empty objectId"]
    with pytest.raises(DecodeError, match="empty objectId"):
        decoder.decode(container(SCHEMA, [{**RECORD, "objectId": ""}]))


def test_batches_of_more_bytes_than_one_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "_MAX_RUN_BYTES", 3 * len(PAYLOAD))
    results = Decoder().decode_batch([PAYLOAD] * 20)
    for result in results:
        assert_equal(alerts_of(result), alerts_of(results[0]))


# The bar: bytes that were meant to be packets.


def real_packets(folder: Path) -> dict[str, list[bytes]]:
    """Some of each form; simulated ones where there are no real ones."""
    simulated = [a.payload for a in simulate_alerts(5, 30, seed=3)]
    sets = {"simulated": simulated, "lsst, blank": [lsst(version) for version in (300, 704, 900, 1101)]}
    alerts = folder / "alerts"
    for name, path in {
        "ztf": "ztf/native.tar", "ztf, new": "ztf/recent_v4.02.avro", "lsst": "lsst/confluent_wire",
        "rubin": "lsst/rubin_v9_0.avro", "elasticc": "elasticc",
    }.items():  # fmt: skip
        if (alerts / path).exists():
            sets[name] = [packet.payload for packet in islice(iter_packets([alerts / path]), 60)]
    return sets


HUGE = [write_long(value) for value in (2**60, 2**31, -(2**63), 2**63 - 1, 10**6, -1)] + [b"\xff" * 12]
POISON = [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 0.0, -999.0, 5e-324]


class Corruption:
    """Ways to spoil a packet."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, payload: bytes) -> bytes:
        often = (self.bits, self.values, self.cut, self.huge)
        ways = (*often, *often, *often, self.floats, self.types, self.id)
        return ways[int(self.rng.integers(len(ways)))](payload)

    def start(self, payload: bytes) -> int:
        """Where the record begins, so that not all damage is to the long header."""
        if payload[:1] != b"O":
            return 5
        return len(read_header(payload).raw) + 16 if self.rng.random() < 0.8 else 0

    def bits(self, payload: bytes) -> bytes:
        data = bytearray(payload)
        for _ in range(int(self.rng.integers(1, 8))):
            data[int(self.rng.integers(self.start(payload), len(data)))] ^= 1 << int(self.rng.integers(8))
        return bytes(data)

    def values(self, payload: bytes) -> bytes:
        at = int(self.rng.integers(self.start(payload), len(payload)))
        return payload[:at] + self.rng.bytes(int(self.rng.integers(1, 40))) + payload[at + int(self.rng.integers(40)) :]

    def cut(self, payload: bytes) -> bytes:
        at = int(self.rng.integers(len(payload)))
        return payload[:at] if self.rng.random() < 0.7 else payload[:at] + payload[at + int(self.rng.integers(1, 99)) :]

    def huge(self, payload: bytes) -> bytes:
        """A length or count of any size where there was something else."""
        at = self.start(payload) + int(self.rng.integers(min(3000, len(payload) - self.start(payload))))
        number = HUGE[int(self.rng.integers(len(HUGE)))]
        return payload[:at] + number + payload[at + int(self.rng.integers(1, 9)) :]

    def id(self, payload: bytes) -> bytes:
        """Another schema's id, or a container that says it is in the wire format."""
        record = payload[self.start(payload) :]
        ids = (300, 400, 500, 600, 701, 704, 800, 900, 1000, 1101, 0, 2**32 - 1, int(self.rng.integers(2**32)))
        return confluent_message(ids[int(self.rng.integers(len(ids)))], record)

    def floats(self, payload: bytes) -> bytes:
        """Numbers that are none, in fields that are there."""
        record = plain(payload)
        self.poison(record)
        out = io.BytesIO()
        schema = self.schema(payload)
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
        if payload[:1] != b"O":
            return payload[:5] + out.getvalue()
        return container_message(json.dumps(schema).encode(), out.getvalue())

    def poison(self, value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, (dict, list)):
                self.poison(inner)
            elif isinstance(inner, float) and self.rng.random() < 0.3:
                bad = POISON[int(self.rng.integers(len(POISON)))]
                value[key] = bad if abs(bad) < 1e38 or abs(inner) > 1e5 or not np.isfinite(bad) else 3e38

    def types(self, payload: bytes) -> bytes:
        """A container whose schema has another type than its record was written with."""
        record = payload[5:]
        if payload[:1] == b"O":
            (block,) = read_blocks(payload, read_header(payload))
            record = block.data[block.start : block.end]
        text = json.dumps(self.schema(payload))
        names = ["float", "double", "string", "long", "int", "bytes", "boolean", "null"]
        for _ in range(int(self.rng.integers(1, 4))):
            old, new = (f'"{names[int(self.rng.integers(len(names)))]}"' for _ in range(2))
            places = [match.start() for match in re.finditer(old, text)]
            if places:
                at = places[int(self.rng.integers(len(places)))]
                text = text[:at] + new + text[at + len(old) :]
        return container_message(text.encode(), record)

    def schema(self, payload: bytes) -> Any:
        if payload[:1] == b"O":
            return json.loads(read_header(payload).schema_json)
        return {k: v for k, v in lsst_schema(int.from_bytes(payload[1:5], "big")).items() if not k.startswith("__")}


def assert_valid(alert: Alert) -> None:
    curve = alert.light_curve
    assert np.isfinite(alert.mjd)
    assert -90 <= alert.dec <= 90
    assert 0 <= alert.ra <= 360
    assert alert.object_id
    assert alert.band
    assert np.all(np.isfinite(curve.mjd))
    assert np.all(np.diff(curve.mjd) >= 0)
    assert np.all((curve.flux_error > 0) & np.isfinite(curve.flux_error))
    assert np.all(np.isfinite(curve.flux) | (curve.kind == PhotometryKind.LIMIT))
    for score in (alert.real_bogus, alert.star_score):
        assert score is None or 0 <= score <= 1
    if alert.metadata is not None:
        assert not np.any(np.isinf(alert.metadata.values))


def test_ten_thousand_corrupted_packets_are_refused_with_a_reason_or_valid(request: pytest.FixtureRequest) -> None:
    folder = Path(os.environ.get("TRIFID_SHARED", request.config.rootpath.parent / "shared"))
    sets = list(real_packets(folder).values())
    corrupt = Corruption(np.random.default_rng(20261124))
    decoder = Decoder()
    slowest = 0.0
    outcomes: Counter[str] = Counter()
    batch: list[tuple[bytes, str]] = []
    for number in range(10_000):
        packets_of = sets[number % len(sets)]
        payload = corrupt(packets_of[int(corrupt.rng.integers(len(packets_of)))])
        start = time.thread_time()
        (result,) = decoder.decode_batch([payload])
        slowest = max(slowest, time.thread_time() - start)
        if isinstance(result, DecodeError):
            assert str(result)
            # Nothing was a surprise.
            assert not str(result).startswith("the packet cannot be read"), str(result)
            outcomes["refused"] += 1
        else:
            for alert in alerts_of(result):
                assert_valid(alert)
            outcomes["valid"] += 1
        batch.append((payload, str(result) if isinstance(result, DecodeError) else str(len(result))))
        if len(batch) == 100:
            together = decoder.decode_batch([payload for payload, _ in batch])
            assert [str(r) if isinstance(r, DecodeError) else str(len(r)) for r in together] == [
                said for _, said in batch
            ]
            batch.clear()
    print(f"{dict(outcomes)}, the slowest took {1000 * slowest:.1f} ms")
    assert outcomes["refused"] > 3000
    assert outcomes["valid"] > 500
    assert slowest < 1.0  # nothing hangs
