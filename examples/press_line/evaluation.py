"""The dialogues on which exports of the fine-tune are measured.

    python -m examples.press_line.evaluation

writes evaluation.jsonl: held-out questions with the right answers, as the exporter's
`--eval` reads them. A fine-tune on short answers is no longer a model of general
English, so its export is compared with it on what it is for (docs/adr/0003).
"""

import json
import sys
from pathlib import Path

from examples.press_line.faults import load_catalogue

EVALUATION_FILE = Path(__file__).with_name("evaluation.jsonl")
QUESTIONS = 23


def evaluation_lines() -> str:
    """Return every fourth held-out question with its answer, a dialogue a line."""
    catalogue = load_catalogue()
    faults = {fault.code: fault for fault in catalogue.faults}
    questions = catalogue.exam_questions()
    lines = []
    for question in questions[:: len(questions) // QUESTIONS]:
        answer = faults[question.code].answer_to(question.question)
        messages = [
            {"role": "user", "content": question.question},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    EVALUATION_FILE.write_text(evaluation_lines(), encoding="utf-8")
    sys.stdout.write(f"{EVALUATION_FILE.name} is written\n")
