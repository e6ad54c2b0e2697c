"""What `diagnose languages` gives: languages, strata of features, and single features. Plain JSON."""

from __future__ import annotations

from typing import Literal

from seamark.atlas.records import Record
from seamark.diagnose.parallel import Tokenised
from seamark.stats import Estimate

ALL = "all"
"""All hookpoints; all features."""
State = Literal["kept", "falls away", "unclear"]


class LanguagesConfig(Record):
    """What counts as firing, keeping and falling away."""

    fires_at: float = 0.0
    """A feature fires in a text where its largest z / Q_f is above this."""
    threshold: float = 0.5
    """Retention that has to be reached."""
    fdr: float = 0.05
    """Share of false finds allowed among features that fall away (Benjamini-Hochberg)."""
    least: int = 10
    """Prompts in whose reference text a feature must fire to be judged by itself."""
    draws: int = 1000
    seed: int = 0
    chat: bool = False
    """Read prompts with the chat template, as a model is asked them; else as plain texts."""
    max_length: int | None = None

    @property
    def rule(self) -> str:
        """When a language is flagged."""
        return (f"missing: the upper end of the 95 % interval of retention (share of the features firing in the "
                f"reference that still fire) lies below {self.threshold:g}; by chance: retention does not surely "
                f"exceed that by texts of other prompts")  # fmt: skip

    @property
    def feature_rule(self) -> str:
        """When a single feature is said to be kept, or to fall away."""
        return (f"falls away: weaker with a q-value of at most {self.fdr:g}, and the upper end of its retention below "
                f"{self.threshold:g}; kept: the lower end at {self.threshold:g} or above; else unclear; fires in "
                f"fewer than {self.least} reference prompts: not judged")  # fmt: skip


class Stratum(Record):
    """Features of a hookpoint and a domain in one language, all prompts together."""

    hookpoint: str
    domain: str
    features: int
    """Those with a Q_f."""
    fired: Estimate
    """Mean number of them that fire in a prompt of the reference."""
    retention: Estimate
    """Share of those firing in the reference that still fire in the translation."""
    chance: Estimate
    """The same with another prompt's text in the language in place of the translation."""
    above_chance: Estimate
    """`retention` − `chance`, on the same draws."""
    against_others: Estimate
    """`above_chance` of a domain − that of all features outside of it at the same hookpoints: below 0, the domain falls
    away more than the language as a whole."""
    within: Estimate
    """Share of those firing in one text of the language that fire in another prompt's text of it: what texts of the
    language have in common whatever they say."""
    reference_within: Estimate
    """The same among the reference's texts of these prompts."""
    flagged: bool
    chance_only: bool
    """Whether `above_chance` reaches down to 0: what still fires would fire whatever the text says."""


class LanguageResult(Record):
    """One language against the reference."""

    language: str
    prompts: int
    cut: int
    """Prompts left out because a text, here or in the reference, is longer than the model reads."""
    tokenised: Tokenised | None = None
    strata: tuple[Stratum, ...] = ()
    kept: int = 0
    falls_away: int = 0
    unclear: int = 0
    flagged: tuple[str, ...] = ()
    """The watched domains (all features, where none is watched) that go missing over all hookpoints."""
    caveat: str = ""
    reason: str = ""
    """Why it cannot be compared."""


class InLanguage(Record):
    """A feature in one language."""

    language: str
    prompts: int
    fired: int
    """Prompts in whose reference text it fires."""
    reference: float
    """Mean over prompts of the largest z / Q_f in the reference's text."""
    activation: float
    """The same in this language's."""
    difference: Estimate
    q_value: float | None
    retention: Estimate
    chance: float | None
    state: State | None
    """None: not judged."""


class LanguageFeature(Record):
    """A feature in all languages."""

    sae: str
    latent: int
    hookpoint: str
    q: float
    label: str | None = None
    domains: tuple[str, ...] = ()
    languages: tuple[InLanguage, ...]

    @property
    def kept_in(self) -> list[str]:
        return [found.language for found in self.languages if found.state == "kept"]

    @property
    def falls_away_in(self) -> list[str]:
        return [found.language for found in self.languages if found.state == "falls away"]


class ReadSae(Record):
    """An autoencoder that was read."""

    id: str
    hookpoint: str
    d_sae: int
    with_q: int
    q_from: str
    """Where Q_f is from, and why."""


class LanguagesReport(Record):
    """The same prompts in several languages."""

    model: str
    reference: str
    config: LanguagesConfig
    rule: str
    feature_rule: str
    prompts: int
    rejected: int
    """Texts and rows that could not be used."""
    saes: tuple[ReadSae, ...]
    watched: tuple[str, ...]
    """Domains whose features are looked at by themselves, with flags; empty: all features are."""
    reference_tokenised: Tokenised
    languages: tuple[LanguageResult, ...]
    in_all: int
    """Features kept in every one of `in_all_of`."""
    in_all_of: tuple[str, ...]
    """The languages in which single features could be judged."""
    features: tuple[LanguageFeature, ...]
    """Those that fall away in most languages, the largest fall first; then those kept in most, the farthest beyond
    chance first."""
    caveats: tuple[str, ...]
