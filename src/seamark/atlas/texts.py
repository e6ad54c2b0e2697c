"""Texts as an atlas holds them and looks for them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticSerializationError
from pydantic_core import to_json as fast_json

CJK = (
    "\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Chinese, Japanese and Korean characters, as ranges of a regular expression."""
_CJK = re.compile(f"([{CJK}])")
_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(text: str) -> str:
    """`text` as UTF-8 can say it: halves of surrogate pairs become marks (`⟦U+D800⟧`)."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(lambda match: f"⟦U+{ord(match.group()):04X}⟧", text)
    return text


def to_json(value: Any) -> str:
    """`value` as JSON, its texts as of `storable`. `ValueError` for NaN and infinity."""
    return storable(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def list_json(texts: Sequence[str]) -> str:
    """`to_json` of texts, several times as fast."""
    try:
        return fast_json(texts).decode()
    except (PydanticSerializationError, UnicodeError):  # halves of surrogate pairs
        return to_json(list(texts))


def searchable(text: str) -> str:
    """A text as it is indexed and looked for: in compatibility form, Chinese, Japanese and Korean characters apart."""
    if not text.isascii():
        text = _CJK.sub(r" \1 ", unicodedata.normalize("NFKC", storable(text)))
    return text.replace("\0", " ")


def listed(names: Sequence[str]) -> str:
    """Names as `features.domains` and `.languages` hold them; empty for none. White space within them is one space."""
    clean = sorted({" ".join(storable(name).split()) for name in names})
    return "\n" + "".join(f"{name}\n" for name in clean) if clean else ""
