/* Multi-head attention, softmax(q · k / √K) v. The model has one layer, so the stream that attention reads is a row
   of the table of (position, token): queries, keys and values are computed once a row. */

#include "trainer.h"
#include "vectors.h"

float *table, *projected, *pattern, *mixed;
int closed_heads;
static float *d_projected, *d_mixed;
static int *row; /* (B, T): each token's row of the table */


void attention_setup(int capacity) {
    int every = model.length * model.vocabulary, answers = capacity * model.read_outs, d = model.d;
    table = memory(every * d);
    projected = memory(every * 3 * d);
    d_projected = memory(every * 3 * d);
    row = memory(capacity * model.length);
    pattern = memory(answers * model.heads * model.length);
    mixed = memory(answers * d);
    d_mixed = memory(answers * d);
}

void attention_tables(void) {
    int d = model.d;
    for (int t = 0, s = 0; t < model.length; t++)
        for (int v = 0; v < model.vocabulary; v++, s++)
            for (int i = 0; i < d; i++) table[s * d + i] = P(EMBED)[v * d + i] + P(POSITION)[t * d + i];
    product(rows(projected, 3 * d), rows(table, d), rows(P(QKV), 3 * d), model.length * model.vocabulary, 3 * d, d, 0);
}

/* How many tokens the read-out sees. */
static int seen(int read_out) { return model.causal ? model.first + read_out + 1 : model.length; }

/* out (N, D): the attention's output at every read-out. */
void attention(int sequences, float *out) {
    int d = model.d, width = d / model.heads, n = sequences * model.read_outs;
    float scale = (float)(1 / __builtin_sqrt(width));
    for (int b = 0; b < sequences; b++)
        for (int t = 0; t < model.length; t++)
            row[b * model.length + t] = t * model.vocabulary + tokens[b * model.length + t];
    clear(mixed, n * d);
    for (int i = 0; i < n; i++) {
        int *at = row + i / model.read_outs * model.length, own = i % model.read_outs, many = seen(own);
        for (int h = 0; h < model.heads; h++) {
            float *weight = pattern + (i * model.heads + h) * model.length;
            float *query = projected + at[model.first + own] * 3 * d + h * width, *into = mixed + i * d + h * width;
            for (int t = 0; t < many; t++)
                weight[t] = scale * dot(query, projected + at[t] * 3 * d + d + h * width, width);
            softmax(weight, many);
            for (int t = many; t < model.length; t++) weight[t] = 0;
            if (closed_heads >> h & 1) continue;
            for (int t = 0; t < many; t++)
                add_scaled(into, projected + at[t] * 3 * d + 2 * d + h * width, weight[t], width);
        }
        copy(out + i * d, P(OUT_BIAS), d);
    }
    product(rows(out, d), rows(mixed, d), rows(P(OUT), d), n, d, d, 1);
}

/* From the gradient of the stream after attention (N, D): all gradients of attention and of the embeddings. */
void attention_backward(int sequences, float *d_out) {
    int d = model.d, width = d / model.heads, n = sequences * model.read_outs;
    int every = model.length * model.vocabulary;
    float scale = (float)(1 / __builtin_sqrt(width)), d_weight[MOST_SYMBOLS];
    product(rows(G(OUT), d), transposed(mixed, d), rows(d_out, d), d, d, n, 0);
    product(rows(d_mixed, d), rows(d_out, d), transposed(P(OUT), d), n, d, d, 0);
    clear(d_projected, every * 3 * d);
    for (int i = 0; i < n; i++) {
        add_scaled(G(OUT_BIAS), d_out + i * d, 1, d);
        int *at = row + i / model.read_outs * model.length, own = i % model.read_outs, many = seen(own);
        for (int h = 0; h < model.heads; h++) {
            float *weight = pattern + (i * model.heads + h) * model.length, *up = d_mixed + i * d + h * width;
            int asks = at[model.first + own] * 3 * d + h * width;
            float mean = 0;
            for (int t = 0; t < many; t++) {
                int value = at[t] * 3 * d + 2 * d + h * width;
                d_weight[t] = dot(up, projected + value, width);
                mean += weight[t] * d_weight[t];
                add_scaled(d_projected + value, up, weight[t], width);
            }
            for (int t = 0; t < many; t++) {
                int key = at[t] * 3 * d + d + h * width;
                float d_score = scale * weight[t] * (d_weight[t] - mean);
                add_scaled(d_projected + asks, projected + key, d_score, width);
                add_scaled(d_projected + key, projected + asks, d_score, width);
            }
        }
    }
    product(rows(G(QKV), 3 * d), transposed(table, d), rows(d_projected, 3 * d), d, 3 * d, every, 0);
    /* `projected` is read no more: the gradient of the table takes its place. */
    float *d_table = projected;
    product(rows(d_table, d), rows(d_projected, 3 * d), transposed(P(QKV), 3 * d), every, d, 3 * d, 0);
    for (int i = 0; i < n; i++) {
        int asks = row[i / model.read_outs * model.length + model.first + i % model.read_outs];
        add_scaled(d_table + asks * d, d_out + i * d, 1, d);
    }
    for (int t = 0, s = 0; t < model.length; t++)
        for (int v = 0; v < model.vocabulary; v++, s++) {
            add_scaled(G(EMBED) + v * d, d_table + s * d, 1, d);
            add_scaled(G(POSITION) + t * d, d_table + s * d, 1, d);
        }
}
