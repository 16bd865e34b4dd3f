"""JSON extraction: the program writes the keys, the model fills in values that always parse."""

import json
from typing import Any

from measure import main

import inferplane.lang as sgl

TASK = """\
Read a text about a person and write down what it says as JSON: the name, the year of birth, the
country and the kind of work.

Text: Ada Lovelace, born in 1815 in England, wrote the first program for a machine.
JSON: {"name": "Ada Lovelace", "born": 1815, "country": "England", "work": "science"}

Text: The painter Frida Kahlo was born in Mexico in 1907 and is known for her portraits of herself.
JSON: {"name": "Frida Kahlo", "born": 1907, "country": "Mexico", "work": "art"}

"""
WORDS = r'"[A-Z][a-z]+( [A-Z][a-z]+){0,2}"'
WORK = ["science", "art", "sport", "politics"]
TEXTS = [
    "Marie Curie was born in Poland in 1867 and discovered two elements, radium and polonium.",
    "Born in Brazil in 1940, Pele scored more than a thousand goals in football.",
    "Nelson Mandela, born in 1918 in South Africa, became the president of his country.",
    "The composer Clara Schumann was born in 1819 in Germany and played the piano all her life.",
]


@sgl.function
def extract(s: Any, text: str) -> None:
    s += TASK
    s += "Text: " + text + "\nJSON: "
    with s.var_scope("json"):
        s += '{"name": ' + sgl.gen(regex=WORDS, max_tokens=16)
        s += ', "born": ' + sgl.gen(regex=r"1[0-9]{3}", max_tokens=8)
        s += ', "country": ' + sgl.gen(regex=WORDS, max_tokens=16)
        s += ', "work": "' + sgl.select("work", WORK) + '"}'


def run(backend: Any) -> str:
    states = extract.run_batch([{"text": t} for t in TEXTS], backend=backend, temperature=0)
    return "\n".join(json.dumps(json.loads(state["json"])) for state in states)


if __name__ == "__main__":
    main(run, __doc__)
