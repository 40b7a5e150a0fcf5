/* A one-layer Transformer that trains: the model of `sparsity_moves.model` and its AdamW, in C for WebAssembly.

   Weights act from the right (x @ W); matrices lie row by row. Letters in comments:
   B sequences, T tokens each, R read-outs each, N = B R tokens that are answered, V vocabulary, C classes,
   S = T V rows of the table that the residual stream starts from, D model width, H heads, K = D / H,
   W hidden units of all E experts together, k experts open for a token. Trees have P roots and n nodes each: W = P n. */

#ifndef TRAINER_H
#define TRAINER_H

#define PUBLIC __attribute__((visibility("default"), used))

enum { MOST_SYMBOLS = 64 }; /* of a histogram's alphabet, and tokens of a sequence */
enum { ADD7, MODULAR, HISTOGRAM };
enum { RELU, GELU, SILU, LINEAR };
enum { NO_ROUTER, LEARNED, FROZEN, HASH, TREE };
enum { RENORMALISED, SWITCH };
enum { EMBED, POSITION, UNEMBED, QKV, OUT, OUT_BIAS, ROUTER, W_IN, W_UP, B_IN, W_OUT, B_OUT, TENSORS };
enum { NO_ATTENTION = 1, NO_FFN = 2 };

/* What is learned, and what is trained. */
typedef struct {
    int task, vocabulary, classes, length, first, read_outs, scored, causal, tied;
    int modulus, symbols;
    int d, heads, width, experts, top_k, router, gate, gated, activation;
    int depth, after_sum, blocks; /* levels below a tree's root; φ after the sum; blocks that are counted */
} Model;

extern Model model;

/* Where each tensor starts in the one buffer of parameters, and its number of floats (0: the model has none). */
extern int offset[TENSORS], size[TENSORS], parameters;
extern float *parameter, *gradient;
#define P(name) (parameter + offset[name])
#define G(name) (gradient + offset[name])

/* A batch, and what one forward pass leaves for the pictures and for the way back. */
extern int *tokens, *targets;          /* (B, T) and (B, R) */
extern float *table, *projected;       /* (S, D) and (S, 3D): queries, keys, values of every (position, token) */
extern float *pattern, *mixed;         /* (N, H, T) and (N, D) */
extern float *stream, *final, *logits; /* (N, D) before and after the FFN, (N, C) */
extern float *hidden;                  /* (N k, W / E), rows sorted by expert */
extern float *probability;             /* (N, E) */
extern int *chosen, *load;             /* (N, k); tokens of each expert (E), or of each tree's nodes (W) */
extern int *whole_load;                /* (E), over all that a balance loss is the mean of */
extern float *gate, *y_open;           /* (N, k), and (N k, D) each open expert's output, rows sorted by expert */
extern int *order, *start;             /* the assignment of each sorted row, and each expert's first row */
extern int *hash;                      /* (V): each symbol's expert, where routing is by hash */
extern int closed_heads, closed_experts; /* bit i closes head or expert i, for a reader's experiment */

/* memory.c */
void memory_reset(void);
void *memory(int floats);

/* product.c: C (M, N) = A (M, I) @ B (I, N), or += with `add`; a matrix is read by its strides. */
typedef struct {
    float *at;
    int row, column;
} Matrix;
static inline Matrix rows(float *at, int width) { return (Matrix){at, width, 1}; }
static inline Matrix transposed(float *at, int width) { return (Matrix){at, 1, width}; }
void product_setup(int widest);
void product(Matrix c, Matrix a, Matrix b, int m, int n, int inner, int add);

/* random.c */
typedef unsigned int Stream;
Stream stream_of(int seed, int purpose);
double uniform(Stream *state); /* [0, 1) */
int below(Stream *state, int n);
float normal(Stream *state);

/* softmax.c: in place; gives the logarithm of the sum of exponentials. */
float softmax(float *x, int n);

/* tasks.c */
void task_setup(int task, int first_size, int second_size);
void task_seed(int seed);
void draw_batch(int sequences);
int evaluation_size(void);
void evaluation_sequence(int index, int *token, int *target, int *held_out);

/* attention.c, feedforward.c: forward, and backward with the gradient of the output. */
void attention_setup(int capacity);
void attention_tables(void);
void attention(int sequences, float *out);
void attention_backward(int sequences, float *d_out);
void feedforward_setup(int capacity);
void feedforward(int n, float *x, float *y);
void feedforward_backward(int n, int every, float *x, float *d_y, float *d_x, float balance_weight);
void collect_units(int n, const int *answer, float *into);

/* tree.c */
int tree_nodes(int depth);
void keep_paths(int n, const float *before, float *value, float *slope);

/* bench.c: another choice of experts, where a reader asks for one. */
extern int rerouted;
void reroute(int n);

/* transformer.c */
void transformer_setup(int capacity);
Matrix unembedding(void);
void forward(int sequences, int without);
float backward(int sequences, int whole, float balance_weight);

#endif
