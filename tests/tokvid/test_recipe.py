"""Recipes are found by path, then by name, and read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokvid.errors import ConfigError
from tokvid.recipe import find_recipe, load_recipe, shipped_recipes, summary
from tokvid.shipped import hub_cards_folder, recipes_folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_path_is_read_and_overrides_are_applied(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "seed: 0\ncodec:\n  width: 8\n")
    assert load_recipe(path) == {"seed": 0, "codec": {"width": 8}}
    assert load_recipe(str(path), ["--codec.width=16", "--name=x"]) == {
        "seed": 0,
        "codec": {"width": 16},
        "name": "x",
    }


def test_a_file_comes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shipped in shipped_recipes().items():
        assert find_recipe(name) == shipped
        assert find_recipe(f"recipes/{name}.yaml") == shipped
        assert find_recipe(f"{name}.yaml") == shipped
        mine = tmp_path / "recipes" / f"{name}.yaml"
        mine.parent.mkdir(parents=True, exist_ok=True)
        write(mine, "seed: 1\n")
        assert load_recipe(f"recipes/{name}.yaml") == {"seed": 1}


def test_every_shipped_recipe_is_read_and_has_a_summary() -> None:
    for name, path in shipped_recipes().items():
        assert isinstance(load_recipe(name), dict)
        assert summary(path), f"{name} opens with no comment"


def test_the_shipped_folders_are_there() -> None:
    assert recipes_folder().is_dir() and hub_cards_folder().is_dir()


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    write(folder / "sprites-tiny.yaml", "seed: 0\n")
    monkeypatch.setattr("tokvid.recipe.recipes_folder", lambda: folder)
    with pytest.raises(ConfigError, match="did you mean 'sprites-tiny'"):
        load_recipe("sprites-tyni")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a recipe is a mapping"),
        ("- 1\n- 2\n", "a recipe is a mapping"),
        ("a: [1\n", "not YAML"),
        ("a: &x {b: *x}\n", "'a' holds itself"),
        pytest.param("a: " + "[" * 5000 + "]" * 5000, "nested too deeply", id="deep"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "broken.yaml", text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(path)
    assert "broken.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_folders_are_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(tmp_path)


def test_the_summary_is_the_first_sentence(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml", "# The tiny codec\n# for 32x32 sprites. Runs in minutes.\n#\n# Prepare: nothing\nseed: 0\n"
    )
    assert summary(path) == "The tiny codec for 32x32 sprites."
    assert summary(write(tmp_path / "b.yaml", "seed: 0\n")) == ""
    assert summary(write(tmp_path / "c.yaml", "# No full stop\n#\n# More\n")) == "No full stop"
