"""Puts the model into a wheel, as package data; everything else of the build is in pyproject.toml.

The model repository stands outside of the package, where Triton, training and the containers want it. An editable
install needs no copy: it finds the checkout's.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODELS = Path("model_repo")


class BuildWithModel(build_py):
    """Copies the model repository to ``broker/model_repo`` of what is built."""

    def run(self) -> None:
        """Build, then copy; raises FileNotFoundError where there is no model."""
        super().run()
        if not self.editable_mode:
            for file in [path for path in MODELS.rglob("*") if path.is_file() and path.suffix != ".md"]:
                target = Path(self.build_lib, "broker", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))
            if not Path(self.build_lib, "broker", MODELS, "manifest.json").is_file():
                raise FileNotFoundError(f"no model in {MODELS.resolve()}")


setup(cmdclass={"build_py": BuildWithModel})
