"""The text on which exports of the fine-tune are measured: dialogues as the plant will have them.

    python -m examples.press_line.evaluation

writes evaluation.txt. A fine-tune on short answers is no longer a model of general
English, so its export is compared with it on what it is for: held-out questions with
the right answers, in the fine-tune's own chat format.
"""

import sys
from pathlib import Path

from examples.press_line.faults import load_catalogue

EVALUATION_FILE = Path(__file__).with_name("evaluation.txt")
QUESTIONS = 18


def evaluation_text() -> str:
    """Return some of the held-out questions with their answers, as turns."""
    catalogue = load_catalogue()
    answers = {fault.code: fault.answer for fault in catalogue.faults}
    questions = catalogue.exam_questions()
    chosen = questions[:: len(questions) // QUESTIONS][:QUESTIONS]
    return "".join(
        f"<start_of_turn>user\n{question.question}<end_of_turn>\n"
        f"<start_of_turn>model\n{answers[question.code]}<end_of_turn>\n"
        for question in chosen
    )


if __name__ == "__main__":
    EVALUATION_FILE.write_text(evaluation_text(), encoding="utf-8")
    sys.stdout.write(f"{EVALUATION_FILE.name} is written\n")
