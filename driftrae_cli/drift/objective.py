"""What the generator learns from the drifting field ([D-RAE] eq. 10, arXiv 2606.15553).

Legend: K classes, N gradient-carrying, M detached generated samples, P positives, C tokens,
D channels, B independent problems (one class, one block of tokens), T temperatures.
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
class DriftOutput:
    """One evaluation of the objective.

    Attributes:
        loss: scalar to differentiate. With `normalize` other than `none` it is constant by
            construction.
        metrics: scalar tensors. `field/{size}/{tau}` is the mean of `|V| / scale`, which falls
            as training converges; `neighbours/{size}/{tau}` the effective number of positives
            that a query sees.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


def pull_factor(length_BTN: Tensor, normalize: Normalize) -> Tensor:
    """What `V / scale` is multiplied by to become the pull, broadcastable to [B, T, N].

    `token` makes every vector one long, `batch` the root mean square over problems and
    samples of one temperature (in coordinates of unit size per channel this is the official
    root mean square over the batch). Both floor the divisor at 1e-4.
    """
    if normalize == "token":
        return length_BTN.clamp_min(_LENGTH_FLOOR).reciprocal()
    if normalize == "batch":
        mean_sq_1T1 = length_BTN.square().mean((0, 2), keepdim=True)
        return mean_sq_1T1.clamp_min(_LENGTH_FLOOR**2).rsqrt()
    return torch.ones_like(length_BTN)


def attach_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """`value`, whose derivative with respect to `x` is `gradient` (of the sum, if not scalar).

    The goals of the drifting loss are stopped, so its gradient is known in closed form and
    one product replaces a graph per temperature and group size. Leading dimensions of `x`
    that `value` has are kept apart.
    """
    product = gradient * (x - x.detach())
    return value + product.flatten(value.ndim).sum(-1)


class DriftObjective:
    """Pull generated tokens along the drifting field of their class.

    For one size of `group`, in coordinates `g = G / scale`:

        loss = mean over problems, samples, tau of |g - sg[g + pull]|^2

    with `pull = V / |V|` for `normalize: token`, so the gradient with respect to a vector `g`
    is `-2 pull / (B N)`, averaged over `tau`, and with respect to the generated latent it is
    that divided by `scale`. Several sizes add their losses; each is a mean over its own
    vectors, which makes the gradients of all sizes about equally long.

    All arithmetic is in float32 at least, whatever autocast says.
    """

    def __init__(self, settings: FieldSettings) -> None:
        self.settings = settings

    def __call__(
        self,
        gen_KNCD: Tensor,
        detached_KMCD: Tensor,
        pos_KPCD: Tensor,
        generator: torch.Generator,
    ) -> DriftOutput:
        """Loss and metrics of one step.

        Args:
            gen_KNCD: generated samples that carry gradient; the queries.
            detached_KMCD: further generated samples, M may be 0.
            pos_KPCD: real latents of the same classes, at least one.
            generator: of the perturbation; one on another device seeds one here.

        Raises:
            ConfigError: a group size that does not tile the square token grid.
        """
        parts = [gen_KNCD.detach(), detached_KMCD.detach(), pos_KPCD.detach()]
        losses, gradients, metrics = [], [], dict[str, Tensor]()
        with torch.no_grad(), torch.autocast(gen_KNCD.device.type, enabled=False):
            for size in self.settings.group:
                field = self._field(parts, size, generator)
                metrics |= _metrics(field, size, self.settings.temperatures)
                loss, gradient_BND = mean_loss_(field, self.settings.normalize)
                losses.append(loss)
                gradients.append(from_problems(gradient_BND, gen_KNCD.shape, size))
        loss, gradient = reduce(torch.add, losses), reduce(torch.add, gradients)
        return DriftOutput(attach_gradient(loss, gen_KNCD.to(gradient.dtype), gradient), metrics)

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


def mean_loss_(field: Field, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Loss averaged over temperatures, and its gradient [B, N, D]; the field is used up."""
    length_BTN = field.length
    factor_BTN = pull_factor(length_BTN, normalize)
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
