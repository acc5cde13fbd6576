/* The functions that Python calls, and what the kernels need from the machine: threads, memory, instruction sets. */
#define _GNU_SOURCE /* madvise */
#include "interface.h"
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

/* The digest of the sources that the library is compiled from, which setup.py defines. */
#ifndef DIGEST
#define DIGEST ""
#endif
const char *rnndrop_digest(void) { return DIGEST; }

/* ---- threads -------------------------------------------------------------------------------------- */

/* Calls function(data) on up to `threads` threads at once and returns when all have: GOMP_parallel of the OpenMP
 * runtime that torch brings, so that no second runtime is loaded. */
typedef void parallel_function(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static parallel_function *parallel;
static int (*team_size)(void), (*number_in_team)(void);

void rnndrop_set_threading(parallel_function *run, int (*size)(void), int (*number)(void))
{
    parallel = run;
    team_size = size;
    number_in_team = number;
}

int rnndrop_threads(int64_t wanted) { return parallel ? (int)wanted : 1; }

void rnndrop_run_team(void (*function)(void *), void *data, int threads)
{
    if (threads == 1)
        function(data);
    else
        parallel(function, data, (unsigned)threads, 0);
}

int rnndrop_team_size(int threads) { return threads == 1 ? 1 : team_size(); }
int rnndrop_number_in_team(int threads) { return threads == 1 ? 0 : number_in_team(); }

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

void rnndrop_wait(struct team *team, int size)
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

/* ---- memory --------------------------------------------------------------------------------------- */

#define HUGE_PAGE ((uintptr_t)2 << 20)

void rnndrop_prefer_huge_pages(void *memory, size_t bytes)
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

/* The storage of a call; one is kept for the next call, since fresh pages cost as much as packing. */
struct storage {
    size_t bytes;
    char data[] __attribute__((aligned(64)));
};

enum { KEPT_AT_MOST = 64 << 20 };
static _Atomic(struct storage *) spare;

void *rnndrop_get_storage(size_t bytes)
{
    void *memory = atomic_exchange(&spare, NULL);
    if (memory == NULL || ((struct storage *)memory)->bytes < bytes) {
        free(memory);
        if (posix_memalign(&memory, 64, sizeof(struct storage) + bytes))
            return NULL;
        rnndrop_prefer_huge_pages(memory, bytes);
        ((struct storage *)memory)->bytes = bytes;
    }
    struct storage *storage = memory;
#ifdef POISON
    memset(storage->data, 0xff, storage->bytes); /* NaN, which shows what is read before it is written */
#endif
    return storage->data;
}

void rnndrop_give_back(void *data)
{
    struct storage *storage = (struct storage *)((char *)data - offsetof(struct storage, data));
    if (storage->bytes <= KEPT_AT_MOST)
        storage = atomic_exchange(&spare, storage);
    free(storage);
}

/* ---- kernels -------------------------------------------------------------------------------------- */

extern const struct kernel kernel_float_plain, kernel_double_plain;
#ifdef X86
extern const struct kernel kernel_float_avx2, kernel_double_avx2, kernel_float_avx512, kernel_double_avx512;
#endif

static int has_plain(void) { return 1; }
#ifdef X86
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* From the slowest to the fastest. */
static const struct {
    const char *name;
    int (*supported)(void);
    const struct kernel *kernels[2]; /* of float and double */
} sets[] = {
    {"plain", has_plain, {&kernel_float_plain, &kernel_double_plain}},
#ifdef X86
    {"avx2", has_avx2, {&kernel_float_avx2, &kernel_double_avx2}},
    {"avx512", has_avx512, {&kernel_float_avx512, &kernel_double_avx512}},
#endif
};

static int chosen;

/* Choose the named instruction set, or the fastest one if the name is NULL. This comes before all other calls. Returns
 * 0 if the machine does not have it. */
int rnndrop_set_instructions(const char *name)
{
    for (int set = sizeof sets / sizeof *sets - 1; set >= 0; set--)
        if ((name == NULL || strcmp(name, sets[set].name) == 0) && sets[set].supported()) {
            chosen = set;
            return 1;
        }
    return 0;
}

const char *rnndrop_instructions(void) { return sets[chosen].name; }

/* Run a pass. Returns 0, or 1 if there is not enough memory. */
int rnndrop_run(const struct arguments *arguments, int backward, int is_double)
{
    const struct kernel *kernel = sets[chosen].kernels[is_double];
    return backward ? kernel->backward(arguments) : kernel->forward(arguments);
}

/* Run an output layer with its loss. Returns 0, or 1 if there is not enough memory. */
int rnndrop_loss(const struct loss_arguments *arguments, int is_double)
{
    return sets[chosen].kernels[is_double]->loss(arguments);
}
