"""Scans of odd corpora: too long, empty, without punctuation, in many scripts, hostile, all alike."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from feature_corpus import make_pairs, make_sae, tiny
from numpy.typing import NDArray
from test_scan import files

import seamark.features.scan_texts as scan_texts
from seamark.errors import DataError, ModelError
from seamark.features import Scan, ScanConfig, scan
from seamark.features.accumulate import RESPONSE, SCORING
from seamark.features.arrays import read_table
from seamark.features.gather import gather
from seamark.features.reading import Stat
from seamark.features.scan_texts import ScanTexts
from seamark.features.token_latents import TokenLatents
from seamark.model.loading import HookedModel
from seamark.run import RssMeter
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.corpus import Corpus
from seamark.text.pairs import Message, Pairs, PreferencePair
from seamark.text.positions import Kind, Rule, Scope, positions
from seamark.text.rendering import Rendered
from tiny import tiny_hooked

KINDS = ("llama", "bert", "gpt2")
STATS: tuple[Stat, ...] = get_args(Stat)
LONG = "The ships came in, one by one; the harbour was full. "


def make_suite() -> dict[str, SparseAutoencoder]:
    """An autoencoder of each kind of selection, on three hookpoints."""
    suite = {"topk": make_sae("layers.2", k=9), "again": make_sae("layers.2", k=4, d_sae=64, seed=3)}
    for name, hookpoint, k in (("jumprelu", "layers.1.mlp", None), ("batch_topk", "layers.0.attn", 6)):
        config = SAEConfig(d_in=32, d_sae=80, k=k, activation=cast("Any", name), hookpoint=hookpoint)
        sae = SparseAutoencoder(config, seed=7).eval()
        assert sae.threshold is not None
        sae.threshold.data.uniform_(0.5, 2.5, generator=torch.Generator().manual_seed(1))
        suite[name] = sae
    return suite


def pair(
    name: str, chosen: Any, rejected: Any = "No; wait, please.", prompt: Any = "Is the tea hot?"
) -> PreferencePair:
    return PreferencePair(id=name, group="safety", prompt=prompt, chosen=chosen, rejected=rejected)


ODD = {
    "plain": pair("plain", "Wait an hour, then ask Dr. Smith; it is 3.14 km away. Thank you!"),
    "long": pair("long", LONG * 40),
    "long prompt": pair("long prompt", "Yes, it is hot.", prompt=LONG * 40),
    "empty": pair("empty", ""),
    "spaces": pair("spaces", " \n\t  "),
    "no end": pair("no end", "we walked to the harbour and watched the ships come in"),
    "one token": pair("one token", "a", "."),
    "no prompt": pair("no prompt", "Bread, salt, and water.", prompt=""),
    "blank prompt": pair("blank prompt", "Bread, salt, and water.", prompt="  \n "),
    "chat": pair("chat", "Paris, of course.", prompt=(Message("user", "Hi."), Message("assistant", "Hello, you."),
                                                      Message("user", "What is the capital of France?"))),
    "marks": pair("marks", "?!… .,;:", "。"),
    "same": pair("same", "Flour, water, salt.", "Flour, water, salt."),
}  # fmt: skip
TRUNCATED = {"long:chosen", "long prompt:chosen", "long prompt:rejected"}
SILENT = {"empty:chosen", "spaces:chosen"}


def odd_pairs() -> Pairs:
    return Pairs(tuple(ODD.values()))


@dataclass(frozen=True)
class Row:
    """What a scan's files say of one text."""

    about: dict[str, Any]
    rendered: dict[str, Any]
    read: NDArray[np.int32]
    """Positions that were read."""
    scored: NDArray[np.int32]
    """Those of them that are scored."""
    answered: NDArray[np.int32]
    """Those of them that are marked as of the response."""


def rows_of(found: Scan) -> Iterator[Row]:
    for part in found.parts:
        about, rendered = (read_table(part / f"{name}.parquet").to_pylist() for name in ("texts", "rendered"))
        shards = TokenLatents(part)
        for i, one in enumerate(about):
            stored = shards.positions(i)
            scored, answered = ((stored.flags & flag) != 0 for flag in (SCORING, RESPONSE))
            yield Row(one, rendered[i], stored.position, stored.position[scored], stored.position[answered])


def check_positions(row: Row) -> None:
    """Positions ascend; none is special or outside of the text; the flags are right."""
    start, end = row.rendered["response_span"]
    assert (np.diff(row.read) > 0).all()
    assert not any(row.rendered["special"][t] for t in row.read.tolist())
    assert row.answered.tolist() == [t for t in row.read.tolist() if start <= t < end]
    assert row.about["n_positions"] == len(row.scored)
    assert row.about["n_tokens"] == len(row.rendered["input_ids"])
    assert row.about["n_response"] == end - start


def check_answer(row: Row) -> None:
    """`check_positions`, and that clause ends of the default rule lie in the response, its last token among them."""
    check_positions(row)
    start, end = row.rendered["response_span"]
    assert start < end, row.about["text_id"]
    assert row.scored[0] >= start
    assert row.scored[-1] == end - 1, row.about["text_id"]


@cache
def dense_texts(kind: str) -> tuple[list[Rendered], list[dict[str, NDArray[np.float32]]]]:
    """The odd pairs, rendered, and of each text {autoencoder: max(z, 0) [T, d_sae]}, read alone."""
    model = tiny(kind)
    renderer = model.renderer()
    texts = [t for p in odd_pairs() for t in renderer.render_pair(p)]
    suite = make_suite()
    hookpoints = sorted({sae.config.hookpoint for sae in suite.values()})
    found = []
    for row, text in enumerate(texts):
        got = gather(model, texts, [row], [np.arange(len(text), dtype=np.int32)], hookpoints)
        latents = {i: sae.encode(got.activations[sae.config.hookpoint]) for i, sae in suite.items()}
        found.append({i: z.positive().dense().numpy() for i, z in latents.items()})
    return texts, found


def pooled_densely(z: NDArray[np.float32], stat: Stat) -> NDArray[np.float64]:
    """Rows of a text [n, d_sae] as one; nothing of nothing."""
    if not len(z):
        return np.zeros(z.shape[1])
    by: dict[str, Any] = {"sum": z.sum(0, np.float64), "count": (z > 0).sum(0)}
    return np.asarray(by[stat] if stat in by else z.mean(0, np.float64) if stat == "mean" else z.max(0), np.float64)


@pytest.mark.parametrize("context_positions", ["tokens", "scoring"])
@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_choice_of_positions_gives_what_a_dense_recomputation_gives(
    tmp_path: Path, kind: Kind, rule: Rule, scope: Scope, context_positions: Any
) -> None:
    config = ScanConfig(positions=kind, rule=rule, scope=scope, context_positions=context_positions, batch_tokens=700)
    found = scan(tiny(), make_suite(), odd_pairs(), tmp_path, config=config)
    texts, dense = dense_texts("llama")
    scored = [positions(t, kind, rule, scope) for t in texts]
    read = scored
    if context_positions == "tokens":
        read = [np.union1d(s, positions(t, "tokens")) for s, t in zip(scored, texts, strict=True)]
    for row, text, at, place in zip(rows_of(found), texts, scored, read, strict=True):
        assert row.about["text_id"] == text.text_id
        check_positions(row)
        assert row.scored.tolist() == at.tolist()
        assert row.read.tolist() == place.tolist()
    for sae_id in found.sae_ids:
        for stat in STATS:
            expected = np.stack([
                pooled_densely(z[sae_id][place if stat == "read_max" else at], stat)
                for z, at, place in zip(dense, scored, read, strict=True)
            ])  # fmt: skip
            np.testing.assert_allclose(found.pooled(sae_id, stat).toarray(), expected, rtol=1e-4, atol=1e-5,
                                       err_msg=f"{sae_id} {stat}")  # fmt: skip
        z = np.concatenate([d[sae_id][at] for d, at in zip(dense, scored, strict=True)])
        stats = found.feature_stats(sae_id)
        np.testing.assert_array_equal(stats.count, (z > 0).sum(0))
        np.testing.assert_allclose(stats.sum, z.sum(0, np.float64), rtol=1e-4, atol=1e-5)
        check_q(stats.q, dense, read, sae_id, texts)


def check_q(
    q: NDArray[np.float64], dense: list[dict[str, NDArray[np.float32]]], read: list[NDArray[np.int32]], sae_id: str,
    texts: list[Rendered],
) -> None:  # fmt: skip
    """Q_f is over the positions that were read in the responses."""
    inside = [p[(p >= t.response_span[0]) & (p < t.response_span[1])] for p, t in zip(read, texts, strict=True)]
    z = np.concatenate([d[sae_id][p] for d, p in zip(dense, inside, strict=True)])
    for latent in range(z.shape[1]):
        fired = z[:, latent][z[:, latent] > 0]
        if len(fired) < 10:
            assert np.isnan(q[latent])
        else:
            assert q[latent] == pytest.approx(np.quantile(fired, 0.999, method="inverted_cdf"), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_pairs(tmp_path: Path, kind: str) -> None:
    """Each is defined: what is too long is cut and counted, what is empty has no position, all else has its last."""
    model = tiny(kind)
    found = scan(model, make_suite(), odd_pairs(), tmp_path, config=ScanConfig(batch_tokens=700))
    rows = {row.about["text_id"]: row for row in rows_of(found)}
    assert list(rows) == [f"{name}:{side}" for name in ODD for side in ("chosen", "rejected")]
    for text_id, row in rows.items():
        assert (row.about["truncated"] > 0) == (text_id in TRUNCATED), text_id
        assert (row.about["n_tokens"] == model.max_length) == (text_id in TRUNCATED), text_id
        if text_id in SILENT:
            check_positions(row)
            assert row.about["n_positions"] == row.about["n_response"] == 0
        else:
            check_answer(row)
    assert found.manifest["truncated_texts"] == len(TRUNCATED)
    assert found.manifest["tokens"] == sum(row.about["n_tokens"] for row in rows.values())
    assert found.manifest["positions"] == {"safety": sum(len(row.scored) for row in rows.values())}
    assert rows["one token:chosen"].about["n_response"] == rows["one token:rejected"].about["n_positions"] == 1
    assert rows["no end:chosen"].about["n_positions"] == 1
    long = rows["long:chosen"]
    shown = long.rendered["text"][: long.rendered["end"][long.read[-1]]]
    assert shown.endswith((LONG * 2).rstrip())  # the end is what stays
    assert rows["long prompt:chosen"].about["n_response"] == rows["long prompt:chosen"].answered.size
    assert np.isfinite(found.texts["reward"].to_numpy()).all()
    assert np.isfinite(list(found.margins().values())).all()
    for sae_id in found.sae_ids:
        matrix = found.pooled(sae_id, "mean")
        assert np.isfinite(matrix.data).all()
        for i, text_id in enumerate(rows):
            assert (matrix[i].nnz == 0) >= (text_id in SILENT)
    same = [rows[f"same:{side}"] for side in ("chosen", "rejected")]
    assert same[0].about["content"] == same[1].about["content"]
    assert found.margins()["same"] == pytest.approx(0, abs=1e-5)


def test_a_batch_of_nothing_but_empty_answers(tmp_path: Path) -> None:
    pairs = Pairs((*(pair(f"e{i}", "", "") for i in range(5)), ODD["plain"]))
    found = scan(tiny(), make_suite(), pairs, tmp_path, config=ScanConfig(batch_tokens=1))
    assert found.n_positions.tolist()[:10] == [0] * 10
    assert found.pooled("jumprelu", "count")[:10].nnz == found.pooled("batch_topk", "read_max")[:10].nnz == 0
    only = Pairs(tuple(pair(f"e{i}", "", "") for i in range(3)))
    with pytest.raises(DataError, match="no text of group 'safety' has a position"):
        scan(tiny(), make_suite(), only, tmp_path / "only")


def test_texts_that_the_papers_rule_gives_no_position(tmp_path: Path) -> None:
    config = ScanConfig.paper(scope="response")
    found = scan(tiny(), {"s": make_sae()}, odd_pairs(), tmp_path, config=config)
    counts = dict(zip(found.texts["text_id"].to_pylist(), found.n_positions.tolist(), strict=True))
    for name in ("one token:chosen", "one token:rejected", "no end:chosen", *SILENT):
        assert counts[name] == 0, name
    assert counts["plain:chosen"] > 1
    matrix = found.pooled("s")
    assert matrix[found.n_positions == 0].nnz == 0
    assert np.isfinite(matrix.data).all()


LANGUAGES = {
    "English": "The tea is hot,| please wait a little.", "French": "Le thé est chaud,| attends un peu.",
    "German": "Der Tee ist heiß,| bitte warte.", "Spanish": "¡El té está caliente!| Espera un poco.",
    "Portuguese": "O chá está quente,| espere um pouco.", "Italian": "Il tè è caldo,| aspetta un momento.",
    "Dutch": "De thee is heet,| wacht even.", "Swedish": "Teet är varmt,| vänta lite.",
    "Finnish": "Tee on kuumaa,| odota hetki.", "Polish": "Herbata jest gorąca,| poczekaj chwilę.",
    "Czech": "Čaj je horký,| počkej chvíli.", "Hungarian": "A tea forró,| várj egy kicsit.",
    "Romanian": "Ceaiul este fierbinte,| așteaptă puțin.", "Turkish": "Çay sıcak,| biraz bekle.",
    "Vietnamese": "Trà còn nóng,| hãy chờ một chút.", "Indonesian": "Tehnya masih panas,| tunggu sebentar.",
    "Swahili": "Chai ni moto,| subiri kidogo.", "Esperanto": "La teo estas varma,| atendu iomete.",
    "Greek": "Το τσάι είναι ζεστό·| περίμενε λίγο.", "Russian": "Чай горячий,| подожди немного.",
    "Ukrainian": "Чай гарячий,| зачекай трохи.", "Bulgarian": "Чаят е горещ,| почакай малко.",
    "Georgian": "ჩაი ცხელია,| ცოტა მოიცადე.", "Armenian": "Թեյը տաք է՝| մի քիչ սպասիր։",
    "Hebrew": "התה חם,| חכה רגע.", "Arabic": "الشاي ساخن،| انتظر قليلا.",
    "Persian": "چای داغ است؛| کمی صبر کن.", "Urdu": "چائے گرم ہے،| ذرا انتظار کریں۔",
    "Syriac": "ܫܠܡܐ ܠܟ،| ܐܝܟܢ ܐܢܬ؟", "Dhivehi": "ސައި ހޫނު،| މަޑުކުރޭ.",
    "Hindi": "चाय गरम है।| थोड़ा रुको।", "Marathi": "चहा गरम आहे,| थोडे थांबा.",
    "Nepali": "चिया तातो छ,| एकछिन पर्खनुहोस्।", "Bengali": "চা গরম,| একটু অপেক্ষা করো।",
    "Punjabi": "ਚਾਹ ਗਰਮ ਹੈ,| ਥੋੜ੍ਹਾ ਰੁਕੋ।", "Gujarati": "ચા ગરમ છે,| થોડી રાહ જુઓ.",
    "Odia": "ଚା ଗରମ ଅଛି,| ଟିକିଏ ଅପେକ୍ଷା କର।", "Tamil": "தேநீர் சூடு,| சற்று பொறு.",
    "Telugu": "టీ వేడిగా ఉంది,| కాస్త ఆగు.", "Kannada": "ಚಹಾ ಬಿಸಿ,| ಸ್ವಲ್ಪ ಕಾಯಿರಿ.",
    "Malayalam": "ചായ ചൂടാണ്,| അല്പം നിൽക്കൂ.", "Sinhala": "තේ උණුසුම්,| ටිකක් ඉන්න෴",
    "Thai": "ชาร้อนมาก |รอสักครู่", "Lao": "ຊາຮ້ອນ |ລໍຖ້າກ່ອນ", "Burmese": "လက်ဖက်ရည်ပူတယ်၊| ခဏစောင့်ပါ။",
    "Khmer": "តែក្តៅ៖| សូមរង់ចាំ។", "Tibetan": "ཇ་ཚ་པོ་འདུག།| ཅུང་ཙམ་སྒུགས།", "Amharic": "ሻይው ትኩስ ነው፣| ትንሽ ጠብቅ።",
    "Chinese": "茶很烫，|请等一下。", "Japanese": "お茶が熱いので、|少し待ってください。",
    "Korean": "차가 뜨거우니,| 잠시 기다리세요.", "Mongolian": "ᠴᠠᠢ ᠬᠠᠯᠠᠭᠤᠨ᠂| ᠵᠢᠭᠠᠬᠠᠨ ᠬᠦᠯᠢᠶᠡ᠃",
    "Cherokee": "ᎣᏏᏲ ᏂᎯ,| ᏙᎯᏧ ᏂᎯ?", "Inuktitut": "ᑏ ᐆᓇᖅᑐᖅ,| ᐅᑕᖅᑭᑦ᙮",
}  # fmt: skip
"""A mild sentence of two clauses in each language, with its own comma and full stop; `|` marks the first's end."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_punctuation_of_many_languages(tmp_path: Path, kind: str) -> None:
    assert len(LANGUAGES) >= 40
    said = {name: text.replace("|", "") for name, text in LANGUAGES.items()}
    pairs = Pairs(tuple(pair(name, text) for name, text in said.items()))
    found = scan(tiny(kind), {"s": make_sae()}, pairs, tmp_path)
    assert found.manifest["truncated_texts"] == 0
    for row in rows_of(found):
        check_answer(row)
        if kind == "bert" or row.about["side"] == "rejected":
            continue  # a WordPiece may take a whole foreign word, and with it the clause, as one unknown token
        name, text = row.about["pair_id"], row.rendered["text"]
        end = text.rindex(said[name]) + len(LANGUAGES[name].partition("|")[0].rstrip()) - 1
        held = [(row.rendered["start"][t], row.rendered["end"][t]) for t in row.scored.tolist()]
        assert any(a <= end < b for a, b in held[:-1]), f"{name}: no position at the comma"


MARKED = {
    "family": "A family: 👩\u200d👩\u200d👧\u200d👦, and flags 🇫🇷🇯🇵. Good 👍🏽!",
    "combining": "Cafe\u0301, nai\u0308ve; Z" + "\u0351\u0300" * 20 + "algo. Done",
    "right to left": "abc \u202eהתה חם\u202c, ok. \u2067שלום\u2069 \u200fend",
    "invisible": "zero\u200bwidth\u2060, soft\u00adhyphen; \ufeffmark.",
    "only emoji": "🍵🍞🌊",
    "only marks": "\u200b\u200d\u2060",
    "control": "bell\x07, null\x00, escape\x1b[31m red; end",
    "astral": "𝔗𝔥𝔢 𝔱𝔢𝔞, 𠜎𠜱. 🜁",
    "private": "private \U0010ff00\U0010ff01, use\ue000.",
    "lines": "one\r\ntwo\u2028three\u0085four\x0cfive",
}


@pytest.mark.parametrize("kind", KINDS)
def test_emoji_combining_and_invisible_characters(tmp_path: Path, kind: str) -> None:
    found = scan(tiny(kind), {"s": make_sae(k=20)}, Pairs(tuple(pair(n, t) for n, t in MARKED.items())), tmp_path)
    for i, row in enumerate(rows_of(found)):
        if kind == "bert" and row.about["text_id"] in ("only marks:chosen",):  # which WordPiece drops
            assert row.about["n_positions"] == row.about["n_response"]
            continue
        check_answer(row)
        shown = "".join(found.token_texts.read(i).tokens)
        assert shown in row.rendered["text"]
        if kind != "bert" and row.about["side"] == "chosen":
            assert shown.strip() == MARKED[row.about["pair_id"]].strip()


def test_half_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="p1:chosen: the text holds a lone surrogate"):
        scan(tiny(), {"s": make_sae()}, Pairs((ODD["plain"], pair("p1", "half \ud83d."))), tmp_path)


CONTROL = {
    "llama": "<|eot_id|><|begin_of_text|>system<|end_header_id|>, <|end_of_text|> I am text.",
    "bert": "[SEP] [CLS], [PAD] [MASK] I am text.",
    "gpt2": "<|endoftext|>, I am text <|endoftext|>",
}


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_data_stay_text(tmp_path: Path, kind: str) -> None:
    model, said = tiny(kind), CONTROL[kind]
    found = scan(model, {"s": make_sae()}, Pairs((pair("c", said, prompt=said), pair("d", said * 2))), tmp_path)
    special = set(model.tokenizer.all_special_ids)
    for row in rows_of(found):
        check_answer(row)
        start, end = row.rendered["response_span"]
        ids = row.rendered["input_ids"]
        unknown = model.tokenizer.unk_token_id
        assert not [i for i in ids[start:end] if i in special and i != unknown]
        assert not any(row.rendered["special"][start:end])
        if row.about["side"] == "chosen":
            shown = row.rendered["text"][row.rendered["start"][start] : row.rendered["end"][end - 1]]
            assert shown.strip() == said * (1 if row.about["pair_id"] == "c" else 2)


TEXT = "No, wait."


def alike(n: int, text: str = TEXT) -> Corpus:
    return Corpus(tuple((f"t{i}", text) for i in range(n)))


def test_many_identical_texts(tmp_path: Path) -> None:
    n = 3000
    found = scan(tiny("bert"), make_suite(), alike(n), tmp_path / "many", config=ScanConfig(batch_tokens=4096))
    one = scan(tiny("bert"), make_suite(), alike(1), tmp_path / "one")
    assert found.texts["text_id"].to_pylist() == [f"t{i}" for i in range(n)]
    assert len(set(found.texts["content"].to_pylist())) == 1
    assert found.manifest["positions"] == {"texts": n * int(one.n_positions[0])}
    np.testing.assert_allclose(found.texts["reward"].to_numpy(), one.texts["reward"][0].as_py(), rtol=1e-4)
    for sae_id in found.sae_ids:
        for stat in STATS:
            expected = one.pooled(sae_id, stat).toarray()
            assert abs(found.pooled(sae_id, stat).toarray() - expected).max() <= 1e-4 * expected.max()
        np.testing.assert_array_equal(found.feature_stats(sae_id).count, n * one.feature_stats(sae_id).count)
        fires = one.feature_stats(sae_id).count > 0
        assert fires.any()
        assert np.isfinite(found.q(sae_id)[fires]).all()


def test_identical_pairs_with_different_ids(tmp_path: Path) -> None:
    pairs = Pairs(tuple(pair(f"p{i}", "Bread, salt, and water.") for i in range(40)))
    found = scan(tiny(), {"s": make_sae(k=20)}, pairs, tmp_path)
    assert list(found.rows_by_pair) == pairs.ids
    assert len(set(found.texts["prompt"].to_pylist())) == 1
    assert len(set(found.texts["content"].to_pylist())) == 2
    sides = [found.pooled("s").toarray()[[rows[i] for rows in found.rows_by_pair.values()]] for i in (0, 1)]
    for side in sides:
        np.testing.assert_allclose(side, np.broadcast_to(side[0], side.shape), rtol=1e-4, atol=1e-6)
    assert abs(sides[0] - sides[1]).max() > 0.01
    assert np.ptp(list(found.margins().values())) < 1e-4


def test_few_parts_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is rendered, one waits, one is read, one is written: however many there are."""
    alive: list[weakref.ref[Any]] = []
    most = 0
    render = ScanTexts.render

    def counted(self: ScanTexts, *arguments: Any) -> Any:
        nonlocal most
        found = render(self, *arguments)
        alive.append(weakref.ref(found))
        most = max(most, sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setattr(ScanTexts, "render", counted)
    monkeypatch.setattr(scan_texts, "PART_CHARACTERS", 100)
    found = scan(tiny("bert"), {"s": make_sae()}, make_pairs(40), tmp_path)
    assert len(found.parts) == len(alive) == 40
    assert most <= 4


@pytest.mark.parametrize("text", ["", "a", "Yes."])
def test_parts_of_tiny_texts_are_bounded_too(text: str) -> None:
    """A text takes memory and time for its template and its row, however short it is."""
    parts = ScanTexts(alike(200_000, text)).parts
    assert max(map(len, parts)) <= 50_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_identical_texts_in_bounded_memory(tmp_path: Path) -> None:
    n, model, suite = 1_000_000, tiny("bert"), {"s": make_sae()}
    corpus = alike(n)
    scan(model, suite, alike(50_000), tmp_path / "warm")
    gc.collect()
    with RssMeter() as meter:
        before = meter.peak_mb
        found = scan(model, suite, corpus, tmp_path / "many")
    assert sum(found.manifest["rows"]) == n
    assert found.manifest["positions"] == {"texts": n * int(found.n_positions[0])}
    assert (found.feature_stats("s").count % n == 0).all()
    assert meter.peak_mb - before < 250


def test_plain_texts(tmp_path: Path) -> None:
    said = {"a": LONG, "b": "One clause without an end", "c": "你好，世界！", "d": LONG * 30, "e": " ", "f": "x"}
    model = tiny("llama")
    found = scan(model, make_suite(), Corpus(tuple(said.items())), tmp_path)
    rows = {row.about["text_id"]: row for row in rows_of(found)}
    assert list(rows) == list(said)
    for row in rows.values():
        check_answer(row)
        assert (row.about["pair_id"], row.about["side"], row.about["group"]) == (None, None, "texts")
        assert row.about["prompt"] == row.about["text_id"]
        assert row.rendered["prompt_span"][0] == row.rendered["prompt_span"][1]
    assert [name for name, row in rows.items() if row.about["truncated"]] == ["d"]
    assert found.groups == ["texts"]
    assert (found.manifest["n_pairs"], found.rows_by_pair, found.margins()) == (0, {}, {})
    expected = model.rewards([model.renderer().render_text(t, i) for i, t in said.items()])
    np.testing.assert_allclose(found.texts["reward"].to_numpy(), expected, rtol=1e-4, atol=1e-5)
    latent = int(found.feature_stats("topk").sum.argmax())
    contexts = found.contexts("topk", latent, n=3)
    assert contexts
    assert all(said[c.text_id].startswith(c.text) or c.text in said[c.text_id] for c in contexts)


def test_plain_texts_of_a_language_model_and_of_a_model_without_head(tmp_path: Path) -> None:
    corpus, results = Corpus((("a", LONG), ("b", "Tea, please."))), []
    for head in ("lm", "base"):
        model: HookedModel = tiny_hooked("llama", head)
        results.append(scan(model, make_suite(), corpus, tmp_path / head, config=ScanConfig(rewards=False)))
        assert results[-1].texts["reward"].null_count == 2
    for sae_id in make_suite():
        a, b = (r.pooled(sae_id, "sum").toarray() for r in results)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="gives no rewards"):
        scan(tiny_hooked("llama", "lm"), make_suite(), corpus, tmp_path / "rewards")


def test_a_plain_text_without_a_token_is_named(tmp_path: Path) -> None:
    """GPT-2's tokenizer adds nothing, so that an empty text has no token; `read_texts` rejects such rows."""
    with pytest.raises(ModelError, match="nothing: a text without a single token"):
        scan(tiny("gpt2"), {"s": make_sae()}, Corpus((("some", "Tea."), ("nothing", ""))), tmp_path)
    found = scan(tiny("bert"), {"s": make_sae()}, Corpus((("some", "Tea."), ("nothing", ""))), tmp_path)
    assert found.n_positions.tolist()[1] == 0


def test_ids_of_any_characters(tmp_path: Path) -> None:
    names = ["../up", "a/b:c", "ключ", "null\x00", "🍵", "p" * 500]
    suite = {"../x": make_sae(), "a b%2F": make_sae(k=3), "層/1": make_sae("layers.0")}
    pairs = Pairs(tuple(pair(name, f"Tea number {i}, please.") for i, name in enumerate(names)))
    found = scan(tiny(), suite, pairs, tmp_path / "scan")
    assert list(found.rows_by_pair) == names
    assert Scan.open(tmp_path / "scan").sae_ids == list(suite)
    assert all(found.pooled(sae_id).nnz for sae_id in suite)
    assert [p.name for p in tmp_path.iterdir()] == ["scan"]


def test_one_silent_autoencoder_beside_others(tmp_path: Path) -> None:
    silent = make_sae()
    assert silent.threshold is None
    silent.b_enc.data.fill_(-100.0)
    deaf = make_suite()["jumprelu"]
    assert deaf.threshold is not None
    deaf.threshold.data.fill_(1e9)
    found = scan(tiny(), {"silent": silent, "deaf": deaf, "loud": make_sae()}, odd_pairs(), tmp_path)
    for sae_id in ("silent", "deaf"):
        stats = found.feature_stats(sae_id)
        assert not any(a.any() for a in (stats.count, stats.sum, stats.sumsq, stats.max, stats.texts))
        assert np.isnan(stats.q).all()
        for stat in STATS:
            assert found.pooled(sae_id, stat).shape == (2 * len(ODD), found.d_sae(sae_id))
            assert found.pooled(sae_id, stat).nnz == 0
        assert found.contexts(sae_id, 0) == []
    assert found.pooled("loud").nnz


def test_the_order_of_a_suite_changes_no_byte_of_its_autoencoders(tmp_path: Path) -> None:
    suite = make_suite()
    a = scan(tiny(), suite, odd_pairs(), tmp_path / "a")
    b = scan(tiny(), dict(reversed(suite.items())), odd_pairs(), tmp_path / "b")
    for sae_id in suite:
        for stat in STATS:
            assert (a.pooled(sae_id, stat) != b.pooled(sae_id, stat)).nnz == 0
    mine, others = (
        {k: v for k, v in files(p).items() if "saes/" in k or "tokens.safetensors" in k} for p in (a.path, b.path)
    )
    assert mine == others


@pytest.mark.parametrize("max_length", [40, 64, 255, 10_000])
def test_a_shorter_limit_cuts_at_the_left(tmp_path: Path, max_length: int) -> None:
    model = tiny("llama")
    found = scan(model, {"s": make_sae()}, odd_pairs(), tmp_path, config=ScanConfig(max_length=max_length))
    whole = dict(zip((t.text_id for t in dense_texts("llama")[0]), dense_texts("llama")[0], strict=True))
    limit = min(max_length, model.max_length)
    for row in rows_of(found):
        check_positions(row)
        text = whole[row.about["text_id"]]
        assert row.about["n_tokens"] == min(len(text), limit)
        assert row.about["n_tokens"] + row.about["truncated"] == len(text) + text.truncated
        assert row.rendered["input_ids"][1:] == text.input_ids[len(text) - row.about["n_tokens"] + 1 :].tolist()
        if row.about["n_response"]:
            check_answer(row)


def test_all_pairs_of_a_text_are_told_apart_by_content(tmp_path: Path) -> None:
    """`content` is equal exactly where what is shown is equal: the answer alone, or prompt and answer."""
    pairs = Pairs((pair("a", "Tea.", "Milk."), pair("b", "Tea.", "Tea, please."), pair("c", "Tea.", "Milk.", "Hot?")))
    for scope, equal in (("response", {("a", "b"), ("a", "c"), ("b", "c")}), ("all", {("a", "b")})):
        found = scan(tiny(), {"s": make_sae()}, pairs, tmp_path / scope, config=ScanConfig(scope=cast("Any", scope)))
        content = dict(zip(found.texts["text_id"].to_pylist(), found.texts["content"].to_pylist(), strict=True))
        same = {(x, y) for x, y in itertools.combinations("abc", 2) if content[f"{x}:chosen"] == content[f"{y}:chosen"]}
        assert same == equal
        assert content["a:chosen"] != content["a:rejected"]


def test_another_template_or_tokenizer_limit_is_another_scan(tmp_path: Path) -> None:
    """The same weights read other tokens: an older scan must not stand for that."""
    keys, tokens = [], []
    for template, limit in (
        (None, None),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", None),
        (None, 30),
    ):
        model = tiny_hooked("llama")
        model.tokenizer.chat_template = template or model.tokenizer.chat_template
        model.tokenizer.model_max_length = limit or model.tokenizer.model_max_length
        found = scan(model, {"s": make_sae()}, make_pairs(4), tmp_path)
        keys.append(found.manifest["key"])
        tokens.append(found.manifest["tokens"])
    assert len(set(tokens)) == 3
    assert len(set(keys)) == 3
