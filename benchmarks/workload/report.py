"""The results of ``benchmarks/stream.py`` as tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def plain(options: Any) -> dict[str, Any]:
    """The fields of a dataclass, for JSON."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {
        n: {str(k): v for k, v in value.items()} if isinstance(value, dict) else value for n, value in values.items()
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(about: Mapping[str, Any]) -> str:
    """The whole report."""
    machine, state, options = about["machine"], about["state"], about["options"]
    out = [
        f"`benchmarks/stream.py {about['command']}`".replace(" `", "`"),
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, Python {machine['python']}, Redis "
        f"{state['redis']}; {options['workers']} worker(s), engine {options['engine']}. Kafka, Redis, producer and "
        "subscriber are on the same cores.",
        f"State: {state['objects']} stars from {state['curves']} real light curves, {state['points_mean']:.0f} points "
        f"each in the mean; {state['redis_bytes_an_object']:.0f} bytes of Redis an object, "
        f"{state['redis_bytes_a_point']:.1f} a point.",
    ]
    runs = about["runs"]
    closed = [run for run in runs if run["run"] != "open"]
    if closed:
        out.append(
            table(
                ["closed run", "alerts", "new / repeat / moving", "kB a packet", "alerts/s", "classified",
                 "NotClassified", "dead letters", "other processes, cores"],
                [
                    [
                        run["run"], str(run["alerts"]), _mix(run), f"{run['bytes_a_packet'] / 1e3:.0f}",
                        f"{run['alerts_a_second']:.0f}", *_counts(run), f"{run['cores_of_others']:.2f}",
                    ]
                    for run in closed
                ],
            )
        )  # fmt: skip
    for run in runs:
        if run["run"] == "open":
            rows = [
                [row["part"], str(row["alerts"]), *(f"{row[name]:.2f}" for name in ("p50", "p95", "p99", "max")),
                 f"{row['done_after']:.1f}"]
                for row in run["latency_s"]
            ]  # fmt: skip
            out.append(table(["open run", "alerts", "p50, s", "p95, s", "p99, s", "max, s", "all read after, s"], rows))
            classified, unclassified, dead = _counts(run)
            out.append(
                f"{run['alerts']} alerts ({_mix(run)}) = {classified} classified + {unclassified} NotClassified + "
                f"{dead} dead letters; the producer was late by {run['producer_late_s']:.2f} s at most, other "
                f"processes took {run['cores_of_others']:.2f} cores. ![latency](latency.png)"
            )
    stages = sorted(runs[0]["core_ms_by_stage"], key=lambda name: -runs[0]["core_ms_by_stage"][name])
    out.append(
        table(
            ["core-ms an alert, in the workers", *(run["run"] for run in runs)],
            [
                *([name, *(f"{run['core_ms_by_stage'].get(name, 0.0):.3f}" for run in runs)] for name in stages),
                ["outside of stages (Kafka's client, other threads)", *_column(runs, "core_ms_outside")],
                ["**all**", *_column(runs, "core_ms")],
                *(
                    [f"besides: {name}", *(f"{run['core_ms_of_servers'][name]:.3f}" for run in runs)]
                    for name in runs[0]["core_ms_of_servers"]
                ),
                ["memory of a worker, MiB, at most", *(str(max(run["worker_mib"])) for run in runs)],
            ],
        )
    )
    return "\n\n".join(out) + "\n"


def _column(runs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [f"{run[name]:.3f}" for run in runs]


def _mix(run: Mapping[str, Any]) -> str:
    return " / ".join(f"{100 * share:.0f} %" for share in run["mix"].values())


def _counts(run: Mapping[str, Any]) -> list[str]:
    return [str(run["counts"][name]) for name in ("classified", "not_classified", "dead_lettered")]


def plot(series: NDArray[np.float64], path: Path) -> None:
    """Latency of each alert over when it was due, and how many had at most which; ``series`` is (2, alerts)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    due, latency = series[:, ~np.isnan(series[1])]
    left.plot(due, latency, ",", color="tab:blue")
    left.set(xlabel="alert due, s from the start", ylabel="latency, s", yscale="log")
    ordered = np.sort(latency)
    right.plot(ordered, 100.0 * np.arange(1, len(ordered) + 1) / len(ordered), color="tab:blue")
    right.set(xlabel="latency, s", ylabel="% of all alerts", xscale="log", ylim=(0, 101))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
