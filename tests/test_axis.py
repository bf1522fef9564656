"""Unification, held against the meaning of an axis: which indices of which variables each entry stands for."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from structprune.algebra import order
from structprune.algebra.axis import (
    ONE,
    Axis,
    Dim,
    Kept,
    Product,
    Reordered,
    Sum,
    fresh,
    kept_indices,
    kept_size,
    unordered,
)
from structprune.algebra.system import System

Entry = frozenset[tuple[Dim, int]]
Build = Callable[[], tuple[Axis, Axis]]

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = (4, 6, 8, 12, 18, 24, 36)


# -- what an axis means ----------------------------------------------------------------------------


def entries(axis: Axis) -> list[Entry]:
    """For each index of an expanded axis, the indices of variables that it stands for."""
    match axis:
        case Dim():
            return [frozenset({(axis, index)}) for index in range(axis.size)]
        case Product(factors):
            found: list[Entry] = [frozenset()]
            for factor in factors:
                found = [outer | inner for outer in found for inner in entries(factor)]
            return found
        case Sum(parts):
            return [entry for part in parts for entry in entries(part)]
        case Reordered(inner, moved):
            found = entries(inner)
            return [found[index] for index in moved]


def meaning(system: System, axis: Axis) -> list[Entry]:
    """The entries in terms of what can still be removed; a frozen variable takes nothing away."""
    return [frozenset(pair for pair in entry if pair[0] not in system.frozen) for entry in entries(system.expand(axis))]


def all_kept(axis: Axis, kept: Kept) -> list[int]:
    indices = kept_indices(axis, kept)
    return list(range(axis.size)) if indices is None else indices.tolist()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A loop without end is a failure, not a hanging test nor a thousand lines of traceback."""

    def stop(*_: object) -> None:
        raise AssertionError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except RecursionError:
        raise AssertionError("recursion without end") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_time(test: Callable[..., None]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with within(5):
            test(*args, **kwargs)

    return run


# -- random axes -----------------------------------------------------------------------------------


def divisors(size: int) -> list[int]:
    return [each for each in range(1, size + 1) if size % each == 0]


@st.composite
def orders(draw: st.DrawFn, size: int) -> order.Indices:
    """A permutation: any, or one that reverses, rotates, or reads rows as columns."""
    straight = np.arange(size)
    match draw(st.sampled_from(("any", "reversed", "rotated", "transposed"))):
        case "reversed":
            return straight[::-1]
        case "rotated":
            return np.roll(straight, draw(st.integers(0, size)))
        case "transposed":
            return straight.reshape(draw(st.sampled_from(divisors(size))), -1).T.reshape(-1)
    return np.array(draw(st.permutations(range(size))), dtype=np.int64)


@st.composite
def axes(draw: st.DrawFn, size: int, pool: list[Dim], depth: int = 3) -> Axis:
    """An axis of that size, `(1 n)` and `(0 + n)` included; the pool holds the variables that it may share."""
    if not size:
        return Sum(())
    form = draw(st.sampled_from(("dim", "dim", "product", "sum", "order") if depth else ("dim",)))
    if form == "order":
        return Reordered(draw(axes(size, pool, depth - 1)), draw(orders(size)))
    if form == "product":
        inner = draw(st.sampled_from(divisors(size)))
        return Product((draw(axes(size // inner, pool, depth - 1)), draw(axes(inner, pool, depth - 1))))
    if form == "sum":
        at = draw(st.integers(0, size))
        return Sum((draw(axes(at, pool, depth - 1)), draw(axes(size - at, pool, depth - 1))))
    known = [dim for dim in pool if dim.size == size]
    is_shared = draw(st.booleans())
    if known and is_shared:
        return draw(st.sampled_from(known))
    made = fresh(size)
    if isinstance(made, Dim):
        pool.append(made)
    return made


def indices(size: int) -> st.SearchStrategy[order.Indices]:
    anything = st.lists(st.integers(0, size - 1), min_size=1, max_size=2 * size).map(np.array)
    return st.one_of(anything, orders(size))


@st.composite
def equations(draw: st.DrawFn, most: int = 4) -> list[tuple[Axis, Axis]]:
    """Pairs of axes of equal size that share variables within a pair and between pairs."""
    pool: list[Dim] = []
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=most))
    return [(draw(axes(size, pool)), draw(axes(size, pool))) for size in sizes]


@st.composite
def rearranged(draw: st.DrawFn) -> tuple[Axis, Axis]:
    """The same factors, or the same parts, in two orders: `(r kv)` with `(kv r)`."""
    dims = draw(st.lists(st.integers(2, 6).map(Dim), min_size=2, max_size=3))
    others = draw(st.permutations(dims))
    if draw(st.booleans()):
        return Product(tuple(dims)), Product(tuple(others))
    return Sum(tuple(dims)), Sum(tuple(others))


def solve(pairs: list[tuple[Axis, Axis]]) -> System:
    system = System()
    for a, b in pairs:
        system.unify(a, b)
    return system


def state(system: System, pairs: list[tuple[Axis, Axis]]) -> list[list[Entry]]:
    return [meaning(system, axis) for pair in pairs for axis in pair]


# -- the laws --------------------------------------------------------------------------------------


@FEW
@given(equations())
@in_time
def test_unified_axes_lose_the_same_indices(pairs):
    """The key law. Held by every pair after all of them, so no later equation may undo an earlier one."""
    system = solve(pairs)
    for a, b in pairs:
        assert meaning(system, a) == meaning(system, b)


@FEW
@given(rearranged())
@in_time
def test_the_same_variables_in_another_order_unify(pair):
    """A variable on both sides in different positions must not be bound to something that contains it."""
    system = solve([pair])
    assert meaning(system, pair[0]) == meaning(system, pair[1])
    assert all(leaf.size >= 1 for leaf in system.leaves(pair[0]))


@FEW
@given(equations(), st.data())
@in_time
def test_kept_indices_agree_on_both_sides(pairs, data):
    system = solve(pairs)
    leaves = dict.fromkeys(leaf for pair in pairs for axis in pair for leaf in system.leaves(axis))
    kept = {}
    for leaf in leaves:
        if leaf not in system.frozen and leaf.size > 1:
            chosen = data.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))
            kept[leaf] = np.array(sorted(chosen), dtype=np.int64)
    counts = {leaf: len(indices) for leaf, indices in kept.items()}
    for a, b in pairs:
        left, right = system.expand(a), system.expand(b)
        stay = all_kept(left, kept)
        assert stay == all_kept(right, kept)
        assert stay == sorted(set(stay))
        assert len(stay) == kept_size(left, counts) == kept_size(right, counts) == kept_size(unordered(left), counts)
        by_entry = [
            index
            for index, entry in enumerate(entries(left))
            if all(leaf not in kept or at in kept[leaf] for leaf, at in entry)
        ]
        assert stay == by_entry


@FEW
@given(equations())
@in_time
def test_sizes_survive(pairs):
    before = [(a.size, b.size) for a, b in pairs]
    system = solve(pairs)
    assert [(system.expand(a).size, system.expand(b).size) for a, b in pairs] == before
    for axis in (axis for pair in pairs for axis in pair):
        assert len(entries(system.expand(axis))) == axis.size
        assert all(system.resolve(leaf) is leaf for leaf in system.leaves(axis))


@FEW
@given(equations())
@in_time
def test_an_equation_that_holds_teaches_nothing(pairs):
    system = solve(pairs)
    before = state(system, pairs)
    for a, b in pairs:
        system.unify(a, b)
        system.unify(b, a)
        system.unify(a, a)
    assert state(system, pairs) == before


@FEW
@given(equations(), st.data())
@in_time
def test_what_is_frozen_stays_frozen(pairs, data):
    """Every index that a frozen axis could not lose, it cannot lose after any equation either."""
    system = System()
    picked = []
    for a, b in pairs:
        axis = data.draw(st.sampled_from((a, b)))
        if data.draw(st.booleans()):
            system.freeze(axis, "the test says so")
            picked.append(axis)
        system.unify(a, b)
        assert all(system.is_frozen(axis) for axis in picked)
    for a, b in pairs:
        if a in picked or b in picked:
            assert system.is_frozen(a) and system.is_frozen(b)
    assert all(cause.reason for cause in system.frozen.values())


@FEW
@given(equations(), st.data())
@in_time
def test_factors_recombine(pairs, data):
    system = solve(pairs)
    axis = data.draw(st.sampled_from([axis for pair in pairs for axis in pair]))
    inner = data.draw(st.sampled_from(range(1, axis.size + 1)))
    halves = system.factor(axis, inner)
    if axis.size % inner:
        assert halves is None
    if halves is not None:
        assert (halves[0].size, halves[1].size) == (axis.size // inner, inner)
        assert meaning(system, Product(halves)) == meaning(system, axis)
    for a, b in pairs:
        assert meaning(system, a) == meaning(system, b)


@FEW
@given(equations(), st.data())
@in_time
def test_cut_parts_recombine(pairs, data):
    system = solve(pairs)
    axis = data.draw(st.sampled_from([axis for pair in pairs for axis in pair]))
    at = data.draw(st.integers(0, axis.size))
    halves = system.cut(axis, at)
    if at in (0, axis.size):
        assert halves is None
    if halves is not None:
        assert (halves[0].size, halves[1].size) == (at, axis.size - at)
        assert meaning(system, Sum(halves)) == meaning(system, axis)
    for a, b in pairs:
        assert meaning(system, a) == meaning(system, b)


@FEW
@given(equations(most=2), st.data())
@in_time
def test_pieces_recombine(pairs, data):
    """Also where the axis cannot be cut: then all of it is frozen, and so are the pieces."""
    system = solve(pairs)
    axis = data.draw(st.sampled_from([axis for pair in pairs for axis in pair]))
    ends = sorted(data.draw(st.lists(st.integers(0, axis.size), max_size=3)))
    sizes = [end - start for start, end in zip([0, *ends], [*ends, axis.size], strict=True)]
    whole = Sum(tuple(map(fresh, sizes)))
    system.unify(axis, whole)
    assert meaning(system, whole) == meaning(system, axis)
    for a, b in pairs:
        assert meaning(system, a) == meaning(system, b)


@FEW
@given(equations(), st.data())
@in_time
def test_picked_entries_are_those_of_the_index(pairs, data):
    """Any index: repeats, gaps, orders. What the other equations said still holds."""
    system = solve(pairs)
    axis = data.draw(st.sampled_from([axis for pair in pairs for axis in pair]))
    index = data.draw(indices(axis.size))
    taken = system.pick(axis, index)
    assert taken.size == len(index)
    found = meaning(system, axis)
    assert meaning(system, taken) == [found[each] for each in index]
    for a, b in pairs:
        assert meaning(system, a) == meaning(system, b)
    # Its size follows from counts alone, whatever is kept.
    expression = system.expand(taken)
    kept = {leaf: np.arange(leaf.size)[leaf.size // 2 :] for leaf in system.leaves(taken) if leaf.size > 1}
    counts = {leaf: len(each) for leaf, each in kept.items()}
    assert len(all_kept(expression, kept)) == kept_size(expression, counts)


@FEW
@given(equations(), st.data())
@in_time
def test_a_picked_axis_that_meets_another(pairs, data):
    """Its own base among them, where cycles go together."""
    system = solve(pairs)
    axis = data.draw(st.sampled_from([axis for pair in pairs for axis in pair]))
    taken = system.pick(axis, data.draw(orders(axis.size)))
    others = [each for pair in pairs for each in pair if each.size == axis.size]
    other = data.draw(st.sampled_from(others))
    system.unify(taken, other)
    assert meaning(system, taken) == meaning(system, other)
    for a, b in pairs:
        assert meaning(system, a) == meaning(system, b)


@FEW
@given(equations(), st.randoms(use_true_random=False))
@in_time
def test_one_equation_reads_the_same_from_both_sides(pairs, random):
    """Swapping the sides of equations changes no group: the sizes of what is free are the same."""
    swapped = [(b, a) if random.random() < 0.5 else (a, b) for a, b in pairs]
    one, other = solve(pairs), solve(swapped)

    def free(system: System) -> list[Counter[int]]:
        return [Counter(leaf.size for leaf in set(system.leaves(a)) if leaf not in system.frozen) for a, _ in pairs]

    assert free(one) == free(other)


# -- cases that once went wrong, and what each form of equation must give ---------------------------


def gqa(tiled: int, heads: int) -> Build:
    def build() -> tuple[Axis, Axis]:
        repeats, kv = Dim(tiled), Dim(heads)
        return Product((repeats, kv)), Product((kv, repeats))

    return build


def nested_order() -> tuple[Axis, Axis]:
    a, x, tail = Dim(2), Dim(6), Dim(3)
    return Product((a, x, tail)), Product((x, a, tail))


def padded_product() -> tuple[Axis, Axis]:
    x = Dim(4)
    return x, Product((ONE, x))


def padded_sum() -> tuple[Axis, Axis]:
    x = Dim(4)
    return x, Sum((Dim(0), x, Sum(())))


def padded_deep_down() -> tuple[Axis, Axis]:
    a, x = Dim(2), Dim(6)
    return Product((a, x)), Product((Product((ONE, a)), Sum((x, Dim(0)))))


def rotated_sum() -> tuple[Axis, Axis]:
    a, x = Dim(2), Dim(5)
    return Sum((a, x)), Sum((x, a))


def inside_its_own_part() -> tuple[Axis, Axis]:
    x, y = Dim(4), Dim(2)
    return Sum((x, y)), Product((y, Dim(3)))


def product_of_itself() -> tuple[Axis, Axis]:
    x = Dim(4)
    return Product((x, x)), Product((Dim(2), x, Dim(2)))


@pytest.mark.parametrize(
    "build",
    [
        *(gqa(tiled, heads) for tiled, heads in ((2, 4), (4, 2), (2, 6), (3, 6), (6, 4), (2, 3), (3, 3), (8, 2))),
        nested_order,
        padded_product,
        padded_sum,
        padded_deep_down,
        rotated_sum,
        inside_its_own_part,
        product_of_itself,
    ],
)
@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_variable_on_both_sides(build, is_swapped):
    a, b = build()
    system = System()
    with within(5):
        system.unify(*((b, a) if is_swapped else (a, b)))
        assert meaning(system, a) == meaning(system, b)


def test_products_take_their_common_refinement():
    """768 read as 12 heads of 64 and as 24 of 32 is `(12 2 32)`."""
    system, width = System(), Dim(768)
    system.unify(width, Product((Dim(12), Dim(64))))
    system.unify(width, Product((Dim(24), Dim(32))))
    assert [leaf.size for leaf in system.leaves(width)] == [12, 2, 32]
    assert not system.frozen


def test_sums_are_cut_at_every_boundary_of_either():
    system = System()
    a, b = Sum((Dim(3), Dim(7))), Sum((Dim(5), Dim(5)))
    system.unify(a, b)
    assert [leaf.size for leaf in system.leaves(a)] == [3, 2, 5] == [leaf.size for leaf in system.leaves(b)]
    assert not system.frozen


def test_a_product_is_cut_along_its_outer_factor():
    """The `3 h d` of a fused projection meets `q + k + v`."""
    system = System()
    three, heads, width = Dim(3), Dim(4), Dim(8)
    q, k, v = Dim(32), Dim(32), Dim(32)
    system.unify(Product((three, heads, width)), Sum((q, k, v)))
    assert [leaf.size for leaf in system.leaves(q)] == [4, 8]
    assert list(system.leaves(q)) == list(system.leaves(k)) == list(system.leaves(v)) == [heads, width]
    assert not system.frozen


def test_refining_reaches_every_axis_that_mentions_the_variable():
    system, shared = System(), Dim(12)
    earlier = Sum((shared, Dim(5)))
    system.factor(shared, 4)
    assert [leaf.size for leaf in system.leaves(earlier)] == [3, 4, 5]


def test_boundaries_that_do_not_nest_freeze_both_sides_and_say_so():
    system = System()
    a, b = Product((Dim(4), Dim(3))), Product((Dim(3), Dim(4)))
    system.unify(a, b, "an operator")
    assert system.is_frozen(a)
    assert system.is_frozen(b)
    assert {(cause.reason, cause.where) for cause in system.frozen.values()} == {
        ("boundaries that do not nest", "an operator")
    }


def test_binding_a_frozen_variable_freezes_what_it_is_bound_to():
    system = System()
    fixed = system.fixed(12, "an input of the model")
    split = Product((Dim(3), Dim(4)))
    system.unify(fixed, split)
    assert system.is_frozen(split)
    assert {cause.reason for cause in system.frozen.values()} == {"an input of the model"}


def test_the_first_reason_stays():
    system, dim = System(), Dim(3)
    system.freeze(dim, "first")
    system.freeze(dim, "second")
    assert system.frozen[dim].reason == "first"


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="axes of sizes 3 and 4 cannot be one"):
        System().unify(Dim(3), Dim(4))


def test_an_axis_of_one_is_no_variable():
    assert fresh(1) is ONE
    assert list(System().leaves(fresh(1))) == []
    assert kept_indices(Product((Dim(2), ONE)), {}) is None


def test_kept_indices_by_hand():
    """`(h d) + c` with head 1 of 3, columns 0 and 2 of 3, and channel 1 of 2 kept."""
    h, d, c = Dim(3), Dim(3), Dim(2)
    kept = {h: np.array([1]), d: np.array([0, 2]), c: np.array([1])}
    assert all_kept(Sum((Product((h, d)), c)), kept) == [3, 5, 10]
    assert all_kept(Product((c, h)), {h: np.array([0, 2])}) == [0, 2, 3, 5]


# -- other orders -----------------------------------------------------------------------------------


def index(*numbers: int) -> order.Indices:
    return np.array(numbers, dtype=np.int64)


def shown(system: System, axis: Axis) -> str:
    """Sizes, with a letter for each variable; what is in another order with its numbers."""
    letters: dict[Dim, str] = {}

    def show(each: Axis) -> str:
        match each:
            case Dim(size):
                return f"{letters.setdefault(each, 'abcdefgh'[len(letters)])}{size}"
            case Product(factors):
                return f"({' '.join(map(show, factors))})" if factors else "1"
            case Sum(parts):
                return f"({' + '.join(map(show, parts))})"
            case Reordered(inner, moved):
                return f"{''.join(map(str, moved))}~{show(inner)}"

    return show(system.expand(axis))


def test_orders_are_composed_and_cancel():
    system, dim = System(), Dim(4)
    turned = system.pick(dim, index(1, 2, 0, 3))
    assert shown(system, turned) == "1203~a4"
    assert shown(system, system.pick(turned, index(3, 0, 2, 1))) == "3102~a4"
    assert system.resolve(system.pick(turned, index(2, 0, 1, 3))) is dim


def test_a_rotation_exchanges_two_parts():
    system, dim = System(), Dim(7)
    rolled = system.pick(dim, index(5, 6, 0, 1, 2, 3, 4))
    assert (shown(system, dim), shown(system, rolled)) == ("(a5 + b2)", "(a2 + b5)")


def test_an_order_of_a_product_is_one_of_its_factors():
    """Also where it exchanges them: rows read as columns."""
    system, axis = System(), Product((Dim(2), Dim(3)))
    assert shown(system, system.pick(axis, index(5, 4, 3, 2, 1, 0))) == "(10~a2 210~b3)"
    assert shown(system, system.pick(axis, index(0, 3, 1, 4, 2, 5))) == "(a3 b2)"
    assert shown(system, system.pick(axis, index(0, 3, 1, 4, 5, 2))) == "031452~(a2 b3)"


def test_an_order_of_a_sum_is_one_of_its_parts():
    system, axis = System(), Sum((Dim(2), Product((Dim(2), Dim(3)))))
    assert shown(system, system.pick(axis, index(7, 6, 5, 4, 3, 2, 1, 0))) == "((10~a2 210~b3) + 10~c2)"
    assert shown(system, system.pick(axis, index(2, 0, 1, 3, 4, 5, 6, 7))) == "20134567~(a2 + (b2 c3))"


def test_entries_are_told_apart_by_how_often_they_are_taken():
    """Of six, two never, three once, one twice: the size that is left follows from counts."""
    system, dim = System(), Dim(6)
    taken = system.pick(dim, index(4, 0, 3, 3, 1))
    assert shown(system, dim) == "230541~(a2 + b3 + 1)"
    assert shown(system, taken) == "20341~(a3 + 1 + 1)"
    assert not system.frozen


def test_whole_blocks_of_a_product_are_taken_by_its_outer_factor():
    system, axis = System(), Product((Dim(4), Dim(2)))
    taken = system.pick(axis, index(4, 5, 2, 3, 4, 5, 2, 3))
    assert shown(system, axis) == "(0231~(a2 + b2) c2)"
    assert shown(system, taken) == "((10~a2 + 10~a2) b2)"


def test_an_index_across_factors_freezes_both():
    system, axis = System(), Product((Dim(4), Dim(2)))
    taken = system.pick(axis, index(0, 3, 4), "an operator")
    assert system.is_frozen(axis) and system.is_frozen(taken)
    assert {cause.reason for cause in system.frozen.values()} == {"is read by index, across its factors"}


def test_what_is_read_of_a_frozen_axis_is_frozen_for_the_same_reason():
    system = System()
    fixed = system.fixed(5, "an input of the model")
    taken = system.pick(fixed, index(4, 4, 1))
    assert [cause.reason for cause in system.frozen.values()] == ["an input of the model"] * 2
    assert system.is_frozen(taken) and shown(system, fixed) == "a5"


def test_a_mirror_of_itself_ties_pairs():
    system, dim = System(), Dim(5)
    system.unify(dim, system.pick(dim, index(4, 3, 2, 1, 0)))
    assert shown(system, dim) == "(a2 + 1 + 10~a2)"


def test_cycles_of_one_order_go_together():
    """(0 2 4), (1 3 5), and 6 alone."""
    system, dim = System(), Dim(7)
    system.unify(system.pick(dim, index(2, 3, 4, 5, 0, 1, 6)), dim)
    assert shown(system, dim) == "(a2 + a2 + a2 + 1)"


def test_one_cycle_stays_and_says_so():
    for moved in (index(1, 2, 3, 4, 0), index(2, 4, 0, 1, 3), index(1, 3, 4, 0, 2)):
        system, dim = System(), Dim(5)
        system.unify(dim, system.pick(dim, moved), "an operator")
        assert system.is_frozen(dim)
        assert {(cause.reason, cause.where) for cause in system.frozen.values()} == {
            ("its entries are tied to each other around a cycle", "an operator")
        }


def test_entries_that_meet_a_frozen_one_are_frozen_alone():
    """Two sums in each other's order: what meets the frozen part stays, the rest is free."""
    system = System()
    held, free, other = system.fixed(2, "held"), Dim(4), Dim(6)
    mixed = system.pick(Sum((held, free)), index(2, 0, 3, 4, 1, 5))
    system.unify(mixed, system.pick(other, index(5, 4, 3, 2, 1, 0)))
    assert meaning(system, mixed) == meaning(system, Reordered(other, index(5, 4, 3, 2, 1, 0)))
    removable = [entry for entry in meaning(system, other) if entry]
    assert len(removable) == 4


def test_an_order_leaves_room_for_structure_on_either_side():
    """What a reordered variable is read as later, its own side becomes in another order."""
    system, dim = System(), Dim(6)
    turned = system.pick(dim, index(3, 0, 5, 1, 4, 2))
    halves = system.factor(turned, 2)
    assert halves is not None and shown(system, turned) == "(a3 b2)" and shown(system, dim) == "135042~(a3 b2)"
    system, dim = System(), Dim(6)
    turned = system.pick(dim, index(3, 0, 5, 1, 4, 2))
    first, rest = system.cut(turned, 4) or (ONE, ONE)
    assert (first.size, rest.size) == (4, 2)
    assert meaning(system, turned) == meaning(system, Sum((first, rest)))
    assert sorted(leaf.size for leaf in system.leaves(dim)) == [2, 4]


def test_two_orders_of_one_axis_meet():
    """A grouped convolution on either side of a shuffle that follows neither: nothing can be said but that it stays."""
    system, axis = System(), Product((Dim(2), Dim(3)))
    shuffled = system.pick(axis, index(0, 3, 1, 4, 5, 2))
    system.unify(shuffled, Product((Dim(3), Dim(2))), "an operator")
    assert system.is_frozen(axis)
    assert {cause.reason for cause in system.frozen.values()} == {"boundaries that do not nest"}


def test_kept_indices_of_another_order_by_hand():
    dim = Dim(4)
    turned = Reordered(dim, index(2, 0, 3, 1))
    assert all_kept(turned, {dim: np.array([0, 3])}) == [1, 2]
    assert all_kept(turned, {}) == [0, 1, 2, 3]
    assert kept_size(turned, {dim: 2}) == 2


def test_an_axis_without_its_order():
    a, b, c = Dim(2), Dim(3), Dim(2)
    axis = Sum((Reordered(Sum((a, b)), index(4, 0, 1, 2, 3)), Product((Reordered(c, index(1, 0)), a))))
    plain = unordered(axis)
    assert isinstance(plain, Sum) and plain.parts[:2] == (a, b)
    assert isinstance(plain.parts[2], Product) and plain.parts[2].factors == (c, a)
