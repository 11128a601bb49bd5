"""Tables, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from training.live.both import StarScore, both_markdown
from training.live.other import OtherScore
from training.live.other import markdown as others_markdown
from training.live.scores import LiveScore, binomial_error

PREFACE = """Real stars with labels of the AAVSO's VSX or of a survey's own experts, none of them simulated but where
a row says so, as the service classifies them: its readers, assembly, ONNX Runtime and prediction sets. Stars that the
model was trained on are scored by a model of a fold that has not seen them. NotClassified and Other count as wrong.
Where VSX disputes the label of another source (``python -m training label-disputes``) the star is not scored, but for
the rows that say so, which are scored as it was done before. After an accuracy stands its standard error. "If
calibrated" is the ECE that a perfectly calibrated model with these probabilities would show for so few objects, in the
mean and, in brackets, in the worst of 20 cases: an ECE below the latter is no evidence of a fault.

Baselines on the same objects: the packet forest is a random forest on the same values as the model's metadata,
cross-validated on the same packets by the model's own folds. The light-curve forest has the encoder's period and shape
features, trained on the same archives' training stars and, cross-validated by star, on the stars in several bands that
the model's head is trained on. Informer is AstroM3's encoder of light curves, trained on the same archives' light
curves; a dash where no such model was given."""
NUMBERS = (2, 5, 10, 20, 50, 100, 200)
"""Of first detections, in the figures."""
COVERED, LEAST_COVERED = (0.87, 0.95), 40
"""Between which a 90 % set should cover, and the objects from which on a row can tell."""
MISTAKES_OF = ("ZTF data release, all points", "rebuilt from ZTF alerts")
_BASELINES = ("packet forest", "light-curve forest", "Informer")


def markdown(scores: Sequence[LiveScore]) -> str:
    """The scores as tables and lists: of all rows, of recall by class, and what is taken for what where asked."""
    lines = [
        f"| real data | objects | detections (median) | accuracy | {' | '.join(_BASELINES)} | macro-F1 "
        "| mean probability | ECE | if calibrated | 90 % set covers | mean size | NotClassified | Other | impossible |",
        "|---|---:|---:|---:|" + "---:|" * (len(_BASELINES) + 9),
    ]
    for s in scores:
        values = [s.baselines.get(name) for name in _BASELINES]
        baselines = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
        lines.append(
            f"| {s.data} | {s.objects} | {s.detections:.0f} | {s.accuracy:.3f} ± {s.standard_error:.3f} | {baselines} "
            f"| {s.macro_f1:.3f} | {s.mean_probability:.2f} | {s.expected_calibration_error:.3f} "
            f"| {s.calibrated_error:.3f} ({s.calibrated_error_95:.3f}) | {s.coverage:.3f} | {s.set_size:.2f} "
            f"| {s.not_classified} | {s.called_other} | {s.impossible} |"
        )
    lines += ["", "Recall by class (number of objects):", ""]
    lines += [
        f"- {s.data}: " + ", ".join(f"{c} {s.recall[c]:.2f} ({s.class_counts[c]})" for c in s.recall) for s in scores
    ]
    lines += ["", *_coverage(scores), "", *_mistakes(scores)]
    lines += ["", "Where all objects have one label, what they are taken for (number):", ""]
    for s in scores:
        if len(s.taken_for) == 1:
            ((label, counts),) = s.taken_for.items()
            ordered = sorted(counts.items(), key=lambda item: -item[1])
            lines.append(f"- {s.data}, {label}: " + ", ".join(f"{name} {count}" for name, count in ordered))
    return "\n".join(lines) + "\n"


def _coverage(scores: Sequence[LiveScore]) -> list[str]:
    """The rows whose sets cover too little or too much, and whether sets could do otherwise."""
    low, high = COVERED
    lines = [
        f"Rows of {LEAST_COVERED} objects and more whose 90 % sets cover less than {low} or more than {high}, and the "
        "share whose label has the highest probability: a set always has that class, and cannot cover less.",
        "",
    ]
    for s in scores:
        if s.objects < LEAST_COVERED or low <= s.coverage <= high:
            continue
        error = binomial_error(s.coverage, s.objects)
        if s.coverage < low:
            why = "too low"
        elif s.leading_right > high:
            why = "no set can cover less than that"
        else:
            why = f"sets of {s.set_size:.2f} classes are larger than need be"
        lines.append(f"- {s.data}: {s.coverage:.3f} ± {error:.3f}, leading class {s.leading_right:.3f}: {why}")
    return lines


def _mistakes(scores: Sequence[LiveScore]) -> list[str]:
    lines = ["What is wrong in two of the rows: star, label, what it is taken for, probability.", ""]
    for s in scores:
        if s.data in MISTAKES_OF:
            found = "; ".join(f"{name}, {label}, {taken}, {share:.2f}" for name, label, taken, share in s.mistakes)
            lines.append(f"- {s.data} ({len(s.mistakes)} of {s.objects}): {found}")
    return lines


def plot_first(scores: Mapping[str, Sequence[LiveScore]], path: Path) -> None:
    """Save accuracy, coverage and size of the 90 % sets against the number of first detections, a line per set."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for (name, rows), marker in zip(scores.items(), "os^DvP*X", strict=False):
        for axes, values in zip(
            panels,
            ([r.accuracy for r in rows], [r.coverage for r in rows], [r.set_size for r in rows]),
            strict=True,
        ):
            axes.plot(
                [NUMBERS.index(int(r.data)) for r in rows], values, marker=marker, label=f"{name} ({rows[0].objects})"
            )
    for axes, title in zip(panels, ("accuracy", "90 % set covers", "mean size of the set"), strict=True):
        axes.set_xticks(range(len(NUMBERS)), [str(n) for n in NUMBERS])
        axes.set_xlabel("first N detections")
        axes.set_title(title, fontsize=10)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_ylim(bottom=0)
    panels[1].axhline(0.9, color="0.6", linestyle="--", linewidth=0.8)
    panels[0].legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


@dataclass(frozen=True, slots=True)
class Origin:
    """What the scores are from."""

    model_version: str
    command: str
    code: str
    """As of ``broker.models.build.code_version``."""

    def __str__(self) -> str:
        return f"Model {self.model_version}, code {self.code}: `{self.command}`"


def save(
    scores: Sequence[LiveScore],
    first: Mapping[str, Sequence[LiveScore]],
    both: Sequence[StarScore],
    others: Sequence[OtherScore],
    origin: Origin,
    folder: Path,
) -> None:
    """Write ``live.md``, ``live.json`` and the figure ``live.png`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = f"{markdown(scores)}{both_markdown(both)}\n{others_markdown(others)}"
    (folder / "live.md").write_text(f"{origin}\n\n{PREFACE}\n\n{tables}")
    rows: dict[str, object] = {**asdict(origin), "classes": [asdict(s) for s in scores]}
    rows |= {"first_detections": {name: [asdict(s) for s in own] for name, own in first.items()}}
    rows |= {"light_curve_and_spectrum": [asdict(s) for s in both], "other": [asdict(s) for s in others]}
    (folder / "live.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot_first(first, folder / "live.png")
