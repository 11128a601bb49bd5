"""The parts of the service as the settings ask for them: it knows all packages, and so is in none."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from broker.anomaly import stored
from broker.anomaly.calibration import with_scores
from broker.anomaly.reference_set import ReferenceSet
from broker.avro.compiler import check_schema
from broker.avro.registry import SchemaRegistry
from broker.catalog.memory import MemoryCatalogs
from broker.config import InferenceSettings, Settings, TritonSettings, in_clear
from broker.drift.stored import DriftStore, space_of
from broker.drift.watch import Counter as DriftCounter
from broker.drift.watch import DriftWatch
from broker.errors import ConfigurationError
from broker.feedback.learned import Learned
from broker.inference.manifest import Manifest, load_manifest
from broker.models.candidate import Candidate
from broker.models.repository import reference_set_path
from broker.pipeline import Pipeline
from broker.publish.messages import Publisher
from broker.publish.registered import RegisteredWriter, annotation_registry
from broker.publish.topics import OutputTopics
from broker.records import ObservedSpectrum
from broker.redis_client import RedisConnection
from broker.reference.versions import Versions
from broker.similar.keeper import Keeper
from broker.similar.plane import Plane
from broker.similar.search import Similar
from broker.similar.sets import OFF, Sets
from broker.similar.translate import Translator
from broker.state import Store
from broker.state.admin import StateAdmin
from broker.state.memory import MemoryStore
from broker.state.objects import Limits
from broker.state.redis import DAY, RedisStore
from broker.surveys import Decoder, load_surveys
from broker.surveys.columns import ANY_TIME
from broker.surveys.lsst_schemas import lsst_schema

if TYPE_CHECKING:  # the engine that the settings name is imported alone: gRPC takes a tenth of a worker's start
    from broker.inference.onnx import OnnxEngine
    from broker.inference.triton import TritonEngine
    from broker.inference.triton_client import TritonTls

    AnyEngine = OnnxEngine | TritonEngine

log = logging.getLogger(__name__)


def build_engine(
    inference: InferenceSettings,
    triton: TritonSettings,
    version: str | None = None,
    *,
    retries: int | None = None,
    by_modality: bool = False,
) -> AnyEngine:
    """The engine that ``inference.engine`` names, of a version in the repository, the served one where None.

    ``retries`` wins over ``triton.retries``; ``by_modality`` is whether Triton is asked for the embeddings of each
    modality, which are there anyhow without it. Raises ConfigurationError where the engine cannot be used.
    """
    if inference.engine == "onnx":
        from broker.inference.onnx import OnnxEngine

        return OnnxEngine(inference.model_repository, version=version, threads=inference.threads)
    from broker.inference.triton import TritonEngine

    return TritonEngine(
        triton.url,
        inference.model_repository,
        version=version,
        timeout=triton.timeout_s,
        retries=triton.retries if retries is None else retries,
        tls=triton_tls(triton),
        one_request=triton.one_request == "auto",
        requests_in_flight=triton.requests_in_flight,
        shared_memory=triton.shared_memory == "auto",
        by_modality=by_modality,
    )


def triton_tls(triton: TritonSettings) -> TritonTls | None:
    """The files of a TLS connection to Triton; None where it is to be without."""
    from broker.inference.triton_client import TritonTls

    tls = TritonTls(triton.root_certificates, triton.private_key, triton.certificate_chain)
    return tls if triton.tls else None


def local_pipeline(
    settings: Settings | None = None,
    catalogs: MemoryCatalogs | None = None,
    version: str | None = None,
    spectra: Iterable[ObservedSpectrum] = (),
) -> Pipeline:
    """A pipeline without servers: ONNX Runtime in this process, whatever engine the service has; objects in memory.

    ``settings`` are the defaults where not given, ``catalogs`` of known variable stars and of values, ``version`` one
    of the model repository's, the served one where None, ``spectra`` those of objects in alerts, by a name in a survey
    or a position. It keeps that version, whatever is promoted later. Raises ConfigurationError where the model or its
    reference set cannot be used.
    """
    from broker.inference.onnx import OnnxEngine

    settings = settings or Settings()
    engine = OnnxEngine(settings.inference.model_repository, version=version, threads=settings.inference.threads)
    reference = load_reference_set(settings, engine.manifest.model_version)
    store = MemoryStore(catalogs=catalogs)
    store.put_observed([one for one in spectra if one.survey is not None or math.isfinite(one.ra + one.dec)])
    return build_pipeline(settings, build_decoder(settings), store, engine, reference)


def build_pipeline(
    settings: Settings,
    decoder: Decoder,
    store: Store,
    engine: AnyEngine,
    reference: ReferenceSet,
    progress: Callable[[], None] = lambda: None,
    similar: Keeper | None = None,
    candidate: Candidate | None = None,
    learned: Learned | None = None,
    drift: DriftCounter | None = None,
) -> Pipeline:
    """A pipeline of these parts, with all that the settings say of it; raises ConfigurationError as ``Pipeline``."""
    return Pipeline(
        decoder,
        store,
        engine,
        engine.manifest,
        reference,
        batch_size=settings.pipeline.batch_size,
        period_search_growth=settings.pipeline.period_search_growth,
        other_threshold=settings.inference.other_threshold,
        disagreement_probability=settings.publish.disagreement_probability,
        similar=similar,
        candidate=candidate,
        learned=learned,
        drift=drift,
        progress=progress,
    )


def build_decoder(settings: Settings) -> Decoder:
    """What decodes messages, with the schema registry where one is set; raises ConfigurationError."""
    registry = settings.schema_registry
    schemas = SchemaRegistry(
        registry.url,
        cache_dir=registry.cache_dir,
        username=registry.username,
        password=in_clear(registry.password),
        ca_location=registry.ca_location,
        certificate_location=registry.certificate_location,
        key_location=registry.key_location,
        key_password=in_clear(registry.key_password),
        timeout_s=registry.timeout_s,
        fallback=lsst_schema,
        check=check_schema,
    )
    return Decoder(
        settings.surveys,
        schemas,
        settings.pipeline.future_days,
        max_alerts=settings.pipeline.max_message_alerts,
        max_bytes=settings.pipeline.max_message_mib * 1024 * 1024,
    )


def build_store(settings: Settings, *, read_only: bool = False) -> RedisStore:
    """The store in Redis; it connects when it is used. ``read_only`` as ``RedisStore`` has it."""
    state = settings.state
    return RedisStore(
        settings.redis.address(),
        Limits(state.max_points, state.association_radius_arcsec, state.spectrum_radius_arcsec),
        expiry_days=state.expiry_days,
        wait_replicas=settings.redis.wait_replicas,
        read_only=read_only,
    )


def build_state_admin(settings: Settings) -> StateAdmin:
    """What shows, forgets and repairs single objects in Redis; it connects when it is used."""
    connection = RedisConnection(settings.redis.address(), replicas=settings.redis.wait_replicas)
    times = {survey.name: getattr(survey, "times", ANY_TIME) for survey in load_surveys(settings.surveys)}
    return StateAdmin(connection, times, max(1, int(settings.state.expiry_days * DAY)))


def build_keeper(settings: Settings, model: str) -> Keeper | None:
    """What keeps the embeddings of the stream in vector sets, not yet started; None where the settings want none.

    ``model`` is ``Manifest.identity`` of the engine's.
    """
    if not settings.similar.enabled:
        return None
    return Keeper(
        RedisConnection(settings.redis.address()), model,
        expiry_days=settings.state.expiry_days, growth=settings.similar.growth,
    )  # fmt: skip


def build_drift(settings: Settings) -> DriftWatch | None:
    """What counts the stream and says whether it drifts, not yet started; None where the settings want none."""
    if not settings.drift.enabled:
        return None
    return DriftWatch(RedisConnection(settings.redis.address()), settings.drift.window_hours)


def build_drift_store(settings: Settings) -> DriftStore:
    """Counts and baseline of the served version and its reference set; raises as ``reference_set_in_redis``."""
    reference = reference_set_in_redis(settings)
    return DriftStore(RedisConnection(settings.redis.address()), space_of(reference))


def build_similar(settings: Settings, version: str | None = None) -> Similar:
    """What finds similar objects by a version of the model, the served one where None; it connects when it is used.

    Raises ConfigurationError where the model's manifest cannot be read, or the settings keep no embeddings.
    """
    if not settings.similar.enabled:
        raise ConfigurationError(OFF)
    manifest = load_manifest(settings.inference.model_repository, version, verify_models=False)
    sets = Sets(RedisConnection(settings.redis.address()), manifest.identity)
    return Similar(
        sets, settings.state.expiry_days, lambda: Translator(load_reference_set(settings, manifest.model_version)),
        manifest.model_version, lambda: Plane.of(load_reference_set(settings, manifest.model_version)),
    )  # fmt: skip


def load_reference_set(settings: Settings, version: str | None = None) -> ReferenceSet:
    """The file of a version's reference set, of the served one where None, with the calibration beside it.

    Raises ConfigurationError where one of them cannot be read, or is not the manifest's, or not the set's.
    """
    _, path, sha256 = _reference_file(settings, version)
    return with_scores(ReferenceSet.load_npz(path, sha256), path)


def _reference_file(settings: Settings, version: str | None = None) -> tuple[Manifest, Path, str | None]:
    """The manifest of a version, where its reference set's file should be, and the checksum that it must have.

    A set that the operator names has no checksum but its own; that it is the model's is checked in any case.
    """
    repository = settings.inference.model_repository
    manifest = load_manifest(repository, version, verify_models=False)
    if settings.anomaly.reference_set is not None:
        return manifest, settings.anomaly.reference_set, None
    if manifest.reference_set_sha256 is None:
        raise ConfigurationError(
            f"the manifest of {manifest.identity} in {repository} names no reference set: "
            f"make one with `python -m training reference-set`"
        )
    return manifest, reference_set_path(repository, manifest), manifest.reference_set_sha256


def build_publisher(settings: Settings) -> Publisher:
    """What turns annotations into messages; raises ConfigurationError where a survey's module cannot be used."""
    surveys = tuple(survey.name for survey in load_surveys(settings.surveys))
    publish = settings.publish
    for name in publish.elasticc_surveys:
        if name not in surveys:
            raise ConfigurationError(f"publish.elasticc_surveys: {name} is none of {', '.join(surveys)}")
    topics = OutputTopics(publish.topic_prefix, settings.anomaly.threshold, surveys, publish.elasticc_surveys)
    return Publisher(topics, publish.broker_name, publish.dead_letter_max_bytes, _registered_writer(settings))


def _registered_writer(settings: Settings) -> RegisteredWriter | None:
    """What writes annotations by a registered schema; None where the settings name no registry."""
    registry = annotation_registry(settings.annotation_registry)
    if registry is None:
        return None
    return RegisteredWriter(
        registry, settings.annotation_registry.subject, write=settings.annotation_registry.register_schema
    )


def reference_set_in_redis(settings: Settings, version: str | None = None, *, strict: bool = False) -> ReferenceSet:
    """The reference set of a version that is in use: the model's own, or one made from the stream and promoted.

    Of the model's own what is missing in Redis, or another, is put there from the file. Where the promoted one cannot
    be used the model's own is, and that is logged; with ``strict`` it is an error. A set that the settings name always
    wins. Raises DependencyUnavailableError where Redis is unavailable, ConfigurationError where no set can be used.
    """
    reference, identity = own_reference_set(settings, version)
    if settings.anomaly.reference_set is not None:
        return reference
    with closing(reference_versions(settings, identity)) as versions:
        try:
            return versions.in_use(reference)
        except ConfigurationError as error:
            if strict:
                raise
            log.error("the reference set of the model is used: %s", error)
            return reference


def own_reference_set(settings: Settings, version: str | None = None) -> tuple[ReferenceSet, str]:
    """A version's own set, as ``reference_set_in_redis``, whatever is in use; and ``Manifest.identity``."""
    manifest, path, sha256 = _reference_file(settings, version)
    reference = stored.shared(settings.redis.address(), manifest.identity, path, sha256)
    return stored.shared_scores(settings.redis.address(), reference, path), manifest.identity


def reference_versions(settings: Settings, identity: str | None = None) -> Versions:
    """The sets made from the stream for a model (``Manifest.identity``), the served one where None."""
    if identity is None:
        identity = load_manifest(settings.inference.model_repository, verify_models=False).identity
    return Versions(stored.connect(settings.redis.address()), identity)


def put_reference_set(settings: Settings) -> ReferenceSet:
    """Put the reference set's file into Redis as its model's, replacing an earlier one; raises as the above."""
    manifest, path, sha256 = _reference_file(settings)
    reference = ReferenceSet.load_npz(path, sha256)
    reference.check_model(manifest.identity, reference.embeddings.shape[1])
    stored.put(settings.redis.address(), manifest.identity, path.read_bytes())
    return stored.shared_scores(settings.redis.address(), reference, path)
