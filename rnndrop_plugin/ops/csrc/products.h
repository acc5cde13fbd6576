/* Matrix products in tiles that stay in registers. */

#define DEPTH 512 /* terms that are summed before the next tile, if several tiles read the same part of a factor */
#define AHEAD 128 /* terms to prefetch ahead: the first of these tiles reads from far, e.g. the weights of many units */

/* c[row][column] += sum over k of a[k][row] * b[k][column], for `vectors` vectors of columns; the sum begins at
 * start[column] if that is given. A run of `a_run` terms of a has its elements at a + row * a_row + k * a_step. */
INLINE void multiply_tile(REAL *restrict c, int64_t c_block, const REAL *restrict start, const REAL *restrict a,
                          int64_t a_block, const REAL *restrict b, int64_t b_block, int64_t depth, const int rows,
                          const int vectors, const int a_row, const int a_step, const int64_t a_run)
{
    vec sum[MOST_ROWS][4], column[4];
#define PLACE(v, block) ((v) / PARTS * (block) + (v) % PARTS * LANES)
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sum[r][v] = load(start ? start + v * LANES : c + r * BLOCK + PLACE(v, c_block));
    for (int64_t left = depth; left > 0; left -= a_run, a += a_block) {
        const REAL *ak = a;
        for (int64_t k = MIN(left, a_run); k > 0; k--, ak += a_step, b += BLOCK) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                column[v] = load(b + PLACE(v, b_block));
            if (a_row == BLOCK && vectors == 2)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v += 64 / VECTOR_BYTES)
                    __builtin_prefetch(b + PLACE(v, b_block) + AHEAD * BLOCK);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                REAL factor = ak[r * a_row];
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    sum[r][v] += factor * column[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            store(c + r * BLOCK + PLACE(v, c_block), sum[r][v]);
#undef PLACE
}

/* Multiply a tile of up to MOST_ROWS rows of a matrix, or half as many if it is 4 vectors wide, by a matrix. */
#define ARGUMENTS                                                                                                  \
    REAL *c, int64_t c_block, const REAL *start, const REAL *a, int64_t a_block, const REAL *b, int64_t b_block, \
        int64_t depth
#define ROWS(rows, vectors)                                                                                        \
    case rows:                                                                                                     \
        multiply_tile(c, c_block, start, a, a_block, b, b_block, depth, rows, vectors, BLOCK, 1, BLOCK);         \
        break;

static void multiply_rows_4(ARGUMENTS, int rows)
{
    switch (rows) {
        ROWS(1, 4) ROWS(2, 4) ROWS(3, 4)
#if MOST_ROWS == 12
        ROWS(4, 4) ROWS(5, 4) ROWS(6, 4)
#endif
    }
}

static void multiply_rows_2(ARGUMENTS, int rows)
{
    switch (rows) {
        ROWS(1, 2) ROWS(2, 2) ROWS(3, 2) ROWS(4, 2) ROWS(5, 2) ROWS(6, 2)
#if MOST_ROWS == 12
        ROWS(7, 2) ROWS(8, 2) ROWS(9, 2) ROWS(10, 2) ROWS(11, 2) ROWS(12, 2)
#endif
    }
}

static void multiply_rows_1(ARGUMENTS, int rows)
{
    switch (rows) {
        ROWS(1, 1) ROWS(2, 1) ROWS(3, 1) ROWS(4, 1) ROWS(5, 1) ROWS(6, 1)
#if MOST_ROWS == 12
        ROWS(7, 1) ROWS(8, 1) ROWS(9, 1) ROWS(10, 1) ROWS(11, 1) ROWS(12, 1)
#endif
    }
}
#undef ROWS
#undef ARGUMENTS

/* Add a b to the blocks [first, last) of c, where the `depth` features of a are the rows of b. If `start` is given, a
 * number for each feature of c, set them to start + a b instead. Rows are cut into tiles of nearly the same height. */
static void multiply(struct matrix c, const REAL *start, struct matrix a, struct matrix b, int64_t rows, int64_t depth,
                     int64_t first, int64_t last)
{
    int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS, step = tiles == 1 ? depth : DEPTH;
    int64_t widest = rows <= MOST_ROWS / 2 ? 4 : 2, vectors;
    for (int64_t k = 0; k < depth; k += step)
        for (int64_t v = first * PARTS; v < last * PARTS; v += vectors) {
            int64_t left = last * PARTS - v, block = v / PARTS, place = v % PARTS * LANES, n = MIN(step, depth - k);
            vectors = left >= widest ? widest : left >= 2 ? 2 : 1;
            for (int64_t tile = 0; tile < tiles; tile++) {
                int64_t row = share(rows, tile, tiles);
                int height = (int)(share(rows, tile + 1, tiles) - row);
                REAL *to = at(c, block, row) + place;
                const REAL *from = start && k == 0 ? start + v * LANES : NULL, *factor = at(a, k / BLOCK, row);
                const REAL *other = at(b, block, k) + place;
                (vectors == 4 ? multiply_rows_4 : vectors == 2 ? multiply_rows_2 : multiply_rows_1)(
                    to, c.stride, from, factor, a.stride, other, b.stride, n, height);
            }
        }
}

/* c[16][columns] += the product of the transpose of a block of a with blocks of b, over `depth` rows of both. */
static void multiply_transposed(REAL *c, const REAL *a, const REAL *b, int64_t b_block, int64_t depth, int64_t blocks)
{
    for (int r = 0; r < BLOCK; r += TRANSPOSED_ROWS) {
        int64_t v = 0;
        for (; v + 2 <= blocks * PARTS; v += 2)
            multiply_tile(c + r * BLOCK + v / PARTS * BLOCK * BLOCK + v % PARTS * LANES, BLOCK * BLOCK, NULL, a + r, 0,
                          b + v / PARTS * b_block + v % PARTS * LANES, b_block, depth, TRANSPOSED_ROWS, 2, 1, BLOCK,
                          INT64_MAX);
        for (; v < blocks * PARTS; v++)
            multiply_tile(c + r * BLOCK + v * BLOCK * BLOCK, BLOCK * BLOCK, NULL, a + r, 0, b + v * b_block, b_block,
                          depth, TRANSPOSED_ROWS, 1, 1, BLOCK, INT64_MAX);
    }
}
