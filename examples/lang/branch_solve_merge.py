"""Branch, solve, merge: an essay is judged from several sides at once, then in one verdict."""

from typing import Any

from measure import main

import inferplane.lang as sgl

SIDES = ["clarity", "evidence", "originality", "language"]
GRADES = [" A", " B", " C", " D"]
ESSAY = """\
The sea has always been a road. Long before there were wheels, people travelled along the coast in
boats made of reed and skin, and they carried shells, obsidian and stories. A road on land must be
built and kept; the sea needs neither. That is why the oldest cities that traded far away lie by
the water, and why languages at the coast have borrowed more words than those of the mountains.
Today nine tenths of all goods still travel by ship. We look at the sky and think that the world
has become small because of aeroplanes, but what we eat, wear and use came over the water. Whoever
wants to understand the wealth of nations should look at their harbours first."""


@sgl.function
def judge(s: Any, essay: str) -> None:
    s += sgl.system("You judge essays. You are brief and fair.")
    with s.user():
        s += f"Here is an essay.\n\n{essay}\n\n"
        sides = s.fork(len(SIDES))
    for side, fork in zip(SIDES, sides, strict=True):
        fork += f"What do you think of its {side}? Answer in one sentence." + sgl.user_end()
        with fork.assistant():
            fork += sgl.gen("opinion", max_tokens=40, stop="\n")
        fork += sgl.user("Which grade do you give, from A to D?")
        fork += sgl.assistant("The grade is" + sgl.select("grade", GRADES))
    sides.join()
    with s.user():
        s += "These are four opinions about it.\n"
        for side, opinion, grade in zip(SIDES, s["opinion"], s["grade"], strict=True):
            s += f"{side}:{grade}. {opinion.strip()}\n"
        s += "Sum them up in one sentence."
    s += sgl.assistant(sgl.gen("verdict", max_tokens=48))


def run(backend: Any) -> str:
    state = judge.run(ESSAY, backend=backend, temperature=0)
    lines = [
        f"{side}:{grade} - {opinion.strip()}"
        for side, grade, opinion in zip(SIDES, state["grade"], state["opinion"], strict=True)
    ]
    return "\n".join([*lines, "", state["verdict"]])


if __name__ == "__main__":
    main(run, __doc__)
