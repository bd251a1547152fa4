"""Every trick that the bench names can be switched off, and the bench tells with from without."""

import pytest
import torch

from bench import tricks


@pytest.mark.parametrize("name", ["blocks", "table"])
def test_a_trick_is_timed_with_and_without(name, capsys):
    assert tricks.main(["--tricks", name, "--shape", "2", "64", "--rounds", "1"]) == 0
    assert f"{name} " in capsys.readouterr().out
    row = tricks.measure(name, [2, 64], rounds=1)
    assert row["ratio"] > 0
    assert row["saved"] >= 1


def test_every_trick_is_where_it_says():
    for name, trick in tricks.TRICKS.items():
        assert getattr(trick.place, trick.attribute) != trick.off, name


def test_switched_off_means_off_for_that_call_alone(monkeypatch):
    ran = []
    choose = tricks.engine.choose
    monkeypatch.setattr(tricks.engine, "choose", lambda kernel, x: (ran.append(choose(kernel, x)), ran[-1])[1])
    shape = [tricks.engine.TABLE_PAYS_FROM // 64, 64]
    for used, path in ((False, "blocks"), (True, "table")):
        ran.clear()
        tricks._contender(tricks.TRICKS["table"], shape, used)()
        assert set(ran) == {path}
    assert tricks.TRICKS["table"].dtype == torch.bfloat16
