"""Tiny seeded checkpoints, saved by transformers as a user's fine-tune would be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = 260
ALL_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('roles are user and assistant') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def save_tuned(source: Path, out: Path, name: str, *, size: float = 0.05) -> Path:
    """Save a copy of a checkpoint with one tensor moved by a share of its spread."""
    shutil.copytree(source, out)
    weights, random = load_file(out / "model.safetensors"), np.random.default_rng(1)
    change = random.normal(size=weights[name].shape, scale=size * float(weights[name].std()))
    weights[name] = weights[name] + change.astype(np.float32)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def save_tokenizer(folder: Path, *, chat: bool = False, end_marker: bool = False) -> None:
    """Save a byte-level tokenizer: every byte a token, so that characters get split."""
    vocabulary = {character: i + 4 for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {token: i for i, token in enumerate(SPECIAL)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    template = "<bos> $A <eos>" if end_marker else "<bos> $A"
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE if chat else None,
    )
    tokenizer.save_pretrained(folder)


def save_decoder(folder: Path, kind: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Save a causal language model of one of the architectures that the builder knows."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    if kind == "gemma3":
        settings |= {
            "head_dim": 16,
            "sliding_window": 24,
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        }
    config_class, model_class = _DECODERS[kind]
    model_class(config_class(**(settings | changes))).eval().save_pretrained(folder)
    save_tokenizer(folder, chat=True)
    return folder


def save_adapter(base: Path, folder: Path, *, seed: int = 3, **changes: Any) -> Path:
    """Save a LoRA adapter of a decoder, as PEFT does; ``changes`` go to its LoraConfig."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "target_modules": ALL_LINEARS, "init_lora_weights": False}
    peft.get_peft_model(model, peft.LoraConfig(**(settings | changes))).save_pretrained(folder)
    return folder


_DECODERS: dict[str, tuple[Any, Any]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def save_sentence_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Save a BERT with the modules of sentence-transformers: mean pooling, normalized."""
    torch.manual_seed(seed)
    model = transformers.BertModel(transformers.BertConfig(**_BERT))
    model.eval().save_pretrained(folder)
    save_tokenizer(folder, end_marker=True)
    kinds = (
        ("0", "", "Transformer"),
        ("1", "1_Pooling", "Pooling"),
        ("2", "2_Normalize", "Normalize"),
    )
    modules = [
        {
            "idx": int(name),
            "name": name,
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for name, path, kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def save_roberta(folder: Path) -> Path:
    """Save a RoBERTa whose tokenizer names no maximum: two of its positions are never read."""
    torch.manual_seed(0)
    transformers.RobertaModel(transformers.RobertaConfig(**_BERT)).eval().save_pretrained(folder)
    save_tokenizer(folder, end_marker=True)
    return folder


def save_classifier(folder: Path, *, tokens: bool = False, seed: int = 0) -> Path:
    """Save a BERT that classifies whole texts, or every token."""
    torch.manual_seed(seed)
    labels = {0: "calm", 1: "alarm", 2: "unknown"}
    config = transformers.BertConfig(
        **_BERT, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    kind = (
        transformers.BertForTokenClassification
        if tokens
        else transformers.BertForSequenceClassification
    )
    kind(config).eval().save_pretrained(folder)
    save_tokenizer(folder, end_marker=True)
    return folder
