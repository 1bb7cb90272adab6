"""Malformed calls of everything public: a valid call (tests/malformed_recipes.py) with one to three arguments replaced
(tests/malformed_values.py). A call may give a result, or raise an exception of ALLOWED whose message names the
function and the argument. It may not end or hang the process, warn, take masked or byte-swapped arrays for others, or
change what later calls compute.

A case is one integer: it alone says which call is spoilt, and how. `sweep` runs ranges of cases in forked processes, so
that a case that ends its process, or does not come back, is a finding, and the rest goes on.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import inspect
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

import fastattn as fa
from tests import malformed_recipes
from tests.malformed_values import holds, spoilt

ALLOWED = (TypeError, ValueError, MemoryError)
# load_state_dict names what is missing or unknown, as PyTorch's; files may not be there.
DOCUMENTED = {"load_state_dict": (KeyError,), "read_safetensors": (OSError,)}
MEMORY = 1 << 30  # bytes that a process may take beyond what it has: a call that needs more gets a MemoryError
SECONDS = 2.0  # of processor time in one call
MOST_SECONDS = 30.0  # by the clock, on a busy machine
MOST_COPIED = 10_000  # elements
CHECK_EVERY = 64  # calls, of which the last is a valid one with a known answer
NAMES = sorted(malformed_recipes.RECIPES)


# ---- one case ----


def draw(case, names=NAMES):
    """Name, function, arguments, and the names of those that are spoilt."""
    rng = random.Random(case)
    name = rng.choice(names)
    function, arguments = rng.choice(malformed_recipes.RECIPES[name])()
    changed = rng.sample(list(arguments), min(len(arguments), rng.choice((1, 1, 1, 1, 1, 2, 2, 3))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for argument in changed:
            arguments[argument] = spoilt(rng, arguments[argument])
        if isinstance(arguments.get("out"), np.ndarray) and rng.random() < 0.2:
            changed.append("out")
            _let_meet(rng, arguments)
    if not arguments or rng.random() < 0.01:
        changed.append("unknown_argument")
        arguments["unknown_argument"] = 1
    return name, function, arguments, changed


def _let_meet(rng, arguments):
    """The output in the memory of an input, which is copied first: other calls share it."""
    inputs = [name for name, value in arguments.items() if name != "out" and type(value) is np.ndarray and value.ndim]
    if not inputs:
        return
    name = rng.choice(inputs)
    if arguments[name].size > MOST_COPIED:
        return
    arguments[name] = whole = arguments[name].copy()
    arguments["out"] = rng.choice((whole, whole[::-1], whole[1:], whole.reshape(-1), whole.swapaxes(0, -1)))


def run(case, names=NAMES):
    """What is wrong with the outcome of a case: None, or (kind, message)."""
    name, function, arguments, changed = draw(case, names)
    return judge(name, function, arguments, changed)


def judge(name, function, arguments, changed):
    try:
        function(**arguments)
    except Exception as error:
        return _wrong_error(name, function, error, arguments)
    # Of what forward calls saved, and of packed weights, not all is read.
    looked_at = {} if name.startswith("nn.Bert") or not name.rsplit(".", 1)[-1].islower() else set(changed) - {"saved"}
    if any(holds(arguments[argument], np.ma.MaskedArray) for argument in looked_at):
        return "accepted", "a masked array was taken for an ordinary one"
    return None


def _wrong_error(name, function, error, arguments):
    last = name.rsplit(".", 1)[-1]
    text = str(error)
    what = f"{type(error).__name__}: {text}\n{_where(error)}"
    if isinstance(error, Warning):
        return "warning", what
    if not isinstance(error, ALLOWED + DOCUMENTED.get(last, ())):
        return "type", what
    if isinstance(error, OSError) or _PYTHONS_OWN.search(text):
        return None
    owner, colon, rest = text.strip("'\"").partition(":")
    words = _words_of(name, owner, function, arguments) if colon else None
    if words is None or not (isinstance(error, MemoryError) or words & set(re.findall(r"\w+", rest))):
        return "unnamed", what
    return None


# Python's own errors of calls, which name both.
_PYTHONS_OWN = re.compile(r"\(\) (got an unexpected|missing \d|takes \w+ (positional|no) |takes \d)")
_PARTS = {"grads": {"dy", "dstate", "dh", "dc", "dcontext"}, "positions": {"cos", "sin"}}


def _words_of(name, owner, function, arguments):
    """What an error may call its argument, if `owner` is the function or its class."""
    parts = name.removeprefix("nn.").removeprefix("config.").split(".")
    words = set(arguments)
    for argument, value in arguments.items():
        words |= _PARTS.get(argument, set()) | _names_in(value)
    if owner in {".".join(parts), parts[-1], parts[0], name, parts[-1].removesuffix("_forward"), f"{parts[0]}.step"}:
        return words | _parameters(function)
    return None


def _names_in(value):
    """Names of what an argument holds by name."""
    if type(value) is dict:
        return {word for key in value if isinstance(key, str) for word in re.findall(r"\w+", key)}
    if dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value)}
    return set(getattr(value, "_fields", ())) if isinstance(value, tuple) else set()


def _parameters(function):
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _where(error):
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[1:])) or "?"


def describe(case, names=NAMES):
    """The call of a case, for people."""
    name, _, arguments, changed = draw(case, names)
    return f"{name}({', '.join(f'{argument}={_short(arguments[argument])}' for argument in changed)})"


def _short(value):
    if isinstance(value, np.ndarray):
        return f"<{type(value).__name__} {value.dtype} {value.shape} strides {value.strides}>"
    try:
        return re.sub(r" at 0x\w+", "", f"{value!r:.300}")
    except Exception:
        return f"<{type(value).__name__}>"


# ---- known answers ----


def answers(value):
    """All numbers of a result, as bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return b"".join(answers(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, np.ndarray) or np.isscalar(value):
        return np.asarray(value).tobytes()
    if isinstance(value, (tuple, list)):
        return b"".join(map(answers, value))
    if isinstance(value, dict):
        return b"".join(map(answers, value.values()))
    return answers(value.parameters()) if isinstance(value, fa.nn.Module) else b""


@functools.cache
def valid(name, index):
    return answers(_valid_result(name, index))


def _valid_result(name, index):
    function, arguments = malformed_recipes.RECIPES[name][index]()
    try:
        return function(**arguments)
    except ALLOWED:  # what is only made by other functions
        return None


# ---- many cases, in processes that may end ----

_NOTE = struct.Struct("qqd")  # the case, and at its begin the processor time in ms and the clock


class Worker:
    """A forked process that runs the cases first, first + step, ... below `end`, and notes where it is."""

    def __init__(self, first, step, end, target):
        self.first, self.next, self.step, self.end, self.target = first, first, step, end, target
        self.count = len(range(first, end, step))
        self.note = mmap.mmap(-1, mmap.PAGESIZE)
        self.trace = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.begin()

    def begin(self):
        self.note[: _NOTE.size] = _NOTE.pack(self.next, 0, time.monotonic())
        self.read_end, write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.read_end)
                self._work(write_end)
                status = 0
            except BaseException:
                traceback.print_exc(file=self.trace)
                self.trace.flush()
            finally:
                os._exit(status)
        os.close(write_end)
        os.set_blocking(self.read_end, False)
        self.text = b""

    def _work(self, out):
        faulthandler.enable(self.trace, all_threads=False)
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("error")
        np.seterr(all="warn")
        for case in range(self.next, self.end, self.step):
            self.note[: _NOTE.size] = _NOTE.pack(case, time.process_time_ns() // 10**6, time.monotonic())
            found = self.target(case)
            if found is not None:
                os.write(out, json.dumps((case, *found)).encode() + b"\n")
        self.note[: _NOTE.size] = _NOTE.pack(self.end, 0, time.monotonic())

    def done(self):
        """How many cases are behind it."""
        return (_NOTE.unpack(self.note[: _NOTE.size])[0] - self.first) // self.step

    def findings(self):
        """What the process has written since."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.read_end, 1 << 16):
                self.text += data
        *lines, self.text = self.text.split(b"\n")
        return [tuple(json.loads(line)) for line in lines]

    def poll(self):
        """(findings, whether all is done). A process that ended or hangs begins again behind its case."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        case, spent, since = _NOTE.unpack(self.note[: _NOTE.size])
        how = None
        if pid == 0:
            if not _hangs(self.pid, spent, since):
                return self.findings(), False
            os.kill(self.pid, signal.SIGABRT)
            time.sleep(0.1)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            how = "hang"
        found = self.findings()
        os.close(self.read_end)
        if how is None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return found, True
        if how is None:
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        self.trace.seek(0)
        found.append((case, how.split()[0], f"{how}\n{self.trace.read().strip()}"))
        self.trace.seek(0)
        self.trace.truncate()
        self.next = case + self.step
        if self.next >= self.end:
            return found, True
        self.begin()
        return found, False


def _address_space():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * mmap.PAGESIZE


def _hangs(pid, spent, since):
    waited = time.monotonic() - since
    if waited < SECONDS:
        return False
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") - spent / 1000
    return used > SECONDS or waited > MOST_SECONDS


def checked(case, names=NAMES):
    """run, and now and then a valid call whose answer is known: the target of a Worker."""
    found = run(case, names)
    return _changed_answer(case) if found is None and case % CHECK_EVERY == 0 else found


def learn_answers():
    for name in NAMES:
        for index in range(len(malformed_recipes.RECIPES[name])):
            valid(name, index)


def _changed_answer(case):
    rng = random.Random(case)
    name = rng.choice(NAMES)
    index = rng.randrange(len(malformed_recipes.RECIPES[name]))
    if answers(_valid_result(name, index)) != valid(name, index):
        return "corrupted", f"after this case or one of the {CHECK_EVERY} before it {name} gives other bits"
    return None


def sweep(first, count, workers=1, target=checked, report=lambda done, found: None):
    """All findings of `count` cases from `first` on: (case, kind, message)."""
    learn_answers()  # before the processes begin, which then have them
    end = first + count
    running = [Worker(first + i, workers, end, target) for i in range(workers)]
    found, done = [], 0
    try:
        while running:
            for worker in list(running):
                new, ended = worker.poll()
                found += new
                if ended:
                    running.remove(worker)
                    worker.trace.close()
                    done += worker.count
            report(done + sum(worker.done() for worker in running), found)
            time.sleep(0.02)
    finally:
        for worker in running:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.trace.close()
    return found
