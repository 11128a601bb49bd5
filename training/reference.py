"""The reference set of a model: embeddings of labelled stars, by modalities and length, and what calibrates them.

Made with the exported models by the service's own code, so that it is of the model that serves, whatever trained it.
How, and what is real in it: docs/anomaly.md.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet, as_stored, digest
from broker.anomaly.scores import nearest
from broker.anomaly.strata import DETECTION_BINS, MANY_VALUES, known_values, strata_of
from broker.assemble.history import history_features
from broker.assemble.inputs import LightCurveInputs, MetadataInputs, ModelInputs, SpectrumInputs, subset_codes
from broker.assemble.lightcurve import assemble_light_curves, usable_points
from broker.assemble.metadata import default_scaler, raw_values, standardise, widened
from broker.barycentre import barycentric_light_curves
from broker.build import REFERENCE_SET_FILE
from broker.errors import ConfigurationError
from broker.inference.onnx import OnnxEngine
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

NEIGHBOURS: Final = 5
QUOTAS: Final[dict[tuple[bool, bool, bool], int]] = {
    (True, False, False): 60,
    (True, False, True): 35,
    (True, True, False): 35,
    (True, True, True): 25,
    (False, True, False): 40,
    (False, False, True): 40,
    (False, True, True): 40,
}
"""Reference stars of each class in a stratum, by subset of the modalities: most where most alerts are."""
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

Report = Callable[[str], None]
Inputs = TypeVar("Inputs", LightCurveInputs, SpectrumInputs, MetadataInputs)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Stars of which embeddings are made, a row each; ``is_reference`` (n,) tells those in the set."""

    rows: NDArray[np.intp]
    is_reference: NDArray[np.bool_]
    light_curve: LightCurveInputs
    spectrum: SpectrumInputs


@dataclass(frozen=True, slots=True, eq=False)
class _Embedded:
    """Embeddings (n, d) of rows of the table (n,), and what they were made of."""

    rows: NDArray[np.intp]
    is_reference: NDArray[np.bool_]
    embeddings: NDArray[np.float32]
    modalities: NDArray[np.uint8]
    detections: NDArray[np.int32]
    values: NDArray[np.int32]


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


class _Stars:
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
        """Training stars with at least so many points, as many of each class, the best labels first."""
        rows = self.training[(self.labels.weight[self.training] > 0) & (self._length[self.training] >= least)]
        rows = rng.permutation(rows)
        rows = rows[np.argsort(~self.labels.scored[rows], kind="stable")]
        most = max(QUOTAS.values())
        return np.concatenate([rows[self.labels.index[rows] == c][:most] for c in range(len(CLASS_NAMES))])

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
                for part, held in zip(_chunks(rows), _chunks(held_out), strict=True)
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


def build_reference_set(engine: OnnxEngine, data: Path, seed: int, report: Report, processes: int = 2) -> ReferenceSet:
    """The set for the models of ``engine``, from the folder ``data``; ``seed`` is that of the model's split.

    The calibration is of validation stars, which the model was not trained on: training stars lie closer to each
    other than new stars do to them, and would make every new star unusual.
    """
    stars = _Stars(data, seed)
    parts: list[_Embedded] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, least in enumerate(DETECTION_BINS):
            report(f"embedding light curves of {least} points and more")
            parts += _embed_all(engine, stars, number, pool.imap)
    parts += _embed_all(engine, stars, None, map)
    joined = _Embedded(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(_Embedded)))
    own, other = _take(joined, joined.is_reference), _take(joined, ~joined.is_reference)
    embeddings = as_stored(own.embeddings)
    model = engine.model_version
    reference = ReferenceSet(
        version=f"{engine.manifest.model_version}+{digest(embeddings.tobytes())[:8]}",
        model=model,
        embeddings=embeddings,
        object_ids=stars.table.object_id[own.rows].astype(str),
        class_names=stars.table.label[own.rows].astype(str),
        modalities=own.modalities,
        detections=own.detections,
        values=own.values,
        k=NEIGHBOURS,
        calibration_distances=np.zeros(len(other.rows), np.float32),
        calibration_modalities=other.modalities,
        calibration_detections=other.detections,
        calibration_values=other.values,
    )
    return replace(reference, calibration_distances=_distances(reference, other))


def write_reference_set(repository: Path, data: Path, report: Report) -> ReferenceSet:
    """Make the set for the models in ``repository``, write it beside them and enter it in the manifest.

    Raises ConfigurationError where the models are not those of the manifest.
    """
    engine = OnnxEngine(repository)
    try:
        seed = engine.manifest.training.get("seed")
        if not isinstance(seed, int):
            raise ConfigurationError(
                f"{repository}/manifest.json does not say with which seed the model was trained (training.seed): "
                f"which stars it has not seen follows from it"
            )
        reference = build_reference_set(engine, data, seed, report)
    finally:
        engine.close()
    contents = reference.to_bytes()
    (repository / REFERENCE_SET_FILE).write_bytes(contents)
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["reference_set_sha256"] = digest(contents)
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    report(f"{repository / REFERENCE_SET_FILE}: {len(reference)} embeddings, {len(contents) / 1e6:.1f} MB")
    return reference


def _embed_all(engine: OnnxEngine, stars: _Stars, bin_number: int | None, over: Callable[..., Any]) -> list[_Embedded]:
    """Embeddings of one bin of lengths, in every subset with a light curve; None: in those without."""
    rng = np.random.default_rng([stars.seed, 4, len(DETECTION_BINS) if bin_number is None else bin_number])
    least = DETECTION_BINS[0 if bin_number is None else bin_number]
    reference, calibration = stars.reference(least, rng), stars.calibration(least, rng)
    rows = np.concatenate([reference, calibration])
    is_reference = np.arange(len(rows)) < len(reference)
    if bin_number is None:
        curves = [LightCurve.empty()] * len(rows)
        light_curve = assemble_light_curves(curves)
    else:
        curves = [stars.history(row, bin_number, rng) for row in rows]
        light_curve = _joined(list(over(assemble_light_curves, list(_chunks(curves)))))
    history = np.concatenate([history_features(usable_points(part)) for part in _chunks(curves)])
    metadata = tuple(stars.metadata(rows, is_reference, history, many, rng) for many in (False, True))
    sample = _Sample(rows, is_reference, light_curve, stars.spectra(rows, is_reference, rng))
    label = stars.labels.index[rows]
    return [
        _embed(engine, sample, np.array(subset), values, quota, label)
        for subset, quota in QUOTAS.items()
        if subset[0] == (bin_number is not None)
        for values in (metadata if subset[2] else metadata[:1])
    ]


def _embed(
    engine: OnnxEngine,
    sample: _Sample,
    subset: NDArray[np.bool_],
    metadata: MetadataInputs,
    quota: int,
    label: NDArray[np.int64],
) -> _Embedded:
    """Embeddings from the modalities of ``subset`` alone, of the stars that have them: ``quota`` a class in the set."""
    has = np.stack([sample.light_curve.present, sample.spectrum.present, metadata.present], axis=1)
    usable = (has | ~subset).all(axis=1)
    own = usable & sample.is_reference
    each = [np.flatnonzero(own & (label == number))[:quota] for number in range(len(CLASS_NAMES))]
    rows = np.concatenate([np.flatnonzero(usable & ~sample.is_reference), *each])
    made = []
    for part in _chunks(rows):
        inputs = ModelInputs(
            _rows_of(sample.light_curve, part, subset[0]),
            _rows_of(sample.spectrum, part, subset[1]),
            _rows_of(metadata, part, subset[2]),
        )
        made.append(engine.predict(inputs).embeddings)
    embeddings = np.concatenate(made)
    good = embeddings.any(axis=1)  # the engine gives zeros where the model gives no finite values
    rows = rows[good]
    return _Embedded(
        sample.rows[rows],
        sample.is_reference[rows],
        embeddings[good],
        np.full(len(rows), subset_codes(subset[None])[0], np.uint8),
        np.where(subset[0], sample.light_curve.detections[rows], 0).astype(np.int32),
        np.where(subset[2], known_values(metadata)[rows], 0).astype(np.int32),
    )


def _distances(reference: ReferenceSet, stars: _Embedded) -> NDArray[np.float32]:
    """(m,) the anomaly distance of each of ``stars``, each within its own stratum."""
    result = np.empty(len(stars.rows), np.float32)
    strata = strata_of(stars.modalities, stars.detections, stars.values)
    for number in np.unique(strata).tolist():
        own = strata == number
        distances, _ = nearest(reference.strata[number].embeddings, stars.embeddings[own], reference.k)
        result[own] = distances.mean(axis=1)
    return result


def _take(stars: _Embedded, chosen: NDArray[np.bool_]) -> _Embedded:
    return _Embedded(*(getattr(stars, field.name)[chosen] for field in fields(stars)))


def _rows_of(inputs: Inputs, rows: NDArray[np.intp], present: bool) -> Inputs:
    """Some rows of one modality's inputs; marked absent unless ``present``."""
    taken = {field.name: getattr(inputs, field.name)[rows] for field in fields(inputs)}
    return replace(inputs, **{**taken, "present": taken["present"] & present})


def _joined(parts: Sequence[LightCurveInputs]) -> LightCurveInputs:
    return LightCurveInputs(
        **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(LightCurveInputs)}
    )


def _chunks(items: Any) -> Iterator[Any]:
    """Slices of an array or list, in order."""
    for first in range(0, len(items), CHUNK):
        yield items[first : first + CHUNK]
