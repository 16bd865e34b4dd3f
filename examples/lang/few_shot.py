"""Few-shot classification: questions share the examples, the choices of one share its prompt."""

from typing import Any

from measure import main

import inferplane.lang as sgl

SHOTS = [
    ("The soup was cold and the waiter rude.", "negative"),
    ("A wonderful film, I laughed until I cried.", "positive"),
    ("The battery died after two days.", "negative"),
    ("Great value, and it arrived a day early.", "positive"),
    ("I could not put this book down.", "positive"),
    ("The room smelled of smoke and the bed was broken.", "negative"),
    ("Clear instructions, easy to build, looks lovely.", "positive"),
    ("They lost my luggage and never called back.", "negative"),
    ("The best coffee in town, and friendly people.", "positive"),
    ("Two hours of boredom that I will never get back.", "negative"),
    ("The screen is bright and the sound is rich.", "positive"),
    ("It broke the first time I used it.", "negative"),
    ("Our guide knew everything and made us smile.", "positive"),
    ("The seats are hard and the train was late again.", "negative"),
    ("My daughter plays with it every single day.", "positive"),
    ("Expensive, noisy and far too small.", "negative"),
    ("Fresh fish, a view of the sea, what more could one want?", "positive"),
    ("The update deleted all of my photographs.", "negative"),
    ("A kind doctor who took the time to explain.", "positive"),
    ("The colours faded after one wash.", "negative"),
]
QUESTIONS = [
    "The concert was magical from the first note to the last.",
    "I waited an hour for a burnt pizza.",
    "The jacket is warm, light and fits perfectly.",
    "The keyboard stopped working within a week.",
    "Such a beautiful garden, we will come back.",
    "The plot makes no sense and the actors look tired.",
    "Support answered within minutes and solved it.",
    "The hotel charged me twice and refused to pay back.",
    "Delicious bread, baked every morning.",
    "The museum was crowded and the air was stale.",
    "A clever, funny and moving story.",
    "The handle came off in my hand.",
]


@sgl.function
def classify(s: Any, review: str) -> None:
    s += "Decide whether each review is positive or negative.\n\n"
    for text, label in SHOTS:
        s += f"Review: {text}\nSentiment: {label}\n\n"
    s += "Review: " + review + "\nSentiment:"
    s += sgl.select("label", [" positive", " negative"])


def run(backend: Any) -> str:
    states = classify.run_batch([{"review": review} for review in QUESTIONS], backend=backend)
    pairs = zip(QUESTIONS, states, strict=True)
    return "\n".join(f"{state['label'].strip():9} {review}" for review, state in pairs)


if __name__ == "__main__":
    main(run, __doc__)
