"""Filters of subscribers: which of some annotations, worked out by hand, meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from confluent_kafka import Message

from broker.client import Cone, Expression, Filter, PublishedAnnotation, Region, Subscription
from broker.client.headers import FIELDS_IN_HEADERS, summary
from broker.errors import ConfigurationError, InputFileError
from broker.publish.headers import summary_headers
from broker.records import KnownObject
from broker.times import moment_of

STAR = PublishedAnnotation(
    survey="ztf", alert_id=1, source_id=1, object_id="a", ra=0.0, dec=60.0, mjd=61000.0,
    class_names=("RRAB", "RRC", "EA"), probabilities=(0.5, 0.45, 0.05), modalities=("light_curve",), detections=20,
    period=0.5, parents={"RRLyrae": 0.95, "Eclipsing": 0.05}, anomaly_score=0.9,
)  # fmt: skip
KNOWN = KnownObject("vsx", "RR Lyr", "RRAB", 0.567, 0.1)


@pytest.mark.parametrize(
    ("wanted", "meets"),
    [
        (Filter(), True),
        (Filter(class_name="RRAB", min_probability=0.5), True),
        (Filter(class_name="RRAB", min_probability=0.51), False),
        (Filter(class_name="RRC"), False),
        (Filter(parent="RRLyrae", min_probability=0.95), True),
        (Filter(parent="RRLyrae", class_name="RRAB", min_probability=0.6), False),  # of the class
        (Filter(parent="Eclipsing"), False),
        (Filter(min_probability=0.6), False),
        (Filter(min_anomaly_score=0.9), True),
        (Filter(min_anomaly_score=0.91), False),
        (Filter(min_detections=20), True),
        (Filter(min_detections=21), False),
        (Filter(known=False), True),
        (Filter(known=True), False),
        # At declination 60, 20 arcsec of right ascension are 10 on the sky.
        (Filter(cone=Cone(359.99444444, 60.0, 10.01)), True),
        (Filter(cone=Cone(359.99444444, 60.0, 9.99)), False),
        (Filter(cone=Cone(0.0, 60.0 + 10 / 3600, 9.99)), False),
        (Filter(region=Region.of_text("0/0")), True),  # from RA 0 to 90, north of the equator
        (Filter(region=Region.of_text("0/1-11")), False),
    ],
)
def test_what_meets_a_filter(wanted: Filter, meets: bool) -> None:
    assert wanted(STAR) is meets
    assert wanted.fields <= FIELDS_IN_HEADERS
    assert wanted.holds({name: STAR[name] for name in FIELDS_IN_HEADERS}) is meets


class _Message:
    """What ``summary`` asks a message of Kafka for."""

    def __init__(self, headers: object) -> None:
        self._headers = headers

    def headers(self) -> object:
        return self._headers


def summarized(*headers: tuple[str, bytes | None]) -> Mapping[str, object] | None:
    return summary(cast(Message, _Message(list(headers) or None)))


def test_what_headers_tell() -> None:
    headers = [(name, text.encode()) for name, text in summary_headers(STAR, STAR.parent)]
    told = summarized(*headers, ("traceparent", b"00-1-2-01"))
    assert told == {name: STAR[name] for name in FIELDS_IN_HEADERS}
    unscored = summarized(*(one for one in headers if one[0] not in ("anomalyScore", "parent", "parentProbability")))
    assert unscored is not None
    assert (unscored["anomalyScore"], unscored["parent"], unscored["detections"]) == (None, None, 20.0)
    assert not Filter(min_anomaly_score=0.0).holds(unscored)
    assert Expression('missing(anomalyScore) and class == "RRAB" and probability >= 0.5').holds(unscored)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("traceparent", b"00-1-2-01"),),
        (("class", b"RRAB"), ("survey", b"ztf")),
        tuple((name, b"x") for name in FIELDS_IN_HEADERS),
        tuple((name, None) for name in FIELDS_IN_HEADERS),
        tuple((name, b"\xff") for name in FIELDS_IN_HEADERS),
    ],
)
def test_headers_that_tell_nothing(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    assert summarized(*headers) is None


def test_regions_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1/0-3 2/16\n")
    (tmp_path / "a.json").write_text('{"1": [0, 1, 2, 3], "2": [16]}')
    from astropy.io import fits

    column = fits.Column("UNIQ", "K", array=np.array([16, 17, 18, 19, 80]))
    table = fits.BinTableHDU.from_columns([column])
    table.header["MOCVERS"] = "2.0"
    table.writeto(tmp_path / "a.fits")
    for name in ("a.txt", "a.json", "a.fits"):
        region = Region.of_file(tmp_path / name)
        assert region.ranges.tolist() == [[0, 17 << 54]], name
    assert Region.of_file(str(tmp_path / "a.fits")).holds(45.0, 1.0)
    assert not region.holds(float("nan"), 1.0)
    (tmp_path / "b.txt").write_text("RR Lyr")
    with pytest.raises(InputFileError, match="no MOC"):
        Region.of_file(tmp_path / "b.txt")
    with pytest.raises(InputFileError, match="No such file"):
        Region.of_file(tmp_path / "c")
    fits.BinTableHDU.from_columns([column]).writeto(tmp_path / "table.fits")
    with pytest.raises(InputFileError, match="a FITS table, but no MOC"):
        Region.of_file(tmp_path / "table.fits")


def test_what_is_not_there_meets_no_condition_on_it() -> None:
    nothing = replace(STAR, class_names=("NotClassified",), probabilities=(1.0,), parents={}, anomaly_score=None)
    assert not Filter(min_anomaly_score=0.0)(nothing)
    assert not Filter(parent="RRLyrae", min_probability=0.0)(nothing)
    assert Filter(class_name="NotClassified")(nothing)
    assert Filter(known=True)(replace(STAR, known_as=(KNOWN,)))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"class_name": "Cepheid"}, "class_name is 'Cepheid'"),
        ({"parent": "RRAB"}, "parent is 'RRAB'"),
        ({"min_probability": 1.5}, "give 0 to 1"),
        ({"min_anomaly_score": float("nan")}, "give 0 to 1"),
        ({"cone": Cone(0.0, 91.0, 1.0)}, "no circle on the sky"),
        ({"cone": Cone(0.0, 0.0, 0.0)}, "no circle on the sky"),
    ],
)
def test_filters_that_cannot_be_meant_are_refused(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Filter(**given)  # type: ignore[arg-type]


def test_moments_are_mjd_or_iso() -> None:
    assert moment_of("61372.5") == 61372.5
    assert moment_of("2026-11-28T12:00") == 61372.5
    assert moment_of("2026-11-28 13:00+01:00") == 61372.5
    assert moment_of("2026-11-28") == 61372.0
    for text in ("nan", "inf", "1e9", "noon", ""):
        with pytest.raises(ValueError, match=r"MJD|Invalid isoformat"):
            moment_of(text)


def test_a_start_of_nobody_knows_which_zone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="without a time zone"):
        Subscription("t", start=datetime(2026, 11, 28))
    with pytest.raises(ConfigurationError, match="give 'earliest', 'latest' or a datetime"):
        Subscription("t", start="yesterday")  # type: ignore[arg-type]
    Subscription("t", start=datetime(2026, 11, 28, tzinfo=UTC)).close()
