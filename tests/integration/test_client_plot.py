"""The client's figure of an object, from a real `trifid web` with a real Redis behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from broker.client import fetch_object, plot_light_curve, plot_object
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.web.app import application, parts_of
from tests.integration.web_line import fill, publish, settings_for

PERIOD = 0.5


@pytest.fixture(scope="module")
def served(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Address of the server, and survey and name of an object with a period."""
    settings = settings_for(server.url, tmp_path_factory.mktemp("web"), requests_per_minute=100_000)
    annotations = publish(settings, objects=4, visits=25)
    star = next(a for a in reversed(annotations) if a.period is not None)
    port = free_port()
    with parts_of(settings, fill(settings, annotations), follow=False) as parts:
        http = uvicorn.Server(uvicorn.Config(application(parts), port=port, log_level="error"))
        thread = threading.Thread(target=http.run)
        thread.start()
        while not http.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", star.survey, star.object_id
        http.should_exit = True
        thread.join(300)


def test_one_call_plots_an_object(served: tuple[str, str, str], tmp_path: Path) -> None:
    url, survey, name = served
    points = fetch_object(survey, name, url)["lightCurve"]
    kinds, bands = np.array(points["kind"]), np.array(points["band"])
    figure = plot_object(survey, name, url, period=PERIOD)
    against_time, against_phase = figure.axes
    assert name in figure.get_suptitle()
    assert "period 0.5 d" in against_phase.get_xlabel()
    assert all(axes.yaxis_inverted() for axes in figure.axes)
    drawn = {c.get_label(): c for c in against_time.containers if c.get_label() in set(bands.tolist())}
    assert set(drawn) == set(bands[kinds == "detection"].tolist())
    for band, container in drawn.items():
        of = (bands == band) & (kinds == "detection")
        there = np.array(points["mjdBarycentric"], float)
        phases = (there - there.min()) / PERIOD % 1.0
        np.testing.assert_allclose(container[0].get_xdata(), np.array(points["mjd"], float)[of])
        np.testing.assert_allclose(container[0].get_ydata(), np.array(points["magnitude"], float)[of])
        folded = next(c for c in against_phase.containers if c.get_label() == band)
        np.testing.assert_allclose(folded[0].get_xdata(), np.concatenate([phases[of], phases[of] + 1.0]))
    figure.savefig(tmp_path / "star.png")
    assert (tmp_path / "star.png").read_bytes().startswith(b"\x89PNG")


def test_the_period_is_that_of_the_annotation(served: tuple[str, str, str]) -> None:
    url, survey, name = served
    period = fetch_object(survey, name, url)["annotation"]["period"]
    assert plot_object(survey, name, url).axes[1].get_xlabel() == f"phase, period {period:.7g} d"


def test_what_cannot_be_plotted_is_told(served: tuple[str, str, str]) -> None:
    url, survey, name = served
    with pytest.raises(ConfigurationError, match=f"{survey}/nobody: HTTP 404: "):
        plot_object(survey, "nobody", url)
    with pytest.raises(DependencyUnavailableError, match="refused"):
        plot_object(survey, name, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigurationError, match="not the address of trifid web"):
        fetch_object(survey, name, "file:///etc")
    for period in (0.0, float("nan"), -1.0):
        with pytest.raises(ConfigurationError, match="give days"):
            plot_object(survey, name, url, period=period)


def test_a_light_curve_without_a_period_or_without_points() -> None:
    points = {
        "mjd": [1.0, 2.0, 3.0], "band": ["ztf:g"] * 3, "kind": ["detection", "limit", "detection"],
        "magnitude": [18.0, 20.0, None], "magnitudeError": [0.1, None, None], "mjdBarycentric": [None] * 3,
    }  # fmt: skip
    (axes,) = plot_light_curve(points).axes
    assert [list(c[0].get_ydata()) for c in axes.containers] == [[18.0], [20.0]]
    _, folded = plot_light_curve(points, 2.0).axes
    assert list(folded.containers[0][0].get_xdata()) == [0.0, 1.0]
    empty = {name: [] for name in points}
    assert len(plot_light_curve(empty, 1.0).axes) == 2


def test_magnitudes_of_differences_are_not_drawn_among_those_of_the_star() -> None:
    points = {
        "mjd": [1.0, 2.0, 3.0], "band": ["ztf:g"] * 3, "kind": ["detection", "detection", "limit"],
        "magnitude": [16.0, 19.5, 20.0], "magnitudeError": [0.1, 0.1, None], "total": [True, False, False],
    }  # fmt: skip
    (axes,) = plot_light_curve(points).axes
    assert [list(c[0].get_ydata()) for c in axes.containers] == [[16.0], [20.0]]
    assert axes.get_ylabel() == "AB magnitude"
    (axes,) = plot_light_curve(points | {"total": [False] * 3}).axes
    assert [list(c[0].get_ydata()) for c in axes.containers] == [[16.0, 19.5], [20.0]]
    assert axes.get_ylabel() == "AB magnitude of the difference"
