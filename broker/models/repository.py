"""A model repository that holds several versions, of which one is served.

``manifest.json`` describes the served version; to replace that one file is to promote another. Each version has a
manifest, a reference set and cases of its own, beside it: files, since Triton takes every folder for a model. Versions
share the ONNX files that are the same in both.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from broker.anomaly.calibration import calibration_path, with_scores
from broker.anomaly.reference_set import ReferenceSet
from broker.errors import ConfigurationError
from broker.inference.manifest import MODELS, Manifest, Promotion, load_manifest, manifest_name
from broker.models.warm_up import with_warm_up
from broker.replaced import Replaced

REFERENCE_SET_FILE: Final = "reference_set.npz"
"""The reference set of the served version, where training wrote it."""
SERVED: Final = "manifest.json"
GATEWAY_FOLDER: Final = "trifid"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_POLICY: Final = re.compile(r"^version_policy *\{.*\}$", re.MULTILINE)
_SPECIFIC: Final = re.compile(r"^version_policy *\{ *specific *\{ *versions: *\[([0-9, ]*)\]", re.MULTILINE)


def reference_set_path(folder: Path, manifest: Manifest) -> Path:
    """Where the reference set of a version is: beside its manifest, or where training wrote it."""
    own = folder / f"reference_set-{manifest.model_version}.npz"
    return own if own.exists() else folder / REFERENCE_SET_FILE


def fingerprint(path: Path) -> tuple[int, int, int] | None:
    """What is another one after a file was replaced; None while it is not there."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def cases_path(folder: Path, version: str) -> Path:
    """Where the cases of a version are, on which it is checked."""
    return folder / f"cases-{version}.npz"


def check_name(version: str) -> None:
    """Raise ConfigurationError for a version that cannot be part of a file's name."""
    if not _NAME.fullmatch(version):
        raise ConfigurationError(f"{version!r} cannot be a version: letters, digits and ._+- are")


class ModelRepository:
    """The versions in one folder."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError where there is no such folder."""
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: no such model repository")
        self.folder: Final = folder

    def served(self) -> Manifest:
        """The manifest of the served version; raises ConfigurationError as ``load_manifest``."""
        return load_manifest(self.folder, verify_models=False)

    def manifest(self, version: str) -> Manifest:
        """The manifest of a version; raises ConfigurationError where there is none, or it cannot be used."""
        check_name(version)
        return load_manifest(self.folder, version, verify_models=False)

    def versions(self) -> list[str]:
        """All versions by name, the served one among them; their manifests may be damaged."""
        prefix, suffix = manifest_name("\n").split("\n")
        names = {path.name[len(prefix) : -len(suffix)] for path in self.folder.glob(f"{prefix}*{suffix}")}
        if (self.folder / SERVED).exists():
            names.add(self.served().model_version)
        return sorted(names)

    def needed(self) -> list[Manifest]:
        """The versions that a server needs: the served one, and the one before it, to which it can be rolled back."""
        served = self.served()
        before = served.promotion.before[-1:] if served.promotion is not None else ()
        return [served, *(self.manifest(version) for version in before)]

    def unnamed(self) -> list[str]:
        """Models' files that no version names, such as those of a build that was killed: they are not served.

        None where a manifest is damaged, whose files cannot be known.
        """
        named: set[str] = set()
        for version in self.versions():
            try:
                named |= set(self.manifest(version).sha256)
            except ConfigurationError:
                return []
        files = (path for model in MODELS for path in self.folder.glob(f"{model}/[0-9]*/model.onnx"))
        return sorted({path.relative_to(self.folder).as_posix() for path in files} - named)

    def verify(self, version: str) -> Manifest:
        """The manifest of a version whose models and reference set are those that it names.

        Raises ConfigurationError that says which file is another one, damaged, or made by another version.
        """
        check_name(version)
        manifest = load_manifest(self.folder, version)
        path = reference_set_path(self.folder, manifest)
        if manifest.reference_set_sha256 is None:
            raise ConfigurationError(
                f"version {version} names no reference set: make one with `python -m training reference-set`"
            )
        reference = ReferenceSet.load_npz(path, manifest.reference_set_sha256)
        reference.check_model(manifest.identity, reference.embeddings.shape[1])
        with_scores(reference, path)
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Whoever changes the repository does so alone; raises ConfigurationError where another does at present."""
        try:
            file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot be changed: {error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigurationError(f"{self.folder} is being changed by another command: {error}") from error
            yield

    def serve(self, version: str, before: Iterable[str]) -> Manifest:
        """Make ``version`` the served one, by replacing one file; ``before`` are those that were, the latest last.

        The version that was served keeps a manifest and a reference set of its own.
        """
        manifest = self.manifest(version).model_copy(
            update={"promotion": Promotion(at=datetime.now(UTC).isoformat(timespec="seconds"), before=tuple(before))}
        )
        if (self.folder / SERVED).exists():
            self._keep(self.served())
        self._keep(manifest)
        _write(self.folder / SERVED, manifest)
        return manifest

    def _keep(self, manifest: Manifest) -> None:
        """Give a version that training wrote the files of its own, by which it is found when it is not served."""
        own = self.folder / f"reference_set-{manifest.model_version}.npz"
        if not own.exists() and manifest.reference_set_sha256 is not None:
            data = reference_set_path(self.folder, manifest)
            reference = ReferenceSet.load_npz(data, manifest.reference_set_sha256)
            # First: where this is interrupted, the set without its calibration would count as all there is.
            if with_scores(reference, data).scores is not None:
                with Replaced(calibration_path(own)) as partial:
                    shutil.copyfile(calibration_path(data), partial)
            with Replaced(own) as partial:
                shutil.copyfile(data, partial)
        path = self.folder / manifest_name(manifest.model_version)
        if not path.exists():
            _write(path, manifest.model_copy(update={"promotion": None}))

    def numbers(self, manifests: Iterable[Manifest]) -> dict[str, set[int]]:
        """Triton's versions of each model that some versions consist of."""
        several = list(manifests)
        return {model: {int(manifest.version_of(model)) for manifest in several} for model in MODELS}

    def pinned(self) -> dict[str, set[int]]:
        """Triton's versions of each model that it loads when it is told or started; none where that is not said."""
        found: dict[str, set[int]] = {}
        for model in MODELS:
            said = _SPECIFIC.search(self._configuration(model).read_text())
            found[model] = set(map(int, said[1].split(","))) if said and said[1].strip() else set()
        return found

    def pin(self, numbers: Mapping[str, Iterable[int]]) -> None:
        """Have Triton load these versions of each model and no other, when it is told or started.

        A version whose model is not in the repository is left out. They are warmed up by what all of them take.
        """
        for model in MODELS:
            files = {n: self.folder / model / str(n) / "model.onnx" for n in sorted(numbers[model])}
            there = [n for n, file in files.items() if file.exists()]
            policy = f"version_policy {{ specific {{ versions: {there} }} }}"
            path = self._configuration(model)
            text = path.read_text()
            new, found = _POLICY.subn(policy, text)
            if not found:
                new = f"{text}\n{policy}\n"
            new = with_warm_up(new, [files[n] for n in there])
            if new != text:
                with Replaced(path) as partial:
                    partial.write_text(new)

    def _configuration(self, model: str) -> Path:
        return self.folder / model / "config.pbtxt"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a version that is not served; with it the version is there."""
    _write(folder / manifest_name(manifest.model_version), manifest)


def _write(path: Path, manifest: Manifest) -> None:
    with Replaced(path) as partial:
        partial.write_text(manifest.model_dump_json(indent=1) + "\n")
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
