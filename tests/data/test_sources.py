import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import part as bounds
from data.inputs import fingerprint, refuse_held_out, select
from data.sources import cut_text, line_end, open_file, open_text, read_documents

TEXTS = [f"document {i} é 你好\n\n" * (i % 5) for i in range(1000)]


def as_jsonl(texts: list[str]) -> bytes:
    return "\n\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode()


def as_csv(texts: list[str], delimiter: str) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([("id", "text"), *enumerate(texts)])
    return sink.getvalue()


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
    "a.ndjson.xz": lambda path, texts: path.write_bytes(lzma.compress(as_jsonl(texts))),
    "two.jsonl.xz": lambda path, texts: path.write_bytes(
        lzma.compress(as_jsonl(texts[:400]) + b"\n") + lzma.compress(as_jsonl(texts[400:]))
    ),
    "a.json.bz2": lambda path, texts: path.write_bytes(bz2.compress(as_jsonl(texts))),
    "lines.json": lambda path, texts: path.write_bytes(b"\xef\xbb\xbf" + as_jsonl(texts)),
    "array.json": lambda path, texts: path.write_text(json.dumps([{"text": text, "tags": [{}]} for text in texts], indent=2)),
    "array.json.gz": lambda path, texts: path.write_bytes(gzip.compress(json.dumps([{"body": t} for t in texts]).encode())),
    "a.csv": lambda path, texts: path.write_text(as_csv(texts, ",")),
    "a.tsv.zst": lambda path, texts: path.write_bytes(compress(as_csv(texts, "\t").encode(), "zstd")),
    "binary.parquet": lambda path, texts: pq.write_table(pa.table({"text": [text.encode() for text in texts]}), path),
    "kinds.parquet": lambda path, texts: pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), path),
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
        patch.setattr(bounds, "DOCUMENT_BYTES", limit)
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
    found = select([tmp_path / "b" / "2.txt", tmp_path]).files
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/2.txt", "a.txt", "b/10.txt", "b/2.txt"]


def test_missing_and_empty_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--input .*nothing.txt does not exist"):
        select([tmp_path / "nothing.txt"])
    with pytest.raises(ValueError, match="holds no file"):
        select([tmp_path])


def fill(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
        (folder / name).write_bytes(packed(b"\x89PNG\xff" if ".png" in name else b'{"text": "a"}\n'))
    return folder


@pytest.mark.parametrize(
    ("names", "kept", "left"),
    [
        ("c4.00.json.gz c4.01.json.gz README.md LICENSE c4.py", "c4.00.json.gz c4.01.json.gz", "LICENSE, README.md, c4.py"),
        ("data/a.parquet dataset_info.json state.json data/README.txt", "data/a.parquet", "README.txt, dataset_info.json"),
        ("a.txt b.txt README.md LICENSE.txt notes.md", "a.txt b.txt notes.md", "LICENSE.txt, README.md"),
        ("a.py README.md logo.png", "README.md a.py", "logo.png"),
        ("a.txt.xz COPYING", "a.txt.xz", "COPYING"),
    ],
)
def test_what_lies_beside_data_is_left_out_and_said(names: str, kept: str, left: str, tmp_path: Path) -> None:
    chosen = select([fill(tmp_path, names)])
    assert [path.relative_to(tmp_path).as_posix() for path in chosen.files] == kept.split()
    assert len(chosen.notes) == 1
    assert left in chosen.notes[0]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("a.zip README.md", "a.zip, which would be passed over; unpack or convert them"),
        ("a.jsonl b.tar.gz", "b.tar.gz, which would be passed over"),
        ("a.txt x.bin", "x.bin, which would be passed over"),
        ("a.jsonl b.txt", "holds rows (a.jsonl) and texts (b.txt); name the files to read"),
    ],
)
def test_data_that_would_be_passed_over_are_refused(names: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would be passed over|name the files") as raised:
        select([fill(tmp_path, names)])
    assert told in str(raised.value)


def test_a_text_that_is_no_utf8_is_refused_in_a_folder_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("line".encode("utf-16"))
    files = select([tmp_path]).files
    with pytest.raises(ValueError, match=r"a.txt: byte 3 is not UTF-8 text; convert the file \(iconv -t utf-8\)"):
        open_file(files[0])
    with pytest.raises(ValueError, match="iconv -f utf-16 -t utf-8"):
        open_file(files[1])


@pytest.mark.parametrize(
    "names",
    [
        "train.txt valid.txt", "wiki.train.tokens wiki.test.tokens", "c4-train.0.json.gz c4-validation.0.json.gz",
        "train/0.parquet test/0.parquet", "a.jsonl dev.jsonl", "X-train.txt X-Valid.txt",
    ],
)  # fmt: skip
def test_a_set_held_out_by_name_is_not_trained_on(names: str, tmp_path: Path) -> None:
    chosen = select([fill(tmp_path, names)])
    train, held = sorted(str(tmp_path / name) for name in names.split())
    if "dev" not in names and "/" not in names and "a.jsonl" not in names:
        assert [str(path) for path in chosen.held_out] != [str(path) for path in chosen.files]
    with pytest.raises(ValueError, match="held out by name") as raised:
        refuse_held_out(chosen)
    assert f"type: --input {tmp_path / names.split()[0]} --val_input {tmp_path / names.split()[1]}" in str(raised.value)
    assert {train, held} == {str(path) for path in chosen.files}


@pytest.mark.parametrize("names", ["test_a.py train.py b.py", "val.txt", "contest.txt trainer.txt", "train_test.jsonl a.jsonl"])
def test_other_names_are_nothing_special(names: str, tmp_path: Path) -> None:
    refuse_held_out(select([fill(tmp_path, names)]))


def test_the_fingerprint_follows_name_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint([path])
    assert fingerprint([path]) == before
    path.write_text("three")
    assert fingerprint([path]) != before


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
        ("{", "line 3 is not JSON"),
        ("[" * 100_000, "line 3 is not JSON"),
        ("[]", "line 3 is no object"),
        ('{"text": 3}', "line 3 has no text in 'text' but '3'"),
        ("\xff", "line 3 is not JSON"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line.encode("latin-1"))
    with pytest.raises(ValueError, match=f"a.jsonl: {message}"):
        open_file(tmp_path / "a.jsonl")  # before anything is written


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.ndjson.xz", "a.json.bz2", "a.parquet", "file.arrow", "stream.arrow"]
)
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named(name: str, damage: str, files: Path, tmp_path: Path) -> None:
    content = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "noise": b"\x00\x01" * 500, "empty": b""}[damage])
    if damage == "empty" and name.endswith((".gz", ".zst", ".xz")):
        assert open_file(path).count == 0
    else:
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            list(open_file(path).read(0))


@pytest.mark.parametrize("name", ["n.parquet", "n.arrow", "n.jsonl", "n.json", "n.csv"])
def test_a_row_without_text_is_none_and_counts(name: str, tmp_path: Path) -> None:
    texts, path = ["a", None, "b"], tmp_path / name
    if name == "n.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif name == "n.arrow":
        write_arrow(path, texts, pa.ipc.new_stream)  # type: ignore[arg-type]
    elif name == "n.csv":
        path.write_text("id,text\n1,a\n2,\n3,b\n")
        texts = ["a", "", "b"]
    else:
        rows = [{"text": "a", "x": 1}, {"x": 1}, {"text": "b"}]
        path.write_text(json.dumps(rows) if name == "n.json" else "\n".join(map(json.dumps, rows)))
    part = open_file(path)
    assert part.count == 3
    assert list(read_documents([part])) == texts
    assert list(read_documents([part], 1)) == texts[1:]


@pytest.mark.parametrize("name", ["two.parquet", "two.jsonl", "two.csv"])
def test_the_field_can_be_named_and_must_be_where_none_is_meant(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "two.parquet":
        pq.write_table(pa.table({"one": ["a"], "two": ["b"]}), path)
    else:
        path.write_text('{"one": "a", "two": "b"}' if name == "two.jsonl" else "one,two\na,b\n")
    assert (list(open_file(path, "two").read(0)), open_file(path, "two").field) == (["b"], "two")
    with pytest.raises(ValueError, match=rf"{name} has no field 'text' and 2 fields of text; name one: --text_field one, two"):
        open_file(path)
    with pytest.raises(ValueError, match=rf"{name} has no field 'three'; it has one, two"):
        open_file(path, "three")


def test_columns_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "other": ["a", "b"]}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match="field 'text' is int64, no text; name another one: --text_field other"):
        open_file(tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"text": [b"ok", b"\xff"]}), tmp_path / "bytes.parquet")
    with pytest.raises(ValueError, match=r"bytes.parquet: row 1 is not UTF-8"):
        list(open_file(tmp_path / "bytes.parquet").read(0))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", '[{"text": "a"}, {"text": ', "item 1 is not JSON, is too long, or the array has no end"),
        ("a.json", '[{"text": "a"}, 3]', "item 1 is no object"),
        ("a.json", '{\n"data": []}', "line 1 is not JSON"),
        ("a.csv", "id,text\n1,a,b\n", "line 2 has 3 fields, the first 2"),
        ("a.csv", 'id,text\n1,"a', "line 2 is not CSV"),
    ],
)
def test_broken_rows_are_named(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        open_file(tmp_path / name)


def test_an_array_larger_than_a_block_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.rows.BLOCK", 7)
    rows = [{"n": number, "text": "x" * random.Random(number).randrange(40)} for number in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert list(open_file(tmp_path / "a.json").read(0)) == [row["text"] for row in rows]


@pytest.mark.parametrize("packed", [False, True])
@given(texts=st.lists(st.text(alphabet="ab\n<|é", max_size=20), max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_separator_ends_documents(packed: bool, texts: list[str], tmp_path: Path) -> None:
    content = "\n<|endoftext|>\n".join(texts).encode()
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    whole = [text.strip() for text in content.decode().split("<|endoftext|>") if text.strip()]
    part = open_file(path, "", "<|endoftext|>")
    assert part.count == len(whole)
    for start in range(len(whole) + 1):
        assert list(part.read(start)) == whole[start:]


@given(text=st.text(alphabet="ab\né你", max_size=300), limit=st.integers(8, 50))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_packed_text_is_cut_as_a_plain_one_is(text: str, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "DOCUMENT_BYTES", limit)
        patch.setattr(bounds, "EXPANSION", 10_000)
        documents = list(open_file(path).read(0))
        assert "".join(documents) == text  # type: ignore[arg-type]
        try:
            halves = cut_text(path, 0.3)
        except ValueError:
            return
        assert "".join(document or "" for half in halves for document in half.read(0)) == text
        assert all(half.count == len(list(half.read(0))) for half in halves)


def test_a_header_of_xz_cannot_choose_the_memory(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"text", filters=filters))
    with pytest.raises(ValueError, match=r"a.txt.xz is damaged"):
        open_file(tmp_path / "a.txt.xz")


def quick_xz(content: bytes) -> bytes:
    """With the dictionary of the default preset, and the search of the fastest."""
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 23}])


@pytest.mark.parametrize("line", [b'{"text": "' + b"a" * (1 << 25) + b'"}', b'{"text": ""}\n' * (1 << 17)])
@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_a_zip_bomb_is_refused_in_bounded_memory(
    line: bytes, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "DOCUMENT_BYTES", 1 << 18)
    monkeypatch.setattr(bounds, "EXPANSION", 20)  # so that its end comes soon
    path = tmp_path / f"bomb.jsonl.{suffix}"
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": quick_xz}.get(suffix, lambda content: compress(content, "zstd"))
    path.write_bytes(pack(line))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb.jsonl.\w+(: a line is longer| unpacks to over)"):
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # xz's own dictionary is 8 MB
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


def test_a_parquet_page_that_says_more_than_the_footer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader makes room for what the page's own header says; an honest footer was all that was checked."""
    monkeypatch.setattr(bounds, "DOCUMENT_BYTES", 1 << 20)
    monkeypatch.setattr(bounds, "EXPANSION", 50)
    path = tmp_path / "page.parquet"
    texts = [np.random.default_rng(row).bytes(7500).hex() for row in range(100)]
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", use_dictionary=False, data_page_size=1 << 23)
    assert list(open_file(path).read(0)) == texts
    content = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    assert content[at : at + 3] == bytes.fromhex("150015"), "a data page, and then how much it unpacks to, in four bytes"
    assert [byte >= 128 for byte in content[at + 3 : at + 7]] == [True, True, True, False]
    content[at + 3 : at + 7] = bytes.fromhex("feffff7f")  # 128 MiB - 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.parquet unpacks to over 50 times its size"):
        list(open_file(path).read(0))
    for byte in (0x1C, 0xFF, 0x15, 0):
        path.write_bytes(content[:at] + bytes([byte]) * 200 + content[at + 200 :])
        with pytest.raises(ValueError, match=r"page\.parquet is damaged"):
            list(open_file(path).read(0))


def test_one_long_string_for_every_row_is_not_copied_for_each(tmp_path: Path) -> None:
    """A dictionary of one entry: a batch of rows would take a batch of copies."""
    repeated = pa.DictionaryArray.from_arrays(np.zeros(256, np.int32), [RARE[: 1 << 19]])
    pq.write_table(pa.table({"text": repeated}), tmp_path / "rows.parquet", compression="zstd", store_schema=False)
    part = open_file(tmp_path / "rows.parquet")
    peaks: list[int] = []
    with pytest.raises(ValueError, match=r"rows.parquet unpacks to over 200 times its size"):
        peaks.extend(pa.total_allocated_bytes() for _ in part.read(0))
    assert max(peaks) < 1 << 24


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_long_strings_with_a_common_beginning_are_not_unpacked_together(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DELTA_BYTE_ARRAY states each as a difference from the one before: neither page nor footer says how long they are."""
    monkeypatch.setattr(bounds, "DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "delta.parquet"

    def write(texts: list[str]) -> bounds.Part:
        options = {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "use_dictionary": False, "data_page_version": version}
        pq.write_table(pa.table({"text": texts}), path, compression="zstd", **options)
        return open_file(path)

    texts = [f"{'a' * 900}{i}" for i in range(600)]
    part = write(texts)
    assert list(part.read(0)) == texts
    assert list(part.read(599)) == texts[599:]
    part, peaks = write([f"{RARE[: 1 << 18]}{i}" for i in range(256)]), list[int]()
    assert path.stat().st_size < 1 << 14
    with pytest.raises(ValueError, match=r"delta.parquet unpacks to over 200 times its size"):
        peaks.extend(pa.total_allocated_bytes() for _ in part.read(0))
    assert max(peaks) < 1 << 23  # all of them are 64 MiB


def test_arrow_offsets_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 1 << 30, 5], np.int32)), pa.py_buffer(b"hello")]
    batch = pa.record_batch([pa.Array.from_buffers(pa.string(), 2, buffers)], ["text"])
    with pa.ipc.new_stream(str(tmp_path / "off.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(ValueError, match=r"off.arrow is damaged"):
        open_file(tmp_path / "off.arrow")
