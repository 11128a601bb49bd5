"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (TOML); the file that TRIFID_CONFIG names by default. Variables such as "
    "TRIFID_KAFKA__BOOTSTRAP_SERVERS win over it.",
)
json_lines = click.option("--json", "as_json", is_flag=True, help="One JSON record a line, for programs.")
