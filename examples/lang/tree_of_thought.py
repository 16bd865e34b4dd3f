"""Tree of thought: propose steps side by side, rate each, go on from the best ones."""

from typing import Any

from measure import main

import inferplane.lang as sgl

WIDTH, KEPT, DEPTH = 3, 2, 2
RATINGS = [" bad", " fair", " good", " excellent"]
PROBLEM = (
    "A farmer has a fox, a chicken and a bag of corn, and a boat that carries the farmer and one"
    " of them. Left alone, the fox eats the chicken, and the chicken eats the corn. All of them"
    " must cross the river. We work out step by step how they cross, think about what stays alone"
    " on each side, and never leave two together of whom one eats the other."
)


@sgl.function
def solve(s: Any, problem: str) -> None:
    s += f"Problem: {problem}\n\n"
    states = [s]
    for step in range(1, DEPTH + 1):
        branches = [fork for state in states for fork in state.fork(WIDTH)]
        for number, branch in enumerate(branches):
            branch += f"Step {step}:"
            branch += sgl.gen("thought", max_tokens=32, stop="\n", temperature=0.3 + 0.2 * number)
            branch += "\n"
        graded = [branch.copy() for branch in branches]
        for grade in graded:
            grade += "Is this step good? The step is" + sgl.select("rating", RATINGS)
        ranks = [RATINGS.index(grade["rating"]) for grade in graded]
        best = sorted(range(len(branches)), key=lambda index: -ranks[index])
        states = [branches[index] for index in best[:KEPT]]
    answer = states[0]
    answer += "In short, the first thing to do is" + sgl.gen("answer", max_tokens=24, stop="\n")
    s.set_var("solution", answer.text() + "\n")


def run(backend: Any) -> str:
    return str(solve.run(PROBLEM, backend=backend, temperature=0)["solution"])


if __name__ == "__main__":
    main(run, __doc__)
