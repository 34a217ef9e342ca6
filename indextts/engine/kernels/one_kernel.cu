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
// weights in shared memory, each WIDTH / GRID rows), FLIGHT (units that may be on their way there at once), FORESEE (units after the one that
// is sent for which are fetched into the L2 cache), HALF (1: float16, 0: bfloat16), PART (old keys that are worth a block), BACK_OFF
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
#define KEYS 16                   // that a warp has at once, in tiles of 8
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
    const long long* slots;       // (BEAMS) where the new keys go: one after the other, behind all old ones
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

__device__ __forceinline__ void prefetch_row(const T* from, unsigned bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

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

// A number that the compiler knows nothing of from here on: what is computed from it is computed when it is needed, not kept from one layer
// to the next in registers that there are too few of.
__device__ __forceinline__ void hide(int& number) { asm volatile("" : "+r"(number)); }

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

__device__ __forceinline__ unsigned paired(float first, float second) { return rounded(first) | (unsigned)rounded(second) << 16; }

// Pairs of words number 0 to `most` (at most N), which lie at `where(i)`: reads them until all are of the `turn`, those that are not there
// again and again. The values, two a pair.
template <int N, class Where>
__device__ __forceinline__ void await_words(Where where, int most, unsigned turn, unsigned* values) {
    uint4 pairs[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < most) pairs[i] = load_words(where(i));
    for (unsigned asked = 0;; asked++) {
        bool there = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < most) there = there && pairs[i].y == turn && pairs[i].w == turn;
        if (there) break;
        PAUSE(asked);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < most && (pairs[i].y != turn || pairs[i].w != turn)) pairs[i] = load_words(where(i));
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < most) values[2 * i] = pairs[i].x, values[2 * i + 1] = pairs[i].z;
}

// Send for what will be read soon, into the L2 cache.
__device__ __forceinline__ void foresee(int thread, const float* from, int count) {
    for (int i = 32 * thread; i < count; i += 32 * THREADS) prefetch(from + i);
}

// ----------------------------------------------------------------------------------------------------------------- weights

// Which unit of weights: number `n` of layer `l`, the head's after the last layer.
struct Cursor {
    int l, n;

    __device__ __forceinline__ void advance() {
        if (++n == UNITS && l < LAYERS) n = 0, l++;
    }

    __device__ __forceinline__ bool ended() const { return l == LAYERS && n >= CODE_UNITS; }

    // Where this block's row number `lane` of the unit begins, and how many rows there are.
    __device__ __forceinline__ const T* row(const Layer* layers, const T* codes, int lane, int& rows) const {
        const T* from;  // row `output`, of which there are `inner` numbers a row
        int output = blockIdx.x * SHARE, inner = WIDTH;
        rows = SHARE;
        if (l == LAYERS) {
            from = codes, output = (blockIdx.x * CODE_UNITS + n) * SHARE;
            rows = CODES - output < SHARE ? CODES - output : SHARE;
            if (rows < 0) rows = 0;
        } else if (n < 3) {
            from = layers[l].qkv, output = 3 * output + n * SHARE;
        } else if (n < 4) {
            from = layers[l].out;
        } else if (n < 8) {
            from = layers[l].fc, output = 4 * output + (n - 4) * SHARE;
        } else {
            from = layers[l].proj + (n - 8) * WIDTH, inner = INNER;
        }
        return from + (long long)(output + lane) * inner;
    }
};

// What one warp does, and nothing else: send for all units of weights, each when its place in the ring is free.
__device__ __forceinline__ void send_all(const Layer* layers, const T* codes, T* ring, Address* full, Address* empty) {
    const int lane = threadIdx.x & 31;
    int slot = 0, parity = 1;  // a fresh arrival counts as flipped before
    int landing = 0, landing_parity = 0, rows;
    Cursor later{0, 0};
    for (int i = 0; i < FORESEE; i++) later.advance();
    int sent = 0;
    for (Cursor now{0, 0}; !now.ended(); now.advance(), later.advance()) {
        await(empty + slot, parity);
        if (FLIGHT < RING && sent++ >= FLIGHT) {
            await(full + landing, landing_parity);
            if (++landing == RING) landing = 0, landing_parity ^= 1;
        }
        const T* from = now.row(layers, codes, lane, rows);
        if (lane == 0) announce(rows * WIDTH * sizeof(T), full + slot);
        __syncwarp();
        if (lane < rows) send(ring + slot * UNIT + lane * STRIDE, from, WIDTH * sizeof(T), full + slot);
        if (++slot == RING) slot = 0, parity ^= 1;
        if (FORESEE && !later.ended()) {
            from = later.row(layers, codes, lane, rows);
            if (lane < rows) prefetch_row(from, WIDTH * sizeof(T));
        }
    }
}

// The units as the other warps see them, one after the other.
struct Units {
    const T* ring;
    Address *full, *empty;
    int slot, parity;

    // The warp's slice of the next unit, when it is there. Rows beyond the unit's repeat its last one.
    __device__ __forceinline__ void load_next(int thread, uint4* tiles) {
        const int lane = thread & 31, row = (lane & 7) + (lane & 8);
        const T* from = ring + slot * UNIT + (row < SHARE ? row : SHARE - 1) * STRIDE + (thread >> 5) * SLICE + (lane >> 4) * 8;
        await(full + slot, parity);
#pragma unroll
        for (int s = 0; s < STEPS; s++) tiles[s] = load_matrix(from + 16 * s);
        __syncwarp();
        if (lane == 0) arrive(empty + slot);
        if (++slot == RING) slot = 0, parity ^= 1;
    }
};

// even, odd (16, 8) += the warp's slice of a unit times `inputs`
__device__ __forceinline__ void multiply_tiles(float4& even, float4& odd, const uint4* tiles, const uint2* inputs) {
#pragma unroll
    for (int s = 0; s < STEPS; s += 2) multiply(even, tiles[s], inputs[s]), multiply(odd, tiles[s + 1], inputs[s + 1]);
}

// A warp's part of the sums of a unit's outputs goes to `parts` (WARPS, COUNT, rows), from row `first` on.
__device__ __forceinline__ void put(int thread, float4 even, float4 odd, int first, int rows, float* parts) {
    const int warp = thread >> 5, lane = thread & 31, row = lane >> 2, m = 2 * (lane & 3);
    float* to = parts + (warp * COUNT + m) * rows + first + row;
    if (m < COUNT && row < SHARE) to[0] = even.x + odd.x;
    if (m + 1 < COUNT && row < SHARE) to[rows] = even.y + odd.y;
    if (m < COUNT && row + 8 < SHARE) to[8] = even.z + odd.z;
    if (m + 1 < COUNT && row + 8 < SHARE) to[rows + 8] = even.w + odd.w;
}

// Products with N units, into `parts` (WARPS, COUNT, N * SHARE); ends with a barrier. The next unit is loaded while sums are put down.
template <int N>
__device__ __forceinline__ void multiply_all(int thread, Units& units, const uint2* inputs, float* parts) {
    uint4 tiles[STEPS];
    units.load_next(thread, tiles);
#pragma unroll
    for (int n = 0; n < N; n++) {
        float4 even = make_float4(0.0f, 0.0f, 0.0f, 0.0f), odd = even;
        multiply_tiles(even, odd, tiles, inputs);
        if (n + 1 < N) units.load_next(thread, tiles);
        put(thread, even, odd, n * SHARE, N * SHARE, parts);
    }
    meet();
}

// The sums over the warps of two neighbouring rows.
__device__ __forceinline__ float2 total(const float* parts, int row, int rows, int m) {
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float2 two = *(const float2*)(parts + (w * COUNT + m) * rows + row);
        sum.x += two.x, sum.y += two.y;
    }
    return sum;
}

__device__ __forceinline__ float row_total(const float* parts, int row, int rows, int m) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += parts[(w * COUNT + m) * rows + row];
    return sum;
}

// The pairs of outputs that a thread finishes; the biases are sent for when it is made.
template <int OUTPUTS>
struct Mine {
    enum { ROUNDS = (OUTPUTS / 2 * COUNT + THREADS - 1) / THREADS };
    float bias[ROUNDS][2];

    __device__ __forceinline__ Mine(int thread, const float* biases) {
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const int i = thread + r * THREADS, output = blockIdx.x * OUTPUTS + 2 * (i % (OUTPUTS / 2));
            bias[r][0] = i < OUTPUTS / 2 * COUNT ? constant(biases + output) : 0.0f;
            bias[r][1] = i < OUTPUTS / 2 * COUNT ? constant(biases + output + 1) : 0.0f;
        }
    }

    // `use(sequence, output, sum, sum of the next output)`
    template <class Use>
    __device__ __forceinline__ void finish(int thread, const float* parts, Use use) const {
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const int i = thread + r * THREADS, m = i / (OUTPUTS / 2), row = 2 * (i % (OUTPUTS / 2));
            if (m < COUNT) {
                const float2 sum = total(parts, row, OUTPUTS, m);
                use(m, blockIdx.x * OUTPUTS + row, sum.x + bias[r][0], sum.y + bias[r][1]);
            }
        }
    }
};

__device__ __forceinline__ float gelu(float x) {
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + __expf(-2.0f * inner));
}

// -------------------------------------------------------------------------------------------------------------------- norms

// Sums of `first` and `second`, COUNT of each, over all threads; `scratch` takes (COUNT, 2, WARPS) numbers. Half of a warp adds up the
// first ones and half of it the second ones.
__device__ __forceinline__ void block_sums(int thread, float* first, float* second, float* scratch) {
    const int warp = thread >> 5, lane = thread & 31;
    const bool upper = lane & 16;
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        float mine = upper ? second[m] : first[m];
        mine += __shfl_xor_sync(0xffffffffu, upper ? first[m] : second[m], 16);
#pragma unroll
        for (int away = 8; away > 0; away >>= 1) mine += __shfl_xor_sync(0xffffffffu, mine, away);
        if ((lane & 15) == 0) scratch[(2 * m + (lane >> 4)) * WARPS + warp] = mine;
    }
    meet();
#pragma unroll
    for (int m = 0; m < COUNT; m++) {
        float2 one = make_float2(0.0f, 0.0f), two = one;
#pragma unroll
        for (int w = 0; w < WARPS; w += 2) {
            const float2 a = *(const float2*)(scratch + 2 * m * WARPS + w), b = *(const float2*)(scratch + (2 * m + 1) * WARPS + w);
            one.x += a.x, one.y += a.y, two.x += b.x, two.y += b.y;
        }
        first[m] = one.x + one.y, second[m] = two.x + two.y;
    }
}

// From four neighbours a lane, as two pairs of each sequence, to what the tensor cores want: columns 2 t, 2 t + 1 and the same plus 8 of
// every 16, of sequence g. `space` takes (COUNT, 4, EXCHANGED) pairs of each warp.
#define EXCHANGED 20  // 2 * STEPS, and four more for the banks
__device__ __forceinline__ void exchange(int thread, const unsigned* pairs, uint2* inputs, unsigned* space) {
    const int lane = thread & 31, g = lane >> 2, t = lane & 3;
    space += (thread >> 5) * COUNT * 4 * EXCHANGED;
    unsigned* to = space + 2 * (lane & 1) * EXCHANGED + (lane >> 1);
    __syncwarp();
#pragma unroll
    for (int m = 0; m < COUNT; m++) to[4 * m * EXCHANGED] = pairs[2 * m], to[(4 * m + 1) * EXCHANGED] = pairs[2 * m + 1];
    __syncwarp();
    const uint4* from = (const uint4*)(space + (4 * g + t) * EXCHANGED);
#pragma unroll
    for (int s = 0; s < STEPS; s += 2) {
        const uint4 four = g < COUNT ? from[s / 2] : make_uint4(0, 0, 0, 0);
        inputs[s].x = four.x, inputs[s].y = four.y, inputs[s + 1].x = four.z, inputs[s + 1].y = four.w;
    }
}

struct Stream {  // a thread's four numbers of each sequence; between phases they are in shared memory
    float4 of[COUNT];

    // Takes them from `kept` (COUNT, THREADS) and adds what came.
    __device__ __forceinline__ void add(int thread, float4* kept, const Word* deltas, unsigned turn) {
        unsigned pairs[2 * COUNT];
        await_words<COUNT>([&](int m) { return deltas + m * (WIDTH / 2) + 2 * thread; }, COUNT, turn, pairs);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            of[m] = kept[m * THREADS + thread];
            of[m].x += low(pairs[2 * m]), of[m].y += high(pairs[2 * m]);
            of[m].z += low(pairs[2 * m + 1]), of[m].w += high(pairs[2 * m + 1]);
            kept[m * THREADS + thread] = of[m];
        }
    }

    // LayerNorm with the thread's four gains and shifts; `scratch` takes (COUNT, 2, WARPS) numbers. Variances are taken around `centre`,
    // the mean of the norm before, which is close enough for one pass over the numbers, and is replaced.
    __device__ __forceinline__ void norm(int thread, float4 g, float4 b, float* centre, float* scratch) {
        float sums[COUNT], squares[COUNT];
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            of[m].x -= centre[m], of[m].y -= centre[m], of[m].z -= centre[m], of[m].w -= centre[m];
            sums[m] = (of[m].x + of[m].y) + (of[m].z + of[m].w);
            squares[m] = (of[m].x * of[m].x + of[m].y * of[m].y) + (of[m].z * of[m].z + of[m].w * of[m].w);
        }
        block_sums(thread, sums, squares, scratch);
#pragma unroll
        for (int m = 0; m < COUNT; m++) {
            const float mean = sums[m] * (1.0f / WIDTH), scale = rsqrtf(fmaxf(squares[m] * (1.0f / WIDTH) - mean * mean, 0.0f) + 1e-5f);
            centre[m] += mean;
            of[m].x = (of[m].x - mean) * scale * g.x + b.x, of[m].y = (of[m].y - mean) * scale * g.y + b.y;
            of[m].z = (of[m].z - mean) * scale * g.z + b.z, of[m].w = (of[m].w - mean) * scale * g.w + b.w;
        }
    }

    // The warp's slice as inputs of its tiles.
    __device__ __forceinline__ void to_inputs(int thread, uint2* inputs, unsigned* space) const {
        unsigned pairs[2 * COUNT];
#pragma unroll
        for (int m = 0; m < COUNT; m++) pairs[2 * m] = paired(of[m].x, of[m].y), pairs[2 * m + 1] = paired(of[m].z, of[m].w);
        exchange(thread, pairs, inputs, space);
    }
};

// ---------------------------------------------------------------------------------------------------------------- attention

// How many blocks share a head of a row.
__device__ __forceinline__ int parts_of(int used) {
    int most = GRID / (ROWS * HEADS);
    most = most < 1 ? 1 : (most > MOST_PARTS ? MOST_PARTS : most);
    const int worth = (used + PART - 1) / PART;
    return worth < 1 ? 1 : (worth < most ? worth : most);
}

// Keys and values of a layer that this block will read, into the L2 cache, long before: behind the weights they would take too long.
__device__ __forceinline__ void foresee_keys(int thread, const Step& step, int layer, int used, int parts) {
    const int span = (used + parts - 1) / parts;
    for (int item = blockIdx.x; item < ROWS * HEADS * parts; item += GRID) {
        const int first = item % parts * span, end = first + span < used ? first + span : used;
        const long long place0 = ((long long)(layer * ROWS + item / parts / HEADS) * HEADS + item / parts % HEADS) * step.capacity;
        for (int place = first + thread; place < end; place += THREADS)
            prefetch(step.keys + (place0 + place) * HEAD), prefetch(step.values + (place0 + place) * HEAD);
    }
}

// A head's keys and values in the hands of a warp: keys as tensor cores want them as columns, 8 a tile, with the numbers of a head in an
// order of their own (a lane has 16 that follow one another), values as rows over eight lanes.
struct Held {
    uint4 keys[KEYS / 8][2], values[KEYS / 4];
};

// Scores (beams g, keys 2 t and 2 t + 1 of a tile) of the queries that `query` holds, as keys are held.
__device__ __forceinline__ float2 scores(const unsigned* query, const uint4* keys) {
    float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    multiply(sums, make_uint4(query[0], 0, query[1], 0), make_uint2(keys[0].x, keys[0].y));
    multiply(sums, make_uint4(query[2], 0, query[3], 0), make_uint2(keys[0].z, keys[0].w));
    multiply(sums, make_uint4(query[4], 0, query[5], 0), make_uint2(keys[1].x, keys[1].y));
    multiply(sums, make_uint4(query[6], 0, query[7], 0), make_uint2(keys[1].z, keys[1].w));
    return make_float2(sums.x * 0.125f, sums.y * 0.125f);
}

__device__ __forceinline__ float highest_of_four(float value) {  // lanes that follow one another
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// A warp's softmax over the keys that it has seen. `top` and `mass` are of beam g, and the mass is that of the lane's own keys; sums of
// values are of all beams, over the lane's group of keys.
struct Softmax {
    float top, mass, mixed[BEAMS][8];

    // `found`: scores of N tiles of keys, LOWEST where a beam does not see one; `weights`: room for (8 N, 4) numbers and 4 more.
    template <int N>
    __device__ __forceinline__ void take(int thread, const float2* found, const uint4* values, float* weights) {
        const int lane = thread & 31, g = lane >> 2, t = lane & 3, group = lane >> 3;
        float higher = top;
#pragma unroll
        for (int j = 0; j < N; j++) higher = fmaxf(higher, fmaxf(found[j].x, found[j].y));
        higher = highest_of_four(higher);
        const float old = __expf(top - higher);
        mass *= old, top = higher;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float x = found[j].x > LOWEST ? __expf(found[j].x - higher) : 0.0f, y = found[j].y > LOWEST ? __expf(found[j].y - higher) : 0.0f;
            mass += x + y;
            if (g < BEAMS) weights[4 * (8 * j + 2 * t) + g] = x, weights[4 * (8 * j + 2 * t + 1) + g] = y;
        }
        if (g < BEAMS && t == 0) weights[4 * 8 * N + g] = old;
        __syncwarp();
        const float4 olds = *(const float4*)(weights + 4 * 8 * N);
#pragma unroll
        for (int b = 0; b < BEAMS; b++)
#pragma unroll
            for (int i = 0; i < 8; i++) mixed[b][i] *= part_of(olds, b);
#pragma unroll
        for (int a = 0; a < 2 * N; a++) {
            const float4 shares = *(const float4*)(weights + 4 * (4 * a + group));
            float value[8];
            spread(values[a], value);
#pragma unroll
            for (int b = 0; b < BEAMS; b++)
#pragma unroll
                for (int i = 0; i < 8; i++) mixed[b][i] = fmaf(part_of(shares, b), value[i], mixed[b][i]);
        }
    }

    static __device__ __forceinline__ float part_of(float4 four, int which) {
        return which == 0 ? four.x : which == 1 ? four.y : which == 2 ? four.z : four.w;
    }
};

// `merge`: sums of values, highest score and mass of each warp and beam; `weights`: the warps' own.
__device__ __forceinline__ void attend(
    int thread, const Step& step, int layer, int used, int parts, float* weights, float* merge, unsigned turn
) {
    const int warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3, group = lane >> 3, eight = 8 * (lane & 7);
    const int span = (used + parts - 1) / parts;
    weights += warp * (4 * KEYS + 4);
    for (int item = blockIdx.x; item < ROWS * HEADS * parts; item += GRID) {
        const int part = item % parts, head = item / parts % HEADS, row = item / parts / HEADS;
        const long long place0 = (((long long)layer * ROWS + row) * HEADS + head) * step.capacity;
        T *keys = step.keys + place0 * HEAD, *values = step.values + place0 * HEAD;
        const int first = part * span, end = first + span < used ? first + span : used;
        const unsigned char* visible = step.visible + (row * BEAMS + (g < BEAMS ? g : 0)) * step.capacity;
        const uint4 none = make_uint4(0, 0, 0, 0);
        Held held;
        unsigned seen[KEYS / 4];  // by beam g, the lane's scores' keys; not looked at before they are needed, or everything would wait
        auto fetch = [&](int start) {
            start += warp * KEYS;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const int place = start + 8 * j + g, scored = start + 8 * j + 2 * t;
                const T* from = keys + place * HEAD + 16 * t;
                held.keys[j][0] = place < end ? load_fresh(from) : none, held.keys[j][1] = place < end ? load_fresh(from + 8) : none;
                seen[2 * j] = g < BEAMS && scored < end ? visible[scored] : 0;
                seen[2 * j + 1] = g < BEAMS && scored + 1 < end ? visible[scored + 1] : 0;
            }
#pragma unroll
            for (int a = 0; a < KEYS / 4; a++) {
                const int place = start + 4 * a + group;
                held.values[a] = place < end ? load_fresh(values + place * HEAD + eight) : none;
            }
        };
        const Word* source = step.qkv + row * BEAMS * (3 * WIDTH / 2) + head * (HEAD / 2);
        const Word *its_query = source + (g < BEAMS ? g : 0) * (3 * WIDTH / 2) + 8 * t, *its_key = its_query + WIDTH / 2;
        Softmax state;
        state.top = LOWEST, state.mass = 0.0f;
#pragma unroll
        for (int b = 0; b < BEAMS; b++)
#pragma unroll
            for (int i = 0; i < 8; i++) state.mixed[b][i] = 0.0f;
        if (part == 0 && warp == WARPS - 1) {  // the new keys, of which each beam sees its own
            const Word* its_value = source + (group < BEAMS ? group : 0) * (3 * WIDTH / 2) + WIDTH + eight / 2;
            unsigned words[20];  // eight pairs of a query, eight of a key, four of a value
            await_words<10>(
                [&](int i) { return i < 4 ? its_query + 2 * i : i < 8 ? its_key + 2 * (i - 4) : its_value + 2 * (i - 8); }, 10, turn, words
            );
            const uint4 new_keys[2] = {make_uint4(words[8], words[9], words[10], words[11]), make_uint4(words[12], words[13], words[14], words[15])};
            const uint4 new_values[2] = {make_uint4(words[16], words[17], words[18], words[19]), none};
            if (g < BEAMS) {
                T* to = keys + (used + g) * HEAD + 16 * t;
                *(uint4*)to = new_keys[0], *(uint4*)(to + 8) = new_keys[1];
            }
            if (group < BEAMS) *(uint4*)(values + (used + group) * HEAD + eight) = new_values[0];
            float2 found = scores(words, new_keys);
            if (2 * t != g) found.x = LOWEST;
            if (2 * t + 1 != g) found.y = LOWEST;
            state.template take<1>(thread, &found, new_values, weights);
        } else {
            unsigned query[8];
#pragma unroll 1
            for (int start = first; start < end; start += (part ? WARPS : WARPS - 1) * KEYS) {
                fetch(start);
                // Old keys do not depend on this step: they come in while the queries are awaited.
                if (start == first) await_words<4>([&](int i) { return its_query + 2 * i; }, 4, turn, query);
                float2 found[KEYS / 8];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
                    found[j] = scores(query, held.keys[j]);
                    if (!seen[2 * j]) found[j].x = LOWEST;
                    if (!seen[2 * j + 1]) found[j].y = LOWEST;
                }
                state.template take<KEYS / 8>(thread, found, held.values, weights);
            }
        }
        state.mass += __shfl_xor_sync(0xffffffffu, state.mass, 1);
        state.mass += __shfl_xor_sync(0xffffffffu, state.mass, 2);
        if (g < BEAMS && t == 0) {
            float* to = merge + (warp * BEAMS + g) * (HEAD + 2) + HEAD;
            to[0] = state.top, to[1] = state.mass;
        }
        // The four groups of a warp: each lane ends with the sums of two of its eight numbers.
        const bool upper = lane & 16, odd = lane & 8;
#pragma unroll
        for (int b = 0; b < BEAMS; b++) {
            float four[4], two[2];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float away = __shfl_xor_sync(0xffffffffu, upper ? state.mixed[b][i] : state.mixed[b][i + 4], 16);
                four[i] = (upper ? state.mixed[b][i + 4] : state.mixed[b][i]) + away;
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float away = __shfl_xor_sync(0xffffffffu, odd ? four[i] : four[i + 2], 8);
                two[i] = (odd ? four[i + 2] : four[i]) + away;
            }
            *(float2*)(merge + (warp * BEAMS + b) * (HEAD + 2) + eight + (upper ? 4 : 0) + (odd ? 2 : 0)) = make_float2(two[0], two[1]);
        }
        meet();
        for (int i = thread; i < BEAMS * HEAD / 2; i += THREADS) {
            const int beam = i / (HEAD / 2), two = 2 * (i % (HEAD / 2)), sequence = part * COUNT + row * BEAMS + beam;
            float top = LOWEST, mass = 0.0f, mixed[2] = {0.0f, 0.0f}, tops[WARPS];
#pragma unroll
            for (int w = 0; w < WARPS; w++) tops[w] = merge[(w * BEAMS + beam) * (HEAD + 2) + HEAD], top = fmaxf(top, tops[w]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float* its = merge + (w * BEAMS + beam) * (HEAD + 2);
                const float share = __expf(tops[w] - top);
                const float2 sums = *(const float2*)(its + two);
                mass += its[HEAD + 1] * share, mixed[0] += sums.x * share, mixed[1] += sums.y * share;
            }
            const float scale = mass > 0.0f ? __fdividef(1.0f, mass) : 0.0f;  // a part may hold no key that this beam sees
            const int pair = head * (HEAD / 2) + two / 2;
            store_word(step.mixed + sequence * (WIDTH / 2) + pair, paired(mixed[0] * scale, mixed[1] * scale), turn);
            if (two == 0) {
                Word* stats = step.stats + 2 * (sequence * HEADS + head);
                store_word(stats, float_to_bits(top), turn), store_word(stats + 1, float_to_bits(mass), turn);
            }
        }
        if (item + GRID < ROWS * HEADS * parts) meet();  // before `merge` is written again
    }
}

// Attention's parts put together, as inputs of the warp's tiles: its slice is two heads, and a lane's numbers are of one of them.
__device__ __forceinline__ void gather(int thread, const Step& step, int parts, uint2* inputs, unsigned* space, unsigned turn) {
    constexpr int PARTS_AT_ONCE = COUNT <= 1 ? 4 : COUNT <= 3 ? 2 : 1, N = PARTS_AT_ONCE * COUNT;
    const int warp = thread >> 5, lane = thread & 31, head = 2 * warp + (lane >> 4);
    float sums[COUNT][4], top[COUNT], mass[COUNT];
#pragma unroll
    for (int m = 0; m < COUNT; m++) sums[m][0] = sums[m][1] = sums[m][2] = sums[m][3] = mass[m] = 0.0f, top[m] = LOWEST;
    for (int p = 0; p < parts; p += PARTS_AT_ONCE) {
        const int here = (parts - p < PARTS_AT_ONCE ? parts - p : PARTS_AT_ONCE) * COUNT;
        unsigned got[4 * N];
        const Word *stats = step.stats + 2 * (p * COUNT * HEADS + head), *mixed = step.mixed + p * COUNT * (WIDTH / 2) + warp * (SLICE / 2) + 2 * lane;
        await_words<2 * N>([&](int i) { return i % 2 ? stats + i / 2 * (2 * HEADS) : mixed + i / 2 * (WIDTH / 2); }, 2 * here, turn, got);
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
        const float scale = __fdividef(1.0f, mass[m]);
        pairs[2 * m] = paired(sums[m][0] * scale, sums[m][1] * scale), pairs[2 * m + 1] = paired(sums[m][2] * scale, sums[m][3] * scale);
    }
    exchange(thread, pairs, inputs, space);
}

// --------------------------------------------------------------------------------------------------------------------- step

#define MOST(a, b) ((a) > (b) ? (a) : (b))
#define AT_ONCE (COUNT < 3 ? COUNT : COUNT < 4 ? 3 : 2)  // sequences whose inner activations are on their way at once
#if TRACE
#define NOTE(phase) if (blockIdx.x == 0 && threadIdx.x == 0) step.trace[l * PHASES + (phase)] = clock_now()
#else
#define NOTE(phase)
#endif
#define MOST_OUTPUTS (SHARE * MOST(4, (CODE_UNITS + 1) / 2))  // the head's, which come last, take the room of both
// Shared memory, in bytes: the ring; parts of sums, twice, so that one phase's are read while the next one's are written; sums of the norms,
// likewise; inputs of the warps; the stream; attention; the table of layers; arrivals.
#define FOR_RING (RING * UNIT * 2)
#define FOR_PARTS (4 * WARPS * MOST_OUTPUTS * COUNT)
#define FOR_NORMS (4 * 2 * WARPS * COUNT)
#define FOR_INPUTS (4 * WARPS * COUNT * 4 * EXCHANGED)
#define FOR_STREAM (4 * COUNT * WIDTH)
#define FOR_ATTENTION (4 * WARPS * (4 * KEYS + 4 + BEAMS * (HEAD + 2)))
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
    unsigned* exchanged = (unsigned*)(space += 2 * FOR_NORMS);
    float4* kept = (float4*)(space += FOR_INPUTS);
    float* weights = (float*)(space += FOR_STREAM);
    float* merge = weights + WARPS * (4 * KEYS + 4);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
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
    float centre[COUNT];
#pragma unroll
    for (int m = 0; m < COUNT; m++) centre[m] = 0.0f;
    Word *deltas_out = step.deltas, *deltas_proj = step.deltas + COUNT * (WIDTH / 2);
    float *even = parts, *odd = parts + FOR_PARTS / 4;
    int thread = threadIdx.x;
    foresee_keys(thread, step, 0, used, pieces);
    for (int l = 0; l < LAYERS; l++) {
        hide(thread);
        const Layer& layer = layers[l];
        if (l + 1 < LAYERS) {
            foresee_keys(thread, step, l + 1, used, pieces);
            // Norms and biases of the next layer likewise, or each would be a trip to memory that everybody waits for.
            const Layer& next = layers[l + 1];
            if (blockIdx.x == l % GRID)
                foresee(thread, next.gain1, WIDTH), foresee(thread, next.shift1, WIDTH), foresee(thread, next.gain2, WIDTH), foresee(thread, next.shift2, WIDTH);
            if (blockIdx.x == (l + 1) % GRID)
                foresee(thread, next.qkv_bias, 3 * WIDTH), foresee(thread, next.out_bias, WIDTH), foresee(thread, next.fc_bias, INNER), foresee(thread, next.proj_bias, WIDTH);
        }

        // Phase 1
        {
            const int column = 4 * thread;
            const float4 gain = constant4(layer.gain1 + column), shift = constant4(layer.shift1 + column);
            Mine<3 * SHARE> mine(thread, layer.qkv_bias);
            Stream stream;
            if (l > 0)
                stream.add(thread, kept, deltas_proj, turn);
            else
#pragma unroll
                for (int m = 0; m < COUNT; m++) stream.of[m] = kept[m * THREADS + thread];
            turn++;
            NOTE(0);
            stream.norm(thread, gain, shift, centre, norms);
            stream.to_inputs(thread, inputs, exchanged);
            multiply_all<3>(thread, units, inputs, even);
            NOTE(1);
            mine.finish(thread, even, [&](int m, int output, float first, float second) {
                store_word(step.qkv + m * (3 * WIDTH / 2) + output / 2, paired(first, second), turn);
            });
        }

        // Phase 2
        hide(thread);
        attend(thread, step, l, used, pieces, weights, merge, turn);
        NOTE(2);

        // Phase 3
        {
            hide(thread);
            Mine<SHARE> mine(thread, layer.out_bias);
            gather(thread, step, pieces, inputs, exchanged, turn);
            NOTE(3);
            multiply_all<1>(thread, units, inputs, odd);
            NOTE(4);
            mine.finish(thread, odd, [&](int m, int output, float first, float second) {
                store_word(deltas_out + m * (WIDTH / 2) + output / 2, paired(first, second), turn);
            });
        }

        // Phase 4
        {
            hide(thread);
            const int column = 4 * thread;
            const float4 gain = constant4(layer.gain2 + column), shift = constant4(layer.shift2 + column);
            Mine<4 * SHARE> mine(thread, layer.fc_bias);
            Stream stream;
            stream.add(thread, kept, deltas_out, turn);
            NOTE(5);
            stream.norm(thread, gain, shift, centre, norms + FOR_NORMS / 4);
            stream.to_inputs(thread, inputs, exchanged);
            multiply_all<4>(thread, units, inputs, even);
            NOTE(6);
            mine.finish(thread, even, [&](int m, int output, float first, float second) {
                store_word(step.hidden + m * (INNER / 2) + output / 2, paired(gelu(first), gelu(second)), turn);
            });
        }

        // Phase 5
        {
            hide(thread);
            const int warp = thread >> 5, lane = thread & 31;
            Mine<SHARE> mine(thread, layer.proj_bias);
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
            float4 first_sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f), second_sums = first_sums;
            uint4 tiles[STEPS];
            units.load_next(thread, tiles);
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                exchange(thread, pairs[quarter], inputs, exchanged);
                multiply_tiles(first_sums, second_sums, tiles, inputs);
                if (quarter < 3) units.load_next(thread, tiles);
            }
            put(thread, first_sums, second_sums, 0, SHARE, odd);
            meet();
            NOTE(8);
            mine.finish(thread, odd, [&](int m, int output, float first, float second) {
                store_word(deltas_proj + m * (WIDTH / 2) + output / 2, paired(first, second), turn);
            });
        }
    }
    {
        const int column = 4 * thread;
        const float4 gain = constant4(step.gain_f + column), shift = constant4(step.shift_f + column);
        const float4 gain2 = constant4(step.gain_last + column), shift2 = constant4(step.shift_last + column);
        Stream stream;
        stream.add(thread, kept, deltas_proj, turn);
        stream.norm(thread, gain, shift, centre, norms);
#pragma unroll
        for (int m = 0; m < COUNT; m++) centre[m] = 0.0f;
        stream.norm(thread, gain2, shift2, centre, norms + FOR_NORMS / 4);
        stream.to_inputs(thread, inputs, exchanged);
    }
    multiply_all<CODE_UNITS>(thread, units, inputs, even);
    for (int i = threadIdx.x; i < CODE_UNITS * SHARE * COUNT; i += THREADS) {
        const int m = i / (CODE_UNITS * SHARE), row = i % (CODE_UNITS * SHARE), output = blockIdx.x * CODE_UNITS * SHARE + row;
        if (output < CODES) step.logits[m * CODES + output] = row_total(even, row, CODE_UNITS * SHARE, m) + constant(step.code_bias + output);
    }
    // The last block to come here begins the next launch's turns.
    if (threadIdx.x == 0 && add_release(step.launches) == GRID - 1) step.launches[0] = 0, step.launches[1]++;
}
