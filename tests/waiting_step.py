"""A child of `ubrain_jax.rounds` that does what its settings say: for the tests."""

import time
from typing import Any

import numpy as np

from ubrain_jax import rounds


def make(told: dict[str, Any]) -> rounds.Ready:
    """Steps "wait" (told["wait"] seconds), "fail", "hang", "fill" (told["mb"])."""
    if told.get("broken"):
        raise ValueError("no such\nthing")

    def wait(times: int) -> dict[str, Any]:
        print("noise of a library")
        time.sleep(told["wait"] * times)
        return {"times": times}

    def fail(times: int) -> dict[str, Any]:
        if times > 1:
            raise RuntimeError("out of memory")
        return {}

    def end(times: int) -> dict[str, Any]:
        if times > 1:
            raise SystemExit("gone")
        return {}

    def hang(times: int) -> dict[str, Any]:
        time.sleep(0 if times == 1 else 60)
        return {}

    def fill(times: int) -> dict[str, Any]:
        del times
        return {"sum": float(np.ones(told.get("mb", 1) * 125_000).sum())}

    steps = {"wait": wait, "fail": fail, "end": end, "hang": hang, "fill": fill}
    chosen = told.get("steps", ["wait"])
    peak = (lambda: 7) if told.get("counts") else None
    return rounds.Ready({k: steps[k] for k in chosen}, {"told": told}, peak)


if __name__ == "__main__":
    rounds.serve(make)
