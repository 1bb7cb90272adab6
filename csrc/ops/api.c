/* The entry points of fastattn.h: each picks the version of its op for the dtype, and computes under the default floating-point state,
   whatever the caller's is. */
#include "../fastattn.h"
#include "../runtime/dispatch.h"
#include "../runtime/float_state.h"
#include "../runtime/scratch.h"
#include "../runtime/threads.h"
#include "api.h"

#define OP(name) fa_##name##_f32
#include "declare.h"
#undef OP
#define OP(name) fa_##name##_f64
#include "declare.h"
#undef OP

#undef OP
#define OP(name) fa_##name##_bf16
#include "declare.h"
#undef OP
#define OP(name) fa_##name##_f16
#include "declare.h"
#undef OP

/* Callers give no other dtype than the op has: the real types, or BY_ANY_DTYPE the 16-bit ones too. */
#define BY_DTYPE(name, ...) (dtype == FA_F64 ? fa_##name##_f64(__VA_ARGS__) : fa_##name##_f32(__VA_ARGS__))
#define BY_ANY_DTYPE(name, ...)                        \
    (dtype == FA_BF16  ? fa_##name##_bf16(__VA_ARGS__) \
     : dtype == FA_F16 ? fa_##name##_f16(__VA_ARGS__)  \
                       : BY_DTYPE(name, __VA_ARGS__))

/* Returns what an expression of a type gives under the default floating-point state. Once for each call: the threads of the pool have
   that state anyway. */
#define COMPUTE(type, expression)                    \
    const fa_float_state callers = fa_float_enter(); \
    const type result = expression;                  \
    fa_float_leave(&callers);                        \
    return result

void fa_init(void)
{
    fa_threads_init();
    fa_scratch_init();
    fa_set_isa(fa_best_isa());
}

double fa_probe_multiply_add(fa_dtype dtype, fa_index rounds, int threads)
{
    COMPUTE(double, BY_ANY_DTYPE(probe_multiply_add, rounds, threads));
}

void fa_probe_read(fa_dtype dtype, const void *x, fa_index n)
{
    const fa_float_state callers = fa_float_enter();
    BY_DTYPE(probe_read, x, n);
    fa_float_leave(&callers);
}

fa_status fa_map(fa_dtype dtype, fa_activation f, void *y, const void *x, fa_index n)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(map, f, y, x, n));
}

fa_status fa_map_backward(fa_dtype dtype, fa_activation f, void *dx, const void *dy, const void *x, fa_index n)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(map_backward, f, dx, dy, x, n));
}

fa_status fa_silu_gated_forward(fa_dtype dtype, void *y, const void *gate, const void *up, fa_index n)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(silu_gated_forward, y, gate, up, n));
}

fa_status fa_silu_gated_backward(fa_dtype dtype, void *dgate, void *dup, const void *dy, const void *gate, const void *up,
                                 fa_index n)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(silu_gated_backward, dgate, dup, dy, gate, up, n));
}

fa_status fa_cast(fa_dtype dtype, void *y, const void *x, fa_index n, int narrow)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(cast, y, x, n, narrow));
}

fa_status fa_softmax_forward(fa_dtype dtype, int log, void *y, fa_index ldy, const void *x, fa_index ldx, fa_index rows,
                             fa_index n, double scale)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(softmax_forward, log, y, ldy, x, ldx, rows, n, scale));
}

fa_status fa_softmax_backward(fa_dtype dtype, int log, void *dx, const void *dy, const void *y, fa_index rows, fa_index n,
                              double scale)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(softmax_backward, log, dx, dy, y, rows, n, scale));
}

fa_status fa_cross_entropy_forward(fa_dtype dtype, const fa_cross_entropy_arguments *a)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(cross_entropy_forward, a));
}

fa_status fa_cross_entropy_backward(fa_dtype dtype, const fa_cross_entropy_arguments *a, void *dx, const void *dloss)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(cross_entropy_backward, a, dx, dloss));
}

double fa_mean(fa_dtype dtype, const void *x, fa_index n, fa_index count) { COMPUTE(double, BY_DTYPE(mean, x, n, count)); }

fa_status fa_embedding_forward(fa_dtype dtype, void *y, const void *w, const fa_index *id, fa_index rows, fa_index n)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(embedding_forward, y, w, id, rows, n));
}

fa_status fa_embedding_backward(fa_dtype dtype, void *dw, const void *dy, const fa_index *id, fa_index table_rows, fa_index rows,
                                fa_index n)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(embedding_backward, dw, dy, id, table_rows, rows, n));
}

fa_status fa_rope(fa_dtype dtype, void *y, const void *x, const void *cosine, const void *sine, const fa_index *position,
                  fa_index rows, fa_index n, int interleaved)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(rope, y, x, cosine, sine, position, rows, n, interleaved));
}

/* The statistics of float64 are long double. */
fa_status fa_norm_forward(fa_dtype dtype, const fa_norm_arguments *a)
{
    if (dtype != FA_F64) {
        COMPUTE(fa_status, BY_ANY_DTYPE(norm_forward, a));
    } else {
        const fa_long_double_state callers_long = fa_long_double_enter();
        const fa_float_state callers = fa_float_enter();
        const fa_status status = fa_norm_forward_f64(a);
        fa_float_leave(&callers);
        fa_long_double_leave(&callers_long);
        return status;
    }
}

fa_status fa_norm_backward(fa_dtype dtype, const fa_norm_backward_arguments *a)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(norm_backward, a));
}

fa_status fa_linear_forward(fa_dtype dtype, const fa_linear_arguments *a)
{
    COMPUTE(fa_status, a->packed && a->type == FA_WEIGHT_INT8 ? fa_linear_bytes_f32(a) : BY_ANY_DTYPE(linear_forward, a));
}

fa_status fa_linear_backward(fa_dtype dtype, const fa_linear_backward_arguments *a)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(linear_backward, a));
}

size_t fa_linear_packed_bytes(fa_dtype dtype, fa_isa isa, fa_weight_type type, fa_index N, fa_index K)
{
    return type == FA_WEIGHT_INT8 ? fa_linear_bytes_packed_f32(isa, N, K) : BY_ANY_DTYPE(linear_packed_bytes, isa, N, K);
}

fa_status fa_linear_pack(fa_dtype dtype, fa_isa isa, fa_weight_type type, void *packed, const void *w, fa_index ldw, fa_index N,
                         fa_index K)
{
    COMPUTE(fa_status, type == FA_WEIGHT_INT8 ? fa_linear_bytes_pack_f32(isa, packed, w, ldw, N, K)
                                              : BY_ANY_DTYPE(linear_pack, isa, packed, w, ldw, N, K));
}

double fa_attention_scale(fa_index D) { COMPUTE(double, fa_attention_scale_f64(D)); }

fa_status fa_attention_forward(fa_dtype dtype, const fa_attention_arguments *a)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(attention_forward, a));
}

fa_status fa_cache_attention(fa_dtype dtype, const fa_cache_arguments *c)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(cache_attention, c));
}

fa_status fa_attention_weights(fa_dtype dtype, const fa_attention_weights_arguments *w)
{
    COMPUTE(fa_status, BY_DTYPE(attention_weights, w));
}

fa_status fa_attention_merge(fa_dtype dtype, void *out, void *lse, const void *a, const void *lse_a, const void *b,
                             const void *lse_b, fa_index rows, fa_index n)
{
    COMPUTE(fa_status, BY_DTYPE(attention_merge, out, lse, a, lse_a, b, lse_b, rows, n));
}

fa_status fa_attention_state(fa_dtype dtype, void *shift, void *sum, const void *lse, fa_index n)
{
    COMPUTE(fa_status, BY_DTYPE(attention_state, shift, sum, lse, n));
}

fa_status fa_attention_backward(fa_dtype dtype, const fa_attention_backward_arguments *arguments)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(attention_backward, arguments));
}

fa_status fa_additive_forward(fa_dtype dtype, const fa_additive_arguments *a)
{
    COMPUTE(fa_status, BY_DTYPE(additive_forward, a));
}

fa_status fa_additive_backward(fa_dtype dtype, const fa_additive_gradients *g)
{
    COMPUTE(fa_status, BY_DTYPE(additive_backward, g));
}

fa_status fa_attention_gru_forward(fa_dtype dtype, const fa_attention_gru *a)
{
    COMPUTE(fa_status, BY_DTYPE(attention_gru_forward, a));
}

fa_status fa_attention_gru_backward(fa_dtype dtype, const fa_attention_gru_gradients *g)
{
    COMPUTE(fa_status, BY_DTYPE(attention_gru_backward, g));
}

size_t fa_recurrent_packed_bytes(fa_dtype dtype, fa_isa isa, fa_weight_type type, const fa_recurrent_weights *w)
{
    return BY_ANY_DTYPE(recurrent_packed_bytes, isa, type, w);
}

fa_status fa_recurrent_pack(fa_dtype dtype, fa_isa isa, fa_weight_type type, void *packed, const fa_recurrent_weights *w)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(recurrent_pack, isa, type, packed, w));
}

fa_status fa_recurrent_forward(fa_dtype dtype, const fa_recurrent_arguments *a, fa_index layers, fa_index directions)
{
    COMPUTE(fa_status, BY_ANY_DTYPE(recurrent_forward, a, layers, directions));
}

fa_index fa_recurrent_saved(const fa_recurrent_weights *w)
{
    static const fa_index saved[] = {[FA_RNN] = 1, [FA_LSTM] = 5, [FA_LSTM_COUPLED] = 4, [FA_GRU] = 4, [FA_GRU_RESET_BEFORE] = 3};
    return saved[w->cell] + (w->w_hr != NULL);
}

fa_status fa_recurrent_backward(fa_dtype dtype, const fa_recurrent_arguments *a, const fa_recurrent_gradients *g, fa_index layers,
                                fa_index directions)
{
    COMPUTE(fa_status, BY_DTYPE(recurrent_backward, a, g, layers, directions));
}

#define ENTRY(name) .name = fa_##name,
const fa_api fa_c_api = {.version = FA_API_VERSION,
                         .layout = sizeof(fa_api_arguments),
                         .get_num_threads = fa_get_num_threads,
                         .set_num_threads = fa_set_num_threads,
                         .get_isa = fa_get_isa,
                         FA_API_FUNCTIONS(ENTRY)};
