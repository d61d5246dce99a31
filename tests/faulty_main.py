"""The command with a fault in process 1, at the batch that FAULT_CALL says."""

import os
import sys
import time

from ubrain_jax import batches, errors, watch

KIND, CALL = os.environ["FAULT"], int(os.environ["FAULT_CALL"])
real, calls = batches.gather, []


def faulty(*args):
    calls.append(1)
    if len(calls) == CALL and "--process_id=1" in sys.argv:
        if KIND == "raise":
            raise ValueError("a planted fault")
        watch.start_watchdog(2)
        time.sleep(600)
    return real(*args)


batches.gather = faulty

if __name__ == "__main__":
    from ubrain_jax import main

    errors.run_command(main.main)
