/* An extension of somebody else's, as small as it can be: test_c_api.py compiles it with fastattn's headers. */
#include <fastattn_import.h>

#include <string.h>

static const fa_api *fastattn;

/* softmax(address of y, of x, rows, n) of float32. */
static PyObject *softmax(PyObject *self, PyObject *arguments)
{
    unsigned long long y, x;
    long long rows, n;
    fa_status status;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "KKLL", &y, &x, &rows, &n)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = fastattn->softmax_forward(FA_F32, 0, (void *)(uintptr_t)y, n, (const void *)(uintptr_t)x, n, rows, n, 1.0);
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(status);
}

static void set_strides(fa_index *stride, fa_index H, fa_index L, fa_index D)
{
    stride[0] = H * L * D;
    stride[1] = L * D;
    stride[2] = D;
}

/* attention(address of out, of q, k, v, B, H, L, D), causal, of contiguous float32. */
static PyObject *attention(PyObject *self, PyObject *arguments)
{
    unsigned long long out, q, k, v;
    long long B, H, L, D;
    fa_attention_arguments a;
    fa_status status;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "KKKKLLLL", &out, &q, &k, &v, &B, &H, &L, &D)) return NULL;
    memset(&a, 0, sizeof a);
    a.B = B;
    a.H = a.Hk = H;
    a.Lq = a.Lk = a.lse_stride = L;
    a.D = a.Dv = D;
    a.out = (void *)(uintptr_t)out;
    a.q = (const void *)(uintptr_t)q;
    a.k = (const void *)(uintptr_t)k;
    a.v = (const void *)(uintptr_t)v;
    set_strides(a.out_stride, H, L, D);
    set_strides(a.q_stride, H, L, D);
    set_strides(a.k_stride, H, L, D);
    set_strides(a.v_stride, H, L, D);
    a.left = FA_UNBOUNDED;
    a.scale = fastattn->attention_scale(D);
    Py_BEGIN_ALLOW_THREADS;
    status = fastattn->attention_forward(FA_F32, &a);
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(status);
}

static PyMethodDef methods[] = {
    {"softmax", softmax, METH_VARARGS, NULL},
    {"attention", attention, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "c_api", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_c_api(void)
{
    fastattn = fa_import();
    if (!fastattn) return NULL;
    PyObject *self = PyModule_Create(&module);
    if (self && PyModule_AddIntConstant(self, "threads", fastattn->get_num_threads()) == 0) return self;
    Py_XDECREF(self);
    return NULL;
}
