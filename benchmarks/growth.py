"""How the cost of an alert grows: with the points known, the batch, the objects in Redis.

    PYTHONPATH=. python benchmarks/growth.py [--alerts 1024] [--large]

The pipeline in this process with real Redis, real ZTF packets and real light curves, as in ``stages.py``; every alert
is one of a known star. CPU time of this thread only, so that others may use the machine meanwhile: what Redis and Kafka
take comes on top (``stream.py``). Where there are more stars than real light curves of that length, curves are used
again at other positions; the table says how many are distinct. ``--large`` adds 100,000 objects.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchmarks.workload.known_stars import Cost, follow
from benchmarks.workload.packets import Kind, templates
from benchmarks.workload.report import table
from benchmarks.workload.stars import read_curves

_SHARED = Path(__file__).resolve().parents[2] / "shared"
_POINTS, _BATCH = 100, 256
_HEAD = ["all", "assemble", "infer", "update_state", "full searches"]


def _row(cost: Cost, alerts: int) -> list[str]:
    full = sum(number for reason, number in cost.searches.items() if reason != "refined")
    stages = [f"{cost.stages[name]:.2f}" for name in _HEAD[1:-1]]
    return [f"{cost.total:.2f}", *stages, f"{full / alerts:.1%}"]


@click.command(help=__doc__)
@click.option("--alerts", default=1024, show_default=True)
@click.option("--large", is_flag=True)
def main(alerts: int, large: bool) -> None:
    try:
        packets = [one for one in templates(_SHARED / "alerts" / "ztf") if one.kind is Kind.REPEAT]
        curves = {points: read_curves(_SHARED / "data", points + 2) for points in (10, 100, 400, 1000)}
    except FileNotFoundError as error:
        print(f"{error}: nothing to measure", file=sys.stderr)
        return
    rows = []
    for points, those in curves.items():
        cost = follow(those, packets, points=points, alerts=alerts, batch=_BATCH, warm_up=_BATCH)
        distinct = min(alerts + _BATCH, len(those))
        rows.append([f"{points}", f"{distinct}", *_row(cost, alerts)])
    print(f"core-ms an alert, {alerts} alerts; batches of {_BATCH} where nothing else is said\n")
    print(table(["points known", "distinct curves", *_HEAD], rows), end="\n\n", flush=True)
    rows = []
    for batch in (1, 16, 64, 256, 1024):
        cost = follow(curves[_POINTS], packets, points=_POINTS, alerts=alerts, batch=batch, warm_up=_BATCH)
        rows.append([str(batch), *_row(cost, alerts)])
    print(table([f"batch ({_POINTS} points)", *_HEAD], rows), end="\n\n", flush=True)
    rows = []
    for stars in (2_000, 10_000, *([100_000] if large else [])):
        cost = follow(
            curves[_POINTS],
            packets,
            points=_POINTS,
            alerts=alerts,
            batch=_BATCH,
            warm_up=_BATCH,
            stars=stars,
            processes=2,
        )
        rows.append([str(stars), *_row(cost, alerts), f"{cost.redis_bytes:.0f}"])
    print(table([f"objects in Redis ({_POINTS} points)", *_HEAD, "bytes of Redis an object"], rows))


if __name__ == "__main__":
    main()
