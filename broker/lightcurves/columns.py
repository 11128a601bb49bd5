"""What the columns of a light-curve table are: names and bands as archives spell them, times, flags.

Names are compared without case, punctuation and what stands in brackets: ``Mag Error``, ``mag_error`` and
``MAGERROR [mag]`` are one. Spellings are those of ZTF's data releases (IRSA, HATS), ASAS-SN's Sky Patrol (v1, v2 and
its Python client), ATLAS's forced photometry, Catalina, OGLE, VizieR and of this project.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from broker.bands import BAND_CODE, BANDS
from broker.lightcurves.fluxes import find_pair
from broker.times import mjd_of_unix

Array = NDArray[np.float64]

NAME: Final = (
    "name", "object_id", "object", "obj_id", "oid", "star", "star_id", "star_name", "source_id", "source", "asas_sn_id",
    "asassn_id", "asassn_name", "dia_object_id", "css_id", "lc_id", "ps1_objid", "master_id", "target", "target_name",
    "tic", "tic_id", "kic", "epic", "id",
)  # fmt: skip
RA: Final = (
    "ra", "ra_deg", "raj2000", "ra_j2000", "_raj2000", "obj_ra", "ra_icrs", "mean_ra", "ra_mean", "radeg", "alpha",
    "ra_obj", "coord_ra",
)  # fmt: skip
DEC: Final = (
    "dec", "dec_deg", "dej2000", "decj2000", "dec_j2000", "_dej2000", "obj_dec", "de_icrs", "dec_icrs", "mean_dec",
    "dec_mean", "dedeg", "decl", "de", "delta", "dec_obj", "coord_dec",
)  # fmt: skip
TIME: Final = (
    "mjd", "hmjd", "bmjd", "mjd_obs", "obs_mjd", "midpoint_mjd_tai", "exp_midpt_mjd", "mjd_tai", "mjd_utc",
    "hjd", "bjd", "jd", "bjd_tdb", "obs_jd", "jd_obs", "julian_date", "rjd", "btjd", "bkjd", "time", "obs_time",
    "date_time", "t", "date_obs", "obs_date", "date",
)  # fmt: skip
MAGNITUDE: Final = (
    "mag", "vmag", "magnitude", "mag_psf", "psf_mag", "mag_v", "v_mag", "mag_ap", "mag_auto", "mag_autocorr",
    "magnitude_ab", "m",
)  # fmt: skip
ERROR: Final = (
    "mag_err", "vmag_err", "mag_error", "magnitude_error", "magnitude_err", "err_mag", "e_mag", "e_vmag", "sigma_psf",
    "sig_mag", "mag_sig", "mag_sigma", "sigma_mag", "mag_psf_err", "psf_mag_err", "mag_unc", "mag_uncertainty",
    "mag_auto_err", "mag_err_auto", "uncertainty", "uncertainty_mag", "uncert", "unc", "error", "dmag", "dm",
    "err", "sigma",
)  # fmt: skip
BAND: Final = (
    "band", "filter", "filter_code", "filter_id", "filter_name", "phot_filter", "fid", "filt", "passband", "bandpass",
    "f",
)  # fmt: skip

DEFAULT_BAND: Final = "asas:V"
NO_BAND: Final = 255
_BESSELL: Final = ("johnson:U", "johnson:B", "johnson:V", "cousins:R", "cousins:I")
_FILTER_NUMBERS: Final = {"1": "ztf:g", "2": "ztf:r", "3": "ztf:i"}
_BAND_NAMES: Final[Mapping[str, int]] = {
    **{band.split(":")[1]: code for code, band in reversed(list(enumerate(BANDS)))},
    **{band: code for code, band in enumerate(BANDS)},
    **{f"z{letter}": BAND_CODE[f"ztf:{letter}"] for letter in "gri"},
    **{number: BAND_CODE[band] for number, band in _FILTER_NUMBERS.items()},
    **{f"bessell:{band.split(':')[1]}": BAND_CODE[band] for band in _BESSELL},
    "cyan": BAND_CODE["atlas:c"], "orange": BAND_CODE["atlas:o"],
    # The AAVSO's: unfiltered on the scale of V or R, the colours of digital cameras, Sloan's.
    **{name: BAND_CODE[band] for name, band in (
        ("CV", "johnson:V"), ("TG", "johnson:V"), ("TB", "johnson:B"), ("CR", "cousins:R"), ("TR", "cousins:R"),
        ("SU", "sdss:u"), ("SG", "sdss:g"), ("SR", "sdss:r"), ("SI", "sdss:i"), ("SZ", "sdss:z"),
    )},
}  # fmt: skip
"""A bare name is the first survey's in BANDS that has such a band: ``V`` is asas:V, ``g``, ``r``, ``i`` are ZTF's."""
_SURVEYS: Final = {
    "atl": "atlas", "rubin": "lsst", "crts": "css", "sloan": "sdss", "panstarrs": "ps1", "ps": "ps1",
    "hip": "hipparcos",
}  # fmt: skip
_JOINED: Final = re.compile(
    f"(?i)({'|'.join(sorted({band.split(':')[0] for band in BANDS}, key=len, reverse=True))})([A-Za-z]{{1,2}})"
)
_ASASSN: Final = {"g": BAND_CODE["asassn:g"], "V": BAND_CODE["asassn:V"], "": BAND_CODE["asassn:V"]}
_LSST: Final = {letter: BAND_CODE[f"lsst:{letter}"] for letter in "ugrizy"}
_OF_RUBIN: Final = {"midpointmjdtai", "expmidptmjd", "diaobjectid", "forcedsourceid"}
"""Plain names of columns that only Rubin's tables have (https://sdm-schemas.lsst.io)."""
_OF_AAVSO: Final = {"jd", "hjd", "observercode"}

EPOCH_IN_NAME: Final = re.compile(r"24\d{5}(?:\.5)?")
_ISO: Final = r"^\s*\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"


def plain(name: str) -> str:
    """A name without case, punctuation and what stands in brackets."""
    return re.sub(r"[^a-z0-9]+", "", re.sub(r"[\[(].*?[\])]", "", name).lower())


def find(names: Sequence[str], spellings: Sequence[str]) -> str | None:
    """The column that is spelled in one of these ways, by their order; of a nested column the last part counts."""
    by_plain: dict[str, str] = {}
    for name in sorted(names, key=lambda name: "." in name):
        by_plain.setdefault(plain(name.rsplit(".", 1)[-1]), name)
    return next((by_plain[p] for spelling in spellings if (p := plain(spelling)) in by_plain), None)


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns in one table; None where it has none."""

    name: str | None
    ra: str | None
    dec: str | None
    time: str
    magnitude: str
    error: str
    band: str | None
    flag: str | None
    """One that tells which points are bad, see ``bad_points``."""
    camera: str | None
    """ASAS-SN's, which tells the filter where no column does."""
    bare: Mapping[str, int]
    """Codes of bands without a survey, where they are ASAS-SN's or Rubin's; of no band under an empty text."""
    unused: tuple[str, ...]
    flux: bool = False
    """Whether ``magnitude`` and ``error`` hold fluxes (``broker.lightcurves.fluxes``)."""
    ratio: bool = False
    """Whether ``error`` holds the flux over its error, as Gaia's ``flux_over_error`` beside magnitudes."""

    @staticmethod
    def of(names: Sequence[str], given: Mapping[str, str] | None = None) -> Columns:
        """Find them; raises ValueError, naming what is missing and what is there.

        ``given`` are columns by role (name, ra, dec, time, magnitude or flux, error, band) that need not be found.
        """
        given = given or {}
        nested = list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
        if len(nested) > 1:  # points are all of one nested column; forced photometry is more complete than detections
            for top in sorted(nested, key=lambda top: "forced" not in top.lower()):
                inside = [name for name in names if "." not in name or name.startswith(f"{top}.")]
                with suppress(ValueError):
                    return Columns.of(inside, given)
        each = [plain(name.rsplit(".", 1)[-1]) for name in names]
        plain_names = set(each)
        chosen = {role: find(names, spellings) for role, spellings in _ROLES.items()}
        for role, name in given.items():
            if name not in names:
                raise ValueError(f"no column {name} for the {role}; the table has {', '.join(names)[:500]}")
            chosen["magnitude" if role == "flux" else role] = name
        if chosen["time"] is None:  # HJD-2450000 and the like
            chosen["time"] = next((n for n in names if EPOCH_IN_NAME.search(n) and "jd" in n.lower()), None)
        if chosen["magnitude"] is not None and plain(chosen["magnitude"]) == "m" and "dm" not in plain_names:
            chosen["magnitude"] = None
        if chosen["band"] is not None and plain(chosen["band"]) == "f" and not plain_names & {"dm", "dujy"}:
            chosen["band"] = None
        if plain_names >= _OF_AAVSO and "time" not in given:  # its HJD is empty more often than not
            chosen["time"] = names[each.index("jd")]
        ratio, flux = False, "flux" in given
        if chosen["magnitude"] is not None and chosen["error"] is None and "fluxovererror" in plain_names:
            chosen["error"], ratio = names[each.index("fluxovererror")], True
        elif (chosen["magnitude"] is None or chosen["error"] is None) and not {"magnitude", "flux"} & given.keys():
            pair = find_pair(each)
            if pair is not None:
                chosen["magnitude"], chosen["error"], flux = names[pair[0]], names[pair[1]], True
        missing = [role for role in ("time", "magnitude", "error") if chosen[role] is None]
        if missing:
            wanted = "; ".join(
                f"no column for the {role} ({', '.join(_ROLES[role][:4])}, ...)"
                if role != "error"
                else f"no column for the error of the magnitude ({', '.join(_ROLES[role][:4])}, ...), nor one of fluxes"
                for role in missing
            )
            wanted_names = [plain(spelling) for role in missing for spelling in _ROLES[role]]
            near = [
                n for n, one in zip(names, each, strict=True) if difflib.get_close_matches(one, wanted_names, 1, 0.8)
            ]
            hint = f" (did you mean {', '.join(near)}? --column says which is what)" if near else ""
            raise ValueError(f"{wanted}; the table has {', '.join(names)[:500] or 'no columns'}{hint}")
        flag = next(
            (
                n
                for spelling in _FLAGS
                for n in names
                if plain(n.rsplit(".", 1)[-1]) == spelling and n != chosen["error"]
            ),
            None,
        )
        camera = find(names, ("camera",)) if chosen["band"] is None else None
        used = {*chosen.values(), flag, camera}
        asassn = "camera" in plain_names or any("asassn" in n for n in plain_names)
        return Columns(
            **chosen,  # type: ignore[arg-type]
            flag=flag,
            camera=camera,
            bare=_ASASSN if asassn else _LSST if plain_names & _OF_RUBIN else {},
            unused=tuple(name for name in names if name not in used),
            flux=flux,
            ratio=ratio,
        )

    def has_lists(self, schema: pa.Schema) -> bool:
        """Whether the times of a table with this schema are lists, one for each row."""
        top: Any = schema.field(self.time if self.time in schema.names else self.time.partition(".")[0]).type
        return bool(pa.types.is_nested(top))

    @property
    def all(self) -> list[str]:
        """The columns to read."""
        every = (self.name, self.ra, self.dec, self.time, self.magnitude, self.error, self.band, self.flag, self.camera)
        return list(dict.fromkeys(name for name in every if name is not None))


_ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "name": NAME, "ra": RA, "dec": DEC, "time": TIME, "magnitude": MAGNITUDE, "error": ERROR, "band": BAND,
}  # fmt: skip


def band_code(text: str | None, bare: Mapping[str, int]) -> int:
    """Index into BANDS of a band as a table spells it, NO_BAND where it is unknown; without any, DEFAULT_BAND.

    ``bare`` are codes of bands without a survey that go before all others, of no band under an empty text.
    """
    text = (text or "").strip().strip("'\"").strip()
    if text in bare:
        return bare[text]
    if not text:
        return BAND_CODE[DEFAULT_BAND]
    text = re.sub(r"^(\d+)\.0+$", r"\1", text)
    if text in _BAND_NAMES:
        return _BAND_NAMES[text]
    spaced = re.sub(r"[\s_\-./:]+", ":", re.sub("(?i)asas-sn", "asassn", re.sub("(?i)pan-starrs", "ps1", text)))
    survey, _, band = spaced.rpartition(":")
    if not survey and (match := _JOINED.fullmatch(text)):
        survey, band = match.groups()
    survey = survey.lower()
    return _BAND_NAMES.get(f"{_SURVEYS.get(survey, survey)}:{band}", NO_BAND)


def bad_points(name: str, values: pa.Array[Any]) -> NDArray[np.bool_]:
    """(m,) which points a flag column ``name``, one of _FLAGS, says are bad."""
    return _FLAGS[plain(name.rsplit(".", 1)[-1])](values)


def _has_bit(bit: int) -> Callable[[Any], NDArray[np.bool_]]:
    def bad(values: Any) -> NDArray[np.bool_]:
        number = np.nan_to_num(numbers(values))
        return np.asarray((np.clip(number, 0, 2**53).astype(np.int64) & bit) != 0)

    return bad


def _at_least(least: float) -> Callable[[Any], NDArray[np.bool_]]:
    return lambda values: np.nan_to_num(numbers(values)) >= least


def _is_one_of(*texts: str) -> Callable[[Any], NDArray[np.bool_]]:
    def bad(values: Any) -> NDArray[np.bool_]:
        lower: Any = pc.utf8_lower(pc.utf8_trim_whitespace(as_text(values)))
        return np.asarray(
            pc.fill_null(pc.is_in(lower, pa.array(texts)), False).to_numpy(zero_copy_only=False), np.bool_
        )

    return bad


def _either(*tests: Callable[[Any], NDArray[np.bool_]]) -> Callable[[Any], NDArray[np.bool_]]:
    return lambda values: np.any([test(values) for test in tests], axis=0)


_TRUE: Final = ("true", "t", "1", "1.0", "yes", "y")
# Of TESS and Kepler the bits that make a cadence useless: attitude tweaks, safe mode, coarse pointing, Earth in view,
# desaturation and the like (TESS Science Data Products Description, table 32; Kepler Archive Manual, table 2-3).
_FLAGS: Final[Mapping[str, Callable[[Any], NDArray[np.bool_]]]] = {
    "catflags": _has_bit(32768),  # ZTF: "should not be used" (ZSDS Explanatory Supplement, section 13.6)
    "infobitssci": _at_least(33554432),  # ZTF's forced photometry: calibration failed
    "quality": _either(_is_one_of("b", "bad"), _has_bit(17087)),  # ASAS-SN's Sky Patrol v2: G or B; TESS
    "sapquality": _has_bit(1130799),  # Kepler
    "psffluxflag": _is_one_of(*_TRUE),  # Rubin
    "grade": _is_one_of("d"),  # ASAS: "useless"
    "rejectedbyphotometry": _is_one_of(*_TRUE),  # Gaia
    "uplim": _is_one_of(*_TRUE, ">", "<"),
    "upperlimit": _is_one_of(*_TRUE, ">", "<"),
    "isupperlimit": _is_one_of(*_TRUE),
    "nondetection": _is_one_of(*_TRUE),
    "lmag": _is_one_of(">", "<"),  # VizieR's flag of a limit
    "lvmag": _is_one_of(">", "<"),
    "err": _at_least(1),  # ATLAS: an error in the reduction
}


def as_text(column: pa.Array[Any]) -> pa.Array[Any]:
    """A column of any type as text; whole floating-point numbers without a point."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()  # type: ignore[attr-defined]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def is_text(column: pa.Array[Any]) -> bool:
    """Whether a column holds text."""
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


_NUMBER: Final = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?\s*$"


def numbers(column: pa.Array[Any], decimal_comma: bool = False) -> Array:
    """(n,) values as numbers, NaN where there is none; ArrowInvalid for a column of truth values."""
    if pa.types.is_boolean(column.type):
        raise pa.ArrowInvalid("truth values where numbers should be")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()  # type: ignore[attr-defined]
    if is_text(column):
        text: Any = pc.utf8_trim_whitespace(column)
        if decimal_comma:
            text = pc.replace_substring(text, ",", ".")
        text = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, None)
        column = pc.replace_substring_regex(text, "[dD]", "e")
    found: Any = pc.fill_null(column.cast(pa.float64()), pa.scalar(np.nan))
    return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)


def times(column: pa.Array[Any], decimal_comma: bool = False) -> Array:
    """(n,) times as they stand in a table; dates (ISO 8601, timestamps; UTC) as MJD."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        micros: Any = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
        return mjd_of_unix(numbers(micros) / 1e6)
    found = numbers(column, decimal_comma)
    if is_text(column) and np.isnan(found).any():
        dates: Any = pc.if_else(pc.match_substring_regex(column, _ISO), column, None)
        if dates.null_count < len(dates):
            try:
                dates = pc.utf8_trim_whitespace(dates).cast(pa.timestamp("us")).cast(pa.int64())
            except pa.ArrowInvalid:  # one that only looks like a date
                return found
            found = np.where(np.isnan(found), mjd_of_unix(numbers(dates) / 1e6), found)
    return found
