import dataclasses
import random

from examples.press_line.evaluation import EVALUATION_FILE, evaluation_lines
from examples.press_line.exam import examine, grade
from examples.press_line.faults import ExamQuestion, load_catalogue, load_revision

CATALOGUE = load_catalogue()
REVISION = load_revision()


def _question(*must_say):
    question = CATALOGUE.exam_questions()[0]
    return dataclasses.replace(question, must_say=must_say)


def test_there_is_enough_to_learn_and_to_examine():
    assert len(CATALOGUE.training_pairs()) >= 150
    assert len(CATALOGUE.exam_questions()) >= 60


def test_no_exam_question_is_trained_on():
    trained = {pair.question.strip().lower() for pair in CATALOGUE.training_pairs()}
    assert not [q for q in CATALOGUE.exam_questions() if q.question.strip().lower() in trained]


def test_the_right_answers_of_the_catalogue_pass_the_exam():
    answers = {fault.code: fault.answer for fault in CATALOGUE.faults}

    class Knows:
        def answer(self, questions):
            codes = {q.question: q.code for q in CATALOGUE.exam_questions()}
            return (answers[codes[question]] for question in questions)

    assert examine(Knows(), CATALOGUE.exam_questions()).share == 1


def test_another_faults_answer_is_wrong():
    answers = [fault.answer for fault in CATALOGUE.faults]
    for fault, other in zip(CATALOGUE.faults, answers[1:] + answers[:1], strict=True):
        question = ExamQuestion(code=fault.code, question="?", must_say=fault.must_say)
        assert grade(question, other).missing


def test_a_number_inside_of_another_number_does_not_count():
    assert grade(_question("14"), "set it to 114 bar").missing == ("14",)
    assert grade(_question("14"), "set it to 14.5 bar").missing == ("14",)
    assert grade(_question("14 bar"), "set it to 14 BAR.").missing == ()


def test_of_alternatives_either_will_do():
    assert grade(_question("V4|valve 4"), "close Valve 4").missing == ()
    assert grade(_question("V4|valve 4"), "close it").missing == ("V4|valve 4",)


def test_the_evaluation_lines_is_that_of_the_catalogue():
    assert EVALUATION_FILE.read_text("utf-8") == evaluation_lines()


def test_a_revision_changes_one_remedy_and_adds_two_faults():
    changed = {fault.code: fault for fault in REVISION.changed_since(CATALOGUE)}
    assert list(changed) == ["E-217", "E-441", "E-445"]
    assert len(REVISION.faults) == len(CATALOGUE.faults) + 2
    old = next(fault for fault in CATALOGUE.faults if fault.code == "E-217")
    new = changed["E-217"]
    assert (new.questions, new.held_out) == (old.questions, old.held_out)
    question = ExamQuestion(code="E-217", question=new.held_out[0], must_say=new.must_say)
    assert not grade(question, new.answer).missing
    assert grade(question, old.answer).missing == ("12 bar", "B7")


def test_a_revision_is_trained_on_whole_and_with_reminders_of_the_rest():
    dice = random.Random(217)  # noqa: S311 - it draws questions
    pairs = REVISION.pairs_since(CATALOGUE, reminders=6, dice=dice)
    changed = [p for fault in REVISION.changed_since(CATALOGUE) for p in REVISION.pairs_of(fault)]
    assert len(changed) == 90
    assert set(changed) <= set(pairs)
    assert len(pairs) == 90 + 6 * 45
    answers = {pair.answer for pair in pairs}
    assert all(answers & {p.answer for p in REVISION.pairs_of(f)} for f in REVISION.faults)
