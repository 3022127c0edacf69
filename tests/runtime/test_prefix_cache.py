from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_runtime.text.memory import BLOCK_TOKENS
from outpost_runtime.text.prefix_cache import PrefixCache, Root

BASE = Root("digest")


def _text(blocks, first=0):
    return [first + n for n in range(blocks * BLOCK_TOKENS)]


def test_a_known_beginning_is_found_block_by_block():
    cache = PrefixCache(10)
    assert [first for _, first in cache.add(BASE, [*_text(2), 7])] == [0, BLOCK_TOKENS]
    assert len(cache.match(BASE, [*_text(2), 8, 9])) == 2
    assert len(cache.match(BASE, [*_text(1), 8, 9])) == 1
    assert cache.match(BASE, [8, *_text(2)]) == []


def test_the_last_token_is_always_left_to_be_read():
    cache = PrefixCache(10)
    cache.add(BASE, _text(2))
    assert len(cache.match(BASE, _text(2))) == 1
    assert len(cache.match(BASE, [*_text(2), 1])) == 2


def test_what_stands_in_the_row_already_is_not_found_again():
    cache = PrefixCache(10)
    blocks = [block for block, _ in cache.add(BASE, _text(3))]
    assert cache.match(BASE, [*_text(3), 1], behind=BLOCK_TOKENS) == blocks[1:]
    assert cache.match(BASE, [*_text(3), 1], behind=BLOCK_TOKENS + 1) == []


def test_one_adapters_cache_never_serves_another():
    cache = PrefixCache(10)
    text = [*_text(2), 1]
    roots = [BASE, Root("other"), Root("digest", "adapter-a"), Root("digest", "adapter-b")]
    for number, root in enumerate(roots):
        assert all(cache.match(other, text) == [] for other in roots[number:])
        cache.add(root, text)
    found = [tuple(cache.match(root, text)) for root in roots]
    assert len(set(found)) == len(roots)
    assert len({block for blocks in found for block in blocks}) == 8


def test_equal_blocks_behind_different_beginnings_are_different():
    cache = PrefixCache(10)
    cache.add(BASE, [*_text(1, 100), *_text(1)])
    cache.add(BASE, [*_text(1, 200), *_text(1)])
    one = cache.match(BASE, [*_text(1, 100), *_text(1), 1])
    other = cache.match(BASE, [*_text(1, 200), *_text(1), 1])
    assert len({*one, *other}) == 4


def test_the_least_recently_used_goes_first_and_ends_before_beginnings():
    cache = PrefixCache(3)
    cache.add(BASE, _text(2))
    cache.add(BASE, _text(1, 1000))
    cache.match(BASE, [*_text(2), 1])
    cache.add(BASE, _text(1, 2000))
    assert len(cache.match(BASE, [*_text(2), 1])) == 2
    assert cache.match(BASE, [*_text(1, 1000), 1]) == []
    cache.add(BASE, _text(2, 3000))
    assert len(cache.match(BASE, [*_text(2), 1])) <= 1


def test_a_text_longer_than_the_cache_keeps_its_beginning():
    cache = PrefixCache(2)
    assert len(cache.add(BASE, _text(5))) == 2
    assert len(cache.match(BASE, [*_text(5), 1])) == 2


def test_without_blocks_nothing_is_kept():
    cache = PrefixCache(0)
    assert cache.add(BASE, _text(2)) == []
    assert cache.match(BASE, [*_text(2), 1]) == []


def test_what_an_adapter_computed_is_forgotten_with_it():
    cache = PrefixCache(9)
    cache.add(Root("digest", "a"), _text(3))
    cache.add(BASE, _text(3))
    cache.forget("a")
    assert cache.match(Root("digest", "a"), [*_text(3), 1]) == []
    assert len(cache.match(BASE, [*_text(3), 1])) == 3
    assert len(cache.add(BASE, _text(6, 500))) == 6


def test_what_is_kept_is_told_parents_first():
    cache = PrefixCache(9)
    cache.add(BASE, _text(3))
    cache.add(BASE, [*_text(1), *_text(2, 700)])
    told = set()
    for kept in cache.kept():
        assert isinstance(kept.parent, Root) or kept.parent in told
        told.add(kept.number)
    assert len(told) == 5


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=5), st.booleans()), max_size=40),
    st.integers(1, 6),
)
def test_a_block_always_holds_what_its_finder_expects(texts, capacity):
    cache, contents = PrefixCache(capacity), {}
    for choices, adapted in texts:
        root = Root("digest", "adapter" if adapted else None)
        text = [token for choice in choices for token in [choice] * BLOCK_TOKENS]
        for block, first in cache.add(root, text):
            contents[block] = (root, tuple(text[: first + BLOCK_TOKENS]))
        found = cache.match(root, [*text, 1])
        for place, block in enumerate(found, 1):
            assert contents[block] == (root, tuple(text[: place * BLOCK_TOKENS]))
        assert len(cache) <= capacity
