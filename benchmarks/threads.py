"""How the threads of a CPU are best used for a batch: within each operation, or for parts of the batch.

    PYTHONPATH=. python benchmarks/threads.py [--batches 1,16,64,256] [--threads 2]

The published model in ONNX Runtime in this process, light curves and metadata:

- ``one``: one thread
- ``within``: threads share each operation (ONNX Runtime's own), of a batch in parts that fit the cache
- ``parts``: threads share the batch's objects, each with the whole model; what the service does

The three take turns; medians over the rounds of wall and CPU time, and of the ratio to ``within`` of the same round.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import closing

import click
import onnxruntime

from benchmarks.serving import inputs_of
from benchmarks.workload.report import table
from broker.config import Settings
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine

ONE, WITHIN, PARTS = "one", "within", "parts"


@click.command()
@click.option("--batches", default="1,16,64,256", show_default=True)
@click.option("--threads", default=0, help="0 for one a core.", show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--objects", default=256, show_default=True, help="In each round of each way, at least two batches.")
def main(batches: str, threads: int, rounds: int, objects: int) -> None:
    """Measure and print the table."""
    repository = Settings().inference.model_repository
    rows = []
    with (
        closing(OnnxEngine(repository, threads=1)) as one,
        closing(OnnxEngine(repository, threads=1)) as within,
        closing(OnnxEngine(repository, threads=threads)) as parts,
    ):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for model in MODELS:
            path = repository / within.manifest.path_of(model)
            within._sessions[model] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        engines = {ONE: one, WITHIN: within, PARTS: parts}
        for batch in map(int, batches.split(",")):
            inputs, calls = inputs_of("light_curve+metadata", batch), max(2, objects // batch)
            wall: dict[str, list[float]] = {way: [] for way in engines}
            cpu: dict[str, list[float]] = {way: [] for way in engines}
            for number in range(rounds):
                for way, engine in list(engines.items())[:: 1 if number % 2 else -1]:
                    engine.predict(inputs)
                    spent, start = time.process_time(), time.perf_counter()
                    for _ in range(calls):
                        engine.predict(inputs)
                    wall[way].append((time.perf_counter() - start) / calls)
                    cpu[way].append((time.process_time() - spent) / calls)
            for way in engines:
                cells = [way, str(batch)]
                for found in (wall, cpu):
                    ratio = statistics.median(w / t for w, t in zip(found[WITHIN], found[way], strict=True))
                    cells += [f"{1e3 * statistics.median(found[way]):.2f}", f"{ratio:.2f}"]
                rows.append(cells)
    click.echo(table(["way", "batch", "wall, ms", f"{WITHIN} / it", "CPU, ms", f"{WITHIN} / it"], rows))
    click.echo(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
