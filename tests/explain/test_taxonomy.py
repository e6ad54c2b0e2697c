from __future__ import annotations

from pathlib import Path

import pytest

from seamark.errors import DataError, FormatError
from seamark.explain import Tag, Taxonomy
from seamark.explain.taxonomy import fold
from seamark.text import demo_contrast_pairs

PAPER = {
    "politics": ["figure", "event", "ideology", "cult"],
    "pornography": ["behaviour", "abuse", "health", "intimate relationship"],
    "violence": ["insult", "physical", "criminal", "cyber", "conflict"],
    "terror": ["terrorism", "religious oppression", "extremist activities", "weapons"],
}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_default_is_the_papers() -> None:
    found = Taxonomy.default()
    assert {name: list(domain.concepts) for name, domain in found.domains.items()} == PAPER
    assert len(found.tags) == 4 + 17
    for tag in found.tags:
        concept = found.concept(tag)
        assert concept.description.endswith(".")
        assert concept.keywords
        assert any(not word.isascii() for word in concept.keywords) or tag == Tag("pornography", "behaviour"), tag
    assert all(len(tags) == 1 for tags in found.keywords.values())  # a word speaks for one tag
    assert found.keywords["election"] == (Tag("politics", "event"),)
    assert found.keywords["枪"] == (Tag("terror", "weapons"),)


def test_default_knows_the_demo_pairs() -> None:
    pairs = {(p.domain, p.concept) for p in demo_contrast_pairs()}
    assert {(t.domain, t.concept) for t in Taxonomy.default().tags if t.concept} == pairs


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("violence/physical", Tag("violence", "physical")),
        (" Violence / PHYSICAL ", Tag("violence", "physical")),
        ("violence: physical", Tag("violence", "physical")),
        ("Violence > Physical", Tag("violence", "physical")),
        ("physical", Tag("violence", "physical")),
        ("terror/weapon", Tag("terror", "weapons")),
        ("Extremist_Activity", Tag("terror", "extremist activities")),
        ("intimate-relationships", Tag("pornography", "intimate relationship")),
        ("behavior", Tag("pornography", "behaviour")),
        ("Politics", Tag("politics")),
        ("politic", Tag("politics")),
        (Tag("terror"), Tag("terror")),
    ],
)
def test_free_tags_find_their_place(given: str | Tag, tag: Tag) -> None:
    assert Taxonomy.default().check([given]) == [tag]


def test_unknown_tags_are_named_never_dropped() -> None:
    taxonomy = Taxonomy.default()
    found = taxonomy.sort_out(["violence", "gardening", "Physical", "violence/figure", "a/b/c", "", "gardening"])
    assert found.known == (Tag("violence", "physical"),)  # the domain is said by its concept
    assert found.unknown == ("gardening", "violence/figure", "a/b/c", "")
    with pytest.raises(DataError, match=r"unknown tags: 'gardening'.*Known: politics, politics/figure"):
        taxonomy.check(["violence", "gardening"])


def test_tags_keep_their_order_and_come_once() -> None:
    taxonomy = Taxonomy.default()
    tags = ["terror", "insult", "violence/insult", "politics"]
    assert taxonomy.check(tags) == [Tag("terror"), Tag("violence", "insult"), Tag("politics")]
    for tag in taxonomy.tags:
        assert taxonomy.check([str(tag)]) == [tag]


def test_a_name_in_two_domains_needs_its_domain(tmp_path: Path) -> None:
    path = write(tmp_path, "domains:\n  fraud: {concepts: [phone, insult]}\n  terror: {concepts: [phone]}\n")
    taxonomy = Taxonomy.load(path)
    assert taxonomy.check(["fraud/phone", "insult"]) == [Tag("fraud", "phone"), Tag("fraud", "insult")]
    assert taxonomy.sort_out(["phone"]).unknown == ("phone",)


def test_extending_adds_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, """
domains:
  Fraud:
    description: Deceit for money.
    keywords: [fraudster]
    concepts:
      phone: {description: By phone., keywords: [caller]}
  violence:
    concepts:
      Insults: {keywords: [insults, nag]}
      animal: {description: Against animals.}
""")  # fmt: skip
    alone, found = Taxonomy.load(path), Taxonomy.load(path, extend=True)
    assert list(alone.domains) == ["Fraud", "violence"]
    assert list(found.domains) == [*PAPER, "Fraud"]
    assert list(found.domains["violence"].concepts) == [*PAPER["violence"], "animal"]
    insult, before = found.concept(Tag("violence", "insult")), Taxonomy.default().concept(Tag("violence", "insult"))
    assert insult.description == before.description
    assert [fold(w) for w in insult.keywords] == [*(fold(w) for w in before.keywords), "nag"]
    assert found.check(["fraud/phone"]) == [Tag("Fraud", "phone")]
    assert found.keywords["fraudster"] == (Tag("Fraud"),)
    assert Taxonomy.default().domains.keys() == PAPER.keys()  # the default is as it was


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domains: [", r"line 1: no YAML"),
        ("just words", r"no domains"),
        ("domains: {}", r"no domains"),
        ("domains: {a: {words: [x]}}", r"key domains\.a\.words: "),
        ("domains: {a: {keywords: x}}", r"key domains\.a\.keywords"),
        ("domains: {a: {concepts: 3}}", r"key domains\.a\.concepts"),
        ("domains: {a/b: {}}", r"holds none of"),
        ('domains: {"a\\nb": {}}', r"printable"),
        ("domains: {Weapon: {}, weapons: {}}", r"cannot be told apart"),
        ("domains: {a: {concepts: [x, X]}}", r"cannot be told apart"),
        ("format_version: 9\ndomains: {a: {}}", r"format version 9"),
        ("more: 1\ndomains: {a: {}}", r"key more"),
        (f"domains: {{a: {{description: {'x' * 201}}}}}", r"key domains\.a\.description: .*at most 200 characters"),
        (
            f"domains: {{a: {{concepts: {{b: {{description: {'x' * 201}}}}}}}}}",
            r"concepts\.b\.description: .*at most 200",
        ),
        (f"domains: {{a: {{concepts: [{', '.join(f'c{i}' for i in range(300))}]}}}}", r"301 tags .*at most 300"),
        (
            "domains: {a: {concepts: {" + ", ".join(f"c{i}: {{description: {'x' * 199}}}" for i in range(110)) + "}}}",
            r"111 tags of 22,\d+ characters .*at most 300 and 20,000",
        ),
    ],
)
def test_bad_files_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    for extend in (False, True):
        with pytest.raises(FormatError, match=message) as e:
            Taxonomy.load(write(tmp_path, text), extend=extend)
        assert "mine.yaml" in str(e.value)


def test_too_many_tags_together(tmp_path: Path) -> None:
    path = write(tmp_path, f"domains: {{a: {{concepts: [{', '.join(f'c{i}' for i in range(290))}]}}}}")
    assert len(Taxonomy.load(path).tags) == 291
    with pytest.raises(FormatError, match=r"mine\.yaml: not a taxonomy: .*312 tags"):
        Taxonomy.load(path, extend=True)
    path.write_text(f"domains: {{a: {{description: {'x' * 200}}}}}", encoding="utf-8")
    assert len(Taxonomy.load(path, extend=True).domains["a"].description) == 200


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        Taxonomy.load(tmp_path / "none.yaml")


def test_unknown_tag_has_no_concept() -> None:
    with pytest.raises(DataError, match="no tag 'violence/gardening'"):
        Taxonomy.default().concept(Tag("violence", "gardening"))
    with pytest.raises(DataError, match="no tag 'gardening'"):
        Taxonomy.default().concept(Tag("gardening"))


@pytest.mark.parametrize(
    ("a", "b"),
    [("Cities", "city"), ("gun-rights", "Gun  Right"), ("behaviours", "behavior"), ("matches", "match"),
     ("radicalise", "radicalize"), ("ＷＡＲ", "war")],
)  # fmt: skip
def test_fold_joins(a: str, b: str) -> None:
    assert fold(a) == fold(b)


@pytest.mark.parametrize(
    ("a", "b"), [("terror", "terrorism"), ("virus", "viru"), ("our", "or"), ("rise", "rize"), ("bass", "bas")]
)
def test_fold_keeps_apart(a: str, b: str) -> None:
    assert fold(a) != fold(b)
