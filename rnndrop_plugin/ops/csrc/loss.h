/* The output layer and its cross entropy: the logits are neither kept nor computed twice. */

#define LOGITS ((int64_t)1 << 22) /* at a time, so that they stay in the last-level cache */

/* For the products of a call the classes are the units of a cell with one gate. */
struct loss {
    const struct loss_arguments *arguments;
    struct call call;                       /* its sizes, threads, packed weights, x and its gradient */
    struct matrix logits;                   /* of a chunk, then their gradients */
};

static REAL largest_of(vec v)
{
    REAL largest = v[0];
    for (int k = 1; k < LANES; k++)
        largest = v[k] > largest ? v[k] : largest;
    return largest;
}

static REAL sum_of(vec v)
{
    REAL sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += v[k];
    return sum;
}

/* Compute what the loss needs from the logits of up to TOGETHER rows, and replace the logits by their gradients. Rows
 * are taken together because they stand side by side in each block. */
enum { TOGETHER = 8, GROUP = 8 /* blocks summed separately, so that rounding does not grow with the classes */ };

static void softmax(const struct loss *l, int64_t place, int64_t row, int64_t rows)
{
    const struct loss_arguments *a = l->arguments;
    int64_t blocks = blocks_of(a->classes), padding = blocks * BLOCK - a->classes;
    vec largest[TOGETHER], sum[TOGETHER] = {{0}}, sum_of_logits[TOGETHER] = {{0}};
    REAL rest[TOGETHER] = {0}, *of_target[TOGETHER];
    for (int64_t r = 0; r < rows; r++) {
        REAL *last = at(l->logits, blocks - 1, place + r);
        int64_t target = a->target[row + r];
        of_target[r] = at(l->logits, target / BLOCK, place + r) + target % BLOCK;
        ((REAL *)a->of_target)[row + r] = *of_target[r];
        for (int64_t k = 0; k < BLOCK - padding; k++)
            rest[r] += last[k];
        for (int64_t k = BLOCK - padding; k < BLOCK; k++)
            last[k] = -INFINITY;
        largest[r] = splat(-INFINITY);
    }
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t r = 0; r < rows; r++)
            EACH_PART(p) {
                vec v = load(at(l->logits, block, place + r) + p * LANES);
                largest[r] = choose(v > largest[r], v, largest[r]);
            }
    for (int64_t r = 0; r < rows; r++)
        largest[r] = splat(largest_of(largest[r]));
    for (int64_t first = 0; first < blocks; first += GROUP) {
        vec part[TOGETHER] = {{0}}, part_of_logits[TOGETHER] = {{0}};
        for (int64_t block = first; block < MIN(first + GROUP, blocks); block++)
            for (int64_t r = 0; r < rows; r++)
                EACH_PART(p) {
                    REAL *x = at(l->logits, block, place + r) + p * LANES;
                    vec v = load(x), e = exp_negative(v - largest[r]);
                    if (block < blocks - 1)
                        part_of_logits[r] += v;
                    part[r] += e;
                    store(x, e);
                }
        for (int64_t r = 0; r < rows; r++) {
            sum[r] += part[r];
            sum_of_logits[r] += part_of_logits[r];
        }
    }
    vec share = splat((REAL)a->share), factor[TOGETHER];
    for (int64_t r = 0; r < rows; r++) {
        REAL total = sum_of(sum[r]);
        ((REAL *)a->largest)[row + r] = largest[r][0];
        ((REAL *)a->sum_of_exp)[row + r] = total;
        ((REAL *)a->sum_of_logits)[row + r] = sum_of(sum_of_logits[r]) + rest[r];
        factor[r] = splat(1 / total);
    }
    if (!a->d_x && !a->d_w && !a->d_b)
        return;
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t r = 0; r < rows; r++)
            EACH_PART(p) {
                REAL *x = at(l->logits, block, place + r) + p * LANES;
                store(x, load(x) * factor[r] - share);
            }
    for (int64_t r = 0; r < rows; r++) {
        *of_target[r] -= (REAL)a->target_share;
        for (int64_t k = BLOCK - padding; k < BLOCK; k++)
            at(l->logits, blocks - 1, place + r)[k] = 0;
    }
}

static void loss_member(void *data)
{
    struct loss *l = data;
    struct call *c = &l->call;
    const struct loss_arguments *a = l->arguments;
    struct member member = this_member(c), *m = &member;
    pack_transposed(c->w_ih[0], a->w, c->set[0], c->H, c->I, m->u0, m->u1);
    load_bias(c, c->bias[0], c->set[0], m->u0, m->u1, a->b, NULL);
    if (a->d_x)
        pack(c->w_hh[0], a->w, c->set[0], c->H, c->I, m->i0, m->i1);
    for (int64_t first = 0; first < a->rows; first += c->chunk) {
        int64_t rows = MIN(c->chunk, a->rows - first);
        to_blocks(c->x, (const REAL *)a->x + first * c->I, rows, c->I, m->i0, m->i1);
        rnndrop_wait(c->team, m->size);
        multiply(l->logits, c->bias[0], c->x, c->w_ih[0], rows, c->I, m->u0, m->u1);
        rnndrop_wait(c->team, m->size);
        int64_t end = share(rows, m->id + 1, m->size);
        for (int64_t row = share(rows, m->id, m->size); row < end; row += TOGETHER)
            softmax(l, row, first + row, MIN(TOGETHER, end - row));
        rnndrop_wait(c->team, m->size);
        if (a->d_w)
            weight_gradient(a->d_w, c->set[0], c->H, l->logits, c->x, c->I, rows, m->u0, m->u1, first > 0);
        if (a->d_b)
            bias_gradient(a->d_b, c->set[0], c->H, l->logits, rows, m->u0, m->u1, first > 0);
        if (a->d_x) {
            multiply(c->d_x, c->zeros, l->logits, c->w_hh[0], rows, blocks_of(c->H) * BLOCK, m->i0, m->i1);
            from_blocks((REAL *)a->d_x + first * c->I, c->d_x, rows, c->I, m->i0, m->i1);
        }
        rnndrop_wait(c->team, m->size);
    }
}

static void lay_out_loss(struct loss *l, struct arena *arena)
{
    struct call *c = &l->call;
    int64_t classes = blocks_of(c->H) * BLOCK;
    c->w_ih[0] = take_matrix(arena, c->I, classes);
    c->w_hh[0] = take_matrix(arena, classes, l->arguments->d_x ? c->I : 0);
    c->x = take_matrix(arena, c->chunk, c->I);
    c->d_x = take_matrix(arena, c->chunk, l->arguments->d_x ? c->I : 0);
    c->bias[0] = take(arena, classes);
    c->zeros = take(arena, blocks_of(c->I) * BLOCK);
    l->logits = take_matrix(arena, c->chunk, classes);
}

static int loss(const struct loss_arguments *a)
{
    int64_t longest = MIN(512, LOGITS / a->classes); /* rows of a chunk; chunks are of nearly the same length */
    longest = MAX(longest, 256);
    int64_t chunks = (a->rows + longest - 1) / longest;
    struct team team = {0};
    struct loss l = {.arguments = a,
                     .call = {.team = &team, .threads = rnndrop_threads(a->threads), .I = a->features,
                              .H = a->classes, .sets = 1, .set = {{0, 1}}, .chunk = (a->rows + chunks - 1) / chunks}};
    struct arena arena = {0};
    lay_out_loss(&l, &arena);
    void *storage = rnndrop_get_storage(arena.used);
    if (storage == NULL)
        return 1;
    arena = (struct arena){storage, 0};
    lay_out_loss(&l, &arena);
    memset(l.call.zeros, 0, sizeof(REAL) * blocks_of(a->features) * BLOCK);
    rnndrop_run_team(loss_member, &l, l.call.threads);
    rnndrop_give_back(storage);
    return 0;
}
