"""Dense networks."""

from __future__ import annotations

from torch import nn

from netloom.models.blocks import dense_layers, named_sequence
from netloom.models.contract import ImageModel
from netloom.models.layers import Activation, DenseUnits, Normalization, Rate, initialize
from netloom.models.registry import register_model


@register_model(
    "mlp",
    description="Dense layers only; the yardstick for the others",
    paper="Rumelhart et al., Learning representations by back-propagating errors, 1986",
)
def mlp(
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    dense_units: DenseUnits = (300, 100),
    activation: Activation = "relu",
    normalization: Normalization = "none",
    dropout: Rate = 0.0,
) -> ImageModel:
    """A multilayer perceptron (Rumelhart et al. 1986).

    It takes pictures `[B, C, H, W]`, or feature vectors `[B, C]` with `image_size` (1, 1). The
    trunk is all hidden layers, so that features are the last one's `[B, dense_units[-1]]`.

    Args:
        in_channels: Channels of the pictures, or length of the vectors.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        dense_units: Width of each hidden layer; none makes a logistic regression.
        activation: Behind each hidden layer.
        normalization: Batch normalization before or after each activation.
        dropout: Rate behind each hidden layer.
    """
    inputs = in_channels * image_size[0] * image_size[1]
    trunk = nn.Sequential()
    trunk.add_module("flatten", nn.Flatten())
    stack = dense_layers(
        inputs,
        dense_units,
        activation=activation,
        normalization=normalization,
        dense_dropout=dropout,
    )
    for number, layers in enumerate(stack, start=1):
        trunk.add_module(f"layer{number}", named_sequence(layers))
    features = dense_units[-1] if dense_units else inputs
    model = ImageModel(
        trunk=trunk,
        head=nn.Sequential(),
        num_features=features,
        classifier_features=features,
        num_outputs=num_outputs,
    )
    return initialize(model, activation)
