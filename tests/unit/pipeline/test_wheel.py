"""The sdist, and the wheel that is built from it: they hold what the packages need, and run without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("agman", "benchmarks", "data_prep", "pipeline", "tune_spaces")
MADE = shutil.ignore_patterns(".*", "build", "site", "demo", "work", "runs", "dist", "*.egg-info", "*.pyc", "*.db*")
USE = """
import agman, pipeline, sys
from pathlib import Path
from pipeline.cli import main
assert all(Path(one.__file__).is_relative_to(sys.argv[1]) for one in (agman, pipeline))
assert pipeline.load and pipeline.Gallery
sys.argv[1:] = ["sample", "fashionai", "--out", "drawn", "--images", "3", "--size", "32"]
main()
"""


def test_the_wheel_of_the_sdist_is_all_it_needs(tmp_path: Path) -> None:
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=MADE)
    built = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(built, check=True, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("dist/*.tar.gz"), tmp_path.glob("dist/*.whl")
    with tarfile.open(sdist) as archive:
        assert {"README.md", "LICENSE", "pyproject.toml"} <= {Path(name).name for name in archive.getnames()}

    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(site), str(wheel)], check=True)
    assert {one.parent.name for one in site.glob("*/py.typed")} == set(PACKAGES)
    for folder in PACKAGES:
        kept = {file.relative_to(source) for file in (source / folder).rglob("*.py")}
        kept |= {file.relative_to(source) for file in (source / folder).rglob("templates/*")}
        assert not {str(file) for file in kept if not (site / file).is_file()}
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-c", USE, str(site)],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(site)},
        check=True,
    )
    assert len([*(tmp_path / "elsewhere" / "drawn").rglob("*.jpg")]) == 3
