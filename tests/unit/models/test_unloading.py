"""What a server may unload after a promotion: neither what is needed, nor what anybody uses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from broker.errors import DependencyUnavailableError
from broker.inference.manifest import MODELS, Manifest
from broker.models.promote import Server, _Beside, _unload
from broker.models.repository import ModelRepository, write_manifest
from tests.random_models import MODEL_REPO

SERVED = ModelRepository(MODEL_REPO).served()


def version(number: int) -> Manifest:
    """A version of its own, whose models are Triton's version ``number``."""
    models = {f"{model}/{number}/model.onnx": SERVED.sha256[SERVED.path_of(model)] for model in MODELS}
    return SERVED.model_copy(update={"classifier_name": "m", "model_version": str(number), "sha256": models})


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Versions 1 to 4, of which 4 is served, 3 was before."""
    folder = tmp_path / "repository"
    for model in MODELS:
        (folder / model).mkdir(parents=True)
        shutil.copy(MODEL_REPO / model / "config.pbtxt", folder / model)
    found = ModelRepository(folder)
    for number in (1, 2, 3, 4):
        manifest = version(number)
        for path in manifest.sha256:
            (folder / path).parent.mkdir()
            (folder / path).touch()
        write_manifest(folder, manifest)
    shutil.copy(folder / "manifest-4.json", folder / "manifest.json")
    return found


@pytest.mark.parametrize(
    ("asked", "workers", "stays"),
    [
        ({1: 100.0, 2: 200.0, 3: 999.0, 4: 1000.0}, {}, {3, 4}),  # nobody uses 1 and 2, as far as can be seen
        ({1: 100.0, 2: 0.0, 3: 999.0, 4: 1000.0}, {"m 1": ["one"]}, {1, 3, 4}),  # an idle worker says so
        ({1: 100.0, 2: 701.0, 3: 999.0, 4: 1000.0}, {"other 1": ["one"]}, {2, 3, 4}),  # one that says nothing asks
        ({1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}, {}, {3, 4}),  # nobody has asked for anything
        ({1: 100.0, 2: 200.0, 3: 999.0, 4: 1000.0}, None, {1, 2, 3, 4}),  # nobody can say
    ],
)
def test_what_stays(
    asked: dict[int, float], workers: dict[str, list[str]] | None, stays: set[int], repository: ModelRepository
) -> None:
    told: list[str] = []
    loads: list[dict[str, set[int]]] = []

    def in_use() -> dict[str, list[str]]:
        if workers is None:
            raise DependencyUnavailableError("Redis is unavailable")
        return workers

    server = Server(
        lambda: loads.append(repository.pinned()), lambda _: pytest.fail("no check"), "Triton",
        lambda: dict.fromkeys(MODELS, asked), in_use, told.append,
    )  # fmt: skip
    _unload(repository, [version(3), version(4)], server)
    assert repository.pinned() == dict.fromkeys(MODELS, stays)
    assert loads == ([dict.fromkeys(MODELS, stays)] if stays != {1, 2, 3, 4} else [])
    assert told == {
        "m 1": ["1 is in use by one"], "nobody": ["all that is loaded stays, since nobody can say who uses it: "
                                                  "Redis is unavailable"],
    }.get("nobody" if workers is None else next(iter(workers), ""), [])  # fmt: skip


def test_a_server_that_is_away_by_then_keeps_what_it_has(repository: ModelRepository) -> None:
    def away() -> dict[str, dict[int, float]]:
        raise DependencyUnavailableError("Triton at x: away")

    told: list[str] = []
    before = repository.pinned()
    _unload(
        repository,
        [version(4)],
        Server(lambda: None, lambda _: pytest.fail("no check"), "Triton", away, dict, told.append),
    )
    assert told == ["what nobody uses is not unloaded: Triton at x: away"]
    assert repository.pinned() == before


@pytest.mark.parametrize("when", ["loading", "checking"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, DependencyUnavailableError, ValueError])
def test_a_promotion_that_is_interrupted_leaves_the_server_with_what_it_had(
    repository: ModelRepository, when: str, error: type[BaseException]
) -> None:
    """After Ctrl-C it kept the version in its memory, and loaded it at each start."""
    had = {model: {4: 1.0} for model in MODELS}
    one, both = (dict.fromkeys(MODELS, numbers) for numbers in ({4}, {3, 4}))
    loads: list[dict[str, set[int]]] = []

    def load() -> None:
        loads.append(repository.pinned())
        if when == "loading" and len(loads) == 1:
            raise error

    def promote() -> None:
        with _Beside(repository, [version(3), version(4)], server):
            raise error

    server = Server(load, lambda _: pytest.fail("no check"), "Triton", lambda: had, dict)
    with pytest.raises(error):
        promote()
    assert repository.pinned() == one
    assert loads == [both, one]
