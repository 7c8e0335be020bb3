"""Dataclasses from mappings and back: the round trip, the closed unions, and the errors that name the place."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.config import ADDED_LATER, apply_overrides, from_mapping, from_union, identity, to_mapping
from tokvid.config_checks import at_least
from tokvid.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Box:
    kind: Literal["box"] = "box"
    sides: tuple[int, int, int] = (1, 2, 3)
    note: str | None = None

    def __post_init__(self) -> None:
        if min(self.sides) < 0:
            raise ValueError(f"sides must not be negative, got {self.sides}")


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 3e-4
    steps: int = 10
    flag: bool = False

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    shape: Circle | Box = field(default_factory=Circle)
    inner: Inner = field(default_factory=Inner)
    levels: tuple[int, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    limit: int | float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    maybe: Box | None = None


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
CIRCLES = st.builds(Circle, radius=NUMBERS)
BOXES = st.builds(Box, sides=st.tuples(*[st.integers(0, 99)] * 3), note=st.none() | TEXT)
OUTERS = st.builds(
    Outer,
    name=TEXT,
    shape=CIRCLES | BOXES,
    inner=st.builds(Inner, rate=NUMBERS, steps=st.integers(0), flag=st.booleans()),
    levels=st.lists(st.integers(), max_size=4).map(tuple),
    mode=st.sampled_from(["fast", "slow"]),
    limit=st.none() | st.integers() | NUMBERS,
    extra=st.dictionaries(TEXT, st.integers() | TEXT | st.booleans() | st.none() | st.lists(st.integers()), max_size=3),
    maybe=st.none() | BOXES,
)


@given(config=OUTERS)
@settings(deadline=None)
def test_the_round_trip_is_exact(config: Outer) -> None:
    mapping = to_mapping(config)
    assert from_mapping(Outer, mapping) == config
    assert from_mapping(Outer, json.loads(json.dumps(mapping))) == config


@given(config=OUTERS)
@settings(deadline=None, max_examples=30)
def test_the_round_trip_through_yaml_is_exact(config: Outer) -> None:
    assert from_mapping(Outer, yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


def test_defaults_fill_what_is_left_out() -> None:
    assert from_mapping(Outer, {"name": "a"}) == Outer(name="a")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "'name' is missing"),
        ({"name": "a", "nmae": 1}, "unknown key 'nmae': did you mean 'name'"),
        ({"name": "a", "inner": {"step": 3}}, r"unknown key 'inner\.step': did you mean 'steps'"),
        ({"name": "a", "inner": {"zzz": 3}}, "known: flag, rate, steps"),
        ({"name": "a", "inner": 3}, "'inner|inner: expected a mapping"),
        ({"name": "a", "inner": {"steps": 1.5}}, r"'inner\.steps': expected int, got 1\.5"),
        ({"name": "a", "inner": {"steps": True}}, r"'inner\.steps': expected int, got True"),
        ({"name": "a", "inner": {"flag": 1}}, r"'inner\.flag': expected bool, got 1"),
        ({"name": "a", "inner": {"rate": "quick"}}, r"'inner\.rate': expected a number, got 'quick'"),
        ({"name": "a", "inner": {"rate": True}}, r"'inner\.rate': expected float, got True"),
        ({"name": 3}, "'name': expected str, got 3"),
        ({"name": "a", "shape": {"kind": "circel"}}, r"'shape\.kind' is 'circel': did you mean 'circle'"),
        ({"name": "a", "shape": {"kind": ["box"]}}, r"'shape\.kind' is \['box'\]"),
        ({"name": "a", "shape": {"radius": 2.0}}, r"'shape\.kind' is None"),
        ({"name": "a", "shape": {"kind": "box", "radius": 2.0}}, r"unknown key 'shape\.radius'"),
        ({"name": "a", "shape": {"kind": "box", "sides": [1, 2]}}, r"'shape\.sides': expected 3 values, got 2"),
        ({"name": "a", "shape": {"kind": "box", "sides": [1, 2, "x"]}}, r"'shape\.sides\[2\]': expected int, got 'x'"),
        ({"name": "a", "shape": {"kind": "box", "sides": [1, 2, -1]}}, "shape: sides must not be negative"),
        ({"name": "a", "inner": {"steps": -1}}, "^inner: steps must be at least 0, got -1$"),
        ({"name": "a", "shape": 3}, r"^'shape': expected a section with a kind of \['box', 'circle'\], got 3$"),
        ({"name": "a", "shape": "box"}, r"^'shape': expected a section with a kind of \['box', 'circle'\], got 'box'$"),
        ({"name": "a\0b"}, "^'name': a text with a NUL character names nothing, got 'a\\\\x00b'$"),
        ({"name": "a", "limit": "\0"}, "'limit': expected int | float"),
        ({"name": "a", "levels": 3}, "'levels': expected a list, got 3"),
        ({"name": "a", "levels": "123"}, "'levels': expected a list"),
        ({"name": "a", "levels": [1, None]}, r"'levels\[1\]': expected int"),
        ({"name": "a", "mode": "medium"}, r"'mode': expected one of \['fast', 'slow'\], got 'medium'"),
        ({"name": "a", "limit": "many"}, "'limit': expected"),
        ({"name": "a", "extra": [1]}, "'extra': expected a mapping"),
    ],
)
def test_errors_name_the_place_and_what_was_got(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        from_mapping(Outer, data)
    assert "\n" not in str(caught.value)


def test_errors_name_the_place_they_were_told() -> None:
    with pytest.raises(ConfigError, match=r"'data\.inner\.steps'"):
        from_mapping(Outer, {"name": "a", "inner": {"steps": "x"}}, where="data")


def test_numbers_as_recipes_write_them() -> None:
    recipe = yaml.safe_load("{name: a, inner: {rate: 3e-4, steps: 7}, shape: {kind: circle, radius: 2}}")
    config = from_mapping(Outer, recipe)
    assert config.inner.rate == 3e-4 and isinstance(config.inner.rate, float)
    assert config.shape == Circle(radius=2.0)


def test_lists_of_the_mapping_are_copied() -> None:
    extra = {"a": [1]}
    config = from_mapping(Outer, {"name": "a", "extra": extra})
    extra["a"].append(2)
    to_mapping(config)["extra"]["a"].append(3)
    assert config.extra == {"a": [1]}


def test_overrides_set_nested_values_and_leave_the_original_alone() -> None:
    data = {"name": "a", "inner": {"steps": 1}, "levels": [1]}
    changed = apply_overrides(
        data, ["--inner.steps=5", "inner.rate=1e-3", "--shape.kind=box", "--levels=[2, 3]", "--limit="]
    )
    assert changed == {
        "name": "a",
        "inner": {"steps": 5, "rate": "1e-3"},
        "levels": [2, 3],
        "shape": {"kind": "box"},
        "limit": None,
    }
    assert data == {"name": "a", "inner": {"steps": 1}, "levels": [1]}
    assert from_mapping(Outer, changed).inner == Inner(steps=5, rate=1e-3)


@given(st.dictionaries(st.text("abc", min_size=1), st.integers() | st.booleans() | st.none(), max_size=5))
def test_overrides_can_say_everything(values: dict[str, Any]) -> None:
    overrides = [f"--section.{key}={json.dumps(value)}" for key, value in values.items()]
    assert apply_overrides({"section": {}}, overrides) == {"section": values}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert apply_overrides({}, ["--name=a=b"]) == {"name": "a=b"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--name", "an override is written"),
        ("--=3", "an override is written"),
        ("--name.first=3", "'name' is not a section"),
        ("--inner.steps=[1", "the value is not YAML"),
    ],
)
def test_bad_overrides_are_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        apply_overrides({"name": "a"}, [override])


def test_a_section_that_holds_itself_is_refused() -> None:
    ring = yaml.safe_load("a: 1\nb: &x {c: [*x]}\n")
    with pytest.raises(ConfigError, match="'b' holds itself"):
        apply_overrides(ring, [])
    with pytest.raises(ConfigError, match=r"override .*: 'a' holds itself"):
        apply_overrides({}, ["--a=&x [*x]"])
    # The same anchor in two places is no ring.
    shared = yaml.safe_load("a: &x {c: 1}\nb: [*x, *x]\n")
    assert apply_overrides(shared, []) == {"a": {"c": 1}, "b": [{"c": 1}, {"c": 1}]}


def test_a_value_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        apply_overrides({}, ["--a=" + "[" * 5000 + "]" * 5000])


def test_did_you_mean() -> None:
    assert did_you_mean("trian", ["train", "held_out"]) == "did you mean 'train'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"


@dataclass(frozen=True, kw_only=True)
class _Stage:
    steps: int


@dataclass(frozen=True, kw_only=True)
class _Plan:
    stages: tuple[_Stage, ...] = ()


def test_a_list_of_sections_is_plain_and_comes_back() -> None:
    plan = _Plan(stages=(_Stage(steps=1), _Stage(steps=2)))
    plain = to_mapping(plan)
    assert json.loads(json.dumps(plain)) == {"stages": [{"steps": 1}, {"steps": 2}]}
    assert from_mapping(_Plan, plain) == plan
    with pytest.raises(ConfigError, match=r"stages\[1\]\.step"):
        from_mapping(_Plan, {"stages": [{"steps": 1}, {"step": 2}]})


@dataclass(frozen=True, kw_only=True)
class _Part:
    size: int = 3
    speed: int = field(default=1, metadata=ADDED_LATER)


@dataclass(frozen=True, kw_only=True)
class _Machine:
    name: str = "a"
    part: _Part = field(default_factory=_Part)
    spare: _Part = field(default_factory=_Part, metadata=ADDED_LATER)


def test_the_identity_has_what_was_added_later_only_where_it_is_used() -> None:
    assert identity(_Machine()) == {"name": "a", "part": {"size": 3}}
    assert identity(_Machine(part=_Part(speed=2))) == {"name": "a", "part": {"size": 3, "speed": 2}}
    assert identity(_Machine(spare=_Part(size=4))) == {"name": "a", "part": {"size": 3}, "spare": {"size": 4}}
    assert to_mapping(_Machine())["spare"] == {"size": 3, "speed": 1}


@dataclass(frozen=True, kw_only=True)
class _Old:
    kind: Literal["old"] = field(default="old", metadata=ADDED_LATER)
    size: int = 3


@dataclass(frozen=True, kw_only=True)
class _New:
    kind: Literal["new"] = "new"
    length: int = 4


@dataclass(frozen=True, kw_only=True)
class _Holder:
    thing: _Old | _New = field(default_factory=_Old)


def test_what_was_written_before_there_were_kinds_is_of_the_first_kind() -> None:
    assert from_mapping(_Holder, {"thing": {"size": 5}}).thing == _Old(size=5)
    assert from_mapping(_Holder, {"thing": {"kind": "new", "length": 5}}).thing == _New(length=5)
    assert identity(_Holder()) == {"thing": {"size": 3}} and identity(_Holder(thing=_New()))["thing"]["kind"] == "new"
    for thing in (_Old(size=2), _New(length=2)):
        assert from_mapping(_Holder, to_mapping(_Holder(thing=thing))).thing == thing
    with pytest.raises(ConfigError, match=r"unknown key 'thing\.length'"):
        from_mapping(_Holder, {"thing": {"length": 5}})
    with pytest.raises(ConfigError, match=r"'thing\.kind' is None: known: new, old"):
        from_mapping(_Holder, {"thing": {"kind": None}})


def test_a_union_by_itself() -> None:
    assert from_union(_Old | _New, {"size": 5}) == _Old(size=5)
    assert from_union(_Old | _New, {"kind": "new"}) == _New()
    assert from_union(Circle | Box, {"kind": "circle", "radius": 2}) == Circle(radius=2.0)
    for data, says in [
        ({"kind": "nwe"}, "^'kind' is 'nwe': did you mean 'new'"),
        ({"kind": "new", "size": 1}, "^unknown key 'size': known: kind, length$"),
        ([1], r"^expected a section with a kind of \['new', 'old'\], got \[1\]$"),
    ]:
        with pytest.raises(ConfigError, match=says):
            from_union(_Old | _New, data)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^'kind' is None: known: box, circle$"):
        from_union(Circle | Box, {"radius": 2})
    with pytest.raises(ConfigError, match=r"^'a\.kind' is 'b'"):
        from_union(Circle | Box, {"kind": "b"}, where="a")
