"""Processes that take turns: what they answer, how long, and how they end."""

import sys
import time

import pytest

from ubrain_jax import rounds

MODULE = "tests.waiting_step"


def child(seconds=60.0, **settings):
    return rounds.Child(MODULE, {"wait": 0.0, **settings}, time.monotonic() + seconds)


def test_a_child_tells_its_facts_and_times_its_steps():
    with child(wait=0.05) as own:
        assert own.facts["told"]["wait"] == 0.05
        assert 0.05 <= own.facts["first_step_seconds"]["wait"] < 5
        found = own.run("wait", 4)
        assert found["times"] == 4
        assert 0.2 <= found["seconds"] < 5
    assert own._process.returncode is not None


def test_steps_alternate_and_their_ratio_is_that_of_the_rounds():
    with child(wait=0.01) as one, child(wait=0.04) as other:
        turns = [rounds.Turn("one", one, "wait"), rounds.Turn("other", other, "wait")]
        found = rounds.alternate(turns, 5, 60.0, 3)
    assert [len(found[k].seconds) for k in ("one", "other")] == [5, 5]
    assert found["other"].times == 3
    ratio = rounds.spread(rounds.ratios(found["one"], found["other"]))
    assert ratio.median == pytest.approx(4, rel=0.5)


def test_as_many_steps_as_fit_are_in_a_round():
    with child(wait=0.02) as own:
        found = rounds.alternate([rounds.Turn("a", own, "wait")], 4, 0.8)
    assert 2 <= found["a"].times <= 10


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("fail", "RuntimeError: out of memory"),
        ("end", "ended with code 1: gone"),
        ("hang", "did not end in time"),
    ],
)
def test_a_step_that_fails_is_left_out_and_the_others_go_on(step, said):
    lost = {}
    with child(), child(15.0, steps=[step]) as bad, child(wait=0.001) as good:
        turns = [rounds.Turn("bad", bad, step), rounds.Turn("good", good, "wait")]
        found = rounds.alternate(turns, 3, 1.0, 2, lost.__setitem__)
        assert list(found) == ["good"]
        assert len(found["good"].seconds) == 3
        assert said in lost["bad"]
        with pytest.raises(rounds.Failed, match=MODULE):
            rounds.alternate(turns[:1], 3, 1.0, 2)


def test_a_child_that_does_not_start_says_why():
    with pytest.raises(rounds.Failed, match="ValueError: no such thing"):
        child(broken=True)
    with pytest.raises(rounds.Failed, match="No module named"):
        rounds.Child("tests.no_such_module", {}, time.monotonic() + 60)
    with pytest.raises(rounds.Failed, match="did not end in time"):
        child(0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_the_peak_is_that_of_the_steps():
    # Some more than is asked for below: the kernel counts pages with a lag.
    with child(steps=["fill", "wait"], mb=210) as own:
        before = own.peak()
        own.run("fill", 1)
        after = own.peak()
    assert before["peak_bytes"] is None
    told = after["process_bytes"]
    assert told["starting"] > 200e6  # the first step was counted apart
    if told["steps"] is not None:
        assert before["process_bytes"]["steps"] < 100e6
        assert 200e6 <= told["steps"] < 320e6
    with child(counts=True) as own:
        assert own.peak()["peak_bytes"] == 7
