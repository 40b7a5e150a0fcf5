/* Matrix products. Both factors are copied into panels that the inner loop reads from end to end; it keeps a tile of
   4 x 8 of the result in registers. Sums run along `inner` in one order, whatever the sizes. */

#include "trainer.h"
#include "vectors.h"

enum { DEEP = 256, TALL = 128 }; /* a panel's extent: along `inner`, and rows of A */

static float *panel_a, *panel_b;

void product_setup(int widest) {
    panel_a = memory((TALL + 4) * DEEP);
    panel_b = memory((widest + 8) * DEEP);
}

static void pack_a(Matrix a, int m, int inner) {
    for (int i = 0; i < m; i += 4) {
        float *to = panel_a + i * inner, *from = a.at + i * a.row;
        int height = m - i < 4 ? m - i : 4;
        if (height == 4 && a.row == 1)
            for (int p = 0; p < inner; p++) put(to + 4 * p, get(from + p * a.column));
        else if (height == 4)
            for (int p = 0; p < inner; p++)
                for (int r = 0; r < 4; r++) to[4 * p + r] = from[r * a.row + p * a.column];
        else
            for (int p = 0; p < inner; p++)
                for (int r = 0; r < 4; r++) to[4 * p + r] = r < height ? from[r * a.row + p * a.column] : 0;
    }
}

static void pack_b(Matrix b, int n, int inner) {
    for (int j = 0; j < n; j += 8) {
        float *to = panel_b + j * inner, *from = b.at + j * b.column;
        int width = n - j < 8 ? n - j : 8;
        if (width == 8 && b.column == 1)
            for (int p = 0; p < inner; p++) {
                put(to + 8 * p, get(from + p * b.row));
                put(to + 8 * p + 4, get(from + p * b.row + 4));
            }
        else
            for (int p = 0; p < inner; p++)
                for (int c = 0; c < 8; c++) to[8 * p + c] = c < width ? from[p * b.row + c * b.column] : 0;
    }
}

static void tile(const float *a, const float *b, int inner, float *c, int row, int height, int width, int add) {
    f4 s00 = all(0), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00;
    for (int p = 0; p < inner; p++, a += 4, b += 8) {
        f4 b0 = get(b), b1 = get(b + 4);
        s00 += a[0] * b0, s01 += a[0] * b1;
        s10 += a[1] * b0, s11 += a[1] * b1;
        s20 += a[2] * b0, s21 += a[2] * b1;
        s30 += a[3] * b0, s31 += a[3] * b1;
    }
    f4 s[4][2] = {{s00, s01}, {s10, s11}, {s20, s21}, {s30, s31}};
    for (int i = 0; i < height; i++)
        for (int h = 0; h < 2; h++) {
            float *to = c + i * row + 4 * h;
            if (width == 8)
                put(to, add ? get(to) + s[i][h] : s[i][h]);
            else
                for (int j = 0; j < 4 && 4 * h + j < width; j++) to[j] = add ? to[j] + s[i][h][j] : s[i][h][j];
        }
}

void product(Matrix c, Matrix a, Matrix b, int m, int n, int inner, int add) {
    for (int p = 0; p < inner; p += DEEP, add = 1) {
        int deep = inner - p < DEEP ? inner - p : DEEP;
        pack_b((Matrix){b.at + p * b.row, b.row, b.column}, n, deep);
        for (int top = 0; top < m; top += TALL) {
            int tall = m - top < TALL ? m - top : TALL;
            pack_a((Matrix){a.at + top * a.row + p * a.column, a.row, a.column}, tall, deep);
            for (int j = 0; j < n; j += 8)
                for (int i = 0; i < tall; i += 4)
                    tile(panel_a + i * deep, panel_b + j * deep, deep, c.at + (top + i) * c.row + j, c.row,
                         tall - i < 4 ? tall - i : 4, n - j < 8 ? n - j : 8, add);
        }
    }
}
