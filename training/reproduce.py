"""AstroM3's own data set, trained on and scored as published: all three modalities measured, none simulated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from training.calibrate import encode_rows, probabilities, usable
from training.config import AstroM3RecipeSettings, ModelSettings, trifid_recipe
from training.datasets.astrom3 import AstroM3Data
from training.encoders.build import new_model
from training.encoders.trimodal import Trimodal
from training.evaluate import Score, calibrate_and_score, save
from training.figures import plot_confusion, plot_reliability
from training.finetune import finetune
from training.loop import Checkpoints, Context
from training.modalities import BY_MODALITY, train_as_astrom3
from training.pretrain import pretrain
from training.workers import Workers

EVERYTHING = (True, True, True)
PREFACE = """# AstroM3's data set: {source}

Scores on the published test split; light curves, spectra, metadata and labels are the published ones, all real. The
period is found by Trifid's own search, not taken from the catalogue. Model: {model}, seed {seed}."""


def reproduce(
    settings: ModelSettings,
    published: AstroM3Data,
    source: str,
    output: Path,
    workers: Workers,
    report: Callable[..., None],
    pretraining: bool = True,
    resume: bool = False,
) -> list[Score]:
    """Pre-train, fine-tune, calibrate on the validation split and score every subset of the modalities.

    Leaves model.safetensors, evaluation.md and .json and figures of all modalities together in ``output``. Raises what
    ``training.loop.fit`` raises.
    """
    output.mkdir(parents=True, exist_ok=True)
    data = published.data
    run = {**settings.model_dump(mode="json"), "source": source, "pretraining": pretraining}
    checkpoints = Checkpoints(output, run, resume)
    if workers.rank == 0 and not resume:
        checkpoints.clear()
    context = Context(workers, report, checkpoints)
    model = new_model(settings, settings.seed, data, published.train_rows)
    rows, validation_rows, seed = published.train_rows, published.validation_rows, settings.seed

    def validate(candidate: Trimodal) -> str:
        encoded = encode_rows(candidate, data, validation_rows)
        chosen = usable(encoded, EVERYTHING)
        best = probabilities(candidate.classifier, encoded, EVERYTHING).argmax(axis=1)
        right = (best == data.labels.index[validation_rows])[chosen]
        return f"validation accuracy, all modalities: {right.mean():.4f}"

    preface = PREFACE.format(source=source, model=settings.name, seed=seed)
    if isinstance(settings, AstroM3RecipeSettings):
        preface += f"\n\n{BY_MODALITY}"
        model = train_as_astrom3(
            model, data, data.labels, rows, validation_rows, settings, seed, context, pretraining
        ).cpu()  # fmt: skip
    else:
        own = trifid_recipe(settings, "reproduce")
        if pretraining:
            pretrain(model, data, rows, own.pretrain, seed, context)
        model = finetune(model, data, data.labels, data.labels, rows, own.finetune, seed, context, validate).cpu()
    if workers.rank > 0:
        return []
    found = calibrate_and_score(model, data, validation_rows, {"AstroM3": published.test_rows})
    save_file(model.state_dict(), output / "model.safetensors")
    save(found.scores, output, preface)
    test = found.encoded["AstroM3"]
    chosen = usable(test, EVERYTHING)
    predicted = probabilities(model.classifier, test, EVERYTHING)[chosen]
    label = data.labels.index[test.rows][chosen]
    title = f"AstroM3's test split, all modalities (real), {len(label)} objects"
    plot_confusion(predicted, label, title, output / "confusion.png")
    plot_reliability(predicted, label, title, output / "reliability.png")
    return found.scores
