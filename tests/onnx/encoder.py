"""An encoder of BERT's form, exported by PyTorch."""

import io
import warnings


def exported_encoder(layers=2, width=48, heads=4, words=50):
    """The bytes of an encoder of BERT's form with random weights."""
    import torch  # noqa: PLC0415
    import torch.nn.functional as F  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            self.out, self.up, self.down = (
                nn.Linear(width, width),
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

        def forward(self, x, mask):
            q, k, v = (p(x).view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for p in self.qkv)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape)
            x = self.norms[0](x + self.out(attended))
            return self.norms[1](x + self.down(F.gelu(self.up(x))))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.norm = (
                nn.Embedding(words, width),
                nn.Embedding(512, width),
                nn.LayerNorm(width),
            )
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, ids, kept):
            x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
            mask = (1.0 - kept[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
            for layer in self.layers:
                x = layer(x, mask)
            return x

    torch.manual_seed(0)
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "length"} for name in ("ids", "kept")}
    example = torch.ones(2, 7, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(Encoder().eval(), (example, example), file,
                          dynamo=False, opset_version=17, input_names=["ids", "kept"], output_names=["hidden"],
                          dynamic_axes=axes)  # fmt: skip
    return file.getvalue()
