import numpy as np
import pytest
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.raw_tensors import of_elements
from outpost_runtime.server.inference.classification import classify


def _classes(values, count, labels=(), *, batched=True, dtype=np.float32):
    return classify("y", np.array(values, dtype), count, labels, batched=batched).tolist()


def test_every_row_is_ranked_by_itself_with_names_where_there_are_some():
    assert _classes([[0.1, 0.9, 0.5], [3, 1, 2]], 2, ["calm", "alarm"]) == [
        [b"0.900000:1:alarm", b"0.500000:2"],
        [b"3.000000:0:calm", b"2.000000:2"],
    ]


def test_without_a_batch_everything_is_one_row():
    assert _classes([[1, 2], [4, 3]], 2, batched=False, dtype=np.int32) == [b"4:2", b"3:3"]


def test_more_classes_than_there_are_is_all_of_them():
    assert _classes([[1, 2]], 9, dtype=np.int64) == [[b"2:1", b"1:0"]]


def test_equal_values_keep_their_order_and_what_is_no_number_comes_last():
    assert _classes([[np.nan, 2, 2]], 3) == [[b"2.000000:1", b"2.000000:2", b"nan:0"]]


@pytest.mark.parametrize("array", [of_elements((1,), [b"a"]), np.zeros((1, 2), np.bool_)])
def test_what_has_no_numbers_is_refused(array):
    with pytest.raises(InvalidInputError, match="no numbers"):
        classify("y", array, 1, [], batched=True)
