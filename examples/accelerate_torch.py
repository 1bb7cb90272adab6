"""A PyTorch model is trained, and reads sequences of many lengths, with fastattn in place of its LSTM: one line.

Needs: python -m pip install "fastattn[torch]"
"""

import copy

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastattn.torch as fat


class Tagger(nn.Module):
    """Says of each number of a sequence whether a larger one came before it."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x[..., None], lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(hidden)[..., 0]


def batch(count=64):
    lengths = torch.randint(5, 21, (count,))
    lengths[0] = 20
    x = torch.rand(count, 20)
    return x, lengths, (x < x.cummax(1).values).float(), torch.arange(20) < lengths[:, None]


torch.manual_seed(0)
plain = Tagger()
model = fat.accelerate(copy.deepcopy(plain))  # the one line

optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for step in range(1, 201):
    x, lengths, wanted, inside = batch()
    loss = nn.functional.binary_cross_entropy_with_logits(model(x, lengths)[inside], wanted[inside])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

x, lengths, wanted, inside = batch(1000)
plain.load_state_dict(model.state_dict())  # the names and shapes of PyTorch
with torch.no_grad():
    found, theirs = model(x, lengths), plain(x, lengths)
right = ((found > 0) == (wanted > 0))[inside].float().mean()
print(f"right: {right:.3f}, more than nine in ten: {bool(right > 0.9)}")
print("largest difference from PyTorch:", f"{(found - theirs)[inside].abs().max():.1e}")
