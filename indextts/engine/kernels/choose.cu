// Of each sequence's scores for the next code: shapes them, and finds the codes that a draw could end with. One block a sequence.
//
// What takes time in such a kernel is not the scores, which are few, but each exchange between its threads. So the scores stay in registers;
// the highest of 128 groups give a bound that the K highest codes surely reach, and what reaches it, some 40 codes, goes to shared memory.
// There a code's place in an order is the number of codes before it, which its thread counts by itself.
//
// Given at compile time: VOCABULARY, SAMPLES (0: the highest are chosen, 1: drawn), LOGS (1: log-softmax first), FORCED (1: stop is ruled
// out), PENALISES, HEATS, TOP_P (1: penalty, temperature and top-p are in force), K (codes that top-k leaves, and more if they are equal), KEEP
// (codes that top-p leaves at least), PICKS (codes to find of the race and of the highest scores).

#define THREADS 1024
#define EACH ((VOCABULARY + THREADS - 1) / THREADS)
#define GROUPS 128
#define WANTED (SAMPLES ? K : PICKS)
#define NOTHING (-1)  // instead of a code
#define SHARED_BYTES (16 * VOCABULARY + 4 * (GROUPS + 3 * 32 + 8))

struct Choice {
    const float* logits;         // (N, VOCABULARY)
    const unsigned char* seen;   // (N, VOCABULARY)
    const float* waits;          // (N, VOCABULARY) waiting times of the race; SAMPLES
    float* highest;              // (N,) the best score
    int* picked_code;            // (N, PICKS) first of the race, with scores and waiting times
    float *picked_score, *picked_wait;
    int* filler_code;            // (N, PICKS) highest scores; without stop where SAMPLES
    float* filler_score;
    int stop;
    float penalty, temperature, cut;  // cut: 1 - top_p
};

#ifndef EMULATED
extern __shared__ __align__(16) unsigned char shared_memory[];
#define INFINITE (__int_as_float(0x7f800000))
#endif

// The highest or the sum of a number of each thread; `space` (32,) is not to be in use.
template <bool HIGHEST>
__device__ __forceinline__ float over_block(float value, float* space) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int away = 16; away > 0; away >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, value, away);
        value = HIGHEST ? fmaxf(value, other) : value + other;
    }
    if (lane == 0) space[threadIdx.x >> 5] = value;
    __syncthreads();
    value = space[lane];
#pragma unroll
    for (int away = 16; away > 0; away >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, value, away);
        value = HIGHEST ? fmaxf(value, other) : value + other;
    }
    return value;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) choose(const Choice it) {
    float* tops = (float*)shared_memory;
    float *first = tops + GROUPS, *second = first + 32, *third = second + 32;
    int* numbers = (int*)(third + 32);     // codes in question, where those begin that top-k leaves, how many top-p removes, picks, fillers
    float* found = (float*)(numbers + 8);  // codes in question, in any order, and their scores
    int* found_code = (int*)(found + VOCABULARY);
    float* scores = (float*)(found_code + VOCABULARY);  // the same from the lowest to the highest, of equals the lower code first
    int* codes = (int*)(scores + VOCABULARY);
    float* speeds = found;
    const int row = blockIdx.x, thread = threadIdx.x;
    const long long place = (long long)row * VOCABULARY;
    float own[EACH];
    unsigned met = 0;
    if (thread < 8) numbers[thread] = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int code = i * THREADS + thread;
        own[i] = code < VOCABULARY && !(FORCED && code == it.stop) ? it.logits[place + code] : -INFINITE;
        if (PENALISES && code < VOCABULARY && it.seen[place + code]) met |= 1u << i;
    }
    if (LOGS) {
        float value = own[0];
#pragma unroll
        for (int i = 1; i < EACH; i++) value = fmaxf(value, own[i]);
        const float highest = over_block<true>(value, first);
        value = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++) own[i] -= highest, value += expf(own[i]);
        const float mass = logf(over_block<false>(value, second));
#pragma unroll
        for (int i = 0; i < EACH; i++) own[i] -= mass;
    }
    float top = -INFINITE;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (PENALISES && (met >> i & 1)) own[i] = own[i] < 0.0f ? own[i] * it.penalty : own[i] / it.penalty;
        if (HEATS) own[i] = own[i] / it.temperature;
        top = fmaxf(top, own[i]);
    }
    // A score that at least WANTED codes reach: that of as many groups' highest.
#pragma unroll
    for (int away = 1; away < THREADS / GROUPS; away <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, away));
    if (thread % (THREADS / GROUPS) == 0) tops[thread / (THREADS / GROUPS)] = top;
    __syncthreads();
    float bound = INFINITE;
    if (thread < GROUPS) {
        const float mine = tops[thread];
        int above = 0;
#pragma unroll 8
        for (int g = 0; g < GROUPS; g += 4) {
            const float4 four = *(const float4*)(tops + g);
            above += (four.x > mine) + (four.y > mine) + (four.z > mine) + (four.w > mine);
        }
        if (above < WANTED) bound = mine;
    }
    bound = -over_block<true>(-bound, third);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (i * THREADS + thread < VOCABULARY && own[i] >= bound) {
            const int at = atomicAdd(numbers, 1);
            found[at] = own[i], found_code[at] = i * THREADS + thread;
        }
    __syncthreads();
    // From here on a thread has the codes number `thread`, `thread` + THREADS, ... of those in question, nearly always one or none.
    const int count = numbers[0];
    for (int i = thread; i < count; i += THREADS) {
        const float mine = found[i];
        const int code = found_code[i];
        int before = 0;
        for (int j = 0; j < count; j++) before += found[j] < mine || (found[j] == mine && found_code[j] < code);
        scores[before] = mine, codes[before] = code;
    }
    __syncthreads();
    const float highest = scores[count - 1];
    int begin = 0;  // what is before this place has gone
    if (SAMPLES) {
        const float lowest = scores[count - K];
        for (int i = thread; i < count; i += THREADS) {
            if (scores[i] == lowest && (i == 0 || scores[i - 1] < lowest)) numbers[1] = i;
            speeds[i] = expf(scores[i] - highest);  // weights as yet
        }
        if (thread == 0) it.highest[row] = highest;
        __syncthreads();
        begin = numbers[1];
        if (TOP_P) {  // from the lowest upwards as many go as fit into the budget
            if (thread < 32) {
                float total = 0.0f;
                for (int start = begin; start < count; start += 32) {
                    float mass = start + thread < count ? speeds[start + thread] : 0.0f;
#pragma unroll
                    for (int away = 1; away < 32; away <<= 1) {
                        const float before = __shfl_up_sync(0xffffffffu, mass, away);
                        if (thread >= away) mass += before;
                    }
                    mass += total;
                    if (start + thread < count) speeds[start + thread] = mass;
                    total = __shfl_sync(0xffffffffu, mass, 31);
                }
                const float budget = it.cut * total;
                for (int i = begin + thread; i < count; i += 32)
                    if (speeds[i] <= budget) atomicAdd(numbers + 2, 1);
            }
            __syncthreads();
            const int most = count - begin - KEEP;
            begin += numbers[2] < most ? numbers[2] : most;
        }
        for (int i = begin + thread; i < count; i += THREADS) speeds[i] = expf(scores[i] - highest) / it.waits[place + codes[i]];
        __syncthreads();
    }
    for (int i = begin + thread; i < count; i += THREADS) {
        const float mine = scores[i], speed = SAMPLES ? speeds[i] : 0.0f;
        const int code = codes[i];
        int ahead = 0, above = 0;
        for (int j = begin; j < count; j++) {
            if (SAMPLES) ahead += speeds[j] > speed || (speeds[j] == speed && codes[j] < code);
            above += !(SAMPLES && codes[j] == it.stop) && (scores[j] > mine || (scores[j] == mine && codes[j] < code));
        }
        if (SAMPLES && speed > 0.0f && ahead < PICKS) {
            const int at = row * PICKS + ahead;
            it.picked_code[at] = code, it.picked_score[at] = mine, it.picked_wait[at] = it.waits[place + code];
            atomicAdd(numbers + 3, 1);
        }
        if (!(SAMPLES && code == it.stop) && mine > -INFINITE && above < PICKS) {
            it.filler_code[row * PICKS + above] = code, it.filler_score[row * PICKS + above] = mine;
            atomicAdd(numbers + 4, 1);
        }
    }
    __syncthreads();
    if (thread >= PICKS) return;
    const int at = row * PICKS + thread;
    if (SAMPLES && thread >= numbers[3]) it.picked_code[at] = NOTHING, it.picked_score[at] = 0.0f, it.picked_wait[at] = 1.0f;
    if (thread >= numbers[4]) it.filler_code[at] = NOTHING, it.filler_score[at] = -INFINITE;
}
