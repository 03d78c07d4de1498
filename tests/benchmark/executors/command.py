"""A command for executors: `ACTION FILE`."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

ACTION, FILE = sys.argv[1], Path(sys.argv[2])


def interrupt(number: int, *_: object) -> NoReturn:
    """As the stages of a benchmark do: what is there is kept, and the next call resumes."""
    FILE.write_text(signal.Signals(number).name)
    sys.exit(130)


if __name__ == "__main__":
    print(f"{ACTION} begins")
    if ACTION == "write":
        FILE.write_text(" ".join(f"{name}={os.environ.get(name)}" for name in sys.argv[3:]))
    elif ACTION == "raise":
        raise RuntimeError("a job that raises")
    elif ACTION == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif ACTION == "deaf":  # to signals
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    elif not FILE.exists():  # "long": until it is interrupted; a repetition resumes
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, interrupt)
        FILE.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
