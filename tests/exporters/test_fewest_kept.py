"""The fewest names to keep, against all subsets tried one by one."""

from __future__ import annotations

import itertools

import pytest

from cbam_deploy.exporters.fewest_kept import fewest_kept

GROUPS = [("a", "b", "c"), ("d",), ("e", "f"), ("g", "h")]
NAMES = [name for group in GROUPS for name in group]


@pytest.mark.parametrize(
    "needed", [set(chosen) for size in (1, 2, 3) for chosen in itertools.combinations(NAMES, size)]
)
def test_exactly_what_is_needed_is_kept_whatever_the_order_of_groups(needed):
    assert fewest_kept(GROUPS, needed.issubset) == needed


def test_where_nothing_helps_none_is_kept():
    assert fewest_kept(GROUPS, lambda _: False) is None


def test_few_of_many_are_found_in_few_trials():
    groups = [tuple(f"{i}.{j}" for j in range(8)) for i in range(64)]
    needed, tried = {"0.3", "2.5"}, []

    def holds(kept):
        tried.append(kept)
        return needed <= kept

    assert fewest_kept(groups, holds) == needed
    assert len(tried) == len(set(tried)) < 24
