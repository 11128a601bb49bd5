"""A random sample of mutants, run by mutmut, and what became of them by module: ``make mutants``, docs/testing.md.

mutmut itself runs all mutants or those that are named. All 9,000 take hours here, so this names some of each module.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

AT_ONCE = 100
"""Mutants of one run: mutmut compares each name that is asked for with that of every mutant."""
FOUND = ("killed", "timeout", "segfault", "caught by type check")
"""What counts as killed: a test failed, or the mutant hung or ended the process."""


def names_of(path: Path) -> list[str]:
    """All mutants of one source file: those of an earlier run, where the file is as it was then."""
    mutated = Path("mutants") / path
    if mutated.exists() and mutated.stat().st_mtime > path.stat().st_mtime:
        return list(outcome_of(path))
    return [get_mutant_name(path, name) for name in mutate_file_contents(str(path), path.read_text()).mutant_names]


def outcome_of(path: Path) -> dict[str, str]:
    """What became of each mutant of one source file, as mutmut has kept it."""
    exit_codes = json.loads((Path("mutants") / f"{path}.meta").read_text())["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in exit_codes.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as broker/state training/losses.py; all where none is named")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module; 0 for all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    chosen: dict[Path, list[str]] = {}
    for path in sorted(walk_mutatable_files()):
        if options.modules and not any(path.is_relative_to(module) for module in options.modules):
            continue
        names = names_of(path)
        if options.sample:
            # By the module's own name: another selection of modules does not change its sample.
            names = random.Random(f"{options.seed} {path}").sample(names, min(options.sample, len(names)))
        if names:
            chosen[path] = names
    wanted = [name for names in chosen.values() for name in names]
    if not wanted:
        parser.error(f"no mutants in {' '.join(options.modules)}")
    mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(options.jobs)]
    for first in range(0, len(wanted), AT_ONCE):
        subprocess.run([*mutmut, *wanted[first : first + AT_ONCE]], check=True)

    survivors, total, dead = [], 0, 0
    print(f"\n{'module':45} {'mutants':>7} {'killed':>6} {'share':>6}")
    for path, names in chosen.items():
        outcome = outcome_of(path)
        killed = sum(outcome[name] in FOUND for name in names)
        others = Counter(outcome[name] for name in names if outcome[name] not in FOUND)
        survivors += [(name, outcome[name]) for name in sorted(names) if outcome[name] not in FOUND]
        total, dead = total + len(names), dead + killed
        said = ", ".join(f"{count} {status}" for status, count in others.items())
        print(f"{path!s:45} {len(names):7} {killed:6} {killed / len(names):6.0%}  {said}")
    print(f"{'all':45} {total:7} {dead:6} {dead / total:6.0%}\n")
    for name, status in survivors:
        print(f"{status}: {name}    (mutmut show {name})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
