"""Tokens a second of all-MiniLM-L6-v2 on real sentences, as they come and sorted by length, beside a peer.

    python -m benchmarks.embed.rates [--sentences N] [--dtype int8] [--threads N] [--json FILE]

Without --dtype and --threads: float32, bfloat16 and int8, on one thread and on all. Tokenizing is not timed. fastattn
packs ragged batches without padding; the peer (where installed, on a quarter of the sentences) pads batches of 32 to
their longest sentence: torch.nn, of int8 ONNX Runtime, quantised dynamically. The part of the peak is of multiply-adds
on tokens that exist, against the peak measured beside it; int8 against that of float32. Cosines are with the embeddings
of the peer, those of int8 with our float32, and of the peer with that too.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.embed import sentences as embed
from benchmarks.kernels import machine
from benchmarks.kernels.case import Array
from benchmarks.text import corpus as text
from fastattn import nn

SENTENCES = 1024
PEAK_SECONDS = 0.3
PEER_PART = 4  # the peer takes every so many of them
PEERS = {"float32": "torch", "bfloat16": "torch", "int8": "onnxruntime"}


def sentences(count: int) -> list[str]:
    """Real ones, evenly from the whole text."""
    found = [sentence for sentence in text.sentences(text.load()) if len(sentence.split()) > 3]
    return found[:: max(1, len(found) // count)][:count]


def multiply_adds(config: nn.BertConfig, lengths: Sequence[int]) -> float:
    """Those of the products of all layers, and of scores and weighted sums."""
    n, tokens = config.hidden_size, float(sum(lengths))
    products = tokens * (4 * n * n + 2 * n * config.intermediate_size)
    return config.num_hidden_layers * (products + 2 * n * float(sum(length * length for length in lengths)))


def rate(run: Callable[[Sequence[Array]], Array], ids: Sequence[Array], repeats: int = 2) -> tuple[float, Array]:
    """Tokens a second of the fastest call, and its embeddings."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        vectors = run(ids)
        best = min(best, time.perf_counter() - start)
    return sum(map(len, ids)) / best, vectors


def peer_of(bert: nn.BertModel, kind: str, threads: int) -> Any:
    """What computes the same in another library, or None."""
    if kind == "int8":
        if not (find_spec("onnx") and find_spec("onnxruntime")):
            return None
        return import_module("benchmarks.kernels.peers.onnxruntime_bert").OnnxRuntimeBert(bert, kind, threads)
    if not find_spec("torch"):
        return None
    import_module("torch").set_num_threads(threads)
    return import_module("benchmarks.kernels.peers.torch_bert").TorchBert(bert, kind)


def least_cosine(a: Array, b: Array) -> float:
    """Of rows of length 1."""
    return float(np.sum(a * b, axis=1).min())


def measure(model: embed.SentenceModel, ids: Sequence[Array], kind: str, threads: int) -> list[dict[str, Any]]:
    """A row for the sentences as they come, and one for them sorted."""
    weights, plain = model.bert.pack(embed.array_type(kind)), model.bert.pack()
    peer = peer_of(model.bert, kind, threads)
    rows = []
    for order, given in (("as they come", ids), ("sorted", sorted(ids, key=len))):
        with fa.num_threads(threads):
            peak = machine.multiply_add_peak("float32" if kind == "int8" else kind, threads, PEAK_SECONDS)
            ours, vectors = rate(lambda some: model.bert.embed(some, weights), given)
        work = 2e-9 * multiply_adds(model.bert.config, [len(one) for one in given]) / sum(map(len, given))
        row = {"dtype": kind, "threads": threads, "order": order, "fastattn": ours, "peak": work * ours / peak}
        if kind == "int8":
            exact = model.bert.embed(given, plain)
            row["cosine"] = least_cosine(vectors, exact)
        if peer is not None:
            # Sorted, a part of neighbours would have no lengths in common with the rest: one in PEER_PART, in order.
            row[PEERS[kind]], theirs = rate(peer.embed, given[::PEER_PART], 1)
            if kind == "int8":
                row["peer_cosine"] = least_cosine(theirs, exact[::PEER_PART])
            else:
                row["cosine"] = least_cosine(theirs, vectors[::PEER_PART])
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed.rates", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    if options.sentences < 1:
        parser.error("--sentences must be at least 1")
    model = embed.load(embed.model_folder())
    ids = model.ids(sentences(options.sentences))
    print(
        f"all-MiniLM-L6-v2: {len(ids)} sentences of {sum(map(len, ids)):,} tokens, the longest of {max(map(len, ids))}"
    )
    print("dtype     threads  order         tokens/s  of the peak      peer   ours / peer   least cosine, of the peer")
    rows = []
    kinds = ["float32", *(["bfloat16"] if find_spec("ml_dtypes") else []), "int8"]
    for kind in [options.dtype] if options.dtype else kinds:
        for threads in [options.threads] if options.threads else sorted({1, fa.get_num_threads()}):
            for row in measure(model, ids, kind, threads):
                line = f"{kind:9} {threads:7}  {row['order']:12} {row['fastattn']:9,.0f}  {row['peak']:11.2f}"
                peer = row.get(PEERS[kind])
                if peer:
                    line += f" {peer:9,.0f}  {row['fastattn'] / peer:12.2f}"
                if "cosine" in row:
                    line += f"  {row['cosine']:12.6f}"
                if "peer_cosine" in row:
                    line += f"  {row['peer_cosine']:11.6f}"
                print(line, flush=True)
                rows.append(row)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
