"""Put what `reparam init` writes into the built package: files of the root, which package data cannot reach."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = (".dvc/plots.html", ".dvcignore", ".gitignore", "dvc.yaml", *map(str, sorted(Path("recipes").glob("*.yaml"))))


class BuildWithTemplate(build_py):
    """Copy the files when a wheel is built; in a clone they are read where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in FILES:
                target = Path(self.build_lib, "reparam/template", file)
                self.mkpath(str(target.parent))
                self.copy_file(file, str(target))


setup(cmdclass={"build_py": BuildWithTemplate})
