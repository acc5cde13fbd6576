/* Vectors of REAL, and the elementary functions on them. */

#define INLINE static inline __attribute__((always_inline))
#ifdef DOUBLE
#define LANES (VECTOR_BYTES / 8)
#define INT int64_t
#define SIGN INT64_MIN
#define MANTISSA 52
#define BIAS 1023
#define LARGEST 708.0
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define TERMS 13
#else
#define LANES (VECTOR_BYTES / 4)
#define INT int32_t
#define SIGN INT32_MIN
#define MANTISSA 23
#define BIAS 127
#define LARGEST 87.0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define TERMS 7
#endif

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef INT ivec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL vec_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef uint8_t bytes_anywhere __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL)), aligned(1), may_alias));

INLINE vec splat(REAL x) { return x - (vec){0}; }

/* The address may be any: tensors need not be aligned as vectors are. */
INLINE vec load(const REAL *x) { return *(const vec_anywhere *)x; }
INLINE void store(REAL *x, vec v) { *(vec_anywhere *)x = v; }
/* 1 where a byte is not 0, as torch reads a bool: a view of other bytes as bool may hold any. */
INLINE vec load_bools(const uint8_t *x)
{
    bytes_anywhere bytes = *(const bytes_anywhere *)x;
    return __builtin_convertvector((bytes_anywhere)(bytes != 0) & 1, vec);
}

INLINE vec choose(ivec condition, vec yes, vec no) { return (vec)((condition & (ivec)yes) | (~condition & (ivec)no)); }

/* exp(x) = scale * (1 + p), for |x| <= LARGEST; the Taylor series is exact to rounding for |r| <= ln(2) / 2. */
INLINE vec exp_parts(vec x, vec *scale)
{
    static const REAL inverse_factorials[] = {1.0 / 1,         1.0 / 2,          1.0 / 6,           1.0 / 24,
                                              1.0 / 120,       1.0 / 720,        1.0 / 5040,        1.0 / 40320,
                                              1.0 / 362880,    1.0 / 3628800,    1.0 / 39916800,    1.0 / 479001600,
                                              1.0 / 6227020800};
    const vec magic = splat((REAL)1.5 * (REAL)((INT)1 << MANTISSA)); /* adding it rounds to an integer */
    vec shifted = x * (REAL)1.4426950408889634 + magic;
    vec n = shifted - magic;
    vec r = x - n * (REAL)LN2_HIGH;
    r = r - n * (REAL)LN2_LOW;
    vec p = splat(inverse_factorials[TERMS - 1]);
#pragma GCC unroll 16
    for (int k = TERMS - 2; k >= 0; k--)
        p = p * r + inverse_factorials[k];
    *scale = (vec)(((ivec)shifted - (ivec)magic + BIAS) << MANTISSA);
    return p * r;
}

/* exp(x) for x <= 0, but at least exp(-LARGEST), which is a normal number. */
INLINE vec exp_negative(vec x)
{
    vec scale, p = exp_parts(choose(x < -LARGEST, splat(-LARGEST), x), &scale);
    return scale + scale * p;
}

INLINE vec sigmoid(vec x)
{
    vec scale;
    x = choose(x < -LARGEST, splat(-LARGEST), x);
    x = choose(x > LARGEST, splat(LARGEST), x);
    vec p = exp_parts(-x, &scale);
    return 1 / (1 + (scale + scale * p));
}

/* tanh(|x|) = -e / (2 + e) with e = exp(-2 |x|) - 1, which loses nothing near 0. */
INLINE vec hyperbolic_tangent(vec x)
{
    vec scale;
    ivec sign = (ivec)x & SIGN;
    vec y = (vec)((ivec)x ^ sign) * -2;
    y = choose(y < -LARGEST, splat(-LARGEST), y);
    vec p = exp_parts(y, &scale);
    vec e = scale * p + (scale - 1);
    return (vec)((ivec)(-e / (2 + e)) ^ sign);
}

/* The nonlinearity of a candidate. */
INLINE vec phi(vec x, int relu) { return relu ? choose(x < 0, splat(0), x) : hyperbolic_tangent(x); }

/* The derivative of phi where its value is y. */
INLINE vec phi_slope(vec y, int relu)
{
    if (relu)
        return choose(y > 0, splat(1), splat(0));
    return 1 - y * y;
}
