"""Scores of detections against true masks."""
