import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import sources
from data.sources import drop_binaries, find_files, fingerprint, line_end, open_file, open_text, read_documents

TEXTS = [f"document {i} é 你好\n\n" * (i % 5) for i in range(1000)]


def as_jsonl(texts: list[str]) -> bytes:
    return "\n\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode()


def compress(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_arrow(path: Path, texts: list[str], new: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> None:
    table = pa.table({"text": texts, "id": range(len(texts))})
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "a.jsonl": lambda path, texts: path.write_bytes(as_jsonl(texts)),
    "a.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(as_jsonl(texts))),
    "a.jsonl.zst": lambda path, texts: path.write_bytes(compress(as_jsonl(texts), "zstd")),
    "a.parquet": lambda path, texts: pq.write_table(pa.table({"url": texts, "text": texts}), path, row_group_size=170),
    "b.parquet": lambda path, texts: pq.write_table(pa.table({"content": texts, "id": range(len(texts))}), path),
    "stream.arrow": lambda path, texts: write_arrow(path, texts, pa.ipc.new_stream),
    "file.arrow": lambda path, texts: write_arrow(path, texts, pa.ipc.new_file),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    for name, write in WRITERS.items():
        write(folder / name, TEXTS)
    return folder


@pytest.mark.parametrize("name", WRITERS)
@given(start=st.integers(0, len(TEXTS)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_format_gives_the_documents_from_any_on(name: str, start: int, files: Path) -> None:
    part = open_file(files / name)
    assert part.count == len(TEXTS)
    assert list(read_documents([part], start)) == TEXTS[start:]


@given(start=st.integers(0, 2005))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_follow_each_other(start: int, files: Path) -> None:
    parts = [open_file(files / "a.jsonl"), open_file(files / "a.parquet")]
    assert list(read_documents(parts, start)) == (TEXTS * 2)[start:]


def test_documents_are_well_formed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert list(read_documents([open_file(tmp_path / "a.jsonl")])) == ["a\ufffdb \U0001f600"]


def test_a_text_file_keeps_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\n")
    assert list(read_documents([open_file(tmp_path / "a.txt")])) == ["\ufeffa\r\nb\rc\n\n"]


@given(text=st.text(alphabet="ab\né你\U0001f600", max_size=400), limit=st.integers(8, 50))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_large_text_is_cut_into_parts_that_add_up(text: str, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, "utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "DOCUMENT_BYTES", limit)
        part = open_text(path)
        documents = list(part.read(0))
        assert "".join(documents) == text
        assert part.count == len(documents)
        assert max(len(document.encode()) for document in documents) <= 2 * limit + 4
        for start in range(part.count):
            assert list(part.read(start)) == documents[start:]


@given(text=st.text(alphabet="ab\né你\U0001f600", min_size=1), data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_line_end_falls_between_characters(text: str, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, "utf-8", newline="")
    content = text.encode()
    position = data.draw(st.integers(0, len(content)))
    cut = line_end(path, position)
    assert position <= cut <= len(content)
    assert content[:cut].decode() + content[cut:].decode() == text


def test_files_are_found_in_order_without_hidden_ones_and_links(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a.txt", ".git/x.txt", "b/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    found = find_files([tmp_path / "b" / "2.txt", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/2.txt", "a.txt", "b/10.txt", "b/2.txt"]


def test_missing_and_empty_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--input .*nothing.txt does not exist"):
        find_files([tmp_path / "nothing.txt"])
    with pytest.raises(ValueError, match="holds no file"):
        find_files([tmp_path])


def test_the_fingerprint_follows_name_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint([path])
    assert fingerprint([path]) == before
    path.write_text("three")
    assert fingerprint([path]) != before


def test_binaries_in_a_folder_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in (("a.txt", b"text"), ("b.png", b"\x89PNG\xff"), ("c.txt", "é".encode("latin-1"))):
        (tmp_path / name).write_bytes(content)
    found = find_files([tmp_path])
    assert [path.name for path in drop_binaries(found)] == ["a.txt"]
    assert "skipped 2 files that are not UTF-8" in caplog.text
    assert drop_binaries(found, [tmp_path / "b.png"])[1].name == "b.png"  # named: to be refused, not skipped


@given(head=st.text(max_size=30), tail=st.binary(max_size=3))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_byte_that_is_no_utf8_is_named(head: str, tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    content = head.encode() + b"\xff" + tail
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"byte {len(head.encode())} is not UTF-8"):
        open_text(path)


def test_a_character_cut_by_a_block_is_no_error(tmp_path: Path) -> None:
    content = b"a" * ((1 << 20) - 1) + "你".encode() + b"\xff"
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"byte {(1 << 20) + 2} is not UTF-8"):
        open_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "document 1 is not JSON"),
        ("[" * 100_000, "document 1 is not JSON"),
        ("[]", 'document 1 has no "text"'),
        ('{"text": 3}', 'document 1 has no "text"'),
        ("\xff", "document 1 is not JSON"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line.encode("latin-1"))
    with pytest.raises(ValueError, match=f"a.jsonl: {message}"):
        list(open_file(tmp_path / "a.jsonl").read(0))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named(name: str, damage: str, files: Path, tmp_path: Path) -> None:
    content = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "noise": b"\x00\x01" * 500, "empty": b""}[damage])
    if damage == "empty" and ".jsonl." in name:
        assert open_file(path).count == 0
    else:
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            list(open_file(path).read(0))


def test_a_row_without_text_and_a_table_without_a_text_column_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    with pytest.raises(ValueError, match=r"null.parquet has a row with no text"):
        list(open_file(tmp_path / "null.parquet").read(0))
    pq.write_table(pa.table({"one": ["a"], "two": ["b"]}), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"two.parquet has no column 'text' and 2 columns of strings"):
        open_file(tmp_path / "two.parquet")


@pytest.mark.parametrize("line", [b'{"text": "' + b"a" * (1 << 25) + b'"}', b'{"text": ""}\n' * (1 << 20)])
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_zip_bomb_is_refused_in_bounded_memory(
    line: bytes, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 1 << 18)
    path = tmp_path / f"bomb.jsonl.{suffix}"
    path.write_bytes(compress(line, "gzip" if suffix == "gz" else "zstd"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb.jsonl.\w+(: a line is longer| unpacks to over)"):
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


PACKED = [pa.ipc.IpcWriteOptions(compression=name) for name in (None, "zstd", "lz4")]
RARE = "a" * (1 << 20)


def write_table(path: Path, table: pa.Table, new: Callable[..., pa.ipc.RecordBatchStreamWriter], options: object) -> Path:
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("options", PACKED)
@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_packed_arrow_is_read_beside_dictionaries(
    tmp_path: Path, new: Callable[..., pa.ipc.RecordBatchStreamWriter], options: object
) -> None:
    texts = [f"text {i}" * 50 for i in range(600)]
    table = pa.table({"kind": pa.array(["x", "y", "x"] * 200).dictionary_encode(), "text": texts})
    part = open_file(write_table(tmp_path / "a.arrow", table, new, options))
    assert part.count == 600
    assert list(part.read(0)) == texts
    assert list(part.read(599)) == texts[599:]


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, new: Callable[..., pa.ipc.RecordBatchStreamWriter]
) -> None:
    path = write_table(tmp_path / "bomb.arrow", pa.table({"text": [RARE] * 80}), new, PACKED[1])
    hidden = pa.table({"text": ["a"] * 80, "other": pa.DictionaryArray.from_arrays(np.zeros(80, np.int32), [RARE * 80])})
    beside = write_table(tmp_path / "beside.arrow", hidden, new, PACKED[1])
    before = pa.total_allocated_bytes()
    for bomb in (path, beside):
        with pytest.raises(ValueError, match=r"\.arrow unpacks to over 200 times its size"):
            open_file(bomb)
    assert pa.total_allocated_bytes() - before < 1 << 22


def test_a_parquet_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    texts = [f"{RARE}{i}" for i in range(80)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "pages.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(ValueError, match=r"pages.parquet unpacks to over 200 times its size"):
        open_file(tmp_path / "pages.parquet")


def test_one_long_string_for_every_row_is_not_copied_for_each(tmp_path: Path) -> None:
    """A dictionary of one entry: a batch of rows would take a batch of copies."""
    repeated = pa.DictionaryArray.from_arrays(np.zeros(256, np.int32), [RARE[: 1 << 19]])
    pq.write_table(pa.table({"text": repeated}), tmp_path / "rows.parquet", compression="zstd", store_schema=False)
    part = open_file(tmp_path / "rows.parquet")
    peaks: list[int] = []
    with pytest.raises(ValueError, match=r"rows.parquet unpacks to over 200 times its size"):
        peaks.extend(pa.total_allocated_bytes() for _ in part.read(0))
    assert max(peaks) < 1 << 24


def test_arrow_offsets_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 1 << 30, 5], np.int32)), pa.py_buffer(b"hello")]
    batch = pa.record_batch([pa.Array.from_buffers(pa.string(), 2, buffers)], ["text"])
    with pa.ipc.new_stream(str(tmp_path / "off.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(ValueError, match=r"off.arrow is damaged"):
        open_file(tmp_path / "off.arrow")
