/* The C API: what the Python extension calls, and other extensions through the table `fa_api` at the end. Callers have checked shapes,
   types and ranges; functions return FA_OK, or another status with the outputs untouched. Sizes and strides count elements unless said
   otherwise; every size may be 0. All compute under the default floating-point state and leave the caller's as it was, exception flags
   included. Any thread may call them, and they need no GIL. C and C++. */
#ifndef FASTATTN_H
#define FASTATTN_H

#include "fastattn_types.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- element-wise: y[i] = f(x[i]), i < n; y == x allowed ---- */
fa_status fa_map(fa_dtype dtype, fa_activation f, void *y, const void *x, fa_index n);

/* dx = dy f'(x), for every f but the identity; dx == dy or dx == x allowed */
fa_status fa_map_backward(fa_dtype dtype, fa_activation f, void *dx, const void *dy, const void *x, fa_index n);
/* y = silu(gate) up, y == gate or y == up allowed; and its gradients, outputs that overlap nothing */
fa_status fa_silu_gated_forward(fa_dtype dtype, void *y, const void *gate, const void *up, fa_index n);
fa_status fa_silu_gated_backward(fa_dtype dtype, void *dgate, void *dup, const void *dy, const void *gate, const void *up,
                                 fa_index n);

/* ---- cast: n elements of float to the 16-bit dtype (narrow; rounded to nearest even), or of it to float ---- */
fa_status fa_cast(fa_dtype dtype, void *y, const void *x, fa_index n, int narrow);

/* ---- rows: y = softmax(scale x) or log_softmax(scale x) over n contiguous elements; y == x allowed with ldy == ldx ---- */
fa_status fa_softmax_forward(fa_dtype dtype, int log, void *y, fa_index ldy, const void *x, fa_index ldx, fa_index rows,
                             fa_index n, double scale);
/* dx = scale y (dy - sum dy y), or scale (dy - e^y sum dy) for log; contiguous rows; dx == dy or dx == y allowed */
fa_status fa_softmax_backward(fa_dtype dtype, int log, void *dx, const void *dy, const void *y, fa_index rows, fa_index n,
                              double scale);

/* ---- cross-entropy of contiguous rows of n, kernels/rows/softmax.c has the equations ----
   target[rows] in 0..n-1, or `ignored`: loss and gradient 0. loss, top and sum [rows] are outputs of forward; backward reads x,
   target, top and sum, and writes dx[rows, n] from dloss[rows]. No output overlaps anything. loss, top, sum and dloss are float32 for
   16-bit x and dx. */
typedef struct {
    fa_index rows, n;
    const void *x;
    const fa_index *target;
    fa_index ignored;
    double smoothing; /* 0 <= smoothing <= 1 */
    void *loss, *top, *sum;
} fa_cross_entropy_arguments;
fa_status fa_cross_entropy_forward(fa_dtype dtype, const fa_cross_entropy_arguments *a);
fa_status fa_cross_entropy_backward(fa_dtype dtype, const fa_cross_entropy_arguments *a, void *dx, const void *dloss);

/* ---- embedding: y[i] = w[id[i]] for rows of n, id[rows] within the table; all contiguous, no aliasing ----
   Backward: dw[table_rows, n] = the sums over i, in rising order, of dy[i] where id[i] is the row. */
fa_status fa_embedding_forward(fa_dtype dtype, void *y, const void *w, const fa_index *id, fa_index rows, fa_index n);
fa_status fa_embedding_backward(fa_dtype dtype, void *dw, const void *dy, const fa_index *id, fa_index table_rows, fa_index rows,
                                fa_index n);

/* ---- rotary positions: contiguous rows of n (even), row i rotated by row position[i] of cosine and sine; y == x allowed ----
   Tables of the real type with rows of n / 2; interleaved: of n, each cosine twice, each sine as -s, s (kernels/rows/rope.c). */
fa_status fa_rope(fa_dtype dtype, void *y, const void *x, const void *cosine, const void *sine, const fa_index *position,
                  fa_index rows, fa_index n, int interleaved);

/* ---- layer norm and RMS norm over contiguous rows of n; kernels/rows/norm.c has the equations ----
   z = x, or x + residual, which goes to `sum` then. bias: layer norm only. weight, bias, residual (with sum), mean and rstd may be
   NULL; rms has no mean. mean and rstd are float32 for 16-bit arrays, and so are weight, bias and their gradients where `wide` says so
   (float and double: 0). y == x and sum == x allowed. Backward: x is z; dx = gradient of z + dsum (NULL: without);
   dx == dy or dx == dsum allowed. dweight needs weight. */
typedef enum { FA_LAYER_NORM = 0, FA_RMS_NORM } fa_norm;
typedef struct {
    fa_norm kind;
    fa_index rows, n;
    void *y, *sum, *mean, *rstd;
    const void *x, *residual, *weight, *bias;
    double eps;
    int wide;
} fa_norm_arguments;
typedef struct {
    fa_norm kind;
    fa_index rows, n;
    void *dx, *dweight, *dbias;
    const void *dy, *x, *weight, *dsum, *mean, *rstd;
    int wide;
} fa_norm_backward_arguments;
fa_status fa_norm_forward(fa_dtype dtype, const fa_norm_arguments *a);
fa_status fa_norm_backward(fa_dtype dtype, const fa_norm_backward_arguments *a);

/* ---- linear: y[M, N] = activation(z), z = x[M, K] w[N, K]' + bias[N]; bias may be NULL; no aliasing ----
   z, laid out as y, is written unless it is NULL: only with an activation. */
typedef enum { FA_WEIGHT_REAL = 0, FA_WEIGHT_BF16, FA_WEIGHT_INT8 } fa_weight_type; /* packed as the dtype, or as these */
typedef enum { FA_LINEAR_NATIVE = 0, FA_LINEAR_BLAS } fa_linear_strategy;
/* Row strides ldy, ldx, ldw of y, x, w. w_transposed: w is [K, N]. z, as y, is kept unless NULL. packed: w packed under `isa`, whose
   layout it has, which then computes, as numbers of the dtype or, of float32, FA_WEIGHT_INT8 (kernels/gemm/quantize.c says what x and w
   then count as); w, z and strategy do not count. */
typedef struct {
    fa_index M, N, K, ldy, ldx, ldw;
    void *y, *z;
    const void *x, *w, *packed, *bias;
    fa_isa isa;
    fa_weight_type type; /* of `packed` */
    fa_activation activation;
    fa_linear_strategy strategy;
    int w_transposed;
} fa_linear_arguments;
fa_status fa_linear_forward(fa_dtype dtype, const fa_linear_arguments *a);
/* Gradients from dy[M, N]: dx[M, K], dw[N, K], dbias[N]; all contiguous but w and dw, with row strides ldw and lddw. dx and dbias may be
   NULL; add_dx: dx is added to. z as forward left it (of relu y will do), NULL without an activation. No output overlaps
   anything. */
typedef struct {
    fa_index M, N, K, ldw, lddw;
    fa_activation activation;
    const void *dy, *x, *w, *z;
    void *dx, *dw, *dbias;
    int add_dx;
} fa_linear_backward_arguments;
fa_status fa_linear_backward(fa_dtype dtype, const fa_linear_backward_arguments *a);
/* w[N, K] of the dtype packed for fa_linear_arguments. The buffer starts at a multiple of 64 bytes. */
size_t fa_linear_packed_bytes(fa_dtype dtype, fa_isa isa, fa_weight_type type, fa_index N, fa_index K);
fa_status fa_linear_pack(fa_dtype dtype, fa_isa isa, fa_weight_type type, void *packed, const void *w, fa_index ldw, fa_index N,
                         fa_index K);

/* ---- attention, per batch b and head h, the keys of head h being those of h / (H / Hk) ----
   q[B, H, Lq, D], k[B, Hk, Lk, D], v[B, Hk, Lk, Dv], out[B, H, Lq, Dv] with strides of batch, head and row and contiguous last axes.
   The score of query i and key j, in this order:

     s = scale q_i k_j
     s = softcap tanh(s / softcap)                  softcap > 0
     s = s - alibi_slopes[h] |i + offset - j|       alibi_slopes given
     s = s + mask                                   FA_MASK_ADD

   Row i attends to the keys j < length with i + offset - left <= j <= i + offset + right that the mask does not exclude;
   offset = q_positions[b], or without these 0 (aligned top-left) or k length - q length (bottom-right). Over those

     Z = sum e^s + e^sinks[h]                       the last term with sinks only: a logit without a value
     out = sum e^s v_j / Z,   lse = ln Z

   lse[B, H, Lq] contiguous, or NULL; likewise shift (an integer R) and sum, lse = R ln 2 + ln sum, from which backward has
   the probabilities 2^(s log2(e) - R) / sum to the last bit, as lse would not; where such scores leave the range of the type, the largest
   score itself and - sum e^(s - shift). All three include the sink. No output overlaps
   anything. Rows that attend to nothing are zero, their lse is the sink, -inf without one. Rows beyond their length: zero, -inf.

   Ragged batches (q_starts and k_starts given): the rows of sequence b begin q_starts[b] (k_starts[b]) rows into arrays that all
   sequences share; strides of batch are 0, the lengths are given, Lq and Lk are the largest of them. out, and lse, shift and
   sum as arrays [H, lse_stride], have a place for each row of q and none beyond. */
typedef enum { FA_MASK_NONE = 0, FA_MASK_BOOL, FA_MASK_ADD } fa_mask_kind;
typedef enum { FA_ATTENTION_FUSED = 0, FA_ATTENTION_BLAS } fa_attention_strategy;
#define FA_UNBOUNDED INT64_MAX
#define FA_FARTHEST ((fa_index)1 << 60) /* positions and distances: sums of a few have no end in sight */
typedef struct {
    fa_index B, H, Hk, Lq, Lk, D, Dv;
    const void *q, *k, *v;
    void *out, *lse, *shift, *sum;
    fa_index q_stride[3], k_stride[3], v_stride[3], out_stride[3];
    fa_mask_kind mask_kind;
    const void *mask;        /* uint8 (0: excluded) or the dtype (added; -inf: excluded) */
    fa_index mask_stride[4]; /* batch, head, row, key; 0 where broadcast */
    const void *keep;        /* beside a mask that is added: uint8 (0: excluded), or NULL */
    fa_index keep_stride[4];
    fa_index left, right; /* FA_UNBOUNDED, or a distance >= 0 */
    int bottom_right;
    const fa_index *q_positions;           /* [B] at most FA_FARTHEST from 0, or NULL: which key query 0 is aligned with */
    const fa_index *q_lengths, *k_lengths; /* [B] in 0..L, or NULL */
    const fa_index *q_starts, *k_starts;   /* [B], both or none */
    fa_index lse_stride;                   /* elements from head to head: Lq, or the rows of a ragged batch */
    double scale, softcap;                 /* softcap: 0 for none */
    const void *alibi_slopes, *sinks;      /* [H] of the real type, or NULL */
    double dropout; /* of probabilities, 0..1: elements of P are 0 or times 1 / (1 - dropout) after the sum */
    uint64_t seed;  /* which elements: kernels/recurrent/dropout.c, at (key, query, sequence, head) */
    fa_attention_strategy strategy;
} fa_attention_arguments;
fa_status fa_attention_forward(fa_dtype dtype, const fa_attention_arguments *a);
/* The scale of calls that name none: 1 / sqrt(D), 1 for D = 0. */
double fa_attention_scale(fa_index D);

/* The same for at most FA_CACHE_QUERIES queries, strategy FA_ATTENTION_FUSED, without starts, on what a cache holds: in pages, as bytes, or
   both. k_stride and v_stride count elements of keys and values as they are kept. */
#define FA_CACHE_QUERIES 8
typedef struct {
    fa_attention_arguments attention;
    /* Pages (NULL: none, a plain array): the keys from n * page_keys on of sequence b are in page table[b * table_stride + n]; strides
       of batch are those of pages. */
    const fa_index *table;
    fa_index table_stride, page_keys;
    /* Bytes with FA_F32 queries (NULL: k and v hold the dtype): k[b, hk, j] = k_scale k, with strides of batch (or page) and head, and of
       1 for j. */
    const float *k_scale, *v_scale;
    fa_index scale_stride[2];
} fa_cache_arguments;
/* The largest D with bytes: sums of products stay within 32 bits. */
#define FA_CACHE_LONGEST_I8 65536
fa_status fa_cache_attention(fa_dtype dtype, const fa_cache_arguments *c);

/* Probabilities e^(s - lse) of the heads heads[n_heads] and queries rows[n_rows] of `attention`, of which v, out, shift, sum and
   strategy are not read: weights[B, n_heads, n_rows, Lk] with strides of batch, head and row; 0 where a row does not attend. lse as
   forward left it. */
typedef struct {
    fa_attention_arguments attention;
    const void *lse;
    const fa_index *heads, *rows;
    fa_index n_heads, n_rows;
    void *weights;
    fa_index stride[3];
} fa_attention_weights_arguments;
fa_status fa_attention_weights(fa_dtype dtype, const fa_attention_weights_arguments *w);

/* out = (e^lse_a a + e^lse_b b) / (e^lse_a + e^lse_b), lse = ln of the denominator; a, b, out contiguous [rows, n], the lse [rows]; no
   aliasing. A part whose lse is -inf is not read. */
fa_status fa_attention_merge(fa_dtype dtype, void *out, void *lse, const void *a, const void *lse_a, const void *b,
                             const void *lse_b, fa_index rows, fa_index n);

/* ---- its gradients: dq, dk, dv of the shapes of q, k, v ----
   `forward` as the forward call had it, with out, shift and sum as that left them; its lse and strategy are not read.
   With P the probabilities: dv = P' dout, dS = P (dout v' - rowsum(dout out)), times 1 - tanh^2 with a softcap; dq = scale dS k,
   dk = scale dS' q; heads that share keys add up. A pair whose probability is 0 contributes nothing, NaN or not. Strides as in
   forward; no output overlaps anything.
   dlse, placed as lse and of the real type, or NULL: the gradient of lse, which adds P dlse to dS.
   partial: k and v are a part of the keys, while out, shift and sum are those of all of them; so rowsum(dout out) is taken as it is, and
   dsinks are those of all keys. wide, for 16-bit arrays: dq, dk and dv are float32.
   Those of the other inputs are of the real type, and NULL where they are not wanted: dmask (FA_MASK_ADD only), dmask_size elements,
   with strides 0 where the mask is broadcast, over which axes it is a sum of dS before the softcap; dslopes and dsinks [H], sums over
   the batch. */
typedef struct {
    fa_attention_arguments forward;
    const void *dout;
    void *dq, *dk, *dv;
    fa_index dout_stride[3], dq_stride[3], dk_stride[3], dv_stride[3];
    void *dmask, *dslopes, *dsinks;
    fa_index dmask_stride[4], dmask_size;
    const void *dlse;
    int partial, wide;
} fa_attention_backward_arguments;
fa_status fa_attention_backward(fa_dtype dtype, const fa_attention_backward_arguments *arguments);
/* shift and sum, which backward reads, of n rows with these lse; FA_F32 and FA_F64 only. */
fa_status fa_attention_state(fa_dtype dtype, void *shift, void *sum, const void *lse, fa_index n);

/* ---- additive attention, per batch b; kernels/additive/additive.c has the equations ----
   query[B, T, A], keys[B, S, A], values[B, S, C], mask[B, T, S] with strides of batch and row and contiguous last axes; context
   [B, T, C] and weights [B, T, S] (may be NULL) contiguous. lengths: NULL, or the keys of each b. */
typedef struct {
    fa_index B, T, S, A, C;
    const void *query, *keys, *values, *v, *mask;
    fa_index query_stride[2], keys_stride[2], values_stride[2], mask_stride[2];
    fa_mask_kind mask_kind;
    const fa_index *lengths;
    void *context, *weights;
} fa_additive_arguments;
/* Of `forward` sizes, query, keys, values, v, lengths and weights (as the forward left them) are read. Gradients are contiguous. */
typedef struct {
    fa_additive_arguments forward;
    const void *dcontext;
    fa_index dcontext_stride[2];
    void *dquery, *dkeys, *dvalues, *dv;
} fa_additive_gradients;
fa_status fa_additive_forward(fa_dtype dtype, const fa_additive_arguments *a);
fa_status fa_additive_backward(fa_dtype dtype, const fa_additive_gradients *g);

/* ---- a GRU with additive attention, T steps of B sequences; ops/attention_gru.c has the equations ----
   All arrays contiguous: gates_x[T, B, 3 H] (r, z, n), keys[B, S, A], values[B, S, 3 H], annotations[B, S, K], v[A], w[A + 3 H, H]
   and its bias (query, n, r, z), h0[B, H]; outputs h[T, B, H], context[T, B, K], weights[B, T, S], and for the backward sums[T, B, A + 3 H] and saved[T, B, 4 H] (may be NULL). */
typedef struct {
    fa_index T, B, S, H, A, K;
    const void *gates_x, *keys, *values, *annotations, *v, *w, *bias, *h0;
    const fa_index *lengths;
    void *h, *context, *weights, *sums, *saved;
} fa_attention_gru;
/* dh[T, B, H], dh_last[B, H], dcontext[T, B, K] may be NULL. Out: da[T, B, A + 3 H] (query, n, r, z of the product with
   h), dgates[T, B, 3 H] (of gates_x), dkeys, dvalues, dannotations (of the context alone), dv, dh0. */
typedef struct {
    fa_attention_gru forward;
    const void *dh, *dh_last, *dcontext;
    void *da, *dgates, *dkeys, *dvalues, *dannotations, *dv, *dh0;
} fa_attention_gru_gradients;
fa_status fa_attention_gru_forward(fa_dtype dtype, const fa_attention_gru *a);
fa_status fa_attention_gru_backward(fa_dtype dtype, const fa_attention_gru_gradients *g);

/* ---- one layer and direction of a recurrent network over a sequence ----
   a_t = w_ih x_t + w_hh h_{t-1} + bias, then the cell (kernels/recurrent/recurrent.c has the equations). Gate order as in PyTorch:
   lstm i, f, g, o; gru r, z, n; lstm with coupled gates (f = 1 - i) i, g, o. A projected lstm has h = w_hr (o tanh(c)) of P units;
   everywhere else P is H. x[T, B, I] and y[T, B, P] with strides of time and batch and contiguous last axes; h0, h_out [B, P] and c0,
   c_out [B, H] contiguous, of 16-bit arrays float32 where c0_wide and c_out_wide say so. h0 or c0 NULL: zeros. No output overlaps an
   input, but h_out may be h0 and c_out c0, of one type.
   lengths NULL: all T. Otherwise sequence b ends after lengths[b] steps: y is zero beyond, h_out the state at its last step. `reverse`
   runs each sequence from its end to its start. */
typedef enum { FA_RNN = 0, FA_LSTM, FA_LSTM_COUPLED, FA_GRU, FA_GRU_RESET_BEFORE } fa_cell;
typedef struct {
    fa_cell cell;
    fa_index I, H, P;
    const void *w_ih, *w_hh; /* [G H, I], [G H, P] contiguous */
    const void *b_ih, *b_hh; /* [G H] or NULL */
    const void *w_hr;        /* [P, H], or NULL: no projection; lstm only */
    const void *peephole;    /* [3, H] rows i, f, o, with coupled gates [2, H] rows i, o, or NULL; lstm only */
} fa_recurrent_weights;
/* Weights packed beforehand, under the ISA `isa` whose layout the buffer then has, as numbers of the dtype or of fewer bits (float32
   only): bfloat16, or int8 with a scale for each row of w. Biases and peepholes keep the dtype. The buffer starts at a multiple of
   64 bytes. */
size_t fa_recurrent_packed_bytes(fa_dtype dtype, fa_isa isa, fa_weight_type type, const fa_recurrent_weights *w);
fa_status fa_recurrent_pack(fa_dtype dtype, fa_isa isa, fa_weight_type type, void *packed, const fa_recurrent_weights *w);

typedef struct {
    fa_recurrent_weights weights; /* of its arrays only whether there are w_hr and peephole counts when `packed` is given */
    const void *packed;           /* from fa_recurrent_pack, or NULL */
    fa_isa isa;                   /* of `packed` */
    fa_weight_type type;          /* of `packed` */
    fa_activation activation;     /* of FA_RNN: FA_TANH, FA_RELU, FA_SIGMOID */
    double clip;                  /* lstm: c is kept in [-clip, clip]; 0: it is not */
    double gate_clip;             /* likewise what goes into the activations of the gates, forward only: `saved` must be NULL */
    fa_index T, B;
    const void *x;
    fa_index x_stride[2];
    void *y;
    fa_index y_stride[2];
    const void *h0, *c0;
    void *h_out, *c_out;
    int c0_wide, c_out_wide;
    const fa_index *lengths; /* [B] in 0..T, or NULL */
    int reverse;
    void *saved; /* [T, B, fa_recurrent_saved(weights), H] contiguous: what the backward pass needs beside y; NULL: not wanted */
    /* y with dropout for the next layer, laid out as y; NULL: none. It is x / (1 - dropout), or 0 with probability `dropout`:
       whether an element stays follows from the seed, layer, direction, time, index of the sequence and unit alone (kernels/recurrent/dropout.c) */
    void *dropped;
    double dropout;
    uint64_t seed;
} fa_recurrent_arguments;
/* Quantities that are saved for each unit: lstm i, f (unless coupled), g, o, c, and o tanh(c) before a projection; gru r, z, n, and with
   reset after the product h_n + b_hn; rnn h, before it is rounded: of 16-bit arrays alone. Reals. */
fa_index fa_recurrent_saved(const fa_recurrent_weights *w);
/* Layers and directions in one call: a[layer * directions + direction], all of one T, B, cell and lengths; the x of a layer is the y
   of the one below (y of two directions side by side), or what dropout left of it. Every second direction is `reverse`. */
fa_status fa_recurrent_forward(fa_dtype dtype, const fa_recurrent_arguments *a, fa_index layers, fa_index directions);

/* Gradients of one layer and direction. dy[T, B, P] and dx[T, B, I] with strides of time and batch and contiguous last axes; dh, dc: of
   the final state; dh0, dc0: of the initial one; shaped like the states, contiguous. dy, dh, dc may be NULL: zeros. The others are
   outputs, all needed but for db_ih, db_hh, dw_hr, dpeephole, dc0, which may be NULL, and overlap nothing. add_dx: dx is added to (beyond lengths
   too it has been written before); otherwise it is zero beyond. Of `a`, weights (not packed ones), x, y, h0, c0, saved
   are those of the forward call, and dropout and seed where there was any; h_out, c_out and dropped do not count. */
typedef struct {
    const void *dy, *dh, *dc;
    fa_index dy_stride[2], dx_stride[2];
    void *dx, *dh0, *dc0;
    void *dw_ih, *dw_hh, *db_ih, *db_hh, *dw_hr, *dpeephole; /* shaped like the weights */
    int add_dx;
} fa_recurrent_gradients;
/* Layers and directions in one call, as forward: dx of the lanes of a layer is one array, to which every second direction adds, and dy
   of those below lies in it. */
fa_status fa_recurrent_backward(fa_dtype dtype, const fa_recurrent_arguments *a, const fa_recurrent_gradients *g, fa_index layers,
                                fa_index directions);

/* ---- the table of these functions, for other extensions: fastattn_import.h finds it ----
   fa_api has a member for each name of the list. New names come at its end and raise FA_API_VERSION, so that an extension works with a
   later version too; `layout` tells whether the structures of arguments are those that it was compiled with. The Python calls choose
   strategies, defaults of options and instruction sets; here they are named, and 0 is the usual one. */
#define FA_API_VERSION 1
#define FA_API_CAPSULE "fastattn._core.__c_api__"
#define FA_API_FUNCTIONS(F)   \
    F(map)                    \
    F(map_backward)           \
    F(silu_gated_forward)     \
    F(silu_gated_backward)    \
    F(cast)                   \
    F(softmax_forward)        \
    F(softmax_backward)       \
    F(cross_entropy_forward)  \
    F(cross_entropy_backward) \
    F(embedding_forward)      \
    F(embedding_backward)     \
    F(rope)                   \
    F(norm_forward)           \
    F(norm_backward)          \
    F(linear_forward)         \
    F(linear_backward)        \
    F(linear_packed_bytes)    \
    F(linear_pack)            \
    F(attention_forward)      \
    F(attention_scale)        \
    F(attention_weights)      \
    F(attention_merge)        \
    F(attention_state)        \
    F(attention_backward)     \
    F(cache_attention)        \
    F(additive_forward)       \
    F(additive_backward)      \
    F(attention_gru_forward)  \
    F(attention_gru_backward) \
    F(recurrent_packed_bytes) \
    F(recurrent_pack)         \
    F(recurrent_saved)        \
    F(recurrent_forward)      \
    F(recurrent_backward)
/* One of each structure of arguments: its size changes with theirs. */
typedef struct {
    fa_cross_entropy_arguments cross_entropy;
    fa_norm_arguments norm;
    fa_norm_backward_arguments norm_backward;
    fa_linear_arguments linear;
    fa_linear_backward_arguments linear_backward;
    fa_cache_arguments cache;
    fa_attention_weights_arguments attention_weights;
    fa_attention_backward_arguments attention_backward;
    fa_additive_gradients additive;
    fa_attention_gru_gradients attention_gru;
    fa_recurrent_arguments recurrent;
    fa_recurrent_gradients recurrent_backward;
} fa_api_arguments;
#define FA_API_MEMBER(name) __typeof__(fa_##name) *name;
typedef struct {
    int version;   /* FA_API_VERSION of the installed library */
    size_t layout; /* its sizeof(fa_api_arguments) */
    int (*get_num_threads)(void);
    void (*set_num_threads)(int n); /* of the process, 1 to 256 */
    fa_isa (*get_isa)(void);        /* in force: weights are packed for it */
    FA_API_FUNCTIONS(FA_API_MEMBER)
} fa_api;

#ifdef __cplusplus
}
#endif

#endif
