// y = x @ W.T for few rows of x and INT4 weights, by the matrix units of each warp on its own.
//
// W is stored as the units want it: a lane loads 16 bytes and has its operands of four products of
// 16 rows and 16 values of K, without a way through shared memory. The order of K inside 64 values
// is free as long as x has it too, so a lane's values of x are neighbours: its 16 bytes serve two
// products. Layout (Marlin's idea, arXiv 2408.11743, in another order):
//   w     u32 [N / 16][K / 64][32 lanes][4]: word 2 h + j of lane (r = lane / 4, q = lane % 4)
//         is for k = 64 tile + 32 h + 8 q + 4 j + (0 1 2 3); nibble i of the low (high) half is row
//         r + 8 (i % 2), k + 2 (i / 2) (+ 1)
//   scale [N / 16][K / GROUP][8]: of rows r and r + 8, then their offsets; fp16 or f32
//
// Limit: N K / 2 bytes and 2 or 4 (fp16, with offsets) for GROUP weights. Instructions a lane for 8
// weights: 11 to unpack, 1 or 2 products for each 8 rows of x, about 2 for x and loops: a third of
// the slots in the time of the bytes. Reached on one H200 (4.15 TB/s) with 28672 x 4096: 71 % of
// the limit for 1 row, 62 % for 8, 55 % for 16. From 32 rows on x is more bytes through L2 than W:
// all of it for each program.
//
// ACROSS warps take neighbouring STRIPS of 16 rows of W and share x; the others of WARPS cut K
// among them in steps of 128, each every so many. DEPTH steps of weights are in flight in
// registers, and of x in shared memory. The sums of the warps meet in shared memory in one order. A
// row's bits do not depend on the others. PDL: the weights in flight do not depend on the kernel
// before and are asked for before the wait.
#include "sums.cuh"

// Defined by the compiler's options: ROWS of x in a program at most, STRIPS, WARPS, ACROSS, DEPTH,
// GROUP, OFFSETS (1: offsets, 2: zero points, offset = -scale zero), WIDE (f32 scales), SCALED
// (weights are scaled in x's type before the product: no sums of groups in registers), RAW (weights
// keep the 128 that unpacking adds, offsets take it off; bf16 with OFFSETS), HALF, BIAS
#define SETS (128 / GROUP)
#define WORDS ((1 + (OFFSETS > 0)) * (1 + WIDE))
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

__device__ inline Source source(
    const uint4* w, const unsigned* scale, int strip, int steps, int step) {
    long at = (long)strip * steps + step;
    int lane = threadIdx.x % 32;
    return {w + at * 64 + lane, scale + (at * SETS * 8 + lane / 4) * WORDS};
}

// Takes the step that `from` is at, and moves it to the warp's next one.
template <int COUNT>
__device__ inline void fetch(
    uint4 (&w)[COUNT][2], unsigned (&scale)[COUNT][SETS][WORDS], Source (&from)[COUNT], int next) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        w[i][0] = stream(from[i].w);
        w[i][1] = stream(from[i].w + 32);
#pragma unroll
        for (int g = 0; g < SETS; ++g)
            constants<WORDS>(from[i].scale + g * 8 * WORDS, scale[i][g]);
        from[i].w += next * 64;
        from[i].scale += next * SETS * 8 * WORDS;
    }
}

// 256 bytes of each row, 2 ACROSS rows at a time: from where the lane's 16 bytes are, moved to the
// warp's next step, to where they go
__device__ inline void fetch_x(unsigned slot, const char*& x, long rows_on, int rows) {
#pragma unroll
    for (int m = 0; m < ROWS; m += 2 * ACROSS)
        if (m < rows) copy_async(slot + m * LINE, x + m / (2 * ACROSS) * rows_on);
    x += ALONG * 256;
}

// Of the lane's two rows: q scale + offset = (q - zero) scale + (offset + zero scale)
__device__ inline void scales(
    const unsigned (&stored)[WORDS], float zero, float (&s)[2], float (&o)[2]) {
#if WIDE
    s[0] = __uint_as_float(stored[0]), s[1] = __uint_as_float(stored[1]);
#else
    halves(stored[0], s[0], s[1]);
#endif
    o[0] = o[1] = 0;
#if OFFSETS
#if WIDE
    o[0] = __uint_as_float(stored[2]), o[1] = __uint_as_float(stored[3]);
#else
    halves(stored[1], o[0], o[1]);
#endif
#if OFFSETS == 2
    o[0] *= -s[0], o[1] *= -s[1];
#endif
    o[0] += zero * s[0], o[1] += zero * s[1];
#endif
}

// A group is done: its sums times its scales go to the total
__device__ inline void add_group(
    float (&total)[TILES][4], float (&sum)[TILES][4], float (&ones)[TILES][4],
    const unsigned (&stored)[WORDS]) {
    float s[2], o[2];
    scales(stored, RAW ? -128.0f : 8.0f, s, o);
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            total[t][e] += s[e / 2] * sum[t][e];
            if (OFFSETS) total[t][e] += o[e / 2] * ones[t][e % 2];
            sum[t][e] = 0;
        }
}

__device__ inline void load_x(uint4 (&x)[TILES], unsigned x_at) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) x[t] = load_shared(x_at + 8 * t * LINE);
}

// Weights of a lane for 16 values of K
__device__ inline void unpack(unsigned (&a)[4], const uint4 (&w)[2], int half, int j) {
    const uint4& v = w[half / 2];
    unsigned word = half % 2 ? (j ? v.w : v.z) : (j ? v.y : v.x);
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = weights(word, r);
}

__device__ inline void compute(
    float (&total)[STRIPS][TILES][4], const Step& s, unsigned x_at) {
#if SCALED
    unsigned by[STRIPS][2], plus[STRIPS][2];
#else
    float sum[STRIPS][TILES][4] = {}, ones[TILES][4] = {};
    const unsigned one[4] = {ONE, ONE, ONE, ONE};
#endif
#pragma unroll
    for (int half = 0; half < 4; ++half) {  // 32 values of K each
        uint4 x[TILES];
        load_x(x, x_at + 64 * half);
#pragma unroll
        for (int i = 0; i < STRIPS; ++i) {
#if SCALED
            if (half * 32 % GROUP == 0) {
                float factor[2], offset[2];
                scales(s.scale[i][half * 32 / GROUP], 8.0f, factor, offset);
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    by[i][r] = pair(factor[r], factor[r]), plus[i][r] = pair(offset[r], offset[r]);
            }
#endif
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                unsigned a[4];
                unpack(a, s.w[i], half, j);
#if SCALED
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    a[r] = multiply_add(a[r], by[i][r % 2], plus[i][r % 2]);
                float (&to)[TILES][4] = total[i];
#else
                float (&to)[TILES][4] = sum[i];
#endif
#pragma unroll
                for (int t = 0; t < TILES; ++t)
                    multiply(to[t], a, j ? x[t].z : x[t].x, j ? x[t].w : x[t].y);
            }
        }
#if !SCALED
#if OFFSETS
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            multiply(ones[t], one, x[t].x, x[t].y);
            multiply(ones[t], one, x[t].z, x[t].w);
        }
#endif
        if ((half + 1) * 32 % GROUP == 0) {
#pragma unroll
            for (int i = 0; i < STRIPS; ++i)
                add_group(total[i], sum[i], ones, s.scale[i][half * 32 / GROUP]);
#pragma unroll
            for (int t = 0; t < TILES; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) ones[t][i] = 0;
        }
#endif
    }
}

// x [M, K], K = 128 steps -> y [M, N]; a program 16 STRIPS ACROSS rows of W and ROWS of x
// shared memory: the larger of ALONG * DEPTH * SLOT and SUMS bytes
extern "C" __global__ void __launch_bounds__(32 * WARPS) int4_few(
    const char* x, const uint4* w, const unsigned* scale, const unsigned short* bias,
    unsigned short* y, int M, int N, int steps) {
    start_next();
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int across = warp % ACROSS, along = warp / ACROSS;
    int strip = blockIdx.x * STRIPS * ACROSS;
    Source from[STRIPS];
#pragma unroll
    for (int i = 0; i < STRIPS; ++i)
        from[i] = source(w, scale, strip + across * STRIPS + i, steps, along);
    Step held[DEPTH];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        if (along + d * ALONG < steps) fetch(held[d].w, held[d].scale, from, ALONG);
    // rows of x from M on, and of a lane's column from ROWS on, are others' or nobody's: not stored
    long row_bytes = (long)steps * 256, rows_on = 2 * ACROSS * row_bytes;
    x += blockIdx.y * ROWS * row_bytes;
    y += blockIdx.y * (long)ROWS * N;
    M = min(M - (int)blockIdx.y * ROWS, ROWS);
    unsigned ring = shared_memory() + along * DEPTH * SLOT;
    int mine = across * 2 + lane / 16;
    unsigned x_to = ring + mine * LINE + lane % 16 * 16;
    unsigned x_at = ring + lane / 4 % ROWS * LINE + lane % 4 * 16;
    x += mine * row_bytes + lane % 16 * 16 + along * 256;
    wait_for_inputs();
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        if (along + d * ALONG < steps) fetch_x(x_to + d * SLOT, x, rows_on, M - mine);
        commit();
    }
    float total[STRIPS][TILES][4] = {};
    for (int base = along; base < steps; base += ALONG * DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            int step = base + d * ALONG, next = step + DEPTH * ALONG;
            wait_all_but<DEPTH - 1>();
            meet<ACROSS>(along);
            if (step < steps) compute(total, held[d], x_at + d * SLOT);
            meet<ACROSS>(along);
            if (next < steps) {
                fetch(held[d].w, held[d].scale, from, ALONG);
                fetch_x(x_to + d * SLOT, x, rows_on, M - mine);
            }
            commit();
        }
    }
    finish(total, across, along, M, [=](int m, int row, float value) {
        int n = 16 * strip + row;
#if BIAS
        value += first(bias[n]);
#endif
        y[m * (long)N + n] = rounded(value);
    });
}

#if !RAW
// W's strips from first_strip on -> out [16 gridDim.x, K], rounded once
extern "C" __global__ void __launch_bounds__(32 * WARPS) int4_dense(
    const uint4* w, const unsigned* scale, char* out, int first_strip, int steps) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Source from[1] = {source(w, scale, first_strip + blockIdx.x, steps, warp)};
    long row_bytes = (long)steps * 256;
    char* to = out + (16 * blockIdx.x + lane / 4) * row_bytes + lane % 4 * 16;
    for (int step = warp; step < steps; step += WARPS) {
        uint4 held[1][2];
        unsigned stored[1][SETS][WORDS];
        fetch(held, stored, from, WARPS);
        float s[2], o[2];
#pragma unroll
        for (int half = 0; half < 4; ++half) {
            if (half * 32 % GROUP == 0) scales(stored[0][half * 32 / GROUP], 8.0f, s, o);
            unsigned v[2][4];  // [row][k]
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                unsigned a[4];
                unpack(a, held[0], half, j);
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    v[r % 2][2 * j + r / 2] =
                        pair(first(a[r]) * s[r % 2] + o[r % 2], second(a[r]) * s[r % 2] + o[r % 2]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r)
                *(uint4*)(to + r * 8 * row_bytes + step * 256 + half * 64) =
                    uint4{v[r][0], v[r][1], v[r][2], v[r][3]};
        }
    }
}
#endif
