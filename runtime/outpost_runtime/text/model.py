"""A text bundle, opened: tokenizer, chat template, decoder and engine."""

from collections.abc import Callable, Sequence

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, InvalidInputError, UnsupportedError
from outpost_runtime.interface import TextInterface
from outpost_runtime.sessions import Session
from outpost_runtime.text.chat import ChatTemplate, Message
from outpost_runtime.text.decoder import Decoder, key_value_bytes_per_token
from outpost_runtime.text.engine import TextEngine
from outpost_runtime.text.memory import TextLimits, plan_memory
from outpost_runtime.text.request import Sampling
from outpost_runtime.tokenizer import MAX_TEXT_CHARACTERS, Tokenizer

_EXACT_TARGETS = ("cpu-fp32",)
"""Targets for which a run of several tokens gives the tokens that single runs give."""


class TextModel:
    """What serves one text bundle.

    Args:
        bundle: Its interface is a :class:`TextInterface`.
        open_session: Opens the bundle's model; called once.
        limits: What it may take of this machine.

    Raises:
        BundleError: A file of the bundle is not what it should be.
        ConfigurationError: The limits leave no room for one sequence.
    """

    def __init__(
        self,
        bundle: Bundle,
        interface: TextInterface,
        open_session: Callable[[], Session],
        limits: TextLimits,
    ) -> None:
        self.bundle = bundle
        self.interface = interface
        self.tokenizer = Tokenizer(bundle.path(interface.tokenizer))
        self._template = _template(bundle, interface)
        self.sampling = _default_sampling(bundle, interface)
        self._session = open_session()
        plan = plan_memory(
            limits,
            bytes_per_token=key_value_bytes_per_token(self._session),
            row_tokens=interface.context_length,
        )
        self.decoder = Decoder(
            self._session, rows=plan.rows, max_length=interface.context_length, blocks=plan.blocks
        )
        self.engine = TextEngine(
            self.decoder,
            decode_text=self.tokenizer.decode,
            end_tokens=frozenset(interface.end_tokens),
            bundle=bundle.digest,
            queue_limit=limits.queue_limit,
            speculate=bundle.manifest.target in _EXACT_TARGETS,
        )

    def prompt_ids(self, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        """Return the token ids of a prompt, or of a chat rendered with the bundle's template.

        Raises:
            InvalidInputError: The text is too long, or the template refuses the messages.
            UnsupportedError: It is a chat and the bundle has no template.
        """
        if isinstance(prompt, str):
            return self._encode(prompt, add_special_tokens=True)
        if self._template is None:
            raise UnsupportedError(
                f"The model '{self.bundle.manifest.name}' has no chat template.",
                hint="Send a plain prompt.",
            )
        # The template writes the model's markers itself.
        return self._encode(self._template.render(prompt), add_special_tokens=False)

    def close(self) -> None:
        """End the engine's thread and free the model."""
        self.engine.close()
        self._session.close()

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInputError(
                f"The prompt has {len(text):,} characters; "
                f"at most {MAX_TEXT_CHARACTERS:,} are read."
            )
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _template(bundle: Bundle, interface: TextInterface) -> ChatTemplate | None:
    if interface.chat_template is None:
        return None
    source = bundle.path(interface.chat_template).read_text("utf-8")
    return ChatTemplate(source, interface.special_tokens)


def _default_sampling(bundle: Bundle, interface: TextInterface) -> Sampling:
    try:
        return Sampling.of_defaults(interface.defaults)
    except InvalidInputError as error:
        name = bundle.manifest.name
        raise BundleError(
            f"The generation defaults of '{name}' are wrong: {error.message}"
        ) from error
