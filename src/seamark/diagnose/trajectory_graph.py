"""What a trajectory is: features by token and hookpoint, links between them, and the way to the output. Plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from seamark.atlas.records import Record
from seamark.diagnose.inspection import About, GeneratedAnswer, Kind, SpanName
from seamark.stats import Estimate

Stage = Literal["word", "concept"]


class Tracing(BaseModel):
    """How much of a text's features is shown, and what they are linked to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=8, ge=1, le=64)
    """Most features (each at one token) of a hookpoint."""
    links: int = Field(default=4, ge=1, le=64)
    """Most links into a feature, and into the output; the strongest are kept."""
    checks: int = Field(default=16, ge=0, le=1024)
    """Earlier features that are ablated to check all links that go out of them; each costs a pass."""
    paths: int = Field(default=5, ge=1, le=64)
    """Most paths that are told."""
    explained: bool = False
    """Only features that have an explanation."""
    toward: str | None = Field(default=None, max_length=1000)
    """A language model's output is the logit of this text's first token; None: of the token that follows."""
    at: int | None = Field(default=None, ge=0)
    """A language model's output is what it says behind the token at this place; None: where the answer begins, or
    behind the last token."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of which features are ablated, and of the intervals."""
    max_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Begin no further link or check once so many seconds have gone since the model began to read; what is left out is
    told. None: no limit. An answer that is generated is not counted, since `Generation` has a limit of its own."""


class Level(Record):
    """How many different tokens a feature fires at."""

    level: Stage | None
    """`word`: at least half of its firings are at one token, whatever its capitals; `concept`: fewer; None: not
    available."""
    reason: str = ""
    """Why there is none."""
    firings: int = 0
    """Tokens at which it fires with at least half of the text's peak, in the texts that are known."""
    types: int = 0
    """How many different ones."""
    commonest: float | None = None
    """The share of the commonest."""


class TrajectoryToken(Record):
    """A token of the text."""

    text: str
    id: int
    special: bool
    span: SpanName


class TrajectoryNode(About):
    """A feature at a token."""

    sae: str
    latent: int
    hookpoint: str
    token: int
    """Its place in `tokens`."""
    activation: float
    """z, in the autoencoder's units; above 0."""
    normalised: float | None
    """z / Q_f; None: Q_f is not available."""
    level: Level
    on_output: float | None
    """What its firing here adds to the output, to first order, in the output's units; None: there is no output."""


class TrajectoryLink(Record):
    """What an earlier feature adds to a later one, or to the output."""

    source: int
    """The earlier feature's place in `nodes`."""
    target: int | None
    """The later one's; None: the output."""
    effect: float
    """To first order: the gradient of the later feature's pre-activation at its token, along what the earlier one puts
    into its hookpoint. In the later autoencoder's units, or the output's."""
    share: float | None
    """`effect` / activation of the later feature; None for the output."""
    ablation: float | None
    """What the later activation (or the output) loses when the earlier feature is ablated at its token; None: not
    checked."""


class TrajectoryOutput(Record):
    """The number at the end."""

    kind: Literal["reward", "logit"]
    value: float
    token: str
    """Which token's logit; empty for a reward."""
    id: int | None
    """Its id in the vocabulary."""
    at: int | None
    """The place of the token behind which it is said."""


class Agreement(Record):
    """How far links of one kind agree with ablation. Intervals resample the ablated features."""

    links: int
    """Links that were checked."""
    spearman: Estimate
    """Rank correlation of effect and ablation (links between features: as shares of the later activation)."""
    same_sign: Estimate
    """Share of links where both have the same sign."""
    silenced: int
    """Links whose later feature stopped firing altogether."""


class LeftOut(Record):
    """What was left out because the time was over."""

    features: int = 0
    """Features into which no links were looked for: those of the earlier hookpoints."""
    checks: int = 0
    """Features that were drawn to be ablated, and were not."""


class TrajectoryPath(Record):
    """A way through the graph, the earliest feature first."""

    nodes: tuple[int, ...]
    reaches_output: bool
    """Whether its last feature has a link to the output."""


class Trajectory(Record):
    """A text's features, and what they do to one another."""

    model: str
    kind: Kind
    config: Tracing
    hookpoints: tuple[str, ...]
    """From the input to the output."""
    tokens: tuple[TrajectoryToken, ...]
    nodes: tuple[TrajectoryNode, ...]
    """By hookpoint, token, autoencoder and latent."""
    links: tuple[TrajectoryLink, ...]
    """By later feature (the output last), the strongest first."""
    paths: tuple[TrajectoryPath, ...]
    output: TrajectoryOutput | None
    output_reason: str
    """Why there is none."""
    between: Agreement
    """Of links between features."""
    to_output: Agreement
    fired: dict[str, int]
    """By hookpoint: features that fire, token by token, of which `nodes` are a choice."""
    truncated: int
    """Tokens that the text lost at its beginning."""
    generated: GeneratedAnswer | None
    left_out: LeftOut = LeftOut()
    """Of links and checks, because `config.max_seconds` were over."""
    caveats: tuple[str, ...] = ()
    """What to bear in mind."""


def paths_of(
    nodes: Sequence[TrajectoryNode], links: Sequence[TrajectoryLink], hookpoints: Sequence[str], limit: int
) -> tuple[TrajectoryPath, ...]:  # fmt: skip
    """The strongest ways: from features of the last hookpoint that has links, back along the strongest link from the
    nearest hookpoint below, until none comes in.

    They begin with the features that do most to the output, then those most of whose activation came along links.
    """
    into: dict[int, list[TrajectoryLink]] = {}
    ends = set()
    for link in links:
        if link.target is None:
            ends.add(link.source)
        else:
            into.setdefault(link.target, []).append(link)
    if not into:
        return ()
    depth = [hookpoints.index(n.hookpoint) for n in nodes]
    deepest = max(depth[i] for i in into)
    order = sorted((i for i in into if depth[i] == deepest),
                   key=lambda i: (-abs(nodes[i].on_output or 0.0), -_strongest(into[i]), i))  # fmt: skip
    found = []
    for last in order[:limit]:
        way = [last]
        while incoming := into.get(way[-1]):
            nearest = max(depth[link.source] for link in incoming)
            best = max((link for link in incoming if depth[link.source] == nearest),
                       key=lambda link: (abs(link.effect), -link.source))  # fmt: skip
            way.append(best.source)
        found.append(TrajectoryPath(nodes=tuple(reversed(way)), reaches_output=last in ends))
    return tuple(found)


def _strongest(links: Sequence[TrajectoryLink]) -> float:
    return max(abs(link.share or 0.0) for link in links)
