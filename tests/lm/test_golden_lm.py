"""The arithmetic of the language model's side has not changed: new rows, logits, loss and greedy codes of a tiny model.

After a change that is meant to change them, write ``tests/golden/lm.json`` anew and say why in the commit:

    python -m tests.lm.test_golden_lm
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.lm.tiny import build_model, build_tokenizer
from tokvid.grid import Grid
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.collate import collate
from tokvid_lm.document import DocumentWriter
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import load_codec

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lm.json"
# Other processors add in another order: 1e-4 is a hundred times what that changes.
TOLERANCE = 1e-4


def results() -> dict[str, Any]:
    """What the golden file holds, of an extended tiny Llama and one document in every mode."""
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny", seed=0), tokenizer=build_tokenizer())
    lm.settings = VideoSettings(sampling=tuple(Sampling(mode=mode, steps=3) for mode in MODES))
    codes = (torch.arange(2 * 2 * 3) * 97 % lm.codec.codebook_size).view(1, 1, 2, 2, 3)
    caption = [TextSegment("a fox moves left")]
    ids = lm.processor.encode([*caption, VideoSegment(codes=codes)])[None]
    size: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 24, "top_k": 1}
    asked = np.arange(12) % 3 > 0
    losses, greedy = {}, {}
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0]
        for mode in MODES:
            writer = DocumentWriter(lm.template, lm.layout)
            lm.processor.write(writer, caption)
            header = VideoHeader(grid=Grid(t=2, h=2, w=3), mode=mode)
            writer.video(lm.processor.code_ids(codes)[0].numpy(), header, asked=asked)
            batch = collate([[writer.finish()]], pad_id=0, positions=lm.positions)
            losses[mode] = round(float(VideoObjective(lm.model, lm.vocabulary)(**batch)["loss"]), 6)
            (clip,) = lm.generate(caption, mode=mode, **size)
            assert isinstance(clip, VideoSegment) and clip.codes is not None
            greedy[mode] = clip.codes.flatten().tolist()
    rows = lm.model.get_input_embeddings().weight
    return {
        "ids": ids[0].tolist(),
        "new_rows": _rounded(rows[lm.vocabulary.text_size :: 101, ::5]),
        "logits": _rounded(logits[::4, ::67]),
        "losses": losses,
        "greedy_codes": greedy,
    }


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(v, 6) for v in row] for row in values.tolist()]


def test_the_numbers_are_those_of_the_golden_file() -> None:
    golden, now = json.loads(GOLDEN.read_text(encoding="utf-8")), results()
    assert now["ids"] == golden["ids"]
    assert now["greedy_codes"] == golden["greedy_codes"]
    assert now["losses"] == pytest.approx(golden["losses"], abs=TOLERANCE)
    for name in ("new_rows", "logits"):
        torch.testing.assert_close(torch.tensor(now[name]), torch.tensor(golden[name]), atol=TOLERANCE, rtol=0)
    assert torch.tensor(golden["logits"]).std() > 0.1


def test_the_golden_file_is_small() -> None:
    assert GOLDEN.stat().st_size < 100_000


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(results()) + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN.relative_to(Path.cwd())}: {GOLDEN.stat().st_size} bytes")
