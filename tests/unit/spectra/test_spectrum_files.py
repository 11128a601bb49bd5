from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable import from_table
from astropy.table import Table

from broker.assemble.spectrum import assemble_spectra
from broker.errors import InputFileError
from broker.records import ObservedSpectrum
from broker.spectra.files import Overrides, read_raw, read_spectra
from broker.spectra.message import read, write
from broker.spectra.normalise import air_to_vacuum
from tests.unit.spectra import fake_files
from tests.unit.spectra.test_spectrum_normalise import same

PLACE = Overrides(ra=1.0, dec=2.0)
NOTHING = Overrides()
STAR = fake_files.made_up()
NO_MASK = np.zeros(len(STAR.flux), np.int32)


def one(tmp_path: Path, data: bytes | str, overrides: Overrides = NOTHING, name: str = "it.dat") -> ObservedSpectrum:
    """The only spectrum of a file; its name tells nothing."""
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    [found] = read_spectra(path, overrides)
    return found


def columns(step: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wavelength = np.arange(3800.0, 9050.0, step)
    return wavelength, 100 * (1 + 0.2 * np.sin(wavelength / 300)), np.full(len(wavelength), 2.0)


def csv(header: str, *values: np.ndarray, separator: str = ",") -> str:
    return (
        header + "\n" + "\n".join(separator.join(f"{v:.8g}" for v in row) for row in zip(*values, strict=True)) + "\n"
    )


def check_star(found: ObservedSpectrum, star: fake_files.Star, rest_frame: bool = True) -> None:
    spectrum = found.spectrum
    shift = 1 + star.z if rest_frame else 1.0
    np.testing.assert_allclose(spectrum.wavelength, star.wavelength / shift, rtol=3e-7)
    good = (star.ivar > 0) & (star.mask == 0)
    np.testing.assert_array_equal(np.isfinite(spectrum.flux_error), good)
    np.testing.assert_allclose(spectrum.flux[good], star.flux[good], rtol=1e-5)
    np.testing.assert_allclose(spectrum.flux_error[good], star.ivar[good] ** -0.5, rtol=1e-5)
    assert assemble_spectra([spectrum]).present[0]


@pytest.mark.parametrize("make", [fake_files.lamost_dr5, fake_files.lamost_dr8])
def test_lamost(tmp_path: Path, make: object) -> None:
    found = one(tmp_path, make(STAR))  # type: ignore[operator]
    check_star(found, STAR)
    assert (found.spectrum_id, found.ra, found.dec) == ("lamost:101008", 120.5, -3.25)
    assert found.mjd == pytest.approx(55858 + (12 + 32 / 60) / 24)  # DATE-OBS, not the whole day of MJD
    line = found.spectrum.wavelength[np.argmin(found.spectrum.flux)]
    assert line == pytest.approx(6564.61, abs=3)


def test_both_forms_of_lamost_give_the_same(tmp_path: Path) -> None:
    assert same(one(tmp_path, fake_files.lamost_dr5(STAR)), one(tmp_path, gzip.compress(fake_files.lamost_dr8(STAR))))


@pytest.mark.parametrize("number", [0, 99, 300, 495])
def test_real_spectra_from_fits_and_by_message_are_the_same(shared: Path, tmp_path: Path, number: int) -> None:
    star = fake_files.real(shared, number)
    for make in (fake_files.lamost_dr5, fake_files.lamost_dr8):
        found = one(tmp_path, make(star))
        check_star(found, star, abs(star.z) <= 0.01)
        [sent] = read(write(found))
        assert same(found, sent)
        [from_file] = read_spectra(_written(tmp_path, write(found)))
        assert same(found, from_file)


def _written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "message"
    path.write_bytes(data)
    return path


def test_sdss(tmp_path: Path) -> None:
    mask = NO_MASK.copy()
    mask[50] = 1 << 23  # BRIGHTSKY
    mask[60] = 1 << 1 | 1 << 19  # BADTRACE, PARTIALREJECT: the error speaks for them
    star = fake_files.Star(**{**STAR.__dict__, "mask": np.where(mask == 1 << 23, 1, STAR.mask)})
    found = one(tmp_path, fake_files.sdss_dr17(star, mask))
    check_star(found, star)
    assert (found.spectrum_id, found.mjd, found.ra, found.dec) == ("sdss:266-51630-5", 51630.0, 120.5, -3.25)
    found = one(tmp_path, fake_files.sdss_v(star, mask))
    check_star(found, star)
    assert (found.spectrum_id, found.ra) == ("sdss:15143-59205-27021597842679140", 120.5)


def test_older_and_newer_sdss(tmp_path: Path) -> None:
    found = one(tmp_path, fake_files.sdss_dr7(STAR))
    check_star(found, STAR)
    assert (found.spectrum_id, found.mjd) == ("sdss:266-51630-5", 51630.0)
    found = one(tmp_path, fake_files.mwm_star(STAR))
    check_star(found, STAR, rest_frame=False)
    assert (found.spectrum_id, found.mjd) == ("sdss:mwm-34-apo", 59866.0)


def test_a_quasar_stays_as_observed(tmp_path: Path) -> None:
    quasar = fake_files.Star(**{**STAR.__dict__, "z": 2.1})
    check_star(one(tmp_path, fake_files.sdss_dr17(quasar, NO_MASK)), quasar, rest_frame=False)
    unknown = fake_files.Star(**{**STAR.__dict__, "z": -9999.0})
    check_star(one(tmp_path, fake_files.lamost_dr5(unknown)), unknown, rest_frame=False)


@pytest.mark.parametrize(
    ("header", "separator", "scale"),
    [
        ("wavelength,flux,error", ",", 1.0),
        ("Wave;FLUX;Flux_Err", ";", 1.0),
        ("lambda\tflux\tsigma", "\t", 1.0),
        ("LAM flux e_flux", " ", 1.0),
        ("wavelength [nm],flux,err", ",", 0.1),
        ("# wave_nm flux unc", " ", 0.1),
        ("# telescope: X\n# spectral_axis(um) flux uncertainty\n# ----", " ", 1e-4),
        ("# no names", " ", 1.0),
    ],
)
def test_text(tmp_path: Path, header: str, separator: str, scale: float) -> None:
    wavelength, flux, error = columns()
    found = one(tmp_path, csv(header, wavelength * scale, flux, error, separator=separator), PLACE).spectrum
    np.testing.assert_allclose(found.wavelength, wavelength, rtol=1e-7)
    np.testing.assert_allclose(found.flux, flux, rtol=1e-6)
    np.testing.assert_array_equal(found.flux_error, error)


def test_text_with_a_header(tmp_path: Path) -> None:
    wavelength, flux, error = columns()
    text = "# RA: 12:00:00\n# Dec = -30:30:00\n# DATE-OBS: 2020-05-31T12:00:00Z\n# redshift: 0.0001\n# id: mine:7\n"
    found = one(tmp_path, csv(text + "wave_air,flux,ivar", wavelength, flux, error**-2.0))
    assert (found.spectrum_id, found.dec, found.mjd) == ("mine:7", -30.5, 59000.5)
    assert found.ra == pytest.approx(180.0)
    np.testing.assert_allclose(found.spectrum.wavelength, air_to_vacuum(wavelength) / 1.0001, rtol=1e-9)
    np.testing.assert_allclose(found.spectrum.flux_error, 2.0, rtol=1e-6)


def test_missing_values_and_errors_in_text(tmp_path: Path) -> None:
    wavelength, flux, error = columns()
    lines = csv("wave,flux,err", wavelength, flux, error).splitlines()
    lines[10] = f"{wavelength[9]},,"
    lines[11] = f"{wavelength[10]},nan,--"
    assert np.flatnonzero(np.isinf(one(tmp_path, "\n".join(lines), PLACE).spectrum.flux_error)).tolist() == [9, 10]
    found = one(tmp_path, csv("", wavelength, flux, separator=" "), PLACE)
    assert 0 < found.spectrum.flux_error[0] < 2
    assert found.spectrum_id == "file:it.dat"
    assert np.isnan(found.mjd)


def astropy_table() -> Table:
    wavelength, flux, error = columns()
    table = Table({"WAVE": wavelength / 10 * units.nm, "FLUX": flux * units.mJy, "ERR": error * units.mJy})
    table.meta = {"ra": 1.0, "dec": 2.0, "mjd": 59000.5, "airorvac": "air", "redshift": 1e-4}
    return table


def expected(tmp_path: Path) -> ObservedSpectrum:
    """What the formats that keep units and a header give, by way of text."""
    wavelength, flux, error = columns()
    overrides = Overrides(ra=1.0, dec=2.0, mjd=59000.5, redshift=1e-4, air=True, wavelength_unit="nm", flux_unit="mJy")
    text = "wave,flux,err\n" + "\n".join(f"{w!r},{f!r},{e!r}" for w, f, e in zip(
        (wavelength / 10).tolist(), flux.tolist(), error.tolist(), strict=True))  # fmt: skip
    return one(tmp_path, text, overrides)


def test_tables_of_all_formats_give_the_same(tmp_path: Path) -> None:
    table = astropy_table()
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    table.write(tmp_path / "t.fits", format="fits")
    votable = from_table(table)
    from astropy.io.votable.tree import Param

    for name, value in table.meta.items():
        kind = {"datatype": "char", "arraysize": "*"} if isinstance(value, str) else {"datatype": "double"}
        votable.get_first_table().params.append(Param(votable, name=name, value=value, **kind))
    votable.to_xml(str(tmp_path / "t.xml"))
    fields = [pa.field(n, pa.float64(), metadata={"unit": str(table[n].unit)}) for n in table.colnames]
    schema = pa.schema(fields, metadata={k: str(v) for k, v in table.meta.items()})
    pq.write_table(pa.table([np.asarray(table[n]) for n in table.colnames], schema=schema), tmp_path / "t.parquet")
    wanted = expected(tmp_path)
    for name in ("t.ecsv", "t.fits", "t.xml", "t.parquet"):
        [found] = read_spectra(tmp_path / name, Overrides(spectrum_id="file:it.dat"))
        assert same(found, wanted), name
    formats = {next(read_raw(tmp_path / n)).format for n in ("t.ecsv", "t.fits", "t.xml", "t.parquet")}
    assert formats == {"text", "FITS table", "VOTable", "Parquet"}


def test_several_spectra_in_one_table(tmp_path: Path) -> None:
    wavelength, flux, error = columns()
    n = len(wavelength)
    bad = np.ones(n)
    table = {
        "wavelength": [wavelength] * 3, "flux": [flux, bad, 2 * flux], "error": [error] * 3,
        "ra": [1.0, 2.0, 3.0], "dec": [0.0] * 3, "spectrum_id": ["a", "b", "c"],
        "survey": ["ztf"] * 3, "object_id": ["Z1", "Z2", "Z3"],
    }  # fmt: skip
    rows = {name: [list(v) if isinstance(v, np.ndarray) else v for v in values] for name, values in table.items()}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    hdu = fits.BinTableHDU.from_columns(
        [fits.Column(k, f"{n}D", array=np.array(table[k])) for k in ("wavelength", "flux", "error")]
        + [fits.Column(k, "D", array=np.array(table[k])) for k in ("ra", "dec")]
        + [fits.Column(k, "8A", array=np.array(table[k])) for k in ("spectrum_id", "survey", "object_id")]
    )
    (tmp_path / "t.fits").write_bytes(fake_files.to_bytes(fits.PrimaryHDU(), hdu))
    for name in ("t.parquet", "t.fits"):
        found: list[ObservedSpectrum] = []
        with pytest.raises(InputFileError, match=f"{name}: 1 of 3 spectra: b: its flux is the same"):
            found.extend(read_spectra(tmp_path / name))
        assert [(s.spectrum_id, s.ra, s.object_id) for s in found] == [("a", 1.0, "Z1"), ("c", 3.0, "Z3")]
    assert [r.spectrum_id for r in read_raw(tmp_path / "t.fits", Overrides(spectrum_id="x"))] == ["x", "x#2", "x#3"]


def image(**header: object) -> bytes:
    _, flux, _ = columns()
    primary = fits.PrimaryHDU(flux.astype(np.float32))
    for key, value in {"RA": 1.0, "DEC": 2.0, "MJD-OBS": 59000.5}.items():
        primary.header[key] = value
    for key, value in header.items():
        primary.header[key.replace("_", "-")] = value
    return fake_files.to_bytes(primary)


def test_images(tmp_path: Path) -> None:
    wavelength, flux, _ = columns()
    plain = one(tmp_path, image(CRVAL1=3800.0, CDELT1=1.5, CTYPE1="WAVE", CUNIT1="Angstrom"))
    np.testing.assert_allclose(plain.spectrum.wavelength, wavelength)
    np.testing.assert_allclose(plain.spectrum.flux, flux, rtol=1e-6)
    assert (plain.ra, plain.mjd) == (1.0, 59000.5)
    air = one(tmp_path, image(CRVAL1=380.0, CDELT1=0.15, CTYPE1="AWAV", CUNIT1="nm"))
    np.testing.assert_allclose(air.spectrum.wavelength, air_to_vacuum(wavelength))
    n = len(wavelength)
    log = one(tmp_path, image(CRVAL1=np.log10(3800.0), CDELT1=1e-4, CRPIX1=1, CTYPE1="LINEAR", DC_FLAG=1))
    np.testing.assert_allclose(log.spectrum.wavelength, 3800 * 10 ** (1e-4 * np.arange(n)))
    log = one(tmp_path, image(CRVAL1=3800.0, CDELT1=1.0, CTYPE1="WAVE-LOG"))
    np.testing.assert_allclose(log.spectrum.wavelength, 3800 * np.exp(np.arange(n) / 3800))


def test_bands_of_iraf(tmp_path: Path) -> None:
    _, flux, error = columns()
    primary = fits.PrimaryHDU(np.stack([flux, flux * 1.1, 0 * flux, error])[:, None].astype(np.float32))
    for key, value in {"CRVAL1": 3800.0, "CD1_1": 1.5, "BANDID1": "spectrum", "BANDID4": "sigma - optimal"}.items():
        primary.header[key] = value
    found = one(tmp_path, fake_files.to_bytes(primary), PLACE).spectrum
    np.testing.assert_array_equal(found.flux_error, error.astype(np.float32))


def test_eso_tables_say_that_they_are_in_air(tmp_path: Path) -> None:
    wavelength, flux, error = columns()
    n = len(wavelength)
    arrays = (("WAVE", wavelength), ("FLUX", flux), ("ERR", error))
    hdu = fits.BinTableHDU.from_columns([fits.Column(k, f"{n}D", array=v[None]) for k, v in arrays])
    hdu.header["TUCD1"], hdu.header["TUNIT1"] = "em.wl;obs.atmos", "angstrom"
    found = one(tmp_path, fake_files.to_bytes(fits.PrimaryHDU(), hdu), PLACE).spectrum
    np.testing.assert_allclose(found.wavelength, air_to_vacuum(wavelength))


def test_what_is_given_wins(tmp_path: Path) -> None:
    overrides = Overrides(
        ra=5.0, dec=6.0, redshift=0.0, survey="ztf", object_id="ZTF18abc", spectrum_id="mine", mjd=59000.0
    )
    found = one(tmp_path, fake_files.lamost_dr5(STAR), overrides)
    assert (found.ra, found.dec, found.survey, found.object_id) == (5.0, 6.0, "ztf", "ZTF18abc")
    assert (found.spectrum_id, found.mjd) == ("mine", 59000.0)
    assert found.spectrum.wavelength[0] == pytest.approx(3700.0, rel=3e-7)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "without a table"),
        (b"# only comments\n", "without a table"),
        (b"\x00\xff\xfe binary", "neither FITS"),
        (b"SIMPLE  =                    T / but no more", "cannot be read"),
        (b"PAR1 and no more", "cannot be read"),
        (b"<?xml version='1.0'?><VOTABLE>", "cannot be read"),
        (b"Obj\x01 and no more", "not a message of spectra"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "cut short"),
        (b"a,b\n1,2\n", "no column wavelength; the table has a, b"),
        (b"wave,b\n1,2\n", "no column flux"),
        (b"wave,flux\n1,2\n3\n", "a row of 1 values"),
        (b"wave,flux\n1,x\n3,4\n", "column flux is not of numbers"),
        (b"wave,flux\n1,2\n3,4\n", "2 pixels"),
        (fake_files.to_bytes(fits.PrimaryHDU()), "no columns of wavelength and flux"),
        (fake_files.to_bytes(fits.PrimaryHDU(np.ones((50, 60)))), "an image of 50 x 60 pixels"),
    ],
)  # fmt: skip
def test_unusable_files_are_refused_with_name_and_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(InputFileError, match=f"it.dat: .*{reason}"):
        one(tmp_path, data, PLACE)


def test_lamost_of_medium_resolution_is_refused(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"] = "LAMOST"
    data = fake_files.to_bytes(
        primary, fits.BinTableHDU.from_columns([fits.Column("FLUX", "E", array=[1.0])], name="COADD_B")
    )
    with pytest.raises(InputFileError, match="not LAMOST's low resolution: extensions COADD_B"):
        one(tmp_path, data)


def test_damaged_files_never_do_anything_else_than_fail(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wholes = [fake_files.lamost_dr5(STAR), fake_files.sdss_dr17(STAR, NO_MASK)]
    path = tmp_path / "f"
    for number in range(60):
        data = bytearray(wholes[number % 2])
        for _ in range(5):
            data[rng.integers(0, 6000)] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(3000, len(data))] if number % 3 == 0 else data)
        try:
            list(read_spectra(path))
        except InputFileError as error:
            assert str(path) in str(error)  # noqa: PT017
