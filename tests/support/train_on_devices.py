"""A program for tests: trains the network of `test_fit` on some devices, with every batch whole.

    python -m tests.support.train_on_devices RUN...

A RUN is FOLDER,DEVICES,EPOCHS or FOLDER,DEVICES,EPOCHS,OTHER, which resumes OTHER, the folder of
another run, as that was after its first epoch. Epochs are of five steps, batches of four images.
Writes FOLDER.npy, the losses of the steps. Devices are made of the processor; several processes
come from the environment.

The rate is low and the images have noise: differences of rounding grow with the steps, until one
of them turns a proposal into another, which is soonest where many score the same.

DIE_AT_STEP=N in the environment: the process ends itself with SIGTERM after N steps, which the
backends would rather have it ignore.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from mrcnn.environment import backend

STEPS, BATCH, RATE, MOST = 5, 4, 0.002, 2
PROCESSES = ("TF_CONFIG", "KERAS_DISTRIBUTION_JOB_ADDRESSES")  # variables of the environment


def make_devices(count: int) -> None:
    """Let the backend take its processor for so many devices. Must come first."""
    if backend() == "jax":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
        return
    import tensorflow as tf

    [processor] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        processor, [tf.config.LogicalDeviceConfiguration()] * count
    )


def train(folder: Path, count: int, epochs: int, other: Path | None) -> None:
    import keras
    import numpy as np

    from mrcnn.model import MaskRCNN
    from tests.training.test_fit import AveragedConfig, Squares

    class Divided(AveragedConfig):
        GPU_COUNT = count
        IMAGES_PER_GPU = BATCH // count
        STEPS_PER_EPOCH = STEPS
        LEARNING_SCHEDULE = "constant"  # which does not depend on the epochs asked for

    class Noisy(Squares):
        def load_image(self, image_id):
            noise = np.random.default_rng(int(image_id)).integers(0, 30, (64, 64, 3), np.uint8)
            return super().load_image(image_id) + noise

    class Recorder(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append([logs[name] for name in sorted(logs)])
            if len(losses) == int(os.environ.get("DIE_AT_STEP", 0)):
                os.kill(os.getpid(), signal.SIGTERM)

        def on_epoch_end(self, epoch, logs=None):
            if epoch == began:
                shutil.copytree(model.output_dir, folder / "half" / Path(model.log_dir).name)

    losses: list[list[float]] = []
    model = MaskRCNN("training", Divided(), str(folder))
    if other is not None:
        shutil.copytree(other / "half", folder, dirs_exist_ok=True)
        model.load_weights(model.find_last())
    squares, began = Noisy().fill(8), model.epoch
    model.train(squares, None, RATE, epochs, "all", custom_callbacks=[Recorder()])
    np.save(f"{folder}.npy", losses)


def main() -> None:
    from mrcnn.errors import UserError

    if not any(os.environ.get(name) for name in PROCESSES):
        make_devices(MOST)
    try:
        for run in sys.argv[1:]:
            folder, count, epochs, *other = run.split(",")
            train(Path(folder), int(count), int(epochs), Path(other[0]) if other else None)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
