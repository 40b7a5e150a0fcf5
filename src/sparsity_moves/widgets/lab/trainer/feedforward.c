/* One equation for every FFN (`sparsity_moves.model.feedforward`):

       h = φ(x W_in + b_in) [⊙ x W_up]        hidden units, in blocks: one block an expert
       g = route(x)                           one gate a block: all ones (dense), the top k (MoE), a path (tree)
       y = (g ⊙ h) W_out + g · b_out

   Only the blocks whose gate is open are computed: tokens are sorted by expert, and each expert is a dense layer
   over its own. With one expert nothing is sorted. */

#include "trainer.h"
#include "vectors.h"

float *hidden, *probability;
int *chosen, *load, *whole_load, *hash, closed_experts;
float *y_open;                          /* (N k, D): each open expert's output */
float *gate;                            /* (N, k) */
int *order, *start;                     /* assignments sorted by expert; where each expert's rows begin */
static float *x_open;                   /* (N k, D): each open expert's input */
static float *active, *slope, *up;      /* (N k, W / E): φ, φ', x W_up */
static float *d_hidden;                 /* (N k, W / E) */
static float *sum, *sum_slope;          /* (N, D), where trees have their φ after the sum */
static float *d_gate;                   /* (N, k) */
static float *d_probability;            /* (N, E) */
static int *unit;                       /* where each expert's units begin */

void feedforward_setup(int capacity) {
    int n = capacity * model.read_outs, open = n * model.top_k;
    int units = open * (model.width / model.experts) + 4 * model.experts;
    hidden = memory(units);
    active = memory(units);
    slope = memory(units);
    up = memory(model.gated ? units : 0);
    d_hidden = memory(units);
    probability = memory(n * model.experts);
    d_probability = memory(n * model.experts);
    gate = memory(open);
    d_gate = memory(open);
    chosen = memory(open);
    order = memory(open);
    load = memory(model.blocks);
    whole_load = memory(model.experts);
    sum = memory(model.after_sum ? n * model.d : 0);
    sum_slope = memory(model.after_sum ? n * model.d : 0);
    start = memory(model.experts);
    unit = memory(model.experts);
    hash = memory(model.vocabulary);
    int apart = model.experts > 1 ? open * model.d : 0;
    x_open = memory(apart);
    y_open = memory(apart);
}

/* φ and φ' of a, for so many units. */
static void activate(int kind, const float *a, float *value, float *derivative, int many) {
    for (int i = 0; i < many; i += 4) {
        f4 x = get(a + i), density, cdf;
        switch (kind) {
        case RELU:
            put(value + i, choose(x > 0.0f, x, all(0)));
            put(derivative + i, choose(x > 0.0f, all(1), all(0)));
            break;
        case GELU:
            cdf = normal_cdf(x, &density);
            put(value + i, x * cdf);
            put(derivative + i, cdf + x * density);
            break;
        case SILU:
            cdf = 1.0f / (1.0f + exp4(-x));
            put(value + i, x * cdf);
            put(derivative + i, cdf * (1.0f + x * (1.0f - cdf)));
            break;
        default:
            put(value + i, x);
            put(derivative + i, all(1));
        }
    }
}

/* Every token's k experts and their gates. With k = 1 a renormalised gate is exactly 1, and has no gradient. */
static void route(int n, float *x) {
    int experts = model.experts, k = model.top_k;
    for (int e = 0; e < experts; e++) load[e] = 0;
    if (model.router != HASH)
        product(rows(probability, experts), rows(x, model.d), rows(P(ROUTER), experts), n, experts, model.d, 0);
    for (int i = 0; i < n; i++) {
        float *p = probability + i * experts, whole = 0;
        unsigned taken = 0;
        if (model.router != HASH) softmax(p, experts);
        for (int s = 0; s < k; s++) {
            int best = -1;
            if (model.router == HASH) {
                int at = i / model.read_outs * model.length + model.first + i % model.read_outs;
                best = hash[tokens[at]];
            } else
                for (int e = 0; e < experts; e++)
                    if (!(taken >> e & 1) && (best < 0 || p[e] > p[best])) best = e;
            taken |= 1u << best;
            chosen[i * k + s] = best;
            load[best]++;
            whole += gate[i * k + s] = model.router == HASH ? 1 : p[best];
        }
        for (int s = 0; model.gate == RENORMALISED && s < k; s++)
            gate[i * k + s] = k == 1 ? 1 : gate[i * k + s] / whole;
    }
    if (rerouted) reroute(n);
    for (int a = 0; a < n * k; a++)
        if (closed_experts >> chosen[a] & 1) gate[a] = 0;
    int next[32], row = 0, at = 0, block = model.width / experts;
    for (int e = 0; e < experts; e++) {
        next[e] = start[e] = row;
        unit[e] = at; /* whole vectors, so that no expert's last one reaches into the next */
        row += load[e];
        at += (load[e] * block + 3) & ~3;
    }
    for (int a = 0; a < n * k; a++) order[next[chosen[a]]++] = a;
}

/* One expert as a dense layer: y (m, D) += h W_out + b_out over its own m tokens. */
static void expert(int e, int m, float *x, float *y) {
    int block = model.width / model.experts, d = model.d, column = e * block, at = unit[e];
    Matrix w_in = {P(W_IN) + column, model.width, 1}, h = rows(hidden + at, block);
    for (int i = 0; i < m; i++)
        if (size[B_IN])
            copy(hidden + at + i * block, P(B_IN) + column, block);
        else
            clear(hidden + at + i * block, block);
    product(h, rows(x, d), w_in, m, block, d, 1);
    activate(model.after_sum ? LINEAR : model.activation, hidden + at, active + at, slope + at, m * block);
    if (model.router == TREE) keep_paths(m, hidden, active, slope);
    copy(hidden + at, active + at, m * block);
    if (model.gated) {
        product(rows(up + at, block), rows(x, d), (Matrix){P(W_UP) + column, model.width, 1}, m, block, d, 0);
        for (int i = 0; i < m * block; i++) hidden[at + i] *= up[at + i];
    }
    if (size[B_OUT])
        for (int i = 0; i < m; i++) add_scaled(y + i * d, P(B_OUT) + e * d, 1, d);
    product(rows(model.after_sum ? sum : y, d), h, rows(P(W_OUT) + column * d, d), m, d, block, !model.after_sum);
    if (model.after_sum) {
        activate(model.activation, sum, sum, sum_slope, m * d);
        add_scaled(y, sum, 1, m * d);
    }
}

/* y (N, D) += FFN(x). */
void feedforward(int n, float *x, float *y) {
    int d = model.d, k = model.top_k;
    if (model.experts == 1) {
        if (model.router != TREE) load[0] = n;
        if (!(closed_experts & 1)) expert(0, n, x, y);
        return;
    }
    route(n, x);
    clear(y_open, n * k * d);
    for (int r = 0; r < n * k; r++) copy(x_open + r * d, x + order[r] / k * d, d);
    for (int e = 0; e < model.experts; e++)
        if (load[e]) expert(e, load[e], x_open + start[e] * d, y_open + start[e] * d);
    for (int r = 0; r < n * k; r++) add_scaled(y + order[r] / k * d, y_open + r * d, gate[order[r]], d);
}

/* d_x (m, D) = or, with `add`, += the gradient through one expert. */
static void expert_backward(int e, int m, float *x, float *d_y, float *d_x, int add) {
    int block = model.width / model.experts, d = model.d, column = e * block, at = unit[e], many = m * block;
    Matrix h = transposed(hidden + at, block), d_h = rows(d_hidden + at, block);
    if (size[B_OUT])
        for (int i = 0; i < m; i++) add_scaled(G(B_OUT) + e * d, d_y + i * d, 1, d);
    product(rows(G(W_OUT) + column * d, d), h, rows(d_y, d), block, d, m, 0);
    product(d_h, rows(d_y, d), transposed(P(W_OUT) + column * d, d), m, block, d, 0);
    float *d_a = slope + at; /* each slope is read once, and then holds the gradient before φ */
    if (model.gated) {
        float *d_up = active + at;
        for (int i = 0; i < many; i += 4) {
            f4 g = get(d_hidden + at + i);
            put(d_a + i, g * get(up + at + i) * get(d_a + i));
            put(d_up + i, g * get(active + at + i));
        }
        product((Matrix){G(W_UP) + column, model.width, 1}, transposed(x, d), rows(d_up, block), d, block, m, 0);
    } else
        for (int i = 0; i < many; i += 4) put(d_a + i, get(d_hidden + at + i) * get(d_a + i));
    if (size[B_IN])
        for (int i = 0; i < m; i++) add_scaled(G(B_IN) + column, d_a + i * block, 1, block);
    product((Matrix){G(W_IN) + column, model.width, 1}, transposed(x, d), rows(d_a, block), d, block, m, 0);
    product(rows(d_x, d), rows(d_a, block), (Matrix){P(W_IN) + column, 1, model.width}, m, d, block, add);
    if (model.gated)
        product(rows(d_x, d), rows(active + at, block), (Matrix){P(W_UP) + column, 1, model.width}, m, d, block, 1);
}

/* The gradient of the gates, and of the balance loss, reaches the router and, through its scores, the stream. */
static void router_backward(int n, int every, float *x, float *d_x, float balance_weight) {
    int experts = model.experts, k = model.top_k;
    for (int i = 0; i < n; i++) {
        float *p = probability + i * experts, *d_p = d_probability + i * experts, mean = 0;
        for (int e = 0; e < experts; e++)
            d_p[e] = balance_weight * experts * whole_load[e] / ((float)every * k) / every;
        if (model.gate == SWITCH)
            for (int s = 0; s < k; s++) d_p[chosen[i * k + s]] += d_gate[i * k + s];
        else if (k > 1) { /* g = p / Σp, so dp = (dg - Σ g dg) / Σp */
            float *g = gate + i * k, *d_g = d_gate + i * k, whole = 0, spread = 0;
            for (int s = 0; s < k; s++) {
                whole += p[chosen[i * k + s]];
                spread += g[s] * d_g[s];
            }
            for (int s = 0; s < k; s++) d_p[chosen[i * k + s]] += (d_g[s] - spread) / whole;
        }
        for (int e = 0; e < experts; e++) mean += p[e] * d_p[e];
        for (int e = 0; e < experts; e++) d_p[e] = p[e] * (d_p[e] - mean);
    }
    product(rows(G(ROUTER), experts), transposed(x, model.d), rows(d_probability, experts), model.d, experts, n, 0);
    product(rows(d_x, model.d), rows(d_probability, experts), transposed(P(ROUTER), experts), n, model.d, experts, 1);
    if (model.router == FROZEN) clear(G(ROUTER), size[ROUTER]);
}

/* d_x (N, D) += the gradient through the FFN, from d_y; x is what `feedforward` was given last. The balance loss is
   a mean over `every` token that `whole_load` counts: these, or these and the other half's. */
void feedforward_backward(int n, int every, float *x, float *d_y, float *d_x, float balance_weight) {
    int d = model.d, k = model.top_k;
    if (model.experts == 1) {
        for (int i = 0; model.after_sum && i < n * d; i++) sum[i] = d_y[i] * sum_slope[i];
        expert_backward(0, n, x, model.after_sum ? sum : d_y, d_x, 1);
        return;
    }
    float *d_open = y_open; /* a row's output is read once, and then its gradient takes its place */
    for (int r = 0; r < n * k; r++) {
        int a = order[r];
        float *given = d_y + a / k * d;
        d_gate[a] = dot(y_open + r * d, given, d);
        for (int i = 0; i < d; i++) d_open[r * d + i] = gate[a] * given[i];
    }
    for (int e = 0; e < model.experts; e++) {
        float *mine = d_open + start[e] * d;
        /* An expert's input is no longer needed once its weights have their gradient: d_x takes its place. */
        if (load[e]) expert_backward(e, load[e], x_open + start[e] * d, mine, x_open + start[e] * d, 0);
    }
    for (int r = 0; r < n * k; r++) add_scaled(d_x + order[r] / k * d, x_open + r * d, 1, d);
    if (model.router != HASH) router_backward(n, every, x, d_x, balance_weight);
}

/* into (C, W) += what W_out reads of every token, g ⊙ h (0 where a gate is closed), in the row of its answer. */
void collect_units(int n, const int *answer, float *into) {
    int block = model.width / model.experts;
    for (int e = 0, r = 0; e < model.experts; e++)
        for (int i = 0; i < (model.experts > 1 ? load[e] : n); i++, r++) {
            int a = model.experts > 1 ? order[r] : r;
            float g = model.experts > 1 ? gate[a] : 1, *row = into + answer[a / model.top_k] * model.width + e * block;
            add_scaled(row, hidden + unit[e] + i * block, g, block);
        }
}
