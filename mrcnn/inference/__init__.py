"""From images to detections: fast network, test-time augmentation, tiles, post-processing."""
