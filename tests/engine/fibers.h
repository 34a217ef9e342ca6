// Runs a CUDA kernel on the CPU: every thread of every block is a fiber, which gives way at barriers, shuffles and PAUSE.
//
// Slow, but it shows wrong indices, missing barriers that somebody waits at, and numbers read before they were written (memory is poisoned
// by the caller). It does not show races that need two threads at once.
#pragma once
#define EMULATED
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <array>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
    unsigned x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct float4 {
    float x, y, z, w;
};
struct float2 {
    float x, y;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf(x) expf(x)
#define __fdividef(x, y) ((x) / (y))

namespace fibers {
struct Barrier {
    int waiting = 0;
    long generation = 0;
};
struct Block {
    Barrier all, computing;
    std::vector<Barrier> warps;
    std::vector<float> lanes;
    std::vector<std::array<char, 32>> gifts;
    std::vector<unsigned char> shared;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    int block, thread;
    bool done = false;
};
static std::vector<Fiber> all;
static std::vector<Block> blocks;
static ucontext_t scheduler;
static Fiber* current;
static int threads;

static void give_way() { swapcontext(&current->context, &scheduler); }
static void meet(Barrier& barrier, int count) {
    const long generation = barrier.generation;
    if (++barrier.waiting == count) {
        barrier.waiting = 0;
        barrier.generation++;
        return;
    }
    while (barrier.generation == generation) give_way();
}
struct Index {
    int x;
};
}  // namespace fibers

#define threadIdx (fibers::Index{fibers::current->thread})
#define blockIdx (fibers::Index{fibers::current->block})
#define PAUSE(asked) fibers::give_way()
#define shared_memory (fibers::blocks[fibers::current->block].shared.data())
static inline void __syncthreads() { fibers::meet(fibers::blocks[fibers::current->block].all, fibers::threads); }
static inline float __shfl_xor_sync(unsigned, float value, int away) {
    fibers::Block& block = fibers::blocks[fibers::current->block];
    const int thread = fibers::current->thread;
    fibers::Barrier& warp = block.warps[thread / 32];
    block.lanes[thread] = value;
    fibers::meet(warp, 32);
    const float found = block.lanes[thread ^ away];
    fibers::meet(warp, 32);
    return found;
}

typedef unsigned short T;
static inline float bits_to_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned float_to_bits(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline float half_to_float(T half) {
    _Float16 value;
    memcpy(&value, &half, 2);
    return (float)value;
}
static inline T float_to_half(float value) {
    const _Float16 half = (_Float16)value;
    T bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static inline T float_to_bfloat16(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return (T)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline float constant(const float* from) { return *from; }
static inline float4 constant4(const float* from) { return *(const float4*)from; }
static inline uint4 load_fresh(const T* from) { return *(const uint4*)from; }
static inline void prefetch(const void*) {}
static inline void hide(int&) {}
static inline void prefetch_row(const T*, unsigned) {}
static inline unsigned clock_now() {
    static unsigned now = 0;
    return ++now;
}
static inline unsigned add_release(unsigned* number) { return (*number)++; }
struct Word;
static inline void store_word(Word* to, unsigned value, unsigned turn) { ((unsigned*)to)[0] = value, ((unsigned*)to)[1] = turn; }
static inline uint4 load_words(const Word* from) { return *(const uint4*)from; }

static inline void __syncwarp() {
    fibers::meet(fibers::blocks[fibers::current->block].warps[fibers::current->thread / 32], 32);
}
// What every lane of the warp gives.
template <typename V>
static inline std::vector<V> gathered(V value) {
    static_assert(sizeof(V) <= 32, "a lane's place");
    auto& lanes = fibers::blocks[fibers::current->block].gifts;
    const int first = fibers::current->thread / 32 * 32;
    memcpy(&lanes[fibers::current->thread], &value, sizeof(V));
    __syncwarp();
    std::vector<V> all(32);
    for (int lane = 0; lane < 32; lane++) memcpy(&all[lane], &lanes[first + lane], sizeof(V));
    __syncwarp();
    return all;
}
static inline float __shfl_sync(unsigned, float value, int from) { return gathered(value)[from]; }
static inline float __shfl_up_sync(unsigned, float value, int away) {
    const int lane = fibers::current->thread % 32;
    return gathered(value)[lane >= away ? lane - away : lane];
}
static inline int atomicAdd(int* to, int value) {
    *to += value;
    return *to - value;
}
#define INFINITE INFINITY
static inline uint4 load_matrix(const T* row) {
    const auto rows = gathered(row);
    const int lane = fibers::current->thread % 32;
    unsigned found[4];
    for (int i = 0; i < 4; i++) memcpy(found + i, rows[8 * i + lane / 4] + 2 * (lane % 4), 4);
    return {found[0], found[1], found[2], found[3]};
}
static inline float number(unsigned pair, int which) {
    const T bits = (T)(which ? pair >> 16 : pair & 0xffffu);
#if HALF
    return half_to_float(bits);
#else
    return bits_to_float((unsigned)bits << 16);
#endif
}
static inline void multiply(float4& sums, uint4 a, uint2 b) {
    struct Pieces {
        uint4 a;
        uint2 b;
    };
    const auto all = gathered(Pieces{a, b});
    const int lane = fibers::current->thread % 32;
    float* to[4] = {&sums.x, &sums.y, &sums.z, &sums.w};
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; k++) {
            const uint4 from = all[row % 8 * 4 + k % 8 / 2].a;
            const uint2 its = all[column * 4 + k % 8 / 2].b;
            const unsigned pair = k < 8 ? (row < 8 ? from.x : from.y) : (row < 8 ? from.z : from.w);
            *to[i] += number(pair, k % 2) * number(k < 8 ? its.x : its.y, k % 2);
        }
    }
}

// A copy is made at once. An arrival counts, from the lowest bits on, how often it flipped (8 bits), who is missing (8), how many it was made
// for (8), and the bytes announced and not yet there.
static inline void settle(unsigned long long* arrival) {
    if (!(*arrival >> 8 & 255) && !(*arrival >> 24)) *arrival = ((*arrival + 1) & 255) | (*arrival >> 16 & 255) << 8 | (*arrival & 0xff0000);
}
static inline void begin_arrival(unsigned long long* arrival, unsigned count) { *arrival = count << 8 | count << 16; }
static inline void arrivals_begun() {}
static inline void arrive(unsigned long long* arrival) {
    *arrival -= 256;
    settle(arrival);
}
static inline void announce(unsigned bytes, unsigned long long* arrival) {
    *arrival += ((unsigned long long)bytes << 24) - 256;
    settle(arrival);
}
static inline void send(T* to, const T* from, unsigned bytes, unsigned long long* arrival) {
    memcpy(to, from, bytes);
    *arrival -= (unsigned long long)bytes << 24;
    settle(arrival);
}
static inline void await(unsigned long long* arrival, unsigned parity) {
    while ((*arrival & 1) == parity) fibers::give_way();
}
#define meet() fibers::meet(fibers::blocks[fibers::current->block].computing, THREADS)

// Run `kernel(step)` on a grid; returns how many fibers never ended because all others waited too.
template <typename Step>
static int launch(void (*kernel)(const Step), const Step& step, int grid, int threads, size_t shared_bytes) {
    using namespace fibers;
    static void (*entry)(const Step);
    static const Step* argument;
    entry = kernel, argument = &step, fibers::threads = threads;
    blocks.assign(grid, Block());
    for (Block& block : blocks) {
        block.warps.resize(threads / 32);
        block.lanes.resize(threads), block.gifts.resize(threads);
        block.shared.assign(shared_bytes, (unsigned char)0xff);
    }
    all.clear();
    all.resize((size_t)grid * threads);
    for (size_t i = 0; i < all.size(); i++) {
        Fiber& fiber = all[i];
        fiber.block = (int)(i / threads), fiber.thread = (int)(i % threads);
        fiber.stack.resize(1 << 16);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, (void (*)()) + [] {
            entry(*argument);
            current->done = true;
        }, 0);
    }
    size_t left = all.size();
    for (long round = 0; left && round < 2000000; round++) {
        left = 0;
        for (Fiber& fiber : all)
            if (!fiber.done) {
                current = &fiber;
                swapcontext(&scheduler, &fiber.context);
                left += !fiber.done;
            }
    }
    return (int)left;
}
