"""All real packets decode, with as many points as a plain reading of them counts; what types and values are refused."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.avro.container import read_header, write_long
from broker.avro.wire import confluent_message
from broker.errors import DecodeError, DependencyUnavailableError
from broker.records import (
    METADATA_FEATURES,
    SOURCE_FEATURES,
    Alert,
    LightCurve,
    ObservedSpectrum,
    PhotometryKind,
)
from broker.sources import Packet, iter_packets
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.simulator import SCHEMA_JSON, simulate_alerts

HUGE = [write_long(value) for value in (2**60, 2**31, -(2**63), 2**63 - 1, 10**6, -1)] + [b"\xff" * 12]
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
