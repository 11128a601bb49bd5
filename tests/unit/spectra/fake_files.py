"""Files of spectra as the surveys write them, from a made-up or a real spectrum."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Star:
    """What a survey would measure of a star."""

    wavelength: Array
    flux: Array
    ivar: Array
    mask: NDArray[np.int64]
    ra: float = 120.5
    dec: float = -3.25
    z: float = 3e-4


def made_up(step: float = 1e-4, seed: int = 0) -> Star:
    """3700 to 9100 Angstrom, log-linear, Halpha at rest in the star's frame, some pixels without data."""
    rng = np.random.default_rng(seed)
    wavelength = 10.0 ** np.arange(np.log10(3700.0), np.log10(9100.0), step)
    rest = wavelength / (1 + 3e-4)
    flux = 500 * (1 + 1e-4 * (rest - 6000)) * (1 - 0.6 * np.exp(-0.5 * ((rest - 6564.61) / 8) ** 2))
    flux += rng.normal(0, 5, len(flux))
    ivar = np.full(len(flux), 1 / 25.0)
    ivar[100:110] = 0
    mask = np.where(ivar > 0, 0, 1)
    return Star(wavelength, flux, ivar, mask)


def real(shared: Path, number: int) -> Star:
    """One of the real LAMOST spectra."""
    index = pq.read_table(shared / "data" / "lamost_index.parquet").slice(number, 1).to_pylist()[0]
    with np.load(shared / "data" / "lamost_spectra.npz") as data:
        part = slice(*data["offsets"][number : number + 2])
        columns = [np.asarray(data[name][part], np.float64) for name in ("wave", "flux", "ivar", "ormask")]
    return Star(*columns[:3], columns[3].astype(np.int64), index["ra"], index["dec"], index["z"])  # type: ignore[arg-type]


def to_bytes(*hdus: fits.PrimaryHDU) -> bytes:
    out = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(out)
    return out.getvalue()


def _lamost_header(star: Star, header: fits.Header) -> None:
    header["TELESCOP"] = "LAMOST"
    header["ORIGIN"] = "NAOC-LAMOST"
    header["OBSID"] = 101008
    header["DATE-OBS"] = "2011-10-24T12:32:00.0"
    header["MJD"] = 55858
    header["LMJD"] = 55859
    header["RA"], header["DEC"] = star.ra, star.dec
    header["HELIO"], header["VACUUM"] = True, True
    header["CLASS"], header["SUBCLASS"], header["Z"] = "STAR", "F5", star.z


def lamost_dr5(star: Star) -> bytes:
    rows = np.stack([star.flux, star.ivar, star.wavelength, star.mask, star.mask]).astype(np.float32)
    primary = fits.PrimaryHDU(rows)
    _lamost_header(star, primary.header)
    primary.header["COEFF0"], primary.header["COEFF1"] = float(np.log10(star.wavelength[0])), 1e-4
    primary.header["CRVAL1"], primary.header["CD1_1"] = float(np.log10(star.wavelength[0])), 1e-4
    primary.header["CRPIX1"], primary.header["CTYPE1"], primary.header["DC-FLAG"] = 1, "LINEAR", 1
    return to_bytes(primary)


def lamost_dr8(star: Star) -> bytes:
    primary = fits.PrimaryHDU()
    _lamost_header(star, primary.header)
    n = len(star.flux)
    arrays = {"FLUX": star.flux, "IVAR": star.ivar, "WAVELENGTH": star.wavelength}
    columns = [fits.Column(k, f"{n}E", array=v[None].astype(np.float32)) for k, v in arrays.items()]
    columns += [fits.Column(k, f"{n}E", array=star.mask[None].astype(np.float32)) for k in ("ANDMASK", "ORMASK")]
    columns.append(fits.Column("NORMALIZATION", f"{n}E", array=star.flux[None] / 500))
    return to_bytes(primary, fits.BinTableHDU.from_columns(columns, name="COADD"))


def _coadd(star: Star, and_mask: NDArray[np.int32]) -> fits.BinTableHDU:
    columns = [
        fits.Column("flux", "E", array=star.flux),
        fits.Column("loglam", "E", array=np.log10(star.wavelength)),
        fits.Column("ivar", "E", array=star.ivar),
        fits.Column("and_mask", "J", array=and_mask),
        fits.Column("or_mask", "J", array=and_mask | 1),
    ]
    return fits.BinTableHDU.from_columns(columns, name="COADD")


def sdss_dr17(star: Star, and_mask: NDArray[np.int32]) -> bytes:
    primary = fits.PrimaryHDU()
    for key, value in {"TELESCOP": "SDSS 2.5-M", "RA": 150.0, "DEC": 2.0, "PLATEID": 266, "FIBERID": 5}.items():
        primary.header[key] = value  # the plate's position, which is not the star's
    row = [
        fits.Column("PLATE", "J", array=[266]),
        fits.Column("MJD", "J", array=[51630]),
        fits.Column("FIBERID", "J", array=[5]),
        fits.Column("PLUG_RA", "D", array=[star.ra]),
        fits.Column("PLUG_DEC", "D", array=[star.dec]),
        fits.Column("Z", "E", array=[star.z]),
        fits.Column("MODELFLUX", "5E", array=np.ones((1, 5))),
    ]
    return to_bytes(primary, _coadd(star, and_mask), fits.BinTableHDU.from_columns(row, name="SPECOBJ"))


def sdss_v(star: Star, and_mask: NDArray[np.int32]) -> bytes:
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"], primary.header["VERS2D"] = "SDSS 2.5-M", "v6_1_3"
    row = [
        fits.Column("FIELD", "J", array=[15143]),
        fits.Column("MJD", "J", array=[59205]),
        fits.Column("CATALOGID", "25A", array=["27021597842679140"]),
        fits.Column("RACAT", "D", array=[star.ra]),
        fits.Column("DECCAT", "D", array=[star.dec]),
        fits.Column("Z", "E", array=[star.z]),
    ]
    return to_bytes(primary, _coadd(star, and_mask), fits.BinTableHDU.from_columns(row, name="SPALL"))


def sdss_dr7(star: Star) -> bytes:
    error = np.where(star.ivar > 0, 1 / np.sqrt(np.where(star.ivar > 0, star.ivar, 1)), 0)
    primary = fits.PrimaryHDU(np.stack([star.flux, star.flux, error, 0 * error, 0 * error]).astype(np.float32))
    for key, value in {
        "TELESCOP": "SDSS 2.5-M", "RAOBJ": star.ra, "DECOBJ": star.dec, "PLATEID": 266, "MJD": 51630, "FIBERID": 5,
        "Z": star.z, "COEFF0": float(np.log10(star.wavelength[0])), "COEFF1": 1e-4,
    }.items():  # fmt: skip
        primary.header[key] = value
    return to_bytes(primary)


def mwm_star(star: Star) -> bytes:
    primary = fits.PrimaryHDU()
    for key, value in {"V_ASTRA": "0.5.0", "SDSS_ID": 34, "RA": star.ra, "DEC": star.dec}.items():
        primary.header[key] = value
    n = len(star.flux)
    boss = fits.BinTableHDU.from_columns(
        [
            fits.Column("sdss_id", "K", array=[34]),
            fits.Column("max_mjd", "J", array=[59866]),
            *(
                fits.Column(name, f"{n}E", array=values[None])
                for name, values in (("wavelength", star.wavelength), ("flux", star.flux), ("ivar", star.ivar))
            ),
        ],
        name="BOSS/APO",
    )
    apogee = fits.BinTableHDU.from_columns([fits.Column("flux", "10E", array=np.ones((1, 10)))], name="APOGEE/APO")
    return to_bytes(primary, boss, apogee)
