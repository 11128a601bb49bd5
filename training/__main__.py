"""``python -m training``: prepare, pre-train, fine-tune, calibrate, evaluate and export, in that order."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click
import torch
from rich.console import Console

from broker.errors import TrifidError
from training.config import load_settings
from training.evaluate import markdown
from training.run import Run, metadata_against_astrom3

CONSOLE = Console(stderr=True)


def _default_shared() -> Path:
    return Path(os.environ.get("TRIFID_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@click.group()
def main() -> None:
    """Train Trifid's trimodal model."""


_config = click.option(
    "--config", default="trifid", show_default=True, help="Model: a name in training/configs or a TOML file."
)
_shared = click.option(
    "--shared", type=click.Path(path_type=Path), default=_default_shared, help="Folder that holds data/ (../shared)."
)
_output = click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/trifid"), show_default=True, help="Run folder."
)


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None, help="Seed of split and training; the config's by default.")
@click.option("--no-pretrain", is_flag=True, help="Leave out the contrastive pre-training.")
def train(config: str, shared: Path, output: Path, seed: int | None, no_pretrain: bool) -> None:
    """Prepare inputs, pre-train, fine-tune, calibrate and evaluate; keeps model.safetensors in the run folder."""
    run = Run(load_settings(config), shared, output, seed, CONSOLE.log)
    model = run.train(pretraining=not no_pretrain)
    run.calibrate_and_evaluate(model)


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None)
def evaluate(config: str, shared: Path, output: Path, seed: int | None) -> None:
    """Score the model in the run folder on its held-out stars and write tables and figures."""
    run = Run(load_settings(config), shared, output, seed, CONSOLE.log)
    run.calibrate_and_evaluate(run.load_model())


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None)
def baseline(config: str, shared: Path, output: Path, seed: int | None) -> None:
    """Score a random forest on the same light curves, labels and split: what the model has to beat."""
    run = Run(load_settings(config), shared, output, seed, CONSOLE.log)
    click.echo(markdown(run.baseline()))


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None)
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repo"), show_default=True,
    help="Triton model repository to write.",
)  # fmt: skip
@click.option("--version", default=lambda: datetime.now(UTC).strftime("%Y.%m.%d"), help="Published model version.")
def export(config: str, shared: Path, output: Path, seed: int | None, repository: Path, version: str) -> None:
    """Write ONNX models, manifest and reference set of the model in the run folder."""
    run = Run(load_settings(config), shared, output, seed, CONSOLE.log)
    run.export(run.load_model(), repository, version)


@main.command("check-metadata")
@_shared
@click.option("--seed", type=int, default=0, show_default=True)
def check_metadata(shared: Path, seed: int) -> None:
    """Compare the simulated catalogue values with AstroM3's published means and deviations, as Markdown."""
    click.echo("| column | stars | mean | deviation | AstroM3's mean | its deviation |\n|---|---:|---:|---:|---:|---:|")
    for name, count, mean, deviation, theirs, their_deviation in metadata_against_astrom3(shared / "data", seed):
        click.echo(f"| {name} | {count} | {mean:.2f} | {deviation:.2f} | {theirs:.2f} | {their_deviation:.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        main()
    except TrifidError as error:
        raise SystemExit(f"error: {error}") from error
