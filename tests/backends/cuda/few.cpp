// A kernel and its stand-in instructions as a library: one call runs one launch.
#include "int4.cu"

extern "C" int scratch_bytes() {
    int ring = ALONG * DEPTH * SLOT;
    return ring > SUMS ? ring : SUMS;
}
extern "C" void few(
    const char* x, const uint4* w, const unsigned* scale, const unsigned short* bias,
    unsigned short* y, int M, int N, int steps) {
    lanes::run(N / 16 / STRIPS / ACROSS, (M + ROWS - 1) / ROWS, 32 * WARPS, [=] {
        int4_few(x, w, scale, bias, y, M, N, steps);
    });
}
#if !RAW
extern "C" void dense(
    const uint4* w, const unsigned* scale, char* out, int first_strip, int strips, int steps) {
    lanes::run(strips, 1, 32 * WARPS, [=] { int4_dense(w, scale, out, first_strip, steps); });
}
#endif
