"""Reads what people upload, first in a process of its own whose memory and time are bounded.

A file of 4 MiB may hold tens of gigabytes: compressed, as a column of one value in Parquet, as rows of FITS that all
point at the same heap. No count in a header tells for sure, so the system stops what takes too much, and the server
goes on. What that process could read, the server reads again, by the same steps: no object comes from the process that
had the file first, only whether and why it was refused.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Final, Literal

from broker.errors import InputFileError
from broker.lightcurves.files import read_light_curves
from broker.lightcurves.objects import NamedLightCurve
from broker.records import ObservedSpectrum
from broker.spectra.files import read_raw
from broker.spectra.normalise import UnusableSpectrumError, summary, to_observed
from broker.tables.files import open_table
from broker.watch.content import Content, of_file

log = logging.getLogger(__name__)

Kind = Literal["lightcurve", "spectrum", "list"]
MAX_OBJECTS: Final = 100
"""Objects of one file that are classified."""
MAX_POINTS: Final = 200_000
"""Points of these together, as many as 100 objects with all that is kept of one band have."""
MAX_UNPACKED: Final = 256 << 20
"""Bytes of a decompressed file that is put on the disk (Parquet, FITS)."""
MEMORY: Final = 1 << 30
"""Bytes that reading may take beside the program itself."""
CPU_S: Final = 10
"""Of reading; 4 MiB of text take one or two."""
MAX_ROWS: Final = 2_000_000
"""Rows that a header may name; text has none, and is bounded by what it takes."""
_WALL_S: Final = 60.0
_LONGEST_NAME: Final = 256
_SUFFIX: Final = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")
_ANSWER: Final = "answer.json"


@dataclass(slots=True)
class Upload:
    """What a file holds that is classified, and what its user should know of it."""

    curves: list[NamedLightCurve] = field(default_factory=list)
    spectra: list[tuple[ObservedSpectrum, dict[str, Any]]] = field(default_factory=list)
    """Each with what was understood of it (``summary``)."""
    content: Content = field(default_factory=Content)
    """Of a user's list."""
    remarks: list[str] = field(default_factory=list)


def read(kind: Kind, name: str, content: bytes) -> Upload:
    """What an upload holds; raises InputFileError, which calls the file as the user does, where nothing can be used.

    Of the name only its ending is used: some formats are told by it.
    """
    shown = PurePath(name.replace("\\", "/")).name[:100] or "upload"
    suffix = _SUFFIX.search(shown)
    with tempfile.TemporaryDirectory(prefix="trifid-upload-") as folder:
        path = Path(folder) / f"upload{suffix[0] if suffix else ''}"
        path.write_bytes(content)

        def said(text: str) -> str:
            return text.replace(str(path), shown).replace(path.name, shown)

        refusal = _refused_apart(kind, path, shown)
        if refusal is not None:
            raise InputFileError(said(refusal))
        found = _READERS[kind](path)
    found.remarks = [said(text) for text in found.remarks]
    return found


def _refused_apart(kind: Kind, path: Path, shown: str) -> str | None:
    """Why nothing of a file can be used, by a process of its own; raises InputFileError where it takes too much."""
    too_much = (
        f"{shown}: takes more than {MEMORY >> 20:,} MiB of memory or {CPU_S} s to read, the most here: {_INSTEAD[kind]}"
    )
    # What is unpacked goes where it is deleted whatever becomes of the process; it needs no secrets.
    own = {"TMPDIR": str(path.parent), "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    environment = {n: v for n, v in os.environ.items() if not n.startswith("TRIFID_")} | own
    command = [sys.executable, "-P", "-m", "broker.web.upload", kind, str(path)]
    try:
        done = subprocess.run(
            command, env=environment, cwd=path.parent, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WALL_S
        )
    except subprocess.TimeoutExpired:
        raise InputFileError(too_much) from None
    if done.returncode < 0:  # by a signal: the limit of CPU time, or memory that a library could not do without
        log.warning("an upload of %d bytes ended its reader by signal %d", path.stat().st_size, -done.returncode)
        raise InputFileError(too_much)
    if done.returncode == _NO_MEMORY:
        raise InputFileError(too_much)
    if done.returncode:
        raise RuntimeError(f"reading an upload: {done.stderr.decode(errors='replace')[-4000:]}")
    refusal = json.loads((path.parent / _ANSWER).read_text())
    return None if refusal is None else str(refusal)


_NO_MEMORY: Final = 3
_INSTEAD: Final[dict[Kind, str]] = {
    "lightcurve": "use trifid classify --lightcurves",
    "spectrum": "use trifid spectra",
    "list": "give several lists",
}


def main(kind: Kind, path: Path) -> int:
    """In the process of its own."""
    _bound()
    refusal: str | None = None
    try:
        _READERS[kind](path)
    except (InputFileError, MemoryError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):  # or Arrow's, which readers take for a damaged file
                return _NO_MEMORY
            cause = cause.__cause__
        refusal = str(error)
    (path.parent / _ANSWER).write_text(json.dumps(refusal))
    return 0


def _bound() -> None:
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # others have no /proc, and do not keep to the limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _light_curves(path: Path) -> Upload:
    found = Upload()
    table = open_table(path, MAX_UNPACKED)
    if table.rows is not None and table.rows > MAX_ROWS:
        raise InputFileError(f"{path}: {table.rows:,} rows; {MAX_ROWS:,} are the most here")
    curves = read_light_curves(table, found.remarks.append)
    points = 0
    for curve in islice(curves, MAX_OBJECTS):
        points += len(curve.light_curve)
        if points > MAX_POINTS:
            raise InputFileError(f"{path}: more than {MAX_POINTS:,} points in its first objects, the most here")
        if len(curve.name) > _LONGEST_NAME:
            raise InputFileError(f"{path}: an object's name has more than {_LONGEST_NAME} characters")
        found.curves.append(curve)
    if next(curves, None) is not None:
        found.remarks.append(f"only the first {MAX_OBJECTS} objects of the table were classified")
    return found


def _spectra(path: Path) -> Upload:
    found = Upload()
    for raw in islice(read_raw(path), MAX_OBJECTS):
        try:
            observed = to_observed(raw, placed=False)
        except UnusableSpectrumError as error:
            found.remarks.append(f"{raw.spectrum_id}: {error}")
            continue
        found.spectra.append((observed, _finite(summary(raw, observed))))
    if not found.spectra:
        raise InputFileError("; ".join(found.remarks))
    return found


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}


def _list(path: Path) -> Upload:
    content = of_file(path, MAX_UNPACKED)
    return Upload(content=content, remarks=content.remarks)


_READERS: Final[dict[Kind, Callable[[Path], Upload]]] = {
    "lightcurve": _light_curves,
    "spectrum": _spectra,
    "list": _list,
}


if __name__ == "__main__":
    sys.exit(main(next(kind for kind in _READERS if kind == sys.argv[1]), Path(sys.argv[2])))
