/* The forward and the backward pass of a recurrence. */

/* ---- forward -------------------------------------------------------------------------------------- */

/* Load a number for each gate feature: the sum of one or two vectors of (gates * hidden). */
static void load_bias(const struct call *c, REAL *to, struct gates gates, int64_t u0, int64_t u1, const REAL *one,
                      const REAL *two)
{
    for (int64_t block = gates.count * u0; block < gates.count * u1; block++) {
        int64_t row = first_row(gates, block, c->H), used = MIN(BLOCK, c->H - block / gates.count * BLOCK);
        for (int64_t k = 0; k < BLOCK; k++)
            to[block * BLOCK + k] = k >= used ? 0 : (one ? one[row + k] : 0) + (two ? two[row + k] : 0);
    }
}

static void begin_forward(const struct call *c, const struct member *m)
{
    const struct arguments *a = c->arguments;
    for (int k = 0; k < c->sets; k++) {
        struct gates set = c->set[k];
        int apart = a->cell == GRU_RESET_AFTER && k == 1; /* b_hn belongs to U_n h */
        pack_transposed(c->w_ih[k], a->w_ih, set, c->H, c->I, set.count * m->u0, set.count * m->u1);
        pack_transposed(c->w_hh[k], a->w_hh, set, c->H, c->H, set.count * m->u0, set.count * m->u1);
        load_bias(c, c->bias[k], set, m->u0, m->u1, a->b_ih, apart ? NULL : a->b_hh);
        if (apart)
            load_bias(c, c->bias_hn, set, m->u0, m->u1, a->b_hh, NULL);
    }
    to_blocks(c->h, a->h0, c->B, c->H, m->u0, m->u1);
    if (a->cell == LSTM) {
        int64_t first = a->saved[1] && a->reverse ? c->T * c->B : 0;
        to_blocks(from_row(c->cells, first), a->c0, c->B, c->H, m->u0, m->u1);
    }
    for (int64_t block = m->u0; block < m->u1; block++)
        for (int64_t b = 0; b < c->B; b++)
            drop_hidden(c, time_of(c, 0), b, block, at(c->masked_h[0], block, b), at(c->h, block, b));
}

/* Run a step. Its gates are the rows of their matrices from `row` on, which hold the products with the input. */
static void forward_step(const struct call *c, const struct member *m, int64_t step, int64_t row)
{
    int64_t t = time_of(c, step), cell = c->arguments->cell;
    for (int k = 0; k < c->sets; k++) {
        int64_t first = c->set[k].count * m->u0, last = c->set[k].count * m->u1;
        struct matrix state = c->masked_h[step & 1], to = from_row(c->gates[k], row);
        if (cell == GRU && k == 1) {
            rnndrop_wait(c->team, m->size);
            state = c->reset_h;
        }
        if (cell == GRU_RESET_AFTER && k == 1)
            multiply(from_row(c->hn, row), c->bias_hn, state, c->w_hh[k], c->B, c->H, first, last);
        else
            multiply(to, NULL, state, c->w_hh[k], c->B, c->H, first, last);
        for (int64_t block = m->u0; block < m->u1; block++)
            for (int64_t b = 0; b < c->B; b++) {
                if (cell == LSTM)
                    lstm_cell(c, t, b, block, row + b);
                else if (cell == RNN)
                    rnn_cell(c, t, b, block, row + b);
                else if (k == 0)
                    gru_gates(c, step, b, block, row + b);
                else
                    gru_cell(c, t, b, block, row + b);
                if (k == c->sets - 1)
                    write_h(c, step, t, b, block);
            }
    }
}

static void forward_member(void *data)
{
    struct call *c = data;
    const struct arguments *a = c->arguments;
    struct member member = this_member(c), *m = &member;
    int save = a->saved[0] != NULL;
    begin_forward(c, m);
    for (int64_t step = 0; step < c->T; step += c->chunk) {
        struct chunk chunk = chunk_at(c, step);
        rnndrop_wait(c->team, m->size); /* the previous chunk's input is no longer read */
        to_blocks(c->x, (const REAL *)a->x + chunk.first * c->I, chunk.rows, c->I, m->i0, m->i1);
        rnndrop_wait(c->team, m->size);
        for (int k = 0; k < c->sets; k++)
            multiply(from_row(c->gates[k], save ? chunk.first : 0), c->bias[k], c->x, c->w_ih[k], chunk.rows, c->I,
                     c->set[k].count * m->u0, c->set[k].count * m->u1);
        for (int64_t s = 0; s < chunk.steps; s++) {
            forward_step(c, m, step + s, (time_of(c, step + s) - (save ? 0 : chunk.time)) * c->B);
            rnndrop_wait(c->team, m->size);
        }
    }
    from_blocks(a->h_n, c->h, c->B, c->H, m->u0, m->u1);
    if (a->cell == LSTM) {
        int64_t last = a->saved[1] && !a->reverse ? c->T * c->B : 0;
        from_blocks(a->c_n, from_row(c->cells, last), c->B, c->H, m->u0, m->u1);
    }
}

/* ---- backward ------------------------------------------------------------------------------------- */

static void backward_step(const struct call *c, const struct member *m, int64_t t, int64_t row)
{
    const struct arguments *a = c->arguments;
    int64_t saved = t * c->B, gates = c->set[0].count * blocks_of(c->H) * BLOCK, units = blocks_of(c->H) * BLOCK;
    for (int64_t block = m->u0; block < m->u1; block++)
        for (int64_t b = 0; b < c->B; b++)
            if (a->cell == LSTM)
                lstm_gradients(c, t, b, block, row + b, saved + b);
            else if (a->cell == RNN)
                rnn_gradients(c, t, b, block, row + b);
            else
                gru_gradients(c, t, b, block, row + b, saved + b);
    rnndrop_wait(c->team, m->size);
    if (a->cell == GRU) {
        multiply(c->d_masked_h, c->zeros, from_row(c->d_gates[1], row), c->w_hh[1], c->B, units, m->u0, m->u1);
        for (int64_t block = m->u0; block < m->u1; block++)
            for (int64_t b = 0; b < c->B; b++)
                gru_reset_gradients(c, t, b, block, row + b, saved + b);
        rnndrop_wait(c->team, m->size);
    } else if (a->cell == GRU_RESET_AFTER) {
        multiply(c->d_masked_h, c->zeros, from_row(c->d_hn, row), c->w_hh[1], c->B, units, m->u0, m->u1);
    }
    multiply(c->d_masked_h, c->sets == 1 ? c->zeros : NULL, from_row(c->d_gates[0], row), c->w_hh[0], c->B, gates,
             m->u0, m->u1);
    for (int64_t block = m->u0; block < m->u1; block++)
        for (int64_t b = 0; b < c->B; b++) {
            struct factors hidden;
            REAL *d_h = at(c->d_h, block, b);
            read_mask(&hidden, c, &a->hidden_mask, t, b, block);
            EACH_PART(p) {
                vec d = load(at(c->d_masked_h, block, b) + p * LANES);
                store(d_h + p * LANES, load(d_h + p * LANES) + drop(&hidden, p, d));
            }
        }
}

/* The masked h that each step of a chunk reads. */
static void load_previous_h(const struct call *c, const struct member *m, struct chunk chunk)
{
    for (int64_t row = 0; row < chunk.rows; row++) {
        int64_t t = chunk.time + row / c->B, b = row % c->B;
        const REAL *from = previous_row(c, t, b);
        for (int64_t block = m->u0; block < m->u1; block++) {
            REAL *h = at(c->previous_h, block, row);
            copy_in(h, from + block * BLOCK, c->H - block * BLOCK);
            drop_hidden(c, t, b, block, h, h);
        }
    }
}

/* dw (gates * hidden, n) = (+= if `add`) d^T x for the gate features' blocks [first, last), over a chunk's rows. */
static void weight_gradient(REAL *dw, struct gates gates, int64_t hidden, struct matrix d, struct matrix x, int64_t n,
                            int64_t rows, int64_t first, int64_t last, int add)
{
    enum { WIDE = 2 };                                                  /* blocks of columns multiplied at once */
    int64_t group = (1 << 19) / (rows * BLOCK * (int64_t)sizeof(REAL)); /* as many as stay in the cache */
    group = group < WIDE ? WIDE : group / WIDE * WIDE;
    for (int64_t j0 = 0; j0 < blocks_of(n); j0 += group)
        for (int64_t block = first; block < last; block++) {
            REAL *to = dw + first_row(gates, block, hidden) * n;
            int64_t used = MIN(BLOCK, hidden - block / gates.count * BLOCK), end = MIN(blocks_of(n), j0 + group);
            for (int64_t j = j0; j < end; j += WIDE) {
                REAL sum[WIDE][BLOCK][BLOCK] __attribute__((aligned(64))) = {0};
                int64_t wide = MIN(WIDE, end - j);
                for (int64_t w = 0; w < wide && add; w++)
                    for (int64_t r = 0; r < used; r++)
                        copy_in(sum[w][r], to + r * n + (j + w) * BLOCK, n - (j + w) * BLOCK);
                multiply_transposed(sum[0][0], at(d, block, 0), at(x, j, 0), x.stride, rows, wide);
                for (int64_t r = 0; r < used; r++)
                    for (int64_t w = 0; w < wide; w++)
                        copy_out(to + r * n + (j + w) * BLOCK, sum[w][r], n - (j + w) * BLOCK);
            }
        }
}

/* db (gates * hidden) = (+= if `add`) the sum of d's rows. */
static void bias_gradient(REAL *db, struct gates gates, int64_t hidden, struct matrix d, int64_t rows, int64_t first,
                          int64_t last, int add)
{
    for (int64_t block = first; block < last; block++) {
        REAL sum[BLOCK], *to = db + first_row(gates, block, hidden);
        int64_t used = MIN(BLOCK, hidden - block / gates.count * BLOCK);
        EACH_PART(p) {
            vec total = {0};
            for (int64_t row = 0; row < rows; row++)
                total += load(at(d, block, row) + p * LANES);
            store(sum + p * LANES, total);
        }
        for (int64_t k = 0; k < used; k++)
            to[k] = (add ? to[k] : 0) + sum[k];
    }
}

static void chunk_gradients(const struct call *c, const struct member *m, struct chunk chunk, int add)
{
    const struct arguments *a = c->arguments;
    for (int k = 0; k < c->sets; k++) {
        int64_t first = c->set[k].count * m->u0, last = c->set[k].count * m->u1;
        struct matrix d = c->d_gates[k], d_hh = k == 1 && a->cell == GRU_RESET_AFTER ? c->d_hn : d;
        struct matrix read = k == 1 && a->cell == GRU ? c->reset_h : c->previous_h;
        weight_gradient(a->d_w_ih, c->set[k], c->H, d, c->x, c->I, chunk.rows, first, last, add);
        weight_gradient(a->d_w_hh, c->set[k], c->H, d_hh, read, c->H, chunk.rows, first, last, add);
        if (a->d_b_ih) {
            bias_gradient(a->d_b_ih, c->set[k], c->H, d, chunk.rows, first, last, add);
            bias_gradient(a->d_b_hh, c->set[k], c->H, d_hh, chunk.rows, first, last, add);
        }
        if (a->d_x)
            multiply(c->d_x, k == 0 ? c->zeros : NULL, d, c->w_ih[k], chunk.rows,
                     c->set[k].count * blocks_of(c->H) * BLOCK, m->i0, m->i1);
    }
    if (a->d_x)
        from_blocks((REAL *)a->d_x + chunk.first * c->I, c->d_x, chunk.rows, c->I, m->i0, m->i1);
}

static void backward_member(void *data)
{
    struct call *c = data;
    const struct arguments *a = c->arguments;
    struct member member = this_member(c), *m = &member;
    for (int k = 0; k < c->sets; k++) {
        pack(c->w_hh[k], a->w_hh, c->set[k], c->H, c->H, m->u0, m->u1);
        if (a->d_x)
            pack(c->w_ih[k], a->w_ih, c->set[k], c->H, c->I, m->i0, m->i1);
    }
    to_blocks(c->d_h, a->d_h_n, c->B, c->H, m->u0, m->u1);
    if (a->cell == LSTM)
        to_blocks(c->d_c, a->d_c_n, c->B, c->H, m->u0, m->u1);
    int64_t chunks = (c->T + c->chunk - 1) / c->chunk;
    for (int64_t k = chunks - 1; k >= 0; k--) {
        struct chunk chunk = chunk_at(c, k * c->chunk);
        to_blocks(c->x, (const REAL *)a->x + chunk.first * c->I, chunk.rows, c->I, m->i0, m->i1);
        load_previous_h(c, m, chunk);
        for (int64_t s = chunk.steps - 1; s >= 0; s--) {
            int64_t t = time_of(c, k * c->chunk + s);
            backward_step(c, m, t, (t - chunk.time) * c->B);
        }
        rnndrop_wait(c->team, m->size); /* the chunk's x and previous_h are complete */
        chunk_gradients(c, m, chunk, k < chunks - 1);
        rnndrop_wait(c->team, m->size);
    }
    from_blocks(a->d_h0, c->d_h, c->B, c->H, m->u0, m->u1);
    if (a->cell == LSTM)
        from_blocks(a->d_c0, c->d_c, c->B, c->H, m->u0, m->u1);
}

/* ---- a pass --------------------------------------------------------------------------------------- */

static void lay_out(struct call *c, struct arena *arena, int backward)
{
    const struct arguments *a = c->arguments;
    int64_t rows = c->chunk * c->B, all = c->T * c->B, units = blocks_of(c->H) * BLOCK;
    for (int k = 0; k < c->sets; k++) {
        int64_t features = c->set[k].count * units;
        c->w_hh[k] = backward ? take_matrix(arena, features, c->H) : take_matrix(arena, c->H, features);
        c->w_ih[k] = backward ? take_matrix(arena, features, a->d_x ? c->I : 0) : take_matrix(arena, c->I, features);
        c->bias[k] = take(arena, backward ? 0 : features);
        c->gates[k] = a->saved[0] ? (struct matrix){a->saved[k == 0 || a->cell == LSTM ? k : 1], stride_of(all)}
                                  : take_matrix(arena, rows, backward ? 0 : features);
        c->d_gates[k] = take_matrix(arena, rows, backward ? features : 0);
    }
    int reset_after = a->cell == GRU_RESET_AFTER, gru = a->cell == GRU, lstm = a->cell == LSTM;
    c->hn = a->saved[2] ? (struct matrix){a->saved[2], stride_of(all)}
                        : take_matrix(arena, rows, reset_after ? c->H : 0);
    c->cells = lstm && a->saved[1] ? (struct matrix){a->saved[1], stride_of(all + c->B)}
                                   : take_matrix(arena, c->B, lstm ? c->H : 0);
    c->x = take_matrix(arena, rows, c->I);
    c->reset_h = take_matrix(arena, backward ? rows : c->B, gru ? c->H : 0);
    if (!backward) {
        c->bias_hn = take(arena, reset_after ? units : 0);
        c->h = take_matrix(arena, c->B, c->H);
        c->masked_h[0] = take_matrix(arena, c->B, c->H);
        c->masked_h[1] = take_matrix(arena, c->B, c->H);
        return;
    }
    c->zeros = take(arena, MAX(units, blocks_of(c->I) * BLOCK));
    c->previous_h = take_matrix(arena, rows, c->H);
    c->d_hn = take_matrix(arena, rows, reset_after ? c->H : 0);
    c->d_x = take_matrix(arena, rows, a->d_x ? c->I : 0);
    c->d_h = take_matrix(arena, c->B, c->H);
    c->d_c = take_matrix(arena, c->B, lstm ? c->H : 0);
    c->d_masked_h = take_matrix(arena, c->B, c->H);
}

static int run_pass(const struct arguments *a, int backward)
{
    struct team team = {0};
    struct call c = {.arguments = a, .team = &team, .threads = rnndrop_threads(a->threads), .relu = a->relu != 0,
                     .T = a->time, .B = a->batch, .I = a->input, .H = a->hidden};
    c.sets = a->cell == LSTM || a->cell == RNN ? 1 : 2;
    c.set[0] = (struct gates){0, a->cell == LSTM ? 4 : a->cell == RNN ? 1 : 2};
    c.set[1] = (struct gates){2, 1};
    /* Chunks of about 512 rows (steps * batch), of nearly the same length. */
    int64_t longest = c.B < 512 ? 512 / c.B : 1, chunks = (c.T + longest - 1) / longest;
    c.chunk = (c.T + chunks - 1) / chunks;

    struct arena arena = {0};
    lay_out(&c, &arena, backward);
    void *storage = rnndrop_get_storage(arena.used);
    if (storage == NULL)
        return 1;
    arena = (struct arena){storage, 0};
    lay_out(&c, &arena, backward);
    int64_t rows = c.T * c.B, gates = (c.sets == 1 ? c.set[0].count : 3) * c.H;
    if (backward) {
        memset(c.zeros, 0, sizeof(REAL) * MAX(blocks_of(c.H), blocks_of(c.I)) * BLOCK);
        rnndrop_prefer_huge_pages(a->d_x, sizeof(REAL) * rows * c.I);
        rnndrop_prefer_huge_pages(a->d_w_ih, sizeof(REAL) * gates * c.I);
        rnndrop_prefer_huge_pages(a->d_w_hh, sizeof(REAL) * gates * c.H);
    } else {
        rnndrop_prefer_huge_pages(a->output, sizeof(REAL) * rows * c.H);
        for (int k = 0; k < 3; k++) /* at least this much is saved for each row */
            rnndrop_prefer_huge_pages(a->saved[k], sizeof(REAL) * rows * c.H * (k == 0 ? c.set[0].count : 1));
    }
    rnndrop_run_team(backward ? backward_member : forward_member, &c, c.threads);
    rnndrop_give_back(storage);
    return 0;
}

static int forward(const struct arguments *a) { return run_pass(a, 0); }
static int backward(const struct arguments *a) { return run_pass(a, 1); }
