r"""Clusters: GPUs, their memory and speed, and the links between them.

The ranks of a mesh are numbered with tensor parallelism innermost, then context parallelism,
shards and replicas, so a group of :math:`n` ranks at stride :math:`s` has
:math:`m = \min(n, G / s)` ranks on each node of :math:`G` GPUs, and spans :math:`N = n / m` nodes.
In a ring over them a rank sends its bytes :math:`b` to a neighbour within the node, except at
the node's end, where they cross the network. The :math:`G / m` groups of a node share its network,
so a ring takes

.. math:: \max\left(\frac{b}{B_\text{node}}, \frac{G}{m} \, \frac{b \, n}{n - 1} \,
    \frac{N - 1}{N} \frac{1}{B_\text{net}}\right)

with the bandwidth :math:`B_\text{node}` of a GPU within its node and :math:`B_\text{net}` of a
node's network. In an all-to-all, :math:`(n - m) / (n - 1)` of what every GPU sends crosses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pdmd.arguments import checked

__all__ = ["Cluster", "Group"]

MAX_GPUS = 100_000


@checked
@dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks that communicate: how many, and the distance between neighbours.

    Attributes:
        size: The number of ranks.
        stride: The difference between the numbers of neighbouring ranks.
    """

    size: int
    stride: int = 1


@checked
@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The GPUs of a run.

    Attributes:
        gpus: The number of GPUs, one for each rank.
        memory: The memory of a GPU, in GiB.
        node_gpus: GPUs of a node.
        node_memory: The CPU memory of a node, in GiB.
        flops: FLOPs that a GPU achieves in a second.
        node_bandwidth: Bytes that a GPU sends in a second to others of its node.
        network_bandwidth: Bytes that a node sends in a second to others.
        host_bandwidth: Bytes that a GPU exchanges in a second with the CPU's memory.

    Raises:
        ValueError: If a number is out of its range.
    """

    gpus: int = 1
    memory: float = 80.0
    node_gpus: int = 8
    node_memory: float = 1024.0
    flops: float = 0.4e15
    node_bandwidth: float = 450e9
    network_bandwidth: float = 50e9
    host_bandwidth: float = 50e9

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= MAX_GPUS:
            raise ValueError(f"expected 1 to {MAX_GPUS:,} GPUs, got {self.gpus}; change --gpus")
        if self.node_gpus < 1:
            raise ValueError(
                f"expected at least 1 GPU on a node, got {self.node_gpus}; change --node-gpus"
            )
        for name, what in _POSITIVE.items():
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                option = _OPTIONS.get(name, name.removesuffix("_bandwidth").replace("_", "-"))
                raise ValueError(f"expected a positive {what}, got {value}; change --{option}")

    @property
    def gpus_on_node(self) -> int:
        """GPUs of the run on each of its nodes."""
        return min(self.gpus, self.node_gpus)

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return -(-self.gpus // self.node_gpus)

    def on_node(self, group: Group) -> int:
        """Returns how many ranks of a group are on one node."""
        return max(1, min(group.size, self.gpus_on_node // group.stride))

    def ring_seconds(self, sent: float, group: Group) -> float:
        """Returns the time of ring collectives.

        Args:
            sent: Bytes that each rank sends.
            group: The ranks of one ring.
        """
        near = self.on_node(group)
        nodes = -(-group.size // near)
        if group.size == 1 or not sent:
            return 0.0
        within = sent / self.node_bandwidth if near > 1 else 0.0
        whole = sent * group.size / (group.size - 1)
        rings = self.gpus_on_node / near
        across = rings * whole * (nodes - 1) / nodes / self.network_bandwidth
        return max(within, across)

    def exchange_seconds(self, sent: float, group: Group) -> float:
        """Returns the time of all-to-all exchanges.

        Args:
            sent: Bytes that each rank sends, equally to the others of its group.
            group: The ranks that exchange.
        """
        if group.size == 1 or not sent:
            return 0.0
        far = (group.size - self.on_node(group)) / (group.size - 1)
        across = self.gpus_on_node * sent * far / self.network_bandwidth
        return max(sent * (1 - far) / self.node_bandwidth, across)


_POSITIVE = {
    "memory": "GPU memory in GiB",
    "node_memory": "CPU memory of a node in GiB",
    "flops": "rate of a GPU in FLOP/s",
    "node_bandwidth": "bandwidth within a node",
    "network_bandwidth": "bandwidth of a node's network",
    "host_bandwidth": "bandwidth to the CPU's memory",
}

_OPTIONS = {"flops": "rate"}
