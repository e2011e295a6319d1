import gc

import numpy as np
import pytest

from cbam_deploy.benchmarking.interleaving import (
    MIN_ROUNDS,
    ROUND_SECONDS,
    Turns,
    measure_in_rounds,
    plan_turns,
)


@pytest.fixture
def machine(machine_of):
    return machine_of()


def test_turns_last_about_a_round_and_add_up_to_the_seconds(machine):
    fast, slow = machine.execution(0.001), machine.execution(0.03)
    plans = plan_turns([fast, slow], [1, 1], [0.001, 0.03], seconds=3.0)
    for plan, duration in zip(plans, (0.001, 0.03), strict=True):
        assert plan.runs * duration == pytest.approx(ROUND_SECONDS, rel=0.21)
        assert plan.rounds * plan.runs * duration == pytest.approx(3.0, rel=0.25)


def test_a_slow_network_still_gets_enough_rounds(machine):
    (plan,) = plan_turns([machine.execution(2.0)], [64], [2.0], seconds=3.0)
    assert (plan.rounds, plan.runs) == (MIN_ROUNDS, 1)


def test_one_batch_size_has_the_same_rounds_for_all(machine):
    durations = [0.001, 0.4, 0.01]
    executions = [machine.execution(duration) for duration in durations]
    first, second, third = plan_turns(executions, [8, 8, 1], durations, seconds=6.0)
    assert first.rounds == second.rounds < third.rounds
    assert first.runs == 400


def test_every_turn_opens_with_a_run_that_does_not_count(machine):
    (rounds,) = measure_in_rounds([Turns(machine.execution(0.01, "a"), 5, 3)], seed=0)
    assert machine.log == [("a", 6)] * 3
    assert [len(runs) for runs in rounds] == [5, 5, 5]


def test_the_run_that_does_not_count_is_the_first(machine):
    class FirstIsSlow:
        def measure(self, runs):
            return np.array([9.0] + [1.0] * (runs - 1))

    (rounds,) = measure_in_rounds([Turns(FirstIsSlow(), 4, 2)], seed=0)
    assert np.concatenate(rounds).tolist() == [1.0] * 8


def test_all_take_one_turn_per_round_in_an_order_that_changes(machine):
    plans = [Turns(machine.execution(0.01, name), 1, 60) for name in "abc"]
    measure_in_rounds(plans, seed=0)
    names = [name for name, _ in machine.log]
    rounds = ["".join(names[start : start + 3]) for start in range(0, len(names), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    for name in "abc":
        assert 10 <= sum(order[0] == name for order in rounds) <= 30


def test_order_follows_the_seed(machine_of):
    def order(seed):
        machine = machine_of()
        measure_in_rounds([Turns(machine.execution(0.01, name), 1, 20) for name in "abc"], seed)
        return machine.log

    assert order(1) == order(1) != order(2)


def test_fewer_rounds_are_spread_over_the_whole_time_and_meet(machine):
    plans = [
        Turns(machine.execution(0.01, name), 1, rounds)
        for name, rounds in (("often", 40), ("seldom", 10), ("with it", 10))
    ]
    lengths = [len(rounds) for rounds in measure_in_rounds(plans, seed=0)]
    assert lengths == [40, 10, 10]
    round_of: dict[str, list[int]] = {"often": [], "seldom": [], "with it": []}
    current = 0
    for name, _ in machine.log:
        round_of[name].append(current)
        current += name == "often"
    # Within a round the order is shuffled, so places may be off by one.
    gaps = np.diff(round_of["seldom"])
    assert gaps.min() >= 3
    assert gaps.max() <= 5
    assert np.abs(np.subtract(round_of["seldom"], round_of["with it"])).max() <= 1


def test_drift_falls_on_all_alike(machine_of):
    """The machine gets slower by 40% while measuring; the ratio stays what it is."""
    machine = machine_of(lambda now: 1 + now / 20)
    plans = [Turns(machine.execution(0.010), 7, 40), Turns(machine.execution(0.011), 7, 40)]
    first, second = measure_in_rounds(plans, seed=0)
    ratios = [np.median(b) / np.median(a) for a, b in zip(first, second, strict=True)]
    assert np.median(ratios) == pytest.approx(1.1, rel=0.005)
    one_after_the_other = np.median(second[20:]) / np.median(first[:20])
    assert one_after_the_other > 1.25


def test_collector_rests_while_measuring_and_not_after(machine):
    class Watcher:
        def measure(self, runs):
            assert not gc.isenabled()
            return np.ones(runs)

    assert gc.isenabled()
    measure_in_rounds([Turns(Watcher(), 1, 3)], seed=0)
    assert gc.isenabled()


def test_collector_is_back_after_an_interruption(machine):
    class Interrupted:
        def measure(self, runs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_in_rounds([Turns(Interrupted(), 1, 3)], seed=0)
    assert gc.isenabled()


def test_progress_is_told_after_each_turn(machine):
    told = []
    plans = [Turns(machine.execution(0.01), 1, 4), Turns(machine.execution(0.01), 1, 2)]
    measure_in_rounds(plans, seed=0, turn_done=lambda: told.append(1))
    assert len(told) == 6
