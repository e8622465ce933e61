"""ProsQA: generated questions are valid, distributed as the published ones are, and free of their shortcuts when hardened."""

from __future__ import annotations

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
from shortcuts import GRAPH_RULES, Graph, read_prosqa, score

from cl_softcot.errors import UserError
from cl_softcot.tasks.base import SPLITS, Example
from cl_softcot.tasks.prosqa import CONCEPTS, ENTITIES, HOP_SHARES, ProsQA

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "prosqa"


def make(name: str = "mine", **settings) -> ProsQA:
    return ProsQA(ProsQA.Settings(**settings), name)


@cache
def generated(variant: str = "original", n: int = 2000) -> tuple[Example, ...]:
    return tuple(make(variant=variant).examples("train", n, 0))


@cache
def published() -> tuple[Example, ...]:
    if not PUBLISHED.is_dir():
        pytest.skip(f"SKIPPED: no ProsQA files in {PUBLISHED}: nothing is compared with the published questions")
    task = make(path=str(PUBLISHED))
    return tuple(e for split in ("valid", "test") for e in task.examples(split, task.count(split), 0))


@cache
def _read(question: str, answer: str) -> Graph:
    return read_prosqa({"question": question, "answer": answer})


def problem(example: Example) -> Graph:
    return _read(example.question, example.answer)


def accuracy(rule: str, examples) -> float:
    return score(GRAPH_RULES[rule], [problem(e) for e in examples])


def record(example: Example) -> dict:
    """As a row of a published file."""
    graph = {new: example.meta[old] for new, old in (("idx_to_symbol", "names"), ("edges", "edges"))}
    graph |= {key: example.meta[key] for key in ("root", "target", "neg_target")}
    return {"question": example.question, "steps": list(example.steps), "answer": example.answer, **graph}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps(rows))
    return path


# --------------------------------------------------------------------------------------------------------- validity


def check(example: Example) -> None:
    """Everything that a record promises, read from its text alone and held against its graph."""
    read, meta = problem(example), example.meta
    names = meta["names"]
    assert sorted(read.edges) == sorted((names[a], names[b]) for a, b in meta["edges"]) and len(set(read.edges)) == len(
        read.edges
    )
    assert all(parent < child for parent, child in meta["edges"]) and len(set(names)) == len(names) == meta["n_nodes"]
    inner = {child for _, child in meta["edges"]}
    assert all((name in CONCEPTS) if node in inner else (name in ENTITIES) for node, name in enumerate(names))
    root, target, neg_target = (names[meta[key]] for key in ("root", "target", "neg_target"))
    assert read.person == root and set(read.options) == {target, neg_target} and target != neg_target
    assert example.answer == f"{root} is a {target}."
    reached = read.distances(root)
    assert target in reached and neg_target not in reached
    assert not {target, neg_target} & {parent for parent, _ in read.edges}
    path = [(root, *step_of(example.steps[0])[1:]), *map(step_of, example.steps[1:])]
    assert all(step in read.edges for step in path) and all(a[1] == b[0] for a, b in zip(path, path[1:], strict=False))
    assert path[0][0] == root and path[-1][1] == target
    assert len(path) == reached[target] == meta["hops"]


def step_of(step: str) -> tuple[str, str]:
    subject, _, concept = step.removesuffix(".").removeprefix("Every ").partition(" is a ")
    return subject, concept


@pytest.mark.parametrize("variant", ["original", "hardened"])
def test_every_record_is_valid(variant):
    for example in generated(variant, 2000 if variant == "original" else 300):
        check(example)
        assert example.meta["source"] == "generated" and example.meta["variant"] == variant


@pytest.mark.shared
def test_all_published_questions_are_read_and_valid():
    assert len(published()) == 800
    for example in published():
        check(example)
        assert (example.meta["source"], example.meta["variant"]) == ("file", "original")


@pytest.mark.shared
def test_the_judge_takes_every_published_answer():
    task = make()
    for example in published():
        assert task.judge(example, "\n".join([*example.steps, f"### {example.answer}"])).outcome == "right"
        wrong = example.answer.replace(
            example.meta["names"][example.meta["target"]], example.meta["names"][example.meta["neg_target"]]
        )
        assert task.judge(example, f"### {wrong}").outcome == "wrong"


# ----------------------------------------------------------------------------------------------------- distributions


def measures(example: Example) -> dict[str, float]:
    """What one question adds to the distributions. Nodes 0 and 1 are the founders of the two families."""
    meta = example.meta
    n, edges, names = meta["n_nodes"], meta["edges"], meta["names"]
    graph = Graph(tuple((str(a), str(b)) for a, b in edges), "", ("", ""), "")
    below = [graph.distances(str(founder)) for founder in (0, 1)]
    outdegree, indegree = Counter(a for a, _ in edges), Counter(b for _, b in edges)
    labels = Counter((str(v) in below[0]) + 2 * (str(v) in below[1]) for v in range(n))
    hops, other = below[meta["root"]], below[1 - meta["root"]]
    paths = {str(meta["root"]): 1}
    for node in sorted(hops, key=hops.get)[1:]:
        paths[node] = sum(paths[p] for p in graph.parents(node) if hops.get(p, n) + 1 == hops[node])
    found = {
        "nodes": n,
        "edges": len(edges),
        "people": sum(not indegree[v] for v in range(n)),
        "hops": hops[str(meta["target"])],
        "shortest paths": paths[str(meta["target"])],
        "distance of the distractor": other[str(meta["neg_target"])],
        "root is node 1": meta["root"],
        "parents of the target": indegree[meta["target"]],
        "parents of the distractor": indegree[meta["neg_target"]],
        "characters": len(example.question),
    }
    found |= {f"label {label}": labels[label] for label in range(4)}
    found |= {f"out-degree {k}": sum(outdegree[v] == k for v in range(n)) / n for k in range(7)}
    found |= {f"in-degree {k}": sum(indegree[v] == k for v in range(n)) / n for k in range(7)}
    path = [example.answer.split()[0], *(step_of(step)[1] for step in example.steps)]
    found |= {f"choices at step {i}": outdegree[names.index(name)] for i, name in enumerate(path[:4], 1) if i < len(path)}
    return found


# Mean and standard deviation over the 800 published questions; the test below holds them against the files.
REAL = {
    "nodes": (22.806, 1.986),
    "edges": (35.998, 5.757),
    "people": (2.556, 0.753),
    "hops": (3.771, 0.763),
    "shortest paths": (1.586, 0.874),
    "distance of the distractor": (2.112, 0.752),
    "root is node 1": (0.636, 0.481),
    "parents of the target": (1.484, 0.770),
    "parents of the distractor": (2.094, 1.127),
    "characters": (929.819, 150.229),
    "label 0": (0.706, 1.013),
    "label 1": (9.106, 2.794),
    "label 2": (11.752, 2.963),
    "label 3": (1.241, 1.151),
    "out-degree 0": (0.323, 0.064),
    "out-degree 1": (0.236, 0.085),
    "out-degree 2": (0.180, 0.078),
    "out-degree 3": (0.133, 0.067),
    "out-degree 4": (0.077, 0.050),
    "out-degree 5": (0.034, 0.037),
    "out-degree 6": (0.012, 0.023),
    "in-degree 0": (0.113, 0.034),
    "in-degree 1": (0.438, 0.093),
    "in-degree 2": (0.278, 0.084),
    "in-degree 3": (0.121, 0.066),
    "in-degree 4": (0.038, 0.040),
    "in-degree 5": (0.010, 0.021),
    "in-degree 6": (0.002, 0.009),
    "choices at step 1": (2.942, 1.209),
    "choices at step 2": (3.365, 1.467),
    "choices at step 3": (2.671, 1.342),
    "choices at step 4": (2.165, 1.186),
}
# A published label-3 node is a parent less often than the algorithm makes it; nobody knows why. The largest difference of means.
KNOWN_TO_DIFFER = {"label 3": 0.3}


def columns(examples) -> dict[str, list[float]]:
    rows = [measures(e) for e in examples]
    return {name: [row[name] for row in rows if name in row] for name in REAL}


def test_generated_questions_are_distributed_as_the_published_ones():
    """Means and standard deviations within 3.5 standard errors of a difference between 2,000 and 800 questions."""
    for name, values in columns(generated()).items():
        (mean, sd), n_real = REAL[name], 474 if name == "choices at step 4" else 800
        ours, spread = statistics.mean(values), statistics.stdev(values)
        error = math.sqrt(1 / len(values) + 1 / n_real)
        assert abs(ours - mean) < KNOWN_TO_DIFFER.get(name, 3.5 * spread * error), (name, ours, mean)
        fourth = statistics.mean((v - ours) ** 4 for v in values)
        if name not in KNOWN_TO_DIFFER:
            assert abs(spread - sd) < 3.5 * math.sqrt(fourth - spread**4) / (2 * spread) * error, (name, spread, sd)


def test_hops_and_people_have_the_published_shares():
    """Chi-square against 326, 350, 105, 19 of 800 and 461, 253, 68, 18: below the 0.1 % point for 3 degrees of freedom."""
    hops = Counter(e.meta["hops"] for e in generated())
    people = Counter(min(sum(name in ENTITIES for name in e.meta["names"]), 5) for e in generated())
    for found, real in ((hops, {3: 326, 4: 350, 5: 105, 6: 19}), (people, {2: 461, 3: 253, 4: 68, 5: 18})):
        assert set(found) == set(real)
        ours, theirs = sum(found.values()), sum(real.values())
        pooled = {k: (found[k] + real[k]) / (ours + theirs) for k in real}
        terms = [(x[k] - n * pooled[k]) ** 2 / (n * pooled[k]) for x, n in ((found, ours), (real, theirs)) for k in real]
        assert sum(terms) < 16.27


@pytest.mark.shared
def test_the_figures_of_the_published_questions_are_theirs():
    for name, values in columns(published()).items():
        assert (round(statistics.mean(values), 3), round(statistics.stdev(values), 3)) == pytest.approx(REAL[name], abs=6e-4), (
            name
        )
    hops = Counter(e.meta["hops"] for e in published())
    assert {k: v / 800 for k, v in hops.items()} == HOP_SHARES
    assert sum(len(measures(e)) == len(REAL) for e in published()) == 474


def test_neither_place_nor_name_says_anything():
    first = sum(problem(e).options[0] == e.answer.removesuffix(".").split()[-1] for e in generated())
    assert abs(first / 2000 - 0.5) < 3.5 * 0.5 / math.sqrt(2000)
    for words, k in ((ENTITIES, 0), (CONCEPTS, -1)):
        counts = Counter(e.answer.removesuffix(".").split()[k] for e in generated())
        assert set(counts) == set(words)
        expected = 2000 / len(words)
        chi = sum((counts[w] - expected) ** 2 / expected for w in words)
        assert chi < len(words) - 1 + 4 * math.sqrt(2 * (len(words) - 1))
    positions = [problem(e).edges.index(tuple(step_of(e.steps[-1]))) / len(e.meta["edges"]) for e in generated()]
    assert abs(statistics.mean(positions) - 0.49) < 3.5 * 0.29 / math.sqrt(2000)  # facts in random order


def test_any_of_several_shortest_paths_is_written():
    """Each as often as the other, however the edges are numbered."""
    picks = []
    for example in generated():
        graph = problem(example)
        hops = graph.distances(graph.person)
        last = step_of(example.steps[-1])
        nearest = [p for p in graph.parents(last[1]) if hops.get(p, 99) + 1 == example.meta["hops"]]
        if len(nearest) == 2 and measures(example)["shortest paths"] == 2:
            names = example.meta["names"]
            picks.append(names.index(last[0]) == min(names.index(p) for p in nearest))
    assert len(picks) > 100 and abs(statistics.mean(picks) - 0.5) < 3.5 * 0.5 / math.sqrt(len(picks))


# --------------------------------------------------------------------------------------------------------- shortcuts

# Accuracy of rules that do not search, on the published questions.
KNOWN = {
    "fewer mentions": 0.66,
    "a parent within two hops of the root": 0.70,
    "nobody else within two hops backwards": 0.84,
    "first option": 0.505,
    "more brothers and sisters": 0.29,  # so fewer of them: 0.71
    "parent named more often": 0.39,
    "named first in the facts": 0.41,
}


@pytest.mark.shared
@pytest.mark.parametrize("rule", KNOWN)
def test_shallow_rules_score_on_the_published_questions_what_is_known(rule):
    assert abs(accuracy(rule, published()) - KNOWN[rule]) < 0.006


@pytest.mark.parametrize("rule", KNOWN)
def test_shallow_rules_score_on_original_questions_as_on_the_published_ones(rule):
    assert abs(accuracy(rule, generated()) - KNOWN[rule]) < 3.5 * 0.5 * math.sqrt(1 / 2000 + 1 / 800)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [*KNOWN, "named nearest to the person", "first in the alphabet"])
def test_shallow_rules_are_guesses_on_hardened_questions(rule):
    """Published questions give away 0.16 to 0.34 above a half; here nothing that 1,000 questions would show."""
    examples = generated("hardened", 1000)
    assert abs(accuracy(rule, examples) - 0.5) < 3.2 * 0.5 / math.sqrt(1000)
    if rule in ("fewer mentions", "a parent within two hops of the root"):  # ties, always
        assert accuracy(rule, examples) == 0.5


def test_hardened_questions_have_no_near_distractor():
    shares = Counter()
    for example in generated("hardened", 1000):
        found, hops = measures(example), example.meta["hops"]
        assert found["parents of the target"] == found["parents of the distractor"]
        assert min(hops, 4) <= found["distance of the distractor"] <= hops
        shares[hops] += 1
    assert set(shares) == {4, 5, 6}
    expected = HOP_SHARES[4] / (1 - HOP_SHARES[3])
    assert abs(shares[4] / 1000 - expected) < 3.5 * math.sqrt(expected * (1 - expected) / 1000)
    three = make(variant="hardened", hops=3).examples("train", 200, 0)
    assert all(e.meta["hops"] == 3 == measures(e)["distance of the distractor"] for e in three)
    assert accuracy("a parent within two hops of the root", three) == 1.0  # looking two hops far is the search: left out


def test_hardened_questions_are_asked_about_either_family():
    roots = [e.meta["root"] for e in generated("hardened", 1000)]
    assert abs(statistics.mean(roots) - 0.5) < 3.5 * 0.5 / math.sqrt(1000)


# ----------------------------------------------------------------------------------------------- splits, files, hops


def test_hops_can_be_chosen():
    assert {e.meta["hops"] for e in make(hops=5).examples("train", 30, 0)} == {5}
    assert {e.meta["hops"] for e in make(hops=[3, 6]).examples("test", 60, 0)} == {3, 6}
    with pytest.raises(ValidationError, match="between 3 and 6"):
        ProsQA.Settings(hops=[2, 3])


def key(example: Example) -> tuple:
    """The question, whatever the order of its facts and options."""
    read = problem(example)
    return tuple(sorted(read.edges)), read.person, tuple(sorted(read.options))


def test_no_question_is_in_two_splits_or_twice():
    seen: dict[tuple, str] = {}
    for split, n in zip(SPLITS, (1000, 200, 200), strict=True):
        for seed in (0, 1):
            found = [key(e) for e in make().examples(split, n, seed)]
            assert len(set(found)) == n
            assert all(seen.setdefault(k, split) == split for k in found)


def test_a_published_question_is_never_generated(tmp_path):
    """Also where its facts and options stand in another order."""
    train = make().examples("train", 40, 7)
    rows = []
    for example in train[:20]:
        *facts, query = example.question.removesuffix("?").split(". ")
        start, last = query.rsplit(" or ", 1)
        start, first = start.rsplit(" ", 1)
        rows.append({**record(example), "question": ". ".join(facts[::-1]) + f". {start} {last} or {first}?"})
    write(tmp_path / "prosqa_test.json", rows)
    task = make(path=str(tmp_path))
    assert {key(e) for e in task.examples("test", 20, 0)} == set(map(key, train[:20]))
    again = set(map(key, task.examples("train", 40, 7)))
    assert len(again) == 40 and not again & set(map(key, train[:20]))


def test_splits_with_a_file_are_read_and_the_others_generated(tmp_path):
    folder = tmp_path / "prosqa"
    folder.mkdir()
    rows = [record(e) for e in make().examples("train", 30, 3)]
    write(folder / "prosqa_test.json", rows[:10])
    for path in (folder, tmp_path, folder / "prosqa_test.json"):
        task = make(path=str(path))
        assert [task.count(split) for split in SPLITS] == [None, None, 10]
        sources = {split: {e.meta["source"] for e in task.examples(split, 10, 0)} for split in SPLITS}
        assert sources == {"train": {"generated"}, "valid": {"generated"}, "test": {"file"}}
    write(folder / "prosqa_train.json", rows[5:])  # five of them are test questions
    assert make(path=str(folder)).count("train") == 20
    assert make(path=str(folder), train="generated").count("train") is None
    assert make(path=str(folder), hops=3).count("test") == sum(len(row["steps"]) == 3 for row in rows[:10]) > 0
    with pytest.raises(UserError, match="has 20 train examples, 21 are asked for"):
        make(path=str(folder)).examples("train", 21, 0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answer": "Tom is a wumpus."}, "field 'answer' should be"),
        ({"target": 99}, "the graph .* does not fit together"),
        ({"question": "Bob is a wumpus. Is Bob a wumpus?"}, "should end in 'Is ROOT a X or Y"),
        ({"steps": "no list"}, "field 'steps' should be a list of texts"),
        ({"edges": None, "edge": []}, "does not fit together"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_place(tmp_path, change, complaint):
    rows = [record(e) for e in make().examples("test", 3, 0)]
    path = write(tmp_path / "prosqa_test.json", [rows[0], {**rows[1], **change}, rows[2]])
    with pytest.raises(UserError, match=complaint) as error:
        make(path=str(path)).examples("test", 2, 0)
    assert f"{path}: row 2" in str(error.value)


def test_mistakes_in_the_settings_are_told(tmp_path):
    with pytest.raises(ValidationError, match="leave `path` out"):
        ProsQA.Settings(variant="hardened", path="x")
    with pytest.raises(ValidationError, match="needs `path`"):
        ProsQA.Settings(train="file")
    with pytest.raises(UserError, match="has no prosqa_train.json or"):
        make(path=str(tmp_path)).examples("test", 1, 0)
    rows = [record(e) for e in make().examples("test", 2, 0)]
    with pytest.raises(UserError, match="does not say which split"):
        make(path=str(write(tmp_path / "mine.json", rows))).examples("test", 1, 0)
    write(tmp_path / "prosqa_test.json", [{k: v for k, v in rows[0].items() if k != "steps"} | {"stepz": []}])
    with pytest.raises(UserError, match="no field 'steps'; did you mean 'stepz'"):
        make(path=str(tmp_path)).examples("test", 1, 0)
    with pytest.raises(UserError, match="`train: file`, but there is no prosqa_train.json"):
        make(path=str(tmp_path), train="file").examples("train", 1, 0)


# ------------------------------------------------------------------------------------------------------------- judge

GRAPH = {"edges": [[0, 2], [1, 3]], "names": ["Davis", "Tom", "lempus", "impus"], "root": 0, "target": 2, "neg_target": 3}
ASKED = Example("x", "mine", "Davis is a lempus. Tom is a impus. Is Davis a impus or lempus?", (), "Davis is a lempus.", GRAPH)


@pytest.mark.parametrize(
    ("text", "outcome", "extracted"),
    [
        ("### Davis is a lempus.", "right", "Davis is a lempus."),
        ("Davis is a lempus.\n### lempus", "right", "Davis is a lempus."),
        ("### a Lempus", "right", "Davis is a lempus."),
        ("#### Davis is a lempus, not an impus.", "right", "Davis is a lempus."),
        ("### not impus but lempus", "right", "Davis is a lempus."),
        ("Answer: He is a lempus because every wumpus is one", "right", "Davis is a lempus."),
        ("So the answer is lempus.", "right", "Davis is a lempus."),
        ("### Davis is a impus.", "wrong", "Davis is a impus."),
        ("### Tom is a lempus.", "wrong", "Tom is a lempus."),
        ("### Davis is a zhorpus.", "wrong", "Davis is a zhorpus."),
        ("### wumpus, so zhorpus", "wrong", "Davis is a zhorpus."),
        ("### Davis is a lempus.\n### Davis is a impus.", "wrong", "Davis is a impus."),
        ("### impus or lempus", "unanswered", None),
        ("### Davis is not a impus.", "unanswered", None),
        ("### I cannot tell.", "unanswered", None),
        ("### lempuses", "unanswered", None),
        ("###", "unanswered", None),
        ("Davis is a lempus.", "unanswered", None),
        ("", "unanswered", None),
    ],
)
def test_the_option_that_is_claimed_is_the_answer(text, outcome, extracted):
    verdict = make().judge(ASKED, text)
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


# ------------------------------------------------------------------------------------------------------ reproduction


def digest() -> str:
    found = [asdict(e) for v in ("original", "hardened") for e in make(variant=v).examples("test", 20, 1)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def test_the_same_questions_in_every_process_and_for_ever():
    """Pinned: results on other questions are other results."""
    code = "import test_prosqa; print(test_prosqa.digest())"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/tasks'}", "PYTHONHASHSEED": "3"}
    elsewhere = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == digest() == "088f38c45606af3319b5557c815c4efed21791f16ca3a2b8dc565046bf263f3d"
