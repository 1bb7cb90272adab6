/* Where decode_values finds the rows of values: row j is at offset + (first + j) % page_keys * ld of the page (first + j) / page_keys.
   A plain array is one page. */
#ifndef FA_DECODE_H
#define FA_DECODE_H

#include "../base.h"

typedef struct {
    const void *const *pages;
    fa_index page_keys, first;
    fa_index offset, ld;
} decode_rows;

#endif
