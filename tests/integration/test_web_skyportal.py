"""What SkyPortal's generic broker gets, read as its broker_apis/generic.py and broker_apis/_save.py read it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.records import BAND_CODE, LightCurve, ObjectState, PhotometryKind
from broker.web import objects
from broker.web.app import application, parts_of
from broker.web.services import Services
from broker.web.skyportal import photometry
from tests.integration.web_line import fill, publish, settings_for

ZERO_POINT = {"LSST": 8.9, "ZTF": 23.9}
"""SkyPortal's: of fluxes in nJy times 1e-9, and of what it makes of magnitudes."""


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(server.url, tmp_path_factory.mktemp("web"), require_login=True)


@pytest.fixture(scope="module")
def annotations(settings: Settings) -> list[PublishedAnnotation]:
    return publish(settings, objects=6, visits=15)


@pytest.fixture(scope="module")
def parts(settings: Settings, annotations: list[PublishedAnnotation]) -> Iterator[Services]:
    with closing(fill(settings, annotations)) as index, parts_of(settings, index, follow=False) as parts:
        yield parts


class GenericBroker:
    """A configured broker, with the requests of generic.py."""

    def __init__(self, parts: Services) -> None:
        self._http = TestClient(application(parts))
        self.altdata = {
            "base_url": "http://trifid/api/skyportal",
            "token": parts.tokens.create("skyportal", frozenset({"read"})),
        }

    def request(self, path: str, params: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.altdata['token']}"}
        url = f"{self.altdata['base_url'].rstrip('/')}/{path.lstrip('/')}"
        # requests leaves out what is None, and sends a dictionary's keys.
        given = {k: list(v) if isinstance(v, dict) else v for k, v in (params or {}).items() if v is not None}
        response = self._http.get(url, params=given, headers=headers)
        response.raise_for_status()
        payload = response.json()
        return payload["data"] if isinstance(payload, dict) and "data" in payload else payload


@pytest.fixture(scope="module")
def broker(parts: Services) -> GenericBroker:
    return GenericBroker(parts)


def stored_points(data: dict[str, Any], survey: str) -> list[tuple[float, str, float | None, float]]:
    """MJD, filter, AB magnitude and flux error of each point that ``build_photometry_groups`` of _save.py keeps."""
    zero = ZERO_POINT[survey]
    kept = []
    for array in ("prv_candidates", "fp_hists", "prv_nondetections"):
        for point in data.get(array) or []:
            jd, band = point.get("jd"), point.get("band")
            if jd is None or band is None:
                continue
            if (error := point.get("psfFluxErr")) is not None:
                flux, error = point.get("psfFlux"), error * 1e-9
                flux = None if flux is None or math.isnan(flux) else flux * 1e-9
            elif point.get("magpsf") is not None and point.get("sigmapsf") is not None:
                flux = 10.0 ** (-0.4 * (point["magpsf"] - zero))
                error = flux * point["sigmapsf"] * 0.9210340371976184
            else:
                continue
            name = f"{survey.lower()}{band.lower().removeprefix(survey.lower())}"
            magnitude = None if flux is None or flux <= 0 else -2.5 * math.log10(flux) + zero
            kept.append((jd - 2400000.5, name, magnitude, error))
    return kept


def test_an_object_is_saved_with_its_photometry(
    broker: GenericBroker, parts: Services, annotations: list[PublishedAnnotation]
) -> None:
    latest = annotations[-1]
    survey = latest.survey.upper()
    data = broker.request(f"alerts/{latest.object_id}", {"survey": survey, "permissions": None})
    assert (data["objectId"], data["survey"], data["candid"]) == (latest.object_id, survey, latest.alert_id)
    candidate = data["candidate"]
    assert (candidate["ra"], candidate["dec"]) == pytest.approx((latest.ra, latest.dec))
    assert candidate["jd"] - 2400000.5 == pytest.approx(latest.mjd, abs=1e-8)
    assert data["classifications"] == dict(zip(latest.class_names, latest.probabilities, strict=True))
    known = objects.find(parts.store, latest.survey, latest.object_id, latest.ra, latest.dec)
    assert known is not None
    curve = known.state.light_curve
    points = stored_points(data, survey)
    detected = (curve.kind == PhotometryKind.DETECTION) & (curve.flux > 0)
    magnitudes = -2.5 * np.log10(curve.flux[detected].astype(float)) + 31.4
    assert [p[2] for p in points][: detected.sum()] == pytest.approx(magnitudes.tolist(), abs=1e-3)
    assert {p[1] for p in points} <= {f"{survey.lower()}{band}" for band in "ugrizy"}


def test_alerts_are_found_by_name_place_and_time(broker: GenericBroker, annotations: list[PublishedAnnotation]) -> None:
    star = annotations[-1]
    survey = star.survey.upper()

    def names(**params: Any) -> list[str]:
        found = broker.request("alerts", params)
        assert all({"objectId", "candid", "survey", "candidate", "classifications"} <= set(one) for one in found)
        return [one["objectId"] for one in found]

    assert names(objectId=star.object_id) == [star.object_id]
    assert names(objectId=star.object_id, survey=survey, permissions={survey: [1]}) == [star.object_id]
    assert names(objectId=star.object_id, permissions={"WINTER": [1]}) == []
    assert names(objectId="nothing") == []
    assert names(ra=star.ra, dec=star.dec, radius=1 / 60, radius_units="arcmin", candid="ignored") == [star.object_id]
    assert names(ra=star.ra, dec=min(89.0, star.dec + 0.1), radius=1.0) == []
    everything = {a.object_id for a in annotations}
    assert set(names()) == everything
    jd = star.mjd + 2400000.5
    assert star.object_id in names(jd_start=jd - 0.01, jd_end=jd + 0.01)
    assert names(jd_start=jd + 1e4) == []


def test_what_is_refused(parts: Services, broker: GenericBroker) -> None:
    http = TestClient(application(parts))
    assert http.get("/api/skyportal/alerts").status_code == 401
    http.headers["Authorization"] = f"Bearer {broker.altdata['token']}"
    for path, status in (
        ("/alerts/nothing", 404),  # which SkyPortal takes for no data
        ("/alerts?ra=1", 422),
        ("/alerts?ra=1&dec=x", 422),
        ("/alerts?ra=1&dec=2&radius=11&radius_units=deg", 422),
        ("/alerts?survey=WINTER", 422),
    ):
        assert http.get(f"/api/skyportal{path}").status_code == status, path


@pytest.mark.parametrize("survey", ["ztf", "lsst"])
def test_points_by_kind(survey: str) -> None:
    """By hand: 3,630,780.5 nJy are 15 mag (AB, of 3,630.78 Jy; 3,631 Jy are another 0.0001 mag), 36.307805 27.5 mag."""
    kinds = [PhotometryKind.DETECTION, PhotometryKind.DETECTION, PhotometryKind.FORCED, PhotometryKind.LIMIT]
    curve = LightCurve(
        mjd=np.array([60000.0, 60001.0, 60002.0, 60003.0, 60004.0]),
        flux=np.array([3630780.5, -10.0, 3630780.5, np.nan, 5.0], np.float32),
        flux_error=np.array([363078.05, 1.0, 363078.05, 36.307805 / 5, 1.0], np.float32),
        reference_flux=np.full(5, 1e6, np.float32),
        band=np.array([BAND_CODE[f"{survey}:g"]] * 4 + [BAND_CODE["gaia:G"]], np.uint8),
        kind=np.array([*kinds, PhotometryKind.DETECTION], np.uint8),
    )
    found = photometry(ObjectState("a", 1.0, 2.0, curve), survey)
    points = stored_points(found, survey.upper())
    if survey == "ztf":  # without what is negative and limits, which SkyPortal does not read in magnitudes
        assert [p[:2] for p in points] == [(60000.0, "ztfg"), (60002.0, "ztfg")]
        assert found["prv_nondetections"][0]["diffmaglim"] == pytest.approx(27.5, abs=1e-4)
        assert points[0][3] == pytest.approx(10 ** (-0.4 * (15.0 - 23.9)) / 10, rel=1e-3)
    else:
        assert [p[0] for p in points] == [60000.0, 60001.0, 60002.0, 60003.0]
        assert [p[2] for p in points] == [pytest.approx(15.0, abs=1e-4), None, pytest.approx(15.0, abs=1e-4), None]
        assert points[3][3] == pytest.approx(36.307805e-9 / 5)
    assert points[0][2] == pytest.approx(15.0, abs=1e-4)
