"""How pictures are scored: all that is asked for, and what the reference decides otherwise."""

from dataclasses import dataclass, replace
from pathlib import Path

from driftrae_cli.data.shapes import CLASS_NAMES, IMAGE_SIZE
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.engine.extractors import INCEPTION, SHAPES_SCORER
from driftrae_cli.engine.guidance import NO_GUIDANCE, GuidanceOptions
from driftrae_cli.engine.reference_pictures import SHAPES_PER_CLASS
from driftrae_cli.engine.sample import ROUND
from driftrae_cli.engine.sample_labels import BALANCED


@dataclass(frozen=True)
class Protocol:
    """How pictures are scored.

    Attributes:
        reference: what they are compared with, see `open_reference`; None is `shapes`, for
            models of shapes only.
        features: extractors by name; none is Inception, or for `shapes` its scoring network.
        num: pictures that a checkpoint draws; None is 50,000, or for `shapes` as many as
            there are real ones.
        labels: of them: `balanced`, `random`, or a file.
        steps: of teachers, each scored; None is their default.
        guidance: of teachers, each scale scored.
        seed: of noise and labels.
        rounding: of decoded values, `round` or `floor`.
        precision_recall: whether to compare sample by sample too.
        uncertainty: whether to give the distance's standard error, and its value without the
            bias of few pictures.
        resolution: rows and columns that files with pictures are cut to; None is 256, or for
            `shapes` theirs.
        inception_weights: file to use instead of a download.
        max_bad: pictures that may be unreadable.
    """

    reference: str | None = None
    features: tuple[str, ...] = ()
    num: int | None = None
    labels: str = BALANCED
    steps: tuple[int, ...] | None = None
    guidance: GuidanceOptions = NO_GUIDANCE
    seed: int = 0
    rounding: str = ROUND
    precision_recall: bool = False
    uncertainty: bool = False
    resolution: int | None = None
    inception_weights: Path | None = None
    max_bad: int = 0

    def complete(self) -> "Protocol":
        """With numbers for all that the reference decides if nobody else does."""
        reference = self.reference or SHAPES
        small = reference == SHAPES
        return replace(
            self,
            reference=reference,
            features=self.features or ((SHAPES_SCORER,) if small else (INCEPTION,)),
            num=self.num or (len(CLASS_NAMES) * SHAPES_PER_CLASS if small else 50_000),
            resolution=self.resolution or (IMAGE_SIZE if small else 256),
        )
