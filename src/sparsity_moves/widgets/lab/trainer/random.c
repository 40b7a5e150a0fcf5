/* mulberry32 (Tommy Ettinger's generator, public domain), one stream for each purpose of a seed: drawing more for one
   purpose never shifts another, and two arms of a seed share their attention and their data. */

#include "trainer.h"

static Stream next(Stream *state) {
    Stream z = *state += 0x6D2B79F5u;
    z = (z ^ z >> 15) * (z | 1);
    z ^= z + (z ^ z >> 7) * (z | 61);
    return z ^ z >> 14;
}

Stream stream_of(int seed, int purpose) {
    Stream state = (Stream)seed;
    state = next(&state) + (Stream)purpose;
    return next(&state);
}

double uniform(Stream *state) { return next(state) / 4294967296.0; }

int below(Stream *state, int n) { return (int)(uniform(state) * n); }

double log(double);

/* Marsaglia's polar method. */
float normal(Stream *state) {
    double x, y, square;
    do {
        x = 2 * uniform(state) - 1;
        y = 2 * uniform(state) - 1;
        square = x * x + y * y;
    } while (square >= 1 || square == 0);
    return (float)(x * __builtin_sqrt(-2 * log(square) / square));
}
