"""What `bench` found, as rows of figures and as a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Figures of one step; None where there is none.

    Attributes:
        part: Of `bench.PARTS`.
        step: Its name.
        ms: Median of the rounds.
        least_ms: The fastest round.
        iqr_ms: Between the quartiles of the rounds.
        images_per_second: By the median.
        model_tflops: Of one step, counted from the architecture.
        tflops_per_second: Those, by the median.
        of_gemm: Share of the measured peak of products.
        of_datasheet: Share of the data sheet's.
        xla_tflops: Of one step, of the products that XLA compiled.
        peak_gb: Highest memory: of the device where it counts it, else what the
            process has while steps run above what it had before it began.
        compile_s: Seconds.
    """

    part: str
    step: str
    ms: float
    least_ms: float
    iqr_ms: float
    images_per_second: float | None
    model_tflops: float | None
    tflops_per_second: float | None
    of_gemm: float | None
    of_datasheet: float | None
    xla_tflops: float | None
    peak_gb: float | None
    compile_s: float | None


def rows(parts: Mapping[str, Any]) -> list[Row]:
    """A row for each step that was timed.

    Args:
        parts: Of what `bench.run` returns.
    """
    gemm, sheet = _peaks(parts)
    found = []
    for part, entry in parts.items():
        for step, timed in entry.get("timed", {}).items():
            child = step if step in entry["facts"] else "jax"
            facts = entry["facts"].get(child, {})
            work = _work(step, facts, entry["facts"].get("jax", {}))
            rate = work / timed["median"] / 1e12 if work else None
            images = facts.get("images", entry["facts"].get("jax", {}).get("images"))
            # Where it is not told, the first step compiles.
            first = facts["first_step_seconds"]
            first = first.get(step, first.get("train", 0.0)) - timed["median"]
            seconds = facts.get("compile_seconds", first)
            xla = facts.get("xla_flops")
            found.append(
                Row(
                    part,
                    step,
                    timed["median"] * 1e3,
                    timed["least"] * 1e3,
                    timed["iqr"] * 1e3,
                    images / timed["median"] if images else None,
                    work / 1e12 if work else None,
                    rate,
                    rate / gemm if rate and gemm else None,
                    rate / sheet if rate and sheet else None,
                    xla / 1e12 if xla and step in ("train", "loop") else None,
                    _peak_gb(entry.get("memory", {}).get(child)),
                    seconds,
                )
            )
    return found


def _peaks(parts: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """TFLOP/s of all devices: measured, and of the data sheet."""
    entry = parts.get("gemm", {})
    if not entry.get("timed"):
        return None, None
    facts = entry["facts"]["jax"]
    # Each device does the product; the other parts share their work among them.
    count = facts["num_devices"]
    measured = facts["flops"] / entry["timed"]["gemm"]["least"] / 1e12 * count
    sheet = facts["datasheet"]
    return measured, sheet and sheet / 1e12 * count


def _work(step: str, facts: Mapping[str, Any], of_jax: Mapping[str, Any]) -> Any:
    """Model FLOPs of one step; None where they are not counted."""
    if step == "gemm":
        return facts["flops"]
    counted = ("cached", "cached_on_host", "predict", "train", "loop")
    if step in (*counted, "float32", "bfloat16"):
        return facts.get("model_flops")
    if step == "backbone":
        return facts.get("backbone_flops")
    # The same work in torch.
    return of_jax.get("model_flops") if step.startswith("torch") else None


def _peak_gb(memory: Any) -> float | None:
    if not memory:
        return None
    if memory["peak_bytes"] is not None:
        return memory["peak_bytes"] / 1e9
    steps = memory["process_bytes"]["steps"]
    return steps and steps / 1e9


def text(found: Mapping[str, Any]) -> str:
    """The table for a terminal, with ratios and what failed."""
    parts = found["parts"]
    lines = _head(parts)
    titles = ["part", "step", "ms", "least", "IQR", "images/s", "TFLOP", "TFLOP/s"]
    titles += ["of GEMM", "of sheet", "XLA TFLOP", "peak GB", "compile s"]
    table = [titles]
    for row in rows(parts):
        table.append(
            [
                row.part,
                row.step,
                *(f"{x:.1f}" for x in (row.ms, row.least_ms, row.iqr_ms)),
                _number(row.images_per_second, ".1f"),
                _number(row.model_tflops, ".3f"),
                _number(row.tflops_per_second, ".3f"),
                _number(row.of_gemm, ".0%"),
                _number(row.of_datasheet, ".0%"),
                _number(row.xla_tflops, ".3f"),
                _number(row.peak_gb, ".2f"),
                _number(row.compile_s, ".1f"),
            ]
        )
    widths = [max(len(line[k]) for line in table) for k in range(len(titles))]
    for line in table:
        left = [line[k].ljust(widths[k]) for k in (0, 1)]
        right = [line[k].rjust(widths[k]) for k in range(2, len(line))]
        lines.append("  ".join(left + right).rstrip())
    for entry in parts.values():
        for name, ratio in entry.get("ratios", {}).items():
            lines.append(
                f"{name}: {ratio['median']:.2f} times (least {ratio['least']:.2f}, IQR "
                f"{ratio['iqr']:.2f}, {ratio['repeats']} rounds)"
            )
    lines += _lost(parts)
    return "\n".join(lines)


def _head(parts: Mapping[str, Any]) -> list[str]:
    """What was measured on, and what was changed for it."""
    facts = [f for e in parts.values() for f in e.get("facts", {}).values()]
    own = [f for f in facts if "device_kind" in f]
    lines = []
    if own:
        first = own[0]
        lines.append(
            f"{first['num_devices']} x {first['device_kind']} ({first['platform']}), "
            f"jax {first['jax']}"
        )
        lines += dict.fromkeys(f"note: {n}" for f in own for n in f["notes"])
    for fact in facts:
        if "torch" in fact:
            line = f"torch {fact['torch']}, {fact['device']}, {fact['threads']} threads"
            lines.append(line) if line not in lines else None
    gemm, sheet = _peaks(parts)
    if gemm:
        lines.append(
            f"peak of products: {gemm:.3g} TFLOP/s measured, "
            + (f"{sheet:.3g} by the data sheet" if sheet else "data sheet not known")
        )
    return lines


def _lost(parts: Mapping[str, Any]) -> list[str]:
    """Waits, losses by type, and a line for each thing that failed."""
    lines = []
    for dtype, timed in parts.get("curves", {}).get("timed", {}).items():
        losses = ", ".join(f"{told['loss']:.4f}" for told in timed["told"])
        lines.append(
            f"loss in {dtype}, every {timed['steps_in_round']} steps: {losses}"
        )
    loop = parts.get("input", {}).get("timed", {}).get("loop")
    if loop:
        count = len(loop["told"])
        lines.append(
            "wait for a batch while the step runs: "
            f"{sum(told['wait_seconds'] for told in loop['told']) * 1e3 / count:.2f} ms"
        )
    for part, entry in parts.items():
        if "failed" in entry:
            lines.append(f"{part}: {entry['failed']}")
        else:
            lines += [f"{part}: {k}: {v}" for k, v in entry.get("lost", {}).items()]
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
