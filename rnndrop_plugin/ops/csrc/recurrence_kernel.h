/* The kernels for one instruction set and floating-point type; recurrence.c includes this file with
 * REAL (and DOUBLE), VECTOR_BYTES, REGISTER_ROWS (rows of a product's tile held in registers) and NAME. */

#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))
#ifdef DOUBLE
#define INT int64_t
#define MANTISSA 52
#define SIGN INT64_MIN
#define BIAS 1023
#define LARGEST 708.0
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define TERMS 13
#else
#define INT int32_t
#define MANTISSA 23
#define SIGN INT32_MIN
#define BIAS 127
#define LARGEST 87.0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define TERMS 7
#endif

typedef REAL NAME(vec) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL NAME(vec_unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INT NAME(ivec) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef uint8_t NAME(bytes) __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL)), aligned(1), may_alias));
#define vec NAME(vec)
#define ivec NAME(ivec)

/* ---- elementary functions ------------------------------------------------------------------------- */

INLINE vec NAME(splat)(REAL x) { return x - (vec){0}; }
/* Of any alignment: what autograd saved may come back from a hook in memory less aligned than it was. */
INLINE vec NAME(load)(const REAL *x) { return *(const NAME(vec_unaligned) *)x; }
INLINE void NAME(store)(REAL *x, vec v) { *(NAME(vec_unaligned) *)x = v; }
INLINE vec NAME(select)(ivec condition, vec yes, vec no)
{
    return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

/* exp(x) = scale * (1 + p), for |x| <= LARGEST; the Taylor series is exact to rounding for |r| <= ln(2) / 2. */
INLINE vec NAME(exp_parts)(vec x, vec *scale)
{
    static const REAL inverse_factorials[] = {1.0 / 1,         1.0 / 2,          1.0 / 6,           1.0 / 24,
                                              1.0 / 120,       1.0 / 720,        1.0 / 5040,        1.0 / 40320,
                                              1.0 / 362880,    1.0 / 3628800,    1.0 / 39916800,    1.0 / 479001600,
                                              1.0 / 6227020800};
    const vec magic = NAME(splat)((REAL)1.5 * (REAL)((INT)1 << MANTISSA)); /* adding it rounds to an integer */
    vec shifted = x * (REAL)1.4426950408889634 + magic;
    vec n = shifted - magic;
    vec r = x - n * (REAL)LN2_HIGH;
    r = r - n * (REAL)LN2_LOW;
    vec p = NAME(splat)(inverse_factorials[TERMS - 1]);
#pragma GCC unroll 16
    for (int k = TERMS - 2; k >= 0; k--)
        p = p * r + inverse_factorials[k];
    *scale = (vec)(((ivec)shifted - (ivec)magic + BIAS) << MANTISSA);
    return p * r;
}

/* exp(x) for x <= 0; what is below the smallest normal number is that. */
INLINE vec NAME(exp)(vec x)
{
    vec scale, p = NAME(exp_parts)(NAME(select)(x < -LARGEST, NAME(splat)(-LARGEST), x), &scale);
    return scale + scale * p;
}

INLINE vec NAME(sigmoid)(vec x)
{
    vec scale;
    x = NAME(select)(x < -LARGEST, NAME(splat)(-LARGEST), x);
    x = NAME(select)(x > LARGEST, NAME(splat)(LARGEST), x);
    vec p = NAME(exp_parts)(-x, &scale);
    return 1 / (1 + (scale + scale * p));
}

/* tanh(|x|) = -e / (2 + e) with e = exp(-2 |x|) - 1, which loses nothing near 0. */
INLINE vec NAME(tanh)(vec x)
{
    vec scale;
    ivec sign = (ivec)x & SIGN;
    vec y = (vec)((ivec)x ^ sign) * -2;
    y = NAME(select)(y < -LARGEST, NAME(splat)(-LARGEST), y);
    vec p = NAME(exp_parts)(y, &scale);
    vec e = scale * p + (scale - 1);
    return (vec)((ivec)(-e / (2 + e)) ^ sign);
}

INLINE vec NAME(phi)(vec x, int relu) { return relu ? NAME(select)(x < 0, NAME(splat)(0), x) : NAME(tanh)(x); }

/* The derivative of phi where it gave y. */
INLINE vec NAME(phi_slope)(vec y, int relu)
{
    if (relu)
        return NAME(select)(y > 0, NAME(splat)(1), NAME(splat)(0));
    return 1 - y * y;
}

/* ---- products ------------------------------------------------------------------------------------- */

/* c[row][lane] += sum over k of a[row * a_row + k * a_step] * b[k][lane], for `width` lanes, and the same
 * for further blocks of a and b. */
INLINE void NAME(multiply)(REAL *restrict c, const REAL *restrict a, const REAL *restrict b, int64_t depth,
                           int64_t blocks, int64_t a_block, int64_t b_block, const int rows, const int width,
                           const int a_row, const int a_step)
{
    const int held = rows < REGISTER_ROWS ? rows : REGISTER_ROWS;
    const int columns = width >= 2 * LANES ? 2 : 1; /* vectors of a row held in registers */
    for (int first = 0; first < rows; first += held)
        for (int lane = 0; lane < width; lane += columns * LANES) {
            vec sum[REGISTER_ROWS][2];
            REAL *c_block = c + first * width + lane;
#pragma GCC unroll 16
            for (int r = 0; r < held; r++)
#pragma GCC unroll 2
                for (int v = 0; v < columns; v++)
                    sum[r][v] = NAME(load)(c_block + r * width + v * LANES);
            const REAL *next_a = a + first * a_row, *next_b = b + lane;
            for (int64_t block = 0; block < blocks; block++) {
                const REAL *ak = next_a, *bk = next_b;
                next_a += a_block;
                next_b += b_block;
                if (a_row > 1) /* its rows are too short for the machine to see them coming */
                    for (int r = 0; r < held * a_row; r += 64 / sizeof(REAL))
                        __builtin_prefetch(next_a + r);
                for (int64_t k = 0; k < depth; k++, ak += a_step, bk += width) {
                    vec row[2];
#pragma GCC unroll 2
                    for (int v = 0; v < columns; v++)
                        row[v] = NAME(load)(bk + v * LANES);
                    if (a_row == 1)
                        __builtin_prefetch(ak + 2048 / sizeof(REAL));
#pragma GCC unroll 16
                    for (int r = 0; r < held; r++) {
                        REAL factor = ak[r * a_row];
#pragma GCC unroll 2
                        for (int v = 0; v < columns; v++)
                            sum[r][v] += factor * row[v];
                    }
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < held; r++)
#pragma GCC unroll 2
                for (int v = 0; v < columns; v++)
                    NAME(store)(c_block + r * width + v * LANES, sum[r][v]);
        }
}

/* c += A b with a packed tile of any number of rows up to 12; a tile is padded to 4, 8 or 12 rows. */
static void NAME(multiply_packed)(REAL *c, const REAL *a, const REAL *b, int64_t depth, int rows, int width)
{
    REAL whole_tile[TILE * PANEL] __attribute__((aligned(64)));
    REAL *to = rows % 4 == 0 ? c : whole_tile;
    if (to != c) {
        memset(whole_tile, 0, sizeof whole_tile);
        memcpy(whole_tile, c, sizeof(REAL) * rows * width);
    }
#define CASE(rows, width) NAME(multiply)(to, a, b, depth, 1, 0, 0, rows, width, 1, rows)
    switch ((rows + 3) / 4 + (width == 16 ? 3 : 0)) {
    case 1: CASE(4, 32); break;
    case 2: CASE(8, 32); break;
    case 3: CASE(12, 32); break;
    case 4: CASE(4, 16); break;
    case 5: CASE(8, 16); break;
    case 6: CASE(12, 16); break;
    }
#undef CASE
    if (to != c)
        memcpy(c, whole_tile, sizeof(REAL) * rows * width);
}

/* c (up to 12 rows of 32) += A b, where the rows of A are those of feature-major panels `a_block` apart, of
 * `a_width` lanes of which `depth` are used, and b has the lanes' rows of 32, its blocks `b_block` apart. */
static void NAME(multiply_panels)(REAL *c, const REAL *a, const REAL *b, int64_t depth, int64_t blocks, int64_t a_block,
                                  int64_t b_block, int rows, int a_width)
{
#define CASE(rows, a_width) NAME(multiply)(c, a, b, depth, blocks, a_block, b_block, rows, 32, a_width, 1)
    switch ((rows + 3) / 4 + (a_width == 16 ? 3 : 0)) {
    case 1: CASE(4, 32); break;
    case 2: CASE(8, 32); break;
    case 3: CASE(12, 32); break;
    case 4: CASE(4, 16); break;
    case 5: CASE(8, 16); break;
    case 6: CASE(12, 16); break;
    }
#undef CASE
}

/* ---- changes of layout ---------------------------------------------------------------------------- */

typedef INT NAME(indices) __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL NAME(quad) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* to[column][row] = from[row][column] for a 4 x 4 block, its rows given one by one. */
INLINE void NAME(transpose_rows)(REAL *to, int64_t to_stride, const REAL *from0, const REAL *from1, const REAL *from2,
                                 const REAL *from3)
{
    typedef NAME(quad) quad;
    quad a = *(const quad *)from0, b = *(const quad *)from1, c = *(const quad *)from2, d = *(const quad *)from3;
    quad ab_low = SHUFFLE(NAME(indices), a, b, 0, 4, 1, 5), ab_high = SHUFFLE(NAME(indices), a, b, 2, 6, 3, 7);
    quad cd_low = SHUFFLE(NAME(indices), c, d, 0, 4, 1, 5), cd_high = SHUFFLE(NAME(indices), c, d, 2, 6, 3, 7);
    *(quad *)to = SHUFFLE(NAME(indices), ab_low, cd_low, 0, 1, 4, 5);
    *(quad *)(to + to_stride) = SHUFFLE(NAME(indices), ab_low, cd_low, 2, 3, 6, 7);
    *(quad *)(to + 2 * to_stride) = SHUFFLE(NAME(indices), ab_high, cd_high, 0, 1, 4, 5);
    *(quad *)(to + 3 * to_stride) = SHUFFLE(NAME(indices), ab_high, cd_high, 2, 3, 6, 7);
}

/* to[column][row] = from[row][column] for a rows x columns matrix. */
static void NAME(transpose)(REAL *to, int64_t to_stride, const REAL *from, int64_t from_stride, int64_t rows,
                            int64_t columns)
{
    for (int64_t first = 0; first < columns; first += 16) { /* a cache line of each row at a time */
        int64_t end = min(columns, first + 16), r = 0;
        for (; r + 4 <= rows; r += 4) {
            int64_t c = first;
            for (; c + 4 <= end; c += 4) {
                const REAL *block = from + r * from_stride + c;
                NAME(transpose_rows)(to + c * to_stride + r, to_stride, block, block + from_stride,
                                     block + 2 * from_stride, block + 3 * from_stride);
            }
            for (; c < end; c++)
                for (int64_t k = r; k < r + 4; k++)
                    to[c * to_stride + k] = from[k * from_stride + c];
        }
        for (; r < rows; r++)
            for (int64_t c = first; c < end; c++)
                to[c * to_stride + r] = from[r * from_stride + c];
    }
}

/* ---- a call --------------------------------------------------------------------------------------- */

/* The rows of one product: `gates` gates of each unit, from gate `first_gate` of the weight matrix on. */
struct NAME(rows) {
    int first_gate, gates;
};

struct NAME(call) {
    const struct arguments *arguments;
    struct team *team;
    int relu;
    int64_t T, B, I, H, lanes; /* lanes: the padded batch */
    int64_t chunk;             /* time steps worked on together */
    int64_t threads;
    /* Two sets of gate rows: all (LSTM, RNN), or r and z, then n (GRU). */
    int sets;
    struct NAME(rows) rows[2];
    REAL *w_ih[2], *w_hh[2]; /* storage of the packed weights; in a backward pass of their transposes */
    REAL *x;                 /* chunk steps of the input [feature-major] */
    REAL *gates[2], *hn;     /* of all steps if saved, else of a chunk [feature-major] */
    REAL *cells;
    REAL *h, *masked_h[2], *reset_h; /* states [feature-major]; what the products read alternates */
    uint8_t *keep[3];                /* the masks of one step [feature-major] */
    INT *lengths;                    /* of each lane, 0 for padding */
    /* backward */
    REAL *d_gates[2], *d_hn; /* of a chunk, steps gate_step[set] apart */
    int64_t gate_step[2];
    REAL *d_h, *d_c, *d_output, *previous_h, *d_reset, *reset_rows, *columns, *d_x;
};

/* A member's rows of a matrix, packed: [block of DEPTH columns][tile of rows][column][row]. */
struct NAME(packed) {
    REAL *data;
    int64_t rows, depth; /* rows: with those that pad the last tile */
};

/* This member's part of a call. */
struct NAME(member) {
    int id, size;
    int64_t u0, u1; /* its units */
    int64_t i0, i1; /* its input features */
    struct NAME(packed) w_ih[2], w_hh[2];
};

#define call_t struct NAME(call)
#define member_t struct NAME(member)
#define FOR_PANELS(c, p, width)                                                                            \
    for (int64_t p = 0, width = min(PANEL, (c)->lanes); p < (c)->lanes;                                    \
         p += PANEL, width = min(PANEL, (c)->lanes - p))

/* A feature-major tensor of `features`: the row of `feature` in the panel that begins at lane p. */
INLINE int64_t NAME(at)(int64_t p, int64_t width, int64_t features, int64_t feature)
{
    return p * features + feature * width;
}

static int64_t NAME(time_of)(const call_t *c, int64_t step)
{
    return c->arguments->reverse ? c->T - 1 - step : step;
}

/* rows of (batch, columns) [first, last) to feature-major storage of `features`, zero in padded lanes */
static void NAME(to_features)(const call_t *c, REAL *to, int64_t features, const REAL *from, int64_t columns,
                              int64_t first, int64_t last)
{
    FOR_PANELS(c, p, width) {
        int64_t used = min(width, c->B - p);
        REAL *panel = to + NAME(at)(p, width, features, first);
        NAME(transpose)(panel, width, from + p * columns + first, columns, used, last - first);
        if (used < width)
            for (int64_t f = 0; f < last - first; f++)
                memset(panel + f * width + used, 0, sizeof(REAL) * (width - used));
    }
}

static void NAME(from_features)(const call_t *c, REAL *to, int64_t columns, const REAL *from, int64_t features,
                                int64_t first, int64_t last)
{
    FOR_PANELS(c, p, width)
        NAME(transpose)(to + p * columns + first, columns, from + NAME(at)(p, width, features, first), width,
                        last - first, min(width, c->B - p));
}

/* Zero the output of sequences that have ended. */
static void NAME(zero_past_end)(const call_t *c, REAL *to, int64_t t, int64_t first, int64_t last)
{
    if (c->arguments->lengths)
        for (int64_t b = 0; b < c->B; b++)
            if (t >= c->arguments->lengths[b])
                memset(to + b * c->H + first, 0, sizeof(REAL) * (last - first));
}

static const struct mask *NAME(mask)(const call_t *c, int kind)
{
    const struct arguments *a = c->arguments;
    return kind == 0 ? &a->update : kind == 1 ? &a->hidden_mask : &a->cell_mask;
}

enum { NAME(UPDATE), NAME(HIDDEN), NAME(CELL) };

typedef uint8_t NAME(byte16) __attribute__((vector_size(16), aligned(1), may_alias));

/* to[column][row] = from[row][column] for 16 x 16 bytes: four times, interleave the halves. */
INLINE void NAME(transpose_bytes)(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride)
{
    typedef NAME(byte16) byte16;
    byte16 x[16], y[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
        x[k] = *(const byte16 *)(from + k * from_stride);
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            y[2 * k] = SHUFFLE(byte16, x[k], x[k + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * k + 1] =
                SHUFFLE(byte16, x[k], x[k + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++)
            x[k] = y[k];
    }
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
        *(byte16 *)(to + k * to_stride) = x[k];
}

/* Bring this member's part of the mask of time t into feature-major order. */
static void NAME(load_mask)(const call_t *c, const member_t *m, int kind, int64_t t)
{
    const struct mask *mask = NAME(mask)(c, kind);
    if (mask->keep == NULL || t < 0 || t >= c->T)
        return;
    const uint8_t *from = mask->keep + t * mask->step;
    FOR_PANELS(c, p, width) {
        uint8_t *to = c->keep[kind] + p * c->H;
        for (int64_t b = 0; b < width; b += 16) {
            int64_t u = m->u0;
            if (p + b + 16 <= c->B)
                for (; u + 16 <= m->u1; u += 16)
                    NAME(transpose_bytes)(to + u * width + b, width, from + (p + b) * c->H + u, c->H);
            for (; u < m->u1; u++)
                for (int64_t k = b; k < b + 16; k++)
                    to[u * width + k] = p + k < c->B ? from[(p + k) * c->H + u] : 0;
        }
    }
}

static void NAME(load_masks)(const call_t *c, const member_t *m, int64_t t, int first_step)
{
    for (int kind = 0; kind < 3; kind++)
        if (kind != NAME(HIDDEN) && (first_step || NAME(mask)(c, kind)->step))
            NAME(load_mask)(c, m, kind, t);
}

/* scale * keep for the lanes from `offset` (an index into a feature-major tensor of the units) on */
INLINE vec NAME(factor)(const call_t *c, int kind, int64_t offset)
{
    const struct mask *mask = NAME(mask)(c, kind);
    REAL scale = mask->scale;
    if (mask->keep == NULL)
        return NAME(splat)(scale);
    return __builtin_convertvector(*(const NAME(bytes) *)(c->keep[kind] + offset), vec) * scale;
}

INLINE ivec NAME(running)(const call_t *c, int64_t lane, int64_t t)
{
    return *(const ivec *)(c->lengths + lane) > (INT)t;
}

/* ---- packing -------------------------------------------------------------------------------------- */

/* Where a member's `rows` rows from row `first` on are packed; each member's last tile may be padded. */
static struct NAME(packed) NAME(packed)(REAL *storage, int64_t first, int64_t rows, int id, int64_t depth)
{
    return (struct NAME(packed)){storage + (first + TILE * id) * depth, round_up(rows, 4), depth};
}

/* The columns from k0 on of the tile that begins at `row`. */
INLINE REAL *NAME(tile)(const struct NAME(packed) *packed, int64_t k0, int64_t row)
{
    return packed->data + k0 * packed->rows + row * min(DEPTH, packed->depth - k0);
}

/* Pack the rows of the units [u0, u1) of a gate matrix (gates * H, depth). */
static void NAME(pack)(const call_t *c, const struct NAME(packed) *packed, const REAL *w, struct NAME(rows) set,
                       int64_t u0, int64_t u1)
{
    int64_t depth = packed->depth;
    for (int64_t first = 0; first < (u1 - u0) * set.gates; first += TILE) {
        int rows = (int)min(TILE, (u1 - u0) * set.gates - first), stride = (int)round_up(rows, 4);
        const REAL *row[TILE];
        for (int r = 0; r < stride; r++) { /* a padding row is any row: its product is not used */
            int64_t k = first + (r < rows ? r : 0);
            row[r] = w + ((set.first_gate + k % set.gates) * c->H + u0 + k / set.gates) * depth;
        }
        for (int64_t k0 = 0; k0 < depth; k0 += DEPTH) {
            REAL *to = NAME(tile)(packed, k0, first);
            int64_t end = min(k0 + DEPTH, depth), k = k0;
            for (; k + 4 <= end; k += 4, to += 4 * stride)
                for (int r = 0; r < stride; r += 4)
                    NAME(transpose_rows)(to + r, stride, row[r] + k, row[r + 1] + k, row[r + 2] + k, row[r + 3] + k);
            for (; k < end; k++, to += stride)
                for (int r = 0; r < stride; r++)
                    to[r] = row[r][k];
        }
    }
}

/* Pack the columns [j0, j1) of a gate matrix (gates * H, columns): the rows of its transpose. */
static void NAME(pack_transposed)(const call_t *c, const struct NAME(packed) *packed, const REAL *w,
                                  struct NAME(rows) set, int64_t j0, int64_t j1, int64_t columns)
{
    enum { GROUP = 8 * TILE }; /* columns read together: whole cache lines, yet few places written to */
    for (int64_t first = j0; first < j1; first += GROUP)
        for (int64_t k0 = 0; k0 < packed->depth; k0 += DEPTH)
            for (int64_t k = k0; k < min(k0 + DEPTH, packed->depth); k++) {
                const REAL *from = w + ((set.first_gate + k % set.gates) * c->H + k / set.gates) * columns;
                for (int64_t j = first; j < min(first + GROUP, j1); j += TILE) {
                    int64_t rows = min(TILE, j1 - j), stride = round_up(rows, 4);
                    REAL *to = NAME(tile)(packed, k0, j - j0) + (k - k0) * stride;
                    if (rows == TILE)
                        memcpy(to, from + j, TILE * sizeof(REAL));
                    else
                        for (int64_t r = 0; r < stride; r++)
                            to[r] = r < rows ? from[j + r] : 0;
                }
            }
}

/* The rows [j0, j1) of a feature-major tensor of `features` += (= where `zero`) the product of this member's
 * packed rows with d, of which the columns from k0 on are read. */
static void NAME(add_product)(const call_t *c, REAL *to, int64_t features, int64_t j0, int64_t j1,
                              const struct NAME(packed) *packed, const REAL *d, int64_t k0, int zero)
{
    int64_t length = min(DEPTH, packed->depth - k0);
    for (int64_t j = j0; j < j1; j += TILE) {
        int rows = (int)min(TILE, j1 - j);
        const REAL *tile = NAME(tile)(packed, k0, j - j0);
        FOR_PANELS(c, p, width) {
            REAL *block = to + NAME(at)(p, width, features, j);
            if (zero)
                memset(block, 0, sizeof(REAL) * rows * width);
            NAME(multiply_packed)(block, tile, d + NAME(at)(p, width, packed->depth, k0), length, rows, width);
        }
    }
}

/* ---- forward -------------------------------------------------------------------------------------- */

INLINE void NAME(fill_rows)(REAL *to, const REAL *values, int rows, int64_t width)
{
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j += LANES)
            NAME(store)(to + r * width + j, NAME(splat)(values[r]));
}

/* Products of a chunk's input for this member's units, with the biases. */
static void NAME(input_products)(const call_t *c, const member_t *m, int set, int64_t step0, int64_t steps)
{
    const struct arguments *a = c->arguments;
    struct NAME(rows) rows = c->rows[set];
    int apart = a->cell == GRU_RESET_AFTER && set == 1; /* b_hn belongs to U_n h */
    int64_t units = TILE / rows.gates;
    for (int64_t k0 = 0; k0 < c->I; k0 += DEPTH)
        for (int64_t u = m->u0; u < m->u1; u += units) { /* a tile serves all steps while it is in cache */
            int n = (int)min(units, m->u1 - u) * rows.gates;
            const REAL *tile = NAME(tile)(&m->w_ih[set], k0, (u - m->u0) * rows.gates);
            REAL bias[TILE];
            for (int r = 0; r < n; r++) {
                int64_t row = (rows.first_gate + r % rows.gates) * c->H + u + r / rows.gates;
                bias[r] = a->b_ih ? ((const REAL *)a->b_ih)[row] + (apart ? 0 : ((const REAL *)a->b_hh)[row]) : 0;
            }
            for (int64_t s = 0; s < steps; s++) {
                int64_t slot = a->saved[0] ? NAME(time_of)(c, step0 + s) : s;
                FOR_PANELS(c, p, width) {
                    REAL *to = c->gates[set] + slot * rows.gates * c->H * c->lanes +
                               NAME(at)(p, width, rows.gates * c->H, u * rows.gates);
                    if (k0 == 0)
                        NAME(fill_rows)(to, bias, n, width);
                    NAME(multiply_packed)(to, tile, c->x + s * c->I * c->lanes + NAME(at)(p, width, c->I, k0),
                                          min(DEPTH, c->I - k0), n, width);
                }
            }
        }
}

/* Write the new h of a row: the state, and what the next step's products read. */
INLINE void NAME(write_h)(const call_t *c, int64_t step, int64_t offset, ivec running, vec h)
{
    h = NAME(select)(running, h, NAME(load)(c->h + offset));
    NAME(store)(c->h + offset, h);
    NAME(store)(c->masked_h[(step + 1) & 1] + offset, h * NAME(factor)(c, NAME(HIDDEN), offset));
}

static void NAME(lstm_units)(const call_t *c, int64_t step, int64_t t, REAL *gates, int64_t p, int64_t width, int64_t u0,
                             int64_t u1)
{
    int save = c->arguments->saved[1] != NULL, relu = c->relu;
    const REAL *old_c = c->cells + (save ? t + c->arguments->reverse : 0) * c->H * c->lanes;
    REAL *new_c = c->cells + (save ? t + !c->arguments->reverse : 0) * c->H * c->lanes;
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            REAL *gate = gates + (u - u0) * 4 * width + j;
            int64_t offset = NAME(at)(p, width, c->H, u) + j;
            vec i = NAME(sigmoid)(NAME(load)(gate)), f = NAME(sigmoid)(NAME(load)(gate + width));
            vec g = NAME(phi)(NAME(load)(gate + 2 * width), relu), o = NAME(sigmoid)(NAME(load)(gate + 3 * width));
            NAME(store)(gate, i);
            NAME(store)(gate + width, f);
            NAME(store)(gate + 2 * width, g);
            NAME(store)(gate + 3 * width, o);
            ivec running = NAME(running)(c, p + j, t);
            vec old = NAME(load)(old_c + offset);
            vec cell = (f * old + i * (g * NAME(factor)(c, NAME(UPDATE), offset))) * NAME(factor)(c, NAME(CELL), offset);
            NAME(store)(new_c + offset, NAME(select)(running, cell, old));
            NAME(write_h)(c, step, offset, running, o * NAME(phi)(cell, relu));
        }
}

static void NAME(rnn_units)(const call_t *c, int64_t step, int64_t t, REAL *product, int64_t p, int64_t width,
                            int64_t u0, int64_t u1)
{
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES)
            NAME(write_h)(c, step, NAME(at)(p, width, c->H, u) + j, NAME(running)(c, p + j, t),
                          NAME(phi)(NAME(load)(product + (u - u0) * width + j), c->relu));
}

/* r and z; the paper's GRU needs r * h for its next product. */
static void NAME(gru_gates)(const call_t *c, int64_t step, REAL *gates, int64_t p, int64_t width, int64_t u0, int64_t u1)
{
    const REAL *masked_h = c->masked_h[step & 1];
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            REAL *gate = gates + (u - u0) * 2 * width + j;
            int64_t offset = NAME(at)(p, width, c->H, u) + j;
            vec r = NAME(sigmoid)(NAME(load)(gate));
            NAME(store)(gate, r);
            NAME(store)(gate + width, NAME(sigmoid)(NAME(load)(gate + width)));
            if (c->arguments->cell == GRU)
                NAME(store)(c->reset_h + offset, r * NAME(load)(masked_h + offset));
        }
}

/* n from its product (the paper's), or from U_n h + b_hn in hn; then h. */
static void NAME(gru_units)(const call_t *c, int64_t step, int64_t t, const REAL *gates, REAL *product, const REAL *hn,
                            int64_t p, int64_t width, int64_t u0, int64_t u1)
{
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            const REAL *gate = gates + (u - u0) * 2 * width + j;
            int64_t row = (u - u0) * width + j, offset = NAME(at)(p, width, c->H, u) + j;
            vec r = NAME(load)(gate), z = NAME(load)(gate + width), n = NAME(load)(product + row);
            if (hn)
                n += r * NAME(load)(hn + row);
            n = NAME(phi)(n, c->relu);
            NAME(store)(product + row, n);
            vec h = z * NAME(load)(c->h + offset) + (1 - z) * (n * NAME(factor)(c, NAME(UPDATE), offset));
            NAME(write_h)(c, step, offset, NAME(running)(c, p + j, t), h * NAME(factor)(c, NAME(CELL), offset));
        }
}

static void NAME(forward_step)(const call_t *c, const member_t *m, int64_t step, int64_t slot)
{
    const struct arguments *a = c->arguments;
    const REAL *masked_h = c->masked_h[step & 1];
    int64_t t = NAME(time_of)(c, step), H = c->H;
    /* h(t) is read by the next step through that step's hidden mask */
    int64_t next = NAME(time_of)(c, step + 1);
    if (a->hidden_mask.step)
        NAME(load_mask)(c, m, NAME(HIDDEN), next);
    NAME(load_masks)(c, m, t, step == 0);

    for (int set = 0; set < c->sets; set++) {
        int G = c->rows[set].gates, apart = a->cell == GRU_RESET_AFTER && set == 1;
        int64_t units = TILE / G;
        const REAL *state = a->cell == GRU && set == 1 ? c->reset_h : masked_h;
        if (a->cell == GRU && set == 1)
            wait_for_team(c->team, m->size);
        for (int64_t k0 = 0; k0 < H; k0 += DEPTH)
            for (int64_t u = m->u0; u < m->u1; u += units) {
                int64_t end = min(u + units, m->u1);
                int n = (int)(end - u) * G;
                const REAL *tile = NAME(tile)(&m->w_hh[set], k0, (u - m->u0) * G);
                FOR_PANELS(c, p, width) {
                    REAL *rows = c->gates[set] + slot * G * H * c->lanes + NAME(at)(p, width, G * H, u * G);
                    REAL *hn = apart ? c->hn + slot * H * c->lanes + NAME(at)(p, width, H, u) : NULL;
                    if (apart && k0 == 0) {
                        REAL bias[TILE] = {0};
                        for (int r = 0; r < n && a->b_hh; r++)
                            bias[r] = ((const REAL *)a->b_hh)[2 * H + u + r];
                        NAME(fill_rows)(hn, bias, n, width);
                    }
                    NAME(multiply_packed)(apart ? hn : rows, tile, state + NAME(at)(p, width, H, k0),
                                          min(DEPTH, H - k0), n, width);
                    if (k0 + DEPTH < H)
                        continue; /* not the last part of the sum */
                    if (a->cell == LSTM) {
                        NAME(lstm_units)(c, step, t, rows, p, width, u, end);
                    } else if (a->cell == RNN) {
                        NAME(rnn_units)(c, step, t, rows, p, width, u, end);
                    } else if (set == 0) {
                        NAME(gru_gates)(c, step, rows, p, width, u, end);
                    } else {
                        const REAL *gates = c->gates[0] + slot * 2 * H * c->lanes + NAME(at)(p, width, 2 * H, u * 2);
                        NAME(gru_units)(c, step, t, gates, rows, hn, p, width, u, end);
                    }
                }
            }
    }
    REAL *output = (REAL *)a->output + t * c->B * H;
    NAME(from_features)(c, output, H, c->h, H, m->u0, m->u1);
    NAME(zero_past_end)(c, output, t, m->u0, m->u1);
}

static void NAME(forward_member)(const call_t *c, member_t *m)
{
    const struct arguments *a = c->arguments;
    int64_t H = c->H;
    for (int set = 0; set < c->sets; set++) {
        int64_t gates = c->rows[set].gates, rows = (m->u1 - m->u0) * gates;
        m->w_ih[set] = NAME(packed)(c->w_ih[set], m->u0 * gates, rows, m->id, c->I);
        m->w_hh[set] = NAME(packed)(c->w_hh[set], m->u0 * gates, rows, m->id, H);
        NAME(pack)(c, &m->w_ih[set], a->w_ih, c->rows[set], m->u0, m->u1);
        NAME(pack)(c, &m->w_hh[set], a->w_hh, c->rows[set], m->u0, m->u1);
    }
    NAME(to_features)(c, c->h, H, a->h0, H, m->u0, m->u1);
    NAME(load_mask)(c, m, NAME(HIDDEN), NAME(time_of)(c, 0));
    FOR_PANELS(c, p, width)
        for (int64_t k = NAME(at)(p, width, H, m->u0); k < NAME(at)(p, width, H, m->u1); k += LANES)
            NAME(store)(c->masked_h[0] + k, NAME(load)(c->h + k) * NAME(factor)(c, NAME(HIDDEN), k));
    int save = a->saved[1] != NULL;
    if (a->cell == LSTM)
        NAME(to_features)(c, c->cells + (save && a->reverse ? c->T : 0) * H * c->lanes, H, a->c0, H, m->u0, m->u1);

    for (int64_t step0 = 0; step0 < c->T; step0 += c->chunk) {
        int64_t steps = min(c->chunk, c->T - step0);
        wait_for_team(c->team, m->size); /* the last chunk's input is no longer read */
        for (int64_t s = 0; s < steps; s++)
            NAME(to_features)(c, c->x + s * c->I * c->lanes, c->I,
                              (const REAL *)a->x + NAME(time_of)(c, step0 + s) * c->B * c->I, c->I,
                              m->i0, m->i1);
        wait_for_team(c->team, m->size);
        for (int set = 0; set < c->sets; set++)
            NAME(input_products)(c, m, set, step0, steps);
        for (int64_t s = 0; s < steps; s++) {
            NAME(forward_step)(c, m, step0 + s, a->saved[0] ? NAME(time_of)(c, step0 + s) : s);
            wait_for_team(c->team, m->size);
        }
    }
    NAME(from_features)(c, a->h_n, H, c->h, H, m->u0, m->u1);
    if (a->cell == LSTM)
        NAME(from_features)(c, a->c_n, H, c->cells + (save && !a->reverse ? c->T : 0) * H * c->lanes, H, m->u0, m->u1);
}

/* ---- backward ------------------------------------------------------------------------------------- */

/* The gradients of the gates of step t at the units [u0, u1) of a panel, from those of h and c. Where a
 * sequence has ended they are 0, and the state's gradient passes as it is. */
static void NAME(lstm_gradients)(const call_t *c, int64_t t, REAL *d_gates, int64_t p, int64_t width, int64_t u0,
                                 int64_t u1)
{
    int relu = c->relu, reverse = c->arguments->reverse != 0;
    int64_t H = c->H, all = H * c->lanes;
    const REAL *gates = c->gates[0] + t * 4 * all + p * 4 * H;
    const REAL *old_c = c->cells + (t + reverse) * all, *new_c = c->cells + (t + !reverse) * all;
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            const REAL *gate = gates + 4 * u * width + j;
            REAL *d_gate = d_gates + p * 4 * H + 4 * u * width + j;
            int64_t offset = NAME(at)(p, width, H, u) + j;
            ivec running = NAME(running)(c, p + j, t);
            vec zero = {0}, i = NAME(load)(gate), f = NAME(load)(gate + width);
            vec g = NAME(load)(gate + 2 * width), o = NAME(load)(gate + 3 * width);
            vec y = NAME(phi)(NAME(load)(new_c + offset), relu), update = NAME(factor)(c, NAME(UPDATE), offset);
            vec d_h = NAME(load)(c->d_h + offset), d_c = NAME(load)(c->d_c + offset);
            vec d_y = d_h + NAME(load)(c->d_output + offset);
            vec d = (d_c + d_y * o * NAME(phi_slope)(y, relu)) * NAME(factor)(c, NAME(CELL), offset);
            vec d_i = d * (g * update * (i * (1 - i))), d_f = d * (NAME(load)(old_c + offset) * (f * (1 - f)));
            vec d_g = d * (i * update * NAME(phi_slope)(g, relu)), d_o = d_y * (y * (o * (1 - o)));
            NAME(store)(d_gate, NAME(select)(running, d_i, zero));
            NAME(store)(d_gate + width, NAME(select)(running, d_f, zero));
            NAME(store)(d_gate + 2 * width, NAME(select)(running, d_g, zero));
            NAME(store)(d_gate + 3 * width, NAME(select)(running, d_o, zero));
            NAME(store)(c->d_c + offset, NAME(select)(running, d * f, d_c));
            NAME(store)(c->d_h + offset, NAME(select)(running, zero, d_h));
        }
}

static void NAME(rnn_gradients)(const call_t *c, int64_t t, REAL *d_product, int64_t p, int64_t width, int64_t u0,
                                int64_t u1)
{
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            int64_t offset = NAME(at)(p, width, c->H, u) + j;
            ivec running = NAME(running)(c, p + j, t);
            vec zero = {0}, d_h = NAME(load)(c->d_h + offset), y = NAME(load)(c->h + offset);
            vec d = (d_h + NAME(load)(c->d_output + offset)) * NAME(phi_slope)(y, c->relu);
            NAME(store)(d_product + offset, NAME(select)(running, d, zero));
            NAME(store)(c->d_h + offset, NAME(select)(running, zero, d_h));
        }
}

/* All but d_r of the paper's GRU, which needs the product of d_n first. */
static void NAME(gru_gradients)(const call_t *c, int64_t t, REAL *d_gates, REAL *d_n_rows, REAL *d_hn_rows, int64_t p,
                                int64_t width, int64_t u0, int64_t u1)
{
    int64_t H = c->H;
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            int64_t offset = NAME(at)(p, width, H, u) + j, row = 2 * NAME(at)(p, width, H, u) + j;
            const REAL *gate = c->gates[0] + t * 2 * H * c->lanes + row;
            ivec running = NAME(running)(c, p + j, t);
            vec zero = {0}, r = NAME(load)(gate), z = NAME(load)(gate + width);
            vec n = NAME(load)(c->gates[1] + t * H * c->lanes + offset), update = NAME(factor)(c, NAME(UPDATE), offset);
            vec d_h = NAME(load)(c->d_h + offset);
            vec d = (d_h + NAME(load)(c->d_output + offset)) * NAME(factor)(c, NAME(CELL), offset);
            d = NAME(select)(running, d, zero);
            vec d_z = d * ((NAME(load)(c->previous_h + offset) - n * update) * (z * (1 - z)));
            vec d_n = d * ((1 - z) * update * NAME(phi_slope)(n, c->relu));
            d_z = NAME(select)(running, d_z, zero);
            d_n = NAME(select)(running, d_n, zero);
            NAME(store)(d_gates + row + width, d_z);
            NAME(store)(d_n_rows + offset, d_n);
            if (d_hn_rows) {
                vec hn = NAME(load)(c->hn + t * H * c->lanes + offset);
                NAME(store)(d_gates + row, NAME(select)(running, d_n * (hn * (r * (1 - r))), zero));
                NAME(store)(d_hn_rows + offset, d_n * r);
            }
            NAME(store)(c->d_h + offset, NAME(select)(running, d * z, d_h));
        }
}

/* The paper's GRU: d_r from the gradient of r * h, which d_reset becomes the part of h of. */
static void NAME(gru_reset_gradients)(const call_t *c, int64_t t, REAL *d_gates, REAL *reset_h, int64_t p, int64_t width,
                                      int64_t u0, int64_t u1)
{
    int64_t H = c->H;
    for (int64_t u = u0; u < u1; u++)
        for (int64_t j = 0; j < width; j += LANES) {
            int64_t offset = NAME(at)(p, width, H, u) + j, row = 2 * NAME(at)(p, width, H, u) + j;
            vec r = NAME(load)(c->gates[0] + t * 2 * H * c->lanes + row), d = NAME(load)(c->d_reset + offset);
            vec h = NAME(load)(c->previous_h + offset) * NAME(factor)(c, NAME(HIDDEN), offset), zero = {0};
            NAME(store)(d_gates + row, NAME(select)(NAME(running)(c, p + j, t), d * (h * (r * (1 - r))), zero));
            NAME(store)(c->d_reset + offset, d * r);
            NAME(store)(reset_h + offset, r * h);
        }
}

/* The gradient of what a set's state product read: `to` = (or += unless `zero`) W^T d, this member's units. */
static void NAME(state_gradient)(const call_t *c, const member_t *m, REAL *to, int set, const REAL *d, int zero)
{
    for (int64_t k0 = 0; k0 < m->w_hh[set].depth; k0 += DEPTH)
        NAME(add_product)(c, to, c->H, m->u0, m->u1, &m->w_hh[set], d, k0, zero && k0 == 0);
}

/* The state that step t reads, row b, in the order of the batch. */
static const REAL *NAME(previous_row)(const call_t *c, int64_t t, int64_t b)
{
    const struct arguments *a = c->arguments;
    int64_t before = a->reverse ? t + 1 : t - 1, end = a->lengths ? min(c->T, a->lengths[b]) : c->T;
    return before < 0 || before >= end ? (const REAL *)a->h0 + b * c->H
                                       : (const REAL *)a->output + (before * c->B + b) * c->H;
}

static void NAME(load_previous_h)(const call_t *c, const member_t *m, int64_t t)
{
    if (c->arguments->lengths == NULL) {
        NAME(to_features)(c, c->previous_h, c->H, NAME(previous_row)(c, t, 0), c->H, m->u0, m->u1);
        return;
    }
    FOR_PANELS(c, p, width)
        for (int64_t b = 0; b < width; b++) {
            const REAL *row = p + b < c->B ? NAME(previous_row)(c, t, p + b) : NULL;
            for (int64_t u = m->u0; u < m->u1; u++)
                c->previous_h[NAME(at)(p, width, c->H, u) + b] = row ? row[u] : 0;
        }
}

static void NAME(backward_step)(const call_t *c, const member_t *m, int64_t step, int64_t slot)
{
    const struct arguments *a = c->arguments;
    int64_t t = NAME(time_of)(c, step), H = c->H, u0 = m->u0, u1 = m->u1;
    int first = step == c->T - 1;
    REAL *d_gates[2], *d_hn = c->d_hn ? c->d_hn + slot * c->gate_step[1] : NULL;
    for (int set = 0; set < c->sets; set++)
        d_gates[set] = c->d_gates[set] + slot * c->gate_step[set];
    REAL *reset_h = a->cell == GRU ? c->reset_h : NULL;

    NAME(load_masks)(c, m, t, first);
    if (first || a->hidden_mask.step)
        NAME(load_mask)(c, m, NAME(HIDDEN), t);
    NAME(to_features)(c, c->d_output, H, (const REAL *)a->d_output + t * c->B * H, H, u0, u1);
    if (a->cell == RNN)
        NAME(to_features)(c, c->h, H, (const REAL *)a->output + t * c->B * H, H, u0, u1);
    else if (a->cell != LSTM)
        NAME(load_previous_h)(c, m, t);

    FOR_PANELS(c, p, width) {
        if (a->cell == LSTM)
            NAME(lstm_gradients)(c, t, d_gates[0], p, width, u0, u1);
        else if (a->cell == RNN)
            NAME(rnn_gradients)(c, t, d_gates[0], p, width, u0, u1);
        else
            NAME(gru_gradients)(c, t, d_gates[0], d_gates[1], d_hn, p, width, u0, u1);
    }
    wait_for_team(c->team, m->size);
    REAL *sum = c->d_reset; /* the gradient of the masked h */
    if (a->cell == GRU) {
        NAME(state_gradient)(c, m, sum, 1, d_gates[1], 1);
        FOR_PANELS(c, p, width)
            NAME(gru_reset_gradients)(c, t, d_gates[0], reset_h, p, width, u0, u1);
        NAME(from_features)(c, c->reset_rows + slot * c->B * H, H, reset_h, H, u0, u1);
        wait_for_team(c->team, m->size);
    } else if (a->cell == GRU_RESET_AFTER) {
        NAME(state_gradient)(c, m, sum, 1, d_hn, 1);
    }
    NAME(state_gradient)(c, m, sum, 0, d_gates[0], c->sets == 1);
    FOR_PANELS(c, p, width)
        for (int64_t k = NAME(at)(p, width, H, u0); k < NAME(at)(p, width, H, u1); k += LANES)
            NAME(store)(c->d_h + k,
                        NAME(load)(c->d_h + k) + NAME(load)(sum + k) * NAME(factor)(c, NAME(HIDDEN), k));
}

/* Copy n <= 32 numbers, mostly 32. */
INLINE void NAME(copy)(REAL *to, const REAL *from, int64_t n)
{
    if (n == PANEL)
        memcpy(to, from, PANEL * sizeof(REAL));
    else
        for (int64_t k = 0; k < n; k++)
            to[k] = from[k];
}

/* Copy columns [first, first + 32) of a row, scaled by the hidden mask if given. */
static void NAME(copy_columns)(REAL *to, const REAL *from, int64_t first, int64_t n, const uint8_t *keep, REAL scale)
{
    int64_t used = min(PANEL, n - first);
    NAME(copy)(to, from + first, used);
    if (scale != 1)
        for (int64_t k = 0; k < used; k++)
            to[k] *= scale;
    if (keep)
        for (int64_t k = 0; k < used; k++)
            to[k] *= keep[first + k];
    for (int64_t k = used; k < PANEL; k++)
        to[k] = 0;
}

/* Cut what a weight gradient multiplies, rows of (steps * batch, n), into panels of 32 columns. `what` is
 * 0 for the input, 1 for the masked h, 2 for the paper's r * h. */
static void NAME(pack_columns)(const call_t *c, const member_t *m, REAL *to, int what, int64_t step0, int64_t steps)
{
    const struct arguments *a = c->arguments;
    int64_t n = what == 0 ? c->I : c->H, depth = steps * c->B;
    for (int64_t row = share(depth, m->id, m->size); row < share(depth, m->id + 1, m->size); row++) {
        int64_t slot = row / c->B, b = row % c->B, t = NAME(time_of)(c, step0 + slot);
        const uint8_t *keep = NULL;
        REAL scale = 1;
        const REAL *from;
        if (what == 0) {
            from = (const REAL *)a->x + (t * c->B + b) * n;
        } else if (what == 1) {
            from = NAME(previous_row)(c, t, b);
            keep = a->hidden_mask.keep ? a->hidden_mask.keep + t * a->hidden_mask.step + b * n : NULL;
            scale = a->hidden_mask.scale;
        } else {
            from = c->reset_rows + row * n;
        }
        for (int64_t first = 0; first < n; first += PANEL)
            NAME(copy_columns)(to + first * depth + row * PANEL, from, first, n, keep, scale);
    }
}

/* dw (of a gate matrix with n columns) += d^T columns, for this member's units. */
static void NAME(weight_gradient)(const call_t *c, const member_t *m, REAL *dw, struct NAME(rows) set, const REAL *d,
                                  int64_t d_step, const REAL *columns, int64_t n, int64_t steps, int first_chunk)
{
    int64_t depth = steps * c->B, units = TILE / set.gates, features = set.gates * c->H;
    int64_t group = round_up(min(n, (1 << 19) / (int64_t)sizeof(REAL) / depth), PANEL); /* columns that stay in cache */
    if (group == 0)
        group = PANEL;
    for (int64_t j0 = 0; j0 < n; j0 += group)
        for (int64_t u = m->u0; u < m->u1; u += units) {
            int rows = (int)min(units, m->u1 - u) * set.gates;
            for (int64_t j = j0; j < min(n, j0 + group); j += PANEL) {
                REAL sum[TILE * PANEL] __attribute__((aligned(64))) = {0};
                REAL *row[TILE];
                int64_t used = min(PANEL, n - j);
                for (int r = 0; r < rows; r++) {
                    row[r] = dw + ((set.first_gate + r % set.gates) * c->H + u + r / set.gates) * n + j;
                    if (!first_chunk)
                        NAME(copy)(sum + r * PANEL, row[r], used);
                    for (size_t k = 0; k < PANEL * sizeof(REAL); k += 64)
                        __builtin_prefetch((const char *)(row[r] + PANEL) + k, 1); /* the next block */
                }
                FOR_PANELS(c, p, width)
                    NAME(multiply_panels)(sum, d + NAME(at)(p, width, features, u * set.gates),
                                          columns + j * depth + p * PANEL, min(width, c->B - p), steps, d_step,
                                          c->B * PANEL, rows, (int)width);
                for (int r = 0; r < rows; r++)
                    NAME(copy)(row[r], sum + r * PANEL, used);
            }
        }
}

static void NAME(bias_gradient)(const call_t *c, const member_t *m, REAL *db, struct NAME(rows) set, const REAL *d,
                                int64_t d_step, int64_t steps, int first_chunk)
{
    for (int64_t u = m->u0; u < m->u1; u++)
        for (int q = 0; q < set.gates; q++) {
            REAL total = 0;
            vec sum = {0};
            for (int64_t s = 0; s < steps; s++)
                FOR_PANELS(c, p, width) {
                    const REAL *row = d + s * d_step + NAME(at)(p, width, set.gates * c->H, u * set.gates + q);
                    int64_t used = min(width, c->B - p), k = 0;
                    for (; k + LANES <= used; k += LANES)
                        sum += NAME(load)(row + k);
                    for (; k < used; k++)
                        total += row[k];
                }
            for (int lane = 0; lane < LANES; lane++)
                total += sum[lane];
            REAL *to = db + (set.first_gate + q) * c->H + u;
            *to = (first_chunk ? 0 : *to) + total;
        }
}

static void NAME(input_gradient)(const call_t *c, const member_t *m, int64_t step0, int64_t steps)
{
    int64_t size = c->I * c->lanes;
    for (int set = 0; set < c->sets; set++)
        for (int64_t k0 = 0; k0 < m->w_ih[set].depth; k0 += DEPTH) /* this part serves all steps while it is in cache */
            for (int64_t s = 0; s < steps; s++)
                NAME(add_product)(c, c->d_x + s * size, c->I, m->i0, m->i1, &m->w_ih[set],
                                  c->d_gates[set] + s * c->gate_step[set], k0, set == 0 && k0 == 0);
    for (int64_t s = 0; s < steps; s++)
        NAME(from_features)(c, (REAL *)c->arguments->d_x + NAME(time_of)(c, step0 + s) * c->B * c->I, c->I,
                            c->d_x + s * size, c->I, m->i0, m->i1);
}

static void NAME(backward_member)(const call_t *c, member_t *m)
{
    const struct arguments *a = c->arguments;
    int64_t H = c->H;
    for (int set = 0; set < c->sets; set++) {
        int64_t depth = c->rows[set].gates * H;
        m->w_hh[set] = NAME(packed)(c->w_hh[set], m->u0, m->u1 - m->u0, m->id, depth);
        NAME(pack_transposed)(c, &m->w_hh[set], a->w_hh, c->rows[set], m->u0, m->u1, H);
        if (a->d_x) {
            m->w_ih[set] = NAME(packed)(c->w_ih[set], m->i0, m->i1 - m->i0, m->id, depth);
            NAME(pack_transposed)(c, &m->w_ih[set], a->w_ih, c->rows[set], m->i0, m->i1, c->I);
        }
    }
    NAME(to_features)(c, c->d_h, H, a->d_h_n, H, m->u0, m->u1);
    if (a->cell == LSTM)
        NAME(to_features)(c, c->d_c, H, a->d_c_n, H, m->u0, m->u1);

    int64_t chunks = (c->T + c->chunk - 1) / c->chunk;
    for (int64_t k = chunks - 1; k >= 0; k--) {
        int64_t step0 = k * c->chunk, steps = min(c->chunk, c->T - step0), depth = steps * c->B;
        int first_chunk = k == chunks - 1;
        for (int64_t s = steps - 1; s >= 0; s--)
            NAME(backward_step)(c, m, step0 + s, s);
        REAL *x = c->columns, *h = x + round_up(c->I, PANEL) * depth, *reset_h = h + round_up(H, PANEL) * depth;
        NAME(pack_columns)(c, m, x, 0, step0, steps);
        NAME(pack_columns)(c, m, h, 1, step0, steps);
        wait_for_team(c->team, m->size);
        if (a->cell == GRU) { /* reset_rows are complete */
            NAME(pack_columns)(c, m, reset_h, 2, step0, steps);
            wait_for_team(c->team, m->size);
        }
        for (int set = 0; set < c->sets; set++) {
            struct NAME(rows) rows = c->rows[set];
            const REAL *d = c->d_gates[set], *d_hh = set == 1 && c->d_hn ? c->d_hn : d;
            int64_t d_step = c->gate_step[set];
            const REAL *read = set == 1 && a->cell == GRU ? reset_h : h;
            NAME(weight_gradient)(c, m, a->d_w_ih, rows, d, d_step, x, c->I, steps, first_chunk);
            NAME(weight_gradient)(c, m, a->d_w_hh, rows, d_hh, d_step, read, H, steps, first_chunk);
            if (a->d_b_ih) {
                NAME(bias_gradient)(c, m, a->d_b_ih, rows, d, d_step, steps, first_chunk);
                NAME(bias_gradient)(c, m, a->d_b_hh, rows, d_hh, d_step, steps, first_chunk);
            }
        }
        if (a->d_x)
            NAME(input_gradient)(c, m, step0, steps);
        wait_for_team(c->team, m->size);
    }
    NAME(from_features)(c, a->d_h0, H, c->d_h, H, m->u0, m->u1);
    if (a->cell == LSTM)
        NAME(from_features)(c, a->d_c0, H, c->d_c, H, m->u0, m->u1);
}

/* ---- entry ---------------------------------------------------------------------------------------- */

/* What this thread does of a call. */
static member_t NAME(part)(const call_t *c)
{
    member_t m = {.id = 0, .size = 1};
    if (c->threads > 1) { /* the same thread has the same part in every call: some of it is in its core's cache */
        m.id = number_in_team();
        m.size = team_size();
    }
    m.u0 = share(c->H, m.id, m.size);
    m.u1 = share(c->H, m.id + 1, m.size);
    m.i0 = share(c->I, m.id, m.size);
    m.i1 = share(c->I, m.id + 1, m.size);
    return m;
}

static void NAME(join)(void *data, int is_backward)
{
    call_t *c = data;
    member_t m = NAME(part)(c);
    if (is_backward)
        NAME(backward_member)(c, &m);
    else
        NAME(forward_member)(c, &m);
}

static void NAME(join_forward)(void *data) { NAME(join)(data, 0); }
static void NAME(join_backward)(void *data) { NAME(join)(data, 1); }

static REAL *NAME(take_reals)(struct arena *arena, int64_t n) { return take(arena, n * sizeof(REAL)); }

static void NAME(lay_out)(call_t *c, struct arena *arena, int is_backward)
{
    const struct arguments *a = c->arguments;
    int64_t state = c->H * c->lanes, slack = TILE * (c->threads + 1);
    for (int set = 0; set < c->sets; set++) {
        int64_t gates = c->rows[set].gates, rows = gates * c->H;
        if (is_backward) {
            c->w_hh[set] = NAME(take_reals)(arena, (c->H + slack) * rows);
            c->w_ih[set] = a->d_x ? NAME(take_reals)(arena, (c->I + slack) * rows) : NULL;
            /* steps one tile further apart than needed, so that they do not share cache sets */
            c->gate_step[set] = rows * c->lanes + TILE * PANEL;
            c->d_gates[set] = NAME(take_reals)(arena, c->chunk * c->gate_step[set] + TILE * PANEL);
        } else {
            c->w_hh[set] = NAME(take_reals)(arena, (rows + slack) * c->H);
            c->w_ih[set] = NAME(take_reals)(arena, (rows + slack) * c->I);
        }
    }
    if (a->cell == LSTM) {
        c->gates[0] = a->saved[0];
        c->cells = a->saved[1];
    } else if (a->cell != RNN) {
        c->gates[0] = a->saved[0];
        c->gates[1] = a->saved[1];
        c->hn = a->saved[2];
    }
    if (!is_backward && c->gates[0] == NULL) {
        for (int set = 0; set < c->sets; set++)
            c->gates[set] = NAME(take_reals)(arena, c->chunk * c->rows[set].gates * state);
        c->cells = NAME(take_reals)(arena, state);
        c->hn = NAME(take_reals)(arena, a->cell == GRU_RESET_AFTER ? c->chunk * state : 0);
    }
    c->h = NAME(take_reals)(arena, state);
    c->reset_h = NAME(take_reals)(arena, state);
    for (int kind = 0; kind < 3; kind++)
        c->keep[kind] = take(arena, NAME(mask)(c, kind)->keep ? state : 0);
    c->lengths = take(arena, c->lanes * sizeof(INT));
    if (!is_backward) {
        c->x = NAME(take_reals)(arena, c->chunk * c->I * c->lanes);
        c->masked_h[0] = NAME(take_reals)(arena, state);
        c->masked_h[1] = NAME(take_reals)(arena, state);
        return;
    }
    c->d_hn = a->cell == GRU_RESET_AFTER ? NAME(take_reals)(arena, c->chunk * c->gate_step[1] + TILE * PANEL) : NULL;
    c->d_h = NAME(take_reals)(arena, state);
    c->d_c = NAME(take_reals)(arena, state);
    c->d_output = NAME(take_reals)(arena, state);
    c->previous_h = NAME(take_reals)(arena, state);
    c->d_reset = NAME(take_reals)(arena, state);
    c->reset_rows = NAME(take_reals)(arena, a->cell == GRU ? c->chunk * c->B * c->H : 0);
    int64_t columns = round_up(c->I, PANEL) + round_up(c->H, PANEL) * (a->cell == GRU ? 2 : 1);
    c->columns = NAME(take_reals)(arena, c->chunk * c->B * columns);
    c->d_x = NAME(take_reals)(arena, a->d_x ? c->chunk * c->I * c->lanes : 0);
}

static int NAME(pass)(const struct arguments *a, int is_backward)
{
    struct team team = {0};
    call_t c = {.arguments = a, .team = &team, .relu = a->relu != 0, .T = a->time, .B = a->batch, .I = a->input,
                .H = a->hidden, .lanes = padded(a->batch), .threads = parallel ? a->threads : 1};
    c.sets = a->cell == LSTM || a->cell == RNN ? 1 : 2;
    c.rows[0] = (struct NAME(rows)){0, a->cell == LSTM ? 4 : a->cell == RNN ? 1 : 2};
    c.rows[1] = (struct NAME(rows)){2, 1};
    /* Chunks of about 512 rows (steps * batch), of nearly the same length. */
    int64_t longest = c.B < 512 ? 512 / c.B : 1, chunks = (c.T + longest - 1) / longest;
    c.chunk = (c.T + chunks - 1) / chunks;

    struct arena arena = {0};
    NAME(lay_out)(&c, &arena, is_backward);
    struct storage *storage = get_storage(arena.used);
    if (storage == NULL)
        return 1;
    arena = (struct arena){storage->data, 0};
    NAME(lay_out)(&c, &arena, is_backward);
    int64_t rows = (c.sets == 1 ? c.rows[0].gates : 3) * c.H;
    if (is_backward) {
        prefer_huge_pages(a->d_x, sizeof(REAL) * c.T * c.B * c.I);
        prefer_huge_pages(a->d_w_ih, sizeof(REAL) * rows * c.I);
        prefer_huge_pages(a->d_w_hh, sizeof(REAL) * rows * c.H);
    } else {
        prefer_huge_pages(a->output, sizeof(REAL) * c.T * c.B * c.H);
        for (int k = 0; k < 3; k++) /* one at least of what is saved of each row */
            prefer_huge_pages(a->saved[k], sizeof(REAL) * c.T * c.H * c.lanes * (k == 0 ? c.rows[0].gates : 1));
    }
    for (int64_t b = 0; b < c.lanes; b++)
        c.lengths[b] = b >= c.B ? 0 : a->lengths ? (INT)min(a->lengths[b], c.T) : (INT)c.T;
    if (c.threads == 1)
        NAME(join)(&c, is_backward);
    else
        parallel(is_backward ? NAME(join_backward) : NAME(join_forward), &c, (unsigned)c.threads, 0);
    give_back(storage);
    return 0;
}

static int NAME(forward)(const struct arguments *a) { return NAME(pass)(a, 0); }
static int NAME(backward)(const struct arguments *a) { return NAME(pass)(a, 1); }

/* ---- the output layer and its cross entropy ------------------------------------------------------- */

/* To the products of a call, 32 rows are the batch of a step, and the classes are the units. */
struct NAME(loss) {
    call_t call;
    const struct loss_arguments *arguments;
    REAL *logits; /* of a chunk [feature-major], then their gradients */
};

/* The chunk's rows in the two layouts that products read: feature-major, and panels of 32 columns. */
static void NAME(load_rows)(const struct NAME(loss) *l, const member_t *m, int64_t step0, int64_t steps)
{
    const call_t *c = &l->call;
    int64_t depth = steps * PANEL;
    for (int64_t s = 0; s < steps; s++) {
        int64_t row0 = (step0 + s) * PANEL, used = min(PANEL, l->arguments->rows - row0);
        const REAL *from = (const REAL *)l->arguments->x + row0 * c->I;
        REAL *to = c->x + (s * c->I + m->i0) * PANEL;
        if (used < PANEL)
            memset(to, 0, sizeof(REAL) * (m->i1 - m->i0) * PANEL);
        NAME(transpose)(to, PANEL, from + m->i0, c->I, used, m->i1 - m->i0);
        for (int64_t row = share(PANEL, m->id, m->size); row < share(PANEL, m->id + 1, m->size); row++)
            for (int64_t first = 0; first < c->I; first += PANEL) {
                REAL *column = c->columns + first * depth + (s * PANEL + row) * PANEL;
                if (row < used)
                    NAME(copy_columns)(column, from + row * c->I, first, c->I, NULL, 1);
                else
                    memset(column, 0, sizeof(REAL) * PANEL);
            }
    }
}

static void NAME(logits)(const struct NAME(loss) *l, const member_t *m, int64_t steps)
{
    const call_t *c = &l->call;
    const REAL *b = l->arguments->b;
    for (int64_t k0 = 0; k0 < c->I; k0 += DEPTH)
        for (int64_t u = m->u0; u < m->u1; u += TILE) { /* a tile serves all rows while it is in cache */
            int n = (int)min(TILE, m->u1 - u);
            const REAL *tile = NAME(tile)(&m->w_ih[0], k0, u - m->u0);
            for (int64_t s = 0; s < steps; s++) {
                REAL *to = l->logits + s * c->gate_step[0] + u * PANEL;
                if (k0 == 0 && b)
                    NAME(fill_rows)(to, b + u, n, PANEL);
                else if (k0 == 0)
                    memset(to, 0, sizeof(REAL) * n * PANEL);
                NAME(multiply_packed)(to, tile, c->x + (s * c->I + k0) * PANEL, min(DEPTH, c->I - k0), n, PANEL);
            }
        }
}

/* Of 32 rows' logits: what the loss takes of each row; then their gradients in their place. */
static void NAME(softmax)(const struct NAME(loss) *l, REAL *logits, int64_t row0)
{
    const struct loss_arguments *a = l->arguments;
    enum { BLOCK = 64 }; /* terms summed apart, so that rounding does not grow with the classes */
    int64_t used = min(PANEL, a->rows - row0), classes = a->classes;
    for (int64_t k = 0; k < used; k++)
        ((REAL *)a->of_target)[row0 + k] = logits[a->target[row0 + k] * PANEL + k];
    for (int64_t j = 0; j < used; j += LANES) {
        REAL *x = logits + j;
        vec largest = NAME(load)(x), sum = {0}, sum_of_logits = {0};
        for (int64_t u = 1; u < classes; u++) {
            vec v = NAME(load)(x + u * PANEL);
            largest = NAME(select)(v > largest, v, largest);
        }
        for (int64_t u0 = 0; u0 < classes; u0 += BLOCK) {
            vec part = {0}, part_of_logits = {0};
            for (int64_t u = u0; u < min(u0 + BLOCK, classes); u++) {
                vec v = NAME(load)(x + u * PANEL), e = NAME(exp)(v - largest);
                part_of_logits += v;
                part += e;
                NAME(store)(x + u * PANEL, e);
            }
            sum += part;
            sum_of_logits += part_of_logits;
        }
        for (int64_t k = 0; k < min(LANES, used - j); k++) {
            ((REAL *)a->largest)[row0 + j + k] = largest[k];
            ((REAL *)a->sum_of_exp)[row0 + j + k] = sum[k];
            ((REAL *)a->sum_of_logits)[row0 + j + k] = sum_of_logits[k];
        }
        vec share = NAME(splat)(a->share), factor = 1 / sum;
        for (int64_t u = 0; u < classes; u++)
            NAME(store)(x + u * PANEL, NAME(load)(x + u * PANEL) * factor - share);
    }
    for (int64_t k = 0; k < used; k++)
        logits[a->target[row0 + k] * PANEL + k] -= a->target_share;
    for (int64_t u = 0; u < classes && used < PANEL; u++)
        memset(logits + u * PANEL + used, 0, sizeof(REAL) * (PANEL - used));
}

static void NAME(loss_member)(void *data)
{
    const struct NAME(loss) *l = data;
    const call_t *c = &l->call;
    const struct loss_arguments *a = l->arguments;
    member_t m = NAME(part)(c);
    m.w_ih[0] = NAME(packed)(c->w_ih[0], m.u0, m.u1 - m.u0, m.id, c->I);
    NAME(pack)(c, &m.w_ih[0], a->w, c->rows[0], m.u0, m.u1);
    struct NAME(packed) transposed = NAME(packed)(c->w_hh[0], m.i0, m.i1 - m.i0, m.id, c->H);
    if (a->d_x)
        NAME(pack_transposed)(c, &transposed, a->w, c->rows[0], m.i0, m.i1, c->I);
    for (int64_t step0 = 0; step0 < c->T; step0 += c->chunk) {
        int64_t steps = min(c->chunk, c->T - step0), size = c->I * PANEL, d_step = c->gate_step[0];
        NAME(load_rows)(l, &m, step0, steps);
        wait_for_team(c->team, m.size);
        NAME(logits)(l, &m, steps);
        wait_for_team(c->team, m.size);
        for (int64_t s = share(steps, m.id, m.size); s < share(steps, m.id + 1, m.size); s++)
            NAME(softmax)(l, l->logits + s * d_step, (step0 + s) * PANEL);
        wait_for_team(c->team, m.size);
        if (a->d_w)
            NAME(weight_gradient)(c, &m, a->d_w, c->rows[0], l->logits, d_step, c->columns, c->I, steps, step0 == 0);
        if (a->d_b)
            NAME(bias_gradient)(c, &m, a->d_b, c->rows[0], l->logits, d_step, steps, step0 == 0);
        for (int64_t k0 = 0; a->d_x && k0 < c->H; k0 += DEPTH)
            for (int64_t s = 0; s < steps; s++)
                NAME(add_product)(c, c->d_x + s * size, c->I, m.i0, m.i1, &transposed, l->logits + s * d_step, k0,
                                  k0 == 0);
        for (int64_t s = 0; a->d_x && s < steps; s++) {
            int64_t row0 = (step0 + s) * PANEL;
            NAME(transpose)((REAL *)a->d_x + row0 * c->I + m.i0, c->I, c->d_x + s * size + m.i0 * PANEL, PANEL,
                            m.i1 - m.i0, min(PANEL, a->rows - row0));
        }
        wait_for_team(c->team, m.size);
    }
}

static void NAME(lay_out_loss)(struct NAME(loss) *l, struct arena *arena)
{
    call_t *c = &l->call;
    int64_t slack = TILE * (c->threads + 1);
    c->w_ih[0] = NAME(take_reals)(arena, (c->H + slack) * c->I);
    c->w_hh[0] = NAME(take_reals)(arena, l->arguments->d_x ? (c->I + slack) * c->H : 0);
    c->x = NAME(take_reals)(arena, c->chunk * c->I * PANEL);
    c->d_x = NAME(take_reals)(arena, c->chunk * c->I * PANEL);
    c->columns = NAME(take_reals)(arena, c->chunk * PANEL * round_up(c->I, PANEL));
    l->logits = NAME(take_reals)(arena, c->chunk * c->gate_step[0] + TILE * PANEL);
}

static int NAME(loss)(const struct loss_arguments *a)
{
    struct team team = {0};
    int64_t steps = round_up(a->rows, PANEL) / PANEL;
    int64_t longest = min(16, LOGITS / (PANEL * a->classes)); /* steps of a chunk, of nearly the same length */
    longest = longest < 8 ? 8 : longest;
    int64_t chunks = (steps + longest - 1) / longest;
    struct NAME(loss) l = {.arguments = a,
                           .call = {.team = &team, .T = steps, .B = PANEL, .I = a->features, .H = a->classes,
                                    .lanes = PANEL, .threads = parallel ? a->threads : 1, .sets = 1,
                                    .rows = {{0, 1}}, .chunk = (steps + chunks - 1) / chunks,
                                    .gate_step = {a->classes * PANEL + TILE * PANEL}}};
    struct arena arena = {0};
    NAME(lay_out_loss)(&l, &arena);
    struct storage *storage = get_storage(arena.used);
    if (storage == NULL)
        return 1;
    arena = (struct arena){storage->data, 0};
    NAME(lay_out_loss)(&l, &arena);
    if (l.call.threads == 1)
        NAME(loss_member)(&l);
    else
        parallel(NAME(loss_member), &l, (unsigned)l.call.threads, 0);
    give_back(storage);
    return 0;
}

#undef vec
#undef ivec
#undef call_t
#undef member_t
#undef FOR_PANELS
#undef LANES
#undef INLINE
#undef INT
#undef MANTISSA
#undef SIGN
#undef BIAS
#undef LARGEST
#undef LN2_HIGH
#undef LN2_LOW
#undef TERMS
#undef REAL
#undef DOUBLE
#undef NAME
