/* Objects that kernels take, for the type of this compilation. */
#ifndef FA_ARGUMENTS_H
#define FA_ARGUMENTS_H

#include "../types.h"
#include "kernels.h"

typedef FA_OBJECT(panel_product) panel_product;
typedef FA_OBJECT(real_rows) real_rows;
typedef FA_OBJECT(const_rows) const_rows;
typedef FA_OBJECT(cell_rows) cell_rows;
typedef FA_OBJECT(cell_gradients) cell_gradients;

#endif
