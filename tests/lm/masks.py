"""Who sees whom, spelled out slowly, and packed rows that hold every kind of document."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from tokvid_lm.mask_spec import MaskSpec


def slowly(spec: MaskSpec) -> Tensor:
    """Bool ``[B,1,S,S]`` by the sentence that says who sees whom, one pair at a time."""
    rows, length = spec.order.shape
    seen = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for row in range(rows):
        columns = zip(*(c[row].tolist() for c in (spec.document, spec.order, spec.block, spec.ghost)), strict=True)
        tokens = list(columns)
        for q, (document, order, block, _) in enumerate(tokens):
            for k, (key_document, key_order, key_block, key_ghost) in enumerate(tokens):
                near = spec.window is None or order - key_order <= spec.window or key_order < spec.sinks
                before = not key_ghost and key_order < order and near
                same = document == key_document and document >= 0
                seen[row, 0, q, k] = (same and (block == key_block or before)) or (document < 0 and q == k)
    return seen


def document(
    text: int, frames: int, cells: int, video: str, *, copies: bool = False, after: int = 0
) -> list[list[int]]:
    """Of each token order, block and whether it is a ghost: text, a video, masked copies of its frames, and text."""
    columns = [[place, place, 0] for place in range(text)]
    for frame in range(frames):
        for cell in range(cells):
            place = text + frame * cells + cell
            first = {"causal": place, "frame": text + frame * cells, "full": text}[video]
            columns.append([first, first, 0])
    size = frames * cells
    if copies:
        ghosts = [[text + frame * cells, 1000 + frame, 1] for frame in range(frames) for _ in range(cells)]
        columns += ghosts
    columns += [[text + size + place, text + size + place, 0] for place in range(after)]
    return columns


def spec_of(
    rows: list[list[list[list[int]]]], *, length: int = 0, window: int | None = None, sinks: int = 0
) -> MaskSpec:
    """Rows of :func:`document`, padded on the right."""
    width = max([length, *(sum(len(piece) for piece in row) for row in rows)])
    columns = torch.zeros(len(rows), width, 4, dtype=torch.int64)
    columns[..., 3] = -1
    for row, pieces in enumerate(rows):
        tokens = [[*token, number] for number, piece in enumerate(pieces) for token in piece]
        columns[row, : len(tokens)] = torch.tensor(tokens).reshape(-1, 4)
    order, block, ghost, number = columns.unbind(-1)
    return MaskSpec(document=number, order=order, block=block, ghost=ghost.bool(), window=window, sinks=sinks)


def mixed() -> MaskSpec:
    """Two rows of packed documents of every kind, and padding."""
    return spec_of(
        [
            [document(4, 2, 3, "frame", after=2), document(3, 2, 4, "causal"), document(0, 1, 5, "full")],
            [document(2, 3, 2, "frame", copies=True, after=3), document(3, 2, 3, "full", after=1)],
        ]
    )


documents = st.builds(
    document,
    st.integers(0, 12),
    st.integers(0, 4),
    st.integers(1, 9),
    st.sampled_from(["causal", "frame", "full"]),
    copies=st.booleans(),
    after=st.integers(1, 5),
)
windows = st.sampled_from([(None, 0), (0, 0), (3, 0), (3, 2), (9, 1)])


@st.composite
def specs(draw: st.DrawFn) -> MaskSpec:
    """Packed rows as training has them, with and without a window."""
    rows = draw(st.lists(st.lists(documents, max_size=3), min_size=1, max_size=3))
    window, sinks = draw(windows)
    return spec_of(rows, length=draw(st.integers(1, 60)), window=window, sinks=sinks)


@st.composite
def odd_specs(draw: st.DrawFn) -> MaskSpec:
    """Any numbers at all: documents in pieces, blocks that interleave, padding in between."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 14)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    number, order, block, ghost = (torch.randint(low, high, shape, generator=generator) for low, high in
                                   [(-1, 3), (0, 8), (0, 6), (0, 2)])  # fmt: skip
    window, sinks = draw(windows)
    spec = MaskSpec(document=number, order=order, block=block, ghost=ghost.bool())
    return replace(spec, window=window, sinks=sinks)
