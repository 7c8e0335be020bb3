"""GPUs, and what a model takes of their memory; shared by the plans of codecs and of language models."""

from __future__ import annotations

from dataclasses import dataclass

from tokvid.config_checks import at_least, finite, positive
from tokvid.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """``peak`` operations a second in dense bfloat16 and ``memory`` in bytes, as its maker says."""

    peak: float
    memory: int


GPUS = {
    "a100": Gpu(peak=312e12, memory=80 * 2**30),
    "b200": Gpu(peak=2250e12, memory=180 * 2**30),
    "h100": Gpu(peak=989e12, memory=80 * 2**30),
    "h200": Gpu(peak=989e12, memory=141 * 2**30),
    "l40s": Gpu(peak=362e12, memory=48 * 2**30),
    "rtx4090": Gpu(peak=165e12, memory=24 * 2**30),
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """``count`` GPUs of a kind, which reach ``utilisation`` of their peak; ``price`` is of one for an hour."""

    gpu: str = "h100"
    count: int = 1
    utilisation: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"unknown GPU {self.gpu!r}: {did_you_mean(self.gpu, GPUS)}")
        at_least(self, 1, "count")
        positive(self, "utilisation")
        if self.utilisation > 1:
            raise ConfigError(f"utilisation is a share of the peak, at most 1, got {self.utilisation}")
        if self.price is not None:
            at_least(self, 0, "price")
            finite(self, "price")


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """What a GPU holds of a model between and during steps, but for what lies between the passes of a step."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def state_bytes(
    parameters: int,
    trained: int,
    *,
    stage: int | None,
    gpus: int,
    moments: int | None = None,
    bf16: bool = True,
    accumulates: bool = False,
) -> StateBytes:
    """Bytes a GPU of a model of ``parameters`` of which ``trained`` learn.

    ``stage`` None is torch alone: float32 weights and gradients (in several processes their buckets, too), and the
    optimizer's ``moments``, numbers in float32 (None: two a trained parameter, as AdamW). Else DeepSpeed with weights
    and gradients in bfloat16, or in float32 without ``bf16``, beside moments and (of float32 from stage 1 on) float32
    weights of the optimizer; stage 1 shares these among GPUs, 2 the gradients too, 3 all (Rajbhandari et al. 2020,
    arXiv 1910.02054). DeepSpeed lets a gradient go once it is summed, in stage 1 too; in stage 2 a run that
    ``accumulates`` over passes keeps the sum beside it.
    """
    moments = 2 * trained if moments is None else moments
    if stage is None:
        return StateBytes(weights=4 * parameters, gradients=(4 if gpus == 1 else 8) * trained, optimizer=4 * moments)
    parts = [gpus if stage >= least else 1 for least in (3, 1, 1)]
    width, copy = (2, 4) if bf16 else (4, 4 if stage else 0)
    return StateBytes(
        weights=-(-width * parameters // parts[0]),
        gradients=-(-width * trained // parts[1]) * (2 if accumulates and stage == 2 else 1),
        optimizer=-(-(copy * trained + 4 * moments) // parts[2]),
    )


def memory_row(state: StateBytes, kept: int, *, stage: int | None, gpu: str) -> dict[str, object]:
    """A line of a plan: bytes a GPU in a ZeRO ``stage`` (None: torch alone), with ``kept`` between the passes."""
    total = state.total + kept
    return {
        "zero": stage,
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "between_passes": kept,
        "total": total,
        "fits": total <= GPUS[gpu].memory,
    }
