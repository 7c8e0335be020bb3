"""What a language model recipe holds: the data, the codec, the model, how it is trained and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokvid.config_checks import at_least, finite, is_share, less_than, positive
from tokvid.data.clips import DataConfig, SpriteDataConfig
from tokvid.errors import ConfigError
from tokvid.optimizer import AdamWConfig, OptimizerConfig
from tokvid.runtime import Precision
from tokvid_lm.samplers.next_token import Sampling


@dataclass(frozen=True, kw_only=True)
class ScratchModelConfig:
    """A small model with random weights, and a text tokenizer of ``text_vocab_size`` ids trained on the captions.

    ``architecture`` is ``llama``, or ``qwen3``: a Llama that normalises its queries and keys, which learns sooner.
    ``rope_theta`` sets the longest wavelength of the rotary positions, ``2*pi*rope_theta`` ids; the usual 10,000 wastes
    most of a head on distances that short documents do not have.
    """

    kind: Literal["scratch"] = "scratch"
    architecture: Literal["llama", "qwen3"] = "llama"
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 704
    max_positions: int = 512
    text_vocab_size: int = 1024
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        at_least(
            self, 1, "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_positions"
        )
        positive(self, "rope_theta")
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size must be a multiple of 2*num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads}, {self.num_kv_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainedModelConfig:
    """Any causal language model of transformers with its text tokenizer, by Hub name or folder."""

    kind: Literal["pretrained"] = "pretrained"
    name: str


ModelConfig = ScratchModelConfig | PretrainedModelConfig


@dataclass(frozen=True, kw_only=True)
class CurriculumStage:
    """``steps`` updates that see only the first ``latent_frames`` of every clip, ``batch_size`` documents a pass.

    What comes later in a document changes nothing before it, so a beginning is learned from as it stands.
    """

    steps: int
    latent_frames: int
    batch_size: int

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "latent_frames", "batch_size")


@dataclass(frozen=True, kw_only=True)
class LMTrainingConfig:
    """Every schedule counts steps (optimizer updates), never minutes.

    Learning rates rise linearly over ``warmup_steps`` and then fall to zero at ``steps``, along a line or a cosine.
    ``batch_size`` documents a device and forward pass, ``gradient_accumulation`` passes a step. The stages of a
    ``curriculum`` come first; the rest of ``steps`` sees whole clips. ``prompt_drop`` is the
    share of documents that lose their caption, which guidance needs. ``text_loss_weight`` is what predicting a
    caption's ids counts against a code; 0 scores codes alone. ``precision: auto`` takes bf16 where the machine is
    clearly faster in it. ``deepspeed`` is the path of a DeepSpeed JSON (ZeRO 0 to 2).
    """

    steps: int = 2000
    batch_size: int = 32
    gradient_accumulation: int = 1
    curriculum: tuple[CurriculumStage, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    warmup_steps: int = 100
    schedule: Literal["linear", "cosine"] = "linear"
    gradient_clip: float = 1.0
    precision: Precision = "auto"
    prompt_drop: float = 0.1
    text_loss_weight: float = 0.0
    log_every: int = 10
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    deepspeed: str | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "gradient_accumulation", "log_every", "validate_every")
        at_least(self, 1, "checkpoint_every", "keep_checkpoints")
        positive(self, "gradient_clip")
        less_than(self, "warmup_steps", "steps")
        if sum(stage.steps for stage in self.curriculum) > self.steps:
            raise ConfigError(
                f"the stages of training.curriculum have more steps than the run ({self.steps}): give more"
                " training.steps, or --training.curriculum=[] for none"
            )
        is_share(self, "prompt_drop")
        at_least(self, 0, "text_loss_weight")
        finite(self, "text_loss_weight")
        if self.deepspeed is not None and self.optimizer.kind == "muon":
            raise ConfigError("DeepSpeed cuts parameters into pieces and Muon needs whole matrices: use adamw with it")


@dataclass(frozen=True, kw_only=True)
class LMEvaluationConfig:
    """How clips are generated to be judged: so many, from held-out captions, ``batch_size`` at a time."""

    clips: int = 256
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "clips", "batch_size")
        self.sampling(0)

    def sampling(self, seed: int) -> Sampling:
        """These settings as the sampler takes them; raises ModelError for an impossible one."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            guidance_scale=self.guidance_scale,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class LMRecipe:
    """A complete run. ``codec`` is a trained codec's folder; ``output`` gets ``lm/``, ``log.jsonl`` and checkpoints.

    What is learned of a clip is its caption and its codes, so ``data`` must suit the codec's strides.
    """

    task: Literal["lm"] = "lm"
    seed: int = 0
    output: str
    data: DataConfig = field(default_factory=SpriteDataConfig)
    codec: str
    model: ModelConfig = field(default_factory=ScratchModelConfig)
    template: Literal["rows", "bare"] = "rows"
    training: LMTrainingConfig = field(default_factory=LMTrainingConfig)
    evaluation: LMEvaluationConfig = field(default_factory=LMEvaluationConfig)

    def __post_init__(self) -> None:
        if isinstance(self.data, SpriteDataConfig) and self.evaluation.clips > self.data.held_out_clips:
            raise ConfigError(
                f"evaluation.clips asks for {self.evaluation.clips} held-out captions, data.held_out_clips has"
                f" {self.data.held_out_clips}: lower one or raise the other"
            )
