import pytest
from outpost_runtime.errors import ConfigurationError
from outpost_runtime.opening import ModelSettings
from outpost_runtime.settings import read_settings
from outpost_runtime.tensor.engine import TensorLimits


def _read(folder, text):
    path = folder / "outpost.toml"
    path.write_text(text)
    default = ModelSettings(threads=3, tensor=TensorLimits(queue=9))
    return read_settings(path, default, ["one", "two", "other"]).models


def test_a_file_changes_what_it_names_and_leaves_the_rest(tmp_path):
    settings = _read(
        tmp_path,
        """
        [models.one]
        concurrency = 2
        max_queue_delay_ms = 2.5
        preferred_batch_sizes = [4, 8]
        [models.two]
        threads = 1
        streams = 2
        kv_memory_mib = 64
        """,
    )
    one, two, other = settings("one"), settings("two"), settings("other")
    assert (one.threads, one.tensor.queue, one.tensor.concurrency) == (3, 9, 2)
    assert (one.tensor.delay, one.tensor.preferred) == (0.0025, (4, 8))
    assert (two.threads, two.text.streams, two.text.memory_bytes) == (1, 2, 64 << 20)
    assert other == ModelSettings(threads=3, tensor=TensorLimits(queue=9))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[models.one]\nconcurency = 2", "unknown keys: concurency"),
        ("[model.one]\n", "unknown keys: model"),
        ("[models.one]\nconcurrency = 0", "at least one run"),
        ("[models.one]\nconcurrency = '2'", "must be an integer"),
        ("[models.one]\nthreads = -1", "at least one thread"),
        ("[models.one]\npreferred_batch_sizes = [0]", "batches of one row"),
        ("[models.one", "cannot be read"),
        ("[models.ohne]\n", "does not have: ohne"),
        ("[models.one]\nthreads = 0", "at least one thread"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, text, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        _read(tmp_path, text)
