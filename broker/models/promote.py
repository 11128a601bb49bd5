"""Another version for the workers of a repository, while they work.

A server is told twice: first to load the version beside all that it has, and, once the version has become the served
one, to unload what nobody uses. So nothing is unloaded that a worker asks for, and nothing before its successor is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError
from broker.inference import Engine
from broker.inference.manifest import MODELS, Manifest
from broker.models.check import Report, check
from broker.models.repository import ModelRepository

_RECENT_S: Final = 300.0
"""What a request has asked for so short a time before the latest request is in use, by whomever."""
Numbers = Mapping[str, set[int]]
"""Triton's versions of each of MODELS."""


@dataclass(frozen=True, slots=True)
class Server:
    """Triton, where it serves the repository."""

    load: Callable[[], None]
    """Have it load what the repository's configuration says; raises what ``load_models`` does."""
    engine: Callable[[str], Engine]
    """The engine that asks it for a version."""
    name: str
    """For messages."""
    loaded: Callable[[], Mapping[str, Mapping[int, float]]]
    """What it has loaded, and when each was last asked for, seconds by its own clock; raises as ``load``."""
    in_use: Callable[[], Mapping[str, list[str]]]
    """The workers that say they use each version, by ``Manifest.identity``; raises DependencyUnavailableError."""
    tell: Callable[[str], None] = lambda _: None
    """Is told what stays loaded, and why."""


def load(repository: ModelRepository, version: str, server: Server) -> Report:
    """Have Triton serve ``version`` beside the promoted one, and check its answers: for shadow and canary.

    Raises as ``promote``; then the server has what it had.
    """
    with repository.locked():
        manifest = repository.verify(version)
        report = _loaded(repository, manifest, repository.needed(), server)
        _unload(repository, [manifest, *repository.needed()], server)
        return report


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
            repository.pin(repository.numbers([manifest, served]))
        else:
            report = _loaded(repository, manifest, [served], server)
        repository.serve(version, before)
        if server is not None:
            _unload(repository, [manifest, served], server)
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
        if server is None:
            repository.pin(repository.numbers([manifest, served]))
        else:
            with _Beside(repository, [manifest, served], server):
                _ready(server, manifest)
        found = repository.serve(manifest.model_version, before[:-1])
        if server is not None:
            _unload(repository, [manifest, served], server)
        return found


def _before(served: Manifest) -> tuple[str, ...]:
    return () if served.promotion is None else served.promotion.before


def _loaded(repository: ModelRepository, manifest: Manifest, others: Iterable[Manifest], server: Server) -> Report:
    """Have the server load a version beside all that it has, others among it, and check its answers there."""
    with _Beside(repository, [manifest, *others], server):
        _ready(server, manifest)
        report = check(repository, manifest.model_version, server.engine, where=server.name)
        report.require()
    return report


class _Beside:
    """The server with more versions than it had; it has what it had where the context ends with an error."""

    def __init__(self, repository: ModelRepository, manifests: Iterable[Manifest], server: Server) -> None:
        self._repository, self._server = repository, server
        self._manifests = list(manifests)

    def __enter__(self) -> None:
        has = self._server.loaded()
        pinned, numbers = self._repository.pinned(), self._repository.numbers(self._manifests)
        self._had = {model: set(has.get(model, {})) or pinned[model] for model in MODELS}
        self._repository.pin({model: self._had[model] | numbers[model] for model in MODELS})
        try:
            self._server.load()
        except BaseException:  # such as Ctrl-C, while a large model is loaded
            self._restore()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._restore()

    def _restore(self) -> None:
        """Have what was loaded before; the error that led here is the one to tell."""
        self._repository.pin(self._had)
        try:
            self._server.load()
        except TrifidError:
            return


def _ready(server: Server, manifest: Manifest) -> None:
    engine = server.engine(manifest.model_version)
    try:
        engine.check()
    except TrifidError as error:
        raise ConfigurationError(f"{error}: does it serve this repository, with explicit model control?") from error
    finally:
        engine.close()


def _unload(repository: ModelRepository, needed: Iterable[Manifest], server: Server) -> None:
    """Have the server unload what is neither needed nor in use. Never raises: what is served is served."""
    try:
        has = server.loaded()
        keep = _in_use(repository, server, has)
        numbers = repository.numbers(needed)
        keep = {model: numbers[model] | keep[model] for model in MODELS}
        repository.pin(keep)
        if any(set(has.get(model, {})) - keep[model] for model in MODELS):
            server.load()
    except TrifidError as error:
        server.tell(f"what nobody uses is not unloaded: {error}")


def _in_use(repository: ModelRepository, server: Server, has: Mapping[str, Mapping[int, float]]) -> Numbers:
    """What the server has loaded and somebody uses."""
    try:
        workers = server.in_use()
    except DependencyUnavailableError as error:
        server.tell(f"all that is loaded stays, since nobody can say who uses it: {error}")
        return {model: set(has.get(model, {})) for model in MODELS}
    used = [manifest for manifest in _manifests(repository) if manifest.identity in workers]
    for manifest in used:
        server.tell(f"{manifest.model_version} is in use by {', '.join(workers[manifest.identity])}")
    named = repository.numbers(used)
    # Workers of earlier releases, or with another Redis, say nothing; what they ask for is seen.
    latest = max((at for versions in has.values() for at in versions.values()), default=0.0)
    return {
        model: {n for n, at in has.get(model, {}).items() if n in named[model] or (at and latest - at < _RECENT_S)}
        for model in MODELS
    }


def _manifests(repository: ModelRepository) -> list[Manifest]:
    """Of all versions that can be read."""
    found = []
    for version in repository.versions():
        try:
            found.append(repository.manifest(version))
        except ConfigurationError:
            continue
    return found
