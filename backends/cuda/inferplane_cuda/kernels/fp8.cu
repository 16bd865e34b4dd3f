// y = x @ W.T for few rows of x and FP8 weights, inputs quantized on the way or before.
//
// By the matrix units of each warp on its own, as int4.cu, but W [N, K] stays in rows: a lane's 16
// bytes of a row are its operands of two products, as x has the same order of K. Each program first
// asks for its weights, then reads all of x and quantizes it to shared memory: M K (2 + 1) bytes
// through L2 and about 2 instructions a value, which saves a kernel of about 2 us before each product.
//
// Limit: N K bytes. WARPS of a program share STRIPS of 16 rows and take every WARPS-th step of 128
// values of K, DEPTH steps in flight. Hopper's warp-level products of e4m3 convert to fp16 and sum in
// f32. A row's bits do not depend on the others. PDL: as int4.cu.
#include "sums.cuh"

// Defined by the compiler's options: ROWS of x at most, STRIPS, WARPS, DEPTH, QUANTIZE (x is bf16, or
// fp16 with HALF; else e4m3), STATIC (with the scale input_scale [1]), HALF, BIAS
#define LIMIT 448.0f
#define PER_ROW (WARPS / ROWS ? WARPS / ROWS : 1)  // warps that quantize a row of x

struct Step {
    uint4 w[STRIPS][2][2];  // [row r or r + 8][64 values of K]
};

__device__ inline void fetch(Step& s, const char* (&from)[STRIPS], long eight_rows) {
#pragma unroll
    for (int i = 0; i < STRIPS; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int c = 0; c < 2; ++c) s.w[i][r][c] = stream(from[i] + r * eight_rows + 64 * c);
        from[i] += WARPS * 128;
    }
}

__device__ inline void compute(float (&total)[STRIPS][TILES][4], const Step& s, unsigned x, int line) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        uint4 b[TILES];
#pragma unroll
        for (int t = 0; t < TILES; ++t) b[t] = load_shared(x + 8 * t * line + 64 * c);
#pragma unroll
        for (int i = 0; i < STRIPS; ++i) {
            const uint4 &u = s.w[i][0][c], &v = s.w[i][1][c];
            const unsigned one[4] = {u.x, v.x, u.y, v.y}, two[4] = {u.z, v.z, u.w, v.w};
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                multiply_fp8(total[i][t], one, b[t].x, b[t].y);
                multiply_fp8(total[i][t], two, b[t].z, b[t].w);
            }
        }
    }
}

__device__ inline float largest(const uint4& v) {
    float most = 0;
    const unsigned pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
        most = fmaxf(most, fmaxf(fabsf(first(pairs[i])), fabsf(second(pairs[i]))));
    return most;
}

__device__ inline unsigned quantized(unsigned low, unsigned high, float inverse) {
    return e4m3(
        first(low) * inverse, second(low) * inverse, first(high) * inverse,
        second(high) * inverse);
}

// x [M, K] to shared memory from `to` on in lines; its scales [ROWS] go to `scales`, which has room
// for [ROWS][PER_ROW + 1]
__device__ inline void take_x(
    const char* x, const float* input_scale, unsigned to, int line, unsigned scales, int M, int K) {
#if QUANTIZE
    int warp = threadIdx.x / 32, part = warp % PER_ROW * 32 + threadIdx.x % 32;
#pragma unroll
    for (int first_row = 0; first_row < ROWS; first_row += WARPS / PER_ROW) {
        int m = min(first_row + warp / PER_ROW, M - 1);  // warps without a row help: all must meet
        const uint4* row = (const uint4*)(x + m * (long)K * 2);
        float scale;
#if STATIC
        scale = *input_scale;
#else
        float most = 0;
#pragma unroll 8
        for (int i = part; i < K / 8; i += 32 * PER_ROW) most = fmaxf(most, largest(row[i]));
        most = most_of_warp(most);
        if (PER_ROW > 1) {
            store_float(scales + (ROWS + m * PER_ROW + warp % PER_ROW) * 4, most);
            __syncthreads();
            for (int i = 0; i < PER_ROW; ++i)
                most = fmaxf(most, load_float(scales + (ROWS + m * PER_ROW + i) * 4));
        }
        scale = most == 0 ? 1.0f : most / LIMIT;
#endif
        store_float(scales + m * 4, scale);
        float inverse = 1.0f / scale;
#pragma unroll 8
        for (int i = part; i < K / 8; i += 32 * PER_ROW) {
            uint4 v = row[i];
            store_pair(to + m * line + i * 8, quantized(v.x, v.y, inverse), quantized(v.z, v.w, inverse));
        }
    }
#else
    for (int m = 0; m < M; ++m)
        for (int i = threadIdx.x; i < K / 16; i += 32 * WARPS)
            copy_async(to + m * line + i * 16, x + m * (long)K + i * 16);
    if (threadIdx.x < M) store_float(scales + threadIdx.x * 4, input_scale[threadIdx.x]);
    commit();
    wait_all_but<0>();
#endif
    __syncthreads();
}

// x [M, K], M up to ROWS, W [N, K], K a multiple of 128, scale [N], input_scale [M] without QUANTIZE
// -> y [M, N]; a program 16 STRIPS rows of W
// shared memory: scales, (ROWS (PER_ROW + 1) 4 bytes) to the next 16, and ROWS (K + 64) or SUMS bytes
extern "C" __global__ void __launch_bounds__(32 * WARPS) fp8_few(
    const char* x, const float* input_scale, const char* w, const float* scale,
    const unsigned short* bias, unsigned short* y, int M, int N, int K) {
    start_next();
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, strip = blockIdx.x * STRIPS;
    int steps = K / 128;
    const char* from[STRIPS];
#pragma unroll
    for (int i = 0; i < STRIPS; ++i)
        from[i] = w + (long)(16 * (strip + i) + lane / 4) * K + warp * 128 + lane % 4 * 16;
    Step held[DEPTH];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        if (warp + d * WARPS < steps) fetch(held[d], from, (long)K * 8);
    wait_for_inputs();
    int line = K + 64;
    unsigned ring = shared_memory(), scales = ring + (ROWS * line > SUMS ? ROWS * line : SUMS);
    take_x(x, input_scale, ring, line, scales, M, K);
    // rows from M on are not there and not stored
    unsigned x_at = ring + lane / 4 % ROWS * line + lane % 4 * 16 + warp * 128;
    float total[STRIPS][TILES][4] = {};
    for (int base = warp; base < steps; base += WARPS * DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            int step = base + d * WARPS;
            if (step < steps) {
                compute(total, held[d], x_at, line);
                x_at += WARPS * 128;
            }
            if (step + DEPTH * WARPS < steps) fetch(held[d], from, (long)K * 8);
        }
    }
    finish(total, strip, M, [=](int m, int n, float value) {
        value *= load_float(scales + m * 4) * scale[n];
#if BIAS
        value += first(bias[n]);
#endif
        y[m * (long)N + n] = rounded(value);
    });
}
