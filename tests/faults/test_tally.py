"""What is counted as survived, and what as lost."""

from faults.tally import Tally, expect, keep


def test_a_fault_is_survived_lost_or_neither() -> None:
    tally = Tally()
    with tally.fault("fine"):
        expect(True, "no")
    with tally.fault("wrong"):
        expect(False, "it was silent")
    with tally.fault("gone"):
        keep(False, "a row is gone")
    with tally.fault("broken"):
        raise KeyError("x")
    assert (tally.injected, tally.survived, tally.lost) == (4, 1, 1)
    assert [failure.split(":")[0] for failure in tally.failures] == ["wrong", "gone", "broken"]


def test_what_is_seen_later_is_taken_back() -> None:
    tally = Tally()
    tally.inject(3)
    with tally.judge("the end", 1):
        keep(False, "weights differ")
    assert (tally.injected, tally.survived, tally.lost) == (3, 2, 1)


def test_the_plan_is_the_form_s() -> None:
    short = Tally(full=False, deadline=0.0)
    assert short.plan(100, 5) == 5
    assert short.planned == 5
    assert not short.has_time
