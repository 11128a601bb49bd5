"""Similar objects of real alerts through the pipeline, asked by command, over HTTP, from Python and on the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from broker.build import build_similar, local_pipeline
from broker.cli import main
from broker.client import PublishedAnnotation, similar_objects
from broker.config import Settings, SimilarSettings
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.lightcurves.files import read_light_curves
from broker.records import ObjectState
from broker.similar.query import state_of_curve, vectors_of
from broker.state.redis import RedisStore
from broker.web import objects
from broker.web.app import application, parts_of, server
from broker.web.services import Services
from tests.integration.web_line import fill, publish, settings_for, spectrum_of

URL = "http://127.0.0.1:8080"
VISITS = 20


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("similar")
    return settings_for(server.url, folder, port=free_port(), requests_per_minute=100_000)


@pytest.fixture(scope="module")
def published(settings: Settings) -> list[PublishedAnnotation]:
    return publish(settings, objects=12, visits=VISITS)


@pytest.fixture(scope="module")
def parts(settings: Settings, published: list[PublishedAnnotation]) -> Iterator[Services]:
    with parts_of(settings, fill(settings, published), follow=False) as parts:
        yield parts


@pytest.fixture(scope="module")
def http(parts: Services) -> TestClient:
    return TestClient(application(parts), base_url=URL)


@pytest.fixture(scope="module")
def names(published: list[PublishedAnnotation]) -> list[str]:
    """Of the objects that are kept: answered, and with five points or more."""
    there = {a.object_id for a in published if "light_curve" in a.modalities and not a.solar_system}
    assert len(there) >= 10
    return sorted(there & {a.object_id for a in published if a.best_class != "NotClassified"})


@pytest.fixture(scope="module")
def curve_file(
    settings: Settings,
    published: list[PublishedAnnotation],
    names: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The light curve of the first object, as its state has it, as a table."""
    found = next(a for a in published if a.object_id == names[0])
    with closing(RedisStore(settings.redis.address(), read_only=True)) as store:
        known = objects.find(store, "ztf", names[0], found.ra, found.dec)
    assert known is not None
    columns = objects.points(known.state)
    rows = [
        f"{names[0]},{found.ra},{found.dec},{mjd},{mag},{error},{band}"
        for mjd, mag, error, band, kind in zip(
            columns["mjd"],
            columns["magnitude"],
            columns["magnitudeError"],
            columns["band"],
            columns["kind"],
            strict=True,
        )
        if kind == "detection" and mag is not None
    ]
    path = tmp_path_factory.mktemp("curve") / "star.csv"
    path.write_text("\n".join(["name,ra,dec,mjd,mag,mag_err,band", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def likest(settings: Settings, names: list[str], curve_file: Path) -> list[str]:
    """The three objects whose kept embeddings have the largest cosine with that of the table's light curve."""
    (curve,) = read_light_curves(curve_file)
    (vectors,) = vectors_of(local_pipeline(settings), [state_of_curve(curve)])
    with closing(build_similar(settings)) as similar:
        cosines = {n: float(similar.vector_of(("ztf", n), "light_curve") @ vectors["light_curve"]) for n in names}
    return sorted(cosines, key=lambda name: -cosines[name])[:3]


def test_what_the_stream_kept_are_the_embeddings_of_the_state(
    settings: Settings, published: list[PublishedAnnotation], names: list[str]
) -> None:
    """Each within what an embedding moves while the light curve grows by a fifth."""
    pipeline = local_pipeline(settings)
    states: list[ObjectState] = []
    with closing(RedisStore(settings.redis.address(), read_only=True)) as store:
        for name in names:
            found = next(a for a in published if a.object_id == name)
            known = objects.find(store, "ztf", name, found.ra, found.dec)
            assert known is not None
            # The spectrum came after the alerts.
            states.append(
                ObjectState(**{f: getattr(known.state, f) for f in known.state.__slots__} | {"spectrum": None})
            )
    fused, by_modality = pipeline.embed(states)
    assert by_modality is not None
    with closing(build_similar(settings)) as similar:
        for row, name in enumerate(names):
            for kind, now in (("all", fused[row]), ("light_curve", by_modality[row, 0])):
                assert float(similar.vector_of(("ztf", name), kind) @ now) > 0.9, (name, kind)


def test_over_http(http: TestClient, names: list[str]) -> None:
    answer = http.get(f"/api/v1/objects/ztf/{names[0]}/similar", params={"limit": 20}).json()
    assert {one["objectId"] for one in answer["objects"]} == set(names[1:])
    assert (answer["by"], answer["of"], answer["complete"]) == ("all", "all", True)
    similarities = [one["similarity"] for one in answer["objects"]]
    assert similarities == sorted(similarities, reverse=True)
    first = answer["objects"][0]
    asked = {"among": [f"class={first['class']}", f"cone={first['ra']},{first['dec']},1"], "by": "light-curve"}
    narrowed = http.get(f"/api/v1/objects/ztf/{names[0]}/similar", params=asked).json()
    assert [one["objectId"] for one in narrowed["objects"]] == [first["objectId"]]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("objects/ztf/ZTF18nobody/similar", 404, "ztf:ZTF18nobody is not among the"),
        ("objects/ztf/{name}/similar?by=spectrum", 404, "there is no spectrum embedding, only all, light-curve"),
        ("objects/ztf/{name}/similar?among=class=XX", 422, "class 'XX' is none of EW, SR"),
        ("objects/ztf/{name}/similar?among=size<3", 422, "'size<3' is none of class=RRAB"),
        ("objects/ztf/{name}/similar?by=colour", 422, "by: "),
        ("objects/ztf/{name}/similar?limit=0", 422, "limit: "),
    ],
)
def test_what_cannot_be_asked(http: TestClient, names: list[str], path: str, status: int, said: str) -> None:
    answer = http.get("/api/v1/" + path.format(name=names[0]))
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text


def test_a_light_curve_finds_its_object_and_a_spectrum_finds_light_curves(
    http: TestClient, settings: Settings, names: list[str], curve_file: Path, likest: list[str], tmp_path: Path
) -> None:
    with curve_file.open("rb") as file:
        answer = http.post("/api/v1/similar/lightcurve?limit=3", files={"file": ("star.csv", file)})
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["answers"]
    assert found["name"] == names[0]
    assert [one["objectId"] for one in found["objects"]] == likest
    observed = spectrum_of("ztf", "x").spectrum
    path = tmp_path / "spectrum.csv"
    rows = zip(observed.wavelength.tolist(), observed.flux.tolist(), observed.flux_error.tolist(), strict=True)
    path.write_text("wavelength,flux,error\n" + "".join(f"{w},{f},{e}\n" for w, f, e in rows))
    for by, count in (("spectrum", 0), ("light-curve", len(names))):
        with path.open("rb") as file:
            answer = http.post(f"/api/v1/similar/spectrum?by={by}&limit=50", files={"file": ("s.csv", file)})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["answers"][0]["objects"]) == count, answer.text
    asked = ["similar", str(path), "--by", "light-curve", "--limit", "50", "--json"]
    done = CliRunner().invoke(main, asked, env=environment_of(settings))
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["objectId"] for line in lines] == [one["objectId"] for one in answer.json()["answers"][0]["objects"]]


def environment_of(settings: Settings) -> dict[str, str]:
    return {"TRIFID_REDIS__URL": settings.redis.address(), "TRIFID_SIMILAR__ENABLED": "true"}


def test_by_default_they_are_off_and_who_asks_is_told_how_to_have_them(
    settings: Settings, published: list[PublishedAnnotation], names: list[str]
) -> None:
    assert not Settings().similar.enabled
    off = settings.model_copy(update={"similar": SimilarSettings()})
    how = (
        "Set TRIFID_SIMILAR__ENABLED=true, or enabled = true under [similar], for the workers and for `trifid similar`"
    )
    with parts_of(off, fill(off, published), follow=False) as parts:
        http = TestClient(application(parts), base_url=URL)
        answer = http.get(f"/api/v1/objects/ztf/{names[0]}/similar")
        page = http.get(f"/object/ztf/{names[0]}").text
    assert answer.status_code == 503
    assert how in answer.json()["detail"]
    assert "Set TRIFID_SIMILAR__ENABLED=true, or enabled = true under [similar]" in page
    asked = CliRunner().invoke(main, ["similar", names[0]], env={"TRIFID_REDIS__URL": settings.redis.address()})
    assert asked.exit_code == 2
    assert how in asked.output


def test_by_command(settings: Settings, names: list[str], curve_file: Path, likest: list[str]) -> None:
    environment = environment_of(settings)
    for what in (f"ztf:{names[0]}", names[0]):
        done = CliRunner().invoke(main, ["similar", what, "--limit", "3"], env=environment)
        assert done.exit_code == 0, done.output
        title, header, *rows = done.stdout.splitlines()
        assert title == f"similar to ztf:{names[0]}"
        assert header.split()[:3] == ["object", "cosine", "class"]
        assert len(rows) == 3
    found = CliRunner().invoke(main, ["similar", str(curve_file), "--json", "--limit", "3"], env=environment)
    assert [json.loads(line)["objectId"] for line in found.stdout.splitlines()] == likest
    nobody = CliRunner().invoke(main, ["similar", "ZTF18nobody"], env=environment)
    assert nobody.exit_code == 1
    assert "'ZTF18nobody' is no file, and the object ztf:ZTF18nobody is not among the" in nobody.output
    wrong = CliRunner().invoke(main, ["similar", names[0], "--among", "cone=1,2"], env=environment)
    assert wrong.exit_code == 2
    assert "cone=1,2 is no RA,DEC,ARCSEC" in wrong.output


def test_the_page_shows_them(http: TestClient, names: list[str]) -> None:
    page = http.get(f"/object/ztf/{names[0]}?by=light-curve").text
    shown = page[page.index('id="similar"') : page.index('id="feedback"')]
    assert "<strong>light curve</strong>" in shown
    answer = http.get(f"/api/v1/objects/ztf/{names[0]}/similar?by=light-curve").json()
    for one in answer["objects"]:
        assert f'<a href="/object/ztf/{one["objectId"]}">{one["objectId"]}</a>' in shown
    without = http.get(f"/object/ztf/{names[0]}?by=spectrum").text
    assert "there is no spectrum embedding" in without


def test_from_python(parts: Services, names: list[str], curve_file: Path, likest: list[str]) -> None:
    running = server(parts)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            thread.join(0.05)
        url = f"http://127.0.0.1:{parts.settings.web.port}"
        found = similar_objects(url, f"ztf:{names[0]}", among=["survey=ztf detections>4"], limit=5)
        assert len(found) == 5
        assert names[0] not in {one.object_id for one in found}
        assert all(np.diff([one.similarity for one in found]) <= 0)
        of_file = similar_objects(url, curve_file, by="light-curve", limit=3)
        assert [one.object_id for one in of_file] == likest
        with pytest.raises(ConfigurationError, match="ztf:nobody is not among the"):
            similar_objects(url, "ztf:nobody")
        with pytest.raises(ConfigurationError, match="is no survey:id"):
            similar_objects(url, "nobody")
    finally:
        running.should_exit = True
        thread.join()
    with pytest.raises(DependencyUnavailableError, match="does not answer"):
        similar_objects(url, f"ztf:{names[0]}")
    with pytest.raises(ConfigurationError, match="is no http"):
        similar_objects("file:///etc", f"ztf:{names[0]}")
