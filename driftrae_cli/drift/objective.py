"""What the generator learns from the drifting field ([D-RAE] eq. 10, arXiv 2606.15553).

Legend: K classes, N gradient-carrying, M detached generated samples, P positives, C tokens,
D channels, B independent problems (one class, one block of tokens), T temperatures, G sizes
of blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from driftrae_cli.drift.field import Field, FieldSettings, Normalize, drifting_field
from driftrae_cli.drift.groups import GroupSize, from_problems, to_problems, tokens_per_vector

_LENGTH_FLOOR = 1e-4  # of |V| / scale where it is divided by


@dataclass(frozen=True)
class Drift:
    """The fields of some classes, one per size of blocks, not yet scaled to a pull.

    Attributes:
        fields: one per size.
        shape: of the generated samples that they belong to, (K, N, C, D).
    """

    fields: tuple[Field, ...]
    shape: torch.Size

    @property
    def mean_square(self) -> Tensor:
        """Mean of `(|V| / scale)^2` over problems and samples, [G, T]."""
        return torch.stack([field.length.square().mean((0, 2)) for field in self.fields])


@dataclass(frozen=True)
class Pull:
    """What the objective says about some classes.

    Attributes:
        loss: scalar. With `normalize` other than `none` it is constant by construction.
        gradient: of the loss with respect to the generated samples, [K, N, C, D].
        metrics: scalar tensors. `field/{size}/{tau}` is the mean of `|V| / scale`, which falls
            as training converges; `neighbours/{size}/{tau}` the effective number of positives
            that a query sees.
    """

    loss: Tensor
    gradient: Tensor
    metrics: Mapping[str, Tensor]


def pull_factor(length_BTN: Tensor, normalize: Normalize, mean_square_T: Tensor) -> Tensor:
    """What `V / scale` is multiplied by to become the pull, broadcastable to [B, T, N].

    `token` makes every vector one long, `batch` the root mean square over problems and
    samples of one temperature (in coordinates of unit size per channel this is the official
    root mean square over the batch). Both floor the divisor at 1e-4.

    Args:
        mean_square_T: of the lengths of the whole batch, of which this may be a part.
    """
    if normalize == "token":
        return length_BTN.clamp_min(_LENGTH_FLOOR).reciprocal()
    if normalize == "batch":
        return mean_square_T[:, None].clamp_min(_LENGTH_FLOOR**2).rsqrt()
    return torch.ones_like(length_BTN)


class DriftObjective:
    """Pull generated tokens along the drifting field of their class.

    For one size of `group`, in coordinates `g = G / scale`:

        loss = mean over problems, samples, tau of |g - sg[g + pull]|^2

    with `pull = V / |V|` for `normalize: token`, so the gradient with respect to a vector `g`
    is `-2 pull / (B N)`, averaged over `tau`, and with respect to the generated latent it is
    that divided by `scale`. Several sizes add their losses; each is a mean over its own
    vectors, which makes the gradients of all sizes about equally long.

    The goals are stopped, so the gradient is known in closed form, without a graph. Classes
    may come one after the other: the loss of all is the mean of theirs.

    All arithmetic is in float32 at least, whatever autocast says.
    """

    def __init__(self, settings: FieldSettings) -> None:
        self.settings = settings

    @property
    def has_common_unit(self) -> bool:
        """Whether the pull of a class depends on the fields of all."""
        return self.settings.normalize == "batch"

    @torch.no_grad()
    def drift(
        self,
        gen_KNCD: Tensor,
        detached_KMCD: Tensor,
        pos_KPCD: Tensor,
        generator: torch.Generator,
    ) -> Drift:
        """Fields of some classes.

        Args:
            gen_KNCD: generated samples that carry gradient; the queries.
            detached_KMCD: further generated samples, M may be 0.
            pos_KPCD: real latents of the same classes, at least one.
            generator: of the perturbation; one on another device seeds one here.

        Raises:
            ConfigError: a group size that does not tile the square token grid.
        """
        parts = [gen_KNCD, detached_KMCD, pos_KPCD]
        with torch.autocast(gen_KNCD.device.type, enabled=False):
            fields = [self._field(parts, size, generator) for size in self.settings.group]
        return Drift(tuple(fields), gen_KNCD.shape)

    @torch.no_grad()
    def pull(self, drift: Drift, mean_square_GT: Tensor) -> Pull:
        """Loss, gradient and metrics; the drift is used up.

        Args:
            mean_square_GT: `Drift.mean_square`, averaged over all classes of the step.
        """
        settings = self.settings
        losses, gradients, metrics = [], [], dict[str, Tensor]()
        units = zip(drift.fields, settings.group, mean_square_GT, strict=True)
        for field, size, mean_square_T in units:
            metrics |= _metrics(field, size, settings.temperatures)
            loss, gradient_BND = mean_loss_(field, settings.normalize, mean_square_T)
            losses.append(loss)
            gradients.append(from_problems(gradient_BND, drift.shape, size))
        return Pull(reduce(torch.add, losses), reduce(torch.add, gradients), metrics)

    def _field(self, parts: list[Tensor], size: GroupSize, generator: torch.Generator) -> Field:
        gen, detached, _ = parts
        chunk = max(1, self.settings.chunk_size // tokens_per_vector(gen.shape[2], size))
        return drifting_field(
            to_problems(parts, size),
            gen.shape[1],
            gen.shape[1] + detached.shape[1],
            self.settings,
            generator,
            chunk,
        )


def mean_loss_(field: Field, normalize: Normalize, mean_square_T: Tensor) -> tuple[Tensor, Tensor]:
    """Loss averaged over temperatures, and its gradient [B, N, D]; the field is used up."""
    length_BTN = field.length
    factor_BTN = pull_factor(length_BTN, normalize, mean_square_T)
    loss = (length_BTN * factor_BTN).square().mean()
    # once for V / scale, once because the loss differentiates G / scale
    to_gradient_BTN = factor_BTN * (-2 / length_BTN.numel() / field.unit.square())[:, None, None]
    return loss, field.V_BTND.mul_(to_gradient_BTN.unsqueeze(-1)).sum(1)


def _metrics(field: Field, size: GroupSize, temperatures: tuple[float, ...]) -> dict[str, Tensor]:
    lengths = field.length.mean((0, 2)).unbind()
    neighbours = field.neighbours.mean(0).unbind()
    named = {f"field/{size}/{tau:g}": v for tau, v in zip(temperatures, lengths, strict=True)}
    counts = zip(temperatures, neighbours, strict=True)
    return named | {f"neighbours/{size}/{tau:g}": v for tau, v in counts}
