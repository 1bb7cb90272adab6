# csrc/fastattn.h and what settings need of runtime/, one to one; these headers explain each function.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "fastattn.h" nogil:
    ctypedef int64_t fa_index
    int64_t FA_UNBOUNDED

    ctypedef enum fa_status:
        FA_OK
        FA_NOMEM
        FA_NOBLAS

    ctypedef enum fa_dtype:
        FA_F32
        FA_F64
        FA_BF16
        FA_F16

    ctypedef enum fa_activation:
        FA_IDENTITY
        FA_TANH
        FA_SIGMOID
        FA_RELU
        FA_GELU
        FA_GELU_TANH
        FA_SILU
        FA_EXP

    ctypedef enum fa_isa:
        FA_ISA_BASELINE
        FA_ISA_COUNT

    fa_status fa_map(fa_dtype dtype, fa_activation f, void *y, const void *x, fa_index n)

    fa_status fa_map_backward(fa_dtype dtype, fa_activation f, void *dx, const void *dy, const void *x, fa_index n)
    fa_status fa_silu_gated_forward(fa_dtype dtype, void *y, const void *gate, const void *up, fa_index n)
    fa_status fa_silu_gated_backward(fa_dtype dtype, void *dgate, void *dup, const void *dy, const void *gate,
                                     const void *up, fa_index n)

    fa_status fa_cast(fa_dtype dtype, void *y, const void *x, fa_index n, int narrow)

    fa_status fa_softmax_forward(fa_dtype dtype, int log, void *y, fa_index ldy, const void *x, fa_index ldx,
                                 fa_index rows, fa_index n, double scale)
    fa_status fa_softmax_backward(fa_dtype dtype, int log, void *dx, const void *dy, const void *y, fa_index rows,
                                  fa_index n, double scale)

    ctypedef struct fa_cross_entropy_arguments:
        fa_index rows, n
        const void *x
        const fa_index *target
        fa_index ignored
        double smoothing
        void *loss
        void *top
        void *sum

    fa_status fa_cross_entropy_forward(fa_dtype dtype, const fa_cross_entropy_arguments *a)
    fa_status fa_cross_entropy_backward(fa_dtype dtype, const fa_cross_entropy_arguments *a, void *dx,
                                        const void *dloss)

    fa_status fa_embedding_forward(fa_dtype dtype, void *y, const void *w, const fa_index *id, fa_index rows,
                                   fa_index n)
    fa_status fa_embedding_backward(fa_dtype dtype, void *dw, const void *dy, const fa_index *id, fa_index table_rows,
                                    fa_index rows, fa_index n)

    fa_status fa_rope(fa_dtype dtype, void *y, const void *x, const void *cosine, const void *sine,
                      const fa_index *position, fa_index rows, fa_index n, int interleaved)

    ctypedef enum fa_norm:
        FA_LAYER_NORM
        FA_RMS_NORM

    ctypedef struct fa_norm_arguments:
        fa_norm kind
        fa_index rows, n
        void *y
        void *sum
        void *mean
        void *rstd
        const void *x
        const void *residual
        const void *weight
        const void *bias
        double eps
        int wide

    ctypedef struct fa_norm_backward_arguments:
        fa_norm kind
        fa_index rows, n
        void *dx
        void *dweight
        void *dbias
        const void *dy
        const void *x
        const void *weight
        const void *dsum
        const void *mean
        const void *rstd
        int wide

    fa_status fa_norm_forward(fa_dtype dtype, const fa_norm_arguments *a)
    fa_status fa_norm_backward(fa_dtype dtype, const fa_norm_backward_arguments *a)

    ctypedef enum fa_weight_type:
        FA_WEIGHT_REAL
        FA_WEIGHT_BF16
        FA_WEIGHT_INT8

    ctypedef enum fa_linear_strategy:
        FA_LINEAR_NATIVE
        FA_LINEAR_BLAS

    ctypedef struct fa_linear_arguments:
        fa_index M, N, K, ldy, ldx, ldw
        void *y
        void *z
        const void *x
        const void *w
        const void *packed
        const void *bias
        fa_isa isa
        fa_weight_type type
        fa_activation activation
        fa_linear_strategy strategy
        int w_transposed

    fa_status fa_linear_forward(fa_dtype dtype, const fa_linear_arguments *a)

    ctypedef struct fa_linear_backward_arguments:
        fa_index M, N, K, ldw, lddw
        fa_activation activation
        const void *dy
        const void *x
        const void *w
        const void *z
        void *dx
        void *dw
        void *dbias
        int add_dx

    fa_status fa_linear_backward(fa_dtype dtype, const fa_linear_backward_arguments *a)
    size_t fa_linear_packed_bytes(fa_dtype dtype, fa_isa isa, fa_weight_type type, fa_index N, fa_index K)
    fa_status fa_linear_pack(fa_dtype dtype, fa_isa isa, fa_weight_type type, void *packed, const void *w, fa_index ldw,
                             fa_index N, fa_index K)

    ctypedef enum fa_mask_kind:
        FA_MASK_NONE
        FA_MASK_BOOL
        FA_MASK_ADD

    ctypedef enum fa_attention_strategy:
        FA_ATTENTION_FUSED
        FA_ATTENTION_BLAS

    const fa_index FA_FARTHEST

    ctypedef struct fa_attention_arguments:
        fa_index B, H, Hk, Lq, Lk, D, Dv
        const void *q
        const void *k
        const void *v
        void *out
        void *lse
        void *shift
        void *sum
        fa_index q_stride[3]
        fa_index k_stride[3]
        fa_index v_stride[3]
        fa_index out_stride[3]
        const void *keep
        fa_index keep_stride[4]
        fa_mask_kind mask_kind
        const void *mask
        fa_index mask_stride[4]
        fa_index left, right
        int bottom_right
        const fa_index *q_positions
        const fa_index *q_lengths
        const fa_index *k_lengths
        const fa_index *q_starts
        const fa_index *k_starts
        fa_index lse_stride
        double scale, softcap, dropout
        uint64_t seed
        const void *alibi_slopes
        const void *sinks
        fa_attention_strategy strategy

    fa_status fa_attention_forward(fa_dtype dtype, const fa_attention_arguments *a)
    double fa_attention_scale(fa_index D)

    const int FA_CACHE_QUERIES
    const int FA_CACHE_LONGEST_I8
    ctypedef struct fa_cache_arguments:
        fa_attention_arguments attention
        const fa_index *table
        fa_index table_stride, page_keys
        const float *k_scale
        const float *v_scale
        fa_index scale_stride[2]

    fa_status fa_cache_attention(fa_dtype dtype, const fa_cache_arguments *c)

    ctypedef struct fa_attention_weights_arguments:
        fa_attention_arguments attention
        const void *lse
        const fa_index *heads
        const fa_index *rows
        fa_index n_heads, n_rows
        void *weights
        fa_index stride[3]

    fa_status fa_attention_weights(fa_dtype dtype, const fa_attention_weights_arguments *w)
    fa_status fa_attention_merge(fa_dtype dtype, void *out, void *lse, const void *a, const void *lse_a, const void *b,
                                 const void *lse_b, fa_index rows, fa_index n)

    ctypedef struct fa_attention_backward_arguments:
        fa_attention_arguments forward
        const void *dout
        void *dq
        void *dk
        void *dv
        fa_index dout_stride[3]
        fa_index dq_stride[3]
        fa_index dk_stride[3]
        fa_index dv_stride[3]
        void *dmask
        void *dslopes
        void *dsinks
        fa_index dmask_stride[4]
        fa_index dmask_size
        const void *dlse
        int partial, wide

    fa_status fa_attention_backward(fa_dtype dtype, const fa_attention_backward_arguments *arguments)
    fa_status fa_attention_state(fa_dtype dtype, void *shift, void *sum, const void *lse, fa_index n)

    ctypedef struct fa_additive_arguments:
        fa_index B, T, S, A, C
        const void *query
        const void *keys
        const void *values
        const void *v
        const void *mask
        fa_index query_stride[2]
        fa_index keys_stride[2]
        fa_index values_stride[2]
        fa_index mask_stride[2]
        fa_mask_kind mask_kind
        const fa_index *lengths
        void *context
        void *weights

    ctypedef struct fa_additive_gradients:
        fa_additive_arguments forward
        const void *dcontext
        fa_index dcontext_stride[2]
        void *dquery
        void *dkeys
        void *dvalues
        void *dv

    fa_status fa_additive_forward(fa_dtype dtype, const fa_additive_arguments *a)
    fa_status fa_additive_backward(fa_dtype dtype, const fa_additive_gradients *g)

    ctypedef struct fa_attention_gru:
        fa_index T, B, S, H, A, K
        const void *gates_x
        const void *keys
        const void *values
        const void *annotations
        const void *v
        const void *w
        const void *bias
        const void *h0
        const fa_index *lengths
        void *h
        void *context
        void *weights
        void *sums
        void *saved

    ctypedef struct fa_attention_gru_gradients:
        fa_attention_gru forward
        const void *dh
        const void *dh_last
        const void *dcontext
        void *da
        void *dgates
        void *dkeys
        void *dvalues
        void *dannotations
        void *dv
        void *dh0

    fa_status fa_attention_gru_forward(fa_dtype dtype, const fa_attention_gru *a)
    fa_status fa_attention_gru_backward(fa_dtype dtype, const fa_attention_gru_gradients *g)

    ctypedef enum fa_cell:
        FA_RNN
        FA_LSTM
        FA_LSTM_COUPLED
        FA_GRU
        FA_GRU_RESET_BEFORE

    ctypedef struct fa_recurrent_weights:
        fa_cell cell
        fa_index I, H, P
        const void *w_ih
        const void *w_hh
        const void *b_ih
        const void *b_hh
        const void *w_hr
        const void *peephole

    size_t fa_recurrent_packed_bytes(fa_dtype dtype, fa_isa isa, fa_weight_type type, const fa_recurrent_weights *w)
    fa_status fa_recurrent_pack(fa_dtype dtype, fa_isa isa, fa_weight_type type, void *packed,
                                const fa_recurrent_weights *w)

    ctypedef struct fa_recurrent_arguments:
        fa_recurrent_weights weights
        const void *packed
        fa_isa isa
        fa_weight_type type
        fa_activation activation
        double clip
        double gate_clip
        fa_index T, B
        const void *x
        fa_index x_stride[2]
        void *y
        fa_index y_stride[2]
        const void *h0
        const void *c0
        void *h_out
        void *c_out
        int c0_wide
        int c_out_wide
        const fa_index *lengths
        int reverse
        void *saved
        void *dropped
        double dropout
        uint64_t seed

    fa_index fa_recurrent_saved(const fa_recurrent_weights *w)
    fa_status fa_recurrent_forward(fa_dtype dtype, const fa_recurrent_arguments *a, fa_index layers,
                                   fa_index directions)

    ctypedef struct fa_recurrent_gradients:
        const void *dy
        const void *dh
        const void *dc
        fa_index dy_stride[2]
        fa_index dx_stride[2]
        void *dx
        void *dh0
        void *dc0
        void *dw_ih
        void *dw_hh
        void *db_ih
        void *db_hh
        void *dw_hr
        void *dpeephole
        int add_dx

    fa_status fa_recurrent_backward(fa_dtype dtype, const fa_recurrent_arguments *a, const fa_recurrent_gradients *g,
                                    fa_index layers, fa_index directions)

    const char *FA_API_CAPSULE
    ctypedef struct fa_api:
        pass

cdef extern from "ops/api.h" nogil:
    void fa_init()
    const fa_api fa_c_api

    double fa_mean(fa_dtype dtype, const void *x, fa_index n, fa_index count)
    double fa_probe_multiply_add(fa_dtype dtype, fa_index rounds, int threads)
    void fa_probe_read(fa_dtype dtype, const void *x, fa_index n)

cdef extern from "runtime/dispatch.h" nogil:
    const char *fa_isa_name(fa_isa isa)
    const char *fa_cpu_features()
    const char *fa_cpu_brand()
    fa_isa fa_best_isa()
    fa_isa fa_get_isa()
    int fa_set_isa(fa_isa isa)
    int fa_isa_usable(fa_isa isa)
    const char *fa_kernel_name(int i)

cdef extern from "runtime/float_state.h" nogil:
    ctypedef struct fa_float_state:
        pass

    ctypedef struct fa_long_double_state:
        pass

    fa_float_state fa_float_enter()
    void fa_float_leave(const fa_float_state *before)
    fa_long_double_state fa_long_double_enter()
    void fa_long_double_leave(const fa_long_double_state *before)

cdef extern from "runtime/settings.h" nogil:
    ctypedef enum fa_setting:
        FA_SETTING_THREADS
        FA_SETTING_ISA
        FA_SETTING_ATTENTION
        FA_SETTING_LINEAR
        FA_SETTINGS

    int FA_UNSET
    int fa_setting_get(fa_setting setting)
    void fa_setting_set(fa_setting setting, int value)
    void fa_setting_of_thread(fa_setting setting, int value)
    void fa_setting_of_blocks(fa_setting setting, int value)

cdef extern from "runtime/threads.h" nogil:
    int FA_MAX_THREADS
    int fa_get_num_threads()
    void fa_set_num_threads(int n)
    int fa_threads_limit()
    void fa_threads_adapt(int adapt)
    int fa_threads_disturb(int meetings)

cdef extern from "runtime/scratch.h" nogil:
    ctypedef struct fa_scratch:
        char *base
        size_t size

    size_t FA_RESULT_LEAST_BYTES
    int fa_result_take(fa_scratch *result, size_t size)
    void fa_result_give(fa_scratch *result)
    void fa_scratch_trim()

cdef extern from "runtime/blas.h" nogil:
    void fa_blas_path(const char *path)
    int fa_blas_load()
    const char *fa_blas_provider()
    const char *fa_blas_core()
    const char *fa_blas_version()
