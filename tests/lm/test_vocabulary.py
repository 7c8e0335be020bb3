"""The plan of the ids: codes to ids and back, specials apart, and errors that name the place."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lm.tiny import build_vocabulary
from tokvid.errors import ConfigError, ModelError, ShapeError
from tokvid_lm import VideoVocabulary
from tokvid_lm.vocabulary import SPECIAL_TOKENS


@settings(max_examples=50, deadline=None)
@given(
    text_size=st.integers(1, 300),
    codebook_size=st.integers(1, 70),
    num_codebooks=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_codes_to_ids_and_back(text_size: int, codebook_size: int, num_codebooks: int, seed: int) -> None:
    vocabulary = build_vocabulary(codebook_size=codebook_size, num_codebooks=num_codebooks, text_size=text_size)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(codebook_size, (3, 12), generator=generator)
    books = torch.arange(12) % num_codebooks
    ids = vocabulary.codes_to_ids(codes, books)
    assert torch.equal(vocabulary.ids_to_codes(ids, books), codes)
    assert int(ids.min()) >= vocabulary.code_offset > max(vocabulary.special.values())
    assert int(ids.max()) < vocabulary.total_size
    for book in range(num_codebooks):
        of_book = ids[:, books == book].flatten().tolist()
        assert all(token in vocabulary.code_range(book) for token in of_book)


def test_every_id_has_one_meaning() -> None:
    vocabulary = build_vocabulary()
    codes = torch.arange(vocabulary.codebook_size)
    ids = [vocabulary.codes_to_ids(codes, torch.tensor(book)) for book in range(vocabulary.num_codebooks)]
    used = [*range(vocabulary.text_size), *vocabulary.special.values(), *torch.cat(ids).tolist()]
    assert len(used) == len(set(used))
    assert max(used) == vocabulary.total_size - 1


def test_ids_that_are_no_codes_are_named() -> None:
    vocabulary = build_vocabulary()
    books = torch.tensor([0, 1])
    wrong_book = torch.tensor([[vocabulary.code_offset, vocabulary.code_offset]])
    with pytest.raises(ModelError, match=rf"id {vocabulary.code_offset} at position 1 is no code there"):
        vocabulary.ids_to_codes(wrong_book, books)
    for token in (0, vocabulary.open_id, vocabulary.code_offset - 1, vocabulary.total_size):
        with pytest.raises(ModelError, match=f"id {token} at position 0"):
            vocabulary.ids_to_codes(torch.tensor([token]), torch.tensor([0]))


@pytest.mark.parametrize("bad", [torch.tensor([-1]), torch.tensor([40]), torch.tensor([1.0]), torch.tensor([True])])
def test_codes_out_of_range_or_of_another_type_raise(bad: torch.Tensor) -> None:
    with pytest.raises(ShapeError):
        build_vocabulary().codes_to_ids(bad, torch.tensor([0]))


def test_mapping_round_trip_through_json() -> None:
    vocabulary = build_vocabulary()
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
