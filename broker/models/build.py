"""A version in a repository, from a folder that training wrote: all of it, or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from broker import __version__
from broker.anomaly.calibration import calibration_path
from broker.config import MODEL_REPOSITORY
from broker.errors import ConfigurationError
from broker.inference.manifest import MODELS, Manifest, Provenance
from broker.models import cases as stored
from broker.models.check import Report, local_engine
from broker.models.repository import (
    GATEWAY_FOLDER,
    SERVED,
    ModelRepository,
    cases_path,
    check_name,
    reference_set_path,
    sync_folder,
    write_manifest,
)
from broker.models.variants import VARIANTS, variant_of

_PARTIAL: Final = ".building"
"""How the name of a file ends while it is copied; neither Triton nor ``list`` takes it for a version."""


def build(source: Path, folder: Path, variant: str, data: Path | None = None) -> Report:
    """Add the version that ``source`` holds to the repository in ``folder``, and check it; what the check found.

    ``source`` is what ``python -m training export`` or ``stream`` wrote. A repository that is not there is made, with
    the server's configuration for ``variant``, and serves its first version; in one that is there, the version waits
    to be promoted. ``data`` is the folder it was trained on, whose files' checksums are kept. The manifest is written
    last: a build that is killed leaves no version. Raises ConfigurationError where a file of ``source`` is damaged or
    missing, the version is there, or the variant cannot be checked here; ModelCheckError where its answers are wrong.
    """
    chosen = variant_of(variant)
    origin = ModelRepository(source)
    manifest = origin.verify(origin.served().model_version)
    check_name(manifest.model_version)
    if folder.exists() and folder.samefile(source):
        raise ConfigurationError(f"{folder} cannot be built from itself")
    manifest = manifest.model_copy(
        update={
            "variant": chosen.name,
            "promotion": None,
            "provenance": Provenance(
                built_at=datetime.now(UTC).isoformat(timespec="seconds"),
                source=str(source),
                code=code_version(),
                data_sha256={} if data is None else checksums(data),
            ),
        }
    )
    # Before anything is written: what does not pass here is in no repository, not even for a moment.
    cases = stored.make_cases(source, manifest)
    with closing(local_engine(source, manifest.model_version, chosen)) as engine:
        comparisons = stored.compare(engine, cases)
    report = Report(manifest.model_version, chosen.provider, cases.origin, chosen.tolerance, comparisons)
    report.require()
    folder.mkdir(parents=True, exist_ok=True)
    repository = ModelRepository(folder)
    with repository.locked():
        _add(origin, repository, manifest, cases)
    return report


def _add(origin: ModelRepository, repository: ModelRepository, manifest: Manifest, cases: stored.Cases) -> None:
    folder, version = repository.folder, manifest.model_version
    for left in list(folder.rglob(f"*{_PARTIAL}")):
        left.unlink()
    empty = not (folder / SERVED).exists()
    others = [repository.manifest(name) for name in repository.versions()]
    if version in {other.model_version for other in others}:
        raise ConfigurationError(f"{folder} has a version {version} already: export under another --version")
    if other := next((other for other in others if other.variant != manifest.variant), None):
        raise ConfigurationError(
            f"{folder} is configured for the variant {other.variant}: build {manifest.variant} into another folder"
        )
    if others:
        # A server that starts meanwhile, or after this is killed, loads what was there and no more.
        needed, pinned = repository.numbers(repository.needed()), repository.pinned()
        repository.pin({model: needed[model] | pinned[model] for model in needed})
    manifest = manifest.model_copy(update={"sha256": _copy_models(origin, repository, manifest, others)})
    _configure(origin.folder, folder, manifest.variant)
    source, target = reference_set_path(origin.folder, manifest), folder / f"reference_set-{version}.npz"
    _copy(source, target)
    if (scores := calibration_path(source)).exists():
        _copy(scores, calibration_path(target))
    partial = folder / f"cases-{version}.npz{_PARTIAL}"
    partial.write_bytes(stored.to_bytes(cases, manifest))
    _publish(partial, cases_path(folder, version))
    write_manifest(folder, manifest)
    if empty:
        repository.pin(repository.numbers([manifest]))
        repository.serve(version, ())


def _copy_models(
    origin: ModelRepository, repository: ModelRepository, manifest: Manifest, others: Iterable[Manifest]
) -> dict[str, str]:
    """Copy the models into folders of numbers that are free; checksums by path. What another version has is shared."""
    there = {sha256: path for other in others for path, sha256 in other.sha256.items()}
    paths: dict[str, str] = {}
    for model in MODELS:
        old = manifest.path_of(model)
        sha256 = manifest.sha256[old]
        shared = there.get(sha256)
        if shared is not None and shared.startswith(f"{model}/"):
            paths[shared] = sha256
            continue
        used = [int(path.name) for path in (repository.folder / model).glob("[0-9]*") if path.name.isdigit()]
        new = f"{model}/{max(used, default=0) + 1}/model.onnx"
        _copy(origin.folder / old, repository.folder / new)
        if (copied := checksum(repository.folder / new)) != sha256:
            raise ConfigurationError(f"{old} changed while it was copied: its SHA-256 is {copied}, not {sha256}")
        paths[new] = sha256
    return paths


def _configure(source: Path, folder: Path, variant: str) -> None:
    """Write the server's configuration where there is none yet."""
    for model in (*MODELS, GATEWAY_FOLDER):
        target = folder / model / "config.pbtxt"
        if target.exists():
            continue
        given = source / model / "config.pbtxt"
        text = (given if given.exists() else MODEL_REPOSITORY / model / "config.pbtxt").read_text()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + _PARTIAL)
        partial.write_text(text if model == GATEWAY_FOLDER else VARIANTS[variant].configured(text))
        _publish(partial, target)
    gateway = Path(GATEWAY_FOLDER, "1", "model.py")
    if not (folder / gateway).exists():
        given = source / gateway
        _copy(given if given.exists() else MODEL_REPOSITORY / gateway, folder / gateway)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{target.name}{_PARTIAL}"
    shutil.copyfile(source, partial)
    _publish(partial, target)


def _publish(partial: Path, target: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    sync_folder(target.parent)


def checksum(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, by path; raises ConfigurationError where they cannot be read."""
    try:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = {path.relative_to(folder).as_posix(): checksum(path) for path in files}
    except OSError as error:
        raise ConfigurationError(f"data {folder}: {error}") from error
    if not sums:
        raise ConfigurationError(f"data {folder}: holds no file")
    return sums


def code_version() -> str:
    """The release, and where it is a checkout the commit, with ``+`` behind it where files were changed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return f"trifid {__version__}"

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return None if done.returncode else done.stdout.strip()

    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return f"trifid {__version__}" + (f", commit {commit}{'+' * bool(changed)}" if commit else "")
