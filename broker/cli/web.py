"""``trifid web``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import logs, options, text
from broker.scopes import SCOPES

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.tokens import Tokens
    from broker.web.index import Index


def _load(config: Path | None) -> Settings:
    from broker.config import load_settings

    settings = load_settings(config)
    logs.hide(settings.secrets())
    return settings


def require_extra() -> None:
    """Raise ConfigurationError, which says what to do, where the extra is not installed."""
    from broker.errors import ConfigurationError

    for package in ("cryptography", "fastapi", "jinja2", "python_multipart", "sqlalchemy", "uvicorn"):
        if find_spec(package) is None:
            raise ConfigurationError(f"{package} is not installed: pip install 'trifid[web]'")


def open_index(settings: Settings) -> Index:
    """The index of annotations; raises ConfigurationError where the extra is missing or the database cannot be used."""
    require_extra()
    from broker.config import in_clear
    from broker.web.index import Index

    url = in_clear(settings.web.database)
    assert url is not None
    return Index(url, settings.web.secret_keys)


@contextmanager
def _tokens(config: Path | None) -> Iterator[Tokens]:
    with closing(open_index(_load(config))) as index:
        from broker.tokens import Tokens

        yield Tokens(index.engine)


@click.group(invoke_without_command=True)
@options.config
@click.option("--address", type=options.TEXT, help="Where to listen; web.address of the settings by default.")
@click.option("--port", type=click.IntRange(1, 65535), help="web.port of the settings by default.")
@logs.options
@click.pass_context
def web(
    context: click.Context,
    config: Path | None,
    address: str | None,
    port: int | None,
    log_levels: dict[str, str],
    log_format: logs.Format,
) -> None:
    """Serve the web page and the HTTP API (docs/web.md).

    Reads annotations from Kafka into an index of its own, and light curves and spectra from the service's Redis.
    Needs the extra web: pip install 'trifid[web]'. On a loopback address anybody on this machine may look; elsewhere
    each request needs a token.
    """
    context.obj = config
    if context.invoked_subcommand is not None:
        logs.log_to_stderr()  # for people, whatever the service's format
        return
    from pydantic import ValidationError

    from broker.config import WebSettings, refusal_of
    from broker.errors import ConfigurationError

    logs.log_service(log_levels, log_format)
    settings = _load(config)
    given = {name: value for name, value in (("address", address), ("port", port)) if value is not None}
    try:
        web = WebSettings.model_validate(settings.web.model_dump(exclude_unset=True) | given)
    except ValidationError as error:
        raise refusal_of(error) from error
    settings = settings.model_copy(update={"web": web})
    index = open_index(settings)
    from broker.readiness import metrics_server, watched
    from broker.tokens import Tokens
    from broker.web.app import parts_of, server

    if settings.web.tokens_required and not Tokens(index.engine).all():
        logs.say("no token yet: trifid web token create NAME --scope read")
    try:
        with (
            parts_of(settings, index) as parts,
            watched(settings, index.engine, parts.store) as readiness,
            metrics_server(settings.web.address, settings.web.metrics_port, readiness),
        ):
            logs.say(f"http://{settings.web.address}:{settings.web.port}/")
            server(replace(parts, readiness=readiness)).run()
    except OSError as error:
        ports = " or ".join(str(port) for port in (settings.web.port, settings.web.metrics_port) if port)
        raise ConfigurationError(f"{settings.web.address}, port {ports}: {error}") from error
    finally:
        index.close()


@web.group()
def token() -> None:
    """Make, list and revoke API tokens."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=("read",),
    show_default=True,
    help="What its bearer may do. May be given several times.",
)
@click.option("--days", type=options.POSITIVE, help="Until it expires; never by default.")
@click.pass_obj
def create(config: Path | None, name: str, scopes: tuple[str, ...], days: float | None) -> None:
    """Make a token and print it: the only time that it can be seen."""
    with _tokens(config) as tokens:
        text.echo(tokens.create(name, frozenset(scopes), days))


@token.command("list")
@click.pass_obj
def list_(config: Path | None) -> None:
    """Names, scopes and expiry of all tokens."""
    from broker.times import datetime_of

    with _tokens(config) as tokens:
        found = tokens.all()
    for one in found:
        until = "never expires" if one.expires is None else f"until {datetime_of(one.expires):%Y-%m-%d %H:%M} UTC"
        text.echo(text.printable(f"{one.name}  {' '.join(sorted(one.scopes))}  {until}"))


@token.command()
@click.argument("name")
@click.pass_obj
def revoke(config: Path | None, name: str) -> None:
    """End a token."""
    with _tokens(config) as tokens:
        there = tokens.revoke(name)
    if not there:
        raise click.ClickException(f"no token {name!r}")
