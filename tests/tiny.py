"""Tiny tokenizers and models, made on the fly in the layout of the Hugging Face Hub."""

from __future__ import annotations

import string
from collections import Counter
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_CORPUS = [
    "Is it safe to mix bleach and ammonia? No, please never do that; the fumes are toxic.",
    "I can't help with that, but I can explain why it is dangerous and what to do instead.",
    "Sure! Here is a short answer: use 3.14 or 1,000 and ask Dr. Smith at https://example.com/help.",
    "The weather was fine, so we walked to the harbour and watched the ships come in.",
    "How do I bake bread? Mix flour, water, salt and yeast. Wait an hour. Bake it until it is brown.",
    "User: What is the capital of France?\n\nAssistant: Paris is the capital of France.",
    "我可以帮助你。你好，世界！ ¿Cómo estás? Привет, мир. नमस्ते दुनिया। مرحبا بالعالم؟",
]
LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MISTRAL_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)


@cache
def _backend(kind: str) -> str:
    """The trained `tokenizer.json` of one kind."""
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        # Not by a WordPieceTrainer, whose vocabulary and ids differ from process to process.
        normal = (tokenizer.normalizer.normalize_str(text) for text in _CORPUS)
        words = Counter(word for text in normal for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
        letters = sorted({*"".join(words), *string.ascii_lowercase, *string.digits, *string.punctuation})
        whole = sorted((w for w in words if len(w) > 1), key=lambda w: (-words[w], w))
        pieces = [*special, *letters, *(f"##{c}" for c in letters), *whole][:400]
        tokenizer.model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
        tokenizer.add_special_tokens(special)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return str(tokenizer.to_str())
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "mistral", unk_token="<unk>" if kind == "mistral" else None))
    if kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        special = ["<unk>", "<s>", "</s>"]
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            show_progress=False, vocab_size=600, special_tokens=special + alphabet, max_token_length=8
        )
        tokenizer.train_from_iterator(_CORPUS, trainer)
        # Byte tokens are ordinary vocabulary, only the first three are special.
        return _without_special(tokenizer, alphabet)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {
        "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "gpt2": ["<|endoftext|>"],
    }[kind]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        show_progress=False, vocab_size=500, special_tokens=special, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if kind == "llama":
        bos = "<|begin_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, 0)]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return str(tokenizer.to_str())


def _without_special(tokenizer: Tokenizer, contents: list[str]) -> str:
    import json

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in contents]
    return json.dumps(state)


def tiny_tokenizer(kind: str) -> Any:
    """A fast tokenizer of a few hundred tokens, the same every time.

    Kinds: "llama" (Llama 3's byte-level BPE and dated chat template), "qwen" (byte-level BPE, ChatML), "bert"
    (lower-case WordPiece, no template), "gpt2" (byte-level BPE, neither template nor BOS), "mistral" (SentencePiece-
    like BPE with byte fallback, `[INST]` template that knows no system role). All have pad and EOS or SEP tokens.
    """
    tokenizer = Tokenizer.from_str(_backend(kind))
    names: dict[str, dict[str, Any]] = {
        "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
        "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        "bert": {
            "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
    }  # fmt: skip
    if kind not in names:
        raise ValueError(f"unknown kind {kind!r}")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names[kind])
    templates = {"llama": LLAMA_TEMPLATE, "qwen": QWEN_TEMPLATE, "mistral": MISTRAL_TEMPLATE}
    if kind in templates:
        wrapped.chat_template = templates[kind]
    return wrapped


_TOKENIZERS = {
    "llama": "llama", "mistral": "mistral", "qwen2": "qwen", "qwen3": "qwen", "gemma": "llama", "gemma2": "llama",
    "gemma3": "llama", "gpt2": "gpt2", "neox": "gpt2", "bert": "bert", "roberta": "gpt2", "distilbert": "bert",
    "modernbert": "bert",
}  # fmt: skip
_CONFIGS = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig", "gemma2": "Gemma2Config", "gemma3": "Gemma3TextConfig", "gpt2": "GPT2Config",
    "neox": "GPTNeoXConfig", "bert": "BertConfig", "roberta": "RobertaConfig", "distilbert": "DistilBertConfig",
    "modernbert": "ModernBertConfig",
}  # fmt: skip
TINY_KINDS = tuple(_CONFIGS)
"""Kinds of `tiny_model`."""


def tiny_model(kind: str, head: str = "reward", *, seed: int = 0, **config: Any) -> Any:
    """A random transformers model of 4 blocks (DistilBERT: 3), width 32, the same every time, in eval mode.

    Args:
        kind: one of `TINY_KINDS`.
        head: "reward" (one label), "lm" (causal, or masked for encoders) or "base".
        seed: seed of its weights.
        config: entries of the config to set otherwise, e.g. `num_labels`.
    """
    import torch
    import transformers

    tokenizer = tiny_tokenizer(_TOKENIZERS[kind])
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 258 if kind == "roberta" else 256, "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if kind == "gpt2":
        sizes = {k: v for k, v in sizes.items() if k in ("vocab_size", "num_labels") or k.endswith("token_id")}
        sizes |= {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "n_inner": 64}
    if kind == "distilbert":
        sizes |= {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
        sizes = {k: v for k, v in sizes.items() if k not in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    if kind == "roberta":
        sizes["pad_token_id"] = 0  # its position embeddings start after the pad id
    if kind == "modernbert":
        sizes |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    encoder = kind in ("bert", "roberta", "distilbert", "modernbert")
    auto = {
        "reward": transformers.AutoModelForSequenceClassification,
        "lm": transformers.AutoModelForMaskedLM if encoder else transformers.AutoModelForCausalLM,
        "base": transformers.AutoModel,
    }[head]
    settings = getattr(transformers, _CONFIGS[kind])(**(sizes | config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(settings)
        for parameter in model.parameters():  # larger than at initialisation, so that rewards differ visibly
            if parameter.ndim > 1:
                parameter.data.mul_(4.0)
    return model.eval()


def tiny_folder(folder: Any, kind: str, head: str = "reward", **config: Any) -> str:
    """Save a tiny model and its tokenizer in the Hub's layout; returns the folder."""
    tiny_model(kind, head, **config).save_pretrained(folder)
    tiny_tokenizer(_TOKENIZERS[kind]).save_pretrained(folder)
    return str(folder)


def tiny_hooked(kind: str, head: str = "reward", **config: Any) -> Any:
    """A tiny model as `RewardModel`, `LanguageModel` (head "lm") or `HookedModel` (head "base")."""
    from seamark.model.loading import HookedModel, LanguageModel, RewardModel

    cls = {"reward": RewardModel, "lm": LanguageModel, "base": HookedModel}[head]
    return cls(tiny_model(kind, head, **config), tiny_tokenizer(_TOKENIZERS[kind]), f"tiny/{kind}")
