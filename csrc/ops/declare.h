/* The versions of each op. Included with OP defined. */
fa_status OP(map)(fa_activation f, void *y, const void *x, fa_index n);
fa_status OP(map_backward)(fa_activation f, void *dx, const void *dy, const void *x, fa_index n);
fa_status OP(silu_gated_forward)(void *y, const void *gate, const void *up, fa_index n);
fa_status OP(silu_gated_backward)(void *dgate, void *dup, const void *dy, const void *gate, const void *up, fa_index n);
fa_status OP(cast)(void *y, const void *x, fa_index n, int narrow);
fa_status OP(softmax_forward)(int log, void *y, fa_index ldy, const void *x, fa_index ldx, fa_index rows, fa_index n,
                              double scale);
fa_status OP(softmax_backward)(int log, void *dx, const void *dy, const void *y, fa_index rows, fa_index n, double scale);
fa_status OP(cross_entropy_forward)(const fa_cross_entropy_arguments *a);
fa_status OP(cross_entropy_backward)(const fa_cross_entropy_arguments *a, void *dx, const void *dloss);
double OP(mean)(const void *x, fa_index n, fa_index count);
fa_status OP(embedding_forward)(void *y, const void *w, const fa_index *id, fa_index rows, fa_index n);
fa_status OP(embedding_backward)(void *dw, const void *dy, const fa_index *id, fa_index table_rows, fa_index rows, fa_index n);
fa_status OP(rope)(void *y, const void *x, const void *cosine, const void *sine, const fa_index *position, fa_index rows,
                   fa_index n, int interleaved);
fa_status OP(norm_forward)(const fa_norm_arguments *a);
fa_status OP(norm_backward)(const fa_norm_backward_arguments *a);
fa_status OP(linear_forward)(const fa_linear_arguments *a);
fa_status OP(linear_backward)(const fa_linear_backward_arguments *a);
size_t OP(linear_packed_bytes)(fa_isa isa, fa_index N, fa_index K);
fa_status OP(linear_pack)(fa_isa isa, void *packed, const void *w, fa_index ldw, fa_index N, fa_index K);
fa_status OP(linear_bytes)(const fa_linear_arguments *a);
size_t OP(linear_bytes_packed)(fa_isa isa, fa_index N, fa_index K);
fa_status OP(linear_bytes_pack)(fa_isa isa, void *packed, const void *w, fa_index ldw, fa_index N, fa_index K);
double OP(attention_scale)(fa_index D);
fa_status OP(attention_forward)(const fa_attention_arguments *a);
fa_status OP(cache_attention)(const fa_cache_arguments *c);
fa_status OP(attention_weights)(const fa_attention_weights_arguments *w);
fa_status OP(attention_merge)(void *out, void *lse, const void *a, const void *lse_a, const void *b, const void *lse_b,
                              fa_index rows, fa_index n);
fa_status OP(attention_state)(void *shift, void *sum, const void *lse, fa_index n);
fa_status OP(attention_backward)(const fa_attention_backward_arguments *arguments);
fa_status OP(additive_forward)(const fa_additive_arguments *a);
fa_status OP(additive_backward)(const fa_additive_gradients *g);
fa_status OP(attention_gru_forward)(const fa_attention_gru *a);
fa_status OP(attention_gru_backward)(const fa_attention_gru_gradients *g);
size_t OP(recurrent_packed_bytes)(fa_isa isa, fa_weight_type type, const fa_recurrent_weights *w);
fa_status OP(recurrent_pack)(fa_isa isa, fa_weight_type type, void *packed, const fa_recurrent_weights *w);
fa_status OP(recurrent_forward)(const fa_recurrent_arguments *a, fa_index layers, fa_index directions);
fa_status OP(recurrent_backward)(const fa_recurrent_arguments *a, const fa_recurrent_gradients *g, fa_index layers,
                                 fa_index directions);
double OP(probe_multiply_add)(fa_index rounds, int threads);
void OP(probe_read)(const void *x, fa_index n);
