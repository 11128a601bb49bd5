"""Spectra in FITS: LAMOST, SDSS, tables and one-dimensional images.

Layouts: LAMOST, "Data Production Description" of each release (www.lamost.org); SDSS, the data model of ``spec`` and
``spSpec`` files (data.sdss.org/datamodel, classic.sdss.org/dr7/dm/flatFiles/spSpec.php); wavelengths of images,
Greisen et al. 2006, A&A 446, 747, and IRAF's DC-FLAG.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from broker.spectra.normalise import MAX_PIXELS, RawSpectrum, UnusableSpectrumError, error_of_ivar
from broker.spectra.tables import Column, Table, described, is_air, redshift_of, spectra, time_of

Array = NDArray[np.float64]

SDSS_BRIGHTSKY: Final = 1 << 23
"""SPPIXMASK: the sky is so bright that the flux is not to be trusted. Pixels with the other serious conditions have
the inverse variance 0 already (https://www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php)."""
SDSS_UNIT: Final = "1e-17 erg/s/cm2/Angstrom"
_ROWS: Final = 5
"""Of the primary image of LAMOST's files up to DR7, and of SDSS's up to DR7."""


def read_fits(data: bytes) -> list[RawSpectrum]:
    """All spectra of a FITS file; raises UnusableSpectrumError where it has none of a known layout."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of headers that are not quite to the standard but can be read
        with fits.open(io.BytesIO(data), memmap=False) as file:
            return list(_read(file))


def _read(file: Any) -> Iterator[RawSpectrum]:
    primary = file[0]
    maker = " ".join(str(primary.header.get(key, "")) for key in ("TELESCOP", "ORIGIN")).upper()
    layers = primary.data.shape[0] if primary.data is not None and primary.data.ndim == 2 else 0
    if "LAMOST" in maker:
        yield _lamost(file, layers)
    elif "V_ASTRA" in primary.header and "SDSS_ID" in primary.header:
        yield from _mwm_star(file)
    elif len(file) > 1 and {"flux", "loglam", "ivar"} <= _names(file[1]):
        yield _sdss(file)
    elif layers == _ROWS and "COEFF0" in primary.header and "RAOBJ" in primary.header:
        yield _sdss_old(primary)
    else:
        found = [Table(_columns(hdu), _header(file, hdu)) for hdu in file[1:] if _is_spectrum(hdu)]
        if found:
            for table in found:
                yield from spectra(table, "FITS table")
        elif primary.data is not None:
            yield _image(primary)
        else:
            names = "; ".join(
                f"{hdu.name or number}: {', '.join(sorted(_names(hdu)))}" for number, hdu in enumerate(file)
            )
            raise UnusableSpectrumError(f"no columns of wavelength and flux, and no image ({names[:300]})")


def _lamost(file: Any, layers: int) -> RawSpectrum:
    """DR1 to DR7 have five rows in the primary image, DR8 and later one row of arrays in the extension COADD."""
    header = file[0].header
    if layers == _ROWS:
        flux, ivar, wavelength, and_mask = np.asarray(file[0].data[:4], np.float64)
    elif "COADD" in file and {"flux", "ivar", "wavelength", "andmask"} <= _names(file["COADD"]):
        row = file["COADD"].data
        flux, ivar, wavelength, and_mask = (
            np.asarray(row[name], np.float64).ravel() for name in ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK")
        )
    else:
        extensions = ", ".join(hdu.name for hdu in file[1:]) or "none"
        raise UnusableSpectrumError(f"not LAMOST's low resolution: extensions {extensions}")
    values = {key.lower(): value for key, value in header.items()}
    # MJD is the whole day; DATE-OBS the median of the observation, in UTC.
    mjd = time_of({"date-obs": values.get("date-obs", "")})
    return RawSpectrum(
        wavelength=wavelength,
        flux=flux,
        error=error_of_ivar(ivar),
        # One of six problems (dead pixel, extraction, no sky, ...) in every exposure.
        bad=and_mask != 0,
        air=is_air(None, values),
        redshift=redshift_of(values.get("z")),
        ra=float(values.get("ra", np.nan)),
        dec=float(values.get("dec", np.nan)),
        mjd=mjd if np.isfinite(mjd) else time_of(values),
        spectrum_id=f"lamost:{values['obsid']}" if values.get("obsid") else "",
        format="LAMOST",
    )


def _sdss(file: Any) -> RawSpectrum:
    """``spec-PLATE-MJD-FIBER`` of DR8 to DR17, and ``spec-FIELD-MJD-CATALOGID`` of SDSS-V, which differ in names."""
    table = file[1].data
    values = {key.lower(): value for key, value in file[0].header.items()}
    if len(file) > 2 and len(file[2].data):
        values |= {name: file[2].data[name][0] for name in _names(file[2]) if np.ndim(file[2].data[name][0]) == 0}
    masks = [name for name in ("and_mask", "mask") if name in _names(file[1])]
    # RA and DEC of the primary header are those of the plate.
    ra, dec = (
        float(next((values[k] for k in names if k in values), np.nan))
        for names in (("plug_ra", "racat", "fiber_ra"), ("plug_dec", "deccat", "fiber_dec"))
    )
    return RawSpectrum(
        wavelength=10.0 ** np.asarray(table["loglam"], np.float64),
        flux=np.asarray(table["flux"], np.float64),
        error=error_of_ivar(np.asarray(table["ivar"], np.float64)),
        bad=(np.asarray(table[masks[0]]).astype(np.int64) & SDSS_BRIGHTSKY) != 0 if masks else None,
        flux_unit=SDSS_UNIT,
        redshift=redshift_of(values.get("z")),
        mjd=time_of({"mjd": values.get("mjd")}),
        spectrum_id=_sdss_id(values),
        ra=ra,
        dec=dec,
        format="SDSS",
    )


def _sdss_id(values: Mapping[str, Any]) -> str:
    plate = next((values[k] for k in ("field", "plate", "plateid", "fieldid") if k in values), None)
    fiber = next((values[k] for k in ("catalogid", "fiberid") if k in values), None)
    if plate is None or fiber is None or "mjd" not in values:
        return ""
    return f"sdss:{plate}-{int(values['mjd'])}-{fiber}".replace(" ", "")


def _sdss_old(primary: Any) -> RawSpectrum:
    """``spSpec`` of DR1 to DR7: flux, flux less continuum, error, mask, ... in rows, wavelengths as COEFF0 and 1."""
    header = primary.header
    flux, _, noise, mask = np.asarray(primary.data[:4], np.float64)
    return RawSpectrum(
        wavelength=10.0 ** (header["COEFF0"] + header["COEFF1"] * np.arange(len(flux))),
        flux=flux,
        error=noise,
        bad=(mask.astype(np.int64) & SDSS_BRIGHTSKY) != 0,
        flux_unit=SDSS_UNIT,
        redshift=redshift_of(header.get("Z")),
        ra=float(header["RAOBJ"]),
        dec=float(header["DECOBJ"]),
        mjd=time_of({"mjd": header.get("MJD")}),
        spectrum_id=_sdss_id({key.lower(): value for key, value in header.items()}),
        format="SDSS spSpec",
    )


def _mwm_star(file: Any) -> Iterator[RawSpectrum]:
    """``mwmStar`` of SDSS-V: one extension an instrument and observatory; BOSS's, which are in the star's frame."""
    header = file[0].header
    found = False
    for hdu in file[1:]:
        if hdu.name.upper().startswith("BOSS") and {"wavelength", "flux", "ivar"} <= _names(hdu) and len(hdu.data):
            found = True
            row = hdu.data[0]
            yield RawSpectrum(
                wavelength=np.asarray(row["wavelength"], np.float64).ravel(),
                flux=np.asarray(row["flux"], np.float64).ravel(),
                error=error_of_ivar(np.asarray(row["ivar"], np.float64).ravel()),
                flux_unit=SDSS_UNIT,
                ra=float(header.get("RA", np.nan)),
                dec=float(header.get("DEC", np.nan)),
                mjd=time_of({"mjd": row["max_mjd"]}) if "max_mjd" in _names(hdu) else np.nan,
                spectrum_id=f"sdss:mwm-{header['SDSS_ID']}-{hdu.name.rpartition('/')[2].lower()}",
                format="SDSS mwmStar",
            )
    if not found:
        raise UnusableSpectrumError("no BOSS spectrum with wavelengths (APOGEE's infrared is not used, nor mwmVisit)")


def _image(primary: Any) -> RawSpectrum:
    """A spectrum as an image of one row, or of several bands as IRAF's ``onedspec`` writes them."""
    header = primary.header
    image = np.asarray(primary.data, np.float64)
    bands = image.reshape(-1, image.shape[-1]) if image.size else image
    one_object = image.ndim == 1 or (image.ndim == 2 and len(bands) == 1) or (image.ndim == 3 and image.shape[1] == 1)
    if not one_object or "CRVAL1" not in header or image.shape[-1] > MAX_PIXELS:
        shape = " x ".join(map(str, image.shape))
        raise UnusableSpectrumError(f"an image of {shape} pixels is not one spectrum with wavelengths in its header")
    step = header.get("CD1_1", header.get("CDELT1", 1.0))
    pixel = np.arange(image.shape[-1]) + 1.0 - header.get("CRPIX1", 1.0)
    first, kind = float(header["CRVAL1"]), str(header.get("CTYPE1", "")).strip().upper()
    if kind.endswith("-LOG"):
        wavelength = first * np.exp(step * pixel / first)
    elif header.get("DC-FLAG", 0) == 1 or (first < 10 and "CUNIT1" not in header):
        wavelength = 10.0 ** (first + step * pixel)
    else:
        wavelength = first + step * pixel
    values = {key.lower(): value for key, value in header.items()}
    sigma = [n for n in range(len(bands)) if "sigma" in str(header.get(f"BANDID{n + 1}", "")).lower()]
    return RawSpectrum(
        wavelength=wavelength,
        flux=bands[0],
        error=bands[sigma[0]] if sigma else None,
        wavelength_unit=str(header.get("CUNIT1", "")).strip() or "Angstrom",
        flux_unit=str(header.get("BUNIT", "")).strip() or None,
        air=is_air(None, values),
        format="FITS image",
        **described(values),
    )


def _is_spectrum(hdu: Any) -> bool:
    try:
        next(spectra(Table(_columns(hdu)), ""), None)
    except UnusableSpectrumError:
        return False
    return True


def _columns(hdu: Any) -> list[Column]:
    if not isinstance(hdu, fits.BinTableHDU | fits.TableHDU) or hdu.data is None:
        return []
    return [
        Column(c.name, hdu.data[c.name], c.unit or None, str(hdu.header.get(f"TUCD{number}", "")))
        for number, c in enumerate(hdu.columns, 1)
    ]


def _header(file: Any, hdu: Any) -> dict[str, Any]:
    return {key.lower(): value for source in (file[0], hdu) for key, value in source.header.items()}


def _names(hdu: Any) -> set[str]:
    return {name.lower() for name in hdu.columns.names} if isinstance(hdu, fits.BinTableHDU) else set()
