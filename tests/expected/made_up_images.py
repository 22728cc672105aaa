"""Made-up rows of the twelve image tasks, without their pictures, and made-up answers to them."""

from dataclasses import dataclass, field
from typing import Any

#: Answers that reading rules stumble over; every task gets all of them.
ANSWERS = [
    *("", " ", "...", "🙂", "naïve café", "NAÏVE CAFÉ", "new\nline", "tab\tbed", "A\n\nB", '"quoted"'),
    *(
        "Yes.",
        "yes",
        "yes, it is",
        "YES",
        "Yes\n",
        " yes ",
        "Y",
        "No",
        "no.",
        "n",
        "not sure",
        "Nope",
        "I know",
        "yes/no",
    ),
    *(
        " A",
        "A",
        "A.",
        "A .",
        "a.",
        "(B)",
        "b",
        "B)",
        "B or C",
        "A.B",
        "C. a dog",
        "The answer is C",
        "D:",
        "the D",
        "Z.",
    ),
    *("Ｂ", "答案是B", "정답은 C", "I think it is A because B is wrong", "A cat is on the table", "Answer: (C).", ":D"),
    *(
        "My answer is B, not (A).",
        "(A) or (B)? B",
        "C because A and B are out",
        "absolutely",
        "Absolutely Better",
        "E",
        "F",
    ),
    *(
        "3.14",
        "3,14",
        "1,000",
        "1000",
        "12%",
        "0.12",
        "12.5 %",
        "1e3",
        "-5",
        "+5 ",
        "1_000",
        "nan",
        "inf",
        "0",
        "95",
        "105.1",
    ),
    *("two", "the two dogs", "twelve", "none", "None", "a an the", "2 dogs", "dont know", "don't know", "it's red"),
    *(
        "its red",
        "ten o'clock",
        "10 oclock",
        "red, white and blue",
        "red-white",
        "red - white",
        "U.S.A.",
        "U.S.A",
        "usa",
    ),
    *("Banana", "a dog.", "The dog", "somebody'd", "shouldnt've", "Coca-Cola", "coca cola", "a" + "." * 40 + "b"),
]


@dataclass(frozen=True)
class Case:
    """What is asked in one task.

    Attributes:
        docs: rows of the data set.
        answers: more answers, of this task alone.
        groups: rows that are scored together (MME's pairs); those of no group are scored one by one.
    """

    docs: list[dict[str, Any]]
    answers: list[str] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)


def mme() -> Case:
    """Three pictures, two questions each."""
    asked = [
        ("color", "color/1.jpg", "Is the car red? Please answer yes or no.", "Yes"),
        ("color", "color/1.jpg", " Is the car blue? Please answer yes or no. ", "No"),
        ("color", "color/2.jpg", "Is the sky green? Please answer yes or no.", "No."),
        ("color", "color/2.jpg", "Is the sky blue? Please answer yes or no.", "yes"),
        ("OCR", "OCR/1.jpg", 'Is the word "no"? Please answer yes or no.', "Yes"),
        ("OCR", "OCR/1.jpg", "Is the word in the logo “café”?", "No"),
        ("code_reasoning", "code/1.png", "Is 1,000 printed? Please answer yes or no.", "Yes"),
        ("code_reasoning", "code/1.png", "Is 1.0 printed? Please answer yes or no. Well?", "No"),
    ]
    docs = [
        {"category": category, "question_id": picture, "question": question, "answer": answer}
        for category, picture, question, answer in asked
    ]
    answers = ["It is not", "well, yes", "a no", "y.", ".yes", "ye s", "eyes", "nonsense", "a yes"]
    return Case(docs, answers, [[0, 1], [2, 3], [4, 5], [6, 7]])


def pope() -> Case:
    """Three questions to be answered yes, three no."""
    asked = [("dog", "yes"), ("cat", "no"), ("car", "yes"), ("cup", "no"), ("hat", "yes "), ("sun", "No")]
    docs = [
        {"question_id": str(number), "question": f" Is there a {thing} in the image?\n", "answer": answer}
        for number, (thing, answer) in enumerate(asked)
    ]
    return Case(docs, ["no", "NO", "no, there is not", "yes no"])


def gqa() -> Case:
    """Words, a phrase, a number."""
    docs = [
        {"id": "1", "imageId": "n1", "question": "Is it red or blue?", "answer": "red"},
        {"id": "2", "imageId": "n1", "question": "  What's the animal?", "answer": "dog"},
        {"id": "3", "imageId": "n2", "question": "Who is on the left?", "answer": "hot-air balloon"},
        {"id": "4", "imageId": "n3", "question": "Is there a dog?", "answer": "yes"},
    ]
    return Case(
        docs, ["Red", "red.", "RED!", "the red", "Dog", "hot air balloon", "hotair balloon", "Hot-Air Balloon."]
    )


def _crowd(answers: list[tuple[str, int]]) -> list[str]:
    return [answer for answer, times in answers for _ in range(times)]


PEOPLE = [
    [("red", 2), ("Red.", 3), ("the red", 1), ("it's red", 3), ("blue", 1)],
    [("2", 1), ("two", 1), ("two dogs", 4), ("the 2 dogs", 2), ("", 2)],
    [("Coca-Cola", 3), ("coca cola", 2), ("CocaCola", 1), ("10 o'clock", 2), ("ten oclock", 2)],
    [("1,000", 4), ("1000", 2), ("3.14", 2), ("U.S.A.", 1), ("usa", 1)],
    [(" -red-white blue", 2), ("redwhite blue", 3), ("none", 2), ("0", 1), ("a" + "." * 40 + "b", 2)],
    [("naïve café", 5), ("red, white and blue", 1), ("red white blue", 2), ("don't know", 1), ("dont know", 1)],
]
OPEN_ANSWERS = [
    *("Red", "the two dogs!", "cocacola", "1,000.", "3.14.", "red white, blue", "DON'T know", "A/B", "x@y", "ab"),
    *("it 's red", "coca?cola", "red-white -blue", "red-white- blue", "red-white-\nblue", "redwhite blue"),
]


def textvqa_val() -> Case:
    """Ten people's answers as texts."""
    docs = [
        {"question_id": number, "question": question, "answers": _crowd(people)}
        for number, (question, people) in enumerate(zip(_questions(), PEOPLE))
    ]
    return Case(docs, OPEN_ANSWERS)


def _questions() -> list[str]:
    return ["what is WRITTEN here?", "How many?", "çan you read it", "WHAT?  ", "éclair or Scone?", "a\nb?"]


def vizwiz_vqa_val() -> Case:
    """The same form as TextVQA, with what people say of pictures that don't tell."""
    docs = textvqa_val().docs
    docs += [
        {"question_id": 9, "question": "what IS this?", "answers": _crowd([("unanswerable", 7), ("unsuitable", 3)])}
    ]
    return Case(docs, [*OPEN_ANSWERS, "Unanswerable", "unanswerable.", "unsuitable image"])


def vqav2_val() -> Case:
    """Ten people's answers as objects with numbers."""
    docs = []
    for number, (question, people) in enumerate(zip(_questions(), PEOPLE)):
        answers = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": each}
            for each, answer in enumerate(_crowd(people), 1)
        ]
        row = {"question_id": number, "question": question, "answers": answers}
        docs.append(row | {"multiple_choice_answer": people[0][0], "answer_type": "other"})
    return Case(docs, OPEN_ANSWERS)


def scienceqa_img() -> Case:
    """Two to five options, with and without a hint."""
    choices = ["a cat", "a dog", "Banana", "none of these", "5"]
    hints = ["", "Look at the picture.\nIt is a map.", "", "Naïve hint"]
    docs = [
        {"question": f"Question {count}?", "choices": choices[:count], "hint": hint, "answer": count - 2}
        for count, hint in zip(range(2, 6), hints)
    ]
    return Case(docs, ["A. a cat", "B.", "C.", "C", "c", "D. none", "d", "Z", "AB", "Ä.", "A.)", "B. "])


def mmbench_en_dev_static() -> Case:
    """A question in all its four rotations, and others in one or two; missing options in each of the forms."""
    texts = ["a cat", "a dog", "Banana", "the D"]
    rows: list[dict[str, Any]] = []
    for turn in range(4):
        options = texts[turn:] + texts[:turn]
        rows.append({"index": 7 + turn * 1_000_000, "question": "What is it?", "hint": "nan"})
        rows[-1] |= dict(zip("ABCD", options)) | {"answer": "ABCD"[options.index("a dog")]}
    two = {"question": "Which is redder?", "hint": "Look closely.", "C": "nan", "D": "nan"}
    rows.append({"index": 8, **two, "A": "red", "B": "blue", "answer": "A"})
    rows.append({"index": 1_000_008, **two, "A": "blue", "B": "red", "answer": "B"})
    rows.append({"index": 9, "question": "How many?", "hint": None, "A": "2", "B": "12", "C": "3.14", "D": None})
    rows[-1] |= {"answer": "C"}
    rows.append({"index": 10, "question": "Where?", "hint": "", "A": "it's red", "B": "", "C": "yes\n", "D": "usa"})
    rows[-1] |= {"answer": "D", "E": "elsewhere\n"}
    rest = {"category": "color", "L2-category": "perception", "source": "made up", "split": "dev"}
    answers = [
        "The best option is D",
        "B. a dog",
        "(C)",
        "A,",
        "B: a dog",
        "C).",
        "(D).",
        ":A",
        ": B",
        "A cat",
        "it's a dog",
        "it is A dog",
    ]
    answers += [
        "I choose a dog",
        "NBA",
        "A B C",
        "A a",
        "It is A",
        "option D, not A.",
        "the correct answer is (b)",
        "12",
        "red",
    ]
    answers += ["E is right: a dog", "E. a dog", "A. or B. a dog", "C or B a dog", "A/x or y/B", "(D)s NBA"]
    answers += ["(A)s, but the answer is xBx.", "(A)s but xBx x"]
    return Case([{"E": None} | row | rest for row in rows], answers, [[0, 1, 2, 3], [4, 5], [6], [7]])


def seedbench() -> Case:
    """Pictures and videos."""
    options = {"choice_a": "One", "choice_b": "two", "choice_c": "Three,\nor four", "choice_d": "naïve"}
    docs = [
        {"question_id": str(number), "question": "How many?", "answer": letter, "data_type": kind, **options}
        for number, (letter, kind) in enumerate([("A", "image"), ("B", "video"), ("C", "image"), ("D", "image")])
    ]
    return Case(docs, ["Apple", "Dogs", "d", "cat", "\nB", "(A)", "[B]", "C", "D.", "a"])


def ai2d() -> Case:
    """Two to four options; the answer's number as text."""
    options = ["Leaf", "root", "A", "none, of these"]
    docs = [
        {"question": f"Which is labelled {count}?", "options": options[:count], "answer": str(count - 1)}
        for count in (2, 3, 4)
    ] + [{"question": "Which?", "options": options, "answer": "0"}]
    return Case(
        docs, ["C.", " C. leaf", "c.", "(C)", "'D'", "D!", "D. none", "B.C.", "B .", "\nB. root", "A. ", "C", "d"]
    )


def chartqa() -> Case:
    """Numbers, percentages, a zero, words, a list."""
    targets = ["100", "12%", "0", "1,000", "Red", "-5", "[red, white]", "3.0", "0.125", "3%"]
    docs = [
        {
            "question": f"What is number {number}?",
            "answer": target,
            "type": ["human_test", "augmented_test"][number % 2],
        }
        for number, target in enumerate(targets)
    ]
    answers = ["104.9", "105", "105.0001", "94.99", "99%", "10000%", "12", "0.126", "11.4%", "0.0", "-0", "red", "RED."]
    return Case(docs, [*answers, "[Red, White]", "3", "2.85", "2.84", "3%%", "%", "-4.8", "5", "0.12 ", "infinity"])


def docvqa_val() -> Case:
    """One to three accepted answers."""
    accepted = [
        ["1,000"],
        ["Coca-Cola", "coca cola"],
        ["University of  California"],
        ["ß-Carotin", "x"],
        ["a", "U.S.A."],
    ]
    docs = [
        {"questionId": str(number), "question": "What is the  name?", "answers": each}
        for number, each in enumerate(accepted)
    ]
    answers = [
        "Coca  Cola",
        "COCA COLA",
        "coca",
        "university of california",
        "University",
        "Univ of California, San Diego",
    ]
    return Case(
        docs,
        [
            *answers,
            "ß-carotin",
            "ß-carotine",
            "ß-caroti",
            "ss-carotin",
            "X",
            "1,00",
            "$1,000",
            "1.000",
            "U.S.",
            "b",
            "ab",
        ],
    )


CASES = {
    make.__name__: make
    for make in (
        *(mme, pope, gqa, textvqa_val, scienceqa_img, mmbench_en_dev_static),
        *(vqav2_val, vizwiz_vqa_val, seedbench, ai2d, chartqa, docvqa_val),
    )
}
