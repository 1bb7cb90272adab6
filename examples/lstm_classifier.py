"""A classifier trained in PyTorch runs without PyTorch: its state dict loads under the same names."""

import numpy as np
import torch

import fastattn as fa


class Classifier(torch.nn.Module):
    """Token ids [batch, length] to class scores [batch, classes]."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(1000, 64)
        self.lstm = torch.nn.LSTM(64, 128, num_layers=2, bidirectional=True, batch_first=True)
        self.output = torch.nn.Linear(256, 5)

    def forward(self, ids):
        y, _ = self.lstm(self.embedding(ids))
        return self.output(y.mean(1))


class FastClassifier(fa.nn.Module):
    """The same of fastattn's modules. Parameters have the same names, since the attributes have."""

    def __init__(self):
        super().__init__(np.float32)
        self.embedding = fa.nn.Embedding(1000, 64)
        self.lstm = fa.nn.LSTM(64, 128, num_layers=2, bidirectional=True, batch_first=True)
        self.output = fa.nn.Linear(256, 5)

    def __call__(self, ids):
        y, _ = self.lstm(self.embedding(ids))
        return self.output(y.mean(1))


torch.manual_seed(0)
trained = Classifier().eval()
fast = FastClassifier()
fast.load_state_dict(trained.state_dict())

ids = np.random.default_rng(0).integers(0, 1000, (8, 30))
with torch.no_grad():
    expected = trained(torch.from_numpy(ids)).numpy()
scores = fast(ids)
print("classes:", scores.argmax(-1))
print(f"largest difference from PyTorch: {np.abs(scores - expected).max():.1e}")
assert np.allclose(scores, expected, atol=1e-6)
