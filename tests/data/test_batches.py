import threading
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.batches import Batches, EvaluationWindows, Prefetcher, permute
from data.shards import Tokens

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
BLOCK, ROWS = 16, 12


@pytest.fixture
def batches(stream: Tokens) -> Batches:
    return Batches(stream, BLOCK, ROWS, seed=7)


# The permutation


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@relaxed
def test_every_key_permutes_every_size(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(size=st.integers(2, 2**50), key=st.integers(0, 2**64 - 1))
@relaxed
def test_sizes_beyond_memory_are_permuted_element_by_element(size: int, key: int) -> None:
    index = np.unique(np.random.default_rng(0).integers(0, size, 300))
    image = permute(index, size, key)
    assert np.unique(image).size == index.size
    assert image.min() >= 0
    assert image.max() < size
    assert np.array_equal(permute(index[::-1], size, key), image[::-1])


def test_all_permutations_of_a_small_set_are_equally_likely() -> None:
    orders, counts = np.unique([permute(np.arange(3), 3, key) for key in range(6000)], axis=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 850  # 1,000 expected, standard deviation 29
    assert counts.max() < 1150


def serial_correlation(order: np.ndarray) -> float:
    """Chi-square over its degrees of freedom (1 for chance) of the steps between successive elements in 32 bins."""
    size = order.size
    steps = np.diff(order) % size
    expected = (size - 1) / 32
    return float(np.sum((np.bincount(steps * 32 // size, minlength=32) - expected) ** 2 / expected) / 31)


def autocorrelation(order: np.ndarray) -> float:
    """The largest correlation, in standard deviations, of an order with itself up to 50 places on."""
    values = (order - order.mean()) / order.std()
    return max(abs(float(np.mean(values[lag:] * values[:-lag]))) * np.sqrt(values.size - lag) for lag in range(1, 51))


@pytest.mark.parametrize("size", [1009, 4096, 50_000])
def test_successive_windows_are_not_correlated(size: int) -> None:
    orders = [permute(np.arange(size), size, key) for key in range(20)]
    assert np.mean([serial_correlation(order) for order in orders]) < 1.3
    assert max(autocorrelation(order) for order in orders) < 5


@pytest.mark.parametrize("size", [1009, 4096, 50_000])
def test_an_affine_map_fails_these_tests(size: int) -> None:
    factor = next(a for a in range(size * 5 // 8, size) if np.gcd(a, size) == 1)
    affine = (np.arange(size) * factor + 3) % size
    assert serial_correlation(affine) > 10
    assert autocorrelation(affine) > 5


def test_keys_give_unrelated_orders() -> None:
    first, second = (permute(np.arange(5000), 5000, key) for key in (1, 2))
    assert np.sum(first == second) < 15  # 1 expected
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


# Batches


def test_an_epoch_visits_each_window_once_from_a_shift_of_its_own(batches: Batches) -> None:
    count = batches.windows_per_epoch
    assert count == (10_007 - BLOCK) // BLOCK
    starts = np.concatenate([batches.starts(step) for step in range(8 * count // ROWS + 1)])
    offsets, orders = set(), set()
    for epoch in range(8):
        windows, offset = np.divmod(starts[epoch * count : (epoch + 1) * count], BLOCK)
        assert len(set(offset.tolist())) == 1
        assert np.array_equal(np.sort(windows), np.arange(count))
        offsets.add(int(offset[0]))
        orders.add(tuple(windows[:10].tolist()))
    assert len(offsets) > 3
    assert len(orders) == 8
    assert starts.max() + BLOCK + 1 <= 10_007


def test_over_many_epochs_every_shift_occurs(stream: Tokens) -> None:
    batches = Batches(stream, 8, 1, seed=0)
    first = [int(batches.starts(epoch * batches.windows_per_epoch)[0]) % 8 for epoch in range(200)]
    assert set(first) == set(range(8))


@given(steps=st.lists(st.integers(0, 10**12), min_size=1, max_size=5), seed=st.integers(0, 2**63))
@relaxed
def test_any_step_is_a_pure_function_of_seed_and_step(stream: Tokens, steps: list[int], seed: int) -> None:
    one = Batches(stream, BLOCK, ROWS, seed)
    images = [one.starts(step) for step in steps]
    for step, image in zip(reversed(steps), reversed(images), strict=True):
        assert np.array_equal(Batches(stream, BLOCK, ROWS, seed).starts(step), image)


def test_the_global_batch_only_cuts_one_sequence(stream: Tokens) -> None:
    small, large = Batches(stream, BLOCK, 4, 7), Batches(stream, BLOCK, 12, 7)
    assert np.array_equal(
        np.concatenate([small.starts(step) for step in range(9)]), np.concatenate([large.starts(s) for s in range(3)])
    )


def test_seeds_differ(stream: Tokens) -> None:
    assert not np.array_equal(Batches(stream, BLOCK, ROWS, 1).starts(0), Batches(stream, BLOCK, ROWS, 2).starts(0))


def test_rows_are_the_tokens_at_their_starts(batches: Batches, stream: Tokens) -> None:
    batch = batches.read(5, range(ROWS))
    assert batch.inputs.shape == batch.targets.shape == (ROWS, BLOCK)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    for row, start in enumerate(batches.starts(5).tolist()):
        window = stream.read(start, BLOCK + 1)
        assert np.array_equal(batch.inputs[row], window[:-1])
        assert np.array_equal(batch.targets[row], window[1:])


@given(order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1)), step=st.integers(0, 1000))
@relaxed
def test_data_and_digest_do_not_depend_on_who_reads_which_rows(
    batches: Batches, order: list[int], cuts: set[int], step: int
) -> None:
    whole = batches.read(step, slice(None))
    parts = [batches.read(step, np.array(rows)) for rows in np.split(np.array(order), sorted(cuts))]
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs[order])
    assert (sum(part.digest for part in parts) - whole.digest) % 2**64 == 0
    assert all(-(2**63) <= part.digest < 2**63 for part in parts)


def test_rows_are_given_as_range_slice_or_array(batches: Batches) -> None:
    expected = batches.read(3, range(2, 8, 2))
    for rows in (slice(2, 8, 2), np.array([2, 4, 6])):
        assert np.array_equal(batches.read(3, rows).inputs, expected.inputs)
        assert batches.read(3, rows).digest == expected.digest
    assert batches.read(3, range(0)).digest == 0


def test_the_digest_is_the_sum_that_it_promises(batches: Batches, stream: Tokens) -> None:
    start = int(batches.starts(9)[4])
    content = (9).to_bytes(8, "little") + (4).to_bytes(8, "little") + stream.read(start, BLOCK + 1).tobytes()
    expected = int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)
    assert batches.read(9, range(4, 5)).digest == expected


@pytest.mark.parametrize(("block_size", "rows"), [(10_007, 1), (5004, 1), (16, 625)])
def test_a_set_smaller_than_a_batch_is_refused(block_size: int, rows: int, stream: Tokens) -> None:
    with pytest.raises(ValueError, match=rf"10007 training tokens are .*fewer than global_batch_size {rows}; lower either"):
        Batches(stream, block_size, rows, 0)
    assert Batches(stream, 16, 624, 0).windows_per_epoch == 624
    assert Batches(stream, 5003, 1, 0).read(0, slice(None)).inputs.shape == (1, 5003)


# Reading ahead


def test_the_next_step_is_read_while_one_is_used(batches: Batches) -> None:
    started = {step: threading.Event() for step in range(5, 12)}

    def read(step: int) -> int:
        started[step].set()
        return step

    with Prefetcher(read, 5, 9) as steps:
        for expected, step in zip(range(5, 9), steps, strict=True):
            assert step == expected
            assert step == 8 or started[step + 1].wait(10)
            assert not started[step + 2].is_set()
    assert not started[9].is_set()


def test_it_yields_what_reading_yields(batches: Batches) -> None:
    with Prefetcher(lambda step: batches.read(step, range(3)), 4) as ahead:
        for step in range(4, 8):
            assert np.array_equal(next(ahead).inputs, batches.read(step, range(3)).inputs)


def test_an_exception_comes_out_at_its_step() -> None:
    def read(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    with Prefetcher(read) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


def test_closing_ends_iteration_and_thread() -> None:
    before = threading.active_count()
    ahead = Prefetcher(lambda step: step)
    assert next(ahead) == 0
    ahead.close()
    assert list(ahead) == []
    assert threading.active_count() == before
    assert list(Prefetcher(lambda step: step, 3, 3)) == []


# Evaluation


@given(block_size=st.integers(1, 300), max_targets=st.integers(0, 12_000), world_size=st.integers(1, 7))
@relaxed
def test_every_target_is_evaluated_once(stream: Tokens, block_size: int, max_targets: int, world_size: int) -> None:
    windows = EvaluationWindows(stream, block_size, max_targets)
    expected = min(max_targets or 10_006, 10_006)
    shares = [windows.share(rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(shares), np.arange(len(windows)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    parts = [windows.read(share) for share in shares]
    inputs, targets = (np.concatenate([part[i] for part in parts]).ravel() for i in (0, 1))
    assert inputs.size == len(windows) * block_size
    kept = targets >= 0
    assert windows.num_targets == expected == kept.sum()
    positions = (windows.starts[:, None] + np.arange(block_size)).ravel()[kept]
    assert np.array_equal(np.unique(positions), positions), "a target twice"
    everything = stream.read(0, 10_007)
    assert np.array_equal(inputs[kept], everything[positions])
    assert np.array_equal(targets[kept], everything[positions + 1])
    assert np.all(inputs[~kept] == 0)
    assert windows.rule == ("all" if expected == 10_006 else "spread evenly")
    # Evenly: no stretch of the set without a window is longer than the mean distance and a rounding.
    gaps = np.diff(np.concatenate([[0], windows.starts, [10_006]]))
    assert gaps.max() <= 10_006 / len(windows) + 2 * block_size


def test_a_split_without_a_target_is_refused(stream: Tokens) -> None:
    class One(Tokens):
        def __len__(self) -> int:
            return 1

    with pytest.raises(ValueError, match=r"train_000000.bin: 1 tokens hold no target"):
        EvaluationWindows(One(stream.paths), 16)
