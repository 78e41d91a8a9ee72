"""The graph, `keras.ops` only: from the backbone to detections, targets and losses."""
