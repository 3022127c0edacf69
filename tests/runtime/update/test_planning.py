"""What a plan promises: everything is here afterwards, for no more bytes than without deltas."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_runtime.errors import StoreError
from outpost_runtime.update.delta_index import Delta, DeltaIndex
from outpost_runtime.update.planning import (
    WORKERS,
    Holdings,
    collectable,
    describe,
    plan_update,
    useful_references,
)
from outpost_runtime.update.release import Block, DeltaReference

from tests.support.shipments import name_of, ship, ship_after, ship_noise

PLENTY = 1 << 40
PAGE = 4096


def _holdings(*shipments, partials=None, free=PLENTY, spare=0):
    blocks = {b.id: b.stored for s in shipments for b in s.release.blocks()}
    return Holdings(blocks=blocks, partials=partials or {}, free=free, spare=spare)


def _plan(shipment, *indexes, holdings, keep=()):
    return plan_update([shipment.release], indexes, holdings, [s.release for s in keep])


def test_an_empty_box_fetches_everything_once():
    twice = ship([b"a" * 5000, b"b" * 100, b"a" * 5000])
    plan = _plan(twice, holdings=_holdings())
    assert [step.block.stored for step in plan.steps] == [5000, 100]
    assert (plan.total, plan.here, plan.fetched, plan.whole) == (5100, 0, 5100, 5100)
    assert plan.peak == plan.growth == 3 * PAGE
    assert (plan.collect_first, plan.collect_last, plan.discard) == ((), (), ())


def test_what_is_here_costs_nothing():
    shipment = ship_noise([1000, 2000])
    plan = _plan(shipment, holdings=_holdings(shipment, free=0, spare=PLENTY), keep=[shipment])
    assert (plan.steps, plan.fetched, plan.here, plan.peak) == ((), 0, 3000, 0)


def test_a_part_of_a_block_counts():
    shipment = ship_noise([10_000])
    (block,) = shipment.release.blocks()
    plan = _plan(shipment, holdings=_holdings(partials={block.id: 9000}))
    assert (plan.fetched, plan.here) == (1000, 9000)
    assert plan.discard == ()
    assert plan.peak == 0  # its pages are taken already


def test_a_part_that_is_longer_than_its_block_counts_nothing():
    shipment = ship_noise([10_000])
    (block,) = shipment.release.blocks()
    assert _plan(shipment, holdings=_holdings(partials={block.id: 10_001})).fetched == 10_000


def test_a_block_of_another_size_is_damaged_and_is_fetched():
    shipment = ship_noise([10_000, 500])
    first, second = shipment.release.blocks()
    holdings = Holdings(blocks={first.id: 9999, second.id: 500}, partials={}, free=PLENTY, spare=0)
    plan = _plan(shipment, holdings=holdings)
    assert [step.block for step in plan.steps] == [first]
    assert plan.growth == 0


def test_the_shorter_way_is_taken():
    old = ship_noise([10_000, 20_000, 30_000])
    new, index, deltas = ship_after(old, 15_000)
    plan = _plan(new, index, holdings=_holdings(old), keep=[old])
    ways = {step.block.stored: step.delta is not None for step in plan.steps}
    assert ways == {10_000: False, 20_000: True, 30_000: True}
    assert (plan.fetched, plan.whole) == (40_000, 60_000)
    assert plan.collect_last == ()
    assert set(deltas) > {step.delta.id for step in plan.steps if step.delta}


def test_what_came_decides_about_the_way():
    old = ship_noise([20_000])
    new, index, deltas = ship_after(old, 15_000)
    ((block,), (delta,)) = new.data, deltas
    for partials, rest, by_delta in (
        ({block: 6000}, 14_000, False),
        ({block: 6000, delta: 2000}, 13_000, True),
        ({delta: 15_000}, 0, True),
    ):
        holdings = dataclasses.replace(_holdings(old), partials=partials)
        plan = _plan(new, index, holdings=holdings, keep=[old])
        assert plan.fetched == rest
        assert (plan.steps[0].delta is not None) == by_delta
        assert set(plan.discard) == set(partials) - {delta if by_delta else block}


def test_a_delta_whose_source_is_not_here_is_of_no_use():
    old = ship_noise([20_000])
    new, index, _ = ship_after(old, 100)
    assert _plan(new, index, holdings=_holdings()).fetched == 20_000


def test_of_several_deltas_the_shortest_is_taken():
    old, older = ship_noise([20_000]), ship_noise([20_000], seed=1)
    new, index, _ = ship_after(old, 900)
    (row,) = index.deltas
    longer = dataclasses.replace(row, source=next(iter(older.data)), id="1" * 64, stored=901)
    for rows in ((row, longer), (longer, row)):
        plan = _plan(
            new, DeltaIndex(deltas=rows), holdings=_holdings(old, older), keep=[old, older]
        )
        assert plan.steps[0].delta == row


def test_two_blocks_with_equal_deltas_do_not_fetch_them_at_once():
    old = ship_noise([20_000, 30_000])
    new, index, _ = ship_after(old, 500)
    rows = tuple(dataclasses.replace(row, id="1" * 64) for row in index.deltas)
    plan = _plan(new, DeltaIndex(deltas=rows), holdings=_holdings(old), keep=[old])
    assert sorted(step.delta is None for step in plan.steps) == [False, True]


def test_a_delta_that_calls_itself_a_block_of_the_release_is_not_used():
    old = ship_noise([20_000, 30_000])
    new, index, _ = ship_after(old, 500)
    names = list(new.data)
    rows = tuple(dataclasses.replace(row, id=names[0]) for row in index.deltas)
    plan = _plan(new, DeltaIndex(deltas=rows), holdings=_holdings(old), keep=[old])
    assert all(step.delta is None for step in plan.steps)


def test_the_source_of_a_delta_goes_last_and_what_nobody_needs_goes_first():
    old, junk = ship_noise([20_000]), ship_noise([7000], seed=3)
    new, index, _ = ship_after(old, 100)
    plan = _plan(new, index, holdings=_holdings(old, junk))
    assert plan.collect_first == tuple(junk.data)
    assert plan.collect_last == tuple(old.data)
    assert plan.freed_first == 2 * PAGE
    assert plan.growth == -2 * PAGE
    assert collectable({**old.data, **new.data}, [new.release]) == set(old.data)


def test_what_does_not_fit_is_refused_with_figures():
    shipment = ship_noise([10_000] * 3)
    need = 9 * PAGE
    _plan(shipment, holdings=_holdings(free=need + 5000, spare=5000))
    with pytest.raises(StoreError) as caught:
        _plan(shipment, holdings=_holdings(free=need + 4999, spare=5000))
    for figure in (need, 5000, need + 4999):
        assert f"{figure:,}" in caught.value.message


def test_what_fits_once_the_rest_has_gone_is_not_refused():
    shipment, junk = ship_noise([10_000] * 3), ship_noise([10_000] * 2, seed=4)
    plan = _plan(shipment, holdings=_holdings(junk, free=3 * PAGE))
    assert set(plan.collect_first) == set(junk.data)
    with pytest.raises(StoreError):
        _plan(shipment, holdings=_holdings(junk, free=3 * PAGE), keep=[junk])


def test_where_the_sources_of_deltas_are_in_the_way_whole_blocks_are_fetched():
    old = ship_noise([20_000] * 4)
    new, index, _ = ship_after(old, 100)
    tight = _holdings(old, free=2 * PAGE)
    plan = _plan(new, index, holdings=tight)
    assert all(step.delta is None for step in plan.steps)
    assert set(plan.collect_first) == set(old.data)
    roomy = _holdings(old, free=PLENTY)
    assert _plan(new, index, holdings=roomy).fetched == 400


def test_deltas_that_keep_nothing_in_the_way_are_used_all_the_same():
    kept, loose = ship_noise([20_000]), ship_noise([20_000] * 4, seed=1)
    after_kept, first, _ = ship_after(kept, 100)
    after_loose, second, _ = ship_after(loose, 200)
    holdings = _holdings(kept, loose, free=6 * PAGE)
    plan = plan_update(
        [after_kept.release, after_loose.release], [first, second], holdings, [kept.release]
    )
    assert [step.delta is not None for step in plan.steps] == [True] + [False] * 4


def test_several_releases_are_one_plan():
    base, adapter = ship_noise([5000, 6000]), ship_noise([6000], seed=9, name="adapter")
    plan = plan_update([base.release, adapter.release], [], _holdings(base), [])
    assert [step.block.id for step in plan.steps] == list(adapter.data)
    assert plan.collect_first == ()
    assert plan.names == ("press-line 1", "adapter 1")


def test_only_deltas_from_what_is_here_are_worth_asking_for():
    old = ship_noise([10])
    references = tuple(
        DeltaReference(bundle=name_of(bytes([i])), index="0" * 64, index_bytes=1, stored=1)
        for i in range(3)
    )
    release = dataclasses.replace(old.release, deltas=references)
    assert useful_references(release, {name_of(b"\1"), "x"}) == references[1:2]


def test_a_plan_is_told_in_figures():
    old, junk = ship_noise([20_000, 30_000]), ship_noise([7000], seed=3)
    new, index, _ = ship_after(old, 100)
    text = "\n".join(describe(_plan(new, index, holdings=_holdings(old, junk, spare=77))))
    assert "press-line 2: 50,000 bytes in 2 blocks" in text
    assert "to fetch    200 bytes: 0 blocks, 2 deltas" in text
    assert "50,000 bytes without deltas" in text
    assert "77 to spare" in text
    assert "1 blocks that nothing needs: 8,192 bytes" in text
    assert "2 blocks that deltas start from" in text


# -- properties ---------------------------------------------------------------------------------

NAMES = [name_of(bytes([i])) for i in range(12)]
DELTA_NAMES = [name_of(b"delta" + bytes([i])) for i in range(6)]
sizes = st.integers(1, 40_000)


@st.composite
def situations(draw):
    """A release, deltas, what is on the disk, and what must stay."""
    stored = {name: draw(sizes) for name in NAMES}
    wanted = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8))
    kept = draw(st.lists(st.sampled_from(NAMES), max_size=6))
    here = draw(st.sets(st.sampled_from(NAMES)))
    blocks = {name: stored[name] + draw(st.sampled_from([0, 0, 0, 0, 1])) for name in here}
    rows = draw(
        st.lists(
            st.builds(
                Delta,
                source=st.sampled_from(NAMES),
                block=st.sampled_from(NAMES),
                id=st.sampled_from(DELTA_NAMES + NAMES[:2]),
                stored=sizes,
            ),
            max_size=10,
        )
    )
    partials = draw(st.dictionaries(st.sampled_from(NAMES + DELTA_NAMES), sizes, max_size=5))
    free, spare = draw(st.integers(0, 400_000)), draw(st.integers(0, 50_000))
    releases = [
        dataclasses.replace(
            ship([b""]).release,
            files=(
                dataclasses.replace(
                    ship([b""]).release.files[0],
                    blocks=tuple(Block(id=n, size=1, stored=stored[n]) for n in names),
                ),
            ),
        )
        for names in (wanted, kept)
    ]
    holdings = Holdings(blocks=blocks, partials=partials, free=free, spare=spare)
    return releases[0], DeltaIndex(deltas=tuple(rows)), holdings, releases[1]


def _pages(size):
    return -(-size // PAGE) * PAGE


class Disk:
    """What a transfer does to a disk, in pages; steps may end in any order."""

    def __init__(self, holdings):
        self.visible = dict(holdings.blocks)
        self.parts = dict(holdings.partials)
        self.begun_with = self.taken
        self.most = 0

    @property
    def taken(self):
        return sum(map(_pages, [*self.visible.values(), *self.parts.values()]))

    def note(self):
        self.most = max(self.most, self.taken)

    def begin(self, step):
        block, delta = step.block, step.delta
        if delta is not None:
            assert delta.source in self.visible
            self.parts[delta.id] = delta.stored
            self.note()
        self.parts[block.id] = block.stored  # fetched, or made from the delta beside it
        self.note()

    def end(self, step):
        if step.delta is not None:
            del self.parts[step.delta.id]
        self.visible[step.block.id] = self.parts.pop(step.block.id)
        self.note()


def _carry_out(plan, holdings, lag):
    """Carry a plan out with two workers, of which one ends its step so many steps late."""
    disk = Disk(holdings)
    for name in plan.collect_first:
        del disk.visible[name]
    for name in plan.discard:
        del disk.parts[name]
    after_first = disk.taken
    disk.note()
    late = []
    for number, step in enumerate(plan.steps):
        disk.begin(step)
        if len(late) < WORKERS - 1 and number >= lag:
            late.append(step)
        else:
            disk.end(step)
    for step in late:
        disk.end(step)
    for name in plan.collect_last:
        del disk.visible[name]
    return disk, after_first


@settings(max_examples=500)
@given(situations(), st.integers(0, 8))
def test_every_plan_is_complete_cheap_safe_and_right_about_the_disk(situation, lag):
    release, index, holdings, kept = situation
    try:
        plan = plan_update([release], [index], holdings, [kept])
    except StoreError:
        return
    disk, after_first = _carry_out(plan, holdings, lag)
    # Complete: every block is here, with its size.
    for block in release.blocks():
        assert disk.visible[block.id] == block.stored
    # Cheap: never more than without deltas, and what is told is what moves.
    moved = [
        (step.delta.id, step.delta.stored) if step.delta else (step.block.id, step.block.stored)
        for step in plan.steps
    ]
    rest = [size - came if (came := holdings.partials.get(n, 0)) <= size else size
            for n, size in moved]  # fmt: skip
    assert plan.fetched == sum(rest) <= plan.whole
    assert len({name for name, _ in moved}) == len(moved)
    # Safe: nothing that must stay has gone.
    for block in kept.blocks():
        assert (block.id in holdings.blocks) <= (block.id in disk.visible)
    # Right about the disk.
    assert holdings.free + disk.begun_with - disk.most >= holdings.spare or not plan.steps
    assert disk.most - after_first <= plan.peak
    assert plan.freed_first == disk.begun_with - after_first
    assert plan.growth == disk.taken - disk.begun_with
    assert describe(plan)


@given(situations())
def test_a_refusal_is_true(situation):
    release, index, holdings, kept = situation
    roomy = dataclasses.replace(holdings, free=PLENTY, spare=0)
    plan = plan_update([release], [DeltaIndex(deltas=())], roomy, [kept])
    tight = plan.peak - plan.freed_first + holdings.spare
    if not plan.steps:
        return
    plan_update([release], [index], dataclasses.replace(holdings, free=max(0, tight)), [kept])
    if tight > 0:
        with pytest.raises(StoreError):
            plan_update(
                [release],
                [DeltaIndex(deltas=())],
                dataclasses.replace(holdings, free=tight - 1),
                [kept],
            )


def test_the_peak_is_reached_when_a_worker_lags_behind():
    old = ship_noise([20_000] * 4)
    new, index, _ = ship_after(old, 9000)
    holdings = _holdings(old)
    plan = _plan(new, index, holdings=holdings, keep=[old])
    disk, after_first = _carry_out(plan, holdings, 0)
    assert disk.most - after_first == plan.peak == 4 * 5 * PAGE + 2 * 3 * PAGE
