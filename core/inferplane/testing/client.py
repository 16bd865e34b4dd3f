"""What the simulation knows of one open request. Knows nothing about the scheduler."""

from dataclasses import dataclass, field

from inferplane.messages import Submit
from inferplane.testing.hash_device import Oracle


@dataclass(slots=True)
class Client:
    submit: Submit
    arrival: int
    oracle: Oracle
    output: list[int] = field(default_factory=list)
    unheard: list[int] = field(default_factory=list)  # end of `output` that was not sampled
    heard: bool = False
    miscounted: bool = False  # the device's penalty counts lack an extension
    admitted: bool = False
    cached_tokens: int = 0

    def push(self, token: int, max_model_len: int) -> str | None:
        """One more token of output. Returns how the request ends, if it does."""
        submit = self.submit
        self.oracle.push(token)
        self.output.append(token)
        if token in submit.stop_ids and len(self.output) >= submit.params.min_tokens:
            return "stop"
        length = len(submit.prompt) + len(self.output)
        done = len(self.output) == submit.max_tokens or length == max_model_len
        return "length" if done else None
