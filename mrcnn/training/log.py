"""The table of a training run, one row per epoch, and the loss curves drawn from it."""

import csv
import io
import os
import time
from collections.abc import Callable, Iterable

import keras
from keras import ops

from mrcnn.atomic import atomic_path
from mrcnn.config_rules import LOSS_NAMES
from mrcnn.errors import UserError
from mrcnn.training.progress import LOSSES


class CSVLog(keras.callbacks.Callback):
    """A table of the run, one row per epoch: epoch (from 1), learning_rate, seconds, all losses.

    The file is rewritten whole and atomically. Rows of the epoch being written and of later ones
    are dropped, so a run resumed from an earlier checkpoint has no epoch twice.
    """

    def __init__(self, path: str | os.PathLike, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self.path = path
        self.clock = clock

    def on_epoch_begin(self, epoch, logs=None):
        self._start = self.clock()

    def on_epoch_end(self, epoch, logs=None):
        row = {
            "epoch": epoch + 1,
            "learning_rate": float(ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "seconds": round(self.clock() - self._start, 3),
            **{name: logs[name] for name in _ordered(logs or {})},
        }
        rows = [r for r in read_log(self.path) if r["epoch"] <= epoch] + [row]
        columns = list(dict.fromkeys(name for r in rows for name in r))
        with (
            atomic_path(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _ordered(names: Iterable[str]) -> list[str]:
    """The names with the known losses first, in the order of LOSSES, then the val_ ones."""
    known = [*LOSSES, *("val_" + name for name in LOSSES)]
    return sorted(names, key=lambda n: (known.index(n), "") if n in known else (len(known), n))


def read_log(path: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a file that `CSVLog` wrote; [] where there is none. Empty fields are left out.

    Raises UserError where the file is something else.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        return [{**row, "epoch": int(row["epoch"])} for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        message = f"{path} is not a training log ({error!r}): move it out of the way"
        raise UserError(message) from error


class LossCurve(keras.callbacks.Callback):
    """Plot the CSV file of `CSVLog` as a PNG image after every epoch."""

    def __init__(self, csv_path: str | os.PathLike, image_path: str | os.PathLike):
        super().__init__()
        self.csv_path = csv_path
        self.image_path = image_path

    def on_epoch_end(self, epoch, logs=None):
        rows = read_log(self.csv_path)
        if rows:
            with atomic_path(self.image_path) as temporary:
                temporary.write_bytes(loss_curve_png(rows))


def loss_curve_png(rows: list[dict[str, float]]) -> bytes:
    """A PNG image: the total loss on the left, its parts on the right, validation dashed.

    rows: as `read_log` returns them.
    """
    # A figure of its own, not pyplot's: no display is needed and no user's figure is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("Total loss", ("loss",)), ("Parts of the loss (dashed: validation)", LOSS_NAMES))
    for axes, (title, names) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, name in enumerate(names):
            for prefix, style in (("", "-"), ("val_", "--")):
                points = [(r["epoch"], r[prefix + name]) for r in rows if prefix + name in r]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=f"C{number}",
                        marker=".",
                        label=_curve_name(prefix, name),
                    )
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _curve_name(prefix: str, name: str) -> str:
    if name == "loss":
        return "validation" if prefix else "training"
    # Matplotlib leaves labels that begin with "_" out of the legend.
    return "_validation" if prefix else name.removeprefix("mrcnn_").removesuffix("_loss")
