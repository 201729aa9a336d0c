"""The machine code of Winograd's convolution of 4x4 outputs at a time, for `winograd.py`.

Pictures and gradients lie in channels-last memory, and what is computed of a tile of them, 36 numbers for each channel,
in a room for some tiles that fits the processor's cache. There numbers lie by (frequency, group of channels, tile,
channel within the group), but products by (frequency, tile, channel). Channels are taken as many at a time as fill a
register, and then by eights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import POINTER, Part, Program, Routine, whole

TILE = 4  # outputs of a tile, each way
WINDOW = TILE + 2  # what they depend on, each way
FREQUENCIES = WINDOW**2
UNIT = 8  # channels, of inputs and of outputs, are a multiple of it


@dataclass(frozen=True)
class Registers:
    """How products use the processor's registers.

    Attributes:
        lanes: Numbers of a register.
        tiles: That are multiplied at once with a panel of kernels, whose sums stay in registers.
        channels: The same for weights' gradients.
    """

    lanes: int
    tiles: int
    channels: int

    @property
    def panel(self) -> int:
        """Numbers of its vectors."""
        return self.vectors * self.lanes

    @property
    def vectors(self) -> int:
        """Of a panel."""
        return 2


SIXTEEN_OF_8 = Registers(lanes=8, tiles=6, channels=4)
THIRTY_TWO_OF_16 = Registers(lanes=16, tiles=9, channels=8)

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
    "relu", "strands", "n_threads",
)  # fmt: skip
"""Integers that both parts take: sizes; channels of the products (kernels, up to a whole panel); zeros above and to the
left; tiles of a picture, of all, and those that there is room for; distances in the kernels' memory;
whether outputs below zero become zero; into how many strands tiles are divided; threads."""


def compile_winograd(registers: Registers) -> Program:
    """The parts `convolve`, `weight_gradient` and `strands`, which take addresses and then `_SIZES`.

    `convolve` takes pictures, kernels, bias, outputs and room: for the transformed kernels, and then for each thread
    for a row of zeros, one that is written but not read, and the transformed pictures and products of `room` tiles.
    `weight_gradient` takes pictures, the outputs' gradient, the kernels' gradient, a row of zeros and room for both
    transformed, of `room` tiles, and for the transformed kernels' gradient. So does `strands`, but with room for the
    latter of each strand, and then of each thread for both transformed: its threads share tiles, which they do without
    waiting for one another, and not frequencies.
    """
    module = ir.Module("winograd")
    tiles = _transform_tiles(module, "transform_pictures", _OF_PICTURES, registers.lanes, group=UNIT)
    _add_convolve(module, tiles, registers)
    gradients = _transform_tiles(
        module, "transform_gradients", _transposed(_OF_PRODUCTS), registers.lanes, group=registers.lanes
    )
    sums = _sum_products(module, "sum_products", registers)
    back = _transform_kernels_back(module, "transform_kernels_back", _transposed(_OF_KERNELS))
    _add_weight_gradient(module, tiles, gradients, sums, back)
    _add_strands(module, tiles, gradients, sums, back)
    return Program(module, ["convolve", "weight_gradient", "strands"])


def convolve_numbers(channels: int, panels: int, room: int, n_threads: int) -> int:
    """How many numbers the part `convolve` has room for."""
    own = 2 * max(channels, panels) + FREQUENCIES * room * (channels + panels)
    return FREQUENCIES * panels * channels + n_threads * own


def _add_convolve(module: Any, tiles: Routine, registers: Registers) -> None:
    kernels = _transform_kernels(module, "transform_kernels", _OF_KERNELS, registers.panel)
    products = _multiply(module, "multiply", registers)
    back = _transform_back(module, "transform_back", _OF_PRODUCTS, registers.lanes)

    part = Part(module, "convolve", pointers=("pictures", "weights", "bias", "outputs", "scratch"), integers=_SIZES)
    given = part.arguments()
    first, stop = part.share(given["channels"])
    of_kernels = {"kernel": given["weights"], "transformed": given["scratch"], "first": first, "stop": stop}
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


def _add_weight_gradient(module: Any, tiles: Routine, gradients: Routine, sums: Routine, back: Routine) -> None:
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
    of_outputs = _of_outputs(given)

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
    _share_kernels_back(part, back, given, of_weights)
    part.end()


def _of_outputs(given: dict[str, Any]) -> dict[str, Any]:
    """What tiles of the outputs' gradient are transformed with."""
    sizes = {"height": given["out_height"], "width": given["out_width"], "channels": given["kernels"]}
    return {**sizes, "top": whole(0), "left": whole(0), "pictures": given["gradient"]}


def strands_numbers(channels: int, panels: int, room: int, strands: int, n_threads: int) -> int:
    """How many numbers the part `strands` has room for."""
    own = room * (channels + panels)
    return max(channels, panels) + FREQUENCIES * (strands * channels * panels + n_threads * own)


def _add_strands(module: Any, tiles: Routine, gradients: Routine, sums: Routine, back: Routine) -> None:
    part = Part(module, "strands", pointers=("pictures", "gradient", "outputs", "scratch"), integers=_SIZES)
    given, build = part.arguments(), part.build
    channels, panels, room, strands = (given[name] for name in ("channels", "panels", "room", "strands"))
    widest, size = part.largest(channels, panels), part.product(whole(FREQUENCIES), channels, panels)
    zeros = given["scratch"]
    of_weights = part.at(zeros, widest)
    of_thread = part.product(whole(FREQUENCIES), room, part.sum(channels, panels))
    own = part.at(of_weights, part.sum(part.product(strands, size), part.product(part.number, of_thread)))
    of_gradient = part.at(own, part.product(whole(FREQUENCIES), room, channels))
    with build.if_then(build.icmp_signed("==", part.number, whole(0))):
        part.clear(zeros, widest)
    part.meet()
    of_outputs = _of_outputs(given)
    first, stop = part.share(strands)

    def do_strand(strand: Any, _: Any) -> None:
        own_sums = part.at(of_weights, part.product(strand, size))
        part.clear(own_sums, size)
        begin, end = (
            build.sdiv(part.product(i, given["n_tiles"]), strands) for i in (strand, part.sum(strand, whole(1)))
        )
        n_blocks = build.sdiv(part.sum(build.sub(end, begin), build.sub(room, whole(1))), room)

        def do_block(number: Any, _: Any) -> None:
            start = part.sum(begin, part.product(number, room))
            behind = part.sum(start, room)
            behind = build.select(build.icmp_signed("<", behind, end), behind, end)
            block = {**given, "zeros": zeros, "first": start, "own_first": start, "own_stop": behind}
            part.call(tiles, {**block, "transformed": own, "stored": channels})
            part.call(gradients, {**block, **of_outputs, "transformed": of_gradient, "stored": panels})
            frequencies = {"frequency": whole(0), "behind": whole(FREQUENCIES), "n_tiles": build.sub(behind, start)}
            transformed = {"of_pictures": own, "of_gradient": of_gradient, "sums": own_sums}
            part.call(sums, {**block, **frequencies, **transformed})

        part.loop(whole(0), n_blocks, 1, do_block)

    part.loop(first, stop, 1, do_strand)
    part.meet()
    first, stop = (part.product(i, whole(UNIT)) for i in part.share(build.sdiv(size, whole(UNIT))))

    def do_sums(place: Any, _: Any) -> None:
        here = part.at(of_weights, place)

        def do_other(strand: Any, total: list[Any]) -> list[Any]:
            return [build.fadd(total[0], part.load(part.at(here, part.product(strand, size))))]

        (total,) = part.loop(whole(1), strands, 1, do_other, [part.load(here)])
        part.store(total, here)

    part.loop(first, stop, UNIT, do_sums)
    part.meet()
    _share_kernels_back(part, back, given, of_weights)
    part.end()


def _share_kernels_back(part: Part, back: Routine, given: dict[str, Any], transformed: Any) -> None:
    """Each thread some kernels, so that no two of them write into one line of the cache."""
    first, stop = (part.product(i, whole(UNIT)) for i in part.share(part.build.sdiv(given["kernels"], whole(UNIT))))
    of_kernels = {"kernel": given["outputs"], "transformed": transformed, "first": first, "stop": stop}
    part.call(back, {**given, **of_kernels})


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


def _for_channels(routine: Routine, n: Any, lanes: int, body: Callable[[Any, Any], None]) -> None:
    """The body for each of `n` channels that begins a vector: of so many, and then of eights."""
    filled = routine.build.and_(n, whole(-lanes))
    with routine.vectors_of(lanes):
        routine.loop(whole(0), filled, lanes, body)
    if lanes > UNIT:
        with routine.vectors_of(UNIT):
            routine.loop(filled, n, UNIT, body)


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


def _transform_tiles(module: Any, name: str, matrix: _Matrix, lanes: int, *, group: int) -> Routine:
    """Tiles `own_first` to `own_stop` of pictures, of as many numbers each way as the matrix has columns.

    The room begins with the tile `first`, and has so many channels of each frequency as products take, in groups of
    `group`.
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
        own = routine.product(build.sub(tile, given["first"]), whole(group))
        apart = routine.product(given["room"], whole(group))

        def do_channels(channel: Any, _: Any) -> None:
            target = routine.at(given["transformed"], routine.sum(routine.product(channel, given["room"]), own))

            def load(i: int, j: int) -> Any:
                return routine.load(routine.at(build.load(build.gep(places, [whole(i * size + j)])), channel))

            def store(i: int, j: int, vector: Any) -> None:
                place = routine.at(target, routine.product(frequency, whole(i * WINDOW + j)))
                if routine.lanes <= group:
                    routine.store(vector, place)
                else:
                    for n in range(routine.lanes // group):
                        of_group = routine.at(place, routine.product(apart, whole(n)))
                        routine.store(routine.piece(vector, n * group, group), of_group)

            _transform(routine, matrix, load, store)

        _for_channels(routine, given["channels"], lanes, do_channels)

    routine.loop(given["own_first"], given["own_stop"], 1, do_tile)
    routine.end()
    return routine


def _transform_back(module: Any, name: str, matrix: _Matrix, lanes: int) -> Routine:
    """Outputs of the tiles `own_first` to `own_stop`, with their bias; what lies beyond the picture is not kept."""
    integers = ("height", "width", "kernels", "panels", "relu", *_TILES)
    routine = Routine(module, name, pointers=("of_products", "outputs", "unread", "bias"), integers=integers)
    given, build = routine.arguments(), routine.build
    places = build.alloca(POINTER, TILE**2)
    frequency = routine.product(given["room"], given["panels"])

    def do_tile(tile: Any, _: Any) -> None:
        of_pixels = {**given, "pixel_size": given["kernels"]}
        _rows(routine, places, given["outputs"], given["unread"], _corner(routine, tile, given), TILE, of_pixels)
        own = routine.product(build.sub(tile, given["first"]), given["panels"])

        def do_kernels(kernel: Any, _: Any) -> None:
            source = routine.at(given["of_products"], routine.sum(own, kernel))
            bias, least = routine.load(routine.at(given["bias"], kernel)), routine.either(given["relu"], 0.0, -math.inf)

            def load(i: int, j: int) -> Any:
                return routine.load(routine.at(source, routine.product(frequency, whole(i * WINDOW + j))))

            def store(i: int, j: int, vector: Any) -> None:
                place = build.load(build.gep(places, [whole(i * TILE + j)]))
                routine.store(routine.at_least(build.fadd(vector, bias), least), routine.at(place, kernel))

            _transform(routine, matrix, load, store)

        _for_channels(routine, given["kernels"], lanes, do_kernels)

    routine.loop(given["own_first"], given["own_stop"], 1, do_tile)
    routine.end()
    return routine


def _transform_kernels(module: Any, name: str, matrix: _Matrix, panel_size: int) -> Routine:
    """Kernels, for `_multiply` by (frequency, panel of kernels, channel, kernel within the panel).

    Of the channels `first` to `stop`, so that no two threads write into one line of the cache.
    """
    routine = Routine(module, name, pointers=("kernel", "transformed"), integers=_KERNEL)
    given, build = routine.arguments(), routine.build
    frequency = routine.product(given["panels"], given["channels"])

    def do_kernels(kernel: Any, _: Any) -> None:
        within = build.srem(kernel, whole(panel_size))
        panel = routine.product(build.sub(kernel, within), given["channels"])

        def do_channel(channel: Any, _: Any) -> None:
            source = _kernel_at(routine, kernel, channel, given)
            place = routine.sum(panel, routine.product(channel, whole(panel_size)), within)
            target = routine.at(given["transformed"], place)

            def load(i: int, j: int) -> Any:
                return routine.gather(_weight_at(routine, source, i, j, given), given["of_kernels"])

            def store(i: int, j: int, vector: Any) -> None:
                routine.store(vector, routine.at(target, routine.product(frequency, whole(i * WINDOW + j))))

            _transform(routine, matrix, load, store)

        routine.loop(given["first"], given["stop"], 1, do_channel)

    routine.loop(whole(0), given["kernels"], UNIT, do_kernels)
    routine.end()
    return routine


def _transform_kernels_back(module: Any, name: str, matrix: _Matrix) -> Routine:
    """The kernels' gradient from that of the transformed ones, by (frequency, channel, kernel).

    Of the kernels `first` to `stop`.
    """
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

        routine.loop(given["first"], given["stop"], UNIT, do_kernels)

    routine.loop(whole(0), given["channels"], 1, do_channel)
    routine.end()
    return routine


def _kernel_at(routine: Routine, kernel: Any, channel: Any, given: dict[str, Any]) -> Any:
    by_kernel, by_channel = routine.product(kernel, given["of_kernels"]), routine.product(channel, given["of_channels"])
    return routine.at(given["kernel"], routine.sum(by_kernel, by_channel))


def _weight_at(routine: Routine, kernel: Any, row: int, column: int, given: dict[str, Any]) -> Any:
    down, across = routine.product(given["of_rows"], whole(row)), routine.product(given["of_columns"], whole(column))
    return routine.at(kernel, routine.sum(down, across))


def _multiply(module: Any, name: str, registers: Registers) -> Routine:
    """For each frequency the product of pictures, a row for each tile there is room for, with kernels."""
    pointers, integers = ("of_pictures", "of_weights", "of_products"), ("room", "channels", "panels")
    routine = Routine(module, name, pointers=pointers, integers=integers)
    given = routine.arguments()
    sizes = [
        ("of_pictures", "room", "channels"),
        ("of_weights", "channels", "panels"),
        ("of_products", "room", "panels"),
    ]
    routine.lanes, panel_size = registers.lanes, registers.panel

    def do_frequency(frequency: Any, _: Any) -> None:
        pictures, kernels, products = (
            routine.at(given[name], routine.product(frequency, given[rows], given[columns]))
            for name, rows, columns in sizes
        )

        def do_panel(panel: Any, _: Any) -> None:
            of_panel = routine.at(kernels, routine.product(panel, given["channels"]))

            def do_tiles(tile: Any, _: Any) -> None:
                of_tiles = routine.at(pictures, routine.product(tile, whole(UNIT)))

                def do_channels(channel: Any, sums: list[Any]) -> list[Any]:
                    numbers = routine.at(of_tiles, routine.product(channel, given["room"]))
                    rows = routine.at(of_panel, routine.product(channel, whole(panel_size)))
                    for c in range(UNIT):
                        starts = range(c * panel_size, (c + 1) * panel_size, registers.lanes)
                        vectors = [routine.load(routine.at(rows, whole(start))) for start in starts]
                        for i in range(registers.tiles):
                            number = routine.spread(routine.at(numbers, whole(i * UNIT + c)))
                            for v, vector in enumerate(vectors):
                                at = i * registers.vectors + v
                                sums[at] = routine.multiply_add(number, vector, sums[at])
                    return sums

                zeros = [routine.zeros()] * (registers.tiles * registers.vectors)
                sums = routine.loop(whole(0), given["channels"], UNIT, do_channels, zeros)
                for i in range(registers.tiles):
                    row = routine.sum(routine.product(routine.sum(tile, whole(i)), given["panels"]), panel)
                    for v in range(registers.vectors):
                        target = routine.at(products, routine.sum(row, whole(v * registers.lanes)))
                        routine.store(sums[i * registers.vectors + v], target)

            routine.loop(whole(0), given["room"], registers.tiles, do_tiles)

        routine.loop(whole(0), given["panels"], panel_size, do_panel)

    routine.loop(whole(0), whole(FREQUENCIES), 1, do_frequency)
    routine.end()
    return routine


def _sum_products(module: Any, name: str, registers: Registers) -> Routine:
    """Add to the transformed kernels' gradient, by (frequency, channel, kernel), what the tiles tell.

    Of the frequencies from `frequency` on to `behind`.
    """
    pointers, integers = (
        ("of_pictures", "of_gradient", "sums"),
        ("room", "channels", "panels", "n_tiles", "frequency", "behind"),
    )
    routine = Routine(module, name, pointers=pointers, integers=integers)
    given = routine.arguments()
    routine.lanes, n_tiles, n_vectors = registers.lanes, given["n_tiles"], registers.vectors
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
                for start in range(0, UNIT, registers.channels):
                    rows = [routine.sum(channel, whole(start + i)) for i in range(registers.channels)]
                    targets = [
                        routine.at(
                            all_sums,
                            routine.sum(routine.product(row, given["panels"]), panel, whole(v * registers.lanes)),
                        )
                        for row in rows
                        for v in range(n_vectors)
                    ]

                    def do_tile(tile: Any, sums: list[Any], start: int = start) -> list[Any]:
                        place = routine.product(tile, whole(registers.lanes))
                        apart = routine.product(given["room"], whole(registers.lanes))
                        vectors = [
                            routine.load(routine.at(of_panel, routine.sum(place, routine.product(apart, whole(v)))))
                            for v in range(n_vectors)
                        ]
                        of_tile = routine.at(of_channels, routine.product(tile, whole(UNIT)))
                        for i in range(registers.channels):
                            number = routine.spread(routine.at(of_tile, whole(start + i)))
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

            routine.loop(whole(0), given["channels"], UNIT, do_channels)

        routine.loop(whole(0), given["panels"], registers.panel, do_panel)

    routine.loop(given["frequency"], given["behind"], 1, do_frequency)
    routine.end()
    return routine
