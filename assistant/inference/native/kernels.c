/* The forward pass of Llama-like models on x86-64 with AVX2 or AVX-512: steps of a few tokens, and reading a prompt.
 *
 * - Products are 8-bit: weights in 4 or 8 bits, activations rounded to signed bytes, GROUP inputs to a scale, as
 *   llama.cpp's are (its Q8_0 blocks). Four neighbouring inputs of LANES outputs fill a vector. Sums of a group are exact.
 * - Attention multiplies 16-bit numbers: each query, key and value has a scale, and so have a row's weights of SLOTS
 *   slots. They are bounded so that sums fit 32 bits: they are exact. Keys of LANES slots lie side by side, two neighbouring
 *   dimensions to a 32-bit word; values lie by dimension, two neighbouring slots to a word.
 * - A row's result never depends on the other rows of a call nor on how many there are: each is summed in one order,
 *   which its position alone decides. So a step of several tokens gives what single steps give, to the last bit, and
 *   a prompt read in parts what it gives at once. That forbids -ffast-math; contraction of a * b + c is off, too (it
 *   might differ from one unrolled copy to another), and fused products are spelt out.
 * - Vectors have 512 bits where the CPU has AVX-512 with VNNI, 256 elsewhere (V, Floats, Ints, LANES). The weights'
 *   panels have 8 outputs either way, so that one file serves every CPU: 512 bits hold those of two panels.
 *
 * Numbers are in elements unless they say bytes. Nothing here checks shapes: decoder.py does. */

#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "needs a CPU with AVX2, FMA and F16C"
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define WIDE 1
#define DOT_BYTES _mm512_dpbusd_epi32 /* the other in assembly, or gcc would copy a sum to another register and back */
#define ADD_PAIRS(sum, a, b) __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#elif defined(__AVXVNNI__)
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#define ADD_PAIRS(sum, a, b) ((sum) = _mm256_dpwssd_avx_epi32(sum, a, b))
#else /* in assembly, too */
#define ADD_PAIRS(sum, a, b) __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(a, b)))
#endif

#define INLINE static inline __attribute__((always_inline))
#define API __attribute__((visibility("default")))

enum {
    VERSION = 2,
#ifdef WIDE
    LANES = 16,       /* floats of a vector: outputs of a product made side by side, slots to a tile of keys */
    ROWS = 8,         /* rows of a product of attention */
    AT_ONCE = 8,      /* rows of a product with weights whose sums are made side by side */
#else
    LANES = 8,
    ROWS = 4,
    AT_ONCE = 4,
#endif
    PANEL = 8,        /* outputs to a panel of weights, of which a vector holds one or two */
    GROUP = 32,       /* inputs that share a scale */
    BYTES_4 = 160, BYTES_8 = 256, /* of a block: a panel's weights for a group, in 4 bits with scales, or in 8 */
    PARTS = GROUP / LANES, /* vectors of activations that share a scale */
    AHEAD = 16,       /* blocks, by which weights are fetched early */
    MAX_ROWS = 8,     /* tokens of a step */
    CHUNK = 256,      /* slots to a task of a step's attention */
    BLOCK = 48,       /* rows of a task of reading, at most */
    SMALLEST = 3 * ROWS, /* and at least */
    MAX_READ = 1536,  /* rows of a read */
    MAX_TASKS = MAX_READ / SMALLEST,
    SLOTS = 64,       /* slots that are weighed together: the weights' scale is theirs */
    MAX_THREADS = 64,
    MAX_DIM = 512,    /* widest head */
    SPINS = 4000,     /* pauses, some 40 ns each, before a thread without work sleeps */
    TILES = 2,        /* tiles of keys, or vectors of values, of a product of attention: what the registers hold */
    VALUE_MOST = 2047, WEIGHT_MOST = 16383, /* SLOTS products of the two add up to less than 2 to the power of 31 */
};
static const float NEVER = -1e30f; /* score of a slot that is not seen: finite, so that nothing becomes NaN */

/* ------------------------------------------------------------------ threads */

/* Tasks are taken one by one from a counter. A thread that the kernel has put aside takes none, and the others do its
 * share: on a busy machine nobody waits for a thread that holds no task. */
typedef void (*Task)(void *job, int index, int thread);

typedef struct Pool {
    _Alignas(64) _Atomic uint64_t ticket; /* generation (24 bits), tasks (20), next task (20) */
    _Alignas(64) _Atomic int done;
    _Alignas(64) _Atomic int asleep;
    _Atomic int quit;
    Task task;
    void *job;
    int threads;
    pthread_t ids[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t wake;
} Pool;

typedef struct {
    Pool *pool;
    int index;
} Start;

INLINE int tasks_of(uint64_t ticket) { return (int)(ticket >> 20 & 0xfffff); }
INLINE int next_of(uint64_t ticket) { return (int)(ticket & 0xfffff); }

/* Take a task and run it; say whether there was one. */
static int take(Pool *pool, int thread) {
    uint64_t seen = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    if (next_of(seen) >= tasks_of(seen)) return 0;
    seen = atomic_fetch_add(&pool->ticket, 1);
    if (next_of(seen) >= tasks_of(seen)) return 0;
    pool->task(pool->job, next_of(seen), thread);
    atomic_fetch_add_explicit(&pool->done, 1, memory_order_release);
    return 1;
}

static void *work(void *argument) {
    Start start = *(Start *)argument;
    Pool *pool = start.pool;
    free(argument);
    for (int idle = 0; !atomic_load_explicit(&pool->quit, memory_order_relaxed);) {
        if (take(pool, start.index)) {
            idle = 0;
        } else if (++idle < SPINS) {
            _mm_pause();
        } else {
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->asleep, 1);
            for (;;) {
                uint64_t seen = atomic_load(&pool->ticket);
                if (next_of(seen) < tasks_of(seen) || atomic_load(&pool->quit)) break;
                pthread_cond_wait(&pool->wake, &pool->lock);
            }
            atomic_fetch_sub(&pool->asleep, 1);
            pthread_mutex_unlock(&pool->lock);
            idle = 0;
        }
    }
    return NULL;
}

/* Run task 0 to count - 1 on all threads; return when all are done. */
static void each(Pool *pool, Task task, void *job, int count) {
    if (pool->threads == 1 || count == 1) {
        for (int at = 0; at < count; at++) task(job, at, 0);
        return;
    }
    pool->task = task;
    pool->job = job;
    atomic_store(&pool->done, 0);
    uint64_t generation = (atomic_load(&pool->ticket) >> 40) + 1;
    atomic_store(&pool->ticket, generation << 40 | (uint64_t)count << 20);
    if (atomic_load(&pool->asleep)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    while (take(pool, 0)) {
    }
    for (int spins = 0; atomic_load_explicit(&pool->done, memory_order_acquire) < count; spins++) {
        if (spins < SPINS) _mm_pause();
        else sched_yield();
    }
}

API void pool_free(Pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->quit, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int at = 1; at < pool->threads; at++) pthread_join(pool->ids[at], NULL);
    free(pool);
}

/* Start a pool of *threads*, the caller's included. One caller at a time may use it. NULL when there is no memory. */
API Pool *pool_new(int threads) {
    Pool *pool = aligned_alloc(64, (sizeof(Pool) + 63) / 64 * 64);
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    for (int at = 1; at < threads && at < MAX_THREADS; at++) {
        Start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (Start){pool, at};
        if (pthread_create(&pool->ids[at], NULL, work, start)) {
            free(start);
            break;
        }
        pool->threads++;
    }
    return pool;
}

API int pool_threads(const Pool *pool) { return pool->threads; }

/* ------------------------------------------------------------------ a model */

typedef struct {
    const uint8_t *blocks; /* [outputs / 8][inputs / 32] blocks of BYTES_4 or BYTES_8 bytes */
    const float *scale;    /* 8 bits: [outputs] */
    const float *bias;     /* [outputs], or NULL */
    int32_t inputs, outputs, bits, unused;
} Product;

typedef struct {
    const float *input_norm, *post_norm, *q_norm, *k_norm; /* the last two may be NULL */
    Product qkv, out, gate_up, down;
} Layer;

typedef struct {
    int32_t hidden, heads, kv_heads, dim, intermediate, layers, activation;
    float eps, scale;
    const float *cos, *sin; /* [positions][dim], the sign of the rotation in the sines */
    const float *final_norm;
    const Layer *layer;
    Product head;
} Model;

typedef struct { /* keys [layers][kv_heads][slots / LANES][dim / 2][LANES][2], values [layers][kv_heads][slots / 2][dim][2] */
    int16_t *keys, *values; /* in pairs */
    float *key_scale, *value_scale; /* [layers][kv_heads][slots] */
    int64_t slots;
} Cache;

/* ------------------------------------------------------------------ vectors */

#ifdef WIDE
typedef __m512 Floats;
typedef __m512i Ints;
#define V(name) _mm512_##name
#define ROUND(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define IN_REGISTER "+v"
#else
typedef __m256 Floats;
typedef __m256i Ints;
#define V(name) _mm256_##name
#define ROUND(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define IN_REGISTER "+x"
#endif
/* A value stays where it is: gcc would make all the products of a sum first, and run out of registers. */
#define IN_PLACE(x) __asm__("" : IN_REGISTER(x))

INLINE Floats load(const float *at) { return V(loadu_ps)(at); }
INLINE void store(float *at, Floats x) { V(storeu_ps)(at, x); }
INLINE Floats all(float x) { return V(set1_ps)(x); }
INLINE Ints none(void) { return V(set1_epi32)(0); }
INLINE Ints quad(const void *at) { /* four bytes, again and again */
    int32_t four;
    memcpy(&four, at, 4);
    return V(set1_epi32)(four);
}

INLINE float sum_of_8(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

INLINE float most_of_8(__m256 x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

INLINE int32_t sum_of_8_ints(__m256i x) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

#ifdef WIDE
INLINE Ints bytes(const void *at) { return _mm512_loadu_si512(at); }
/* 32 bytes, and 32 of a second block. */
INLINE Ints two(const void *low, const void *high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)), _mm256_loadu_si256(high), 1);
}
/* 8 float16, and 8 of a second block. */
INLINE Floats halves(const void *low, const void *high) {
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
    return _mm512_cvtph_ps(both);
}
INLINE Ints low_bits(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE Ints flipped(Ints x) { return _mm512_xor_si512(x, _mm512_set1_epi8((char)0x80)); }
INLINE Floats from_bits(Ints x) { return _mm512_castsi512_ps(x); }
INLINE Ints to_bits(Floats x) { return _mm512_castps_si512(x); }
INLINE __m256 upper(Floats x) { return _mm512_extractf32x8_ps(x, 1); }
INLINE float sum_of(Floats x) { return sum_of_8(_mm256_add_ps(_mm512_castps512_ps256(x), upper(x))); }
INLINE float most_of(Floats x) { return most_of_8(_mm256_max_ps(_mm512_castps512_ps256(x), upper(x))); }
INLINE int32_t sum_of_ints(Ints x) {
    return sum_of_8_ints(_mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1)));
}
INLINE void put_bytes(int8_t *to, const Ints *x) { /* 32 */
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(x[0]));
    _mm_storeu_si128((__m128i *)(to + 16), _mm512_cvtsepi32_epi8(x[1]));
}
INLINE void put_words(int16_t *to, Ints low, Ints high) { /* 2 * LANES */
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtsepi32_epi16(low));
    _mm256_storeu_si256((__m256i *)(to + LANES), _mm512_cvtsepi32_epi16(high));
}
/* What a row sees, which is *seen* slots, of those from *slot* on; *otherwise* in the others' place. */
INLINE Floats visible(int seen, int slot, Floats x, float otherwise) {
    __mmask16 mask = seen <= slot ? 0 : seen - slot >= LANES ? 0xffff : (__mmask16)((1u << (seen - slot)) - 1);
    return _mm512_mask_blend_ps(mask, all(otherwise), x);
}
#else
INLINE Ints bytes(const void *at) { return _mm256_loadu_si256(at); }
INLINE Ints two(const void *low, const void *high) { return (void)high, bytes(low); }
INLINE Floats halves(const void *low, const void *high) { return (void)high, _mm256_cvtph_ps(_mm_loadu_si128(low)); }
INLINE Ints low_bits(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE Ints flipped(Ints x) { return _mm256_xor_si256(x, _mm256_set1_epi8((char)0x80)); }
INLINE Floats from_bits(Ints x) { return _mm256_castsi256_ps(x); }
INLINE Ints to_bits(Floats x) { return _mm256_castps_si256(x); }
INLINE float sum_of(Floats x) { return sum_of_8(x); }
INLINE float most_of(Floats x) { return most_of_8(x); }
INLINE int32_t sum_of_ints(Ints x) { return sum_of_8_ints(x); }
INLINE void put_bytes(int8_t *to, const Ints *x) {
    Ints packed = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)to, packed);
}
INLINE void put_words(int16_t *to, Ints low, Ints high) {
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
}
INLINE Floats visible(int seen, int slot, Floats x, float otherwise) {
    Ints ahead = _mm256_add_epi32(_mm256_set1_epi32(slot), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(all(otherwise), x, from_bits(_mm256_cmpgt_epi32(_mm256_set1_epi32(seen), ahead)));
}
#endif

INLINE Floats magnitude(Floats x) { return V(andnot_ps)(all(-0.0f), x); }

/* e to the power of x, to 2 units in the last place: Cephes' expf (Moshier). */
INLINE Floats exponential(Floats x) {
    x = V(min_ps)(V(max_ps)(x, all(-87.0f)), all(88.0f));
    Floats n = ROUND(V(mul_ps)(x, all(1.44269504088896341f)));
    Floats r = V(fnmadd_ps)(n, all(0.693359375f), x);
    r = V(fnmadd_ps)(n, all(-2.12194440e-4f), r);
    Floats y = V(fmadd_ps)(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
    y = V(fmadd_ps)(y, r, all(8.3334519073e-3f));
    y = V(fmadd_ps)(y, r, all(4.1665795894e-2f));
    y = V(fmadd_ps)(y, r, all(1.6666665459e-1f));
    y = V(fmadd_ps)(y, r, all(5.0000001201e-1f));
    y = V(fmadd_ps)(y, V(mul_ps)(r, r), V(add_ps)(r, all(1.0f)));
    Ints power = V(slli_epi32)(V(add_epi32)(V(cvtps_epi32)(n), V(set1_epi32)(127)), 23);
    return V(mul_ps)(y, from_bits(power));
}

enum { SILU, GELU_TANH, GELU };

INLINE Floats activated(Floats x, int activation) {
    if (activation == SILU)
        return V(div_ps)(x, V(add_ps)(all(1.0f), exponential(V(sub_ps)(all(0.0f), x))));
    if (activation == GELU_TANH) {
        Floats cube = V(mul_ps)(V(mul_ps)(x, x), x);
        Floats u = V(mul_ps)(all(0.7978845608028654f), V(fmadd_ps)(all(0.044715f), cube, x));
        Floats e = exponential(V(add_ps)(u, u));
        Floats tangent = V(sub_ps)(all(1.0f), V(div_ps)(all(2.0f), V(add_ps)(e, all(1.0f))));
        return V(mul_ps)(V(mul_ps)(all(0.5f), x), V(add_ps)(all(1.0f), tangent));
    }
    float lane[LANES];
    store(lane, x);
    for (int at = 0; at < LANES; at++) lane[at] = 0.5f * lane[at] * (1.0f + erff(lane[at] * 0.70710678118654752f));
    return load(lane);
}

/* 2 to the power of x, which is 0 or less: within 1e-7. A polynomial of the fraction, fitted at Chebyshev's nodes. */
INLINE Floats power_of_two(Floats x) {
    x = V(max_ps)(x, all(-125.0f));
    Floats n = ROUND(x), f = V(sub_ps)(x, n);
    Floats y = V(fmadd_ps)(all(1.3266970388e-3f), f, all(9.6754597456e-3f));
    y = V(fmadd_ps)(y, f, all(5.5507426160e-2f));
    y = V(fmadd_ps)(y, f, all(2.4022121754e-1f));
    y = V(fmadd_ps)(y, f, all(6.9314694916e-1f));
    y = V(fmadd_ps)(y, f, all(1.0f));
    Ints power = V(slli_epi32)(V(cvtps_epi32)(n), 23);
    return from_bits(V(add_epi32)(to_bits(y), power));
}

/* Round numbers, a multiple of 16 and *peak* at most, to whole ones of *most* at most; return their scale. */
INLINE float whole_of(const float *x, int n, float peak, float most, int16_t *result) {
    Floats factor = all(peak > 1e-30f ? most / peak : 0.0f);
    for (int at = 0; at < n; at += 2 * LANES) {
        Ints low = V(cvtps_epi32)(V(mul_ps)(load(x + at), factor));
        Ints high = V(cvtps_epi32)(V(mul_ps)(load(x + at + LANES), factor));
        put_words(result + at, low, high);
    }
    return peak / most;
}

INLINE float whole(const float *x, int n, float most, int16_t *result) {
    Floats peaks = all(0.0f);
    for (int at = 0; at < n; at += LANES) peaks = V(max_ps)(peaks, magnitude(load(x + at)));
    return whole_of(x, n, most_of(peaks), most, result);
}

/* What a query's and a key's numbers are at most: *dim* products add up to less than 2 to the power of 31. */
INLINE float most_for(int dim) { return floorf(sqrtf(2147483520.0f / (float)dim)); }

/* Divide by the root of the mean square, and multiply by the weight. */
static void normed(const float *x, const float *weight, int n, float eps, float *result) {
    Floats squares = all(0.0f);
    for (int at = 0; at < n; at += LANES) squares = V(fmadd_ps)(load(x + at), load(x + at), squares);
    Floats factor = all(1.0f / sqrtf(sum_of(squares) / (float)n + eps));
    for (int at = 0; at < n; at += LANES)
        store(result + at, V(mul_ps)(V(mul_ps)(load(x + at), factor), load(weight + at)));
}

/* ------------------------------------------------------------------ products */

typedef struct { /* rows of activations in 8 bits */
    int8_t *bytes; /* [inputs / 32][rows][32] */
    float *scale;  /* [inputs / 32][rows] */
    float *sum;    /* of a group, scaled; [inputs / 32][rows] */
    float *whole;  /* of a row, scaled; [rows] */
    int rows;
} Rounded;

static void round_row(const float *x, int inputs, int row, const Rounded *to) {
    float whole = 0.0f;
    for (int g = 0; g < inputs / GROUP; g++, x += GROUP) {
        Floats part[PARTS], most = all(0.0f);
        Ints ints[PARTS], sum = none();
        for (int v = 0; v < PARTS; v++) most = V(max_ps)(most, magnitude(part[v] = load(x + v * LANES)));
        float peak = most_of(most), scale = peak / 127.0f;
        Floats inverse = all(peak > 1e-30f ? 127.0f / peak : 0.0f);
        for (int v = 0; v < PARTS; v++) sum = V(add_epi32)(sum, ints[v] = V(cvtps_epi32)(V(mul_ps)(part[v], inverse)));
        int64_t at = (int64_t)g * to->rows + row;
        put_bytes(to->bytes + at * GROUP, ints);
        to->scale[at] = scale;
        to->sum[at] = scale * (float)sum_of_ints(sum);
        whole += to->sum[at];
    }
    to->whole[row] = whole;
}

/* Some rows' exact sums with a block of 8 quads of weights, unsigned bytes. */
INLINE void dot_quads(const Ints *w, const int8_t *row, const int rows, Ints *sum) {
#ifdef DOT_BYTES
    Ints other[AT_ONCE];
    const int sums = rows < 8 ? 2 : 1; /* of each row, enough that none waits for another */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r] = other[r] = none();
#pragma GCC unroll 8
    for (int q = 0; q < 8; q++)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            Ints *to = q % sums ? other + r : sum + r;
            *to = DOT_BYTES(*to, w[q], quad(row + r * GROUP + 4 * q));
        }
    if (sums == 2)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r] = V(add_epi32)(sum[r], other[r]);
#else /* 8 sums of two products up to 15 * 127 fit 16 bits */
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) sum[r] = _mm256_maddubs_epi16(w[0], quad(row + r * GROUP));
#pragma GCC unroll 8
    for (int q = 1; q < 8; q++)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(w[q], quad(row + r * GROUP + 4 * q)));
            IN_PLACE(sum[r]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) sum[r] = _mm256_madd_epi16(sum[r], _mm256_set1_epi16(1));
#endif
}

INLINE void group_4(const Ints *w, Floats scale, Floats least, const int8_t *row, const float *factor,
                    const float *sum, const int rows, float *result) {
    Ints found[AT_ONCE];
    dot_quads(w, row, rows, found);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        Floats so_far = V(fmadd_ps)(least, all(sum[r]), load(result + r * LANES));
        so_far = V(fmadd_ps)(V(cvtepi32_ps)(found[r]), V(mul_ps)(scale, all(factor[r])), so_far);
        store(result + r * LANES, so_far);
    }
}

/* Fetch what comes AHEAD blocks later: of two panels that are read side by side the CPU foresees too little. */
INLINE void foresee(const uint8_t *block, const uint8_t *second, int left, int size) {
#ifdef WIDE
    int64_t at = (int64_t)AHEAD * size + (left <= AHEAD ? second - block : 0); /* the next panels lie after these */
    for (int line = 0; line < size; line += 64) {
        _mm_prefetch((const char *)block + at + line, _MM_HINT_T0);
        _mm_prefetch((const char *)second + at + line, _MM_HINT_T0);
    }
#else
    (void)block, (void)second, (void)left, (void)size;
#endif
}

/* LANES outputs with weights of 4 bits: a panel's, or two panels'. A block has 8 quads of inputs, quad q in the low
 * half of bytes 32 q on and quad q + 4 in the high half, then 8 scales and 8 least values, float16. result:
 * [rows][LANES]. */
static void panel_4(const uint8_t *block, const uint8_t *second, int groups, const Rounded *x, float *result) {
    int rows = x->rows;
    for (int r = 0; r < rows; r++) store(result + r * LANES, all(0.0f));
    for (int g = 0; g < groups; g++, block += BYTES_4, second += BYTES_4) {
        const int8_t *row = x->bytes + (int64_t)g * rows * GROUP;
        const float *factor = x->scale + (int64_t)g * rows, *sum = x->sum + (int64_t)g * rows;
        Ints w[8];
        foresee(block, second, groups - g, BYTES_4);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            Ints both = two(block + 32 * q, second + 32 * q);
            w[q] = low_bits(both);
            w[q + 4] = low_bits(V(srli_epi16)(both, 4));
        }
        Floats scale = halves(block + 128, second + 128), least = halves(block + 144, second + 144);
        int r = 0;
        for (; r + AT_ONCE <= rows; r += AT_ONCE)
            group_4(w, scale, least, row + r * GROUP, factor + r, sum + r, AT_ONCE, result + r * LANES);
        for (; AT_ONCE > 4 && r + 4 <= rows; r += 4)
            group_4(w, scale, least, row + r * GROUP, factor + r, sum + r, 4, result + r * LANES);
        for (; r < rows; r++) group_4(w, scale, least, row + r * GROUP, factor + r, sum + r, 1, result + r * LANES);
    }
}

/* The same with signed weights of 8 bits, whose scales come after. A block is 8 quads. */
static void panel_8(const uint8_t *block, const uint8_t *second, int groups, const Rounded *x, Floats scale, float *result) {
    int rows = x->rows;
    const int8_t *row = x->bytes;
    const float *factor = x->scale;
    for (int r = 0; r < rows; r++) store(result + r * LANES, all(0.0f));
    for (int g = 0; g < groups; g++, block += BYTES_8, second += BYTES_8) {
        Ints w[8];
        foresee(block, second, groups - g, BYTES_8);
#pragma GCC unroll 8
        for (int q = 0; q < 8; q++) {
            w[q] = two(block + 32 * q, second + 32 * q);
#ifdef DOT_BYTES /* which multiplies unsigned by signed: 128 more, taken off below */
            w[q] = flipped(w[q]);
#endif
        }
        for (int r = 0; r < rows; r++, row += GROUP, factor++) {
            Ints a = none(), b = a;
#pragma GCC unroll 4
            for (int q = 0; q < 8; q += 2) {
                Ints left = quad(row + 4 * q), right = quad(row + 4 * q + 4);
#ifdef DOT_BYTES
                a = DOT_BYTES(a, w[q], left);
                b = DOT_BYTES(b, w[q + 1], right);
#else /* |x| times w with the sign of x: two such products fit 16 bits, 127 being the largest of both */
                const __m256i one = _mm256_set1_epi16(1);
                left = _mm256_maddubs_epi16(_mm256_abs_epi8(left), _mm256_sign_epi8(w[q], left));
                right = _mm256_maddubs_epi16(_mm256_abs_epi8(right), _mm256_sign_epi8(w[q + 1], right));
                a = _mm256_add_epi32(a, _mm256_madd_epi16(left, one));
                b = _mm256_add_epi32(b, _mm256_madd_epi16(right, one));
#endif
            }
            Floats dot = V(cvtepi32_ps)(V(add_epi32)(a, b));
            store(result + r * LANES, V(fmadd_ps)(dot, all(*factor), load(result + r * LANES)));
        }
    }
    for (int r = 0; r < rows; r++) {
        Floats found = load(result + r * LANES);
#ifdef DOT_BYTES
        found = V(fmadd_ps)(all(-128.0f), all(x->whole[r]), found);
#endif
        store(result + r * LANES, V(mul_ps)(found, scale));
    }
}

/* LANES values of which only *count* are there. */
INLINE Floats load_some(const float *at, int count) {
    float held[LANES] = {0};
    if (count >= LANES) return load(at);
    memcpy(held, at, sizeof(float) * (size_t)count);
    return load(held);
}

/* Outputs *output* to output + LANES, or to the last of them, of a product. */
static void panel(const Product *product, int output, const Rounded *x, float *result) {
    int groups = product->inputs / GROUP, left = product->outputs - output;
    int64_t apart = (int64_t)groups * (product->bits == 4 ? BYTES_4 : BYTES_8);
    const uint8_t *block = product->blocks + output / PANEL * apart, *second = left > PANEL ? block + apart : block;
    if (product->bits == 4)
        panel_4(block, second, groups, x, result);
    else
        panel_8(block, second, groups, x, load_some(product->scale + output, left), result);
    if (product->bias) {
        Floats bias = load_some(product->bias + output, left);
        for (int r = 0; r < x->rows; r++) store(result + r * LANES, V(add_ps)(load(result + r * LANES), bias));
    }
}

enum { PUT, ADD, GATE }; /* what becomes of results: stored, added to what is there, gates that meet their ups */

/* Vectors *index* to *end* of a product's outputs. GATE: ups follow the gates, as many. */
static void panels(const Model *model, const Product *product, int index, int end, const Rounded *x, int mode,
                   float *result, int64_t width) {
    float found[BLOCK * LANES], up[BLOCK * LANES];
    for (; index < end; index++) {
        int output = index * LANES, count = product->outputs - output;
        panel(product, output, x, found);
        if (mode == GATE) panel(product, output + product->outputs / 2, x, up);
        for (int r = 0; r < x->rows; r++) {
            float *at = result + r * width + output;
            Floats value = load(found + r * LANES);
            if (mode == ADD) value = V(add_ps)(load(at), value);
            if (mode == GATE) value = V(mul_ps)(activated(value, model->activation), load(up + r * LANES));
            if (count >= LANES) store(at, value);
            else memcpy(at, found + r * LANES, sizeof(float) * (size_t)count); /* outputs of the head: PUT */
        }
    }
}

INLINE int vectors_of(const Product *product, int mode) {
    return (product->outputs / (mode == GATE ? 2 : 1) + LANES - 1) / LANES;
}

/* ------------------------------------------------------------------ what both ways share */

typedef struct { /* what one thread writes on */
    Rounded x;           /* a block's rows */
    float *scores;       /* step: [MAX_ROWS * groups][CHUNK], reading: [ROWS][SLOTS] */
    int16_t *weights;    /* the same, as they meet values */
    float *mixed, *wide; /* [BLOCK][heads * dim], [BLOCK][the widest of qkv and intermediate] */
    float *line;         /* [the widest input] */
    float *out;          /* [groups * BLOCK][dim] */
    float *peak, *total; /* reading: [groups * BLOCK] */
    float *keep, *scale; /* step: [MAX_ROWS * groups] ones; of weights, [CHUNK / SLOTS][MAX_ROWS * groups] */
    int16_t *queries;    /* [groups * BLOCK / ROWS][dim / 2][ROWS][2] */
    float *query_scale;  /* [groups * BLOCK] */
} Room;

typedef struct {
    int threads;
    Rounded x;                           /* a step's rows */
    float *hidden, *line, *wide, *mixed;
    int16_t *queries;                    /* step: [kv_heads][rows * groups][dim]; reading: [rows][heads][dim] */
    float *query_scale;                  /* the same without [dim]; the scale of scores and log2(e) in it */
    float *parts, *stats;                /* [kv_heads][chunks][rows * groups][dim] and [..][2] */
    int64_t bytes;
    Room room[MAX_THREADS];
} Scratch;

/* Norm a head where the model has that, and turn it to its position. */
static void turned(const Model *model, const float *norm, const float *x, int position, float *result) {
    int dim = model->dim, half = dim / 2;
    const float *cos = model->cos + (int64_t)position * dim, *sin = model->sin + (int64_t)position * dim;
    float held[MAX_DIM];
    if (norm) {
        normed(x, norm, dim, model->eps, held);
        x = held;
    }
    for (int at = 0; at < half; at += LANES) {
        Floats low = load(x + at), high = load(x + half + at);
        store(result + at, V(fmadd_ps)(high, load(sin + at), V(mul_ps)(low, load(cos + at))));
        store(result + half + at, V(fmadd_ps)(low, load(sin + half + at), V(mul_ps)(high, load(cos + half + at))));
    }
}

/* Turn a token's queries, and write its keys and values into their slot. row: queries, keys and values; the queries of
 * a key-value head go to *queries* and every *stride* queries on, a group's side by side. */
static void remember(const Model *model, const Layer *layer, const Cache *cache, int index, int position,
                     const float *row, int16_t *queries, float *query_scale, int64_t stride) {
    int dim = model->dim, heads = model->heads, kv = model->kv_heads, groups = heads / kv;
    float turn[MAX_DIM], most = most_for(dim);
    int16_t rounded[MAX_DIM];
    for (int head = 0; head < heads; head++) {
        int64_t to = head / groups * stride + head % groups;
        turned(model, layer->q_norm, row + head * dim, position, turn);
        query_scale[to] = whole(turn, dim, most, queries + to * dim) * model->scale * 1.44269504088896341f;
    }
    for (int head = 0; head < kv; head++) {
        int64_t at = ((int64_t)index * kv + head) * cache->slots;
        int16_t *key = cache->keys + (at + position / LANES * LANES) * dim + position % LANES * 2;
        int16_t *value = cache->values + (at + position / 2 * 2) * dim + position % 2;
        turned(model, layer->k_norm, row + (heads + head) * dim, position, turn);
        cache->key_scale[at + position] = whole(turn, dim, most, rounded);
        for (int d = 0; d < dim; d += 2) memcpy(key + d * LANES, rounded + d, 2 * sizeof(int16_t));
        cache->value_scale[at + position] = whole(row + (heads + kv + head) * dim, dim, VALUE_MOST, rounded);
        for (int d = 0; d < dim; d++) value[2 * d] = rounded[d];
    }
}

/* Sums of products of *count* pairs: of two vectors, *apart* from each other and *next* from those of the next pair, with
 * the pairs of some rows, *step* from row to row and *by* from pair to pair. */
INLINE void sums_of_pairs(const int16_t *words, int64_t apart, int64_t next, const int16_t *pairs, int64_t step, int64_t by,
                          int count, const int rows, Ints sum[ROWS][TILES]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = none();
    for (int i = 0; i < count; i++, words += next, pairs += by) {
        Ints left = bytes(words), right = bytes(words + apart);
        IN_PLACE(left);
        IN_PLACE(right);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            Ints pair = quad(pairs + r * step);
            ADD_PAIRS(sum[r][0], left, pair);
            ADD_PAIRS(sum[r][1], right, pair);
        }
    }
}

/* Scores of TILES * LANES slots for some rows. queries: pair d of row r lies at d * by + r * step. */
INLINE void score(const int16_t *keys, const float *key_scale, const int16_t *queries, const float *query_scale,
                  int64_t by, int64_t step, int dim, const int rows, float *result, int64_t width) {
    Ints sum[ROWS][TILES];
    sums_of_pairs(keys, (int64_t)dim * LANES, 2 * LANES, queries, step, by, dim / 2, rows, sum);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int t = 0; t < TILES; t++) {
            Floats scale = V(mul_ps)(load(key_scale + t * LANES), all(query_scale[r]));
            store(result + r * width + t * LANES, V(mul_ps)(V(cvtepi32_ps)(sum[r][t]), scale));
        }
}

/* Add the values of *pairs* pairs of slots, mixed by weights, to rows of results that are multiplied by *keep* first;
 * TILES * LANES dimensions. weights: of slot s for row r at r * stride + s. */
INLINE void mix(const int16_t *values, const int16_t *weights, int64_t stride, const float *keep, const float *scale,
                int dim, int pairs, const int rows, float *result) {
    Ints sum[ROWS][TILES];
    sums_of_pairs(values, 2 * LANES, 2 * dim, weights, stride, 2, pairs, rows, sum);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < TILES; v++) {
            float *to = result + (int64_t)r * dim + v * LANES;
            Floats kept = V(mul_ps)(load(to), all(keep[r]));
            store(to, V(fmadd_ps)(V(cvtepi32_ps)(sum[r][v]), all(scale[r]), kept));
        }
}

/* Call something for some of the rows that are left, *r* on, and go on to the next: copies differ in nothing but how
 * many they take. */
#define SOME_ROWS(call) \
    if (rows - r >= ROWS) r += call(ROWS); \
    else if (rows - r >= 4) r += call(4); \
    else if (rows - r == 3) r += call(3); \
    else r += call(1)

static void mix_rows(const int16_t *values, const int16_t *weights, int64_t stride, const float *keep,
                     const float *scale, int dim, int pairs, int rows, float *result) {
#define MIX(count) (mix(values + 2 * d, weights + r * stride, stride, keep + r, scale + r, dim, pairs, count, \
                        result + (int64_t)r * dim + d), count)
    for (int d = 0; d < dim; d += TILES * LANES)
        for (int r = 0; r < rows;) {
            SOME_ROWS(MIX);
        }
#undef MIX
}

static void score_rows(const int16_t *keys, const float *key_scale, const int16_t *queries, const float *query_scale,
                       int dim, int rows, float *result) {
#define SCORE(count) (score(keys, key_scale, queries + (int64_t)r * dim, query_scale + r, 2, dim, dim, count, \
                            result + (int64_t)r * CHUNK, CHUNK), count)
    for (int r = 0; r < rows;) {
        SOME_ROWS(SCORE);
    }
#undef SCORE
}

/* Make weights of a row's scores of some slots, SLOTS at most, of which it sees *seen*: times the values' scales, as
 * whole numbers. Scores are written over. Adds the weights to *total*; returns their scale. */
INLINE float weigh(float *scores, int slots, int seen, float peak, const float *value_scale, int16_t *weights,
                   Floats *total) {
    Floats largest = all(0.0f);
    for (int s = 0; s < slots; s += LANES) {
        Floats weight = power_of_two(V(sub_ps)(load(scores + s), all(peak)));
        if (seen < s + LANES) weight = visible(seen, s, weight, 0.0f);
        *total = V(add_ps)(*total, weight);
        weight = V(mul_ps)(weight, load(value_scale + s));
        largest = V(max_ps)(largest, weight);
        store(scores + s, weight);
    }
    return whole_of(scores, slots, most_of(largest), WEIGHT_MOST, weights);
}

/* The greatest of a row's scores that it sees, or *peak* where that is greater. */
INLINE float peak_of(const float *scores, int slots, int seen, float peak) {
    Floats most = all(peak);
    for (int s = 0; s < slots; s += LANES) {
        Floats found = load(scores + s);
        if (seen < s + LANES) found = visible(seen, s, found, NEVER);
        most = V(max_ps)(most, found);
    }
    return most_of(most);
}

/* ------------------------------------------------------------------ steps */

typedef struct {
    const Model *model;
    const Cache *cache;
    Scratch *scratch;
    const Product *product;
    float *result;
    int64_t width; /* of a row of the result */
    int rows, start, layer, chunks, per, mode;
} Step;

static void multiply_task(void *job, int index, int thread) {
    Step *step = job;
    (void)thread;
    int most = vectors_of(step->product, step->mode), end = (index + 1) * step->per;
    panels(step->model, step->product, index * step->per, end < most ? end : most, &step->scratch->x, step->mode,
           step->result, step->width);
}

static void multiply(Pool *pool, Step *step, const Product *product, float *result, int64_t width, int mode) {
    int most = vectors_of(product, mode);
    step->product = product;
    step->result = result;
    step->width = width;
    step->mode = mode;
    /* Some 8 tasks a thread, so that a late one costs little; none so small that taking it costs more. */
    step->per = most / (8 * pool->threads) > 3 ? most / (8 * pool->threads) : 3;
    each(pool, multiply_task, step, (most + step->per - 1) / step->per);
}

static void attend_task(void *job, int index, int thread) {
    Step *step = job;
    const Model *model = step->model;
    Scratch *scratch = step->scratch;
    Room *room = &scratch->room[thread];
    int dim = model->dim, groups = model->heads / model->kv_heads, rows = step->rows * groups;
    int head = index % model->kv_heads, chunk = index / model->kv_heads, first = chunk * CHUNK;
    int count = step->start + step->rows - first; /* slots of this chunk that any row sees */
    if (count > CHUNK) count = CHUNK;
    int padded = (count + TILES * LANES - 1) / (TILES * LANES) * (TILES * LANES);
    int64_t at = ((int64_t)step->layer * model->kv_heads + head) * step->cache->slots + first;
    const int16_t *keys = step->cache->keys + at * dim, *values = step->cache->values + at * dim;
    const float *key_scale = step->cache->key_scale + at, *value_scale = step->cache->value_scale + at;
    const int16_t *queries = scratch->queries + (int64_t)head * rows * dim;
    const float *query_scale = scratch->query_scale + (int64_t)head * rows;
    for (int slot = 0; slot < padded; slot += TILES * LANES)
        score_rows(keys + (int64_t)slot * dim, key_scale + slot, queries, query_scale, dim, rows, room->scores + slot);
    float *stats = scratch->stats + ((int64_t)head * step->chunks + chunk) * rows * 2;
    float *parts = scratch->parts + ((int64_t)head * step->chunks + chunk) * rows * dim;
    for (int r = 0; r < rows; r++) {
        float *scores = room->scores + (int64_t)r * CHUNK;
        int seen = step->start + r / groups + 1 - first; /* slots that this row sees */
        float peak = peak_of(scores, padded, seen, NEVER);
        Floats total = all(0.0f);
        for (int slot = 0; slot < padded; slot += SLOTS) {
            int slots = padded - slot < SLOTS ? padded - slot : SLOTS;
            room->scale[slot / SLOTS * rows + r] = weigh(scores + slot, slots, seen - slot, peak, value_scale + slot,
                                                         room->weights + (int64_t)r * CHUNK + slot, &total);
        }
        stats[2 * r] = peak;
        stats[2 * r + 1] = sum_of(total);
        room->keep[r] = 1.0f;
    }
    memset(parts, 0, sizeof(float) * (size_t)(rows * dim));
    for (int slot = 0; slot < padded; slot += SLOTS)
        mix_rows(values + (int64_t)slot * dim, room->weights + slot, CHUNK, room->keep, room->scale + slot / SLOTS * rows,
                 dim, (padded - slot < SLOTS ? padded - slot : SLOTS) / 2, rows, parts);
}

/* Put a row's chunks together: [rows][heads * dim]. */
static void merge(const Step *step) {
    const Model *model = step->model;
    Scratch *scratch = step->scratch;
    int dim = model->dim, groups = model->heads / model->kv_heads, rows = step->rows * groups;
    for (int head = 0; head < model->kv_heads; head++)
        for (int r = 0; r < rows; r++) {
            const float *stats = scratch->stats + ((int64_t)head * step->chunks * rows + r) * 2;
            const float *parts = scratch->parts + ((int64_t)head * step->chunks * rows + r) * dim;
            float *result = scratch->mixed + ((int64_t)(r / groups) * model->heads + head * groups + r % groups) * dim;
            float peak = NEVER, total = 0.0f;
            for (int c = 0; c < step->chunks; c++) peak = fmaxf(peak, stats[(int64_t)c * rows * 2]);
            for (int d = 0; d < dim; d += LANES) store(result + d, all(0.0f));
            for (int c = 0; c < step->chunks; c++) {
                float factor = exp2f(stats[(int64_t)c * rows * 2] - peak);
                total += factor * stats[(int64_t)c * rows * 2 + 1];
                for (int d = 0; d < dim; d += LANES)
                    store(result + d, V(fmadd_ps)(load(parts + (int64_t)c * rows * dim + d), all(factor), load(result + d)));
            }
            for (int d = 0; d < dim; d += LANES) store(result + d, V(div_ps)(load(result + d), all(total)));
        }
}

static void norm_rows(const Model *model, Scratch *scratch, const float *norm, int rows) {
    for (int r = 0; r < rows; r++) {
        normed(scratch->hidden + (int64_t)r * model->hidden, norm, model->hidden, model->eps, scratch->line);
        round_row(scratch->line, model->hidden, r, &scratch->x);
    }
}

/* Run *rows* tokens that follow *start* others; their embeddings lie in the scratch's hidden, which is written over.
 * logits: [rows][outputs of the head]. */
API void step_rows(const Model *model, Pool *pool, Scratch *scratch, const Cache *cache, int rows, int start, float *logits) {
    int hidden = model->hidden, dim = model->dim, width = model->heads * dim, inner = model->intermediate;
    int64_t groups = model->heads / model->kv_heads;
    Step step = {.model = model, .cache = cache, .scratch = scratch, .rows = rows, .start = start};
    step.chunks = (start + rows + CHUNK - 1) / CHUNK;
    scratch->x.rows = rows;
    for (int index = 0; index < model->layers; index++) {
        const Layer *layer = model->layer + index;
        step.layer = index;
        norm_rows(model, scratch, layer->input_norm, rows);
        multiply(pool, &step, &layer->qkv, scratch->wide, layer->qkv.outputs, PUT);
        for (int r = 0; r < rows; r++)
            remember(model, layer, cache, index, start + r, scratch->wide + (int64_t)r * layer->qkv.outputs,
                     scratch->queries + groups * r * dim, scratch->query_scale + groups * r, groups * rows);
        each(pool, attend_task, &step, model->kv_heads * step.chunks);
        merge(&step);
        for (int r = 0; r < rows; r++) round_row(scratch->mixed + (int64_t)r * width, width, r, &scratch->x);
        multiply(pool, &step, &layer->out, scratch->hidden, hidden, ADD);
        norm_rows(model, scratch, layer->post_norm, rows);
        multiply(pool, &step, &layer->gate_up, scratch->wide, inner, GATE);
        for (int r = 0; r < rows; r++) round_row(scratch->wide + (int64_t)r * inner, inner, r, &scratch->x);
        multiply(pool, &step, &layer->down, scratch->hidden, hidden, ADD);
    }
    norm_rows(model, scratch, model->final_norm, rows);
    multiply(pool, &step, &model->head, logits, model->head.outputs, PUT);
}

/* Logits of one hidden state. */
API void head_row(const Model *model, Pool *pool, Scratch *scratch, const float *hidden, float *logits) {
    Step step = {.model = model, .scratch = scratch, .rows = 1};
    memcpy(scratch->hidden, hidden, sizeof(float) * (size_t)model->hidden);
    scratch->x.rows = 1;
    norm_rows(model, scratch, model->final_norm, 1);
    multiply(pool, &step, &model->head, logits, model->head.outputs, PUT);
}

/* ------------------------------------------------------------------ reading */

typedef struct {
    const Model *model;
    const Cache *cache;
    Scratch *scratch;
    float *hidden; /* [rows][hidden] */
    int rows, start, layer, from;
    int first[MAX_TASKS + 1], tasks; /* the rows of each task, and where they end */
} Read;

/* Cut the rows into tasks: blocks first and smaller ones at the end, so that no thread waits long for another's last. */
static void cut(Read *read, int threads) {
    int at = 0, tasks = 0;
    while (at < read->rows) {
        int fair = (read->rows - at + 2 * threads - 1) / (2 * threads), rows = fair / ROWS * ROWS;
        if (rows < SMALLEST || threads == 1) rows = threads == 1 ? BLOCK : SMALLEST;
        if (rows > BLOCK) rows = BLOCK;
        read->first[tasks++] = at;
        at += rows;
    }
    read->tasks = tasks;
    read->first[tasks] = read->rows;
}

static void multiply_block(const Read *read, const Product *product, Room *room, int mode, float *result, int64_t width) {
    panels(read->model, product, 0, vectors_of(product, mode), &room->x, mode, result, width);
}

/* Queries, keys and values of a block of rows. */
static void remember_task(void *job, int index, int thread) {
    Read *read = job;
    const Model *model = read->model;
    const Layer *layer = model->layer + read->layer;
    Room *room = &read->scratch->room[thread];
    int first = read->first[index], rows = read->first[index + 1] - first;
    int width = model->heads * model->dim;
    room->x.rows = rows;
    for (int r = 0; r < rows; r++) {
        normed(read->hidden + (int64_t)(first + r) * model->hidden, layer->input_norm, model->hidden, model->eps, room->line);
        round_row(room->line, model->hidden, r, &room->x);
    }
    multiply_block(read, &layer->qkv, room, PUT, room->wide, layer->qkv.outputs);
    for (int r = 0; r < rows; r++)
        remember(model, layer, read->cache, read->layer, read->start + first + r,
                 room->wide + (int64_t)r * layer->qkv.outputs, read->scratch->queries + (int64_t)(first + r) * width,
                 read->scratch->query_scale + (int64_t)(first + r) * model->heads, model->heads / model->kv_heads);
}

/* Attention of a block's rows for the query heads of one key-value head, SLOTS slots at a time with a running softmax
 * (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022). Rows are [group][token of the block]. */
static void attend_block(const Read *read, Room *room, int head, int first, int rows) {
    const Model *model = read->model;
    int dim = model->dim, heads = model->heads, groups = heads / model->kv_heads, count = groups * BLOCK;
    int64_t at = ((int64_t)read->layer * model->kv_heads + head) * read->cache->slots;
    const int16_t *keys = read->cache->keys + at * dim, *values = read->cache->values + at * dim;
    const float *key_scale = read->cache->key_scale + at, *value_scale = read->cache->value_scale + at;
    for (int r = 0; r < count; r++) {
        int token = r % BLOCK < rows ? r % BLOCK : rows - 1; /* rows that are not there repeat the last one */
        int64_t of = (int64_t)(first + token) * heads + head * groups + r / BLOCK;
        int16_t *to = room->queries + (int64_t)(r / ROWS) * ROWS * dim + r % ROWS * 2;
        for (int d = 0; d < dim; d += 2)
            memcpy(to + d * ROWS, read->scratch->queries + of * dim + d, 2 * sizeof(int16_t));
        room->query_scale[r] = read->scratch->query_scale[of];
        room->peak[r] = NEVER;
        room->total[r] = 0.0f;
    }
    memset(room->out, 0, sizeof(float) * (size_t)(count * dim));
    int base = read->start + first, end = base + rows;
    for (int slot = 0; slot < end; slot += SLOTS)
        for (int r = 0; r < count; r += ROWS) {
            float keep[LANES], scale[ROWS], peak[LANES] = {0}, before[LANES] = {0};
            int seen = base + r % BLOCK + 1 - slot, slots = seen + ROWS - 1; /* the first row's, and what the last needs */
            if (r % BLOCK >= rows || slots <= 0) continue; /* none of them sees anything here */
            slots = slots < SLOTS ? (slots + TILES * LANES - 1) / (TILES * LANES) * (TILES * LANES) : SLOTS;
            for (int part = 0; part < slots; part += TILES * LANES)
                score(keys + (int64_t)(slot + part) * dim, key_scale + slot + part, room->queries + (int64_t)r * dim,
                      room->query_scale + r, 2 * ROWS, 2, dim, ROWS, room->scores + part, SLOTS);
            for (int i = 0; i < ROWS; i++) {
                before[i] = room->peak[r + i];
                room->peak[r + i] = peak[i] = peak_of(room->scores + i * SLOTS, slots, seen + i, before[i]);
            }
            store(keep, power_of_two(V(sub_ps)(load(before), load(peak))));
            for (int i = 0; i < ROWS; i++) {
                Floats total = all(0.0f);
                scale[i] = weigh(room->scores + i * SLOTS, slots, seen + i, peak[i], value_scale + slot,
                                 room->weights + i * SLOTS, &total);
                room->total[r + i] = room->total[r + i] * keep[i] + sum_of(total);
            }
            mix_rows(values + (int64_t)slot * dim, room->weights, SLOTS, keep, scale, dim, slots / 2, ROWS,
                     room->out + (int64_t)r * dim);
        }
    for (int r = 0; r < count; r++) {
        if (r % BLOCK >= rows) continue;
        float *to = room->mixed + ((int64_t)(r % BLOCK) * heads + head * groups + r / BLOCK) * dim;
        for (int d = 0; d < dim; d += LANES)
            store(to + d, V(div_ps)(load(room->out + (int64_t)r * dim + d), all(room->total[r])));
    }
}

/* The rest of a layer for a block of rows. */
static void finish_task(void *job, int index, int thread) {
    Read *read = job;
    const Model *model = read->model;
    const Layer *layer = model->layer + read->layer;
    Room *room = &read->scratch->room[thread];
    int first = read->first[index], rows = read->first[index + 1] - first;
    int hidden = model->hidden, width = model->heads * model->dim, inner = model->intermediate;
    float *result = read->hidden + (int64_t)first * hidden;
    if (first + rows <= read->from) return;
    room->x.rows = rows;
    for (int head = 0; head < model->kv_heads; head++) attend_block(read, room, head, first, rows);
    for (int r = 0; r < rows; r++) round_row(room->mixed + (int64_t)r * width, width, r, &room->x);
    multiply_block(read, &layer->out, room, ADD, result, hidden);
    for (int r = 0; r < rows; r++) {
        normed(result + (int64_t)r * hidden, layer->post_norm, hidden, model->eps, room->line);
        round_row(room->line, hidden, r, &room->x);
    }
    multiply_block(read, &layer->gate_up, room, GATE, room->wide, inner);
    for (int r = 0; r < rows; r++) round_row(room->wide + (int64_t)r * inner, inner, r, &room->x);
    multiply_block(read, &layer->down, room, ADD, result, hidden);
}

/* Bring *rows* hidden states that follow *start* tokens through a layer. Those before *from* leave nothing but their
 * keys and values. */
API void read_layer(const Model *model, Pool *pool, Scratch *scratch, const Cache *cache, float *hidden, int layer,
                    int rows, int start, int from) {
    Read read = {.model = model, .cache = cache, .scratch = scratch, .hidden = hidden, .rows = rows, .start = start,
                 .layer = layer, .from = from};
    cut(&read, pool->threads);
    each(pool, remember_task, &read, read.tasks);
    each(pool, finish_task, &read, read.tasks);
}

/* ------------------------------------------------------------------ room to work in */

static void *grab(Scratch *scratch, size_t count, size_t size) {
    size_t bytes = (count * size + 63) / 64 * 64;
    void *found = aligned_alloc(64, bytes ? bytes : 64);
    if (found) memset(found, 0, bytes);
    scratch->bytes += (int64_t)bytes;
    return found;
}

static void rounded_free(Rounded *x) { free(x->bytes), free(x->scale), free(x->sum), free(x->whole); }

API void scratch_free(Scratch *s) {
    if (!s) return;
    rounded_free(&s->x);
    free(s->hidden), free(s->line), free(s->wide), free(s->mixed), free(s->queries), free(s->query_scale);
    free(s->parts), free(s->stats);
    for (int t = 0; t < s->threads; t++) {
        Room *r = &s->room[t];
        rounded_free(&r->x);
        free(r->scores), free(r->weights), free(r->mixed), free(r->wide), free(r->line), free(r->out);
        free(r->peak), free(r->total), free(r->keep), free(r->scale), free(r->queries), free(r->query_scale);
    }
    free(s);
}

/* Allocate what steps over a context of *slots*, and reads of *rows* at a time, write on. NULL when memory is short. */
API Scratch *scratch_new(const Model *model, const Pool *pool, int slots, int rows) {
    Scratch *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    size_t dim = (size_t)model->dim, heads = (size_t)model->heads, kv = (size_t)model->kv_heads, groups = heads / kv;
    size_t hidden = (size_t)model->hidden, inner = (size_t)model->intermediate, qkv = (size_t)model->layer->qkv.outputs;
    size_t wide = qkv > inner ? qkv : inner, input = hidden > inner ? hidden : inner;
    if (heads * dim > input) input = heads * dim;
    size_t chunks = (size_t)(slots + CHUNK - 1) / CHUNK, seen = MAX_ROWS * groups, block = groups * BLOCK;
    size_t scores = seen * CHUNK > ROWS * SLOTS ? seen * CHUNK : ROWS * SLOTS;
    int ok = 1;
    s->threads = pool->threads;
#define GRAB(to, count, type) ok &= ((to) = grab(s, count, sizeof(type))) != NULL
#define GRAB_ROUNDED(x, rows) \
    GRAB((x).bytes, (rows) * input, int8_t), GRAB((x).scale, (rows) * input / GROUP, float), \
    GRAB((x).sum, (rows) * input / GROUP, float), GRAB((x).whole, rows, float)
    GRAB_ROUNDED(s->x, (size_t)MAX_ROWS);
    GRAB(s->hidden, MAX_ROWS * hidden, float);
    GRAB(s->line, input, float);
    GRAB(s->wide, MAX_ROWS * wide, float);
    GRAB(s->mixed, MAX_ROWS * heads * dim, float);
    GRAB(s->queries, (size_t)(rows > MAX_ROWS ? rows : MAX_ROWS) * heads * dim, int16_t);
    GRAB(s->query_scale, (size_t)(rows > MAX_ROWS ? rows : MAX_ROWS) * heads, float);
    GRAB(s->parts, kv * chunks * seen * dim, float);
    GRAB(s->stats, kv * chunks * seen * 2, float);
    for (int t = 0; t < s->threads; t++) {
        Room *r = &s->room[t];
        GRAB_ROUNDED(r->x, (size_t)BLOCK);
        GRAB(r->scores, scores, float);
        GRAB(r->weights, scores, int16_t);
        GRAB(r->mixed, BLOCK * heads * dim, float);
        GRAB(r->wide, BLOCK * wide, float);
        GRAB(r->line, input, float);
        GRAB(r->out, block * dim, float);
        GRAB(r->peak, block, float);
        GRAB(r->total, block, float);
        GRAB(r->keep, seen, float);
        GRAB(r->scale, seen * (CHUNK / SLOTS), float);
        GRAB(r->queries, block * dim, int16_t);
        GRAB(r->query_scale, block, float);
    }
#undef GRAB_ROUNDED
#undef GRAB
    if (ok) return s;
    scratch_free(s);
    return NULL;
}

API float *scratch_hidden(Scratch *scratch) { return scratch->hidden; }
API int64_t scratch_bytes(const Scratch *scratch) { return scratch->bytes; }
API int kernels_version(void) { return VERSION; }

/* Say what the kernels were built for: 1 for products of whole numbers in one instruction, 2 for that and vectors of
 * 512 bits. */
API int kernels_use(void) {
#if defined(WIDE)
    return 2;
#elif defined(DOT_BYTES)
    return 1;
#else
    return 0;
#endif
}
