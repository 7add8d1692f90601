"""`python -m flows.services.watched MODULE ...`: runs a module and ends it, with all it started, when its parent dies.

A server that was started for a flow must not outlive a flow that was killed. It expects a process group of its own.
"""

import os
import runpy
import signal
import sys
import threading
import time


def main() -> None:
    """Runs the module named first, with the other arguments as its own."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-watchdog").start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
