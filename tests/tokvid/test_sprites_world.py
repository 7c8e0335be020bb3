from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.data.sprites import (
    BACKGROUNDS,
    MOTIONS,
    SPRITES,
    SpriteWorld,
    SpriteWorldConfig,
    combinations,
    is_held_out,
)
from tokvid.data.sprites.backgrounds import draw_background, render_background
from tokvid.data.sprites.motions import BOUNCES, DIRECTIONS, MIN_TRAVEL
from tokvid.data.sprites.sheet import sprite_picture
from tokvid.errors import ConfigError, DataError

SPLITS = ("train", "held_out")
worlds = st.builds(
    SpriteWorldConfig,
    size=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    num_frames=st.integers(1, 20),
    two_sprite_share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**40),
).map(SpriteWorld)


def test_the_sheet_holds_64_different_sprites() -> None:
    assert len(SPRITES) == len(set(SPRITES)) == 64
    pictures = [sprite_picture(name, 14) for name in SPRITES]
    stack = np.stack([np.concatenate([p.color / 255, p.alpha], axis=2).ravel() for p in pictures])
    distances = np.sqrt(((stack[:, None] - stack[None]) ** 2).mean(axis=2))
    assert distances[np.triu_indices(64, 1)].min() > 0.19  # of 1: the closest pair is burger and basketball
    assert all(p.alpha.mean() > 0.3 for p in pictures)  # chunky, no thin outlines
    with pytest.raises(DataError, match="did you mean 'apple'"):
        sprite_picture("aple", 14)


def test_a_clip_depends_on_seed_split_and_index_only() -> None:
    world = SpriteWorld(SpriteWorldConfig(seed=3))
    world.clip(8, split="train")  # leaves no trace
    first, again = world.clip(7, split="train"), SpriteWorld(SpriteWorldConfig(seed=3)).clip(7, split="train")
    assert np.array_equal(first.frames, again.frames)
    assert (first.caption, first.name, first.fps) == (again.caption, "train-000007", 8.0)
    others = [world.clip(7, split="held_out"), SpriteWorld(SpriteWorldConfig(seed=4)).clip(7, split="train")]
    assert not any(np.array_equal(first.frames, other.frames) for other in others)


def test_the_world_stays_the_same_between_releases() -> None:
    scene = SpriteWorld(SpriteWorldConfig()).scene(1, split="train")
    (sprite,) = scene.sprites
    assert (sprite.sprite, sprite.motion, scene.background.name) == ("penguin", "bounce-sideways", "stone")
    assert sprite.path[:3] == ((4, 8), (4, 6), (4, 4))
    frames = SpriteWorld(SpriteWorldConfig()).render(scene)
    assert frames[0, :2, :2, 0].tolist() == [[131, 135], [124, 130]]


def test_render_many_is_clip_by_clip() -> None:
    world = SpriteWorld(SpriteWorldConfig(size=(24, 40), num_frames=5))
    frames, captions = world.render_many([4, 0, 9], "held_out")
    assert frames.shape == (3, 5, 24, 40, 3) and frames.dtype == np.uint8
    for row, index in enumerate([4, 0, 9]):
        clip = world.clip(index, split="held_out")
        assert np.array_equal(frames[row], clip.frames) and captions[row] == clip.caption


@settings(max_examples=60, deadline=None)
@given(worlds, st.integers(0, 10**9), st.sampled_from(SPLITS))
def test_sprites_stay_inside_apart_and_on_course(world: SpriteWorld, index: int, split: str) -> None:
    scene = world.scene(index, split=split)  # type: ignore[arg-type]
    height, width = scene.size
    paths = []
    for placement in scene.sprites:
        path = np.array(placement.path)
        assert path.shape == (scene.num_frames, 2)
        assert path.min() >= 0
        assert (path + placement.size <= (height, width)).all()
        travel = path[-1] - path[0]
        if placement.motion in DIRECTIONS and scene.num_frames > 1:
            signs = np.array(DIRECTIONS[placement.motion])
            assert (np.sign(travel) == signs).all()
            assert (np.abs(travel) + 1 >= MIN_TRAVEL * np.array(scene.size) * np.abs(signs)).all()
        elif placement.motion in BOUNCES:
            still = 1 - np.array(BOUNCES[placement.motion])
            assert ((path.max(axis=0) - path.min(axis=0)) * still == 0).all()
        elif placement.motion == "stay":
            assert (path == path[0]).all()
        paths.append((path, placement.size))
    if len(paths) == 2:
        (a, size_a), (b, size_b) = paths
        assert scene.sprites[0].sprite != scene.sprites[1].sprite
        assert ((a + size_a < b) | (b + size_b < a)).any(axis=1).all()


def test_the_share_of_two_sprites_is_kept() -> None:
    world = SpriteWorld(SpriteWorldConfig(two_sprite_share=0.25))
    share = np.mean([len(world.scene(i, split="train").sprites) == 2 for i in range(600)])
    assert 0.19 < share < 0.31


def test_held_out_combinations_never_occur_in_training() -> None:
    train, held_out = set(combinations("train")), set(combinations("held_out"))
    assert not train & held_out and len(train | held_out) == len(SPRITES) * len(MOTIONS)
    assert 0.09 < len(held_out) / len(train | held_out) < 0.15
    assert {s for s, _ in train} == set(SPRITES) and {m for _, m in train} == set(MOTIONS)
    assert {m for _, m in held_out} == set(MOTIONS)
    world = SpriteWorld(SpriteWorldConfig(two_sprite_share=0.5))
    for split in SPLITS:
        for index in range(200):
            for placement in world.scene(index, split=split).sprites:  # type: ignore[arg-type]
                assert is_held_out(placement.sprite, placement.motion) == (split == "held_out")


def test_how_uneven_the_held_out_combinations_are() -> None:
    """As the docstring of ``combinations`` and docs/architecture.md say."""
    held_out = combinations("held_out")
    assert len(held_out) == 82
    assert len(set(SPRITES) - {sprite for sprite, _ in held_out}) == 15
    motions = [motion for _, motion in held_out]
    counts = {motion: motions.count(motion) for motion in MOTIONS}
    assert (max(counts.values()), counts["right"], min(counts.values()), counts["up"]) == (12, 12, 3, 3)


def test_the_background_stands_still_and_its_texture_is_moderate() -> None:
    world = SpriteWorld(SpriteWorldConfig(two_sprite_share=0.0))
    scene = world.scene(0, split="train")
    bare = world.render(dataclasses.replace(scene, sprites=()))
    assert (bare == bare[0]).all()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(64):
        background = draw_background(rng)
        image = render_background(background, 40, 32)
        seen.add(background.name)
        assert 4.0 < image.std(axis=(0, 1)).mean() < 14.5
    assert seen == set(BACKGROUNDS)


def test_a_sprite_is_drawn_over_the_background() -> None:
    world = SpriteWorld(SpriteWorldConfig(two_sprite_share=0.0))
    scene = world.scene(0, split="train")
    frames, bare = world.render(scene), world.render(dataclasses.replace(scene, sprites=()))
    placement = scene.sprites[0]
    picture = sprite_picture(placement.sprite, placement.size)
    for t, (top, left) in enumerate(placement.path):
        window = (slice(top, top + placement.size), slice(left, left + placement.size))
        expected = picture.color + (1 - picture.alpha) * bare[t][window].astype(np.float32)
        assert np.abs(frames[t][window] - expected).max() <= 1.5
        outside = np.ones(scene.size, bool)
        outside[window] = False
        assert np.array_equal(frames[t][outside], bare[t][outside])


@pytest.mark.parametrize(
    "bad",
    [{"size": (8, 32)}, {"num_frames": 0}, {"fps": 0.0}, {"two_sprite_share": 1.5}, {"seed": -1}],
    ids=lambda bad: next(iter(bad)),
)
def test_impossible_worlds_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SpriteWorldConfig(**bad)  # type: ignore[arg-type]


def test_unknown_splits_and_indices_are_refused() -> None:
    world = SpriteWorld(SpriteWorldConfig())
    with pytest.raises(DataError, match="did you mean 'held_out'"):
        world.clip(0, split="heldout")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="got -1"):
        world.clip(-1, split="train")
