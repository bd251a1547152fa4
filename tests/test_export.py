"""A run in transformers' hands: the same logits, the same tokens, and coefficients that no trainer decays."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import activations
import export
import sample
from activations.activation import Learnable
from activations.registry import family
from config import arm
from config.schema import Config, GPTConfig
from data import prepare, tokenizer
from model import GPT
from pretrained import folder
from runtime import checkpoint
from tests.own_tokenizer import train_byte_level
from tests.runs import small_config, train_here

IDS = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(0))
LEARNABLE = [name for name in activations.names() if issubclass(family(name), Learnable)]

GATED = ["swiglu", "geglu", "gated(relu_squared)", "gated(xielu)"]
DEEP = ["relu;silu", "gated(hermite;gelu)"]


@pytest.fixture(scope="module", autouse=True)
def modules_of_transformers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers copies modelling files to a cache of the user's; here to one of the tests'."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.HF_MODULES_CACHE = str(tmp_path_factory.mktemp("hf_modules"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Config:
    return train_here(small_config(data_dir, tmp_path_factory.mktemp("exported") / "run"), max_steps=8)


@pytest.fixture(scope="module")
def exported(trained: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "hub" / "model"
    assert export.main([trained.out_dir, str(out)]) == 0
    return out


def load(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **options).eval()


def agree(ours: GPT, theirs: Any) -> None:
    with torch.no_grad():
        expected = ours(IDS)
        assert (theirs(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_run_loads_with_its_logits_tokens_and_tokenizer(trained: Config, exported: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    ours, _ = checkpoint.load_model(trained.out_dir)
    theirs = load(exported)
    agree(ours, theirs)
    prompt = IDS[:1, :9]
    expected = ours.generate(prompt, 12, temperature=0.0)
    attended = torch.ones_like(prompt)
    made = theirs.generate(prompt, attention_mask=attended, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert 256 not in expected, "end-of-text, which min_new_tokens forbids"
    assert torch.equal(made, expected)
    with torch.no_grad():
        trunk = AutoModel.from_pretrained(exported, trust_remote_code=True).eval()(IDS).last_hidden_state
        assert torch.equal(trunk @ theirs.lm_head.weight.T, theirs(IDS).logits)
    words = AutoTokenizer.from_pretrained(exported)
    assert words("héllo")["input_ids"] == list("héllo".encode())
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == words.eos_token_id == 256


def test_shared_coefficients_are_sampled_and_not_exported(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_here(small, activation="hermite:per=model", max_steps=2)
    assert sample.main([run.out_dir, "--prompt", "abc", "--max_new_tokens", "4"]) == 0
    capsys.readouterr()
    assert export.main([run.out_dir, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "share coefficients (per=model)" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_the_run_s_own_goes_with_it(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its file and the data are gone: the checkpoint holds a copy."""
    from transformers import AutoTokenizer

    text, data, mine = tmp_path / "text.txt", tmp_path / "data", train_byte_level(tmp_path / "mine.json")
    text.write_text("the cat sat on the mat. " * 400)
    assert prepare.main(["text", "--input", str(text), "--out", str(data), "--tokenizer", str(mine)]) == 0
    run = train_here(small, data_dir=str(data), tokenizer="", activation="gelu", max_steps=2)
    words = tokenizer.load(str(mine))
    mine.unlink()
    shutil.rmtree(data)
    assert export.main([run.out_dir, str(tmp_path / "out")]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = words.encode("the cat sat").tolist()
    assert all(theirs("the cat sat", add_special_tokens=False)["input_ids"] == ids for _ in range(5)), "no dropout"
    assert theirs.decode(ids) == "the cat sat"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == words.eot == theirs.eos_token_id
    capsys.readouterr()
    asked = ["--prompt", "the cat", "--max_new_tokens", "4", "--temperature", "0"]
    said = [(sample.main([place, *asked]), capsys.readouterr().out) for place in (run.out_dir, str(tmp_path / "out"))]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "name",
    [*LEARNABLE, "hermite:per=channel", "relu_squared", "gelu", *GATED, *DEEP],
)
def test_every_family_has_our_logits(name: str, tmp_path: Path) -> None:
    """In a GPT without biases and with another epsilon, whose coefficients have moved."""
    config = GPTConfig(
        n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=257, bias=False, layer_norm_epsilon=1e-3, **arm.fields(name),
        mlp_init="unit", preactivation_std=0.7,
    )  # fmt: skip
    gpt = GPT(config, 1).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        gpt.transformer.wte.weight[257:] = 0
    export.write_model(gpt, None, tmp_path)
    theirs = load(tmp_path)
    agree(gpt, theirs)
    again = GPT.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS), gpt(IDS))
    if name in ("gelu", "relu_squared"):
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
        return
    half = load(tmp_path, dtype=torch.bfloat16)
    assert half.transformer.wte.weight.dtype == torch.bfloat16
    acts = [module for module in half.modules() if isinstance(module, activations.Activation)]
    assert len(acts) == 2
    for act, own in zip(acts, gpt.transformer.h, strict=True):
        state = own.mlp.act.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in act.state_dict().items()), "coefficients stay float32"
        if isinstance(act, Learnable):  # no file holds the law of a fixed one's inputs, which it ignores
            assert all(torch.equal(buffer, dict(own.mlp.act.named_buffers())[key]) for key, buffer in act.named_buffers())


def test_without_its_code_the_folder_is_refused(exported: Path) -> None:
    from transformers import AutoConfig, GPT2LMHeadModel

    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(exported, trust_remote_code=False)
    with pytest.raises(KeyError, match="hermite"):
        GPT2LMHeadModel.from_pretrained(exported)


def test_a_gated_mlp_is_refused_as_a_gpt2(tmp_path: Path) -> None:
    """Without its gate the rest of the weights would fit a GPT-2 of that n_inner, and mean something else."""
    from transformers import GPT2LMHeadModel

    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=24, vocab_size=257, activation="silu", mlp="gated")
    gpt = GPT(config, 1).eval()
    (tmp_path / "exported").mkdir()
    export.write_model(gpt, None, tmp_path / "exported")
    gpt.save_pretrained(tmp_path / "saved")
    for place in ("exported", "saved"):
        with pytest.raises(KeyError, match=r"gated\(silu\)"):
            GPT2LMHeadModel.from_pretrained(tmp_path / place)
        again = GPT.from_pretrained(tmp_path / place).eval()
        assert again.config == config
        assert torch.equal(again(IDS), gpt(IDS))
    path = tmp_path / "saved" / "config.json"
    fields = json.loads(path.read_text())
    for changes, told in (
        ({"n_inner": 128}, "n_inner 128 is not supported; a gated MLP of n_embd 32 is 85 wide"),
        ({"model_type": "gpt2"}, "mlp 'gated' is not supported with model_type 'gpt2'"),
    ):
        path.write_text(json.dumps(fields | changes))
        with pytest.raises(ValueError, match=re.escape(told)):
            GPT.from_pretrained(tmp_path / "saved")


def test_a_run_with_mup_is_exported_as_the_standard_model_that_computes_the_same(tmp_path: Path) -> None:
    """A gate and a learnable activation in the modelling file, and muP's two factors in the weights."""
    config = GPTConfig(
        n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=257, mlp="gated", activation="hermite:degree=3",
        mup_base_width=16, bias=False,
    )  # fmt: skip
    gpt = GPT(config, 1).eval()
    with torch.no_grad():
        gpt.transformer.wte.weight *= 10
        gpt.transformer.h[0].attn.c_attn.weight *= 20
    export.write_model(gpt, None, tmp_path)
    agree(gpt, load(tmp_path))


def test_a_missing_package_is_named_as_pip_knows_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(load(exported))
    config = kind.config_class.from_pretrained(exported)
    monkeypatch.setitem(sys.modules, "activations", type(sys)("activations"))
    sys.modules["activations"].__spec__ = activations.__spec__
    with pytest.raises(ImportError, match="pip install learnable-activations"):
        kind(config)


def test_it_saves_and_loads_again(trained: Config, exported: Path, tmp_path: Path) -> None:
    ours, _ = checkpoint.load_model(trained.out_dir)
    load(exported).save_pretrained(tmp_path)
    assert (tmp_path / export.MODELING.name).is_file()
    agree(ours, load(tmp_path))


def test_a_fresh_model_of_the_class_starts_at_unit_gain(exported: Path) -> None:
    kind = type(load(exported))
    config = kind.config_class.from_pretrained(exported)
    assert config.activation_function == "hermite:degree=3,per=layer,init=unit,learnable=true"
    act = kind(config).transformer.h[0].mlp.act.bias_like
    assert activations.gains(act) == pytest.approx((1, 1), abs=1e-5)
    assert config.activation_function.startswith("hermite")


def test_trainer_decays_no_coefficient_by_its_own_rule(exported: Path) -> None:
    from transformers import Trainer

    model = load(exported)
    coefficients = {name for name, parameter in model.named_parameters() if activations.is_coefficient(name, parameter)}
    assert len(coefficients) == 2
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    assert "transformer.h.0.mlp.c_fc.weight" in decayed
    assert not decayed & coefficients


def test_a_step_of_trainer_moves_coefficients_by_their_gradient_alone(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    model = load(exported)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rate, decay = 1e-4, 100.0  # a decay that would take 1 % off
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, learning_rate=rate, weight_decay=decay, lr_scheduler_type="constant", report_to=[],
        per_device_train_batch_size=2, use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    Trainer(model, arguments, train_dataset=rows).train()
    for name, parameter in model.named_parameters():
        change = (parameter.detach() - before[name]).abs()
        if activations.is_coefficient(name, parameter):
            assert 0 < float(change.max()) <= 1.01 * rate, name  # AdamW's first step is the rate, whatever the gradient
        elif name.endswith("c_fc.weight"):
            assert float(change.max()) > 2 * rate, name


def test_lm_eval_gives_our_numbers(trained: Config, exported: Path) -> None:
    """Its hf backend sums log-probabilities over windows that do not overlap: those of our model over the same windows."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = "def f(x):\n    return x + 1  # héllo\n" * 4
    harness = HFLM(pretrained=str(exported), trust_remote_code=True, device="cpu", batch_size=1)
    found = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)[0]
    ours, _ = checkpoint.load_model(trained.out_dir)
    ids, size = torch.tensor([256, *text.encode()]), ours.config.block_size  # end-of-text first: every byte is a target
    expected = 0.0
    for first in range(0, len(ids) - 1, size):
        last = min(first + size, len(ids) - 1)
        window = ids[last - size : last]  # the last one reaches back
        with torch.no_grad():
            scores = ours.eval()(window[None])[0].log_softmax(-1)
        expected += float(scores.gather(1, ids[last - size + 1 : last + 1, None])[first - last :].sum())
    assert found == pytest.approx(expected, abs=1e-4 * len(text.encode()))
    assert -found / len(text.encode()) < 6


def test_the_card_says_what_it_is(trained: Config, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    record = json.loads((Path(trained.out_dir) / "run.json").read_text())
    row = [json.loads(line) for line in (Path(trained.out_dir) / "metrics.jsonl").read_text().splitlines()]
    loss = [line["val_loss"] for line in row if "val_loss" in line and line["step"] == 8]
    for told in (
        "pip install learnable-activations", "trust_remote_code=True", f"{loss[0]:.4f} nats a token", '"seed": 1337',
        record["data"]["corpus_sha256"], record["commit"], "`hermite:degree=3,", "8 of 8",
    ):  # fmt: skip
        assert told in card, told


def test_sample_reads_an_exported_folder(trained: Config, exported: Path) -> None:
    ours, _ = checkpoint.load_model(trained.out_dir)
    again = GPT.from_pretrained(exported).eval()
    assert again.config == ours.config
    assert torch.equal(again(IDS), ours(IDS))


def test_the_hub_gets_the_folder(trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, exist_ok: calls.append(("create", repo)))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda self, repo_id, folder_path: calls.append((repo_id, folder_path))
    )
    assert export.main([trained.out_dir, str(tmp_path / "out"), "--hub", "me/model"]) == 0
    assert calls == [("create", "me/model"), ("me/model", tmp_path / "out")]


def test_bad_input_is_exit_2_and_one_line(trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, told in (
        ([], "the following arguments are required: RUN, OUT"),
        ([str(tmp_path), str(tmp_path / "out")], "holds no checkpoint"),
        ([trained.out_dir, str(tmp_path / "full")], "is there already"),
        ([trained.out_dir, str(tmp_path / "out"), "--checkpoint", "3"], "give best, last or one of the steps"),
    ):
        assert export.main(arguments) == 2
        errors = capsys.readouterr().err
        assert told in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_table_of_fields_covers_what_is_written(exported: Path) -> None:
    assert json.loads((exported / "config.json").read_text()).keys() <= folder.FIELDS.keys()
