"""A multi-turn agent: the model chooses an action, the program carries it out, and so on."""

from typing import Any

from measure import main

import inferplane.lang as sgl

TURNS = 4
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Kenya": "Nairobi",
}
PEOPLE = {"Paris": "2.1 million", "Tokyo": "14 million", "Cairo": "10 million"}
RULES = """\
You answer questions with the help of two tools. capital[COUNTRY] tells the capital of a country,
and people[CITY] tells how many people live in a city. Finish[ANSWER] ends the work.

Question: How many people live in the capital of Egypt?
Action: capital[Egypt]
Result: Cairo
Action: people[Cairo]
Result: 10 million
Action: Finish[10 million]

Question: What is the capital of Peru?
Action: capital[Peru]
Result: Lima
Action: Finish[Lima]

"""
QUESTIONS = [
    "How many people live in the capital of Japan?",
    "What is the capital of Norway?",
    "How many people live in the capital of France?",
    "What is the capital of Kenya?",
]


def use(tool: str, word: str) -> str:
    table = CAPITALS if tool == "capital" else PEOPLE
    return table.get(word, "unknown")


@sgl.function
def agent(s: Any, question: str) -> None:
    s += RULES
    s += f"Question: {question}\n"
    for turn in range(TURNS):
        s += "Action:" + sgl.select("action", [" capital", " people", " Finish"])
        s += "[" + sgl.gen("word", max_tokens=12, stop=["]", "\n"]) + "]\n"
        action, word = s["action"].strip(), s["word"]
        if action == "Finish" or turn == TURNS - 1:
            s.set_var("answer", word)
            return
        s += f"Result: {use(action, word)}\n"


def run(backend: Any) -> str:
    items = [{"question": question} for question in QUESTIONS]
    states = agent.run_batch(items, backend=backend, temperature=0)
    return "\n".join(state.text()[len(RULES) :] for state in states)


if __name__ == "__main__":
    main(run, __doc__)
