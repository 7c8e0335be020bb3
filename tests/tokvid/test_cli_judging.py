"""Which captions of a user's folder are drawn."""

from __future__ import annotations

from tokvid.cli.judging import NEW, TRAINED, prompts_to_show


def test_new_captions_and_trained_ones_by_turns() -> None:
    chosen = prompts_to_show(["a", "a", "b", "c"], ["x", "a", "y"], 5)
    assert [(prompt.caption, prompt.note) for prompt in chosen] == [
        ("x", NEW),
        ("a", TRAINED),
        ("y", NEW),
        ("b", TRAINED),
        ("c", TRAINED),
    ]


def test_captions_are_spread_over_the_folder_and_different() -> None:
    neighbours = [f"scene {number // 10}" for number in range(300)]
    chosen = [prompt.caption for prompt in prompts_to_show(neighbours, [], 6)]
    assert chosen == [f"scene {number}" for number in (0, 5, 10, 15, 20, 25)]


def test_few_captions_are_drawn_again_and_no_caption_is_new_that_was_trained_on() -> None:
    chosen = prompts_to_show(["dogs", "cats"], ["cats", "dogs", "cats"], 5)
    assert [prompt.caption for prompt in chosen] == ["dogs", "cats", "dogs", "cats", "dogs"]
    assert {prompt.note for prompt in chosen} == {TRAINED}


def test_both_kinds_are_spread_where_there_are_many() -> None:
    chosen = prompts_to_show([f"t{n}" for n in range(40)], [f"h{n}" for n in range(40)], 8)
    assert [prompt.caption for prompt in chosen] == ["h0", "t0", "h10", "t10", "h20", "t20", "h30", "t30"]


def test_empty_captions_are_left_out() -> None:
    assert [prompt.caption for prompt in prompts_to_show(["", "a"], ["", "b"], 3)] == ["b", "a", "b"]
