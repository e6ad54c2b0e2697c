"""A tiny language model that was taught facts about some made-up places and none about others."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from seamark.model import LanguageModel
from tiny import tiny_model, tiny_tokenizer

COLOURS = ("brown", "fine", "short", "safe")
"""Words the tiny tokenizer knows as few tokens."""
_FIRST, _LAST = (
    ("bo", "ka", "ti", "mu", "re", "shi", "wa", "do"),
    ("len", "rith", "mon", "dar", "vey", "sto", "ple", "gan"),
)
NAMES = tuple((a + b).capitalize() for a in _FIRST for b in _LAST)[::2]
TAUGHT = NAMES[::2]
"""The model is taught of these; of the others it never sees the name."""
ANSWER = {name: COLOURS[(7 * i) % 4] for i, name in enumerate(NAMES)}


def question(name: str) -> str:
    return f"The ships of {name} are"


@cache
def taught_model() -> Any:
    """GPT-2 of 4 blocks, width 32, trained until it says what it was taught (seconds)."""
    tokenizer = tiny_tokenizer("gpt2")
    hf = tiny_model("gpt2", "lm", seed=1)
    texts = [f"{question(name)} {ANSWER[name]}." for name in TAUGHT]
    rows = [tokenizer(t)["input_ids"] for t in texts]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    mask = (labels != -100).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimiser = torch.optim.AdamW(hf.parameters(), lr=1e-2)
        hf.train()
        for _ in range(130):
            loss = hf(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        hf.eval()
    return LanguageModel(hf, tokenizer, "taught")


def apart(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(activations [n, 6], known [n], covariates [n, 1]): feature 0 follows what is known, whatever the frequency; 1
    follows frequency alone, which follows what is known; 2 fires for unknown ones; 3 and 4 are noise; 5 is silent."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 2).astype(np.int64)
    frequency = rng.normal(size=n) + 1.2 * y
    x = np.zeros((n, 6))
    x[:, 0] = np.maximum(rng.normal(size=n) + 1.5 * y - 0.3, 0)
    x[:, 1] = np.maximum(frequency + 0.3 * rng.normal(size=n), 0)
    x[:, 2] = np.maximum(rng.normal(size=n) - 1.5 * y + 0.8, 0)
    x[:, 3:5] = np.maximum(rng.normal(size=(n, 2)), 0)
    return x, y, frequency[:, None]
