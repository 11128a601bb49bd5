"""How the cost of an alert grows: with the points known, the batch, the objects in Redis.

    PYTHONPATH=. python benchmarks/growth.py [--alerts 1024] [--stars 2000 --stars 10000]
    PYTHONPATH=. python benchmarks/growth.py --only objects --stars 10000 --stars 100000 --stars 1000000

The pipeline in this process with real Redis, real ZTF packets and real light curves, as in ``stages.py``; every alert
is one of a known star. CPU time of this thread only, so that others may use the machine meanwhile: what Redis and Kafka
take comes on top (``stream.py``). Where there are more stars than real light curves of that length, curves are used
again at other positions; the table says how many are distinct. Objects in Redis beyond those of the alerts are written
without a search of their periods, with a kept search of the usual size. A million of 100 points take 4 GB of Redis.
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
@click.option("--stars", default=(2_000, 10_000), multiple=True, show_default=True, help="Objects in Redis.")
@click.option("--only", type=click.Choice(["points", "batch", "objects"]), help="One of the tables; else all.")
def main(alerts: int, stars: tuple[int, ...], only: str | None) -> None:
    lengths = (10, _POINTS, 400, 1000) if only in (None, "points") else (_POINTS,)
    try:
        packets = [one for one in templates(_SHARED / "alerts" / "ztf") if one.kind is Kind.REPEAT]
        curves = {points: read_curves(_SHARED / "data", points + 2) for points in lengths}
    except FileNotFoundError as error:
        print(f"{error}: nothing to measure", file=sys.stderr)
        return
    print(f"core-ms an alert, {alerts} alerts; batches of {_BATCH} where nothing else is said\n")
    rows = []
    for points, those in curves.items() if only in (None, "points") else ():
        cost = follow(those, packets, points=points, alerts=alerts, batch=_BATCH, warm_up=_BATCH)
        distinct = min(alerts + _BATCH, len(those))
        rows.append([f"{points}", f"{distinct}", *_row(cost, alerts)])
    if rows:
        print(table(["points known", "distinct curves", *_HEAD], rows), end="\n\n", flush=True)
    rows = []
    for batch in (1, 16, 64, 256, 1024) if only in (None, "batch") else ():
        cost = follow(curves[_POINTS], packets, points=_POINTS, alerts=alerts, batch=batch, warm_up=_BATCH)
        rows.append([str(batch), *_row(cost, alerts)])
    if rows:
        print(table([f"batch ({_POINTS} points)", *_HEAD], rows), end="\n\n", flush=True)
    rows = []
    for count in stars if only in (None, "objects") else ():
        cost = follow(
            curves[_POINTS],
            packets,
            points=_POINTS,
            alerts=alerts,
            batch=_BATCH,
            warm_up=_BATCH,
            stars=count,
            processes=2,
        )
        rows.append([str(count), *_row(cost, alerts), f"{cost.alerts_a_second:.0f}", f"{cost.redis_bytes:.0f}"])
    if rows:
        head = [f"objects in Redis ({_POINTS} points)", *_HEAD, "alerts/s, one process", "bytes of Redis an object"]
        print(table(head, rows))


if __name__ == "__main__":
    main()
