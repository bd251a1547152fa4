"""Checkpoints are whole or absent, and a stranger's runs no code."""

import dataclasses
import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from config.schema import Config
from model import GPT
from runtime import checkpoint
from tests.runs import train_here


@pytest.fixture
def resolved(small: Config) -> Config:
    return dataclasses.replace(small, vocab_size=257, keep_checkpoints=2)


@pytest.fixture
def gpt(resolved: Config) -> GPT:
    return GPT(resolved.gpt(257), 0)


def save(gpt: GPT, config: Config, step: int, is_best: bool = False) -> Path:
    return checkpoint.save(Path(config.out_dir), step, gpt.gpt2_state_dict(), {"step": step}, config, is_best)


def test_the_newest_and_the_best_stay(gpt: GPT, resolved: Config) -> None:
    for step in range(1, 6):
        save(gpt, resolved, step, is_best=step == 2)
    out = Path(resolved.out_dir)
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step_00000002", "step_00000004", "step_00000005"]
    assert checkpoint.find(out, "best").name == "step_00000002"
    assert checkpoint.find(out, "last").name == "step_00000005"
    assert checkpoint.find(out, "4").name == "step_00000004"
    with pytest.raises(ValueError, match=r"checkpoint '3' of .*: give best, last or one of the steps 2, 4, 5"):
        checkpoint.find(out, "3")


def test_what_is_saved_comes_back(gpt: GPT, resolved: Config) -> None:
    folder = save(gpt, resolved, 7)
    loaded, config = checkpoint.load_model(resolved.out_dir, "last")
    assert config == resolved
    assert all(torch.equal(a, b) for a, b in zip(gpt.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert checkpoint.load_state(folder) == {"step": 7}


def test_a_full_disk_leaves_the_older_checkpoints(gpt: GPT, resolved: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    save(gpt, resolved, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def enforced(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534\nframes")

    for refuse, told in ((full, "No space"), (enforced, r"checkpoint of step 2 cannot be written .*bytes are free")):
        monkeypatch.setattr(torch, "save", refuse)
        with pytest.raises(OSError, match=told):
            save(gpt, resolved, 2)
    assert [path.name for path in checkpoint.checkpoints(Path(resolved.out_dir))] == ["step_00000001"]
    assert len(os.listdir(Path(resolved.out_dir) / "checkpoints")) == 1


def test_half_written_folders_and_links_do_not_count(gpt: GPT, resolved: Config, tmp_path: Path) -> None:
    folder = save(gpt, resolved, 1)
    root = folder.parent
    (root / ".step_00000002.77.tmp").mkdir()
    (root / "step_00000003").symlink_to(tmp_path)
    assert checkpoint.checkpoints(Path(resolved.out_dir)) == [folder]
    checkpoint.sweep(Path(resolved.out_dir))
    assert not (root / ".step_00000002.77.tmp").exists()


def test_a_pickle_that_runs_code_is_refused_unrun(gpt: GPT, resolved: Config, tmp_path: Path) -> None:
    folder = save(gpt, resolved, 1)
    victim = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> object:
            return Path.touch, (victim,)

    torch.save({"optimizer": Payload()}, folder / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is not a training state"):
        checkpoint.load_state(folder)
    (folder / "state.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"state\.pt is not a training state"):
        checkpoint.load_state(folder)
    with zipfile.ZipFile(folder / "state.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"state\.pt is not a training state"):
        checkpoint.load_state(folder)
    assert not victim.exists()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * 8 + data[8:], lambda data: b""])
def test_damaged_weights_are_named(gpt: GPT, resolved: Config, damage: object) -> None:
    path = save(gpt, resolved, 1) / "model.safetensors"
    (path.parent / checkpoint.SUMS).unlink()  # as in an older checkpoint
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"model\.safetensors is not whole"):
        checkpoint.load_model(resolved.out_dir)


@pytest.mark.parametrize("text", ["", "[]", '{"n_layer": 2}', "{", '{"n_layer": 1e999}'])
def test_config_json_is_data_and_checked_as_such(gpt: GPT, resolved: Config, text: str) -> None:
    path = save(gpt, resolved, 1) / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        checkpoint.load_model(resolved.out_dir)


def test_no_checkpoint_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint; give the folder of a run, such as runs/tiny_hermite"):
        checkpoint.load_model(tmp_path)


def test_resume_refuses_what_it_cannot_change_and_names_it(small: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(small, max_steps=2, lr_decay_steps=12)
    with pytest.raises(AssertionError):  # train_here asserts exit code 0
        train_here(small, max_steps=4, lr_decay_steps=12, seed=5, activation="gelu")
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert "seed was 1337 and is 5" in last
    assert "activation was 'hermite:degree=3" in last
    assert "to go on type --activation hermite:degree=3" in last
    assert "--seed 1337, or start another run from its weights: --init_from" in last
    train_here(small, max_steps=4, lr_decay_steps=12, log_interval=2)


@pytest.mark.parametrize(
    ("resume", "told"), [("never", "is not empty and resume is never"), ("must", "holds no checkpoint and resume is must")]
)
def test_resume_never_and_must(small: Config, resume: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(small.out_dir).mkdir()
    (Path(small.out_dir) / "mine").write_text("x")
    with pytest.raises(AssertionError):
        train_here(small, resume=resume)
    assert told in capsys.readouterr().err


def test_shards_that_changed_stop_a_resume(
    small: Config, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in data_dir.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    train_here(small, max_steps=2, lr_decay_steps=12, data_dir=str(copy))
    shard = copy / "train_000000.bin"
    data = bytearray(shard.read_bytes())
    data[2000:2100] = bytes(100)
    shard.write_bytes(data)
    with pytest.raises(AssertionError):
        train_here(small, max_steps=4, lr_decay_steps=12, data_dir=str(copy))
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "config.json", "run.json", ".lock", "checkpoints/best"])
def test_a_run_is_not_written_through_links(gpt: GPT, resolved: Config, tmp_path: Path, name: str) -> None:
    save(gpt, resolved, 1, is_best=True)
    path = Path(resolved.out_dir) / name
    checkpoint.refuse_links(Path(resolved.out_dir))
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        checkpoint.refuse_links(Path(resolved.out_dir))


def test_a_state_that_unpacks_to_more_than_it_is_is_refused(gpt: GPT, resolved: Config) -> None:
    folder = save(gpt, resolved, 1)
    with zipfile.ZipFile(folder / "state.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match=r"state\.pt is not a training state"):
        checkpoint.load_state(folder)


def flip(path: Path, at: int) -> None:
    """One bit of one byte."""
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << (at % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*checkpoint.FILES, checkpoint.SUMS])
def test_one_flipped_bit_anywhere_is_named(gpt: GPT, resolved: Config, name: str) -> None:
    older, folder = save(gpt, resolved, 1), save(gpt, resolved, 2)
    for at in (0, 10, 3001, -1):
        flip(folder / name, at)
        assert not checkpoint.is_whole(folder)
        with pytest.raises(ValueError, match=r"is damaged.*step_00000001 is whole: remove .*step_00000002"):
            checkpoint.verify(folder)
        flip(folder / name, at)
        assert checkpoint.verify(folder)
    flip(older / name, 77)
    assert checkpoint.is_whole(folder)
    flip(folder / name, 77)
    with pytest.raises(ValueError, match="holds no other one that is whole"):
        checkpoint.verify(folder)


def test_every_bit_of_the_sums_counts(gpt: GPT, resolved: Config) -> None:
    path = save(gpt, resolved, 1) / checkpoint.SUMS
    whole = path.read_bytes()
    for at in [*range(60, 70), len(whole) - 1]:  # a digest's end, the blanks, a name; the last line's end
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            assert not checkpoint.is_whole(path.parent), (at, bit)


def test_sums_are_those_of_sha256sum(gpt: GPT, resolved: Config) -> None:
    folder = save(gpt, resolved, 1)
    lines = (folder / checkpoint.SUMS).read_text().splitlines()
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in checkpoint.FILES}
    assert lines == [f"{digest}  {name}" for name, digest in digests.items()]


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_missing_file_is_named(gpt: GPT, resolved: Config, name: str) -> None:
    folder = save(gpt, resolved, 1)
    (folder / name).unlink()
    assert not checkpoint.is_whole(folder)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        checkpoint.verify(folder)


def test_a_sample_needs_no_optimizer(gpt: GPT, resolved: Config) -> None:
    flip(save(gpt, resolved, 1) / "state.pt", 99)
    loaded, _ = checkpoint.load_model(resolved.out_dir)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in gpt.state_dict().items())


def test_an_older_checkpoint_loads_and_says_that_it_is_unchecked(
    gpt: GPT, resolved: Config, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(gpt, resolved, 1)
    (folder / checkpoint.SUMS).unlink()
    assert checkpoint.is_whole(folder)
    checkpoint.load_model(resolved.out_dir)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder} has no SHA256SUMS: it is older than they are, and its files are unchecked"
    ]


def test_a_best_that_is_gone_is_not_replaced_without_a_word(
    gpt: GPT, resolved: Config, caplog: pytest.LogCaptureFixture
) -> None:
    best, last = save(gpt, resolved, 1, is_best=True), save(gpt, resolved, 2)
    checkpoint.remove(best)
    assert checkpoint.find(resolved.out_dir) == last
    assert "names step_00000001, which is not there; taking step_00000002" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16])
def test_weights_of_another_type_are_refused(gpt: GPT, resolved: Config, dtype: torch.dtype) -> None:
    folder = save(gpt, resolved, 1)
    (folder / checkpoint.SUMS).unlink()
    state = load_file(folder / "model.safetensors")
    save_file(state | {"transformer.ln_f.weight": state["transformer.ln_f.weight"].to(dtype)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"transformer.ln_f.weight is {dtype}, not torch.float32"):
        checkpoint.load_model(resolved.out_dir)


def test_a_whole_checkpoint_of_that_step_stays_and_a_damaged_one_is_replaced(gpt: GPT, resolved: Config) -> None:
    folder = save(gpt, resolved, 1)
    before = (folder / "state.pt").stat()
    assert save(gpt, resolved, 1, is_best=True) == folder
    assert (folder / "state.pt").stat() == before
    assert checkpoint.find(resolved.out_dir) == folder
    flip(folder / "state.pt", 99)
    save(gpt, resolved, 1)
    assert checkpoint.verify(folder)


def test_a_damaged_newest_checkpoint_is_not_passed_over(small: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the older one and the way to it, which works."""
    train_here(small, max_steps=8, lr_decay_steps=12, checkpoint_interval=4, keep_checkpoints=3)
    root = Path(small.out_dir) / "checkpoints"
    flip(root / "step_00000008" / "model.safetensors", 40_000)
    with pytest.raises(AssertionError):
        train_here(small, lr_decay_steps=12)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step_00000008/model.safetensors is damaged" in last
    assert f"step_00000006 are whole: remove {root / 'step_00000008'} to go on from the newest of the others" in last
    checkpoint.remove(root / "step_00000008")
    train_here(small, lr_decay_steps=12)
    assert "step_00000012" in os.listdir(root)
