"""From what a recipe says to the objects and numbers that the engine works with.

The only module of the engine that knows the configuration; the others take its types from
here.
"""

from pathlib import Path
from typing import Protocol

from driftrae_cli.config.load import changeable, decisive, load
from driftrae_cli.config.load import dump as config_yaml
from driftrae_cli.config.schema import (
    DataConfig,
    DistillConfig,
    DistillLogConfig,
    EvalConfig,
    FieldConfig,
    OptimConfig,
    PretrainConfig,
    PretrainLogConfig,
    ScorerConfig,
    TeacherTrainConfig,
)
from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.engine.pretrain_objectives import AutoencoderWeights
from driftrae_cli.engine.train import LoopSettings
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.ditdh import DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.feature_net import FeatureNetConfig
from driftrae_cli.models.rae import RAEConfig

__all__ = [
    "DataConfig",
    "DistillConfig",
    "PretrainConfig",
    "RunConfig",
    "autoencoder_weights",
    "changeable",
    "config_yaml",
    "decisive",
    "feature_net_config",
    "field_settings",
    "loop_settings",
    "pretrain_loop",
    "rae_config",
    "read_config",
    "teacher_config",
]

RunConfig = DistillConfig | PretrainConfig

_ENCODER_MLP_RATIO = 4.0


def read_config(file: Path, schema: type[RunConfig]) -> RunConfig:
    """The resolved recipe of a run; fields that are newer than it have their defaults.

    Raises:
        ConfigError: the file does not fit today's schema.
    """
    return load(str(file), [], schema)


class PhaseSettings(Protocol):
    """What all phases of pretraining say about their optimisation."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def final_learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def ema_decay(self) -> float: ...


def field_settings(config: FieldConfig) -> FieldSettings:
    """The drifting field of a recipe."""
    return FieldSettings(
        softmax=config.softmax,
        perturb=config.perturb,
        normalize=config.normalize,
        group=config.group,
        temperatures=config.temperatures,
    )


def loop_settings(optim: OptimConfig, log: DistillLogConfig, eval: EvalConfig) -> LoopSettings:
    """The training loop of a distillation."""
    return LoopSettings(
        **vars(optim),
        metrics_every=log.metrics_every,
        checkpoint_every=log.checkpoint_every,
        checkpoint_minutes=log.checkpoint_minutes,
        keep=log.keep,
        preview_every=log.preview_every,
        eval_every=eval.every,
    )


def pretrain_loop(phase: PhaseSettings, log: PretrainLogConfig) -> LoopSettings:
    """The training loop of one phase of pretraining."""
    return LoopSettings(
        steps=phase.steps,
        learning_rate=phase.learning_rate,
        final_learning_rate=phase.final_learning_rate,
        warmup=phase.warmup,
        ema_decay=phase.ema_decay,
        metrics_every=log.metrics_every,
        checkpoint_every=log.checkpoint_every,
    )


def feature_net_config(scorer: ScorerConfig, num_classes: int) -> FeatureNetConfig:
    """The scoring network of a recipe."""
    return FeatureNetConfig(scorer.widths, num_classes)


def rae_config(config: PretrainConfig) -> RAEConfig:
    """The autoencoder of a recipe; encoder and decoder see pictures of one size."""
    encoder, decoder, size = config.encoder, config.decoder, config.data.image_size
    grid = size // encoder.patch_size
    return RAEConfig(
        encoder=EncoderConfig(
            width=encoder.width,
            depth=encoder.depth,
            heads=encoder.heads,
            mlp_ratio=_ENCODER_MLP_RATIO,
            patch_size=encoder.patch_size,
            image_size=size,
            registers=encoder.registers,
        ),
        decoder=DecoderConfig(
            latent_dim=encoder.width,
            width=decoder.width,
            depth=decoder.depth,
            heads=decoder.heads,
            mlp_width=decoder.mlp_width,
            patch_size=encoder.patch_size,
            num_tokens=grid**2,
        ),
        input_size=size,
        grid=grid,
        variational=encoder.variational,
    )


def autoencoder_weights(config: PretrainConfig) -> AutoencoderWeights:
    """Weights of the autoencoder's loss."""
    encoder = config.encoder
    return AutoencoderWeights(
        features=encoder.feature_weight,
        label=encoder.label_weight,
        thumbnail=encoder.thumbnail_weight,
        kl=encoder.kl_weight,
    )


def teacher_config(
    teacher: TeacherTrainConfig, latent_shape: tuple[int, int, int], num_classes: int
) -> DiTDHConfig:
    """The flow teacher of a recipe for latents of shape (D, H, W)."""
    D, H, _ = latent_shape
    return DiTDHConfig(
        input_size=H,
        in_channels=D,
        hidden_size=teacher.hidden,
        depth=teacher.depth,
        num_heads=teacher.heads,
        num_classes=num_classes,
    )
