"""What the layers of a network remember of a clip between two blocks of it, so that blocks join without a seam.

A network that runs over a clip in blocks hands every layer the same :class:`Past`; a layer that looks back leaves there
what its next block will look back at. It knows nothing of what layers keep.
"""

from __future__ import annotations

from torch import Tensor, nn


class Past:
    """The state of one network in one clip; ``begun`` once a block has gone through, ``ends`` before its last one."""

    def __init__(self) -> None:
        self.begun = False
        self.ends = False
        self._kept: dict[nn.Module, Tensor] = {}

    def last(self, layer: nn.Module) -> Tensor | None:
        """What ``layer`` kept at the last block, None at the first."""
        return self._kept.get(layer)

    def exchange(self, layer: nn.Module, latest: Tensor) -> Tensor | None:
        """Keep ``latest`` for the next block; what ``layer`` kept at the last one, None at the first."""
        before = self._kept.get(layer)
        # A view would keep all the features of the block alive.
        self._kept[layer] = latest.clone()
        return before

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """What the layers of ``network`` keep, by their dotted names."""
        names = {layer: name for name, layer in network.named_modules()}
        return {names[layer]: tensor for layer, tensor in self._kept.items()}

    @classmethod
    def of(cls, network: nn.Module, tensors: dict[str, Tensor]) -> Past:
        """The inverse of :meth:`tensors`; KeyError for a name that is no layer's."""
        past = cls()
        layers = dict(network.named_modules())
        past._kept = {layers[name]: tensor for name, tensor in tensors.items()}
        past.begun = True
        return past
