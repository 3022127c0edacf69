"""A text bundle, opened: tokenizer, chat template, decoder and engine."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from outpost_runtime.bundle import Bundle
from outpost_runtime.errors import BundleError, InvalidInputError, UnsupportedError
from outpost_runtime.interface import TextInterface
from outpost_runtime.priority import Precedence
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Allocate
from outpost_runtime.text import prefix_file
from outpost_runtime.text.adapter_shelf import AdapterShelf, ShelvedAdapter
from outpost_runtime.text.chat import ChatTemplate, Message
from outpost_runtime.text.constraint import Constraint, ConstraintCompiler, ConstraintKind
from outpost_runtime.text.decoder import Decoder, key_value_bytes_per_token
from outpost_runtime.text.engine import TextEngine
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.memory import KeyValueMemory, plan_memory
from outpost_runtime.text.prefix_cache import PrefixCache
from outpost_runtime.text.request import Sampling
from outpost_runtime.tokenizer import MAX_TEXT_CHARACTERS, Tokenizer

_EXACT_TARGETS = ("cpu-fp32",)
"""Targets for which a run of several tokens gives the tokens that single runs give."""

LAST_RUN_SECONDS = 10.0
"""What runs when a model is closed has so long to end by itself."""

_PrefixAct = Callable[[Path, str, PrefixCache, KeyValueMemory, bytes | None], None]


class TextModel:
    """What serves one text bundle.

    Args:
        bundle: Its interface is a :class:`TextInterface`.
        open_session: Opens a graph of the bundle by its file name.
        limits: What it may take of this machine.
        precedence: What its engine knows of other models' engines.
        allocate: Of what its sessions bind.

    Raises:
        BundleError: A file of the bundle is not what it should be.
        ConfigurationError: The limits leave no room for one sequence.
    """

    def __init__(
        self,
        bundle: Bundle,
        interface: TextInterface,
        open_session: Callable[[str], Session],
        limits: TextLimits,
        precedence: Precedence | None = None,
        allocate: Allocate = np.zeros,
    ) -> None:
        self.bundle = bundle
        self.interface = interface
        self.tokenizer = Tokenizer(bundle.read(interface.tokenizer))
        self._template = _template(bundle, interface)
        self.sampling = _default_sampling(bundle, interface)
        self._session = open_session(interface.model)
        try:
            self.decoder = _decoder(self._session, interface.context_length, limits, allocate)
            self.engine = TextEngine(
                self.decoder,
                decode_text=self.tokenizer.decode,
                end_tokens=frozenset(interface.end_tokens),
                bundle=bundle.digest,
                queue_limit=limits.queue_limit,
                speculate=bundle.manifest.target in _EXACT_TARGETS,
                precedence=precedence,
            )
        except BaseException:
            self._session.close()  # or its process would go on, and be started again
            raise
        self.adapters = AdapterShelf(
            bundle,
            interface.adapters,
            self.engine,
            self.decoder,
            lambda: open_session(interface.adapters.model if interface.adapters else ""),
            capacity=limits.adapters,
            allocate=allocate,
        )
        self._constraints = ConstraintCompiler(
            lambda: bundle.read(interface.tokenizer),
            vocabulary_size=self.decoder.vocabulary_size,
            end_tokens=frozenset(interface.end_tokens),
        )
        self._closing = threading.Lock()
        self._closed = False
        self._limits = limits
        try:
            self._with_prefixes(prefix_file.load)
        except BaseException:  # for which there may be no memory
            self._free()
            raise

    def prompt_ids(
        self, prompt: str | Sequence[Message], adapter: ShelvedAdapter | None = None
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt, or of a chat rendered with a template.

        Args:
            adapter: What answers; it may have a chat template of its own.

        Raises:
            InvalidInputError: The text is too long, or the template refuses the messages.
            UnsupportedError: It is a chat and there is no template.
        """
        if isinstance(prompt, str):
            return self._encode(prompt, add_special_tokens=True)
        template = (adapter and adapter.template) or self._template
        if template is None:
            raise UnsupportedError(
                f"The model '{self.bundle.manifest.name}' has no chat template.",
                hint="Send a plain prompt.",
            )
        # The template writes the model's markers itself.
        return self._encode(template.render(prompt), add_special_tokens=False)

    def load_adapter(self, bundle: Bundle) -> None:
        """Serve an adapter's bundle, verified before, beside the base; see the shelf.

        Raises:
            OutpostError: It cannot be served with this base.
        """
        self.adapters.load(bundle, self.interface.special_tokens)

    def knows_constraint(self, kind: ConstraintKind, text: str) -> bool:
        """Whether a form was tried lately, so that :meth:`constraint` need not; at once."""
        return self._constraints.knows(kind, text)

    def constraint(self, kind: ConstraintKind, text: str) -> Constraint:
        """Return the form that an answer must have; may take seconds.

        Raises:
            InvalidInputError: The text is no schema, regular expression or grammar.
        """
        return self._constraints.compile(kind, text)

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """End the engine's thread and free the model.

        Args:
            drain_seconds: How long running answers may go on before that; new ones are refused.
        """
        self.engine.drain(drain_seconds)
        late = threading.Timer(LAST_RUN_SECONDS, self._close_sessions)
        late.daemon = True
        late.start()
        self._with_prefixes(prefix_file.save)
        self._free()
        late.cancel()

    def _free(self) -> None:
        self.engine.close()
        self._close_sessions()
        self._constraints.close()

    def _close_sessions(self) -> None:
        """Free the graphs, once; this ends a run that hangs in another process."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self.adapters.close()
            self._session.close()

    def _with_prefixes(self, act: _PrefixAct) -> None:
        folder, key = self._limits.prefix_folder, self._limits.prefix_key
        if folder is not None:
            self.engine.with_prefixes(
                lambda cache, memory: act(folder, self.bundle.digest, cache, memory, key)
            )

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInputError(
                f"The prompt has {len(text):,} characters; "
                f"at most {MAX_TEXT_CHARACTERS:,} are read."
            )
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _decoder(
    session: Session, context_length: int, limits: TextLimits, allocate: Allocate
) -> Decoder:
    plan = plan_memory(
        limits, bytes_per_token=key_value_bytes_per_token(session), row_tokens=context_length
    )
    return Decoder(
        session, rows=plan.rows, max_length=context_length, blocks=plan.blocks, allocate=allocate
    )


def _template(bundle: Bundle, interface: TextInterface) -> ChatTemplate | None:
    if interface.chat_template is None:
        return None
    source = bundle.read(interface.chat_template).decode("utf-8")
    return ChatTemplate(source, interface.special_tokens)


def _default_sampling(bundle: Bundle, interface: TextInterface) -> Sampling:
    try:
        return Sampling.of_defaults(interface.defaults)
    except InvalidInputError as error:
        name = bundle.manifest.name
        raise BundleError(
            f"The generation defaults of '{name}' are wrong: {error.message}"
        ) from error
