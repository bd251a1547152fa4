"""A file is the old one or the new one, whatever happens while it is written."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from data.files import (
    append,
    reason,
    remove,
    sweep,
    write_atomically,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_written_whole(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        write_json(folder / "a.json", {"x": 1})

    write_atomically(tmp_path / "folder", write)
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["a.json"]


def test_remove_takes_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    remove(tmp_path / "link")
    remove(tmp_path / "not there")
    assert os.listdir(tmp_path) == ["target"]
    remove(tmp_path / "target")
    assert os.listdir(tmp_path) == []


def test_the_reason_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "no").read_text()
    assert reason(caught.value) == f"No such file or directory ({tmp_path / 'no'})"
    assert reason(OSError("words alone")) == "words alone"


def test_a_failed_rename_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "folder", lambda temporary: temporary.mkdir())
    assert os.listdir(tmp_path) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Not through the file's name, and not through that of the temporary file."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("shapes.png", "shapes.png.tmp", f".shapes.png.{os.getpid()}.tmp"):
        (folder / name).symlink_to(victim)
    write_bytes(folder / "shapes.png", b"picture")
    assert (folder / "shapes.png").read_bytes() == b"picture"
    assert not (folder / "shapes.png").is_symlink()
    (folder / "job.log").symlink_to(victim)
    with pytest.raises(ValueError, match=r"job\.log is a symbolic link"):
        append(folder / "job.log")
    (tmp_path / "logs").symlink_to(folder)
    with pytest.raises(ValueError, match="logs is a symbolic link"):
        append(tmp_path / "logs" / "new.log")
    assert victim.read_text() == "mine"
    with append(tmp_path / "own" / "job.log") as log:
        log.write(b"said")
    assert (tmp_path / "own" / "job.log").read_bytes() == b"said"


def test_sweep_takes_the_writer_s_leftovers_alone(tmp_path: Path) -> None:
    for name in (".a.json.7.tmp", ".old.7.removed.tmp", ".notes.tmp", "a.7.tmp"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".notes.tmp", "a.7.tmp"]


def test_a_full_disk_is_an_os_error_for_tensors_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"w\.safetensors cannot be written .* bytes are free there"):
        write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)})
    assert os.listdir(tmp_path) == []
