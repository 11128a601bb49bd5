"""The pages in a real Chromium: what is drawn, clicks, keys, a phone, accessibility by axe-core."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.web.app import parts_of
from broker.web.index import Index
from broker.web.services import Services
from tests.integration.web_line import fill, publish, serving, settings_for

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def settings(chromium: Browser, server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("pages")
    return settings_for(server.url, folder, port=free_port(), requests_per_minute=100_000)


@pytest.fixture(scope="module")
def annotations(settings: Settings) -> list[PublishedAnnotation]:
    return publish(settings, objects=8, visits=30)


@pytest.fixture(scope="module")
def parts(settings: Settings, annotations: list[PublishedAnnotation]) -> Iterator[Services]:
    with parts_of(settings, fill(settings, annotations[:-1]), follow=False) as parts:
        yield parts


@pytest.fixture(scope="module")
def address(parts: Services) -> Iterator[str]:
    with serving(parts) as address:
        yield address


@pytest.fixture
def page(chromium: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of which nothing failed, no request left this server, and no script was refused."""
    context = chromium.new_context(base_url=address, **getattr(request, "param", DESKTOP))
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "status of 422" not in m.text else None)
    page.on("request", lambda sent: None if sent.url.startswith(address) else wrong.append(sent.url))
    yield page
    context.close()
    assert wrong == []


def star(annotations: list[PublishedAnnotation]) -> PublishedAnnotation:
    """The latest annotation of the object that has a spectrum."""
    own = [a for a in annotations[:-1] if a.object_id == annotations[0].object_id]
    return max(own, key=lambda a: a.mjd)


def path_of(annotation: PublishedAnnotation) -> str:
    return f"/object/{annotation.survey}/{annotation.object_id}"


def check_accessibility(page: Page) -> None:
    """By axe-core's rules of WCAG 2.2 A and AA, and its best practices."""
    report = Axe().run(page)
    assert report.violations_count == 0, report.generate_report()
    assert len(report.response["passes"]) > 10


def test_filters_narrow_the_list_and_lead_to_an_object(page: Page, annotations: list[PublishedAnnotation]) -> None:
    page.goto("/")
    rows = page.locator("tbody tr")
    assert rows.count() == len({a.object_id for a in annotations[:-1]})
    wanted = star(annotations)
    page.get_by_label("Class").select_option(wanted.best_class)
    page.get_by_label("Probability at least").fill(f"{wanted.best_probability - 1e-6}")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile(f"class={wanted.best_class}"))
    shown = page.locator("tbody th a").all_inner_texts()
    assert wanted.object_id in shown
    assert set(page.locator("tbody tr td:nth-child(2)").all_inner_texts()) == {wanted.best_class}
    page.get_by_role("link", name=wanted.object_id).click()
    page.wait_for_url("**" + path_of(wanted))
    assert page.locator("h1").inner_text().startswith(wanted.object_id)


def test_the_box_at_the_top_takes_names_and_positions(page: Page, annotations: list[PublishedAnnotation]) -> None:
    wanted = star(annotations)
    page.goto("/")
    page.get_by_label("Object or position").fill(wanted.object_id)
    page.keyboard.press("Enter")
    page.wait_for_url("**" + path_of(wanted))
    position = page.locator(".place .nowrap").first.inner_text().replace("\u2212", "-")
    page.get_by_label("Object or position").fill(position)
    page.keyboard.press("Enter")
    page.wait_for_url("**/?ra=**")
    assert page.locator("tbody th a").first.inner_text() == wanted.object_id
    assert page.locator("input[name=ra]").input_value() == position.split()[0]


def test_a_light_curve_is_drawn_folded_and_zoomed(page: Page, annotations: list[PublishedAnnotation]) -> None:
    wanted = star(annotations)
    page.goto(path_of(wanted))
    curve = page.locator("#curve")
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
    kinds = data["lightCurve"]["kind"]
    measured = sum(
        m is not None and kind != "limit" and total
        for m, kind, total in zip(data["lightCurve"]["magnitude"], kinds, data["lightCurve"]["total"], strict=True)
    )
    assert measured > 10
    assert curve.get_attribute("data-points") == str(measured)
    # The axis of magnitudes points down: its labels grow from top to bottom.
    labels = curve.locator(".ticks text[text-anchor=end]").all()
    placed = sorted((one.bounding_box()["y"], float(one.text_content() or "")) for one in labels)  # type: ignore[index]
    assert [value for _, value in placed] == sorted(value for _, value in placed)
    page.get_by_label("Phase").check()
    assert curve.get_attribute("data-points") == str(2 * measured)  # two cycles
    page.get_by_label("Period, d").fill("0.5")
    page.keyboard.press("Tab")
    assert "P = 0.5 d" in axis(page, 0)
    page.get_by_role("button", name="Twice the period").click()
    assert "P = 1 d" in axis(page, 0)
    # Keys alone.
    before = view(page)
    curve.locator(".frame").focus()
    page.keyboard.press("+")
    zoomed = view(page)
    assert zoomed[1] - zoomed[0] == pytest.approx((before[1] - before[0]) / 2)
    page.keyboard.press("ArrowRight")
    assert view(page)[0] == pytest.approx(zoomed[0] + 0.1 * (zoomed[1] - zoomed[0]))
    for _ in range(70):  # however often: numbers have so many digits
        page.keyboard.press("+")
    assert view(page)[1] - view(page)[0] < 1e-9
    page.keyboard.press("0")
    assert view(page) == before
    # A rectangle by mouse.
    box = curve.locator("svg .axes").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 120)
    page.mouse.up()
    assert view(page)[:2] == pytest.approx([0.5, 1.0], abs=0.02)
    page.get_by_role("button", name="Show all").first.click()
    page.get_by_label("Flux").check()
    assert axis(page, 1) == "Flux, µJy"
    # A band that is switched off is not drawn.
    bands = curve.locator(".legend button[aria-pressed=true]")
    bands.first.click()
    assert int(curve.get_attribute("data-points") or 0) < 2 * measured


def axis(page: Page, number: int) -> str:
    """What the axis of the light curve is called; 0 is the horizontal one."""
    return page.locator("#curve .name").nth(number).text_content() or ""


def view(page: Page) -> list[float]:
    return [float(n) for n in (page.locator("#curve").get_attribute("data-view") or "").split()]


def test_modalities_spectrum_and_downloads(page: Page, annotations: list[PublishedAnnotation]) -> None:
    wanted = star(annotations)
    page.goto(path_of(wanted))
    assert page.locator("#spectrum .line").count() == 1
    assert page.locator("#over .legend button").count() == 4
    page.get_by_role("button", name="Compute").click()
    table = page.locator("#modalities table")
    table.wait_for()
    heads = table.locator("thead th").all_inner_texts()
    assert {"light curve", "spectrum", "all"} <= set(heads)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").first.click()
    text = download.value.path().read_text()
    assert text.startswith("mjd,band,kind,magnitude,magnitudeError")


def test_feedback_is_kept_and_shown_as_text(page: Page, annotations: list[PublishedAnnotation]) -> None:
    page.goto(path_of(star(annotations)))
    page.get_by_label("It is").select_option("RRC")
    page.get_by_label("Why").fill("<script>alert(1)</script>")
    page.get_by_role("button", name="Send class").click()
    page.wait_for_url("**#feedback")
    assert "RRC <script>alert(1)</script>" in page.locator("#feedback").inner_text()


def test_an_answer_changes_the_list_and_is_undone(page: Page, annotations: list[PublishedAnnotation]) -> None:
    page.goto("/")
    page.get_by_role("link", name="Anomalies").first.click()
    page.wait_for_url("**/anomalies")
    check_accessibility(page)
    names = page.locator("table.objects th[scope=row] a").all_inner_texts()
    assert len(names) > 3
    last = names[-1]
    page.get_by_role("link", name=last).first.click()
    page.get_by_role("button", name="Interesting").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**#feedback")
    said = page.locator("#feedback").inner_text()
    assert "interesting" in said
    assert f"rank {len(names)} → " in said
    check_accessibility(page)
    page.get_by_role("link", name="Anomalies in the order").click()
    page.wait_for_url("**/anomalies")
    row = page.locator("table.objects tbody tr", has=page.get_by_role("link", name=last))
    assert "raised by 1" in row.inner_text()
    after = page.locator("table.objects th[scope=row] a").all_inner_texts()
    assert after.index(last) < len(names) - 1
    page.get_by_role("link", name=last).first.click()
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url("**#feedback")
    assert "withdrawn" in page.locator("#feedback").inner_text()
    assert page.get_by_role("button", name="Undo").count() == 0
    page.goto("/anomalies")
    assert page.locator("table.objects th[scope=row] a").all_inner_texts() == names


def test_the_list_shows_what_is_new_by_itself(
    page: Page, parts: Services, annotations: list[PublishedAnnotation]
) -> None:
    from dataclasses import replace

    page.goto("/")
    before = page.locator("tbody tr").count()
    new = replace(annotations[-1], object_id="ZTF26newcomer", publish_mjd=annotations[-1].publish_mjd + 1e-4)
    parts.index.add([new])
    page.evaluate("trifidRefresh()")
    page.locator("tbody tr.new").wait_for()
    assert page.locator("tbody tr").count() == before + 1
    assert page.locator("tbody th a").first.inner_text() == "ZTF26newcomer"
    page.locator("#live input").uncheck()


def test_an_upload_is_classified_on_the_page(page: Page) -> None:
    rows = "\n".join(f"{2459000.0 + 1.7 * n},{14 + 0.5 * ((n * 0.17) % 1.0):.3f},0.01,V" for n in range(60))
    page.goto("/classify")
    file: Any = {"name": "star.csv", "mimeType": "text/csv", "buffer": f"HJD,mag,mag_err,Filter\n{rows}\n".encode()}
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Classify").click()
    page.locator("tbody tr").wait_for()
    assert "60" in page.locator("tbody tr td").all_inner_texts()


@pytest.mark.parametrize("page", [DESKTOP, PHONE | {"color_scheme": "dark"}], indirect=True)
def test_pages_fit_the_screen_and_are_accessible(page: Page, annotations: list[PublishedAnnotation]) -> None:
    paths = ["/", "/?ra=1&dec=91", path_of(star(annotations)), "/map", "/anomalies", "/watches", "/classify"]
    for path in (*paths, "/status", "/api", "/login"):
        answer = page.goto(path)
        assert answer is not None
        if "dec=91" not in path:
            assert answer.status == 200
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], path
        check_accessibility(page)
        if "dec=91" in path:
            assert "none of -90 to 90 degrees" in page.locator("[role=alert]").inner_text()


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_on_a_phone_the_light_curve_follows_the_classes(page: Page, annotations: list[PublishedAnnotation]) -> None:
    page.goto(path_of(star(annotations)))
    places = [page.locator(f"section:has(> #{title}), section:has(> .bar > #{title})").bounding_box()
              for title in ("answer-title", "curve-title", "over-title", "modalities-title", "similar-title",
                            "feedback-title")]  # fmt: skip
    assert None not in places
    tops = [place["y"] for place in places if place is not None]
    assert tops == sorted(tops)


def test_the_parts_of_the_combined_score_are_a_table(page: Page, annotations: list[PublishedAnnotation]) -> None:
    own = star(annotations)
    assert "all.neighbours" in own.anomaly_parts
    page.goto(path_of(own))
    page.get_by_text("Parts of the combined score").click()
    cells = page.locator(".parts tbody tr", has=page.get_by_role("rowheader", name="all data")).locator("td")
    expected = [own.anomaly_parts[f"all.{name}"] for name in ("neighbours", "mahalanobis", "centroid")]
    assert [float(text) for text in cells.all_inner_texts()] == pytest.approx(expected, abs=5.1e-4)
    check_accessibility(page)


def test_the_map_is_explored_by_clicks_and_by_keys(page: Page, annotations: list[PublishedAnnotation]) -> None:
    page.goto("/map")
    objects = {a.object_id for a in annotations[:-1]}
    points, rows = page.locator("svg.plane circle.live"), page.locator("table.objects tbody tr")
    assert 0 < points.count() == rows.count() <= len(objects)
    assert page.locator("svg.plane circle:not(.live)").count() > 300
    assert page.locator("svg.plane text").count() >= 8
    assert page.get_by_role("list", name="Colours").get_by_role("listitem").count() == 11
    # A row's link, reached by keys, marks its point.
    rows.first.get_by_role("link").focus()
    assert page.locator("svg.plane circle.on").count() == 1
    name = rows.first.get_by_role("link").inner_text()
    page.locator("svg.plane circle.on").click(force=True)
    page.wait_for_url(re.compile("/object/ztf/ZTF"))
    page.goto("/map")
    for link in ("Closer", "Right", "Up", "Left", "Down"):
        page.get_by_role("link", name=link, exact=True).focus()
        with page.expect_navigation():
            page.keyboard.press("Enter")
    assert "x=0&y=0&zoom=2" in page.url
    assert page.get_by_role("link", name="Wider").count() == 1
    page.get_by_role("link", name="Whole").click()
    own = rows.filter(has_text=name).locator("abbr").inner_text()
    page.get_by_label("Class").select_option(own)
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile(f"class={own}"))
    assert set(rows.locator("abbr").all_inner_texts()) == {own}


@pytest.mark.parametrize("asked", ["zoom=3", "x=nan", "x=1e9", "class=XX", "zoom=a"])
def test_a_part_of_the_map_that_cannot_be_is_refused(page: Page, asked: str) -> None:
    answer = page.goto(f"/map?{asked}")
    assert answer is not None
    assert answer.status == 422
    assert "have to be numbers" in page.locator("[role=alert]").inner_text()


def test_light_and_dark_are_kept(page: Page) -> None:
    page.goto("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Use dark colours").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.goto("/status")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_who_has_no_token_is_asked_for_it(
    chromium: Browser, settings: Settings, parts: Services, annotations: list[PublishedAnnotation]
) -> None:
    web = settings.web.model_copy(update={"require_login": True, "port": free_port()})
    index = Index(settings.web.database.get_secret_value())
    with parts_of(settings.model_copy(update={"web": web}), index, follow=False) as closed, serving(closed) as address:
        context = chromium.new_context(base_url=address)
        page = context.new_page()
        page.goto(path_of(star(annotations)))
        assert page.url.endswith(f"/login?next={quote(path_of(star(annotations)), safe='')}")
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        assert "no token" in page.locator("[role=alert]").inner_text()
        page.get_by_label("Token").fill(closed.tokens.create("someone", frozenset({"read"})))
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**" + path_of(star(annotations)))
        assert page.evaluate("document.cookie") == ""  # no script can read it
        page.get_by_role("button", name="Sign out").click()
        page.goto("/")
        assert "/login" in page.url
        context.close()
    index.close()
