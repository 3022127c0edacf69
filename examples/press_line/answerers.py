"""Who sits the exam. An answerer turns a batch of questions into answers, in the same order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from outpost.v1 import text_pb2
from outpost_runtime.client import Client

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
PLAIN_PROMPT = "<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
MAX_NEW_TOKENS = 64
STOP_TOKENS = ("<eos>", "<end_of_turn>")


class Answerer(Protocol):
    """Answers questions."""

    def answer(self, questions: Sequence[str]) -> Iterator[str]:
        """Yield one answer per question, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedAnswerer:
    """A model behind Outpost's gRPC API, decoded greedily.

    Attributes:
        template: The chat format to write into a plain prompt, for a model without a template
            of its own; None sends a chat.
    """

    address: str
    model: str
    template: str | None = None

    def answer(self, questions: Sequence[str]) -> Iterator[str]:
        """Yield one answer per question, in order."""
        with Client(self.address) as client:
            for question in questions:
                responses = client.generate(self._request(question))
                yield "".join(response.piece.text for response in responses).strip()

    def _request(self, question: str) -> text_pb2.GenerateRequest:
        request = text_pb2.GenerateRequest(model=self.model)
        request.parameters.max_new_tokens = MAX_NEW_TOKENS
        request.parameters.temperature = 0
        if self.template is None:
            request.chat.messages.add(role="user", content=question)
        else:
            request.prompt = self.template.format(question=question)
        return request


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointAnswerer:
    """A transformers checkpoint, perhaps with a LoRA adapter, decoded greedily."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    batch_size: int = 16

    @classmethod
    def load(cls, checkpoint: Path, adapter: Path | None = None) -> "CheckpointAnswerer":
        """Load a checkpoint folder in float32 and merge the adapter into it."""
        # Imported here because an exam of a served model needs neither of them.
        from peft import PeftModel  # noqa: PLC0415
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint, local_files_only=True, padding_side="left"
        )
        tokenizer.chat_template = CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, local_files_only=True, dtype="float32"
        )
        if adapter is not None:
            model = PeftModel.from_pretrained(
                model, str(adapter), local_files_only=True
            ).merge_and_unload()
        model.requires_grad_(requires_grad=False)
        return cls(model=model, tokenizer=tokenizer)

    def answer(self, questions: Sequence[str]) -> Iterator[str]:
        """Yield one answer per question, in order."""
        for start in range(0, len(questions), self.batch_size):
            yield from self._answer_batch(questions[start : start + self.batch_size])

    def _answer_batch(self, questions: Sequence[str]) -> list[str]:
        chats = [[{"role": "user", "content": question}] for question in questions]
        prompts: Any = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        model: Any = self.model
        generated = model.generate(
            **prompts,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=self.tokenizer.convert_tokens_to_ids(list(STOP_TOKENS)),
        )
        answers = generated[:, prompts["input_ids"].shape[1] :]
        return [
            text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        ]
