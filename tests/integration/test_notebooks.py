"""The notebooks run from the first cell to the last, in a Jupyter kernel, at a tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel: make env")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: make env")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel: make env")
    monkeypatch.setenv("TOKVID_NOTEBOOK_STEPS", "3")
    monkeypatch.setenv("TOKVID_NOTEBOOK_CLIPS", "32")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[Any] = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "it shows no picture"


def test_there_are_two_notebooks() -> None:
    assert [path.stem for path in BOOKS] == ["generate_and_chat", "train_a_codec"]
