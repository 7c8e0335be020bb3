"""Which checkpoint a run may go on from: what of the run a checkpoint must agree with, and whether it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokvid.across_processes import found_by_the_first
from tokvid.checkpoint import check_same_run, newest_valid, tell_newest
from tokvid.config import to_mapping
from tokvid.deepspeed_config import read_deepspeed, zero_stage
from tokvid.errors import CheckpointError
from tokvid.processes import is_main_process, world_size
from tokvid.saved_json import read_mapping
from tokvid.universal_checkpoint import is_universal
from tokvid_lm.documents import Documents
from tokvid_lm.trainer import FACTS_FILE
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers import VideoCodec


def run_facts(recipe: LMRecipe, codec: VideoCodec, documents: Documents) -> dict[str, Any]:
    """What a checkpoint must agree with: the data, and the recipe but for where and how often it writes."""
    facts = to_mapping(recipe)
    quiet = {"log_every", "validate_every", "checkpoint_every", "keep_checkpoints"}
    quiet |= {"samples", "loading_workers", "checkpoint_layers"}
    facts["training"] = {name: value for name, value in facts["training"].items() if name not in quiet}
    # What the file says, not what it is called.
    facts["training"]["deepspeed"] = read_deepspeed(recipe.training.deepspeed)
    facts["passes"] = facts["training"].pop("gradient_accumulation") * world_size()
    apart = {"output", "codec", "about", "evaluation", "refinement"}  # how a head draws is nothing it learns
    kept = {name: value for name, value in facts.items() if name not in apart}
    digests = {"codec_id": codec.codec_id, "documents": documents.digest()}
    plain: dict[str, Any] = json.loads(json.dumps(kept | digests))
    return plain


def checkpoint_to_resume(output: Path, facts: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint in ``output``, if there is one; torn ones are named on stderr.

    Raises :class:`CheckpointError` for one that does not agree with :func:`run_facts`.
    """
    newest = found_by_the_first(lambda: newest_valid(output))
    tell_newest(newest, silent=not is_main_process())
    if newest.path is None:
        return None
    if not (newest.path / FACTS_FILE).is_file():
        check_same_run(newest.path, None, facts, others={})
    saved = read_facts(newest.path)
    wrong = sorted(name for name in facts if saved.get(name) != facts[name])
    processes = saved.get("processes")
    if wrong == ["passes"]:
        raise CheckpointError(
            f"{newest.path} was trained with {saved.get('passes')} passes a step in {processes} processes, this run has"
            f" {facts['passes']} in {world_size()}: set training.gradient_accumulation so that they agree"
        )
    others = {"codec_id": "the codecs", "documents": "the clips or their captions"}
    check_same_run(newest.path, saved, facts, others=others)
    parted = zero_stage(facts["training"]["deepspeed"]) > 0
    if parted and processes != world_size() and not is_universal(newest.path):
        raise CheckpointError(
            f"{newest.path} was written by {processes} processes, this run has {world_size()}: run 'tokvid reshape"
            f" {output}' first"
        )
    return newest.path


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint was trained with."""
    return read_mapping(checkpoint / FACTS_FILE, "checkpoint of a language model")
