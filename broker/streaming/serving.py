"""The model that a worker runs, and its change for another version that was promoted, without a stop.

A thread of its own looks at the repository's ``manifest.json``, which ``trifid models promote`` and ``rollback``
replace, and at which reference set ``trifid reference promote`` and ``rollback`` have named in Redis. It loads the
other one while that at hand goes on; between two batches the work thread then takes the new one. So a batch has one
version, with its own thresholds and one reference set, and each annotation says which.
The same thread keeps the leases of the versions in use, which Triton does not unload (``broker.models.leases``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from broker.anomaly.reference_set import ReferenceSet
from broker.batch import BatchResult, IncomingMessage
from broker.build import build_engine, build_keeper, reference_set_in_redis
from broker.config import Settings
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.inference.manifest import Manifest, load_manifest
from broker.metrics import MODEL_SWITCHES, REFERENCE_FROM_STREAM
from broker.models.leases import Leases
from broker.models.repository import fingerprint
from broker.pauses import jittered
from broker.pipeline import Pipeline
from broker.redis_client import RedisConnection
from broker.reference.versions import Versions
from broker.similar.keeper import Keeper
from broker.streaming.health import wrong_device

if TYPE_CHECKING:
    from broker.build import AnyEngine

log = logging.getLogger(__name__)

_LOOK_S: Final = 2.0
_FIRST_PAUSE_S: Final = 5.0
"""Before a version that cannot be loaded is tried again, on average; doubled each time."""
_MAX_PAUSE_S: Final = 120.0
_NOT_SEEN: Final = b"\0"
"""What ``Versions.signature`` never is."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One version, ready to be used."""

    engine: AnyEngine
    reference: ReferenceSet
    keeper: Keeper | None
    """Of the embeddings that this version makes."""

    @property
    def name(self) -> str:
        """The version with that of its reference set."""
        return f"{self.engine.model_version} with reference set {self.reference.version}"


class Serving:
    """The version in use. ``prepare`` and ``process`` are for the work thread, the rest for any."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Callable[[AnyEngine, ReferenceSet, Keeper | None], Pipeline],
        on_model: Callable[[str], None],
        note: Callable[[str | None], None],
    ) -> None:
        """Load the models of the served version; raises ConfigurationError where they cannot be used.

        ``pipeline`` makes one of a version; ``on_model`` is told which is in use, ``note`` what keeps a promoted one
        from it.
        """
        self._settings, self._make, self._on_model, self._note = settings, pipeline, on_model, note
        self._path = settings.inference.model_repository / "manifest.json"
        self.leases = Leases(settings.redis.address(), f"{settings.kafka.group_id}/{settings.kafka.worker_id}")
        """What this worker uses; of a candidate, too."""
        self._seen = fingerprint(self._path)
        self._redis = RedisConnection(settings.redis.address())
        self._pause, self._again = _FIRST_PAUSE_S, 0.0
        self._set_pause, self._set_again = _FIRST_PAUSE_S, 0.0
        self._set_seen: dict[str, bytes | None] = {}
        """What said which reference set of a model was in use when it was loaded, by ``Manifest.identity``."""
        self._engine, self._keeper = self._build()
        self._pipeline: Pipeline | None = None
        self._next: Model | None = None
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._watch: threading.Thread | None = None

    def prepare(self) -> Callable[[Sequence[IncomingMessage]], BatchResult]:
        """Make the pipeline of the served version, and watch for others from then on.

        Raises DependencyUnavailableError where Redis or Triton is unavailable, ConfigurationError where the version
        cannot be used.
        """
        model = self._complete(self._engine, self._keeper)
        self._use(model)
        if self._watch is None:
            self._watch = threading.Thread(target=self._look, name="promotions", daemon=True)
            self._watch.start()
        return self.process

    def process(self, messages: Sequence[IncomingMessage]) -> BatchResult:
        """``Pipeline.process_next`` of the version in use, which may be another one each time."""
        if self._next is not None:
            self._change()
        assert self._pipeline is not None  # ``prepare`` gave this method
        return self._pipeline.process_next(messages)

    def check(self) -> None:
        """``Engine.check`` of the version in use."""
        self._engine.check()

    def device(self) -> str | None:
        """``Engine.device`` of the version in use."""
        return self._engine.device()

    def close(self) -> None:
        """Release the models; a version that is being loaded is dropped when it is."""
        self._end.set()
        with self._lock:
            waiting, self._next = self._next, None
        if waiting is not None and waiting.engine is not self._engine:
            self._drop(waiting.engine, waiting.keeper)
        self._drop(self._engine, self._keeper)
        self._redis.close()
        self.leases.close()

    def _build(self, version: str | None = None) -> tuple[AnyEngine, Keeper | None]:
        settings = self._settings
        # Combined anomaly scores need them, whether similar objects are kept or not.
        engine = build_engine(settings.inference, settings.triton, version, by_modality=True)
        return engine, build_keeper(settings, engine.model_version)

    def _complete(self, engine: AnyEngine, keeper: Keeper | None) -> Model:
        """The engine's version with its reference set, both seen to be usable, and from now on in use."""
        self.leases.hold(engine, engine.model_version)
        engine.check()
        if device := wrong_device(self._settings.inference.device, engine.device()):
            where = ", ".join(f"{model} on {what}" for model, what in engine.placement().items())
            raise ConfigurationError(f"{device} ({where})")
        reference = self._reference(engine)
        reference.check_model(engine.model_version, engine.embedding_width())
        if keeper is not None:
            keeper.start()
        return Model(engine, reference, keeper)

    def _reference(self, engine: AnyEngine, *, strict: bool = False) -> ReferenceSet:
        """The set of the engine's model in use; unless ``strict`` its own where the promoted one cannot be used."""
        # Before it is loaded: what is promoted meanwhile is then seen to be another one.
        signature = Versions(self._redis, engine.model_version).signature()
        version = engine.manifest.model_version
        try:
            reference = reference_set_in_redis(self._settings, version, strict=True)
        except ConfigurationError as error:
            if strict:
                raise
            reference = reference_set_in_redis(self._settings, version)
            self._refuse(f"a reference set of {engine.model_version}", error)
        self._set_seen[engine.model_version] = signature
        return reference

    def _use(self, model: Model) -> None:
        """Take a version; where this raises, the one before is as it was."""
        # The server first: what a pipeline shares with others, such as people's answers, is then of this version.
        device = model.engine.device()
        pipeline = self._make(model.engine, model.reference, model.keeper)
        self._pipeline, self._engine, self._keeper = pipeline, model.engine, model.keeper
        loaded = {"model": model.engine.model_version, "reference_set": model.reference.version, "device": device}
        REFERENCE_FROM_STREAM.set(model.reference.base is not None)
        log.info("model %s, on %s", model.name, device, extra=loaded)
        self._on_model(model.name)

    def _change(self) -> None:
        # The lock is held meanwhile: `_load` compares what is promoted with what is in use.
        with self._lock:
            model, self._next = self._next, None
            if model is None:
                return
            before = self._engine, self._keeper
            try:
                self._use(model)
            except Exception as error:  # whatever it is, the version at hand goes on
                self._refuse(model.name, error)
                # What was at fault, such as a server that was unavailable, may be gone when it is loaded again.
                if model.engine is self._engine:
                    self._set_seen[self._engine.model_version] = _NOT_SEEN
                    self._set_later()
                else:
                    self._drop(model.engine, model.keeper)
                    self._seen = None
                    self._later()
                return
            self._pause = _FIRST_PAUSE_S
        if model.engine is not before[0]:
            # Not here: what it has to write of its embeddings may take seconds.
            threading.Thread(target=self._drop, args=before, name="replaced", daemon=True).start()
        MODEL_SWITCHES.labels("done").inc()
        self._note(None)

    def _refuse(self, version: str, error: Exception) -> None:
        MODEL_SWITCHES.labels("failed").inc()
        text = f"{version} was promoted and cannot be used, {self._engine.model_version} goes on: {error}"
        log.error("%s", text)
        self._note(text)

    def _look(self) -> None:
        """Renew the leases, and watch ``manifest.json`` and which reference set is in use, until the end."""
        while not self._end.wait(_LOOK_S):
            self.leases.renew()
            self._look_for_reference()
            self._look_for_version()

    def _look_for_version(self) -> None:
        """Load another version where one was promoted, for the work thread to take."""
        found = fingerprint(self._path) if self._settings.inference.follow_promotions else None
        if found is None or found == self._seen or time.monotonic() < self._again:
            return
        # Before it is loaded: the work thread, which takes it, has it loaded again where that fails.
        self._seen = found
        version = "a version"
        try:
            manifest = load_manifest(self._settings.inference.model_repository, verify_models=False)
            version = manifest.identity
            self._load(manifest)
        except Exception as error:  # whatever it is, the version at hand goes on
            self._refuse(version, error)
            self._seen = None
            self._later()

    def _later(self) -> None:
        self._again = time.monotonic() + jittered(self._pause)
        self._pause = min(2 * self._pause, _MAX_PAUSE_S)

    def _set_later(self) -> None:
        self._set_again = time.monotonic() + jittered(self._set_pause)
        self._set_pause = min(2 * self._set_pause, _MAX_PAUSE_S)

    def _look_for_reference(self) -> None:
        """Load another reference set of the model in use where one was promoted, for the work thread to take."""
        with self._lock:
            engine, keeper, waiting = self._engine, self._keeper, self._next is not None
        if waiting or time.monotonic() < self._set_again or self._settings.anomaly.reference_set is not None:
            return  # what waits is loaded with its own
        name = "a reference set"
        try:
            signature = Versions(self._redis, engine.model_version).signature()
            if signature == self._set_seen.get(engine.model_version):
                self._set_pause = _FIRST_PAUSE_S
                return
            reference = self._reference(engine, strict=True)
            name = reference.version
            reference.check_model(engine.model_version, engine.embedding_width())
        except DependencyUnavailableError as error:
            log.debug("which reference set is in use is not known: %s", error)
        except Exception as error:  # whatever it is, the set at hand goes on
            self._refuse(f"{name} of {engine.model_version}", error)
            self._set_later()
        else:
            with self._lock:
                if self._engine is engine and self._next is None and not self._end.is_set():
                    self._next = Model(engine, reference, keeper)

    def _load(self, manifest: Manifest) -> None:
        """Load a version that was promoted, for the work thread to take."""
        with self._lock:
            waiting = self._next
            # A reference set of the version in use stays: it is promoted, whatever becomes of this.
            if waiting is not None and waiting.engine is not self._engine:
                self._next = None
            else:
                waiting = None
        if waiting is not None:  # since whose promotion no batch has come
            self._drop(waiting.engine, waiting.keeper)
        current = self._engine.manifest
        if manifest.model_version == current.model_version:
            if manifest.sha256 != current.sha256 or manifest.reference_set_sha256 != current.reference_set_sha256:
                raise ConfigurationError("its files have changed under the same version: give them another one")
            self._note(None)
            self._pause = _FIRST_PAUSE_S
            return
        engine, keeper = self._build(manifest.model_version)
        try:
            model = self._complete(engine, keeper)
        except BaseException:
            self._drop(engine, keeper)
            raise
        with self._lock:
            if self._end.is_set():
                self._drop(engine, keeper)
                return
            if self._next is not None:  # a reference set of the version at hand, which goes on should this be refused
                self._set_seen[self._engine.model_version] = _NOT_SEEN
            self._next = model

    def _drop(self, engine: AnyEngine, keeper: Keeper | None) -> None:
        """Release the models of a version; embeddings that wait to be written are written first."""
        if keeper is not None:
            keeper.close()
        engine.close()
        self.leases.release(engine)
