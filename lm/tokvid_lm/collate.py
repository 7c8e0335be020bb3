"""Planned batches to tensors: documents side by side in rows, padded on the right. Knows no language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tokvid.errors import ShapeError
from tokvid.processes import leave_group
from tokvid_lm.batch_plan import Batch
from tokvid_lm.document import IGNORED, TEXT, Document
from tokvid_lm.documents import Documents
from tokvid_lm.positions import Coordinates, PositionScheme

_PADDING = {"labels": IGNORED, "frame": TEXT}
_COORDINATES = ("index", "content", "cell", "start")


class Collator:
    """A planned batch to the arguments of a :class:`~tokvid_lm.objectives.video_objective.VideoObjective`.

    Rows are padded to ``width`` ids; None: to the longest of the batch.
    """

    def __init__(
        self, documents: Documents, *, pad_id: int, positions: PositionScheme, width: int | None = None
    ) -> None:
        self.width = width
        self.documents = documents
        self.pad_id = pad_id
        self.positions = positions

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The tensors of one batch (the Trainer hands it over as a list of one)."""
        if get_worker_info() is not None:
            leave_group()
        (batch,) = batches
        if not batch.samples:
            raise ShapeError("a batch needs at least one document, got none")
        rows = [[self.documents.document(sample, batch.latent_frames) for sample in row] for row in batch.rows]
        return collate(rows, pad_id=self.pad_id, positions=self.positions, width=self.width)


def collate(
    rows: Sequence[Sequence[Document]], *, pad_id: int, positions: PositionScheme, width: int | None = None
) -> dict[str, Tensor]:
    """Documents, several a row, as tensors ``[B,S]`` by the names of their arrays, and two more.

    ``document`` numbers the documents of a row, -1 is padding; ``position_ids`` is what the model takes. Rows are
    ``width`` long, or as long as the longest.
    """
    width = width or max(sum(map(len, row)) for row in rows)
    columns: dict[str, Tensor] = {}
    for field in fields(rows[0][0]):
        sample = getattr(rows[0][0], field.name)
        fill = pad_id if field.name == "ids" else _PADDING.get(field.name, 0)
        array = np.full((len(rows), width, *sample.shape[1:]), fill, sample.dtype)
        for line, row in zip(array, rows, strict=True):
            joined = np.concatenate([getattr(document, field.name) for document in row])
            line[: len(joined)] = joined
        columns[field.name] = torch.from_numpy(array)
    document = np.full((len(rows), width), -1)
    for line, row in zip(document, rows, strict=True):
        numbers = np.repeat(np.arange(len(row)), [len(each) for each in row])
        line[: len(numbers)] = numbers
    place = Coordinates(
        index=columns["index"], cell=columns["cell"], start=columns["start"], is_content=columns["content"]
    )
    kept = {name: tensor for name, tensor in columns.items() if name not in (*_COORDINATES, "ids")}
    return {
        "input_ids": columns["ids"],
        **kept,
        "document": torch.from_numpy(document),
        "position_ids": positions.of(place),
    }
