/* A call: its sizes and storage, and the parts that its threads take. */

struct call {
    const struct arguments *arguments;
    struct team *team;
    int threads, relu;
    int64_t T, B, I, H;
    int64_t chunk; /* time steps worked on together */
    /* Sets of gates: one with all gates (LSTM, RNN), or r and z in the first and n in the second (GRU). */
    int sets;
    struct gates set[2];
    struct matrix w_ih[2], w_hh[2];          /* packed weights, as the products of this pass read them */
    REAL *bias[2], *bias_hn;                 /* forward: of the gate features; b_hn of U_n h if reset_after */
    REAL *zeros;                             /* what the backward products over units or inputs start from */
    struct matrix x;                         /* the input of a chunk */
    struct matrix gates[2], hn, cells;       /* of all steps if saved, else of a chunk; cells of one step */
    struct matrix h, masked_h[2], reset_h;   /* states; the products read two masked copies in turn */
    struct matrix d_gates[2], d_hn, d_x;     /* backward, of a chunk */
    struct matrix previous_h;                /* backward, of a chunk: the masked h that its steps read */
    struct matrix d_h, d_c, d_masked_h;      /* backward, of a step */
};

/* A thread's part of a call: blocks of units, and of input features. */
struct member {
    int id, size;
    int64_t u0, u1, i0, i1;
};

/* A chunk of `steps` steps from `time` on; `first` is its first row in matrices with the rows of all steps. */
struct chunk {
    int64_t time, steps, rows, first;
};

INLINE struct member this_member(const struct call *c)
{
    /* A thread has the same part in every call, because some of it is still in its core's cache. */
    int id = rnndrop_number_in_team(c->threads), size = rnndrop_team_size(c->threads);
    int64_t units = blocks_of(c->H), inputs = blocks_of(c->I);
    return (struct member){id, size, share(units, id, size), share(units, id + 1, size), share(inputs, id, size),
                           share(inputs, id + 1, size)};
}

INLINE int64_t time_of(const struct call *c, int64_t step) { return c->arguments->reverse ? c->T - 1 - step : step; }

/* The chunk that begins at a step; its rows are in the order of time, even if the steps are reversed. */
INLINE struct chunk chunk_at(const struct call *c, int64_t step)
{
    int64_t steps = MIN(c->chunk, c->T - step), time = c->arguments->reverse ? c->T - step - steps : step;
    return (struct chunk){time, steps, steps * c->B, time * c->B};
}

INLINE int running(const struct call *c, int64_t b, int64_t t)
{
    return c->arguments->lengths == NULL || t < c->arguments->lengths[b];
}

/* A row (t, b) of the output and of its gradient. */
INLINE int64_t row_of(const struct call *c, int64_t t, int64_t b) { return (t * c->B + b) * c->H; }

/* The state that step t of row b reads, in torch's layout. */
INLINE const REAL *previous_row(const struct call *c, int64_t t, int64_t b)
{
    const struct arguments *a = c->arguments;
    int64_t before = a->reverse ? t + 1 : t - 1, end = a->lengths ? MIN(c->T, a->lengths[b]) : c->T;
    if (before < 0 || before >= end)
        return (const REAL *)a->h0 + b * c->H;
    return (const REAL *)a->output + row_of(c, before, b);
}

/* ---- dropout -------------------------------------------------------------------------------------- */

/* scale * keep for one row's block of units. */
struct factors {
    const uint8_t *keep;
    REAL scale;
    uint8_t room[BLOCK];
};

INLINE void read_mask(struct factors *f, const struct call *c, const struct mask *mask, int64_t t, int64_t b,
                      int64_t block)
{
    f->scale = (REAL)mask->scale;
    f->keep = NULL;
    if (mask->keep == NULL || t < 0 || t >= c->T)
        return;
    f->keep = mask->keep + t * mask->step + b * c->H + block * BLOCK;
    int64_t left = c->H - block * BLOCK;
    if (left < BLOCK) {
        for (int k = 0; k < BLOCK; k++)
            f->room[k] = k < left ? f->keep[k] : 0;
        f->keep = f->room;
    }
}

INLINE vec drop(const struct factors *f, int part, vec x)
{
    return f->keep ? x * (load_bools(f->keep + part * LANES) * f->scale) : x * f->scale;
}

/* ---- storage -------------------------------------------------------------------------------------- */

/* Hands out storage from `base`; if base is NULL it only counts. */
struct arena {
    char *base;
    size_t used;
};

static REAL *take(struct arena *arena, int64_t count)
{
    size_t start = arena->used;
    arena->used = (start + count * sizeof(REAL) + 63) / 64 * 64;
    return arena->base ? (REAL *)(arena->base + start) : NULL;
}

static struct matrix take_matrix(struct arena *arena, int64_t rows, int64_t features)
{
    return (struct matrix){take(arena, stride_of(rows) * blocks_of(features)), stride_of(rows)};
}
