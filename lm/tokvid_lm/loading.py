"""Loading causal language models and text tokenizers with transformers, whole or not at all.

What is damaged, missing or of another shape is one line that names the folder; transformers would raise whatever its
parts raise, or fill what is missing with random numbers. Nothing here knows video.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from tokvid.atomic import write_text
from tokvid.errors import CheckpointError, ModelError, TokvidError
from tokvid.saved_json import read_mapping
from tokvid_lm.positions import PositionKind

_LOG = logging.getLogger(__name__)
_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_MARK = "tokvid_"  # before the model_type of what a plain load would compute wrongly
_LONGEST = 240  # of what transformers says, in characters


def load_causal_lm(
    name: str | Path, *, dtype: torch.dtype | None = None, exact: bool = False, positions: PositionKind = "1d"
) -> PreTrainedModel:
    """A causal language model by name or folder, in ``dtype`` or in the one it was saved in; its code is never run.

    ``name`` may also be a GGUF file, whose weights become plain numbers; its text tokenizer is in that file, too. What
    :func:`mark_model_type` has marked loads with the same ``positions`` and with no others. Raises
    :class:`ModelError` for a model that cannot be loaded, or lacks weights, or has some of another shape; with
    ``exact`` also for one with weights that are not the model's.
    """
    try:
        with _guarded("causal language model", name):
            place, gguf = _gguf(name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                config=None if positions == "1d" else _unmarked_config(name, positions),
                dtype=dtype or "auto",
                trust_remote_code=False,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **gguf,
            )
    except ModelError as error:
        if f"model type `{_MARK}" not in str(error):
            raise
        raise ModelError(
            f"{str(name)!r} is no plain model: it was saved with positions that transformers does not know; load it"
            " with VideoLM.from_pretrained"
        ) from error
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    other_shape = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    faults = [("missing", missing), ("of another shape", other_shape), ("unknown", unknown if exact else [])]
    said = [f"{len(names)} {word} (first: {names[0]})" for word, names in faults if names]
    if said:
        raise ModelError(
            f"the weights in {str(name)!r} do not fit its config.json: tensors {', '.join(said)}; save the model again"
        )
    if gguf:
        model = _plain(model)
    if unknown:
        _LOG.warning("%s: %d tensors are not the model's and left out (first: %s)", name, len(unknown), unknown[0])
    return model


def mark_model_type(folder: Path, positions: PositionKind) -> None:
    """Name the ``positions`` in the ``model_type`` of a model saved in ``folder``, so that a plain load fails and is
    not silently wrong; nothing for ``1d``."""
    if positions == "1d":
        return
    path = folder / _CONFIG
    facts = read_mapping(path, "model")
    kind = str(facts.get("model_type"))
    if kind.startswith(_MARK):
        raise ModelError(f"{path} is marked already: its model_type is {kind!r}; save the model again")
    text = json.dumps({**facts, "model_type": f"{_MARK}{positions}_{kind}"}, indent=2, sort_keys=True) + "\n"
    write_text(path, text)


def _unmarked_config(name: str | Path, positions: PositionKind) -> PreTrainedConfig:
    """The configuration of a marked model as it was before, in memory alone."""
    facts, _ = PreTrainedConfig.get_config_dict(str(name))
    marked = str(facts.get("model_type"))
    kind = marked.removeprefix(f"{_MARK}{positions}_")
    if kind == marked or kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{str(name)!r} was not saved with positions {positions!r}: the model_type in its {_CONFIG} is {marked!r}"
        )
    config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict({**facts, "model_type": kind})
    return config


def load_config(name: str | Path) -> PreTrainedConfig:
    """The configuration of a causal language model, without its weights; :class:`ModelError` where there is none."""
    with _guarded("configuration", name):
        place, gguf = _gguf(name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **gguf)
    return config


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A text tokenizer by name or folder; raises :class:`ModelError` for one that cannot be loaded."""
    with _guarded("text tokenizer", name):
        place, gguf = _gguf(name)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **gguf)
    return tokenizer


def _gguf(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Where transformers shall look, and for which file, if ``name`` is one of that kind."""
    path = Path(name)
    if path.suffix.lower() != ".gguf":
        return str(name), {}
    if not path.is_file():
        raise ModelError(f"{name} is no file: name a GGUF file on this machine, or a folder, or a model on the Hub")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError("reading a GGUF file needs gguf: pip install 'tokvid[gguf]'") from error
    return str(path.parent), {"gguf_file": path.name}


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """A model read from a GGUF file without the mark of it, which transformers refuses to save."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain: PreTrainedModel = type(model)(config)
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(model.dtype)  # parameters alone: rotary frequencies stay float32
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.eval()
    return plain


def load_saved_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text tokenizer of a folder exactly as it was saved.

    For some model types (qwen2, phi3, ...) ``AutoTokenizer`` overrules the class that was saved, and the class of its
    choice may add a token of its own with the next free id: the id of our first code.
    """
    saved_as = read_mapping(folder / _TOKENIZER_CONFIG, "VideoLM").get("tokenizer_class")
    if not isinstance(saved_as, str):
        raise CheckpointError(f"{folder / _TOKENIZER_CONFIG} names no tokenizer_class; save the model again")
    if saved_as in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        with _guarded("text tokenizer", folder):
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(str(folder))
        return tokenizer
    return load_tokenizer(folder)


@contextmanager
def _guarded(what: str, name: str | Path) -> Iterator[None]:
    """One line for whatever goes wrong inside, and none of transformers' own; memory that does not suffice is told so.

    Damage shows as nearly any error: of safetensors, of the text tokenizer's reader, of a configuration's class.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (TokvidError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"cannot load a {what} from {str(name)!r}: {_told(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _told(error: Exception) -> str:
    """What an error says, in a line. One of another kind than a file or value that is not there speaks of damage."""
    said = " ".join(str(error).split())
    said = said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
    if isinstance(error, OSError | ValueError) and said:
        return said
    return f"{type(error).__name__}: {said}; its files seem damaged: copy or save them again"
