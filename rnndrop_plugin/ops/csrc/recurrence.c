/* The recurrences of reference.py and their gradients for a CPU (backend "cpu"), and the output layer with its
 * cross entropy (cross_entropy.py), whose products are those of an input and so in the same layout.
 *
 * Plain C without headers of torch, Python or OpenMP, so that one build serves every version of them.
 * recurrence_kernel.h is compiled for each instruction set and floating-point type; the best that the
 * machine has is chosen at run time. Threads come from a function that the caller gives (GOMP_parallel
 * of the OpenMP runtime that torch brings), so that no second runtime is loaded.
 *
 * Layout. The batch is the vector dimension ("feature-major"): it is cut into panels of 32 lanes, the
 * last one of 16 where that is enough, and a tensor (batch, features) is stored as [panel][feature][lane].
 * The rows of a gate matrix are ordered by unit, then gate, so that a thread has all gates of its units.
 * A weight matrix is packed into tiles of 12 rows, [tile][column][row], which the products stream.
 * Each result is summed in one order, whatever the number of threads.
 */
#define _GNU_SOURCE /* madvise */
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define PANEL 32
#define TILE 12
#define DEPTH 512 /* terms that a product sums at once: what it reads of the other factor stays in cache */
#define LOGITS ((int64_t)1 << 22) /* at a time: they stay in the last cache */

enum { LSTM, GRU, GRU_RESET_AFTER, RNN };

/* d(x) = scale * keep * x; keep is bytes (batch, hidden) at each step, NULL to scale only. */
struct mask {
    const uint8_t *keep;
    int64_t step; /* elements from one time step to the next, 0 for one mask for all steps */
    double scale;
};

/* The arguments of a forward or backward pass; cpu.py has the same structure. All tensors are dense, in
 * the layout of torch, except those marked [feature-major]. */
struct arguments {
    int64_t cell, relu, reverse, threads;
    int64_t time, batch, input, hidden;
    const void *x, *h0, *c0;                    /* (time, batch, input); (batch, hidden) */
    const void *w_ih, *w_hh, *b_ih, *b_hh;      /* biases may be NULL */
    struct mask update, hidden_mask, cell_mask; /* */
    const int64_t *lengths;                     /* (batch,), may be NULL */
    void *output, *h_n, *c_n;                   /* (time, batch, hidden); (batch, hidden) */
    /* What the backward pass reads, NULL to save nothing, each [feature-major] a step:
     * LSTM: gates i, f, g, o; time + 1 cells.  GRU: gates r, z; n; and U_n h + b_hn if reset_after. */
    void *saved[3];
    /* Backward only. Gradients that are not wanted are NULL. */
    const void *d_output, *d_h_n, *d_c_n;
    void *d_x, *d_h0, *d_c0, *d_w_ih, *d_w_hh, *d_b_ih, *d_b_hh;
};

/* The arguments of an output layer with its cross entropy, forward and backward; cpu.py has the same structure. */
struct loss_arguments {
    int64_t threads, rows, features, classes;
    const void *x, *w, *b;      /* (rows, features); (classes, features); (classes,), may be NULL */
    const int64_t *target;      /* (rows,), each in [0, classes) */
    double share, target_share; /* a logit's gradient is its softmax - share, the target's - target_share, too */
    /* Of each row: the largest logit, the sum of exp(logit - largest), that of the logits, and the target's logit. */
    void *largest, *sum_of_exp, *sum_of_logits, *of_target;
    void *d_x, *d_w, *d_b; /* NULL where not wanted */
};

/* Calls function(data) on up to `threads` threads at once and returns when all have. */
typedef void parallel_function(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static parallel_function *parallel;
static int (*team_size)(void), (*number_in_team)(void);

void rnndrop_set_threading(parallel_function *run, int (*size)(void), int (*number)(void))
{
    parallel = run;
    team_size = size;
    number_in_team = number;
}

struct team {
    atomic_int arrived;
    atomic_uint phase;
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void wait_for_team(struct team *team, int size)
{
    if (size == 1)
        return;
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++)
        if (spins < 2000)
            pause_briefly();
        else
            sched_yield(); /* another process needs the core that a member of the team waits for */
}

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* The lanes of a feature-major batch, padding included. */
static int64_t padded(int64_t batch)
{
    int64_t last = batch % PANEL;
    return batch - last + (last == 0 ? 0 : last <= PANEL / 2 ? PANEL / 2 : PANEL);
}

/* Tells which sources a library is of; the compiler is given the digest. */
#ifndef DIGEST
#define DIGEST ""
#endif
const char *rnndrop_digest(void) { return DIGEST; }

int64_t rnndrop_padded_batch(int64_t batch) { return padded(batch); }

/* The first item of member `index` of `size` that share `n` items. */
static int64_t share(int64_t n, int64_t index, int64_t size) { return n * index / size; }

/* Storage cut from one allocation; with base NULL it only counts. */
struct arena {
    char *base;
    size_t used;
};

static void *take(struct arena *arena, size_t bytes)
{
    size_t start = arena->used;
    arena->used = (start + bytes + 63) / 64 * 64;
    return arena->base ? arena->base + start : NULL;
}

/* Ask for huge pages, which a page fault each spares most of the cost of fresh memory; a hint. */
static void prefer_huge_pages(void *memory, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    uintptr_t first = ((uintptr_t)memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    uintptr_t end = ((uintptr_t)memory + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (memory && first < end)
        madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

/* The working storage of a call; one is kept for the next call, since fresh pages cost as much as packing. */
struct storage {
    size_t bytes;
    char data[] __attribute__((aligned(64)));
};

enum { KEPT_AT_MOST = 64 << 20 };
static _Atomic(struct storage *) spare;

static struct storage *get_storage(size_t bytes)
{
    void *storage = atomic_exchange(&spare, NULL);
    if (storage && ((struct storage *)storage)->bytes >= bytes)
        return storage;
    free(storage);
    if (posix_memalign(&storage, 64, sizeof(struct storage) + bytes))
        return NULL;
    prefer_huge_pages(storage, bytes);
    ((struct storage *)storage)->bytes = bytes;
    return storage;
}

static void give_back(struct storage *storage)
{
    if (storage->bytes <= KEPT_AT_MOST)
        storage = atomic_exchange(&spare, storage);
    free(storage);
}

/* The numbered elements of two vectors in a row. Clang and gcc from 12 on have the first, gcc has the second. */
#ifdef __clang__
#define SHUFFLE(indices, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(indices, a, b, ...) __builtin_shuffle(a, b, (indices){__VA_ARGS__})
#endif

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define TARGET
#define VECTOR_BYTES 16
#define REGISTER_ROWS 4
#define REAL float
#define NAME(x) JOIN(x, _float_plain)
#include "recurrence_kernel.h"
#define REAL double
#define DOUBLE
#define NAME(x) JOIN(x, _double_plain)
#include "recurrence_kernel.h"
#undef VECTOR_BYTES
#undef REGISTER_ROWS

#if defined(__x86_64__) && defined(__GNUC__)
#define X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define VECTOR_BYTES 32
#define REGISTER_ROWS 4
#define REAL float
#define NAME(x) JOIN(x, _float_avx2)
#include "recurrence_kernel.h"
#define REAL double
#define DOUBLE
#define NAME(x) JOIN(x, _double_avx2)
#include "recurrence_kernel.h"
#undef VECTOR_BYTES
#undef REGISTER_ROWS
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define VECTOR_BYTES 64
#define REGISTER_ROWS 12
#define REAL float
#define NAME(x) JOIN(x, _float_avx512)
#include "recurrence_kernel.h"
#define REAL double
#define DOUBLE
#define NAME(x) JOIN(x, _double_avx512)
#include "recurrence_kernel.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

enum { PLAIN, AVX2, AVX512, SETS };
static const char *const set_names[SETS] = {"plain", "avx2", "avx512"};

static int supported(int set)
{
#ifdef X86
    if (set == AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && supported(AVX2);
    if (set == AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return set == PLAIN;
}

static int chosen = -1;

/* Choose the named instruction set, the best one for NULL. Returns 0 where the machine does not have it. */
int rnndrop_set_instructions(const char *name)
{
    for (int set = SETS - 1; set >= 0; set--)
        if (supported(set) && (name == NULL || strcmp(name, set_names[set]) == 0)) {
            chosen = set;
            return 1;
        }
    return 0;
}

const char *rnndrop_instructions(void)
{
    if (chosen < 0)
        rnndrop_set_instructions(NULL);
    return set_names[chosen];
}

/* The kernels differ by name alone. */
#ifdef X86
#define KERNELS(name)                                                                                      \
    {                                                                                                      \
        {name##_float_plain, name##_double_plain}, {name##_float_avx2, name##_double_avx2},                \
            {name##_float_avx512, name##_double_avx512}                                                    \
    }
#else
#define KERNELS(name) {{name##_float_plain, name##_double_plain}}
#endif

/* Run a pass: 0, or 1 if there is not enough memory. */
int rnndrop_run(const struct arguments *arguments, int backward, int is_double)
{
    typedef int pass(const struct arguments *);
    static pass *const passes[2][SETS][2] = {KERNELS(forward), KERNELS(backward)};
    rnndrop_instructions();
    return passes[backward][chosen][is_double](arguments);
}

/* Run an output layer with its loss: 0, or 1 if there is not enough memory. */
int rnndrop_loss(const struct loss_arguments *arguments, int is_double)
{
    typedef int pass(const struct loss_arguments *);
    static pass *const passes[SETS][2] = KERNELS(loss);
    rnndrop_instructions();
    return passes[chosen][is_double](arguments);
}
