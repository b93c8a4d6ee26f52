"""Which children die with this process."""

import json
import subprocess
import sys

from local.worker import ROOT

CODE = """
import ctypes, json, multiprocessing, subprocess, sys, threading
from qwen_worker.orphans import die_with_us

ASKS = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"

def dies():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))
    return number.value

def tell(queue, grandchild=False):
    if not grandchild:
        queue.put(dies())
        return
    process = context.Process(target=tell, args=(queue,))
    process.start()
    process.join()

def forked(grandchild=False):
    queue = context.SimpleQueue()
    process = context.Process(target=tell, args=(queue, grandchild))
    process.start()
    process.join()
    return queue.get()

context = multiprocessing.get_context("fork")
before = forked()
die_with_us()
of_thread = []
thread = threading.Thread(target=lambda: of_thread.append(forked()))
thread.start()
thread.join()
started = int(subprocess.run([sys.executable, "-c", ASKS], capture_output=True).stdout)
print(json.dumps([before, forked(), forked(grandchild=True), of_thread[0], started]))
"""


def test_what_the_main_thread_forks_dies_with_it() -> None:
    """Not its children's children, nor what another thread forks or `subprocess` starts."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [0, 9, 0, 0, 0]
