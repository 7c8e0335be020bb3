"""What may come next: random logits at temperature 2 never make a malformed video."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList

from tests.lm.tiny import build_model, build_vocabulary
from tokvid.errors import ModelError
from tokvid.grid import Grid
from tokvid_lm.grammar import FINISHED, Grammar, GrammarLogitsProcessor
from tokvid_lm.layout import RasterLayout
from tokvid_lm.segments import split
from tokvid_lm.templates import CODE, Template, VideoHeader, build_template

VOCABULARY = build_vocabulary(text_size=260)
TEMPLATE = build_template("bare", VOCABULARY)
TEMPLATES = [TEMPLATE, build_template("rows", VOCABULARY), build_template("emu3", VOCABULARY)]
GRID = Grid(t=2, h=2, w=3)
HEADER = VideoHeader(grid=GRID, fps=8.0)


def _video_grammar(template: Template = TEMPLATE) -> Grammar:
    return Grammar.video(VOCABULARY, template, RasterLayout(), HEADER)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.kind)
def test_a_thousand_random_videos_at_temperature_two_are_all_well_formed(template: Template) -> None:
    grammar = _video_grammar(template)
    generator = torch.Generator().manual_seed(0)
    states = grammar.start(1000)
    emitted = []
    while not bool((states == FINISHED).all()):
        logits = torch.randn(1000, VOCABULARY.total_size, generator=generator) * 5
        logits = logits.masked_fill(~grammar.allowed(states), float("-inf"))
        ids = torch.multinomial((logits / 2.0).softmax(1), 1, generator=generator).squeeze(1)
        states = grammar.advance(states, ids)
        emitted.append(ids)
    videos = torch.stack(emitted, dim=1)
    for row in videos.tolist():
        (span,) = split(row, open_id=VOCABULARY.open_id, close_id=VOCABULARY.close_id)
        parsed = template.parse(span.ids)
        assert parsed.header == HEADER
        VOCABULARY.ids_to_codes(RasterLayout().unflatten(parsed.code_ids[None], GRID, 2))
    codes = videos[:, len(template.header(HEADER)) : -1][:, template.body(HEADER).ids == CODE]
    assert len(codes.unique()) == VOCABULARY.num_codebooks * VOCABULARY.codebook_size  # nothing legal is shut out


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.kind)
def test_step_by_step_and_all_at_once_agree(template: Template) -> None:
    grammar = _video_grammar(template)
    code_ids = RasterLayout().flatten(VOCABULARY.codes_to_ids(torch.zeros(1, 2, 2, 2, 3, dtype=torch.int64)))
    video = template.build(code_ids, HEADER)
    states = grammar.start(1)
    for length in range(video.shape[1] + 1):
        assert torch.equal(grammar.replay(video[:, :length]), states)
        if length < video.shape[1]:
            assert bool(grammar.allowed(states)[0, video[0, length]])
            states = grammar.advance(states, video[:, length])
    assert states.tolist() == [FINISHED]
    assert grammar.allowed(states).nonzero().tolist() == [[0, grammar.pad_id]]


def test_forbidden_ids_raise() -> None:
    grammar = _video_grammar()
    with pytest.raises(ModelError, match=f"forbids id {VOCABULARY.close_id} at step 0"):
        grammar.advance(grammar.start(1), torch.tensor([VOCABULARY.close_id]))
    with pytest.raises(ModelError, match="forbids id 999999"):
        grammar.advance(grammar.start(1), torch.tensor([999999]))
    with pytest.raises(ModelError, match="forbids id"):
        grammar.replay(torch.tensor([[VOCABULARY.open_id, 0]]))


def test_text_allows_text_and_end_and_nothing_else() -> None:
    end = VOCABULARY.text_size + 17  # an end id may lie beyond the text
    grammar = Grammar.text(VOCABULARY, [end, 2])
    states = grammar.start(3)
    assert grammar.allowed(states)[0].nonzero().flatten().tolist() == [*range(VOCABULARY.text_size), end]
    states = grammar.advance(states, torch.tensor([5, 2, end]))
    assert states.tolist() == [0, FINISHED, FINISHED]
    assert grammar.replay(torch.tensor([[5, 5], [2, 9], [end, 9]])).tolist() == [0, FINISHED, FINISHED]


@pytest.mark.parametrize("first_step", [0, 10])
def test_in_hugging_face_generate(first_step: int) -> None:
    model = build_model("llama", rows=VOCABULARY.total_size)
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    header = TEMPLATE.header(HEADER)
    assert len(header) == 10
    prompt = torch.cat([prompt, torch.tensor(header[:first_step], dtype=torch.int64).expand(2, -1)], dim=1)
    processor = GrammarLogitsProcessor(_video_grammar(), prompt.shape[1], first_step=first_step)
    torch.manual_seed(0)
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=LogitsProcessorList([processor]),
        do_sample=True,
        temperature=2.0,
        top_k=0,
        eos_token_id=VOCABULARY.close_id,
        max_new_tokens=60,
    )
    assert ids.shape[1] == 3 + TEMPLATE.length(HEADER)
    for row in ids[:, 3:].tolist():
        assert TEMPLATE.parse(row).header == HEADER
    with pytest.raises(ModelError, match="extend the model"):
        processor(prompt, torch.zeros(2, 9))
