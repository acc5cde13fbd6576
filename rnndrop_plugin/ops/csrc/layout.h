/* Matrices as the products read them, and conversions from and to torch's layout.
 *
 * Features are the vector dimension. A matrix of rows and features is cut into blocks of 16 features: [block][row]
 * [feature], the last block filled up with zeros. A matrix over time has the rows of all steps, example b of step t in
 * row t * batch + b, so a batch of any size needs no rows but its own.
 *
 * The gates of a cell are the features of one matrix, ordered by block of units, then gate, so that a thread has all
 * gates of its units.
 */

#define BLOCK 16
#define PARTS (BLOCK / LANES) /* vectors of a block */
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

struct matrix {
    REAL *data;
    int64_t stride; /* elements from one block of features to the next */
};

INLINE int64_t blocks_of(int64_t features) { return (features + BLOCK - 1) / BLOCK; }

/* An odd number of rows, so that the same place in different blocks does not fall into the same cache set. */
INLINE int64_t stride_of(int64_t rows) { return (rows | 1) * BLOCK; }

INLINE REAL *at(struct matrix m, int64_t block, int64_t row) { return m.data + block * m.stride + row * BLOCK; }

/* The matrix that begins at a later row. */
INLINE struct matrix from_row(struct matrix m, int64_t row) { return (struct matrix){at(m, 0, row), m.stride}; }

/* The first of the `n` items that are in the share of member `index`. */
INLINE int64_t share(int64_t n, int64_t index, int64_t size) { return n * index / size; }

/* Copy the first n numbers, at most a block; the rest of the block becomes zero. */
INLINE void copy_in(REAL *to, const REAL *from, int64_t n)
{
    if (n >= BLOCK)
        memcpy(to, from, BLOCK * sizeof(REAL));
    else
        for (int k = 0; k < BLOCK; k++)
            to[k] = k < n ? from[k] : 0;
}

INLINE void copy_out(REAL *to, const REAL *from, int64_t n)
{
    if (n >= BLOCK)
        memcpy(to, from, BLOCK * sizeof(REAL));
    else
        memcpy(to, from, n * sizeof(REAL));
}

/* A block of a row in torch's layout; if it is not a full one, a copy in `room` that is filled up with zeros. */
INLINE const REAL *whole_block(const REAL *row, int64_t block, int64_t features, REAL *room)
{
    if ((block + 1) * BLOCK <= features)
        return row + block * BLOCK;
    copy_in(room, row + block * BLOCK, features - block * BLOCK);
    return room;
}

/* Copy the blocks [first, last) of rows in torch's layout. */
static void to_blocks(struct matrix to, const REAL *from, int64_t rows, int64_t features, int64_t first, int64_t last)
{
    for (int64_t block = first; block < last; block++)
        for (int64_t row = 0; row < rows; row++)
            copy_in(at(to, block, row), from + row * features + block * BLOCK, features - block * BLOCK);
}

static void from_blocks(REAL *to, struct matrix from, int64_t rows, int64_t features, int64_t first, int64_t last)
{
    for (int64_t block = first; block < last; block++)
        for (int64_t row = 0; row < rows; row++)
            copy_out(to + row * features + block * BLOCK, at(from, block, row), features - block * BLOCK);
}

/* The elements with these numbers of two vectors in a row. Clang has only __builtin_shufflevector, gcc before 12 only
 * __builtin_shuffle. */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* The elements of the lower or upper halves of a and b in turn. */
INLINE vec interleave(vec a, vec b, int upper)
{
#if LANES == 2
    return upper ? SHUFFLE(a, b, 1, 3) : SHUFFLE(a, b, 0, 2);
#elif LANES == 4
    return upper ? SHUFFLE(a, b, 2, 6, 3, 7) : SHUFFLE(a, b, 0, 4, 1, 5);
#elif LANES == 8
    return upper ? SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15) : SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return upper ? SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                 : SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#endif
}

/* to[column][row] = from[row][column] for 16 x 16 numbers: interleave the halves log2(LANES) times. */
static void transpose_block(REAL *to, const REAL *const *from)
{
    for (int i = 0; i < BLOCK; i += LANES)
        for (int j = 0; j < BLOCK; j += LANES) {
            vec x[LANES], y[LANES];
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++)
                x[k] = load(from[i + k] + j);
#pragma GCC unroll 4
            for (int round = LANES; round > 1; round /= 2) {
#pragma GCC unroll 8
                for (int k = 0; k < LANES / 2; k++) {
                    y[2 * k] = interleave(x[k], x[k + LANES / 2], 0);
                    y[2 * k + 1] = interleave(x[k], x[k + LANES / 2], 1);
                }
#pragma GCC unroll 16
                for (int k = 0; k < LANES; k++)
                    x[k] = y[k];
            }
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++)
                store(to + (j + k) * BLOCK + i, x[k]);
        }
}

/* The rows of a weight matrix that one product reads: `count` gates of each unit, from gate `first` on. */
struct gates {
    int first, count;
};

/* The first row of the weight matrix (gates * hidden, features) for a block of gate features. */
INLINE int64_t first_row(struct gates gates, int64_t block, int64_t hidden)
{
    return (gates.first + block % gates.count) * hidden + block / gates.count * BLOCK;
}

/* Pack W^T for products x W^T: a row for each column of w, and the blocks [first, last) of gate features. */
static void pack_transposed(struct matrix to, const REAL *w, struct gates gates, int64_t hidden, int64_t columns,
                            int64_t first, int64_t last)
{
    static const REAL zeros[BLOCK];
    REAL room[BLOCK][BLOCK], transposed[BLOCK * BLOCK];
    for (int64_t block = first; block < last; block++) {
        const REAL *from = w + first_row(gates, block, hidden) * columns;
        int64_t rows = MIN(BLOCK, hidden - block / gates.count * BLOCK);
        for (int64_t j = 0; j < columns; j += BLOCK) {
            const REAL *row[BLOCK];
            int64_t used = MIN(BLOCK, columns - j);
            for (int r = 0; r < BLOCK; r++) {
                row[r] = r >= rows ? zeros : from + r * columns + j;
                if (r < rows && used < BLOCK) {
                    copy_in(room[r], row[r], used);
                    row[r] = room[r];
                }
            }
            if (used == BLOCK) {
                transpose_block(at(to, block, j), row);
            } else {
                transpose_block(transposed, row);
                memcpy(at(to, block, j), transposed, used * BLOCK * sizeof(REAL));
            }
        }
    }
}

/* Pack W for products d W of the gates' gradients: a row for each gate feature, and the blocks [first, last) of w's
 * columns. */
static void pack(struct matrix to, const REAL *w, struct gates gates, int64_t hidden, int64_t columns, int64_t first,
                 int64_t last)
{
    for (int64_t block = 0; block < gates.count * blocks_of(hidden); block++) {
        const REAL *from = w + first_row(gates, block, hidden) * columns;
        int64_t rows = MIN(BLOCK, hidden - block / gates.count * BLOCK);
        struct matrix part = from_row(to, block * BLOCK);
        to_blocks(part, from, rows, columns, first, last);
        for (int64_t j = first; j < last && rows < BLOCK; j++)
            memset(at(part, j, rows), 0, (BLOCK - rows) * BLOCK * sizeof(REAL));
    }
}
