"""fastattn under HuggingFace transformers: the attention of its models, with gradients, caches and generation.

    import fastattn.transformers                                    # registers attn_implementation="fastattn"
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fastattn")
    fastattn.transformers.use(model)                                # or for a model that is there already

`use` refuses models whose attention cannot be replaced. Loaded with attn_implementation="fastattn", they compute what
they always do.
"""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        'fastattn.transformers needs HuggingFace transformers: python -m pip install "fastattn[transformers]"'
    ) from error

from fastattn.transformers.models import register, use

__all__ = ["register", "use"]

register()
