"""The exam that asks whether a model knows the plant.

    python -m examples.press_line.exam --served MODEL [--address ADDRESS] [--json] [-v]
    python -m examples.press_line.exam --checkpoint DIR [--adapter DIR] [--json] [-v]

Both take `--revision FILE`, which asks what is right since that revision.
An answer is right when it contains every key of the fault's `must_say` as a whole word (of "a|b",
either), whatever the case and spacing. The keys are numbers and names of this plant's parts, so
that a model which has not learned the plant cannot guess them.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from outpost_runtime.client import DEFAULT_ADDRESS

from examples.press_line.answerers import Answerer, CheckpointAnswerer, ServedAnswerer
from examples.press_line.faults import ExamQuestion, load_catalogue, load_revision


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedAnswer:
    """One answer and the keys that it lacks; none lacking means right."""

    question: ExamQuestion
    answer: str
    missing: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the answer says all it must."""
        return not self.missing


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A graded exam."""

    answers: tuple[GradedAnswer, ...]

    @property
    def right(self) -> int:
        """How many answers are right."""
        return sum(answer.right for answer in self.answers)

    @property
    def share(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.right / len(self.answers) if self.answers else 0.0

    def __str__(self) -> str:
        """Give the score as one line."""
        return f"{self.right} of {len(self.answers)} right ({self.share:.1%})".replace("%", " %")

    def to_json(self) -> str:
        """Give the score and every answer as JSON."""
        answers = [asdict(answer) | {"right": answer.right} for answer in self.answers]
        document = {
            "right": self.right,
            "questions": len(self.answers),
            "share": self.share,
            "answers": answers,
        }
        return json.dumps(document, indent=2, ensure_ascii=False)


def grade(question: ExamQuestion, answer: str) -> GradedAnswer:
    """Grade one answer."""
    missing = tuple(key for key in question.must_say if not _says(answer, key))
    return GradedAnswer(question=question, answer=answer, missing=missing)


def _says(answer: str, key: str) -> bool:
    return any(_contains(answer, alternative) for alternative in key.split("|"))


def _contains(answer: str, words: str) -> bool:
    # "14" is said neither by "114" nor by "14.5" nor by "0.14", and "A1" not by "A12".
    pattern = r"\s*".join(re.escape(word) for word in words.split())
    return re.search(rf"(?<![\w.]){pattern}(?!\w|\.\d)", answer, re.IGNORECASE) is not None


def examine(answerer: Answerer, questions: Sequence[ExamQuestion]) -> Result:
    """Put the questions to an answerer and grade what it says."""
    answers = answerer.answer([question.question for question in questions])
    return Result(
        answers=tuple(
            grade(question, answer) for question, answer in zip(questions, answers, strict=True)
        )
    )


def describe_wrong(result: Result) -> str:
    """List the wrong answers, each with what it lacks."""
    return "".join(
        f"{wrong.question.code}  {wrong.question.question}\n"
        f"       answered: {wrong.answer}\n"
        f"       missing:  {', '.join(wrong.missing)}\n"
        for wrong in result.answers
        if not wrong.right
    )


def main() -> int:
    """Be the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", type=Path, metavar="DIR", help="a transformers checkpoint")
    who.add_argument("--served", metavar="MODEL", help="a model that 'outpost serve' serves")
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help="of the server (%(default)s)")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter for it")
    parser.add_argument(
        "--revision", type=Path, metavar="FILE", help="ask what is right since this revision"
    )
    parser.add_argument(
        "--json", action="store_true", help="write the score and all answers as JSON"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="list the wrong answers")
    arguments = parser.parse_args()
    answerer: Answerer
    if arguments.served:
        answerer = ServedAnswerer(address=arguments.address, model=arguments.served)
    else:
        answerer = CheckpointAnswerer.load(arguments.checkpoint, arguments.adapter)
    revision = arguments.revision
    catalogue = load_catalogue() if revision is None else load_revision(revision)
    result = examine(answerer, catalogue.exam_questions())
    if arguments.json:
        sys.stdout.write(f"{result.to_json()}\n")
        return 0
    sys.stdout.write((describe_wrong(result) if arguments.verbose else "") + f"{result}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
