// The end of a product whose warps cut K among them.
#pragma once
#include "instructions.cuh"

#define ALONG (WARPS / ACROSS)
#define TILES ((ROWS + 7) / 8)  // of the units' 8 columns
#define PARTS (128 * TILES * STRIPS * ACROSS)
#define SUMS (4 * ALONG * PARTS)  // bytes of shared memory

// total of a lane: element e of a tile is row lane / 4 + 8 (e / 2) of the strip, row 2 (lane % 4) +
// e % 2 of x. Sums over the warps along K, in their order, go to store(m, row of W in the program,
// value).
template <class Store>
__device__ inline void finish(
    const float (&total)[STRIPS][TILES][4], int across, int along, int M, const Store& store) {
    unsigned parts = shared_memory();  // f32 [ALONG][PARTS]
    unsigned mine = parts + (along * PARTS + across * (PARTS / ACROSS) + threadIdx.x % 32) * 4;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < STRIPS; ++i)
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                store_float(mine + ((i * TILES + t) * 4 + e) * 128, total[i][t][e]);
    __syncthreads();
    for (int at = threadIdx.x; at < PARTS; at += 32 * WARPS) {
        int from = at % 32, e = at / 32 % 4, t = at / 128 % TILES, i = at / 128 / TILES;
        int m = 8 * t + 2 * (from % 4) + e % 2;
        if (m >= M) continue;
        float value = 0;
#pragma unroll
        for (int k = 0; k < ALONG; ++k) value += load_float(parts + (k * PARTS + at) * 4);
        store(m, 16 * i + from / 4 + 8 * (e / 2), value);
    }
}
