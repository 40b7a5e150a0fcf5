#include "trainer.h"
#include "vectors.h"

double log(double);

float softmax(float *x, int n) {
    float most = x[0];
    for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    f4 sum = all(0);
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        f4 e = exp4(get(x + i) - most);
        put(x + i, e);
        sum += e;
    }
    float total = sum4(sum);
    for (; i < n; i++) {
        x[i] = exp4(all(x[i] - most))[0];
        total += x[i];
    }
    for (i = 0; i < n; i++) x[i] /= total;
    return most + (float)log(total);
}
