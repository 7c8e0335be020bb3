"""A diffusion head in a folder: what it is as JSON, its weights as safetensors, beside the model that it belongs to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_model, save_file

from tokvid.atomic import atomic_path, write_text
from tokvid.config import from_mapping, to_mapping
from tokvid.diffusion_head import DiffusionHead
from tokvid.errors import CheckpointError, ConfigError
from tokvid.flow import Refinement
from tokvid.saved_json import read_mapping
from tokvid.weights import digest_of_weights

_FORMAT_VERSION = 1
Head = TypeVar("Head", bound=DiffusionHead)
How = TypeVar("How", bound=Refinement)


def has_head(folder: Path, name: str) -> bool:
    """Whether there is a head called ``name``."""
    return _files(folder, name)[0].exists()


def save_head(folder: Path, name: str, head: DiffusionHead, refinement: Refinement, **facts: Any) -> None:
    """Write a head, how it is drawn from, and what else is said of it."""
    about, weights = _files(folder, name)
    with atomic_path(weights) as beside:
        # Copies: DeepSpeed keeps weights as views of one large buffer, which would not be saved.
        weights_of = {key: tensor.detach().cpu().clone() for key, tensor in head.state_dict().items()}
        save_file(weights_of, str(beside), metadata={"format": "pt"})
    parts = {"head": to_mapping(head.config), "refinement": to_mapping(refinement)}
    whole = {"format_version": _FORMAT_VERSION, **parts, **facts}
    write_text(about, json.dumps(whole, indent=2) + "\n")


def load_head(
    folder: Path, name: str, *, what: str, kind: type[Head], how: type[How], wanted: Sequence[str] = ()
) -> tuple[Head, How, dict[str, Any]] | None:
    """What :func:`save_head` wrote, None where there is none; :class:`CheckpointError` for anything else.

    ``what`` is the word for it in complaints, ``kind`` its class, ``how`` that of how it is drawn from, ``wanted`` must
    be among what else is said of it.
    """
    about, weights = _files(folder, name)
    if not has_head(folder, name):
        return None
    facts = read_mapping(about, what)
    if facts.get("format_version") != _FORMAT_VERSION:
        raise CheckpointError(
            f"{about} has format_version {facts.get('format_version')!r}, this tokvid reads {_FORMAT_VERSION}: update"
            " it"
        )
    missing = [key for key in ("head", "refinement", *wanted) if key not in facts]
    if missing:
        raise CheckpointError(f"{about} lacks {', '.join(missing)}; save the model again")
    try:
        head = kind(from_mapping(kind.config_kind, facts["head"], where="head"))
        refinement = from_mapping(how, facts["refinement"], where="refinement")
    except ConfigError as error:
        raise CheckpointError(f"{about}: {error}") from error
    try:
        load_model(head, str(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{weights} does not hold the weights of this head: {error}") from error
    if not all(math.isfinite(float(parameter.detach().sum())) for parameter in head.parameters()):
        raise CheckpointError(f"{weights} holds weights that are not finite")
    return head.eval(), refinement, facts


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    """What a head is, and its weights."""
    return folder / f"{name}.json", folder / f"{name}.safetensors"


def drawn_by(head: DiffusionHead, refinement: Refinement) -> dict[str, Any]:
    """What drew, for the metadata of a video: which head, by a digest of its weights, and how."""
    return {"head_sha256": digest_of_weights(head.state_dict()), **to_mapping(refinement)}
