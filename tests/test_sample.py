"""Text from a trained model: the same for the same seed, and one line for anything that cannot be."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample
from config.schema import Config
from faults.runs import ROOT, small_config
from model import GPT
from runtime import memory
from tests.runs import train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> str:
    return train_here(small_config(data_dir, tmp_path_factory.mktemp("sampled") / "run"), max_steps=8).out_dir


def write(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert sample.main([*arguments, "--max_new_tokens", "40", "--dtype", "float32", "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_same_seed_same_text(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(capsys, run, "--prompt", "abc", "--seed", "5")
    assert first == write(capsys, run, "--prompt", "abc", "--seed", "5")
    assert first != write(capsys, run, "--prompt", "abc", "--seed", "6")
    assert first.startswith("abc")
    assert first.endswith("\n")


def test_prompt_from_argument_file_and_pipe_are_one(
    run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "def é😀"
    (tmp_path / "prompt").write_text(prompt, encoding="utf-8")
    expected = write(capsys, run, "--prompt", prompt)
    assert expected.startswith(prompt)
    assert write(capsys, run, "--prompt_file", str(tmp_path / "prompt")) == expected
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(prompt.encode()), isatty=lambda: False))
    assert write(capsys, run) == expected


def test_samples_of_a_batch_all_begin_with_the_prompt(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts = write(capsys, run, "--prompt", "xyz", "--num_samples", "3").split("\n" + "-" * 80 + "\n")
    assert len(parts) == 3
    assert all(part.startswith("xyz") for part in parts)
    assert len(set(parts)) > 1


def test_every_checkpoint_can_be_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for which in ("best", "last", "8"):
        assert write(capsys, run, "--prompt", "a", "--checkpoint", which)
    assert sample.main([run, "--prompt", "a", "--checkpoint", "3"]) == 2
    assert "give best, last or one of the steps" in capsys.readouterr().err


def test_a_gpt2_folder_is_sampled_like_a_run(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPT(small.gpt(257), 0).save_pretrained(tmp_path)
    assert write(capsys, str(tmp_path), "--prompt", "hello", "--tokenizer", "bytes").startswith("hello")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere/at/all"], "neither a folder nor to be had from the hub"),
        ([str(ROOT / "config")], "is neither a run nor a GPT-2 folder"),
        (["RUN", "--temperature", "-1"], "--temperature -1.0 is outside 0"),
        (["RUN", "--temperature", "nan"], "--temperature nan is outside"),
        (["RUN", "--top_p", "0"], "--top_p 0.0 is outside (0, 1]"),
        (["RUN", "--num_samples", "0"], "--num_samples 0 is outside 1"),
        (["RUN", "--max_new_tokens", "many"], "invalid int value: 'many'"),
        (["RUN", "--prompt", "a", "--prompt_file", "b"], "--prompt and --prompt_file are both given"),
        (["RUN", "--prompt_file", "no/such"], "--prompt_file 'no/such' is not a file"),
        (["RUN", "--temprature", "1"], "unrecognized arguments: --temprature 1"),
        (["RUN", "--device", "cuda:99"], "'cuda:99'"),
    ],
)
def test_bad_input_is_exit_2_and_one_line(
    run: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert sample.main([run if word == "RUN" else word for word in arguments]) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert errors.count("\n") == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_any_bytes_make_a_prompt(run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, prompt: bytes) -> None:
    (tmp_path / "prompt").write_bytes(prompt)
    assert sample.main([run, "--prompt_file", str(tmp_path / "prompt"), "--max_new_tokens", "3", "--device", "cpu"]) == 0


def test_it_streams_as_a_process(run: str) -> None:
    command = [sys.executable, str(ROOT / "sample.py"), run, "--max_new_tokens", "5", "--device", "cpu"]
    done = subprocess.run(command, input="abc", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("abc")


def test_more_samples_than_fit_are_refused(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_here(small, max_steps=1)
    monkeypatch.setattr(memory, "total_bytes", lambda device: 100_000)
    assert sample.main([config.out_dir, "--num_samples", "50", "--prompt", "a", "--dtype", "float32", "--device", "cpu"]) == 2
    assert "--num_samples 50 takes" in capsys.readouterr().err
