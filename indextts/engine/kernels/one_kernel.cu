// The GPT's layers for one decode step of a few sequences, in one kernel that stays on the device from the first layer to the logits.
//
// A step has to read every weight once, and nothing else of size. Kernels that follow one another cannot do that at the speed of the
// memory: each begins with an idle device and ends with one. Here every multiprocessor has one block, a phase (a product, or attention)
// ends at a barrier of all blocks, and weights come in all the time: each warp knows which rows of weights it will multiply from the first
// layer to the last, and has the next RING of them under way to shared memory, whatever the phase.
//
//   phase 1  norm, product with c_attn                   phase 4  norm, product with c_fc, GELU
//   phase 2  attention, the cache in parts; new keys     phase 5  product with c_proj, residual sum
//   phase 3  parts put together, c_proj, residual sum    at last  two norms, product with the head
//
// Given at compile time: WIDTH (a multiple of 256), HEADS (of 64), LAYERS, CODES (outputs of the head), ROWS and BEAMS (sequences are
// ROWS * BEAMS, few), GRID (blocks), WARPS (of a block, a multiple of 4), RING (units of weights that a warp has under way), HALF (1:
// float16, 0: bfloat16), BULK (1: copies by the bulk copy engine, sm_90; 0: by the threads, sm_80), FLAGS (1: a flag of each block at
// the barrier; 0: one counter), PART (old keys that are worth a block).

typedef unsigned short T;  // a 16-bit number, as bits
typedef unsigned long long Address;

#define COUNT (ROWS * BEAMS)
#define INNER (4 * WIDTH)
#define THREADS (32 * WARPS)
#define HEAD 64
#define CHUNK 256                 // numbers that a warp reads at once, 16 bytes a lane
#define STEPS (WIDTH / CHUNK)
#define SHARE(outputs) (((outputs) + GRID - 1) / GRID)  // of a block, at most
#define TASKS_OF(outputs) ((SHARE(outputs) + WARPS - 1) / WARPS)
#define QKV_TASKS TASKS_OF(3 * WIDTH)
#define OUT_TASKS TASKS_OF(WIDTH)
#define FC_TASKS TASKS_OF(INNER)
#define GROUPS (WARPS / 4)        // of c_proj: each warp has a quarter of the inner width
#define PROJ_TASKS ((SHARE(WIDTH) + GROUPS - 1) / GROUPS)
#define UNITS (QKV_TASKS + OUT_TASKS + FC_TASKS + PROJ_TASKS)
#define CODE_TASKS TASKS_OF(CODES)
#define ALL_UNITS (LAYERS * UNITS + CODE_TASKS)
#define LOWEST (-1e30f)
#define AHEAD 4                   // keys of a lane that are on their way at once

struct Layer {
    const float *gain1, *shift1, *qkv_bias, *out_bias, *gain2, *shift2, *fc_bias, *proj_bias;
    const T *qkv, *out, *fc, *proj;  // (outputs, inputs)
};

struct Step {
    const Layer* layers;
    const float *gain_f, *shift_f, *gain_last, *shift_last, *code_bias;
    const T* codes;               // (CODES, WIDTH)
    const float* x;               // (COUNT, WIDTH) what enters
    float* stream;                // (COUNT, WIDTH) residual stream
    T* qkv;                       // (COUNT, 3 WIDTH)
    float* mixed;                 // (MOST_PARTS, COUNT, WIDTH) sums of values, relative to tops
    float* tops;                  // (MOST_PARTS, COUNT, HEADS)
    float* masses;
    T* hidden;                    // (COUNT, INNER)
    float* logits;                // (COUNT, CODES)
    T *keys, *values;             // (LAYERS, ROWS, HEADS, capacity, 64)
    const unsigned char* visible; // (ROWS, BEAMS, capacity)
    const long long* slots;       // (BEAMS) where the new keys go; all old ones are before the first
    unsigned* barrier;            // FLAGS: GRID equal numbers; else two zeros, as which they are left
    long long capacity;
};

// ------------------------------------------------------------------------------------------------------------------- memory

#ifndef EMULATED  // tests/engine/fibers.h has these for the CPU
#define PAUSE(asked) \
    if ((asked) >> 24) __trap()  // some ten seconds: an error is better than a device that never answers
extern __shared__ __align__(128) unsigned char shared_memory[];

__device__ __forceinline__ float bits_to_float(unsigned bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float half_to_float(T half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ T float_to_half(float value) {
    T half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ __forceinline__ T float_to_bfloat16(float value) {
    T number;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(number) : "f"(value));
    return number;
}

// What this kernel does not change.
__device__ __forceinline__ float constant(const float* from) {
    float value;
    asm("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from));
    return value;
}

__device__ __forceinline__ float4 constant4(const float* from) {
    float4 value;
    asm("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w) : "l"(from));
    return value;
}

// What other blocks wrote, which must not come out of this multiprocessor's own cache.
__device__ __forceinline__ uint4 load_fresh(const T* from) {
    uint4 value;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

__device__ __forceinline__ float4 load_fresh4(const float* from) {
    float4 value;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

__device__ __forceinline__ float load_fresh1f(const float* from) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ T load_fresh1(const T* from) {
    T value;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ unsigned add_release(unsigned* number) {
    unsigned before;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(number) : "memory");
    return before;
}

__device__ __forceinline__ void store_release(unsigned* number, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(number), "r"(value) : "memory");
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* number) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(number) : "memory");
    return value;
}

// Copies to shared memory that go on by themselves. BULK: one thread sends for a whole row, and a number in shared memory, `arrival`, flips
// when it is there. Otherwise every lane sends for what it will read itself, and counts how many copies it sent later.
#if BULK
__device__ __forceinline__ unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

__device__ __forceinline__ void begin_arrivals(Address* arrival) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrival)) : "memory");
}

__device__ __forceinline__ void arrivals_begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void send(T* to, const T* from, unsigned bytes, Address* arrival) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes) : "memory");
    if (bytes)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                     "l"(from), "r"(bytes), "r"(shared_address(arrival))
                     : "memory");
}

__device__ __forceinline__ void await(Address* arrival, unsigned parity) {
    unsigned there = 0;
    while (!there)
        asm volatile(
            "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(there)
            : "r"(shared_address(arrival)), "r"(parity)
            : "memory");
}
#else
__device__ __forceinline__ void send16(T* to, const T* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void sent() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ __forceinline__ void await_all_but_ring() { asm volatile("cp.async.wait_group %0;" ::"n"(RING - 1) : "memory"); }
#endif
#endif

// ------------------------------------------------------------------------------------------------------------------ numbers

__device__ __forceinline__ float low(unsigned pair) {
#if HALF
    return half_to_float((T)(pair & 0xffffu));
#else
    return bits_to_float(pair << 16);
#endif
}

__device__ __forceinline__ float high(unsigned pair) {
#if HALF
    return half_to_float((T)(pair >> 16));
#else
    return bits_to_float(pair & 0xffff0000u);
#endif
}

__device__ __forceinline__ T rounded(float value) {
#if HALF
    return float_to_half(fminf(fmaxf(value, -65504.0f), 65504.0f));
#else
    return float_to_bfloat16(value);
#endif
}

__device__ __forceinline__ void spread(uint4 eight, float* to) {
    to[0] = low(eight.x), to[1] = high(eight.x), to[2] = low(eight.y), to[3] = high(eight.y);
    to[4] = low(eight.z), to[5] = high(eight.z), to[6] = low(eight.w), to[7] = high(eight.w);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int away = 16; away > 0; away >>= 1) value += __shfl_xor_sync(0xffffffffu, value, away);
    return value;
}

// ------------------------------------------------------------------------------------------------------------------ barrier

struct Meeting {  // of all blocks
    unsigned* barrier;
    unsigned wanted;

    __device__ __forceinline__ void begin(unsigned* numbers) {
        barrier = numbers;
        wanted = FLAGS ? load_acquire(numbers + blockIdx.x) : 0;
    }

    __device__ __forceinline__ void arrive() {
        wanted += FLAGS ? 1 : GRID;
        __syncthreads();
        if (threadIdx.x == 0) {
            if (FLAGS)
                store_release(barrier + blockIdx.x, wanted);
            else
                add_release(barrier);
        }
    }

    __device__ __forceinline__ void wait() const {
        for (int i = threadIdx.x; i < (FLAGS ? GRID : 1); i += THREADS)
            for (unsigned asked = 0; (int)(load_acquire(barrier + i) - wanted) < 0; asked++) PAUSE(asked);
        __syncthreads();
    }
};

// ----------------------------------------------------------------------------------------------------------------- weights

// The output that a block's warp computes as its n-th.
__device__ __forceinline__ int output_of(int warp, int n) { return (warp + n * WARPS) * GRID + blockIdx.x; }
__device__ __forceinline__ int proj_output_of(int warp, int n) { return (warp / 4 + n * GROUPS) * GRID + blockIdx.x; }

// A warp's rows of weights, in the order of their use. A unit is WIDTH numbers: a row, or a quarter of one of c_proj's.
struct Rows {
    const Layer* layers;
    const T* codes;
    T* ring;            // (RING, WIDTH)
    Address* arrivals;  // (RING)
    int sent_units, used_units, sent_slot, used_slot, used_parity;

    __device__ __forceinline__ void begin(const Layer* all, const T* head, T* space, Address* flags) {
        layers = all, codes = head, ring = space, arrivals = flags;
        sent_units = used_units = sent_slot = used_slot = used_parity = 0;
        for (int i = 0; i < RING; i++) send_next();
    }

    // Where unit number `sent_units` lies; null: this warp has no such output.
    __device__ __forceinline__ const T* next_source(int warp) const {
        const int l = sent_units / UNITS;
        int n = sent_units - l * UNITS;
        if (l >= LAYERS) {
            const int output = output_of(warp, sent_units - LAYERS * UNITS);
            return output < CODES ? codes + (long long)output * WIDTH : nullptr;
        }
        const Layer& layer = layers[l];
        if (n < QKV_TASKS) {
            const int output = output_of(warp, n);
            return output < 3 * WIDTH ? layer.qkv + (long long)output * WIDTH : nullptr;
        }
        n -= QKV_TASKS;
        if (n < OUT_TASKS) {
            const int output = output_of(warp, n);
            return output < WIDTH ? layer.out + (long long)output * WIDTH : nullptr;
        }
        n -= OUT_TASKS;
        if (n < FC_TASKS) {
            const int output = output_of(warp, n);
            return output < INNER ? layer.fc + (long long)output * WIDTH : nullptr;
        }
        const int output = proj_output_of(warp, n - FC_TASKS);
        return output < WIDTH ? layer.proj + (long long)output * INNER + (warp & 3) * WIDTH : nullptr;
    }

    __device__ __forceinline__ void send_next() {
        const int lane = threadIdx.x & 31;
        __syncwarp();  // all lanes have read what was here
#if BULK
        if (lane == 0 && sent_units < ALL_UNITS) {
            const T* from = next_source(threadIdx.x >> 5);
            send(ring + sent_slot * WIDTH, from, from ? WIDTH * sizeof(T) : 0, arrivals + sent_slot);
        }
#else
        if (sent_units < ALL_UNITS) {
            const T* from = next_source(threadIdx.x >> 5);
            if (from)
                for (int s = 0; s < STEPS; s++) send16(ring + sent_slot * WIDTH + s * CHUNK + 8 * lane, from + s * CHUNK + 8 * lane);
        }
        sent();
#endif
        sent_units++;
        sent_slot = sent_slot + 1 == RING ? 0 : sent_slot + 1;
    }

    // The next unit, when it is there; `done` sends for another in its place.
    __device__ __forceinline__ const T* use() {
#if BULK
        await(arrivals + used_slot, used_parity);
#else
        await_all_but_ring();
#endif
        return ring + used_slot * WIDTH;
    }

    __device__ __forceinline__ void done() {
        used_units++;
        used_slot++;
        if (used_slot == RING) used_slot = 0, used_parity ^= 1;
        send_next();
    }
};

// ----------------------------------------------------------------------------------------------------------------- products

struct Inputs {  // a lane's share of WIDTH numbers a sequence
    float of[COUNT][STEPS * 8];

    __device__ __forceinline__ void load(const T* inputs, int stride) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int m = 0; m < COUNT; m++)
#pragma unroll
            for (int s = 0; s < STEPS; s++) spread(*(const uint4*)(inputs + m * stride + s * CHUNK + 8 * lane), of[m] + 8 * s);
    }

    // Products with a unit of weights: lane m has the sum of sequence m.
    __device__ __forceinline__ float times(const T* unit) const {
        const int lane = threadIdx.x & 31;
        float sums[COUNT][2];
#pragma unroll
        for (int m = 0; m < COUNT; m++) sums[m][0] = sums[m][1] = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            float weight[8];
            spread(*(const uint4*)(unit + s * CHUNK + 8 * lane), weight);
#pragma unroll
            for (int m = 0; m < COUNT; m++)
#pragma unroll
                for (int i = 0; i < 8; i++) sums[m][i & 1] = fmaf(of[m][8 * s + i], weight[i], sums[m][i & 1]);
        }
        float mine = 0.0f;
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            const float sum = warp_sum(sums[m][0] + sums[m][1]);
            mine = lane == m ? sum : mine;
        }
        return mine;
    }
};

// -------------------------------------------------------------------------------------------------------------------- norms

__device__ __forceinline__ void block_sums(float* values, float* scratch) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        const float sum = warp_sum(values[m]);
        if (lane == 0) scratch[warp * COUNT + m] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        values[m] = 0.0f;
        for (int w = 0; w < WARPS; w++) values[m] += scratch[w * COUNT + m];
    }
}

#define FOURS ((WIDTH / 4 + THREADS - 1) / THREADS)

// LayerNorm of the stream into `inputs` (COUNT, WIDTH), once or twice; ends with a barrier of the block.
template <int NORMS>
__device__ __forceinline__ void norm(
    const float* stream, const float* gain, const float* shift, const float* gain2, const float* shift2, T* inputs, float* scratch
) {
    float4 x[COUNT][FOURS];
    float mean[COUNT], spread2[COUNT];
#pragma unroll
    for (int f = 0; f < FOURS; f++) {
        const int at = 4 * (threadIdx.x + f * THREADS);
#pragma unroll
        for (int m = 0; m < COUNT; m++)
            x[m][f] = at < WIDTH ? load_fresh4(stream + m * WIDTH + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int pass = 0; pass < NORMS; pass++) {
        const float* g = pass ? gain2 : gain;
        const float* b = pass ? shift2 : shift;
        float4 gains[FOURS], shifts[FOURS];
#pragma unroll
        for (int f = 0; f < FOURS; f++) {
            const int at = 4 * (threadIdx.x + f * THREADS);
            gains[f] = at < WIDTH ? constant4(g + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            shifts[f] = at < WIDTH ? constant4(b + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            mean[m] = 0.0f;
#pragma unroll
            for (int f = 0; f < FOURS; f++) mean[m] += (x[m][f].x + x[m][f].y) + (x[m][f].z + x[m][f].w);
        }
        block_sums(mean, scratch + (2 * pass) * WARPS * COUNT);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            mean[m] /= WIDTH;
            spread2[m] = 0.0f;
#pragma unroll
            for (int f = 0; f < FOURS; f++) {
                const bool real = 4 * (threadIdx.x + f * THREADS) < WIDTH;
                x[m][f].x -= mean[m], x[m][f].y -= mean[m], x[m][f].z -= mean[m], x[m][f].w -= mean[m];
                const float squares = x[m][f].x * x[m][f].x + x[m][f].y * x[m][f].y + x[m][f].z * x[m][f].z + x[m][f].w * x[m][f].w;
                spread2[m] += real ? squares : 0.0f;
            }
        }
        block_sums(spread2, scratch + (2 * pass + 1) * WARPS * COUNT);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            const float scale = rsqrtf(spread2[m] / WIDTH + 1e-5f);
#pragma unroll
            for (int f = 0; f < FOURS; f++) {
                x[m][f].x = x[m][f].x * scale * gains[f].x + shifts[f].x;
                x[m][f].y = x[m][f].y * scale * gains[f].y + shifts[f].y;
                x[m][f].z = x[m][f].z * scale * gains[f].z + shifts[f].z;
                x[m][f].w = x[m][f].w * scale * gains[f].w + shifts[f].w;
            }
        }
    }
#pragma unroll
    for (int f = 0; f < FOURS; f++) {
        const int at = 4 * (threadIdx.x + f * THREADS);
        if (at < WIDTH)
#pragma unroll
            for (int m = 0; m < COUNT; m++) {
                T* to = inputs + m * WIDTH + at;
                to[0] = rounded(x[m][f].x), to[1] = rounded(x[m][f].y), to[2] = rounded(x[m][f].z), to[3] = rounded(x[m][f].w);
            }
    }
    __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------- attention

struct Softmax {  // of one beam, as far as its keys were seen
    float top, mass, mixed[8];
};

__device__ __forceinline__ void take(Softmax& state, bool seen, float score, const float* value) {
    const float higher = seen ? fmaxf(state.top, score) : state.top;
    const float old = __expf(state.top - higher), p = seen ? __expf(score - higher) : 0.0f;
    state.mass = state.mass * old + p;
#pragma unroll
    for (int i = 0; i < 8; i++) state.mixed[i] = state.mixed[i] * old + p * value[i];
    state.top = higher;
}

__device__ __forceinline__ float dot(const float* query, const float* key) {  // over eight lanes of eight numbers
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf(query[i], key[i], sum);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 4);
}

#define MOST_PARTS 8

// How many blocks share a head of a row.
__device__ __forceinline__ int parts_of(int used) {
    int most = GRID / (ROWS * HEADS);
    most = most < 1 ? 1 : (most > MOST_PARTS ? MOST_PARTS : most);
    const int worth = (used + PART - 1) / PART;
    return worth < 1 ? 1 : (worth < most ? worth : most);
}

__device__ __forceinline__ void attend(const Step& step, int layer, int used, int parts, float* queries, float* merge, const Meeting& meeting) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = lane >> 3, eight = 8 * (lane & 7);
    const int span = (used + parts - 1) / parts;
    bool waited = false;
    for (int item = blockIdx.x; item < ROWS * HEADS * parts; item += GRID) {
        const int part = item % parts, head = item / parts % HEADS, row = item / parts / HEADS;
        const long long place0 = (((long long)layer * ROWS + row) * HEADS + head) * step.capacity;
        T *keys = step.keys + place0 * HEAD, *values = step.values + place0 * HEAD;
        const int first = part * span, end = first + span < used ? first + span : used;
        uint4 k[AHEAD], v[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {  // old keys do not depend on this step: they come in while the block waits
            const int place = first + (a * WARPS + warp) * 4 + group;
            k[a] = place < end ? load_fresh(keys + place * HEAD + eight) : make_uint4(0, 0, 0, 0);
            v[a] = place < end ? load_fresh(values + place * HEAD + eight) : make_uint4(0, 0, 0, 0);
        }
        if (!waited) meeting.wait();
        waited = true;
        for (int i = threadIdx.x; i < BEAMS * HEAD; i += THREADS) {
            const int beam = i / HEAD;
            const T query = load_fresh1(step.qkv + (row * BEAMS + beam) * 3 * WIDTH + head * HEAD + i % HEAD);
            queries[i] = low((unsigned)query) * 0.125f;
        }
        __syncthreads();
        float query[BEAMS][8];
        Softmax states[BEAMS];
#pragma unroll
        for (int b = 0; b < BEAMS; b++) {
#pragma unroll
            for (int i = 0; i < 8; i++) query[b][i] = queries[b * HEAD + eight + i], states[b].mixed[i] = 0.0f;
            states[b].top = LOWEST, states[b].mass = 0.0f;
        }
        for (int start = first; start < end; start += AHEAD * WARPS * 4) {
            if (start != first)
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    const int place = start + (a * WARPS + warp) * 4 + group;
                    k[a] = place < end ? load_fresh(keys + place * HEAD + eight) : make_uint4(0, 0, 0, 0);
                    v[a] = place < end ? load_fresh(values + place * HEAD + eight) : make_uint4(0, 0, 0, 0);
                }
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int place = start + (a * WARPS + warp) * 4 + group;
                float key[8], value[8];
                spread(k[a], key), spread(v[a], value);
#pragma unroll
                for (int b = 0; b < BEAMS; b++) {
                    const bool seen = place < end && step.visible[(row * BEAMS + b) * step.capacity + (place < end ? place : 0)];
                    take(states[b], seen, dot(query[b], key), value);
                }
            }
        }
        if (part == 0 && warp == 0) {  // the new keys: each beam sees its own
            const bool live = group < BEAMS;
            const T* source = step.qkv + (row * BEAMS + (live ? group : 0)) * 3 * WIDTH + head * HEAD + eight;
            const uint4 newest = load_fresh(source + WIDTH), its = load_fresh(source + 2 * WIDTH);
            float key[8], value[8];
            spread(newest, key), spread(its, value);
#pragma unroll
            for (int b = 0; b < BEAMS; b++) take(states[b], live && b == group, dot(query[b], key), value);
            if (live) {
                const long long slot = step.slots[group];
                *(uint4*)(keys + slot * HEAD + eight) = newest;
                *(uint4*)(values + slot * HEAD + eight) = its;
            }
        }
#pragma unroll
        for (int b = 0; b < BEAMS; b++) {
#pragma unroll
            for (int away = 8; away < 32; away <<= 1) {  // the four groups of a warp
                const float top = __shfl_xor_sync(0xffffffffu, states[b].top, away);
                const float mass = __shfl_xor_sync(0xffffffffu, states[b].mass, away);
                const float higher = fmaxf(states[b].top, top), mine = __expf(states[b].top - higher), theirs = __expf(top - higher);
                states[b].mass = states[b].mass * mine + mass * theirs;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    states[b].mixed[i] = states[b].mixed[i] * mine + __shfl_xor_sync(0xffffffffu, states[b].mixed[i], away) * theirs;
                states[b].top = higher;
            }
            float* to = merge + (warp * BEAMS + b) * (HEAD + 2);
            if (group == 0)
#pragma unroll
                for (int i = 0; i < 8; i++) to[eight + i] = states[b].mixed[i];
            if (lane == 0) to[HEAD] = states[b].top, to[HEAD + 1] = states[b].mass;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < BEAMS * HEAD; i += THREADS) {
            const int beam = i / HEAD, sequence = part * COUNT + row * BEAMS + beam;
            float top = LOWEST, mass = 0.0f, mixed = 0.0f;
            for (int w = 0; w < WARPS; w++) top = fmaxf(top, merge[(w * BEAMS + beam) * (HEAD + 2) + HEAD]);
            for (int w = 0; w < WARPS; w++) {
                const float* its = merge + (w * BEAMS + beam) * (HEAD + 2);
                const float share = __expf(its[HEAD] - top);
                mass += its[HEAD + 1] * share, mixed += its[i % HEAD] * share;
            }
            step.mixed[sequence * WIDTH + head * HEAD + i % HEAD] = mixed;
            if (i % HEAD == 0) step.tops[sequence * HEADS + head] = top, step.masses[sequence * HEADS + head] = mass;
        }
        __syncthreads();
    }
    if (!waited) meeting.wait();
}

// Attention's parts put together, into `inputs` (COUNT, WIDTH).
__device__ __forceinline__ void gather(const Step& step, int parts, T* inputs) {
    for (int i = threadIdx.x; i < COUNT * WIDTH / 4; i += THREADS) {
        const int sequence = i / (WIDTH / 4), at = 4 * (i % (WIDTH / 4)), head = at / HEAD;
        float top = LOWEST, mass = 0.0f, sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
        for (int p = 0; p < parts; p++) {
            const int place = p * COUNT + sequence;
            const float4 mixed = load_fresh4(step.mixed + place * WIDTH + at);
            const float its_top = load_fresh1f(step.tops + place * HEADS + head), its_mass = load_fresh1f(step.masses + place * HEADS + head);
            const float higher = fmaxf(top, its_top), old = __expf(top - higher), its = __expf(its_top - higher);
            mass = mass * old + its_mass * its;
            sums[0] = sums[0] * old + mixed.x * its, sums[1] = sums[1] * old + mixed.y * its;
            sums[2] = sums[2] * old + mixed.z * its, sums[3] = sums[3] * old + mixed.w * its;
            top = higher;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) inputs[sequence * WIDTH + at + j] = rounded(sums[j] / mass);
    }
    __syncthreads();
}

// --------------------------------------------------------------------------------------------------------------------- step

// Shared memory, in bytes: the ring, inputs (or what attention needs), sums of the norms and of c_proj, the table of layers, arrivals.
#define FOR_RING (WARPS * RING * WIDTH * 2)
#define FOR_ATTENTION (4 * BEAMS * (HEAD + WARPS * (HEAD + 2)))
#define FOR_INPUTS (2 * COUNT * INNER > FOR_ATTENTION ? 2 * COUNT * INNER : FOR_ATTENTION)
#define FOR_SUMS (4 * COUNT * (4 * WARPS + WARPS * PROJ_TASKS))
#define FOR_LAYERS (LAYERS * (int)sizeof(Layer))
#define SHARED_BYTES (FOR_RING + FOR_INPUTS + (FOR_SUMS + 15) / 16 * 16 + FOR_LAYERS + 8 * WARPS * RING)

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_step(const Step step) {
    unsigned char* space = shared_memory;
    T* ring = (T*)space;
    T* inputs = (T*)(space += FOR_RING);
    float* scratch = (float*)(space += FOR_INPUTS);
    float* quarters = scratch + 4 * WARPS * COUNT;  // (WARPS, PROJ_TASKS, COUNT)
    Layer* layers = (Layer*)(space += (FOR_SUMS + 15) / 16 * 16);
    Address* arrivals = (Address*)(space + FOR_LAYERS);
    float *queries = (float*)inputs, *merge = queries + BEAMS * HEAD;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int i = threadIdx.x; i < FOR_LAYERS / 8; i += THREADS) ((Address*)layers)[i] = ((const Address*)step.layers)[i];
#if BULK
    if (threadIdx.x < WARPS * RING) begin_arrivals(arrivals + threadIdx.x);
    arrivals_begun();
#endif
    __syncthreads();
    Meeting meeting;
    meeting.begin(step.barrier);
    Rows rows;
    rows.begin(layers, step.codes, ring + warp * RING * WIDTH, arrivals + warp * RING);
    const int used = (int)step.slots[0], parts = parts_of(used);
    const float* x = step.x;
    Inputs in;
    for (int l = 0; l < LAYERS; l++) {
        const Layer& layer = layers[l];

        // Phase 1
        if (l > 0) meeting.wait();
        norm<1>(x, layer.gain1, layer.shift1, nullptr, nullptr, inputs, scratch);
        in.load(inputs, WIDTH);
        for (int n = 0; n < QKV_TASKS; n++) {
            const int output = output_of(warp, n);
            const float bias = output < 3 * WIDTH ? constant(layer.qkv_bias + output) : 0.0f;
            const float sum = in.times(rows.use());
            if (output < 3 * WIDTH && lane < COUNT) step.qkv[lane * 3 * WIDTH + output] = rounded(sum + bias);
            rows.done();
        }
        meeting.arrive();

        // Phase 2
        attend(step, l, used, parts, queries, merge, meeting);
        meeting.arrive();

        // Phase 3
        meeting.wait();
        gather(step, parts, inputs);
        in.load(inputs, WIDTH);
        for (int n = 0; n < OUT_TASKS; n++) {
            const int output = output_of(warp, n);
            const bool live = output < WIDTH && lane < COUNT;
            const float before = live ? load_fresh1f(x + lane * WIDTH + output) + constant(layer.out_bias + output) : 0.0f;
            const float sum = in.times(rows.use());
            if (live) step.stream[lane * WIDTH + output] = before + sum;
            rows.done();
        }
        x = step.stream;
        meeting.arrive();

        // Phase 4
        meeting.wait();
        norm<1>(x, layer.gain2, layer.shift2, nullptr, nullptr, inputs, scratch);
        in.load(inputs, WIDTH);
        for (int n = 0; n < FC_TASKS; n++) {
            const int output = output_of(warp, n);
            const float bias = output < INNER ? constant(layer.fc_bias + output) : 0.0f;
            const float sum = in.times(rows.use()) + bias;
            const float inner = 0.7978845608028654f * (sum + 0.044715f * sum * sum * sum);
            if (output < INNER && lane < COUNT) step.hidden[lane * INNER + output] = rounded(sum / (1.0f + __expf(-2.0f * inner)));
            rows.done();
        }
        meeting.arrive();

        // Phase 5: a warp has a quarter of the inner width, and the four of a group have the same outputs.
        meeting.wait();
#pragma unroll
        for (int m = 0; m < COUNT; m++)
#pragma unroll
            for (int s = 0; s < STEPS; s++)
                spread(load_fresh(step.hidden + m * INNER + (warp & 3) * WIDTH + s * CHUNK + 8 * lane), in.of[m] + 8 * s);
        for (int n = 0; n < PROJ_TASKS; n++) {
            const float sum = in.times(rows.use());
            if (lane < COUNT) quarters[(warp * PROJ_TASKS + n) * COUNT + lane] = sum;
            rows.done();
        }
        __syncthreads();
        for (int i = threadIdx.x; i < GROUPS * PROJ_TASKS * COUNT; i += THREADS) {
            const int m = i % COUNT, n = i / COUNT % PROJ_TASKS, group = i / COUNT / PROJ_TASKS;
            const int output = proj_output_of(4 * group, n);
            if (output < WIDTH) {
                const float* its = quarters + (4 * group * PROJ_TASKS + n) * COUNT + m;
                const float sum = (its[0] + its[PROJ_TASKS * COUNT]) + (its[2 * PROJ_TASKS * COUNT] + its[3 * PROJ_TASKS * COUNT]);
                step.stream[m * WIDTH + output] = load_fresh1f(x + m * WIDTH + output) + constant(layer.proj_bias + output) + sum;
            }
        }
        meeting.arrive();
    }
    meeting.wait();
    norm<2>(x, step.gain_f, step.shift_f, step.gain_last, step.shift_last, inputs, scratch);
    in.load(inputs, WIDTH);
    for (int n = 0; n < CODE_TASKS; n++) {
        const int output = output_of(warp, n);
        const float bias = output < CODES ? constant(step.code_bias + output) : 0.0f;
        const float sum = in.times(rows.use());
        if (output < CODES && lane < COUNT) step.logits[lane * CODES + output] = sum + bias;
        rows.done();
    }
#if !FLAGS
    // The last block to come here leaves the counter as it was found.
    __syncthreads();
    if (threadIdx.x == 0 && add_release(step.barrier + 1) == GRID - 1) step.barrier[0] = 0, step.barrier[1] = 0;
#endif
}
