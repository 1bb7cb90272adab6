"""Threads and settings of the process: environment, restoring, fork, spawn, concurrent callers, limits, and what of the
process stays as it was."""

import contextlib
import ctypes
import multiprocessing
import operator
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastattn as fa
from fastattn import _core
from tests.arrays import same_bits

X = np.random.default_rng(0).standard_normal((4000, 257)).astype(np.float32)
Q = np.random.default_rng(2).standard_normal((1, 4, 150, 64)).astype(np.float32)


def run(code, **environment):
    clean = {
        k: v for k, v in os.environ.items() if k not in ("FASTATTN_NUM_THREADS", "OMP_NUM_THREADS", "FASTATTN_ISA")
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"FASTATTN_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "4,2"}, "4"),
        ({"FASTATTN_NUM_THREADS": "3", "OMP_NUM_THREADS": "4"}, "3"),
    ],
)
def test_the_environment_sets_the_number_of_threads(environment, wanted):
    assert run("import fastattn as fa; print(fa.get_num_threads())", **environment).stdout.strip() == wanted


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
def test_affinity_limits_the_default_number_of_threads():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import fastattn as fa"
    assert run(code + "; print(fa.get_num_threads())").stdout.strip() == "1"


def test_an_unknown_instruction_set_is_refused_at_import():
    result = run("import fastattn", FASTATTN_ISA="mmx")
    assert result.returncode != 0
    assert "ImportError: FASTATTN_ISA" in result.stderr


def test_settings_are_restored_after_an_exception():
    before = fa.config.get_isa(), fa.get_num_threads()
    with pytest.raises(ZeroDivisionError), fa.config.use_isa("baseline"), fa.num_threads(7):
        raise ZeroDivisionError
    assert (fa.config.get_isa(), fa.get_num_threads()) == before


INFO = fa.config.info
SETTINGS = {
    "num_threads": (fa.get_num_threads, "num_threads", (3, 5, 7)),
    "use_isa": (fa.config.get_isa, "config.use_isa", fa.config.available_isas()),
    "attention_strategy": (
        lambda: INFO()["attention_strategy"],
        "config.attention_strategy",
        ("fused", "auto"),
    ),
    "linear_strategy": (lambda: INFO()["linear_strategy"], "config.linear_strategy", ("native", "auto")),
}


def block(name, value):
    function = operator.attrgetter(SETTINGS[name][1])(fa)
    return function(value)


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_of_two_threads_end_in_any_order_and_leave_nothing_behind(name):
    read, _, values = SETTINGS[name]
    before, seen, turns = read(), [], [threading.Event() for _ in range(4)]

    def first():
        with block(name, values[0]):
            turns[0].set()
            turns[1].wait(10)
            seen.append(read() == values[0])
        turns[2].set()
        seen.append(turns[3].wait(10) and read() == values[1])  # of no block: what the last one says

    def second():
        turns[0].wait(10)
        with block(name, values[1]):
            turns[1].set()
            turns[2].wait(10)
            seen.append(read() == values[1])
            turns[3].set()
            threads[0].join()
        seen.append(read() == before)

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4
    assert read() == before


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_that_interleave_in_one_thread_leave_nothing_behind(name):
    """As those of two tasks of an event loop do."""
    read, _, values = SETTINGS[name]
    before = read()
    blocks = [block(name, value) for value in values[:2]]
    blocks[0].__enter__()
    blocks[1].__enter__()
    blocks[0].__exit__(None, None, None)
    assert read() == values[1]
    blocks[1].__exit__(None, None, None)
    assert read() == before


def test_a_thread_without_a_block_has_the_setting_of_the_one_that_started_it():
    with fa.num_threads(5), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fa.get_num_threads).result() == 5


def test_what_is_set_inside_a_block_holds_until_its_end():
    before = fa.get_num_threads()
    with fa.num_threads(3):
        fa.set_num_threads(5)
        with fa.num_threads(7):
            assert fa.get_num_threads() == 7
        assert fa.get_num_threads() == 5
    assert fa.get_num_threads() == before


@pytest.mark.parametrize("n", [0, -1, 257, 2**40])
def test_numbers_of_threads_out_of_range_are_refused(n):
    before = fa.get_num_threads()
    with pytest.raises(ValueError, match=f"must lie in 1..256, got {n}"):
        fa.set_num_threads(n)
    for wrong in (None, "2", 1.5, True):
        with pytest.raises(TypeError, match="must be an integer"):
            fa.set_num_threads(wrong)
    assert fa.get_num_threads() == before


@pytest.mark.parametrize("name", ["use_isa", "attention_strategy", "linear_strategy"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=name), getattr(fa.config, name)("nonsense"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_children_compute_the_same_bits_also_nested():
    with fa.num_threads(3):
        wanted = fa.softmax(X)
        child = os.fork()
        if child == 0:
            good = same_bits(fa.softmax(X), wanted)
            inner = os.fork()
            if inner == 0:
                os._exit(0 if same_bits(fa.softmax(X), wanted) else 1)
            os._exit(0 if good and os.waitpid(inner, 0)[1] == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_concurrent_callers_get_the_same_bits():
    with fa.num_threads(3):
        wanted, good = fa.softmax(X), []
        callers = [
            threading.Thread(target=lambda: good.extend(same_bits(fa.softmax(X), wanted) for _ in range(5)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(good) == 20
    assert all(good)


def test_an_idle_process_uses_no_processor():
    with fa.num_threads(3):
        fa.softmax(X)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1


def bits(x):
    return x.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_forked_while_others_compute_gets_the_same_bits():
    """The pool's locks may be held, and its workers busy, at the moment of the fork."""
    with fa.num_threads(3):
        wanted, stop = fa.softmax(X), threading.Event()

        def compute():
            while not stop.is_set():
                fa.softmax(X)

        callers = [threading.Thread(target=compute) for _ in range(2)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    os._exit(0 if same_bits(fa.softmax(X), wanted) else 1)
                deadline = time.monotonic() + 30
                while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                    time.sleep(0.001)
                if ended == (0, 0):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    pytest.fail("the child hangs")
                assert ended[1] == 0
        finally:
            stop.set()
            for caller in callers:
                caller.join()


@pytest.fixture
def disturb():
    """disturb(n): every n-th meeting of a team now finds a thread late. Returns how many teams have dissolved."""
    yield _core.disturb_threads
    _core.disturb_threads(0)


@pytest.fixture
def adaptive():
    """Teams become smaller on a busy machine, as they do for users."""
    _core.adapt_threads(True)
    yield
    _core.adapt_threads(False)


RECURRENT = {
    "RNN": ("RNN", {}),
    "LSTM, 2 layers, both directions": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "LSTM, projected": ("LSTM", {"proj_size": 96}),
    "GRU, 2 layers": ("GRU", {"num_layers": 2}),
    "GRU, reset before": ("GRU", {"linear_before_reset": False}),
}


def leaves(tree):
    """The arrays of nested tuples and dicts, in order."""
    if isinstance(tree, np.ndarray):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]


def everything_of(module, x, lengths):
    """Outputs and gradients of a call, and the outputs of some steps."""
    result, saved = module.forward(x, lengths=lengths)
    gradients = module.backward(np.cos(result[0]), saved)
    steps = [] if module.bidirectional else [module.step(x[0])]
    return leaves((result, gradients, steps))


@pytest.mark.parametrize("cell", RECURRENT)
def test_a_team_that_dissolves_anywhere_changes_no_bit(cell, isa, disturb):
    name, options = RECURRENT[cell]
    rng = np.random.default_rng(5)
    module = getattr(fa.nn, name)(64, 256, rng=rng, **options)
    x = rng.standard_normal((9, 2, 64)).astype(np.float32)
    for lengths in (None, [4, 9]):
        with fa.num_threads(1):
            wanted = everything_of(module, x, lengths)
        for threads, meetings in [(2, 1), (2, 2), (3, 5), (5, 3), (2, 7)]:
            disturb(meetings)
            with fa.num_threads(threads):
                got = everything_of(module, x, lengths)
            assert disturb(0) > 0
            assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True)), (lengths, threads, meetings)


def test_teams_become_smaller_when_a_thread_is_late_and_larger_again(disturb, adaptive):
    module = fa.nn.LSTM(256, 256, rng=np.random.default_rng(0))
    x = np.ones((4, 1, 256), np.float32)
    with fa.num_threads(4):
        disturb(1)
        deadline = time.monotonic() + 60
        while fa.config.info()["threads_now"] > 1 and time.monotonic() < deadline:
            module(x)
        assert fa.config.info()["threads_now"] == 1
        disturb(0)
        deadline = time.monotonic() + 60
        while fa.config.info()["threads_now"] < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
            fa.softmax(X)
        assert fa.config.info()["threads_now"] == 4


def test_teams_wait_for_all_their_threads_where_the_environment_says_so():
    code = (
        "import numpy as np, fastattn as fa; from fastattn import _core; _core.disturb_threads(1)\n"
        "fa.set_num_threads(4); module = fa.nn.LSTM(256, 256)\n"
        "for _ in range(200):\n"
        "    if fa.config.info()['threads_now'] == 4: module(np.ones((4, 1, 256), np.float32))\n"
        "print(_core.disturb_threads(0), fa.config.info()['threads_now'])\n"
    )
    assert run(code).stdout.split()[1] in ("1", "2")
    dissolved, now = run(code, FASTATTN_ADAPT_THREADS="0").stdout.split()
    assert int(dissolved) == 3 * 200  # after each step but the last
    assert now == "4"


def test_callers_on_a_busy_machine_get_the_same_bits(disturb, adaptive):
    """Several Python threads call while others keep the processors, teams dissolve, and their size changes."""
    module = fa.nn.LSTM(64, 256, rng=np.random.default_rng(0))
    module.pack()
    x = np.random.default_rng(1).standard_normal((20, 2, 64)).astype(np.float32)
    calls = {"lstm": lambda: module(x)[0], "softmax": lambda: fa.softmax(X), "attention": lambda: fa.attention(Q, Q, Q)}
    with fa.num_threads(1):
        wanted = {name: call() for name, call in calls.items()}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    wrong, done = [], []

    def compute(seed):
        rng = np.random.default_rng(seed)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            name = rng.choice(list(calls))
            if rng.random() < 0.2:
                fa.set_num_threads(int(rng.integers(1, 5)))
            done.append(name)
            if not same_bits(calls[name](), wanted[name]):
                wrong.append(name)

    try:
        with fa.num_threads(3):
            disturb(3)
            callers = [threading.Thread(target=compute, args=(seed,)) for seed in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert len(done) >= 8
    assert not wrong


def test_a_spawned_process_gets_the_same_bits():
    with fa.num_threads(3):
        wanted = bits(fa.softmax(X))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply_async(bits, (X,)).get(60) == bits(X)  # what arrives is what was sent
            assert bits(pool.apply_async(fa.softmax, (X,)).get(60)) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes are told apart here as Linux does it")
def test_without_threads_of_its_own_a_call_computes_alone():
    """pthread_create fails under RLIMIT_NPROC, which root has to give up its rights to feel."""
    code = (
        "import os, resource, sys, threading, numpy as np, fastattn as fa\n"
        "x = np.random.default_rng(0).standard_normal((4000, 257)).astype(np.float32)\n"
        "fa.set_num_threads(1); wanted = fa.softmax(x); fa.set_num_threads(3)\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try: threading.Thread(target=int).start(); print('no limit')\n"
        "except RuntimeError: print(fa.softmax(x).tobytes() == wanted.tobytes())\n"
    )
    result = run(code)
    if result.stdout.strip() == "no limit":
        pytest.skip("this system starts threads beyond RLIMIT_NPROC")
    assert result.stdout.strip() == "True", result.stderr


def test_threadpoolctl_sees_and_limits_the_pool():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    fa.config.register_threadpoolctl()  # it may have been imported later than fastattn

    def ours():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "fastattn"]

    with fa.num_threads(3):
        assert ours() == [3]
        with threadpoolctl.threadpool_limits(1, user_api="fastattn"):
            assert ours() == [1]
            assert fa.get_num_threads() == 1
        assert fa.get_num_threads() == 3


def test_threadpoolctl_is_met_at_import():
    pytest.importorskip("threadpoolctl")
    code = "import threadpoolctl, fastattn; print([p['user_api'] for p in threadpoolctl.threadpool_info()])"
    assert "'fastattn'" in run(code).stdout


def test_trim_gives_memory_back_and_changes_no_bit():
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc to read the size of the process from")

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    x = np.linspace(-3, 3, 8_000_000, dtype=np.float32)
    wanted = fa.tanh(x[:1000])
    fa.tanh(x)  # its 32 MB are kept for the next result
    before = resident()
    fa.config.trim()
    assert before - resident() > 30e6
    assert same_bits(fa.tanh(x)[:1000], wanted)


@contextlib.contextmanager
def flushed_subnormals():
    """The caller's own setting, as fast-math libraries leave it: results below the normal numbers become 0."""
    environment = ctypes.create_string_buffer(64)
    libm = ctypes.CDLL("libm.so.6")
    libm.fegetenv(environment)
    saved = environment.raw
    control = int.from_bytes(saved[28:32], "little")
    ctypes.memmove(ctypes.addressof(environment) + 28, (control | 0x8040).to_bytes(4, "little"), 4)
    libm.fesetenv(environment)
    try:
        yield lambda: control_word(libm)
    finally:
        libm.fesetenv(ctypes.create_string_buffer(saved, 64))


def control_word(libm):
    """MXCSR without its flags of what has happened."""
    environment = ctypes.create_string_buffer(64)
    libm.fegetenv(environment)
    return int.from_bytes(environment.raw[28:32], "little") & ~0x3F


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="MXCSR is read through glibc on x86-64 here"
)
def test_the_control_word_of_the_caller_is_kept(isa):
    with fa.num_threads(3), flushed_subnormals() as word:
        before = word()
        assert before & 0x8040 == 0x8040
        fa.softmax(X)
        fa.attention(*[X[None, None, :200, :64]] * 3)
        assert word() == before


def test_import_and_calls_leave_the_process_as_it_was():
    code = (
        "import os, signal, numpy as np\n"
        "def state(): return ([signal.getsignal(s) for s in signal.valid_signals()], dict(os.environ),\n"
        "                     os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None, os.getcwd())\n"
        "before = state()\n"
        "import fastattn as fa\n"
        "fa.set_num_threads(3)\n"
        "x = np.ones((2, 4, 300, 64), np.float32); fa.attention(x, x, x)\n"
        "if fa.config.info()['blas'] != 'none':\n"
        "    with fa.config.attention_strategy('blas'): fa.attention(x, x, x)\n"
        "print(state() == before)\n"
    )
    result = run(code)
    assert result.stdout.strip() == "True", result.stderr
