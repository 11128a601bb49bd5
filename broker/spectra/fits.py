"""Spectra in FITS: LAMOST, SDSS, DESI, IRAF, tables and one-dimensional images.

Layouts: LAMOST, "Data Production Description" of each release (www.lamost.org); SDSS, the data model of ``spec`` and
``spSpec`` files (data.sdss.org/datamodel, classic.sdss.org/dr7/dm/flatFiles/spSpec.php); DESI, the data model of
``coadd``, ``spectra`` and ``frame`` files (desidatamodel.readthedocs.io); wavelengths of images, Greisen et al. 2006,
A&A 446, 747, and ``iraf.py``.

``broker.tables.fits`` reads one extension as a table of rows. A spectrum is more often an image, whose wavelengths are
in its header, or several extensions that belong together, with units, masks and the object in others still: so files
are opened whole here, within ``MAX_FILE_BYTES``.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from broker.spectra import iraf
from broker.spectra.normalise import MAX_PIXELS, MIN_PIXELS, RawSpectrum, UnusableSpectrumError, error_of_ivar
from broker.spectra.tables import SpectrumColumn, SpectrumTable, described, is_air, redshift_of, spectra, time_of
from broker.tables.fits import check_fits

Array = NDArray[np.float64]

SDSS_BRIGHTSKY: Final = 1 << 23
"""SPPIXMASK: the sky is so bright that the flux is not to be trusted. Pixels with the other serious conditions have
the inverse variance 0 already (https://www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php)."""
SDSS_UNIT: Final = "1e-17 erg/s/cm2/Angstrom"
_ROWS: Final = 5
"""Of the primary image of LAMOST's files up to DR7, and of SDSS's up to DR7."""
_MOST_PIXELS: Final = 100_000_000
"""Of one image: DESI's files of 500 spectra have 15 million in their largest."""
_MOST_IN_AN_IMAGE: Final = 5000
_ARM: Final = re.compile(r"(?:(.*?)_)?WAVELENGTH")
_UNITS_OF_FLUX: Final = "1e-17 erg/s/cm2/Angstrom"


def read_fits(data: bytes) -> Iterator[RawSpectrum]:
    """All spectra of a FITS file; raises UnusableSpectrumError where it has none of a known layout, and what
    ``check_fits`` raises for one that claims more than it has."""
    file = io.BytesIO(data)
    check_fits(file, _MOST_PIXELS)
    file.seek(0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of headers that are not quite to the standard but can be read
        hdus = fits.open(file, memmap=False, disable_image_compression=True)
    with hdus:
        found = _read(hdus)
        while True:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                raw = next(found, None)
            if raw is None:
                return
            yield raw


def _read(file: Any) -> Iterator[RawSpectrum]:
    primary = file[0]
    maker = " ".join(str(primary.header.get(key, "")) for key in ("TELESCOP", "ORIGIN")).upper()
    layers = primary.shape[0] if len(primary.shape) == 2 else 0
    arms = _arms(file)
    if "LAMOST" in maker:
        yield _lamost(file, layers)
    elif "V_ASTRA" in primary.header and "SDSS_ID" in primary.header:
        yield from _mwm_star(file)
    elif len(file) > 1 and {"flux", "loglam", "ivar"} <= _names(file[1]):
        yield _sdss(file)
    elif layers == _ROWS and "COEFF0" in primary.header and "RAOBJ" in primary.header:
        yield _sdss_old(primary)
    elif arms:
        yield from _desi(file, arms)
    else:
        found = [SpectrumTable(_columns(hdu), _header(file, hdu)) for hdu in file[1:] if _is_spectrum(hdu)]
        if found:
            for table in found:
                yield from spectra(table, "FITS table")
        elif primary.shape:
            yield from _images(primary)
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


def _arms(file: Any) -> list[str]:
    """Prefixes of the extensions that hold wavelengths, fluxes and inverse variances: B_, R_, Z_, BRZ_ or none."""
    names = {str(hdu.name).upper() for hdu in file}
    prefixes = (f"{match[1]}_" if match[1] else "" for name in names if (match := _ARM.fullmatch(name)))
    return sorted(prefix for prefix in prefixes if {f"{prefix}FLUX", f"{prefix}IVAR"} <= names)


def _desi(file: Any, arms: list[str]) -> Iterator[RawSpectrum]:
    """DESI's spectra, one a row of FIBERMAP, each from its arms; where two overlap each has its half.

    ``coadd`` has a row for each target, ``spectra`` one for each exposure of it, ``cframe`` the fibres of one camera.
    Fibres on the sky are left out. Wavelengths are in vacuum, of the solar system's barycentre.
    """
    layers: dict[str, list[Any]] = {}
    counts: set[int] = set()
    for arm in arms:
        wavelength = np.asarray(file[f"{arm}WAVELENGTH"].data, np.float64)
        mask = file[f"{arm}MASK"].data if f"{arm}MASK" in file else None
        flux, ivar = file[f"{arm}FLUX"].data, file[f"{arm}IVAR"].data
        shape = flux.shape[-1:]
        if wavelength.shape[-1:] != shape or any(x is not None and x.shape != flux.shape for x in (ivar, mask)):
            raise UnusableSpectrumError(f"{arm}WAVELENGTH, FLUX, IVAR and MASK are not of one size")
        # One grid for all, or one a spectrum.
        layers[arm] = [
            None if x is None else np.asarray(x).reshape(-1, *shape)
            for x in (np.broadcast_to(wavelength, flux.shape), flux, ivar, mask)
        ]
        counts.add(flux.size // max(flux.shape[-1], 1))
    if len(counts) != 1:
        raise UnusableSpectrumError(f"arms {', '.join(arms)} have different numbers of spectra")
    (count,) = counts
    header = {key.lower(): value for key, value in file[0].header.items()}
    targets = file["FIBERMAP"].data if "FIBERMAP" in file else None
    if targets is not None and len(targets) != count:
        raise UnusableSpectrumError(f"{count} spectra, but {len(targets)} rows in FIBERMAP")
    named = {} if targets is None else {name.lower(): name for name in targets.names}
    several = targets is not None and "targetid" in named and len(np.unique(targets[named["targetid"]])) < count
    unit = str(file[f"{arms[0]}WAVELENGTH"].header.get("BUNIT", "")).strip() or "Angstrom"
    flux_unit = str(file[f"{arms[0]}FLUX"].header.get("BUNIT", "")).strip() or _UNITS_OF_FLUX
    for row in range(count):
        about = {key: targets[name][row] for key, name in named.items()} if targets is not None else {}
        if str(about.get("objtype", "TGT")).strip().upper() == "SKY":
            continue
        parts = [[None if x is None else x[row] for x in layers[arm]] for arm in arms]
        wavelength, flux, ivar, mask = _joined(parts)
        place = {name: about[f"target_{name}"] for name in ("ra", "dec") if f"target_{name}" in about}
        times = {"mjd": next((about[k] for k in ("mean_mjd", "mjd", "min_mjd") if k in about), header.get("mjd-obs"))}
        exposure = f"-{about['expid']}" if several and "expid" in about else ""
        yield RawSpectrum(
            wavelength=wavelength,
            flux=flux,
            error=error_of_ivar(ivar),
            bad=mask != 0,
            wavelength_unit=unit,
            flux_unit=flux_unit,
            ra=float(place.get("ra", np.nan)),
            dec=float(place.get("dec", np.nan)),
            mjd=time_of(times),
            spectrum_id=f"desi:{about['targetid']}{exposure}" if "targetid" in about else "",
            format=f"DESI, arms {' '.join(arm.strip('_') for arm in arms)}" if all(arms) else "DESI",
        )


def _joined(parts: Sequence[Sequence[Any]]) -> tuple[Array, Array, Array, Array]:
    """Arms of one spectrum, each up to the middle of what it shares with the next: pixels do not interleave."""
    parts = sorted(parts, key=lambda part: float(np.nanmedian(part[0])))
    found: list[list[Array]] = []
    for number, part in enumerate(parts):
        wavelength: Array = part[0]
        columns = [np.zeros(len(wavelength)) if x is None else np.asarray(x, np.float64) for x in part]
        use = np.ones(len(wavelength), np.bool_)
        if number:
            use &= wavelength >= _middle(parts[number - 1][0], wavelength)
        if number + 1 < len(parts):
            use &= wavelength < _middle(wavelength, parts[number + 1][0])
        found.append([column[use] for column in columns])
    whole = [np.concatenate(columns) for columns in zip(*found, strict=True)]
    return whole[0], whole[1], whole[2], whole[3]


def _middle(blue: Array, red: Array) -> float:
    """Where the bluer of two arms ends and the redder begins: half way through what they share, or the gap.

    A quarter of a pixel off, so that where both have the same pixels none is at the border and lost by rounding.
    """
    return float(np.nanmax(blue) + np.nanmin(red)) / 2.0 + 0.25 * float(np.nanmedian(np.diff(blue)))


def _images(primary: Any) -> Iterator[RawSpectrum]:
    """Spectra in an image: one in one row, IRAF's apertures and bands, or a row of wavelengths above one of flux."""
    header, shape = primary.header, primary.shape
    # IRAF: pixels, apertures, bands.
    apertures, pixels = (shape[-2] if len(shape) > 1 else 1), shape[-1]
    cards = iraf.attributes(header)
    described_by_iraf = cards.get("wtype") == "multispec" or cards.get("system") in ("multispec", "equispec")
    usable = 0 < pixels <= MAX_PIXELS and len(shape) <= 3 and 0 < apertures <= _MOST_IN_AN_IMAGE
    if not usable or not (described_by_iraf or apertures == 1 or _is_wavelength_row(primary)):
        raise UnusableSpectrumError(
            f"an image of {' x '.join(map(str, shape))} pixels is not one spectrum with wavelengths in its header, nor "
            "rows of IRAF's (multispec, equispec), nor a row of wavelengths above one of flux (and one of errors)"
        )
    image = np.asarray(primary.data, np.float64).reshape(-1, apertures, pixels)
    values = {key.lower(): value for key, value in header.items()}
    if not described_by_iraf and apertures > 1:
        rows = image[0]
        yield RawSpectrum(
            wavelength=rows[0],
            flux=rows[1],
            error=rows[2] if apertures == 3 else None,
            flux_unit=str(header.get("BUNIT", "")).strip() or None,
            air=is_air(None, values),
            format="FITS image, wavelengths in row 0",
            **described(values),
        )
        return
    sigma = [n for n in range(len(image)) if "sigma" in str(header.get(f"BANDID{n + 1}", "")).lower()]
    about = described(values)
    if apertures > 1:
        # What the header says of one object is not true of all: the telescope's position, and a name.
        about = {key: value for key, value in about.items() if key in ("mjd",)}
    for number in range(apertures):
        unit, name = str(header.get("CUNIT1", "")).strip() or cards.get("units"), "FITS image"
        if cards.get("wtype") == "multispec" or f"spec{number + 1}" in cards:
            wavelength, aperture = iraf.dispersion(cards, number + 1, pixels, header)
            name = f"IRAF multispec, aperture {aperture}"
        elif described_by_iraf:
            wavelength, name = _linear(header, pixels), f"IRAF equispec, aperture {number + 1}"
        else:
            wavelength = _linear(header, pixels)
        yield RawSpectrum(
            wavelength=wavelength,
            flux=image[0, number],
            error=image[sigma[0], number] if sigma else None,
            wavelength_unit=unit or "Angstrom",
            flux_unit=str(header.get("BUNIT", "")).strip() or None,
            air=is_air(None, values),
            format=name,
            **about,
        )


def _linear(header: Any, pixels: int) -> Array:
    """Wavelengths (pixels,) of one axis: linear, logarithmic, or IRAF's decadic logarithm."""
    if "CRVAL1" not in header:
        raise UnusableSpectrumError(f"an image of {pixels} pixels without wavelengths in its header (CRVAL1)")
    step = float(header.get("CD1_1", header.get("CDELT1", 1.0)))
    pixel = np.arange(pixels) + 1.0 - float(header.get("CRPIX1", 1.0))
    first, kind = float(header["CRVAL1"]), str(header.get("CTYPE1", "")).strip().upper()
    if kind.endswith("-LOG"):
        return np.asarray(first * np.exp(step * pixel / first), np.float64)
    if header.get("DC-FLAG", 0) == 1 or (first < 10 and "CUNIT1" not in header):
        return np.asarray(10.0 ** (first + step * pixel), np.float64)
    return np.asarray(first + step * pixel, np.float64)


def _is_wavelength_row(primary: Any) -> bool:
    """Whether a header that says nothing of wavelengths has an image whose first row can be nothing else.

    Of 100 numbers and more that all rise or all fall, and are of the size of optical wavelengths; the third of three
    rows has to be one of errors.
    """
    if len(primary.shape) != 2 or primary.shape[0] not in (2, 3) or "CRVAL1" in primary.header:
        return False
    rows = np.asarray(primary.data, np.float64)
    step = np.diff(rows[0])
    risen = len(step) >= MIN_PIXELS - 1 and bool((step > 0).all() or (step < 0).all())
    if not risen or not (rows[0] > 0).all() or (np.diff(rows[1]) > 0).all():
        return False
    return len(rows) == 2 or bool((rows[2] >= 0).all() and np.nanmedian(rows[2]) < np.nanmedian(np.abs(rows[1])))


def _is_spectrum(hdu: Any) -> bool:
    try:
        next(spectra(SpectrumTable(_columns(hdu)), ""), None)
    except UnusableSpectrumError:
        return False
    return True


def _columns(hdu: Any) -> list[SpectrumColumn]:
    if not isinstance(hdu, fits.BinTableHDU | fits.TableHDU) or hdu.data is None:
        return []
    return [
        SpectrumColumn(c.name, hdu.data[c.name], c.unit or None, str(hdu.header.get(f"TUCD{number}", "")))
        for number, c in enumerate(hdu.columns, 1)
    ]


def _header(file: Any, hdu: Any) -> dict[str, Any]:
    return {key.lower(): value for source in (file[0], hdu) for key, value in source.header.items()}


def _names(hdu: Any) -> set[str]:
    return {name.lower() for name in hdu.columns.names} if isinstance(hdu, fits.BinTableHDU) else set()
