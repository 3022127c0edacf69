"""Teach Gemma 3 270M the plant: a LoRA adapter, trained on a CPU in float32.

    python -m examples.press_line.finetune --checkpoint DIR --adapter OUT_DIR

The head has 262,144 rows and would be two thirds of the work, so it is applied at the answers'
positions only; the loss is taken there and nowhere else. The result is what PEFT loads, plus
the chat template and the generation settings that belong to it; base weights and tokenizer are
not repeated.
"""

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.press_line.answerers import CHAT_TEMPLATE_FILE, STOP_TOKENS
from examples.press_line.faults import TrainingPair, load_catalogue, load_revision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_NAME = "gemma-3-270m"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_IGNORED = -100  # what cross_entropy leaves out by default


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to train. Each is a flag of the command.

    Attributes:
        reminders: With a revision: questions of each fault that did not change.
    """

    rank: int = 8
    alpha: int = 16
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    epochs: int = 4
    batch_size: int = 16
    max_gradient_norm: float = 1.0
    seed: int = 217
    reminders: int = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Folders:
    """What to train from and where the result goes.

    Attributes:
        earlier: The adapter to go on from; None starts from scratch.
        revision: A revision that the earlier adapter does not know; None trains on everything.
    """

    checkpoint: Path
    adapter: Path
    earlier: Path | None
    revision: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One tokenized pair. `labels` are the ids of the answer, and ignored in the prompt."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


def encode(pair: TrainingPair, tokenizer: "PreTrainedTokenizerBase") -> Example:
    """Tokenize a pair in the chat format; the answer includes its end of turn."""
    chat = [{"role": "user", "content": pair.question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(f"{pair.answer}<end_of_turn>", add_special_tokens=False)
    return Example(
        input_ids=(*prompt_ids, *answer_ids),
        labels=(*([_IGNORED] * len(prompt_ids)), *answer_ids),
    )


def batches(examples: Sequence[Example], size: int, dice: random.Random) -> list[list[Example]]:
    """Cut one epoch into batches of similar length, in random order."""
    by_length = sorted(examples, key=lambda example: (len(example.input_ids), dice.random()))
    cut = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    dice.shuffle(cut)
    return cut


def loss_of(model: torch.nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens; the head sees only their positions."""
    input_ids = _padded([example.input_ids for example in batch], 0)
    labels = _padded([example.labels for example in batch], _IGNORED)
    lengths = torch.tensor([len(example.input_ids) for example in batch])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = causal_lm.model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    predicts = labels[:, 1:] != _IGNORED
    logits = causal_lm.lm_head(hidden[:, :-1][predicts])
    return cross_entropy(logits, labels[:, 1:][predicts])


def _padded(rows: Sequence[tuple[int, ...]], filler: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: torch.nn.Module, examples: Sequence[Example], settings: Settings
) -> Iterator[float]:
    """Train what requires it, yielding the loss of every step."""
    dice = random.Random(settings.seed)  # noqa: S311 - it shuffles, it guards nothing
    plan = [
        batch
        for _ in range(settings.epochs)
        for batch in batches(examples, settings.batch_size, dice)
    ]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, len(plan), settings.warmup_share)
    )
    model.train()
    for batch in plan:
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clip_grad_norm_(weights, settings.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def with_lora(folders: Folders, settings: Settings) -> PeftModel:
    """Load the base and put LoRA weights on all its linear projections: fresh or earlier ones."""
    torch.manual_seed(settings.seed)
    base = AutoModelForCausalLM.from_pretrained(
        folders.checkpoint, local_files_only=True, dtype="float32"
    )
    if folders.earlier is not None:
        return PeftModel.from_pretrained(base, str(folders.earlier), is_trainable=True)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    if not isinstance(model, PeftModel):
        raise TypeError("PEFT made something other than a PeftModel.")
    return model


def save_adapter(model: PeftModel, folder: Path, stop_ids: Sequence[int]) -> None:
    """Write the adapter in float16, with its chat template and generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.half().contiguous()
        for name, weight in get_peft_model_state_dict(model).items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lora = model.peft_config["default"]
    lora.base_model_name_or_path = BASE_NAME
    lora.inference_mode = True
    lora.save_pretrained(str(folder))
    shutil.copyfile(CHAT_TEMPLATE_FILE, folder / "chat_template.jinja")
    write_generation_settings(folder, stop_ids)


def write_generation_settings(folder: Path, stop_ids: Sequence[int]) -> None:
    """Write what ends an answer, and that the likeliest token is taken."""
    generation = {
        "bos_token_id": 2,
        "do_sample": False,
        "eos_token_id": list(stop_ids),
        "pad_token_id": 0,
    }
    (folder / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", encoding="utf-8"
    )


def finetune(folders: Folders, settings: Settings, console: Console) -> None:
    """Train and save, showing progress on the console."""
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folders.checkpoint, local_files_only=True)
    tokenizer.chat_template = CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")
    examples = [encode(pair, tokenizer) for pair in _pairs(folders.revision, settings)]
    model = with_lora(folders, settings)
    console.print(
        f"{len(examples)} pairs, {model.get_nb_trainable_parameters()[0]:,} weights to train"
    )
    train_with_progress(model, examples, settings, console)
    stop_ids: Any = tokenizer.convert_tokens_to_ids(list(STOP_TOKENS))
    save_adapter(model, folders.adapter, stop_ids)
    console.print(
        f"{folders.adapter}: written after {(time.monotonic() - started) / 60:.1f} minutes"
    )


def _pairs(revision: Path | None, settings: Settings) -> tuple[TrainingPair, ...]:
    if revision is None:
        return load_catalogue().training_pairs()
    dice = random.Random(settings.seed)  # noqa: S311 - it draws questions, it guards nothing
    return load_revision(revision).pairs_since(
        load_catalogue(), reminders=settings.reminders, dice=dice
    )


def train_with_progress(
    model: torch.nn.Module, examples: Sequence[Example], settings: Settings, console: Console
) -> None:
    """Train, showing how far it is and every epoch's loss."""
    steps_per_epoch = math.ceil(len(examples) / settings.batch_size)
    losses: list[float] = []
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=steps_per_epoch * settings.epochs)
        for loss in train(model, examples, settings):
            losses.append(loss)
            progress.advance(bar)
            if len(losses) % steps_per_epoch == 0:
                mean = sum(losses[-steps_per_epoch:]) / steps_per_epoch
                progress.console.print(
                    f"epoch {len(losses) // steps_per_epoch}: mean loss {mean:.4f}"
                )


def main() -> int:
    """Be the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="Gemma 3 270M"
    )
    parser.add_argument(
        "--adapter", type=Path, required=True, metavar="OUT_DIR", help="where the adapter goes"
    )
    parser.add_argument(
        "--earlier",
        type=Path,
        metavar="DIR",
        help="an adapter to go on from, instead of a fresh one",
    )
    parser.add_argument(
        "--revision",
        type=Path,
        metavar="FILE",
        help="train on what changed, and on a few questions of each other fault",
    )
    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            flag, type=type(field.default), default=field.default, help=f"default {field.default}"
        )
    chosen = vars(parser.parse_args())
    folders = Folders(**{field.name: chosen.pop(field.name) for field in fields(Folders)})
    finetune(folders, Settings(**chosen), Console(stderr=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
