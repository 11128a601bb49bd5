"""``trifid run``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

import click

from broker.cli import options, text
from broker.cli.logs import log_to_stderr

DEAD_LETTER_LIMIT_EXIT: Final = 3
"""Exit code where too many alerts would be dead letters: starting again would not help."""


class _LimitFailure(click.ClickException):
    exit_code = DEAD_LETTER_LIMIT_EXIT


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

    Waits for Redis, Triton and Kafka while they are unavailable. SIGTERM or Ctrl-C finishes the in-flight batch, or
    abandons it for reprocessing where that takes too long; a second one ends at once. At the end the accounting is
    printed: every alert that came in was classified, is NotClassified, or went to the dead-letter topic.

    Exit codes: 0 after a signal; 1 after an error that a restart may fix; 2 for settings that cannot be used;
    3 where too many alerts would become dead letters (docs/operations.md).
    """
    from broker.config import load_settings
    from broker.errors import ConfigurationError, DeadLetterLimitError
    from broker.streaming.supervisor import supervise

    log_to_stderr(log_level.upper(), "%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(config)
    try:
        outcome = supervise(settings)
    except DeadLetterLimitError as error:
        raise _LimitFailure(str(error)) from error
    except OSError as error:
        raise ConfigurationError(f"metrics at {settings.metrics.address}:{settings.metrics.port}: {error}") from error
    accounting = outcome.accounting
    text.echo(accounting)
    if outcome.hangs:
        # The interpreter would wait for what hangs.
        sys.stdout.flush()
        logging.shutdown()
        os._exit(0 if accounting.reconciled else 1)
    if not accounting.reconciled:
        raise SystemExit(1)
