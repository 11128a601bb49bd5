"""AstroM3's recipe on made-up stars: what each stage trains, how it is judged, and that it can be resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from torch import nn

from broker.assemble.inputs import MODALITIES
from broker.errors import ConfigurationError
from tests.unit.training.test_loop import RUN, Interruption, assert_same_weights, made_up_stars, silent
from training.calibrate import encode_rows, probabilities
from training.config import AstroM3RecipeSettings, ModalitiesSettings, load_settings, trifid_recipe
from training.data import TrainingSet
from training.encoders.astrom3 import InformerEncoder, set_dropout
from training.encoders.build import build_model
from training.encoders.trimodal import HeadsClassifier, Trimodal
from training.loop import Checkpoints, Context
from training.losses import trimodal_contrastive
from training.modalities import supervised_judgement, train_as_astrom3
from training.pretrain import contrastive_judgement
from training.workers import Workers

TRAINING, VALIDATION = np.arange(28), np.arange(28, 40)
ENCODERS = dict(zip(MODALITIES, ("light_curve_encoder", "spectrum_encoder", "metadata_encoder"), strict=True))


@pytest.fixture(scope="module")
def stars() -> TrainingSet:
    return made_up_stars(40)


def recipe(epochs: int = 3) -> AstroM3RecipeSettings:
    """The published recipe with a small Informer and small batches; the rate has risen after the first epoch."""
    settings = load_settings("astrom3")
    assert isinstance(settings, AstroM3RecipeSettings)
    short = {"epochs": epochs, "batch_size": 8, "warmup_epochs": 1}
    stages = {name: getattr(settings.finetune, name).model_copy(update=short) for name in MODALITIES}
    return settings.model_copy(
        update={
            "informer": settings.informer.model_copy(update={"layers": 1, "width": 16, "feed_forward": 16}),
            "pretrain": settings.pretrain.model_copy(update=short),
            "finetune": ModalitiesSettings(**stages),
        }
    )


def small_model() -> Trimodal:
    torch.manual_seed(11)
    return build_model(recipe())


def train(stars: TrainingSet, context: Context, **options: object) -> Trimodal:
    labels = stars.labels.only(TRAINING)  # as `train` has them: those of validation stars do not count
    return train_as_astrom3(
        small_model(), stars, labels, TRAINING, VALIDATION, recipe(), 3, context, **options  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_recipe_is_the_published_one() -> None:
    """From configs/*.yaml of github.com/MeriDK/AstroM3, as issue 12 rounds them."""
    settings = load_settings("astrom3")
    assert isinstance(settings, AstroM3RecipeSettings)
    first = settings.pretrain
    rounded = [f"{v:.3g}" for v in (first.learning_rate, first.beta1, first.weight_decay, first.factor)]
    assert rounded == ["0.00392", "0.926", "0.00467", "0.113"]
    assert (first.epochs, first.batch_size, first.clip_norm) == (100, 512, 45.0)
    assert (first.warmup_epochs, first.patience, first.early_stop) == (10, 3, 6)
    encoders = (settings.informer, settings.galspecnet, settings.perceptron)
    assert [round(e.dropout, 3) for e in encoders] == [0.245, 0.339, 0.16]
    stages = {name: getattr(settings.finetune, name) for name in MODALITIES}
    assert {
        name: (f"{s.learning_rate:.3g}", f"{s.weight_decay:.2g}", round(s.dropout, 3), s.clip_norm)
        for name, s in stages.items()
    } == {
        "light_curve": ("0.00293", "4.7e-05", 0.231, 5.0),
        "spectrum": ("0.00397", "0.00016", 0.316, 5.0),
        "metadata": ("0.00274", "0.00026", 0.192, None),
    }
    assert {(s.epochs, s.batch_size, s.early_stop, s.precision) for s in stages.values()} == {(50, 512, 6, "float32")}
    assert build_model(settings).log_scale.exp().tolist() == pytest.approx([100.0] * 3)


def test_other_commands_say_that_they_have_another_recipe() -> None:
    with pytest.raises(ConfigurationError, match="the table trains by this project's recipe, and the model astrom3"):
        trifid_recipe(load_settings("astrom3"), "the table")
    assert trifid_recipe(load_settings("informer"), "the table").name == "informer"


def test_each_stage_trains_one_encoder_and_its_head_and_nothing_else(stars: TrainingSet) -> None:
    before = small_model().state_dict()
    for place, name in enumerate(MODALITIES):
        after = train(stars, Context(Workers(), silent), pretraining=False, modalities=(name,)).state_dict()
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        parts = {".".join(key.split(".")[:3]) if "heads" in key else key.split(".")[0] for key in changed}
        assert parts == {ENCODERS[name], f"classifier.heads.{place}"}


def test_pre_training_trains_the_encoders_and_the_three_scales(stars: TrainingSet) -> None:
    before = small_model().state_dict()
    lines: list[str] = []
    after = train(stars, Context(Workers(), lines.append), modalities=()).state_dict()
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {*ENCODERS.values(), "log_scale"}
    assert (after["log_scale"] != before["log_scale"]).all()
    assert [line.split(":")[0] for line in lines] == [*(f"pretrain epoch {i}/3" for i in (1, 2, 3)), "pretrain"]
    assert lines[-1].startswith("pretrain: done after epoch 3, kept is epoch ")
    assert ", rate 3.92e-08; validation loss " in lines[0]
    assert ", rate 3.92e-03; validation loss " in lines[1]


def test_the_whole_recipe_resumes_bit_for_bit(tmp_path: Path, stars: TrainingSet) -> None:
    told: list[str] = []
    whole = train(stars, Context(Workers(), told.append))
    stages = ["pretrain", *(f"finetune-{name}" for name in MODALITIES)]
    assert [line.split(":")[0] for line in told if "epoch 2/3" in line] == [f"{stage} epoch 2/3" for stage in stages]
    for stop in ("pretrain epoch 2", "finetune-light_curve: done", "finetune-spectrum epoch 1"):

        def report(line: str, stop: str = stop) -> None:
            if line.startswith(stop):
                raise Interruption

        with pytest.raises(Interruption):
            train(stars, Context(Workers(), report, Checkpoints(tmp_path, RUN, resume=True)))
    resumed = train(stars, Context(Workers(), silent, Checkpoints(tmp_path, RUN, resume=True)))
    assert_same_weights(whole, resumed)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"checkpoint-{s}.safetensors" for s in stages)


def test_a_modality_without_validation_objects_is_named(stars: TrainingSet) -> None:
    context = Context(Workers(), silent)
    without = VALIDATION[~stars.spectrum_present[VALIDATION].numpy()]
    assert len(without)
    with pytest.raises(ConfigurationError, match="finetune-spectrum: no validation objects"):
        train_as_astrom3(
            small_model(), stars, stars.labels, TRAINING, without, recipe(1), 3, context, False, ("spectrum",)
        )
    with pytest.raises(ConfigurationError, match="pretrain: no two validation objects with all modalities"):
        train_as_astrom3(small_model(), stars, stars.labels, TRAINING, without, recipe(1), 3, context)


@pytest.mark.parametrize("place", range(3))
def test_a_supervised_stage_is_judged_by_cross_entropy_and_accuracy(stars: TrainingSet, place: int) -> None:
    model = small_model().eval()
    rows = TRAINING[stars.present(torch.from_numpy(TRAINING), torch.zeros((), dtype=torch.long))[:, place].numpy()]
    found = supervised_judgement(model, place, stars, stars.labels, rows, batch_size=8)
    subset = tuple(i == place for i in range(3))
    predicted = probabilities(model.classifier, encode_rows(model, stars, rows), subset)
    predicted /= predicted.sum(axis=1, keepdims=True)  # of single precision
    label = stars.labels.index[rows]
    assert found.loss == pytest.approx(log_loss(label, predicted, labels=range(10)), rel=1e-4)
    assert found.accuracy == np.mean(predicted.argmax(axis=1) == label)


def test_pre_training_is_judged_as_astrom3s_trainer_does(stars: TrainingSet) -> None:
    model = small_model().eval()
    with torch.no_grad():
        model.log_scale.copy_(torch.tensor([2.0, 3.0, 4.0]))
    present = stars.present(torch.from_numpy(TRAINING), torch.zeros((), dtype=torch.long)).numpy()
    embeddings = encode_rows(model, stars, TRAINING).embeddings.double().numpy()
    losses, right, asked = [], 0, 0
    for first in range(0, 28, 12):  # of 12, 12 and 4
        own, have = embeddings[first : first + 12], present[first : first + 12]
        whole = have.all(axis=1)
        total, vote = 0.0, np.zeros((whole.sum(), whole.sum()))
        for (one, other), scale in zip(((0, 1), (0, 2), (1, 2)), np.exp([2.0, 3.0, 4.0]), strict=True):
            both = have[:, one] & have[:, other]
            similarity = scale * own[both, one] @ own[both, other].T
            total -= np.diag(log_softmax(similarity, axis=1)).mean() + np.diag(log_softmax(similarity, axis=0)).mean()
            similarity = scale * own[whole, one] @ own[whole, other].T
            vote += softmax(similarity, axis=1) + softmax(similarity.T, axis=1)
        losses.append(total)
        right += int((vote.argmax(axis=1) == np.arange(whole.sum())).sum())
        asked += int(whole.sum())
    found = contrastive_judgement(model, stars, TRAINING, 12)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.accuracy == right / asked


def test_the_scale_of_the_contrastive_loss() -> None:
    embeddings = nn.functional.normalize(torch.randn(6, 3, 512), dim=2)
    present = torch.ones(6, 3, dtype=torch.bool)
    one = trimodal_contrastive(embeddings, present, torch.tensor(2.0))
    assert torch.equal(one, trimodal_contrastive(embeddings, present, torch.full((3,), 2.0)))
    assert trimodal_contrastive(embeddings, present, torch.tensor(2.0), 1.0).item() == pytest.approx(2 * one.item())


@torch.no_grad()
def test_several_modalities_have_the_mean_of_their_heads() -> None:
    head = HeadsClassifier()
    embeddings = torch.randn(2, 3, 512)
    found = head.logits(embeddings, torch.tensor([[True, False, True], [False, True, False]]))
    expected = (head.heads[0](embeddings[0, 0]) + head.heads[2](embeddings[0, 2])) / 2
    assert torch.allclose(found, torch.stack([expected, head.heads[1](embeddings[1, 1])]), atol=1e-5)


def test_a_stage_has_its_own_dropout_but_for_informers_embedding(stars: TrainingSet) -> None:
    encoder = InformerEncoder(layers=2, width=16, feed_forward=16, dropout=0.245)
    set_dropout(encoder, 0.231)
    found = {name: m.p for name, m in encoder.named_modules() if isinstance(m, nn.Dropout)}
    assert found.pop("embed_dropout") == 0.1
    assert set(found.values()) == {0.231}
    assert len(found) == 5  # two a layer, one before the projection
    model = train(stars, Context(Workers(), silent), pretraining=False)
    shares = [{m.p for m in getattr(model, name).modules() if isinstance(m, nn.Dropout)} for name in ENCODERS.values()]
    assert [sorted(round(p, 3) for p in share) for share in shares] == [[0.1, 0.231], [0.316], [0.192]]
