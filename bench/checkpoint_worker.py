"""The checkpoint itself, as transformers computes it: ``python -m bench.checkpoint_worker FOLDER``.

The float32 perplexity against which every engine's is compared.
"""

import sys
from typing import Any

import torch
from outpost_export.quiet import silence_libraries
from transformers import AutoModelForCausalLM

from bench.workers import THREADS, answer_tasks


def main() -> None:
    """Load the model and answer."""
    silence_libraries()
    torch.set_num_threads(THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    model.eval()

    def perplexity(ids: list[int]) -> float:
        batch = torch.tensor([ids])
        with torch.inference_mode():
            return float(model(input_ids=batch, labels=batch).loss.exp())

    answer_tasks({"perplexity": perplexity})


if __name__ == "__main__":
    main()
