"""``trifid run``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

import click

from broker.cli import logs, options

DEAD_LETTER_LIMIT_EXIT: Final = 3
"""Exit code where too many alerts would be dead letters: starting again would not help."""


class _LimitFailure(click.ClickException):
    exit_code = DEAD_LETTER_LIMIT_EXIT


@click.command()
@options.config
@logs.options
def run(config: Path | None, log_levels: dict[str, str], log_format: logs.Format) -> None:
    """Run the broker: classify a survey's alerts from Kafka until told to stop.

    Waits for Redis, Triton and Kafka while they are unavailable. SIGTERM or Ctrl-C finishes the in-flight batch, or
    abandons it for reprocessing where that takes too long; a second one ends at once. At the end the accounting is
    printed: every alert that came in was classified, is NotClassified, or went to the dead-letter topic.

    Exit codes: 0 after a signal; 1 after an error that a restart may fix; 2 for settings that cannot be used;
    3 where too many alerts would become dead letters (docs/operations.md).
    """
    from broker.config import load_settings
    from broker.errors import ConfigurationError, DeadLetterLimitError

    logs.log_service(log_levels, log_format)
    settings = load_settings(config)
    logs.hide(settings.secrets())
    # After the settings, which are refused at once where they are wrong.
    from broker.streaming.supervisor import supervise
    from broker.streaming.worker_ids import own_worker_id

    try:
        with own_worker_id(settings) as settings:
            outcome = supervise(settings)
    except DeadLetterLimitError as error:
        raise _LimitFailure(str(error)) from error
    except OSError as error:
        raise ConfigurationError(f"metrics at {settings.metrics.address}:{settings.metrics.port}: {error}") from error
    accounting = outcome.accounting
    logs.say(accounting, err=False, **accounting.counts())
    if outcome.hangs:
        # The interpreter would wait for what hangs.
        sys.stdout.flush()
        logging.shutdown()
        os._exit(0 if accounting.reconciled else 1)
    if not accounting.reconciled:
        raise SystemExit(1)
