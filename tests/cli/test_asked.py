"""The options of a language model: what is refused, what a dry run leaves behind, and how money is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seamark.cli.explain import ANSWERS, AskOptions, asked, cost_rows, spent, spent_row
from seamark.errors import ConfigError
from seamark.explain.llm import LLMConfig, Request


def requests(n: int) -> list[Request]:
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    return [Request("explain", "You explain.", f"A text about the harbour, {i}", schema, "x", 64) for i in range(n)]


def prices(folder: Path, text: str) -> Path:
    (folder / "prices.yaml").write_text(f"currency: EUR\nprices: {text}\n", encoding="utf-8")
    return folder / "prices.yaml"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with Server() as found:
        yield found


@pytest.mark.parametrize("options", [{"prices": Path("p.yaml")}, {"reasoning_tokens": 9}, {"cache": Path("c.sqlite")},
                                     {"timeout_s": 1.0}, {"retry_failed": True}, {"cache_tag": "a"},
                                     {"budget": 0.0}])  # fmt: skip
def test_options_of_a_language_model_that_is_not_named(options: dict[str, Any], tmp_path: Path) -> None:
    option = "--" + next(iter(options)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"no language model is named, but {option} is given"):  # noqa: SIM117
        with asked(AskOptions(**options), tmp_path):
            pass
    with asked(AskOptions(), tmp_path) as nothing:
        assert nothing is None


def test_options_reach_the_model(tmp_path: Path) -> None:
    options = AskOptions(llm="m", base_url="http://localhost:1/v1", retry_failed=True, cache_tag="new", concurrency=3)
    with asked(options, tmp_path) as found:
        assert found is not None
        config: LLMConfig = found.llm.config
    assert (config.retry_failed, config.cache_tag, config.concurrency) == (True, "new", 3)


def test_a_hosted_dry_run_needs_no_key_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "out"
    with asked(AskOptions(llm="m", dry_run=True), out) as found:
        assert found is not None
        assert found.llm.estimate(requests(3)).to_ask == 3
    assert not out.exists()
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"), asked(AskOptions(llm="m"), out):
        pass


def test_a_dry_run_knows_what_is_in_the_cache(tmp_path: Path, server: Any) -> None:
    table = prices(tmp_path, "[{model: m, input: 1000, output: 2000}]")
    options = {"llm": "m", "base_url": server.url, "prices": table}
    with asked(AskOptions(**options), tmp_path) as found:
        assert found is not None
        found.llm.ask_all(requests(3))
        books = spent(found.ledger)
    assert books["spent"] == pytest.approx(server.stats.money)
    assert spent_row(books)[1] == f"{server.stats.money:.4f} EUR"
    assert (tmp_path / ANSWERS).exists()
    with asked(AskOptions(**options, dry_run=True), tmp_path) as found:
        assert found is not None
        estimate = found.llm.estimate(requests(5))
    assert (estimate.cached, estimate.to_ask) == (3, 2)
    rows = dict(cost_rows(estimate))
    assert rows["spent on this cache so far, at most"] == f"{server.stats.money:.4f} EUR"
    assert rows["--budget that is enough if nothing has to be sent twice"] == f"{estimate.budget_once:.4f} EUR"
    assert rows["--budget that is enough if all is asked 2 times and each time sent 7 times, all billed"] == \
        f"{estimate.budget:.4f} EUR"  # fmt: skip


def test_money_that_is_not_known_is_no_0(tmp_path: Path, server: Any) -> None:
    with asked(AskOptions(llm="m", base_url=server.url), tmp_path) as found:
        assert found is not None
        found.llm.ask_all(requests(3))
        books = spent(found.ledger)
        estimate = found.llm.estimate(requests(5))
    assert books["spent"] is None
    assert "3 to 'm'" in books["spent_reason"]
    assert spent_row(books)[1].startswith("not available (the price of calls that were made is not known")
    assert all(value.startswith("not available (") for _, value in cost_rows(estimate))
    assert books["rows"][0]["cost"] is None
