"""How even the scores of known objects are by a set from the stream, and were by the model's own, before it is used."""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibration import Scorer
from broker.anomaly.combine import combine
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import score
from broker.anomaly.statistics import Objects
from broker.reference.rebuild import Seen, rebuilt

HIGH: Final = 0.9
_ONE_IN: Final = 5
"""Objects that are kept out of the set that is tried."""


def check(base: ReferenceSet, seen: Seen) -> tuple[float, float, int]:
    """Share of known objects whose combined score is HIGH or more by ``base``, and by a set made of ``seen``.

    Of one object in five, which the second set is made without; every embedding of these counts that both can score,
    whatever its length. NaN where there is none. The third number is how many objects these are.
    """
    out = np.array([zlib.crc32(name.encode()[::-1]) % _ONE_IN == 0 for name in seen.names.tolist()], np.bool_)
    tried = rebuilt(base, seen.take(np.flatnonzero(~out)))
    left = seen.take(np.flatnonzero(out))
    values = np.stack([combined_scores(reference, left.objects) for reference in (base, tried)])
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        return float("nan"), float("nan"), 0
    before, after = (values[:, known] >= HIGH).mean(axis=1).tolist()
    return before, after, len(np.unique(left.names[known]))


def combined_scores(reference: ReferenceSet, objects: Objects) -> NDArray[np.float64]:
    """(n,) combined anomaly scores as the service gives them; NaN where there is none."""
    scorer = Scorer.of(reference)
    if scorer is None:
        return np.full(len(objects.embeddings), np.nan)
    return combine(scorer, objects, score(reference, objects.embeddings, objects.strata()).distance).score
