"""Which of many things to keep so that a condition holds, as few as possible, by trials.

The most sensitive are kept first, 1, 2, 4, ... of them, until the condition holds; the shortest
such beginning is found by bisection. Of what is kept then, the least sensitive first, all that is
not needed goes again: the whole of a group, or halves of it, down to single members (as delta
debugging does: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE
Transactions on Software Engineering 28, 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Names = frozenset[str]


def fewest_kept(groups: Sequence[Sequence[str]], holds: Callable[[Names], bool]) -> Names | None:
    """The names to keep; without any one of them, the condition does not hold.

    That is so where keeping more never does harm. Where it does, the condition holds all the same.

    Args:
        groups: names that belong together, the most sensitive first.
        holds: whether the condition holds with these names kept; without any it is known not to.

    Returns:
        None where the condition does not even hold with everything kept.
    """
    known: dict[Names, bool] = {frozenset(): False}

    def kept_holds(names: Names) -> bool:
        if names not in known:
            known[names] = holds(names)
        return known[names]

    count = _shortest(lambda number: kept_holds(_names(groups[:number])), len(groups))
    if count is None:
        return None
    kept = _names(groups[:count])
    for group in reversed(groups[:count]):
        kept = _without(kept, tuple(group), kept_holds)
    return kept


def _names(groups: Sequence[Sequence[str]]) -> Names:
    return frozenset(name for group in groups for name in group)


def _shortest(holds: Callable[[int], bool], most: int) -> int | None:
    """The least number that holds, if it holds from somewhere on; None where `most` does not."""
    fails, number = 0, min(1, most)
    while not holds(number):
        if number == most:
            return None
        fails, number = number, min(2 * number, most)
    while number - fails > 1:
        middle = (fails + number) // 2
        fails, number = (fails, middle) if holds(middle) else (middle, number)
    return number


def _without(kept: Names, group: tuple[str, ...], holds: Callable[[Names], bool]) -> Names:
    """`kept` without as much of `group` as it can spare."""
    if holds(kept.difference(group)):
        return kept.difference(group)
    if len(group) == 1:
        return kept
    half = len(group) // 2
    return _without(_without(kept, group[:half], holds), group[half:], holds)
