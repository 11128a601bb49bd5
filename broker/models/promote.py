"""Another version for the workers of a repository, while they work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.errors import ConfigurationError, TrifidError
from broker.inference import Engine
from broker.inference.manifest import Manifest
from broker.models.check import Report, check
from broker.models.repository import ModelRepository


@dataclass(frozen=True, slots=True)
class Server:
    """Triton, where it serves the repository."""

    load: Callable[[], None]
    """Have it load what the repository's configuration says; raises what ``load_models`` does."""
    engine: Callable[[str], Engine]
    """The engine that asks it for a version."""
    name: str
    """For messages."""


def load(repository: ModelRepository, version: str, server: Server) -> Report:
    """Have Triton serve ``version`` beside the promoted one, and check its answers: for shadow and canary.

    Raises as ``promote``; then the server has what it had.
    """
    with repository.locked():
        manifest = repository.verify(version)
        return _loaded(repository, manifest, repository.loaded(), server)


def promote(repository: ModelRepository, version: str, server: Server | None) -> Report:
    """Make ``version`` the served one, after it has passed its check where it will run; what the check found.

    Workers see it within seconds, and change over between two batches. Raises ConfigurationError where the version is
    served already, damaged or not to be had from the server, ModelCheckError where its answers are wrong; then
    nothing is changed.
    """
    with repository.locked():
        served = repository.served()
        if served.model_version == version:
            raise ConfigurationError(f"version {version} is served already")
        manifest = repository.verify(version)
        before = (*_before(served), served.model_version)
        if server is None:
            report = check(repository, version)
            report.require()
            repository.pin([manifest, served])
        else:
            report = _loaded(repository, manifest, [served], server)
        repository.serve(version, before)
        return report


def rollback(repository: ModelRepository, server: Server | None) -> Manifest:
    """Serve again the version that was served before; its manifest.

    Its files are checked, its answers are not: it has served. Raises ConfigurationError where none was before, or it
    is damaged or not to be had from the server.
    """
    with repository.locked():
        served = repository.served()
        before = _before(served)
        if not before:
            raise ConfigurationError(f"no version was served before {served.model_version}")
        manifest = repository.verify(before[-1])
        pins = repository.loaded()
        repository.pin([manifest, served])
        if server is not None:
            try:
                server.load()
                _ready(server, manifest)
            except TrifidError:
                _restore(repository, pins, server)
                raise
        return repository.serve(manifest.model_version, before[:-1])


def _before(served: Manifest) -> tuple[str, ...]:
    return () if served.promotion is None else served.promotion.before


def _loaded(repository: ModelRepository, manifest: Manifest, others: Sequence[Manifest], server: Server) -> Report:
    """Have the server load a version beside others, and check its answers there."""
    pins = repository.loaded()
    repository.pin([manifest, *others])
    try:
        server.load()
        _ready(server, manifest)
        report = check(repository, manifest.model_version, server.engine, where=server.name)
        report.require()
    except TrifidError:
        _restore(repository, pins, server)
        raise
    return report


def _ready(server: Server, manifest: Manifest) -> None:
    engine = server.engine(manifest.model_version)
    try:
        engine.check()
    except TrifidError as error:
        raise ConfigurationError(f"{error}: does it serve this repository, with explicit model control?") from error
    finally:
        engine.close()


def _restore(repository: ModelRepository, pins: Sequence[Manifest], server: Server) -> None:
    """Have what was loaded before; the error that led here is the one to tell."""
    repository.pin(pins)
    try:
        server.load()
    except TrifidError:
        return
