"""What a recipe may say. Adding a field is adding one line here.

Defaults of `DistillConfig` are the paper's ([D-RAE] Table 8, arXiv 2606.15553). A class may
define `contradictions`, which names fields that are fine by themselves but not together.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from driftrae_cli.config.fields import REQUIRED, Contradiction, section, setting

Precision = Literal["auto", "float32", "bf16"]
Storage = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Real pictures whose latents are the positives."""

    source: str = setting(
        REQUIRED, "--data: 'shapes', pictures (folder, .tar or .parquet) or a latent cache"
    )
    per_class: int | None = setting(None, "pictures of each class; null takes all", min=2)
    seed: int = setting(0, "which shapes are drawn; nothing else has a use for it", min=0)
    class_map: str | None = setting(
        None, "file with lines 'class number'; by default class folders count in order of name"
    )
    flip: bool = setting(False, "add every picture mirrored")
    max_bad: int = setting(
        10, "unreadable pictures to skip before the run stops", min=0, may_change=True
    )
    workers: int | None = setting(
        None, "processes that decode; by default as many as cores", min=0, may_change=True
    )
    latents: Literal["auto", "memory", "stream"] = setting(
        "auto", "all in memory, or as they are needed; auto is memory for up to 4 GiB"
    )


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """The drifting field ([D-RAE] eq. 5 and 11)."""

    softmax: Literal["single", "joint"] = setting(
        "single", "over samples only, or also over the generated index as in the original"
    )
    perturb: bool = setting(True, "evaluate the field beside each generated sample")
    normalize: Literal["token", "batch", "none"] = setting(
        "token", "unit length per token, or divide by the batch's root mean square, or neither"
    )
    group: tuple[int | Literal["all"], ...] = setting(
        (1,), "tokens that drift as one; several sizes are summed", min=1
    )
    temperatures: tuple[float, ...] = setting(
        (0.02, 0.05, 0.2), "softmax temperatures, in mean distances; losses are averaged", above=0
    )


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Samples of one step; the three counts are per class."""

    classes: int = setting(32, "different classes", min=1)
    positives: int = setting(256, "real latents", min=1)
    grad_negatives: int = setting(64, "generated latents that carry gradient", min=1)
    detached_negatives: int = setting(192, "generated latents that only repel", min=0)
    micro_batch: int | Literal["auto"] | None = setting(
        "auto",
        "latents in the network at once; auto is what fits, null all of the step",
        min=1,
        may_change=True,
    )

    def contradictions(self) -> list[Contradiction]:
        if self.grad_negatives + self.detached_negatives < 2:
            reason = "must be at least 2 together, or no sample has another one to repel it"
            return [Contradiction(("grad_negatives", "detached_negatives"), reason)]
        return []


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the devices are used; changes time and memory, and numbers by rounding only."""

    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "with torchrun: every process holds all weights, or a share of them",
        may_change=True,
    )
    recompute: bool = setting(
        False, "compute blocks again going backward instead of keeping them", may_change=True
    )
    compile: bool = setting(False, "translate the network with torch.compile", may_change=True)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Scoring the averaged student while it trains."""

    every: int = setting(0, "steps between two scores; 0 for none", min=0, may_change=True)
    num: int = setting(
        5000, "pictures drawn, less what does not divide by the classes", min=2, may_change=True
    )
    features: tuple[str, ...] = setting(
        ("inception",), "networks that judge, as of eval-fid --features", may_change=True
    )
    reference: str | None = setting(
        None, "what they are compared with, as eval-fid --ref; by default data.source",
        may_change=True,
    )  # fmt: skip


def _falling(final: float, start: float) -> list[Contradiction]:
    if final <= start:
        return []
    reason = "the rate falls, so the final one cannot be larger"
    return [Contradiction(("final_learning_rate", "learning_rate"), reason)]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a linearly falling rate, and the average of the weights."""

    steps: int = setting(10_000, "updates", min=1, may_change=True)
    learning_rate: float = setting(3e-5, "rate at the start", above=0)
    final_learning_rate: float = setting(3e-7, "rate at the end", min=0)
    beta1: float = setting(0.9, "decay of AdamW's first moment", min=0, max=0.999999)
    beta2: float = setting(0.95, "decay of AdamW's second moment", min=0, max=0.999999)
    weight_decay: float = setting(0.0, "AdamW's weight decay", min=0)
    clip_norm: float = setting(1.0, "largest gradient norm", above=0)
    ema_decay: float = setting(0.9995, "decay of the weight average", min=0, max=0.999999)
    ema_start: float = setting(0.5, "its decay at step 0", above=0, max=0.999999)
    ema_warmup: int = setting(1000, "steps to reach ema_decay; 0 starts with it", min=0)

    def contradictions(self) -> list[Contradiction]:
        problems = _falling(self.final_learning_rate, self.learning_rate)
        if self.ema_start > self.ema_decay and self.ema_warmup:
            reason = "the decay rises, so it cannot start above its end; lower ema_start"
            problems.append(Contradiction(("ema_start", "ema_decay"), reason))
        return problems


@dataclass(frozen=True, kw_only=True)
class DistillLogConfig:
    """How often something is written, in steps where nothing else is said."""

    metrics_every: int = setting(10, "a line in metrics.jsonl", min=1, may_change=True)
    preview_every: int = setting(500, "a grid of pictures; 0 for none", min=0, may_change=True)
    checkpoint_every: int = setting(500, "a checkpoint to resume from", min=1, may_change=True)
    checkpoint_minutes: float = setting(
        30.0, "minutes after which there is a checkpoint anyway", above=0, may_change=True
    )
    keep: int = setting(2, "newest checkpoints that stay", min=1, may_change=True)
    tensorboard: bool = setting(False, "curves for TensorBoard too", may_change=True)
    wandb: str | None = setting(
        None, "Weights & Biases project that gets the curves", may_change=True
    )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distillation run: teacher in, one-step student out."""

    kind: ClassVar[str] = "distill"
    teacher: str = setting(
        REQUIRED, "--teacher: flow teacher; a file, run directory, known name or hf:// reference"
    )
    rae: str | None = setting(None, "autoencoder; by default the one that the teacher names")
    data: DataConfig = section(DataConfig, "real pictures")
    field: FieldConfig = section(FieldConfig, "drifting field")
    step: StepConfig = section(StepConfig, "samples of one step")
    optim: OptimConfig = section(OptimConfig, "optimiser and weight average")
    compute: ComputeConfig = section(ComputeConfig, "how the devices are used")
    log: DistillLogConfig = section(DistillLogConfig, "how often something is written")
    eval: EvalConfig = section(EvalConfig, "scoring while it trains")
    seed: int = setting(0, "of everything random in the run", min=0)
    precision: Precision = setting("auto", "of the networks; auto is bf16 where that is fast")
    storage: Storage = setting("float32", "of the student's weights in its file")


@dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(DataConfig):
    """Pictures that all networks are trained on."""

    image_size: int = setting(
        32, "rows and columns; with an autoencoder given, they are its own", min=8
    )


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """The scoring network, and a second one that gives the decoder its feature loss."""

    widths: tuple[int, ...] = setting(
        (32, 64, 96, 128), "channels of each stage", min=8, multiple_of=8
    )
    steps: int = setting(2000, "updates", min=1)
    batch: int = setting(128, "pictures per update", min=1)
    learning_rate: float = setting(2e-3, "rate at the start", above=0)
    final_learning_rate: float = setting(2e-5, "rate at the end", min=0)
    warmup: int = setting(50, "updates of rising rate", min=0)
    ema_decay: float = setting(0.99, "decay of the weight average", min=0, max=0.999999)

    def contradictions(self) -> list[Contradiction]:
        return _falling(self.final_learning_rate, self.learning_rate)


def _divides(name: str, width: int, heads: int, factor: int = 1) -> list[Contradiction]:
    if width % (factor * heads) == 0:
        return []
    multiple = f"{factor} times the heads" if factor > 1 else "the heads"
    return [Contradiction((name, "heads"), f"{width} is not a multiple of {multiple}, {heads}")]


@dataclass(frozen=True, kw_only=True)
class EncoderTrainConfig:
    """The encoder, trained together with a decoder."""

    width: int = setting(64, "channels per token", min=8)
    depth: int = setting(4, "blocks", min=1)
    heads: int = setting(4, "attention heads", min=1)
    patch_size: int = setting(8, "rows and columns of a patch, in pixels", min=1)
    registers: int = setting(4, "extra tokens that are dropped at the end", min=0)
    steps: int = setting(4000, "updates", min=1)
    batch: int = setting(128, "pictures per update", min=1)
    learning_rate: float = setting(1e-3, "rate at the start", above=0)
    final_learning_rate: float = setting(1e-5, "rate at the end", min=0)
    warmup: int = setting(100, "updates of rising rate", min=0)
    ema_decay: float = setting(0.99, "decay of the weight average", min=0, max=0.999999)
    noise: float = setting(0.2, "largest noise added to tokens while training", min=0)
    feature_weight: float = setting(1.0, "weight of the feature loss, of both decoders", min=0)
    label_weight: float = setting(0.1, "weight of guessing the class from each token", min=0)
    thumbnail_weight: float = setting(1.0, "weight of guessing a miniature from each", min=0)
    variational: bool = setting(False, "a VAE: tokens are samples of a posterior")
    kl_weight: float = setting(
        0.1, "weight of the posterior's divergence from N(0, I), nats per pixel value", min=0
    )

    def contradictions(self) -> list[Contradiction]:
        falling = _falling(self.final_learning_rate, self.learning_rate)
        return falling + _divides("width", self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class DecoderTrainConfig:
    """The pixel decoder, trained further on the frozen encoder's latents."""

    width: int = setting(128, "channels per token", min=8)
    depth: int = setting(4, "blocks", min=1)
    heads: int = setting(4, "attention heads", min=1)
    mlp_width: int = setting(512, "channels inside each block", min=8)
    steps: int = setting(4000, "updates", min=1)
    batch: int = setting(128, "pictures per update", min=1)
    learning_rate: float = setting(1e-3, "rate at the start", above=0)
    final_learning_rate: float = setting(1e-5, "rate at the end", min=0)
    warmup: int = setting(100, "updates of rising rate", min=0)
    ema_decay: float = setting(0.99, "decay of the weight average", min=0, max=0.999999)
    noise: float = setting(0.3, "largest noise added to normalised latents", min=0)

    def contradictions(self) -> list[Contradiction]:
        falling = _falling(self.final_learning_rate, self.learning_rate)
        return falling + _divides("width", self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class TeacherTrainConfig:
    """The DiT-DH flow teacher; pairs are (deep part, wide head)."""

    init: str | None = setting(
        None, "teacher to start from, which sets the three sizes below; only its classes are new"
    )
    hidden: tuple[int, int] = setting((128, 192), "channels per token", min=8)
    depth: tuple[int, int] = setting((4, 2), "blocks", min=1)
    heads: tuple[int, int] = setting((4, 4), "attention heads", min=1)
    steps: int = setting(8000, "updates", min=1)
    batch: int = setting(256, "latents per update", min=1)
    learning_rate: float = setting(2e-3, "rate at the start", above=0)
    final_learning_rate: float = setting(2e-5, "rate at the end", min=0)
    warmup: int = setting(200, "updates of rising rate", min=0)
    ema_decay: float = setting(0.999, "decay of the weight average", min=0, max=0.999999)
    label_dropout: float = setting(0.1, "share of labels replaced by the null label", min=0, max=1)
    time_shift: float | None = setting(
        None, "shift of times towards noise; by default sqrt(latent size / 4096)", min=1
    )

    def contradictions(self) -> list[Contradiction]:
        problems = _falling(self.final_learning_rate, self.learning_rate)
        for hidden, heads in zip(self.hidden, self.heads, strict=True):
            # Rotary positions turn pairs of channels, half of them by row and half by column.
            problems += _divides("hidden", hidden, heads, factor=4)
        return problems


@dataclass(frozen=True, kw_only=True)
class PretrainLogConfig:
    """How often something is written, in steps, and how much is scored at the end."""

    metrics_every: int = setting(20, "a line in metrics.jsonl", min=1, may_change=True)
    checkpoint_every: int = setting(500, "a checkpoint to resume from", min=1, may_change=True)
    scored_per_class: int = setting(200, "pictures of each class scored at the end", min=2)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run: pictures in, scoring network, autoencoder and teacher out."""

    kind: ClassVar[str] = "pretrain"
    rae: str | None = setting(
        None, "--rae: autoencoder to use; by default one is trained, with a scoring network"
    )
    data: PretrainDataConfig = section(PretrainDataConfig, "pictures")
    scorer: ScorerConfig = section(ScorerConfig, "scoring network")
    encoder: EncoderTrainConfig = section(EncoderTrainConfig, "encoder")
    decoder: DecoderTrainConfig = section(DecoderTrainConfig, "decoder")
    teacher: TeacherTrainConfig = section(TeacherTrainConfig, "flow teacher")
    log: PretrainLogConfig = section(PretrainLogConfig, "how often something is written")
    rae_name: str | None = setting(None, "how the teacher's file names the autoencoder; its path")
    seed: int = setting(0, "of everything random in the run", min=0)
    precision: Precision = setting("auto", "of the networks; auto is bf16 where that is fast")
    storage: Storage = setting("float32", "of the weights in the files")

    def contradictions(self) -> list[Contradiction]:
        if self.rae or self.data.image_size % self.encoder.patch_size == 0:
            return []
        fields = ("data.image_size", "encoder.patch_size")
        return [Contradiction(fields, "patches must tile the picture")]
