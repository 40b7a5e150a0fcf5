/* What the page and the tests call: set a model up, start it from a seed, train it, measure it. */

#include "trainer.h"
#include "vectors.h"

enum { INITIAL = 1, HASHED = 50 }; /* purposes of random streams: one for each tensor, one for the hash table */

Model model;
int offset[TENSORS], size[TENSORS], parameters;
float *parameter, *gradient;
static float *first_moment, *second_moment;
static float *other; /* the other half's gradients */
static float *units; /* modular addition: (p, W), each unit's mean over the inputs of each answer */
static int capacity, updates, half, *total; /* (E) or (W): `load` over a whole measurement */
static float found[6];

static void tensor(int name, int floats) {
    offset[name] = parameters;
    size[name] = floats;
    parameters += (floats + 3) & ~3; /* each begins on a whole vector; what is between stays zero */
}

/* A new model in place of the last. Sizes as in `task_setup`; `most` is the largest batch; `depth` and `after_sum` are
   for trees alone. Gives the number of floats in `parameters()`, or 0 where the settings do not fit together. */
PUBLIC int setup(int task, int first_size, int second_size, int d, int heads, int width, int experts, int top_k,
                 int router, int gate, int gated, int activation, int depth, int after_sum, int most) {
    if (experts < 1 || experts > 32 || width % experts || top_k < 1 || top_k > experts || d % heads) return 0;
    if (task == HISTOGRAM && (first_size > MOST_SYMBOLS || second_size > first_size)) return 0;
    if ((experts > 1) != (router != NO_ROUTER && router != TREE) || (router == HASH && top_k > 1)) return 0;
    if (router != TREE && (depth || after_sum)) return 0;
    if (router == TREE && (depth < 1 || depth > 10 || gated || width % tree_nodes(depth))) return 0;
    memory_reset();
    model = (Model){.d = d, .heads = heads, .width = width, .experts = experts, .top_k = top_k, .router = router,
                    .gate = gate, .gated = gated, .activation = activation, .depth = depth,
                    .after_sum = after_sum, .blocks = router == TREE ? width : experts};
    task_setup(task, first_size, second_size);
    parameters = updates = closed_heads = closed_experts = rerouted = 0;
    tensor(EMBED, model.vocabulary * d);
    tensor(POSITION, model.length * d);
    tensor(UNEMBED, model.tied ? 0 : d * model.classes);
    tensor(QKV, 3 * d * d);
    tensor(OUT, d * d);
    tensor(OUT_BIAS, d);
    tensor(ROUTER, router == LEARNED || router == FROZEN ? d * experts : 0);
    tensor(W_IN, d * width);
    tensor(W_UP, gated ? d * width : 0);
    tensor(B_IN, gated ? 0 : width);
    tensor(W_OUT, width * d);
    tensor(B_OUT, gated || router == TREE ? 0 : experts * d);
    parameter = memory(parameters);
    gradient = memory(parameters + 4); /* and, behind it, the loss */
    other = memory(parameters + 4);
    first_moment = memory(parameters);
    second_moment = memory(parameters);
    capacity = most;
    int widest = width > 3 * d ? width : 3 * d;
    product_setup(widest > model.classes ? widest : model.classes);
    transformer_setup(capacity);
    total = memory(model.blocks);
    units = memory(task == MODULAR ? model.classes * width : 0);
    return parameters;
}

/* Units that are open for a token, of one expert or on the paths of all trees: the output's fan-in. */
static int open_units(void) {
    if (model.router == TREE) return model.width / tree_nodes(model.depth) * (model.depth + 1);
    return model.width / model.experts;
}

/* As PyTorch's layers start: N(0, 1) embeddings, linear layers U(±1/√fan_in). */
PUBLIC void initialise(int seed) {
    for (int name = 0; name < TENSORS; name++) {
        Stream source = stream_of(seed, INITIAL + name);
        int fan_in = name == W_OUT || name == B_OUT ? open_units() : model.d;
        double bound = 1 / __builtin_sqrt(fan_in);
        for (int i = 0; i < size[name]; i++)
            P(name)[i] = name <= POSITION ? normal(&source) : (float)((2 * uniform(&source) - 1) * bound);
    }
    if (model.router == HASH) { /* as even a split of the vocabulary as there is */
        Stream source = stream_of(seed, HASHED);
        for (int v = 0; v < model.vocabulary; v++) hash[v] = v % model.experts;
        for (int v = model.vocabulary - 1; v > 0; v--) {
            int other = below(&source, v + 1), held = hash[v];
            hash[v] = hash[other];
            hash[other] = held;
        }
    }
    task_seed(seed);
}

/* Gradients of the batch in `tokens` and `targets`; gives its cross-entropy. */
PUBLIC float differentiate(int sequences, float balance_weight) {
    attention_tables();
    forward(sequences, 0);
    for (int e = 0; e < model.experts; e++) whole_load[e] = load[e];
    return backward(sequences, sequences, balance_weight);
}

/* The same in two halves, a trainer each: `half_forward`; the other's `whole_loads` are added to these, where there is
   a balance loss; `half_backward`; the other's `gradients` come into `other_gradients`; `join`. Two numbers have the same
   sum in either order, so both trainers, and one thread that plays both, end with the same bits. */
PUBLIC void half_forward(int which, int sequences) {
    int first = sequences / 2, from = which ? first : 0, many = which ? sequences - first : first;
    for (int i = 0; i < many * model.length; i++) tokens[i] = tokens[from * model.length + i];
    for (int i = 0; i < many * model.read_outs; i++) targets[i] = targets[from * model.read_outs + i];
    half = many;
    attention_tables();
    forward(half, 0);
    for (int e = 0; e < model.experts; e++) whole_load[e] = load[e];
}

PUBLIC void half_backward(int sequences, float balance_weight) {
    gradient[parameters] = backward(half, sequences, balance_weight);
}

/* Gives the cross-entropy of the whole batch. */
PUBLIC float join(void) {
    for (int i = 0; i < parameters + 4; i += 4) put(gradient + i, get(gradient + i) + get(other + i));
    return gradient[parameters];
}

/* AdamW (Loshchilov & Hutter 2019), after clipping the norm of all gradients to `clip` (0: no clipping). */
PUBLIC void update(float rate, float decay, float beta1, float beta2, float clip) {
    double square = 0, power1 = 1, power2 = 1;
    for (int i = 0; i < parameters; i += 4) {
        f4 g = get(gradient + i);
        square += sum4(g * g);
    }
    float norm = (float)__builtin_sqrt(square), shrink = clip > 0 && norm > clip ? clip / (norm + 1e-6f) : 1;
    updates++;
    for (int i = 0; i < updates; i++) power1 *= beta1, power2 *= beta2;
    float size1 = (float)(rate / (1 - power1)), size2 = (float)(1 / __builtin_sqrt(1 - power2));
    for (int name = 0; name < TENSORS; name++) {
        if (name == ROUTER && model.router == FROZEN) continue;
        for (int i = offset[name]; i < offset[name] + size[name]; i += 4) {
            f4 g = get(gradient + i) * shrink;
            f4 m = get(first_moment + i) * beta1 + (1 - beta1) * g;
            f4 v = get(second_moment + i) * beta2 + (1 - beta2) * g * g;
            put(first_moment + i, m);
            put(second_moment + i, v);
            f4 step = size1 * m / (__builtin_elementwise_sqrt(v) * size2 + 1e-8f);
            put(parameter + i, get(parameter + i) * (1 - rate * decay) - step);
        }
    }
}

/* Where the right answer has the largest logit, for the sequences in `tokens`: `right` counts read-outs that are
   scored, `exact` sequences with all of them right. */
static void count(int sequences, int *right, int *exact) {
    *right = *exact = 0;
    for (int b = 0; b < sequences; b++) {
        int wrong = 0;
        for (int r = 0; r < model.scored; r++) {
            float *p = logits + (b * model.read_outs + r) * model.classes;
            int best = 0;
            for (int c = 1; c < model.classes; c++) best = p[c] > p[best] ? c : best;
            wrong += best != targets[b * model.read_outs + r];
        }
        *right += model.scored - wrong;
        *exact += !wrong;
    }
}

/* Measure on every input (or the fixed sample): accuracy of single answers, share of sequences that are all right,
   and accuracy on inputs that training never sees. `loads` (E, or W of trees) are then those of this measurement; for modular
   addition `unit_values` are, too, unless something is left out. */
PUBLIC float *evaluate(int without) {
    int every = evaluation_size(), held_out = 0;
    double right_all = 0, right_held = 0, exact_all = 0, held = 0;
    for (int e = 0; e < model.blocks; e++) total[e] = 0;
    int collect = model.task == MODULAR && !without;
    if (collect) clear(units, model.classes * model.width);
    attention_tables();
    for (int from = 0; from < every;) {
        int many = 0, right, exact, kind = -1;
        /* A chunk holds only inputs that training sees, or only inputs that it does not. */
        for (; many < capacity && from + many < every; many++) {
            evaluation_sequence(from + many, tokens + many * model.length, targets + many * model.read_outs, &held_out);
            if (kind >= 0 && held_out != kind) break;
            kind = held_out;
        }
        forward(many, without);
        count(many, &right, &exact);
        if (collect) collect_units(many * model.read_outs, targets, units);
        right_all += right;
        exact_all += exact;
        if (kind) {
            right_held += right;
            held += many;
        }
        for (int e = 0; e < model.blocks; e++) total[e] += load[e];
        from += many;
    }
    for (int i = 0; collect && i < model.classes * model.width; i++) units[i] /= model.modulus;
    found[0] = (float)(right_all / every / model.scored);
    found[1] = (float)(exact_all / every);
    found[2] = held ? (float)(right_held / held / model.scored) : -1;
    for (int e = 0; e < model.blocks; e++) load[e] = total[e];
    return found;
}

/* One forward pass over the sequences in `tokens`, to look at. */
PUBLIC void look(int sequences, int without) {
    attention_tables();
    forward(sequences, without);
}

/* Single heads or experts to be left out, a bit each. */
PUBLIC void close(int heads, int experts) {
    closed_heads = heads;
    closed_experts = experts;
}

PUBLIC float *parameter_values(void) { return parameter; }
PUBLIC float *gradients(void) { return gradient; }
PUBLIC float *other_gradients(void) { return other; }
PUBLIC int tensor_offset(int name) { return offset[name]; }
PUBLIC int tensor_size(int name) { return size[name]; }
PUBLIC int *token_values(void) { return tokens; }
PUBLIC int *target_values(void) { return targets; }
PUBLIC int *hash_values(void) { return hash; }
PUBLIC int *loads(void) { return load; }
PUBLIC int *whole_loads(void) { return whole_load; }
PUBLIC int *experts_chosen(void) { return chosen; }
PUBLIC float *logit_values(void) { return logits; }
PUBLIC float *pattern_values(void) { return pattern; }
PUBLIC float *unit_values(void) { return units; }
