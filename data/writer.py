"""Writing shards: a stream of tokens becomes files that are whole or not there."""

import os
import re
from pathlib import Path
from typing import BinaryIO

from data.shards import HEADER_BYTES, TOKEN_BYTES, Ids, file_sha256, header

PARTIAL = ".partial"


class ShardWriter:
    """Writes one split as a stream of tokens, rolling over to a new shard at `shard_tokens`.

    A shard gets its name when it is whole: written under a temporary name, fsynced, renamed. Given the finished `shards` and
    the number of `tokens` that an earlier writer had on disk at its last `sync`, a writer goes on from there and drops what
    came after.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int, shards: dict[str, str], tokens: int = 0) -> None:
        self.folder, self.split, self.shard_tokens, self.tokens = folder, split, shard_tokens, tokens
        self.shards = {name: digest for name, digest in shards.items() if name.startswith(f"{split}_")}  # name -> sha256
        self._open_tokens = tokens - len(self.shards) * shard_tokens
        self._file: BinaryIO | None = None
        self._restore()

    def write(self, tokens: Ids) -> None:
        """Appends tokens to the stream."""
        done = 0
        while done < tokens.size:
            if self._file is None:
                self._file = self._partial.open("wb")
                self._file.write(header(self.shard_tokens))
            part = tokens[done : done + self.shard_tokens - self._open_tokens]
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._open_tokens += part.size
            self.tokens += part.size
            done += part.size
            if self._open_tokens == self.shard_tokens:
                self._finish(self._file)

    def sync(self) -> None:
        """Forces everything written so far onto the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finishes the last shard, whose header gets the count that it came to."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(header(self._open_tokens))
            self._finish(self._file)

    def abandon(self) -> None:
        """Closes the open file as it is, for a later writer to go on from the last `sync`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _whole(self) -> Path:
        """The name of the shard that is being written, once it is whole."""
        return self.folder / f"{self.split}_{len(self.shards):06d}.bin"

    @property
    def _partial(self) -> Path:
        return self._whole.with_name(self._whole.name + PARTIAL)

    def _finish(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        digest = file_sha256(self._partial)
        os.replace(self._partial, self._whole)
        self.shards[self._whole.name] = digest
        self._file, self._open_tokens = None, 0

    def _restore(self) -> None:
        """Brings the folder back to the state asked for: whole shards stay, the open one is cut, later ones go."""
        if self._whole.exists():  # it was finished after that sync
            os.replace(self._whole, self._partial)
        ours = re.compile(rf"{self.split}_\d{{6}}\.bin({PARTIAL})?")
        for path in self.folder.iterdir():
            if ours.fullmatch(path.name) and path.name not in self.shards and path != self._partial:
                path.unlink()
        if self._open_tokens == 0:
            self._partial.unlink(missing_ok=True)
            return
        size = HEADER_BYTES + TOKEN_BYTES * self._open_tokens
        if not self._partial.exists() or self._partial.stat().st_size < size:
            raise ValueError(
                f"{self._partial} ends before byte {size}, which was written; delete {self.folder} and start again"
            )
        self._file = self._partial.open("r+b")
        self._file.truncate(size)
        self._file.write(header(self.shard_tokens))
        self._file.seek(size)
