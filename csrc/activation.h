/* Functions that are known by number: the element-wise ops, and the activations inside linear and the cells. */
#ifndef FA_ACTIVATION_H
#define FA_ACTIVATION_H

typedef enum {
    FA_IDENTITY = 0,
    FA_TANH,
    FA_SIGMOID,
    FA_RELU,
    FA_GELU,
    FA_GELU_TANH,
    FA_SILU,
    FA_EXP,
} fa_activation;

#endif
