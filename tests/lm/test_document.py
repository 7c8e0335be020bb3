"""What each hidden state is asked for, and who sees whom, in every mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lm.tiny import build_vocabulary
from tokvid.grid import Grid
from tokvid_lm.document import IGNORED, TEXT, Document, DocumentWriter
from tokvid_lm.layout import RasterLayout
from tokvid_lm.mask_spec import MaskSpec
from tokvid_lm.templates import VideoHeader, build_template
from tokvid_lm.vocabulary import MODES, Mode

VOCABULARY = build_vocabulary(num_codebooks=1, num_actions=2)
TEMPLATE = build_template("rows", VOCABULARY)
GRID = Grid(t=3, h=2, w=2)
CODES = VOCABULARY.code_offset + np.arange(12)
TEXT_IDS = [5, 6, 7]


def write(mode: Mode, asked: np.ndarray, masked: np.ndarray | None = None, actions: int = 0) -> Document:
    writer = DocumentWriter(TEMPLATE, RasterLayout())
    writer.text(TEXT_IDS, scored=False)
    action_ids = VOCABULARY.action_ids(torch.arange((GRID.t - 1) * actions) % 2).numpy() if actions else None
    header = VideoHeader(grid=GRID, mode=mode, actions=actions)
    writer.video(CODES, header, asked=asked, masked=masked, action_ids=action_ids)
    writer.text([9], scored=True)
    return writer.finish()


def sees(document: Document) -> torch.Tensor:
    """Bool ``[n,n]``: who sees whom."""
    columns = {name: torch.from_numpy(getattr(document, name))[None] for name in ("order", "block", "ghost")}
    return MaskSpec(document=torch.zeros_like(columns["order"]), **columns).to_bool()[0, 0]


def asked_of(document: Document) -> list[tuple[int, int, int, int]]:
    """(place, label, latent frame, mode) of every label."""
    return [
        (place, int(label), int(document.frame[place]), int(document.mode[place]))
        for place, label in enumerate(document.labels)
        if label != IGNORED
    ]


def test_by_next_token_the_place_before_answers() -> None:
    asked = np.ones(12, bool)
    asked[:4] = False
    document = write("next_token", asked)
    labels = asked_of(document)
    assert [label for _, label, *_ in labels] == [*CODES[4:], 9]
    assert all(document.ids[place + 1] == label for place, label, *_ in labels)
    assert [frame for *_, frame, _ in labels] == [1] * 4 + [2] * 4 + [TEXT]
    assert torch.equal(sees(document), torch.ones(len(document), len(document)).tril().bool())


@pytest.mark.parametrize("mode", ["maskgit", "frame"])
def test_masked_codes_answer_for_themselves_and_nothing_is_shifted(mode: Mode) -> None:
    asked = np.zeros(12, bool)
    asked[[1, 5, 6]] = True
    document = write(mode, asked)
    labels = asked_of(document)
    masked = [place for place, token in enumerate(document.ids) if token == VOCABULARY.mask_id]
    assert sorted(label for _, label, *_ in labels) == sorted([*CODES[[1, 5, 6]], 9])
    assert [place for place, label, *_ in labels if label != 9] == masked
    assert {mode_ for *_, mode_ in labels} == {MODES.index(mode), 0}
    # What is not asked for but hidden teaches nothing.
    more = write(mode, asked, masked=np.ones(12, bool))
    codes = [label for _, label, *_ in asked_of(more) if label != 9]
    assert codes == [*CODES[[1, 5, 6]]]
    assert int((more.ids == VOCABULARY.mask_id).sum()) == (12 if mode == "maskgit" else 8), (
        "copies of asked frames alone"
    )


def test_at_once_a_video_sees_itself_and_what_follows_sees_it_all() -> None:
    document = write("maskgit", np.ones(12, bool))
    mask, body = sees(document), np.flatnonzero(document.block == np.bincount(document.block).argmax())
    assert len(body) == len(TEMPLATE.body(VideoHeader(grid=GRID)).ids)
    inside = mask[body][:, body]
    assert bool(inside.all())
    assert bool(mask[body][:, : body[0]].all()) and not bool(mask[body][:, body[-1] + 1 :].any())
    assert bool(mask[-1].all())


def test_frame_by_frame_a_copy_sees_the_clean_frames_before_it_and_nobody_sees_a_copy() -> None:
    document = write("frame", np.ones(12, bool), actions=1)
    mask = sees(document)
    ghosts = np.flatnonzero(document.ghost)
    assert len(ghosts) == 3 * (4 + 2 + 1) + 2  # codes, row numbers, the end of the frame, and an action twice
    frames = TEMPLATE.body(VideoHeader(grid=GRID, actions=1)).frame.numpy()
    first = int(np.flatnonzero(document.content)[0]) - 1
    clean = {number: first + np.flatnonzero(frames == number) for number in range(3)}
    copies = {number: ghosts[document.frame[ghosts] == number] for number in range(3)}
    for number, copy in copies.items():
        assert np.array_equal(document.index[copy], document.index[clean[number]])
        assert np.array_equal(document.cell[copy], document.cell[clean[number]])
        for place in copy:
            seen = set(np.flatnonzero(mask[place]).tolist())
            expected = {*range(first), *copy.tolist()}
            for before in range(number):
                expected |= set(clean[before].tolist())
            assert seen == expected
    others = np.setdiff1d(np.arange(len(document)), ghosts)
    assert not bool(mask[others][:, ghosts].any())
    for number, places in clean.items():
        seen = set(np.flatnonzero(mask[places[0]]).tolist())
        assert seen == set(range(int(clean[number][-1]) + 1)), "a clean frame sees itself and all before it"
    assert not bool((document.labels[np.concatenate(list(clean.values()))] != IGNORED).any())


@settings(max_examples=40, deadline=None)
@given(mode=st.sampled_from(MODES), seed=st.integers(0, 2**31))
def test_no_hidden_state_sees_the_code_it_is_asked_for(mode: Mode, seed: int) -> None:
    """Of the asked codes only masked or later ones may stand where they are seen."""
    asked = np.random.default_rng(seed).random(12) < 0.5
    document = write(mode, asked)
    mask = sees(document)
    for place, label, frame, _ in asked_of(document):
        if frame != TEXT:
            assert label not in document.ids[mask[place].numpy()]


def test_a_prefix_tells_known_cells_to_all_that_follows() -> None:
    writer = DocumentWriter(TEMPLATE, RasterLayout())
    known = np.zeros(12, bool)
    known[[0, 11]] = True
    writer.known(CODES, known, GRID)
    writer.video(CODES, VideoHeader(grid=GRID), asked=~known)
    document = writer.finish()
    special = VOCABULARY.special
    end = document.ids.tolist().index(special["<|/known|>"])
    assert document.ids[0] == special["<|known|>"]
    assert [token for token in document.ids[:end] if token >= VOCABULARY.code_offset] == [CODES[0], CODES[11]]
    assert int((document.ids[:end] == special["<|mask|>"]).sum()) == 10
    assert [label for _, label, *_ in asked_of(document)] == CODES[1:11].tolist()
