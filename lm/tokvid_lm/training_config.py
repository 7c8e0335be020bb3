"""What a language model recipe holds: the data, the codec, the model, how it is trained and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokvid.config_checks import at_least, is_line, is_share, less_than, positive
from tokvid.data.clips import DataConfig, SpriteDataConfig
from tokvid.data.dialogues import DialogueDataConfig
from tokvid.diffusion_head import HeadConfig
from tokvid.errors import ConfigError
from tokvid.flow import Refinement
from tokvid.optimizer import AdamWConfig, OptimizerConfig
from tokvid.runtime import Precision
from tokvid_lm.lora import LoRAConfig
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.objectives.video_objective import LossConfig
from tokvid_lm.positions import PositionKind
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.vocabulary import Mode


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
    """Any causal language model of transformers with its text tokenizer, by Hub name or folder.

    With ``lora`` only adapters and the rows of new ids are trained.
    """

    kind: Literal["pretrained"] = "pretrained"
    name: str
    lora: LoRAConfig | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedModelConfig:
    """A saved :class:`~tokvid_lm.VideoLM`, by Hub name or folder, that learns on; all of it, with its codec's ids.

    What it was trained with besides its weights, the optimizer's averages among it, starts anew. ``max_positions`` ids
    (None: as many as before) are what it is to read from now on, which rotary positions alone allow.
    """

    kind: Literal["trained"] = "trained"
    name: str
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.max_positions is not None:
            at_least(self, 1, "max_positions")


ModelConfig = ScratchModelConfig | PretrainedModelConfig | TrainedModelConfig


@dataclass(frozen=True, kw_only=True)
class CurriculumStage:
    """``steps`` updates that see only the first ``latent_frames`` of every clip, ``batch_size`` rows a pass.

    They are seen as clips of that length: an image, then short clips, then long ones.
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
    ``batch_size`` rows a device and forward pass, ``gradient_accumulation`` passes a step. A row is a document, or with
    ``pack`` as many whole documents as fit into so many ids. The stages of a ``curriculum`` come first; the rest of
    ``steps`` sees whole clips. ``mixture`` says what is learned from the clips, in which shares, and ``loss`` what its
    parts count; with ``score_text`` the captions before videos are asked for too. ``prompt_drop`` is the share of
    documents that lose their caption, which guidance needs. ``precision: auto`` takes bf16 where the machine is clearly
    faster in it. At each validation the first process draws ``samples`` held-out captions in the default mode, and
    tensorboard shows them beside their clips; not under ZeRO 3, where no process has the model. ``loading_workers``
    processes write documents ahead (0: none), which a fast device needs and which changes no number. ``compile`` puts
    the layers through torch.compile, which pays on a GPU: the same numbers up to rounding. Its rows are all padded to
    ``pack`` ids, so that stages of one batch size share a program. ``checkpoint_layers`` computes the layers again in
    the backward pass in place of keeping what lies between: the same numbers for a third more arithmetic and a fraction
    of the memory. ``deepspeed`` is the path of a DeepSpeed JSON, or the name of one that comes with tokvid (``zero2``).
    """

    steps: int = 2000
    batch_size: int = 32
    gradient_accumulation: int = 1
    pack: int = 0
    mixture: tuple[MixtureConfig, ...] = (MixtureConfig(),)
    loss: LossConfig = field(default_factory=LossConfig)
    score_text: bool = False
    curriculum: tuple[CurriculumStage, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    warmup_steps: int = 100
    schedule: Literal["linear", "cosine"] = "linear"
    gradient_clip: float = 1.0
    precision: Precision = "auto"
    prompt_drop: float = 0.1
    log_every: int = 10
    validate_every: int = 500
    samples: int = 2
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    loading_workers: int = 0
    compile: bool = False
    checkpoint_layers: bool = False
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
        at_least(self, 0, "pack", "samples", "loading_workers")
        if self.compile and not self.pack:
            raise ConfigError(
                "training.compile makes one program for rows of one length: set training.pack, to the length of the"
                " longest document at least"
            )
        if not self.mixture:
            raise ConfigError("training.mixture is empty: a run learns something, {objective: next_token} say")
        weights: dict[str, float] = {}
        for entry in self.mixture:
            if entry.draws_video and weights.setdefault(entry.mode, entry.weight) != entry.weight:
                raise ConfigError(f"all shares of the objective {entry.mode} count alike: give them one weight")
        if self.deepspeed is not None and self.optimizer.kind == "muon":
            raise ConfigError(
                "DeepSpeed cuts parameters into pieces and Muon needs whole matrices:"
                " use optimizer: {kind: adamw} with it"
            )


@dataclass(frozen=True, kw_only=True)
class LMEvaluationConfig:
    """How clips are generated to be judged: so many, from held-out captions, ``batch_size`` at a time.

    ``sampling`` says how in each mode; a mode that was trained and is not named is drawn with the usual settings. The
    model is saved with them, the first mode is its default.
    """

    clips: int = 256
    sampling: tuple[Sampling, ...] = ()
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "clips", "batch_size")


@dataclass(frozen=True, kw_only=True)
class ShardDataConfig:
    """Clips that are codes already: a folder that ``tokvid tokenize`` wrote, of the codec that the recipe names."""

    kind: Literal["shards"] = "shards"
    path: str


LMDataConfig = DataConfig | ShardDataConfig


@dataclass(frozen=True, kw_only=True)
class LMRecipe:
    """A complete run. ``codec`` is a trained codec's folder; ``output`` gets ``lm/``, ``log.jsonl`` and checkpoints.

    What is learned of a clip is its caption and its codes, so ``data`` must suit the codec's strides. ``template``,
    ``layout`` and ``positions`` say how codes stand in a document, ``factors`` into which digits a large codebook is
    split, and ``num_actions`` how many different actions clips have (0: none). ``dialogues`` are what the shares of the
    objective ``chat`` are about. With a continuous codec ``head`` is what latents are drawn with, and ``refinement``
    how; the mixture has then the objectives ``frame``, from text alone, and ``text``. ``about`` is what the model tells
    people who talk with it that it was trained on, in a line.
    """

    task: Literal["lm"] = "lm"
    seed: int = 0
    output: str
    data: LMDataConfig = field(default_factory=SpriteDataConfig)
    codec: str
    about: str | None = None
    model: ModelConfig = field(default_factory=ScratchModelConfig)
    template: Literal["rows", "bare", "emu3"] = "rows"
    layout: Literal["raster", "frame", "random"] = "raster"
    positions: PositionKind = "1d"
    factors: tuple[int, ...] = ()
    num_actions: int = 0
    dialogues: DialogueDataConfig | None = None
    head: HeadConfig | None = None
    refinement: Refinement = field(default_factory=Refinement)
    training: LMTrainingConfig = field(default_factory=LMTrainingConfig)
    evaluation: LMEvaluationConfig = field(default_factory=LMEvaluationConfig)

    def __post_init__(self) -> None:
        is_line(self, "about")
        if isinstance(self.data, SpriteDataConfig) and self.evaluation.clips > self.data.held_out_clips:
            raise ConfigError(
                f"evaluation.clips asks for {self.evaluation.clips} held-out captions, data.held_out_clips has"
                f" {self.data.held_out_clips}: lower one or raise the other"
            )
        if self.chats != (self.dialogues is not None):
            raise ConfigError(
                "training.mixture has the objective chat, whose dialogues are not given: set dialogues, {kind: sprites}"
                " say"
                if self.chats
                else "dialogues are given, but training.mixture has no share of the objective chat: add one, or leave"
                " dialogues out"
            )
        if self.head is not None:
            self._check_continuous()
        elif self.refinement != Refinement():
            raise ConfigError("refinement says how a head draws, and the recipe has no head: leave it out, or set head")
        adapted = isinstance(self.model, PretrainedModelConfig) and self.model.lora is not None
        if adapted and not isinstance(self.training.optimizer, AdamWConfig):
            raise ConfigError(
                "model.lora is trained with adamw (Muon is for whole matrices): set training.optimizer.kind"
            )
        if self.chats and self.num_actions:
            raise ConfigError("dialogues have no actions: leave num_actions or the objective chat out")
        trained = set(self._modes())
        if isinstance(self.data, SpriteDataConfig) and self.dialogues is not None:
            ours = (self.data.size, self.data.num_frames, self.data.fps)
            theirs = (self.dialogues.size, self.dialogues.num_frames, self.dialogues.fps)
            if ours != theirs:
                raise ConfigError(
                    f"dialogues are about clips of the size, length and rate that data has, {ours}, got {theirs}: set"
                    " both alike"
                )
        guided = [sampling.mode for sampling in self.evaluation.sampling if sampling.guided]
        if guided and not self.knows_null_prompt:
            raise ConfigError(
                f"evaluation.sampling guides in the mode {guided[0]}, for which captions must sometimes be dropped: set"
                " training.prompt_drop (0.1, say) with a share of videos from captions, or guidance_scale to 1"
            )
        captions = any(entry.objective == "caption" for entry in self.training.mixture)
        for sampling in self.evaluation.sampling:
            if sampling.candidates > 1 and not captions:
                raise ConfigError(
                    f"evaluation.sampling has candidates in the mode {sampling.mode}, among which the model chooses by"
                    " their captions: give {objective: caption} a share of training.mixture, or leave candidates out"
                )
            if sampling.mode not in trained:
                raise ConfigError(
                    f"evaluation.sampling has the mode {sampling.mode}, which training.mixture leaves out"
                )

    def _check_continuous(self) -> None:
        """Raise :class:`ConfigError` for what a model of latents does not do."""
        for entry in self.training.mixture:
            if entry.objective not in ("frame", "text") or entry.task != "text_to_video":
                raise ConfigError(
                    f"training.mixture has the objective {entry.objective} ({entry.task}), but with a head latents are"
                    " drawn frame by frame from text: use {objective: frame}, and {objective: text} beside it"
                )
        lora = isinstance(self.model, PretrainedModelConfig) and self.model.lora is not None
        loss, plain = self.training.loss, Sampling()
        wrong: dict[str, object] = {"num_actions": self.num_actions, "factors": self.factors, "model.lora": lora}
        wrong |= {"data.kind: shards": isinstance(self.data, ShardDataConfig)}
        wrong |= {"training.loss.sliced: false": not loss.sliced}
        wrong |= {"training.loss.label_smoothing": loss.label_smoothing, "training.loss.z_loss": loss.z_loss}
        for sampling in self.evaluation.sampling:
            for name in ("top_k", "top_p", "choice_temperature", "candidates", "guides_known"):
                wrong[f"evaluation.sampling.{name}"] = getattr(sampling, name) != getattr(plain, name)
        for name, value in wrong.items():
            if value:
                raise ConfigError(f"{name} is not for models that draw latents with a head: leave it out")

    @property
    def chats(self) -> bool:
        """Whether the model learns to talk."""
        return any(entry.objective == "chat" for entry in self.training.mixture)

    @property
    def knows_null_prompt(self) -> bool:
        """Whether some videos are drawn from nothing, which guidance compares with."""
        return self.training.prompt_drop > 0 and any(entry.draws_video for entry in self.training.mixture)

    @property
    def sampling(self) -> tuple[Sampling, ...]:
        """How clips are drawn in each mode that is trained; those that the evaluation names first."""
        given = {sampling.mode: sampling for sampling in self.evaluation.sampling}
        return (*given.values(), *(Sampling(mode=mode) for mode in self._modes() if mode not in given))

    def _modes(self) -> dict[Mode, None]:
        """In which modes videos are drawn, in the order of the mixture."""
        shares = (entry for entry in self.training.mixture if entry.draws_video or entry.objective == "chat")
        return dict.fromkeys(entry.mode for entry in shares)
