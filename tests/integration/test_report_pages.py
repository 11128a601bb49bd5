"""Reports of ``trifid night`` and ``trifid audit`` in a real Chromium, and a night's figures against counts by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import Browser, Page

from broker.cli import main
from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.times import datetime_of
from broker.web.index import Index
from broker.web.night import bounds_of, collect, most_common, page
from tests.integration.web_line import fill, publish, settings_for

DESKTOP = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(server.url, tmp_path_factory.mktemp("night"))


@pytest.fixture(scope="module")
def annotations(settings: Settings) -> list[PublishedAnnotation]:
    """Of one night: all are published within a second or so; two must not lie on either side of noon."""
    found = publish(settings, objects=6, visits=25)
    return [replace(one, publish_mjd=found[0].publish_mjd) for one in found]


def evening(mjd: float) -> str:
    return f"{datetime_of(mjd - 0.5):%Y-%m-%d}"


@pytest.fixture(scope="module")
def report(
    settings: Settings, annotations: list[PublishedAnnotation], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    fill(settings, annotations).close()
    path = tmp_path_factory.mktemp("report") / "night.html"
    given = {"TRIFID_REDIS__URL": settings.redis.url.get_secret_value()}
    given["TRIFID_WEB__DATABASE"] = settings.web.database.get_secret_value()
    result = CliRunner().invoke(
        main,
        ["night", evening(annotations[0].publish_mjd), "--output", str(path), "--no-dead-letters"],
        env=given,
    )
    assert result.exit_code == 0, result.output
    refused = sum(not one.classified for one in annotations)
    assert f"{len(annotations)} annotations = {len(annotations) - refused} classified + {refused}" in result.stderr
    return path


@contextmanager
def opened(chromium: Browser, report: Path, options: dict[str, Any]) -> Iterator[Page]:
    """A report, which asks for nothing but itself."""
    context = chromium.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("request", lambda sent: None if sent.url in (report.as_uri(), "data:,") else wrong.append(sent.url))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(params=[DESKTOP, PHONE], ids=["light desktop", "dark phone"])
def shown(chromium: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report of the night."""
    with opened(chromium, report, request.param) as page:
        yield page


def check_reading(page: Page) -> None:
    """Nothing is wider than the screen, and axe-core finds nothing by its rules of WCAG 2.2 A and AA."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 10


def test_the_report_is_drawn_and_can_be_read_by_all(shown: Page, annotations: list[PublishedAnnotation]) -> None:
    strangest = max((a for a in last_of(annotations) if a.anomaly_score is not None), key=lambda a: a.anomaly_score)
    first = shown.locator("article").first
    assert first.locator("h3").inner_text().startswith(strangest.object_id)
    assert f"{strangest.anomaly_score:.3f}" in first.inner_text()
    drawn = first.locator("[data-plot=time]")
    assert int(drawn.get_attribute("data-points") or 0) > 10
    if strangest.period is not None:
        folded = first.locator("[data-plot=phase]")
        # Each point is drawn in two cycles, in series that are shown as well against time.
        assert int(folded.get_attribute("data-points") or 0) == 2 * int(drawn.get_attribute("data-points") or 0)
    spectra = shown.locator("[data-plot=spectrum]")
    assert spectra.count() == 1  # the one object that has one
    assert int(spectra.get_attribute("data-points") or 0) > 1000
    check_reading(shown)


def test_light_and_dark_change_the_plots(shown: Page) -> None:
    points = shown.locator("article .points").first
    before = points.get_attribute("stroke")
    shown.locator("button.theme").click()
    assert points.get_attribute("stroke") != before


def test_doubtful_labels_are_drawn_at_both_periods(chromium: Browser, tmp_path: Path) -> None:
    table, curves, report = (tmp_path / name for name in ("mine.csv", "curves.csv", "doubts.html"))
    table.write_text("name,ra,dec,type,period\nstar <1>,10.0,-5.0,EA,1.3\nother,11.0,-5.0,RR,0.57\n")
    rng = np.random.default_rng(2)
    lines = ["name,ra,dec,mjd,mag,mag_err"]
    for name, ra in (("star <1>", 10.0), ("other", 11.0)):
        times = np.sort(rng.uniform(55000, 56000, 120))
        lines += [f"{name},{ra},-5.0,{t:.6f},{13 + 0.9 * (t / 0.57 % 1) ** 0.6:.3f},0.02" for t in times]
    curves.write_text("\n".join(lines))
    result = CliRunner().invoke(main, ["audit", str(table), "--lightcurves", str(curves), "--report", str(report)])
    assert result.exit_code == 0, result.output
    for options in (DESKTOP, PHONE):
        with opened(chromium, report, options) as page:
            first = page.locator("article").first
            assert first.locator("h2").inner_text().startswith("1. star <1> EA")
            drawn = [node.get_attribute("data-points") for node in first.locator("[data-plot]").all()]
            assert drawn == ["120", "240", "240"]  # time, phase at 0.57 d and at the table's 1.3 d
            assert page.locator("article").nth(1).locator("[data-plot]").count() == 2
            check_reading(page)


def last_of(annotations: list[PublishedAnnotation]) -> list[PublishedAnnotation]:
    """The last annotation of each object."""
    last: dict[str, PublishedAnnotation] = {}
    for one in annotations:
        if one.object_id not in last or one.mjd >= last[one.object_id].mjd:
            last[one.object_id] = one
    return list(last.values())


def test_the_figures_are_those_of_the_annotations(settings: Settings, annotations: list[PublishedAnnotation]) -> None:
    with closing(fill(settings, annotations)) as index:
        night = collect(index, bounds_of(evening(annotations[0].publish_mjd)), 3, 100)
    by_class = Counter(one.best_class for one in annotations)
    assert {row["class"]: row["annotations"] for row in night.classes} == by_class
    assert night.annotations == len(annotations) == night.classified + night.not_classified
    last = last_of(annotations)
    assert night.objects == len(last)
    members = Counter(one.best_class for one in last if one.classified)
    assert {name: one["count"] for name, one in night.new.items()} == members
    scores = sorted((a.anomaly_score for a in last if a.anomaly_score is not None), reverse=True)
    assert [one["anomaly_score"] for one in night.anomalies] == scores


def test_a_member_is_new_where_it_was_not_of_the_class_before(
    annotations: list[PublishedAnnotation], tmp_path: Path
) -> None:
    """Star a was EW and is EW; b was EA and is EW; c comes; d comes and changes from EW to EA within the night."""
    night = 60000.5
    names = ("EW", "EA")

    def of(star: str, best: str, published: float, mjd: float) -> PublishedAnnotation:
        probabilities = (0.9, 0.1) if best == "EW" else (0.1, 0.9)
        return replace(
            annotations[-1], object_id=star, class_names=names, probabilities=probabilities, publish_mjd=published,
            mjd=mjd, ra=10.0, dec=5.0, known_as=(), prediction_set=(best,), class_ids=(0, 2),
            elasticc_ids=(2325, 2325), parents={"Eclipsing": 1.0}, alert_id=int(100 * (published - night) + 1000 * mjd),
        )  # fmt: skip

    with closing(Index(f"sqlite:///{tmp_path / 'index.sqlite'}")) as index:
        index.add(
            [
                of("a", "EW", night - 1, 1.0), of("a", "EW", night + 0.1, 2.0), of("b", "EA", night - 1, 1.0),
                of("b", "EW", night + 0.1, 2.0), of("c", "EW", night + 0.2, 2.0), of("d", "EW", night + 0.1, 2.0),
                of("d", "EA", night + 0.2, 3.0), of("e", "EA", night + 1.0, 3.0),
            ]
        )  # fmt: skip
        found = collect(index, bounds_of("2023-02-25"), 10, 10)
        few = collect(index, bounds_of("2023-02-25"), 1, 0)
    assert (found.start, found.end) == (night, night + 1)
    assert found.annotations == 5
    assert {name: one["count"] for name, one in found.new.items()} == {"EW": 2, "EA": 1}
    assert [(row["object_id"], row["before"]) for row in found.new["EW"]["objects"]] == [("b", "EA"), ("c", None)]
    assert [(row["object_id"], row["before"]) for row in found.new["EA"]["objects"]] == [("d", None)]
    assert few.new["EW"]["count"] == 2
    assert len(few.new["EW"]["objects"]) == 1
    assert few.anomalies == []
    assert "first seen" in page(found, 10, None)


def test_names_from_outside_are_text(annotations: list[PublishedAnnotation], tmp_path: Path) -> None:
    evil = replace(annotations[-1], object_id="</script><b>x", publish_mjd=60000.6)
    with closing(Index(f"sqlite:///{tmp_path / 'index.sqlite'}")) as index:
        index.add([evil])
        made = page(collect(index, bounds_of("2023-02-25"), 10, 10), 10, None)
    assert "<b>x" not in made
    assert "&lt;/script&gt;&lt;b&gt;x" in made


def test_an_empty_night_and_a_wrong_date(settings: Settings, tmp_path: Path) -> None:
    with closing(Index(f"sqlite:///{tmp_path / 'index.sqlite'}")) as index:
        made = page(collect(index, bounds_of("2023-02-25"), 10, 10), 10, "Redis is away.")
    assert "No annotation was published in this night." in made
    assert "Redis is away." in made
    given = {
        "TRIFID_REDIS__URL": settings.redis.url.get_secret_value(),
        "TRIFID_WEB__DATABASE": f"sqlite:///{tmp_path / 'index.sqlite'}",
    }
    written = ["night", "2023-02-25", "--output", str(tmp_path / "night.html"), "--no-dead-letters"]
    result = CliRunner().invoke(main, written, env=given)
    assert result.exit_code == 0, result.output
    assert "no annotation of the night of 2023-02-25 is in web.database: `trifid web` fills it" in result.stderr
    result = CliRunner().invoke(main, ["night", "yesterday"])
    assert result.exit_code == 2
    assert "neither tonight nor such as 2026-11-28" in result.stderr


def test_many_reasons_are_counted_together() -> None:
    counted = most_common([f"reason {n}" for n in range(14)] + ["reason 3"] * 5)
    assert counted["reason 3"] == 6
    assert counted["others"] == 2
    assert sum(counted.values()) == 19
