import multiprocessing
import os
from multiprocessing.connection import Connection

from direct_hifimamba.benchmark.run.processes import ENVIRONMENT, start_process


def send_environment(connection: Connection) -> None:
    connection.send(dict(os.environ))


def test_environment_is_that_of_the_process_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    parent, child = multiprocessing.Pipe()
    process = start_process(send_environment, (child,))
    assert dict(os.environ) == before
    process.join()
    assert process.exitcode == 0 and parent.recv().items() >= ENVIRONMENT.items()
