"""Settings of what is done with alerts: state, model, anomalies, batches, output, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from broker.config.section import Int32, Names, Seconds, Section
from broker.state.merge import MAX_POINTS

_OF_WHEEL: Final = Path(__file__).parents[1] / "model_repo"
MODEL_REPOSITORY: Final = _OF_WHEEL if _OF_WHEEL.is_dir() else Path(__file__).parents[2] / "model_repo"
"""That of the wheel, where this was installed from one, else the checkout's."""


class StateSettings(Section):
    """What is kept of an object, and for how long (docs/state.md)."""

    max_points: PositiveInt = MAX_POINTS
    """Points kept of one object in one survey; of more, upper limits go first, then the oldest."""
    expiry_days: float = Field(default=1000.0, gt=0, le=36_500)
    """Objects not seen for so long are forgotten."""
    association_radius_arcsec: float = Field(default=1.5, ge=0, le=60)
    """Within which objects of two surveys are taken for one; 0 for never."""
    spectrum_radius_arcsec: float = Field(default=2.0, ge=0, le=60)
    """Within which a spectrum is taken for the object's."""


class InferenceSettings(Section):
    """What runs the model."""

    engine: Literal["onnx", "triton"] = "onnx"
    """``onnx`` in this process, ``triton`` on a server."""
    model_repository: Path = MODEL_REPOSITORY
    """Triton model repository with its ``manifest.json``; of it ``triton`` needs the manifest only."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of ``onnx`` that share a batch; 0 for one a core."""
    device: Literal["any", "cpu", "gpu"] = "any"
    """Where the model has to run; ``/readyz`` says no where it runs elsewhere."""
    follow_promotions: bool = True
    """Whether workers change over to the version that ``trifid models promote`` or ``rollback`` has made the served
    one, between two batches; otherwise at their next start."""
    other_threshold: float | None = Field(default=None, gt=0, le=1)
    """Probability of being none of the ten classes from which an alert is published as ``Other`` (docs/annotation.md);
    the model's own, by modalities and number of detections, where None, 1 for never. Known bodies of the solar system,
    and what ZTF's score takes for an artefact, are Other in any case."""


class CandidateSettings(Section):
    """A second version of the model for a share of the stream (docs/serving.md)."""

    version: str | None = Field(default=None, min_length=1)
    """One of the model repository's; none where None, which costs nothing."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Of the objects: the same ones at each of their alerts."""
    publish: bool = False
    """False for a shadow, whose answers are compared and thrown away; true for a canary, whose annotations are
    published with its own version in place of the served one's."""


class AnomalySettings(Section):
    """What objects are compared with."""

    reference_set: Path | None = None
    """Embeddings of known objects, ``.npz``; ``reference_set.npz`` of the model repository where None."""
    threshold: float = Field(default=0.99, ge=0, le=1)
    """Anomaly score from which an object is published to the anomaly topic."""


class SimilarSettings(Section):
    """Similar objects (docs/similar.md)."""

    enabled: bool = False
    """Whether the embeddings of all objects are kept in Redis's vector sets: some 4.5 kB an object, and a part of the
    rate (docs/performance.md). For the workers, and for what asks: ``trifid similar`` and ``trifid web``."""
    growth: float = Field(default=0.2, ge=0, le=10)
    """An object's embeddings are written again where its light curve has grown by this fraction since, or its
    modalities are others; 0 for at every new point."""


class DriftSettings(Section):
    """Whether the stream is still what it was (docs/drift.md)."""

    enabled: bool = True
    """Whether workers count what they see, and compare it with the baseline once a minute."""
    window_hours: int = Field(default=24, ge=1, le=71)
    """So many hours, and the one that goes on, are compared with the baseline."""


class PipelineSettings(Section):
    """How alerts are put together into batches, and how long to wait for what is unavailable."""

    batch_size: Int32 = 256
    """Alerts processed together at most; larger batches cost latency and save CPU time (docs/performance.md)."""
    period_search_growth: float = Field(default=0.2, ge=0, le=1)
    """A light curve's period is searched anew where its points, or the time they span, have grown by this fraction
    since the last full search; in between that one's result is refined (docs/state.md). 0 for at every new point."""
    future_days: float = Field(default=30.0, ge=0, le=36_500)
    """An alert whose detection is later than its receipt by more days than this becomes a dead letter, and such points
    of others are left out (docs/points.md)."""
    batch_wait_s: Seconds = 0.5
    """A batch is processed after so long even where it is not full."""
    batch_mib: Int32 = 64
    """A batch with so much payload, MiB, is full; up to 32 messages may go beyond."""
    max_message_alerts: int = Field(default=10_000, ge=1, le=100_000)
    """A message with more alerts becomes a dead letter as a whole; one with fewer is handled ``batch_size`` alerts at a
    time, and its annotations are delivered together."""
    max_message_mib: int = Field(default=64, ge=1, le=1024)
    """A message that inflates to more, MiB, becomes a dead letter before the memory for it is taken."""
    first_backoff_s: Seconds = 0.5
    """Pause before the first new attempt where Redis, Triton or Kafka is unavailable; doubled each time. Each is by up
    to half shorter or longer, so that workers do not come back all at once."""
    max_backoff_s: Seconds = 15.0
    """Longest pause between two attempts, on average."""
    max_dead_letter_ratio: float = Field(default=0.5, ge=0, le=1)
    """The service stops where more than this share of the latest alerts would be dead letters, and leaves the batch
    that would make it so in the input topic (docs/operations.md); 1 for never."""
    dead_letter_window: Int32 = 1000
    """How many of the latest alerts that share is taken of."""
    dead_letter_min_alerts: Int32 = 100
    """Of fewer alerts than this no share is taken."""
    stop_timeout_s: Seconds = 8.0
    """After SIGTERM the in-flight batch has half of this to be finished, else it is abandoned for reprocessing; after
    all of it the process ends, whatever it waits for."""

    @model_validator(mode="after")
    def _limits_are_meant(self) -> Self:
        if self.max_backoff_s < self.first_backoff_s:
            raise ValueError(f"max_backoff_s = {self.max_backoff_s:g} is below first_backoff_s")
        if self.dead_letter_min_alerts > self.dead_letter_window:
            raise ValueError("dead_letter_min_alerts is above dead_letter_window, so that no share would be taken")
        return self


class PublishSettings(Section):
    """What is published and where."""

    topic_prefix: str = Field(default="trifid", pattern=r"^[A-Za-z0-9._-]+$")
    """First part of the names of all output topics."""
    broker_name: str = "Trifid"
    """``brokerName`` of annotations."""
    elasticc_surveys: Names = ()
    """Surveys, such as ``elasticc``, whose annotations go to ``<topic_prefix>.brokerclassification`` as well, in
    ELAsTiCC's own schema (docs/annotation.md); none where it is left out."""
    disagreement_probability: float = Field(default=0.95, gt=0.5, le=1)
    """Probability of the leading parent, or class, from which the model is said to disagree with a catalogue of known
    variable stars (docs/catalogs.md)."""
    dead_letter_max_bytes: Int32 = 1_000_000
    """Payloads of dead letters are cut to this size; Kafka's own default limit for a message is 1,048,588."""


class MetricsSettings(Section):
    """Where Prometheus finds the metrics."""

    address: str = "0.0.0.0"
    """Where to listen; the default is all of the machine's addresses."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 for none. ``/healthz`` and ``/readyz`` are there, too (docs/operations.md)."""
    probe_interval_s: Seconds = 5.0
    """Pause between two looks at Redis, Triton and Kafka for ``/readyz``."""
    alive_limit_s: Seconds = 60.0
    """``/healthz`` fails where the worker's loop has not come round for so long."""
    batch_limit_s: Seconds = 600.0
    """``/healthz`` fails where one batch has been in flight for so long without an answer or an error."""
    lag_window_s: Seconds = 300.0
    """``/readyz`` fails where the lag has grown over so long. Longer than a burst of alerts lasts."""
    lag_floor: int = Field(default=2000, ge=0)
    """Alerts in the input topics not yet taken that are no matter of concern, growing or not."""
    mixed_models_limit_s: Seconds = 900.0
    """``/readyz`` fails where workers of one group have run different models or reference sets for so long; it names
    them at once. Longer than it takes to replace all workers one by one."""
