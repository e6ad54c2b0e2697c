"""Before anything is measured: the model, the pairs and the autoencoder of a set-up, written to its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.sae_data import VARIABLE
from benchmarks.scans.dense import DenseSAE
from benchmarks.scans.job import GROUP, Job, Loaded, Setup, load_model, rendered
from seamark.features.gather import gather
from seamark.model.batching import plan_batches
from seamark.run import write_json
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text import demo_pairs, read_pairs
from seamark.text.pairs import Pairs, PreferencePair, hash_unit, plain

FILE = "prefs_safety_pku.jsonl.gz"
BATCH_TOKENS = 4096
NEAR = 1e-5
"""Share of the k-th value by which the next one may be less and still take its place in other batches."""


def measure(job: Job) -> dict[str, Any]:
    """Write model, pairs, autoencoder and doubts; returns what there is of them."""
    pairs, source = take(job.setup.n_pairs)
    job.place.mkdir(parents=True, exist_ok=True)
    for old in job.place.glob("*.safetensors"):  # answers of an earlier set-up
        old.unlink()
    pairs.to_jsonl(job.place / "pairs.jsonl")
    if job.setup.blocks:
        make_llama(job.setup, pairs, job.place / "model")
    model = load_model(job.setup, job.place)
    config = SAEConfig(d_in=model.d_model(job.setup.hookpoint), d_sae=job.setup.d_sae, k=job.setup.k,
                       hookpoint=job.setup.hookpoint)  # fmt: skip
    loaded = Loaded(model, SparseAutoencoder(config), pairs)
    texts, scoring = rendered(loaded, job.setup)
    centre(loaded, job.setup)
    loaded.sae.save_pretrained(job.place / "sae")
    latents, rows = in_doubt(loaded, job.setup)
    write_json(job.place / "doubt.json", {"latents": sorted(latents), "pairs": sorted({row // 2 for row in rows})})
    return {
        "source": source, "pairs": len(pairs), "texts": len(texts), "tokens": sum(map(len, texts)),
        "longest": max(map(len, texts)), "positions": sum(map(len, scoring)), "latents_in_doubt": len(latents),
    }  # fmt: skip


def take(n: int) -> tuple[Pairs, str]:
    """n pairs of one group in the order of their hashes, and where they come from; the demo's come again, numbered,
    where they are too few."""
    path = Path(os.environ.get(VARIABLE, "")) / FILE
    real = bool(os.environ.get(VARIABLE)) and path.exists()
    found = read_pairs(safety=path) if real else demo_pairs()
    items = sorted(found, key=lambda p: (hash_unit(p.id), p.id))
    again = [numbered(items[i % len(items)], i // len(items)) for i in range(n)]
    return Pairs(tuple(replace(p, group=GROUP) for p in again)), "prefs_safety_pku" if real else "demo pairs"


def numbered(pair: PreferencePair, copy: int) -> PreferencePair:
    if copy == 0:
        return pair
    return replace(pair, id=f"{pair.id}-{copy}", prompt=f"Question {copy + 1}: {plain(pair.prompt)}")


def make_llama(setup: Setup, pairs: Pairs, folder: Path) -> None:
    """A Llama reward model with random weights, and a tokenizer trained on the pairs."""
    tokenizer = train_tokenizer([plain(t) for p in pairs for t in (p.prompt, p.chosen, p.rejected)], setup.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=setup.width, intermediate_size=setup.inner, num_labels=1,
        num_hidden_layers=setup.blocks, num_attention_heads=setup.heads, num_key_value_heads=setup.heads,
        max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def activations(loaded: Loaded, setup: Setup) -> Iterator[tuple[list[int], Tensor]]:
    """(text of every scoring position, their activations [n, d_in]), batch by batch."""
    texts, scoring = rendered(loaded, setup)
    for rows in plan_batches([len(t) for t in texts], BATCH_TOKENS):
        got = gather(loaded.model, texts, rows, [scoring[r] for r in rows], [setup.hookpoint])
        yield [r for r in rows for _ in scoring[r]], got.activations[setup.hookpoint]


@torch.no_grad()
def centre(loaded: Loaded, setup: Setup) -> None:
    """b_dec becomes the mean of what the autoencoder sees, as training begins: else a few latents fire everywhere."""
    seen = torch.cat([loaded.sae.preprocess(h_ND)[0] for _, h_ND in activations(loaded, setup)])
    loaded.sae.b_dec.copy_(seen.mean(0))


@torch.no_grad()
def in_doubt(loaded: Loaded, setup: Setup) -> tuple[set[int], set[int]]:
    """Latents, and rows of texts, of positions where rounding decides which latent is the k-th."""
    latents, rows, wider = set[int](), set[int](), DenseSAE(loaded.sae)
    wider.k += 1
    for owners, h_ND in activations(loaded, setup):
        _, values, indices = wider.top(h_ND)
        near = (values[:, -2] - values[:, -1]) <= NEAR * values[:, -2].abs()
        latents |= set(indices[near][:, -2:].flatten().tolist())
        rows |= {owners[i] for i in near.nonzero().flatten().tolist()}
    return latents, rows
