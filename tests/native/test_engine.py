"""What kernels run on: the instruction set, the threads, and arrays of this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import ProgramError
from edge_runtime.native import _native
from edge_runtime.trainers import MAX_THREADS

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 2**40])
def test_a_number_of_threads_that_is_none(threads: int) -> None:
    with pytest.raises(ProgramError, match=f"expected 1 to {MAX_THREADS} threads, got {threads}"):
        _native.kernels(threads=threads)


def test_arrays_must_be_aligned() -> None:
    with pytest.raises(ValueError, match="x is not aligned"):
        _native.kernels().relu(np.zeros(17, np.uint8)[1:].view(np.float32))


def test_python_and_the_extension_agree_on_the_most_threads() -> None:
    assert MAX_THREADS == _native.MAX_THREADS


def test_an_instruction_set_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in _native.isas():
        monkeypatch.setenv("FLEXMOE_ISA", isa)
        assert _native.kernels().isa == isa
    monkeypatch.setenv("FLEXMOE_ISA", "")
    assert _native.kernels().isa == _native.isas()[0]
    monkeypatch.setenv("FLEXMOE_ISA", "bogus")
    with pytest.raises(ProgramError, match=f"FLEXMOE_ISA is 'bogus'; .*{_native.isas()[-1]}"):
        _native.kernels()


FORK = """
import os
import numpy as np
from edge_runtime.errors import ProgramError
from edge_runtime.native import _native
from edge_runtime.trainers import MAX_THREADS

kernels = _native.kernels(threads=3)
a = np.ones((200, 200), np.float32)
expected = kernels.gemm(a, a)  # its threads are awake
child = os.fork()
if child == 0:
    same = bool((kernels.gemm(a, a) == expected).all())
    del kernels
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (kernels.gemm(a, a) == expected).all())
"""


def test_a_child_of_a_fork_computes_without_its_parents_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["0", "True"], done.stderr


NO_MORE_THREADS = """
import resource
from edge_runtime.native import _native

# New threads need room for their stacks, which there is not.
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    _native.kernels(threads=256)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_threads_that_the_machine_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MORE_THREADS],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.stdout.startswith("ProgramError cannot start 256 threads ("), done
