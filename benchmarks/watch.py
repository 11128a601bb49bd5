"""What lists cost: ``python -m benchmarks.watch --positions 100000 --lists 1``.

Positions are spread over the sky, and one of twenty annotations is at one of them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from broker.client import Expression, PublishedAnnotation
from broker.watch.content import Content
from broker.watch.match import Matcher, Wanted

_BATCHES = 40
_BATCH = 500


def main() -> None:
    """Print the CPU time of making the index, and of matching an annotation, for some sizes and expressions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--positions", type=int, default=100_000, help="of each list")
    parser.add_argument("--lists", type=int, default=1)
    parser.add_argument("--expressions", type=int, default=0, help="lists with an expression alone")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    lists = []
    for key in range(given.lists):
        ra = random.uniform(0, 360, given.positions)
        dec = np.degrees(np.arcsin(random.uniform(-1, 1, given.positions)))
        content = Content(ra, dec, [""] * given.positions)
        lists.append(Wanted(key, content, 2.0, None, False))
    text = 'parent == "RRLyrae" and probability > 0.9 and detections > 30 and not known'
    keys = range(given.lists, given.lists + given.expressions)
    lists += [Wanted(key, Content(), 2.0, Expression(text), True) for key in keys]
    begun = time.process_time()
    matcher = Matcher(lists)
    made = time.process_time() - begun
    seconds, hits = [], 0
    for _ in range(_BATCHES):
        batch = [_annotation(random, lists[0].content if given.lists else None, n) for n in range(_BATCH)]
        begun = time.process_time()
        hits += len(matcher.match(batch))
        seconds.append(time.process_time() - begun)
    each = float(np.median(seconds)) / _BATCH * 1e6
    print(
        f"{given.lists} lists of {given.positions:,} positions, {given.expressions} expressions: index {made:.3f} s, "
        f"{each:.1f} core-us an annotation, {hits:,} matches of {_BATCHES * _BATCH:,}"
    )


def _annotation(random: np.random.Generator, content: Content | None, number: int) -> PublishedAnnotation:
    if content is not None and number % 20 == 0:
        row = int(random.integers(len(content.ra)))
        ra, dec = float(content.ra[row]), float(content.dec[row])
    else:
        ra, dec = float(random.uniform(0, 360)), float(np.degrees(np.arcsin(random.uniform(-1, 1))))
    return PublishedAnnotation(
        survey="ztf", alert_id=number, source_id=number, object_id=f"o{number}", ra=ra, dec=dec, mjd=61000.0,
        class_names=("RRAB", "EA"), probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20, period=0.5,
        parents={"RRLyrae": 0.75, "Eclipsing": 0.25},
    )  # fmt: skip


if __name__ == "__main__":
    main()
