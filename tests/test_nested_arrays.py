"""What an argument may be (tests/test_arrays.py) where it comes within a state, a mapping of weights or a gradient, and
of every method of caches and modules: the calls are those of tests/malformed_recipes.py."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from fastattn.nn.decoder_cache import DecoderCache, LayerCache
from tests import malformed
from tests.arrays import same_bits
from tests.malformed_recipes import RECIPES, floats
from tests.test_arrays import HOLDERS, flat, refused_objects

DRAWS = 3  # objects for each array of each call
WRITTEN = {"out", "dmemory"}  # arguments that the call writes to: ndarrays
HANDLES = {"BertModel.__call__", "BertModel.embed"}  # whose weights come from pack, and are no arrays of the caller's
MORE_KINDS = {"mask", "memory_mask", "positions", "dloss"}  # of which integers or truths are right, too

CALLS = pytest.mark.parametrize(
    "name", [name for name in sorted(RECIPES) if name.split(".")[-1].islower() and not name.startswith("config")]
)


def arrays_within(value, path=()):
    """(path, array) of an argument and of what it is made of."""
    if isinstance(value, np.ndarray):
        if value.ndim and value.size:
            yield path, value
    elif type(value) in (tuple, list, dict):
        for key, part in value.items() if type(value) is dict else enumerate(value):
            yield from arrays_within(part, (*path, key))


def replaced(value, path, other):
    """value with something else at the end of the path."""
    if not path:
        return other
    if type(value) is dict:
        return value | {path[0]: replaced(value[path[0]], path[1:], other)}
    return type(value)(replaced(part, path[1:], other) if i == path[0] else part for i, part in enumerate(value))


def places(name):
    """(recipe, path, array) of each array that calls of this name read."""
    for make in RECIPES[name]:
        for path, x in arrays_within(make()[1]):
            if path[0] not in WRITTEN and not (name.removeprefix("nn.") in HANDLES and path[0] == "weights"):
                yield make, path, x


def contents(value):
    """What caches hold, instead of themselves."""
    if isinstance(value, fa.KVCache):
        return [value.lengths, value.__getstate__()["_parts"]]
    if isinstance(value, LayerCache):
        return [contents(value.target), *value.memory]
    return [contents(layer) for layer in value.layers] if isinstance(value, DecoderCache) else value


def outcome(function, arguments):
    """All arrays of a result, and of what the call has changed."""
    result, owner = function(**arguments), getattr(function, "__self__", None)
    changed = [contents(thing) for thing in (owner, arguments.get("cache"))]
    return flat([contents(result), *changed, owner.parameters() if isinstance(owner, nn.Module) else None])


@CALLS
def test_whatever_holds_memory_counts_as_its_array(name, rng):
    for make, path, x in places(name):
        if x.dtype not in (np.float32, np.float64, np.int64):
            continue
        function, arguments = make()
        expected = outcome(function, arguments)
        for holder in rng.choice(list(HOLDERS), DRAWS, replace=False):
            function, arguments = make()
            got = outcome(function, replaced(arguments, path, HOLDERS[holder](x)))
            assert len(got) == len(expected), f"{path} as {holder}"
            assert all(map(same_bits, got, expected)), f"{path} as {holder}"


def is_detached(name, value):
    """load_state_dict takes the values of tensors that require gradients: parameters of PyTorch's modules do."""
    return name.endswith("load_state_dict") and getattr(value, "requires_grad", False)


@CALLS
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_array_of_floats_is_refused_by_name(name, rng):
    for make, path, x in places(name):
        if x.dtype not in (np.float32, np.float64) or path[0] in MORE_KINDS:
            continue
        refused = [value for value, _ in refused_objects(x) if not is_detached(name, value)]
        for at in rng.choice(len(refused), DRAWS, replace=False):
            function, arguments = make()
            given = replaced(arguments, path, refused[at])
            with pytest.raises(TypeError):
                function(**given)
            assert malformed.judge(name, function, given, [path[0]]) is None


@CALLS
def test_masked_elements_are_refused_by_name(name):
    for make, path, x in places(name):
        function, arguments = make()
        given = replaced(arguments, path, np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) == 0))
        with pytest.raises(TypeError, match="must have no masked elements"):
            function(**given)
        assert malformed.judge(name, function, given, [path[0]]) is None


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("wrong", [floats(1, 2, 4, dtype=np.float64), floats(1, 2, 5), floats(2, 4), "state"])
def test_a_state_is_called_what_the_argument_is_called(kind, wrong):
    module = getattr(nn, kind.upper())(3, 4, rng=0)
    good = floats(1, 2, 4)
    states = [((wrong, good), r"state\[0\]"), ((good, wrong), r"state\[1\]")] if kind == "lstm" else [(wrong, "state")]
    x = floats(5, 2, 3)
    for state, label in states:
        for op, function in (
            (kind, lambda s: getattr(fa, kind)(x, s, module.parameters())),
            (f"{kind}_forward", lambda s: getattr(fa, f"{kind}_forward")(x, s, module.parameters())),
            (kind.upper(), lambda s: module(x, s)),
            (f"{kind.upper()}.step", lambda s: module.step(x[0], s)),
        ):
            with pytest.raises((TypeError, ValueError), match=f"^{op}: {label} must"):
                function(state)


def test_the_gradient_of_the_memory_is_named_where_it_cannot_be_added_to():
    layer = nn.TransformerDecoderLayer(8, 2, 16, rng=0)
    good = np.ones((2, 3, 8), np.float32)
    y, saved = layer.forward(np.ones((2, 5, 8), np.float32), good)
    read_only = good.copy()
    read_only.flags.writeable = False
    wrong = (memoryview(good), np.ma.array(good), good.astype(np.float64), good[:, :2], read_only,
             good.swapaxes(0, 1).copy().swapaxes(0, 1))  # fmt: skip
    for dmemory in wrong:
        with pytest.raises((TypeError, ValueError), match=r"^linear_backward: dmemory must"):
            layer._add_gradients(y, saved, dmemory)


def test_tensors_that_hold_no_numbers_here_are_not_loaded():
    torch = pytest.importorskip("torch")
    module = nn.Linear(3, 4, rng=0)
    own = {name: value.copy() for name, value in module.parameters().items()}
    for wrong in (torch.ones(4, device="meta"), torch.ones(4, device="meta", dtype=torch.bfloat16), torch.ones(4).int(),
                  torch.ones(4).to_sparse(), torch.ones(4, dtype=torch.complex64)):  # fmt: skip
        with pytest.raises(TypeError, match=r"^Linear\.load_state_dict: bias must"):
            module.load_state_dict(own | {"bias": wrong})
    assert all(same_bits(value, own[name]) for name, value in module.parameters().items())


def test_parameters_of_torch_and_bfloat16_are_loaded():
    torch = pytest.importorskip("torch")
    module, values = nn.Linear(3, 4, rng=0), floats(4)
    for tensor in (
        torch.nn.Parameter(torch.from_numpy(values.copy())),
        torch.from_numpy(values.copy()).bfloat16(),
        torch.from_numpy(values.copy()).bfloat16().requires_grad_(),
        torch.from_numpy(values.copy()).half(),
    ):
        module.load_state_dict({"weight": np.ones((4, 3)), "bias": tensor})
        assert same_bits(module.parameters()["bias"], tensor.detach().float().numpy())
