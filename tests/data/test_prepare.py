import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import corpora, prepare
from data.lock import locked
from data.prepare import main
from data.shards import Meta, open_split, read_meta, verify
from data.tokenizer import load
from data.writer import ShardWriter

ROOT = Path(__file__).parents[2]
TEXTS = [f"Document {i}: " + "é word " * (i * 7 % 90) for i in range(600)]
VALIDATION = np.random.default_rng(2357).permutation(600)[:30]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def command(documents: Path, out: Path, *more: str) -> list[str]:
    return [
        "openwebtext",
        "--input",
        str(documents),
        "--out",
        str(out),
        "--val_fraction",
        "0.05",
        "--shard_tokens",
        "9000",
        *more,
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".json")}


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_documents_are_in_source_order_each_before_end_of_text(name: str, documents: Path, tmp_path: Path) -> None:
    assert main(command(documents, tmp_path, "--tokenizer", name, "--workers", "3")) == 0
    words, meta = load(name), read_meta(tmp_path)
    assert meta is not None
    for split, numbers in (("val", np.sort(VALIDATION)), ("train", np.setdiff1d(np.arange(600), VALIDATION))):
        expected = [np.append(words.encode(TEXTS[number]), words.eot) for number in numbers]
        tokens = open_split(tmp_path, split)
        assert np.array_equal(tokens.read(0, len(tokens)), np.concatenate(expected))
        assert meta.tokens[split] == len(tokens)
        assert meta.documents[split] == len(numbers)
        assert meta.bytes[split] == sum(len(TEXTS[number].encode()) for number in numbers)
        assert words.byte_lengths()[tokens.read(0, len(tokens))].sum() == meta.bytes[split]
        if split == "val":
            assert meta.val_document_offsets == [0, *np.cumsum([len(e) for e in expected])[:-1].tolist()]
    assert len(open_split(tmp_path, "train").paths) > 3
    assert (meta.source, meta.revision, meta.vocab_size) == (str(documents), "local", words.vocab_size)
    assert verify(tmp_path)
    assert not (tmp_path / prepare.PROGRESS).exists()


def test_workers_change_nothing_and_the_corpus_hash_is_the_texts(documents: Path, tmp_path: Path) -> None:
    for folder, more in (("a", ["--workers", "1"]), ("b", ["--workers", "7"]), ("c", ["--tokenizer", "bytes"])):
        assert main(command(documents, tmp_path / folder, *more)) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    a, c = read_meta(tmp_path / "a"), read_meta(tmp_path / "c")
    assert a is not None
    assert c is not None
    assert a.corpus_sha256 == c.corpus_sha256
    assert main([*command(documents, tmp_path / "d"), "--val_fraction", "0.1"]) == 0
    d = read_meta(tmp_path / "d")
    assert d is not None
    assert d.corpus_sha256 != a.corpus_sha256


def test_a_finished_folder_is_left_as_it_is(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(documents, tmp_path)) == 0
    first = capsys.readouterr().out.splitlines()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main(command(documents, tmp_path, "--workers", "2")) == 0
    second = capsys.readouterr().out.splitlines()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "is prepared already" in second[0]
    assert first[1:] == second[1:]
    assert any(line.startswith("corpus sha256 ") for line in second)


def test_other_settings_in_a_finished_folder_are_refused(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(documents, tmp_path)) == 0
    capsys.readouterr()
    assert main(command(documents, tmp_path, "--tokenizer", "bytes")) == 2
    assert "other settings: tokenizer 'gpt2' (now 'bytes'); choose another --out" in one_line(capsys)


def test_a_finished_folder_that_lost_a_shard_is_not_taken_for_whole(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(documents, tmp_path)) == 0
    (tmp_path / "train_000001.bin").unlink()
    capsys.readouterr()
    assert main(command(documents, tmp_path)) == 2
    assert "delete the folder and prepare it again" in one_line(capsys)


def test_shards_of_others_are_not_overwritten(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train_000000.bin").write_bytes(b"mine")
    assert main(command(documents, tmp_path)) == 2
    assert "holds shards without meta.json; choose another --out" in one_line(capsys)
    assert (tmp_path / "train_000000.bin").read_bytes() == b"mine"


@given(failures=st.lists(st.integers(0, 400), min_size=1, max_size=3), interval=st.integers(1, 20_000))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_full_disk_loses_nothing(
    failures: list[int],
    interval: int,
    documents: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    straight, out = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("interrupted")
    assert main(command(documents, straight)) == 0
    for failure in failures:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepare, "CHECKPOINT_TOKENS", interval)
            patch.setattr(ShardWriter, "write", failing(ShardWriter.write, failure))
            capsys.readouterr()
            if main(command(documents, out)) == 2:
                assert "No space left on device; once that is put right, the same command goes on" in one_line(capsys)
                assert read_meta(out) is None
    assert main(command(documents, out)) == 0
    assert contents(out) == contents(straight)


def failing(write: Callable[..., None], after: int) -> Callable[..., None]:
    calls = 0

    def wrapped(writer: ShardWriter, tokens: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, tokens)

    return wrapped


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": text * 40}) + "\n" for text in TEXTS))
    code = "import sys; from data import prepare; prepare.CHECKPOINT_TOKENS = 100_000; sys.exit(prepare.main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, *command(documents, tmp_path / "killed", "--workers", "1")]
    random = np.random.default_rng(1)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list((tmp_path / "killed").glob("*.bin*")):
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.5)))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills > 0
    assert main(command(documents, tmp_path / "killed")) == 0
    assert main(command(documents, tmp_path / "straight")) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_an_unfinished_folder_takes_the_same_command_only(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "write", failing(ShardWriter.write, 100))
        assert main(command(documents, tmp_path)) == 2
    capsys.readouterr()
    assert main(command(documents, tmp_path, "--shard_tokens", "5000")) == 2
    assert "shard_tokens 9000 (now 5000)" in one_line(capsys)


def test_an_interruption_is_one_line(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "write", interrupted)
    assert main(command(documents, tmp_path)) == 130
    assert "the same command goes on" in one_line(capsys)


def test_the_second_of_two_at_once_is_refused(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        assert main(command(documents, tmp_path)) == 2
    assert f"is in use by process {os.getpid()}" in one_line(capsys)
    assert main(command(documents, tmp_path)) == 0


def test_openwebtext_from_a_repository_resumes_at_the_commit_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.hub import Opened
    from data.part import Part

    asked = []

    def open_dataset(repository: str, revision: str, *_: object) -> Opened:
        asked.append(revision)
        return Opened("commit 1", [Part(len(TEXTS), lambda start: iter(TEXTS[start:]))], [], 1)

    monkeypatch.setattr(corpora, "open_dataset", open_dataset)
    arguments = ["openwebtext", "--repository", "someone/owt", "--revision", "main", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "write", failing(ShardWriter.write, 100))
        assert main(arguments) == 2
    assert main(arguments) == 0
    assert asked == ["main", "commit 1"]
    meta = read_meta(tmp_path)
    assert meta is not None
    assert (meta.source, meta.revision, meta.documents["val"]) == ("someone/owt", "commit 1", 1)
    assert meta.expected == corpora.OPENWEBTEXT  # the totals differ from the published ones, which is recorded
    assert main(arguments) == 0
    assert len(asked) == 2  # nothing is asked of the hub for a finished folder


def test_expected_totals_are_silent_where_met_or_not_comparable(documents: Path, tmp_path: Path) -> None:
    assert main(command(documents, tmp_path)) == 0
    meta = read_meta(tmp_path)
    assert meta is not None
    assert meta.expected == {}
    settings = {"dataset": "openwebtext", "repository": "someone/owt", "val_fraction": corpora.NANOGPT_FRACTION}
    met = replace(
        meta,
        settings=settings,
        documents={"train": 8_009_762, "val": 4007},
        tokens={"train": 9_035_582_198, "val": 4_434_897},
    )
    assert prepare.unexpected_totals(met) == {}
    assert prepare.unexpected_totals(replace(met, documents={"train": 1, "val": 1})) == corpora.OPENWEBTEXT


def test_the_standard_library_trains_bytes_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pystdlib", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    meta = read_meta(tmp_path)
    assert meta is not None
    assert meta.tokenizer == "bytes"
    assert f"corpus sha256 {meta.corpus_sha256}" in out
    assert 150_000 < meta.tokens["val"] < 300_000
    assert main(["verify", str(tmp_path)]) == 0


def test_verify_finds_damage(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(documents, tmp_path)) == 0
    assert main(["verify", str(tmp_path)]) == 0
    path = tmp_path / "train_000000.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 2
    assert f"{path}: sha256" in one_line(capsys)


@pytest.mark.parametrize("name", ["späce é 你", "a b\tc", "-dash"])
def test_unicode_paths_work(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "input 你.txt").write_text("line\n" * 100)
    out = tmp_path / "out" / name
    assert main(["text", "--tokenizer", "bytes", "--input", str(folder), "--out", str(out)]) == 0
    assert len(open_split(out, "train")) == 456


def test_rows_without_text_are_counted_and_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [None if i % 7 == 3 else "" if i % 11 == 5 else text for i, text in enumerate(TEXTS)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["text", "--input", str(tmp_path / "some.jsonl"), "--tokenizer", "bytes", "--val_fraction", "0.05", "--out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CHECKPOINT_TOKENS", 500)
        patch.setattr(ShardWriter, "write", failing(ShardWriter.write, 200))
        assert main([*arguments, str(tmp_path / "out")]) == 2
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "out")]) == 0
    left = sum(not text for text in texts)
    assert f"rows or files without text, left out: {left}\n" in capsys.readouterr().out
    meta = read_meta(tmp_path / "out")
    assert meta is not None
    assert (sum(meta.documents.values()), meta.skipped) == (len(texts) - left, left)
    tokens = open_split(tmp_path / "out", "train")
    whole = [text for i, text in enumerate(texts) if text and i not in set(VALIDATION)]
    assert tokens.read(0, len(tokens)).tolist() == [i for text in whole for i in [*text.encode(), 256]]


def test_a_repaired_input_begins_an_unfinished_folder_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    arguments = ["text", "--input", str(path), "--tokenizer", "bytes", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CHECKPOINT_TOKENS", 500)
        patch.setattr(ShardWriter, "write", failing(ShardWriter.write, 200))
        assert main(arguments) == 2
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:300]))
    assert main(arguments) == 0
    assert "the input files have changed since" in caplog.text
    meta = read_meta(tmp_path / "out")
    assert meta is not None
    assert sum(meta.documents.values()) == 300
    assert main(["verify", str(tmp_path / "out")]) == 0
    path.write_text("other")
    capsys.readouterr()
    assert main(arguments) == 2
    assert "other settings: the input files have changed; choose another --out" in one_line(capsys)


BAD = {
    "text --input {file} --val_input {file} --val_fraction 0.1": "--val_input and --val_fraction both say what is validation",
    "text --input {file} --val_input {out}/missing": "--val_input {out}/missing does not exist",
    "hub": "required: --repo",
    "pystdlib --tokenizer {file}.json": "does not exist; name it: --tokenizer PATH/tokenizer.json",
    "pystdlib --tokenizer none --out {out}": "tokenizer 'none' has no text",
    "": "are required: {openwebtext,pystdlib,text,hub,verify}; type: python -m data.prepare --help",
    "openwebtex": "invalid choice: 'openwebtex'",
    "pystdlib --tokeniser gpt2": "unrecognized arguments: --tokeniser gpt2",
    "pystdlib --token gpt2": "unrecognized arguments: --token",
    "pystdlib --tokenizer gpt4 --out {out}": "tokenizer 'gpt4' is unknown; choose one of: gpt2, bytes",
    "pystdlib --val_fraction 1": "1 is not between 0 and 1",
    "pystdlib --val_fraction nan": "nan is not between 0 and 1",
    "pystdlib --val_fraction x": "--val_fraction: invalid",
    "pystdlib --shard_tokens 0": "0 is not between 1 and 2147483647",
    "pystdlib --shard_tokens 1e6": "--shard_tokens: invalid",
    "pystdlib --workers 100000000000000000000": "is not between 1 and 1024",
    "pystdlib --out {file}": "File exists",
    "pystdlib --out {file}/below": "Not a directory",
    "text": "required: --input",
    "text --input {out}/missing": "does not exist; give files or folders",
    "text --input {empty}": "holds no file",
    "text --input {binary} --out {out}": "byte 0 is not UTF-8 text",
    "openwebtext --input {binary} --out {out}": "byte 0 is not UTF-8 text",
    "verify": "required: DIR",
    "verify {empty}": "holds no *train*.bin",
    "verify {out}/missing": "is no folder",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_2(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: tmp_path / name for name in ("out", "file", "empty", "binary")}
    places["file"].write_text("text")
    places["empty"].mkdir()
    places["binary"].write_bytes(b"\xff\x00" * 100)
    assert main([word.format(**places) for word in line.split()]) == 2
    assert BAD[line].replace("{out}", str(places["out"])) in one_line(capsys)
    assert not places["out"].exists() or read_meta(places["out"]) is None


def test_a_read_only_folder_is_one_line(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert main(command(documents, tmp_path / "out")) == 2
    assert f"Permission denied ({tmp_path / 'out'})" in one_line(capsys)


WORDS = [
    "pystdlib",
    "text",
    "verify",
    "--out",
    "--input",
    "--tokenizer",
    "bytes",
    "gpt2",
    "--val_fraction",
    "0.3",
    "--workers",
    "-1",
]


@given(line=st.lists(st.sampled_from(WORDS) | st.text(max_size=5) | st.integers().map(str), max_size=7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_command_line_ends_in_0_or_one_line(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub(plan: object, settings: dict[str, object], out: Path, workers: int, tokenizer: str) -> Meta:
        load(tokenizer)
        zeros = {"train": 0, "val": 0}
        return Meta("bytes", 257, zeros, zeros, zeros, [], "", "", "", {})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "write_corpus", stub)
    capsys.readouterr()
    if main(line) == 0:
        assert capsys.readouterr().err == ""
    else:
        assert len(one_line(capsys)) > 10


def test_one_real_process(documents: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "data.prepare", *command(documents, tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[1:3] == [
        "read documents.jsonl, field 'text'",
        "validation: 5 % of the documents, drawn by number",
    ]
    assert ran.stdout.splitlines()[-1] == f"next: python train.py config/gpt2.py --data_dir {tmp_path}"
    asked = [sys.executable, "-m", "data.prepare", "verify", str(tmp_path / "missing")]
    ran = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("prepare: ")
    assert ran.stderr.count("\n") == 1


def test_meta_is_plain_json(documents: Path, tmp_path: Path) -> None:
    assert main(command(documents, tmp_path)) == 0
    meta = read_meta(tmp_path)
    assert meta is not None
    assert json.loads((tmp_path / "meta.json").read_text()) == asdict(meta)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("prepare: ")
    assert error.count("\n") == 1
    return error
