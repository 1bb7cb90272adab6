"""A valid call of every public function, class and method, which tests/malformed.py then spoils.

`discovered()` finds what is public; RECIPES has for each name one or more functions that return (callable, arguments
by name). What a call changes (out=, caches, modules) is made anew by each; other arrays are shared.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import io
import pkgutil
import tempfile
import zlib
from pathlib import Path

import numpy as np

import fastattn as fa
from fastattn import nn
from tests.low_precision import BFLOAT16, FLOAT16

RECIPES = {}
# Names of the public namespace that are no callables of their own, and saved values, which come with their op.
_NOT_SPOILT = {"config", "nn"}
_CHECKED_LATER = {"SavedAttention.of", "SavedAttentionVarlen.of"}  # by backward, as what a constructor is given


def discovered():
    """Public names: functions and classes of fastattn, fastattn.nn and fastattn.config, and methods of every public
    class of the package, also of those that are only returned."""
    names = {}
    for prefix, module in (("", fa), ("nn.", nn), ("config.", fa.config)):
        public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in public:
            thing = getattr(module, name)
            own = inspect.isfunction(thing) and thing.__module__ == module.__name__
            if (
                name not in _NOT_SPOILT
                and callable(thing)
                and (prefix != "config." or own or hasattr(thing, "__wrapped__"))
            ):
                names[prefix + name] = thing
    for info in pkgutil.walk_packages(fa.__path__, "fastattn."):
        parts = info.name.split(".")[1:]
        if any(part.startswith("_") for part in parts) or parts == ["reference"]:
            continue
        if parts[0] in ("torch", "transformers", "jax", "onnx", "mpi"):  # they have wrong calls in tests of their own
            continue
        for name, cls in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(cls) and cls.__module__.startswith("fastattn") and not name.startswith("_"):
                names |= _methods(cls)
    for cls in (fa.PackedLinear, fa.RecurrentWeights):
        names |= _methods(cls)
    return {name: thing for name, thing in names.items() if name not in _CHECKED_LATER}


def _methods(cls):
    label = f"nn.{cls.__name__}" if getattr(nn, cls.__name__, None) is cls else cls.__name__
    found = {}
    for name in dir(cls):
        if name == "__call__" or not name.startswith("_"):
            static = inspect.getattr_static(cls, name)
            inherited = name in dir(tuple) and issubclass(cls, tuple)
            if not isinstance(static, property) and callable(getattr(cls, name)) and not inherited:
                found[f"{label}.{name}"] = getattr(cls, name)
    return found


def recipe(*names):
    def add(function):
        for name in names:
            RECIPES.setdefault(name, []).append(function)
        return function

    return add


def floats(*shape, dtype=np.float32):
    return np.random.default_rng(zlib.crc32(repr(shape).encode())).standard_normal(shape).astype(dtype)


def _rng():
    return np.random.default_rng(1)


@functools.cache
def shared(make):
    """What a factory makes, once."""
    return make()


# ---- element-wise and rows ----

TYPES = (np.float32, np.float64, BFLOAT16, FLOAT16)


def _elementwise():
    for name in ("exp", "tanh", "sigmoid", "relu", "gelu", "silu"):
        for dtype in (np.float32, BFLOAT16):
            x = floats(3, 5, dtype=dtype)
            recipe(name)(lambda name=name, x=x: (getattr(fa, name), {"x": x, "out": np.empty_like(x)}))
    x, y = floats(3, 5), floats(3, 5)
    recipe("gelu")(lambda: (fa.gelu, {"x": x, "approximate": "tanh"}))
    for name in ("tanh", "sigmoid", "relu", "gelu", "silu"):
        recipe(f"{name}_backward")(lambda name=name: (getattr(fa, f"{name}_backward"), {"dy": x, "x": y}))
    recipe("gelu_backward")(lambda: (fa.gelu_backward, {"dy": x, "x": y, "approximate": "tanh"}))
    recipe("silu_gated")(lambda: (fa.silu_gated, {"gate": x, "up": y, "out": np.empty_like(x)}))
    recipe("silu_gated_backward")(lambda: (fa.silu_gated_backward, {"dy": x, "gate": y, "up": x}))
    for name in ("softmax", "log_softmax"):
        arguments = {"x": x, "axis": 1, "scale": 2.0}
        recipe(name)(lambda name=name, a=arguments: (getattr(fa, name), a | {"out": np.empty_like(x)}))
        recipe(f"{name}_forward")(lambda name=name, a=arguments: (getattr(fa, f"{name}_forward"), dict(a)))
        saved = getattr(fa, f"{name}_forward")(**arguments)[1]
        second = list(inspect.signature(getattr(fa, f"{name}_backward")).parameters)[1]
        backward = {"dy": x, second: saved, "axis": 0, "scale": 2.0}
        recipe(f"{name}_backward")(lambda name=name, b=backward: (getattr(fa, f"{name}_backward"), dict(b)))


def _norms():
    x, weight, bias = floats(3, 5), floats(5), floats(4, 5)[0]
    for name, more in (("layer_norm", {"bias": bias}), ("rms_norm", {})):
        arguments = {"x": x, "weight": weight, **more, "eps": 1e-5}
        recipe(name)(lambda name=name, a=arguments: (getattr(fa, name), a | {"out": np.empty_like(x)}))
        recipe(f"{name}_forward")(
            lambda name=name, a=arguments: (getattr(fa, f"{name}_forward"), a | {"residual": floats(3, 5)})
        )
        saved = getattr(fa, f"{name}_forward")(**arguments)[1]
        recipe(f"{name}_backward")(
            lambda name=name, s=saved: (getattr(fa, f"{name}_backward"), {"dy": x, "saved": s, "dsum": floats(3, 5)})
        )
        recipe(f"add_{name}")(
            lambda name=name, a=arguments: (getattr(fa, f"add_{name}"), a | {"residual": floats(3, 5)})
        )


# ---- linear, embedding, cross-entropy, positions ----


def _linear():
    for dtype in (np.float32, BFLOAT16):
        x, weight, bias = floats(3, 5, dtype=dtype), floats(4, 5, dtype=dtype), floats(4, dtype=dtype)
        arguments = {"x": x, "weight": weight, "bias": bias, "activation": "gelu"}
        out = np.empty((3, 4), dtype)
        recipe("linear")(lambda a=arguments, out=out: (fa.linear, a | {"out": out.copy()}))
        packed = arguments | {"weight": fa.pack_linear(arguments["weight"])}
        recipe("linear")(lambda a=packed: (fa.linear, dict(a)))
        if dtype == np.float32:
            of_bytes = arguments | {"weight": fa.pack_linear(weight, "int8")}
            recipe("linear")(lambda a=of_bytes: (fa.linear, dict(a)))
            recipe("pack_linear")(lambda w=weight: (fa.pack_linear, {"weight": w, "dtype": "int8"}))
        recipe("pack_linear")(lambda a=arguments: (fa.pack_linear, {"weight": a["weight"], "dtype": a["weight"].dtype}))
    real = {"x": floats(3, 5), "weight": floats(4, 5), "bias": floats(4), "activation": "gelu"}
    recipe("linear_forward")(lambda: (fa.linear_forward, dict(real)))
    for activation in ("gelu", None):
        saved = fa.linear_forward(**real | {"activation": activation})[1]
        recipe("linear_backward")(lambda s=saved: (fa.linear_backward, {"dy": floats(3, 4), "saved": s}))
    recipe("PackedLinear")(lambda: (fa.PackedLinear, {}))
    recipe("RecurrentWeights")(lambda: (fa.RecurrentWeights, {}))


def _tokens():
    ids, weight = np.array([[0, 2], [1, 1]]), floats(3, 5)
    recipe("embedding", "embedding_forward")(lambda: (fa.embedding, {"ids": ids, "weight": weight}))
    recipe("embedding_forward")(lambda: (fa.embedding_forward, {"ids": ids, "weight": weight}))
    saved = fa.embedding_forward(ids, weight)[1]
    recipe("embedding_backward")(lambda: (fa.embedding_backward, {"dy": floats(2, 2, 5), "saved": saved}))
    logits = {"logits": floats(2, 2, 5), "targets": ids, "ignore_index": 1, "label_smoothing": 0.1}
    for reduction, dloss in (("mean", 1.0), ("sum", 1.0), ("none", floats(2, 2))):
        arguments = logits | {"reduction": reduction}
        recipe("cross_entropy")(lambda a=arguments: (fa.cross_entropy, dict(a)))
        recipe("cross_entropy_forward")(lambda a=arguments: (fa.cross_entropy_forward, dict(a)))
        kept = fa.cross_entropy_forward(**arguments)[1]
        recipe("cross_entropy_backward")(lambda d=dloss, s=kept: (fa.cross_entropy_backward, {"dloss": d, "saved": s}))
    x = floats(2, 3, 6)
    rotated = {"x": x, "positions": np.arange(3), "base": 100.0, "interleaved": True}
    recipe("rope")(lambda: (fa.rope, rotated | {"out": np.empty_like(x)}))
    recipe("rope_forward")(lambda: (fa.rope_forward, dict(rotated)))
    of_rope = fa.rope_forward(**rotated)[1]
    recipe("rope_backward")(lambda: (fa.rope_backward, {"dy": x, "saved": of_rope}))
    recipe("sinusoidal_positions")(
        lambda: (fa.sinusoidal_positions, {"length": 4, "dim": 6, "base": 100.0, "offset": 2, "dtype": "float32"})
    )


# ---- attention ----


def _attention():
    for dtype in (np.float32, BFLOAT16):
        q, k, v = floats(2, 4, 5, 8, dtype=dtype), floats(2, 2, 6, 8, dtype=dtype), floats(2, 2, 6, 3, dtype=dtype)
        options = {
            "mask": floats(2, 1, 5, 6, dtype=dtype), "causal": "top-left", "scale": 0.5, "window": (3, 2),
            "softcap": 5.0, "alibi_slopes": floats(4, dtype=dtype), "sinks": floats(4, dtype=dtype),
            "q_lengths": np.array([5, 3]), "kv_lengths": np.array([2, 6]), "layout": "bhld", "q_start": None,
            "bias": None, "dropout_p": 0.25, "seed": 7,
        }  # fmt: skip
        arguments = {"q": q, "k": k, "v": v, **options}
        out = np.empty((2, 4, 5, 3), dtype)
        recipe("attention")(lambda a=arguments, o=out: (fa.attention, a | {"return_lse": True, "out": o.copy()}))
        plain = {"q": q, "k": k, "v": v, "mask": floats(5, 6) > 0, "causal": True, "q_start": np.array([-1, 2]),
                 "bias": floats(4, 5, 6, dtype=dtype)}  # fmt: skip
        recipe("attention")(lambda a=plain: (fa.attention, dict(a)))
        recipe("attention_forward")(lambda a=arguments: (fa.attention_forward, dict(a)))
        saved = fa.attention_forward(**arguments)[1]
        recipe("attention_backward")(
            lambda s=saved, o=out: (
                fa.attention_backward,
                {
                    "dout": np.ones_like(o),
                    "saved": s,
                    "gradients": ["mask", "sinks", "alibi_slopes"],
                    "partial": True,
                    "dlse": floats(2, 4, 5),
                    "gradient_dtype": np.float32,
                },
            )
        )
        recipe("saved_attention")(
            lambda a=arguments, o=out: (fa.saved_attention, a | {"out": np.ones_like(o), "lse": floats(2, 4, 5)})
        )
    starts = np.array([0, 2, 2, 7])
    varlen = {
        "q": floats(7, 4, 8), "k": floats(7, 2, 8), "v": floats(7, 2, 3), "cu_seqlens_q": starts,
        "cu_seqlens_k": starts, "causal": "bottom-right", "scale": 0.3, "window": (3, None), "softcap": 3.0,
        "alibi_slopes": floats(4), "sinks": floats(4), "q_start": None,
        "bias": None, "dropout_p": 0.25, "seed": 7,
    }  # fmt: skip
    recipe("attention_varlen")(lambda: (fa.attention_varlen, varlen | {"return_lse": True}))
    placed = varlen | {"causal": True, "q_start": np.array([1, 0, -2])}
    recipe("attention_varlen")(lambda: (fa.attention_varlen, dict(placed)))
    recipe("attention_varlen_forward")(lambda: (fa.attention_varlen_forward, dict(varlen)))
    ragged = fa.attention_varlen_forward(**varlen)[1]
    recipe("attention_varlen_backward")(
        lambda: (
            fa.attention_varlen_backward,
            {"dout": floats(7, 4, 3), "saved": ragged, "gradients": ["sinks"], "dlse": floats(7, 4)},
        )
    )
    part, lse = floats(1, 2, 3, 4), floats(1, 2, 3)
    recipe("merge_attention")(lambda: (fa.merge_attention, {"out_a": part, "lse_a": lse, "out_b": part, "lse_b": lse}))
    recipe("attention_weights")(
        lambda: (
            fa.attention_weights,
            {
                "q": floats(1, 2, 3, 4),
                "k": floats(1, 2, 5, 4),
                "lse": lse,
                "heads": [1],
                "rows": [0, 2],
                "causal": "top-left",
                "softcap": 2.0,
                "sinks": None,
                "mask": floats(3, 5) > 0,
                "kv_lengths": [4],
            },
        )
    )
    mixed = {"query": floats(2, 3, 4), "keys": floats(2, 5, 4), "values": floats(2, 5, 6), "v": floats(4),
             "lengths": np.array([5, 2]), "mask": floats(3, 5) > 0}  # fmt: skip
    recipe("additive_attention")(lambda: (fa.additive_attention, mixed | {"return_weights": True}))
    recipe("additive_attention_forward")(lambda: (fa.additive_attention_forward, dict(mixed)))
    kept = fa.additive_attention_forward(**mixed)[1]
    recipe("additive_attention_backward")(
        lambda: (fa.additive_attention_backward, {"dcontext": floats(2, 3, 6), "saved": kept})
    )
    gradients = {"dq": part, "dk": part, "dv": part, "dmask": None, "dsinks": None, "dalibi_slopes": None}
    recipe("AttentionGradients")(lambda: (fa.AttentionGradients, dict(gradients)))


# ---- recurrent ----

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def recurrent_weights(gates, size=3, hidden=4, lanes=("_l0",), projected=0, peephole=False, width=None):
    weights = {}
    output = projected or hidden
    for i, lane in enumerate(lanes):
        inputs = size if "_l0" in lane or width is None else width
        weights |= {
            f"weight_ih{lane}": floats(gates * hidden, inputs), f"weight_hh{lane}": floats(gates * hidden, output),
            f"bias_ih{lane}": floats(gates * hidden), f"bias_hh{lane}": floats(gates * hidden + i)[: gates * hidden],
        }  # fmt: skip
        if projected:
            weights[f"weight_hr{lane}"] = floats(projected, hidden)
        if peephole:
            weights[f"weight_peephole{lane}"] = floats(3, hidden)
    return weights


def _cells():
    h, c = floats(2, 4), floats(2, 4)
    for name, gates in GATES.items():
        states = {"h": h, "c": c} if name == "lstm" else {"h": h}
        arguments = {"x": floats(2, 3), **states, "w_ih": floats(gates * 4, 3), "w_hh": floats(gates * 4, 4),
                     "b_ih": floats(gates * 4), "b_hh": floats(gates * 4)}  # fmt: skip
        arguments |= {
            "rnn": {"nonlinearity": "relu"}, "gru": {"linear_before_reset": False},
            "lstm": {"peephole": floats(3, 4), "clip": 3.0, "coupled": False},
        }[name]  # fmt: skip
        for suffix in ("", "_forward"):
            function = getattr(fa, f"{name}_cell{suffix}")
            recipe(f"{name}_cell{suffix}")(lambda f=function, a=arguments: (f, dict(a)))
        saved = getattr(fa, f"{name}_cell_forward")(**arguments)[-1]
        function = getattr(fa, f"{name}_cell_backward")
        gradients = {next(iter(inspect.signature(function).parameters)): (h, c) if name == "lstm" else h}
        recipe(f"{name}_cell_backward")(lambda f=function, g=gradients, s=saved: (f, g | {"saved": s}))


def _sequences():
    for name, gates in GATES.items():
        forms = [(recurrent_weights(gates), 1, 4)]
        both = ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
        forms.append((recurrent_weights(gates, lanes=both, width=8), 4, 4))
        if name == "lstm":
            forms.append((recurrent_weights(4, lanes=("_l0", "_l1"), projected=2, peephole=True, width=2), 2, 2))
        for weights, lanes, output in forms:
            h = floats(lanes, 2, output)
            state = (h, floats(lanes, 2, 4)) if name == "lstm" else h
            arguments = {"x": floats(6, 2, 3), "state": state, "weights": weights, "lengths": np.array([6, 0]),
                         "batch_first": False}  # fmt: skip
            arguments |= {"rnn": {"nonlinearity": "tanh"}, "gru": {"linear_before_reset": True},
                          "lstm": {"clip": 3.0, "coupled": False}}[name]  # fmt: skip
            function = getattr(fa, name)
            recipe(name)(lambda f=function, a=arguments: (f, a | {"gate_clip": 2.0}))
            packing = {key: arguments[key] for key in ("linear_before_reset", "coupled") if key in arguments}
            pack = getattr(fa, f"pack_{name}")
            for dtype in ("float32", "int8"):
                recipe(f"pack_{name}")(
                    lambda f=pack, a=packing, w=weights, d=dtype: (f, {"weights": w, "dtype": d} | a)
                )
                packed = arguments | {"weights": pack(weights, dtype=dtype, **packing)}
                recipe(name)(lambda f=function, a=packed: (f, dict(a)))
            training = arguments | {"dropout": 0.3 if lanes > 1 else 0.0, "seed": 3}
            forward, backward = getattr(fa, f"{name}_forward"), getattr(fa, f"{name}_backward")
            recipe(f"{name}_forward")(lambda f=forward, a=training: (f, dict(a)))
            (y, _), saved = forward(**training)
            dstate = tuple(np.ones_like(part) for part in state) if name == "lstm" else np.ones_like(state)
            names = list(inspect.signature(backward).parameters)
            given = dict(zip(names, ((np.ones_like(y), dstate), saved), strict=True))
            recipe(f"{name}_backward")(lambda f=backward, a=given: (f, dict(a)))


# ---- caches ----


def _caches():
    sizes = {"batch": 2, "kv_heads": 2, "head_dim": 4, "v_dim": 3, "capacity": 20}
    k, v, q = floats(2, 2, 5, 4), floats(2, 2, 5, 3), floats(2, 4, 2, 4)
    for dtype, page in (("float32", None), ("float32", 3), ("int8", None), ("int8", 3)):
        arguments = {**sizes, "dtype": dtype, "page_size": page}
        recipe("KVCache")(lambda a=arguments: (fa.KVCache, dict(a)))

        def filled(a=arguments):
            cache = fa.KVCache(**a)
            cache.append(k, v)
            return cache

        def method(name, given, filled=filled):
            recipe(f"KVCache.{name}")(lambda: (getattr(filled(), name), dict(given)))

        method("append", {"k": k, "v": v, "sequences": [1, 0]})
        method("attend", {"q": q, "mask": floats(2, 5) > 0, "causal": True, "scale": 0.5, "window": (3, None),
                          "softcap": 3.0, "alibi_slopes": floats(4), "sinks": floats(4), "q_lengths": [2, 1],
                          "q_start": [1, 0], "bias": floats(2, 5), "dropout_p": 0.25, "seed": 7,
                          "return_lse": True, "out": np.empty((2, 4, 2, 3), np.float32)})  # fmt: skip
        method("attend", {"q": floats(2, 4, 12, 4)})
        method("select", {"sequences": [1, 1, 0]})
        method("crop", {"lengths": [2, 5]})


# ---- modules: name -> (constructor arguments, inputs by name); backward gets ones like the result, and saved ----

X, TIME_FIRST = floats(2, 5, 8), floats(5, 2, 3)
SIZES = {"d_model": 8, "nhead": 2, "dim_feedforward": 12}
MODULES = {
    "Linear": ({"in_features": 8, "out_features": 3, "bias": True}, {"x": X, "activation": "relu"}),
    "Embedding": ({"num_embeddings": 6, "embedding_dim": 4}, {"ids": np.array([[1, 5], [0, 2]])}),
    "LayerNorm": ({"size": 8, "eps": 1e-5, "bias": True}, {"x": X}),
    "RMSNorm": ({"size": 8, "eps": 1e-5}, {"x": X}),
    "SinusoidalPositions": ({"dim": 8, "max_length": 50, "base": 100.0}, {"x": X, "offset": 3}),
    "FeedForward": (
        {"d_model": 8, "dim_feedforward": 12, "activation": "silu_gated", "bias": True},
        {"x": X},
    ),
    "MultiHeadAttention": (
        {"embed_dim": 8, "num_heads": 4, "kv_heads": 2, "bias": True},
        {"x": X, "context": floats(2, 6, 8), "mask": floats(5, 6) > -1, "causal": False, "lengths": np.array([6, 2])},
    ),
    "TransformerEncoderLayer": (
        SIZES | {"activation": "gelu", "layer_norm_eps": 1e-5, "norm_first": True, "bias": True},
        {"x": X, "mask": floats(5, 5) > -1, "causal": True, "lengths": np.array([5, 2])},
    ),
    "TransformerDecoderLayer": (
        SIZES | {"activation": "gelu", "layer_norm_eps": 1e-5, "norm_first": False, "bias": True},
        {"x": X, "memory": floats(2, 6, 8), "causal": True, "lengths": np.array([5, 2]),
         "memory_lengths": np.array([6, 1]), "memory_mask": floats(5, 6) > -1},
    ),
    "TransformerEncoder": (
        SIZES | {"num_layers": 2, "final_norm": True, "norm_first": False},
        {"x": X, "causal": False, "lengths": np.array([5, 2])},
    ),
    "TransformerDecoder": (
        SIZES | {"num_layers": 2, "final_norm": True, "norm_first": True},
        {"x": X, "memory": floats(2, 6, 8), "memory_lengths": np.array([6, 1])},
    ),
    "Transformer": (
        SIZES | {"num_encoder_layers": 1, "num_decoder_layers": 1, "output_size": 7},
        {"source": floats(2, 6, 8), "target": X, "source_lengths": np.array([6, 1]), "target_lengths": None},
    ),
    "AdditiveAttention": (
        {"query_size": 3, "key_size": 4, "attention_size": 6},
        {"query": floats(2, 2, 3), "annotations": floats(2, 5, 4), "lengths": np.array([5, 3]), "mask": None},
    ),
    "AttentionGRU": (
        {"input_size": 3, "hidden_size": 4, "key_size": 6, "attention_size": 5},
        {"x": TIME_FIRST, "annotations": floats(2, 4, 6), "state": floats(2, 4), "lengths": np.array([4, 2])},
    ),
    "RNN": (
        {"input_size": 3, "hidden_size": 4, "num_layers": 2, "nonlinearity": "relu", "bidirectional": True,
         "batch_first": False, "bias": True, "dropout": 0.0},
        {"x": TIME_FIRST, "state": floats(4, 2, 4), "lengths": np.array([5, 2])},
    ),
    "GRU": (
        {"input_size": 3, "hidden_size": 4, "num_layers": 1, "linear_before_reset": True, "bias": True},
        {"x": TIME_FIRST, "state": floats(1, 2, 4), "lengths": np.array([5, 2])},
    ),
    "LSTM": (
        {"input_size": 3, "hidden_size": 4, "num_layers": 2, "proj_size": 2, "peephole": True, "clip": 3.0,
         "coupled": False},
        {"x": TIME_FIRST, "state": (floats(2, 2, 2), floats(2, 2, 4)), "lengths": np.array([5, 2])},
    ),
    "Seq2Seq": (
        {"source_size": 9, "target_size": 11, "embed_size": 4, "hidden_size": 6, "kind": "bahdanau", "num_layers": 1,
         "attention_size": 5, "reverse_source": True},
        {"source": np.array([[1, 2, 3], [4, 5, 8]]), "target": np.array([[1, 2], [3, 10]]),
         "source_lengths": np.array([3, 2])},
    ),
}  # fmt: skip


def build(name, more=None):
    """A module of small sizes, always with the same parameters."""
    cls, arguments = getattr(nn, name), dict(MODULES[name][0]) | (more or {})
    if "rng" in inspect.signature(cls).parameters or "options" in inspect.signature(cls).parameters:
        arguments["rng"] = _rng()
    return cls(**arguments)


@functools.cache
def _saved_of(name, kind=None):
    module = build(name, kind and {"kind": kind})
    result, saved = module.forward(**MODULES[name][1])
    if name in GATES or name.lower() in GATES:
        return (np.ones_like(result[0]), None), saved
    if name == "AttentionGRU":
        attended, last = result
        return (np.ones_like(attended.y), np.ones_like(attended.context), np.ones_like(last)), saved
    return np.ones_like(result), saved


@functools.cache
def _kept(name):
    """One module for all calls that do not change it."""
    return build(name)


def _modules():
    for name, (sizes, inputs) in MODULES.items():
        cls = getattr(nn, name)
        more = {"dtype": "float32"}
        parameters = inspect.signature(cls).parameters
        takes_rng = "rng" in parameters or "options" in parameters
        recipe(f"nn.{name}")(lambda c=cls, s=sizes, m=more, r=takes_rng: (c, s | m | ({"rng": _rng()} if r else {})))
        recipe(f"nn.{name}.__call__")(lambda n=name, i=inputs: (_kept(n).__call__, dict(i)))
        recipe(f"nn.{name}.forward")(lambda n=name, i=inputs: (_kept(n).forward, dict(i)))

        def backward(n=name):
            gradient, saved = _saved_of(n)
            function = _kept(n).backward
            first, second = list(inspect.signature(function).parameters)[:2]
            return function, {first: gradient, second: saved}

        recipe(f"nn.{name}.backward")(backward)
        recipe(f"nn.{name}.parameters")(lambda n=name: (_kept(n).parameters, {}))

        def load(n=name):
            module = build(n)
            return module.load_state_dict, {"mapping": {k: v.copy() for k, v in module.parameters().items()}}

        recipe(f"nn.{name}.load_state_dict")(load)
    for kind in ("cho", "sutskever"):
        recipe("nn.Seq2Seq.__call__")(
            lambda k=kind: (shared(functools.partial(build, "Seq2Seq", _Frozen(kind=k))).__call__,
                            dict(MODULES["Seq2Seq"][1]))
        )  # fmt: skip
        recipe("nn.Seq2Seq")(lambda k=kind: (nn.Seq2Seq, MODULES["Seq2Seq"][0] | {"kind": k, "rng": _rng()}))

        def backward(k=kind):
            gradient, saved = _saved_of("Seq2Seq", k)
            return build("Seq2Seq", {"kind": k}).backward, {"dlogits": gradient, "saved": saved}

        recipe("nn.Seq2Seq.backward")(backward)
    recipe("nn.Module")(lambda: (nn.Module, {"dtype": "float32"}))
    recipe("nn.Module.parameters")(lambda: (nn.Module().parameters, {}))
    recipe("nn.Module.load_state_dict")(lambda: (nn.Module().load_state_dict, {"mapping": {}}))


class _Frozen(dict):
    """A mapping that a cache can look up."""

    def __hash__(self):
        return hash(tuple(self.items()))


def _module_methods():
    for name in ("RNN", "GRU", "LSTM"):
        cell = name.lower()
        recipe(f"nn.{name}.pack")(lambda n=name: (build(n).pack, {"dtype": "int8"}))
        recipe(f"nn.{name}.unpack")(lambda n=name: (build(n).unpack, {}))
        more = {"bidirectional": False} if name == "RNN" else {}
        lanes = 2 if name != "GRU" else 1

        def step(n=name, m=more, lanes=lanes, cell=cell):
            module = build(n, m)
            h = floats(lanes, 2, 2 if cell == "lstm" else 4)
            state = (h, floats(lanes, 2, 4)) if cell == "lstm" else h
            return module.step, {"x": floats(2, 3), "state": state, "out": copy.deepcopy(state)}

        recipe(f"nn.{name}.step")(step)
        recipe(f"nn.{name}.forward")(lambda n=name: (build(n, {"dropout": 0.25}).forward, MODULES[n][1] | {"seed": 5}))
    recipe("nn.LayerNorm.after_sum")(lambda: (_kept("LayerNorm").after_sum, {"x": X, "residual": floats(2, 5, 8)}))
    recipe("nn.LayerNorm.backward")(
        lambda: (_kept("LayerNorm").backward, {"dy": X, "saved": _saved_of("LayerNorm")[1], "dsum": floats(2, 5, 8)})
    )
    recipe("nn.LayerNorm.forward")(lambda: (_kept("LayerNorm").forward, {"x": X, "residual": floats(2, 5, 8)}))
    recipe("nn.MultiHeadAttention.project")(
        lambda: (_kept("MultiHeadAttention").project, {"context": floats(2, 6, 8), "lengths": np.array([6, 2])})
    )

    def context():
        return _kept("MultiHeadAttention").project(floats(2, 6, 8), np.array([6, 2]))

    recipe("nn.MultiHeadAttention.__call__")(
        lambda: (_kept("MultiHeadAttention").__call__, {"x": X, "context": shared(context)})
    )
    recipe("nn.MultiHeadAttention.__call__")(
        lambda: (
            _kept("MultiHeadAttention").__call__,
            {"x": X, "causal": True, "cache": fa.KVCache(2, 2, 2, dtype="float32")},
        )
    )
    recipe("Context.select")(lambda: (shared(context).select, {"sequences": [1, 1, 0]}))
    memory, lengths = floats(2, 6, 8), np.array([6, 1])
    options = {"dtype": "float32", "capacity": 30, "page_size": 3}
    for name in ("TransformerDecoderLayer", "TransformerDecoder"):
        start = {"memory": memory, "memory_lengths": lengths, **options}
        recipe(f"nn.{name}.start")(lambda n=name, s=start: (_kept(n).start, dict(s)))
        recipe(f"nn.{name}.step")(
            lambda n=name, s=start: (_kept(n).step, {"x": X[:, :2], "cache": _kept(n).start(**s)})
        )

    def without_layers():
        decoder = build("TransformerDecoder", {"num_layers": 0})
        y, saved = decoder.forward(X, memory)
        return decoder.backward, {"dy": np.ones_like(y), "saved": saved}

    recipe("nn.TransformerDecoder.backward")(without_layers)
    source = {"source": memory, "source_lengths": lengths, **options}
    recipe("nn.Transformer.start")(lambda: (_kept("Transformer").start, dict(source)))
    recipe("nn.Transformer.step")(
        lambda: (_kept("Transformer").step, {"target": X[:, :2], "cache": _kept("Transformer").start(**source)})
    )

    def layer_cache():
        cache = _kept("TransformerDecoderLayer").start(memory, memory_lengths=lengths)
        _kept("TransformerDecoderLayer").step(X[:, :2], cache)
        return cache

    recipe("LayerCache.select")(lambda: (layer_cache().select, {"sequences": [1, 0], "keep_memory": True}))

    def decoder_cache():
        cache = _kept("TransformerDecoder").start(memory, memory_lengths=lengths)
        _kept("TransformerDecoder").step(X[:, :2], cache)
        return cache

    recipe("DecoderCache.select")(lambda: (decoder_cache().select, {"sequences": [1, 0], "keep_memory": False}))
    recipe("LayerCache.crop")(lambda: (layer_cache().crop, {"lengths": [2, 1]}))
    recipe("DecoderCache.crop")(lambda: (decoder_cache().crop, {"lengths": [0, 2]}))
    annotations = floats(2, 4, 6)
    recipe("nn.AttentionGRU.annotate")(
        lambda: (_kept("AttentionGRU").annotate, {"annotations": annotations, "lengths": np.array([4, 2])})
    )
    recipe("nn.AttentionGRU.__call__")(
        lambda: (
            _kept("AttentionGRU").__call__,
            {"x": TIME_FIRST, "annotations": _kept("AttentionGRU").annotate(annotations), "state": None},
        )
    )
    words = MODULES["Seq2Seq"][1]
    recipe("nn.Seq2Seq.__call__")(lambda: (_kept("Seq2Seq").__call__, words | {"return_weights": True}))
    recipe("nn.Seq2Seq.log_probability")(
        lambda: (_kept("Seq2Seq").log_probability,
                 words | {"following": np.array([[2, 3], [1, -100]]), "ignore_index": -100})
    )  # fmt: skip
    searched = {key: words[key] for key in ("source", "source_lengths")} | {"start": 1, "end": 2, "max_length": 4}
    recipe("nn.Seq2Seq.greedy")(lambda: (_kept("Seq2Seq").greedy, dict(searched)))
    recipe("nn.Seq2Seq.beam")(lambda: (_kept("Seq2Seq").beam, searched | {"width": 3}))


def _bert():
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "max_position_embeddings": 12, "type_vocab_size": 2,
             "layer_norm_eps": 1e-12}  # fmt: skip
    recipe("nn.BertConfig")(lambda: (nn.BertConfig, dict(sizes)))
    recipe("nn.BertConfig.from_mapping")(
        lambda: (nn.BertConfig.from_mapping, {"mapping": sizes | {"hidden_act": "gelu", "model_type": "bert"}})
    )

    def model():
        return nn.BertModel(nn.BertConfig(**sizes), rng=_rng())

    def kept():
        return shared(model)

    recipe("nn.BertModel")(lambda: (nn.BertModel, {"config": nn.BertConfig(**sizes), "rng": _rng()}))
    for dtype in ("float32", BFLOAT16):
        recipe("nn.BertModel.pack")(lambda d=dtype: (kept().pack, {"dtype": d}))
    packed = functools.partial(lambda: kept().pack())
    recipe("nn.BertModel.__call__")(
        lambda: (kept().__call__,
                 {"ids": np.array([1, 5, 2, 1, 2]), "cu_seqlens": np.array([0, 3, 5]), "weights": shared(packed)})
    )  # fmt: skip
    recipe("nn.BertModel.embed")(
        lambda: (kept().embed, {"sequences": [[1, 5, 2], [1, 2]], "weights": shared(packed), "batch_tokens": 4})
    )
    recipe("nn.BertModel.parameters")(lambda: (kept().parameters, {}))

    def load():
        module = model()
        return module.load_state_dict, {"mapping": {f"bert.{k}": v.copy() for k, v in module.parameters().items()}}

    recipe("nn.BertModel.load_state_dict")(load)


def _files():
    header = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    data = len(header).to_bytes(8, "little") + header + np.float32([1, 2]).tobytes()
    folder = tempfile.mkdtemp()
    path = Path(folder) / "one.safetensors"
    path.write_bytes(data)

    recipe("nn.read_safetensors")(lambda: (nn.read_safetensors, {"path": str(path)}))


# ---- configuration: what a call sets is put back ----


def _configuration():
    def restoring(function, **arguments):
        threads, isa = fa.get_num_threads(), fa.config.get_isa()
        try:
            result = function(**arguments)
            if hasattr(result, "__enter__"):
                with result:
                    pass
        finally:
            fa.set_num_threads(threads)
            assert fa.config.get_isa() == isa, "the instruction set is not what it was"

    def quiet(**arguments):
        with contextlib.redirect_stdout(io.StringIO()):
            fa.show_config(**arguments)

    for name, owner, arguments in (
        ("set_num_threads", fa, {"n": 2}), ("num_threads", fa, {"n": 2}), ("get_num_threads", fa, {}),
        ("use_isa", fa.config, {"name": "baseline"}), ("attention_strategy", fa.config, {"name": "fused"}),
        ("linear_strategy", fa.config, {"name": "native"}), ("available_isas", fa.config, {}),
        ("get_isa", fa.config, {}), ("info", fa.config, {}), ("trim", fa.config, {}), ("version", fa.config, {}),
        ("register_threadpoolctl", fa.config, {}),
    ):  # fmt: skip
        names = [f"config.{name}", name] if owner is fa else [f"config.{name}"]
        function = functools.partial(restoring, getattr(owner, name))
        recipe(*names)(lambda f=function, a=arguments: (f, dict(a)))
    recipe("show_config", "config.show_config")(lambda: (quiet, {}))


# ---- saved values and other results: their constructors ----


def _saved_values():
    """Classes whose values come with an op are constructed from such a value's fields."""
    sources = {
        "SavedAdditive": "additive_attention_backward", "SavedAttention": "attention_backward",
        "SavedAttentionVarlen": "attention_varlen_backward", "SavedCrossEntropy": "cross_entropy_backward",
        "SavedEmbedding": "embedding_backward", "SavedLinear": "linear_backward", "SavedRope": "rope_backward",
    }  # fmt: skip
    for name, op in sources.items():
        saved = RECIPES[op][0]()[1]["saved"]
        fields = getattr(saved, "_fields", None) or [field.name for field in dataclasses.fields(saved) if field.init]
        values = {field: getattr(saved, field) for field in fields}
        cls = type(saved)
        recipe(name)(lambda c=cls, v=values: (c, dict(v)))


for _part in (_elementwise, _norms, _linear, _tokens, _attention, _cells, _sequences, _caches, _modules,
              _module_methods, _bert, _files, _configuration, _saved_values):  # fmt: skip
    _part()


@recipe("get_include", "config.get_include")
def _no_values():
    return fa.get_include, {}
