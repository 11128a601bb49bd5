"""`trifid models` without a server: what is listed, built, checked, promoted and rolled back, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from broker.cli import main
from broker.errors import ConfigurationError, ModelCheckError
from broker.inference.manifest import MODALITY_SUBSETS
from broker.inference.onnx import OnnxEngine
from broker.models import build as building
from broker.models import cases as stored
from broker.models.build import build
from broker.models.check import check
from broker.models.promote import promote, rollback
from broker.models.repository import ModelRepository, reference_set_path
from broker.models.variants import VARIANTS
from tests.random_models import MODEL_REPO, build_random_repository


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Versions 0.0.0 and 0.0.10, which share no model."""
    return [build_random_repository(tmp_path_factory.mktemp("run"), seed=seed) for seed in (0, 10)]


@pytest.fixture(scope="module")
def built(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of both, of which the first is served."""
    folder = tmp_path_factory.mktemp("built") / "repository"
    data = tmp_path_factory.mktemp("data")
    (data / "stars.csv").write_text("abc")
    for source in sources:
        assert run("build", str(source), "--repository", str(folder), "--data", str(data)).exit_code == 0
    return folder


@pytest.fixture
def both(built: Path, tmp_path: Path) -> ModelRepository:
    return ModelRepository(shutil.copytree(built, tmp_path / "both"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments])


def test_versions_are_listed_with_their_provenance(built: Path) -> None:
    result = run("list", "--repository", str(built), "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["version"], first["state"], second["version"], second["state"]) == (
        "0.0.0", "served", "0.0.10", "built",
    )  # fmt: skip
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    assert first["provenance"]["data_sha256"] == {
        "stars.csv": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=MODEL_REPO)
    assert commit.stdout.strip() in second["provenance"]["code"]
    assert sorted(second["models"]) == [
        f"{model}/2/model.onnx"
        for model in ("classifier", "light_curve_encoder", "metadata_encoder", "spectrum_encoder")
    ]
    people = run("list", "--repository", str(built))
    assert people.exit_code == 0
    assert "0.0.0  served\n" in people.stdout
    trained = run("list", "--repository", str(MODEL_REPO)).stdout
    assert "macro F1" in trained


def test_a_model_that_two_versions_have_is_there_once(sources: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    build(sources[0], folder, "auto")
    third = build_random_repository(tmp_path / "third", seed=20)
    manifest = json.loads((third / "manifest.json").read_text())
    shutil.copy(sources[0] / "spectrum_encoder/1/model.onnx", third / "spectrum_encoder/1/model.onnx")
    old = json.loads((sources[0] / "manifest.json").read_text())["sha256"]["spectrum_encoder/1/model.onnx"]
    manifest["sha256"]["spectrum_encoder/1/model.onnx"] = old
    (third / "manifest.json").write_text(json.dumps(manifest))
    build(third, folder, "auto")
    paths = ModelRepository(folder).manifest("0.0.20").sha256
    assert "spectrum_encoder/1/model.onnx" in paths
    assert "classifier/2/model.onnx" in paths
    assert not (folder / "spectrum_encoder/2").exists()


def test_the_cases_are_of_every_combination_and_what_onnx_runtime_says(built: Path) -> None:
    repository = ModelRepository(built)
    manifest = repository.manifest("0.0.10")
    cases = stored.load(built / "cases-0.0.10.npz", manifest)
    subsets = ["+".join(np.array(["light_curve", "spectrum", "metadata"])[row]) for row in cases.inputs.present]
    assert subsets == list(np.repeat(MODALITY_SUBSETS, 3))
    with closing(OnnxEngine(built, version="0.0.10")) as engine:
        got = engine.predict(cases.inputs)
    np.testing.assert_allclose(got.probabilities, cases.expected.probabilities, atol=1e-5, rtol=0)
    np.testing.assert_allclose(cases.expected.probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert cases.origin == f"onnx.reference {onnx.__version__}"


def test_answers_of_another_version_do_not_pass(both: ModelRepository) -> None:
    report = check(both, "0.0.0", lambda version: OnnxEngine(both.folder, version="0.0.10"))
    assert not report.passed
    with pytest.raises(ModelCheckError, match="not what the reference implementation says"):
        report.require()


def test_a_change_of_one_probability_by_more_than_the_tolerance_is_found(both: ModelRepository) -> None:
    manifest = both.manifest("0.0.0")
    path = both.folder / "cases-0.0.0.npz"
    cases = stored.load(path, manifest)
    for change, code in ((5e-5, 0), (2e-4, 1)):
        before = cases.expected.probabilities[20, 3]
        cases.expected.probabilities[20, 3] += np.float32(change)
        path.write_bytes(stored.to_bytes(cases, manifest))
        result = run("check", "0.0.0", "--repository", str(both.folder))
        assert result.exit_code == code
        assert ("of light_curve+spectrum+metadata, probabilities differ by 2.0e-04" in result.stderr) == bool(code)
        cases.expected.probabilities[20, 3] = before
    assert run("check", "0.0.0", "--anew", "--repository", str(both.folder)).exit_code == 0


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("classifier/2/model.onnx", "flip", "is not the model that .*manifest-0.0.10.json describes: its SHA-256"),
        ("light_curve_encoder/2/model.onnx", "remove", "names a model that cannot be read"),
        ("reference_set-0.0.10.npz", "cut", "is not the reference set that the manifest beside it describes"),
        ("reference_set-0.0.10.npz", "other", "is not the reference set that the manifest beside it describes"),
        ("cases-0.0.10.npz", "cut", "holds no cases of a model"),
        ("cases-0.0.10.npz", "other", "holds cases of other models than those of version 0.0.10"),
        ("manifest-0.0.10.json", "cut", "Invalid JSON"),
        ("manifest-0.0.10.json", "other", "has no version 0.0.10: .* is of 0.0.0"),
        ("manifest-0.0.10.json", "remove", "has no version 0.0.10"),
    ],
)
def test_damaged_and_mismatched_files_are_told_and_not_promoted(
    both: ModelRepository, name: str, damage: str, reason: str
) -> None:
    path = both.folder / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "other":
        shutil.copy(both.folder / name.replace("0.0.10", "0.0.0"), path)
    else:
        path.unlink()
    folder = str(both.folder)
    served = (both.folder / "manifest.json").read_bytes()
    for command in ("check", "promote"):
        result = run(command, "0.0.10", "--repository", folder)
        assert result.exit_code == 2
        assert re.search(reason, result.stderr), result.stderr
    assert (both.folder / "manifest.json").read_bytes() == served
    if not name.startswith("cases") and damage != "remove":
        listed = run("list", "--repository", folder)
        assert listed.exit_code == 1
        assert "DAMAGED" in listed.stdout


def test_promote_and_roll_back(both: ModelRepository) -> None:
    folder = str(both.folder)
    assert run("rollback", "--repository", folder).exit_code == 2
    assert run("promote", "0.0.0", "--repository", folder).exit_code == 2
    assert run("promote", "0.0.10", "--repository", folder).exit_code == 0
    assert both.served().model_version == "0.0.10"
    assert both.served().promotion is not None
    assert both.served().promotion.before == ("0.0.0",)
    with closing(OnnxEngine(both.folder)) as engine:
        assert engine.model_version == "trifid-random 0.0.10"
    assert "versions: [1, 2]" in (both.folder / "classifier/config.pbtxt").read_text()
    result = run("rollback", "--repository", folder)
    assert (result.exit_code, result.stdout) == (0, "0.0.0 is served again\n")
    assert both.served().model_version == "0.0.0"
    assert both.served().promotion.before == ()  # type: ignore[union-attr]
    assert run("rollback", "--repository", folder).exit_code == 2  # not back to what was rolled back


def test_a_version_that_training_wrote_in_place_stays_to_be_rolled_back_to(sources: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sources[0], tmp_path / "repository")  # manifest.json and reference_set.npz only
    build(sources[1], folder, "auto")
    repository = ModelRepository(folder)
    assert repository.served().model_version == "0.0.0"
    # A server that starts now loads what is served: what was built is not, until it is asked for.
    assert "specific { versions: [1] }" in (folder / "classifier/config.pbtxt").read_text()
    promote(repository, "0.0.10", None)
    assert repository.versions() == ["0.0.0", "0.0.10"]
    for version in ("0.0.0", "0.0.10"):
        repository.verify(version)
        assert reference_set_path(folder, repository.manifest(version)).name == f"reference_set-{version}.npz"
    assert rollback(repository, None).model_version == "0.0.0"


def test_one_command_at_a_time_changes_a_repository(both: ModelRepository) -> None:
    with both.locked(), pytest.raises(ConfigurationError, match="is being changed by another command"):
        promote(both, "0.0.10", None)


def test_a_version_is_built_once(both: ModelRepository, sources: list[Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"has a version 0\.0\.10 already"):
        build(sources[1], both.folder, "auto")


def test_a_build_that_fails_at_any_step_leaves_no_version(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stored.make_cases(sources[1], ModelRepository(sources[1]).served())
    monkeypatch.setattr(stored, "make_cases", lambda folder, manifest: made)
    steps = 0
    for fatal in range(1, 20):
        folder = shutil.copytree(sources[0], tmp_path / f"repository{fatal}")
        count = 0

        def fail(partial: Path, target: Path, fatal: int = fatal) -> None:
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt
            partial.replace(target)

        with monkeypatch.context() as patch:
            patch.setattr(building, "_publish", fail)
            try:
                build(sources[1], folder, "auto")
            except KeyboardInterrupt:
                steps += 1
            else:
                break
        repository = ModelRepository(folder)
        assert repository.versions() == ["0.0.0"]
        repository.verify("0.0.0")
        assert "versions: [1] }" in (folder / "classifier/config.pbtxt").read_text()
        build(sources[1], folder, "auto")  # what was left does not hinder
        assert repository.versions() == ["0.0.0", "0.0.10"]
        repository.verify("0.0.10")
        assert not list(folder.rglob("*.building"))
        shutil.rmtree(folder)
    assert steps == 6  # four models, reference set, cases


def test_a_build_that_is_killed_leaves_no_version(sources: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sources[0], tmp_path / "repository")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom broker.models import build\n"
        "build.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build.build(Path(sys.argv[1]), Path(sys.argv[2]), 'auto')\n"
    )
    command = [sys.executable, "-c", code, str(sources[1]), str(folder)]
    done = subprocess.run(command, check=False, cwd=MODEL_REPO.parent, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert ModelRepository(folder).versions() == ["0.0.0"]
    listed = run("list", "--repository", str(folder))
    assert "0.0.10" not in listed.stdout
    assert listed.stdout.count("belongs to no version") == 4


def test_variants_configure_the_server(sources: list[Path], tmp_path: Path) -> None:
    report = build(sources[0], tmp_path / "cpu", "cpu")
    assert report.passed
    for model in ("classifier", "light_curve_encoder", "metadata_encoder", "spectrum_encoder"):
        text = (tmp_path / "cpu" / model / "config.pbtxt").read_text()
        assert "instance_group [{ count: 1, kind: KIND_CPU }]" in text
        assert "model_warmup" in text
    with pytest.raises(ConfigurationError, match="is configured for the variant cpu"):
        build(sources[1], tmp_path / "cpu", "auto")
    config = VARIANTS["tensorrt-fp16"].configured((MODEL_REPO / "classifier/config.pbtxt").read_text())
    assert "kind: KIND_GPU" in config
    assert 'key: "precision_mode" value: "FP16"' in config


def warm_up(folder: Path, model: str) -> dict[str, tuple[int, ...]] | None:
    """Sizes of what a model is warmed up with, by name; None where it has no warm-up."""
    config = text_format.Parse((folder / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    if not config.model_warmup:
        return None
    return {name: tuple(value.dims) for name, value in config.model_warmup[0].inputs.items()}


def test_the_warm_up_is_what_the_versions_that_are_loaded_take(tmp_path: Path) -> None:
    """A run of before 2026.11.29, whose classifier takes no ``event``, has no configuration: it gets the package's."""
    earlier = build_random_repository(tmp_path / "earlier", seed=0, other_threshold=0.5, event=False)
    later = build_random_repository(tmp_path / "later", seed=10, other_threshold=0.5)
    (earlier / "classifier/config.pbtxt").unlink()
    whole = warm_up(MODEL_REPO, "classifier")
    assert whole is not None
    without = {name: size for name, size in whole.items() if name != "event"}
    folder = tmp_path / "repository"
    assert build(earlier, folder, "auto").passed
    assert warm_up(folder, "classifier") == without
    assert build(later, folder, "auto").passed
    assert warm_up(folder, "classifier") == without  # what is to be loaded is still the first
    repository = ModelRepository(folder)
    promote(repository, "0.0.10", None)
    assert warm_up(folder, "classifier") is None  # both are loaded, and no batch is right for both
    repository.pin(repository.numbers([repository.served()]))
    assert warm_up(folder, "classifier") == whole
    for model in ("light_curve_encoder", "metadata_encoder", "spectrum_encoder"):
        assert (folder / model / "config.pbtxt").read_text().split("model_warmup")[1] == (
            MODEL_REPO / model / "config.pbtxt"
        ).read_text().split("model_warmup")[1]


@pytest.mark.parametrize(
    ("variant", "provider"), [("cuda", "CUDAExecutionProvider"), ("tensorrt-fp16", "TensorrtExecutionProvider")]
)
def test_a_variant_that_cannot_be_checked_here_is_not_built(
    sources: list[Path], tmp_path: Path, variant: str, provider: str
) -> None:
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    result = run("build", str(sources[0]), "--repository", str(tmp_path / "none"), "--variant", variant)
    assert result.exit_code == 2
    assert f"the variant {variant} cannot be checked here: this ONNX Runtime has no {provider}" in result.stderr
    assert not (tmp_path / "none").exists()
