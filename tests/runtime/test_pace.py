from outpost_runtime.text.pace import LARGEST_CHUNK, SMALLEST_CHUNK, STALL, Pace


def test_alone_a_prompt_is_read_as_fast_as_it_can_be():
    assert Pace().chunk(beside=False) == LARGEST_CHUNK


def test_beside_others_a_piece_takes_what_the_stall_allows():
    pace = Pace()
    pace.decoded(0.020)
    pace.read(256, 256 * 0.001)
    assert pace.chunk(beside=True) * 0.001 <= (STALL - 1) * 0.020
    assert pace.chunk(beside=True) == 16


def test_a_fast_chip_reads_more_and_a_slow_one_never_nothing():
    fast, slow = Pace(), Pace()
    for pace, seconds in ((fast, 0.00001), (slow, 0.1)):
        pace.decoded(0.020)
        pace.read(64, 64 * seconds)
    assert fast.chunk(beside=True) == LARGEST_CHUNK
    assert slow.chunk(beside=True) == SMALLEST_CHUNK


def test_a_few_tokens_say_nothing_about_speed():
    pace = Pace()
    pace.decoded(0.020)
    pace.read(64, 64 * 0.0001)
    before = pace.chunk(beside=True)
    pace.read(2, 10.0)
    assert pace.chunk(beside=True) == before
