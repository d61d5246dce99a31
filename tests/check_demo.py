"""Checks a finished demo: python tests/check_demo.py demo/run/metrics.json

Median r / ceiling >= 0.75 over all voxels and >= 0.5 within each planted kind, and
retrieval top-1 >= 20 times chance, for every subject. Exits 1 and says what is short.
"""

import json
import pathlib
import sys

KINDS = ("kind:orientation", "kind:colour", "kind:object", "kind:scene")


def shortfalls(metrics: dict) -> list[str]:
    """What is below its bound, or absent."""
    found = [] if len(metrics["subjects"]) == 3 else ["not three subjects"]
    for name, s in metrics["subjects"].items():
        bounds = [("all voxels", s["noise_normalised"]["median"], 0.75)]
        for kind in KINDS:
            roi = s["roi"].get(kind, {"noise_normalised": {"median": 0}})
            bounds.append((kind, roi["noise_normalised"]["median"], 0.5))
        pool = s["retrieval"]["pool"]
        bounds.append((f"top-1 of {pool}", s["retrieval"]["top1"], 20 / pool))
        for what, value, bound in bounds:
            print(f"{name} {what}: {value:.3f}, bound {bound:.3f}")
            if not value >= bound:
                found.append(f"{name} {what} is {value}, below {bound}")
    return found


if __name__ == "__main__":
    missed = shortfalls(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    print("\n".join(missed) or "the demo reaches every bound")
    sys.exit(1 if missed else 0)
