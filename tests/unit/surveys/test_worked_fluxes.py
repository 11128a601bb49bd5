"""Fluxes of packets of ZTF and LSST, worked out from their magnitudes and fluxes by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker.bands import BAND_CODE
from broker.records import LightCurve, PhotometryKind
from broker.surveys import Decoder
from tests.unit.surveys.test_decoder import RECORD, alerts_of, ztf
from tests.unit.surveys.test_flags import rubin

JD = 2_459_000.5
EARLIER = RECORD["prv_candidates"][0]
LIMIT = {
    **dict.fromkeys(EARLIER), "jd": JD - 2, "fid": 2, "diffmaglim": 20.0, "pid": EARLIER["pid"],
    "programid": EARLIER["programid"], "rbversion": "",
}  # fmt: skip


def njy(magnitude: float) -> float:
    """AB: magnitude 0 is 3631 Jy."""
    return 3631e9 * 10 ** (-0.4 * magnitude)


def curve_of(**candidate: Any) -> LightCurve:
    """Of a packet with one detection, in g at magnitude 18 with a reference source of 17, changed as given."""
    values = {
        "jd": JD, "fid": 1, "magpsf": 18.0, "sigmapsf": 0.1, "isdiffpos": "t", "magnr": 17.0, "distnr": 0.5, "nbad": 0,
    }  # fmt: skip
    (alert,) = alerts_of(Decoder().decode(ztf(candidate=values | candidate, prv_candidates=None, fp_hists=None)))
    assert len(alert.light_curve) == 1
    return alert.light_curve


def test_a_detection_of_ztf() -> None:
    found = curve_of()
    assert found.mjd.tolist() == [59_000.0]
    assert found.flux[0] == pytest.approx(njy(18.0), rel=1e-6)
    # 0.1 mag are 0.1 ln(10) / 2.5 of the flux.
    assert found.flux_error[0] == pytest.approx(njy(18.0) * 0.0921034, rel=1e-5)
    assert found.reference_flux[0] == pytest.approx(njy(17.0), rel=1e-6)
    assert (found.band[0], found.kind[0]) == (BAND_CODE["ztf:g"], PhotometryKind.DETECTION)


@pytest.mark.parametrize(("sign", "expected"), [("t", 1), ("f", -1)])
def test_what_has_become_fainter_has_negative_flux(sign: str, expected: int) -> None:
    found = curve_of(isdiffpos=sign)
    assert found.flux[0] == pytest.approx(expected * njy(18.0), rel=1e-6)
    assert found.flux_error[0] == pytest.approx(njy(18.0) * 0.0921034, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"distnr": 1.4}, True), ({"distnr": 1.41}, False), ({"distnr": 0.0}, True), ({"distnr": -1.0}, False),
        ({"distnr": None}, False), ({"magnr": -999.0}, False), ({"magnr": None}, False),
    ],
)  # fmt: skip
def test_a_reference_source_counts_within_1_4_arcsec(changes: dict[str, Any], known: bool) -> None:
    assert np.isfinite(curve_of(**changes).reference_flux[0]) == known


@pytest.mark.parametrize(("fid", "band"), [(1, "ztf:g"), (2, "ztf:r"), (3, "ztf:i")])
def test_bands_of_ztf(fid: int, band: str) -> None:
    assert curve_of(fid=fid).band.tolist() == [BAND_CODE[band]]


def test_an_upper_limit_of_ztf_is_five_errors() -> None:
    candidate = {"jd": JD, "fid": 1, "nbad": 0}
    (alert,) = alerts_of(Decoder().decode(ztf(candidate=candidate, prv_candidates=[LIMIT], fp_hists=None)))
    found = alert.light_curve
    (row,) = np.flatnonzero(found.kind == PhotometryKind.LIMIT)
    assert found.mjd[row] == 58_998.0
    assert np.isnan(found.flux[row])
    assert np.isnan(found.reference_flux[row])
    assert found.flux_error[row] == pytest.approx(njy(20.0) / 5, rel=1e-6)
    assert found.band[row] == BAND_CODE["ztf:r"]


def forced_of(**changes: Any) -> LightCurve:
    """The forced photometry of a packet with one such point."""
    point = {
        **RECORD["fp_hists"][0], "jd": JD - 3, "fid": 2, "forcediffimflux": -120.0, "forcediffimfluxunc": 8.0,
        "magzpsci": 26.0, "magnr": 16.0, "distnr": 0.3, "procstatus": "0", **changes,
    }  # fmt: skip
    (alert,) = alerts_of(Decoder().decode(ztf(candidate={"jd": JD, "nbad": 0}, prv_candidates=None, fp_hists=[point])))
    found = alert.light_curve
    return found.take(np.flatnonzero(found.kind == PhotometryKind.FORCED))


def test_forced_photometry_of_ztf_has_the_zero_point_of_its_image() -> None:
    found = forced_of()
    # A count of 1 is of magnitude 26.
    assert found.flux == pytest.approx([-120 * njy(26.0)], rel=1e-6)
    assert found.flux_error == pytest.approx([8 * njy(26.0)], rel=1e-6)
    assert found.reference_flux == pytest.approx([njy(16.0)], rel=1e-6)
    assert (found.mjd.tolist(), found.band.tolist()) == ([58_997.0], [BAND_CODE["ztf:r"]])


def test_a_deep_minimum_in_forced_photometry_of_ztf_is_no_missing_value() -> None:
    assert not len(forced_of(forcediffimflux=-99_999.0))
    # A star of 12.9 mag in the reference image, at 16.2 mag.
    found = forced_of(forcediffimflux=-165_000.0, magnr=12.9)
    assert found.flux == pytest.approx([-165_000 * njy(26.0)], rel=1e-6)
    assert -2.5 * np.log10((found.flux + found.reference_flux) / njy(0.0)) == pytest.approx([16.15], abs=0.05)


@pytest.mark.parametrize(
    ("changes", "reference"),
    [
        ({"scienceFlux": 700.0, "templateFlux": 650.0}, 600.0),  # of the two the science image's less the difference
        ({"scienceFlux": None, "templateFlux": 650.0}, 650.0),
        ({"scienceFlux": float("nan"), "templateFlux": 650.0}, 650.0),
        ({"scienceFlux": None, "templateFlux": None}, float("nan")),
    ],
)
def test_science_flux_of_lsst_is_difference_and_reference_together(changes: dict[str, Any], reference: float) -> None:
    (alert,) = alerts_of(Decoder().decode(rubin(1101, [changes])))
    found = alert.light_curve
    row = int(np.argmin(found.mjd))
    assert found.flux[row] == 100.0
    assert found.flux_error[row] == 1.0
    assert found.reference_flux[row] == pytest.approx(reference, nan_ok=True)
    assert found.band[row] == BAND_CODE["lsst:r"]
