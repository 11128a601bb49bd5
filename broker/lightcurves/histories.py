"""Light curves as they were earlier."""

from __future__ import annotations

import numpy as np

from broker.records import LightCurve, PhotometryKind


def first_detections(curve: LightCurve, n: int | None) -> LightCurve:
    """The light curve up to and with its ``n``-th detection in time, as an alert stream would have shown it by then.

    Upper limits before that stay and are not counted; None keeps everything. The columns come back in time order.
    """
    order = np.argsort(curve.mjd, kind="stable")
    if n is not None:
        measured = np.cumsum(curve.kind[order] != PhotometryKind.LIMIT)
        # Without the limits after the n-th detection: the alert of that detection does not know them.
        order = order[: int(np.searchsorted(measured, n)) + 1]
    return curve.take(order)
