"""What the columns of the well-known catalogues are called, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from broker.catalog.known import KNOWN_FIELDS
from broker.catalog.layout import EPOCH
from broker.errors import ConfigurationError
from broker.photometry import POGSON
from broker.records import METADATA_FEATURES
from broker.sky import Array
from broker.times import julian_year_of, mjd_of_jd

FIELDS: Final = ("ra", "dec", EPOCH, *METADATA_FEATURES)
"""What a table can give; ``ra`` and ``dec`` it must."""


@dataclass(frozen=True, slots=True)
class Source:
    """A column that a table may have."""

    name: str
    """Compared without regard to case."""
    convert: Callable[[Array], Array] | None = None
    """From its values to ours, where they differ by more than a unit."""


@dataclass(frozen=True, slots=True)
class Preset:
    """How to read one catalogue."""

    columns: Mapping[str, tuple[Source, ...]]
    """For each of our columns the ones it can come from: the first that a table has is taken."""
    epoch: float
    """Julian year of the positions, where the table does not say."""
    radius: float
    """Arcsec within which a source is an alert's."""
    known: bool = False
    """Whether it is one of known variable stars: names and types, which are published, and no values."""

    def with_columns(self, pairs: Sequence[str]) -> Preset:
        """This preset with ``ours=theirs`` pairs in place of its own; raises ConfigurationError for others."""
        given: dict[str, tuple[Source, ...]] = {}
        for pair in pairs:
            ours, equals, theirs = pair.partition("=")
            if not (equals and theirs):
                raise ConfigurationError(f"column {pair!r}: expected ours=theirs")
            fields = KNOWN_FIELDS if self.known else FIELDS
            if ours not in fields:
                raise ConfigurationError(f"column {pair!r}: {ours!r} is none of {', '.join(fields)}")
            given[ours] = (Source(theirs),)
        return replace(self, columns={**self.columns, **given})


def _error_of_flux_over_error(ratio: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(ratio > 0, POGSON / ratio, np.nan)


def _year_of_jd(jd: Array) -> Array:
    return np.where(jd > 2_400_000, julian_year_of(mjd_of_jd(jd)), np.nan)


def _named(**columns: str | tuple[str | Source, ...]) -> dict[str, tuple[Source, ...]]:
    return {
        ours: tuple(Source(n) if isinstance(n, str) else n for n in ((names,) if isinstance(names, str) else names))
        for ours, names in columns.items()
    }


def _degrees_of_e5(value: Array) -> Array:
    return value / 1e5


PLAIN: Final = Preset({**{name: (Source(name),) for name in FIELDS}, **_named(epoch=(EPOCH, "ref_epoch"))}, 2000.0, 1.5)
"""Any table: our own names."""
KNOWN: Final = Preset(
    _named(
        ra=("RAJ2000", "RAdeg", "RA2000", "RA_ICRS", "ra", "_RAJ2000", Source("ra_e5", _degrees_of_e5)),
        dec=("DEJ2000", "DEdeg", "Declination2000", "DE_ICRS", "dec", "_DEJ2000", Source("dec_e5", _degrees_of_e5)),
        name=("Name", "GCVS", "VarName", "designation"),
        type=("Type", "VarType", "VariabilityType", "vsx_type"),
        period="Period",
        flag=("V", "Category"),
        period_limit="l_Period",
    ),
    2000.0,
    2.0,
    known=True,
)
"""Known variable stars: names of columns of VSX (CDS B/vsx and VizieR: Watson, Henden & Price 2006, SASS 25, 47;
AAVSO's own), of the GCVS (B/gcvs) and of tables made of them. Positions are of equinox and epoch 2000.0."""

PRESETS: Final[dict[str, Preset]] = {
    # Gaia DR3: names of the archive (gaia_source), then VizieR's (I/355/gaiadr3). Its RAJ2000, DEJ2000 are positions
    # moved to the year 2000 and no substitute for RA_ICRS, DE_ICRS. Epoch 2016.0: Gaia Collaboration 2023, A&A 674, A1.
    "gaia": Preset(
        _named(
            ra=("ra", "RA_ICRS"),
            dec=("dec", "DE_ICRS"),
            epoch="ref_epoch",
            phot_g_mean_mag=("phot_g_mean_mag", "Gmag"),
            e_phot_g_mean_mag=(
                "e_phot_g_mean_mag", "e_Gmag", Source("phot_g_mean_flux_over_error", _error_of_flux_over_error),
                Source("RFG", _error_of_flux_over_error),
            ),
            phot_bp_mean_mag=("phot_bp_mean_mag", "BPmag"),
            e_phot_bp_mean_mag=(
                "e_phot_bp_mean_mag", "e_BPmag", Source("phot_bp_mean_flux_over_error", _error_of_flux_over_error),
                Source("RFBP", _error_of_flux_over_error),
            ),
            phot_rp_mean_mag=("phot_rp_mean_mag", "RPmag"),
            e_phot_rp_mean_mag=(
                "e_phot_rp_mean_mag", "e_RPmag", Source("phot_rp_mean_flux_over_error", _error_of_flux_over_error),
                Source("RFRP", _error_of_flux_over_error),
            ),
            parallax=("parallax", "Plx"),
            parallax_error=("parallax_error", "e_Plx"),
            pmra=("pmra", "pmRA"),
            pmra_error=("pmra_error", "e_pmRA"),
            pmdec=("pmdec", "pmDE"),
            pmdec_error=("pmdec_error", "e_pmDE"),
            ruwe=("ruwe", "RUWE"),
        ),
        2016.0,
        1.5,
    ),
    # 2MASS point sources: names of IRSA, of the Gaia archive's copy and of VizieR (II/246). Skrutskie et al. 2006,
    # AJ 131, 1163: seen between 1997 and 2001, placed to 0.1 arcsec.
    "2mass": Preset(
        _named(
            ra=("ra", "RAJ2000"),
            dec=("dec", "DEJ2000"),
            epoch=(Source("jdate", _year_of_jd), Source("JD", _year_of_jd)),
            j_mag=("j_m", "Jmag"),
            e_j_mag=("j_msigcom", "e_Jmag", "j_cmsig"),
            h_mag=("h_m", "Hmag"),
            e_h_mag=("h_msigcom", "e_Hmag", "h_cmsig"),
            k_mag=("k_m", "ks_m", "Kmag"),
            e_k_mag=("k_msigcom", "ks_msigcom", "e_Kmag", "k_cmsig"),
        ),
        2000.0,
        1.5,
    ),
    # AllWISE: names of IRSA and of VizieR (II/328), whose RAJ2000, DEJ2000 are the positions at the mean epoch
    # 2010.5589 (Cutri et al. 2013, Explanatory Supplement to AllWISE, II.1). Its pmra and pmdec hold the parallax's
    # motion as well and are left out. Faint sources are placed to 0.5 arcsec.
    "wise": Preset(
        _named(
            ra=("ra", "RAJ2000"),
            dec=("dec", "DEJ2000"),
            w1_mag=("w1mpro", "W1mag"),
            e_w1_mag=("w1sigmpro", "w1mpro_error", "e_W1mag"),
            w2_mag=("w2mpro", "W2mag"),
            e_w2_mag=("w2sigmpro", "w2mpro_error", "e_W2mag"),
            w3_mag=("w3mpro", "W3mag"),
            w4_mag=("w4mpro", "W4mag"),
        ),
        2010.5589,
        2.5,
    ),
    "vsx": KNOWN,
    "gcvs": KNOWN,
}  # fmt: skip
