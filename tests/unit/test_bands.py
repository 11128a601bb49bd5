"""Bands and their wavelengths."""

import numpy as np
import pytest

from broker.bands import AB_OFFSET, BAND_CODE, BANDS, WAVELENGTH


def test_codes_of_stored_light_curves_do_not_move() -> None:
    # The first release's bands: their codes are in stored light curves.
    assert BANDS[:11] == (
        "ztf:g", "ztf:r", "ztf:i", "lsst:u", "lsst:g", "lsst:r", "lsst:i", "lsst:z", "lsst:y", "asas:V", "css:V",
    )  # fmt: skip
    assert BAND_CODE["sdss:u"] == 11
    assert len(BANDS) < 255  # 255 stands for an unknown band in one byte


def test_each_band_is_named_once_and_has_its_wavelength() -> None:
    assert len(set(BANDS)) == len(BANDS) == len(WAVELENGTH)
    # In the order of the rainbow, in every survey that has several.
    for bands in ("ugriz", "ugrizy"):
        survey = "sdss" if bands == "ugriz" else "lsst"
        own = [WAVELENGTH[BAND_CODE[f"{survey}:{band}"]] for band in bands]
        assert np.all(np.diff(own) > 0)
    # Like bands of two surveys are alike.
    assert abs(WAVELENGTH[BAND_CODE["ztf:g"]] - WAVELENGTH[BAND_CODE["asassn:g"]]) < 20
    assert abs(WAVELENGTH[BAND_CODE["sdss:r"]] - WAVELENGTH[BAND_CODE["lsst:r"]]) < 20


@pytest.mark.parametrize(
    ("band", "vega", "ab"), [("G", 25.6874, 25.8010), ("BP", 25.3385, 25.3540), ("RP", 24.7479, 25.1040)]
)
def test_gaias_magnitudes_in_ab(band: str, vega: float, ab: float) -> None:
    """Both zero points as published (Riello et al. 2021, table 3)."""
    assert AB_OFFSET[BAND_CODE[f"gaia:{band}"]] == pytest.approx(ab - vega, abs=0.005)
