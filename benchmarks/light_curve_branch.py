"""What the branch of light curves costs an object, against an earlier version: its inputs and its encoder.

    PYTHONPATH=. python benchmarks/light_curve_branch.py [--commit 180fc6f]

The commit, by default that of model 2026.11.24.2, is unpacked into a temporary folder and measured by this file, with
the packages of this environment. Real stars of ZTF's data release in g and r, random points of them, in batches of 64,
the same for both: ``assemble`` from an object's state (times, selection, period, features, folding, and the metadata's
values that are made from the same points), and ONNX Runtime with the version's own encoder, on one thread. CPU time of
the process, so that other work on the machine counts less; the two take turns, and medians of the rounds are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from broker.assemble import assemble
from broker.photometry import magnitude_to_flux
from broker.records import BAND_CODE, LightCurve, ObjectState

ROOT = Path(__file__).resolve().parents[1]
BAR = 1.5
BATCH = 64
POINTS = (20, 100, 400, 1500)
"""Random points of each star; stars with fewer are left out."""
INPUTS = ("points", "points_mask", "folded", "features")
_BANDS = ("ztf:g", "ztf:r")


def objects(path: Path, points: int) -> list[ObjectState]:
    """BATCH stars with this number of points in both bands."""
    found = []
    table = pq.read_table(path, columns=["name", "ra", "dec", "mjd", "mag", "mag_err", "band"])
    for number, row in enumerate(table.to_pylist()):
        mjd, mag, error = (np.array(row[name], np.float64) for name in ("mjd", "mag", "mag_err"))
        band = np.array([BAND_CODE[b] if b in _BANDS else 255 for b in row["band"]], np.uint8)
        usable = np.flatnonzero((band != 255) & np.isfinite(mag) & (error > 0))
        if len(usable) < points:
            continue
        chosen = np.random.default_rng(number).permutation(usable)[:points]
        chosen = chosen[np.argsort(mjd[chosen], kind="stable")]
        flux, flux_error = magnitude_to_flux(mag[chosen], error[chosen])
        curve = LightCurve(
            mjd[chosen], flux.astype(np.float32), flux_error.astype(np.float32), np.zeros(points, np.float32),
            band[chosen], np.zeros(points, np.uint8),
        )  # fmt: skip
        found.append(ObjectState(row["name"], row["ra"], row["dec"], curve))
        if len(found) == BATCH:
            break
    return found


@threadpool_limits.wrap(limits=1)
def measure(repository: Path, data: Path) -> list[tuple[float, float]]:
    """CPU milliseconds an object of inputs and encoder, for each of POINTS."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(repository / "light_curve_encoder" / "1" / "model.onnx", options)
    result = []
    for points in POINTS:
        states = objects(data / "multiband" / "ztf_dr3_vsx.parquet", points)
        both = []
        for repeat in range(4):
            start = time.process_time()
            inputs = assemble(states).light_curve
            assembled = time.process_time()
            session.run(["embedding"], {name: getattr(inputs, name) for name in INPUTS})
            if repeat:  # the first compiles
                both.append((assembled - start, time.process_time() - assembled))
        result.append(tuple(1e3 * statistics.median(own) / len(states) for own in zip(*both, strict=True)))
    return [(first, second) for first, second in result]


@click.command(help=__doc__)
@click.option("--commit", default="180fc6f", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--shared", type=click.Path(path_type=Path), default=ROOT.parent / "shared", envvar="TRIFID_SHARED")
@click.option("--measure", "only", is_flag=True, hidden=True, help="Measure the version in PYTHONPATH, as JSON.")
def main(commit: str, rounds: int, shared: Path, only: bool) -> None:
    if only:
        click.echo(json.dumps(measure(Path(os.environ["PYTHONPATH"]) / "model_repo", shared / "data")))
        return
    with TemporaryDirectory() as folder:
        old = Path(folder)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        times = [[_child(tree, shared) for tree in (old, ROOT)] for _ in range(rounds)]
    medians = np.median(np.array(times), axis=0)
    versions = (commit, "now")
    click.echo(
        f"| points in g and r | {' | '.join(f'{v}: inputs | {v}: encoder' for v in versions)} | ratio of the sums |"
    )
    click.echo("|---:" * 6 + "|")
    for number, points in enumerate(POINTS):
        (a, b), (c, d) = medians[:, number]
        click.echo(f"| {points} | {a:.2f} | {b:.2f} | {c:.2f} | {d:.2f} | {(c + d) / (a + b):.2f} |")
    click.echo(f"core-ms an object; the ratio may be at most {BAR}")


def _child(tree: Path, shared: Path) -> list[list[float]]:
    """What ``measure`` gives in a process of its own with the code and the model in ``tree``."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TRIFID_SHARED": str(shared)}
    command = [sys.executable, __file__, "--measure"]
    output = subprocess.run(command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE).stdout
    found: list[list[float]] = json.loads(output)
    return found


if __name__ == "__main__":
    main()
