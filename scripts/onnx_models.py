#!/usr/bin/env python3
"""Whole ONNX models: fastattn.onnx against onnxruntime, values and times.

    python scripts/onnx_models.py [--silero silero_vad.onnx] [--threads 1] [--rounds 20]

Silero VAD over a minute of synthetic speech, frame by frame, each session with its own states; and an encoder of
MiniLM's shape (6 layers, 384 wide, 12 heads) with random weights, exported by PyTorch. Times are of the processor, not
of the clock, in turns: other programs then disturb them less. Medians, and the median ratio of the turns.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent.parent))

import fastattn as fa
import fastattn.onnx
from tests.onnx.encoder import exported_encoder

RATE, FRAME, BEFORE = 16000, 512, 64


def speech(seconds: float) -> Any:
    """Harmonics of a voice that comes and goes, and noise."""
    at = np.arange(int(RATE * seconds)) / RATE
    pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * at)) / RATE
    voice = sum(np.sin(n * pitch) / n for n in range(1, 12)) * (np.sin(2 * np.pi * 0.4 * at) > 0)
    return (0.1 * voice + 0.005 * np.random.default_rng(0).standard_normal(len(at))).astype(np.float32)


def compare_silero(path: str, their: Any, rounds: int) -> None:
    shapes = {"input": (1, BEFORE + FRAME), "state": (2, 1, 128)}
    sessions = {
        "onnxruntime": their(path),
        "fastattn": fastattn.onnx.load(path),
        "fastattn, shapes": fastattn.onnx.load(path, shapes=shapes),
    }
    audio, probabilities, states = speech(60), {}, {}
    frames = [audio[None, start : start + BEFORE + FRAME] for start in range(0, len(audio) - BEFORE - FRAME + 1, FRAME)]
    for name, session in sessions.items():
        state, found = np.zeros((2, 1, 128), np.float32), []
        for frame in frames:
            out, state = session.run(None, {"input": frame, "state": state, "sr": np.array(RATE)})
            found.append((out.item(), state))
        probabilities[name], states[name] = np.array([p for p, _ in found]), np.stack([s for _, s in found])
    for name in list(sessions)[1:]:
        of_p = np.abs(probabilities[name] - probabilities["onnxruntime"]).max()
        of_state = np.abs(states[name] - states["onnxruntime"]) / np.maximum(1, np.abs(states["onnxruntime"]))
        print(f"Silero VAD, {len(frames)} frames, {name}: probabilities up to {probabilities[name].max():.3f} differ "
              f"by {of_p:.1e}, states by {of_state.max():.1e}")  # fmt: skip
    feeds = {"input": frames[100], "state": states["fastattn"][100], "sr": np.array(RATE)}
    show("one frame", sessions, feeds, 20 * rounds, 1e6, "us")


def compare_encoder(their: Any, rounds: int) -> None:
    data = exported_encoder(layers=6, width=384, heads=12, words=30522)
    sessions, rng = {"onnxruntime": their(data), "fastattn": fastattn.onnx.load(data)}, np.random.default_rng(0)
    for batch, length in ((1, 16), (8, 64), (32, 128)):
        kept = (np.arange(length) < rng.integers(length // 2, length + 1, (batch, 1))).astype(np.int64)
        feeds = {"ids": rng.integers(0, 30522, (batch, length)), "kept": kept}
        results = [session.run(None, feeds)[0] for session in sessions.values()]
        difference = np.abs(results[0] - results[1])[kept.astype(bool)].max()
        show(
            f"encoder, {batch} x {length}, difference {difference:.1e}",
            sessions,
            feeds,
            max(3, rounds // batch),
            1e3,
            "ms",
        )


def show(what: str, sessions: dict[str, Any], feeds: dict[str, Any], rounds: int, unit: float, name: str) -> None:
    times = np.array([[cost(lambda s=s: s.run(None, feeds)) for s in sessions.values()] for _ in range(rounds)])
    ratios = np.median(times / times[:, :1], 0)
    parts = [
        f"{n} {t * unit:.0f} {name} ({r:.2f})" for n, t, r in zip(sessions, np.median(times, 0), ratios, strict=True)
    ]
    print(f"{what}: {', '.join(parts)}")


def cost(call: Callable[[], Any]) -> float:
    """Seconds of the processor, of the second of two calls."""
    call()
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    spec = find_spec("silero_vad")
    found = Path(spec.origin).parent / "data" / "silero_vad.onnx" if spec and spec.origin else None
    parser.add_argument("--silero", default=found, help="the file; that of the package silero-vad by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    fa.set_num_threads(options.threads)

    def their(model: Any) -> Any:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    if options.silero:
        compare_silero(str(options.silero), their, options.rounds)
    compare_encoder(their, options.rounds)


if __name__ == "__main__":
    main()
