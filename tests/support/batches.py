"""Batches run on a session without an engine: every row has the same length."""

import numpy as np


class Batch:
    """Key/value memory for some rows, bound to a session.

    ``adapters`` are for the sessions whose bindings can choose.
    """

    def __init__(self, session, rows, adapters=None, length=128):
        shapes = {s.name: s.shape for s in session.inputs if s.name.startswith("past_key_values.")}
        past = {
            name: np.zeros((rows, shape[1], length, shape[3]), np.float32)
            for name, shape in shapes.items()
        }
        present = {name.replace("past_key_values", "present"): a for name, a in past.items()}
        vocabulary = next(s.shape[-1] for s in session.outputs if s.name == "logits")
        self.logits = np.zeros((rows, 1, vocabulary), np.float32)
        self.binding = session.bind(past, present | {"logits": self.logits})
        if any(spec.name == "num_logits_to_keep" for spec in session.inputs):
            self.binding.feed("num_logits_to_keep", np.array([1]))
        if adapters is not None:
            self.binding.choose(adapters)
        self.past = 0

    def read(self, tokens):
        """Append [rows, n] tokens; returns the last ones' logits [rows, vocabulary]."""
        tokens = np.ascontiguousarray(tokens, np.int64)
        self.past += tokens.shape[1]
        self.binding.feed("input_ids", tokens)
        self.binding.feed("attention_mask", np.ones((len(tokens), self.past), np.int64))
        self.binding.run()
        return self.logits[:, 0].copy()

    def answer(self, prompts, count=24):
        """Read [rows, n] prompts; returns [rows, count] greedy tokens, and all logits."""
        logits = [self.read(prompts)]
        for _ in range(count - 1):
            logits.append(self.read(logits[-1].argmax(-1)[:, None]))
        return np.stack([step.argmax(-1) for step in logits], 1), np.stack(logits, 1)
