"""Writes tests/golden/tensorboard/two_steps.tfevents with TensorBoard's own record writer and protocol buffers."""
import struct
import sys
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

STEPS = [(1, 1000.5, {"reward": 0.25, "reward_parts/hit": -1.5}), (300, 1001.25, {"reward": 2.0})]


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=1000.0, file_version="brain.Event:2").SerializeToString())
        for step, wall_time, values in STEPS:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            records.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
        records.flush()
    first = struct.unpack("<Q", path.read_bytes()[:8])[0]
    print(f"{path}: {path.stat().st_size} bytes, first record {first}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "tensorboard" / "two_steps.tfevents"))
