"""Every metric of the service, once. Prometheus conventions: base units, ``_total`` for counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import product
from typing import Final, Self

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from broker.taxonomy import CLASS_NAMES, OTHER

ALERTS_IN: Final = Counter(
    "trifid_alerts_in_total", "Alerts taken from the survey's stream, undecodable ones included.", ["survey"]
)
ALERTS_OUT: Final = Counter(
    "trifid_alerts_out_total",
    "Alerts that left the service, by outcome: classified, not_classified or dead_lettered.",
    ["survey", "outcome"],
)
CLASSIFIED: Final = Counter(
    "trifid_classified_total", "Classified alerts by most probable class, Other included.", ["class_name"]
)
HISTORY: Final = Counter(
    "trifid_alert_history_total",
    "Alerts by what was known of their object's past: remembered, packet (which holds all of it) or missing "
    "(docs/annotation.md).",
    ["survey", "history"],
)
KNOWN_OBJECTS: Final = Counter(
    "trifid_known_objects_total",
    "Alerts at the place of a star of a catalogue of known variable stars, by whether the model contradicts its type "
    "with confidence: no, class or parent (docs/catalogs.md).",
    ["catalogue", "disagrees"],
)
POINTS_LEFT_OUT: Final = Counter(
    "trifid_points_left_out_total",
    "Photometric points of packets that were not used, by reason: no_value, flagged, sign, band, before_survey, "
    "after_receipt, after_detection or flux (broker/surveys/columns.py).",
    ["survey", "reason"],
)
SPECTRA: Final = Counter("trifid_spectra_total", "Spectra received, by outcome: stored or dead_lettered.", ["outcome"])
RECLASSIFIED: Final = Counter(
    "trifid_reclassified_total", "Objects classified again upon a new spectrum of theirs.", ["survey"]
)
STAGE_SECONDS: Final = Histogram(
    "trifid_stage_seconds",
    "Wall-clock seconds a batch spends in a stage.",
    ["stage"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STAGE_CPU_SECONDS: Final = Counter(
    "trifid_stage_cpu_seconds_total",
    "CPU seconds of the thread that runs a stage, without ONNX Runtime's and the Kafka client's own threads.",
    ["stage"],
)
BATCH_SIZE: Final = Histogram(
    "trifid_batch_alerts", "Alerts in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
ALERT_LATENCY: Final = Histogram(
    "trifid_alert_latency_seconds",
    "Seconds from an alert message's own timestamp in Kafka until its annotations are committed.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43200),
)
CONSUMER_LAG: Final = Gauge(
    "trifid_consumer_lag_alerts", "Messages in the input partition not yet consumed.", ["topic", "partition"]
)
OFFSETS_PENDING: Final = Gauge(
    "trifid_offsets_pending_seconds",
    "For how long a worker has not been able to read the committed offsets of its partitions, as where a transaction "
    "does not end; 0 where it can. By the check of /readyz: group or spectra.",
    ["check"],
)
LAST_MESSAGE: Final = Gauge(
    "trifid_last_message_timestamp_seconds",
    "When the latest message of an input topic was taken, Unix time; the start of the worker before the first.",
    ["topic"],
)
DELIVERED_MESSAGE: Final = Gauge(
    "trifid_delivered_message_timestamp_seconds",
    "Kafka's time of the newest message of an input topic whose annotations are committed, Unix time; the start of the "
    "worker before the first.",
    ["topic"],
)
TOPICS_RECREATED: Final = Counter(
    "trifid_input_topics_recreated_total",
    "Input topics found to have been deleted and recreated, and partitions that end before what was read of them; both "
    "are read from their beginning.",
    ["topic"],
)
INPUT_LOST: Final = Counter(
    "trifid_input_messages_lost_total",
    "Messages of input topics that Kafka deleted before a worker read them (retention, DeleteRecords), by offsets, so "
    "that ends of transactions among them count.",
    ["topic"],
)
BATCH_LIMIT: Final = Gauge(
    "trifid_batch_limit_messages",
    "Messages in a batch at most: pipeline.batch_size, less after a batch that Kafka did not take in time.",
)
ANOMALY_SCORE: Final = Histogram(
    "trifid_anomaly_score",
    "Share of held-out stars of the same modalities and similar length that are no farther from the reference set.",
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0),
)
STATE_LOST: Final = Counter(
    "trifid_state_lost_total",
    "Times a worker found that Redis had lost what it held: restarted without persistence, flushed, evicted.",
)
REDIS_EVICTED: Final = Gauge(
    "trifid_redis_evicted_keys", "Keys that Redis has evicted since it started, by its own count."
)
REDIS_MAY_EVICT: Final = Gauge(
    "trifid_redis_may_evict", "Whether Redis may evict objects: maxmemory-policy is not noeviction, 1 or 0."
)
MIXED_MODELS: Final = Gauge(
    "trifid_mixed_models", "Whether other workers of the group run another model or reference set: 1 or 0."
)
REFERENCE_FROM_STREAM: Final = Gauge(
    "trifid_reference_from_stream",
    "Whether the reference set in use was made from the stream, 1, or is the model's own, 0 (docs/anomaly.md).",
)
MODEL_SWITCHES: Final = Counter(
    "trifid_model_switches_total",
    "Changes to a promoted version of the model, or of its reference set, without a restart, by outcome: done, or "
    "failed, where it could not be used and the one at hand went on (docs/serving.md).",
    ["outcome"],
)
CANDIDATE_OBJECTS: Final = Counter(
    "trifid_candidate_objects_total",
    "Objects of the candidate's share, by outcome: agreed or differed in the most probable class, one_answered where "
    "one version alone classifies, failed, or skipped while it was busy, resting or not loaded (docs/serving.md).",
    ["outcome"],
)
CANDIDATE_DIVERGENCE: Final = Histogram(
    "trifid_candidate_divergence",
    "Total variation distance between the class probabilities of the candidate and of the served version.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
)
CANDIDATE_OBJECT_SECONDS: Final = Histogram(
    "trifid_candidate_object_seconds",
    "Seconds an object of a batch, by version: served or candidate, with the scores but for a shadow, which has none.",
    ["version"],
    buckets=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0),
)
ANOMALY_UNSCORED: Final = Counter(
    "trifid_anomaly_unscored_total",
    "Classified alerts without an anomaly score: the reference set has too little of their modalities and length.",
)
SIMILAR_WRITES: Final = Counter(
    "trifid_similar_writes_total",
    "Objects whose embeddings were to be kept for similarity, by outcome: written, unchanged (which need no writing), "
    "failed, dropped (too many waited) or expired (docs/similar.md).",
    ["outcome"],
)
FEEDBACK_ANSWERS: Final = Counter(
    "trifid_feedback_answers_total",
    "Answers about objects that `trifid web` took, by kind: interesting, boring, class, or undone (docs/feedback.md).",
    ["kind"],
)
FEEDBACK_USED: Final = Gauge(
    "trifid_feedback_answers_used", "Answers that this worker's anomaly scores are corrected by."
)
FEEDBACK_LEARNED: Final = Gauge(
    "trifid_feedback_learned_timestamp_seconds", "When the correction that this worker uses was learned; 0 without one."
)
FEEDBACK_APPLIED: Final = Counter(
    "trifid_feedback_scores_total",
    "Anomaly scores that were raised, lowered or unchanged by answers about similar objects, while there are answers.",
    ["effect"],
)
FEEDBACK_FAILURES: Final = Counter(
    "trifid_feedback_learning_failures_total", "Times `trifid web` could not hand what it learned to the workers."
)
DRIFT_ALERTS: Final = Gauge(
    "trifid_drift_window_alerts", "Alerts of all workers in the window that drift is looked for in.", ["survey", "band"]
)
DRIFT_DISTANCE: Final = Gauge(
    "trifid_drift_distance",
    "How far a quantity of the window is from the baseline: population stability index of classes and bands, "
    "Kolmogorov-Smirnov distance of scores and photometry, standard deviations of embeddings (docs/drift.md).",
    ["survey", "band", "quantity"],
)
DRIFT_SIGNIFICANCE: Final = Gauge(
    "trifid_drift_significance",
    "How unlikely that distance is by chance, in standard deviations, given how much the baseline's days differ.",
    ["survey", "band", "quantity"],
)
DRIFT_DETECTED: Final = Gauge(
    "trifid_drift_detected",
    "Whether the distance is neither chance nor small: 1 or 0.",
    ["survey", "band", "quantity"],
)
DRIFT_BASELINE: Final = Gauge(
    "trifid_drift_baseline", "Whether there is a baseline of drift for the model and reference set in use: 1 or 0."
)
DRIFT_FAILURES: Final = Counter(
    "trifid_drift_failures_total", "Times a batch was not counted for drift, or drift could not be looked for."
)
DEPENDENCY_WAITS: Final = Counter(
    "trifid_dependency_waits_total", "Times the service waited for a dependency that was unavailable.", ["dependency"]
)
BATCHES_ABANDONED: Final = Counter(
    "trifid_batches_abandoned_total",
    "Batches abandoned and read again from the committed offsets, by the worker that is assigned the partitions then.",
)
CROWDED_SEARCHES: Final = Counter(
    "trifid_crowded_searches_total",
    "Searches for counterparts and spectra at places so crowded that not all of what is there was looked at.",
)
PERIOD_SEARCHES: Final = Counter(
    "trifid_period_searches_total",
    "Period searches by reason: refined, where the kept result of an earlier one was enough; full ones are few, "
    "first, grown, changed, other_search or worse (docs/state.md).",
    ["reason"],
)
DEAD_LETTER_RATIO: Final = Gauge(
    "trifid_dead_letter_ratio", "Share of dead letters among the latest alerts (pipeline.dead_letter_window)."
)
WEB_REQUEST_SECONDS: Final = Histogram(
    "trifid_web_request_seconds",
    "Seconds until a request to `trifid web` was answered, by route and status (2xx, 4xx, 5xx).",
    ["route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
WEB_INDEXED: Final = Counter("trifid_web_indexed_total", "Annotations that `trifid web` took into its index.")
WEB_NEW_MEMBERS: Final = Counter(
    "trifid_web_new_members_total",
    "Objects whose most probable class became this one, or of which it is the first, as `trifid web` read them.",
    ["class_name"],
)
for _name in (*CLASS_NAMES, OTHER.name):
    WEB_NEW_MEMBERS.labels(_name)
WEB_REFUSED: Final = Counter(
    "trifid_web_refused_total", "Annotations that the index of `trifid web` could not hold; its log names them."
)
WEB_FOLLOW_FAILURES: Final = Counter(
    "trifid_web_follow_failures_total",
    "Times `trifid web` could not read annotations or store them in its index, and tried again.",
)
NOTIFY_READ: Final = Counter("trifid_notify_read_total", "Annotations that `trifid notify` matched with users' lists.")
NOTIFY_MATCHES: Final = Counter("trifid_notify_matches_total", "Matches of users' lists that were kept to be sent.")
NOTIFY_LEFT_OUT: Final = Counter(
    "trifid_notify_left_out_total", "Matches of users' lists that were left out, beyond notify.matches_per_day."
)
NOTIFY_MATCH_SECONDS: Final = Histogram(
    "trifid_notify_match_seconds",
    "Seconds to match a batch of annotations with all lists.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
NOTIFY_FAILURES: Final = Counter(
    "trifid_notify_failures_total",
    "Times `trifid notify` could not read annotations, or reach Kafka or its database, and tried again.",
)
NOTIFY_SENT: Final = Counter(
    "trifid_notify_sent_total", "Messages of users' lists that were sent: topic, email, webhook.", ["to"]
)
NOTIFY_REFUSED: Final = Counter(
    "trifid_notify_refused_total", "Attempts to send a list's message that failed; each is tried again.", ["to"]
)
NOTIFY_DEAD: Final = Counter(
    "trifid_notify_dead_total",
    "Messages of users' lists, and their topics, that were given up after notify.max_attempts.",
    ["to"],
)
NOTIFY_WAITING: Final = Gauge("trifid_notify_waiting", "Matches of users' lists that are not in their topic yet.")
for _to in ("topic", "email", "webhook"):
    for _counter in (NOTIFY_SENT, NOTIFY_REFUSED, NOTIFY_DEAD):
        _counter.labels(_to)
READY: Final = Gauge("trifid_ready", "Whether /readyz says yes: 1 or 0.")
CHECKS: Final = (
    "model", "models", "group", "spectra", "topics", "work", "redis", "kafka", "lag", "device", "loop", "batch"
)  # fmt: skip
"""Of ``/readyz`` of every worker that reads spectra, beside that of its engine: ``onnx`` or ``triton``."""
CHECK_FAILED: Final = Gauge("trifid_check_failed", "Whether a check of /readyz fails: 1 or 0.", ["check"])


@contextmanager
def of_another_service() -> Iterator[None]:
    """Without READY and BATCH_LIMIT meanwhile: at 0, as they begin, they would say that a worker is not ready.

    For ``trifid web`` and ``trifid notify``, whose metrics Prometheus reads beside those of workers.
    """
    own: list[Gauge] = []
    for gauge in (READY, BATCH_LIMIT):
        with suppress(KeyError):  # left out already
            REGISTRY.unregister(gauge)
            own.append(gauge)
    try:
        yield
    finally:
        for gauge in own:
            REGISTRY.register(gauge)


STAGES: Final = (
    "decode", "update_state", "assemble", "keep_searches", "infer", "score", "annotate", "publish", "deliver",
)  # fmt: skip
DEPENDENCIES: Final = ("kafka", "redis", "triton", "registry")
KNOWN_CATALOGUES: Final = ("vsx", "gcvs")
"""Usual names of catalogues of known variable stars; others have series from their first match on."""
SIMILAR_OUTCOMES: Final = ("written", "unchanged", "failed", "dropped", "expired")
UNDECODED: Final = "unknown"
"""The survey of what could not be decoded."""


_NO_SPAN: Final[AbstractContextManager[object]] = nullcontext()
_span: Callable[[str], AbstractContextManager[object]] | None = None


def trace_stages(span: Callable[[str], AbstractContextManager[object]] | None) -> None:
    """Have a span made of each stage, from its name (``broker.tracing``); None for no more."""
    global _span
    _span = span


class Stage:
    """A stage of one batch, which may be done in parts, between those of other stages; counted once, at its end."""

    def __init__(self, name: str) -> None:
        self._name, self._cpu = name, 0.0
        self.seconds = 0.0
        """Wall-clock time so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        STAGE_SECONDS.labels(self._name).observe(self.seconds)
        STAGE_CPU_SECONDS.labels(self._name).inc(self._cpu)

    @contextmanager
    def part(self, *, span: bool = True) -> Iterator[None]:
        """Time that counts, whether it succeeds or not; without a ``span`` it is in no trace."""
        with _span(self._name) if span and _span is not None else _NO_SPAN:
            start, cpu = time.perf_counter(), time.thread_time()
            try:
                yield
            finally:
                self.seconds += time.perf_counter() - start
                self._cpu += time.thread_time() - cpu


@contextmanager
def stage_timer(name: str) -> Iterator[None]:
    """Count the wall-clock and the CPU time of a stage, whether it succeeds or not."""
    with Stage(name) as stage, stage.part():
        yield


def initialise(surveys: Iterable[str], input_topics: Iterable[str] = ()) -> None:
    """Have a series, of value 0, for all label values that are known at the start.

    A labelled counter has no series before its first event: a panel would say "No data" where nothing has happened, and
    ``rate`` and ``increase`` would not see the first event. Not known are the partitions of CONSUMER_LAG, which come
    with their assignment.
    """
    for metric, values in _known(tuple(surveys)):
        for labels in values:
            metric.labels(*labels)
    for topic in input_topics:
        TOPICS_RECREATED.labels(topic)
        INPUT_LOST.labels(topic)
        LAST_MESSAGE.labels(topic).set_to_current_time()
        DELIVERED_MESSAGE.labels(topic).set_to_current_time()


def _known(surveys: tuple[str, ...]) -> Iterator[tuple[MetricWrapperBase, Iterable[tuple[str, ...]]]]:
    """Labelled metrics with the values of their labels."""
    # These import Numba, which readers of the metrics' names can do without.
    from broker.assemble.kept import Reason
    from broker.surveys.columns import PointFlaw

    yield ALERTS_IN, ((survey,) for survey in (*surveys, UNDECODED))
    yield ALERTS_OUT, product(surveys, ("classified", "not_classified", "dead_lettered"))
    yield ALERTS_OUT, [(UNDECODED, "dead_lettered")]
    yield CLASSIFIED, ((name,) for name in (*CLASS_NAMES, OTHER.name))
    yield HISTORY, product(surveys, ("remembered", "packet", "missing"))
    yield KNOWN_OBJECTS, product(KNOWN_CATALOGUES, ("no", "class", "parent"))
    yield POINTS_LEFT_OUT, product(surveys, (reason.name.lower() for reason in PointFlaw if reason))
    yield SPECTRA, [("stored",), ("dead_lettered",)]
    yield MODEL_SWITCHES, [("done",), ("failed",)]
    yield CANDIDATE_OBJECTS, ((outcome,) for outcome in ("agreed", "differed", "one_answered", "failed", "skipped"))
    yield CANDIDATE_OBJECT_SECONDS, [("served",), ("candidate",)]
    yield RECLASSIFIED, ((survey,) for survey in surveys)
    yield OFFSETS_PENDING, [("group",), ("spectra",)]
    yield PERIOD_SEARCHES, ((reason.value,) for reason in Reason)
    yield STAGE_SECONDS, ((stage,) for stage in STAGES)
    yield STAGE_CPU_SECONDS, ((stage,) for stage in STAGES)
    yield SIMILAR_WRITES, ((outcome,) for outcome in SIMILAR_OUTCOMES)
    yield FEEDBACK_ANSWERS, ((kind,) for kind in ("interesting", "boring", "class", "undone"))
    yield FEEDBACK_APPLIED, ((effect,) for effect in ("raised", "lowered", "unchanged"))
    yield CHECK_FAILED, ((check,) for check in CHECKS)
    yield DEPENDENCY_WAITS, ((dependency,) for dependency in DEPENDENCIES)
