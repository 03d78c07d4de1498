"""Processing of many files in several processes, with a progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait

import torch
from tqdm import tqdm


def map_files[Task, Result](
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int,
    description: str,
    unit: str = "file",
    threads: int = 1,
) -> Iterator[Result]:
    """Yield results in the order of the tasks; with one thread they do not depend on `jobs`.

    Parameters
    ----------
    function : Callable
        Function of one task. With several jobs, function and tasks must be picklable. An exception stops all jobs.
    tasks : Sequence
    jobs : int
        Number of processes.
    description : str
        Label of the progress bar.
    unit : str
        What a task is, in the progress bar.
    threads : int
        Number of threads on which PyTorch computes in each process.
    """
    if min(jobs, len(tasks)) < 2:
        threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield from tqdm(map(function, tasks), description, len(tasks), unit=unit)
        finally:
            torch.set_num_threads(threads_before)
        return
    # Forking a process in which PyTorch has threads can deadlock.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(jobs, len(tasks)), context, _start_worker, (threads,))
    try:
        yield from tqdm(executor.map(function, tasks), description, len(tasks), unit=unit)
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has been killed, which could not tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
