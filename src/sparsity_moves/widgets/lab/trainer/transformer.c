/* Forward and backward through the whole model: stream = table row + attention, final = stream + FFN, logits = final U. */

#include "trainer.h"
#include "vectors.h"

float *stream, *final, *logits;
int *tokens, *targets;
static float *d_final, *d_stream;

void transformer_setup(int capacity) {
    int n = capacity * model.read_outs;
    tokens = memory(capacity * model.length);
    targets = memory(n);
    stream = memory(n * model.d);
    final = memory(n * model.d);
    logits = memory(n * model.classes);
    d_final = memory(n * model.d);
    d_stream = memory(n * model.d);
    attention_setup(capacity);
    feedforward_setup(capacity);
}

Matrix unembedding(void) {
    return model.tied ? transposed(P(EMBED), model.d) : rows(P(UNEMBED), model.classes);
}

/* Logits (N, C) of the sequences in `tokens`, with a component's output left out where `without` says so. */
void forward(int sequences, int without) {
    int d = model.d, n = sequences * model.read_outs;
    if (without & NO_ATTENTION)
        clear(stream, n * d);
    else
        attention(sequences, stream);
    for (int i = 0; i < n; i++) {
        int t = model.first + i % model.read_outs, token = tokens[i / model.read_outs * model.length + t];
        add_scaled(stream + i * d, table + (t * model.vocabulary + token) * d, 1, d);
    }
    copy(final, stream, n * d);
    if (!(without & NO_FFN)) feedforward(n, stream, final);
    product(rows(logits, model.classes), rows(final, d), unembedding(), n, model.classes, d, 0);
}

/* After `forward`: all gradients of cross-entropy + balance_weight * balance loss, both means over a batch of `whole`
   sequences of which these are all or a part. Gives what these add to the cross-entropy. */
float backward(int sequences, int whole, float balance_weight) {
    int d = model.d, classes = model.classes, n = sequences * model.read_outs, every = whole * model.read_outs;
    double loss = 0;
    clear(gradient, parameters);
    for (int i = 0; i < n; i++) {
        float *p = logits + i * classes; /* from here on the gradient of the logits */
        float right = p[targets[i]], most = softmax(p, classes);
        loss += most - right;
        p[targets[i]] -= 1;
        for (int c = 0; c < classes; c++) p[c] /= every;
    }
    if (model.tied)
        product(rows(G(EMBED), d), transposed(logits, classes), rows(final, d), classes, d, n, 0);
    else
        product(rows(G(UNEMBED), classes), transposed(final, d), rows(logits, classes), d, classes, n, 0);
    Matrix back = model.tied ? rows(P(EMBED), d) : transposed(P(UNEMBED), classes);
    product(rows(d_final, d), rows(logits, classes), back, n, d, classes, 0);
    copy(d_stream, d_final, n * d);
    feedforward_backward(n, every, stream, d_final, d_stream, balance_weight);
    attention_backward(sequences, d_stream);
    return (float)(loss / every);
}
