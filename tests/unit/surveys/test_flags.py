"""Points that the survey itself calls bad, and times at which it cannot have observed, are not used, and counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.avro.wire import confluent_message
from broker.errors import DecodeError
from broker.records import LightCurve, PhotometryKind
from broker.sources import iter_packets
from broker.surveys import Decoder
from broker.surveys.columns import MAX_FLUX, PointFlaw, TimeRange, implausible
from broker.surveys.elasticc import SURVEY as ELASTICC
from broker.surveys.lsst_schemas import lsst_schema
from broker.times import JD_OF_MJD_0
from tests.unit.surveys.test_decoder import RECORD, alerts_of, blank, lsst, retyped, ztf

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"
FORCED = RECORD["fp_hists"]
JD = RECORD["candidate"]["jd"]


def forced(payload: bytes) -> np.ndarray[Any, Any]:
    (alert,) = alerts_of(Decoder().decode(payload))
    return alert.light_curve.mjd[alert.light_curve.kind == PhotometryKind.FORCED]


def test_forced_photometry_of_another_status_is_the_same_as_none_at_all() -> None:
    """The case of ../shared/cases: all 24 alerts of a star, with and without points of status 56 and 61."""
    folder = CASES / "19-ztf-procstatus"
    counted = Decoder()
    good, bad = (
        [alerts_of(counted.decode(p.payload))[0] for p in iter_packets([folder / name])]
        for name in ("good.avro", "bad.avro")
    )
    assert len(good) == len(bad) == 24
    for first, second in zip(good, bad, strict=True):
        assert first.light_curve.mjd.tolist() == second.light_curve.mjd.tolist()
        np.testing.assert_array_equal(first.light_curve.flux, second.light_curve.flux)
    assert counted.take_left_out() == {("ztf", "flagged"): 23}


@pytest.mark.parametrize(
    ("type_of", "status", "used"),
    [
        *[(["null", "string"], text, True) for text in ("0", " 0", "0 ")],
        *[(["null", "string"], text, False) for text in ("55", "56", "57", "61", "56,61", "", "00", "0,61", "x", None)],
        (["null", "int"], 0, True),
        (["null", "long"], 56, False),
        (["null", "double"], 0.0, True),
        (["null", "double"], 61.0, False),
        (["null", "double"], float("nan"), False),
    ],
)
def test_only_what_was_processed_without_a_fault_is_used(type_of: Any, status: Any, used: bool) -> None:
    points = [{**point, "procstatus": status} for point in FORCED]
    found = forced(ztf(retyped("procstatus", type_of), fp_hists=points))
    assert found.tolist() == ([p["jd"] - JD_OF_MJD_0 for p in FORCED] if used else [])


def test_candidates_on_bad_pixels_are_not_used() -> None:
    earlier = [
        {**c, "nbad": 2} if number % 2 else {**c, "nbad": 0} for number, c in enumerate(RECORD["prv_candidates"])
    ]
    decoder = Decoder()
    (alert,) = alerts_of(decoder.decode(ztf(prv_candidates=earlier, fp_hists=None)))
    left = [c["jd"] - JD_OF_MJD_0 for c in earlier if c["magpsf"] is not None and c["nbad"] == 0]
    detected = alert.light_curve.mjd[alert.light_curve.kind == PhotometryKind.DETECTION]
    assert detected.tolist() == [*left, JD - JD_OF_MJD_0]
    assert sum(decoder.take_left_out().values()) == sum(c["magpsf"] is not None and c["nbad"] == 2 for c in earlier) > 0


def rubin(version: int, points: list[dict[str, Any]], forced_points: list[dict[str, Any]] | None = None) -> bytes:
    """An LSST packet with earlier sources, each of flux 100 and error 1 in r a day apart, changed as given."""
    named: dict[str, Any] = {}
    schema: Any = lsst_schema(version)
    record = blank(schema, named)
    source = {**record["diaSource"], "band": "r", "psfFlux": 100.0, "psfFluxErr": 1.0}
    record["diaSource"] = {**source, "diaSourceId": 9, "ra": 10.0, "dec": 1.0, "midpointMjdTai": 61000.0}
    record["prvDiaSources"] = [
        {**source, "midpointMjdTai": 60990.0 + number, **changes} for number, changes in enumerate(points)
    ]
    if forced_points is not None:
        types = next(f for f in schema["fields"] if f["name"] == "prvDiaForcedSources")["type"]
        item = {**blank(types[1]["items"], named), "band": "r", "psfFlux": 50.0, "psfFluxErr": 1.0}
        record["prvDiaForcedSources"] = [
            {**item, "midpointMjdTai": 60980.0 + number, **changes} for number, changes in enumerate(forced_points)
        ]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return confluent_message(version, out.getvalue())


@pytest.mark.parametrize("version", [900, 1000, 1101])
@pytest.mark.parametrize(
    "flag",
    [
        "psfFlux_flag", "psfFlux_flag_edge", "psfFlux_flag_noGoodPixels", "pixelFlags_offimage",
        "pixelFlags_nodataCenter", "pixelFlags_saturatedCenter", "pixelFlags_interpolatedCenter", "pixelFlags_crCenter",
        "pixelFlags_injectedCenter", "pixelFlags_injected_templateCenter",
    ],
)  # fmt: skip
def test_sources_that_lsst_flags_are_not_used(version: int, flag: str) -> None:
    decoder = Decoder()
    (alert,) = alerts_of(decoder.decode(rubin(version, [{flag: True, "psfFlux": 9e6}, {flag: False}, {flag: None}])))
    assert alert.light_curve.flux.tolist() == [100.0, 100.0, 100.0]
    assert np.rint(alert.light_curve.mjd).tolist() == [60991, 60992, 61000]
    assert decoder.take_left_out() == {("lsst", "flagged"): 1}


@pytest.mark.parametrize("flag", ["pixelFlags_cr", "pixelFlags_edge", "shape_flag", "isDipole", "centroid_flag"])
def test_flags_that_say_nothing_of_the_flux_cost_no_point(flag: str) -> None:
    (alert,) = alerts_of(Decoder().decode(rubin(1101, [{flag: True}])))
    assert len(alert.light_curve) == 2


def test_a_failed_flux_on_the_science_image_is_no_reference() -> None:
    science = {"scienceFlux": 900.0, "templateFlux": 300.0}
    payload = rubin(1101, [science, {**science, "forced_PsfFlux_flag": True}])
    (alert,) = alerts_of(Decoder().decode(payload))
    assert alert.light_curve.reference_flux.tolist()[:2] == [800.0, 300.0]


def test_measurements_that_lsst_withdrew_are_not_used() -> None:
    decoder = Decoder()
    payload = rubin(1101, [{"timeWithdrawnMjdTai": 60995.0}, {}], [{"timeWithdrawnMjdTai": 60995.0}, {}])
    (alert,) = alerts_of(decoder.decode(payload))
    assert np.rint(alert.light_curve.mjd).tolist() == [60981, 60991, 61000]
    assert decoder.take_left_out() == {("lsst", "flagged"): 2}


# Times.


def with_times(jd: float, earlier: list[float]) -> bytes:
    """The packet with a detection at a Julian date and earlier ones at others."""
    like = next(c for c in RECORD["prv_candidates"] if c["magpsf"] is not None)
    return ztf(candidate={"jd": jd}, prv_candidates=[{**like, "jd": time} for time in earlier], fp_hists=None)


NOW = 61_000.0


@pytest.mark.parametrize(
    ("mjd", "reason"),
    [
        (NOW + 50 * 365.25, "is after the alert was received"),
        (NOW + 30.1, "is after the alert was received, the latest allowed is 61030.000"),
        (NOW + 29.9, None),
        (NOW - 2000, None),
        (58_001.0, None),
        (57_999.0, r"is before the survey began \(MJD 58000\)"),
        (15_020.0, "is before the survey began"),
    ],
)
def test_an_alert_of_a_time_at_which_the_survey_cannot_have_observed_is_refused(mjd: float, reason: str | None) -> None:
    (result,) = Decoder().decode_batch([with_times(mjd + JD_OF_MJD_0, [])], [NOW])
    if reason is None:
        assert alerts_of(result)[0].mjd == pytest.approx(mjd, abs=1e-6)
    else:
        assert isinstance(result, DecodeError)
        with pytest.raises(DecodeError, match=reason):
            raise result


def test_a_packet_of_future_points_keeps_its_past() -> None:
    """As the one that spoilt an object for good: 2,000 points of days to come."""
    decoder = Decoder()
    past = [NOW - 5 + JD_OF_MJD_0, NOW - 3 + JD_OF_MJD_0]
    future = [NOW + 1 + day + JD_OF_MJD_0 for day in range(2000)]  # 30 of them are not after the receipt
    (result,) = decoder.decode_batch([with_times(NOW - 1 + JD_OF_MJD_0, [*future, *past, 2_400_100.5])], [NOW])
    (alert,) = alerts_of(result)
    assert alert.light_curve.mjd.tolist() == [NOW - 5, NOW - 3, NOW - 1]
    assert decoder.take_left_out() == {
        ("ztf", "after_receipt"): 1970,
        ("ztf", "after_detection"): 30,
        ("ztf", "before_survey"): 1,
    }


def test_points_long_after_the_detection_are_not_its_past() -> None:
    """In a replayed archive the receipt comes years later, and bounds nothing."""
    decoder = Decoder()
    own = 58_500.0 + JD_OF_MJD_0
    (alert,) = alerts_of(decoder.decode_batch([with_times(own, [own - 1, own + 0.3, own + 1.5, own + 900])], [NOW])[0])
    assert alert.light_curve.mjd.tolist() == [58_499.0, 58_500.0, pytest.approx(58_500.3)]
    assert decoder.take_left_out() == {("ztf", "after_detection"): 2}


@pytest.mark.parametrize(("mjd", "refused"), [(NOW + 400, True), (50_000.0, True), (57_454.3, False)])
def test_times_of_lsst(mjd: float, refused: bool) -> None:
    (result,) = Decoder().decode_batch([lsst(1101, {"midpointMjdTai": mjd})], [NOW])
    assert isinstance(result, DecodeError) == refused


def test_simulated_times_may_be_later_than_the_receipt() -> None:
    assert ELASTICC.times.bound(np.array([NOW])).tolist() == [64_000.0]
    assert TimeRange(first=1.0).bound(np.array([NOW, np.inf])).tolist() == [NOW, 1e10]


def test_how_far_into_the_future_is_a_setting() -> None:
    payload = with_times(NOW + 0.5 + JD_OF_MJD_0, [])
    assert isinstance(Decoder(future_days=0.4).decode_batch([payload], [NOW])[0], DecodeError)
    assert len(alerts_of(Decoder(future_days=0.6).decode_batch([payload], [NOW])[0])) == 1
    assert len(alerts_of(Decoder(future_days=0.0).decode(payload))) == 1  # received nobody knows when


def test_a_magnitude_that_is_a_code_is_no_measurement() -> None:
    decoder = Decoder()
    like = next(c for c in RECORD["prv_candidates"] if c["magpsf"] is not None)
    codes = [{**like, "jd": JD - 1 - n, "magpsf": value} for n, value in enumerate((0.0, -9.99, 1.0, 17.0))]
    (alert,) = alerts_of(decoder.decode(ztf(prv_candidates=codes, fp_hists=None)))
    assert len(alert.light_curve) == 2
    assert np.all(np.abs(alert.light_curve.flux) < MAX_FLUX)
    assert decoder.take_left_out() == {("ztf", "flux"): 3}


def test_what_is_plausible_of_a_stored_light_curve() -> None:
    good = (59_000.0, 10.0, 1.0, 0, 0)
    points = [
        good, (79_000.0, 10.0, 1.0, 0, 0), (40_000.0, 10.0, 1.0, 0, 0), (59_001.0, 1e12, 1.0, 0, 0),
        (59_002.0, 10.0, 0.0, 0, 0), (59_003.0, np.nan, 1.0, 0, 2), (59_004.0, np.nan, 1.0, 0, 0),
        (59_005.0, 10.0, 1.0, 200, 0), (59_006.0, 10.0, 1.0, 0, 9),
    ]  # fmt: skip
    mjd, flux, error, band, kind = zip(*points, strict=True)
    curve = LightCurve(
        np.array(mjd), np.array(flux, np.float32), np.array(error, np.float32), np.full(len(mjd), np.nan, np.float32),
        np.array(band, np.uint8), np.array(kind, np.uint8),
    )  # fmt: skip
    assert implausible(curve, TimeRange(58_000.0), NOW).tolist() == [
        PointFlaw.NONE, PointFlaw.AFTER_RECEIPT, PointFlaw.BEFORE_SURVEY, PointFlaw.FLUX, PointFlaw.NO_VALUE,
        PointFlaw.NONE,
        PointFlaw.NO_VALUE, PointFlaw.BAND, PointFlaw.BAND,
    ]  # fmt: skip


def test_bands_that_are_not_known_are_named() -> None:
    payload = rubin(1101, [{}, {"band": "w"}, {"band": "w"}, {"band": None}], [{"band": "x"}, {}])
    decoder = Decoder()
    other, alert = (alerts_of(decoder.decode(p))[0] for p in (rubin(1101, [{}]), payload))
    assert set(alert.unknown_bands) == {"w", "x", "null"}
    assert len(alert.light_curve) == 3
    assert other.unknown_bands == ()
    assert decoder.take_left_out() == {("lsst", "band"): 4}
    earlier = [{**c, "fid": 4 + number % 2} for number, c in enumerate(RECORD["prv_candidates"])]
    (alert,) = alerts_of(decoder.decode(ztf(prv_candidates=earlier, fp_hists=None)))
    assert alert.unknown_bands == ("fid 4", "fid 5")


def test_no_more_than_some_bands_are_named() -> None:
    (alert,) = alerts_of(Decoder().decode(rubin(1101, [{"band": letter} for letter in "abcdefhjklm"])))
    assert alert.unknown_bands == tuple("abcdefhj")
