/* The cells, forward: what reference.py computes in a step after the products, with the same names.
 *
 * Each function computes one row's block of 16 units at step t; `part` counts the vectors of the block. The gates are
 * in row `row` of their matrices. Where a sequence has ended, its state does not change.
 */

#define EACH_PART(part) for (int part = 0; part < PARTS; part++)

/* Write `h` to `masked` as the products of step t read it; past the last step it is only scaled. */
INLINE void drop_hidden(const struct call *c, int64_t t, int64_t b, int64_t block, REAL *masked, const REAL *h)
{
    struct factors hidden;
    read_mask(&hidden, c, &c->arguments->hidden_mask, t, b, block);
    EACH_PART(p)
        store(masked + p * LANES, drop(&hidden, p, load(h + p * LANES)));
}

/* Write the new h, which is in c->h, as the next step's products read it, and as output. */
INLINE void write_h(const struct call *c, int64_t step, int64_t t, int64_t b, int64_t block)
{
    const struct arguments *a = c->arguments;
    const REAL *h = at(c->h, block, b);
    REAL *output = (REAL *)a->output + row_of(c, t, b) + block * BLOCK;
    drop_hidden(c, time_of(c, step + 1), b, block, at(c->masked_h[(step + 1) & 1], block, b), h);
    if (running(c, b, t))
        copy_out(output, h, c->H - block * BLOCK);
    else
        memset(output, 0, MIN(BLOCK, c->H - block * BLOCK) * sizeof(REAL));
}

/* Eq. 4 to 6, with Eq. 8 (cell) and 9 (update). */
INLINE void lstm_cell(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row)
{
    const struct arguments *a = c->arguments;
    int save = a->saved[1] != NULL, relu = c->relu;
    int64_t stride = c->gates[0].stride;
    REAL *gate = at(c->gates[0], 4 * block, row), *h = at(c->h, block, b);
    const REAL *old_c = at(c->cells, block, save ? (t + (a->reverse != 0)) * c->B + b : b);
    REAL *new_c = at(c->cells, block, save ? (t + !a->reverse) * c->B + b : b);
    if (!running(c, b, t)) {
        memmove(new_c, old_c, BLOCK * sizeof(REAL));
        return;
    }
    struct factors update, cell;
    read_mask(&update, c, &a->update, t, b, block);
    read_mask(&cell, c, &a->cell_mask, t, b, block);
    EACH_PART(p) {
        REAL *x = gate + p * LANES;
        vec i = sigmoid(load(x)), f = sigmoid(load(x + stride));
        vec g = phi(load(x + 2 * stride), relu), o = sigmoid(load(x + 3 * stride));
        vec new = drop(&cell, p, f * load(old_c + p * LANES) + i * drop(&update, p, g));
        store(new_c + p * LANES, new);
        store(h + p * LANES, o * phi(new, relu));
        store(x, i);
        store(x + stride, f);
        store(x + 2 * stride, g);
        store(x + 3 * stride, o);
    }
}

/* Eq. 1. */
INLINE void rnn_cell(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row)
{
    const REAL *product = at(c->gates[0], block, row);
    REAL *h = at(c->h, block, b);
    if (running(c, b, t))
        EACH_PART(p)
            store(h + p * LANES, phi(load(product + p * LANES), c->relu));
}

/* r and z of a GRU; the paper's form also needs r * h for its next product. */
INLINE void gru_gates(const struct call *c, int64_t step, int64_t b, int64_t block, int64_t row)
{
    int64_t stride = c->gates[0].stride;
    REAL *gate = at(c->gates[0], 2 * block, row);
    EACH_PART(p) {
        vec r = sigmoid(load(gate + p * LANES)), z = sigmoid(load(gate + stride + p * LANES));
        store(gate + p * LANES, r);
        store(gate + stride + p * LANES, z);
        if (c->arguments->cell == GRU)
            store(at(c->reset_h, block, b) + p * LANES, r * load(at(c->masked_h[step & 1], block, b) + p * LANES));
    }
}

/* Eq. 10 to 13, with z for 1 - z as in reference.py: n from its product, to which torch's form adds r * (U_n h + b_hn),
 * then h. */
INLINE void gru_cell(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row)
{
    const struct arguments *a = c->arguments;
    int64_t stride = c->gates[0].stride;
    const REAL *gate = at(c->gates[0], 2 * block, row);
    REAL *product = at(c->gates[1], block, row), *h = at(c->h, block, b);
    struct factors update, cell;
    read_mask(&update, c, &a->update, t, b, block);
    read_mask(&cell, c, &a->cell_mask, t, b, block);
    EACH_PART(p) {
        int64_t place = p * LANES;
        vec r = load(gate + place), z = load(gate + stride + place), n = load(product + place);
        if (a->cell == GRU_RESET_AFTER)
            n += r * load(at(c->hn, block, row) + place);
        n = phi(n, c->relu);
        store(product + place, n);
        if (running(c, b, t))
            store(h + place, drop(&cell, p, z * load(h + place) + (1 - z) * drop(&update, p, n)));
    }
}
