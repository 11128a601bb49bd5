"""What serving by Triton costs against ONNX Runtime in the worker's process: objects a second, CPU and latency.

    PYTHONPATH=. python benchmarks/serving.py [--batches 64,256,1024] [--in-flight 1,4] [--instances 1,2] [--threads 2]
        [--ways "shared memory,in parts"] [--starts 5]

Ways of one batch, with the published model and random inputs (the networks do the same work whatever the values are):

- ``embedded``: ONNX Runtime in this process
- ``four requests``: one for each encoder and one for the classifier, in messages (releases before the model ``trifid``)
- ``one request``: to the server's model ``trifid``, in a message
- ``shared memory``: the same, with the inputs in shared memory
- ``in parts``: as a worker does it, a batch in as many such requests at the same time as ``triton.requests_in_flight``
- ``perf_analyzer``: as ``one request``, by Triton's own program where ``--perf-analyzer`` names one that starts here

``--instances`` are those of each model on the CPU, which share its cores: a server of its own for each number.

``--alerts N``: the worker's pipeline, too, from packets of N simulated objects to annotations, their histories in
memory, with ONNX Runtime in this process and with Triton, one request at a time and in parts.

All ways take turns, a round at a time, in an order that changes, and the ratios are medians over the rounds, with their
quartiles, so that other work on the machine falls on all alike. CPU is that of this process and of the server's
processes together, so that it hardly depends on other work; on cores that are fully used it is what limits objects a
second. First of all the first request of each size after a start of the server, ``--starts`` times. At the end
modalities that are absent: light curves alone in ``one request`` against the two models that are needed by themselves.

``--gpu`` is for a machine whose Triton has the models on a GPU, at ``--url``: see ``benchmarks/serving_gpu.sh``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks.workload import perf_analyzer
from benchmarks.workload.first_request import first_requests
from benchmarks.workload.flops import model_flops
from benchmarks.workload.measures import latencies, tree_seconds
from benchmarks.workload.report import table
from broker.assemble.inputs import MODALITIES, ModelInputs
from broker.config import Settings
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from broker.inference.triton import TritonEngine
from deploy.local.triton_server import TritonServer
from tests.random_models import random_inputs

EMBEDDED, FOUR, ONE, SHARED, PARTS = "embedded", "four requests", "one request", "shared memory", "in parts"
WAYS = (FOUR, ONE, SHARED, PARTS)
ANALYZER = "perf_analyzer"
STALLED_S = 0.4
"""A request that takes so much longer than the median has waited for Triton's batcher, which looks every 0.5 s."""
BAR = 0.85
WARM = 8
"""Batches of each way before it is measured, twice ..."""
LOADED_S = 2.0
"""... and the time in which the local Triton's ``trifid`` then loads the models into its own process."""
FIRST = 256
"""Objects of the largest first request; ``pipeline.batch_size``."""
SUBSETS = ("light_curve", "metadata", "light_curve+metadata", "light_curve+spectrum+metadata")


@dataclass(frozen=True, slots=True)
class Measured:
    """One way with one workload."""

    way: str
    modalities: str
    batch: int
    in_flight: int
    instances: int
    objects_a_second: float
    cpu_ms: float
    """CPU of client and server, ms an object; NaN where the server is not on this machine."""
    p50_ms: float
    p99_ms: float
    of_embedded: float
    """Objects a second against ``embedded`` of the same round, median over the rounds."""
    cpu_of_embedded: float
    """CPU of ``embedded`` over this one's, the same."""
    spread: tuple[float, float] = (float("nan"), float("nan"))
    """Quartiles over the rounds of what ``of_embedded`` is the median of."""
    stalled: int = 0
    """Requests that took STALLED_S longer than the median."""
    requests: int = 0


def inputs_of(subset: str, batch: int) -> ModelInputs:
    """A batch of objects that all have the modalities of ``subset`` and no other."""
    present = np.array([name in subset.split("+") for name in MODALITIES])
    return random_inputs(np.repeat(present[None], batch, axis=0))


@contextmanager
def engines(
    url: str, repository: Path, threads: int, ways: Sequence[str]
) -> Iterator[dict[str, OnnxEngine | TritonEngine]]:
    """The engine of each way."""
    with ExitStack() as stack:
        found: dict[str, OnnxEngine | TritonEngine] = {}
        for way in ways:
            engine: OnnxEngine | TritonEngine = (
                OnnxEngine(repository, threads=threads)
                if way == EMBEDDED
                else TritonEngine(
                    url,
                    repository,
                    one_request=way != FOUR,
                    shared_memory=way in (SHARED, PARTS),
                    timeout=120,
                    requests_in_flight=Settings().triton.requests_in_flight if way == PARTS else 1,
                )
            )
            found[way] = stack.enter_context(closing(engine))
        yield found


def once(
    predict: Callable[..., object], inputs: ModelInputs, calls: int, in_flight: int, server: int | None
) -> tuple[float, float, list[float]]:
    """Seconds, CPU seconds and the latency of each of ``calls``; ``server`` is its process, None: it is elsewhere."""

    def call(_: int) -> float:
        start = time.perf_counter()
        predict(inputs)
        return time.perf_counter() - start

    def cpu() -> float:
        return time.process_time() + (float("nan") if server is None else tree_seconds(server))

    with ThreadPoolExecutor(in_flight) as pool:
        spent, start = cpu(), time.perf_counter()
        each = list(pool.map(call, range(calls)))
        return time.perf_counter() - start, cpu() - spent, each


def measure(
    predict: Mapping[str, Callable[..., object]],
    modalities: str,
    batch: int,
    in_flight: int,
    rounds: int,
    calls: int,
    instances: int,
    server: int | None,
) -> list[Measured]:
    """All ways with one workload, in turns."""
    inputs = inputs_of(modalities, batch)
    seconds: dict[str, list[float]] = {way: [] for way in predict}
    cpu: dict[str, list[float]] = {way: [] for way in predict}
    each: dict[str, list[float]] = {way: [] for way in predict}
    order = list(predict)
    for _ in range(2):  # regions, arenas and channels are made, and each instance of trifid loads the models
        for way in order:
            once(predict[way], inputs, max(WARM, in_flight), in_flight, server)
        time.sleep(LOADED_S)
    for number in range(rounds):
        for way in order if number % 2 else order[::-1]:
            took, spent, latency = once(predict[way], inputs, calls, in_flight, server)
            seconds[way].append(took)
            cpu[way].append(spent)
            each[way] += latency

    def against(values: dict[str, list[float]], way: str) -> tuple[float, float, float]:
        """Median and quartiles."""
        if EMBEDDED not in values:
            return (float("nan"),) * 3
        ratios = [e / w for e, w in zip(values[EMBEDDED], values[way], strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return float(middle), float(low), float(high)

    objects = batch * calls
    return [
        Measured(
            way, modalities, batch, in_flight, instances, objects / statistics.median(seconds[way]),
            1e3 * statistics.median(cpu[way]) / objects,
            1e3 * latencies(np.array(each[way]))["p50"], 1e3 * latencies(np.array(each[way]))["p99"],
            against(seconds, way)[0], against(cpu, way)[0], against(seconds, way)[1:],
            int((np.array(each[way]) > statistics.median(each[way]) + STALLED_S).sum()), len(each[way]),
        )
        for way in predict
    ]  # fmt: skip


def markdown(results: Sequence[Measured]) -> str:
    """The table."""
    return table(
        ["way", "modalities", "batch", "in flight", "instances", "objects/s", "core-ms an object", "p50, ms", "p99, ms",
         "of embedded", "quartiles", "of embedded, by CPU"],
        [
            [r.way, r.modalities, str(r.batch), str(r.in_flight), str(r.instances), f"{r.objects_a_second:,.0f}",
             f"{r.cpu_ms:.3f}", f"{r.p50_ms:.1f}", f"{r.p99_ms:.1f}",
             f"{r.of_embedded:.2f}", "{:.2f} to {:.2f}".format(*r.spread), f"{r.cpu_of_embedded:.2f}"]
            for r in results
        ],
    )  # fmt: skip


def plot(results: Sequence[Measured], path: Path) -> None:
    """Objects a second over batch size: a panel for each set of modalities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(r.modalities for r in results))
    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, modalities in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for kind in dict.fromkeys((r.way, r.in_flight, r.instances) for r in results):
            some = [r for r in results if (r.modalities, r.way, r.in_flight, r.instances) == (modalities, *kind)]
            label = f"{kind[0]}, {kind[1]} in flight, {kind[2]} instances"
            axes.plot([r.batch for r in some], [r.objects_a_second for r in some], "o-", label=label)
        axes.set(xlabel="batch", ylabel="objects/s", xscale="log", title=modalities, ylim=(0, None))
        axes.title.set_size(9)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def analyzed(
    program: str, url: str, repository: Path, modalities: str, batch: int, in_flight: int, instances: int, calls: int
) -> Measured:
    """Triton's Performance Analyzer with one workload."""
    nan = float("nan")
    with closing(TritonEngine(url, repository)) as engine:
        signatures = dict(engine._what_is_served().signatures)
    load = perf_analyzer.measure(program, url, inputs_of(modalities, batch), signatures, in_flight, calls)
    return Measured(
        ANALYZER, modalities, batch, in_flight, instances, batch * load.requests_a_second, nan, load.p50_ms,
        load.p99_ms, nan, nan,
    )  # fmt: skip


def with_instances(repository: Path, instances: int, folder: Path) -> Path:
    """A copy of the repository whose models have so many instances on the CPU, which share its cores."""
    copy = Path(shutil.copytree(repository, folder / f"instances-{instances}"))
    threads = max(1, (os.cpu_count() or 1) // instances)
    for model in MODELS:
        path = copy / model / "config.pbtxt"
        text = path.read_text().replace("count: 1, kind: KIND_AUTO", f"count: {instances}, kind: KIND_CPU")
        path.write_text(f"""{text}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}
""")
    return copy


def absent(url: str, repository: Path, batch: int, rounds: int, calls: int, server: int | None) -> float:
    """CPU of ``one request`` for light curves alone, over that of the two models that are needed, less one."""
    inputs = inputs_of("light_curve", batch)
    with engines(url, repository, 0, (FOUR, ONE)) as found:
        predict = {way: engine.predict for way, engine in found.items()}
        ratios = []
        for run in predict.values():
            once(run, inputs, 1, 1, server)
        for _ in range(rounds):
            spent = {way: once(run, inputs, calls, 1, server)[1] for way, run in predict.items()}
            ratios.append(spent[ONE] / spent[FOUR])
    return statistics.median(ratios) - 1


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@click.command()
@click.option("--batches", default="64,256,1024", show_default=True, callback=_numbers)
@click.option("--in-flight", default="1", show_default=True, callback=_numbers, help="Requests at a time.")
@click.option("--instances", default="1", show_default=True, callback=_numbers, help="Of each model, on the CPU.")
@click.option("--perf-analyzer", "program", help="Triton's Performance Analyzer, such as perf_analyzer.")
@click.option("--modalities", default=",".join(SUBSETS), show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--objects", default=1024, show_default=True, help="In each round of each way, at least one batch.")
@click.option("--alerts", default=0, show_default=True, help="Of the worker's pipeline; 0: that is not measured.")
@click.option("--starts", default=1, show_default=True, help="Of the local server, for the first request of each size.")
@click.option("--ways", default=",".join(WAYS), show_default=True, help="Those to measure beside embedded.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of embedded; 0 for one a core.")
@click.option(
    "--in-process/--by-calls",
    default=True,
    show_default=True,
    help="How the local Triton's model trifid runs the others.",
)
@click.option("--url", help="gRPC address of a server that runs; else the local Triton is started.")
@click.option("--gpu", is_flag=True, help="Without embedded; with utilisation and the fraction of the peak.")
@click.option("--peak-tflops", default=67.0, show_default=True, help="Of the GPU in float32: 67 for an H100 SXM.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/serving"), show_default=True)
def main(
    batches: list[int],
    in_flight: list[int],
    instances: list[int],
    program: str | None,
    modalities: str,
    rounds: int,
    objects: int,
    alerts: int,
    starts: int,
    ways: str,
    threads: int,
    in_process: bool,
    url: str | None,
    gpu: bool,
    peak_tflops: float,
    output: Path,
) -> None:
    """Measure, print the table and write it with a plot."""
    repository = Settings().inference.model_repository
    chosen = (
        (ONE, SHARED, PARTS) if gpu else (EMBEDDED, *(way for way in WAYS if way in ways.split(",") or way == PARTS))
    )
    streams: list[str] = []
    results: list[Measured] = []
    if program is not None and (reason := perf_analyzer.why_not(program)):
        click.echo(f"{program} does not start here: {reason}")
        program = None
    firsts, extra = "", float("nan")
    for copies in instances:
        with ExitStack() as stack:
            server: int | None = None
            address = url
            if address is None:
                if copies == instances[0] and starts:
                    sizes = {b: inputs_of("light_curve+metadata", b) for b in batches if b <= FIRST}
                    firsts = first_requests(repository, sizes, starts, in_process=in_process)
                    click.echo(firsts)
                served = repository
                if copies > 1:
                    served = with_instances(repository, copies, Path(stack.enter_context(TemporaryDirectory())))
                started = stack.enter_context(TritonServer(served, in_process=in_process))
                address, server = started.grpc_url, started.pid
            found = stack.enter_context(engines(address, repository, threads, chosen))
            predict = {way: engine.predict for way, engine in found.items()}
            for subset in modalities.split(","):
                for batch in batches:
                    for number in in_flight:
                        calls = max(number, objects // batch, 1)
                        some = measure(predict, subset, batch, number, rounds, calls, copies, server)
                        if program is not None:
                            some.append(
                                analyzed(program, address, repository, subset, batch, number, copies, max(calls, 20))
                            )
                        results += some
                        click.echo(markdown(some).split("\n", 2)[2])
            if alerts:
                # Not imported before: with --gpu the machine may lack what a pipeline needs.
                from benchmarks.workload.in_turn import pipelines

                some_ways = {way: found[way] for way in (EMBEDDED, SHARED, PARTS) if way in found}
                # No more than ``alerts`` make a batch.
                sizes = list(dict.fromkeys(min(batch, alerts) for batch in batches))
                streams.append(f"instances: {copies}\n\n{pipelines(some_ways, sizes, alerts, rounds)}\n")
                click.echo("\n".join(streams))
            if server and copies == instances[0]:
                extra = absent(address, repository, 256, rounds, max(1, objects // 256), server)
    report = [markdown(results), "", *streams, ""]
    if gpu:
        both = [r for r in results if r.modalities == "light_curve+metadata"]  # those that ``model_flops`` counts
        best = max(both, key=lambda r: r.objects_a_second)
        flops = model_flops(repository)
        report.append(
            f"best of {best.modalities}: {best.objects_a_second:,.0f} objects/s "
            f"({best.way}, batch {best.batch}, {best.in_flight} in flight), "
            f"{best.objects_a_second * flops / 1e12:.2f} TFLOP/s, "
            f"{best.objects_a_second * flops / 1e12 / peak_tflops:.1%} of {peak_tflops:g}"
        )
    else:
        held = [r for r in results if r.way == PARTS and r.batch >= 64 and r.in_flight == min(in_flight)]
        worst = min(held, key=lambda r: r.of_embedded)
        report.append(
            f"requests that took {STALLED_S} s longer than the median: {sum(r.stalled for r in results)} of "
            f"{sum(r.requests for r in results)}"
        )
        report.append(
            f"{PARTS} against {EMBEDDED}, lowest: {worst.of_embedded:.2f} ({worst.modalities}, batch {worst.batch}, "
            f"{worst.instances} instances); bar {BAR} {'met' if worst.of_embedded >= BAR else 'missed'}\n"
            f"light curves alone, one request against the two models by themselves: {extra:+.1%} CPU\n"
            f"first request after {starts} starts each, of the median of the next: median (lowest to highest)\n\n"
            f"{firsts}\n\n"
            f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
    text = "\n".join(report)
    click.echo("\n" + text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "serving.md").write_text(text + "\n")
    (output / "serving.json").write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    plot(results, output / "serving.png")


if __name__ == "__main__":
    main()
