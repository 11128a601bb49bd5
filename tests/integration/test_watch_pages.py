"""The pages of users' lists in a real Chromium: by keyboard, with a wrong expression, accessibility by axe-core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page

from broker.config import Settings
from broker.database import DELIVERIES, MATCHES, WATCHES
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.watch.content import Content
from broker.watch.lists import Lists, Terms
from broker.watch.outbox import Outbox
from broker.web.app import parts_of
from broker.web.services import Services
from tests.integration.test_web_pages import DESKTOP, PHONE, check_accessibility
from tests.integration.web_line import fill, publish, serving, settings_for


@pytest.fixture(scope="module")
def settings(chromium: Browser, server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("lists")
    return settings_for(server.url, folder, port=free_port(), requests_per_minute=100_000)


@pytest.fixture(scope="module")
def parts(settings: Settings) -> Iterator[Services]:
    index = fill(settings, publish(settings, objects=6, visits=15))
    with parts_of(settings, index, follow=False) as parts, serving(parts):
        yield parts


@pytest.fixture
def page(chromium: Browser, parts: Services, request: pytest.FixtureRequest) -> Iterator[Page]:
    with parts.index.engine.begin() as connection:
        connection.execute(sa.delete(WATCHES))
    address = f"http://127.0.0.1:{parts.settings.web.port}"
    context = chromium.new_context(base_url=address, **getattr(request, "param", DESKTOP))
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "status of 422" not in m.text else None)
    yield page
    context.close()
    assert wrong == []


def test_a_list_is_made_by_keyboard_alone_and_a_mistake_is_told_with_its_place(page: Page, parts: Services) -> None:
    page.goto("/watches")
    check_accessibility(page)
    page.get_by_label("Name", exact=True).focus()
    page.keyboard.type("bright-miras")
    page.keyboard.press("Tab")
    page.keyboard.type('klass == "M"')
    page.get_by_label("Radius").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").inner_text() == "expression, character 1: klass means nothing here"
    check_accessibility(page)
    field = page.get_by_role("textbox", name="Expression")
    assert field.input_value() == 'klass == "M"'  # what was typed is not lost
    field.focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("detections > 0")
    button = page.get_by_role("button", name="Count the last night")
    button.focus()
    page.keyboard.press("Enter")
    count = parts.index.night(0.0, 1e6)["annotations"]
    assert page.get_by_role("status").inner_text().startswith(f"In the last night {count:,} of {count:,} annotations")
    assert Lists(parts.index.engine, parts.settings).of("local") == []
    page.get_by_role("button", name="Make the list").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/watches/bright-miras")
    (row,) = Lists(parts.index.engine, parts.settings).of("local")
    assert (row["expression"], row["topic"]) == ("detections > 0", "trifid.user.local.bright-miras")
    check_accessibility(page)


def test_a_list_is_changed_by_a_file_and_deleted(page: Page, parts: Services) -> None:
    lists = Lists(parts.index.engine, parts.settings)
    page.goto("/watches")
    page.get_by_label("Name", exact=True).fill("mine")
    page.get_by_role("textbox", name="Positions or names").fill("10, 20, a star")
    page.get_by_role("textbox", name="Webhook").fill("https://hooks.slack.com/services/SECRET")
    page.get_by_role("combobox", name="Send").select_option("webhook")
    page.get_by_role("button", name="Make the list").click()
    page.wait_for_url("**/watches/mine")
    assert lists.get("local", "mine")["webhook"] == "https://hooks.slack.com/services/SECRET"
    assert "SECRET" not in page.content()
    page.get_by_label("or a file").set_input_files(
        {"name": "stars.csv", "mimeType": "text/csv", "buffer": b"name,ra,dec\na,1,2\nb,3,4\nc,5,6\n"}
    )
    page.get_by_role("combobox", name="How often").select_option("0")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("replaces the 3 positions and names").wait_for()
    row = lists.get("local", "mine")
    assert (row["size"], row["every_hours"]) == (3, 0.0)
    assert row["webhook"] == "https://hooks.slack.com/services/SECRET"  # which the form did not have
    page.get_by_role("button", name="Delete the list and its topic").click()
    page.wait_for_url("**/watches")
    assert lists.of("local") == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE | {"color_scheme": "dark"}], indirect=True)
def test_what_was_found_and_what_failed_is_shown(page: Page, parts: Services) -> None:
    engine = parts.index.engine
    Lists(engine, parts.settings).create("local", "mine", Terms("known", webhook="https://a.org/x"), Content())
    (key,) = (row["id"] for row in Lists(engine, parts.settings).of("local"))
    with engine.begin() as connection:
        connection.execute(
            sa.insert(DELIVERIES),
            [{"watch": key, "number": "0" * 32, "created": 61000.0, "matches": 1, "state": "dead", "attempts": 10,
              "due": 0.0, "problem": "a.org answers 503"}],
        )  # fmt: skip
        connection.execute(
            sa.insert(MATCHES),
            [{"watch": key, "event": "0" * 32, "created": 61000.5,
             "survey": "ztf", "object_id": "Z1", "class_name": "M",
              "probability": 0.75, "label": "my star", "unsent": True, "waiting": False, "payload": b"x"}],
        )  # fmt: skip
    page.goto("/watches/mine")
    check_accessibility(page)
    found = page.get_by_role("region", name="Found").locator("tbody tr")
    assert found.locator("td").all_inner_texts() == ["M", "0.75", "my star", "2025-11-21 12:00", "not yet"]
    messages = page.get_by_role("region", name="Messages").locator("tbody tr")
    assert messages.locator("td").all_inner_texts() == ["1", "given up", "10", "a.org answers 503"]
    width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width <= 0
    page.get_by_role("button", name="Send again").click()
    page.get_by_text("waiting", exact=True).wait_for()
    assert Outbox(engine, parts.settings).deliveries(key)[0]["state"] == "pending"
