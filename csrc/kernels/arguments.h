/* Objects that kernels take, for the type of this compilation. */
#ifndef FA_ARGUMENTS_H
#define FA_ARGUMENTS_H

#include "../types.h"
#include "kernels.h"

typedef FA_OBJECT(panel_product) panel_product;
typedef FA_OBJECT(few_product) few_product;
typedef FA_OBJECT(quantized_rows) quantized_rows;
typedef FA_OBJECT(byte_product) byte_product;
typedef FA_OBJECT(real_rows) real_rows;
typedef FA_OBJECT(const_rows) const_rows;
typedef FA_OBJECT(cell_rows) cell_rows;
typedef FA_OBJECT(cell_gradients) cell_gradients;
typedef FA_OBJECT(score_block) score_block;
typedef FA_OBJECT(value_rows) value_rows;
typedef FA_OBJECT(row_weights) row_weights;
typedef FA_OBJECT(tanh_gradients) tanh_gradients;

#endif
