"""``python -m training``: prepare, pre-train, fine-tune, calibrate, evaluate and export, in that order.

It has over 400 lines, since all commands are here, one after another.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import rich
import torch

from broker.anomaly.reference_set import ReferenceSet
from broker.errors import TrifidError
from broker.inference.onnx import OnnxEngine
from broker.models.build import code_version
from broker.models.repository import reference_set_path
from broker.publish.disagreement import CONFIDENCE
from broker.similar.translate import Translator
from training.anomaly_methods import anomaly_methods
from training.anomaly_ways import anomaly_ways
from training.audit_precision import PARTS, audit_precision
from training.audit_precision import markdown as audit_table
from training.config import ModelSettings, StageSettings, load_settings, trifid_recipe
from training.data import Labels
from training.datasets.astrom3 import load_astrom3
from training.datasets.splits import split
from training.datasets.tables import load_objects
from training.disagreements import disagreements
from training.disagreements import markdown as disagreements_table
from training.evaluate import TEST_SETS, markdown
from training.evaluate_anomaly import classes_left_out, outside_the_ten
from training.evaluate_reference import evaluate_reference
from training.label_limits import label_disputes, label_limits
from training.leave_out import train_without
from training.live import CrossValidated, Once, Repository, evaluate_live
from training.live.baselines import Informer, LightCurveForest
from training.live.both import stars_with_both
from training.live.by_modality import evaluate_by_modality
from training.live.by_modality import save as save_by_modality
from training.live.other import other_scores
from training.live.output import Origin
from training.live.output import save as save_live
from training.periods import period_table
from training.prepare import VERSIONS
from training.reference import write_reference_set
from training.reproduce import reproduce as run_reproduction
from training.run import TrainingRun, metadata_against_astrom3
from training.similarity import embed_stars
from training.similarity import markdown as similarity_table
from training.spectrum_encoder import train_spectrum_encoder
from training.stream import Keep, train_stream
from training.table import ALL_SURVEYS, Plan, run_table
from training.table import markdown as table_markdown
from training.workers import join_workers

CONSOLE = rich.get_console()


def _default_shared() -> Path:
    return Path(os.environ.get("TRIFID_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@click.group()
def main() -> None:
    """Train Trifid's trimodal model."""
    rich.reconfigure(stderr=True)  # the one console of all, so that lines go above a progress bar, not through it


_config = click.option(
    "--config", default="trifid", show_default=True, help="Model: a name in training/configs or a TOML file."
)
_shared = click.option(
    "--shared", type=click.Path(path_type=Path), default=_default_shared, help="Folder that holds data/ (../shared)."
)
_output = click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/trifid"), show_default=True, help="Run folder."
)
_models = click.option(
    "--models", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("runs/without"),
    show_default=True, help="Output folder of `train-without`.",
)  # fmt: skip
_versions = click.option(
    "--versions", type=click.IntRange(4, VERSIONS), default=VERSIONS, show_default=True,
    help="Prepared versions of each light curve; 4: none as in a stream of several bands.",
)  # fmt: skip


def _repository(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --repository; ``text`` says what is done with it."""
    return click.option(
        "--repository", type=click.Path(path_type=Path), default=Path("model_repo"), show_default=True, help=text
    )


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None, help="Seed of split and training; the config's by default.")
@click.option("--no-pretrain", is_flag=True, help="Leave out the contrastive pre-training.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoints in the run folder, if there are any.")
@click.option(
    "--light-curve-only", is_flag=True,
    help="Train the light-curve encoder and the head alone, without pre-training or scores: for `evaluate-live`.",
)  # fmt: skip
def train(
    config: str, shared: Path, output: Path, seed: int | None, no_pretrain: bool, resume: bool, light_curve_only: bool
) -> None:
    """Prepare inputs, pre-train, fine-tune, calibrate and evaluate; keeps model.safetensors in the run folder.

    ``--config trifid`` is the default model. ``--config astrom3`` is AstroM3's encoders by AstroM3's own recipe (meant
    for a GPU), ``--config informer`` the same encoders by our recipe, on a short schedule.

    On several GPUs: torchrun --nproc-per-node=4 -m training train
    """
    with join_workers() as workers:
        with workers.in_turn():
            run = TrainingRun(load_settings(config), shared, output, seed, CONSOLE.log, light_curve_only)
        model = run.train(workers, pretraining=not (no_pretrain or light_curve_only), resume=resume)
    if workers.rank == 0 and not light_curve_only:
        run.calibrate_and_evaluate(model)
        click.echo((output / "evaluation.md").read_text())


@main.command()
@click.argument("source", default="AstroMLCore/AstroM3Processed")
@click.option("--subset", default="full_42", show_default=True, help="Share of the data set and seed of its split.")
@click.option(
    "--config", default="astrom3", show_default=True, help="Model: a name in training/configs or a TOML file."
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/astrom3"), show_default=True)
@click.option("--seed", type=int, default=None, help="Seed of training; the config's by default.")
@click.option("--no-pretrain", is_flag=True, help="Leave out the contrastive pre-training.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoints in the run folder, if there are any.")
def reproduce(
    source: str, subset: str, config: str, output: Path, seed: int | None, no_pretrain: bool, resume: bool
) -> None:
    """Train and score on AstroM3's published data set: SOURCE is a name on the Hugging Face hub or a folder of Parquet.

    ``--config astrom3`` is AstroM3's encoders by AstroM3's own recipe (Adam, plateau schedule, early stop, one
    supervised stage and head a modality; meant for a GPU), ``--config informer`` the same encoders by our recipe, on a
    short schedule, ``--config trifid`` ours. Works under torchrun, as ``train`` does.
    """
    settings = load_settings(config)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    with join_workers() as workers:
        with workers.in_turn():
            published = load_astrom3(source, subset, cache=output.parent / "astrom3-data", versions=VERSIONS)
        name = f"{source}, {subset}"
        scores = run_reproduction(settings, published, name, output, workers, CONSOLE.log, not no_pretrain, resume)
    if workers.rank == 0:
        click.echo(markdown(scores))


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None)
def evaluate(config: str, shared: Path, output: Path, seed: int | None) -> None:
    """Score the model in the run folder on its held-out stars and write tables and figures."""
    run = TrainingRun(load_settings(config), shared, output, seed, CONSOLE.log)
    run.calibrate_and_evaluate(run.load_model())
    click.echo((output / "evaluation.md").read_text())


def _numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str], tuple[float, ...]]:
    """A callback that reads numbers between commas."""

    def convert(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is no list of numbers with commas between") from error

    return convert


@main.command()
@click.option("--config", default="table", show_default=True, help="Model: a name in training/configs or a TOML file.")
@_shared
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/table"), show_default=True)
@click.option("--seeds", callback=_numbers(int), default="0,1,2,3,4", show_default=True)
@click.option("--fractions", callback=_numbers(float), default="1,0.5,0.25,0.1", show_default=True, help="Of labels.")
@click.option("--pretrain", type=click.Choice(["both", "yes", "no"]), default="both", show_default=True)
@click.option("--train-survey", type=click.Choice([ALL_SURVEYS, *TEST_SETS]), default=ALL_SURVEYS, show_default=True)
@click.option("--light-curve-only", is_flag=True, help="Train neither spectrum nor metadata encoder; --pretrain no.")
@click.option("--epochs", type=int, default=None, help="Of fine-tuning, instead of the config's.")
@click.option("--pretrain-epochs", type=int, default=None, help="Of pre-training, instead of the config's.")
def table(
    config: str,
    shared: Path,
    output: Path,
    seeds: tuple[int, ...],
    fractions: tuple[float, ...],
    pretrain: str,
    train_survey: str,
    light_curve_only: bool,
    epochs: int | None,
    pretrain_epochs: int | None,
) -> None:
    """Train and score AstroM3's table: modalities, pre-training, shares of the labels, seeds; as Markdown.

    Results lie in results.jsonl in the output folder; what is there is not trained again, and table.md shows all of it.
    """
    settings = _shortened(load_settings(config), epochs, pretrain_epochs)
    pretrained = {"both": (False, True), "yes": (True,), "no": (False,)}[pretrain]
    plan = Plan(seeds, fractions, pretrained, train_survey, light_curve_only)

    def make_run(seed: int) -> TrainingRun:
        return TrainingRun(settings, shared, output, seed, CONSOLE.log, light_curve_only)

    text = table_markdown(run_table(make_run, settings, plan, output, CONSOLE))
    (output / "table.md").write_text(text)
    click.echo(text)


def _shortened(settings: ModelSettings, epochs: int | None, pretrain_epochs: int | None) -> ModelSettings:
    own = trifid_recipe(settings, "the table")
    stages: dict[str, StageSettings] = {}
    if epochs is not None:
        stages["finetune"] = own.finetune.model_copy(update={"epochs": epochs, "steps": None})
    if pretrain_epochs is not None:
        stages["pretrain"] = own.pretrain.model_copy(update={"epochs": pretrain_epochs, "steps": None})
    return own.model_copy(update=stages)


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None)
def baseline(config: str, shared: Path, output: Path, seed: int | None) -> None:
    """Score a random forest on the same light curves, labels and split: what the model has to beat."""
    run = TrainingRun(load_settings(config), shared, output, seed, CONSOLE.log)
    click.echo(markdown(run.baseline()))


@main.command()
@_config
@_shared
@_output
@click.option("--seed", type=int, default=None)
@_repository("Triton model repository to write.")
@click.option(
    "--figures", type=click.Path(path_type=Path), default=Path("docs/figures"), show_default=True,
    help="Folder for the evaluation's figures.",
)  # fmt: skip
@click.option("--version", default=lambda: datetime.now(UTC).strftime("%Y.%m.%d"), help="Published model version.")
def export(
    config: str, shared: Path, output: Path, seed: int | None, repository: Path, figures: Path, version: str
) -> None:
    """Write ONNX models, manifest and reference set of the model in the run folder."""
    run = TrainingRun(load_settings(config), shared, output, seed, CONSOLE.log)
    run.export(run.load_model(), repository, version, figures)


@main.command("reference-set")
@_shared
@_repository("Triton model repository whose models are to be used.")
def reference_set(shared: Path, repository: Path) -> None:
    """Make the reference set of anomaly scores again for the models in a repository; no training, minutes on a CPU.

    Writes reference_set.npz and its checksum in manifest.json. `export` does the same for the models it writes.
    """
    write_reference_set(repository, shared / "data", CONSOLE.log)


@main.command()
@_shared
@_repository("Triton model repository: its encoders of light curves and spectra stay, the rest is written anew.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/stream"), show_default=True,
    help="Folder for the models of the folds and for what is prepared.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--version", default=None, help="Model version; date and time by default.")
@click.option(
    "--keep", type=click.Choice([choice.value for choice in Keep]), default=Keep.NOTHING.value, show_default=True,
    help="Networks in both folders that stay: those of the ten classes, with Other trained anew; these and Other's "
    "for total fluxes; or all, so that only what calibrates them is fitted.",
)  # fmt: skip
def stream(shared: Path, repository: Path, output: Path, seed: int, version: str | None, keep: str) -> None:
    """Train metadata encoder and classifier on what alerts carry, cross-validated by star; minutes on a CPU.

    Afterwards: `reference-set`, since embeddings have changed, and `evaluate-live`.
    """
    version = version or datetime.now(UTC).strftime("%Y.%m.%d.%H%M")
    train_stream(repository, shared / "data", output, version, seed, CONSOLE.log, keep=Keep(keep))


@main.command("disagreements")
@_shared
@_repository("Triton model repository whose answers are compared.")
@click.option(
    "--folds", type=click.Path(path_type=Path, exists=True, file_okay=False), help="As that of `evaluate-live`."
)
@click.option("--confidence", type=float, default=CONFIDENCE, show_default=True, help="As the service's setting.")
def disagreements_command(shared: Path, repository: Path, folds: Path | None, confidence: float) -> None:
    """Count stars whose type in VSX the model contradicts with confidence, and who is right by a third source."""
    classify = Repository(repository) if folds is None else CrossValidated(repository, folds)
    click.echo(disagreements_table(disagreements(classify, shared / "data", confidence)))


@main.command("audit-precision")
@_shared
@_repository("Triton model repository whose answers are used.")
@click.option(
    "--folds", type=click.Path(path_type=Path, exists=True, file_okay=False), help="As that of `evaluate-live`."
)
@click.option("--part", type=click.Choice(PARTS), default="test", show_default=True, help="Of ASAS's and Catalina's.")
@click.option("--seeds", type=click.IntRange(min=2), default=20, show_default=True, help="Draws of wrong labels.")
def audit_precision_command(shared: Path, repository: Path, folds: Path | None, part: str, seeds: int) -> None:
    """Score `trifid audit`: wrong labels that are planted, and labels that another catalogue contradicts."""
    classify = Repository(repository) if folds is None else CrossValidated(repository, folds)
    planted, real = audit_precision(classify, shared / "data", part, seeds)
    click.echo(audit_table(planted))
    click.echo(audit_table(real))


@main.command("similarity")
@_shared
@_repository("Triton model repository whose embeddings are looked at.")
@click.option(
    "--prepared", type=click.Path(path_type=Path), default=Path("runs/light_curves"), show_default=True,
    help="Light curves as `train` prepared them; made where they are not there, which takes long.",
)  # fmt: skip
@click.option("--each", type=(int, int), default=(150, 100), show_default=True, help="Training and test stars a class.")
def similarity_command(shared: Path, repository: Path, prepared: Path, each: tuple[int, int]) -> None:
    """Say what the embeddings find on held-out stars: recall across modalities, zero-shot classes, probes."""
    engine = OnnxEngine(repository)
    seed = engine.manifest.training.get("seed")
    if not isinstance(seed, int):
        raise click.ClickException(f"the manifest in {repository} does not say with which seed the model was trained")
    reference = ReferenceSet.load_npz(reference_set_path(repository, engine.manifest))
    click.echo(similarity_table(*embed_stars(engine, shared / "data", prepared, seed, each), Translator(reference)))


@main.command("spectrum-encoder")
@_shared
@_repository("Triton model repository whose spectrum encoder is written anew.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/spectrum"), show_default=True,
    help="Folder for the weights and the scores on validation stars.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
def spectrum_encoder(shared: Path, repository: Path, output: Path, seed: int) -> None:
    """Train the spectrum encoder by itself, on simulated spectra whole and in part; 10 minutes on a core.

    Afterwards: `stream`, since the heads have to be trained on the new embeddings.
    """
    train_spectrum_encoder(shared / "data", repository, output, seed, CONSOLE.log)


@main.command("evaluate-live")
@_shared
@_repository("Triton model repository that is scored.")
@click.option(
    "--folds", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None,
    help="Folder `folds` of `stream`: stars that were trained on are scored by a model that has not seen them. "
    "Without it every star is scored by the repository's model, as is right for stars that were kept back.",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/live"), show_default=True)
@click.option(
    "--informer", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None,
    help="Run folder of `train --config informer --light-curve-only`; without it its column has dashes.",
)  # fmt: skip
def evaluate_live_command(
    shared: Path, repository: Path, folds: Path | None, output: Path, informer: Path | None
) -> None:
    """Score the model on real packets and archives in several bands; writes live.md, live.json and figures."""
    model = Repository(repository) if folds is None else CrossValidated(repository, folds)
    classify = Once(model)
    data = shared / "data"
    fold = model.fold if isinstance(model, CrossValidated) else None
    forest = LightCurveForest(data, fold)
    scores, first = evaluate_live(classify, data, forest, Informer(informer) if informer else None, fold_of_star=fold)
    origin = Origin(model.version, f"python -m training {shlex.join(sys.argv[1:])}", code_version())
    save_live(scores, first, stars_with_both(classify, data), other_scores(classify, data), origin, output)
    click.echo((output / "live.md").read_text())


@main.command("evaluate-modalities")
@_shared
@_repository("Triton model repository that is scored.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/modalities"), show_default=True)
def evaluate_modalities_command(shared: Path, repository: Path, output: Path) -> None:
    """Score the model on the held-out stars of ASAS and Catalina by modality, and after their first detections."""
    model = Repository(repository)
    subsets, first = evaluate_by_modality(model, shared / "data")
    origin = Origin(model.version, f"python -m training {shlex.join(sys.argv[1:])}", code_version())
    click.echo(save_by_modality(subsets, first, origin, output))


@main.command("train-without")
@click.argument("names", nargs=-1, required=True, metavar="CLASS...")
@_shared
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/without"), show_default=True)
@click.option("--epochs", type=int, default=3, show_default=True)
@_versions
def train_without_command(names: tuple[str, ...], shared: Path, output: Path, epochs: int, versions: int) -> None:
    """Train an encoder of light curves on all classes but CLASS, for `evaluate-anomaly`; 2 minutes each on a core."""
    for name in names:
        train_without(shared, output, name, epochs, versions, CONSOLE.log)


@main.command("evaluate-anomaly")
@_shared
@_repository("Triton model repository whose scores are evaluated.")
@click.option(
    "--models", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None,
    help="Output folder of `train-without`: classes left out, too.",
)  # fmt: skip
@_versions
def evaluate_anomaly_command(shared: Path, repository: Path, models: Path | None, versions: int) -> None:
    """AUROC of each anomaly score for what is none of the ten classes, and for classes left out, as Markdown."""
    click.echo(outside_the_ten(repository, shared / "data", CONSOLE.log))
    if models is not None:
        click.echo(classes_left_out(models, shared, versions, CONSOLE.log))


@main.command("anomaly-methods")
@_shared
@_repository("Triton model repository whose scores are compared for other surveys.")
@_models
@_versions
def anomaly_methods_command(shared: Path, repository: Path, models: Path, versions: int) -> None:
    """AUROC of other methods than the service's for classes left out, as Markdown; minutes on a core."""
    click.echo(anomaly_methods(models, repository, shared, versions, CONSOLE.log))


@main.command("anomaly-ways")
@_shared
@_repository("Triton model repository whose scores are combined for other surveys.")
@_models
@_versions
def anomaly_ways_command(shared: Path, repository: Path, models: Path, versions: int) -> None:
    """AUROC of ways to combine anomaly scores, by the half of the stars that chooses and the other, as Markdown."""
    click.echo(anomaly_ways(models, repository, shared, versions, CONSOLE.log))


@main.command("evaluate-reference")
@_shared
@_repository("Triton model repository whose reference set is compared.")
def evaluate_reference_command(shared: Path, repository: Path) -> None:
    """How even anomaly scores are for surveys that the reference set lacks, before and after one from their stream."""
    click.echo(evaluate_reference(repository, shared / "data", CONSOLE.log))


@main.command("evaluate-feedback")
@_shared
@_repository("Triton model repository whose scores are corrected by answers.")
@click.option("--seeds", type=click.IntRange(2), default=10, show_default=True, help="Splits of the stars.")
def evaluate_feedback_command(shared: Path, repository: Path, seeds: int) -> None:
    """Precision of the top 50 before and after 20 answers of a simulated astronomer, as Markdown; minutes on a core."""
    from training.evaluate_feedback import evaluate_feedback, pool_of  # needs coniferest, which only this does

    click.echo(evaluate_feedback(pool_of(repository, shared / "data", CONSOLE.log), CONSOLE.log, seeds))


@main.command("periods")
@_shared
@_repository("Triton model repository whose leading classes decide.")
@click.option("--most", type=int, default=300, show_default=True, help="Stars of each class and survey at most.")
def periods(shared: Path, repository: Path, most: int) -> None:
    """Compare published periods with the catalogues', by class, as Markdown."""
    click.echo(period_table(OnnxEngine(repository), shared / "data", most))


@main.command("label-limits")
@_shared
def label_limits_of_training_stars(shared: Path) -> None:
    """Count where the catalogues' labels disagree among the stars that are not for tests, as Markdown."""
    table = load_objects(shared / "data", against_vsx=False)
    labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
    train, validation, _ = split(table, seed=0)
    click.echo(label_limits(table, labels, np.concatenate([train, validation])))


@main.command("label-disputes")
@_shared
def label_disputes_command(shared: Path) -> None:
    """Count by class the stars whose label VSX disputes, and which are therefore not scored, as Markdown."""
    click.echo(label_disputes(shared / "data"))


@main.command("check-metadata")
@_shared
@click.option("--seed", type=int, default=0, show_default=True)
def check_metadata(shared: Path, seed: int) -> None:
    """Compare the simulated catalogue values with AstroM3's published means and deviations, as Markdown."""
    click.echo("| column | stars | mean | deviation | AstroM3's mean | its deviation |\n|---|---:|---:|---:|---:|---:|")
    for name, count, mean, deviation, theirs, their_deviation in metadata_against_astrom3(shared / "data", seed):
        click.echo(f"| {name} | {count} | {mean:.2f} | {deviation:.2f} | {theirs:.2f} | {their_deviation:.2f} |")


def threads(environment: Mapping[str, str], cores: int) -> int:
    """How many a process computes with: OMP_NUM_THREADS where it is set, so that a shared machine can be shared.

    Else its share of the cores: torchrun starts several processes on a machine, and says how many.
    """
    given = environment.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1")))


if __name__ == "__main__":
    torch.set_num_threads(threads(os.environ, os.cpu_count() or 1))
    try:
        main()
    except TrifidError as error:
        raise SystemExit(f"error: {error}") from error
