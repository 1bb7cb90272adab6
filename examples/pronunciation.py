"""English words to phonemes, by the pre-trained GRU encoder-decoder of g2p-en. All words run as one ragged batch.

Needs the weights of the package: python -m pip install --no-deps g2p-en
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastattn as fa

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
# fmt: off
VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
OTHERS = ["B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "UW",
          "V", "W", "Y", "Z", "ZH"]
# fmt: on
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted(OTHERS + [vowel + stress for vowel in VOWELS for stress in "012"])]
UNKNOWN, END_OF_WORD, START, END, LONGEST = 1, 2, 2, 3, 20

checkpoint = np.load(Path(find_spec("g2p_en").origin).parent / "checkpoint20.npz")


def gru(part):
    """The packed weights of the encoder ("enc") or the decoder ("dec")."""
    names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    return fa.pack_gru({ours: checkpoint[f"{part}_{theirs}"] for ours, theirs in names.items()})


encoder, decoder = gru("enc"), gru("dec")
output = fa.pack_linear(checkpoint["fc_w"])


def pronounce(words):
    """The phonemes of each word."""
    index = {letter: i for i, letter in enumerate(LETTERS)}
    lengths = np.array([len(word) + 1 for word in words])
    ids = np.full((len(words), lengths.max(initial=0)), END_OF_WORD)
    for row, word in zip(ids, words, strict=True):
        row[: len(word)] = [index.get(letter, UNKNOWN) for letter in word]
    _, h = fa.gru(fa.embedding(ids, checkpoint["enc_emb"]), None, encoder, lengths=lengths, batch_first=True)
    written = np.full((len(words), 1), START)
    for _ in range(LONGEST):
        y, h = fa.gru(fa.embedding(written[:, -1:], checkpoint["dec_emb"]), h, decoder, batch_first=True)
        best = fa.linear(y[:, 0], output, checkpoint["fc_b"]).argmax(-1)
        written = np.append(written, best[:, None], axis=1)
    return [[PHONEMES[i] for i in row[: [*row, END].index(END)]] for row in written[:, 1:].tolist()]


if __name__ == "__main__":
    words = sys.argv[1:] or ["activationist", "fastattention", "kernels", "bahdanau", "recurrently"]
    for word, phonemes in zip(words, pronounce(words), strict=True):
        print(f"{word:15}", *phonemes)
