from outpost_runtime.text.drafter import LONGEST_DRAFT, Drafter


def test_what_followed_the_last_time_is_proposed():
    text = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3]
    assert Drafter().propose(text, 8) == [4, 5, 6, 7]


def test_the_newest_of_several_places_wins():
    text = [1, 2, 3, 4, 4, 1, 2, 3, 5, 5, 1, 2, 3]
    assert Drafter().propose(text, 2) == [5, 5]


def test_what_has_not_been_there_is_not_guessed():
    assert Drafter().propose([1, 2, 3, 4, 5], 8) == []
    assert Drafter().propose([1], 8) == []


def test_there_is_never_more_than_there_is_room_for():
    assert Drafter().propose([1, 2, 3, 4, 1, 2, 3], 1) == [4]
    assert Drafter().propose([1, 2, 3, 4, 1, 2, 3], 0) == []


def test_a_growing_text_gives_what_the_whole_text_gives():
    text = [n * n % 7 for n in range(60)]
    growing = Drafter()
    for end in range(1, 61):
        grown = growing.propose(text[:end], 8)
    assert grown == Drafter().propose(text, 8) != []


def test_right_guesses_become_longer():
    drafter = Drafter()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] * 2
    for length in (4, 8, LONGEST_DRAFT):
        draft = drafter.propose(text, 20)
        assert len(draft) == length
        drafter.judge(length, length, len(text))


def test_wrong_guesses_silence_it_for_longer_and_longer():
    drafter, text, silences = Drafter(), [1, 2, 3] * 2, []
    for _ in range(60):
        waited = 0
        while not (draft := drafter.propose(text, 8)):
            text = [*text, 1, 2, 3]
            waited += 3
        silences.append(waited)
        text = [*text, 1, 2, 3]
        drafter.judge(len(draft), 0, len(text))
        if waited > 200:
            break
    grown = [s for s in silences if s]
    assert len(silences) < 15
    assert grown == sorted(grown)
