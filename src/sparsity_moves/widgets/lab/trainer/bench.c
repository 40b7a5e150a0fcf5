/* A trained model taken apart: parts of it replaced by constants, and its router overruled.

   A part is the heads' mixtures, the attention's output, the FFN's output, or one expert's share of it (0 where the
   expert is closed). What stands in for a part is one vector a read-out, the same for every input: zeros, the part's
   mean over inputs, or what it was for another input. They lie one after the other, R rows of D each. */

#include "trainer.h"
#include "vectors.h"

enum { MIXTURES, ATTENTION, FFN, EXPERTS }; /* expert e is part EXPERTS + e */
enum { AS_TRAINED, RANDOM, NEXT, ONE };
enum { REROUTED = 60 }; /* purpose of a random stream */

static float *instead;              /* (3 + E, R, D) */
static double *seen;                /* (3 + E, R, D): sums over the sequences of the last run */
static float *attended, *processed; /* (N, D): the outputs of attention and of the FFN */
static int *right, exact;           /* (R): right answers at each read-out; sequences with all scored ones right */
static int components_out, heads_out, experts_out, sent_to;
int rerouted;

/* Room for runs of so many sequences, after `setup` of the same model. Gives the numbers in `replacements`. */
PUBLIC int bench_setup(int capacity) {
    int n = capacity * model.read_outs, every = (EXPERTS + model.experts) * model.read_outs * model.d;
    instead = memory(every);
    seen = memory(2 * every);
    attended = memory(n * model.d);
    processed = memory(n * model.d);
    right = memory(model.read_outs);
    return every;
}

/* To be called once the weights are in place. */
PUBLIC void bench_start(void) { attention_tables(); }

/* What to replace, a bit each (components: 1 attention, 2 FFN), and how to route; `expert` is where ONE sends all. */
PUBLIC void intervene(int components, int heads, int experts, int route, int expert) {
    components_out = components;
    heads_out = heads;
    experts_out = experts;
    rerouted = route;
    sent_to = expert;
}

/* Each gate goes to another expert than the router chose. A random one is drawn from the sequence's own tokens, so
   that an input is always sent to the same. */
void reroute(int n) {
    int k = model.top_k, order[32];
    Stream source = 0;
    for (int e = 0; e < model.experts; e++) load[e] = 0;
    for (int i = 0; i < n; i++) {
        if (rerouted == RANDOM && i % model.read_outs == 0) {
            unsigned name = 0;
            for (int t = 0; t < model.length; t++)
                name = name * 31 + (unsigned)tokens[i / model.read_outs * model.length + t];
            source = stream_of((int)name, REROUTED);
        }
        for (int e = 0; e < model.experts; e++) order[e] = e;
        for (int s = 0; s < k; s++) {
            int *expert = chosen + i * k + s;
            if (rerouted == RANDOM) { /* distinct ones: the first k of a shuffle */
                int other = s + below(&source, model.experts - s);
                *expert = order[other];
                order[other] = order[s];
            } else
                *expert = rerouted == NEXT ? (*expert + 1) % model.experts : sent_to;
            load[*expert]++;
        }
    }
}

static float *stand_in(int part, int i) {
    return instead + (part * model.read_outs + i % model.read_outs) * model.d;
}

static void attend(int sequences) {
    int d = model.d, width = d / model.heads, n = sequences * model.read_outs;
    attention(sequences, attended);
    if (heads_out) {
        for (int i = 0; i < n; i++) {
            for (int h = 0; h < model.heads; h++)
                if (heads_out >> h & 1) copy(mixed + i * d + h * width, stand_in(MIXTURES, i) + h * width, width);
            copy(attended + i * d, P(OUT_BIAS), d);
        }
        product(rows(attended, d), rows(mixed, d), rows(P(OUT), d), n, d, d, 1);
    }
    for (int i = 0; components_out & NO_ATTENTION && i < n; i++) copy(attended + i * d, stand_in(ATTENTION, i), d);
}

static void process(int n) {
    int d = model.d;
    if (components_out & NO_FFN) {
        for (int i = 0; i < n; i++) copy(processed + i * d, stand_in(FFN, i), d);
        return;
    }
    clear(processed, n * d);
    closed_experts = experts_out;
    feedforward(n, stream, processed);
    closed_experts = 0;
    for (int e = 0; e < model.experts; e++)
        for (int i = 0; experts_out >> e & 1 && i < n; i++)
            add_scaled(processed + i * d, stand_in(EXPERTS + e, i), 1, d);
}

static void count_right(int sequences) {
    exact = 0;
    for (int r = 0; r < model.read_outs; r++) right[r] = 0;
    for (int b = 0; b < sequences; b++) {
        int wrong = 0;
        for (int r = 0; r < model.read_outs; r++) {
            float *p = logits + (b * model.read_outs + r) * model.classes;
            int best = 0;
            for (int c = 1; c < model.classes; c++) best = p[c] > p[best] ? c : best;
            int hit = best == targets[b * model.read_outs + r];
            right[r] += hit;
            wrong += r < model.scored && !hit;
        }
        exact += !wrong;
    }
}

/* Logits (N, C) of the sequences in `tokens`, as `intervene` says; and how many of `targets` they get right. */
PUBLIC void bench(int sequences) {
    int d = model.d, n = sequences * model.read_outs;
    attend(sequences);
    copy(stream, attended, n * d);
    for (int i = 0; i < n; i++) {
        int t = model.first + i % model.read_outs, token = tokens[i / model.read_outs * model.length + t];
        add_scaled(stream + i * d, table + (t * model.vocabulary + token) * d, 1, d);
    }
    process(n);
    copy(final, stream, n * d);
    add_scaled(final, processed, 1, n * d);
    product(rows(logits, model.classes), rows(final, d), unembedding(), n, model.classes, d, 0);
    count_right(sequences);
}

static void add_up(int part, int i, const float *x, float a) {
    double *into = seen + (part * model.read_outs + i % model.read_outs) * model.d;
    for (int j = 0; j < model.d; j++) into[j] += a * x[j];
}

/* After a run of the whole model: every part's sum over its sequences, read-out by read-out. */
PUBLIC double *sums(int sequences) {
    int d = model.d, n = sequences * model.read_outs, k = model.top_k;
    __builtin_memset(seen, 0, sizeof(double) * (EXPERTS + model.experts) * model.read_outs * d);
    for (int i = 0; i < n; i++) {
        add_up(MIXTURES, i, mixed + i * d, 1);
        add_up(ATTENTION, i, attended + i * d, 1);
        add_up(FFN, i, processed + i * d, 1);
    }
    if (model.experts == 1) return seen;
    for (int e = 0; e < model.experts; e++)
        for (int r = start[e]; r < start[e] + load[e]; r++)
            add_up(EXPERTS + e, order[r] / k, y_open + r * d, gate[order[r]]);
    return seen;
}

PUBLIC float *replacements(void) { return instead; }
PUBLIC int *right_answers(void) { return right; }
PUBLIC int right_sequences(void) { return exact; }
