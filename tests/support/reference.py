"""Naive NumPy versions of what the graph computes: loops, one box and one pixel at a time."""

import numpy as np


def iou(a, b):
    """Intersection over union of two boxes; 0 where either has no area."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(height, 0) * max(width, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if inter > 0 else 0.0


def iou_matrix(boxes1, boxes2):
    return np.array([[iou(a, b) for b in boxes2] for a in boxes1]).reshape(len(boxes1), len(boxes2))


def greedy_nms(boxes, scores, threshold, limit):
    """Indices kept by greedy suppression; scores below -1e8 are no candidates."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if scores[i] < -1e8 or len(kept) == limit:
            continue
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def apply_deltas(box, delta):
    height, width = box[2] - box[0], box[3] - box[1]
    cy, cx = box[0] + height / 2 + delta[0] * height, box[1] + width / 2 + delta[1] * width
    height, width = height * np.exp(delta[2]), width * np.exp(delta[3])
    return np.array([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2])


def refinement(box, target):
    h, w = box[2] - box[0], box[3] - box[1]
    th, tw = target[2] - target[0], target[3] - target[1]
    dy = (target[0] + th / 2 - box[0] - h / 2) / h
    dx = (target[1] + tw / 2 - box[1] - w / 2) / w
    return np.array([dy, dx, np.log(th / h), np.log(tw / w)])


def bilinear(image, y, x):
    """Value of image [H, W, ...] at cell coordinates y, x inside it."""
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
    fy, fx = y - y0, x - x0
    return (
        image[y0, x0] * (1 - fy) * (1 - fx)
        + image[y0, x1] * (1 - fy) * fx
        + image[y1, x0] * fy * (1 - fx)
        + image[y1, x1] * fy * fx
    )


def crop_and_resize(image, box, shape, exact):
    """Sample a normalised box of image [H, W, ...] on a grid, one point at a time."""
    size = image.shape[:2]
    out = np.zeros((*shape, *image.shape[2:]))
    for r in range(shape[0]):
        for c in range(shape[1]):
            point = []
            for axis, k in ((0, r), (1, c)):
                start, end, n = box[axis], box[axis + 2], size[axis]
                if exact:
                    position = (start + (k + 0.5) / shape[axis] * (end - start)) * n - 0.5
                    outside = position < -0.5 or position > n - 0.5
                    position = min(max(position, 0), n - 1)
                else:
                    step = k / (shape[axis] - 1) if shape[axis] > 1 else 0.5
                    position = (start + step * (end - start)) * (n - 1)
                    outside = position < 0 or position > n - 1
                point.append(None if outside else position)
            if None not in point:
                out[r, c] = bilinear(image, *point)
    return out


def covered_shares(image, box, shape):
    """Mean of image [H, W] over every cell of a grid that divides a normalised box; zero outside
    the image."""
    y, x = (
        np.linspace(box[a] * image.shape[a], box[a + 2] * image.shape[a], shape[a] + 1)
        for a in (0, 1)
    )
    out = np.zeros(shape)
    for r in range(shape[0]):
        for c in range(shape[1]):
            for i in range(max(0, int(y[r])), min(image.shape[0], int(y[r + 1]) + 1)):
                for j in range(max(0, int(x[c])), min(image.shape[1], int(x[c + 1]) + 1)):
                    height = max(0, min(y[r + 1], i + 1) - max(y[r], i))
                    width = max(0, min(x[c + 1], j + 1) - max(x[c], j))
                    out[r, c] += image[i, j] * height * width
            out[r, c] /= (y[r + 1] - y[r]) * (x[c + 1] - x[c])
    return out


def scale_box(box, factor):
    cy, cx = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    height, width = (box[2] - box[0]) * factor, (box[3] - box[1]) * factor
    return np.array([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2])


def smooth_l1(difference):
    d = np.abs(difference)
    return np.where(d < 1, 0.5 * d**2, d - 0.5)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_boxes(rng, count, size=1.0, smallest=0.05):
    """Boxes with area inside [0, size]."""
    corner = rng.uniform(0, size * (1 - 2 * smallest), (count, 2))
    extent = rng.uniform(size * smallest, size - corner)
    return np.concatenate([corner, corner + extent], axis=1).astype("float32")
