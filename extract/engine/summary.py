"""A finished extraction in one line, for the person who started it."""

from __future__ import annotations

from hada.extract.common.host import cores
from hada.extract.common.progress import duration, size
from hada.extract.engine.report import Report


def summary(model: str, report: Report) -> str:
    """One line on a finished extraction: rates, bytes, and what bound them.

    Args:
        model: Its name.
        report: Of the extraction; seconds, bytes and counts.
    """
    parts = [f"{report.total_images} images, {report.total_captions} captions"]
    if report.images:
        parts.append(f"{report.images / report.side_seconds['image']:.1f} images/s")
    if report.captions:
        parts.append(f"{report.captions / report.side_seconds['caption']:.0f} captions/s")
    if report.images or report.captions:
        binding = max(report.seconds, key=report.seconds.__getitem__)
        share = report.seconds[binding] / max(report.wall_seconds, 1e-9)
        parts.append(
            f"{duration(report.wall_seconds)}, {share:.0%} of it {binding} "
            f"({_remedy(binding, report)})"
        )
    else:
        parts.append("complete already")
    return f"{model}: {'; '.join(parts)}; {size(report.bytes)} in {report.store}"


def _remedy(binding: str, report: Report) -> str:
    """What to change where the loop mostly waited for `binding`."""
    if binding == "decode":
        more = "more --workers" if report.workers else f"--workers {max(2, cores())}"
        return f"to speed up: {more}, or smaller pictures"
    if binding == "forward" and not report.on_gpu:
        return "to speed up: a GPU, or --compile"
    return {
        "forward": "to speed up: --precision bf16, --compile, or a larger --batch-size",
        "transfer": "to speed up: keep fewer tokens, or a larger --batch-size",
        "write": "to speed up: a faster disk for the stores, --store-dtype float16",
    }[binding]
