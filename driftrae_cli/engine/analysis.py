"""What `analyze-latent` finds: results only, without a way to compute them.

Legend: C tokens, D channels of a token, T temperatures.
"""

from dataclasses import dataclass

from driftrae_cli.drift.theorem import TheoremPoint


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval.

    Attributes:
        value: over classes (of trajectories: over trajectories).
        low, high: ends of the interval; None where there is one class only.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts between edges.

    Attributes:
        edges: rising, one more than counts.
        counts: of the values between two edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """How a number is distributed over trajectories, at each time.

    Attributes:
        t: times, falling from 1 (noise) to almost 0 (data).
        low, median, high: the 10th, 50th and 90th percentile at each time.
    """

    t: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Scope:
    """What was measured.

    Attributes:
        data: where the pictures or latents are from.
        classes: names of the classes.
        samples: of each class, for covariances.
        paired: of each class, for what compares samples with each other.
        tokens: numbers of the tokens, row by row.
        grid: rows and columns of all tokens.
        channels: D.
        seed: of everything random.
        aggregate: `paper` or `global`, see `AnalysisSettings`.
        source_hash: of the encoder and its preprocessing, or of the cache.
        pictures_hash: of names, sizes and classes of the pictures, or of the cache.
    """

    data: str
    classes: tuple[str, ...]
    samples: int
    paired: int
    tokens: tuple[int, ...]
    grid: tuple[int, int]
    channels: int
    seed: int
    aggregate: str
    source_hash: str
    pictures_hash: str


@dataclass(frozen=True)
class IsotropyResult:
    """How evenly samples fill their space ([D-RAE] App. B.1); larger is rounder.

    Attributes:
        participation_ratio, spectral_entropy: mean over classes and tokens, the paper's
            protocol; too small where samples are few.
        corrected_participation_ratio, corrected_spectral_entropy: the same without the error
            of few samples; None with two samples, the second below half as many as channels.
        pooled_participation_ratio, pooled_spectral_entropy: of one covariance of all tokens of
            all classes together, from their common mean (another protocol, which can order
            spaces the other way round).
        spectrum: shares of the variance of the D directions, falling, mean over classes and
            tokens.
        pooled_spectrum: the same of the one covariance.
        ratio_by_token, entropy_by_token: mean over classes, in the order of `Scope.tokens`.

    All of the paper's protocol is None or empty where only the pooled one was asked for.
    """

    participation_ratio: Estimate | None
    spectral_entropy: Estimate | None
    corrected_participation_ratio: Estimate | None
    corrected_spectral_entropy: Estimate | None
    pooled_participation_ratio: float
    pooled_spectral_entropy: float
    spectrum: tuple[float, ...]
    pooled_spectrum: tuple[float, ...]
    ratio_by_token: tuple[float, ...]
    entropy_by_token: tuple[float, ...]


@dataclass(frozen=True)
class DispersionResult:
    """How far samples lie apart, of single tokens and of whole latents.

    Distances are divided by the root of the dimension.

    Attributes:
        nn_token, nn_latent: to the nearest other sample of the class (NN-d).
        mmd_token, mmd_latent: squared spherical MMD (S-MMD).
        within_token, within_latent: mean distance of two samples of a class.
        between_token, between_latent: mean distance of samples of two classes, from 100 of each
            and the next one; None with one class.
        nn_histogram: nearest-neighbour distances of all classes and tokens.
    """

    nn_token: Estimate
    nn_latent: Estimate
    mmd_token: Estimate
    mmd_latent: Estimate
    within_token: Estimate
    within_latent: Estimate
    between_token: float | None
    between_latent: float | None
    nn_histogram: Histogram


@dataclass(frozen=True)
class FieldRow:
    """What the drifting field sees at one temperature.

    Attributes:
        queries: where it starts: `real` (other real latents, the aim), `teacher` (the teacher's
            single step) or `noise`.
        group: `token` or `latent`, what is moved as one.
        temperature: tau.
        positives: real latents of the class in the sums; as many negatives.
        perplexity: effective number of positives, `exp` of the entropy of their weights.
        negative_perplexity: the same of negatives.
        positive_share: share of the positives in one softmax over positives and negatives.
        attraction, repulsion: mean length of the two parts of the field, in units of the
            field's scale.
        ratio: attraction over repulsion.
    """

    queries: str
    group: str
    temperature: float
    positives: int
    perplexity: float
    negative_perplexity: float
    positive_share: float
    attraction: float
    repulsion: float
    ratio: float


@dataclass(frozen=True)
class ContextResult:
    """How much one token of a picture knows about the others, within classes.

    Attributes:
        neighbours: k.
        overlap: share of a sample's k nearest neighbours that two tokens agree on.
        chance: the overlap of tokens that know nothing of each other.
        agreement: the overlap above chance, `(overlap - chance) / (1 - chance)`.
        explained: share of a token's variance that another token explains linearly, mean over
            four explaining tokens, spread over the picture, and all others.
    """

    neighbours: int
    overlap: Estimate
    chance: float
    agreement: Estimate
    explained: Estimate


@dataclass(frozen=True)
class TrajectoryResult:
    """How curved the teacher's way from noise to data is.

    Attributes:
        teacher: reference.
        teacher_hash: SHA-256 of its weights.
        trajectories: how many.
        steps: of the Euler solver, evenly spaced before the time shift.
        shift: time shift.
        window: points of the sliding fit.
        curvature: mean over the solver's states and trajectories, `1 / length` ([Chen24]'s
            projection); a time shift puts more states where there is more noise.
        curvature_band: against t.
        turning: total angle between successive velocities, degrees.
        angle_band: angle between successive velocities, degrees per unit of t.
        straightness: path length over displacement; 1 for a line.
        one_step_error: `|y_0 - (y_1 - v(y_1, 1))| / |y_0 - y_1|`.
    """

    teacher: str
    teacher_hash: str
    trajectories: int
    steps: int
    shift: float
    window: int
    curvature: Estimate
    curvature_band: Band
    turning: Estimate
    angle_band: Band
    straightness: Estimate
    one_step_error: Estimate


@dataclass(frozen=True)
class Judgement:
    """One statistic beside published and built-in spaces.

    Attributes:
        statistic: its name.
        value: here.
        paper_vae, paper_rae: of SD-VAE and of the RAE ([D-RAE] Table 1); None if unpublished.
        shapes_vae, shapes_rae: of the built-in spaces.
        threshold: below or above which drifting is expected to work; empty where the statistic
            is shown only.
        says: `suited`, `not suited`, `doubtful`, or nothing where it is not judged.
    """

    statistic: str
    value: float
    paper_vae: float | None
    paper_rae: float | None
    shapes_vae: float | None
    shapes_rae: float | None
    threshold: str
    says: str


@dataclass(frozen=True)
class Verdict:
    """Whether drifting suits a space.

    Attributes:
        word: `suited`, `doubtful` or `not suited`.
        reasons: in plain words.
        rows: what it rests on.
    """

    word: str
    reasons: tuple[str, ...]
    rows: tuple[Judgement, ...]


@dataclass(frozen=True)
class ClassRow:
    """One class, of whose rows the estimates are means; attributes as above.

    Attributes:
        name: of the class.
        samples: that were measured.
    """

    name: str
    samples: int
    participation_ratio: float | None
    spectral_entropy: float | None
    nn_token: float
    nn_latent: float
    mmd_token: float
    mmd_latent: float
    overlap: float | None
    explained: float | None


@dataclass(frozen=True)
class SpaceAnalysis:
    """All about one latent space.

    Attributes:
        space: its reference.
        scope: what was measured.
        isotropy, dispersion: see there.
        field: empty where a class has fewer than four samples.
        context: None with one token, or fewer than twelve samples of a class.
        trajectories: None without a teacher.
        verdict: what it means.
        warnings: what limits the numbers.
        classes: one row each.
    """

    space: str
    scope: Scope
    isotropy: IsotropyResult
    dispersion: DispersionResult
    field: tuple[FieldRow, ...]
    context: ContextResult | None
    trajectories: TrajectoryResult | None
    verdict: Verdict
    warnings: tuple[str, ...]
    classes: tuple[ClassRow, ...]


@dataclass(frozen=True)
class Analysis:
    """What one call found.

    Attributes:
        spaces: one or several, in the order they were given.
        theorem: the check of Theorem 1; empty unless asked for.
        version: of driftrae.
        torch: its version.
        device: where it was computed.
        report: the folder with the report; None if none was asked for.
    """

    spaces: tuple[SpaceAnalysis, ...]
    theorem: tuple[TheoremPoint, ...]
    version: str
    torch: str
    device: str
    report: str | None = None
