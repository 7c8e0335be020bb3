"""Next-token sampling: one id per row and step, with a key-value cache, guidance and a grammar.

Conditional and unconditional rows of classifier-free guidance run as one batch. Only the columns that the grammar
allows are looked at. The loop knows ids; what they mean is the business of its caller.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.errors import ModelError
from tokvid_lm.grammar import Grammar
from tokvid_lm.guidance import guide
from tokvid_lm.noise import uniform
from tokvid_lm.samplers.cache import reserve_cache


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an id is drawn from logits.

    ``temperature`` > 0 divides the logits (``top_k=1`` is greedy). ``top_k`` >= 1 and ``top_p`` in (0, 1] keep the
    likeliest ids; None keeps all. ``guidance_scale`` as in :mod:`tokvid_lm.guidance`.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError(f"temperature must be above 0, got {self.temperature}; for greedy use top_k=1")
        if self.top_k is not None and self.top_k < 1:
            raise ModelError(f"top_k must be at least 1, got {self.top_k}; to keep all ids leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ModelError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not math.isfinite(self.guidance_scale):
            raise ModelError(f"guidance_scale must be finite, got {self.guidance_scale}; 1.0 is off")

    def override(
        self,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """These settings with the given ones in their place. None leaves one; ``top_k`` 0 and ``top_p`` 1 keep all."""
        return Sampling(
            temperature=self.temperature if temperature is None else temperature,
            top_k=self.top_k if top_k is None else top_k or None,
            top_p=self.top_p if top_p is None else None if top_p == 1.0 else top_p,
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
            seed=self.seed if seed is None else seed,
        )

    @property
    def guided(self) -> bool:
        """Whether unconditional rows are needed."""
        return self.guidance_scale != 1.0


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
    """Draw a column, int64 ``[rows]``, from logits ``[rows, columns]`` with noise ``[rows]`` in [0, 1).

    The noise goes through the inverse of the cumulative distribution: one number a row, whatever the number of
    columns. Columns at minus infinity are never drawn.
    """
    if sampling.top_k == 1:
        return logits.argmax(1)
    # Subtracted first, so that a tiny temperature cannot overflow.
    scaled = (logits.float() - logits.float().amax(1, keepdim=True)) / sampling.temperature
    columns: Tensor | None = None
    if sampling.top_k is not None or sampling.top_p is not None:
        kept = logits.shape[1] if sampling.top_k is None else min(sampling.top_k, logits.shape[1])
        scaled, columns = scaled.topk(kept, dim=1)
    probabilities = scaled.softmax(1)
    if sampling.top_p is not None:
        before = probabilities.cumsum(1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        probabilities[:, 0] = scaled.softmax(1)[:, 0]  # the likeliest stays, however small top_p
    # float32 sums drift over a large vocabulary; MPS has no float64.
    exact = probabilities if probabilities.device.type == "mps" else probabilities.double()
    cumulative = exact.cumsum(1)
    target = noise.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[1] - 1)
    return (choice if columns is None else columns.gather(1, choice)).squeeze(1)


@torch.inference_mode()
def sample_next_token(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    grammar: Grammar,
    sampling: Sampling,
    *,
    num_steps: int,
    first_step: int = 0,
    null_prompts: Sequence[Tensor] | None = None,
    sample_indices: Tensor | None = None,
    autocast: torch.dtype | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Draw up to ``num_steps`` ids for each prompt, int64 ``[rows, n]``.

    ``prompts`` are int64 ``[length]``, of any lengths; ``null_prompts`` their unconditional twins, needed when
    guidance is on. ``first_step`` is the step of the grammar at which the prompts end. Noise is a function of the
    seed, of ``sample_indices`` ``[rows]`` (default 0, 1, ...) and of the step alone. ``n`` is less than
    ``num_steps`` when all rows finished before; finished rows are filled with the grammar's ``pad_id``.
    Raises :class:`ModelError` when prompt and steps do not fit the context, or logits are NaN.
    """
    _check_prompts(prompts, null_prompts, sampling, num_steps)
    rows = len(prompts)
    both = [*prompts, *(null_prompts or [])] if sampling.guided else list(prompts)
    check_context(model, max(len(prompt) for prompt in both) + num_steps - 1)
    if sample_indices is None:
        sample_indices = torch.arange(rows)
    device = model.device
    steps = torch.arange(first_step, first_step + num_steps)
    noise = uniform(sampling.seed, sample_indices.cpu()[:, None], steps[None, :]).to(device)
    end_ids = grammar.end_ids.to(device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    emitted: list[Tensor] = []
    with _evaluating(model), _autocast(device, autocast):
        stepper = _Stepper(model, both, num_steps, use_cache=use_cache, stored_as=autocast)
        ids: Tensor | None = None
        for step in range(num_steps):
            low, high, mask = grammar.columns(first_step + step)
            logits = stepper.step(ids)[:, low:high].float()
            if sampling.guided:
                logits = guide(logits[:rows], logits[rows:], sampling.guidance_scale)
            if bool(logits.isnan().any()):
                raise ModelError(f"the model's logits are NaN at step {step}; its weights are broken or overflow")
            if mask is not None:
                logits = logits.masked_fill(~mask.to(device), float("-inf"))
            drawn = draw(logits, noise[:, step], sampling) + low
            drawn = drawn.masked_fill(finished, grammar.pad_id)
            emitted.append(drawn)
            if len(end_ids):
                finished = finished | torch.isin(drawn, end_ids)
                if bool(finished.all()):
                    break
            ids = torch.cat([drawn, drawn]) if sampling.guided else drawn
    return torch.stack(emitted, dim=1)


def check_context(model: PreTrainedModel, length: int) -> None:
    """Raise :class:`ModelError` when the model cannot see ``length`` positions."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ModelError(
            f"prompt and answer need {length} positions, but the model's context has {limit};"
            " shorten the prompt, or ask for fewer frames, a smaller picture or fewer new tokens"
        )


class _Stepper:
    """Feeds left-padded rows to a model; holds the cache, the mask and the positions."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Tensor],
        num_steps: int,
        *,
        use_cache: bool,
        stored_as: torch.dtype | None = None,
    ) -> None:
        accepted = inspect.signature(model.forward).parameters
        if "past_key_values" not in accepted:
            raise ModelError(f"{type(model).__name__} has no key-value cache; tokvid cannot sample from it")
        self._model = model
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._takes_positions = "position_ids" in accepted
        longest = max(len(prompt) for prompt in prompts)
        self._ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros(len(prompts), longest + num_steps, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            self._ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        self._ids, self._mask = self._ids.to(model.device), mask.to(model.device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._seen = 0
        self._cache = reserve_cache(model.config, longest + num_steps, stored_as=stored_as) if use_cache else None

    def step(self, ids: Tensor | None) -> Tensor:
        """The logits ``[rows, vocabulary]`` after the prompts (``ids`` None) or after one more id per row."""
        if ids is not None:
            new = ids.unsqueeze(1)
            self._ids = new if self._cache is not None else torch.cat([self._ids, new], dim=1)
        start = self._seen if self._cache is not None else 0
        self._seen = start + self._ids.shape[1]
        arguments: dict[str, Any] = dict(self._extra)
        if self._takes_positions:
            arguments["position_ids"] = self._positions[:, start : self._seen]
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask[:, : self._seen],
            past_key_values=self._cache,
            use_cache=self._cache is not None,
            **arguments,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _check_prompts(
    prompts: Sequence[Tensor], null_prompts: Sequence[Tensor] | None, sampling: Sampling, num_steps: int
) -> None:
    if not prompts or num_steps < 1:
        raise ModelError(f"sampling needs a prompt and a step, got {len(prompts)} prompts and {num_steps} steps")
    if any(prompt.ndim != 1 or len(prompt) == 0 for prompt in [*prompts, *(null_prompts or [])]):
        raise ModelError("every prompt needs at least one id; this text tokenizer adds no start id of its own")
    if sampling.guided and (null_prompts is None or len(null_prompts) != len(prompts)):
        raise ModelError("guidance needs one unconditional prompt for each prompt; guidance_scale=1.0 is off")


class _evaluating(AbstractContextManager[None]):  # noqa: N801  (reads as a word in its with-statement)
    """The model in evaluation mode, and back to what it was."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._training = model.training

    def __enter__(self) -> None:
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        self._model.train(self._training)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
