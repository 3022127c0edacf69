"""The shell between the scheduler's decisions and the decoder's runs.

Turns a step's sequences into runs, and keeps the books of what every row holds
(``Sequence.stored``). Prefixes are looked up whenever a prompt is read on, so that of
two equal prompts in the queue only the first is computed, and remembered after every
run that has filled a block: so nothing is lost when a sequence leaves its row,
whatever the reason.
"""

import time
from collections.abc import Iterable
from collections.abc import Sequence as Listed

import numpy as np
from numpy.typing import NDArray

from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.memory import BLOCK_TOKENS, KeyValueMemory
from outpost_runtime.text.pace import LARGEST_CHUNK, SMALLEST_CHUNK, Pace
from outpost_runtime.text.prefix_cache import PrefixCache
from outpost_runtime.text.scheduler import Move, Sequence

Logits = NDArray[np.float32]


class Runner:
    """Runs sequences on a decoder, which it owns from now on."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._pace = Pace()
        self.cache = PrefixCache(decoder.memory.blocks)

    @property
    def rows(self) -> int:
        """Sequences that can live at once."""
        return self._decoder.rows

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self._decoder.max_length

    @property
    def memory(self) -> KeyValueMemory:
        """The memory of rows and blocks."""
        return self._decoder.memory

    def move(self, moves: Iterable[Move]) -> None:
        """Give sequences other rows."""
        for move in moves:
            self._decoder.memory.move(move.source, move.target, move.tokens)

    def decode(self, sequences: Listed[Sequence]) -> Logits:
        """Let the sequences of rows 0, 1, … read their newest token, as one batch.

        Returns:
            [len(sequences), vocabulary] logits: a view, valid until the next run.
        """
        started = time.perf_counter()
        tokens = [sequence.token_ids[-1] for sequence in sequences]
        logits = self._decoder.decode(
            tokens,
            [sequence.stored for sequence in sequences],
            [sequence.adapter for sequence in sequences],
        )
        self._pace.decoded(time.perf_counter() - started)
        for sequence in sequences:
            self._advance(sequence, 1)
        return logits

    def decode_in_its_row(self, sequence: Sequence) -> Logits:
        """Let one sequence read its newest token, in whatever row it is; [vocabulary] logits."""
        logits = self._run(sequence, sequence.token_ids[-1:], keep=1)
        self._advance(sequence, 1)
        first: Logits = logits[0]
        return first

    def verify(self, sequence: Sequence, draft: Listed[int]) -> Logits:
        """Let a sequence read its newest token and a guess of those that follow.

        Nothing is kept yet: :meth:`accept` says how much of the guess was right.

        Returns:
            [1 + len(draft), vocabulary] logits: a view, valid until the next run.
        """
        tokens = [sequence.token_ids[-1], *draft]
        return self._run(sequence, tokens, keep=len(tokens))

    def accept(self, sequence: Sequence, drafted: int) -> None:
        """Keep the newest token's keys and values and those of ``drafted`` guessed ones."""
        self._advance(sequence, 1 + drafted)

    def restore(self, sequence: Sequence) -> int:
        """Fill a row with what is known of its text.

        Returns:
            The number of tokens that it has never had before, so that nobody had to read them.
        """
        # At least two tokens stay to be read: attention rounds differently in a run of one
        # token, and where a prompt was cut must not change its answer.
        blocks = self.cache.match(sequence.root, sequence.token_ids[:-1], behind=sequence.stored)
        self._decoder.memory.restore(blocks, _row(sequence), sequence.stored)
        had = max(sequence.stored, sequence.reached)
        sequence.stored += len(blocks) * BLOCK_TOKENS
        return max(sequence.stored - had, 0)

    def read(self, sequence: Sequence, *, beside: bool) -> Logits | None:
        """Read the next piece of a prompt.

        Args:
            beside: Others are waiting for their next token.

        Returns:
            [vocabulary] logits of the last token (a view, valid until the next run), or None
            when there is more to read.
        """
        count = min(self._pace.chunk(beside=beside), sequence.unread)
        count += sequence.unread - count == 1  # see `restore`
        last = count == sequence.unread
        tokens = sequence.token_ids[sequence.stored : sequence.stored + count]
        started = time.perf_counter()
        logits = self._run(sequence, tokens, keep=int(last))
        self._pace.read(count, time.perf_counter() - started)
        self._advance(sequence, count)
        return logits[0] if last else None

    def warm_up(self) -> None:
        """Run the largest piece of a prompt and the largest batch once, on nobody's tokens.

        So the provider's memory is taken and touched, and the pace known, before anybody waits.
        What the rows hold afterwards means nothing.
        """
        longest = min(LARGEST_CHUNK, self.max_length - 1)
        for count in (longest, min(SMALLEST_CHUNK, longest)):  # the second tells the pace
            started = time.perf_counter()
            self._decoder.prefill(0, [0] * count, 0)
            seconds = time.perf_counter() - started
        self._pace.read(count, seconds)
        for rows in (self.rows, 1):
            started = time.perf_counter()
            self._decoder.decode([0] * rows, [longest] * rows)
            self._pace.decoded(time.perf_counter() - started)

    def reset(self) -> None:
        """Forget all prefixes, after a failure that may have left blocks half-filled."""
        self.cache = PrefixCache(self.cache.capacity)

    def close(self) -> None:
        """Free the memory."""
        self._decoder.close()

    def _run(self, sequence: Sequence, tokens: Listed[int], *, keep: int) -> Logits:
        return self._decoder.prefill(
            _row(sequence), tokens, sequence.stored, keep=keep, adapter=sequence.adapter
        )

    def _advance(self, sequence: Sequence, tokens: int) -> None:
        before = sequence.stored // BLOCK_TOKENS
        sequence.stored += tokens
        if sequence.stored // BLOCK_TOKENS == before:
            return
        known = sequence.token_ids[: sequence.stored]
        for block, first in self.cache.add(sequence.root, known):
            self._decoder.memory.keep(_row(sequence), first, block)


def _row(sequence: Sequence) -> int:
    assert sequence.row is not None  # noqa: S101 - the scheduler gave it one
    return sequence.row
