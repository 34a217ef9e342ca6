"""A KV cache of fixed shape in which beams share memory, so that a decode step never copies keys or values.

A growing cache is copied whole at every step by ``cat``, and again with beams when it is reordered by their parents. Here each row has one
list of keys that all its beams attend to::

    [ prefix and start code | step 1: beam 0, 1, .. b - 1 | step 2: beam 0, 1, .. b - 1 | ... | not written yet ]

and each beam has a mask that says which keys are in its own past. When beams fork, only their masks are copied: a byte per key instead
of the keys and values of every layer. A hidden key has weight 0 exactly, so the result is that of a cache of the beam's own.

All that changes from step to step (masks, the next places) is on the device and all shapes are fixed, so a step can be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROWTH_PARTS = 8
KEYS_PER_BEAM = 256  # a bucket's width: more means fewer graphs to capture and more unwritten keys to read past

Layers = Sequence[tuple[Tensor, Tensor]]


class OneBlock(list[tuple[Tensor, Tensor]]):
    """Keys and values of each layer that are views of one tensor, ``kv`` (2, layers, B, heads, P, head_width)."""

    def __init__(self, kv: Tensor) -> None:
        super().__init__(zip(kv[0], kv[1], strict=True))
        self.kv = kv


def in_one_block(layers: Layers) -> Tensor:
    """``kv`` as of :class:`OneBlock`, copied together unless it is one."""
    return layers.kv if isinstance(layers, OneBlock) else torch.stack([torch.stack(half) for half in zip(*layers, strict=True)])


class KVStorage:
    """One block of device memory for keys and values, of which every :class:`StaticCache` is a view; one of them is in use at a time.

    ``on_move`` is called before a larger block replaces this one: whoever holds its address must let go.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, on_move: Callable[[], None]) -> None:
        self.on_move = on_move
        self.block = torch.empty(0, device=device, dtype=dtype)

    @property
    def bytes(self) -> int:
        """Size of the block."""
        return self.block.numel() * self.block.element_size()

    def holds(self, numbers: int) -> bool:
        """Whether the block has room for ``numbers`` numbers."""
        return numbers <= self.block.numel()

    def reserve(self, numbers: int, most: int) -> None:
        """Have room for ``numbers`` numbers. A block too small is replaced by one of twice its size, but not beyond ``most``."""
        if not self.holds(numbers):
            self.on_move()
            size = max(numbers, min(2 * self.block.numel(), most))
            self.clear()  # first, so that old and new are not both held unless somebody still uses the old one
            with torch.inference_mode(False):
                self.block = self.block.new_empty(size)

    def clear(self) -> None:
        """Give the memory back."""
        self.block = self.block.new_empty(0)


@dataclass(frozen=True)
class Bucket:
    """A cache at one capacity of T keys: ``kv`` (2, layers, B, heads, T, head_width) in the storage, ``visible`` (B, b, T)."""

    kv: Tensor
    visible: Tensor

    @property
    def keys(self) -> int:
        """Capacity T."""
        return self.visible.shape[2]


class StaticCache:
    """Keys and values of ``rows`` sequences with ``beams`` beams each, in buckets of fixed capacity."""

    def __init__(self, storage: KVStorage, layers: int, heads: int, head_width: int, rows: int, beams: int) -> None:
        self.storage = storage
        self.layers, self.heads, self.head_width = layers, heads, head_width
        self.rows, self.beams = rows, beams
        with torch.inference_mode(False):  # so that they can be written inside and outside of inference mode
            self.first_slots = torch.arange(beams, device=storage.block.device)
            self.slots = self.first_slots.clone()  # where the next step's keys go, (b,)
        self._buckets: dict[int, Bucket] = {}

    @property
    def numbers_per_key(self) -> int:
        """How many numbers one key of every row takes in the storage, all layers and the values included."""
        return 2 * self.layers * self.rows * self.heads * self.head_width

    def capacity(self, prefix: int, steps: int) -> int:
        """Keys of the smallest bucket that holds ``prefix`` positions and ``steps`` decode steps."""
        width = KEYS_PER_BEAM * self.beams
        return -(-(prefix + self.beams * steps) // width) * width

    def bucket(self, keys: int, most_keys: int) -> Bucket:
        """The bucket of ``keys`` keys; its contents are undefined if another one was in use. ``most_keys``: as far as it may grow."""
        self.storage.reserve(self.numbers_per_key * keys, self.numbers_per_key * most_keys)
        if keys not in self._buckets:
            kv = self.storage.block[: self.numbers_per_key * keys].view(2, self.layers, self.rows, self.heads, keys, self.head_width)
            with torch.inference_mode(False):
                visible = torch.zeros(self.rows, self.beams, keys, dtype=torch.bool, device=kv.device)
            self._buckets[keys] = Bucket(kv, visible)
        return self._buckets[keys]

    @property
    def bucket_sizes(self) -> list[int]:
        """Capacities of the buckets made so far."""
        return sorted(self._buckets)

    def forget_buckets(self) -> None:
        """Drop the views of the storage, which is about to move."""
        self._buckets.clear()

    def begin(self, prefix: Layers, mask: Tensor | None, keys: int, most_keys: int) -> Bucket:
        """A bucket that starts with the prefix's keys and values, ``(B, heads, P, head_width)`` a layer; ``mask`` ``(B, P)``."""
        bucket = self.bucket(keys, most_keys)
        length = prefix[0][0].shape[2]
        bucket.kv.zero_()  # whatever was there must be finite: hidden values are multiplied by 0
        if isinstance(prefix, OneBlock):
            bucket.kv[..., :length, :] = prefix.kv
        else:
            for layer, pair in enumerate(prefix):
                for half, tensor in zip(bucket.kv[:, layer], pair, strict=True):
                    half[:, :, :length] = tensor
        bucket.visible.zero_()
        bucket.visible[:, :, :length] = True if mask is None else mask[:, None]
        torch.add(self.first_slots, length, out=self.slots)
        return bucket

    def grow(self, old: Bucket, keys: int, most_keys: int) -> Bucket:
        """The contents of ``old`` in a larger bucket."""
        stays = self.storage.holds(self.numbers_per_key * keys)
        bucket = self.bucket(keys, most_keys)
        source, target = old.kv.flatten(0, 1), bucket.kv.flatten(0, 1)
        # If the storage does not move, both begin at the same address. What lies there moves outwards, so the last goes first, and a few
        # layers at a time, since a copy of all would be memory that nothing else in a generation needs.
        size = -(-len(source) // GROWTH_PARTS)
        for first in reversed(range(0, len(source), size)):
            part, into = source[first : first + size], target[first : first + size]
            moved = part.clone() if stays else part
            into.zero_()
            into[..., : old.keys, :] = moved
        bucket.visible.zero_()
        bucket.visible[..., : old.keys] = old.visible
        return bucket

    # ------------------------------------------------------------------------------------------------- inside a decode step

    def see(self, bucket: Bucket, parents: Tensor) -> None:
        """Beam i gets the past of its row's beam ``parents[:, i]``, and sees the key that it is about to write."""
        if self.beams > 1:
            bucket.visible.copy_(bucket.visible.gather(1, parents[:, :, None].expand(-1, -1, bucket.keys)))
        bucket.visible.scatter_(2, self.slots[None, :, None].expand(self.rows, -1, 1), True)

    def bias(self, bucket: Bucket) -> Tensor:
        """What to add to attention scores, ``(B, 1, b, T)``: 0 for visible keys, -inf for hidden ones."""
        bias = torch.zeros(bucket.visible.shape, dtype=bucket.kv.dtype, device=bucket.kv.device)
        return bias.masked_fill(~bucket.visible, -torch.inf)[:, None]

    def attend(self, bucket: Bucket, layer: int, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Store one key and value per beam and mix the values that each beam sees; all ``(B, heads, b, head_width)``."""
        keys, values = bucket.kv[0, layer], bucket.kv[1, layer]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)

    def advance(self) -> None:
        """Move on to the next step's places."""
        self.slots += self.beams

    def state(self, bucket: Bucket) -> list[Tensor]:
        """The tensors by which a step depends on the one before, keys and values apart: a repeated step overwrites its own."""
        return [self.slots, bucket.visible]
