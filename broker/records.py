"""The records that pass between stages: Alert, LightCurve, Spectrum, SourceMetadata, Annotation.

Units are those of the project throughout: time MJD (UTC) in days, flux in nJy (AB), positions ICRS in
degrees, wavelengths in Angstrom (vacuum). Magnitudes exist only at the edges, in the survey decoders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from broker.bands import BAND_CODE as BAND_CODE
from broker.bands import BANDS as BANDS
from broker.taxonomy import NOT_CLASSIFIED, OTHER, PARENT_OF, place_of_best

AB_ZERO_POINT_NJY: Final = 3631e9  # flux of an AB magnitude of 0, in nJy (Oke & Gunn 1983)


class PhotometryKind(IntEnum):
    """What one point of a light curve is."""

    DETECTION = 0
    FORCED = 1
    LIMIT = 2


class TimeSystem(StrEnum):
    """Where and on which scale the times of an object are; the values are what is published."""

    UTC = "MJD UTC"
    """At the observatory: all that comes from alert streams."""
    HELIOCENTRIC = "HMJD"
    """HJD - 2400000.5: at the Sun, on the scale of the table it comes from."""
    BARYCENTRIC = "BMJD"
    """BJD - 2400000.5: at the solar system's barycentre, on the scale of the table it comes from."""


@dataclass(frozen=True, slots=True, eq=False)
class LightCurve:
    """Photometry of one object: six columns of the same length n, in time order.

    ``flux`` is difference flux as the survey measured it; total flux is ``flux + reference_flux``.
    """

    mjd: NDArray[np.float64]
    """(n,) MJD, days: UTC at the observatory, unless the object's state names another ``TimeSystem``."""
    flux: NDArray[np.float32]
    """(n,) difference flux, nJy; NaN where ``kind`` is LIMIT."""
    flux_error: NDArray[np.float32]
    """(n,) one-sigma error of ``flux``, nJy; for a LIMIT the 5-sigma limiting flux divided by 5."""
    reference_flux: NDArray[np.float32]
    """(n,) flux of the reference source, nJy: NaN where the point has none, 0 where ``flux`` is already total."""
    band: NDArray[np.uint8]
    """(n,) index into BANDS."""
    kind: NDArray[np.uint8]
    """(n,) PhotometryKind."""

    def __len__(self) -> int:
        return len(self.mjd)

    def take(self, index: NDArray[np.intp]) -> LightCurve:
        """The points with these numbers, in this order."""
        return LightCurve(
            self.mjd[index], self.flux[index], self.flux_error[index],
            self.reference_flux[index], self.band[index], self.kind[index],
        )  # fmt: skip

    @staticmethod
    @cache
    def empty() -> LightCurve:
        """A light curve with no points, always the same."""
        return LightCurve(
            np.empty(0, np.float64), np.empty(0, np.float32), np.empty(0, np.float32),
            np.empty(0, np.float32), np.empty(0, np.uint8), np.empty(0, np.uint8),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """One observed spectrum, on its own wavelength grid."""

    wavelength: NDArray[np.float64]
    """(m,) vacuum wavelength in the star's frame or the observer's, Angstrom, increasing."""
    flux: NDArray[np.float32]
    """(m,) flux density per unit wavelength, in any unit: only its shape is used."""
    flux_error: NDArray[np.float32]
    """(m,) one-sigma error in the unit of ``flux``; inf or NaN where the pixel is bad."""


@dataclass(frozen=True, slots=True, eq=False)
class ObservedSpectrum:
    """A spectrum and what it was taken of, as it is loaded from a file or arrives on the spectra topic."""

    spectrum_id: str
    """Unique: one with the same id replaces it."""
    ra: float
    """Right ascension, ICRS degrees."""
    dec: float
    """Declination, ICRS degrees."""
    mjd: float
    """When it was taken, MJD UTC; NaN where unknown."""
    spectrum: Spectrum
    survey: str | None = None
    """Together with ``object_id``, whose spectrum it is; otherwise the position tells."""
    object_id: str | None = None


METADATA_FEATURES: Final[tuple[str, ...]] = (
    "mean_vmag",
    "phot_g_mean_mag", "e_phot_g_mean_mag", "phot_bp_mean_mag", "e_phot_bp_mean_mag",
    "phot_rp_mean_mag", "e_phot_rp_mean_mag", "bp_rp",
    "parallax", "parallax_error", "parallax_over_error",
    "pmra", "pmra_error", "pmdec", "pmdec_error",
    "j_mag", "e_j_mag", "h_mag", "e_h_mag", "k_mag", "e_k_mag",
    "w1_mag", "e_w1_mag", "w2_mag", "e_w2_mag", "w3_mag", "w4_mag",
    "j_k", "w1_w2", "w3_w4", "pm", "ruwe", "cos_l", "sin_b",
)  # fmt: skip
"""AstroM3's 34 metadata columns (arXiv 2411.08842, section 3.3), raw values before standardisation."""

PACKET_FEATURES: Final[tuple[str, ...]] = (
    "ps1_g_r", "ps1_r_i", "ps1_i_z", "ps1_r_mag", "star_score", "gaia_bright_mag",
    "log10_detections_ever", "log10_visits_ever", "detected_ever_share", "log10_history_days",
)  # fmt: skip
"""What an alert packet itself says of its source beside AstroM3's columns: colours and magnitude of the Pan-STARRS
source at the position, how star-like it is (0 to 1), the nearest bright Gaia source's G (which may be another star's),
and how often and for how long the survey has detected something there. The counts are logarithms of numbers; ZTF's
names are sgmag1 to szmag1, sgscore1, maggaiabright, ndethist, ncovhist, jdstarthist and jdendhist."""

SOURCE_FEATURES: Final[tuple[str, ...]] = METADATA_FEATURES + PACKET_FEATURES
"""The columns of ``SourceMetadata.values``: append, never reorder, since stored objects name them by number."""

MAGNITUDES: Final[tuple[str, ...]] = (
    "mean_vmag", "phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag",
    "j_mag", "h_mag", "k_mag", "w1_mag", "w2_mag", "w3_mag", "w4_mag",
)  # fmt: skip
"""Columns that the model sees as absolute magnitudes."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceMetadata:
    """Catalogue values of one source, in the order of ``broker.assemble.metadata.SOURCE_FEATURES``."""

    values: NDArray[np.float32]
    """(SOURCE_FEATURES,) raw values; NaN where unknown. """


@dataclass(frozen=True, slots=True)
class KeptSearch:
    """What is kept of the last full period search in an object's light curve, and by what that is known again."""

    search: int
    """``SEARCH_VERSION`` of the search that made it (``broker.assemble.period``)."""
    basis: int
    """Which kind of times and brightness it was made from (``broker.assemble.kept``)."""
    points: int
    """How many points it was made from."""
    first: float
    """The first of them, MJD as observed."""
    last: float
    """The last of them."""
    checksums: tuple[int, ...]
    """Of the points in each of equal parts of the time from ``first`` to ``last``, 32 bits each."""
    candidates: tuple[tuple[float, float], ...]
    """Frequencies, cycles/day, with the share of the variance that harmonics explain there (R^2): the best, the second
    best that is no simple ratio of it (NaN where there is none), then others."""


@dataclass(frozen=True, slots=True, eq=False)
class Alert:
    """One alert of a survey, decoded."""

    survey: str
    """``ztf``, ``lsst`` or ``elasticc``."""
    alert_id: int
    """The packet's own number (ZTF ``candid``, LSST ``alertId`` or ``diaSourceId``)."""
    source_id: int
    """The detection's number: ZTF ``candid``, LSST ``diaSourceId``."""
    object_id: str
    """The object's name as the survey gives it (``ZTF18abcdefg``, a ``diaObjectId`` in decimal digits,
    or ``sso:<ssObjectId>`` for a moving object that has no DIA object)."""
    ra: float
    """Right ascension, ICRS degrees."""
    dec: float
    """Declination, ICRS degrees."""
    mjd: float
    """Time of the detection that caused the alert, MJD UTC."""
    band: str
    """Band of that detection, one of BANDS."""
    light_curve: LightCurve
    """The detection and all earlier ones, limits and forced photometry that the packet carries."""
    schema_version: str
    metadata: SourceMetadata | None = None
    """Catalogue values that the packet itself carries, or None."""
    real_bogus: float | None = None
    """The survey's own score that the detection is real, 0 to 1 (ZTF ``drb`` or ``rb``, LSST ``reliability``)."""
    solar_system: bool = False
    """Whether the survey associates the detection with a known moving object."""
    star_score: float | None = None
    """How star-like the source is, 0 to 1 (ZTF ``sgscore1`` of the PS1 source at the position, Tachibana & Miller
    2018, PASP 130, 128001; LSST 1 - ``extendedness``)."""
    survey_detections: int | None = None
    """How many detections of the object the survey itself counts, this one included (ZTF ``ndethist``, LSST
    ``nDiaSources``); None where the packet does not say."""
    first_detected: float | None = None
    """When the survey detected it first, MJD UTC (ZTF ``jdstarthist``, LSST ``firstDiaSourceMjdTai``)."""
    unknown_bands: tuple[str, ...] = ()
    """Bands, as the packet spells them, of points that were left out because no wavelength is known for them."""


@dataclass(frozen=True, slots=True)
class KnownObject:
    """The star of a catalogue of known variable stars that is at an object's place; no input of the model."""

    catalogue: str
    """The name under which the catalogue was loaded."""
    name: str | None
    """The star's, in the catalogue; None where the catalogue has none."""
    type: str
    """Type of variability as the catalogue writes it, such as ``EA/SD:``; may be empty."""
    period: float | None
    """Days; None where the catalogue does not say."""
    distance: float
    """Arcsec between it and the alert, after it was moved to the alert's time as far as its motion is known."""
    class_name: str | None = None
    """Ours, or a parent, that the type stands for; None where it is none of them."""
    disagrees: Literal["class", "parent"] | None = None
    """Whether the model contradicts the type with confidence: by another class of the same parent, or by another
    parent."""


@dataclass(frozen=True, slots=True, eq=False)
class Catalogued:
    """What catalogues have at one position."""

    metadata: SourceMetadata | None = None
    """Values of catalogues of sources."""
    known_as: tuple[KnownObject, ...] = ()
    """Stars of catalogues of known variable stars."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectState:
    """The state of one object, after an alert was merged into it."""

    object_id: str
    ra: float
    dec: float
    light_curve: LightCurve
    spectrum: Spectrum | None = None
    metadata: SourceMetadata | None = None
    associated: tuple[str, ...] = ()
    """Objects of other surveys at the same place, as ``survey:object id``; ``light_curve`` holds theirs, too."""
    remembered: int | None = None
    """Points of the object, in its own survey, that the alert's packet does not hold; None where nothing is
    remembered, as of tables."""
    history_start: float | None = None
    """The oldest point of the object in its own survey, MJD UTC."""
    known_as: tuple[KnownObject, ...] = ()
    """The stars of catalogues of known variable stars at the place; never an input of the model."""
    time_system: TimeSystem = TimeSystem.UTC
    """Of the times of ``light_curve``; other than UTC for tables of archives only."""
    kept_search: KeptSearch | None = None
    """The last period search in ``light_curve``, or in what it was then."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One of the reference objects nearest to an alert's embedding."""

    object_id: str
    class_name: str
    distance: float
    """Euclidean distance between the normalised embeddings, 0 to 2."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What Trifid publishes about one alert; field meanings are documented in ``publish/annotation.avsc``."""

    survey: str
    alert_id: int
    source_id: int
    object_id: str
    ra: float
    dec: float
    mjd: float
    """Of the detection that caused the alert, MJD on ``time_system``."""
    class_names: tuple[str, ...]
    """The ten classes; with ``Other`` behind them where the object is taken for none; or ``("NotClassified",)``."""
    probabilities: tuple[float, ...]
    """One for each of ``class_names``; they sum to 1."""
    modalities: tuple[str, ...]
    """Which of ``light_curve``, ``spectrum`` and ``metadata`` were used."""
    detections: int
    """Number of photometric points in the light curve that was classified."""
    period: float | None
    """Days; of eclipsing binaries the orbit's. None where the light curve is too short to search."""
    prediction_set: tuple[str, ...] = ()
    parents: dict[str, float] = field(default_factory=dict, hash=False)
    """Sums of ``probabilities`` over the classes of each parent; empty where NotClassified."""
    p_other: float | None = None
    """Probability that the object is none of the ten classes; None where the model does not say."""
    anomaly_score: float | None = None
    """Share (0 to 1) of calibration stars of the same modalities and similar length that lie no farther."""
    anomaly_distance: float | None = None
    """Mean Euclidean distance to the k nearest reference embeddings of the same modalities and similar length."""
    anomaly_reason: str | None = None
    """Why a classified object has no anomaly score; None where it has one."""
    combined_anomaly: float | None = None
    """Combined anomaly score, 0 to 1: the share of calibration stars with the same data that are less strange."""
    anomaly_parts: dict[str, float] = field(default_factory=dict, hash=False)
    """Scores, 0 to 1, of what ``combined_anomaly`` is made of, by names of ``broker.anomaly.statistics``."""
    anomaly_explanation: str | None = None
    """What is strange, in plain words."""
    anomaly_after_answers: float | None = None
    """``combined_anomaly`` after what people answered about similar objects; None where nobody has answered."""
    anomaly_answers: int | None = None
    """How many answers raised it, or negative, how many lowered it; 0 where none is near enough."""
    neighbours: tuple[Neighbour, ...] = field(default=())
    reference_set_version: str | None = None
    classifier_name: str = ""
    model_version: str = ""
    ingest_mjd: float = 0.0
    """When the broker received the alert, MJD UTC."""
    alert_publish_mjd: float | None = None
    """When the alert was written to the topic that it was read from, MJD UTC; None where it came from no topic, and
    where a spectrum had the object classified again."""
    reason: str | None = None
    """Why the alert is NotClassified, or Other without the model; or what was left out of one that is classified."""
    real_bogus: float | None = None
    solar_system: bool = False
    star_score: float | None = None
    associated: tuple[str, ...] = ()
    """Objects of other surveys whose light curves were used, too, as ``survey:object id``."""
    remembered_points: int | None = None
    """Points of the object, in its own survey, that were remembered and are not in the packet; None where nothing is
    remembered."""
    history_start: float | None = None
    """The oldest point of the object in its own survey, MJD UTC."""
    survey_detections: int | None = None
    """How many detections of the object the survey itself counts."""
    photometric_period: float | None = None
    """The period in days that was searched and found: half the orbit of most eclipsing binaries."""
    period_ambiguous: bool = False
    """Whether half of an eclipsing binary's ``period``, or twice, may as well be its orbit."""
    time_system: str = TimeSystem.UTC
    """What ``mjd`` is, a value of TimeSystem; other than UTC for light curves of tables only."""
    history: Literal["remembered", "packet", "missing", ""] = ""
    """``remembered`` where points beyond the packet's were; ``missing`` where none were, though the survey counts
    detections from before the packet's oldest point; otherwise ``packet``."""
    trigger: Literal["alert", "spectrum"] = "alert"
    """What the object was classified upon: a new alert, or a new spectrum, and then the alert is its latest."""
    known_as: tuple[KnownObject, ...] = ()
    """The stars of catalogues of known variable stars at the place, one of each catalogue that has one."""

    @property
    def best_class(self) -> str:
        """The most probable of ``class_names``, or Other (``taxonomy.place_of_best``)."""
        return self.class_names[place_of_best(self.class_names, self.probabilities)]

    @property
    def best_probability(self) -> float:
        """That of ``best_class``."""
        return self.probabilities[self.class_names.index(self.best_class)]

    @property
    def classified(self) -> bool:
        """Whether there is an answer: a class, or Other."""
        return self.class_names != (NOT_CLASSIFIED.name,)

    @property
    def parent(self) -> str | None:
        """The most probable of ``parents``, which need not be that of ``best_class``; None for Other."""
        if not self.parents or self.best_class == OTHER.name:
            return None
        return max(self.parents, key=self.parents.__getitem__)

    @property
    def catalogue_disagrees(self) -> bool:
        """Whether the model contradicts one of the catalogues with confidence."""
        return any(known.disagrees is not None for known in self.known_as)

    @property
    def answer(self) -> str | None:
        """What ``prediction_set`` leaves open: its class where it has one, the parent of all its classes where they
        have one, Other, or None."""
        if self.best_class == OTHER.name or len(self.prediction_set) == 1:
            return self.best_class
        parents = {PARENT_OF.get(name) for name in self.prediction_set}
        return parents.pop() if len(parents) == 1 else None
