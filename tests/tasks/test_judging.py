"""What is read out of free text as the answer: hard cases, by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cl_softcot.tasks import _judging
from cl_softcot.tasks.base import answer_of

# ------------------------------------------------------------------------------------------- where the answer stands

PLACES = [
    ("16 - 3 = 13\n### 18", "18"),
    ("####18", "18"),
    ("so #### 18", "18"),
    ("### 5\nwait, no\n### 18", "18"),  # the last one
    ("### **18**", "18"),
    ("### $\\boxed{18}$", "18"),
    ("###\n\n18\n", "18"),
    ("### Final Answer\n18", "18"),
    ("### Answer: 18", "18"),
    ("### The answer is 18.", "18"),
    ("### Step 3: add\nAnswer: 18", "18"),  # a heading is no answer
    ("### Step 1: 7 eggs\n### Conclusion\nThe answer is 18.", "18"),
    ("### 18\n### Step 4: check", "18"),
    ("Answer: 18", "18"),
    ("**Answer:** 18", "18"),
    ("**Final Answer**: 18", "18"),
    ("16 - 3 = 13 ; 13 * 2 = 26 ; answer 18", "18"),
    ("answer 18", "18"),
    ("Final answer:\n- 18", "18"),  # a list's dash is no minus
    ("We get \\boxed{18}.", "18"),
    ("\\[\\boxed{\\text{18 dollars}}\\]", "18"),
    ("So the answer is 18.", "18"),
    ("The answer to the question is 18", "18"),
    ("the final answer is: $18", "18"),
    ("The answer would be 18 dollars", "18"),
    ("The answer is 5? No. The answer is 18.", "18"),
    ("the answer is 4\n### 18", "18"),  # order of trust, not of place
    ("### 18\nThe answer is 4", "18"),
    ("Answer: 18. In short, \\boxed{4}", "18"),
    ("Answer: After 3 weeks he has 36 dollars", None),
    ("### 7 or 8\nThe answer is 8.", None),  # two answers at the most trusted place are not mended by a lesser one
    ("\\boxed{18}, as the answer is 4", "18"),
    ("18", None),  # without a marker nothing is an answer
    ("The total is 18 dollars.", None),
    ("", None),
    ("###", None),
    ("### \n\n", None),
    ("Answer:", None),
    ("### I cannot say", None),
    ("#18", None),
    ("##### 18", None),
]


@pytest.mark.parametrize(("text", "expected"), PLACES)
def test_the_answer_is_found_where_it_stands(text, expected):
    assert _judging.Numbers().strict(text) == expected


# ---------------------------------------------------------------------------------------------------------- numbers

NUMBERS = [
    ("1,234", "1234"),
    ("1234.0", "1234"),
    ("$1,234", "1234"),
    ("$ 1,234.50", "1234.5"),
    ("\\$1,234", "1234"),
    ("1\u202f234", "1234"),
    ("1,20,000", "120000"),
    ("18 dollars.", "18"),
    ("18.", "18"),
    ("18 (because 9 * 2 = 18 and 5 + 5 = 10)", "18"),
    ("18 eggs, since 3 + 4 = 7", "18"),
    ("\u00a318", "18"),
    ("Rs. 18", "18"),
    ("18%", "18"),
    ("18 %", "18"),
    ("18\\%", "18"),
    ("about 18 km/h", "18"),
    ("3 apples + 5 apples = 8 apples", "8"),
    ("16 - 3 = 13", "13"),
    ("9 * 2 = $18", "18"),
    ("x = 5", "5"),
    ("-5", "-5"),
    ("\u22125", "-5"),
    ("\u20135", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("(-5)", "-5"),
    ("minus 5", "-5"),
    ("negative 5 degrees", "-5"),
    ("(5)", "5"),  # not a bookkeeper's minus
    ("COVID-19", None),
    ("20-year-old", "20"),
    ("3/4", "0.75"),
    (".75", "0.75"),
    ("0.750", "0.75"),
    ("-3/4", "-0.75"),
    ("\\frac{3}{4}", "0.75"),
    ("1/3", "1/3"),
    ("2/6", "1/3"),
    ("1 1/2", "1.5"),
    ("1 1/2 cups", "1.5"),
    ("-1 1/2", "-1.5"),
    ("1e3", "1000"),
    ("1.5e-3", "0.0015"),
    ("2 x 10^5", "200000"),
    ("2 \\times 10^{5}", "200000"),
    ("1.5 million", "1500000"),
    ("5k", "5000"),
    ("5 km", "5"),
    ("1.000", "1"),  # English: not a thousand
    ("0.1", "0.1"),
    ("00", "0"),
    ("-0", "0"),
    ("1,5", None),  # perhaps a decimal comma: not read
    ("1.2.3", None),
    ("05/01/2021", None),
    ("3:30", None),
    ("9 * 2", None),  # never worked out
    ("5 - 6", None),
    ("10-15", None),
    ("3/0", None),
    ("1e999", None),
    ("H2O", None),
    ("many", None),
    ("eighteen", None),
    # Several different numbers: none of them is the answer.
    ("In 5 days she earns $70", None),
    ("In 5 days (a week) she earns $70", None),
    ("7 or 8", None),
    ("between 3 and 5", None),
    ("12 per day / 84 per week", None),
    ("Tom is 12 years old and has 3 cats", None),
    ("18 eggs, of which 3 * 4 are brown", None),
    ("After 3 weeks he has 36 dollars", None),
    ("18, that is 18.0 dollars", "18"),  # equal ones count once
    ("18 dollars (2 for each of 9 eggs)", "18"),
    ("18 dollars. She sells 9 eggs", "18"),
    ("18 - that is for 9 eggs", "18"),
    ("18 cm^2", "18"),
    ("18 m2", "18"),
    ("18 eggs = $36", "36"),  # what follows the last =
    ("In 5 days: 5 * 14 = 70", "70"),
    ("3 * (4 + 5) = 27", "27"),
    ("3 * (4 + 5)", None),
    ("1 000", "1000"),
    ("12 345 678.5 people", "12345678.5"),
    ("1 00", None),
    ("1 000,5", None),
]


@pytest.mark.parametrize(("written", "expected"), NUMBERS)
def test_numbers(written, expected):
    assert _judging.Numbers().strict(f"### {written}") == expected


def test_negative_numbers_are_not_cut():
    """One of the defects of the published expressions: a sign that is dropped turns -18 into a right 18."""
    assert _judging.Numbers().strict("#### -18") == "-18" != _judging.Numbers().strict("#### 18")


def test_numerals_keep_the_value():
    for value in (
        Fraction(1, 8),
        Fraction(-7, 40),
        Fraction(123456, 1000),
        Fraction(10**30),
        Fraction(5, 6),
        Fraction(-1, 10**9),
    ):
        assert Fraction(_judging.numeral(value)) == value


# ---------------------------------------------------------------------------------------------------------- options

PLACE = {"A": "bank", "B": "library", "C": "river bank", "D": "a mall", "E": "new york"}
SUM = {"A": "22", "B": "1,200", "C": "3/4", "D": "22.5", "E": "None of these"}
VITAMINS = {"A": "vitamin C", "B": "vitamin D", "C": "both A and B", "D": "neither"}
TWINS = {"A": "8.75", "B": "8.79", "C": "8.75", "D": "8.71"}
MANY = {
    letter: text
    for letter, text in zip("ABCDEFGHIJK", "zero one two three four five six seven eight nine ten".split(), strict=True)
}

GENES = {"A": "BB BB", "B": "BB Bb", "C": "Bb Bb", "D": "(A) and (B) both"}

DATES = {"A": "05/01/2021", "B": "01/05/2021", "C": "05/10/2021"}

OPTIONS = [
    ("Bb Bb", GENES, "C"),  # case matters where it is all that differs
    ("BB BB", GENES, "A"),
    ("bb bb", GENES, None),
    ("(D) (A) and (B) both", GENES, "D"),
    ("D) (A) and (B) both", GENES, "D"),
    ("(A) and (B) both", GENES, "D"),
    ("(A) and (B)", GENES, None),
    ("(B)", PLACE, "B"),
    ("B", PLACE, "B"),
    ("b", PLACE, "B"),
    ("(b)", PLACE, "B"),
    ("B.", PLACE, "B"),
    ("B)", PLACE, "B"),
    ("B) library", PLACE, "B"),
    ("B: library", PLACE, "B"),
    ("(B) library", PLACE, "B"),
    ("B - library", PLACE, "B"),
    ("b) library", PLACE, "B"),
    ("a) bank", PLACE, "A"),
    ("**(B)** library", PLACE, "B"),
    ("[B]", PLACE, "B"),
    ("$\\boxed{B}$", PLACE, "B"),
    ("\\text{(B)}", PLACE, "B"),
    ("option B", PLACE, "B"),
    ("Option b", PLACE, "B"),
    ("B because it has books", PLACE, "B"),
    ("B, the library", PLACE, "B"),
    ("I think A.", PLACE, "A"),
    ("I think A", PLACE, "A"),
    ("I would choose A because it fits", PLACE, "A"),
    ("A is right", PLACE, "A"),
    ("A", PLACE, "A"),
    ("a", PLACE, "A"),
    ("option A", PLACE, "A"),
    ("It is option (A).", PLACE, "A"),
    # The other defect of the published expressions: the article is not option A.
    ("a library", PLACE, "B"),
    ("A library", PLACE, "B"),
    ("It is a library.", PLACE, "B"),
    ("a place with a lot of books", PLACE, None),
    ("A place where people meet", PLACE, None),
    ("an option", PLACE, None),
    ("a mall", PLACE, "D"),
    ("mall", PLACE, "D"),
    ("A mall", PLACE, "D"),
    ("library", PLACE, "B"),
    ("The library.", PLACE, "B"),
    ("NEW YORK", PLACE, "E"),
    ("a bank", PLACE, "A"),
    ("river bank", PLACE, "C"),  # holds "bank" too, but only inside the longer text
    ("the bank by the river bank", PLACE, None),  # two options
    ("libraries", PLACE, None),
    ("B or C", PLACE, None),
    ("(A) or (B)", PLACE, None),
    ("A and B", PLACE, None),
    ("bank or library", PLACE, None),
    ("(B) bank", PLACE, None),  # letter and words contradict each other
    ("not (A), but (B)", PLACE, "B"),
    ("B, not C", PLACE, "B"),
    ("(B) library, because (C) is wet", PLACE, "B"),
    ("B since C is wet", PLACE, "B"),
    ("the library, since a bank has no books", PLACE, "B"),
    ("F", PLACE, None),
    ("none of them", PLACE, None),
    ("I cannot answer this.", PLACE, None),
    ("", PLACE, None),
    ("22", SUM, "A"),
    ("22.0", SUM, "A"),
    ("22 apples", SUM, "A"),
    ("22.5", SUM, "D"),
    ("1200", SUM, "B"),
    ("$1,200", SUM, "B"),
    ("0.75", SUM, "C"),
    ("(A) 22.5", SUM, None),
    ("none of these", SUM, "E"),
    ("23", SUM, None),
    ("It is vitamin C.", VITAMINS, "A"),
    ("C", VITAMINS, "C"),
    ("both A and B", VITAMINS, "C"),
    ("(C) both A and B", VITAMINS, "C"),
    ("vitamin D", VITAMINS, "B"),
    ("8.75", TWINS, "A"),  # the same text twice is one answer
    ("(C)", TWINS, "C"),
    ("I think it is eight.", MANY, "I"),
    ("I do not know", MANY, None),
    ("(I)", MANY, "I"),
    ("I", MANY, "I"),
    ("I. eight", MANY, "I"),
    ("K", MANY, "K"),
    ("neither A nor B", PLACE, None),
    ("neither (A) nor (B)", PLACE, None),
    ("neither the bank nor the library", PLACE, None),
    ("all except B", PLACE, None),
    ("all of them except (B)", PLACE, None),
    ("all but B", PLACE, None),
    ("(C), neither A nor B", PLACE, "C"),
    ("neither", VITAMINS, "D"),
    ("all except a", {"A": "a", "B": "all except a"}, "B"),
    ("5/1/2021", DATES, "A"),
    ("05/01/2021", DATES, "A"),
    ("It is 5/1/2021.", DATES, "A"),
    ("(A) 5/1/2021", DATES, "A"),
    ("(B) 5/1/2021", DATES, None),
    ("5/10/2021", DATES, "C"),
    ("15/1/2021", DATES, None),
]


@pytest.mark.parametrize(("written", "options", "expected"), OPTIONS)
def test_options(written, options, expected):
    assert _judging.Options(options).strict(f"### {written}") == expected


def test_options_behind_other_markers():
    assert _judging.Options(PLACE).strict("A dog is a pet, so the answer is B.") == "B"
    assert _judging.Options(PLACE).strict("A good place to read is a library.") is None
    assert _judging.Options(PLACE).strict("The correct option is (C)") == "C"


def test_how_options_are_asked():
    assert _judging.with_options("Where?", {"A": "here", "B": "there"}, hint=False) == "Where?\n(A) here\n(B) there"
    asked = _judging.with_options("Where?", {"A": "here"}, hint=True)
    assert asked.splitlines()[-1].startswith("Give the letter")
    assert _judging.options_meta(TWINS, "C") == {"options": TWINS, "accept": ["A"]}
    assert _judging.options_meta(TWINS, "B") == {"options": TWINS}
    assert _judging.options_meta(GENES, "C") == {"options": GENES}


# -------------------------------------------------------------------------------------------------------- yes or no

CHOICES = [
    ("Yes", "Yes"),
    ("yes.", "Yes"),
    ("True", "Yes"),
    ("**No**", "No"),
    ("false", "No"),
    ("no, because yes would need two", "No"),
    ("Yes, no doubt", "Yes"),
    ("It is not true", "No"),
    ("That isn't false", "Yes"),
    ("No, that is not true", "No"),
    ("yes or no", None),
    ("Yes/No", None),
    ("true or false", None),
    ("unclear", None),
    ("nobody knows", None),
    ("", None),
    ("yesterday", None),
    ("notable", None),
    ("not ( True ) and ( True ) = False", "No"),
    ("not ( False ) evaluates to True", "Yes"),
    ("True and not True is False.", "No"),
    ("not ( True )", "No"),
    ("True = 1", "Yes"),  # nothing to read behind it
    ("Yes, since the opposite is false", "Yes"),
    ("Yes, the opposite is false", "Yes"),
    ("It is yes because no is false", "Yes"),
]


@pytest.mark.parametrize(("written", "expected"), CHOICES)
def test_yes_and_no(written, expected):
    assert _judging.Choices("Yes", "No").strict(f"### {written}") == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [("valid", "valid"), ("invalid", "invalid"), ("not valid", "invalid"), ("the argument is Invalid.", "invalid")],
)
def test_valid_and_invalid(written, expected):
    assert _judging.Choices("valid", "invalid").strict(f"### {written}") == expected


# -------------------------------------------------------------------------------------- answers that are words

WORDS = [
    ("3 + 4 = 7 ; answer 7", "7"),
    ("answer blue", "blue"),
    ("the answer", None),
    ("### Bob is a shumpus.", "Bob is a shumpus."),
    ("#### True", "True"),
    ("steps\nAnswer: True", "True"),
    ("### Answer: True", "True"),
    ("The Answers differ", None),
    ("##### True", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), WORDS)
def test_words_behind_the_marker(text, expected):
    assert answer_of(text) == expected
