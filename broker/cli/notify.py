"""``trifid notify``."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import click

from broker.cli import logs, options
from broker.cli.web import open_index


@click.command()
@options.config
@logs.options
def notify(config: Path | None, log_levels: dict[str, str], log_format: logs.Format) -> None:
    """Match annotations with users' lists, and send what they find (docs/watchlists.md).

    Reads all annotations in a consumer group of its own, and lists and tokens from the database of trifid web
    (web.database). Each list has a topic; mails and webhooks are sent where its owner asks for them. May be stopped and
    killed at any time: what was not finished is done by the next one. Needs the extra web: pip install 'trifid[web]'.
    """
    from broker.config import load_settings
    from broker.errors import ConfigurationError

    logs.log_service(log_levels, log_format)
    settings = load_settings(config)
    logs.hide(settings.secrets())
    with closing(open_index(settings)) as index:
        from broker.readiness import metrics_server, watched
        from broker.watch.notifier import Notifier

        notifier = Notifier(settings, index.engine)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: notifier.stop())
        port = settings.notify.metrics_port
        try:
            with (
                watched(settings, index.engine, own=lambda: dict(notifier.problems)) as readiness,
                metrics_server(settings.web.address, port, readiness),
                notifier,
            ):
                group = settings.notify.group_id
                logs.say(f"reading annotations in the group {group}", group_id=group)
                notifier.wait()
        except OSError as error:
            raise ConfigurationError(f"{settings.web.address}, port {port}: {error}") from error
