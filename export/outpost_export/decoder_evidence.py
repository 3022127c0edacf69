"""Evidence for decoders: the built graph against the checkpoint, token by token.

The checkpoint is read by transformers, the build by the runtime's own decoder and
engine: what is measured is what will be served.
"""

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.engine import TextEngine
from outpost_runtime.text.request import Event, FailEvent, Sampling, TextRequest, TokenEvent
from outpost_runtime.text.scoring import Score, score

from outpost_export.evaluation import GREEDY_TOKENS, Evaluation
from outpost_export.progress import Reporter

_PROMPT_SHARES = (0.05, 0.3, 0.9)
_GOLDEN_TOKENS = 96
_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderReference:
    """What the checkpoint says.

    Attributes:
        score: Of every token of the evaluation.
        prompts: Beginnings of that text.
        continuations: The greedy continuation of each prompt, without the end token.
    """

    score: Score
    prompts: list[list[int]]
    continuations: list[list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a build says, and what a device shall say again.

    Attributes:
        figures: By name, for the gate.
        golden: Tensors of the golden file.
        score: Of every token of the evaluation.
        tokens_per_second: Of the scoring run.
    """

    figures: dict[str, float]
    golden: dict[str, np.ndarray]
    score: Score
    tokens_per_second: float


@torch.inference_mode()
def reference(
    model: torch.nn.Module, evaluation: Evaluation, end_tokens: Sequence[int], reporter: Reporter
) -> DecoderReference:
    """Measure the checkpoint.

    Args:
        model: A causal language model of transformers, float32, in evaluation mode.
        evaluation: At least 2 tokens.
    """
    ids = evaluation.ids
    with reporter.step(
        "Reading the checkpoint's own answers", total=1 + len(_PROMPT_SHARES)
    ) as did:
        logits = model(torch.tensor([list(ids)])).logits[0]
        source = _score(logits, ids)
        del logits
        did(1)
        prompts = _prompts(ids)
        continuations = []
        for prompt in prompts:
            continuations.append(_continue(model, prompt, end_tokens))
            did(1)
    return DecoderReference(score=source, prompts=prompts, continuations=continuations)


def measure(
    decoder: Decoder,
    wanted: DecoderReference,
    evaluation: Evaluation,
    end_tokens: Sequence[int],
    reporter: Reporter,
) -> Measured:
    """Measure a build.

    Args:
        decoder: The build, opened by the runtime; nothing else uses it, and it is closed.
        evaluation: That of ``wanted``.
    """
    started = time.perf_counter()
    with reporter.step("Scoring the build token by token", total=len(evaluation.ids) - 1) as did:
        got = score(decoder, evaluation.ids, did)
    seconds = time.perf_counter() - started
    agreeing = _greedy_tokens(decoder, wanted, end_tokens, reporter)
    golden, golden_perplexity = _golden(evaluation.ids, got)
    figures = _figures(wanted, got, evaluation)
    return Measured(
        figures=figures
        | {"greedy_tokens": float(agreeing), "golden_perplexity": golden_perplexity},
        golden=golden,
        score=got,
        tokens_per_second=len(evaluation.ids) / seconds,
    )


def _figures(wanted: DecoderReference, got: Score, evaluation: Evaluation) -> dict[str, float]:
    source, build = (part.select(evaluation.counted) for part in (wanted.score, got))
    increase = build.perplexity / source.perplexity - 1
    return {
        "evaluated_tokens": float(len(evaluation.ids)),
        "scored_tokens": float(evaluation.counted.sum()),
        "perplexity_source": source.perplexity,
        "perplexity": build.perplexity,
        "perplexity_increase": increase,
        "perplexity_difference": abs(increase),
        "top1_agreement": build.agreement(source.top_tokens),
    }


def _greedy_tokens(
    decoder: Decoder, wanted: DecoderReference, end_tokens: Sequence[int], reporter: Reporter
) -> int:
    """Return how many greedy tokens agree with the checkpoint's in the worst of the prompts.

    A continuation that agrees to its end counts as :data:`GREEDY_TOKENS`. The
    decoder is given to an engine and closed with it.
    """
    engine = TextEngine(
        decoder, decode_text=lambda _: "", end_tokens=frozenset(end_tokens), queue_limit=1
    )
    try:
        with reporter.step("Comparing greedy answers", total=len(wanted.prompts)) as did:
            agreeing = []
            for prompt, expected in zip(wanted.prompts, wanted.continuations, strict=True):
                agreeing.append(_agreeing(_generate(engine, prompt), expected))
                did(1)
    finally:
        engine.close()
    return min(agreeing)


def _golden(ids: Sequence[int], got: Score) -> tuple[dict[str, np.ndarray], float]:
    """Return golden tensors, and the perplexity that the build gives them."""
    count = min(_GOLDEN_TOKENS, len(ids))
    part = Score(
        log_probabilities=got.log_probabilities[: count - 1],
        top_tokens=got.top_tokens[: count - 1],
    )
    tensors = {"input_ids": np.array(ids[:count], np.int64), "top_tokens": part.top_tokens}
    return tensors, part.perplexity


def _score(logits: torch.Tensor, ids: Sequence[int]) -> Score:
    following = torch.tensor(ids[1:])
    log_probabilities = []
    for start in range(0, len(following), _ROWS):  # a whole vocabulary of float64 is large
        rows = logits[start : min(start + _ROWS, len(following))].double().log_softmax(-1)
        wanted = following[start : start + _ROWS, None]
        log_probabilities.append(rows.gather(1, wanted)[:, 0].numpy())
    return Score(
        log_probabilities=np.concatenate(log_probabilities),
        top_tokens=logits[:-1].argmax(-1).numpy(),
    )


def _prompts(ids: Sequence[int]) -> list[list[int]]:
    longest = max(1, len(ids) - GREEDY_TOKENS)
    return [list(ids[: max(1, int(longest * share))]) for share in _PROMPT_SHARES]


def _continue(model: torch.nn.Module, prompt: list[int], end_tokens: Sequence[int]) -> list[int]:
    output = model.generate(  # type: ignore[operator]  # transformers is untyped
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
        max_new_tokens=GREEDY_TOKENS,
        do_sample=False,
        top_k=None,
        top_p=None,
        repetition_penalty=1.0,
        eos_token_id=list(end_tokens) or None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return [int(token) for token in output if token not in end_tokens]


def _generate(engine: TextEngine, prompt: list[int]) -> list[int]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = TextRequest(
        prompt_ids=tuple(prompt), sampling=Sampling(), max_new_tokens=GREEDY_TOKENS
    )
    engine.submit(request, events.put)
    tokens: list[int] = []
    while isinstance(event := events.get(), TokenEvent):
        tokens.append(event.token_id)
    if isinstance(event, FailEvent):
        raise event.error
    return tokens


def _agreeing(got: list[int], expected: list[int]) -> int:
    if got == expected:
        return GREEDY_TOKENS
    pairs = zip(got, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(expected)))
