"""Which annotations lists want, beside astropy's separations and mocpy's regions."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import Latitude, Longitude, SkyCoord
from mocpy import MOC

from broker import moc
from broker.client import Expression, PublishedAnnotation
from broker.errors import InputFileError
from broker.watch import content
from broker.watch.content import Content
from broker.watch.match import Hit, Matcher, Wanted

STAR = PublishedAnnotation(
    survey="ztf", alert_id=1, source_id=1, object_id="a", ra=0.0, dec=60.0, mjd=61000.0, class_names=("RRAB", "EA"),
    probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20, period=0.5,
)  # fmt: skip
LIMIT = 1 << 28


def at(places: Sequence[tuple[float, float]]) -> Content:
    ra, dec = np.array(places, np.float64).reshape(-1, 2).T
    return Content(ra, dec, [f"p{number}" for number in range(len(ra))])


def wanted(key: int, what: Content, radius: float = 2.0, expression: str | None = None) -> Wanted:
    return Wanted(key, what, radius, None if expression is None else Expression(expression), not what)


def stars(places: Sequence[tuple[float, float]]) -> list[PublishedAnnotation]:
    return [replace(STAR, object_id=f"o{n}", ra=ra, dec=dec) for n, (ra, dec) in enumerate(places)]


def test_positions_within_their_own_lists_radius_and_the_nearest_of_each() -> None:
    random = np.random.default_rng(5)
    # Clusters over the whole sky, at poles and at right ascension 0, too, as wide as the radii.
    middles = [(0.0, 0.0), (359.9999, 45.0), (10.0, 90.0), (200.0, -90.0), (123.0, -30.0), (45.0, 41.8)]
    places = []
    for ra, dec in middles:
        east, north = random.normal(0, 0.01, (2, 60))
        dec_new = np.clip(dec + north, -89.9999, 89.9999)
        places += list(
            zip(((ra + east / max(np.cos(np.radians(dec)), 0.01)) % 360).tolist(), dec_new.tolist(), strict=True)
        )
    order = random.permutation(len(places))
    places = [places[i] for i in order]
    lists = [
        wanted(7, at(places[:150]), 3.0), wanted(9, at(places[100:220]), 60.0), wanted(11, at(places[::5]), 600.0),
    ]  # fmt: skip
    asked = stars(places[180:])
    expected = set()
    sky = SkyCoord([a.ra for a in asked], [a.dec for a in asked], unit="deg")
    for one in lists:
        own = SkyCoord(one.content.ra, one.content.dec, unit="deg")
        distance = sky[:, None].separation(own[None, :]).arcsec
        nearest = distance.argmin(axis=1)
        for number, row in enumerate(nearest.tolist()):
            if distance[number, row] <= one.radius:
                expected.add(Hit(one.key, number, f"p{row}"))
    found = Matcher(lists).match(asked)
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert {hit.key for hit in expected} == {7, 9, 11}
    assert len(expected) < 3 * len(asked)


def test_names_with_and_without_their_survey() -> None:
    lists = [wanted(1, Content(names=["o1", "lsst:o2"])), wanted(2, Content(names=["ztf:o2", "o1"]))]
    assert Matcher(lists).match(stars([(0, 0)] * 4)) == [Hit(1, 1, "o1"), Hit(2, 1, "o1"), Hit(2, 2, "ztf:o2")]


def test_a_list_without_places_takes_what_its_expression_is_true_of_and_one_with_both() -> None:
    asked = [replace(a, detections=n) for n, a in enumerate(stars([(5, 5), (5, 5), (6, 6), (float("nan"), 5)]))]
    lists = [
        wanted(1, Content(), expression="detections >= 1"),
        wanted(2, at([(5, 5)]), expression="detections >= 1"),
        wanted(3, at([(5, 5)])),
    ]
    assert Matcher(lists).match(asked) == [
        Hit(1, 1, ""), Hit(1, 2, ""), Hit(1, 3, ""), Hit(2, 1, "p0"), Hit(3, 0, "p0"), Hit(3, 1, "p0"),
    ]  # fmt: skip
    assert Matcher([]).match(asked) == []
    assert Matcher(lists).match([]) == []


def regions() -> list[MOC]:
    cone = MOC.from_cone(Longitude(10 * units.deg), Latitude(80 * units.deg), radius=12 * units.deg, max_depth=9)
    small = MOC.from_cone(Longitude(0 * units.deg), Latitude(0 * units.deg), radius=1 * units.arcsec, max_depth=25)
    return [cone, cone.union(small), MOC.from_string("0/3 29/5 77"), MOC.from_string("0/0-11")]


@pytest.mark.parametrize("number", range(4))
def test_regions_as_mocpy_writes_and_tells_them(number: int, tmp_path: Path) -> None:
    region = regions()[number]
    texts = {form: region.to_string(form) for form in ("ascii", "json")}
    expected = region.to_depth29_ranges.astype(np.int64)
    for text in texts.values():
        assert np.array_equal(moc.of_text(text), expected)
    path = tmp_path / "m.fits"
    region.save(path, format="fits")
    assert np.array_equal(content.of_file(path, LIMIT).region, expected)
    region.save(tmp_path / "old.fits", format="fits", v1_compatible=True)
    assert np.array_equal(content.of_file(tmp_path / "old.fits", LIMIT).region, expected)
    (tmp_path / "m.txt").write_text(texts["ascii"])
    assert np.array_equal(content.of_file(tmp_path / "m.txt", LIMIT).region, expected)
    random = np.random.default_rng(number)
    ra, dec = random.uniform(0, 360, 5000), np.degrees(np.arcsin(random.uniform(-1, 1, 5000)))
    inside = region.contains_lonlat(ra * units.deg, dec * units.deg)
    assert np.array_equal(moc.inside(expected, moc.cells_of(ra, dec)), inside)
    asked = stars(list(zip(ra[:50].tolist(), dec[:50].tolist(), strict=True)))
    hits = Matcher([wanted(1, Content(region=expected))]).match(asked)
    assert [hit.annotation for hit in hits] == np.flatnonzero(inside[:50]).tolist()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("5/x", "no MOC: '5/x'"), ("3 5/1", "no MOC: '3'"), ("0/12", "no cells 12 to 12 of order 0"),
        ("30/1", "order 30"),
        ("5/3-1", "no cells 3 to 1"), ('{"5": 3}', "one in JSON"), ("{", "one in JSON"), ('{"x": [1]}', "one in JSON"),
        ("5/", "without cells"), ("{}", "without cells"), ('{"5": [1e999]}', "one in JSON"),
        ("5/99999999999999999999", "no cells"),
    ],
)  # fmt: skip
def test_what_is_no_region(text: str, problem: str) -> None:
    with pytest.raises(InputFileError, match=problem):
        moc.of_text(text)


def test_tables_of_positions_and_of_names(tmp_path: Path) -> None:
    path = tmp_path / "stars.csv"
    path.write_text("Name,RAJ2000,DEJ2000\nRR Lyr,19:25:27.9,+42:47:03.7\nbad,x,1\nMira,34.836617,-2.977640\n,400,0\n")
    found = content.of_file(path, LIMIT)
    assert found.labels == ["RR Lyr", "Mira"]
    assert found.ra == pytest.approx([291.36625, 34.836617])
    assert found.dec == pytest.approx([42.784361, -2.97764], abs=1e-6)
    assert found.remarks == ["2 of 4 rows were left out: no place in degrees, or no name"]
    path.write_text("object_id,comment\nZTF18abc,x\nztf:ZTF19d,y\nZTF18abc,z\n")
    assert content.of_file(path, LIMIT).names == ["ZTF18abc", "ztf:ZTF19d"]
    for text, problem in (
        ("a,b\n1,2\n", "neither columns of positions"), ("ra,b\n1,2\n", "a column ra without the other"),
        ("ra,dec\n", "no row has a place"), ("ra,dec\nx,y\n", "none of 1 rows has a place"),
        (f"name,b\n{'x' * 200},1\n", "at most 128"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputFileError, match=problem):
            content.of_file(path, LIMIT)


def test_a_votable_of_positions(tmp_path: Path) -> None:
    from astropy.table import Table

    table = Table({"source_id": ["g1", "g2"], "ra": [1.5, 2.5], "dec": [-3.0, 4.0]}, units={"ra": "deg", "dec": "deg"})
    table.write(tmp_path / "gaia.vot", format="votable")
    found = content.of_file(tmp_path / "gaia.vot", LIMIT)
    assert (found.labels, found.ra.tolist(), found.dec.tolist()) == (["g1", "g2"], [1.5, 2.5], [-3.0, 4.0])


def test_lines_as_people_write_them() -> None:
    found = content.of_lines("# mine\n269.45, 4.69, Barnard, the star\n\n17:57:48.5, +04:41:36\nZTF18abc\nZTF18abc\n")
    assert (found.labels, found.names) == (["Barnard, the star", ""], ["ZTF18abc"])
    assert found.ra == pytest.approx([269.45, 269.452083], abs=1e-6)
    for line, problem in (("1, x", "no position"), ("400, 0", "no position"), ("x" * 200, "at most 128")):
        with pytest.raises(InputFileError, match=f"line 2: .*{problem}"):
            content.of_lines(f"a\n{line}")


def test_a_position_without_a_comma_is_no_name() -> None:
    found = content.of_lines("269.45 4.69\n17:57:48.5\t+04:41:36\nRR Lyr\n2MASS 4\n1234567")
    assert found.names == ["RR Lyr", "2MASS 4", "1234567"]
    assert found.ra == pytest.approx([269.45, 269.452083], abs=1e-6)
    assert found.dec == pytest.approx([4.69, 4.693333], abs=1e-6)
    for line, problem in (("269.45 4.69 my star", "give commas"), ("400 4", "no position")):
        with pytest.raises(InputFileError, match=f"line 1: .*{problem}"):
            content.of_lines(line)


def test_the_database_keeps_all_of_a_list() -> None:
    full = Content(np.array([1.25, 359.5]), np.array([-2.0, 3.0]), ["a", "é"], ["ztf:b"], moc.of_text("5/1,3-7 6/24"))
    back = Content.of_stored(**full.stored())
    assert (back.ra.tolist(), back.dec.tolist()) == ([1.25, 359.5], [-2.0, 3.0])
    assert (back.labels, back.names, back.region.tolist()) == (full.labels, full.names, full.region.tolist())
    assert not Content.of_stored(**Content().stored())


def test_a_list_of_many_positions() -> None:
    random = np.random.default_rng(1)
    many = list(zip(random.uniform(0, 360, 100_000).tolist(), random.uniform(-80, 80, 100_000).tolist(), strict=True))
    asked = stars(many[:250] + [(ra, dec + 1.0) for ra, dec in many[250:500]])
    hits = Matcher([wanted(1, at(many))]).match(asked)
    assert [(hit.annotation, hit.label) for hit in hits] == [(n, f"p{n}") for n in range(250)]


def test_many_positions_in_one_place_need_little_memory() -> None:
    many = at(np.random.default_rng(2).normal(5.0, 1e-4, (200_000, 2)).tolist())
    many.ra[7], many.dec[7] = 5.0, 5.0
    asked = stars([(5.0, 5.0)] * 60)
    matcher = Matcher([wanted(1, many)])
    tracemalloc.start()
    hits = matcher.match(asked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hits == [Hit(1, n, "p7") for n in range(60)]
    assert peak < 200e6


def test_a_list_that_cannot_be_used_keeps_no_other_from_its_matches() -> None:
    lists = [
        wanted(1, at([(5.0, 5.0)]), 1e-310), wanted(2, at([(5.0, 95.0)])), wanted(3, at([(5.0, 5.0)]), float("nan")),
        wanted(4, at([(5.0, 5.0)])),
    ]  # fmt: skip
    matcher = Matcher(lists)
    assert [hit.key for hit in matcher.match(stars([(5.0, 5.0)]))] == [1, 4]
    assert sorted(matcher.problems) == [2, 3]
