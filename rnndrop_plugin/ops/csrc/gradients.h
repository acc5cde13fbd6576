/* The cells, backward: the gradients of the gates of step t from those of h and c; d_x is the gradient of x.
 *
 * As in cells.h, each function computes one row's block of units; `row` is its row in the chunk's matrices, and `saved`
 * its row in the saved ones. Where a sequence has ended, the gradients of the gates are 0, and that of the state passes
 * unchanged.
 */

INLINE void no_gradients(struct matrix d_gates, int64_t gates, int64_t block, int64_t row)
{
    for (int64_t gate = 0; gate < gates; gate++)
        memset(at(d_gates, gates * block + gate, row), 0, BLOCK * sizeof(REAL));
}

INLINE void lstm_gradients(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row, int64_t saved)
{
    const struct arguments *a = c->arguments;
    int relu = c->relu;
    if (!running(c, b, t)) {
        no_gradients(c->d_gates[0], 4, block, row);
        return;
    }
    int64_t stride = c->gates[0].stride, d_stride = c->d_gates[0].stride;
    const REAL *gate = at(c->gates[0], 4 * block, saved);
    const REAL *old_c = at(c->cells, block, (t + (a->reverse != 0)) * c->B + b);
    const REAL *new_c = at(c->cells, block, (t + !a->reverse) * c->B + b);
    REAL room[BLOCK], *d_gate = at(c->d_gates[0], 4 * block, row);
    REAL *d_h = at(c->d_h, block, b), *d_c = at(c->d_c, block, b);
    const REAL *d_output = whole_block((const REAL *)a->d_output + row_of(c, t, b), block, c->H, room);
    struct factors update, cell;
    read_mask(&update, c, &a->update, t, b, block);
    read_mask(&cell, c, &a->cell_mask, t, b, block);
    EACH_PART(p) {
        const REAL *x = gate + p * LANES;
        vec i = load(x), f = load(x + stride), g = load(x + 2 * stride), o = load(x + 3 * stride);
        vec y = phi(load(new_c + p * LANES), relu);
        vec d_y = load(d_h + p * LANES) + load(d_output + p * LANES);
        vec d = drop(&cell, p, load(d_c + p * LANES) + d_y * o * phi_slope(y, relu));
        REAL *d_x = d_gate + p * LANES;
        store(d_x, d * (drop(&update, p, g) * (i * (1 - i))));
        store(d_x + d_stride, d * (load(old_c + p * LANES) * (f * (1 - f))));
        store(d_x + 2 * d_stride, d * (drop(&update, p, i) * phi_slope(g, relu)));
        store(d_x + 3 * d_stride, d_y * (y * (o * (1 - o))));
        store(d_c + p * LANES, d * f);
        store(d_h + p * LANES, splat(0));
    }
}

INLINE void rnn_gradients(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row)
{
    const struct arguments *a = c->arguments;
    if (!running(c, b, t)) {
        no_gradients(c->d_gates[0], 1, block, row);
        return;
    }
    REAL d_room[BLOCK], room[BLOCK], *d_h = at(c->d_h, block, b), *d_product = at(c->d_gates[0], block, row);
    const REAL *d_output = whole_block((const REAL *)a->d_output + row_of(c, t, b), block, c->H, d_room);
    const REAL *y = whole_block((const REAL *)a->output + row_of(c, t, b), block, c->H, room);
    EACH_PART(p) {
        vec d = load(d_h + p * LANES) + load(d_output + p * LANES);
        store(d_product + p * LANES, d * phi_slope(load(y + p * LANES), c->relu));
        store(d_h + p * LANES, splat(0));
    }
}

/* All gradients of a GRU but d_r of the paper's form, which needs the product of d_n first. */
INLINE void gru_gradients(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row, int64_t saved)
{
    const struct arguments *a = c->arguments;
    int reset_after = a->cell == GRU_RESET_AFTER;
    if (!running(c, b, t)) {
        no_gradients(c->d_gates[0], 2, block, row);
        no_gradients(c->d_gates[1], 1, block, row);
        if (reset_after)
            no_gradients(c->d_hn, 1, block, row);
        return;
    }
    int64_t stride = c->gates[0].stride, d_stride = c->d_gates[0].stride;
    const REAL *gate = at(c->gates[0], 2 * block, saved), *candidate = at(c->gates[1], block, saved);
    REAL d_room[BLOCK], h_room[BLOCK], *d_h = at(c->d_h, block, b), *d_gate = at(c->d_gates[0], 2 * block, row);
    const REAL *d_output = whole_block((const REAL *)a->d_output + row_of(c, t, b), block, c->H, d_room);
    const REAL *h = whole_block(previous_row(c, t, b), block, c->H, h_room);
    struct factors update, cell;
    read_mask(&update, c, &a->update, t, b, block);
    read_mask(&cell, c, &a->cell_mask, t, b, block);
    EACH_PART(p) {
        int64_t place = p * LANES;
        vec r = load(gate + place), z = load(gate + stride + place), n = load(candidate + place);
        vec d = drop(&cell, p, load(d_h + place) + load(d_output + place));
        vec d_n = d * (drop(&update, p, 1 - z) * phi_slope(n, c->relu));
        store(d_gate + d_stride + place, d * ((load(h + place) - drop(&update, p, n)) * (z * (1 - z))));
        store(at(c->d_gates[1], block, row) + place, d_n);
        if (reset_after) {
            store(d_gate + place, d_n * (load(at(c->hn, block, saved) + place) * (r * (1 - r))));
            store(at(c->d_hn, block, row) + place, d_n * r);
        }
        store(d_h + place, d * z);
    }
}

/* The paper's GRU: d_r from the gradient of r * h, which is replaced by that of h. */
INLINE void gru_reset_gradients(const struct call *c, int64_t t, int64_t b, int64_t block, int64_t row, int64_t saved)
{
    if (!running(c, b, t)) {
        no_gradients(c->reset_h, 1, block, row);
        no_gradients(c->d_masked_h, 1, block, b);
        return;
    }
    const REAL *r_place = at(c->gates[0], 2 * block, saved), *h_place = at(c->previous_h, block, row);
    REAL *d_place = at(c->d_masked_h, block, b);
    EACH_PART(p) {
        vec r = load(r_place + p * LANES), h = load(h_place + p * LANES), d = load(d_place + p * LANES);
        store(at(c->d_gates[0], 2 * block, row) + p * LANES, d * (h * (r * (1 - r))));
        store(at(c->reset_h, block, row) + p * LANES, r * h);
        store(d_place + p * LANES, d * r);
    }
}
