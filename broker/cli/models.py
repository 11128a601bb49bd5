"""``trifid models``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli import options, text

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.models.check import Report
    from broker.models.promote import Server
    from broker.models.repository import ModelRepository

_repository = click.option(
    "--repository",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Model repository; inference.model_repository of the settings by default.",
)
_version = click.argument("version", type=options.TEXT)
_timeout = click.option(
    "--timeout", type=options.POSITIVE, default=600.0, show_default=True,
    help="Seconds that Triton has to load a model: TensorRT builds engines in minutes.",
)  # fmt: skip


@click.group()
def models() -> None:
    """Versions of the model: list, build, check, promote, roll back (docs/serving.md)."""


def _opened(folder: Path | None, config: Path | None) -> tuple[Settings, ModelRepository]:
    """The settings, and the repository that they or ``folder`` name."""
    from broker.config import load_settings
    from broker.models.repository import ModelRepository

    settings = load_settings(config)
    if folder is not None:
        inference = settings.inference.model_copy(update={"model_repository": folder})
        settings = settings.model_copy(update={"inference": inference})
    return settings, ModelRepository(settings.inference.model_repository)


def _server(settings: Settings, timeout: float) -> Server | None:
    """Triton, where the settings say that it runs the models."""
    from broker.build import build_engine, triton_tls
    from broker.inference.triton_client import load_models, loaded_models
    from broker.models.leases import in_use
    from broker.models.promote import Server

    if settings.inference.engine != "triton":
        return None
    triton = settings.triton
    return Server(
        lambda: load_models(triton.url, triton_tls(triton), timeout),
        lambda version: build_engine(settings.inference, triton, version),
        f"Triton at {triton.url}",
        lambda: loaded_models(triton.url, triton_tls(triton), triton.timeout_s),
        lambda: in_use(settings.redis.address()),
        text.echo,
    )


def _tell(report: Report) -> None:
    text.echo(f"version {report.version} on {report.engine}, against {report.origin}, tolerance {report.tolerance:.0e}")
    text.echo(f"{'modalities':<30} objects  probabilities  embeddings      other  other class")
    for found in report.comparisons:
        text.echo(
            f"{found.subset:<30} {found.objects:>7} {found.probability:>14.1e} {found.embedding:>11.1e} "
            f"{found.other:>10.1e} {found.classes:>12}"
        )
    report.require()
    text.echo("passed")


@models.command("list")
@_repository
@options.config
@options.json_lines
def list_versions(folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the versions of a repository: which is served, which workers use it, where each comes from, what it scored.

    Workers say so in the Redis of the settings. The exit code is 1 where a version is damaged.
    """
    settings, repository = _opened(folder, config)
    workers = _workers(settings)
    served = repository.served()
    before = served.promotion.before if served.promotion is not None else ()
    damaged = False
    for version in repository.versions():
        state = "served" if version == served.model_version else "served before" if version in before else "built"
        facts = _facts(repository, version)
        damaged |= facts["problem"] is not None
        identity = facts.pop("identity", "")
        users = None if workers is None else workers.get(identity, [])
        if as_json:
            click.echo(json.dumps({"version": version, "state": state, "in_use_by": users, **facts}))
        else:
            _show(version, f"{state}, in use by {', '.join(users)}" if users else state, facts)
    for file in repository.unnamed():
        text.echo(f"{file}: belongs to no version, is not served", err=as_json)
    if damaged:
        raise SystemExit(1)


def _workers(settings: Settings) -> dict[str, list[str]] | None:
    """The workers that use each version; None, and why, where Redis does not say."""
    from broker.errors import DependencyUnavailableError
    from broker.models.leases import in_use

    try:
        return in_use(settings.redis.address(), timeout=2.0)
    except DependencyUnavailableError as error:
        text.echo(f"which workers use them is not known: {error}", err=True)
        return None


def _facts(repository: ModelRepository, version: str) -> dict[str, Any]:
    from broker.errors import ConfigurationError

    problem: str | None = None
    try:
        manifest = repository.verify(version)
    except ConfigurationError as error:
        problem = str(error)
        try:
            manifest = repository.manifest(version)
        except ConfigurationError:
            return {"problem": problem}
    provenance = manifest.provenance
    scores = [
        {name: score.get(name) for name in ("test_set", "modalities", "objects", "accuracy", "macro_f1")}
        for score in manifest.training.get("scores", [])
    ]
    return {
        "identity": manifest.identity,
        "problem": problem,
        "classifier": manifest.classifier_name,
        "variant": manifest.variant,
        "models": manifest.sha256,
        "reference_set_sha256": manifest.reference_set_sha256,
        "trained_at": manifest.training.get("trained_at"),
        "seed": manifest.training.get("seed"),
        "provenance": None if provenance is None else provenance.model_dump(),
        "scores": scores,
    }


def _show(version: str, state: str, facts: dict[str, Any]) -> None:
    text.echo(f"{version}  {state}")
    if facts["problem"] is not None:
        text.echo(f"  DAMAGED: {facts['problem']}")
    if "classifier" not in facts:
        return
    text.echo(f"  {facts['classifier']}, variant {facts['variant']}, trained at {facts['trained_at'] or 'unknown'}")
    text.echo("  models: " + ", ".join(sorted(path.removesuffix("/model.onnx") for path in facts["models"])))
    reference = facts["reference_set_sha256"]
    text.echo(f"  reference set: {f'SHA-256 {reference[:16]}...' if reference else 'none'}")
    provenance = facts["provenance"]
    if provenance is None:
        text.echo("  provenance: not built by `trifid models build`")
    else:
        text.echo(
            f"  built at {provenance['built_at']} from {provenance['source']} by {provenance['code']}; "
            f"checksums of {len(provenance['data_sha256'])} files of its data"
        )
    for score in facts["scores"]:
        if score["modalities"] in ("light_curve+spectrum+metadata", "light_curve") and score["accuracy"] is not None:
            text.echo(
                f"  {score['test_set']}, {score['modalities']}: accuracy {score['accuracy']:.4f}, "
                f"macro F1 {score['macro_f1']:.4f} of {score['objects']} stars"
            )


@models.command("build")
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--repository", "folder", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Repository to add the version to, or to make.",
)  # fmt: skip
@click.option(
    "--variant", default="auto", show_default=True,
    help="Hardware that Triton is configured for: auto, cpu, cuda, tensorrt-fp16; built only where checked.",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the training data, of whose files the checksums are kept.",
)  # fmt: skip
def build_version(source: Path, folder: Path, variant: str, data: Path | None) -> None:
    """Add the version that training wrote into SOURCE to a repository, once it has passed its check.

    SOURCE is the repository of `python -m training export` or `stream`. The first version of a repository is served,
    each other waits for `promote`. A build that fails, or is killed, leaves no version.
    """
    from broker.models.build import build

    _tell(build(source, folder, variant, data))
    text.echo(f"built in {folder}")


@models.command("check")
@_version
@_repository
@options.config
@click.option("--anew", is_flag=True, help="Ask the reference implementation now (package onnx), not the stored cases.")
@click.option("--served", is_flag=True, help="Ask the Triton of the settings, not ONNX Runtime in this process.")
def check_version(version: str, folder: Path | None, config: Path | None, anew: bool, served: bool) -> None:
    """Compare a version's files with its manifest, and its answers with the reference implementation's.

    For each combination of modalities, on stored cases. The exit code is 1 where answers differ by more than the
    variant allows, 2 where a file is damaged, missing or of another version.
    """
    from broker.errors import ConfigurationError
    from broker.models.check import check

    settings, repository = _opened(folder, config)
    if not served:
        _tell(check(repository, version, anew=anew))
        return
    if (server := _server(settings, 1.0)) is None:
        raise ConfigurationError("--served: inference.engine is onnx, and so there is no Triton to ask")
    _tell(check(repository, version, server.engine, anew=anew, where=server.name))


@models.command("load")
@_version
@_repository
@_timeout
@options.config
def load_version(version: str, folder: Path | None, timeout: float, config: Path | None) -> None:
    """Have Triton load a version beside the served one, and check it there: for shadow and canary."""
    from broker.errors import ConfigurationError
    from broker.models.promote import load

    settings, repository = _opened(folder, config)
    if (server := _server(settings, timeout)) is None:
        raise ConfigurationError("inference.engine is onnx: workers load a version by themselves")
    _tell(load(repository, version, server))


@models.command("promote")
@_version
@_repository
@_timeout
@options.config
def promote_version(version: str, folder: Path | None, timeout: float, config: Path | None) -> None:
    """Serve a version, once it has passed its check where it will run; workers change over without a restart."""
    from broker.models.promote import promote

    settings, repository = _opened(folder, config)
    _tell(promote(repository, version, _server(settings, timeout)))
    text.echo(f"{version} is served; `trifid models rollback` takes it back")


@models.command("rollback")
@_repository
@_timeout
@options.config
def rollback_version(folder: Path | None, timeout: float, config: Path | None) -> None:
    """Serve again the version that was served before; workers change over without a restart."""
    from broker.models.promote import rollback

    settings, repository = _opened(folder, config)
    manifest = rollback(repository, _server(settings, timeout))
    text.echo(f"{manifest.model_version} is served again")
