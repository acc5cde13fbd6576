/* What library.c and the kernels share: the arguments of a call, threads and working storage.
 *
 * Plain C without headers of torch, Python or OpenMP, so that one build works with every version of them. kernel.c is
 * compiled for each floating-point type and instruction set, and library.c chooses among the results at run time.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { LSTM, GRU, GRU_RESET_AFTER, RNN };

/* d(x) = scale * keep * x. keep is (batch, hidden) bytes at each step, 0 where a unit is dropped; NULL only scales. */
struct mask {
    const uint8_t *keep;
    int64_t step; /* elements from one time step to the next, 0 for one mask for all steps */
    double scale;
};

/* The arguments of a forward or backward pass; recurrence/compiled.py has the same structure. All tensors are dense
 * and in torch's layout, except `saved`, whose layout is that of layout.h. */
struct arguments {
    int64_t cell, relu, reverse, threads;
    int64_t time, batch, input, hidden;
    const void *x, *h0, *c0;               /* (time, batch, input); (batch, hidden) */
    const void *w_ih, *w_hh, *b_ih, *b_hh; /* biases may be NULL */
    struct mask update, hidden_mask, cell_mask;
    const int64_t *lengths;     /* (batch,), may be NULL */
    void *output, *h_n, *c_n;   /* (time, batch, hidden); (batch, hidden) */
    /* What the backward pass reads, NULL to save nothing; each is a matrix with a row for each step and example.
     * LSTM: gates i, f, g, o; cells, with one step more.  GRU: gates r, z; n; and U_n h + b_hn if reset_after. */
    void *saved[3];
    /* Backward only. Gradients that are not wanted are NULL. */
    const void *d_output, *d_h_n, *d_c_n;
    void *d_x, *d_h0, *d_c0, *d_w_ih, *d_w_hh, *d_b_ih, *d_b_hh;
};

/* The arguments of an output layer with its cross entropy, forward and backward; cross_entropy/compiled.py has the
 * same structure. */
struct loss_arguments {
    int64_t threads, rows, features, classes;
    const void *x, *w, *b;      /* (rows, features); (classes, features); (classes,), may be NULL */
    const int64_t *target;      /* (rows,), each in [0, classes) */
    double share, target_share; /* a logit's gradient is its softmax - share; for the target also - target_share */
    /* For each row: the largest logit, the sums of exp(logit - largest) and of the logits, and the target's logit. */
    void *largest, *sum_of_exp, *sum_of_logits, *of_target;
    void *d_x, *d_w, *d_b; /* NULL where not wanted */
};

/* The functions of one compiled kernel.c. Each returns 0, or 1 if there is not enough memory. */
struct kernel {
    int (*forward)(const struct arguments *), (*backward)(const struct arguments *);
    int (*loss)(const struct loss_arguments *);
};

/* The threads that work on a call. */
struct team {
    atomic_int arrived;
    atomic_uint phase;
};

int rnndrop_threads(int64_t wanted);
void rnndrop_run_team(void (*function)(void *), void *data, int threads);
int rnndrop_team_size(int threads);
int rnndrop_number_in_team(int threads);
void rnndrop_wait(struct team *team, int size);

/* Working storage of at least `bytes` bytes, aligned to 64; NULL if there is not enough memory. */
void *rnndrop_get_storage(size_t bytes);
void rnndrop_give_back(void *storage);

/* Ask for huge pages: most of the cost of fresh memory is page faults, and they cause fewer. It is a hint. */
void rnndrop_prefer_huge_pages(void *memory, size_t bytes);
