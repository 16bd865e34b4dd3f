"""Draft trees: the tokens that one step verifies are the branches of a tree, laid out one after
the other in the pages, and each sees what the sequence had before and its own branch.

ForwardBatch.tree_mask has the branches. A branch gives what it would give as a plain sequence, so a
window counts the tokens of the branch, whose places `position` has, not those of the pages.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tree:
    """The n tokens of one sequence in this step, of which the masks can name the first D."""

    begin: "Tensor"
    """i32 []: tokens of the sequence before this step"""
    depths: "Tensor"
    """i32 [n]: how many tokens of its branch are before each token of the step"""
    depth: "Tensor"
    """i32 [queries]: the same of the queries at hand"""
    bits: "Tensor"
    """bool [queries, D]: what each of them sees"""
    drafted: "Tensor"
    """bool [queries]: draft tokens; others see all before them"""

    def of(self, queries: "Tensor") -> "Tree":
        """With queries in another order"""
        index = queries.long()
        return replace(
            self, depth=self.depth[index], bits=self.bits[index], drafted=self.drafted[index]
        )

    def sees(self, key: "Tensor") -> "Tensor":
        """bool [queries, keys], given that a key is not after the query in the pages"""
        at, most = key - self.begin, self.bits.shape[1]
        named = self.bits[:, at.clamp(0, most - 1).long()] & (at < most)
        return (at < 0) | named | ~self.drafted[:, None]

    def near(self, key: "Tensor", window: int, otherwise: "Tensor") -> "Tensor":
        """bool [queries, keys]: which keys are in the window; `otherwise` for plain tokens"""
        import torch

        at = key - self.begin
        place = torch.where(at < 0, at, self.depths[at.clamp(0, len(self.depths) - 1).long()])
        return torch.where(self.drafted[:, None], place > self.depth[:, None] - window, otherwise)


def tree_of(mask: "Tensor", position: "Tensor", rows: "Tensor", begin: "Tensor") -> Tree:
    """mask u8[T, W] and position i32[T] or i32[3, T] of a batch; `rows` [n]: the sequence's"""
    import torch

    index = rows.long()
    shift = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = ((mask[index].unsqueeze(-1) >> shift) & 1).flatten(1).bool()
    each = torch.arange(len(index), device=mask.device)
    own = bits.gather(1, each.clamp(max=bits.shape[1] - 1)[:, None])[:, 0]
    place = position.reshape(-1, position.shape[-1])[0][index]
    depth = place - place[0]
    return Tree(begin, depth, depth, bits, own & (each < bits.shape[1]))
