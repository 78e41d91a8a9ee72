"""A Keras callback that keeps copies of a model's weights, for tests of their average."""

import keras

from mrcnn.training.callbacks import sync_weights


class WeightRecorder(keras.callbacks.Callback):
    """Lists of arrays: before the first step and after every one (`steps`), in every validation,
    and at the end of every epoch (`ends`)."""

    def __init__(self):
        super().__init__()
        self.steps, self.validations, self.ends = [], [], []

    def _now(self):
        sync_weights(self.model)
        return [value.copy() for value in self.model.get_weights()]

    def on_train_begin(self, logs=None):
        self.steps.append(self._now())

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self._now())

    def on_test_begin(self, logs=None):
        self.validations.append(self._now())

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self._now())
