"""Which tokens step s sees: a pure function of (seed, s), whatever the number of processes and the micro-batch size.

An epoch cuts the stream into windows of block_size tokens, beginning at a shift of its own, and visits each window once, in
the order of a keyed permutation that is computed element by element: any step is found without a scan and without a table.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from data.shards import Tokens

Int64 = npt.NDArray[np.int64]
Rows = range | slice | Int64
T = TypeVar("T")

FEISTEL_ROUNDS = 8
# What EvaluationWindows calls the targets that it takes, and what runs before 2026-11-27 took where this says spread.
EVERYTHING, SPREAD, FROM_START = "all", "spread evenly", "from the start"


class Batch(NamedTuple):
    """Rows of a global batch: inputs and targets, int64 (rows, block_size), the targets one token ahead.

    digest is the sum over rows, modulo 2^64 as a signed int64, of blake2b-64(step, row, bytes of the row's uint16 window): its
    sum over micro-batches and ranks, modulo 2^64 too, is the same for every way to share out the rows.
    """

    inputs: Int64
    targets: Int64
    digest: int


class Batches:
    """The global batches of a run: windows without replacement within an epoch, in an order drawn from the seed.

    ValueError where one epoch does not fill one global batch.
    """

    def __init__(self, tokens: Tokens, block_size: int, global_batch_size: int, seed: int) -> None:
        # A shift of up to block_size - 1 tokens and one target past the last window must fit in every epoch.
        self.windows_per_epoch = (len(tokens) - block_size) // block_size
        if self.windows_per_epoch < global_batch_size:
            needed = (global_batch_size + 1) * block_size
            raise ValueError(
                f"{tokens.paths[0].parent}: {len(tokens)} training tokens are {max(0, self.windows_per_epoch)} windows of "
                f"block_size {block_size}, fewer than global_batch_size {global_batch_size}; lower either, or prepare at "
                f"least {needed} tokens"
            )
        self.tokens, self.block_size, self.global_batch_size, self.seed = tokens, block_size, global_batch_size, seed

    def starts(self, step: int) -> Int64:
        """First token of each window of a step's global batch, (global_batch_size,)."""
        samples = np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size, dtype=np.int64)
        epochs, indices = np.divmod(samples, self.windows_per_epoch)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            offset = _keyed(self.seed, epoch, "offset") % self.block_size
            order = permute(indices[here], self.windows_per_epoch, _keyed(self.seed, epoch, "order"))
            starts[here] = offset + order * self.block_size
        return starts

    def read(self, step: int, rows: Rows) -> Batch:
        """Those rows of a step's global batch, each read once."""
        chosen = np.arange(self.global_batch_size)[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]
        starts = self.starts(step)[chosen]
        windows = np.empty((chosen.size, self.block_size + 1), dtype=np.uint16)
        for window, start in zip(windows, starts.tolist(), strict=True):
            window[:] = self.tokens.read(start, self.block_size + 1)
        values = windows.astype(np.int64)
        return Batch(values[:, :-1], values[:, 1:], _digest(step, chosen, windows))


class Prefetcher(Generic[T]):
    """Iterates read(start), read(start + 1), ... (to stop, if given), each computed while the one before it is used.

    An exception of read comes out of the iteration at its step. Close it, or use it in a `with`.
    """

    def __init__(self, read: Callable[[int], T], start: int = 0, stop: int | None = None) -> None:
        self._read, self._step, self._stop = read, start, stop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: Future[T] | None = None
        self._submit()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._ahead is None:
            raise StopIteration
        value = self._ahead.result()
        self._submit()
        return value

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the read under way and ends the iteration."""
        self._ahead = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        more = self._stop is None or self._step < self._stop
        self._ahead = self._pool.submit(self._read, self._step) if more else None
        self._step += 1


class EvaluationWindows:
    """A split in windows that do not overlap: each target once, the tail included, the same tokens every time.

    max_targets > 0 takes that many targets, in windows spread evenly over the whole split: window i of k is number
    floor((2 i + 1) n / 2 k) of its n whole ones. ValueError for a split without a target.
    """

    def __init__(self, tokens: Tokens, block_size: int, max_targets: int = 0) -> None:
        available = len(tokens) - 1
        if available < 1:
            raise ValueError(f"{tokens.paths[0]}: {len(tokens)} tokens hold no target; prepare a larger validation set")
        self.tokens, self.block_size = tokens, block_size
        self.num_targets = min(available, max_targets) if max_targets > 0 else available
        count, whole = -(-self.num_targets // block_size), available // block_size
        index = np.arange(count, dtype=np.int64)
        if count <= whole:  # else all windows are needed, the short one at the end too
            index = (2 * index + 1) * whole // (2 * count)
        self.starts: Int64 = index * block_size
        """First token of each window."""
        self.rule = SPREAD if self.num_targets < available else EVERYTHING
        """Which targets these are. Losses of different rules are of different text."""

    def __len__(self) -> int:
        return len(self.starts)

    def share(self, rank: int, world_size: int) -> Int64:
        """The windows of a rank: contiguous, every window with one rank, shares equal to within one window."""
        return np.arange(len(self) * rank // world_size, len(self) * (rank + 1) // world_size, dtype=np.int64)

    def read(self, indices: Int64) -> tuple[Int64, Int64]:
        """Inputs and targets of those windows, int64 (len(indices), block_size); past the end inputs are 0, targets -1."""
        inputs = np.zeros((len(indices), self.block_size), dtype=np.int64)
        targets = np.full((len(indices), self.block_size), -1, dtype=np.int64)
        for row, index in enumerate(indices):
            length = min(self.block_size, self.num_targets - int(index) * self.block_size)
            window = self.tokens.read(int(self.starts[index]), length + 1)
            inputs[row, :length] = window[:-1]
            targets[row, :length] = window[1:]
        return inputs, targets


def permute(index: Int64, size: int, key: int) -> Int64:
    """Images of indices under a permutation of range(size) that the 64-bit key picks; time O(len(index)), no table.

    A balanced Feistel network over the smallest even number of bits that holds size (Luby and Rackoff 1988), walked until
    it lands in range(size) (Black and Rogaway 2002, cycle walking): fewer than four rounds of the walk on average. An affine
    map would be cheaper, but its outputs are serially correlated.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _mix(np.arange(1, FEISTEL_ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key % (1 << 64)))
    values = np.asarray(index).astype(np.uint64)
    walking = np.arange(values.size)
    while walking.size:
        left, right = values[walking] >> half, values[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        values[walking] = (left << half) | right
        walking = walking[values[walking] >= np.uint64(size)]
    return values.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keyed(seed: int, epoch: int, purpose: str) -> int:
    """64 bits that depend on all three and on nothing else."""
    return int.from_bytes(blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=8).digest(), "little")


def _digest(step: int, rows: Int64, windows: npt.NDArray[np.uint16]) -> int:
    total = 0
    for row, window in zip(rows.tolist(), windows, strict=True):
        prefix = step.to_bytes(8, "little") + row.to_bytes(8, "little")
        total += int.from_bytes(blake2b(prefix + window.tobytes(), digest_size=8).digest(), "little")
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
