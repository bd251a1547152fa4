"""Progress chains the data and remembers the best."""

from runtime.progress import Progress


def test_data_hash_chains_the_steps() -> None:
    one, other, same = Progress(), Progress(), Progress()
    for progress, digests in ((one, (1, 2)), (other, (2, 1)), (same, (1, 2))):
        for digest in digests:
            progress.advance(digest, 0.1)
    assert one.data_hash == same.data_hash != other.data_hash
    assert one.step == 2


def test_best_is_remembered() -> None:
    progress = Progress()
    assert [progress.note_best(loss) for loss in (3.0, 2.0, 2.5, float("nan"), 1.0)] == [True, True, False, False, True]
