"""Sequential recurrence against parallel attention, over length and threads: the main job's measurement, in short."""

from benchmarks import job
from benchmarks.claims import Part, Settings, Tick
from benchmarks.report import plots, report
from benchmarks.text import claim, encoders
from benchmarks.text import corpus as text


def measure(settings: Settings, tick: Tick) -> Part:
    """Time per token of encoders of equal size on the same text."""
    corpus = text.Corpus(text.load(None), encoders.WIDTH)
    counts = job.thread_counts(settings.threads)
    measured = claim.measure(corpus, True, counts, 1 if settings.quick else 3, tick)
    figures = [plots.encoders_over_length(measured)]
    if len(counts) > 1:
        figures.append(plots.encoders_over_threads(measured))
    return Part(
        "Steps in a chain, and work in parallel",
        "Attention costs the square of the length, but unlike the LSTM it runs in parallel and so uses the hardware.",
        [
            f"Four encoders of width {measured.width} with {measured.parameters['attention']:,} parameters each read"
            " the same passages of real text; python -m benchmarks measures more lengths and batches.",
            *report.findings(measured),
        ],
        figures,
        data={"points": [vars(point) for point in measured.points]},
    )
