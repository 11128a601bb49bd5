"""How evenly coarse cells of the sky spread real stars over the slots and nodes of a Redis Cluster, by HEALPix order.

    python benchmarks/slots.py

The stars are those of VSX in ../shared/data; a visit is the stars within Rubin's field of 9.6 square degrees, at the
twenty places where there are most of them and at twenty others.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from redis.crc import key_slot

from broker import sky

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FIELD = 9.6
"""Square degrees."""
REACH = 24.0
"""Arcsec, as for the default radii."""
NODES = (3, 6, 10)
SLOTS = 16_384


def busiest(slots: np.ndarray, nodes: int) -> float:
    """Load of the busiest node over the mean, where each has an equal range of slots."""
    load = np.bincount(slots * nodes // SLOTS, minlength=nodes)
    return float(load.max() / load.mean())


def main() -> None:
    path = SHARED / "vsx_2022.parquet"
    if not path.exists():
        sys.exit(f"no {path}: nothing to measure")
    table = pq.read_table(path, columns=["ra_e5", "dec_e5"])
    ra, dec = (table[name].to_numpy() / 1e5 for name in ("ra_e5", "dec_e5"))
    rng = np.random.default_rng(0)
    radius = math.degrees(math.acos(1 - math.radians(1) ** 2 * FIELD / (2 * math.pi)))
    field_cells = sky.cells(ra, dec, 4)  # 13 square degrees
    numbers, counts = np.unique(field_cells, return_counts=True)
    centres = [*numbers[np.argsort(counts)[-20:]], *rng.choice(numbers[counts >= 50], 20, replace=False)]
    print(f"{len(ra):,} stars")
    for order in (6, 7, 8, 9):
        cell = sky.cells(ra, dec, order)
        used, which = np.unique(cell, return_inverse=True)
        slot = np.array([key_slot(str(number).encode()) for number in used.tolist()])
        stars = np.bincount(slot[which], minlength=SLOTS)
        at_border = 1 - np.mean(np.bincount(sky.disc_cells(ra, dec, REACH, order)[0]) == 1)
        print(
            f"order {order}: {len(used):,} cells with stars, {np.mean(stars == 0):.1%} of slots empty, the fullest has "
            f"{stars.max() / stars.mean():.1f} x the mean; {at_border:.1%} at a border; busiest node over the mean: "
            + ", ".join(f"{busiest(slot[which], nodes):.3f} of {nodes}" for nodes in NODES)
        )
        visits = []
        for centre in centres:
            first = np.flatnonzero(field_cells == centre)[0]
            inside = sky.separation(ra, dec, ra[first], dec[first]) < radius * sky.ARCSEC
            slots = slot[which[inside]]
            visits.append([len(np.unique(cell[inside])), *(busiest(slots, nodes) for nodes in NODES)])
        cells, *loads = np.median(visits, axis=0)
        print(
            f"  one visit (median of {len(visits)}): {cells:.0f} cells with stars; busiest node over the mean: "
            + ", ".join(f"{load:.2f} of {nodes}" for load, nodes in zip(loads, NODES, strict=True))
        )


if __name__ == "__main__":
    main()
