"""Trajectories: how the features of a text build on one another, from words to concepts to the output.

Safe-SAIL (arXiv 2509.18127) reads such a way off the token view: word-level features of early layers, concept-level
ones of late layers, and the one that precedes the refusal. Here the links are measured: what each earlier feature adds
to each later one, by the gradient, and held against ablation on a sample of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from seamark.diagnose.attribution import spearman
from seamark.diagnose.choosing import Floats, chosen, fired, on_output
from seamark.diagnose.firing import Entries
from seamark.diagnose.inspecting import Labels, kind_of
from seamark.diagnose.inspection import About
from seamark.diagnose.levels import Known, level_of
from seamark.diagnose.linking import Passed, Passes, Place, depth_of, gradients, pre_activation, worth
from seamark.diagnose.shown import ShownText, shown_text
from seamark.diagnose.steering import Suite, Units
from seamark.diagnose.trajectory_graph import (
    Agreement,
    LeftOut,
    Level,
    Tracing,
    Trajectory,
    TrajectoryLink,
    TrajectoryNode,
    TrajectoryOutput,
    TrajectoryToken,
    paths_of,
)
from seamark.diagnose.units import units_of
from seamark.errors import ConfigError
from seamark.features.gather import public_name
from seamark.features.scan import check_suite
from seamark.model.generation import Generation
from seamark.model.loading import HookedModel, LanguageModel, RewardModel
from seamark.run import progress
from seamark.stats import Estimate, bootstrap
from seamark.text.pairs import Text

MAX_TOKENS = 512
"""Tokens of a text that are read by default; what is longer loses its beginning."""
LEAST = 0.01
"""Links that bring less than this share of the later feature's activation are left out."""


def trace(
    model: HookedModel, suite: Suite, prompt: Text, answer: Text | None = None, *, q: Units | None = None,
    labels: Labels | None = None, examples: Known | None = None, config: Tracing | None = None,
    max_tokens: int = MAX_TOKENS, generate: Generation | None = None, chat: bool = True,
) -> Trajectory:  # fmt: skip
    """The features that fire in a text, and the links between them.

    The output is a reward model's reward of the answer, or a language model's logit of the token that follows: the
    first of the answer (or `config.toward`) behind the prompt, or the likeliest where there is no answer.

    Args:
        model: any model with hookpoints; one that is neither has no output.
        suite: {sae id: autoencoder} of two hookpoints at least.
        prompt, answer, generate, chat: as of `inspect_text`.
        q: {sae id: Q_f [d_sae]}, which make activations comparable.
        labels: what is known of features.
        examples: texts in which features fire, which tell words from concepts.
        config: how much is shown and checked, and in what time.
        max_tokens: most tokens; a longer text loses its beginning, which `truncated` tells.

    Raises:
        ConfigError: autoencoders of one hookpoint only, or that do not fit the model; `toward` or `at` that mean
            nothing here; otherwise as of `inspect_text`.
        ModelError: no such hookpoint.
        DataError: as of `inspect_text`; activations or gradients that are not finite.
    """
    config = config or Tracing()
    _check(model, suite, config, max_tokens)
    units = {sae_id: units_of(sae_id, sae, q) for sae_id, sae in suite.items()}
    suite = {sae_id: sae.to(model.device) for sae_id, sae in suite.items()}
    text = shown_text(model, prompt, answer, max_tokens=max_tokens, generate=generate, chat=chat)
    aim = _Aim.of(model, text, config, answered=answer is not None or generate is not None)
    passes = Passes(model, suite, text.rendered, aim.at, reads_head=not aim.reason)
    return _Tracer(model, suite, units, text, aim, passes, config, labels, examples).traced()


def _check(model: HookedModel, suite: Suite, config: Tracing, max_tokens: int) -> None:
    check_suite(model, suite)
    hookpoints = {sae.config.hookpoint for sae in suite.values()}
    if len(hookpoints) < 2:
        raise ConfigError(f"all autoencoders are of {min(hookpoints)}: nothing leads from one layer to another",
                          where="trajectory", fix="Give autoencoders of two hookpoints at least")  # fmt: skip
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}", fix="Take at least 1")
    if (config.toward is not None or config.at is not None) and not isinstance(model, LanguageModel):
        raise ConfigError("this model says no tokens", where=model.name,
                          fix="Leave out `toward` and `at`, or give a language model")  # fmt: skip


@dataclass(frozen=True)
class _Aim:
    """What the output is."""

    at: int
    """The token behind which a language model speaks."""
    token: int | None
    """Whose logit; None: the likeliest, or no language model."""
    reason: str
    """Why there is none; empty where there is."""

    @classmethod
    def of(cls, model: HookedModel, text: ShownText, config: Tracing, *, answered: bool) -> _Aim:
        if isinstance(model, RewardModel):
            return cls(0, None, "" if answered else "no answer was given")
        if not isinstance(model, LanguageModel):
            return cls(0, None, "the model gives neither rewards nor tokens")
        ids, start = text.rendered.input_ids, text.rendered.response_span[0]
        first = start - 1 if answered and start > 0 else len(ids) - 1
        at = first if config.at is None else config.at
        if at >= len(ids):
            raise ConfigError(f"no token at {at}; the text has {len(ids)}", where="at", fix="Give a smaller place")
        if config.toward is None:
            return cls(at, int(ids[at + 1]) if at + 1 < len(ids) else None, "")
        wanted = model.tokenizer(config.toward, add_special_tokens=False)["input_ids"]
        if not wanted:
            raise ConfigError("the text to lead toward has no tokens", where="toward", fix="Give a word")
        return cls(at, int(wanted[0]), "")


class _Tracer:
    def __init__(
        self, model: HookedModel, suite: Suite, units: Mapping[str, Floats], text: ShownText, aim: _Aim, passes: Passes,
        config: Tracing, labels: Labels | None, examples: Known | None,
    ) -> None:  # fmt: skip
        self.model, self.suite, self.units, self.text, self.aim = model, suite, units, text, aim
        self.passes, self.config, self.labels, self.examples = passes, config, labels, examples
        self.left_out = LeftOut()
        self._end = float("inf")

    def traced(self) -> Trajectory:
        if self.config.max_seconds is not None:
            self._end = monotonic() + self.config.max_seconds
        passed = self.passes.with_graph()
        output, number = self._output(passed)
        found = fired(self.suite, self.units, passed)
        known = self._known(found)
        effects = None
        if number is not None:
            effects = on_output(self.suite, found, passed, gradients(number, passed, self.passes.hookpoints))
        nodes = self._nodes(found, known, effects)
        links = self._checked(nodes, self._links(nodes, passed))
        r = self.text.rendered
        tokens = tuple(TrajectoryToken(text=piece, id=int(r.input_ids[i]), special=bool(r.special[i]),
                                       span=self.text.span(i)) for i, piece in enumerate(self.text.pieces))  # fmt: skip
        counts = dict.fromkeys(self.passes.hookpoints, 0)
        for e in found:
            counts[e.hookpoint] += len(e.token)
        between, to_output = self._agreements(nodes, links)
        return Trajectory(
            model=public_name(self.model), kind=kind_of(self.model), config=self.config,
            hookpoints=tuple(self.passes.hookpoints), tokens=tokens, nodes=nodes, links=links, output=output,
            paths=paths_of(nodes, links, self.passes.hookpoints, self.config.paths), output_reason=self.aim.reason,
            between=between, to_output=to_output, fired=counts, truncated=r.truncated, generated=self.text.generated,
            left_out=self.left_out,
        )  # fmt: skip

    def _late(self) -> bool:
        """Whether the time is over."""
        return monotonic() >= self._end

    def _output(self, passed: Passed) -> tuple[TrajectoryOutput | None, Tensor | None]:
        """What it is, and the number to go back from."""
        head = passed.head
        if head is None:
            return None, None
        if isinstance(self.model, RewardModel):
            value = _short(float(head[0].detach()))
            return TrajectoryOutput(kind="reward", value=value, token="", id=None, at=None), head[0]
        token = int(head.argmax()) if self.aim.token is None else self.aim.token
        self.aim = _Aim(self.aim.at, token, "")
        piece = str(self.model.tokenizer.decode([token], clean_up_tokenization_spaces=False))
        about = TrajectoryOutput(kind="logit", value=_short(float(head[token].detach())),
                                 token=piece, id=token, at=self.aim.at)  # fmt: skip
        return about, head[token]

    def _known(self, found: Sequence[Entries]) -> dict[str, Mapping[int, About]]:
        if self.labels is None:
            return {e.sae: {} for e in found}
        return {e.sae: self.labels(e.sae, np.unique(e.latent).tolist()) for e in found}

    def _nodes(
        self, found: Sequence[Entries], known: Mapping[str, Mapping[int, About]], effects: Sequence[Floats] | None
    ) -> tuple[TrajectoryNode, ...]:  # fmt: skip
        picked = chosen(found, effects, [self._allowed(e, known[e.sae]) for e in found], self.config.nodes)
        levels: dict[tuple[str, int], Level] = {}
        order, nodes = {sae_id: i for i, sae_id in enumerate(self.suite)}, []
        for i, j in picked:
            e, latent = found[i], int(found[i].latent[j])
            key = e.sae, latent
            if key not in levels:
                levels[key] = level_of(() if self.examples is None else self.examples(*key))
            about, share = known[e.sae].get(latent) or About(), float(e.normalised[j])
            nodes.append(TrajectoryNode(
                sae=e.sae, latent=latent, hookpoint=e.hookpoint, token=int(e.token[j]), level=levels[key],
                activation=_short(float(e.value[j])), normalised=None if np.isnan(share) else _short(share),
                on_output=None if effects is None else _short(float(effects[i][j])), **about.model_dump(),
            ))  # fmt: skip
        return tuple(sorted(nodes, key=lambda n: (depth_of(n.hookpoint), n.token, order[n.sae], n.latent)))

    def _allowed(self, e: Entries, known: Mapping[int, About]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Not the token that begins every text: models keep huge activations there (arXiv 2402.17762)."""
        tokenizer, ids = self.model.tokenizer, self.text.rendered.input_ids
        begins = int(ids[0]) == tokenizer.bos_token_id != tokenizer.cls_token_id and len(ids) > 1
        allowed = np.ones(len(e.token), np.bool_)
        if begins:
            allowed &= e.token > 0
        if self.config.explained:
            allowed &= np.isin(e.latent, [latent for latent, about in known.items() if about.state == "text"])
        return allowed

    def _links(self, nodes: Sequence[TrajectoryNode], passed: Passed) -> list[TrajectoryLink]:
        found: list[list[TrajectoryLink]] = []
        missing = 0
        with progress("Links", len(nodes), "features") as advance:
            for i in reversed(
                range(len(nodes))
            ):  # paths begin at the last hookpoint: where time is short, it has links
                earlier = self._earlier(nodes[i], nodes)
                late = bool(earlier) and self._late()
                missing += late
                found.append([] if late or not earlier else self._into(i, nodes, earlier, passed))
                advance(1)
        self.left_out = LeftOut(features=missing)
        links = [link for some in reversed(found) for link in some]
        outward = [TrajectoryLink(source=i, target=None, effect=n.on_output, share=None, ablation=None)
                   for i, n in enumerate(nodes) if n.on_output]  # fmt: skip
        return links + _strongest(outward, self.config.links)

    def _below(self, node: TrajectoryNode) -> list[str]:
        return [name for name in self.passes.hookpoints if depth_of(name) < depth_of(node.hookpoint)]

    def _earlier(self, node: TrajectoryNode, nodes: Sequence[TrajectoryNode]) -> list[int]:
        """Places of the features of earlier hookpoints."""
        below = self._below(node)
        return [j for j, n in enumerate(nodes) if n.hookpoint in below]

    def _into(
        self, i: int, nodes: Sequence[TrajectoryNode], earlier: Sequence[int], passed: Passed
    ) -> list[TrajectoryLink]:  # fmt: skip
        """The strongest links into one feature, by one pass back."""
        node = nodes[i]
        h_D = passed.activations[node.hookpoint][0, node.token]
        with torch.enable_grad():
            z = pre_activation(self.suite[node.sae], h_D, node.latent)
        toward = gradients(z, passed, self._below(node))
        found = []
        for j in earlier:
            effect = self._worth(nodes[j], passed, toward[nodes[j].hookpoint])
            share = effect / node.activation
            if abs(share) >= LEAST:
                found.append(TrajectoryLink(source=j, target=i, effect=_short(effect), share=_short(share),
                                            ablation=None))  # fmt: skip
        return _strongest(found, self.config.links)

    def _worth(self, node: TrajectoryNode, passed: Passed, g_TD: Tensor) -> float:
        sae, at = self.suite[node.sae], slice(node.token, node.token + 1)
        device = sae.W_dec.device
        latent, token = (torch.tensor([v], device=device) for v in (node.latent, 0))
        z = torch.tensor([node.activation], device=device)
        return float(worth(sae, latent, token, z, passed.activations[node.hookpoint][0, at], g_TD[at])[0])

    def _checked(
        self, nodes: Sequence[TrajectoryNode], links: Sequence[TrajectoryLink]
    ) -> tuple[TrajectoryLink, ...]:  # fmt: skip
        """Links with the exact effects of some features, drawn from all from which a link goes out."""
        sources = sorted({link.source for link in links})
        if not self.config.checks or not sources:
            return tuple(links)
        rng = np.random.default_rng(self.config.seed)
        drawn = rng.permutation(len(sources))[: self.config.checks]
        exact: dict[tuple[int, int | None], float] = {}
        before, missing = None, 0
        with progress("Ablation", len(drawn), "features") as advance:
            for source in [sources[i] for i in drawn.tolist()]:  # as drawn: those that are left out are drawn as well
                if self._late():
                    missing += 1
                    continue
                before = self.passes.plain() if before is None else before
                after = self.passes.ablated(_place(nodes[source]))
                for link in links:
                    if link.source == source:
                        exact[source, link.target] = self._lost(nodes, link.target, before, after)
                advance(1)
        self.left_out = self.left_out.model_copy(update={"checks": missing})
        return tuple(link.model_copy(update={"ablation": exact.get((link.source, link.target))}) for link in links)

    def _lost(self, nodes: Sequence[TrajectoryNode], target: int | None, before: Passed, after: Passed) -> float:
        if target is not None:
            there = _place(nodes[target])
            return _short(self.passes.activation(before, there) - self.passes.activation(after, there))
        assert before.head is not None  # noqa: S101 - links to an output come of models that have one
        assert after.head is not None  # noqa: S101
        token = self.aim.token or 0
        return _short(float(before.head[token]) - float(after.head[token]))

    def _agreements(
        self, nodes: Sequence[TrajectoryNode], links: Sequence[TrajectoryLink]
    ) -> tuple[Agreement, Agreement]:  # fmt: skip
        between: list[_Pair] = []
        outward: list[_Pair] = []
        for link in links:
            if link.ablation is None:
                continue
            if link.target is None:
                outward.append(_Pair(link.source, link.effect, link.ablation, silenced=False))
            else:
                z = nodes[link.target].activation
                gone = link.ablation >= z * (1 - 1e-5)
                between.append(_Pair(link.source, link.effect / z, link.ablation / z, silenced=gone))
        return _agreement(between, self.config.seed), _agreement(outward, self.config.seed)


@dataclass(frozen=True)
class _Pair:
    source: int
    effect: float
    ablation: float
    silenced: bool


def _agreement(pairs: Sequence[_Pair], seed: int) -> Agreement:
    """Resampled by the feature that was ablated: its links share one pass."""
    n = len(pairs)
    if n < 3:
        none = Estimate.not_available(f"{n} links were checked, too few", n)
        return Agreement(links=n, spearman=none, same_sign=none, silenced=sum(p.silenced for p in pairs))
    effect, ablation = (np.asarray([getattr(p, name) for p in pairs]) for name in ("effect", "ablation"))
    sources = sorted({p.source for p in pairs})
    rows = [np.flatnonzero([p.source == s for p in pairs]) for s in sources]
    same = (np.sign(effect) == np.sign(ablation)).astype(np.float64)

    def over(statistic: Floats | None) -> Estimate:
        def value(drawn: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
            some = np.concatenate([rows[i] for i in drawn.tolist()])
            return spearman(effect[some], ablation[some]) if statistic is None else float(statistic[some].mean())

        found = bootstrap(value, len(rows), seed=seed)
        if found.value is not None and len(rows) == 1:
            found = Estimate(value=found.value, reason="no interval: one feature was ablated")
        return found.model_copy(update={"n": n})

    return Agreement(links=n, spearman=over(None), same_sign=over(same), silenced=sum(p.silenced for p in pairs))


def _place(node: TrajectoryNode) -> Place:
    return Place(node.sae, node.latent, node.hookpoint, node.token)


def _strongest(links: Sequence[TrajectoryLink], n: int) -> list[TrajectoryLink]:
    return sorted(links, key=lambda link: (-abs(link.effect), link.source))[:n]


def _short(value: float) -> float:
    """Seven digits, what float32 holds."""
    return float(f"{value:.7g}")
