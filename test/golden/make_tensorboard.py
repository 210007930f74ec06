"""Writes tensorboard.json: records as TensorBoard's own protocol buffers make them; reads a run's files with --read DIR.

    python test/golden/make_tensorboard.py
    python test/golden/make_tensorboard.py --read runs/first

The second prints what TensorBoard's reader sees of DIR/tensorboard as JSON: {tag: [[step, value], ...]} and the texts.
Wants `tensorboard`.
"""

import base64
import io
import json
import os
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

HERE = os.path.dirname(os.path.abspath(__file__))


def text(tag, value):
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[value.encode()])
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    return summary_pb2.Summary.Value(tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=tensor)


def write():
    session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    scalars = [("train/loss", 2.5), ("train/grad_norm", 0.125)]
    values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
    events = [
        event_pb2.Event(wall_time=1000.5, file_version="brain.Event:2"),
        event_pb2.Event(wall_time=1000.5, step=301, session_log=session),
        event_pb2.Event(wall_time=1000.5, step=300, summary=summary_pb2.Summary(value=[text("config", "```yaml\na: ä\n```")])),
        event_pb2.Event(wall_time=1001.5, step=301, summary=summary_pb2.Summary(value=values)),
    ]
    # The writer closes what it writes to.
    buffer = io.BytesIO()
    buffer.close = lambda: None
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    writer.flush()
    with open(os.path.join(HERE, "tensorboard.json"), "w") as file:
        json.dump(dict(file=base64.b64encode(buffer.getvalue()).decode()), file)
        file.write("\n")


def read(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(os.path.join(run, "tensorboard"), size_guidance=dict(scalars=0, tensors=0))
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {tag: [[e.step, e.value] for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    texts = {tag: [e.tensor_proto.string_val[0].decode() for e in accumulator.Tensors(tag)] for tag in tags["tensors"]}
    print(json.dumps(dict(scalars=scalars, texts=texts)))


if len(sys.argv) == 3 and sys.argv[1] == "--read":
    read(sys.argv[2])
else:
    write()
