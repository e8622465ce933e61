"""ProntoQA: generated questions have the published skeleton and shares; hardened, the one look-up that solves it is a guess."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from pydantic import ValidationError
from shortcuts import DEDUCTION_RULES, Deduction, read_prontoqa, score

from cl_softcot.errors import UserError
from cl_softcot.tasks.base import SPLITS, Example
from cl_softcot.tasks.prontoqa import CONCEPTS, ENTITIES, PROPERTIES, ProntoQA

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "prontoqa"
SIZES = {"train": 9000, "valid": 200, "test": 800}
FAMILY_OF = {word: family for family in PROPERTIES for word in family}


def make(name: str = "mine", **settings) -> ProntoQA:
    return ProntoQA(ProntoQA.Settings(**settings), name)


@cache
def generated(variant: str = "original", n: int = 10_000) -> tuple[Example, ...]:
    return tuple(make(variant=variant).examples("train", n, 0))


@cache
def published() -> tuple[Example, ...]:
    if not PUBLISHED.is_dir():
        pytest.skip(f"SKIPPED: no ProntoQA files in {PUBLISHED}: nothing is compared with the published questions")
    task = make(path=str(PUBLISHED))
    return tuple(e for split in SPLITS for e in task.examples(split, task.count(split), 0))


@cache
def _read(question: str, answer: str) -> Deduction:
    return read_prontoqa({"question": question, "answer": answer})


def problem(example: Example) -> Deduction:
    return _read(example.question, example.answer)


def raw(examples) -> dict:
    """As the generator writes its file."""
    rows = {}
    for i, e in enumerate(examples, 1):
        told, query = e.question.split(" True or false: ")
        proof = [part + "." for step in e.steps for part in step.removesuffix(".").split(". ")]
        inner = {"question": told, "query": f"True or false: {query}", "chain_of_thought": proof, "answer": e.answer}
        rows[f"example{i}"] = {"test_example": inner}
    return rows


# --------------------------------------------------------------------------------------------------------- skeletons


def said_of(read: Deduction) -> dict[str, list[tuple[str, bool]]]:
    found: dict[str, list[tuple[str, bool]]] = {}
    for subject, what, negated in read.rules:
        found.setdefault(subject, []).append((what, negated))
    return found


def properties_of(said: dict, node: str) -> list[str]:
    return [what for what, _ in said.get(node, []) if what in FAMILY_OF]


def concepts_of(said: dict, node: str) -> list[str]:
    return [what for what, _ in said.get(node, []) if what not in FAMILY_OF]


def check_proof(example: Example) -> list[str]:
    """The chain c5..c1, after the written proof has been held against the question, sentence by sentence."""
    read, told = problem(example), example.question.split(" True or false: ")[0]
    sentences = {part + "." for part in told.removesuffix(".").split(". ")}
    person = next(name for name in ENTITIES if name.lower() == read.person)
    *pairs, conclusion = example.steps
    here, chain = None, []
    for i, pair in enumerate(pairs):
        known, rule = (part + "." for part in pair.removesuffix(".").split(". "))
        assert rule in sentences and (i > 0 or known in sentences)
        assert known.startswith(f"{person} is a") and (here is None or known.removesuffix(".").endswith(f" {here}"))
        subject, what, negated = next(
            r for s, r in zip(told.removesuffix(".").split(". "), read.rules, strict=True) if s + "." == rule
        )
        assert known.removesuffix(".").endswith(f" {subject}")
        chain.append(subject)
        here = what
    assert here == read.asked and conclusion == f"{person} is {'not ' if negated else ''}{read.asked}."
    assert example.answer == str(negated == read.claim_negated)
    assert len(chain) == example.meta["hops"] == 5 and chain == example.meta["chain"]
    return chain


def check_original(example: Example) -> None:
    chain, read = check_proof(example), problem(example)
    said = said_of(read)
    assert len(read.rules) == 25 and [r[0] for r in read.rules[-2:]] == [read.person] * 2 and len(said[read.person]) == 2
    (s1,) = (c for c, _ in said[read.person] if c != chain[0])
    parents, c0 = [], None
    for i, node in enumerate(chain):
        assert len(properties_of(said, node)) == 1 and len(said[node]) == 3
        if i < 4:
            parents += [c for c in concepts_of(said, node) if c != chain[i + 1]]
        else:
            (parent,) = (c for c in concepts_of(said, node) if c in said)  # of c1's two, c0 is the one of which nothing is said
            (c0,) = (c for c in concepts_of(said, node) if c != parent)
            parents.append(parent)
    assert len(parents) == 5 and all(len(said[p]) == 1 == len(properties_of(said, p)) for p in parents)
    (s0,) = concepts_of(said, s1)
    assert len(properties_of(said, s1)) == 1 and c0 not in said and s0 not in said
    (trap,) = (subject for subject, _, _ in read.deciding() if subject != chain[-1])
    assert read.mentions(trap) == 1 and dict(said[trap])[read.asked] != dict(said[chain[-1]])[read.asked]
    assert len({*chain, *parents, c0, s1, s0, trap}) == 14 and {*chain, *parents, c0, s1, s0, trap} <= set(CONCEPTS)
    words = {what for _, what, _ in read.rules if what in FAMILY_OF}
    assert len(words) == 11 == len({FAMILY_OF[word] for word in words})


def test_original_questions_have_the_skeleton():
    for example in generated()[:500]:
        check_original(example)
        assert (example.meta["source"], example.meta["variant"]) == ("generated", "original")


@pytest.mark.shared
@pytest.mark.slow
def test_every_published_question_has_the_skeleton():
    assert len(published()) == 10_000
    for example in published():
        check_original(example)
        assert example.meta["source"] == "file"


def test_hardened_questions_are_two_chains_of_one_shape():
    for example in generated("hardened")[:300]:
        chain, read = check_proof(example), problem(example)
        said, people = said_of(read), [r[0] for r in read.rules[-2:]]
        assert len(read.rules) == 26 and read.person in people and len(set(people)) == 2
        assert all(len(said[person]) == 1 for person in people)
        (other,) = set(people) - {read.person}
        shapes, reached = [], []
        for person in (read.person, other):
            nodes = read.graph().distances(person)
            (end,) = (r[0] for r in read.deciding() if r[0] in nodes)
            shapes.append(
                sorted(
                    (d, len(concepts_of(said, n)), len(properties_of(said, n)), n == end)
                    for n, d in nodes.items()
                    if n not in FAMILY_OF and n != person
                )
            )
            reached.append({n for n in nodes if n in CONCEPTS})
        assert shapes[0] == shapes[1] and len(shapes[0]) == 8 and not reached[0] & reached[1]
        assert len(read.deciding()) == 2 and len({negated for _, _, negated in read.deciding()}) == 2
        assert chain[-1] in reached[0]
        words = [what for _, what, _ in read.rules if what in FAMILY_OF and what != read.asked]
        assert len(words) == 8 == len({FAMILY_OF[w] for w in words} - {FAMILY_OF[read.asked]})


# ------------------------------------------------------------------------------------------------------------ shares


def shares(examples) -> dict[str, tuple[int, int]]:
    """{what: (how often, of how many)}."""
    yes, total = Counter(), Counter()

    def count(name: str, holds: bool, n: int = 1) -> None:
        yes[name] += holds * n
        total[name] += n

    for example in examples:
        read, chain = problem(example), example.meta["chain"]
        said = said_of(read)
        s1 = next(c for c, _ in said[read.person] if c != chain[0])
        for subject, what, negated in read.rules:
            if what in FAMILY_OF:
                on_chain = "negated: end" if subject == chain[-1] else "negated: on the way" if subject in chain else None
                off_chain = "negated: side" if subject == s1 else "negated: parents" if len(said[subject]) == 1 else None
                if read.mentions(subject) > 1:
                    count(on_chain or off_chain, negated)
        count("answer is True", read.answer)
        count("claim is negated", read.claim_negated)
        count("premise of the chain comes first", read.rules[-2][1] == chain[0])
        singular = example.question.count("Each ") + example.question.count("Every ")
        count("singular", True, singular)
        count("singular", False, 23 - singular)
        count("Each", True, example.question.count("Each "))
        count("Each", False, singular - example.question.count("Each "))
        count("the trap comes first", read.deciding()[0][0] != chain[-1])
    return {name: (yes[name], total[name]) for name in total}


# Of the 10,000 published questions; the test below holds them against the file.
REAL = {
    "negated: parents": (16398, 50000),
    "negated: on the way": (10937, 40000),
    "negated: end": (4658, 10000),
    "negated: side": (3289, 10000),
    "answer is True": (4917, 10000),
    "claim is negated": (5015, 10000),
    "premise of the chain comes first": (5054, 10000),
    "singular": (115326, 230000),
    "Each": (57732, 115326),
    "the trap comes first": (5071, 10000),
}


@pytest.mark.shared
def test_the_figures_of_the_published_questions_are_theirs():
    assert shares(published()) == REAL
    lengths = [len(e.question) for e in published()]
    assert (min(lengths), max(lengths)) == (582, 671) and round(statistics.mean(lengths), 1) == 622.7


def test_generated_questions_have_the_published_shares():
    """Each within 3.5 standard errors of a difference between two sets of 10,000 questions."""
    ours = shares(generated())
    assert set(ours) == set(REAL)
    for name, (yes, n) in ours.items():
        share, real = yes / n, REAL[name][0] / REAL[name][1]
        error = math.sqrt(real * (1 - real) * (1 / n + 1 / REAL[name][1]))
        assert abs(share - real) < 3.5 * error, (name, share, real)
    lengths = [len(e.question) for e in generated()]
    assert abs(statistics.mean(lengths) - 622.698) < 3.5 * 12.36 * math.sqrt(2 / 10_000)
    assert abs(statistics.stdev(lengths) / 12.364 - 1) < 0.05


def test_every_word_is_drawn_as_often_as_its_like():
    """Entities and concepts evenly; a family of properties evenly, and its words among themselves."""
    read = [problem(e) for e in generated()]

    def even(counts: Counter, names) -> None:
        expected = sum(counts[name] for name in names) / len(names)
        chi = sum((counts[name] - expected) ** 2 / expected for name in names)
        assert chi < len(names) - 1 + 4 * math.sqrt(2 * (len(names) - 1)), names

    even(Counter(r.person for r in read), [name.lower() for name in ENTITIES])
    even(Counter(e.meta["chain"][0] for e in generated()), CONCEPTS)
    asked = Counter(r.asked for r in read)
    even(Counter(FAMILY_OF[r.asked] for r in read), PROPERTIES)
    for family in PROPERTIES:
        even(asked, family)


@pytest.mark.shared
def test_every_published_word_is_known():
    words = Counter(word for e in published() for _, what, _ in problem(e).rules for word in [what])
    assert set(words) <= {*FAMILY_OF, *CONCEPTS} and set(FAMILY_OF) <= set(words)
    assert {e.question.split("True or false: ")[1].split()[0] for e in published()} == set(ENTITIES)


# --------------------------------------------------------------------------------------------------------- shortcuts

SOLVES = "subject mentioned elsewhere"


@pytest.mark.shared
def test_one_look_up_solves_every_published_question():
    assert score(DEDUCTION_RULES[SOLVES], [problem(e) for e in published()]) == 1.0


def test_one_look_up_solves_original_questions_and_no_hardened_ones():
    assert score(DEDUCTION_RULES[SOLVES], [problem(e) for e in generated()]) == 1.0
    assert score(DEDUCTION_RULES[SOLVES], [problem(e) for e in generated("hardened")]) == 0.5


@pytest.mark.parametrize("rule", DEDUCTION_RULES)
def test_shallow_rules_are_guesses_on_hardened_questions(rule):
    found = score(DEDUCTION_RULES[rule], [problem(e) for e in generated("hardened")[:2000]])
    assert abs(found - 0.5) < 3.2 * 0.5 / math.sqrt(2000)


def test_the_same_facts_answer_the_other_way_about_the_other_person():
    """What makes every rule a guess that does not follow the chain of the person who is asked about."""
    for example in generated("hardened")[:500]:
        read = problem(example)
        (other,) = {r[0] for r in read.rules[-2:]} - {read.person}
        ends = {person: [r for r in read.deciding() if r[0] in read.graph().distances(person)] for person in (read.person, other)}
        (mine,), (theirs,) = ends[read.person], ends[other]
        assert (mine[2] == read.claim_negated) == read.answer != (theirs[2] == read.claim_negated)


# ------------------------------------------------------------------------------------------------------ splits, files


def key(example: Example) -> tuple:
    read = problem(example)
    return tuple(sorted(read.rules)), read.person, read.asked


def test_no_question_is_in_two_splits_or_twice_not_even_with_the_opposite_claim():
    seen: dict[tuple, str] = {}
    for split in SPLITS:
        for seed in (0, 1):
            found = [key(e) for e in make().examples(split, 300, seed)]
            assert len(set(found)) == 300 and all(seen.setdefault(k, split) == split for k in found)


@pytest.mark.shared
def test_published_splits_are_cut_by_position():
    task = make(path=str(PUBLISHED))
    assert {split: task.count(split) for split in SPLITS} == SIZES
    file = json.loads(gzip.decompress((PUBLISHED / "5hop_0shot_random.json.gz").read_bytes()))
    assert {(f"{r['question']} {r['query']}", r["answer"]) for r in (v["test_example"] for v in list(file.values())[9200:])} == {
        (e.question, e.answer) for e in task.examples("test", 800, 0)
    }
    alone = make(path=str(PUBLISHED / "5hop_0shot_random.json.gz"))
    for split in ("valid", "test"):  # in a file of their own, and as a part of the generator's
        assert {(e.question, e.steps) for e in alone.examples(split, SIZES[split], 0)} == {
            (e.question, e.steps) for e in task.examples(split, SIZES[split], 0)
        }


@pytest.mark.shared
def test_the_judge_takes_every_published_answer():
    task = make()
    for example in published():
        assert task.judge(example, "\n".join([*example.steps, f"### {example.answer}"])).outcome == "right"
        assert task.judge(example, f"### {example.answer != 'True'}").outcome == "wrong"


def test_a_published_question_is_never_generated(tmp_path):
    train = make().examples("train", 40, 7)
    (tmp_path / "5hop_0shot_random.json").write_text(json.dumps(raw(train)))
    task = make(path=str(tmp_path))
    assert [task.count(split) for split in SPLITS] == [36, 1, 3]
    again = make(path=str(tmp_path), train="generated").examples("train", 40, 7)
    held_out = set(map(key, train[36:]))
    assert {e.meta["source"] for e in again} == {"generated"} and not held_out & set(map(key, again))
    assert [e.steps for e in sorted(task.examples("train", 36, 0), key=lambda e: int(e.id.split("/")[-1]))] == [
        e.steps for e in train[:36]
    ]


def test_rows_in_coconuts_form_are_read(tmp_path):
    rows = [{"question": e.question, "steps": list(e.steps), "answer": e.answer} for e in generated()[:10]]
    (tmp_path / "prontoqa_test.json").write_text(json.dumps(rows))
    task = make(path=str(tmp_path / "prontoqa_test.json"))
    found = {e.question: e for e in task.examples("test", 10, 0)}
    assert {q: (e.steps, e.answer, e.meta["chain"], e.meta["hops"]) for q, e in found.items()} == {
        e.question: (e.steps, e.answer, e.meta["chain"], 5) for e in generated()[:10]
    }
    assert task.count("train") is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answer": "Maybe"}, "is not what the last step says"),
        ({"question": "Wumpuses are happy. Is Max happy?"}, "should end in 'True or false: "),
        ({"question": "Wumpuses run. True or false: Max is happy."}, "is no sentence of ProntoQA: 'Wumpuses run.'"),
        ({"steps": []}, "'steps' should not be empty"),
        ({"steps": ["Max is a wumpus. Wumpuses are happy.", "Max is kind."]}, "is not what the last step says"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_place(tmp_path, change, complaint):
    row = {"question": "Wumpuses are happy. Max is a wumpus. True or false: Max is happy.", "answer": "True"}
    row["steps"] = ["Max is a wumpus. Wumpuses are happy.", "Max is happy."]
    path = tmp_path / "prontoqa_test.json"
    path.write_text(json.dumps([row]))
    assert make(path=str(path)).examples("test", 1, 0)[0].meta["hops"] == 1
    path.write_text(json.dumps([row, {**row, **change}]))
    with pytest.raises(UserError, match=complaint) as error:
        make(path=str(path)).examples("test", 1, 0)
    assert f"{path}: row 2" in str(error.value)


def test_mistakes_in_the_settings_are_told(tmp_path):
    with pytest.raises(ValidationError, match="leave `path` out"):
        ProntoQA.Settings(variant="hardened", path="x")
    with pytest.raises(UserError, match="has no prontoqa_train.json or 5hop_0shot_random.json"):
        make(path=str(tmp_path)).examples("test", 1, 0)
    (tmp_path / "5hop_0shot_random.json").write_text(json.dumps({"example1": {"test_exampel": {}}}))
    with pytest.raises(UserError, match="no field 'test_example'; did you mean 'test_exampel'"):
        make(path=str(tmp_path)).examples("test", 1, 0)


# ------------------------------------------------------------------------------------------------------------- judge


@pytest.mark.parametrize(
    ("text", "outcome", "extracted"),
    [
        ("Max is happy.\n### True", "right", "True"),
        ("#### true.", "right", "True"),
        ("The answer is True, because Max is happy.", "right", "True"),
        ("### not false", "right", "True"),
        ("### False", "wrong", "False"),
        ("### True\n### False", "wrong", "False"),
        ("### True or false", "unanswered", None),
        ("### Max is happy.", "unanswered", None),
        ("###", "unanswered", None),
        ("True", "unanswered", None),
    ],
)
def test_true_and_false_are_read(text, outcome, extracted):
    asked = Example("x", "mine", "Max is happy. True or false: Max is happy.", (), "True")
    verdict = make().judge(asked, text)
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


# ------------------------------------------------------------------------------------------------------ reproduction


def digest() -> str:
    found = [asdict(e) for v in ("original", "hardened") for e in make(variant=v).examples("test", 20, 1)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def test_the_same_questions_in_every_process_and_for_ever():
    """Pinned: results on other questions are other results."""
    code = "import test_prontoqa; print(test_prontoqa.digest())"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/tasks'}", "PYTHONHASHSEED": "3"}
    elsewhere = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == digest() == "037c72305d60387b7369f90abac6447fd681ba1f90c98182c3e46ded756e29f0"
