// What the kernels use of the instruction set, each under one name. A stand-in with the same names
// runs the kernels on a CPU, lane by lane, in tests.
#pragma once

#if HALF  // x and y are fp16
#define PAIRS "f16"
#define MAGIC 0x64006400u  // 1024, 1024: the last four bits of each mantissa are free
#define ONE 0x3c003c00u
#define MINUS 0xe408e408u  // -1032
#else
#define PAIRS "bf16"
#define MAGIC 0x43004300u  // 128
#define ONE 0x3f803f80u
#define MINUS 0xc308c308u  // -136
#endif

// Weights are read once: they leave L1 to x.
__device__ inline uint4 stream(const void* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

template <int WORDS>
__device__ inline void constants(const unsigned* at, unsigned (&out)[WORDS]) {
    if constexpr (WORDS == 4) {
        asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "l"(at));
    } else if constexpr (WORDS == 2) {
        asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(out[0]), "=r"(out[1]) : "l"(at));
    } else {
        asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(out[0]) : "l"(at));
    }
}

// The next kernel may start; what the one before wrote may be read after `wait_for_inputs`.
__device__ inline void start_next() { asm volatile("griddepcontrol.launch_dependents;"); }
__device__ inline void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Shared memory is named by its address there.
__device__ inline unsigned shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return (unsigned)__cvta_generic_to_shared(memory);
}
__device__ inline void copy_async(unsigned to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline uint4 load_shared(unsigned at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}
__device__ inline float load_float(unsigned at) {
    float f;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(f) : "r"(at) : "memory");
    return f;
}
__device__ inline void store_float(unsigned at, float f) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(f) : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ inline void wait_all_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
// The warps that share x, of which there are several such sets
template <int WARPS_OF_SET>
__device__ inline void meet(int set) {
    if constexpr (WARPS_OF_SET == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(1 + set), "n"(32 * WARPS_OF_SET) : "memory");
}

// Nibble r of each half of a word -> q - 8, exactly: `| MAGIC` makes it the end of a mantissa.
__device__ inline unsigned weights(unsigned word, int r) {
    unsigned pair, shifted = word >> (4 * r);
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(pair) : "r"(shifted), "n"(MAGIC));
#if !RAW
    asm("fma.rn." PAIRS "x2 %0, %0, %1, %2;" : "+r"(pair) : "r"(ONE), "r"(MINUS));
#endif
    return pair;
}

// c[16, 8] += a[16, 16] b[16, 8]
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." PAIRS "." PAIRS ".f32 {%0, %1, %2, %3},"
        " {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float first(unsigned pair) {
#if HALF
    float f;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(f) : "r"(pair));
    return f;
#else
    return __uint_as_float(pair << 16);
#endif
}
__device__ inline float second(unsigned pair) {
#if HALF
    float f;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(f) : "r"(pair));
    return f;
#else
    return __uint_as_float(pair & 0xffff0000u);
#endif
}
__device__ inline unsigned short rounded(float f) {
    unsigned short s;
    asm("cvt.rn." PAIRS ".f32 %0, %1;" : "=h"(s) : "f"(f));
    return s;
}

__device__ inline unsigned pair(float low, float high) {
    unsigned v;
    asm("cvt.rn." PAIRS "x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
__device__ inline unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    asm("fma.rn." PAIRS "x2 %0, %0, %1, %2;" : "+r"(a) : "r"(b), "r"(c));
    return a;
}

// Scales are fp16, whatever the type of x.
__device__ inline void halves(unsigned pair, float& a, float& b) {
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(a), "=f"(b) : "r"(pair));
}
