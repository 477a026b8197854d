"""What the PyTorch peers of bench/peers share: sizes of models, how work is timed, and the lines of figures."""
import json
import statistics
import time

import torch

# layers, hidden, heads, key/value heads, head size, intermediate, vocabulary, tied head: those of bench/engine_model.c
SHAPES = {"small": (4, 256, 4, 2, 64, 1344, 4096, True), "0.5b": (24, 896, 14, 2, 64, 4864, 151936, True),
          "1.5b": (28, 1536, 12, 2, 128, 8960, 151936, True), "7b": (28, 3584, 28, 4, 128, 18944, 152064, False)}
SLOW = 60  # seconds after which no run is repeated


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(work, seconds, device, calls=1):
    """Of one call, `calls` of them between two waits: the median of at least five repeats after one that does not count."""

    def run():
        for _ in range(calls):
            work()
        wait(device)

    run()
    times, begun = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        if times and time.perf_counter() - begun > SLOW:
            break
        t = time.perf_counter()
        run()
        times.append((time.perf_counter() - t) / calls)
    return statistics.median(times)


class Lines:
    """A JSON line a figure and way, as bench_engine and bench_ops write them: the fastest of a figure's lines counts. ours: this program's
    figures that are the same work."""

    def __init__(self, path, model=None):
        self.out, self.model = open(path, "w"), model

    def add(self, name, seconds, note, amount=0.0, unit="s", ours=None):
        line = {"name": name, "model": self.model, "value": amount / seconds if amount else seconds, "unit": unit,
                "seconds": seconds, "ours": ours or [name], "note": note}
        print(json.dumps(line), file=self.out, flush=True)

    def measure(self, name, ways, amount=0.0, unit="s", ours=None, note=""):
        """ways: [(kind, function that returns seconds of its way)]. Each has its line as soon as it is measured, so that a run that
        is ended while a later way compiles has it; a way that fails is named and has none."""
        for kind, work in ways:
            try:
                seconds = work()
            except Exception as error:  # no compiler, a backend that does not take the shape, say
                print(f"{name}: {kind} failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}", flush=True)
                continue
            self.add(name, seconds, f"torch {torch.__version__}, {kind}{note}", amount, unit, ours)
