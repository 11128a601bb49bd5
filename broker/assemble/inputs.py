"""The arrays the model takes: one batch of light curves, spectra and metadata, with a mask for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MODALITIES: Final[tuple[str, ...]] = ("light_curve", "spectrum", "metadata")


def subset_codes(present: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(n,) numbers whose bits are ``present`` (n, 3), which of MODALITIES each object has; the first is the lowest."""
    codes: NDArray[np.intp] = present @ (1 << np.arange(len(MODALITIES), dtype=np.intp))
    return codes


@dataclass(frozen=True, slots=True, eq=False)
class LightCurveInputs:
    """Model inputs made from light curves; rows of objects without a usable light curve are zero."""

    points: NDArray[np.float32]
    """(batch, POINTS, POINT_CHANNELS): see ``broker.assemble.lightcurve``."""
    points_mask: NDArray[np.bool_]
    """(batch, POINTS): True where ``points`` holds an observation."""
    folded: NDArray[np.float32]
    """(batch, FOLDED_CHANNELS, PHASE_BINS): the light curve folded at its best period."""
    features: NDArray[np.float32]
    """(batch, LIGHT_CURVE_FEATURES): scale, span, period and shape of the light curve."""
    present: NDArray[np.bool_]
    """(batch,): whether the object has a usable light curve."""
    period: NDArray[np.float64]
    """(batch,): best period in days, NaN where none was searched."""
    detections: NDArray[np.int32]
    """(batch,): number of photometric points used."""
    event: NDArray[np.float32]
    """(batch, EVENT_FEATURES): what tells a one-off event in difference fluxes, see ``broker.assemble.event``; of
    objects with too few points for a light curve, too."""

    @property
    def is_difference(self) -> NDArray[np.bool_]:
        """(batch,) whether there is a light curve of difference photometry, and not of fluxes that are total."""
        own: NDArray[np.bool_] = np.logical_and(self.event[:, 0] > 0, self.present)
        return own


@dataclass(frozen=True, slots=True, eq=False)
class SpectrumInputs:
    """Model inputs made from spectra; rows of objects without a spectrum are zero."""

    spectra: NDArray[np.float32]
    """(batch, 3, 2575): flux, flux error and log10 MAD on 3850-9000 Angstrom, step 2 (AstroM3, section 3)."""
    present: NDArray[np.bool_]
    """(batch,): whether the object has a usable spectrum."""


@dataclass(frozen=True, slots=True, eq=False)
class MetadataInputs:
    """Model inputs made from catalogue values; unknown values are zero in ``values`` and False in ``known``."""

    values: NDArray[np.float32]
    """(batch, MODEL_FEATURES): standardised values, see ``broker.assemble.metadata``."""
    known: NDArray[np.bool_]
    """(batch, MODEL_FEATURES): which of the values are known."""
    present: NDArray[np.bool_]
    """(batch,): whether the object has enough catalogue values to be used."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelInputs:
    """One batch for an ``Engine``."""

    light_curve: LightCurveInputs
    spectrum: SpectrumInputs
    metadata: MetadataInputs

    def __len__(self) -> int:
        return len(self.light_curve.present)

    @property
    def present(self) -> NDArray[np.bool_]:
        """(batch, 3) which of MODALITIES each object has."""
        return np.stack([self.light_curve.present, self.spectrum.present, self.metadata.present], axis=1)

    def only(self, *modalities: str) -> ModelInputs:
        """The batch as if it had but these of MODALITIES: the rows of the others are absent, and zero."""
        return replace(self, **{name: _absent(getattr(self, name)) for name in MODALITIES if name not in modalities})

    @staticmethod
    def joined(parts: Sequence[ModelInputs]) -> ModelInputs:
        """The batches ``parts``, at least one, as one."""
        if len(parts) == 1:
            return parts[0]
        return ModelInputs(*(_joined([getattr(part, name) for part in parts]) for name in MODALITIES))

    def rows(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> ModelInputs:
        """The batch of some of the objects: a mask (batch,), row numbers, or a slice, whose arrays are views."""
        return replace(self, **{name: _rows(getattr(self, name), rows) for name in MODALITIES})


def _rows(inputs: Any, rows: NDArray[Any] | slice) -> Any:
    return replace(inputs, **{field.name: getattr(inputs, field.name)[rows] for field in fields(inputs)})


def _absent(inputs: Any) -> Any:
    return replace(inputs, **{field.name: np.zeros_like(getattr(inputs, field.name)) for field in fields(inputs)})


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(first)}
    return replace(first, **columns)
