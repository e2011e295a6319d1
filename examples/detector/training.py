"""Train the detector on pictures drawn by `pictures.py`; minutes on two cores."""

from __future__ import annotations

import sys

import numpy as np
import torch
from network import Detector, loss
from pictures import MOST, SIZE, Picture
from torch import Tensor

_LEARNING_RATE = 2e-3


def train(
    network: Detector, pictures: list[Picture], *, epochs: int, batch: int = 32, seed: int = 0
) -> None:
    """Train in place: AdamW, one cycle of the learning rate, mirrored pictures."""
    torch.manual_seed(seed)
    images, boxes, classes = _tensors(pictures)
    steps = epochs * (len(pictures) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, steps)
    network.train()
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(pictures)).split(batch):
            if len(chosen) < batch:
                continue
            x, corners = _mirrored(images[chosen].float() / 255, boxes[chosen])
            value = loss(network, x, corners, classes[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses.append(value.item())
        sys.stderr.write(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}\n")
    network.eval()


def _tensors(pictures: list[Picture]) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [N, 3, S, S], boxes [N, M, 4] and classes [N, M], filled up with zeros."""
    images = np.stack([picture.pixels.transpose(2, 0, 1) for picture in pictures])
    boxes = np.zeros((len(pictures), MOST, 4), np.float32)
    classes = np.zeros((len(pictures), MOST), np.int64)
    for number, picture in enumerate(pictures):
        boxes[number, : len(picture.boxes)] = picture.boxes
        classes[number, : len(picture.boxes)] = picture.classes
    return torch.from_numpy(images), torch.from_numpy(boxes), torch.from_numpy(classes)


def _mirrored(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture mirrored from left to right and from top to bottom, by chance."""
    there = (boxes[..., 2:] > boxes[..., :2]).all(-1, keepdim=True)
    for axis, (low, high) in ((3, (0, 2)), (2, (1, 3))):
        chosen = torch.rand(len(images)) < 0.5
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        turned = boxes.clone()
        turned[..., low], turned[..., high] = SIZE - boxes[..., high], SIZE - boxes[..., low]
        boxes = torch.where(chosen[:, None, None], turned, boxes)
    return images, boxes * there
