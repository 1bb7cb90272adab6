/* Where the kernels of decode.c find the rows of keys or values: row j is at offset + (first + j) % page_keys * ld of the page
   (first + j) / page_keys, as elements of the pages. A plain array is one page. */
#ifndef FA_DECODE_H
#define FA_DECODE_H

#include "../base.h"

typedef struct {
    const void *const *pages;
    fa_index page_keys, first;
    fa_index keys; /* rows there are: what is asked for in advance ends there */
    fa_index offset, ld;
} decode_rows;

#endif
