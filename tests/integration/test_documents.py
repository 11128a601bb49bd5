"""Every command and program of README and docs/ runs here, beside one line of the tutorial, or says why it cannot.

Files that the documents name are small ones of the same kind. What is changed before a command runs is in this
module: ports, names of objects, and an end for what reads on for ever.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from astropy.table import Table

from broker.build import build_similar
from broker.cli import main
from broker.config import load_settings
from broker.embedded.ports import free_port
from broker.similar.search import UnknownToSetsError
from broker.surveys.simulator import simulate_alerts
from deploy.site.notebook import FOLDER, SECTIONS
from tests.documents import LANGUAGES, ROOT, Block, blocks, documents
from tests.unit.catalog.test_known_catalogs import fixed
from tests.unit.catalog.test_tables import gaia, write_astropy, write_csv
from tests.unit.spectra.fake_files import lamost_dr5, made_up

CANNOT: Final = {
    r"(\w+=\S+ )?docker ": "Docker: tests/unit/test_compose.py and test_images.py check the files",
    r"helm |kubectl ": "Kubernetes: tests/unit/test_chart.py renders and checks the chart",
    r"kafka-transactions\.sh ": "Kafka's own tool: tests/faults/test_servers.py does the same on a real Kafka",
    r"tritonserver ": "Triton with TLS: tests/faults/test_security.py",
    r"make |source \.venv|python3 -m venv|(\.venv/bin/)?pip install": "sets up a checkout: deploy/first_use.py",
    r"\.venv/bin/ruff|\.venv/bin/python -m pytest|\.venv/bin/pip": "the test suite itself",
    r"(\.venv/bin/)?trifid demo": "is the line that all of this runs beside",
    r"python -m deploy\.local\.(triton_server|torch_programs)": "see integration/test_triton_repository.py",
    r"python -m training|torchrun": "trains for minutes to hours: tests/unit/training has it on small data",
    r"trifid run|TRIFID_LOG_LEVEL=": "goes on until it is stopped: tests/integration/test_run.py",
    r"trifid web --config": "goes on until it is stopped: the line's page is the same server",
    r"trifid models ": "needs a second trained model: tests/integration/test_model_promotion.py, tests/unit/models",
    r"trifid classify --archive": "a scheduler with workers: tests/integration/test_archives.py",
    r"trifid drift": "compares a day with others: tests/integration/test_drift_in_redis.py, tests/unit/drift",
    r"trifid classify .* --catalog": "large tables of others: tests/unit/cli/test_classify_modalities.py",
    r"trifid reference (build|promote|rollback)": "many objects: tests/integration/test_reference_from_stream.py",
    r"trifid discover vsx": "minutes on the catalogues named: docs/examples.md has it on a small one",
}
"""Commands that do not run here, as they begin, and why."""
CANNOT_PYTHON: Final = {
    "lsdb.open_catalog": "reads what `trifid classify --archive` wrote: tests/integration/test_archives.py",
}
ENDS: Final = ("--idle", "1")
"""Added to `trifid subscribe` where it would wait for ever."""
CHANGED: Final = {
    'group_id="my-rr-lyrae")': 'group_id="my-rr-lyrae", start="earliest", idle_timeout=1.0)',
    "idle_timeout=5.0": "idle_timeout=1.0",
    "--idle 5": "--idle 1",
    "kafka:///alerts.ztf": "kafka:///alerts.demo",
    # What deletes state deletes nothing that another document or notebook asks for: all share one line.
    "state forget ZTF18abcdefg": "state forget ZTF18aaaaaab",
    "--between 58300 58400": "--between 50000 50100",
    "localhost:9092": "{kafka}",
    "broker:9092": "{kafka}",
    "http://127.0.0.1:8080": "{page}",
    "ZTF18abcdefg": "{star}",
    "ZTF18aaaaadv": "{star}",
}
"""Texts of the documents, and what stands for them here."""


@dataclass(frozen=True, slots=True)
class Line:
    """The tutorial's line."""

    folder: Path
    page: str
    kafka: str
    star: str
    """An object that it has classified, with a period."""

    def changed(self, text: str) -> str:
        for old, new in CHANGED.items():
            text = text.replace(old, new.format(kafka=self.kafka, page=self.page, star=self.star))
        return text


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """``trifid demo --web --keep demo.toml`` with few objects, and the files that documents name."""
    folder = tmp_path_factory.mktemp("reader")
    port = free_port()
    command = [sys.executable, "-m", "broker.cli", "demo", "--objects", "12", "--web", "--keep", "demo.toml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIFID_SHARED": str(folder / "absent")}
    with (folder / "demo.log").open("w") as log:
        demo = subprocess.Popen(
            [*command, "--web-port", str(port)], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 300
        while "look at" not in (folder / "demo.log").read_text():
            assert demo.poll() is None, (folder / "demo.log").read_text()[-2000:]
            assert time.monotonic() < end
            time.sleep(0.2)
        told = (folder / "demo.toml").read_text()
        # A service beside it has an index of its own.
        own = re.sub(r"(?m)^database = .*$", 'database = "sqlite:///mine.sqlite"', told)
        assert own != told
        (folder / "trifid.toml").write_text(own)
        materials(folder)
        with (folder / "demo.toml").open("rb") as file:
            kafka = tomllib.load(file)["kafka"]["bootstrap_servers"]
        line = Line(folder, f"http://127.0.0.1:{port}", kafka, "ZTF18aaaaaal")
        give_spectrum(line)
        yield line
    finally:
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(300) == 0, (folder / "demo.log").read_text()[-2000:]
    assert "reconciled" in (folder / "demo.log").read_text()
    assert not (folder / "demo.toml").exists()


def give_spectrum(line: Line) -> None:
    """Have the line classify its object again, upon a spectrum."""
    config = ["--config", str(line.folder / "trifid.toml")]
    name = ["--survey", "ztf", "--object-id", line.star, "--ra", "15", "--dec", "25"]
    trifid(["spectra", "send", str(line.folder / "spectrum.fits"), *name, *config])
    where = ["--where", 'trigger == "spectrum"', "--from-beginning", "--limit", "1", "--idle", "60"]
    trifid(["subscribe", "trifid.ztf.all", *where, *config])
    end = time.monotonic() + 300
    with closing(build_similar(load_settings(line.folder / "trifid.toml"))) as similar:
        while True:  # written behind the annotation
            try:
                similar.vector_of(("ztf", line.star), "spectrum")
                return
            except UnknownToSetsError:
                assert time.monotonic() < end
                time.sleep(0.1)


def materials(folder: Path) -> None:
    """Small files under the names that documents use."""
    packets = [alert.payload for alert in simulate_alerts(2, 8, seed=9)]
    (folder / "recent_v4.02.avro").write_bytes(packets[0])
    for name in ("ztf_public_20261101.tar.gz", "night.tar.gz"):
        with tarfile.open(folder / name, "w:gz") as archive:
            for number, packet in enumerate(packets):
                member = tarfile.TarInfo(f"{number}.avro")
                member.size = len(packet)
                archive.addfile(member, io.BytesIO(packet))
    (folder / "nights").mkdir()
    (folder / "nights/0.avro").write_bytes(packets[1])
    # Light curves: RR Lyrae stars in the layouts named.
    rng = np.random.default_rng(3)
    mjd = np.sort(58300 + 9 * np.arange(80) + rng.uniform(0, 0.3, 80))
    phase = mjd / 0.5432 % 1
    mag = 14 + np.where(phase < 0.15, 1 - phase / 0.15, (np.maximum(phase - 0.15, 0) / 0.85) ** 0.6)
    points = {"name": ["my star"] * 80, "mjd": mjd, "mag": mag, "magerr": np.full(80, 0.02)}
    for name in ("asassn_lc_gaia.parquet", "ztf_dr3_vsx.parquet"):
        pq.write_table(pa.table({**points, "ra": np.full(80, 10.5), "dec": np.full(80, -3.2)}), folder / name)
    for name in ("my-star.csv", "my-stars.csv"):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([points, *zip(*points.values(), strict=True)])
    irsa = ROOT / "tests/data/cases/01-ztf-dr-irsa-csv/irsa.csv.gz"
    (folder / "irsa.csv").write_bytes(gzip.decompress(irsa.read_bytes()))
    # Spectra.
    star = lamost_dr5(made_up())
    (folder / "spec-56591-EG000023S013308B_sp01-001.fits.gz").write_bytes(gzip.compress(star))
    (folder / "spectrum.fits").write_bytes(star)
    (folder / "lamost").mkdir()
    (folder / "lamost/one.fits").write_bytes(star)
    wavelength = np.arange(3800.0, 9000.0, 2.0)
    spectrum = np.column_stack([wavelength, 1 + 1e-4 * (wavelength - 6000), np.full_like(wavelength, 0.02)])
    np.savetxt(folder / "mine.csv", spectrum, delimiter=",", header="wavelength,flux,error", comments="")
    np.savetxt(folder / "night7.txt", spectrum)
    # Catalogues.
    (folder / "gaia_source").mkdir()
    write_csv(folder / "gaia_source/1.csv.gz", gaia(50))
    two_mass = {"ra": np.array([10.5]), "dec": np.array([-3.2]), "j_m": np.array([12.0])}
    write_astropy(folder / "2mass.fits", {**two_mass, "h_m": np.array([11.8]), "k_m": np.array([11.7])})
    wise = {"ra": np.array([10.5]), "dec": np.array([-3.2]), "w1mpro": np.array([11.5]), "w2mpro": np.array([11.4])}
    write_csv(folder / "allwise.csv.gz", wise)
    pq.write_table(pa.table({"lon": [269.45], "lat": [4.7], "V": [13.0]}), folder / "stars.parquet")
    fixed(folder / "vsx.dat")
    fixed(folder / "vsx.dat.gz")
    star_of_gcvs = {"GCVS": ["R And"], "RAJ2000": ["00 24 01.99"], "DEJ2000": ["+38 34 37.1"], "VarType": ["M"]}
    with (folder / "gcvs.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([star_of_gcvs, *zip(*star_of_gcvs.values(), strict=True)])
    Table({name: np.array(values) for name, values in star_of_gcvs.items()}).write(folder / "gcvs.fits")
    pq.write_table(pa.table({"name": ["my star"], "ra": [10.5], "dec": [-3.2], "type": ["EW"]}), folder / "vsx.parquet")
    named = {"Name": ["my star"], "RAdeg": [10.5], "DEdeg": [-3.2], "Class": ["RRAB"]}
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Name", "ra", "dec", "Class"], *zip(*named.values(), strict=True)])
    (folder / "stars.csv").write_text("name,ra,dec\nmine,15.0,25.0\n")


def reason(command: str) -> str | None:
    """Why a command does not run here; None where it does."""
    return next((why for begins, why in CANNOT.items() if re.match(begins, command)), None)


def trifid(arguments: list[str]) -> None:
    if arguments[0] == "subscribe" and not {"--idle", "--limit", "--lag"} & set(arguments):
        arguments = [*arguments, *ENDS]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main.main(arguments, prog_name="trifid")
        except SystemExit as end:
            code = end.code
    assert code in (None, 0), f"trifid {shlex.join(arguments)}: {out.getvalue()[-2000:]}"


def run(command: str, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in re.split(r" && ", command):
        words = shlex.split(line.changed(part))
        if words[0] == "export":
            monkeypatch.setenv(*words[1].replace("$PWD", str(Path.cwd())).split("=", 1))
        elif words[0] == "trifid":
            trifid(words[1:])
        elif words[0] == "curl":
            done = subprocess.run([*words, "--fail-with-body", "-sS"], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{part}: {done.stdout}{done.stderr}"
        else:
            pytest.fail(f"{part}: neither runs here nor has a reason in CANNOT")


@pytest.mark.parametrize("document", [d for d in documents() if any(b.language != "text" for b in blocks(d))])
def test_what_a_document_tells_to_type(document: str, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(line.folder)
    monkeypatch.setenv("TRIFID_CONFIG", "trifid.toml")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names: dict[str, object] = {}
    for block in blocks(document):
        where = f"{document}:{block.line}"
        if block.language in ("bash", "console"):
            for command in block.commands():
                if reason(command) is None:
                    run(command, line, monkeypatch)
        elif block.language == "python" and not any(text in block.text for text in CANNOT_PYTHON):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(line.changed(block.text), where, "exec"), names)
        elif block.language == "toml":
            check_settings(block, monkeypatch)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text), where


SEEN: Final = {
    "similar-objects": "cosine 0.",
    "wrong-labels": "1 0.9",
    "outliers": "once",
    "subclasses": "RRAB: subclasses",
}
"""What the outputs of each notebook have in them."""


@pytest.mark.parametrize("name", SECTIONS)
def test_a_notebook_runs_and_shows_a_figure(name: str, line: Line, tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = line.changed(cell.source)
            if cell.source.startswith("!"):
                cell.source += "\nassert _exit_code == 0"
    nbformat.write(notebook, line.folder / f"{name}.ipynb")  # type: ignore[no-untyped-call]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "IPYTHONDIR": str(tmp_path / "ipython"),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "jupyter-execute"), f"{name}.ipynb", "--inplace", "--timeout", "300"]
    done = subprocess.run(command, cwd=line.folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = nbformat.read(line.folder / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    outputs = [output for cell in ran.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert SEEN[name] in said, said[-3000:]


def check_settings(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("block.toml")
    path.write_text(block.text)
    with monkeypatch.context() as context:
        context.delenv("TRIFID_CONFIG")
        load_settings(path)


def test_each_block_says_what_it_is() -> None:
    found = [block for document in documents() for block in blocks(document)]
    assert len(found) > 60
    assert [f"{b.document}:{b.line}: {b.language}" for b in found if b.language not in LANGUAGES] == []


def test_reasons_are_of_commands_that_are_there() -> None:
    every = [block for document in documents() for block in blocks(document)]
    commands = [c for b in every if b.language in ("bash", "console") for c in b.commands()]
    assert [begins for begins in CANNOT if not any(re.match(begins, command) for command in commands)] == []
    assert [text for text in CANNOT_PYTHON if not any(text in b.text for b in every if b.language == "python")] == []
    assert sum(reason(command) is None for command in commands) > 50


def test_a_command_that_is_neither_run_nor_explained_fails(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.fail.Exception, match="neither runs here nor has a reason"):
        run("kubectl get pods", line, monkeypatch)
    with pytest.raises(AssertionError, match="No such option"):
        run("trifid subscribe trifid.ztf.all --no-such-option", line, monkeypatch)


def test_commands_are_read_as_a_shell_reads_them() -> None:
    block = Block("a.md", 1, "bash", "one 'a # b' \\\n  two   # three\n# four\n\nfive \"six # seven\"")
    assert block.commands() == ["one 'a # b'    two", 'five "six # seven"']
    assert Block("a.md", 1, "bash", "one '{\n  two}' three\nfour").commands() == ["one '{\n  two}' three", "four"]
    assert Block("a.md", 1, "console", "$ one  # two\nprinted\n$ three").commands() == ["one", "three"]
