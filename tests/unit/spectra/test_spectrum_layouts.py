"""Spectra as observatories and programs write them: DESI's arms, IRAF's apertures, texts of all dialects."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.interpolate import BSpline

from broker.errors import InputFileError
from broker.spectra.files import Overrides, read_raw, read_spectra
from broker.spectra.normalise import RawSpectrum, coverage, to_observed
from tests.unit.spectra import fake_files

CASES = Path(__file__).parents[2] / "data" / "cases" / "11-spectra"
PLACE = Overrides(ra=10.5, dec=-3.2)
N = 1350
GRID = 3800.0 + 4.0 * np.arange(N)


def shape(wavelength: np.ndarray) -> np.ndarray:
    return 100 * (1 + 0.2 * np.sin(wavelength / 300))


def raws(tmp_path: Path, data: bytes | str) -> list[RawSpectrum]:
    (tmp_path / "it.dat").write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_raw(tmp_path / "it.dat"))


@pytest.mark.parametrize("path", sorted(CASES.iterdir()), ids=lambda path: path.name)
def test_the_cases_from_the_field(path: Path) -> None:
    [found] = read_spectra(path, PLACE)
    wavelength, flux = found.spectrum.wavelength, found.spectrum.flux
    if "desi" in path.name:
        assert found.spectrum_id == "desi:39627785483846390"
        np.testing.assert_allclose(wavelength[[0, -1]], [3600.0, 9824.0])
        assert np.median(np.diff(wavelength)) == pytest.approx(6.4)
        assert np.diff(wavelength).min() > 3.0  # arms do not interleave
        assert np.isfinite(found.spectrum.flux_error).all()
        for at, value in ((3600.0, 103.00383), (5785.6, 112.663185), (7545.6, 100.577705)):
            assert flux[np.argmin(np.abs(wavelength - at))] == pytest.approx(value, rel=0.01)
    else:
        np.testing.assert_allclose(wavelength, GRID, rtol=1e-6)
        np.testing.assert_allclose(flux[[0, 1, 2]], [1.03e-15, 1.034e-15, 1.038e-15], rtol=1e-4)
    if path.name.startswith("ascii_comments"):
        [alone] = read_spectra(path)
        assert (alone.ra, alone.dec) == (10.5, -3.2)


# DESI


def desi(arms: dict[str, tuple[float, float]], targets: int = 1, step: float = 0.8, **columns: list[object]) -> bytes:
    hdus: list[fits.PrimaryHDU] = [fits.PrimaryHDU()]
    if columns:
        formats = {"TARGETID": "K", "OBJTYPE": "3A", "EXPID": "J"}
        hdus.append(
            fits.BinTableHDU.from_columns(
                [fits.Column(name, formats.get(name, "D"), array=np.array(v)) for name, v in columns.items()],
                name="FIBERMAP",
            )
        )
    for arm, (first, last) in arms.items():
        prefix = f"{arm}_" if arm else ""
        wavelength = np.arange(first, last, step)
        flux = np.stack([shape(wavelength) * (n + 1) for n in range(targets)]).astype("f4")
        mask = np.zeros(flux.shape, "i4")
        mask[:, 5] = 1
        hdus += [
            fits.ImageHDU(wavelength, name=f"{prefix}WAVELENGTH"),
            fits.ImageHDU(flux, name=f"{prefix}FLUX"),
            fits.ImageHDU(np.full(flux.shape, 0.25, "f4"), name=f"{prefix}IVAR"),
            fits.ImageHDU(mask, name=f"{prefix}MASK"),
            fits.ImageHDU(np.ones((targets, 3, len(wavelength)), "f4"), name=f"{prefix}RESOLUTION"),
        ]
        hdus[-4].header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
    return fake_files.to_bytes(*hdus)


ARMS = {"B": (3600.0, 5800.8), "R": (5760.0, 7620.8), "Z": (7520.0, 9824.8)}


def test_targets_of_a_coadd_but_not_its_sky(tmp_path: Path) -> None:
    data = desi(
        ARMS, 3, TARGETID=[7, 8, 9], TARGET_RA=[1.0, 2.0, 3.0], TARGET_DEC=[-1.0, -2.0, -3.0],
        OBJTYPE=["TGT", "SKY", "TGT"], MEAN_MJD=[59000.5, 59000.5, 59001.5],
    )  # fmt: skip
    (tmp_path / "coadd.fits.gz").write_bytes(gzip.compress(data))
    found = list(read_spectra(tmp_path / "coadd.fits.gz"))
    assert [(s.spectrum_id, s.ra, s.dec, s.mjd) for s in found] == [
        ("desi:7", 1.0, -1.0, 59000.5), ("desi:9", 3.0, -3.0, 59001.5),
    ]  # fmt: skip
    for spectrum, times in zip(found, (1, 3), strict=True):
        wavelength = spectrum.spectrum.wavelength
        np.testing.assert_allclose(wavelength, 3600 + 0.8 * np.arange(len(wavelength)), rtol=1e-9)
        np.testing.assert_allclose(spectrum.spectrum.flux, times * shape(wavelength), rtol=1e-5)
        good = np.isfinite(spectrum.spectrum.flux_error)
        assert (~good).sum() == 1  # the fifth pixel of the two redder arms is not used
        np.testing.assert_allclose(spectrum.spectrum.flux_error[good], 2.0)


def test_exposures_of_one_target_have_names_of_their_own(tmp_path: Path) -> None:
    data = desi(ARMS, 2, TARGETID=[7, 7], EXPID=[11, 12], TARGET_RA=[1.0, 1.0], TARGET_DEC=[2.0, 2.0])
    assert [raw.spectrum_id for raw in raws(tmp_path, data)] == ["desi:7-11", "desi:7-12"]


def test_arms_that_are_joined_already_or_one_alone(tmp_path: Path) -> None:
    about = {"TARGETID": [7], "TARGET_RA": [1.0], "TARGET_DEC": [2.0]}
    [joined] = raws(tmp_path, desi({"BRZ": (3600.0, 9824.8)}, **about))
    assert (joined.format, len(joined.wavelength)) == ("DESI, arms BRZ", 7781)
    [frame] = raws(tmp_path, desi({"": (3600.0, 9824.8)}, **about))
    assert (frame.format, len(frame.wavelength), frame.spectrum_id) == ("DESI", 7781, "desi:7")
    [alone] = raws(tmp_path, desi({"R": ARMS["R"]}, **about))
    assert coverage(to_observed(alone).spectrum) == pytest.approx(
        (7620 - 5760) / 5150, abs=0.002
    )  # a part is used, too


def test_arms_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="2 spectra, but 1 rows in FIBERMAP"):
        raws(tmp_path, desi(ARMS, 2, TARGETID=[7], TARGET_RA=[1.0], TARGET_DEC=[2.0]))


# IRAF


def iraf(image: np.ndarray, wat0: str, wat1: str, **cards: object) -> bytes:
    primary = fits.PrimaryHDU(image.astype("f4"))
    for axis, text in ((0, wat0), (1, wat1)):
        for number in range(0, len(text), 68):
            primary.header[f"WAT{axis}_{number // 68 + 1:03d}"] = text[number : number + 68]
    for key, value in {"CTYPE1": "MULTISPE", "RA": 150.0, "DEC": 2.0, **cards}.items():
        primary.header[key.replace("_", "-") if key in ("DC_FLAG", "MJD_OBS") else key] = value
    return fake_files.to_bytes(primary)


def multispec(*specs: str, units: str = "angstroms") -> str:
    return f"wtype=multispec label=Wavelength units={units} " + " ".join(
        f'spec{n} = "{spec}"' for n, spec in enumerate(specs, 1)
    )


PIXEL = np.arange(1.0, N + 1)
MIDDLE = (PIXEL - (1 + N) / 2) / ((N - 1) / 2)
COEFFICIENTS = np.array([6500.0, 2700.0, 30.0, -8.0])
SPLINE = np.linspace(3700.0, 9400.0, 8) + np.array([0, 20, -10, 15, 0, 5, -20, 0])


def spline(count: int, degree: int) -> np.ndarray:
    """By scipy: uniform knots, IRAF's cubic ones not divided by 6."""
    knots = np.arange(-degree, count + degree + 1.0)
    scale = 6.0 if degree == 3 else 1.0
    return scale * np.asarray(BSpline(knots, SPLINE[: count + degree], degree)((PIXEL - 1) / (N - 1) * count))


def numbers(values: np.ndarray) -> str:
    return " ".join(f"{v:.10g}" for v in values)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("3 7 0 3800. 4. 1350 0. 1. 10.", GRID),
        ("3 7 0 3800. 4. 1350 0.001 1. 10.", GRID / 1.001),
        ("3 7 1 3.58 2.8E-4 1350 0. 1. 10.", 10 ** (3.58 + 2.8e-4 * (PIXEL - 1))),
        (f"3 7 2 3800 4 1350 0 1 10 1. 0. 1 4 1 {N} {numbers(COEFFICIENTS)}",
         np.polynomial.Chebyshev(COEFFICIENTS)(MIDDLE)),
        (f"3 7 2 3800 4 1350 0 1 10 1. 5. 2 4 1 {N} {numbers(COEFFICIENTS)}",
         np.polynomial.Legendre(COEFFICIENTS)(MIDDLE) + 5),
        (f"3 7 2 3800 4 1350 0 1 10 .5 0. 1 4 1 {N} {numbers(COEFFICIENTS)} .5 0. 2 4 1 {N} {numbers(COEFFICIENTS)}",
         (np.polynomial.Chebyshev(COEFFICIENTS)(MIDDLE) + np.polynomial.Legendre(COEFFICIENTS)(MIDDLE)) / 2),
        (f"3 7 2 3800 4 1350 0 1 10 1. 0. 3 5 1 {N} {numbers(SPLINE / 6)}", spline(5, 3) / 6),
        (f"3 7 2 3800 4 1350 0 1 10 1. 0. 4 7 1 {N} {numbers(SPLINE)}", spline(7, 1)),
        (f"3 7 2 3800 4 1350 0 1 10 1. 0. 5 {N} {numbers(GRID)}", GRID),
        ("3 7 2 3800 4 1350 0 1 10 1. 0. 6 2 1 3800 1350 9196", GRID),
    ],
    ids=["linear", "Doppler", "log", "Chebyshev", "Legendre", "weights", "cubic", "spline", "pixels", "samples"],
)  # fmt: skip
def test_dispersions_of_multispec(tmp_path: Path, spec: str, expected: np.ndarray) -> None:
    [raw] = raws(tmp_path, iraf(shape(GRID)[None], "system=multispec", multispec(spec)))
    np.testing.assert_allclose(raw.wavelength, expected, rtol=1e-7)
    assert (raw.format, raw.wavelength_unit, raw.ra) == ("IRAF multispec, aperture 3", "angstroms", 150.0)


def test_apertures_and_bands_of_multispec(tmp_path: Path) -> None:
    specs = [f"{n} {n} 0 {3800 + n} 4. {N} 0. 1. 10." for n in (1, 2, 5)]
    image = np.stack([np.stack([shape(GRID) * n for n in (1, 2, 3)]), np.ones((3, N)), np.full((3, N), 2.0)])
    cards = {"BANDID1": "spectrum - background fit", "BANDID3": "sigma - background fit", "MJD_OBS": 59000.5}
    found = raws(tmp_path, iraf(image, "system=multispec", multispec(*specs), **cards))
    assert [raw.format for raw in found] == [f"IRAF multispec, aperture {n}" for n in (1, 2, 5)]
    assert [raw.spectrum_id for raw in found] == ["file:it.dat", "file:it.dat#2", "file:it.dat#3"]
    for raw, aperture, times in zip(found, (1, 2, 5), (1, 2, 3), strict=True):
        np.testing.assert_allclose(raw.wavelength, GRID + aperture)
        np.testing.assert_allclose(raw.flux, shape(GRID) * times, rtol=1e-6)
        assert raw.error is not None
        np.testing.assert_array_equal(raw.error, 2.0)
        assert np.isnan(raw.ra)  # the telescope's is not that of each fibre
        assert raw.mjd == 59000.5
    with pytest.raises(InputFileError, match=r"3 of 3 spectra: .*its position is not known"):
        list(read_spectra(tmp_path / "it.dat"))


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"CRVAL1": 3800.0, "CD1_1": 4.0, "CRPIX1": 1.0}, GRID),
        ({"CRVAL1": 3.58, "CD1_1": 2.8e-4, "CRPIX1": 1.0, "DC_FLAG": 1}, 10 ** (3.58 + 2.8e-4 * (PIXEL - 1))),
    ],
)
def test_equispec(tmp_path: Path, cards: dict[str, object], expected: np.ndarray) -> None:
    wat1 = "wtype=linear label=Wavelength units=angstroms"
    found = raws(tmp_path, iraf(np.stack([shape(GRID)] * 2), "system=equispec", wat1, CTYPE1="LINEAR", **cards))
    assert [raw.format for raw in found] == ["IRAF equispec, aperture 1", "IRAF equispec, aperture 2"]
    for raw in found:
        np.testing.assert_allclose(raw.wavelength, expected)


@pytest.mark.parametrize(
    ("wat1", "reason"),
    [
        ("wtype=multispec", "without spec1"),
        (multispec("1 1 -1 0 1 1350 0 1 10"), "aperture 1 has no dispersion"),
        (multispec("1 1 0 x"), "is not to IRAF's multispec format"),
        (multispec("1 1 2 3800 4 1350 0 1 10 1. 0. 1 400000 1 1350 6500"), "is not to IRAF's multispec format"),
        (multispec("1 1 2 3800 4 1350 0 1 10 1. 0. 9 4 1 1350 6500 1 1 1"), "is not to IRAF's multispec format"),
        (multispec("1 1 2 3800 4 1350 0 1 10"), "is not to IRAF's multispec format"),
    ],
)
def test_damaged_multispec_is_refused(tmp_path: Path, wat1: str, reason: str) -> None:
    with pytest.raises(InputFileError, match=reason):
        raws(tmp_path, iraf(shape(GRID), "system=multispec", wat1))


# Images


def test_wavelengths_in_row_0_with_errors_and_falling(tmp_path: Path) -> None:
    image = np.stack([GRID[::-1], shape(GRID[::-1]), np.full(N, 2.0)])
    [raw] = raws(tmp_path, fake_files.to_bytes(fits.PrimaryHDU(image)))
    np.testing.assert_allclose(raw.wavelength, GRID[::-1])
    assert raw.error is not None
    np.testing.assert_array_equal(raw.error, 2.0)


@pytest.mark.parametrize(
    "image",
    [np.stack([shape(GRID), GRID]), np.stack([GRID, GRID]), np.stack([GRID, shape(GRID), -shape(GRID)]),
     np.stack([GRID] * 4), GRID[None].T * np.ones((1, 2))],
    ids=["no wavelengths in row 0", "two rising rows", "third row no errors", "four rows", "columns"],
)  # fmt: skip
def test_other_images_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(InputFileError, match="is not one spectrum with wavelengths in its header"):
        raws(tmp_path, fake_files.to_bytes(fits.PrimaryHDU(image)))


# Text


def lines(separator: str = " ", form: str = "{:.8g}", end: str = "\n", after: str = "") -> str:
    return end.join(
        separator.join(form.format(v) for v in (w, f, 2.0)) + after for w, f in zip(GRID, shape(GRID), strict=True)
    )


TEXTS = {
    "exclamation marks": "! a star\n! ra = 10.5\n" + lines() + "\n! the end\n",
    "semicolons": "; IDL\n" + lines(),
    "D exponents": lines(form="{:.8E}").replace("E", "D"),
    "small d": lines("  ", "{:.8e}").replace("e", "d"),
    "decimal commas": lines(";").replace(".", ","),
    "decimal commas and tabs": lines("\t").replace(".", ","),
    "decimal commas and blanks": lines("   ", "{:.6f}").replace(".", ","),
    "semicolon": "wave;flux;error\n" + lines(";"),
    "bars": "wave | flux | error\n" + lines(" | "),
    "blanks after commas": lines(", "),
    "trailing commas": "wave,flux,error\n" + lines(",", after=","),
    "remarks after rows": lines(after="  # good"),
    "Windows": "wave,flux,error\r\n" + lines(",", end="\r\n"),
    "old Mac": lines(end="\r"),
    "title and names": "HD 12345 observed at Calar Alto\nlambda flux sigma\n" + lines(),
    "names and units": "wavelength flux err\nAngstrom erg/s/cm2/A erg/s/cm2/A\n" + lines(),
    "IPAC": "\\RA = 10.5\n|  wave  |  flux  | error  |\n| double | double | double |\n" + lines("  "),
    "quoted": '"wave","flux","error"\n' + lines(",", '"{:.8g}"'),
    "capitals": "LAMBDA FLUX SIGMA\n" + lines(),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_dialects_of_text(tmp_path: Path, text: str, encoding: str) -> None:
    comment = "# \xe9toile, 5000 \xc5\n" if encoding == "latin-1" else ""
    [raw] = raws(tmp_path, (comment + text).encode(encoding))
    np.testing.assert_allclose(raw.wavelength, GRID, rtol=1e-6)
    np.testing.assert_allclose(raw.flux, shape(GRID), rtol=1e-5)
    assert raw.error is not None
    np.testing.assert_allclose(raw.error, 2.0)
    assert np.isnan(raw.ra) or raw.ra == 10.5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3800 1\n3804 1 2\n", r"line 2, '3804 1 2': a row of 3 values under 2 columns"),
        ("3800 1 2 3\n", r"line 1, '3800 1 2 3': a row of 4 values under 3 columns: wavelength, flux, error"),
        ("3800 1\nEND\n", "line 2, 'END': a row of 1 values"),
        ("1 2\n" * 200_001, "more than 200,000 lines"),
        ("3800 1\n" * 100_001, "100,001 rows; a spectrum has 100,000 pixels at most"),
    ],
)
def test_texts_that_are_no_table_are_refused_with_the_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputFileError, match=reason):
        raws(tmp_path, text)
