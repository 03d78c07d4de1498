"""Processing of many files in several processes, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm


def map_files[Task, Result](
    function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, description: str
) -> Iterator[Result]:
    """Yield results in the order of the tasks; PyTorch uses one thread, so that they do not depend on `jobs`.

    Parameters
    ----------
    function : Callable
        Function of one task. With several jobs, function and tasks must be picklable. An exception stops all jobs.
    tasks : Sequence
    jobs : int
        Number of processes.
    description : str
        Label of the progress bar.
    """
    torch.set_num_threads(1)
    with tqdm(total=len(tasks), desc=description, unit="file") as progress:
        if min(jobs, len(tasks)) < 2:
            for task in tasks:
                yield function(task)
                progress.update()
            return
        # Forking a process in which PyTorch has threads can deadlock.
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(min(jobs, len(tasks)), context, torch.set_num_threads, (1,))
        try:
            for result in executor.map(function, tasks):
                yield result
                progress.update()
        finally:
            executor.shutdown(cancel_futures=True)
