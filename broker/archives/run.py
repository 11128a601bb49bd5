"""A run over an archive: what is left to do, one map over its partitions by Dask, and the catalogue of the results.

Where a run was interrupted, the same command goes on: partitions with an entry in the ledger are done. A partition that
fails (a damaged file, a missing column, a worker killed twice for its memory) has its reason in the ledger, the rest
goes on, and the next run tries it again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import dask
from dask.distributed import Client, LocalCluster, as_completed
from distributed.system import MEMORY_LIMIT

from broker import __version__
from broker.archives.catalog import write_catalog
from broker.archives.partition import DATASET, Job, write_entry
from broker.archives.sources import Archive, HatsArchive, open_archive
from broker.archives.workers import METHOD, ONE_THREAD, prepare
from broker.config import Settings
from broker.errors import ConfigurationError
from broker.inference.manifest import Manifest, load_manifest
from broker.records import TimeSystem

RUN: Final = "trifid/run.json"
"""What the results in a folder were made from and with."""
_LOCK: Final = "trifid/lock"
_AT_ONCE: Final = 4
"""Partitions given to the scheduler for each worker, each with its own graph: one graph of 10^5 would be looked through
for each of them."""
_DASK: Final = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.multiprocessing-method": METHOD,
    "distributed.nanny.pre-spawn-environ": dict(ONE_THREAD),
}
"""A partition that kills its worker twice fails; nobody looks at the profiles that workers keep of themselves; and
Dask's MALLOC_TRIM_THRESHOLD_ is left out: with it each array is new memory from the system, for 1.6 x the CPU."""


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    partitions: int
    """Of the archive."""
    done: int = 0
    """Partitions that are, those of earlier runs included."""
    before: int = 0
    """Of these, the ones that were done by earlier runs."""
    objects: int = 0
    """In what is done."""
    now: int = 0
    """Of these, the ones of this run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Partitions that could not be classified, with the reason."""
    classes: Counter[str] = field(default_factory=Counter)

    def add(self, entry: dict[str, Any]) -> None:
        """Count a partition that is done, by its entry in the ledger."""
        self.done += 1
        self.objects += entry["objects"]
        self.classes.update(entry["classes"])


def classify_archive(
    name: str,
    output: Path,
    settings: Settings,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    time_system: TimeSystem | None = None,
    known: tuple[tuple[str, Path], ...] = (),
    columns: Mapping[str, str] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Classify the archive ``name`` (see ``open_archive``) into the folder ``output``, going on where a run stopped.

    ``workers`` processes on this machine, or those of the Dask ``scheduler`` at an address, which must see the same
    files. ``columns`` are names of columns by role (see ``Columns.of``). ``report`` is called after each partition.
    Raises InputFileError where the archive cannot be read at all, ConfigurationError where the folder holds the results
    of something else or another run is at work in it.
    """
    archive = open_archive(name, columns or {})
    manifest = load_manifest(settings.inference.model_repository, verify_models=False)
    named = tuple({**archive.columns, **(columns or {})}.items())
    job = Job(output.absolute(), settings, named, time_system, known, manifest.model_version)
    with _only(job.output, _identity(archive, job, manifest)):
        progress = Progress(len(archive.keys))
        left = []
        for key in archive.keys:
            entry = _entry(job, key)
            if entry is None:
                left.append(key)
            else:
                progress.add(entry)
        progress.before = progress.done
        report(progress)
        if left:
            with _client(workers, scheduler) as client:
                _run(client, archive, left, job, progress, report)
        if isinstance(archive, HatsArchive) and progress.objects:
            write_catalog(job.output, [key for key in archive.keys if _has_results(job, key)], archive.name)
    return progress


def _run(
    client: Client,
    archive: Archive,
    keys: list[str],
    job: Job,
    progress: Progress,
    report: Callable[[Progress], None],
) -> None:
    """The map: each partition is a task, at most _AT_ONCE a worker at the scheduler."""
    waiting = iter(keys)
    running: dict[str, str] = {}
    completed = as_completed()

    def submit() -> None:
        key = next(waiting, None)
        if key is not None:
            future = client.compute(archive.task(key, job))
            running[future.key] = key
            completed.add(future)

    for _ in range(_AT_ONCE * max(len(client.scheduler_info()["workers"]), 1)):
        submit()
    for future in completed:
        key = running.pop(future.key)
        entry = _entry(job, key) if future.status == "finished" else None
        if entry is not None:
            progress.add(entry)
            progress.now += entry["objects"]
        else:
            if future.status == "finished":  # the worker wrote why
                failed = json.loads(job.entry(key).read_text())
                if failed.get("configuration"):  # it would be that of each partition
                    raise ConfigurationError(failed["failed"])
                reason = failed["failed"]
            else:
                error = future.exception()
                reason = f"{type(error).__name__}: {error}"
            progress.failed[key] = " ".join(reason.split())[:500]
            write_entry(job, key, {"failed": progress.failed[key]})
        future.release()
        report(progress)
        submit()


def _entry(job: Job, key: str) -> dict[str, Any] | None:
    """A partition's entry in the ledger, None where it is not done."""
    try:
        entry: dict[str, Any] = json.loads(job.entry(key).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return None if "failed" in entry or (entry["objects"] and not job.results(key).exists()) else entry


def _has_results(job: Job, key: str) -> bool:
    entry = _entry(job, key)
    return entry is not None and entry["objects"] > 0


def _identity(archive: Archive, job: Job, manifest: Manifest) -> dict[str, Any]:
    """What decides the results: those of two different ones must not be mixed in a folder."""
    return {
        "archive": archive.name if "://" in archive.name else str(Path(archive.name).resolve()),
        "partitions": len(archive.keys),
        "model": manifest.identity,
        "reference set": str(job.settings.anomaly.reference_set or manifest.reference_set_sha256),
        "threshold of Other": job.settings.inference.other_threshold,
        "probability of a disagreement": job.settings.publish.disagreement_probability,
        "broker's name": job.settings.publish.broker_name,
        "times": None if job.time_system is None else str(job.time_system),
        "known stars": {name: str(file.resolve()) for name, file in job.known},
        "columns": dict(job.columns),
        "Trifid": __version__,
    }


@contextmanager
def _only(output: Path, identity: dict[str, Any]) -> Iterator[None]:
    """One run at a time in the folder, of the archive and model of what is there; else raises ConfigurationError."""
    run = output / RUN
    if output.exists() and not run.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output}: not empty, and not the results of an earlier run")
    run.parent.mkdir(parents=True, exist_ok=True)
    with (output / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"{output}: another run is at work there") from error
        if run.exists():
            before = json.loads(run.read_text())
            other = [f"{name} {before.get(name)!r}" for name in identity if before.get(name) != identity[name]]
            if other:
                raise ConfigurationError(
                    f"{output}: holds results of another run, with {', '.join(other)}: give another folder"
                )
        else:
            run.write_text(json.dumps(identity, indent=1) + "\n")
        for partial in (output / DATASET).rglob(".*.parquet.*"):  # of workers that were killed
            partial.unlink(missing_ok=True)
        yield


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Client]:
    """A client of the scheduler, or of worker processes of its own, each with one thread and its share of memory."""
    if scheduler is not None:
        try:
            client = Client(scheduler)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"no Dask scheduler at {scheduler}: {error}") from error
        with client:
            yield client
        return
    prepare()
    with (
        dask.config.set(_DASK),
        tempfile.TemporaryDirectory(prefix="trifid-") as folder,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=MEMORY_LIMIT // workers,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            local_directory=folder,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
