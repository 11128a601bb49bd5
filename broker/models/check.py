"""Whether a version answers as the reference implementation does: the gate before it is built, or promoted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ConfigurationError, ModelCheckError
from broker.inference import Engine
from broker.inference.manifest import Manifest
from broker.inference.onnx import OnnxEngine
from broker.models import cases as stored
from broker.models.cases import Cases, Comparison
from broker.models.repository import ModelRepository, cases_path
from broker.models.variants import Variant, variant_of


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found."""

    version: str
    engine: str
    """What answered, such as ``CPUExecutionProvider``."""
    origin: str
    """What the answers were compared with."""
    tolerance: float
    comparisons: Sequence[Comparison]

    @property
    def passed(self) -> bool:
        """Whether all combinations of modalities are within the tolerance, with an object each."""
        return all(found.objects and found.within(self.tolerance) for found in self.comparisons)

    def require(self) -> None:
        """Raise ModelCheckError unless it passed."""
        if not self.passed:
            worst = max(self.comparisons, key=lambda found: max(found.probability, found.embedding, found.other))
            raise ModelCheckError(
                f"version {self.version} on {self.engine} is not what the reference implementation says: of "
                f"{worst.subset}, probabilities differ by {worst.probability:.1e}, embeddings by "
                f"{worst.embedding:.1e}, other by {worst.other:.1e}; {self.tolerance:.0e} is allowed"
            )


def cases_of(repository: ModelRepository, manifest: Manifest, *, anew: bool = False) -> Cases:
    """The version's stored cases; made by the reference implementation where there are none, or ``anew``.

    Raises ConfigurationError where they cannot be used, or made.
    """
    path = cases_path(repository.folder, manifest.model_version)
    if path.exists() and not anew:
        return stored.load(path, manifest)
    return stored.make_cases(repository.folder, manifest)


def check(
    repository: ModelRepository,
    version: str,
    build: Callable[[str], Engine] | None = None,
    *,
    anew: bool = False,
    where: str = "",
) -> Report:
    """Check a version's files, and its answers on its cases, ``anew`` as for ``cases_of``.

    ``build`` gives the engine that answers, which ``where`` names; ONNX Runtime in this process, as the version's
    variant asks, where None. Raises ConfigurationError where a file is missing, damaged or of another version, or
    what the variant needs is not here.
    """
    manifest = repository.verify(version)
    variant = variant_of(manifest.variant)
    cases = cases_of(repository, manifest, anew=anew)
    engine = local_engine(repository.folder, version, variant) if build is None else build(version)
    with closing(engine):
        comparisons = stored.compare(engine, cases)
    return Report(version, where or variant.provider, cases.origin, variant.tolerance, comparisons)


def local_engine(folder: Path, version: str, variant: Variant) -> OnnxEngine:
    """ONNX Runtime in this process, upon what the variant is for and nothing else.

    Raises ConfigurationError where that is not here: what was not seen is not claimed.
    """
    try:
        engine = OnnxEngine(
            folder,
            version=version,
            providers=[variant.provider],
            provider_options=[variant.provider_options] if variant.provider_options else None,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"the variant {variant.name} cannot be checked here: {error}") from error
    others = {model: found for model, found in engine.placement().items() if found != variant.provider}
    if others:
        engine.close()
        raise ConfigurationError(
            f"the variant {variant.name} cannot be checked here: {variant.provider} does not start, "
            + ", ".join(f"{model} runs on {found}" for model, found in others.items())
        )
    return engine
