/* The C API for extensions of CPython. Compile with the folder fastattn.get_include().

       const fa_api *fastattn = fa_import();
       if (!fastattn) return NULL;
       fa_status status = fastattn->softmax_forward(FA_F32, 0, y, n, x, n, rows, n, 1.0);

   fa_import() imports fastattn, with the GIL held, and returns its table for the life of the process; NULL with an exception where fastattn
   is missing, or was not built with the header that this extension has. */
#ifndef FASTATTN_IMPORT_H
#define FASTATTN_IMPORT_H

#include <Python.h>

#include "fastattn.h"

static inline const fa_api *fa_import(void)
{
    const fa_api *api = (const fa_api *)PyCapsule_Import(FA_API_CAPSULE, 0);
    if (!api) return NULL;
    if (api->version < FA_API_VERSION || api->layout != sizeof(fa_api_arguments)) {
        PyErr_Format(PyExc_ImportError,
                     "fastattn's C API has version %d and layout %zu, this extension was compiled for version %d and layout %zu: "
                     "compile it again",
                     api->version, api->layout, FA_API_VERSION, sizeof(fa_api_arguments));
        return NULL;
    }
    return api;
}

#endif
