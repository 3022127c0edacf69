import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_runtime.text.assembler import TextAssembler
from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel


def _decode(tokens):
    return bytes(tokens).decode("utf-8", errors="replace")


def _byte_level():
    vocabulary = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback():
    """As Llama 2 and Mistral decode: bytes as tokens, the first space of a text goes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "b": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="a"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


REAL = {"byte-level": _byte_level(), "byte-fallback": _byte_fallback()}


@pytest.mark.parametrize("kind", REAL)
@given(prompt=st.text("ab 日€😀", max_size=20), text=st.text("ab 日€😀本語", max_size=90))
def test_pieces_of_real_decoders_join_to_the_text(kind, prompt, text):
    tokenizer = REAL[kind]
    prompt_ids = tokenizer.encode("a" + prompt).ids
    assembler = TextAssembler(tokenizer.decode, prompt_ids, ())
    pieces = [assembler.add(token) for token in tokenizer.encode(text).ids]
    assert all("�" not in piece for piece in pieces)
    assert "".join(pieces) + assembler.finish() == text


def test_tokens_that_end_one_character_and_begin_another_split_none():
    data = "日本語日本語".encode()
    tokens = [data[0:2], data[2:5], data[5:8], data[8:11], data[11:14], data[14:18]]
    assembler = TextAssembler(
        lambda ids: b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace"), (), ()
    )
    pieces = [assembler.add(i) for i in range(len(tokens))]
    assert all("�" not in piece for piece in pieces)
    assert "".join(pieces) == "日本語日本語"


def test_a_space_behind_a_special_token_is_kept():
    words = {0: "▁Hello", 1: None, 2: "▁world"}

    def decode(ids):
        return "".join(words[i] or "" for i in ids).replace("▁", " ").removeprefix(" ")

    assembler = TextAssembler(decode, (0,), ())
    assert [assembler.add(1), assembler.add(2)] == ["", " world"]


def test_a_replacement_character_of_the_model_itself_is_shown_in_the_end():
    assembler = TextAssembler(lambda ids: "�" * len(ids), (), ())
    assert "".join([assembler.add(0) for _ in range(5)]) + assembler.finish() == "�" * 5


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
