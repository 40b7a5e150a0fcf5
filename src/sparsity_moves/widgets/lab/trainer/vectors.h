/* Four floats at a time. Nothing here fuses or reorders, so every engine gives the same bits. */

#ifndef VECTORS_H
#define VECTORS_H

typedef float f4 __attribute__((vector_size(16), aligned(4)));
typedef int i4 __attribute__((vector_size(16), aligned(4)));

static inline f4 get(const float *x) { return *(const f4 *)x; }
static inline void put(float *x, f4 v) { *(f4 *)x = v; }
static inline f4 all(float x) { return (f4){x, x, x, x}; }
static inline f4 choose(i4 which, f4 yes, f4 no) { return (f4)((which & (i4)yes) | (~which & (i4)no)); }
static inline f4 clamp(f4 x, float low, float high) {
    x = choose(x < low, all(low), x);
    return choose(x > high, all(high), x);
}
static inline float sum4(f4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }

/* e^x: 2^n times a Taylor polynomial on |r| <= ln 2 / 2; within two units in the last place. */
static inline f4 exp4(f4 x) {
    x = clamp(x, -87.0f, 88.0f);
    f4 n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
    f4 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    f4 p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = (p * r) * r + r + 1.0f;
    i4 power = (__builtin_convertvector(n, i4) + 127) << 23;
    return p * (f4)power;
}

/* The normal distribution's Φ(x), and its density φ(x). 1 - erf(z) = e^(-z²) times a polynomial in 1 / (1 + 0.34 z),
   fitted to scipy.special.erfcx; within 1e-7. */
static inline f4 normal_cdf(f4 x, f4 *density) {
    static const float c[] = {5.27256630e-09f, 1.91823085e-01f, 1.91883735e-01f, 1.79736328e-01f,
                              1.67238363e-01f, 8.33718639e-02f, 2.27969017e-01f, -2.18404655e-01f,
                              3.55172485e-01f, -2.25690927e-01f, 4.69006993e-02f};
    f4 z = __builtin_elementwise_abs(x) * 0.70710678f;
    f4 t = 1.0f / (1.0f + 0.34f * z), p = all(c[10]), e = exp4(-z * z);
    for (int i = 9; i >= 0; i--) p = p * t + c[i];
    f4 tail = 0.5f * p * e;
    *density = e * 0.39894228f;
    return choose(x > 0.0f, 1.0f - tail, tail);
}

/* y += a x */
static inline void add_scaled(float *y, const float *x, float a, int n) {
    int i = 0;
    for (; i + 4 <= n; i += 4) put(y + i, get(y + i) + a * get(x + i));
    for (; i < n; i++) y[i] += a * x[i];
}

static inline float dot(const float *x, const float *y, int n) {
    f4 s = all(0);
    int i = 0;
    for (; i + 4 <= n; i += 4) s += get(x + i) * get(y + i);
    float total = sum4(s);
    for (; i < n; i++) total += x[i] * y[i];
    return total;
}

static inline void copy(float *to, const float *from, int n) { __builtin_memcpy(to, from, sizeof(float) * n); }
static inline void clear(float *x, int n) { __builtin_memset(x, 0, sizeof(float) * n); }

#endif
