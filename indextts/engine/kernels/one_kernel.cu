// The GPT's layers for one decode step of a few sequences, in one kernel that stays on the device from the first layer to the logits.
//
// A step has to read every weight once, and nothing else of size. Kernels that follow one another cannot do that at the speed of the
// memory: each begins with an idle device and ends with one. Here each block has a multiprocessor to itself and owns some outputs of every
// product, and three things keep it busy:
//
// - Weights come in all the time. One warp does nothing but send for rows of weights, from the first layer to the last, as soon as there
//   is room in a ring of shared memory; the others multiply them, whatever the phase.
// - Blocks never meet at a barrier. What a block computes it stores as words of 64 bits, two numbers and the number of the turn, and who
//   needs a word reads it until the turn is right (the protocol that NCCL calls LL): one trip through the L2 cache instead of a fence, a
//   counter, and then the data.
// - Products take tensor cores with the weights as the matrix of 16 rows and the sequences as its 8 columns, so that up to 8 sequences
//   take no longer than one.
//
//   phase 1  norm, product with c_attn                   phase 4  norm, product with c_fc, GELU
//   phase 2  attention, the cache in parts; new keys     phase 5  product with c_proj, to be added to the stream
//   phase 3  parts put together, c_proj, likewise        at last  two norms, product with the head
//
// No word is overwritten before all have read it: every block has outputs in every product, so that whoever begins a phase of the next
// layer knows that all have ended the same phase of this one.
//
// Given at compile time: WIDTH (a multiple of 256), HEADS (of 64), LAYERS, CODES (outputs of the head), ROWS and BEAMS (ROWS * BEAMS
// sequences, at most 8), GRID (blocks, no more than the device has multiprocessors; WIDTH / GRID is even and at most 16), RING (units of
// weights in shared memory, each WIDTH / GRID rows), HALF (1: float16, 0: bfloat16), PART (old keys that are worth a block), BACK_OFF
// (nanoseconds before words that were not there are read again), TRACE (1: note the clock). Compute capability 9.0 or later.

typedef unsigned short T;  // a 16-bit number, as bits
typedef unsigned long long Address;

#define COUNT (ROWS * BEAMS)
#define INNER (4 * WIDTH)
#define WARPS (WIDTH / 128)
#define THREADS (32 * WARPS)      // that compute; one more warp sends for weights
#define SLICE 128                 // of the inner width that a warp has
#define HEAD 64
#define STEPS (SLICE / 16)        // of a product with a unit
#define SHARE (WIDTH / GRID)      // outputs of a block, and rows of a unit of weights
#define STRIDE (WIDTH + 8)        // numbers from row to row of a unit, so that eight rows lie in different banks
#define UNIT (SHARE * STRIDE)
#define CODE_UNITS ((CODES + SHARE * GRID - 1) / (SHARE * GRID))  // c_attn has 3, attention's c_proj 1, c_fc 4, the other c_proj 4 quarters
#define UNITS 12                  // of a layer
#define LOWEST (-1e30f)
#define AHEAD (BEAMS > 2 ? 3 : 4)  // keys of a lane that are on their way at once
#define MOST_PARTS 8
#define PHASES 9

struct Layer {
    const float *gain1, *shift1, *qkv_bias, *out_bias, *gain2, *shift2, *fc_bias, *proj_bias;
    const T *qkv, *out, *fc, *proj;  // (outputs, inputs)
};

struct Word {  // two numbers of 16 bits, or one of 32, and the turn
    unsigned value, turn;
};

struct Step {
    const Layer* layers;
    const float *gain_f, *shift_f, *gain_last, *shift_last, *code_bias;
    const T* codes;               // (CODES, WIDTH)
    const float* x;               // (COUNT, WIDTH) what enters
    Word* deltas;                 // (2, COUNT, WIDTH / 2) what phases 3 and 5 add to the stream
    Word* qkv;                    // (COUNT, 3 WIDTH / 2)
    Word* mixed;                  // (MOST_PARTS, COUNT, WIDTH / 2) means of values
    Word* stats;                  // (MOST_PARTS, COUNT, HEADS, 2) highest score and mass of a part
    Word* hidden;                 // (COUNT, INNER / 2)
    float* logits;                // (COUNT, CODES)
    T *keys, *values;             // (LAYERS, ROWS, HEADS, capacity, 64)
    const unsigned char* visible; // (ROWS, BEAMS, capacity)
    const long long* slots;       // (BEAMS) where the new keys go; all old ones are before the first
    unsigned* launches;           // blocks that have ended (0 between launches), and launches so far
    long long capacity;
    unsigned* trace;              // TRACE: (LAYERS, PHASES) clocks of the first block where its phases end
};

// ------------------------------------------------------------------------------------------------------------------- memory

#ifndef EMULATED  // tests/engine/fibers.h has these for the CPU
#define PAUSE(asked) \
    {                                                                                                             \
        if (BACK_OFF) __nanosleep(BACK_OFF);                                                                      \
        if ((asked) >> 24) __trap(); /* some ten seconds: an error is better than a device that never answers */ \
    }
extern __shared__ __align__(128) unsigned char shared_memory[];

__device__ __forceinline__ float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned float_to_bits(float value) { return __float_as_uint(value); }

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

__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

__device__ __forceinline__ unsigned clock_now() {
    unsigned now;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(now)::"memory");
    return now;
}

__device__ __forceinline__ unsigned add_release(unsigned* number) {
    unsigned before;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(number) : "memory");
    return before;
}

__device__ __forceinline__ void store_word(Word* to, unsigned value, unsigned turn) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(value), "r"(turn) : "memory");
}

__device__ __forceinline__ uint4 load_words(const Word* from) {  // two
    uint4 value;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

// A matrix of 16 rows and 16 columns of a tile, for the tensor cores; `row` is the address that this lane gives.
__device__ __forceinline__ uint4 load_matrix(const T* row) {
    uint4 value;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
    return value;
}

// sums (16 rows, 8 columns) += a (16, 16) b (16, 8)
__device__ __forceinline__ void multiply(float4& sums, uint4 a, uint2 b) {
#if HALF
#define KIND "f16"
#else
#define KIND "bf16"
#endif
    asm("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums.x), "+f"(sums.y), "+f"(sums.z), "+f"(sums.w)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// Copies to shared memory that go on by themselves. An arrival is a number in shared memory that flips when as many have arrived as it was
// made for, and all bytes that were announced.
__device__ __forceinline__ unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

__device__ __forceinline__ void begin_arrival(Address* arrival, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrival)), "r"(count) : "memory");
}

__device__ __forceinline__ void arrivals_begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void arrive(Address* arrival) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(arrival)) : "memory");
}

__device__ __forceinline__ void announce(unsigned bytes, Address* arrival) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void send(T* to, const T* from, unsigned bytes, Address* arrival) {
    // Weights are to leave the L2 cache first: each is read once in a step, and keys and what blocks tell each other are to stay.
    asm volatile(
        "{\n\t.reg .b64 policy;\n\tcreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n\t"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n\t}" ::"r"(
            shared_address(to)),
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

// A barrier of the threads that compute.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }
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

__device__ __forceinline__ unsigned paired(float first, float second) { return rounded(first) | (unsigned)rounded(second) << 16; }

// Pairs of words number 0 to `most` (at most N), which lie at `where(i)`: reads them until all are of the `turn`. The values, two a pair.
template <int N, class Where>
__device__ __forceinline__ void await_words(Where where, int most, unsigned turn, unsigned* values) {
    uint4 pairs[N];
    unsigned asked = 0;
    bool there;
    do {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < most) pairs[i] = load_words(where(i));
        there = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < most) there = there && pairs[i].y == turn && pairs[i].w == turn;
        if (!there) PAUSE(asked);
        asked++;
    } while (!there);
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < most) values[2 * i] = pairs[i].x, values[2 * i + 1] = pairs[i].z;
}

// Send for what will be read soon, into the L2 cache.
__device__ __forceinline__ void foresee(const float* from, int count) {
    for (int i = 32 * threadIdx.x; i < count; i += 32 * THREADS) prefetch(from + i);
}

// ----------------------------------------------------------------------------------------------------------------- weights

// What one warp does, and nothing else: send for all units of weights, each when its place in the ring is free.
__device__ __forceinline__ void send_all(const Layer* layers, const T* codes, T* ring, Address* full, Address* empty) {
    const int lane = threadIdx.x & 31;
    int slot = 0, parity = 1;  // a fresh arrival counts as flipped before
    for (int l = 0; l <= LAYERS; l++)
        for (int n = 0; n < (l < LAYERS ? UNITS : CODE_UNITS); n++) {
            const T* from;  // row `output`, of which there are `inner` numbers a row
            int output = blockIdx.x * SHARE, inner = WIDTH, rows = SHARE;
            if (l == LAYERS) {
                from = codes, output = (blockIdx.x * CODE_UNITS + n) * SHARE;
                rows = CODES - output < SHARE ? CODES - output : SHARE;
            } else if (n < 3) {
                from = layers[l].qkv, output = 3 * output + n * SHARE;
            } else if (n < 4) {
                from = layers[l].out;
            } else if (n < 8) {
                from = layers[l].fc, output = 4 * output + (n - 4) * SHARE;
            } else {
                from = layers[l].proj + (n - 8) * WIDTH, inner = INNER;
            }
            if (rows < 0) rows = 0;
            await(empty + slot, parity);
            if (lane == 0) announce(rows * WIDTH * sizeof(T), full + slot);
            __syncwarp();
            if (lane < rows)
                send(ring + slot * UNIT + lane * STRIDE, from + (long long)(output + lane) * inner, WIDTH * sizeof(T), full + slot);
            if (++slot == RING) slot = 0, parity ^= 1;
        }
}

// The units as the other warps see them, one after the other.
struct Units {
    const T* ring;
    Address *full, *empty;
    int slot, parity;

    // sums (16, 8) += the warp's slice of the next unit, when it is there, times `inputs`. Rows beyond the unit's repeat its last one.
    __device__ __forceinline__ void multiply_next(float4& sums, const uint2* inputs) {
        const int lane = threadIdx.x & 31, row = (lane & 7) + (lane & 8);
        const T* from = ring + slot * UNIT + (row < SHARE ? row : SHARE - 1) * STRIDE + (threadIdx.x >> 5) * SLICE + (lane >> 4) * 8;
        float4 odd = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        await(full + slot, parity);
#pragma unroll
        for (int s = 0; s < STEPS; s += 2) {
            multiply(sums, load_matrix(from + 16 * s), inputs[s]);
            multiply(odd, load_matrix(from + 16 * (s + 1)), inputs[s + 1]);
        }
        sums.x += odd.x, sums.y += odd.y, sums.z += odd.z, sums.w += odd.w;
        __syncwarp();
        if (lane == 0) arrive(empty + slot);
        if (++slot == RING) slot = 0, parity ^= 1;
    }
};

// A warp's part of the sums of a unit's outputs goes to `parts` (WARPS, rows, COUNT), from row `first` on.
__device__ __forceinline__ void put(float4 sums, int first, int rows, float* parts) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, m = 2 * (lane & 3);
    float* to = parts + (warp * rows + first + row) * COUNT + m;
    if (m < COUNT && row < SHARE) to[0] = sums.x;
    if (m + 1 < COUNT && row < SHARE) to[1] = sums.y;
    to += 8 * COUNT;
    if (m < COUNT && row + 8 < SHARE) to[0] = sums.z;
    if (m + 1 < COUNT && row + 8 < SHARE) to[1] = sums.w;
}

// Products with N units, into `parts` (WARPS, N * SHARE, COUNT); ends with a barrier.
template <int N>
__device__ __forceinline__ void multiply_all(Units& units, const uint2* inputs, float* parts) {
#pragma unroll 1
    for (int n = 0; n < N; n++) {
        float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        units.multiply_next(sums, inputs);
        put(sums, n * SHARE, N * SHARE, parts);
    }
    meet();
}

// The sum over the warps.
__device__ __forceinline__ float total(const float* parts, int row, int rows, int m) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += parts[(w * rows + row) * COUNT + m];
    return sum;
}

// The pairs of outputs that a thread finishes; the biases are sent for when it is made.
template <int OUTPUTS>
struct Mine {
    enum { ROUNDS = (OUTPUTS / 2 * COUNT + THREADS - 1) / THREADS };
    float bias[ROUNDS][2];

    __device__ __forceinline__ explicit Mine(const float* biases) {
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const int i = threadIdx.x + r * THREADS, output = blockIdx.x * OUTPUTS + 2 * (i % (OUTPUTS / 2));
            bias[r][0] = i < OUTPUTS / 2 * COUNT ? constant(biases + output) : 0.0f;
            bias[r][1] = i < OUTPUTS / 2 * COUNT ? constant(biases + output + 1) : 0.0f;
        }
    }

    // `use(sequence, output, sum, sum of the next output)`
    template <class Use>
    __device__ __forceinline__ void finish(const float* parts, Use use) const {
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const int i = threadIdx.x + r * THREADS, m = i / (OUTPUTS / 2), row = 2 * (i % (OUTPUTS / 2));
            if (m < COUNT)
                use(m, blockIdx.x * OUTPUTS + row, total(parts, row, OUTPUTS, m) + bias[r][0], total(parts, row + 1, OUTPUTS, m) + bias[r][1]);
        }
    }
};

__device__ __forceinline__ float gelu(float x) {
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x / (1.0f + __expf(-2.0f * inner));
}

// -------------------------------------------------------------------------------------------------------------------- norms

__device__ __forceinline__ void block_sums(float* values, float* scratch) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        const float sum = warp_sum(values[m]);
        if (lane == 0) scratch[warp * COUNT + m] = sum;
    }
    meet();
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        values[m] = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) values[m] += scratch[w * COUNT + m];
    }
}

// From four neighbours a lane, as two pairs of each sequence, to what the tensor cores want: columns 2 t, 2 t + 1 and the same plus 8 of
// every 16, of sequence g.
__device__ __forceinline__ void exchange(const unsigned* pairs, uint2* inputs, unsigned* space) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < COUNT; m++) space[m * 72 + 2 * lane] = pairs[2 * m], space[m * 72 + 2 * lane + 1] = pairs[2 * m + 1];
    __syncwarp();
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        inputs[s].x = g < COUNT ? space[g * 72 + 8 * s + t] : 0;
        inputs[s].y = g < COUNT ? space[g * 72 + 8 * s + 4 + t] : 0;
    }
}

struct Stream {  // a thread's four numbers of each sequence; between phases they are in shared memory
    float4 of[COUNT];

    // Takes them from `kept` (COUNT, THREADS) and adds what came.
    __device__ __forceinline__ void add(float4* kept, const Word* deltas, unsigned turn) {
        unsigned pairs[2 * COUNT];
        await_words<COUNT>([&](int m) { return deltas + m * (WIDTH / 2) + 2 * threadIdx.x; }, COUNT, turn, pairs);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            of[m] = kept[m * THREADS + threadIdx.x];
            of[m].x += low(pairs[2 * m]), of[m].y += high(pairs[2 * m]);
            of[m].z += low(pairs[2 * m + 1]), of[m].w += high(pairs[2 * m + 1]);
            kept[m * THREADS + threadIdx.x] = of[m];
        }
    }

    // LayerNorm with the thread's four gains and shifts; `scratch` takes (2, WARPS, COUNT) numbers.
    __device__ __forceinline__ void norm(float4 g, float4 b, float* scratch) {
        float sums[COUNT];
#pragma unroll
        for (int m = 0; m < COUNT; m++) sums[m] = (of[m].x + of[m].y) + (of[m].z + of[m].w);
        block_sums(sums, scratch);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            const float mean = sums[m] / WIDTH;
            of[m].x -= mean, of[m].y -= mean, of[m].z -= mean, of[m].w -= mean;
            sums[m] = (of[m].x * of[m].x + of[m].y * of[m].y) + (of[m].z * of[m].z + of[m].w * of[m].w);
        }
        block_sums(sums, scratch + WARPS * COUNT);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            const float scale = rsqrtf(sums[m] / WIDTH + 1e-5f);
            of[m].x = of[m].x * scale * g.x + b.x, of[m].y = of[m].y * scale * g.y + b.y;
            of[m].z = of[m].z * scale * g.z + b.z, of[m].w = of[m].w * scale * g.w + b.w;
        }
    }

    // The warp's slice as inputs of its tiles; `space`: the warp's own.
    __device__ __forceinline__ void to_inputs(uint2* inputs, unsigned* space) const {
        unsigned pairs[2 * COUNT];
#pragma unroll
        for (int m = 0; m < COUNT; m++) pairs[2 * m] = paired(of[m].x, of[m].y), pairs[2 * m + 1] = paired(of[m].z, of[m].w);
        exchange(pairs, inputs, space);
    }
};

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

// How many blocks share a head of a row.
__device__ __forceinline__ int parts_of(int used) {
    int most = GRID / (ROWS * HEADS);
    most = most < 1 ? 1 : (most > MOST_PARTS ? MOST_PARTS : most);
    const int worth = (used + PART - 1) / PART;
    return worth < 1 ? 1 : (worth < most ? worth : most);
}

// Keys and values of a layer that this block will read, into the L2 cache, long before: behind the weights they would take too long.
__device__ __forceinline__ void foresee_keys(const Step& step, int layer, int used, int parts) {
    const int span = (used + parts - 1) / parts;
    for (int item = blockIdx.x; item < ROWS * HEADS * parts; item += GRID) {
        const int first = item % parts * span, end = first + span < used ? first + span : used;
        const long long place0 = ((long long)(layer * ROWS + item / parts / HEADS) * HEADS + item / parts % HEADS) * step.capacity;
        for (int place = first + threadIdx.x; place < end; place += THREADS)
            prefetch(step.keys + (place0 + place) * HEAD), prefetch(step.values + (place0 + place) * HEAD);
    }
}

__device__ __forceinline__ void attend(const Step& step, int layer, int used, int parts, unsigned* newest, float* queries, float* merge, unsigned turn) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = lane >> 3, eight = 8 * (lane & 7);
    const int span = (used + parts - 1) / parts;
    for (int item = blockIdx.x; item < ROWS * HEADS * parts; item += GRID) {
        const int part = item % parts, head = item / parts % HEADS, row = item / parts / HEADS;
        const long long place0 = (((long long)layer * ROWS + row) * HEADS + head) * step.capacity;
        T *keys = step.keys + place0 * HEAD, *values = step.values + place0 * HEAD;
        const int first = part * span, end = first + span < used ? first + span : used;
        const unsigned char* visible = step.visible + row * BEAMS * step.capacity;
        uint4 k[AHEAD], v[AHEAD];
        unsigned seen[AHEAD];  // a bit a beam
        auto fetch = [&](int start) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int place = start + (a * WARPS + warp) * 4 + group;
                k[a] = place < end ? load_fresh(keys + place * HEAD + eight) : make_uint4(0, 0, 0, 0);
                v[a] = place < end ? load_fresh(values + place * HEAD + eight) : make_uint4(0, 0, 0, 0);
                seen[a] = 0;
#pragma unroll
                for (int b = 0; b < BEAMS; b++) seen[a] |= (place < end && visible[b * step.capacity + place]) << b;
            }
        };
        fetch(first);  // old keys do not depend on this step: they come in while the queries are awaited
        const bool own = part == 0 && warp == 0 && group < BEAMS;  // key and value of beam number `group` are kept in `newest`
        if (own) {
            const Word* source = step.qkv + (row * BEAMS + group) * (3 * WIDTH / 2) + head * (HEAD / 2) + eight / 2;
            unsigned pairs[8];
            await_words<4>([&](int i) { return source + (i / 2 + 1) * (WIDTH / 2) + i % 2 * 2; }, 4, turn, pairs);
#pragma unroll
            for (int i = 0; i < 8; i++) newest[8 * lane + i] = pairs[i];
        }
        for (int i = THREADS - 1 - threadIdx.x; i < BEAMS * HEAD / 4; i += THREADS) {  // the last warps: the first one waits for the keys
            const int beam = i / (HEAD / 4), two = i % (HEAD / 4);
            unsigned pairs[2];
            const Word* source = step.qkv + (row * BEAMS + beam) * (3 * WIDTH / 2) + head * (HEAD / 2) + 2 * two;
            await_words<1>([&](int) { return source; }, 1, turn, pairs);
            float* to = queries + beam * HEAD + 4 * two;
            to[0] = low(pairs[0]) * 0.125f, to[1] = high(pairs[0]) * 0.125f, to[2] = low(pairs[1]) * 0.125f, to[3] = high(pairs[1]) * 0.125f;
        }
        meet();
        float query[BEAMS][8];
        Softmax states[BEAMS];
#pragma unroll
        for (int b = 0; b < BEAMS; b++) {
#pragma unroll
            for (int i = 0; i < 8; i++) query[b][i] = queries[b * HEAD + eight + i], states[b].mixed[i] = 0.0f;
            states[b].top = LOWEST, states[b].mass = 0.0f;
        }
        for (int start = first; start < end; start += AHEAD * WARPS * 4) {
            if (start != first) fetch(start);
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                float key[8], value[8];
                spread(k[a], key), spread(v[a], value);
#pragma unroll
                for (int b = 0; b < BEAMS; b++) take(states[b], seen[a] >> b & 1, dot(query[b], key), value);
            }
        }
        if (part == 0 && warp == 0) {  // the new keys: each beam sees its own
            const uint4 none = make_uint4(0, 0, 0, 0);
            const uint4 its_key = own ? *(const uint4*)(newest + 8 * lane) : none, its_value = own ? *(const uint4*)(newest + 8 * lane + 4) : none;
            float key[8], value[8];
            spread(its_key, key), spread(its_value, value);
#pragma unroll
            for (int b = 0; b < BEAMS; b++) take(states[b], own && b == group, dot(query[b], key), value);
            if (own) {
                const long long slot = step.slots[group];
                *(uint4*)(keys + slot * HEAD + eight) = its_key;
                *(uint4*)(values + slot * HEAD + eight) = its_value;
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
        meet();
        for (int i = threadIdx.x; i < BEAMS * HEAD / 2; i += THREADS) {
            const int beam = i / (HEAD / 2), two = 2 * (i % (HEAD / 2)), sequence = part * COUNT + row * BEAMS + beam;
            float top = LOWEST, mass = 0.0f, mixed[2] = {0.0f, 0.0f};
#pragma unroll
            for (int w = 0; w < WARPS; w++) top = fmaxf(top, merge[(w * BEAMS + beam) * (HEAD + 2) + HEAD]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float* its = merge + (w * BEAMS + beam) * (HEAD + 2);
                const float share = __expf(its[HEAD] - top);
                mass += its[HEAD + 1] * share, mixed[0] += its[two] * share, mixed[1] += its[two + 1] * share;
            }
            const float scale = mass > 0.0f ? 1.0f / mass : 0.0f;  // a part may hold no key that this beam sees
            const int pair = head * (HEAD / 2) + two / 2;
            store_word(step.mixed + sequence * (WIDTH / 2) + pair, paired(mixed[0] * scale, mixed[1] * scale), turn);
            if (two == 0) {
                Word* stats = step.stats + 2 * (sequence * HEADS + head);
                store_word(stats, float_to_bits(top), turn), store_word(stats + 1, float_to_bits(mass), turn);
            }
        }
        meet();
    }
}

// Attention's parts put together, as inputs of the warp's tiles: its slice is two heads, and a lane's numbers are of one of them.
__device__ __forceinline__ void gather(const Step& step, int parts, uint2* inputs, unsigned* space, unsigned turn) {
    constexpr int PARTS_AT_ONCE = COUNT <= 2 ? 2 : 1, N = PARTS_AT_ONCE * COUNT;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = 2 * warp + (lane >> 4);
    float sums[COUNT][4], top[COUNT], mass[COUNT];
#pragma unroll
    for (int m = 0; m < COUNT; m++) sums[m][0] = sums[m][1] = sums[m][2] = sums[m][3] = mass[m] = 0.0f, top[m] = LOWEST;
    for (int p = 0; p < parts; p += PARTS_AT_ONCE) {
        const int here = (parts - p < PARTS_AT_ONCE ? parts - p : PARTS_AT_ONCE) * COUNT;
        unsigned got[4 * N];
        await_words<2 * N>(
            [&](int i) {
                const int sequence = p * COUNT + i / 2;
                return i % 2 ? step.stats + 2 * (sequence * HEADS + head) : step.mixed + sequence * (WIDTH / 2) + warp * (SLICE / 2) + 2 * lane;
            },
            2 * here, turn, got
        );
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < here) {
                const int m = i % COUNT;
                const unsigned* its = got + 4 * i;
                const float its_top = bits_to_float(its[2]), higher = fmaxf(top[m], its_top);
                const float old = __expf(top[m] - higher), share = bits_to_float(its[3]) * __expf(its_top - higher);
                mass[m] = mass[m] * old + share, top[m] = higher;
                sums[m][0] = sums[m][0] * old + low(its[0]) * share, sums[m][1] = sums[m][1] * old + high(its[0]) * share;
                sums[m][2] = sums[m][2] * old + low(its[1]) * share, sums[m][3] = sums[m][3] * old + high(its[1]) * share;
            }
    }
    unsigned pairs[2 * COUNT];
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        const float scale = 1.0f / mass[m];
        pairs[2 * m] = paired(sums[m][0] * scale, sums[m][1] * scale), pairs[2 * m + 1] = paired(sums[m][2] * scale, sums[m][3] * scale);
    }
    exchange(pairs, inputs, space);
}

// --------------------------------------------------------------------------------------------------------------------- step

#define MOST(a, b) ((a) > (b) ? (a) : (b))
#define AT_ONCE (COUNT < 2 ? COUNT : 2)  // sequences whose inner activations are on their way at once
#if TRACE
#define NOTE(phase) if (blockIdx.x == 0 && threadIdx.x == 0) step.trace[l * PHASES + (phase)] = clock_now()
#else
#define NOTE(phase)
#endif
#define MOST_OUTPUTS (SHARE * MOST(4, CODE_UNITS))
// Shared memory, in bytes: the ring; parts of sums, twice, so that one phase's are read while the next one's are written; sums of the norms,
// likewise; inputs of the warps; the stream; attention; the table of layers; arrivals.
#define FOR_RING (RING * UNIT * 2)
#define FOR_PARTS (4 * WARPS * MOST_OUTPUTS * COUNT)
#define FOR_NORMS (4 * 2 * WARPS * COUNT)
#define FOR_INPUTS (4 * WARPS * COUNT * 72)
#define FOR_STREAM (4 * COUNT * WIDTH)
#define FOR_ATTENTION (4 * (32 * 8 + BEAMS * (HEAD + WARPS * (HEAD + 2))))
#define FOR_LAYERS (LAYERS * (int)sizeof(Layer))
#define SHARED_BYTES (FOR_RING + 2 * FOR_PARTS + 2 * FOR_NORMS + FOR_INPUTS + FOR_STREAM + FOR_ATTENTION + FOR_LAYERS + 16 * RING)

extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) decode_step(const Step step) {
    unsigned char* space = shared_memory;
    T* ring = (T*)space;
    Layer* layers = (Layer*)(space += FOR_RING);
    Address* full = (Address*)(space += FOR_LAYERS);
    Address* empty = full + RING;
    float* parts = (float*)(space += 16 * RING);
    float* norms = (float*)(space += 2 * FOR_PARTS);
    unsigned* own_inputs = (unsigned*)(space += 2 * FOR_NORMS);
    float4* kept = (float4*)(space += FOR_INPUTS);
    unsigned* newest = (unsigned*)(space += FOR_STREAM);
    float* queries = (float*)newest + 32 * 8;
    float* merge = queries + BEAMS * HEAD;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    own_inputs += warp * COUNT * 72;
    for (int i = threadIdx.x; i < FOR_LAYERS / 8; i += THREADS + 32) ((Address*)layers)[i] = ((const Address*)step.layers)[i];
    if (threadIdx.x < RING) begin_arrival(full + threadIdx.x, 1), begin_arrival(empty + threadIdx.x, WARPS);
    arrivals_begun();
    __syncthreads();
    if (warp == WARPS) {
        send_all(layers, step.codes, ring, full, empty);
        return;
    }
    Units units{ring, full, empty, 0, 0};
    unsigned turn = step.launches[1] * LAYERS;
    const int used = (int)step.slots[0], pieces = parts_of(used);
#pragma unroll
    for (int m = 0; m < COUNT; m++) kept[m * THREADS + threadIdx.x] = constant4(step.x + m * WIDTH + 4 * threadIdx.x);
    uint2 inputs[STEPS];
    const float4 nothing = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    Word *deltas_out = step.deltas, *deltas_proj = step.deltas + COUNT * (WIDTH / 2);
    float *even = parts, *odd = parts + FOR_PARTS / 4;
    foresee_keys(step, 0, used, pieces);
    const int column = 4 * threadIdx.x;
    for (int l = 0; l < LAYERS; l++) {
        const Layer& layer = layers[l];
        if (l + 1 < LAYERS) {
            foresee_keys(step, l + 1, used, pieces);
            // Norms and biases of the next layer likewise, or each would be a trip to memory that everybody waits for.
            const Layer& next = layers[l + 1];
            if (blockIdx.x == l % GRID)
                foresee(next.gain1, WIDTH), foresee(next.shift1, WIDTH), foresee(next.gain2, WIDTH), foresee(next.shift2, WIDTH);
            if (blockIdx.x == (l + 1) % GRID)
                foresee(next.qkv_bias, 3 * WIDTH), foresee(next.out_bias, WIDTH), foresee(next.fc_bias, INNER), foresee(next.proj_bias, WIDTH);
        }

        // Phase 1
        {
            const float4 gain = constant4(layer.gain1 + column), shift = constant4(layer.shift1 + column);
            Mine<3 * SHARE> mine(layer.qkv_bias);
            Stream stream;
            if (l > 0)
                stream.add(kept, deltas_proj, turn);
            else
#pragma unroll
                for (int m = 0; m < COUNT; m++) stream.of[m] = kept[m * THREADS + threadIdx.x];
            turn++;
            NOTE(0);
            stream.norm(gain, shift, norms);
            stream.to_inputs(inputs, own_inputs);
            multiply_all<3>(units, inputs, even);
            NOTE(1);
            mine.finish(even, [&](int m, int output, float first, float second) {
                store_word(step.qkv + m * (3 * WIDTH / 2) + output / 2, paired(first, second), turn);
            });
        }

        // Phase 2
        attend(step, l, used, pieces, newest, queries, merge, turn);
        NOTE(2);

        // Phase 3
        {
            Mine<SHARE> mine(layer.out_bias);
            gather(step, pieces, inputs, own_inputs, turn);
            NOTE(3);
            multiply_all<1>(units, inputs, odd);
            NOTE(4);
            mine.finish(odd, [&](int m, int output, float first, float second) {
                store_word(deltas_out + m * (WIDTH / 2) + output / 2, paired(first, second), turn);
            });
        }

        // Phase 4
        {
            const float4 gain = constant4(layer.gain2 + column), shift = constant4(layer.shift2 + column);
            Mine<4 * SHARE> mine(layer.fc_bias);
            Stream stream;
            stream.add(kept, deltas_out, turn);
            NOTE(5);
            stream.norm(gain, shift, norms + FOR_NORMS / 4);
            stream.to_inputs(inputs, own_inputs);
            multiply_all<4>(units, inputs, even);
            NOTE(6);
            mine.finish(even, [&](int m, int output, float first, float second) {
                store_word(step.hidden + m * (INNER / 2) + output / 2, paired(gelu(first), gelu(second)), turn);
            });
        }

        // Phase 5
        {
            Mine<SHARE> mine(layer.proj_bias);
            unsigned pairs[4][2 * COUNT];  // a quarter after the other, of each sequence
#pragma unroll
            for (int first = 0; first < COUNT; first += AT_ONCE) {
                const int here = COUNT - first < AT_ONCE ? COUNT - first : AT_ONCE;
                unsigned got[8 * AT_ONCE];
                await_words<4 * AT_ONCE>(
                    [&](int i) { return step.hidden + (4 * first + i) * (WIDTH / 2) + warp * (SLICE / 2) + 2 * lane; }, 4 * here, turn, got
                );
#pragma unroll
                for (int i = 0; i < 4 * AT_ONCE; i++)
                    if (i < 4 * here) pairs[i % 4][2 * (first + i / 4)] = got[2 * i], pairs[i % 4][2 * (first + i / 4) + 1] = got[2 * i + 1];
            }
            NOTE(7);
            float4 sums = nothing;
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                exchange(pairs[quarter], inputs, own_inputs);
                units.multiply_next(sums, inputs);
            }
            put(sums, 0, SHARE, odd);
            meet();
            NOTE(8);
            mine.finish(odd, [&](int m, int output, float first, float second) {
                store_word(deltas_proj + m * (WIDTH / 2) + output / 2, paired(first, second), turn);
            });
        }
    }
    {
        const float4 gain = constant4(step.gain_f + column), shift = constant4(step.shift_f + column);
        const float4 gain2 = constant4(step.gain_last + column), shift2 = constant4(step.shift_last + column);
        Stream stream;
        stream.add(kept, deltas_proj, turn);
        stream.norm(gain, shift, norms);
        stream.norm(gain2, shift2, norms + FOR_NORMS / 4);
        stream.to_inputs(inputs, own_inputs);
    }
    multiply_all<CODE_UNITS>(units, inputs, even);
    for (int i = threadIdx.x; i < CODE_UNITS * SHARE * COUNT; i += THREADS) {
        const int m = i / (CODE_UNITS * SHARE), row = i % (CODE_UNITS * SHARE), output = blockIdx.x * CODE_UNITS * SHARE + row;
        if (output < CODES) step.logits[m * CODES + output] = total(even, row, CODE_UNITS * SHARE, m) + constant(step.code_bias + output);
    }
    // The last block to come here begins the next launch's turns.
    if (threadIdx.x == 0 && add_release(step.launches) == GRID - 1) step.launches[0] = 0, step.launches[1]++;
}
