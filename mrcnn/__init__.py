"""Mask R-CNN on Keras 3 with the interface of matterport's Mask_RCNN 2.1.

Start with `mrcnn.model.MaskRCNN` and `mrcnn.config.Config`; README.md lists the modules in
reading order. Importing the package itself imports nothing heavy.
"""
