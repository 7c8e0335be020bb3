"""The rules of the house that no type checker knows: who imports whom, names, and what must not be written down."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "tokvid": ROOT / "tokvid",
    "tokvid_tokenizers": ROOT / "tokenizers" / "tokvid_tokenizers",
    "tokvid_lm": ROOT / "lm" / "tokvid_lm",
}
# What tokvid_lm may import from: the public doors of the codecs.
DOORS = ("tokvid_tokenizers", "tokvid_tokenizers.quantizers")


@dataclass(frozen=True)
class Import:
    """One imported ``module`` (and the ``name`` taken from it), and whether a function does it."""

    module: str
    name: str | None
    line: int
    in_function: bool
    type_checking: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def is_within(self, *packages: str) -> bool:
        """True for an import of one of ``packages``, also when spelled ``from parent import package``."""
        full = f"{self.module}.{self.name}" if self.name else self.module
        return any(full == p or full.startswith(p + ".") for p in packages)


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import in ``source``, a module inside ``package`` (dotted), relative ones resolved."""

    def visit(node: ast.AST, in_function: bool, type_checking: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, in_function, type_checking)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, in_function, type_checking)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checking = type_checking or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside, checking)

    return visit(ast.parse(source), False, False)


def offences(source: str, package: str) -> list[str]:
    """The imports of a module inside ``package`` that break a rule, as text."""
    top = package.split(".")[0]
    is_cli = package == "tokvid.cli" or package.startswith("tokvid.cli.")
    found = []
    for item in imports_of(source, package):
        what = f"line {item.line}: {item.module}" + (f".{item.name}" if item.name else "")
        upward = item.top in ("transformers", "tokvid_tokenizers", "tokvid_lm")
        if top == "tokvid" and upward and not is_cli:
            found.append(f"{what}: tokvid knows no model")
        if is_cli and upward and not (item.in_function or item.type_checking):
            found.append(f"{what}: the command line looks upward only inside functions")
        if not is_cli and item.is_within("tokvid.cli"):
            found.append(f"{what}: only the command line knows the command line")
        if top == "tokvid_tokenizers" and item.top in ("tokvid_lm", "transformers"):
            found.append(f"{what}: a codec knows no language model")
        if top == "tokvid_lm" and item.top == "tokvid_tokenizers" and not _is_public(item):
            found.append(f"{what}: only public names of {' and '.join(DOORS)}")
    return found


def _is_public(item: Import) -> bool:
    if item.name is None:
        return item.module in DOORS
    return item.module in DOORS and not item.name.startswith("_")


def modules() -> list[tuple[str, Path]]:
    """Every source file with the dotted package that it lies in."""
    found = []
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).parent.parts
            # python -m tokvid is the command line under another name
            inner = ("cli",) if path.name == "__main__.py" else inner
            found.append((".".join([name, *inner]), path))
    return found


def tracked_files() -> list[Path]:
    """The files of the repository: what git tracks or would, else (an unpacked sdist) every file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if ".venv" not in p.parts]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda value: getattr(value, "stem", value))
def test_import_rules(package: str, path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8"), package) == [], path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("package", "source", "is_offence"),
    [
        ("tokvid", "import transformers", True),
        ("tokvid", "def f():\n    import tokvid_lm", True),
        ("tokvid.data", "from tokvid_tokenizers import load_codec", True),
        ("tokvid.data", "from tokvid import cli", True),
        ("tokvid.data", "from ..cli import main", True),
        ("tokvid.cli", "from tokvid_lm import VideoLM", True),
        ("tokvid.cli", "def run(arguments):\n    from tokvid_lm import VideoLM", False),
        ("tokvid.cli", "if TYPE_CHECKING:\n    from tokvid_lm import VideoLM", False),
        ("tokvid_tokenizers", "from transformers.utils import logging", True),
        ("tokvid_tokenizers", "def f():\n    import tokvid_lm.layout", True),
        ("tokvid_tokenizers.layers", "from tokvid.errors import ShapeError", False),
        ("tokvid_lm", "from tokvid_tokenizers.codec import VideoCodec", True),
        ("tokvid_lm", "from tokvid_tokenizers import _private", True),
        ("tokvid_lm", "from tokvid_tokenizers import VideoCodec", False),
        ("tokvid_lm", "from tokvid_tokenizers.quantizers import build_quantizer", False),
        ("tokvid_lm", "import tokvid.cli.main", True),
    ],
)
def test_the_rules_see_what_they_forbid(package: str, source: str, is_offence: bool) -> None:
    assert bool(offences(source, package)) == is_offence


def test_the_folders_that_shadow_hugging_face_are_no_packages() -> None:
    assert not (ROOT / "tokenizers" / "__init__.py").exists()
    assert not (ROOT / "lm" / "__init__.py").exists()


def test_hugging_face_tokenizers_are_found_from_the_repository_root() -> None:
    run_python("import tokenizers; tokenizers.Tokenizer; from transformers import AutoTokenizer")


def test_no_module_is_called_utils_or_helpers() -> None:
    vague = {"util", "utils", "helper", "helpers"}
    named = [p for _, p in modules() if vague & {p.stem, *p.relative_to(ROOT).parts}]
    assert named == []


@pytest.mark.parametrize(
    "statement",
    ["import tokvid", "import tokvid.cli.main", "import tokvid; tokvid.read_video", "import tokvid.recipe"],
)
def test_a_cheap_import_stays_cheap(statement: str) -> None:
    run_python(f"{statement}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'")


def test_drawing_a_clip_imports_no_datasets() -> None:
    run_python("import sys, tokvid_lm.video_lm\nassert 'datasets' not in sys.modules, 'datasets was imported'")


def test_no_file_names_a_machine_or_a_registry() -> None:
    # Split, so that this file does not name them either.
    forbidden = re.compile(
        "|".join(
            [
                r"/(?:wo" + r"rk|ro" + r"ot)/\w",
                r"/(?:ho" + r"me|Us" + r"ers)/\w",
                r"C:\\+Us" + r"ers",
                r"py" + r"pi\.org",
                r"python" + r"hosted\.org",
                r"download\.pyt" + r"orch\.org",
                r"--(?:extra-)?index" + r"-url",
            ]
        )
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in forbidden.finditer(text)]
    assert found == []


def test_the_continuous_integration_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", script, re.MULTILINE)
    assert "make test" in readme


def run_python(code: str) -> None:
    """Run ``code`` in a new interpreter that stands in the repository root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
