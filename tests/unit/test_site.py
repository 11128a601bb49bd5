"""The documentation site: that it builds, loads nothing from elsewhere, and that whatever it lists has a text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import click
import pytest
from axe_playwright_python.sync_playwright import Axe

from deploy.site import hooks, reference
from deploy.site.notebook import FOLDER, SOURCE, notebooks
from tests.documents import blocks
from tests.integration.chromium import browser

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


class _Page(HTMLParser):
    """What a browser fetches by itself, the links one can follow, and the ids that they may lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            self.links.append(given.get("href") or "")
        elif tag == "link" and given.get("rel") == "canonical":
            pass
        else:
            self.loaded += [value for name in ("src", "href", "srcset", "data") if (value := given.get(name))]
        if given.get("id"):
            self.ids.add(str(given["id"]))


def pages(site: Path) -> dict[Path, _Page]:
    found = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(found) > 35
    return found


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    loaded = {(path.name, what) for path, page in pages(site).items() for what in page.loaded}
    assert len(loaded) > 100
    assert [one for one in sorted(loaded) if re.match(r"(https?:)?//", one[1])] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import", sheet.read_text()) == []


def test_every_link_between_pages_leads_to_a_place_that_is_there(site: Path) -> None:
    """MkDocs checks those of Markdown; these are those of the built pages, the anchors of made ones among them."""
    found = pages(site)
    lost = []
    for path, page in found.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if ":" in target or path.name == "404.html" or not link:
                continue
            file = path if not target else (path.parent / target).resolve()
            if not file.exists() or (anchor and file in found and anchor not in found[file].ids):
                lost.append((path.name, link))
    assert lost == []


def test_each_file_of_docs_has_a_place_in_the_navigation() -> None:
    told = (ROOT / "mkdocs.yml").read_text()
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f": {p.name}" not in told] == []


def test_every_setting_has_a_text() -> None:
    found = {one.name: one for one in reference.settings()}
    assert [name for name, one in found.items() if not one.text.strip()] == []
    assert found["kafka.group_id"].default == '`"trifid"`'
    assert found["kafka.group_id"].kind == "text"
    assert found["kafka.group_id"].variable == "TRIFID_KAFKA__GROUP_ID"
    assert found["redis.password"].kind == "text, a secret"
    assert found["kafka.delivery"].kind == "`exactly-once` or `at-least-once`"
    assert found["annotation_registry.timeout_s"].text.startswith("Longest wait for each step")  # of its base class
    assert found["inference.model_repository"].default == '`"model_repo/"`'  # not where it is on this machine


def test_every_section_of_the_settings_has_a_text() -> None:
    headings = re.findall(r"^## (\w+)\n\n(.*)\n", reference.settings_page(), re.MULTILINE)
    assert [name for name, _ in headings][:3] == ["kafka", "schema_registry", "annotation_registry"]
    assert [name for name, told in headings if not told.strip()] == []


@pytest.mark.parametrize("path", ["broker/publish/annotation.avsc", "broker/spectra/spectrum.avsc"])
def test_every_field_of_the_schemas_has_a_text(path: str) -> None:
    found = list(reference.fields(json.loads((ROOT / path).read_text())))
    assert [name for name, _, told in found if not told.strip()] == []


def test_fields_of_records_within_records_are_there() -> None:
    found = {
        name: kind
        for name, kind, _ in reference.fields(json.loads((ROOT / "broker/publish/annotation.avsc").read_text()))
    }
    assert found["brokerIngestTimestamp"] == "timestamp-millis"
    assert found["classifications"] == "array of Classification"
    assert found["classifications.elasticcId"] == "int, or null"
    assert found["parents"] == "map to double"


def test_every_command_and_option_has_a_text() -> None:
    lacking = []
    for name, command in reference.commands():
        if not (command.help or "").strip():
            lacking.append(name)
        options = [one for one in command.params if isinstance(one, click.Option)]
        lacking += [f"{name} {one.opts[0]}" for one in options if not (one.help or "").strip()]
    assert lacking == []
    assert "trifid web token create" in {name for name, _ in reference.commands()}


def test_every_metric_has_a_text() -> None:
    found = {one._name: one._documentation for one in reference.metrics()}
    assert len(found) > 30
    assert [name for name, told in found.items() if len(told) < 15] == []
    assert "| `trifid_alerts_out_total` | counter | `survey`, `outcome` |" in reference.metrics_page()


def test_every_route_and_parameter_of_the_api_is_described() -> None:
    described = reference.openapi()
    lacking = []
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            if not route.get("description", "").strip():
                lacking.append(f"{method} {path}")
    assert lacking == []
    assert "## GET /api/v1/objects/{survey}/{object_id}" in reference.api_page()


def test_the_pages_made_from_the_code_are_in_the_site(site: Path) -> None:
    for place in reference.pages():
        built = site / (place.removesuffix(".md") + ".html" if place.endswith(".md") else place)
        assert built.stat().st_size > 1000, place
    client = (site / "reference/client.html").read_text()
    assert 'id="broker.client.Subscription"' in client
    assert "idle_timeout" in client


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_is_accessible(site: Path, scheme: Literal["light", "dark"]) -> None:
    """By axe-core's rules of WCAG 2.2 A and AA."""
    names = ("index", "examples", "annotation", "anomaly", "catalogs", "reference/settings", "reference/client")
    only = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    with browser() as chromium:
        page = chromium.new_page(color_scheme=scheme)
        for name in names:
            page.goto((site / f"{name}.html").as_uri())
            page.wait_for_selector(".md-search[aria-label=Search]", state="attached")
            report = Axe().run(page, options={"runOnly": only})
            assert report.violations_count == 0, f"{name}: {report.generate_report()}"


def test_links_of_github_become_links_of_the_site() -> None:
    text = (
        "[a](docs/state.md#x), [metrics](broker/metrics.py), [over\nlines](CHANGELOG.md), ![f](docs/figures/live.png), "
        "[out](https://example.org/docs/state.md)\n```\n[code](docs/state.md)\n```"
    )
    assert hooks.at(text, "", "index.md") == (
        "[a](state.md#x), metrics (`broker/metrics.py`), [over\nlines](reference/changelog.md), "
        "![f](figures/live.png), [out](https://example.org/docs/state.md)\n```\n[code](docs/state.md)\n```"
    )
    assert hooks.at("[s](../docs/state.md)", "docs", "a.md") == "[s](state.md)"
    assert hooks.at("[e](../model_repo/EVALUATION.md)", "docs", "a.md") == "[e](reference/evaluation.md)"
    assert hooks.at("[s](docs/state.md)", "", "reference/changelog.md") == "[s](../state.md)"
    assert hooks.at("[lost](docs/nothing.md)", "", "index.md") == "[lost](docs/nothing.md)"  # MkDocs complains


def test_lists_and_tables_after_a_paragraph_get_a_blank_line() -> None:
    text = "words\n- one\n  more\n- two\n\nwords\n| a |\n|---|\n| 1 |\n```\nx\n- code\n```"
    assert hooks.blank_lines(text) == (
        "words\n\n- one\n  more\n- two\n\nwords\n\n| a |\n|---|\n| 1 |\n```\nx\n- code\n```"
    )


def test_the_notebooks_are_those_of_the_examples() -> None:
    """Whose blocks tests/integration/test_documents.py runs."""
    made = notebooks(SOURCE.read_text())
    assert {file.name: file.read_text() == text for file, text in made.items()} == dict.fromkeys(
        ("similar-objects.ipynb", "wrong-labels.ipynb", "outliers.ipynb", "subclasses.ipynb"), True
    ), "python -m deploy.site.notebook makes them anew"
    assert {file.name for file in FOLDER.glob("*.ipynb")} == {file.name for file in made}
    expected = [block for block in blocks("docs/examples.md") if block.language in ("python", "bash")]
    missing = {block.text if block.language == "python" else tuple(block.commands()) for block in expected}
    for file, text in made.items():
        cells = json.loads(text)["cells"]
        assert "".join(cells[0]["source"]).startswith("# ")
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] for cell in code)
        for source in ("".join(cell["source"]) for cell in code):
            if source.startswith(("!", "%")):
                said = tuple(line.removeprefix("!").replace("%env ", "export ") for line in source.splitlines())
                missing.discard(said)
            else:
                compile(source, file.name, "exec")
                missing.discard(source)
        for cell in cells:
            for link in re.findall(r"\]\((\.\./[^)#]*)", "".join(cell["source"])):
                assert (FOLDER / link).is_file(), link
    assert missing == set()
