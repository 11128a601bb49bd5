from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from broker.cli import main
from broker.config import Settings
from broker.config.processing import PublishSettings
from broker.errors import ConfigurationError
from tests.archives import make_hats

DOCS = Path(__file__).resolve().parents[2] / "docs" / "archives.md"
STARS, ROWS = 20, 5
TIMES = ("brokerIngestTimestamp", "brokerPublishTimestamp")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "broker.cli", "classify", *map(str, arguments)]


def archive(source: Path, output: Path, *more: object) -> tuple[int, str, str]:
    """A run of two workers, in a process of its own, as a user starts it: code, stdout, stderr."""
    done = subprocess.run(
        command("--archive", source, "--output", output, "--workers", 2, *more),
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stdout, done.stderr


def plain(*files: Path) -> dict[str, dict[str, Any]]:
    """What ``trifid classify --lightcurves`` says of each star of each file."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        result = CliRunner().invoke(main, ["classify", "--lightcurves", str(file), "--json"])
        assert result.exit_code == 0, result.output
        found |= {r["objectId"]: r for r in map(json.loads, result.stdout.splitlines())}
    return found


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of all results, each star once, nested tables as lists of records, as the JSON lines have them."""
    rows = [row for file in (folder / "dataset").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    for row in rows:
        for name in ("classifications", "neighbours", "knownAs"):
            row[name] = [dict(zip(row[name], values, strict=True)) for values in zip(*row[name].values(), strict=True)]
        for name in ("parents", "anomalyParts"):
            row[name] = dict(zip(row[name]["name"], row[name]["value"], strict=True))
    found = {row["objectId"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def assert_same(rows: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    """Value for value what the plain command says, and the embedding whose nearest neighbour is as far as it says."""
    assert rows.keys() == expected.keys()
    for name, record in expected.items():
        row = rows[name]
        for field, value in record.items():
            if field not in TIMES and not field.endswith("Str"):
                assert row[field] == value or (value is None and np.isnan(row[field])), (name, field)
        best = max(record["classifications"], key=lambda c: c["probability"])
        assert (row["className"], row["probability"]) == (best["className"], best["probability"])
        if best["className"] == "NotClassified":
            assert row["embedding"] is None
        else:
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1.0, abs=1e-5)


@pytest.fixture(scope="module")
def catalogue(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lsdb")
    folder = tmp_path_factory.mktemp("archive") / "dr"
    files = make_hats(shared, folder, STARS, ROWS)
    assert len(files) >= 5
    # A star without points, as a nested column has it: an empty list in each field.
    table = pq.read_table(files[0])
    column = table.schema.get_field_index("lightcurve")
    stars = table["lightcurve"].to_pylist()
    stars[0] = {name: [] for name in stars[0]}
    table = table.set_column(column, table.schema.field(column), pa.array(stars, table.schema.field(column).type))
    pq.write_table(table, files[0])
    return folder


def test_a_killed_run_goes_on_and_gives_what_plain_classify_says(catalogue: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "dr", tmp_path / "classes"
    shutil.copytree(catalogue, source)
    files = sorted((source / "dataset").rglob("Npix=*.parquet"))
    expected = plain(*files)
    ledger = output / "trifid" / "partitions"

    # To open a FIFO waits for a writer: one worker hangs in it, whatever the machine's speed, until the run is killed.
    held = files[-1]
    content = held.read_bytes()
    held.unlink()
    os.mkfifo(held)
    run = subprocess.Popen(
        command("--archive", source, "--output", output, "--workers", 2),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 400
    while len(list(ledger.glob("N*.json"))) < 2:
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    keys = [file.stem.replace(",", "/") for file in ledger.glob("N*.json")]
    done = len(keys)
    assert 2 <= done < len(files)
    entries = {file.name: file.read_text() for file in ledger.glob("N*.json")}
    assert not any("failed" in entry for entry in entries.values()), entries
    before = {file: file.stat() for file in (output / "dataset" / f"{key}.parquet" for key in keys)}
    partial = output / "dataset" / ".Npix=1.parquet.1.2"
    partial.write_bytes(b"of a worker that was killed")

    # The same command goes on; one of the partitions that are left is damaged.
    held.unlink()
    held.write_bytes(content[:3000])
    code, said, errors = archive(source, output)
    assert code == 1, errors
    assert f"{len(files) - 1} of {len(files)} partitions done ({done} before this run), 1 failed" in said
    assert f"{held.relative_to(source / 'dataset').with_suffix('')}: " in errors
    assert not partial.exists()
    for file, stat in before.items():
        assert (file.stat().st_mtime_ns, file.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino)

    # Fixed, it alone is done.
    held.write_bytes(content)
    shell, python = re.findall(r"```(?:console|python)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    documented, _, last = shell.splitlines()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    again = subprocess.run(
        documented.removeprefix("$ "), shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    said = again.stdout.splitlines()[-1]
    assert said == f"{len(files)} of {len(files)} partitions done ({len(files) - 1} before this run), 0 failed: classes"
    assert last == said.replace(f"({len(files) - 1} before", "(0 before")
    rows = rows_of(output)
    assert len(rows) == STARS
    assert_same(rows, expected)
    without = [row["reason"] for row in rows.values() if row["className"] == "NotClassified"]
    assert len(without) == 1
    assert "0 usable photometric points" in without[0]
    opened = subprocess.run(
        [sys.executable, "-c", python + _VALID], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    sure = {name for name, row in rows.items() if row["className"] == "RRAB" and row["probability"] > 0.9}
    assert sure
    assert {line.split()[1] for line in opened if line.split()[1:2] and line.split()[1] in rows} == sure
    assert opened[-1] == "True"


_VALID = """
from hats.io.validation import is_valid_catalog
print(is_valid_catalog("classes", strict=True))
"""


_OTHER_LAYOUTS = """
import json, shutil, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import dask, lsdb, pyarrow as pa, pyarrow.parquet as pq
from broker.archives.partition import Job
from broker.archives.sources import open_archive
from broker.config import Settings
from broker.errors import InputFileError

dask.config.set(scheduler="synchronous")
source, folder = sys.argv[1], Path(sys.argv[2])
catalog = lsdb.open_catalog(source)
options = {"as_collection": False, "progress_bar": False}
catalog.write_catalog(folder / "structs", write_table_kwargs={"list_struct": True}, **options)
found = []
for name in (source, folder / "structs"):
    archive = open_archive(str(name))
    key, job = archive.keys[-1], Job(folder / f"classes {len(found)}", Settings())
    archive.task(key, job).compute()
    kind = pq.read_schema(Path(name) / "dataset" / f"{key}.parquet").field("lightcurve").type
    found.append((pa.types.is_list(kind), pq.read_table(job.results(key), columns=["objectId", "period", "embedding"])))
print([is_list for is_list, _ in found], found[0][1] == found[1][1], len(found[0][1]) > 0)

# A folder for each partition, as at IRSA, of two files: first whole, then the second without points.
shutil.copytree(source, folder / "folders")
for file in (folder / "folders" / "dataset").rglob("Npix=*.parquet"):
    table = pq.read_table(file)
    file.unlink()
    file.with_suffix("").mkdir()
    pq.write_table(table.slice(0, 1), file.with_suffix("") / "part0.parquet")
    pq.write_table(table.slice(1), file.with_suffix("") / "part1.parquet")
properties = folder / "folders" / "hats.properties"
lines = [line for line in properties.read_text().splitlines() if not line.startswith("hats_npix_suffix")]
properties.write_text("\\n".join([*lines, "hats_npix_suffix=/", ""]))
archive, job = open_archive(str(folder / "folders")), Job(folder / "classes 2", Settings())
archive.task(key, job).compute()
again = pq.read_table(job.results(key), columns=["objectId", "period", "embedding"])
print(again.sort_by("objectId") == found[0][1].sort_by("objectId"))
file = folder / "folders" / "dataset" / key / "part1.parquet"
pq.write_table(pq.read_table(file).drop_columns(["lightcurve"]), file)
archive.task(key, job).compute()
print(json.loads(job.entry(key).read_text())["failed"].startswith("no column lightcurve; the partition has objectid"))

archive, job = open_archive(str(folder / "structs")), Job(folder / "classes 1", Settings())
file = folder / "structs" / "dataset" / f"{key}.parquet"
pq.write_table(pq.read_table(file).drop_columns(["lightcurve"]), file)
archive.task(key, job).compute()
print(json.loads(job.entry(key).read_text())["failed"].startswith("no column lightcurve; the partition has objectid"))
points = catalog[["objectid", "objra", "objdec"]]
points = points.map_partitions(lambda f: f.assign(hmjd=58000.0, mag=15.0, magerr=0.01))
points.write_catalog(folder / "points", **options)
try:
    open_archive(str(folder / "points"))
except InputFileError as error:
    print("one time a row" in str(error))
"""


_LOOK = """
import multiprocessing, os, sys
from broker.archives.workers import METHOD, prepare

def look(queue):
    queue.put([sorted({"lsdb", "onnxruntime"} & set(sys.modules)), os.environ["OMP_NUM_THREADS"]])

if __name__ == "__main__":
    prepare()
    context = multiprocessing.get_context(METHOD)
    queue = context.Queue()
    process = context.Process(target=look, args=(queue,))
    process.start()
    print(queue.get(), os.environ["OMP_NUM_THREADS"])
    process.join()
"""


def test_workers_begin_with_what_they_need_and_one_thread_each(tmp_path: Path) -> None:
    """LSDB is imported once for all; ONNX Runtime, which starts threads, in each; the run itself keeps its threads."""
    script = tmp_path / "look.py"
    script.write_text(_LOOK)
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout == "[['lsdb'], '1'] 3\n", done.stderr


def test_other_layouts_of_hats(catalogue: Path, tmp_path: Path) -> None:
    """Lists of structs give what structs of lists give; a missing column and one row a point are said."""
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_LAYOUTS, catalogue, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[False, True] True True", "True", "True", "True", "True"]


def test_another_run_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("lsdb")
    source, output = tmp_path / "lc", tmp_path / "classes"
    source.mkdir()
    (source / "a.parquet").write_bytes(b"")
    (output / "trifid").mkdir(parents=True)
    (output / "trifid" / "run.json").write_text(json.dumps({"archive": "another", "model": "1"}))
    arguments = ["classify", "--archive", str(source), "--output", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "holds results of another run, with archive 'another', partitions None, model '1'" in result.stderr
    (output / "thesis.tex").write_text("")
    shutil.rmtree(output / "trifid")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "not empty, and not the results of an earlier run" in result.stderr


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (PublishSettings(broker_name="Another"), "broker's name 'Trifid'"),
        (PublishSettings(disagreement_probability=0.99), "probability of a disagreement 0.95"),
    ],
)
def test_a_run_does_not_go_on_with_other_values_in_its_rows(tmp_path: Path, other: PublishSettings, said: str) -> None:
    pytest.importorskip("lsdb")
    from broker.archives.run import classify_archive

    class RunInterruptedError(Exception):
        pass

    def interrupt(_: object) -> None:
        raise RunInterruptedError

    source, output = tmp_path / "lc", tmp_path / "classes"
    source.mkdir()
    (source / "a.parquet").write_bytes(b"")
    for _ in range(2):  # the same run may go on
        with pytest.raises(RunInterruptedError):
            classify_archive(str(source), output, Settings(), report=interrupt)
    with pytest.raises(ConfigurationError, match=f"holds results of another run, with {said}: give another folder"):
        classify_archive(str(source), output, Settings(publish=other), report=interrupt)


def test_a_folder_of_parquet_files_with_bad_ones(catalogue: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "lc", tmp_path / "classes"
    (source / "field 1").mkdir(parents=True)
    table = pq.read_table(sorted((catalogue / "dataset").rglob("Npix=*.parquet"))[-1]).drop_columns(["_healpix_29"])
    pq.write_table(table, source / "field 1" / "a,b.parquet")
    pq.write_table(table.slice(0, 0), source / "empty.parquet")
    pq.write_table(table.drop_columns(["lightcurve"]), source / "stars.parquet")
    (source / "damaged.parquet").write_bytes(b"PAR1 no")
    code, said, errors = archive(source, output)
    assert code == 1
    assert "2 of 4 partitions done (0 before this run), 2 failed" in said
    assert "damaged: " in errors
    assert "stars: " in errors
    assert "no column for the time" in errors
    assert_same(rows_of(output), plain(source / "field 1" / "a,b.parquet"))
    assert not (output / "dataset" / "empty.parquet").exists()


def test_archives_that_cannot_be_used_are_refused_at_once(tmp_path: Path) -> None:
    run = CliRunner()
    result = run.invoke(main, ["classify", "--archive", str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no HATS catalogue (hats.properties) and no Parquet file in it" in result.stderr
    result = run.invoke(main, ["classify", "--archive", str(tmp_path)])
    assert result.exit_code == 2
    assert "--archive goes with --output FOLDER" in result.stderr
    result = run.invoke(main, ["classify", str(tmp_path), "--workers", "2"])
    assert result.exit_code == 2
    assert "--workers goes with --archive FOLDER" in result.stderr
