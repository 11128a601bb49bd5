"""One training run: its data, its model and what it leaves in the run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from broker.assemble.inputs import MODALITIES
from broker.assemble.metadata import Scaler, standardise, widened
from broker.errors import ConfigurationError, InputFileError
from broker.taxonomy import CLASS_NAMES
from training.baselines import forest_probabilities
from training.calibrate import encode_rows, probabilities, usable
from training.config import AstroM3RecipeSettings, FinetuneSettings, ModelSettings, trifid_recipe
from training.data import Labels, TrainingSet
from training.datasets.confusion import catalogue_confusion, name_counts
from training.datasets.splits import part_of_each, same_star_groups, split
from training.datasets.tables import ObjectTable, load_objects
from training.detections import accuracy_by_detections, detections_markdown, save_detections
from training.encoders.build import build_model, new_model
from training.encoders.trimodal import LIGHT_CURVE_ONLY, SUBSETS, Trimodal
from training.evaluate import TEST_SETS, Evaluation, Score, calibrate_and_score, save, score_probabilities
from training.export import check_export, export_models, save_scaler, write_manifest
from training.figures import plot_confusion, plot_detections, plot_reliability, plot_umap
from training.finetune import finetune
from training.loop import Checkpoints, Context
from training.modalities import BY_MODALITY, train_as_astrom3
from training.prepare import VERSIONS, PreparedLightCurves, prepare_light_curves
from training.pretrain import pretrain
from training.reference import write_reference_set
from training.simulate.catalogues import catalogue_values
from training.simulate.metadata import compare_with_astrom3, fit_scaler, load_donors, simulate_metadata
from training.simulate.spectra import PARTIAL, draw_types, load_templates, simulate_spectra
from training.table import label_subset, settings_for_labels
from training.teacher import forest_opinion
from training.workers import Workers

SPECTRUM_DRAWS = 2

PREFACE = """# Evaluation

Stars held back from training and calibration, split by star over both surveys (seed {seed}). Light curves and
labels are real. **Spectra are simulated** from templates of the class's spectral types. **Metadata are partly
simulated**: position and mean V are the star's own, most of the rest is a real donor star's of the same class
(docs/simulation.md). So the rows that use light curves alone are real results; the others say what the model
would do if such spectra and catalogue values came with the star, and are optimistic by construction."""


class TrainingRun:
    """Loads everything once; each step can be called by itself."""

    def __init__(
        self,
        settings: ModelSettings,
        shared: Path,
        output: Path,
        seed: int | None,
        report: Callable[..., None],
        light_curve_only: bool = False,
        versions: int = VERSIONS,
    ) -> None:
        """With ``light_curve_only`` no object has a spectrum or metadata, and fine-tuning leaves their encoders out.

        ``versions`` are those of each light curve, see ``training.prepare``.
        """
        self.settings = settings
        self.light_curve_only = light_curve_only
        self.seed = settings.seed if seed is None else seed
        self.output, self.shared = output, shared
        self.report = report
        data = shared / "data"
        if not data.is_dir():
            raise InputFileError(f"no training data: {data} does not exist (see --shared)")
        output.mkdir(parents=True, exist_ok=True)
        table = load_objects(data)
        self.table = table
        self.train_rows, self.validation_rows, self.test_rows = split(table, self.seed)
        self.labels = Labels.from_columns(table.label, table.label_quality, table.label_is_coarse)
        labels = np.full(len(table), None, object)
        labels[self.train_rows] = table.label[self.train_rows]
        light_curves = prepare_light_curves(
            table.light_curves, list(labels), versions, output.parent / "light_curves", data
        )
        self.data, self.scaler = self._inputs(table, data, light_curves)
        self._pretrained: dict[str | None, dict[str, Tensor]] = {}

    def _inputs(self, table: ObjectTable, data: Path, light_curves: PreparedLightCurves) -> tuple[TrainingSet, Scaler]:
        rng = np.random.default_rng([self.seed, 0])
        labelled = np.flatnonzero(self.labels.index >= 0)
        code = np.full(len(table), np.nan)
        code[labelled] = draw_types(list(table.label[labelled]), list(table.survey[labelled]), rng)
        part = part_of_each(len(table), (self.train_rows, self.validation_rows, self.test_rows))
        held_out = part == 2
        raw, _ = simulate_metadata(table, load_donors(data), code, light_curves.period[0], part, rng)
        raw = widened(raw)
        scaler = fit_scaler(raw[self.train_rows])
        metadata = standardise(raw, table.ra, table.dec, scaler)
        if self.light_curve_only:
            nothing = np.zeros(len(table), np.bool_)
            # One zero, seen as an array of the usual shape.
            spectra = np.broadcast_to(np.zeros((), np.float16), (1, len(table), 3, 2575))
            return (
                TrainingSet(self.labels, light_curves, spectra, nothing, metadata.values, metadata.known, nothing),
                scaler,
            )
        spectra = self._spectra(table, data, labelled, code, held_out)
        return (
            TrainingSet(
                self.labels,
                light_curves,
                spectra,
                self.labels.index >= 0,
                metadata.values,
                metadata.known,
                metadata.present,
            ),
            scaler,
        )

    def _spectra(
        self,
        table: ObjectTable,
        data: Path,
        labelled: NDArray[np.intp],
        code: NDArray[np.float64],
        held_out: NDArray[np.bool_],
    ) -> NDArray[np.float16]:
        """(SPECTRUM_DRAWS, n, 3, 2575), kept on disk; rows of objects without a label are zero.

        The first are whole; of the others, which only training sees, a share covers a part of the grid.
        """
        path = self.output / f"spectra-in-part-{self.seed}.npy"
        shape = (SPECTRUM_DRAWS, len(table), 3, 2575)
        if not path.exists():
            templates = load_templates(data)
            partial = path.with_suffix(".partial.npy")
            out = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            chunks = np.array_split(labelled, max(1, len(labelled) // 512))
            for draw in range(SPECTRUM_DRAWS):
                rng = np.random.default_rng([self.seed, 3, draw])
                for rows in track(chunks, f"Simulating spectra {draw + 1}/{SPECTRUM_DRAWS}"):
                    out[draw, rows] = simulate_spectra(
                        templates, list(table.label[rows]), list(table.survey[rows]), code[rows], held_out[rows], rng,
                        partial=PARTIAL if draw else 0.0,
                    )  # fmt: skip
            out.flush()
            partial.rename(path)
        spectra: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return spectra

    @property
    def model_path(self) -> Path:
        """Where the trained weights are kept."""
        return self.output / "model.safetensors"

    def load_model(self) -> Trimodal:
        """The trained model of the run folder; ConfigurationError where there is none."""
        if not self.model_path.exists():
            raise ConfigurationError(f"{self.model_path} does not exist: run `python -m training train` first")
        model = build_model(self.settings)
        model.load_state_dict(load_file(self.model_path))
        return model.eval()

    def train(self, workers: Workers, pretraining: bool = True, resume: bool = False) -> Trimodal:
        """Pre-train, fine-tune, save and return the model, which is then on the CPU.

        With ``resume`` training goes on from the checkpoints in the run folder; without, those are removed.
        """
        settings = {**self.settings.model_dump(mode="json"), "seed": self.seed, "pretraining": pretraining}
        checkpoints = Checkpoints(self.output, settings, resume)
        if workers.rank == 0 and not resume:
            checkpoints.clear()
        context = Context(workers, self.report, checkpoints)
        model = new_model(self.settings, self.seed, self.data, self.train_rows)
        rows = self.scored(self.validation_rows)

        def validate(candidate: Trimodal) -> str:
            encoded = encode_rows(candidate, self.data, rows, spectra=False)
            parts = []
            for survey in TEST_SETS:
                own = (self.table.survey[rows] == survey) & usable(encoded, LIGHT_CURVE_ONLY)
                best = probabilities(candidate.classifier, encoded, LIGHT_CURVE_ONLY).argmax(axis=1)
                parts.append(f"{survey} {np.mean((best == self.labels.index[rows])[own]):.4f}")
            return "validation accuracy, light curve alone: " + ", ".join(parts)

        if isinstance(self.settings, AstroM3RecipeSettings):
            labels, _ = self._labels_of(self.train_rows, 0.0)
            modalities = MODALITIES[:1] if self.light_curve_only else MODALITIES
            model = train_as_astrom3(
                model, self.data, labels, self.labelled_rows(), rows, self.settings, self.seed, context, pretraining,
                modalities,
            ).cpu()  # fmt: skip
        else:
            own = trifid_recipe(self.settings, "train")
            if pretraining:
                pretrain(model, self.data, self.labelled_rows(), own.pretrain, self.seed, context)
            model = self._finetune(model, self.train_rows, own.finetune, context, validate)
        if workers.rank == 0:
            save_file(model.state_dict(), self.model_path)
        return model

    def train_cell(self, fraction: float, survey: str | None, pretraining: bool) -> Trimodal:
        """A model for one cell of ``training.table``, on the CPU; nothing is saved.

        Pre-trained, if at all, on the inputs of all labelled training stars of ``survey`` (None: of both), which is
        done once and shared by all fractions, and fine-tuned on ``fraction`` of their labels. Raises
        ConfigurationError for pre-training on light curves alone, and for a model of another recipe than ours.
        """
        own = trifid_recipe(self.settings, "a cell of the table")
        if pretraining and self.light_curve_only:
            raise ConfigurationError("pre-training needs several modalities, and there are light curves alone")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        context = Context(Workers(device=device), self.report)
        everything, rows = self.labelled_rows(1.0, survey), self.labelled_rows(fraction, survey)
        model = new_model(self.settings, self.seed, self.data, everything)
        if pretraining:
            if survey not in self._pretrained:
                pretrain(model, self.data, everything, own.pretrain, self.seed, context)
                self._pretrained[survey] = {name: t.cpu().clone() for name, t in model.state_dict().items()}
            model.load_state_dict(self._pretrained[survey])
        settings = settings_for_labels(own.finetune, len(rows), len(everything))
        return self._finetune(model, rows, settings, context)

    def labelled_rows(self, fraction: float = 1.0, survey: str | None = None) -> NDArray[np.intp]:
        """Training rows with a label that counts, of one survey or both; a share of their stars within each class."""
        rows = self.train_rows[self.labels.weight[self.train_rows] > 0]
        if survey is not None:
            rows = rows[self.table.survey[rows] == survey]
        if fraction == 1.0:
            return rows
        return label_subset(self.labels.index, same_star_groups(self.table), rows, fraction, self.seed)

    def _finetune(
        self,
        model: Trimodal,
        rows: NDArray[np.intp],
        settings: FinetuneSettings,
        context: Context,
        validate: Callable[[Trimodal], str] | None = None,
    ) -> Trimodal:
        """The model fine-tuned on ``rows``, on the subsets of the modalities that there are, on the CPU."""
        subsets = (LIGHT_CURVE_ONLY,) if self.light_curve_only else SUBSETS
        labels, taught = self._labels_of(rows, settings.teacher_share)
        rows = np.union1d(rows, self._unlabelled_rows(rows))
        return finetune(model, self.data, labels, taught, rows, settings, self.seed, context, validate, subsets).cpu()

    def _unlabelled_rows(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Training stars without a label that counts, of the surveys that ``rows`` are of."""
        rest: NDArray[np.intp] = self.train_rows[self.labels.weight[self.train_rows] == 0]
        of_surveys: NDArray[np.bool_] = np.isin(self.table.survey[rest], np.unique(self.table.survey[rows]))
        return rest[of_surveys]

    def _labels_of(self, rows: NDArray[np.intp], share: float) -> tuple[Labels, Labels]:
        """The labels of ``rows`` and no other stars', and the same mixed with the opinion of a forest of these."""
        table, every = self.table, self.labels
        rows = rows[every.weight[rows] > 0]
        labels = every.only(rows)
        surveys = np.unique(table.survey[rows])
        if len(surveys) > 1:
            counts = name_counts(table, every.index, every.named, rows, "asas", "css")
            labels = labels.with_confusion(table.survey == "css", catalogue_confusion(counts, "css"))
        taught = labels
        if share > 0:
            features, present = self.data.features[0].float().numpy(), self.data.light_curve_present[0].numpy()
            learners = np.union1d(rows, self._unlabelled_rows(rows))
            for survey in surveys:
                own = learners[(table.survey[learners] == survey) & present[learners]]
                taught = taught.with_teacher(own, forest_opinion(features, labels, own, self.seed), share)
        return labels, taught

    def scored(self, rows: NDArray[np.intp], survey: str | None = None) -> NDArray[np.intp]:
        """Those of ``rows`` whose label may be scored, of one survey or all."""
        rows = rows[self.labels.scored[rows]]
        return rows if survey is None else rows[self.table.survey[rows] == survey]

    def calibrate_and_evaluate(self, model: Trimodal) -> tuple[list[Score], dict[str, tuple[float, ...]]]:
        """Fit temperatures and conformal thresholds on validation stars, score on test stars, write all of it.

        Into the run folder go ``evaluation.md`` and ``.json``, ``calibration.json``, ``detections.json`` and the
        figures, and the model's weights again, with their temperatures.
        """
        tests = {name: self.scored(self.test_rows, survey) for survey, name in TEST_SETS.items()}
        found = calibrate_and_score(model, self.data, self.scored(self.validation_rows), tests)
        save_file(model.state_dict(), self.model_path)
        by_detections = {
            name: accuracy_by_detections(
                model, [self.table.light_curves[i] for i in rows], self.labels.index[rows], seed=self.seed
            )
            for name, rows in tests.items()
        }
        appendix = detections_markdown(by_detections)
        preface = PREFACE.format(seed=self.seed)
        if isinstance(self.settings, AstroM3RecipeSettings):
            preface += f"\n\n{BY_MODALITY}"
        save(found.scores, self.output, preface, appendix)
        save_detections(by_detections, self.output / "detections.json")
        (self.output / "calibration.json").write_text(
            json.dumps({"temperatures": found.temperatures, "conformal_thresholds": found.thresholds}, indent=1) + "\n"
        )
        title = "Light curve alone (real), after the first N detections of held-out stars"
        plot_detections(by_detections, title, self.output / "detections.png")
        self._light_curve_figures(model, found)
        self.report(f"tables and figures are in {self.output}")
        return found.scores, found.thresholds

    def baseline(self) -> list[Score]:
        """Scores of the random forest on the test stars that have a light curve; the same stars as the model's."""
        present = self.data.light_curve_present[0].numpy()
        features = self.data.features[0].float().numpy()
        scores = []
        for survey, name in TEST_SETS.items():
            rows = self.scored(self.test_rows, survey)
            rows = rows[present[rows]]
            train_rows = self.train_rows[present[self.train_rows] & (self.table.survey[self.train_rows] == survey)]
            predicted = forest_probabilities(features, self.labels, train_rows, rows, self.seed)
            scores.append(
                score_probabilities(
                    name, "light_curve, random forest", predicted, self.labels.index[rows], threshold=0.5
                )
            )
        return scores

    def _light_curve_figures(self, model: Trimodal, found: Evaluation) -> None:
        """Confusion and reliability of each test set, and one map of all their embeddings; light curves alone."""
        embeddings, labels, names = [], [], []
        for name, test in found.encoded.items():
            chosen = usable(test, LIGHT_CURVE_ONLY)
            predicted = probabilities(model.classifier, test, LIGHT_CURVE_ONLY)[chosen]
            label = self.labels.index[test.rows][chosen]
            title = f"{name}, light curve alone (real), {len(label)} held-out stars"
            plot_confusion(predicted, label, title, self.output / f"confusion_{name.lower()}.png")
            plot_reliability(predicted, label, title, self.output / f"reliability_{name.lower()}.png")
            embeddings.append(test.embeddings[:, 0].numpy()[chosen])
            labels.append(label)
            names.append(np.full(len(label), name, object))
        title = "UMAP of the embeddings of held-out stars' light curves (real)"
        plot_umap(
            np.concatenate(embeddings), np.concatenate(labels), np.concatenate(names), title,
            self.output / "umap.png", self.seed,
        )  # fmt: skip

    def export(self, model: Trimodal, repository: Path, version: str, figures: Path) -> None:
        """Write ONNX models, manifest, reference set and metadata scaler, and check them against torch.

        The evaluation's figures go to the folder ``figures``: Triton takes every folder in ``repository`` for a model.
        """
        scores, thresholds = self.calibrate_and_evaluate(model)
        export_models(model, repository)
        worst = check_export(model, repository, self.data.batch(self.scored(self.test_rows)[:64]), tolerance=1e-4)
        self.report(f"exported to {repository}; largest difference from torch {worst:.1e}")
        save_scaler(self.scaler)
        write_manifest(
            repository,
            version,
            thresholds,
            {
                "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "seed": self.seed,
                "settings": self.settings.model_dump(mode="json"),
                "classes": {c: int(n) for c, n in zip(CLASS_NAMES, self._class_counts(), strict=True)},
                "scores": [asdict(s) for s in scores],
            },
        )
        write_reference_set(repository, self.shared / "data", self.report)
        (repository / "EVALUATION.md").write_text((self.output / "evaluation.md").read_text())
        figures.mkdir(parents=True, exist_ok=True)
        for figure in self.output.glob("*.png"):
            shutil.copy(figure, figures)

    def _class_counts(self) -> NDArray[np.intp]:
        rows = self.train_rows[self.labels.weight[self.train_rows] > 0]
        return np.bincount(self.labels.index[rows], minlength=len(CLASS_NAMES))


def metadata_against_astrom3(data: Path, seed: int) -> list[tuple[str, int, float, float, float, float]]:
    """``compare_with_astrom3`` for all labelled stars; donors are drawn without regard to the period."""
    table = load_objects(data)
    labelled = np.flatnonzero([label is not None for label in table.label])
    part = part_of_each(len(table), split(table, seed))
    values, _ = catalogue_values(table, data, part, np.random.default_rng(seed))
    published = json.loads((data / "astrom3_repo_numbers.json").read_text())
    return compare_with_astrom3(values[labelled], published["scaler"])
