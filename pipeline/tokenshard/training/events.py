"""Metrics for TensorBoard and for Weights & Biases.

Event files of TensorBoard are written through the store, so that they may lie in a bucket.

TensorBoard reads the files of a run in the order of their names and goes on to the next when it is at the end of one.
So each row is a small file of its own, named by its step, which is never changed: a run that goes on after a stop
writes the rows after its last state once more, with the same names.
"""

from __future__ import annotations

import io
from hashlib import sha256
from typing import Any

from PIL import Image

from tokenshard.errors import SpecError
from tokenshard.store import Store


class EventFiles:
    """Scalars and pictures by step in ``folder`` of ``output``; times are seconds of training."""

    def __init__(self, output: Store, folder: str) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise SpecError("TensorBoard is not installed; run: pip install 'tokenshard[tensorboard]'") from error
        self._output, self._folder = output, folder

    def write(self, row: dict[str, Any], picture: bytes | None = None) -> None:
        """The numbers of a row, and a PNG."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in row.items()
            if name not in ("step", "seconds")
        ]
        if picture is not None:
            width, height = Image.open(io.BytesIO(picture)).size
            image = Summary.Image(encoded_image_string=picture, width=width, height=height, colorspace=3)
            values.append(Summary.Value(tag="samples", image=image))
        file = io.BytesIO()
        records = RecordWriter(file)
        time = float(row["seconds"])
        records.write(Event(wall_time=time, file_version="brain.Event:2").SerializeToString())
        event = Event(wall_time=time, step=row["step"], summary=Summary(value=values))
        records.write(event.SerializeToString())
        name = f"{self._folder}/events.out.tfevents.{row['step']:010d}.tokenshard"
        self._output.put(name, file.getvalue())


class WandbRun:
    """The same in a run of a project of Weights & Biases, which its output names: a run that goes on goes on there."""

    def __init__(self, project: str, output: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise SpecError("wandb is not installed; run: pip install 'tokenshard[wandb]'") from error
        name = sha256(output.encode()).hexdigest()[:16]
        self._image = wandb.Image
        self._run = wandb.init(project=project, id=name, name=output, resume="allow", settings={"silent": True})

    def write(self, row: dict[str, Any], picture: bytes | None = None) -> None:
        """The numbers of a row, and a PNG."""
        shown = {} if picture is None else {"samples": self._image(Image.open(io.BytesIO(picture)))}
        self._run.log({**row, **shown}, step=row["step"])
