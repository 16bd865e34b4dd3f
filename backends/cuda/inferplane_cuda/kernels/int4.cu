// y = x @ W.T for few rows of x and INT4 weights, by the matrix units of each warp on its own.
//
// W is stored as the units want it: a lane loads 16 bytes and has its operands of four products of
// 16 rows and 16 values of K, without a way through shared memory. The order of K inside 64 values is
// free as long as x has it too, so a lane's values of x are neighbours: its 16 bytes serve two
// products. Layout (Marlin's idea, arXiv 2408.11743, in another order):
//   w     u32 [N / 16][K / 64][32 lanes][4]: word 2 h + j of lane (r = lane / 4, q = lane % 4) is for
//         k = 64 tile + 32 h + 8 q + 4 j + (0 1 2 3); nibble i of the low (high) half is row
//         r + 8 (i % 2), k + 2 (i / 2) (+ 1)
//   scale [N / 16][K / GROUP][8]: of rows r and r + 8, then their offsets; fp16 or f32
//
// Limit: N K / 2 bytes and 2 or 4 (fp16, with offsets) for GROUP weights. Instructions a lane for 8
// weights: 11 to unpack, 1 or 2 products for each 8 rows of x, about 2 for x and loops: a third of
// the slots in the time of the bytes on H100.
//
// WARPS of a program share its STRIPS of 16 rows and take every WARPS-th step of 128 values of K;
// DEPTH steps of weights are in flight in registers, and of x in shared memory, for each warp. The
// sums of the warps meet in shared memory in one order. A row's bits do not depend on the others.
// PDL: the weights in flight do not depend on the kernel before and are asked for before the wait.
#include "sums.cuh"

// Defined by the compiler's options: ROWS of x at most, STRIPS, WARPS, DEPTH, GROUP, OFFSETS, WIDE (f32
// scales), HALF, BIAS
#define SETS (128 / GROUP)
#define WORDS ((1 + OFFSETS) * (1 + WIDE))
#define LINE 320  // bytes between rows of x in shared memory: of 256, which would meet in one bank
#define SLOT (ROWS * LINE)

struct Step {
    uint4 w[STRIPS][2];
    unsigned scale[STRIPS][SETS][WORDS];
};

// Where the lane's weights and scales of a strip's step are
struct Source {
    const uint4* w;
    const unsigned* scale;
};

// Takes the step that `from` is at, and moves it to the warp's next one.
__device__ inline void fetch(Step& s, Source (&from)[STRIPS]) {
#pragma unroll
    for (int i = 0; i < STRIPS; ++i) {
        s.w[i][0] = stream(from[i].w);
        s.w[i][1] = stream(from[i].w + 32);
#pragma unroll
        for (int g = 0; g < SETS; ++g)
            constants<WORDS>(from[i].scale + g * 8 * WORDS, s.scale[i][g]);
        from[i].w += WARPS * 64;
        from[i].scale += WARPS * SETS * 8 * WORDS;
    }
}

// 256 bytes of each row, two rows at a time: from where the lane's 16 bytes are, moved to the warp's
// next step, to where they go
__device__ inline void fetch_x(unsigned slot, const char*& x, long two_rows, int rows) {
#pragma unroll
    for (int m = 0; m < ROWS; m += 2)
        if (m < rows) copy_async(slot + m * LINE, x + m / 2 * two_rows);
    x += WARPS * 256;
}

// A group is done: its sums times its scales go to the total
__device__ inline void add_group(
    float (&total)[TILES][4], float (&sum)[TILES][4], float (&ones)[TILES][4],
    const unsigned (&stored)[WORDS]) {
    float s0, s1, o0 = 0, o1 = 0;
#if WIDE
    s0 = __uint_as_float(stored[0]);
    s1 = __uint_as_float(stored[1]);
#else
    halves(stored[0], s0, s1);
#endif
#if OFFSETS && WIDE
    o0 = __uint_as_float(stored[2]);
    o1 = __uint_as_float(stored[3]);
#elif OFFSETS
    halves(stored[1], o0, o1);
#endif
#ifdef RAW
    o0 -= 128.0f * s0, o1 -= 128.0f * s1;
#else
    o0 += 8.0f * s0;  // q scale + offset = (q - 8) scale + (offset + 8 scale)
    o1 += 8.0f * s1;
#endif
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        total[t][0] += s0 * sum[t][0];
        total[t][1] += s0 * sum[t][1];
        total[t][2] += s1 * sum[t][2];
        total[t][3] += s1 * sum[t][3];
#if OFFSETS
        total[t][0] += o0 * ones[t][0];
        total[t][1] += o0 * ones[t][1];
        total[t][2] += o1 * ones[t][0];
        total[t][3] += o1 * ones[t][1];
#endif
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[t][i] = 0;
    }
}

__device__ inline void compute(
    float (&total)[STRIPS][TILES][4], const Step& s, unsigned x_at) {
    float sum[STRIPS][TILES][4] = {}, ones[TILES][4] = {};
    const unsigned one[4] = {ONE, ONE, ONE, ONE};
#pragma unroll
    for (int half = 0; half < 4; ++half) {  // 32 values of K each
        uint4 x[TILES];
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            x[t] = load_shared(x_at + 8 * t * LINE + 64 * half);
#if OFFSETS
            multiply(ones[t], one, x[t].x, x[t].y);
            multiply(ones[t], one, x[t].z, x[t].w);
#endif
        }
#pragma unroll
        for (int i = 0; i < STRIPS; ++i) {
            const uint4& v = s.w[i][half / 2];
            const unsigned words[2] = {half % 2 ? v.z : v.x, half % 2 ? v.w : v.y};
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                unsigned a[4];
#pragma unroll
                for (int r = 0; r < 4; ++r) a[r] = weights(words[j], r);
#pragma unroll
                for (int t = 0; t < TILES; ++t)
                    multiply(sum[i][t], a, j ? x[t].z : x[t].x, j ? x[t].w : x[t].y);
            }
        }
        if ((half + 1) * 32 % GROUP == 0) {
#pragma unroll
            for (int i = 0; i < STRIPS; ++i)
                add_group(total[i], sum[i], ones, s.scale[i][half * 32 / GROUP]);
#pragma unroll
            for (int t = 0; t < TILES; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) ones[t][i] = 0;
        }
    }
}

// x [M, K], M up to ROWS, K = 128 steps -> y [M, N]; a program 16 STRIPS rows of W
// shared memory: the larger of WARPS * DEPTH * SLOT and SUMS bytes
extern "C" __global__ void __launch_bounds__(32 * WARPS) int4_few(
    const char* x, const uint4* w, const unsigned* scale, const unsigned short* bias,
    unsigned short* y, int M, int N, int steps) {
    start_next();
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, strip = blockIdx.x * STRIPS;
    Source from[STRIPS];
#pragma unroll
    for (int i = 0; i < STRIPS; ++i) {
        long at = (long)(strip + i) * steps;
        at += warp;
        from[i].w = w + at * 64 + lane;
        from[i].scale = scale + (at * SETS * 8 + lane / 4) * WORDS;
    }
    Step held[DEPTH];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        if (warp + d * WARPS < steps) fetch(held[d], from);
    }
    // rows of x from M on, and of a lane's column from ROWS on, are others' or nobody's: not stored
    unsigned shared = shared_memory(), ring = shared + warp * DEPTH * SLOT;
    unsigned x_to = ring + lane / 16 * LINE + lane % 16 * 16;
    unsigned x_at = ring + lane / 4 % ROWS * LINE + lane % 4 * 16;
    long two_rows = (long)steps * 512;
    x += lane / 16 * (two_rows / 2) + lane % 16 * 16 + warp * 256;
    int rows = ROWS == 1 && lane >= 16 ? 0 : M - lane / 16;
    wait_for_inputs();
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        if (warp + d * WARPS < steps) fetch_x(x_to + d * SLOT, x, two_rows, rows);
        commit();
    }
    float total[STRIPS][TILES][4] = {};
    for (int base = warp; base < steps; base += WARPS * DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            int step = base + d * WARPS, next = step + DEPTH * WARPS;
            wait_all_but<DEPTH - 1>();
            if (step < steps) compute(total, held[d], x_at + d * SLOT);
            __syncwarp();
            if (next < steps) {
                fetch(held[d], from);
                fetch_x(x_to + d * SLOT, x, two_rows, rows);
            }
            commit();
        }
    }
    finish(total, strip, M, [=](int m, int n, float value) {
#if BIAS
        value += first(bias[n]);
#endif
        y[m * (long)N + n] = rounded(value);
    });
}
