"""The layers that heads are made of."""

from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A linear layer that multiplies in float32 also where DeepSpeed holds its weights in another dtype.

    Inside an enabled autocast it multiplies in autocast's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply to [..., in]; gives [..., out]."""
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())
