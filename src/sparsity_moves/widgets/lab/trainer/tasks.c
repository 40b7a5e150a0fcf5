/* What is learned: addition with carry, modular addition, histogram counting (`sparsity_moves.tasks`). */

#include "trainer.h"

enum { DIGITS = 3, ADDEND = 7, INPUTS = 1000, EOS = 11, HISTOGRAMS = 500 };
enum { SPLIT = 100, BATCHES, EVALUATION }; /* purposes of random streams */

static int *pairs, train_pairs; /* modular addition: all pairs, those that are trained on first */
static int *sampled;            /* histogram: the sequences measured on, tokens then targets */
static Stream batches;

/* add-7 takes no sizes; modular addition the modulus and the percentage trained on; histogram alphabet and symbols. */
void task_setup(int task, int first_size, int second_size) {
    model.task = task;
    model.causal = model.tied = task == ADD7;
    if (task == ADD7) {
        model.vocabulary = model.classes = 12;
        model.length = 2 * DIGITS + 2;
        model.first = DIGITS;
        model.scored = DIGITS + 1; /* the final EOS is no computation */
    } else if (task == MODULAR) {
        model.modulus = first_size;
        model.vocabulary = model.classes = first_size + 1;
        model.length = 3;
        model.first = 2;
        model.scored = 1;
        train_pairs = first_size * first_size * second_size / 100;
        pairs = memory(first_size * first_size);
    } else {
        model.symbols = second_size;
        model.vocabulary = first_size;
        model.classes = model.length = model.scored = second_size;
        model.first = 0;
        sampled = memory(HISTOGRAMS * 2 * second_size);
    }
    model.read_outs = model.length - model.first;
}

static void addition(int number, int *token, int *target) {
    int left = number, sum = number + ADDEND;
    for (int i = 0; i < DIGITS; i++, left /= 10) token[i] = left % 10;
    token[DIGITS] = EOS;
    for (int i = 0; i <= DIGITS; i++, sum /= 10) {
        target[i] = sum % 10;
        token[DIGITS + 1 + i] = target[i];
    }
    target[DIGITS + 1] = EOS;
}

static void modular(int pair, int *token, int *target) {
    token[0] = pair / model.modulus;
    token[1] = pair % model.modulus;
    token[2] = model.modulus;
    target[0] = (token[0] + token[1]) % model.modulus;
}

static void swap(int *x, int i, int j) {
    int held = x[i];
    x[i] = x[j];
    x[j] = held;
}

/* Cut the length into counts (the first part uniform on 1..n-1, the rest cut the same way; after Behrens, Biggio &
   Zdeborová 2024), give each count a symbol of its own, shuffle. */
static void histogram(Stream *source, int *token, int *target) {
    int symbol[MOST_SYMBOLS], names = model.vocabulary, filled = 0;
    for (int i = 0; i < names; i++) symbol[i] = i;
    for (int left = model.symbols; left > 0;) {
        int count = left == 1 ? 1 : 1 + below(source, left - 1);
        int drawn = below(source, names);
        swap(symbol, --names, drawn);
        for (int i = 0; i < count; i++, filled++) {
            token[filled] = symbol[names];
            target[filled] = count - 1;
        }
        left -= count;
    }
    for (int i = model.symbols - 1; i > 0; i--) {
        int other = below(source, i + 1);
        swap(token, i, other);
        swap(target, i, other);
    }
}

void task_seed(int seed) {
    batches = stream_of(seed, BATCHES);
    if (model.task == MODULAR) {
        Stream split = stream_of(seed, SPLIT);
        int every = model.modulus * model.modulus;
        for (int i = 0; i < every; i++) pairs[i] = i;
        for (int i = every - 1; i > 0; i--) swap(pairs, i, below(&split, i + 1));
    }
    if (model.task == HISTOGRAM) {
        Stream source = stream_of(seed, EVALUATION);
        for (int i = 0; i < HISTOGRAMS; i++) {
            int *at = sampled + i * 2 * model.symbols;
            histogram(&source, at, at + model.symbols);
        }
    }
}

/* The next batch of the run, into `tokens` and `targets`. */
PUBLIC void draw_batch(int sequences) {
    for (int b = 0; b < sequences; b++) {
        int *token = tokens + b * model.length, *target = targets + b * model.read_outs;
        if (model.task == ADD7) addition(below(&batches, INPUTS), token, target);
        if (model.task == MODULAR) modular(pairs[below(&batches, train_pairs)], token, target);
        if (model.task == HISTOGRAM) histogram(&batches, token, target);
    }
}

/* Every input where they are finite, else a fixed sample. */
int evaluation_size(void) {
    if (model.task == ADD7) return INPUTS;
    return model.task == MODULAR ? model.modulus * model.modulus : HISTOGRAMS;
}

void evaluation_sequence(int index, int *token, int *target, int *held_out) {
    *held_out = model.task == HISTOGRAM;
    if (model.task == ADD7) addition(index, token, target);
    if (model.task == MODULAR) {
        modular(pairs[index], token, target);
        *held_out = index >= train_pairs;
    }
    if (model.task == HISTOGRAM)
        for (int i = 0; i < model.symbols; i++) {
            token[i] = sampled[index * 2 * model.symbols + i];
            target[i] = sampled[index * 2 * model.symbols + model.symbols + i];
        }
}
