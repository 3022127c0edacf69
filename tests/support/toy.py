"""A toy session: a decoder whose next token depends on every token in its memory.

It keeps the Session protocol in plain numpy, reads and writes the memory that was
bound, and says so when it is misused; a wrong row, a stale token or a shifted
position changes its answer.
"""

from collections.abc import Mapping

import numpy as np
from outpost_runtime.errors import ExecutionError
from outpost_runtime.tensors import Array, TensorSpec, check_feeds

VOCABULARY = 64
HEADS, HEAD_DIM = 1, 2


def next_token(tokens: list[int]) -> int:
    """The toy's language: what follows a sequence of tokens."""
    return (
        sum(position * token for position, token in enumerate(tokens, 1)) % (VOCABULARY - 4)
    ) + 4


class ToyBinding:
    """Runs on the bound memory."""

    def __init__(
        self, session: "ToySession", inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ):
        self._session = session
        self._arrays = {**inputs, **outputs}

    def feed(self, name: str, array: Array) -> None:
        self._arrays[name] = array

    def put(self, name: str, array: Array) -> None:
        self._arrays[name] = array

    def run(self) -> None:
        self._session.runs += 1
        if self._session.fail_at_run == self._session.runs:
            raise ExecutionError("the toy was told to fail")
        if self._session.break_at_run == self._session.runs:
            raise self._session.fault("a fault of our own")
        ids, mask = self._arrays["input_ids"], self._arrays["attention_mask"]
        memory, present = self._arrays["past_key_values.0.key"], self._arrays["present.0.key"]
        assert memory.ctypes.data == present.ctypes.data, "past and present must share memory"
        kept = int(self._arrays["num_logits_to_keep"][0])
        logits = self._arrays["logits"]
        assert logits.shape == (len(ids), kept, VOCABULARY)
        self._session.tokens += ids.size
        self._session.shapes.append(ids.shape)
        for row, tokens in enumerate(ids):
            length = int(mask[row].sum())
            present[row, 0, length - len(tokens) : length, 0] = tokens
            stored = [int(token) for token in memory[row, 0, :length, 0]]
            for place in range(kept):
                logits[row, place] = -1
                logits[row, place, next_token(stored[: length - kept + 1 + place])] = 1


class ToySession:
    """See the module; ``fail_at_run`` and ``break_at_run`` name the run that goes wrong.

    The latter by ``fault``.
    """

    def __init__(
        self,
        *,
        fail_at_run: int = 0,
        break_at_run: int = 0,
        fault: type[Exception] = ZeroDivisionError,
    ) -> None:
        self.runs = 0
        self.tokens = 0
        self.shapes: list[tuple[int, int]] = []
        self.fail_at_run = fail_at_run
        self.break_at_run = break_at_run
        self.fault = fault
        memory = (None, HEADS, None, HEAD_DIM)
        self.inputs = (
            TensorSpec(name="input_ids", datatype="INT64", shape=(None, None)),
            TensorSpec(name="attention_mask", datatype="INT64", shape=(None, None)),
            TensorSpec(name="num_logits_to_keep", datatype="INT64", shape=(1,)),
            TensorSpec(name="past_key_values.0.key", datatype="FP32", shape=memory),
        )
        self.outputs = (
            TensorSpec(name="logits", datatype="FP32", shape=(None, None, VOCABULARY)),
            TensorSpec(name="present.0.key", datatype="FP32", shape=memory),
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        rows, count = feeds["input_ids"].shape
        past = feeds["past_key_values.0.key"]
        memory = np.zeros((rows, HEADS, past.shape[2] + count, HEAD_DIM), np.float32)
        memory[:, :, : past.shape[2]] = past
        logits = np.zeros((rows, 1, VOCABULARY), np.float32)
        shared = {"past_key_values.0.key": memory}
        outputs = {"logits": logits, "present.0.key": memory}
        binding = ToyBinding(self, shared, outputs)
        for name in ("input_ids", "attention_mask", "num_logits_to_keep"):
            binding.feed(name, feeds[name])
        binding.run()
        return outputs

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> ToyBinding:
        return ToyBinding(self, inputs, outputs)

    def close(self) -> None:
        pass
