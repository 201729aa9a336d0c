"""The VGG networks: 3x3 convolutions in five blocks."""

from __future__ import annotations

from netloom.models.blocks import Block, conv_trunk, with_dense_head
from netloom.models.contract import ImageModel
from netloom.models.layers import Activation, DenseUnits, Normalization, Rate
from netloom.models.registry import register_model

_PAPER = "Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, 2014"
_FILTERS = (64, 128, 256, 512, 512)
# Columns A, B, D and E of the paper's table 1: convolutions of each block.
_CONVS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(
    *,
    depth: int,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    activation: Activation = "relu",
    normalization: Normalization = "none",
    dense_units: DenseUnits = (4096, 4096),
    dense_normalization: Normalization = "none",
    dropout: Rate = 0.0,
    dense_dropout: Rate = 0.5,
) -> ImageModel:
    """VGG (Simonyan and Zisserman 2014) with `depth` layers that have weights: 11, 13, 16 or 19.

    The head flattens whatever the fifth block leaves (Keras does the same), so that 32x32 pictures
    give 512 numbers and 224x224 ones 25,088. Dropout of one half behind the hidden dense layers is
    the paper's; ask for `dense_dropout: 0` to leave it out.

    Args:
        depth: Layers that have weights, with the default head.
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        activation: Behind each layer but the last.
        normalization: Batch normalization before or after each convolution's activation.
        dense_units: Width of each hidden dense layer.
        dense_normalization: Batch normalization before or after each hidden dense activation.
        dropout: Rate behind the flattening.
        dense_dropout: Rate behind each hidden dense layer.

    Raises:
        ModelError: The pictures are too small.
    """
    trunk = conv_trunk(
        in_channels,
        [Block(filters, convs) for filters, convs in zip(_FILTERS, _CONVS[depth], strict=True)],
        padding="same",
        activation=activation,
        normalization=normalization,
    )
    return with_dense_head(
        trunk,
        name=f"vgg{depth}",
        image_size=image_size,
        num_features=_FILTERS[-1],
        num_outputs=num_outputs,
        activation=activation,
        dense_units=dense_units,
        normalization=dense_normalization,
        dropout=dropout,
        dense_dropout=dense_dropout,
        remedy=", or the model convnet with fewer blocks",
    )


for _depth, _convs in _CONVS.items():
    register_model(
        f"vgg{_depth}",
        description=f"{sum(_convs)} convolutions of 3x3 in five blocks, large dense head",
        paper=_PAPER,
        fixed={"depth": _depth},
    )(vgg)
