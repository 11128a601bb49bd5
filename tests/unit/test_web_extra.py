"""The service runs without what only the web page needs."""

from __future__ import annotations

import subprocess
import sys

EXTRA = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "jinja2", "python_multipart")


def test_the_service_imports_nothing_of_the_web_extra() -> None:
    code = (
        "import sys, broker, broker.build, broker.client, broker.cli, broker.demo, broker.streaming.supervisor\n"
        f"print(sorted(set({EXTRA!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'uvicorn' else find(name, *a)\n"
        "from broker.cli import main\n"
        "main(['web'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip() == "Error: uvicorn is not installed: pip install 'trifid[web]'"
