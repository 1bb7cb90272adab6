"""Models with fastattn's attention against the same models with transformers' eager attention."""

import copy
from typing import Any

import torch
from transformers import GenerationMixin

from tests.transformers.architectures import ARCHITECTURES, BYPASSING, build, inputs

FORWARD = 2e-6  # largest difference of outputs, relative to the largest output
GRADIENT = 5e-7  # norm of the difference of all gradients, relative to their norm
ERROR = 2  # distance from float64, over that of eager: of bfloat16 outputs, and of gradients that exceed GRADIENT
NEW_TOKENS = 12


def pair(name: str, **changes: Any) -> tuple[Any, Any]:
    """The model with eager attention, and with fastattn's."""
    return build(name, "eager", **changes), build(name, "fastattn", **changes)


def output(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """The main output of a call, 0 at positions of padding: eager attention of padding is a mean over all keys."""
    result = model(**arguments)
    found = next(result[key] for key in ("logits", "last_hidden_state", "logits_per_image") if key in result)
    present = arguments.get("attention_mask")
    if present is not None and present.shape == found.shape[:2] and "decoder_input_ids" not in arguments:
        found = found.masked_fill(present[..., None] == 0, 0)
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def forward_difference(name: str, left: bool = False, padded: bool = True) -> float:
    arguments = inputs((ARCHITECTURES | BYPASSING)[name].kind, left=left, padded=padded)
    with torch.no_grad():
        eager, ours = (output(model, arguments) for model in pair(name))
    return relative(ours, eager)


def gradients(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """Of a loss with drawn weights for the outputs, one vector."""
    found = output(model, arguments)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(found.dtype)
    (found * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def gradient_difference(name: str) -> float:
    arguments = inputs(ARCHITECTURES[name].kind)
    eager, ours = (gradients(model, arguments).double() for model in pair(name))
    assert eager.shape == ours.shape
    return ((ours - eager).norm() / eager.norm()).item()


def doubled(model: Any) -> Any:
    """The same weights in float64."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return copy.deepcopy(model).double()


def truth_ratio(name: str) -> tuple[float, float]:
    """Errors of float32 outputs and gradients against float64, over those with eager attention."""
    arguments = inputs(ARCHITECTURES[name].kind, padded=False)  # eager attention of padding can be NaN in float64
    models = pair(name)
    exact = doubled(models[0])
    doubles = {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}
    found = [(output(m, a).detach(), gradients(m, a)) for m, a in ((exact, doubles), *((m, arguments) for m in models))]
    (out, gradient), *others = found
    errors = [((o - out).norm().item(), (g - gradient).norm().item()) for o, g in others]
    return errors[1][0] / errors[0][0], errors[1][1] / errors[0][1]


def bfloat16_ratio(name: str) -> float:
    """Error of the bfloat16 model against the same weights in float64, over the error with eager attention."""
    arguments = inputs(ARCHITECTURES[name].kind)
    rounded = {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in arguments.items()
    }  # fmt: skip
    models = [model.bfloat16() for model in pair(name)]
    exact = doubled(models[0])
    exact_arguments = {key: value.double() if value.is_floating_point() else value for key, value in rounded.items()}
    with torch.no_grad():
        truth = output(exact, exact_arguments)
        eager, ours = ((output(model, rounded).double() - truth).norm().item() for model in models)
    return ours / eager


GENERATIONS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "static cache": {"cache_implementation": "static"},
    "left padding": {},
    "beams": {"num_beams": 3},
    "assisted": {},
    "without cache": {"use_cache": False},
}


def tokens(model: Any, name: str, way: str) -> list[list[int]]:
    kind = ARCHITECTURES[name].kind
    one = way == "assisted"  # transformers takes one sequence
    arguments = inputs(kind, batch=1 if one else 2, left=True, padded=way == "left padding")
    arguments.pop("decoder_input_ids", None)
    options = dict(GENERATIONS[way])
    if one and kind == "speech":  # Whisper has a generate of its own, which an assistant would call
        options["prompt_lookup_num_tokens"] = 3
    elif one:
        options["assistant_model"] = assistant(model)
    found = GenerationMixin.generate(model, **arguments, **options, max_new_tokens=NEW_TOKENS, do_sample=False,
                                    no_repeat_ngram_size=2)  # fmt: skip
    return found.tolist()


def assistant(model: Any) -> Any:
    """A model that is right now and then: the same one, with slightly different weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for parameter in other.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return other


def generated(name: str, way: str) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens with eager attention, and with fastattn's."""
    eager, ours = pair(name)
    return tokens(eager, name, way), tokens(ours, name, way)


def gradients_agree(name: str) -> bool:
    """Whether gradients are those of eager attention, or hardly further from float64 than these."""
    return gradient_difference(name) <= GRADIENT or truth_ratio(name)[1] <= ERROR
