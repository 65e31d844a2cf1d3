"""TensorBoard and Weights & Biases, kept out of the way of training."""

import io
import pathlib
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging
from PIL import Image

from data_pipelines.media import encoding
from vidgen.weights import digests


class Tracker(Protocol):
    """Where metrics go besides metrics.jsonl. May raise or hang: that never stops the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def video(self, step: int, name: str, video_THWC: np.ndarray, fps: float) -> None: ...

    def close(self) -> None: ...


class Guarded:
    """A tracker in a thread of its own, from its making to its end."""

    def __init__(self, make: Callable[[], Tracker], size: int = 1000):
        self._queue: queue.Queue = queue.Queue(size)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True)
        self._thread.start()

    def send(self, method: str, *args: Any) -> None:
        """Never waits: what does not fit is dropped."""
        try:
            self._queue.put_nowait((method, args))
        except queue.Full:
            self._dropped += 1
            logging.log_first_n(logging.WARNING, "A tracker hangs; metrics.jsonl goes on.", 1)

    def close(self, seconds: float = 20.0) -> None:
        """Lets the tracker finish, for so long."""
        self.send("close")
        self._thread.join(seconds)
        if self._thread.is_alive() or self._dropped:
            logging.warning("A tracker did not get everything; metrics.jsonl is complete.")

    def _run(self, make: Callable[[], Tracker]) -> None:
        tracker = None
        while True:
            method, args = self._queue.get()
            try:
                tracker = tracker or make()
                getattr(tracker, method)(*args)
            except Exception as error:  # whatever a tracker does, training goes on
                logging.log_every_n_seconds(
                    logging.WARNING, "A tracker failed; metrics.jsonl goes on: %r", 60, error
                )
            if method == "close":
                return


class TensorBoard:
    """Writes TensorBoard files."""

    def __init__(self, folder: pathlib.Path, start_step: int):
        import tensorboardX  # a tracker that cannot be imported must not stop the run

        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def video(self, step: int, name: str, video_THWC: np.ndarray, fps: float) -> None:
        from tensorboardX.proto import summary_pb2

        # Its own add_video needs moviepy; TensorBoard shows an animated GIF as well.
        frames = [Image.fromarray(frame) for frame in video_THWC]
        gif = io.BytesIO()
        frames[0].save(
            gif, "GIF", save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0
        )
        _, height, width, _ = video_THWC.shape
        image = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue()
        )
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self._writer.file_writer.add_summary(summary_pb2.Summary(value=[value]), step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Sends to Weights & Biases; the same folder goes on with the same run."""

    def __init__(self, folder: pathlib.Path, project: str):
        import wandb

        self._wandb = wandb
        path = folder / "wandb_run"
        if not path.exists():
            digests.write_atomically(path, uuid.uuid4().hex[:12].encode())
        run_id = path.read_text()
        self._run = wandb.init(
            project=project, name=folder.name, id=run_id, resume="allow", dir=str(folder)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def video(self, step: int, name: str, video_THWC: np.ndarray, fps: float) -> None:
        clip = io.BytesIO(encoding.encode_mp4(video_THWC, fps))
        self._run.log({name: self._wandb.Video(clip, format="mp4")}, step=step)

    def close(self) -> None:
        self._run.finish()
