"""The plan of the ids: codes to ids and back, specials apart, and errors that name the place."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lm.tiny import build_vocabulary
from tokvid.errors import ConfigError, ModelError, ShapeError
from tokvid_lm import VideoVocabulary
from tokvid_lm.vocabulary import SPECIAL_TOKENS, action_token, special_tokens


@settings(max_examples=60, deadline=None)
@given(
    text_size=st.integers(1, 300),
    codebook=st.one_of(
        st.integers(1, 70).map(lambda size: (size, ())),
        st.lists(st.integers(2, 7), min_size=2, max_size=3).map(lambda parts: (math.prod(parts), tuple(parts))),
    ),
    num_codebooks=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_codes_to_ids_and_back(
    text_size: int, codebook: tuple[int, tuple[int, ...]], num_codebooks: int, seed: int
) -> None:
    size, factors = codebook
    vocabulary = build_vocabulary(codebook_size=size, num_codebooks=num_codebooks, text_size=text_size, factors=factors)
    codes = torch.randint(size, (3, num_codebooks, 2, 1, 2), generator=torch.Generator().manual_seed(seed))
    ids = vocabulary.codes_to_ids(codes)
    assert ids.shape == (3, vocabulary.slots, 2, 1, 2)
    assert vocabulary.slots == num_codebooks * max(1, len(factors))
    assert torch.equal(vocabulary.ids_to_codes(ids), codes)
    assert int(ids.min()) >= vocabulary.code_offset > max(vocabulary.special.values())
    for slot in range(vocabulary.slots):
        assert all(token in vocabulary.slot_range(slot) for token in ids[:, slot].flatten().tolist())


def test_every_id_has_one_meaning() -> None:
    for factors in ((), (8, 5)):
        vocabulary = build_vocabulary(factors=factors)
        codes = torch.arange(40).view(40, 1, 1, 1, 1).expand(-1, 2, -1, -1, -1)
        ids = vocabulary.codes_to_ids(codes)
        used = [*range(vocabulary.text_size), *vocabulary.special.values()]
        for slot in range(vocabulary.slots):
            of_slot = set(ids[:, slot].flatten().tolist())
            assert of_slot == set(vocabulary.slot_range(slot))
            used += of_slot
        assert len(used) == len(set(used))
        assert max(used) == vocabulary.total_size - 1


def test_a_large_codebook_is_two_small_ranges_of_rows() -> None:
    vocabulary = build_vocabulary(codebook_size=2**18, num_codebooks=1, factors=(512, 512))
    assert vocabulary.total_size - vocabulary.code_offset == 1024
    code = torch.full((1, 1, 1, 1, 1), 5 * 512 + 7)
    assert (vocabulary.codes_to_ids(code) - vocabulary.code_offset).flatten().tolist() == [5, 512 + 7]
    uneven = build_vocabulary(codebook_size=2**18, num_codebooks=1, factors=(64, 4096))
    assert (uneven.codes_to_ids(code) - uneven.code_offset).flatten().tolist() == [0, 64 + 5 * 512 + 7]


def test_ids_that_are_no_codes_are_named() -> None:
    vocabulary = build_vocabulary()
    wrong_slot = torch.full((1, 2, 1, 1, 1), vocabulary.code_offset)
    with pytest.raises(ModelError, match=rf"id {vocabulary.code_offset} in cell \(0, 0, 0\) is no code of slot 1"):
        vocabulary.ids_to_codes(wrong_slot)
    for token in (0, vocabulary.open_id, vocabulary.code_offset - 1, vocabulary.total_size):
        ids = vocabulary.codes_to_ids(torch.zeros(1, 2, 1, 1, 2, dtype=torch.int64))
        ids[0, 0, 0, 0, 1] = token
        with pytest.raises(ModelError, match=rf"id {token} in cell \(0, 0, 1\) is no code of slot 0"):
            vocabulary.ids_to_codes(ids)


@pytest.mark.parametrize("bad", [-1, 40, 1.0, True])
def test_codes_out_of_range_or_of_another_type_raise(bad: float) -> None:
    with pytest.raises(ShapeError):
        build_vocabulary().codes_to_ids(torch.tensor(bad).expand(1, 2, 1, 1, 1))
    with pytest.raises(ShapeError, match=r"codes \[B,2,t,h,w\]"):
        build_vocabulary().codes_to_ids(torch.zeros(1, 3, 1, 1, 1, dtype=torch.int64))


def test_actions_have_special_ids() -> None:
    vocabulary = build_vocabulary(num_actions=3)
    assert vocabulary.num_actions == 3
    assert vocabulary.action_ids(torch.tensor([2, 0])).tolist() == [
        vocabulary.special[action_token(2)],
        vocabulary.special[action_token(0)],
    ]
    with pytest.raises(ModelError, match=r"actions must lie in \[0, 3\), got values from 0 to 3"):
        vocabulary.action_ids(torch.tensor([0, 3]))
    with pytest.raises(ModelError, match=r"actions must lie in \[0, 0\)"):
        build_vocabulary().action_ids(torch.tensor([0]))
    assert len(special_tokens(3)) == len(SPECIAL_TOKENS) + 3


def test_mapping_round_trip_through_json() -> None:
    for vocabulary in (build_vocabulary(), build_vocabulary(factors=(8, 5), num_actions=2)):
        again = VideoVocabulary.from_mapping(json.loads(json.dumps(vocabulary.to_mapping())))
        assert again == vocabulary
    with pytest.raises(ConfigError, match="did you mean 'code_offset'"):
        VideoVocabulary.from_mapping({**vocabulary.to_mapping(), "code_ofset": 3})


def test_impossible_plans_raise() -> None:
    good = build_vocabulary().to_mapping()
    with pytest.raises(ConfigError, match="special ids must be distinct"):
        VideoVocabulary.from_mapping({**good, "special": dict.fromkeys(SPECIAL_TOKENS, 21)})
    with pytest.raises(ConfigError, match="special tokens must be exactly"):
        VideoVocabulary.from_mapping({**good, "special": {"<|video|>": 20}})
    with pytest.raises(ConfigError, match="special ids must"):
        VideoVocabulary.from_mapping({**good, "code_offset": 25})
    with pytest.raises(ConfigError, match="at least 1"):
        VideoVocabulary.from_mapping({**good, "num_codebooks": 0})
    for factors in ([8, 4], [40, 1]):
        with pytest.raises(ConfigError, match="multiply to the codebook's 40"):
            VideoVocabulary.from_mapping({**good, "factors": factors})
