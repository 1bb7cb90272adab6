"""A pre-trained model put to use: sentence embeddings of real text, and the sentences nearest to a question."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.claims import LeftOut, Part, Settings, Tick
from benchmarks.embed import rates as embed_rates
from benchmarks.embed import sentences as embed
from benchmarks.kernels.case import Array

QUICK_SENTENCES = 128
QUESTIONS = (
    "How do I handle an error that has been raised?",
    "What happens when two numbers are divided?",
    "How is a class derived from another one?",
)


def measure(settings: Settings, tick: Tick) -> Part:
    """Tokens a second, and answers."""
    for package in ("tokenizers", embed.PACKAGE):
        if find_spec(package) is None:
            raise LeftOut(
                f"sentences: needs the package {package.replace('_', '-')} (see benchmarks/embed/sentences.py)"
            )
    tick("loading the model")
    model = embed.load(embed.model_folder())
    sentences = embed_rates.sentences(QUICK_SENTENCES if settings.quick else embed_rates.SENTENCES)
    ids = model.ids(sentences)
    tokens = sum(map(len, ids))
    kinds = ["float32", *(["bfloat16"] if find_spec("ml_dtypes") else [])]
    rows: list[list[str]] = []
    rates: list[dict[str, Any]] = []
    vectors: dict[str, Array] = {}
    for kind in kinds:
        weights = model.bert.pack(embed.array_type(kind))
        for threads in sorted({1, settings.threads}):
            tick(f"{len(sentences)} sentences, {kind}, {threads} threads")
            with fa.num_threads(threads):
                unsorted, vectors[kind] = embed_rates.rate(partial(model.bert.embed, weights=weights), ids)
                by_length, _ = embed_rates.rate(partial(model.bert.embed, weights=weights), sorted(ids, key=len))
            rate = {"unsorted": unsorted, "sorted": by_length}
            rates.append({"dtype": kind, "threads": threads, **rate})
            rows.append([kind, str(threads), f"{rate['unsorted']:,.0f}", f"{rate['sorted']:,.0f}"])
    answers: list[list[str]] = []
    for question in QUESTIONS:
        (query,) = embed.embed(model, [question])
        for rank, (index, cosine) in enumerate(embed.nearest(query, vectors["float32"], 3)):
            answers.append([question if rank == 0 else "", f"{cosine:.2f}", sentences[index][:110]])
    most = rates[-1]
    found = [
        f"all-MiniLM-L6-v2 embeds {len(sentences)} sentences ({tokens:,} tokens) of real text, without padding."
        f" With {most['threads']} threads in {most['dtype']}, sorting them by length brings"
        f" {100 * (most['sorted'] / most['unsorted'] - 1):+.0f} %."
    ]
    if "bfloat16" in vectors:
        cosine = np.sum(vectors["float32"] * vectors["bfloat16"], axis=1)
        found.append(
            f"In bfloat16 the least cosine with the float32 embedding of the same sentence is {cosine.min():.5f}."
        )
    return Part(
        "A pre-trained model at work",
        "Transformers are easy to train, transfer well, and pre-trained models are put to real tasks.",
        found,
        tables=[
            {"head": ["dtype", "threads", "tokens/s as they come", "tokens/s sorted by length"], "rows": rows},
            {"head": ["question", "cosine", "nearest sentences"], "rows": answers, "text": (0, 2)},
        ],
        data={"rates": rates, "answers": answers},
    )
