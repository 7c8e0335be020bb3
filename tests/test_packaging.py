"""The wheel as a stranger gets it: built from the sdist, installed into another environment, used in another folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import tokvid

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist built from this tree, without a network."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and sees the other packages of this one."""
    environment = tmp_path_factory.mktemp("elsewhere") / "env"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    inner = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(sys.executable, "-m", "pip", "-q", "--python", inner, "install", "--no-deps", "--no-index", wheel)
    # A folder named in a .pth is searched, but its own .pth files (our editable installation) are not read.
    site = run(inner, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return inner


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel: Path) -> None:
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    names = list(sizes)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"tokvid", "tokvid_tokenizers", "tokvid_lm", f"tokvid-{tokvid.__version__}.dist-info"}
    for package in ("tokvid", "tokvid_tokenizers", "tokvid_lm"):
        assert f"{package}/py.typed" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    files = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "hub_cards").rglob("*")]
    # Also of what is a link in the repository, which would not lead anywhere there.
    for path in filter(Path.is_file, files):
        assert sizes.get(f"tokvid/{path.relative_to(ROOT).as_posix()}") == path.stat().st_size, path
    assert not [name for name in names if name.endswith((".pyc", ".tmp"))]


def test_the_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == tokvid.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {tokvid.__version__}" in changelog


@pytest.mark.parametrize("package", ["tokvid", "tokvid_tokenizers", "tokvid_lm"])
def test_the_packages_import_outside_the_repository(package: str, python: Path, tmp_path: Path) -> None:
    found = run(python, "-c", f"import {package}; print({package}.__file__)", cwd=tmp_path).strip()
    assert Path(found).is_relative_to(python.parent.parent), found
    run(python, "-c", f"import {package}, tokenizers; from transformers import AutoTokenizer", cwd=tmp_path)


def test_the_command_works_outside_the_repository(python: Path, tmp_path: Path) -> None:
    command = python.with_name("tokvid")
    assert "recipes" in run(command, "--help", cwd=tmp_path)
    assert run(command, "--version", cwd=tmp_path).split() == ["tokvid", tokvid.__version__]
    listed = run(command, "recipes", "list", cwd=tmp_path)
    shipped = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert shipped, "no recipe is shipped"
    for path in shipped:
        assert path.relative_to(ROOT / "recipes").with_suffix("").as_posix() in listed
    first = shipped[0].relative_to(ROOT / "recipes").with_suffix("").as_posix()
    run(command, "recipes", "copy", first, "mine.yaml", cwd=tmp_path)
    assert (tmp_path / "mine.yaml").read_bytes() == shipped[0].read_bytes()
    assert "versions" in run(python, "-m", "tokvid", "info", cwd=tmp_path)


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command, fail the test with its stderr when it fails, return its stdout."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
