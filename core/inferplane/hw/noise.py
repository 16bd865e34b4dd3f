"""The noise of sampling, defined bit for bit (docs/noise.md), so that a seed gives the same tokens
on every device, in every batch.

Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) with
key = (seed low, seed high) and counter = (token id // 4, position, sample index, 0); word
token id % 4 of the result belongs to the token. The uniform is (word // 512 + 0.5) / 2^23, exact
in float32 and never 0 or 1, the Gumbel noise -log(-log(uniform)).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(counter: "list[Tensor]", key: "list[Tensor]") -> "list[Tensor]":
    """Four words of randomness. Words are i64 tensors that hold unsigned 32 bit values and
    broadcast against each other; a 64 bit product may wrap, its bits are still right."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32 & MASK) ^ c1 ^ k0,
            p1 & MASK,
            (p0 >> 32 & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def words(seed: "Tensor", sample_index: "Tensor", position: "Tensor", vocab: int) -> "Tensor":
    """i64[N, vocab] random words; seed i32[N, 2] (low, high), sample_index and position i32[N]."""
    import torch

    wide = [x.long().unsqueeze(-1) & MASK for x in (seed[:, 0], seed[:, 1], sample_index, position)]
    block = torch.arange((vocab + 3) // 4, device=seed.device).unsqueeze(0)
    counter = [block, wide[3], wide[2], torch.zeros_like(wide[2])]
    four = torch.broadcast_tensors(*philox(counter, wide[:2]))
    return torch.stack(four, dim=-1).flatten(-2)[:, :vocab]  # [N, V]


def uniforms(seed: "Tensor", sample_index: "Tensor", position: "Tensor", vocab: int) -> "Tensor":
    """f32[N, vocab] from 2^-24 to 1 - 2^-24; 23 bits and a half are all that float32 holds."""
    return ((words(seed, sample_index, position, vocab) >> 9).float() + 0.5) * 2.0**-23


def gumbel(seed: "Tensor", sample_index: "Tensor", position: "Tensor", vocab: int) -> "Tensor":
    """Gumbel noise f32[N, vocab]; arguments as in `words`."""
    import torch

    u = uniforms(seed, sample_index, position, vocab)
    return -torch.log(-torch.log(u))
