"""Samples of torch's own test suite, for `patched` and `accelerate`.

torch.testing._internal lists calls of each function and module, references in plain Python, and what must raise. A part
is drawn; with FASTATTN_ALL_SAMPLES=1 all are run (two minutes).
"""

import os
import random
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastattn.torch as fat
from fastattn.torch.attention import TORCH_ATTENTION
from fastattn.torch.swap import SWAPS
from tests.torch.close import assert_close

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

FUNCTIONS = ("nn.functional.scaled_dot_product_attention", "nn.functional.multi_head_attention_forward")
OPS = {op.name: op for op in op_db if op.name in FUNCTIONS}
MODULES = {info.module_cls.__name__: info for info in module_db if info.module_cls in SWAPS}
DRAWN = None if os.environ.get("FASTATTN_ALL_SAMPLES") else 6
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def drawn(values, request):
    """A few, which differ from test to test."""
    return values if DRAWN is None else random.Random(request.node.name).sample(values, DRAWN)


def test_all_are_found():
    assert sorted(OPS) == sorted(FUNCTIONS)
    assert sorted(MODULES) == sorted(cls.__name__ for cls in SWAPS)


def samples(name, dtype):
    """With gradients; of a function that has few such samples, also those without."""
    torch.manual_seed(3)
    found = list(OPS[name].sample_inputs("cpu", dtype, requires_grad=True))
    if len(found) < 10:
        found += OPS[name].sample_inputs("cpu", dtype, requires_grad=False)
    assert len(found) >= 10
    return found


def outcome(call, inputs):
    """Result and gradients, from one state of the generator of random numbers."""
    torch.manual_seed(11)
    result = call()
    first = result[0] if isinstance(result, tuple) else result
    wanted = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
    if not first.requires_grad:
        return first, []
    torch.manual_seed(12)
    return first, list(torch.autograd.grad(first, wanted, torch.randn_like(first), allow_unused=True))


def flat(sample):
    return [sample.input, *sample.args, *sample.kwargs.values()]


def scaled(sample):
    """Samples are uniform in +-9: the scores of a row reach the hundreds, and 16 bits decide nothing then."""
    with torch.no_grad():
        for t in flat(sample):
            if isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isinf().any():
                t.mul_(0.1)
    return sample


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_functions_give_torchs_results_and_gradients(name, dtype, request):
    if dtype not in OPS[name].supported_dtypes("cpu"):
        pytest.skip("torch has no samples of this type")
    for sample in map(scaled, drawn(samples(name, dtype), request)):

        def call(sample=sample):
            return OPS[name].op(sample.input, *sample.args, **sample.kwargs)

        expected = outcome(call, flat(sample))
        with fat.patched():
            found = outcome(call, flat(sample))
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])


def test_gradients_of_samples_are_those_of_differences(request):
    for sample in map(scaled, drawn(samples(FUNCTIONS[0], torch.float64), request)):
        if sample.kwargs.get("dropout_p"):
            continue
        kwargs = {name: value for name, value in sample.kwargs.items() if name != "attn_mask"}
        mask = sample.kwargs.get("attn_mask")

        def call(q, k, v, kwargs=kwargs, mask=mask):
            return fat.scaled_dot_product_attention(q, k, v, attn_mask=mask, **kwargs)

        assert torch.autograd.gradcheck(call, (sample.input, *sample.args), fast_mode=True)


def inputs_of(name, dtype, training):
    info = MODULES[name]
    torch.manual_seed(3)
    found = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training)
    given = list(found)
    assert len(given) >= 10
    return given


def built(name, dtype, training, given):
    """torch's module, and a copy of it by `accelerate`."""
    info = MODULES[name]
    torch.manual_seed(4)
    plain = info.module_cls(*given.constructor_input.args, **given.constructor_input.kwargs).to(dtype).train(training)
    ours = fat.accelerate(deepcopy(plain))
    assert type(ours) is SWAPS[info.module_cls]
    return plain, ours


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_samples_of_modules_give_torchs_results_and_gradients(name, dtype, training, request):
    for given in drawn(inputs_of(name, dtype, training), request):
        results = []
        for module in built(name, dtype, training, given):
            torch.manual_seed(11)
            result = module(*deepcopy(given.forward_input.args), **deepcopy(given.forward_input.kwargs))
            tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
            total = sum(t.sin().sum() for t in tensors if t.requires_grad)
            gradients = torch.autograd.grad(total, list(module.parameters()), allow_unused=True)
            results.append((tensors, gradients))
        assert_close(results[1], results[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MODULES)
def test_samples_of_modules_agree_with_torchs_references(name, request):
    for given in drawn(inputs_of(name, torch.float64, False), request):
        if given.reference_fn is None:
            continue
        _, ours = built(name, torch.float64, False, given)
        args, kwargs = given.forward_input.args, given.forward_input.kwargs
        found = ours(*deepcopy(args), **deepcopy(kwargs))
        expected = given.reference_fn(ours, *args, **kwargs)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name, info in MODULES.items() if info.module_error_inputs_func])
def test_what_raises_in_torch_raises_here(name):
    info, count = MODULES[name], 0
    for given in info.module_error_inputs_func(info, "cpu", torch.float32, False, False):
        wrong = given.module_error_input
        if given.error_on.name != "FORWARD_ERROR":
            continue
        module = fat.accelerate(info.module_cls(*wrong.constructor_input.args, **wrong.constructor_input.kwargs))
        with pytest.raises(given.error_type):
            module(*wrong.forward_input.args, **wrong.forward_input.kwargs)
        count += 1
    assert count


def test_torchs_own_function_is_back():
    assert F.scaled_dot_product_attention is TORCH_ATTENTION
    assert isinstance(nn.LSTM(2, 2), nn.LSTM)
