import pytest
from outpost_runtime.documents import Reader, canonical_json, parse_json_object
from outpost_runtime.errors import InvalidInputError


def test_an_unknown_key_is_refused_and_named():
    reader = parse_json_object(b'{"a": 1, "surprise": 2}', path="m.json")
    assert reader.integer("a") == 1
    with pytest.raises(InvalidInputError, match=r"m\.json has unknown keys: surprise"):
        reader.end()


def test_a_wrong_type_deep_inside_is_named_by_its_path():
    reader = parse_json_object(b'{"limits": {"tokens": [1, "two"]}}', path="m.json")
    with pytest.raises(InvalidInputError, match=r"m\.json:limits\.tokens\[1\] must be an integer"):
        reader.table("limits").list_of("tokens", int)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, b'{"a": NaN']
)
def test_garbage_is_one_clear_error(data):
    with pytest.raises(InvalidInputError):
        parse_json_object(data, path="m.json")


def test_true_is_not_a_number():
    with pytest.raises(InvalidInputError, match="must be an integer, not true or false"):
        Reader({"n": True}, path="x").integer("n")


def test_equal_documents_have_equal_bytes():
    assert canonical_json({"b": 1, "a": [2]}) == canonical_json({"a": [2], "b": 1})
