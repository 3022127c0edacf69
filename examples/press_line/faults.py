"""The fault catalogue: faults.toml as checked objects, and the questions that it yields.

A revision, such as revision_2.toml, has only the faults that changed or are new.

Training questions are the hand-written `questions` of every fault and the catalogue's
`question_templates`, filled in. Exam questions are the `held_out` ones; the catalogue is refused
when one of them is also a training question.
"""

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CATALOGUE_FILE = Path(__file__).with_name("faults.toml")
REVISION_FILE = Path(__file__).with_name("revision_2.toml")

_PARTS = frozenset({"fault", "question_templates"})
_TEXTS = frozenset({"code", "title", "cause", "remedy"})
_LISTS = frozenset({"must_say", "questions", "held_out"})


class CatalogueError(ValueError):
    """The catalogue breaks a rule; the text names the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault code. In `must_say`, "a|b" means that either will do."""

    code: str
    title: str
    cause: str
    remedy: str
    must_say: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def answer(self) -> str:
        """What the assistant should answer to a symptom."""
        return f"{self.headline} ({self.code}): {self.remedy}"

    def answer_to(self, question: str) -> str:
        """What the assistant should answer to this question.

        A question that names the code is answered from the code on. Any other is answered with the
        title first: its words are near those of a symptom, while a code's digits are near nothing,
        and a small model generalizes far better when it may name the fault before the code.
        """
        return f"{self.code}: {self.remedy}" if self.code in question else self.answer

    @property
    def headline(self) -> str:
        """The title as it begins a sentence."""
        return self.title[0].upper() + self.title[1:]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], path: str) -> "Fault":
        """Check one table of the catalogue.

        Raises:
            CatalogueError: A key is missing, unknown or of the wrong type.
        """
        if set(fields) != _TEXTS | _LISTS:
            raise CatalogueError(
                f"{path}: missing or unknown keys {sorted(set(fields) ^ (_TEXTS | _LISTS))}."
            )
        texts: dict[str, Any] = {key: _text(fields[key], f"{path}.{key}") for key in _TEXTS}
        lists: dict[str, Any] = {key: _texts(fields[key], f"{path}.{key}") for key in _LISTS}
        return cls(**texts, **lists)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPair:
    """One question and the answer to learn."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamQuestion:
    """One question that was never trained on, and what an answer must say."""

    code: str
    question: str
    must_say: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """All faults of the line."""

    faults: tuple[Fault, ...]
    question_templates: tuple[str, ...]

    def training_pairs(self) -> tuple[TrainingPair, ...]:
        """All questions to train on, each with its answer."""
        return tuple(pair for fault in self.faults for pair in self.pairs_of(fault))

    def pairs_of(self, fault: Fault) -> tuple[TrainingPair, ...]:
        """A fault's questions to train on, each with its answer."""
        return tuple(
            TrainingPair(question=question, answer=fault.answer_to(question))
            for question in (*fault.questions, *self._from_templates(fault))
        )

    def changed_since(self, earlier: "Catalogue") -> tuple[Fault, ...]:
        """The faults that are new or different."""
        return tuple(fault for fault in self.faults if fault not in earlier.faults)

    def pairs_since(
        self, earlier: "Catalogue", *, reminders: int, dice: random.Random
    ) -> tuple[TrainingPair, ...]:
        """What to train on whoever knows the earlier catalogue.

        All questions of the faults that are new or different, and `reminders` of every other one:
        a model that sees none of them again forgets them.
        """
        changed = self.changed_since(earlier)
        return tuple(
            pair
            for fault in self.faults
            for pair in (
                self.pairs_of(fault)
                if fault in changed
                else dice.sample(self.pairs_of(fault), reminders)
            )
        )

    def exam_questions(self) -> tuple[ExamQuestion, ...]:
        """All held-out questions."""
        return tuple(
            ExamQuestion(code=fault.code, question=question, must_say=fault.must_say)
            for fault in self.faults
            for question in fault.held_out
        )

    def _from_templates(self, fault: Fault) -> tuple[str, ...]:
        return tuple(
            template.format(code=fault.code, title=fault.headline, cause=fault.cause)
            for template in self.question_templates
        )


def load_catalogue(path: Path = CATALOGUE_FILE) -> Catalogue:
    """Read and check the catalogue.

    Raises:
        CatalogueError: It breaks a rule.
    """
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    if set(document) != _PARTS:
        raise CatalogueError(
            f"{path.name}: missing or unknown keys {sorted(set(document) ^ _PARTS)}."
        )
    catalogue = Catalogue(
        faults=tuple(
            Fault.from_dict(fields, f"fault[{index}]")
            for index, fields in enumerate(document["fault"])
        ),
        question_templates=_texts(document["question_templates"], "question_templates"),
    )
    _check(catalogue)
    return catalogue


def load_revision(path: Path = REVISION_FILE) -> Catalogue:
    """Read the catalogue with the faults of a revision in it, which replace those of their codes.

    Raises:
        CatalogueError: It breaks a rule.
    """
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    if set(document) != {"fault"}:
        raise CatalogueError(f"{path.name}: expected tables [[fault]] and nothing else.")
    faults = {fault.code: fault for fault in load_catalogue().faults}
    for index, fields in enumerate(document["fault"]):
        fault = Fault.from_dict(fields, f"{path.name}: fault[{index}]")
        faults[fault.code] = fault
    catalogue = replace(load_catalogue(), faults=tuple(faults.values()))
    _check(catalogue)
    return catalogue


def _check(catalogue: Catalogue) -> None:
    codes = [fault.code for fault in catalogue.faults]
    if len(codes) != len(set(codes)):
        raise CatalogueError("fault: two faults have the same code.")
    trained = {pair.question.casefold() for pair in catalogue.training_pairs()}
    for question in catalogue.exam_questions():
        if question.question.casefold() in trained:
            raise CatalogueError(
                f"{question.code}: an exam question is trained on: {question.question}"
            )


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise CatalogueError(f"{path}: expected a text.")
    return value


def _texts(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise CatalogueError(f"{path}: expected a list of texts.")
    return tuple(_text(item, f"{path}[{index}]") for index, item in enumerate(value))
