"""``trifid run``."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import click

from broker.cli import options


@click.command()
@options.config
@click.option(
    "--log-level",
    default="INFO",
    show_default=True,
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
)
def run(config: Path | None, log_level: str) -> None:
    """Run the broker: classify a survey's alerts from Kafka until told to stop.

    Waits for Redis, Triton and Kafka where they are away. SIGTERM or Ctrl-C finishes the batch in hand. At the
    end the books are printed: every alert that came in was classified, is NotClassified, or went to the
    dead-letter topic.
    """
    from prometheus_client import start_http_server

    from broker.config import load_settings
    from broker.streaming.worker import worker

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(config)
    if settings.metrics.port:
        start_http_server(settings.metrics.port, settings.metrics.address)
    with worker(settings) as service:

        def stop(number: int, frame: Any) -> None:
            service.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        books = service.run()
    click.echo(books)
    if not books.balanced:
        raise SystemExit(1)
