"""One picture of what was measured: the speed of the libraries on six jobs, as bars.

    python -m benchmarks.report.headline results/TIME.json [--embeddings FILE.json] [--out FOLDER]

The first file is that of `python -m benchmarks`, the second that of `python -m benchmarks.embed.rates --json FILE`.
Writes headline-light.svg and headline-dark.svg, which the README shows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import plots

OURS = "fastattn"
LABELS = {"fastattn": "fastattn", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
# Case of the benchmarks -> what a reader calls it.
JOBS = {
    "attention f32 causal B1 H12 S2048 D64": "attention, causal, 12 heads, 2048 tokens",
    "decode float32 H32 K8 S4096 D128": "decoding, 32 heads on 8, 4096 tokens",
    "lstm T512 B32 I512 H512": "LSTM, 512 steps, batch 32, 512 units",
    "gru T512 B32 I512 H512": "GRU, 512 steps, batch 32, 512 units",
    "encoder layer forward and backward B8 L256 E512 H8": "training an encoder layer, batch 8, 256 tokens",
}
EMBEDDINGS = "sentence embeddings, MiniLM, 1024 sentences"


@dataclass(frozen=True)
class Job:
    """Seconds of each library (or seconds for a token)."""

    label: str
    seconds: dict[str, float]


def jobs(cases: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, Any]], threads: int) -> list[Job]:
    """The jobs among the cases of a run, and of rates of embeddings, in the order of the picture."""
    found = []
    for name, label in JOBS.items():
        for case in cases:
            if case["case"] == name and case["threads"] == threads:
                times = {m["library"]: m["minimum"] for m in case["measurements"] if m["minimum"]}
                found.append(Job(label, {library: times[library] for library in LABELS if library in times}))
    for row in rates:
        if (row["dtype"], row["threads"], row["order"]) == ("float32", threads, "sorted"):
            found.append(Job(EMBEDDINGS, {library: 1 / row[library] for library in LABELS if row.get(library)}))
    return [job for job in found if OURS in job.seconds]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.headline", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("results", type=Path)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/_static"))
    options = parser.parse_args(arguments)
    data = json.loads(options.results.read_text(encoding="utf-8"))
    rates = json.loads(options.embeddings.read_text(encoding="utf-8"))["rows"] if options.embeddings else []
    threads = max(case["threads"] for case in data["cases"])
    found = jobs(data["cases"], rates, threads)
    if not found:
        raise SystemExit(f"{options.results}: none of these cases was measured: {', '.join(JOBS)}")
    footnote = f"{data['machine']['cpu']}, {threads} threads, {data['time'][:10]}"
    for theme in ("light", "dark"):
        path = options.out / f"headline-{theme}.svg"
        path.write_text(plots.alone(plots.headline(found, LABELS, footnote), theme), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
