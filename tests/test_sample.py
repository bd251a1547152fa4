"""Text from a trained model: the same for the same seed, and one line for anything that cannot be."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample
from config.schema import Config
from data import prepare
from data.tokenizer import load
from model import GPT
from runtime import memory
from tests.own_tokenizer import train_byte_level
from tests.runs import ROOT, rows, small_config, train_here


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
        (["RUN", "--prompt_file", "x" * 5000], "is not a file"),
        (["RUN", "--tokenizer", "x" * 5000 + ".json"], "does not exist"),
        (["RUN", "--prompt_file", "no/such"], "--prompt_file 'no/such' is not a file"),
        (["RUN", "--stop", ""], "--stop is empty"),
        (["RUN", "--tokenizer", "klingon"], "tokenizer 'klingon' is unknown"),
        (["RUN", "--tokenizer", "none"], "tokenizer 'none' has no text"),
        (["RUN", "--tokenizer", "no/tokenizer.json"], "tokenizer file no/tokenizer.json does not exist"),
        (["--out_dir=runs/a b", "--start=The end"], "nanoGPT's spelling; type: python sample.py runs/a b --prompt 'The end'"),
        (["--init_from=gpt2", "--start=FILE:p.txt"], "type: python sample.py openai-community/gpt2 --prompt_file p.txt"),
        (["--init_from", "gpt2"], "nanoGPT's spelling; type: python sample.py RUN"),
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


def read(words: str, ids: list[int], stops: tuple[str, ...] = (), ignore_eos: bool = False, step: int = 1) -> tuple[str, int]:
    """What is shown of these ids, and after how many of them it ended."""
    one = sample.Sample(load(words), [], stops, ignore_eos)
    shown, taken = "", 0
    for token in ids:
        taken += not one.ended
        shown += one.push(token)
    return shown + one.finish(), taken


def test_a_sample_ends_at_end_of_text_and_shows_it() -> None:
    ids = [*b"yes", 256, *b"no", 256]
    assert read("bytes", ids) == ("yes<|endoftext|>", 4)
    assert read("bytes", ids, ignore_eos=True) == ("yes<|endoftext|>no<|endoftext|>", 7)
    assert read("bytes", [0xC3, 256]) == ("\ufffd<|endoftext|>", 2)
    assert read("bytes", [0xC3]) == ("\ufffd", 1)


@given(
    text=st.text(alphabet="ab\né", max_size=30), stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)
)
def test_a_stop_text_ends_a_sample_before_it(text: str, stops: list[str]) -> None:
    places = [text.index(stop) for stop in stops if stop in text]
    shown, taken = read("bytes", list(text.encode()), tuple(stops))
    # Of two stops that the same token completes, and where one lies in the other, the earlier beginning counts.
    first = min((len(text[: text.index(stop)].encode()) + len(stop.encode()) for stop in stops if stop in text), default=None)
    if first is None:
        assert (shown, taken) == (text, len(text.encode()))
    else:
        assert taken == first
        assert text.startswith(shown)
        assert len(shown) in places


def test_a_stop_text_ends_the_process_s_output(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(capsys, run, "--prompt", "abc", "--temperature", "0", "--ignore_eos")
    stop = whole[3:][10:12]
    assert write(capsys, run, "--prompt", "abc", "--temperature", "0", "--stop", stop) == whole[: whole.index(stop, 3)] + "\n"


def test_several_prompts_are_each_what_they_are_alone(run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    alone = [write(capsys, run, "--prompt", prompt).removesuffix("\n") for prompt in ("abc", "x y", "<|endoftext|>q")]
    both = write(capsys, run, "--prompt", "abc", "--prompt", "x y", "--prompt", "<|endoftext|>q")
    assert both == ("\n" + sample.SEPARATOR).join(alone) + "\n"
    (tmp_path / "prompts").write_text("abc\n\nx y\n<|endoftext|>q\n")
    assert write(capsys, run, "--prompt_file", str(tmp_path / "prompts")) == both


def test_a_prompt_longer_than_the_block_is_said_and_works(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "ab c" * 20
    assert sample.main([run, "--prompt", prompt, "--max_new_tokens", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(prompt)
    assert said.err == "sample.py: a prompt has 80 tokens; the model sees the last 32\n"


def test_a_padded_vocabulary_is_never_sampled_beyond_the_tokenizer(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GPT(small.gpt(320), 0).save_pretrained(tmp_path / "padded")
    hot = ["--tokenizer", "bytes", "--temperature", "100", "--top_k", "0", "--num_samples", "50", "--ignore_eos"]
    assert write(capsys, str(tmp_path / "padded"), "--prompt", "a", *hot)
    GPT(small.gpt(1500), 0).save_pretrained(tmp_path / "other")
    assert sample.main([str(tmp_path / "other"), "--tokenizer", "bytes", "--prompt", "a"]) == 2
    assert "tokenizer 'bytes' has 257 ids, the model 1500; name the right one" in capsys.readouterr().err


def test_narrow_terminals_closed_pipes_and_silent_ones_are_no_faults(run: str) -> None:
    command = [sys.executable, str(ROOT / "sample.py"), run, "--device", "cpu", "--temperature", "1000"]
    narrow = os.environ | {"PYTHONIOENCODING": "ascii"}
    reading, writing = os.pipe()
    silent = subprocess.Popen(
        [*command, "--max_new_tokens", "20"], stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=narrow
    )
    closed = subprocess.Popen(
        [*command, "--prompt", "日本", "--max_new_tokens", "3000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=narrow
    )
    assert closed.stdout is not None
    assert closed.stdout.read(4) == b"\\u65"
    closed.stdout.close()
    assert closed.stderr is not None
    assert (closed.stderr.read(), closed.wait()) == (b"", 0)
    out, errors = silent.communicate(timeout=120)
    os.close(writing)
    os.close(reading)
    assert silent.returncode == 0
    assert out.isascii()
    assert errors.startswith(b"sample.py: standard input said nothing for 1 s")
    assert errors.count(b"\n") == 1


def test_a_run_with_its_own_tokenizer_outlives_the_file_and_the_data(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train_byte_level(tmp_path / "mine.json")
    (tmp_path / "text.txt").write_text("the cat sat on the mat, été. " * 400)
    out = tmp_path / "data"
    argv = ["text", "--input", str(tmp_path / "text.txt"), "--out", str(out), "--tokenizer", str(path)]
    assert prepare.main(argv) == 0
    assert prepare.main(["verify", str(out)]) == 0
    config = train_here(small, data_dir=str(out), tokenizer="", max_steps=3, lr_decay_steps=6)
    assert all(row["val_bits_per_byte"] > 0 for row in rows(config) if "val_loss" in row)
    train_here(
        small, data_dir=str(out), tokenizer=str(path), max_steps=6, lr_decay_steps=6
    )  # named by its path: the same one, so it resumes
    path.unlink()
    shutil.rmtree(out)
    assert write(capsys, config.out_dir, "--prompt", "the cat é").startswith("the cat é")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step_00000006", tmp_path / "alone")
    assert write(capsys, str(tmp_path / "alone"), "--prompt", "the cat é").startswith("the cat é")
    train_byte_level(tmp_path / "run" / "tokenizer.json", end="<eos>")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000003", ignore_errors=True)
    (tmp_path / "run" / "checkpoints" / "step_00000006" / "tokenizer.json").unlink()
    assert sample.main([config.out_dir, "--prompt", "the"]) == 2
    assert "tokenizer.json is not the tokenizer that was used" in capsys.readouterr().err


def test_ids_without_text_train_without_bits_per_byte_and_ask_for_a_tokenizer(
    small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_here(small, tokenizer="none", vocab_size=257, max_steps=2)
    assert [row["val_bits_per_byte"] for row in rows(config) if "val_loss" in row] == [None, None]
    assert sample.main([config.out_dir, "--prompt", "a"]) == 2
    assert "name the one that wrote the ids: --tokenizer gpt2, bytes or FILE" in capsys.readouterr().err
    assert write(capsys, config.out_dir, "--prompt", "a", "--tokenizer", "bytes").startswith("a")
