"""What the columns of a light-curve table are: names and bands as archives spell them, times, flags.

Names are compared without case, punctuation and what stands in brackets: ``Mag Error``, ``mag_error`` and
``MAGERROR [mag]`` are one. Spellings are those of ZTF's data releases (IRSA, HATS), ASAS-SN's Sky Patrol (v1, v2 and
its Python client), ATLAS's forced photometry, Catalina, OGLE, VizieR and of this project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from broker.bands import BAND_CODE, BANDS
from broker.records import TimeSystem
from broker.times import JD_OF_MJD_0, TAI_MINUS_UTC, mjd_of_unix

Array = NDArray[np.float64]

NAME: Final = (
    "name", "object_id", "object", "obj_id", "oid", "star", "star_id", "star_name", "source_id", "source", "asas_sn_id",
    "asassn_id", "asassn_name", "dia_object_id", "css_id", "lc_id", "ps1_objid", "master_id", "target", "target_name",
    "tic", "tic_id", "kic", "epic", "id",
)  # fmt: skip
RA: Final = (
    "ra", "ra_deg", "raj2000", "ra_j2000", "_raj2000", "obj_ra", "ra_icrs", "mean_ra", "ra_mean", "radeg", "alpha",
)  # fmt: skip
DEC: Final = (
    "dec", "dec_deg", "dej2000", "decj2000", "dec_j2000", "_dej2000", "obj_dec", "de_icrs", "dec_icrs", "mean_dec",
    "dec_mean", "dedeg", "decl", "de", "delta",
)  # fmt: skip
TIME: Final = (
    "mjd", "hmjd", "bmjd", "mjd_obs", "obs_mjd", "midpoint_mjd_tai", "exp_midpt_mjd", "mjd_tai", "mjd_utc",
    "hjd", "bjd", "jd", "bjd_tdb", "obs_jd", "jd_obs", "julian_date", "rjd", "btjd", "bkjd", "time", "obs_time",
    "date_time", "t",
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
}  # fmt: skip
"""A bare name is the first survey's in BANDS that has such a band: ``V`` is asas:V, ``g``, ``r``, ``i`` are ZTF's."""
_SURVEYS: Final = {
    "atl": "atlas", "rubin": "lsst", "crts": "css", "sloan": "sdss", "panstarrs": "ps1", "ps": "ps1",
    "hip": "hipparcos",
}  # fmt: skip
_JOINED: Final = re.compile(
    f"(?i)({'|'.join(sorted({band.split(':')[0] for band in BANDS}, key=len, reverse=True))})([A-Za-z]{{1,2}})"
)
_ASASSN: Final = {"g": BAND_CODE["asassn:g"], "V": BAND_CODE["asassn:V"]}

EARLIEST_MJD: Final = 15_000.0
"""December 1899: earlier photometry is not digital, and most smaller numbers are days since some other epoch."""
_EPOCHS: Final = {"btjd": 2_457_000.0, "bkjd": 2_454_833.0, "rjd": 2_400_000.0}
_TAI: Final = ("expmidptmjd",)
"""Times of TAI whose names do not say so: those of Rubin's data previews (https://sdm-schemas.lsst.io)."""
_EPOCH_IN_NAME: Final = re.compile(r"24\d{5}(?:\.5)?")
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
    asassn: bool
    """Whether bare bands are ASAS-SN's."""
    unused: tuple[str, ...]

    @staticmethod
    def of(names: Sequence[str], given: Mapping[str, str] | None = None) -> Columns:
        """Find them; raises ValueError, naming what is missing and what is there.

        ``given`` are columns by role (name, ra, dec, time, magnitude, error, band) that need not be found.
        """
        plain_names = {plain(name.rsplit(".", 1)[-1]) for name in names}
        chosen = {role: find(names, spellings) for role, spellings in _ROLES.items()}
        for role, name in (given or {}).items():
            if name not in names:
                raise ValueError(f"no column {name} for the {role}; the table has {', '.join(names)[:500]}")
            chosen[role] = name
        if chosen["time"] is None:  # HJD-2450000 and the like
            chosen["time"] = next((n for n in names if _EPOCH_IN_NAME.search(n) and "jd" in n.lower()), None)
        if chosen["magnitude"] is not None and plain(chosen["magnitude"]) == "m" and "dm" not in plain_names:
            chosen["magnitude"] = None
        if chosen["band"] is not None and plain(chosen["band"]) == "f" and "dm" not in plain_names:
            chosen["band"] = None
        missing = [role for role in ("time", "magnitude", "error") if chosen[role] is None]
        if missing:
            wanted = "; ".join(
                f"no column for the {role} ({', '.join(_ROLES[role][:4])}, ...)"
                if role != "error"
                else f"no column for the error of the magnitude ({', '.join(_ROLES[role][:4])}, ...)"
                for role in missing
            )
            raise ValueError(f"{wanted}; the table has {', '.join(names)[:500] or 'no columns'}")
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
            asassn=asassn,
            unused=tuple(name for name in names if name not in used),
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


def band_code(text: str | None, asassn: bool) -> int:
    """Index into BANDS of a band as a table spells it, NO_BAND where it is unknown; without any, DEFAULT_BAND."""
    text = (text or "").strip().strip("'\"").strip()
    if asassn and (not text or text in _ASASSN):
        return _ASASSN[text or "V"]
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


_TRUE: Final = ("true", "t", "1", "1.0", "yes", "y")
_FLAGS: Final[Mapping[str, Callable[[Any], NDArray[np.bool_]]]] = {
    "catflags": _has_bit(32768),  # ZTF: "should not be used" (ZSDS Explanatory Supplement, section 13.6)
    "infobitssci": _at_least(33554432),  # ZTF's forced photometry: calibration failed
    "quality": _is_one_of("b", "bad"),  # ASAS-SN's Sky Patrol v2: G or B
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


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """How the numbers of a column of times are read: by its name and, above all, by their range.

    Full Julian dates and MJD cannot be taken for each other. Smaller numbers count from some other epoch: from that in
    the column's name (``btjd``, ``HJD-2450000``) or, in one named ``jd`` or ``hjd``, from JD 2450000. What remains is
    no time.
    """

    name: str
    latest_mjd: float
    """Later times are mistakes: the time now, and a day for time zones."""

    @property
    def _plain(self) -> str:
        return plain(self.name.rsplit(".", 1)[-1])

    @property
    def system(self) -> TimeSystem:
        """Where the column's name says that the times are: at the observatory, unless it is one such as ``hjd``."""
        if re.search(r"hm?jd|helio", self._plain):
            return TimeSystem.HELIOCENTRIC
        return TimeSystem.BARYCENTRIC if re.search(r"bm?jd|btjd|bkjd|bary", self._plain) else TimeSystem.UTC

    @property
    def _ahead(self) -> float:
        """Days by which the column's scale is ahead of UTC."""
        return TAI_MINUS_UTC if "tai" in self._plain or self._plain in _TAI else 0.0

    @property
    def epoch(self) -> float | None:
        """The Julian date at which the column's name says it begins, None where it says none."""
        match = _EPOCH_IN_NAME.search(self.name)
        return float(match[0]) if match else _EPOCHS.get(self._plain)

    @property
    def said(self) -> str:
        """What the name says that the numbers are."""
        if self.epoch is not None:
            return f"JD-{self.epoch:.8g}"
        return "MJD" if "mjd" in self._plain else "JD" if "jd" in self._plain or "julian" in self._plain else "time"

    def to_mjd(self, value: Array) -> tuple[Array, dict[str, NDArray[np.bool_]]]:
        """(n,) MJD of ``system``, NaN for what is no time, and which values were read in which way (such as ``JD``)."""
        with np.errstate(invalid="ignore"):
            mjd = np.full(len(value), np.nan)
            ways: dict[str, NDArray[np.bool_]] = {}
            for way, epoch in self._ways():
                found = value + (epoch - JD_OF_MJD_0)
                fits = np.isnan(mjd) & (found >= EARLIEST_MJD) & (found <= self.latest_mjd)
                if way == "JD-2450000":  # BJD of 1325 to 4500 are more likely counted from 2457000: TESS
                    fits &= value > (5000.0 if self._plain.startswith("b") else 0.0)
                if fits.any():
                    mjd = np.where(fits, found - self._ahead, mjd)
                    ways[way] = fits
        return mjd, ways

    def _ways(self) -> list[tuple[str, float]]:
        ways = [("JD", 0.0)]
        if self.epoch is not None:
            ways.append((self.said, self.epoch))
        ways.append(("MJD", JD_OF_MJD_0))
        if self.epoch is None and self.said == "JD":
            ways.append(("JD-2450000", 2_450_000.0))
        return ways

    def mistake(self, value: float) -> str:
        """What a number that is no time may be, for a message."""
        number = f"{value:.10g} in column {self.name}"
        rename = "name the column hjd-2450000, btjd (BJD-2457000) or bkjd (BJD-2454833) to say which"
        if np.isnan(value):
            return f"no number in column {self.name}"
        if np.isinf(value) or value < 0:
            return f"{number} is no date"
        if value <= 1.0:
            return f"{number} is neither MJD nor JD: a phase?"
        if 1850.0 <= value <= 2150.0:
            return f"{number} is neither MJD nor JD: a decimal year, or days since some epoch: {rename}"
        if value < EARLIEST_MJD:
            return f"{number} is neither MJD nor JD but days since some epoch: {rename}"
        if 18_000_101 <= value <= 21_001_231:
            return f"{number} is neither MJD nor JD: a calendar date?"
        if 3e8 <= value <= 3e9:
            return f"{number} is neither MJD nor JD: Unix time in seconds? (MJD = 40587 + seconds / 86400)"
        if 3e9 < value <= 1e11:
            return f"{number} is neither MJD nor JD: MJD in seconds? (divide by 86400)"
        if value > 1e11:
            return f"{number} is neither MJD nor JD: Unix time in milliseconds or less?"
        return f"{number} is later than now (MJD {self.latest_mjd - 1:.1f}) as MJD, and no JD"
