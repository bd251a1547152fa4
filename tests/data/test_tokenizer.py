import json
import shutil
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data import tokenizer
from data.tokenizer import CHUNK_CHARACTERS, gpt2_encoding, load, recorded
from tests.own_tokenizer import train_byte_level

NAMES = ("gpt2", "bytes")
any_text = st.text() | st.text(alphabet="<|endoftext>é 你\n\t'll 123", max_size=200)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize("name", NAMES)
@given(text=any_text)
@relaxed
def test_decoding_inverts_encoding_and_every_byte_is_counted(name: str, text: str) -> None:
    words = load(name)
    ids = words.encode(text)
    assert ids.dtype == np.uint16
    assert words.decode(ids) == text
    assert words.decode_bytes(ids) == text.encode()
    assert words.byte_lengths()[ids].sum() == len(text.encode())
    assert words.eot not in ids


def test_vocabularies() -> None:
    assert [load(name).vocab_size for name in NAMES] == [50257, 257]
    assert [load(name).eot for name in NAMES] == [50256, 256]
    assert [load(name).byte_lengths()[load(name).eot] for name in NAMES] == [0, 0]
    assert load("gpt2").encode("hello world").tolist() == [31373, 995]
    assert load("bytes").encode("é").tolist() == [0xC3, 0xA9]


def test_gpt2_is_tiktokens_ordinary_encoding(bpe_dir: Path) -> None:
    words, reference = load("gpt2"), gpt2_encoding(str(bpe_dir))

    @given(text=any_text)
    @relaxed
    def agrees(text: str) -> None:
        assert words.encode(text).tolist() == reference.encode_ordinary(text)

    agrees()


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_a_text_are_text(name: str) -> None:
    words = load(name)
    ids = words.encode("a<|endoftext|>b")
    assert words.eot not in ids
    assert words.decode(np.append(ids, words.eot)) == "a<|endoftext|>b"


@pytest.mark.parametrize("name", NAMES)
def test_lone_surrogates_become_replacement_characters(name: str) -> None:
    words = load(name)
    assert words.decode(words.encode("a\ud800b\U0001f600")) == "a\ufffdb\U0001f600"


def test_a_cut_character_decodes_to_a_replacement_character() -> None:
    assert load("bytes").decode([0xC3]) == "\ufffd"


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_keep_their_order(threads: int) -> None:
    texts = [f"{i} " * (i % 50) for i in range(3000)] + ["x" * (2 * CHUNK_CHARACTERS), "", "end"]
    words = load("gpt2")
    batch = list(words.encode_batch(texts, threads))
    assert len(batch) == len(texts)
    assert all(np.array_equal(ids, words.encode(text)) for ids, text in zip(batch, texts, strict=True))


def test_an_endless_stream_is_encoded_in_bounded_memory() -> None:
    taken = 0

    def texts() -> object:
        nonlocal taken
        for number in count():
            taken += 1
            yield str(number) * 1000

    first = list(islice(load("bytes").encode_batch(texts(), 2), 10))
    assert load("bytes").decode(first[9]) == "9" * 1000
    assert taken * 1000 < 10 * CHUNK_CHARACTERS


@pytest.mark.parametrize("ids", [[-1], [257], [0, 70000]])
def test_ids_outside_the_vocabulary_are_named(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=f"token id {ids[-1]} is not in the vocabulary of bytes: ids are 0 to 256"):
        load("bytes").decode(ids)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'gpt3' is unknown; choose one of: gpt2, bytes"):
        load("gpt3")


def test_a_hugging_face_folder_works_however_it_is_formatted(
    tmp_path: Path, bpe_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = json.loads((bpe_dir / "encoder.json").read_text("utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary, indent=2, sort_keys=True), "utf-8")
    shutil.copy(bpe_dir / "vocab.bpe", tmp_path / "merges.txt")
    monkeypatch.setenv("GPT2_BPE_DIR", str(tmp_path))
    assert load("gpt2").encode("hello world").tolist() == [31373, 995]


def test_another_encoding_is_refused(tmp_path: Path, bpe_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = json.loads((bpe_dir / "encoder.json").read_text("utf-8"))
    merges = (bpe_dir / "vocab.bpe").read_text("utf-8").split("\n")
    merges[1], merges[2] = merges[2], merges[1]
    first, second = (merge.replace(" ", "") for merge in merges[1:3])
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary), "utf-8")
    (tmp_path / "vocab.bpe").write_text("\n".join(merges), "utf-8")
    monkeypatch.setenv("GPT2_BPE_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="does not hold GPT-2's encoding"):
        load("gpt2")


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [("{", ""), ("[]", "#\n"), ('{"a": 0}', "#\na b\n"), ('{"你": 0}', "#\n你 好\n"), (b"\xff", b"\xff")],
)
def test_a_broken_folder_is_named(
    vocabulary: str | bytes, merges: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("vocab.json", vocabulary), ("merges.txt", merges)):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("GPT2_BPE_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"GPT2_BPE_DIR=.* is unreadable"):
        load("gpt2")


def test_a_folder_without_the_files_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_BPE_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"holds neither encoder.json and vocab.bpe nor vocab.json and merges.txt"):
        load("gpt2")


def test_without_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    tokenizer._gpt2_from.cache_clear()
    monkeypatch.delenv("GPT2_BPE_DIR")
    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(ValueError, match="set GPT2_BPE_DIR to a folder") as raised:
        load("gpt2")
    assert "\n" not in str(raised.value)


def test_empty_texts_do_not_make_one_chunk() -> None:
    assert max(map(len, tokenizer.chunks([""] * 10_000, 6_400))) == 100


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_byte_level(tmp_path_factory.mktemp("own") / "tokenizer.json")


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lower-case words with a metaspace, as a SentencePiece model that knows few characters."""
    library = Tokenizer(models.BPE(unk_token="<unk>"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "[SEP]"], show_progress=False)
    library.train_from_iterator(["the cat sat on the mat é"] * 20, trainer)
    path = tmp_path_factory.mktemp("lossy") / "words.json"
    library.save(str(path))
    return path


def test_a_byte_level_file_loses_nothing(own: Path) -> None:
    words = load(str(own))
    assert (words.vocab_size, words.eot_text, words.eot) == (270, "</s>", 1)

    @given(text=any_text | st.text(alphabet="the cat<|/s>pad", max_size=60))
    @relaxed
    def agrees(text: str) -> None:
        ids = words.encode(text)
        assert words.decode(ids) == text
        assert words.eot not in ids  # a text that spells </s> is ordinary text
        lengths = words.byte_lengths()
        assert lengths is not None
        assert lengths[ids].sum() == len(text.encode())

    agrees()
    assert len({tuple(words.encode("the cat sat on the mat").tolist()) for _ in range(20)}) == 1  # no dropout
    assert words.decode([words.eot]) == ""


def test_a_lossy_file_decodes_by_its_library_and_knows_no_bytes(lossy: Path) -> None:
    words = load(str(lossy))
    assert words.byte_lengths() is None
    assert words.decode(words.encode("The CAT sat")) == "the cat sat"
    assert words.eot_text == "[SEP]"


@pytest.mark.parametrize(
    "changes",
    [{"normalizer": {"type": "NFC"}}, {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}],
)
def test_a_byte_level_file_that_changes_the_text_knows_no_bytes(changes: dict[str, object], tmp_path: Path) -> None:
    assert load(str(train_byte_level(tmp_path / "tokenizer.json", **changes))).byte_lengths() is None


@pytest.mark.parametrize("name", ["bytes", "own", "lossy"])
def test_streamed_text_is_the_decoded_text(name: str, own: Path, lossy: Path) -> None:
    words = load({"own": str(own), "lossy": str(lossy)}.get(name, name))

    @given(text=st.text(alphabet="the cat é你🙂\n", max_size=40), cut=st.integers(0, 40), step=st.integers(1, 3))
    @relaxed
    def agrees(text: str, cut: int, step: int) -> None:
        ids = words.encode(text).tolist()
        before, after = ids[:cut], ids[cut:]
        push = words.streamer(before)
        shown = [push(after[i : i + step]) for i in range(0, len(after), step)]
        if name == "lossy":
            assert words.decode(before) + "".join(shown) + push([]) == words.decode(ids)
        else:
            assert ("".join(shown) + push([])) == words.decode(after)

    agrees()


@pytest.mark.parametrize("name", ["bytes", "own", "lossy"])
def test_end_of_text_can_be_typed(name: str, own: Path, lossy: Path) -> None:
    words = load({"own": str(own), "lossy": str(lossy)}.get(name, name))
    for marker in (words.eot_text, "<|endoftext|>"):
        ids = words.encode_prompt(f"cat{marker}{marker}sat").tolist()
        assert ids == [*words.encode("cat").tolist(), words.eot, words.eot, *words.encode("sat").tolist()]


def test_a_recorded_file_is_found_by_its_hash_alone(own: Path, lossy: Path, tmp_path: Path) -> None:
    name = recorded(str(own))
    assert name == load(str(own)).name
    assert recorded(name) == name
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(lossy, other / "tokenizer.json")
    with pytest.raises(ValueError, match=r"other/tokenizer.json is not the tokenizer that was used"):
        load(name, tmp_path, other)
    assert load(name, other, own.parent).vocab_size == 270
    with pytest.raises(ValueError, match=r"does not exist; name it: --tokenizer PATH/tokenizer.json"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is not a tokenizer.json"),
        (b"[]", "is not a tokenizer.json"),
        (b'{"model": {"type": "Magic"}}', "is not a tokenizer.json"),
        (b"\xff\x00", "is not a tokenizer.json"),
    ],
)
def test_a_broken_file_is_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=told) as raised:
        load(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(raised.value)


def test_a_file_without_an_end_and_one_with_too_many_ids_are_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no end-of-text token; add one of"):
        load(str(train_byte_level(tmp_path / "a.json", end="<stop>")))
    library = Tokenizer.from_file(str(own))
    library.add_tokens([AddedToken(f"<{i}>") for i in range(tokenizer.MAX_IDS - 269)])
    library.save(str(tmp_path / "b.json"))
    with pytest.raises(ValueError, match="has 65,537 ids, shards of uint16 hold 65,536"):
        load(str(tmp_path / "b.json"))


def test_without_the_library_one_line_says_what_to_install(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        load(str(own))


def test_none_has_no_text() -> None:
    with pytest.raises(ValueError, match="tokenizer 'none' has no text"):
        load("none")
