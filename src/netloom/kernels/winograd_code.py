"""The machine code of Winograd's convolution of 4x4 outputs at a time, for `winograd.py`.

Pictures and gradients lie in channels-last memory, and what is computed of a tile of them, 36 numbers for each channel,
in a room for some tiles that fits the processor's cache. There numbers lie by (frequency, group of 8 channels, tile,
channel within the group), but products by (frequency, tile, channel). All arithmetic is of eight channels at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import LANES, POINTER, Part, Program, Routine, whole

TILE = 4  # outputs of a tile, each way
WINDOW = TILE + 2  # what they depend on, each way
FREQUENCIES = WINDOW**2
# Products for so many output channels are summed at once: two vectors of them in each of six tiles fill the registers.
PANEL = 2 * LANES
TILES_AT_ONCE = 6
_CHANNELS_AT_ONCE = 4  # of the other side of a product of weights' gradients

# Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, section 4.3: F(4x4, 3x3).
_OF_PICTURES = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OF_KERNELS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OF_PRODUCTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)

_Matrix = Sequence[Sequence[float]]
_Turn = Callable[[Any, list[Any]], list[Any]]
_TILES = ("tiles_down", "tiles_across", "first", "own_first", "own_stop", "room")
_KERNEL = ("kernels", "panels", "channels", "of_kernels", "of_channels", "of_rows", "of_columns", "first", "stop")

_SIZES = (
    "height", "width", "channels", "out_height", "out_width", "kernels", "panels", "top", "left",
    "tiles_down", "tiles_across", "n_tiles", "room", "of_kernels", "of_channels", "of_rows", "of_columns",
    "relu", "n_threads",
)  # fmt: skip
"""Integers that both parts take: sizes; channels of the products (kernels, up to a whole panel); zeros above and to the
left; tiles of a picture, of all, and those that there is room for; distances in the kernels' memory;
whether outputs below zero become zero; threads."""


def compile_winograd() -> Program:
    """The parts `convolve` and `weight_gradient`, which take addresses and then `_SIZES`.

    `convolve` takes pictures, kernels, bias, outputs and room: for the transformed kernels, and then for each thread
    for a row of zeros, one that is written but not read, and the transformed pictures and products of `room` tiles.
    `weight_gradient` takes pictures, the outputs' gradient, the kernels' gradient, a row of zeros and room for both
    transformed, of `room` tiles, and for the transformed kernels' gradient.
    """
    module = ir.Module("winograd")
    tiles = _transform_tiles(module, "transform_pictures", _OF_PICTURES)
    _add_convolve(module, tiles)
    _add_weight_gradient(module, tiles)
    return Program(module, ["convolve", "weight_gradient"])


def convolve_numbers(channels: int, panels: int, room: int, n_threads: int) -> int:
    """How many numbers the part `convolve` has room for."""
    own = 2 * max(channels, panels) + FREQUENCIES * room * (channels + panels)
    return FREQUENCIES * panels * channels + n_threads * own


def _add_convolve(module: Any, tiles: Routine) -> None:
    kernels = _transform_kernels(module, "transform_kernels", _OF_KERNELS)
    products, back = _multiply(module, "multiply"), _transform_back(module, "transform_back", _OF_PRODUCTS)

    part = Part(module, "convolve", pointers=("pictures", "weights", "bias", "outputs", "scratch"), integers=_SIZES)
    given = part.arguments()
    first, stop = part.share(part.build.sdiv(given["kernels"], whole(LANES)))
    of_kernels = {"kernel": given["weights"], "transformed": given["scratch"]}
    of_kernels |= {"first": part.product(first, whole(LANES)), "stop": part.product(stop, whole(LANES))}
    part.call(kernels, {**given, **of_kernels})

    widest = part.largest(given["channels"], given["panels"])
    of_pictures = part.product(whole(FREQUENCIES), given["room"], given["channels"])
    of_products = part.product(whole(FREQUENCIES), given["room"], given["panels"])
    each = part.sum(widest, widest, of_pictures, of_products)
    shared = part.product(whole(FREQUENCIES), given["panels"], given["channels"])
    own = part.at(given["scratch"], part.sum(shared, part.product(part.number, each)))
    zeros, unread = own, part.at(own, widest)
    part.clear(zeros, widest)
    transformed = part.at(unread, widest)
    multiplied = part.at(transformed, of_pictures)
    bias = part.build.select(part.is_null(given["bias"]), zeros, given["bias"])
    part.meet()

    first, stop = part.share(_n_blocks(part, given))

    def do_block(number: Any, _: Any) -> None:
        block = {**given, **_block(part, number, given), "of_weights": given["scratch"]}
        block |= {"zeros": zeros, "unread": unread, "bias": bias, "of_pictures": transformed, "of_products": multiplied}
        part.call(tiles, {**block, "transformed": transformed, "stored": given["channels"]})
        part.call(products, block)
        part.call(back, {**block, "height": given["out_height"], "width": given["out_width"]})

    part.loop(first, stop, 1, do_block)
    part.end()


def weight_gradient_numbers(channels: int, panels: int, room: int) -> int:
    """How many numbers the part `weight_gradient` has room for."""
    return max(channels, panels) + FREQUENCIES * (room * (channels + panels) + channels * panels)


def _add_weight_gradient(module: Any, tiles: Routine) -> None:
    gradients = _transform_tiles(module, "transform_gradients", _transposed(_OF_PRODUCTS))
    sums = _sum_products(module, "sum_products")
    back = _transform_kernels_back(module, "transform_kernels_back", _transposed(_OF_KERNELS))

    part = Part(module, "weight_gradient", pointers=("pictures", "gradient", "outputs", "scratch"), integers=_SIZES)
    given = part.arguments()
    widest = part.largest(given["channels"], given["panels"])
    zeros = given["scratch"]
    of_pictures = part.at(zeros, widest)
    of_gradient = part.at(of_pictures, part.product(whole(FREQUENCIES), given["room"], given["channels"]))
    of_weights = part.at(of_gradient, part.product(whole(FREQUENCIES), given["room"], given["panels"]))
    with part.build.if_then(part.build.icmp_signed("==", part.number, whole(0))):
        part.clear(zeros, widest)
    frequency, behind = part.share(whole(FREQUENCIES))
    size = part.product(given["channels"], given["panels"])
    part.clear(
        part.at(of_weights, part.product(frequency, size)), part.product(part.build.sub(behind, frequency), size)
    )
    part.meet()
    of_outputs = {"height": given["out_height"], "width": given["out_width"], "channels": given["kernels"]}
    of_outputs |= {"top": whole(0), "left": whole(0), "pictures": given["gradient"]}

    def do_block(number: Any, _: Any) -> None:
        block = {**given, **_block(part, number, given), "zeros": zeros}
        n_tiles = part.build.sub(block["stop"], block["first"])
        first, stop = (part.sum(block["first"], own) for own in part.share(n_tiles))
        own = {**block, "own_first": first, "own_stop": stop}
        part.call(tiles, {**own, "transformed": of_pictures, "stored": given["channels"]})
        part.call(gradients, {**own, **of_outputs, "transformed": of_gradient, "stored": given["panels"]})
        part.meet()
        frequencies = {"frequency": frequency, "behind": behind, "n_tiles": n_tiles}
        transformed = {"of_pictures": of_pictures, "of_gradient": of_gradient, "sums": of_weights}
        part.call(sums, {**block, **frequencies, **transformed})
        part.meet()

    part.loop(whole(0), _n_blocks(part, given), 1, do_block)
    first, stop = part.share(given["channels"])
    of_kernels = {"kernel": given["outputs"], "transformed": of_weights, "first": first, "stop": stop}
    part.call(back, {**given, **of_kernels})
    part.end()


def _n_blocks(part: Part, given: dict[str, Any]) -> Any:
    """How often the room is needed."""
    return part.build.sdiv(part.build.sub(part.sum(given["n_tiles"], given["room"]), whole(1)), given["room"])


def _block(part: Part, number: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Tiles of a block: `first` to `stop`, all of which are this thread's own."""
    first = part.product(number, given["room"])
    behind = part.sum(first, given["room"])
    is_full = part.build.icmp_signed("<", behind, given["n_tiles"])
    stop = part.build.select(is_full, behind, given["n_tiles"])
    return {"first": first, "stop": stop, "own_first": first, "own_stop": stop}


def _transposed(matrix: _Matrix) -> list[list[float]]:
    return [list(row) for row in zip(*matrix, strict=True)]


def _transform(
    routine: Routine, matrix: _Matrix, load: Callable[[int, int], Any], store: Callable[[int, int, Any], None]
) -> None:
    """Matrix times values times matrix transposed, where each value is a vector."""
    size = len(matrix[0])
    columns = []
    for column in range(size):
        values = [load(row, column) for row in range(size)]
        columns.append([routine.combine(weights, values) for weights in matrix])
    for row in range(len(matrix)):
        values = [columns[column][row] for column in range(size)]
        for column, weights in enumerate(matrix):
            store(row, column, routine.combine(weights, values))


def _corner(routine: Routine, tile: Any, given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The picture of a tile, and where its outputs begin there."""
    build = routine.build
    of_picture = routine.product(given["tiles_down"], given["tiles_across"])
    place = build.srem(tile, of_picture)
    down, across = build.sdiv(place, given["tiles_across"]), build.srem(place, given["tiles_across"])
    size = whole(TILE)
    return build.sdiv(tile, of_picture), routine.product(down, size), routine.product(across, size)


def _rows(
    routine: Routine,
    places: Any,
    pixels: Any,
    outside: Any,
    corner: tuple[Any, Any, Any],
    size: int,
    given: dict[str, Any],
) -> None:
    """Fill `places` with pointers to the channels of each pixel of a window, or to `outside` for those beyond."""
    build = routine.build
    picture, top, left = corner
    for i in range(size):
        row = routine.sum(top, whole(i))
        is_row = build.icmp_unsigned("<", row, given["height"])
        start = routine.product(routine.sum(routine.product(picture, given["height"]), row), given["width"])
        for j in range(size):
            column = routine.sum(left, whole(j))
            is_inside = build.and_(is_row, build.icmp_unsigned("<", column, given["width"]))
            pixel = routine.at(pixels, routine.product(routine.sum(start, column), given["pixel_size"]))
            build.store(build.select(is_inside, pixel, outside), build.gep(places, [whole(i * size + j)]))


def _transform_tiles(module: Any, name: str, matrix: _Matrix) -> Routine:
    """Tiles `own_first` to `own_stop` of pictures, of as many numbers each way as the matrix has columns.

    The room begins with the tile `first`, and has so many channels of each frequency as products take.
    """
    size = len(matrix[0])
    integers = ("height", "width", "channels", "stored", "top", "left", *_TILES)
    routine = Routine(module, name, pointers=("pictures", "zeros", "transformed"), integers=integers)
    given, build = routine.arguments(), routine.build
    places = build.alloca(POINTER, size**2)
    frequency = routine.product(given["stored"], given["room"])

    def do_tile(tile: Any, _: Any) -> None:
        picture, down, across = _corner(routine, tile, given)
        corner = (picture, build.sub(down, given["top"]), build.sub(across, given["left"]))
        of_pixels = {**given, "pixel_size": given["channels"]}
        _rows(routine, places, given["pictures"], given["zeros"], corner, size, of_pixels)
        own = routine.product(build.sub(tile, given["first"]), whole(LANES))

        def do_channels(channel: Any, _: Any) -> None:
            target = routine.at(given["transformed"], routine.sum(routine.product(channel, given["room"]), own))

            def load(i: int, j: int) -> Any:
                return routine.load(routine.at(build.load(build.gep(places, [whole(i * size + j)])), channel))

            def store(i: int, j: int, vector: Any) -> None:
                routine.store(vector, routine.at(target, routine.product(frequency, whole(i * WINDOW + j))))

            _transform(routine, matrix, load, store)

        routine.loop(whole(0), given["channels"], LANES, do_channels)

    routine.loop(given["own_first"], given["own_stop"], 1, do_tile)
    routine.end()
    return routine


def _transform_back(module: Any, name: str, matrix: _Matrix) -> Routine:
    """Outputs of the tiles `own_first` to `own_stop`, with their bias; what lies beyond the picture is not kept."""
    integers = ("height", "width", "kernels", "panels", "relu", *_TILES)
    routine = Routine(module, name, pointers=("of_products", "outputs", "unread", "bias"), integers=integers)
    given, build = routine.arguments(), routine.build
    places = build.alloca(POINTER, TILE**2)
    frequency = routine.product(given["room"], given["panels"])
    least = routine.either(given["relu"], 0.0, -math.inf)

    def do_tile(tile: Any, _: Any) -> None:
        of_pixels = {**given, "pixel_size": given["kernels"]}
        _rows(routine, places, given["outputs"], given["unread"], _corner(routine, tile, given), TILE, of_pixels)
        own = routine.product(build.sub(tile, given["first"]), given["panels"])

        def do_kernels(kernel: Any, _: Any) -> None:
            source = routine.at(given["of_products"], routine.sum(own, kernel))
            bias = routine.load(routine.at(given["bias"], kernel))

            def load(i: int, j: int) -> Any:
                return routine.load(routine.at(source, routine.product(frequency, whole(i * WINDOW + j))))

            def store(i: int, j: int, vector: Any) -> None:
                place = build.load(build.gep(places, [whole(i * TILE + j)]))
                routine.store(routine.at_least(build.fadd(vector, bias), least), routine.at(place, kernel))

            _transform(routine, matrix, load, store)

        routine.loop(whole(0), given["kernels"], LANES, do_kernels)

    routine.loop(given["own_first"], given["own_stop"], 1, do_tile)
    routine.end()
    return routine


def _transform_kernels(module: Any, name: str, matrix: _Matrix) -> Routine:
    """Kernels, for `_multiply` by (frequency, panel of kernels, channel, kernel within the panel)."""
    routine = Routine(module, name, pointers=("kernel", "transformed"), integers=_KERNEL)
    given, build = routine.arguments(), routine.build
    frequency = routine.product(given["panels"], given["channels"])

    def do_kernels(kernel: Any, _: Any) -> None:
        within = build.srem(kernel, whole(PANEL))
        panel = routine.product(build.sub(kernel, within), given["channels"])

        def do_channel(channel: Any, _: Any) -> None:
            source = _kernel_at(routine, kernel, channel, given)
            place = routine.sum(panel, routine.product(channel, whole(PANEL)), within)
            target = routine.at(given["transformed"], place)

            def load(i: int, j: int) -> Any:
                return routine.gather(_weight_at(routine, source, i, j, given), given["of_kernels"])

            def store(i: int, j: int, vector: Any) -> None:
                routine.store(vector, routine.at(target, routine.product(frequency, whole(i * WINDOW + j))))

            _transform(routine, matrix, load, store)

        routine.loop(whole(0), given["channels"], 1, do_channel)

    routine.loop(given["first"], given["stop"], LANES, do_kernels)
    routine.end()
    return routine


def _transform_kernels_back(module: Any, name: str, matrix: _Matrix) -> Routine:
    """The kernels' gradient from that of the transformed ones, by (frequency, channel, kernel)."""
    routine = Routine(module, name, pointers=("kernel", "transformed"), integers=_KERNEL)
    given = routine.arguments()
    frequency = routine.product(given["channels"], given["panels"])

    def do_channel(channel: Any, _: Any) -> None:
        def do_kernels(kernel: Any, _: Any) -> None:
            place = routine.sum(routine.product(channel, given["panels"]), kernel)
            source, target = routine.at(given["transformed"], place), _kernel_at(routine, kernel, channel, given)

            def load(i: int, j: int) -> Any:
                return routine.load(routine.at(source, routine.product(frequency, whole(i * WINDOW + j))))

            def store(i: int, j: int, vector: Any) -> None:
                routine.scatter(vector, _weight_at(routine, target, i, j, given), given["of_kernels"])

            _transform(routine, matrix, load, store)

        routine.loop(whole(0), given["kernels"], LANES, do_kernels)

    routine.loop(given["first"], given["stop"], 1, do_channel)
    routine.end()
    return routine


def _kernel_at(routine: Routine, kernel: Any, channel: Any, given: dict[str, Any]) -> Any:
    by_kernel, by_channel = routine.product(kernel, given["of_kernels"]), routine.product(channel, given["of_channels"])
    return routine.at(given["kernel"], routine.sum(by_kernel, by_channel))


def _weight_at(routine: Routine, kernel: Any, row: int, column: int, given: dict[str, Any]) -> Any:
    down, across = routine.product(given["of_rows"], whole(row)), routine.product(given["of_columns"], whole(column))
    return routine.at(kernel, routine.sum(down, across))


def _multiply(module: Any, name: str) -> Routine:
    """For each frequency the product of pictures, a row for each tile there is room for, with kernels."""
    pointers, integers = ("of_pictures", "of_weights", "of_products"), ("room", "channels", "panels")
    routine = Routine(module, name, pointers=pointers, integers=integers)
    given = routine.arguments()
    sizes = [
        ("of_pictures", "room", "channels"),
        ("of_weights", "channels", "panels"),
        ("of_products", "room", "panels"),
    ]
    n_vectors = PANEL // LANES

    def do_frequency(frequency: Any, _: Any) -> None:
        pictures, kernels, products = (
            routine.at(given[name], routine.product(frequency, given[rows], given[columns]))
            for name, rows, columns in sizes
        )

        def do_panel(panel: Any, _: Any) -> None:
            of_panel = routine.at(kernels, routine.product(panel, given["channels"]))

            def do_tiles(tile: Any, _: Any) -> None:
                of_tiles = routine.at(pictures, routine.product(tile, whole(LANES)))

                def do_channels(channel: Any, sums: list[Any]) -> list[Any]:
                    numbers = routine.at(of_tiles, routine.product(channel, given["room"]))
                    rows = routine.at(of_panel, routine.product(channel, whole(PANEL)))
                    for lane in range(LANES):
                        places = [routine.at(rows, whole(lane * PANEL + v * LANES)) for v in range(n_vectors)]
                        vectors = [routine.load(place) for place in places]
                        for i in range(TILES_AT_ONCE):
                            number = routine.spread(routine.at(numbers, whole(i * LANES + lane)))
                            for v, vector in enumerate(vectors):
                                at = i * n_vectors + v
                                sums[at] = routine.multiply_add(number, vector, sums[at])
                    return sums

                zeros = [routine.zeros()] * (TILES_AT_ONCE * n_vectors)
                sums = routine.loop(whole(0), given["channels"], LANES, do_channels, zeros)
                for i in range(TILES_AT_ONCE):
                    row = routine.sum(routine.product(routine.sum(tile, whole(i)), given["panels"]), panel)
                    for v in range(n_vectors):
                        target = routine.at(products, routine.sum(row, whole(v * LANES)))
                        routine.store(sums[i * n_vectors + v], target)

            routine.loop(whole(0), given["room"], TILES_AT_ONCE, do_tiles)

        routine.loop(whole(0), given["panels"], PANEL, do_panel)

    routine.loop(whole(0), whole(FREQUENCIES), 1, do_frequency)
    routine.end()
    return routine


def _sum_products(module: Any, name: str) -> Routine:
    """Add to the transformed kernels' gradient, by (frequency, channel, kernel), what the tiles tell.

    Of the frequencies from `frequency` on to `behind`.
    """
    pointers, integers = (
        ("of_pictures", "of_gradient", "sums"),
        ("room", "channels", "panels", "n_tiles", "frequency", "behind"),
    )
    routine = Routine(module, name, pointers=pointers, integers=integers)
    given = routine.arguments()
    n_tiles, n_vectors = given["n_tiles"], PANEL // LANES
    even = routine.build.and_(n_tiles, whole(-2))
    sizes = [("of_pictures", "room", "channels"), ("of_gradient", "room", "panels"), ("sums", "channels", "panels")]

    def do_frequency(frequency: Any, _: Any) -> None:
        pictures, gradients, all_sums = (
            routine.at(given[name], routine.product(frequency, given[rows], given[columns]))
            for name, rows, columns in sizes
        )

        def do_panel(panel: Any, _: Any) -> None:
            of_panel = routine.at(gradients, routine.product(panel, given["room"]))

            def do_channels(channel: Any, _: Any) -> None:
                of_channels = routine.at(pictures, routine.product(channel, given["room"]))
                for half in range(0, LANES, _CHANNELS_AT_ONCE):
                    rows = [routine.sum(channel, whole(half + i)) for i in range(_CHANNELS_AT_ONCE)]
                    targets = [
                        routine.at(
                            all_sums, routine.sum(routine.product(row, given["panels"]), panel, whole(v * LANES))
                        )
                        for row in rows
                        for v in range(n_vectors)
                    ]

                    def do_tile(tile: Any, sums: list[Any], half: int = half) -> list[Any]:
                        place = routine.product(tile, whole(LANES))
                        apart = routine.product(given["room"], whole(LANES))
                        vectors = [
                            routine.load(routine.at(of_panel, routine.sum(place, routine.product(apart, whole(v)))))
                            for v in range(n_vectors)
                        ]
                        for i in range(_CHANNELS_AT_ONCE):
                            number = routine.spread(routine.at(of_channels, routine.sum(place, whole(half + i))))
                            for v, vector in enumerate(vectors):
                                at = i * n_vectors + v
                                sums[at] = routine.multiply_add(number, vector, sums[at])
                        return sums

                    def do_two(tile: Any, sums: list[Any], do_tile: _Turn = do_tile) -> list[Any]:
                        sums = do_tile(tile, sums)
                        return do_tile(routine.sum(tile, whole(1)), sums)

                    sums = [routine.load(target) for target in targets]
                    sums = routine.loop(whole(0), even, 2, do_two, sums)
                    sums = routine.loop(even, n_tiles, 1, do_tile, sums)
                    for target, vector in zip(targets, sums, strict=True):
                        routine.store(vector, target)

            routine.loop(whole(0), given["channels"], LANES, do_channels)

        routine.loop(whole(0), given["panels"], PANEL, do_panel)

    routine.loop(given["frequency"], given["behind"], 1, do_frequency)
    routine.end()
    return routine
