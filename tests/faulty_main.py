"""The command with a fault in process 1, at the batch that FAULT_CALL says."""

import os
import sys
import time

from ubrain_jax import batches, errors, watch

real, calls = batches.gather, []


def faulty(*args):
    calls.append(1)
    if len(calls) == int(os.environ["FAULT_CALL"]) and "--process_id=1" in sys.argv:
        if os.environ["FAULT"] == "raise":
            raise ValueError("a planted fault")
        watch.start_watchdog(2)
        time.sleep(600)
    return real(*args)


if __name__ == "__main__":
    from ubrain_jax import main

    batches.gather = faulty
    errors.run_command(main.main)
