// The kernels' instructions on a CPU: each lane is a fiber that runs until it has to wait for
// others. What a warp does together (products, barriers) checks nothing but gives the same values;
// NaN fills what was not written. One block of threads after the other.
#pragma once
#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(n)
inline int min(int a, int b) { return a < b ? a : b; }
#define MEMORY (1 << 18)

struct uint4 { unsigned x, y, z, w; };
struct Place { int x, y; };

namespace lanes {
struct Barrier { int size, count = 0, round = 0; };
struct Lane {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 17);
    bool done = false;
    float a[8], b[4];  // operands of what the warp does together
};
inline std::vector<std::unique_ptr<Lane>> all;
inline std::vector<Barrier> warps, sets;
inline Barrier block;
inline ucontext_t home;
inline Place thread, number;
inline int now;
inline std::function<void()> body;
inline char memory[MEMORY];

inline Lane& me() { return *all[now]; }
inline Lane& lane(int i) { return *all[now / 32 * 32 + i]; }
inline void meet(Barrier& b) {
    int round = b.round;
    if (++b.count == b.size) b.count = 0, ++b.round;
    while (b.round == round) {
        int mine = now;
        swapcontext(&me().context, &home);
        now = mine, thread.x = mine;
    }
}
inline void warp() { meet(warps[now / 32]); }
inline void enter() {
    body();
    me().done = true;
    swapcontext(&me().context, &home);
}
inline void run(int across, int down, int threads, std::function<void()> what) {
    body = what;
    for (int block_of = 0; block_of < across * down; ++block_of) {
        number = Place{block_of % across, block_of / across};
        memset(memory, 0xff, MEMORY);  // NaN in every type
        all.clear();
        warps.assign(threads / 32, Barrier{32});
        sets.assign(threads / 32, Barrier{0});
        block = Barrier{threads};
        for (int i = 0; i < threads; ++i) {
            all.push_back(std::make_unique<Lane>());
            Lane& l = *all.back();
            getcontext(&l.context);
            l.context.uc_stack.ss_sp = l.stack.data();
            l.context.uc_stack.ss_size = l.stack.size();
            makecontext(&l.context, enter, 0);
        }
        for (int left = threads; left;) {
            left = 0;
            for (int i = 0; i < threads; ++i) {
                if (all[i]->done) continue;
                now = thread.x = i;
                swapcontext(&home, &all[i]->context);
                left += !all[i]->done;
            }
        }
    }
}
}  // namespace lanes

#define threadIdx lanes::thread
#define blockIdx lanes::number
inline void __syncthreads() { lanes::meet(lanes::block); }
inline void __syncwarp() { lanes::warp(); }
inline float as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned as_bits(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(unsigned u) { return as_float(u); }
inline uint4 stream(const void* at) { uint4 v; memcpy(&v, at, 16); return v; }
template <int WORDS> void constants(const unsigned* at, unsigned (&out)[WORDS]) {
    memcpy(out, at, 4 * WORDS);
}
inline void start_next() {}
inline void wait_for_inputs() {}
inline unsigned shared_memory() { return 0; }
inline void copy_async(unsigned to, const void* from) { memcpy(lanes::memory + to, from, 16); }
inline uint4 load_shared(unsigned at) { return stream(lanes::memory + at); }
inline float load_float(unsigned at) { float f; memcpy(&f, lanes::memory + at, 4); return f; }
inline void store_float(unsigned at, float f) { memcpy(lanes::memory + at, &f, 4); }
inline void commit() {}
template <int LEFT> void wait_all_but() {}
template <int WARPS_OF_SET> void meet(int set) {
    lanes::sets[set].size = 32 * WARPS_OF_SET;
    lanes::meet(lanes::sets[set]);
}

inline float half(unsigned bits) {
    unsigned short s = (unsigned short)bits;
    _Float16 f;
    memcpy(&f, &s, 2);
    return (float)f;
}
inline void halves(unsigned pair, float& a, float& b) { a = half(pair), b = half(pair >> 16); }
#if HALF
inline float first(unsigned pair) { return half(pair); }
inline float second(unsigned pair) { return half(pair >> 16); }
inline unsigned short rounded(float f) {
    _Float16 h = (_Float16)f;
    unsigned short s;
    memcpy(&s, &h, 2);
    return s;
}
#else
inline float first(unsigned pair) { return as_float(pair << 16); }
inline float second(unsigned pair) { return as_float(pair & 0xffff0000u); }
inline unsigned short rounded(float f) {
    unsigned u = as_bits(f);
    return (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
#endif

inline unsigned pair(float low, float high) { return rounded(low) | (unsigned)rounded(high) << 16; }
inline unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    return pair(fmaf(first(a), first(b), first(c)), fmaf(second(a), second(b), second(c)));
}
#define ONE (HALF ? 0x3c003c00u : 0x3f803f80u)
inline unsigned weights(unsigned word, int r) {
    float zero = RAW ? -128.0f : 8.0f;
    word >>= 4 * r;
    return pair((float)(word & 15) - zero, (float)(word >> 16 & 15) - zero);
}

// Row i and column j of c have their operands in lanes 4 i + q and 4 j + q
inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    lanes::Lane& l = lanes::me();
    for (int r = 0; r < 4; ++r) l.a[2 * r] = first(a[r]), l.a[2 * r + 1] = second(a[r]);
    l.b[0] = first(b0), l.b[1] = second(b0), l.b[2] = first(b1), l.b[3] = second(b1);
    lanes::warp();
    for (int e = 0; e < 4; ++e) {
        int lane = lanes::now % 32, row = lane / 4, column = 2 * (lane % 4) + e % 2;
        for (int q = 0; q < 4; ++q)
            for (int h = 0; h < 2; ++h)
                for (int k = 0; k < 2; ++k)
                    c[e] += lanes::lane(4 * row + q).a[4 * h + e / 2 * 2 + k] *
                            lanes::lane(4 * column + q).b[2 * h + k];
    }
    lanes::warp();
}
