"""Looks the installed packages up among the known vulnerabilities: what ``make audit`` runs.

pip-audit reports "no known vulnerabilities" as well where a mirror of PyPI knows nothing of any version, so its list
is read rather than its word. Exit code: 0 where nothing is known of what was audited, or nothing could be audited for
want of the service; 1 where something is known; with AUDIT_REQUIRED=1 also where not everything could be audited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

COMMAND = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
TIMEOUT_S = 300


def judge(packages: list[dict[str, Any]], *, required: bool) -> tuple[int, str]:
    """Exit code and message for pip-audit's list of packages; an editable one is our own."""
    packages = [p for p in packages if "editable" not in p.get("skip_reason", "")]
    audited = [p for p in packages if "skip_reason" not in p]
    lines = [
        f"{p['name']} {p['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version yet'}"
        for p in audited
        for v in p["vulns"]
    ]
    if lines:
        return 1, "\n".join(lines)
    if not audited:
        return int(
            required
        ), "audit skipped: the vulnerability service cannot be reached, or knows none of the packages"
    message = f"no known vulnerabilities in {len(audited)} of {len(packages)} packages"
    unknown = [p["name"] for p in packages if "skip_reason" in p]
    if unknown:
        message += f"; not audited: {', '.join(unknown)}"
    return int(required and bool(unknown)), message


def main() -> int:
    """Run pip-audit and say what came out."""
    required = os.environ.get("AUDIT_REQUIRED") == "1"
    try:
        result = subprocess.run(COMMAND, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if "No module named pip_audit" in result.stderr:
            print("pip-audit is not installed: pip install -e '.[test]'")
            return 1
        packages = json.loads(result.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        packages = []
    except (ValueError, KeyError):  # it ended before it had a list: without a network, for one
        print(result.stderr.strip()[-2000:])
        packages = []
    code, message = judge(packages, required=required)
    print(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
