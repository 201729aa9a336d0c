"""LeNet-5."""

from __future__ import annotations

from netloom.models.blocks import Block, conv_trunk, with_dense_head
from netloom.models.contract import ImageModel
from netloom.models.layers import Activation, Normalization, Pooling, Rate
from netloom.models.registry import register_model


@register_model(
    "lenet5",
    description="Two convolutions and two dense layers; quick, for small pictures",
    paper="LeCun et al., Gradient-based learning applied to document recognition, 1998",
)
def lenet5(
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    activation: Activation = "relu",
    pooling: Pooling = "max",
    normalization: Normalization = "none",
    dropout: Rate = 0.0,
) -> ImageModel:
    """LeNet-5 (LeCun et al. 1998) as it is taught today: all maps connected, ReLU, max pooling.

    `activation: tanh` and `pooling: average` come close to the original, whose pooling had weights
    and whose outputs were radial basis functions.

    Args:
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        activation: Behind each layer but the last.
        pooling: Behind each convolution.
        normalization: `before` puts batch normalization in front of each activation; `after` puts
            it behind the flattening and behind each dense layer's activation.
        dropout: Rate behind the flattening.

    Raises:
        ModelError: The pictures are too small.
    """
    trunk = conv_trunk(
        in_channels,
        [Block(6, kernel_size=5, pooling=pooling), Block(16, kernel_size=5, pooling=pooling)],
        padding="valid",
        activation=activation,
        normalization="before" if normalization == "before" else "none",
    )
    return with_dense_head(
        trunk,
        name="lenet5",
        image_size=image_size,
        num_features=16,
        num_outputs=num_outputs,
        activation=activation,
        dense_units=(120, 84),
        normalization=normalization,
        normalize_features=normalization == "after",
        dropout=dropout,
        remedy=", or the model convnet with padding: same",
    )
