"""The labelled stars of a reference set and of its calibration: which, and their spectra and catalogue values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.strata import DETECTION_BINS, MANY_VALUES, known_values
from broker.assemble.history import history_features
from broker.assemble.inputs import MetadataInputs, SpectrumInputs
from broker.assemble.metadata import default_scaler, raw_values, standardise, widened
from broker.assemble.usable import usable_points
from broker.barycentre import barycentric_light_curves
from broker.records import METADATA_FEATURES, SOURCE_FEATURES, LightCurve
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.crops import difference, shorten
from training.data import Labels
from training.datasets.multiband import load_packets
from training.datasets.splits import part_of_each, split
from training.datasets.tables import ObjectTable, load_objects
from training.simulate.catalogues import as_catalogued
from training.simulate.metadata import load_donors, simulate_metadata
from training.simulate.real_spectra import PART_SHARE, RealSpectra, load_real_spectra
from training.simulate.spectra import Templates, draw_types, load_templates, simulate_spectra

QUOTAS: Final[dict[tuple[bool, bool, bool], int]] = {
    (True, False, False): 600,
    (True, False, True): 350,
    (True, True, False): 350,
    (True, True, True): 250,
    (False, True, False): 400,
    (False, False, True): 400,
    (False, True, True): 400,
}
"""Reference stars in a stratum, by subset of the modalities: most where most alerts are."""
LEAST_SHARE: Final = 1 / 20
"""Of a stratum's stars, of each class; the others are as frequent as labelled stars are. With as many of each class, of
frequent ones there are so few that ordinary stars lie far from all; without, rare ones would have nothing alike."""
AS_FREQUENT_FROM: Final = 50
"""Detections from which on classes are so. Of shorter light curves there are as many of each class: with the archives'
shares a short one of another survey looks strange by being short (docs/anomaly.md)."""
CALIBRATION_STARS: Final = 1500
"""In each stratum, as many as there are: the 99th percentile is then set by 15 of them."""
DIFFERENCE_SHARE: Final = 0.2
"""Light curves turned into difference photometry, as those of stars without a catalogued reference source are."""
REAL_SPECTRA: Final = (0.5, 0.8)
"""Share of real spectra in the set and in its calibration; the others are simulated. More in the calibration: what an
alert has is real."""
ANY_TYPE_SHARE: Final = 0.7
"""Of the calibration's real spectra, those of any type: which types a class has is only roughly known, and a spectrum
of the neighbour in the sky is no rare object."""
ANY_STAR_SHARE: Final = 0.3
"""Calibration stars with the catalogue values of another, of any class: those of a class are known from few donors, and
here too a neighbour's are nothing rare."""
METADATA_DRAWS: Final = 6
"""Until a star has few or many values, as asked; the few stars for which none fits are left out."""
PACKET_SHARE: Final = 0.5
"""Stars whose metadata are a real packet's, of those with metadata."""
PACKET_BLUR: Final = 0.02
"""Relative noise on a packet's values, so that one packet is not one point."""
CHUNK: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class PacketValues:
    """What n real packets say: raw values (n, MODEL_FEATURES), positions and the classes of their stars."""

    values: NDArray[np.float64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    label: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> PacketValues:
        """Some of them."""
        return PacketValues(*(getattr(self, field.name)[chosen] for field in fields(self)))


def load_packet_values(data: Path) -> PacketValues:
    """Of the labelled ZTF packets in ``data``; none where they are not there."""
    objects = load_packets(data)
    objects = objects.take([i for i, label in enumerate(objects.label) if label in CLASS_INDEX])
    history = history_features(usable_points(barycentric_light_curves(objects.states)))
    return PacketValues(
        raw_values([s.metadata for s in objects.states], history),
        np.array([s.ra for s in objects.states]),
        np.array([s.dec for s in objects.states]),
        np.array([CLASS_INDEX[label] for label in objects.label], np.int64),
    )


def quotas(shares: NDArray[np.float64], total: int, detections: int) -> NDArray[np.intp]:
    """(c,) how many of ``total`` stars with so many ``detections`` and more are of each class.

    As ``shares`` (c,) say, but LEAST_SHARE of all at least: what rare classes are given beyond their shares the others
    lack in proportion. Below AS_FREQUENT_FROM detections as many of each. 0 where there are none of a class.
    """
    there = shares > 0
    if detections < AS_FREQUENT_FROM:
        return np.where(there, total // there.sum(), 0)
    least = np.where(there, LEAST_SHARE * total, 0.0)
    found = np.maximum(shares / shares.sum() * total, least)
    spare = found - least
    found = least + spare * ((total - least.sum()) / spare.sum())
    whole: NDArray[np.intp] = np.floor(found + 0.5).astype(np.intp)
    return whole


class ReferenceStars:
    """The stars and the means to give them spectra and catalogue values."""

    def __init__(self, data: Path, seed: int) -> None:
        self.seed = seed
        self.table: ObjectTable = load_objects(data)
        self.labels = Labels.from_columns(self.table.label, self.table.label_quality, self.table.label_is_coarse)
        self.training, self.validation, test = split(self.table, seed)
        self._part = part_of_each(len(self.table), (self.training, self.validation, test))
        self._donors = load_donors(data)
        self._templates: Templates = load_templates(data)
        real = load_real_spectra(data)
        order = np.random.default_rng([seed, 6]).permutation(len(real))
        # No spectrum is both in the set and in its calibration.
        self._real: tuple[RealSpectra, RealSpectra] = (real.take(order[::2]), real.take(order[1::2]))
        packets = load_packet_values(data)
        chosen = np.random.default_rng([seed, 8]).random(len(packets.label)) < 0.5
        self._packets = (packets.take(chosen), packets.take(~chosen))
        self._length = np.array([len(curve) for curve in self.table.light_curves])
        rng = np.random.default_rng([seed, 7])
        self._code = np.full(len(self.table), np.nan)
        labelled = np.flatnonzero(self.labels.index >= 0)
        self._code[labelled] = draw_types(list(self.table.label[labelled]), list(self.table.survey[labelled]), rng)

    def reference(self, least: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Training stars with at least so many points, by class as ``quotas`` has them, the best labels first."""
        rows = self.training[(self.labels.weight[self.training] > 0) & (self._length[self.training] >= least)]
        rows = rng.permutation(rows)
        rows = rows[np.argsort(~self.labels.scored[rows], kind="stable")]
        most = self.quotas(max(QUOTAS.values()), least)
        return np.concatenate([rows[self.labels.index[rows] == c][: most[c]] for c in range(len(CLASS_NAMES))])

    def quotas(self, total: int, detections: int) -> NDArray[np.intp]:
        """(10,) as the function, by how frequent classes are among training stars."""
        usable = self.labels.index[self.training[self.labels.weight[self.training] > 0]]
        return quotas(np.bincount(usable, minlength=len(CLASS_NAMES)) / len(usable), total, detections)

    def calibration(self, least: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Validation stars with at least so many points, with any label, in the catalogues' own proportions."""
        rows = self.validation[(self.labels.index[self.validation] >= 0) & (self._length[self.validation] >= least)]
        return rng.permutation(rows)[:CALIBRATION_STARS]

    def history(self, row: int, bin_number: int, rng: np.random.Generator) -> LightCurve:
        """A light curve of the star of a length in the bin, even in the logarithm."""
        curve = self.table.light_curves[row]
        low = DETECTION_BINS[bin_number]
        last = bin_number + 1 == len(DETECTION_BINS)
        high = len(curve) if last else min(len(curve), DETECTION_BINS[bin_number + 1] - 1)
        curve = shorten(curve, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))), rng)
        return difference(curve, rng) if rng.random() < DIFFERENCE_SHARE else curve

    def metadata(
        self,
        rows: NDArray[np.intp],
        is_reference: NDArray[np.bool_],
        history: NDArray[np.float64],
        many: bool,
        rng: np.random.Generator,
    ) -> MetadataInputs:
        """Of ``rows`` (n,), MANY_VALUES or fewer, with the ``history`` of their light curves (n, HISTORY_FEATURES).

        They are as an operator's catalogues have them; of many values, half are what a real packet of the class says,
        or of any class where there is none. Packets of the set and of its calibration are of different objects.
        """
        unknown = np.full(len(self.table), np.nan)
        values, _ = simulate_metadata(self.table, self._donors, self._code, unknown, self._part, rng)
        whole, known = values[rows], np.full((len(rows), values.shape[1]), np.nan)
        ra, dec = np.array(self.table.ra[rows]), np.array(self.table.dec[rows])
        for _ in range(METADATA_DRAWS):
            drawn = as_catalogued(whole, rng)
            found = standardise(widened(drawn), ra, dec, default_scaler())
            fits = found.present & ((known_values(found) >= MANY_VALUES) == many)
            missing = np.isnan(known).all(axis=1)
            known[fits & missing] = drawn[fits & missing]
        others = np.flatnonzero(~is_reference & (rng.random(len(rows)) < ANY_STAR_SHARE))
        known[others] = known[rng.permutation(others)]
        raw = widened(known)
        catalogued = ~np.isnan(known).all(axis=1)
        raw[catalogued, len(SOURCE_FEATURES) :] = history[catalogued]
        if many:
            for own, packets in zip((is_reference, ~is_reference), self._packets, strict=True):
                self._fill_from_packets(raw, ra, dec, rows, own, packets, rng)
        return standardise(raw, ra, dec, default_scaler())

    def _fill_from_packets(
        self,
        raw: NDArray[np.float64],
        ra: NDArray[np.float64],
        dec: NDArray[np.float64],
        rows: NDArray[np.intp],
        own: NDArray[np.bool_],
        packets: PacketValues,
        rng: np.random.Generator,
    ) -> None:
        """Give PACKET_SHARE of the rows that are ``own`` (n,) a packet's values and position, in place."""
        if not len(packets.label):
            return
        catalogs = len(METADATA_FEATURES)
        for row in np.flatnonzero(own & (rng.random(len(rows)) < PACKET_SHARE)).tolist():
            alike = np.flatnonzero(packets.label == self.labels.index[rows[row]])
            donor = rng.choice(alike) if len(alike) else rng.integers(len(packets.label))
            packet = packets.values[donor] * (1.0 + PACKET_BLUR * rng.normal(size=raw.shape[1]))
            # Where catalogues are loaded, too, their values come first, and the packet's fill what is unknown.
            if rng.random() < 0.5:
                catalog = raw[row, :catalogs]
                packet[:catalogs] = np.where(np.isnan(catalog), packet[:catalogs], catalog)
            raw[row] = packet
            ra[row], dec[row] = packets.ra[donor], packets.dec[donor]

    def spectra(
        self, rows: NDArray[np.intp], is_reference: NDArray[np.bool_], rng: np.random.Generator
    ) -> SpectrumInputs:
        """Spectra for ``rows``: simulated ones, and real ones of other stars."""
        table, code = self.table, self._code[rows]
        # Half of the calibration's templates are among those that no training star has.
        held_out = ~is_reference & (rng.random(len(rows)) < 0.5)
        spectra = np.concatenate(
            [
                simulate_spectra(
                    self._templates,
                    list(table.label[part]),
                    list(table.survey[part]),
                    self._code[part],
                    held,
                    rng,
                    partial=PART_SHARE,
                )
                for part, held in zip(chunks(rows), chunks(held_out), strict=True)
            ]
        )
        is_real = rng.random(len(rows)) < np.where(is_reference, *REAL_SPECTRA)
        for own, real in zip((is_reference, ~is_reference), self._real, strict=True):
            chosen = np.flatnonzero(own & is_real)
            which = real.like(code[chosen], rng)
            any_type = ~is_reference[chosen] & (rng.random(len(chosen)) < ANY_TYPE_SHARE)
            which[any_type] = rng.integers(0, len(real), int(any_type.sum()))
            spectra[chosen] = real.inputs(which, rng)
        return SpectrumInputs(spectra, np.ones(len(rows), np.bool_))


def chunks(items: Any) -> Iterator[Any]:
    """Slices of an array or list, in order."""
    for first in range(0, len(items), CHUNK):
        yield items[first : first + CHUNK]
