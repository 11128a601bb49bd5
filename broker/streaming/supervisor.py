"""One worker as a process: signals, health, and an end within a bounded time."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
import traceback
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from broker import __version__
from broker.blas import one_blas_thread
from broker.config import Settings
from broker.streaming.accounting import Accounting
from broker.streaming.health import Health, HealthServer
from broker.streaming.service import Control
from broker.streaming.worker import worker

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.1
_STUCK: Final = 1
"""Exit code of a worker that hangs."""
_SIGNALLED: Final = 128
"""Added to a signal's number for the exit code, as shells do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker ended that was told to stop."""

    accounting: Accounting
    hangs: bool
    """Whether a thread still waits for something, so that the process has to be ended by force."""


def supervise(settings: Settings) -> Outcome:
    """Run a worker until SIGTERM or SIGINT, and serve metrics and health meanwhile. For the main thread.

    The worker has ``pipeline.stop_timeout_s`` to end after the signal; a second signal ends the process at once. So
    does a loop that has not come round for ``metrics.alive_limit_s``.
    Raises what ends the worker otherwise, and OSError where the port of the metrics is taken.
    """
    began = time.monotonic()
    _log_start(settings)
    control = Control(Health(settings.metrics))
    done: Future[bool] = Future()

    def work() -> None:
        try:
            with worker(settings, control=control) as service:
                service.run()
                hangs = service.hangs
        except BaseException as error:
            _release(error)
            done.set_exception(error)
        else:
            done.set_result(hangs)

    def on_signal(number: int, frame: Any) -> None:
        if control.stop.is_set():
            log.error("second signal: the process ends at once, the in-flight batch is abandoned for reprocessing")
            logging.shutdown()
            os._exit(_SIGNALLED + number)
        log.info("%s: the in-flight batch is finished or abandoned for reprocessing", signal.Signals(number).name)
        control.stop.set()

    with ExitStack() as stack:
        stack.callback(gc.unfreeze)
        stack.enter_context(one_blas_thread())
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, on_signal))
        if settings.metrics.port:
            stack.enter_context(HealthServer(control.health, settings.metrics.address, settings.metrics.port))
        # The main thread has nothing else to do than to look: a signal is handled between two of its steps, and so
        # would not be while it waits in a library.
        thread = threading.Thread(target=work, name="worker", daemon=True)
        thread.start()
        deadline: float | None = None
        seen_ready = False
        while thread.is_alive():
            thread.join(_LOOK_S)
            if not seen_ready and not any(control.health.ready().values()):
                seen_ready = True
                took = time.monotonic() - began
                log.info("ready after %.1f s", took, extra={"ready_after_s": round(took, 3)})
                # Modules, models and schemas stay as long as the process: a full collection of cyclic garbage that
                # looks through them stops the worker for 0.1 s.
                gc.freeze()
            stuck = control.health.alive()["loop"]
            if stuck is not None and not control.stop.is_set():
                # In a call of a library that nothing gets it out of: only another process can go on.
                log.critical("the worker %s: the process ends, to be started again", stuck)
                logging.shutdown()
                os._exit(_STUCK)
            if deadline is None and control.stop.is_set():
                deadline = time.monotonic() + settings.pipeline.stop_timeout_s
            elif deadline is not None and time.monotonic() > deadline and thread.is_alive():
                log.error(
                    "still waiting %.0f s after the signal: the process ends, and abandons the in-flight batch",
                    settings.pipeline.stop_timeout_s,
                )
                return Outcome(control.accounting, hangs=True)
        return Outcome(control.accounting, hangs=done.result())


def _release(error: BaseException) -> None:
    """Drop what the frames of an error hold.

    Kafka's clients among it end their threads only when nobody holds them: threads that live on while the process ends
    can crash in what OpenSSL cleans up, and the exit code is then the signal's.
    """
    while True:
        traceback.clear_frames(error.__traceback__)
        before = error.__cause__ or error.__context__
        if before is None:
            break
        error = before
    gc.unfreeze()
    gc.collect()


def _log_start(settings: Settings) -> None:
    """What runs here, as one reads it in a log after an upgrade: the model follows when it is loaded."""
    kafka = settings.kafka
    topics = [*kafka.input_topics, *([kafka.spectra_topic] if kafka.spectra_topic else [])]
    started = {
        "version": __version__,
        "worker_id": kafka.worker_id,
        "group_id": kafka.group_id,
        "input_topics": topics,
        "output_topics": f"{settings.publish.topic_prefix}.*",
        "engine": settings.inference.engine,
        "delivery": kafka.delivery,
    }
    log.info(
        "trifid %s starts: worker %s of group %s reads %s, writes %s.*, %s, engine %s",
        __version__, kafka.worker_id, kafka.group_id, ", ".join(topics), settings.publish.topic_prefix, kafka.delivery,
        settings.inference.engine, extra=started,
    )  # fmt: skip
