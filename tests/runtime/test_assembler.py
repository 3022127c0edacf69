import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.text.assembler import TextAssembler


def _decode(tokens):
    return bytes(tokens).decode("utf-8", errors="replace")


def _pieces(text, stop=()):
    assembler = TextAssembler(_decode, b"ask:", stop)
    pieces = []
    for byte in text.encode():
        pieces.append(assembler.add(byte))
        if assembler.stopped:
            return pieces, True
    pieces.append(assembler.finish())
    return pieces, assembler.stopped


@given(st.text())
def test_pieces_join_to_the_text(text):
    pieces, _ = _pieces(text)
    assert "".join(pieces) == text


@given(st.text(st.characters(exclude_characters="�", exclude_categories=["Cs"])))
def test_no_piece_holds_a_part_of_a_character(text):
    assert all("�" not in piece for piece in _pieces(text)[0])


def test_an_unfinished_character_at_the_end_is_not_lost():
    assembler = TextAssembler(_decode, b"", ())
    assert [assembler.add(0xE2), assembler.add(0x82), assembler.finish()] == ["", "", "�"]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("answer\n\nnext", ["\n\n"], "answer"),
        ("answer END more", ["END", "swer"], "an"),
        ("aaab", ["aab"], "a"),
        ("ends with EN", ["END"], "ends with EN"),
        ("€uro ✓ done", ["✓"], "€uro "),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stop, shown):
    pieces, _ = _pieces(text, stop)
    assert "".join(pieces) == shown


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_nothing_of_a_stop_string_is_ever_shown(text, stop):
    pieces, stopped = _pieces(text, [stop])
    assert "".join(pieces) == text.split(stop)[0]
    assert stopped == (stop in text)
