"""Compiles the sampling kernels for a GPU that need not be there: the interpreter accepts code
that the compiler does not. A program of its own: kernels are either compiled or interpreted."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inferplane_triton.kernels import derive
from inferplane_triton.kernels import sampling as kernels
from inferplane_triton.kernels.wide_sampling import wide

F, I = "*fp32", "*i32"  # noqa: E741
SETTINGS = {"temperature_ptr": F, "top_k_ptr": I, "top_p_ptr": F, "min_p_ptr": F}
WHERE = {"seed_ptr": I, "sample_ptr": I, "position_ptr": I}
LISTS = {"peak_ptr": F, "stat_ptr": F, "count_ptr": I, "value_ptr": F, "id_ptr": I}
LISTS |= {"mark_ptr": I}
POINTERS = SETTINGS | WHERE | LISTS
POINTERS |= {"logits_ptr": F, "out_ptr": I, "own_ptr": I, "sum_ptr": F, "above_ptr": I}
POINTERS |= {"score_ptr": F, "token_ptr": I, "logprob_ptr": F, "rank_ptr": I}
POINTERS |= {"part_ptr": "*i64", "top_id_ptr": I, "top_logprob_ptr": F}
PENALTIES = {"counts_ptr": I, "in_prompt_ptr": "*i1", "bias_ptr": F, "bitmask_ptr": I}
PENALTIES |= dict.fromkeys(("repetition_ptr", "frequency_ptr", "presence_ptr"), F)
PENALTIES |= {"banned_ptr": I, "out_ptr": F, "table_row_ptr": I}
TILES = {"SEGMENT": 2048, "GROUP": 64, "GROUPS": 32, "CAP": 4096, "BITS": 4, "BLOCK": 512}
TILES |= {"PADDED": 4096, "SEGMENTS_PAD": 128, "BANNED_PAD": 64, "CORES": 132, "CORES_PAD": 256}
TILES |= {"WAYS": 16, "LANES": 512, "UNROLL": 4, "ENOUGH": 1024}

WORDS = dict.fromkeys((name for name in derive.derive.arg_names if name.endswith("_ptr")), I)

CASES = [
    (derive.derive, {"PAGE": 16, "MAIN": True}, WORDS, ()),
    (derive.derive, {"PAGE": 16, "MAIN": False}, WORDS, ()),
    (kernels.restrict, {}, PENALTIES, ()),
    (kernels.restrict, {}, {"out_ptr": F}, tuple(PENALTIES)),
    (kernels.peaks, {"LOGPROBS": False}, {}, ("own_ptr", "above_ptr")),
    (kernels.peaks, {"LOGPROBS": True}, {}, tuple(SETTINGS)),
    (kernels.bound, {"LOGPROBS": False, "TOP": 0}, {}, ()),
    (kernels.bound, {"LOGPROBS": True, "TOP": 20}, {}, (*SETTINGS, "mark_ptr")),
    (kernels.collect, {}, {}, ()),
    (kernels.visit, {"GREEDY": True, "FILTERED": False}, {}, tuple(LISTS)),
    (kernels.visit, {"GREEDY": False, "FILTERED": False}, {}, tuple(LISTS)),
    (kernels.visit, {"GREEDY": False, "FILTERED": True}, {}, ()),
    (kernels.finish, {"FILTERED": False}, {}, tuple(LISTS)),
    (kernels.finish, {"FILTERED": True}, {}, ()),
    (wide, {}, {}, ()),
    (kernels.logprobs, {"TOP": 0}, {}, ()),
    (kernels.logprobs, {"TOP": 20}, {}, ()),
    (kernels.embed, {"SCALE": 1.5}, {"id_ptr": I, "weight_ptr": "*bf16", "out_ptr": "*bf16"}, ()),
]


def build(target: GPUTarget) -> None:
    for kernel, flags, types, absent in CASES:
        signature, constants = {}, {}
        for name in kernel.arg_names:
            given = types.get(name) or (POINTERS.get(name) if name not in absent else None)
            if name == "PDL":
                constants[name] = target.backend == "cuda" and target.arch >= 90
            elif name in flags or name in TILES:
                constants[name] = flags.get(name, TILES.get(name))
            elif name.endswith("_ptr") and given is None:
                constants[name] = None
            signature[name] = "constexpr" if name in constants else given or "i32"
        source = ASTSource(kernel, signature, constexprs=constants)
        warps = {"num_warps": TILES["LANES"] // 32} if kernel is wide else {}
        made = triton.compile(source, target=target, options=warps)
        text = made.asm.get("ptx", "")
        assert "lg2.approx" not in text, "the noise needs the full precision of the logarithm"
        print(kernel.__name__, flags, len(made.asm))


if __name__ == "__main__":
    backend, arch, width = sys.argv[1:]
    build(GPUTarget(backend, int(arch) if arch.isdecimal() else arch, int(width)))
