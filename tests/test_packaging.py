"""What is built is whole: the wheel holds all that the package reads, the sdist all that builds and tests it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("hatchling", reason="extra dev")
import tokenshard

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = [text.split(" :: ")[-1] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
SYNTAX = (
    "import pathlib, sys; [compile(p.read_bytes(), str(p), 'exec') for p in pathlib.Path(sys.argv[1]).rglob('*.py')]"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    words = ["-m", "hatchling", "build", "--directory", str(folder)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    junk = {"__pycache__"}, {".nbi", ".nbc", ".pyc"}
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and not junk[0] & set(path.parts)]
    expected = {path.relative_to(PACKAGE).as_posix() for path in files if path.suffix not in junk[1]}
    assert names == expected
    assert {"tokenshard/py.typed", "tokenshard/grids/bounded/prior.npz"} <= names
    assert wheel.stat().st_size < 10 << 20


def test_the_sdist_holds_what_builds_tests_and_documents_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    files = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml", "constraints.txt"}
    folders = {"pipeline", "jobs", "schemas", "infra", "benchmarks", "tests", "docs"}
    assert {name.parts[0] for name in names} == files | folders | {"PKG-INFO", "pyproject.toml", ".gitignore"}
    assert [name for name in names if name.suffix in {".pyc", ".nbi", ".nbc"} or "__pycache__" in name.parts] == []


def test_an_installed_wheel_runs_with_its_own_files(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)

    def output(*words: str) -> str:
        environment = {"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = output(sys.executable, "-c", "import tokenshard; print(tokenshard.__file__)")
    assert Path(where.strip()) == place / "tokenshard" / "__init__.py"
    assert tokenshard.__version__ in output(sys.executable, "-m", "tokenshard", "--version")
    assert "Usage: " in output(sys.executable, str(place / "bin" / "tokenshard"), "--help")
    packaged = "from tokenshard.tokenizers.folder import *; from tokenshard.tokenizers.packaged import saved_tokenizer"
    assert "conv" in output(
        sys.executable, "-c", f"{packaged}; print(load_tokenizer(saved_tokenizer('default')).spec.kind)"
    )


def test_the_version_is_in_one_place_and_the_changelog_has_it() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert headings[0].startswith(f"[{tokenshard.__version__}] - ")
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (unreleased|\d{4}-\d\d-\d\d)", heading) for heading in headings)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", changelog, re.MULTILINE)) <= kinds


def test_supported_pythons_are_those_that_are_stated() -> None:
    assert VERSIONS == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert f"Python {VERSIONS[0]} to {VERSIONS[-1]}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_file_is_valid_for_each_supported_python(version: str) -> None:
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")
    if found is None:
        pytest.skip(f"no Python {version} here")
    done = subprocess.run(
        [found, "-W", "error", "-c", SYNTAX, str(PACKAGE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
