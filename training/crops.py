"""Augmentation of light curves: the histories that an alert stream shows before a survey is complete."""

from __future__ import annotations

import numpy as np

from broker.records import LightCurve

MIN_CROP: int = 8


def thin(curve: LightCurve, rng: np.random.Generator) -> LightCurve:
    """The same object as a survey with other weather would have seen it: 60 to 95 % of the points, at random."""
    keep = round(len(curve) * rng.uniform(0.6, 0.95))
    return curve.take(np.sort(rng.permutation(len(curve))[:keep]))


def crop(curve: LightCurve, rng: np.random.Generator) -> LightCurve:
    """A shorter history of the same object: a stretch of time, a random thinning, or a stretch thinned.

    The number of points kept is drawn evenly in its logarithm between MIN_CROP and all. One crop in eight is
    turned into difference photometry against a reference of random brightness, as a star without a catalogued
    reference source appears in a difference-imaging survey.
    """
    total = len(curve)
    if total > MIN_CROP:
        curve = shorten(curve, int(np.exp(rng.uniform(np.log(MIN_CROP), np.log(total)))), rng)
    return difference(curve, rng) if rng.random() < 0.125 else curve


def shorten(curve: LightCurve, keep: int, rng: np.random.Generator) -> LightCurve:
    """``keep`` points, 1 at least, of a stretch of the light curve that holds as many or more, all of it at most."""
    total = len(curve)
    stretch = min(total, max(keep, int(keep * np.exp(rng.uniform(0.0, np.log(total / keep))))))
    start = int(rng.integers(0, total - stretch + 1))
    return curve.take(start + np.sort(rng.choice(stretch, keep, replace=False)))


def difference(curve: LightCurve, rng: np.random.Generator) -> LightCurve:
    """The same as difference photometry against a reference of random brightness, which is not known."""
    reference = float(np.quantile(curve.flux, rng.uniform(0.05, 0.95)))
    return LightCurve(
        curve.mjd, (curve.flux - np.float32(reference)), curve.flux_error,
        np.full(len(curve), np.nan, np.float32), curve.band, curve.kind,
    )  # fmt: skip
