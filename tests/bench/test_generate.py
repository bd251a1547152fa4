"""The generation benchmark runs, compares the same tokens, and says what it was asked."""

import json
from pathlib import Path

import pytest
import torch

from bench import generate
from config.schema import GPTConfig
from model import GPT

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_size=100)


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "why_not_compile", lambda device: "the test has no time for it")


def test_rows_name_every_contender_and_its_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "reading_bandwidth", lambda matvec, device, dtype: 1e9)
    path = tmp_path / "generate.json"
    arguments = [
        "--shape",
        "1",
        "2",
        "32",
        "64",
        "--new_tokens",
        "17",
        "--tokens",
        "2",
        "--dtypes",
        "float32",
        "--activations",
        "tpgu:degree=5",
        "--device",
        "cpu",
    ]
    assert generate.main([*arguments, "--json", str(path)]) == 0
    rows = {row["contender"]: row for row in json.loads(path.read_text())["rows"]}
    tpgu = "tpgu:degree=5,per=channel,init=unit,learnable=true"
    assert list(rows) == ["cached", tpgu, "recomputed", "transformers"]
    assert rows[tpgu]["against_gelu"] == pytest.approx(rows[tpgu]["tokens_per_second"] / rows["cached"]["tokens_per_second"])
    assert rows["cached"]["contexts"] == [1, 5, 9, 13, 17]
    assert rows["recomputed"]["against_recomputed"] == rows["transformers"]["against_transformers"] == 1
    cached = rows["cached"]["tokens_per_second"]
    assert cached / rows["transformers"]["tokens_per_second"] == pytest.approx(rows["cached"]["against_transformers"])
    assert "tokens/s" in capsys.readouterr().out
    generate.main([*arguments, "--against", str(path)])
    assert " -> " in capsys.readouterr().out


def test_every_contender_takes_as_many_tokens() -> None:
    gpt = GPT(CONFIG).eval()
    theirs = generate.transformers_model(gpt, torch.float32)
    seconds = generate.time_tokens(gpt, {"cached": gpt}, theirs, 7, 3)
    assert {name: len(samples) for name, samples in seconds.items()} == {"cached": 3, "recomputed": 2, "transformers": 3}
    assert min(min(samples) for samples in seconds.values()) > 0


def test_another_activation_shares_the_weights() -> None:
    gpt = GPT(CONFIG).eval()
    other = generate.with_activation(gpt, "hermite:degree=3")
    assert other.transformer.wte.weight is gpt.transformer.wte.weight
    assert not torch.equal(other(torch.tensor([[1, 2]])), gpt(torch.tensor([[1, 2]])))


def test_transformers_has_the_same_weights() -> None:
    gpt = GPT(CONFIG).eval()
    theirs = generate.transformers_model(gpt, torch.float32)
    prompt = generate.prompt(CONFIG, 5, torch.device("cpu"))
    mask = torch.ones_like(prompt)
    with torch.inference_mode():
        written = theirs.generate(
            prompt, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
        )
    assert torch.equal(gpt.generate(prompt, 8, temperature=0), written)


def test_a_context_beyond_the_block_is_refused() -> None:
    with pytest.raises(SystemExit):
        generate.main(["--shape", "1", "2", "32", "64", "--new_tokens", "60"])
