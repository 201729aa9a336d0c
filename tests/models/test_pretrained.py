"""Weights found, read, loaded and refused. Networks are small ones of timm's with random weights."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from netloom.errors import ModelError, RunError
from netloom.models import ImageModel, create_model
from netloom.models.backbones import TRUNK_PREFIX, timm
from netloom.models.pretrained import (
    digest_of,
    find_weights,
    input_of,
    load_pretrained,
    network_of,
    padding_of,
    published_input,
    read_weights,
)
from netloom.training.checkpoint import load_weights, weights_bytes

RESNET, VIT = "timm/test_resnet", "timm/test_vit"  # timm's own test networks: half a million parameters each


def network(name: str = RESNET, *, seed: int = 0, side: int = 32, **options: Any) -> ImageModel:
    size = (side, side)
    return create_model(name, in_channels=3, num_outputs=4, image_size=size, seed=seed, options=options).eval()


def theirs(name: str = RESNET, *, num_classes: int = 1000, **arguments: Any) -> Any:
    return timm().create_model(name.removeprefix("timm/"), num_classes=num_classes, **arguments).eval()


def pictures(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def tensors_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("num_classes", [1000, 0])
def test_timms_weights_give_timms_features(num_classes: int) -> None:
    net, model = theirs(num_classes=num_classes), network()
    classifier = model.classifier.weight.clone()
    loaded = load_pretrained(model, tensors_of(net), name=RESNET, where="memory")
    assert loaded == [stage for stage, _ in model.stages() if stage != "classifier"]
    x = pictures()
    with torch.no_grad():
        assert torch.equal(model.forward_features(x), net.forward_features(x))
    assert torch.equal(model.classifier.weight, classifier)


def test_a_head_of_the_networks_own_is_loaded_too() -> None:
    name = "timm/mobilenetv3_small_050"  # a convolution behind the pooling
    net, model = theirs(name), network(name, dense_units=[6])
    dense = model.head.dense1.weight.clone()
    assert "head" in load_pretrained(model, tensors_of(net), name=name, where="memory")
    x = pictures()
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(model.head.pool(features), net.forward_head(features, pre_logits=True))
    assert torch.equal(model.head.dense1.weight, dense)


def test_positions_of_a_transformer_are_resampled_to_the_size_of_the_pictures() -> None:
    net = theirs(VIT, img_size=160)
    model = network(VIT, side=64)
    load_pretrained(model, tensors_of(net), name=VIT, where="memory")
    expected = theirs(VIT, img_size=64)
    from timm.models.vision_transformer import checkpoint_filter_fn

    expected.load_state_dict(checkpoint_filter_fn(tensors_of(net), expected))
    x = pictures(64)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), expected.forward_features(x))


def test_a_cut_leaves_what_follows_as_it_was() -> None:
    net, model = theirs(), network()
    before = {name: [p.clone() for p in part.parameters()] for name, part in model.stages()}
    loaded = load_pretrained(model, tensors_of(net), name=RESNET, where="memory", cut="block2")
    assert loaded[-1] == "block2"
    for name, part in model.stages():
        same = [torch.equal(a, b) for a, b in zip(before[name], part.parameters(), strict=True) if a.ndim > 1]
        assert not any(same) if name in loaded else all(same)
    with pytest.raises(ModelError, match=r"no stage 'blok2'\. Did you mean 'block2'\? It has stem, block1"):
        load_pretrained(model, tensors_of(net), name=RESNET, where="memory", cut="blok2")


def test_a_network_of_this_house_takes_the_layers_of_another_run() -> None:
    def convnet(seed: int, outputs: int) -> ImageModel:
        return create_model(
            "convnet",
            in_channels=3,
            num_outputs=outputs,
            image_size=(16, 16),
            seed=seed,
            options={"filters": [4, 6], "dense_units": [5]},
        )

    from safetensors.torch import load

    source, model = convnet(1, 7), convnet(0, 3)
    load_pretrained(model, load(weights_bytes(source)), name="convnet", where="run")
    assert all(torch.equal(a, b) for a, b in zip(model.trunk.parameters(), source.trunk.parameters(), strict=True))
    assert not torch.equal(model.head.dense1.weight, source.head.dense1.weight)


def test_weights_of_another_network_are_refused_and_nothing_is_changed() -> None:
    model = network()
    before = tensors_of(model)
    with pytest.raises(ModelError) as caught:
        load_pretrained(model, tensors_of(theirs(VIT)), name=RESNET, where="vit.safetensors")
    message = str(caught.value)
    assert "vit.safetensors belong to another network than timm/test_resnet" in message
    assert "tensors are missing" in message
    assert "are unknown to it (cls_token, " in message
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_larger_network_whose_tensors_include_these_is_refused() -> None:
    name = "timm/resnet18"
    model = network(name)
    with pytest.raises(ModelError, match=r"are unknown to it \(layer1\.2\.conv1\.weight"):
        load_pretrained(model, tensors_of(theirs("timm/resnet34")), name=name, where="resnet34.safetensors")


def test_other_shapes_are_named() -> None:
    tensors = tensors_of(theirs())
    name = next(key for key, value in tensors.items() if value.ndim == 4)
    tensors[name] = tensors[name][:, :1].clone()
    with pytest.raises(ModelError, match=rf"1 have another shape \({name} \d+x1x3x3 instead of \d+x3x3x3\)"):
        load_pretrained(network(), tensors, name=RESNET, where="grey.safetensors")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tensors_of(theirs()), path)
    whole = path.read_bytes()
    huge = (2**63).to_bytes(8, "little") + whole[8:]
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**3], "data_offsets": [0, 4]}}).encode()
    lying = len(header).to_bytes(8, "little") + header + bytes(4)
    for content in (whole[: len(whole) // 2], whole[:4], b"", huge, lying, b"\x80\x04K\x01." * 100):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read .* truncated, damaged or no"):
            read_weights(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(theirs())
    name = next(key for key, value in tensors.items() if value.ndim == 4)
    tensors[name][0] = torch.nan
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=rf"not finite, in {name}"):
        read_weights(tmp_path / "w.safetensors")


def with_type(path: Path, tensor: str, kind: str, bits: int) -> None:
    """Say in the header of a safetensors file that a tensor is of another type, and give it as many bytes."""
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header, content = json.loads(whole[8:start]), b""
    for name, about in header.items():
        if name == "__metadata__":
            continue
        begin, end = about["data_offsets"]
        part = whole[start + begin : start + end]
        if name == tensor:
            about["dtype"], part = kind, bytes(math.prod(about["shape"]) * bits // 8)
        about["data_offsets"] = [len(content), len(content) + len(part)]
        content += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


@pytest.mark.parametrize(
    ("kind", "bits", "told"),
    [
        ("F8_E4M3", 8, "float8_e4m3fn"),
        ("F8_E8M0", 8, "float8_e8m0fnu"),
        ("F4", 4, "float4_e2m1fn_x2"),
        ("I8", 8, "int8"),
        ("U16", 16, "uint16"),
        ("C64", 64, "complex64"),
        ("BOOL", 8, "bool"),
    ],
)
def test_quantized_and_other_numbers_are_refused(kind: str, bits: int, told: str, tmp_path: Path) -> None:
    path, model = tmp_path / "w.safetensors", network()
    save_file(tensors_of(theirs()), path)
    with_type(path, "layer1.0.bn1.weight", kind, bits)
    before = weights_bytes(model)
    with pytest.raises(ModelError, match=rf"1 of its tensors .* \(layer1\.0\.bn1\.weight \({told}\)\).* quantized"):
        load_pretrained(model, read_weights(path), name=RESNET, where=str(path))
    assert weights_bytes(model) == before
    path.write_bytes(before)
    with_type(path, "classifier.weight", kind, bits)
    with pytest.raises(RunError, match=rf"other types of numbers .* classifier\.weight \({told}\); they are damaged"):
        load_weights(model, path)
    assert weights_bytes(model) == before


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(kind: torch.dtype) -> None:
    """Half of a network's precision is often all that is published; counters of batches stay whole numbers."""
    tensors = {
        name: value.to(kind) if value.is_floating_point() else value for name, value in tensors_of(theirs()).items()
    }
    model = network()
    load_pretrained(model, tensors, name=RESNET, where="w.safetensors")
    name = "layer1.0.conv1.weight"
    assert torch.equal(model.state_dict()[TRUNK_PREFIX + name], tensors[name].float())


def test_weights_are_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETLOOM_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    tagged = tmp_path / "weights" / "test_resnet.r160_in1k.safetensors"
    tagged.write_bytes(b"")
    assert find_weights("published", RESNET) == tagged
    assert find_weights("published", f"{RESNET}.r160_in1k") == tagged
    plain = tmp_path / "weights" / "test_resnet.safetensors"
    plain.write_bytes(b"")
    assert find_weights("published", RESNET) == plain
    assert find_weights("published", f"{RESNET}.r160_in1k") == tagged


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("missing.safetensors", r"no weights at .*missing\.safetensors"),
        ("model.pth", r"must be a \.safetensors file.*can hold programs"),
    ],
)
def test_files_that_are_no_weights_are_told(weights: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        find_weights(str(tmp_path / weights), RESNET)


def test_networks_of_this_house_have_no_published_weights() -> None:
    with pytest.raises(ModelError, match="no published weights of convnet"):
        find_weights("published", "convnet")


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: https://huggingface.co/docs/hub, `resolve` addresses."""

    content = b""
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()
        self.wfile.write(self.content)

    def _answer(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("NETLOOM_DATA", raising=False)
    yield _Hub
    server.shutdown()
    server.server_close()


def test_published_weights_come_from_the_hub_and_then_from_its_cache(
    hub: type[_Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors_of(theirs()), tmp_path / "w.safetensors")
    monkeypatch.setattr(hub, "content", (tmp_path / "w.safetensors").read_bytes())
    monkeypatch.setattr(hub, "asked", [])
    path = find_weights("published", RESNET)
    assert path.read_bytes() == hub.content
    asked = {address for address in hub.asked if "/resolve/" in address}
    assert asked == {"/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"}
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_weights("published", RESNET) == path


def test_without_a_network_the_three_ways_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("NETLOOM_DATA", raising=False)
    with pytest.raises(ModelError) as caught:
        find_weights("published", RESNET)
    message = str(caught.value)
    assert "network connection" in message
    assert "--weights FILE.safetensors" in message
    assert "$NETLOOM_DATA/weights/test_resnet.safetensors" in message


def test_what_a_network_was_trained_on_is_known(tmp_path: Path) -> None:
    known = published_input("timm/mobilenetv1_100")
    assert known.image_size == (224, 224)
    assert known.mean == known.std == (0.5, 0.5, 0.5)
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert input_of(path) is None
    assert padding_of(path, digest_of(path)) is None
    save_file(
        {"a": torch.zeros(1)},
        path,
        metadata={"image_size": "[32, 48]", "mean": "[0.5]", "std": "[0.25]", "padding": "same"},
    )
    found = input_of(path)
    assert found is not None
    assert (found.image_size, found.mean, found.std) == ((32, 48), (0.5,), (0.25,))
    assert padding_of(path, digest_of(path)) == "same"
    save_file({"a": torch.zeros(1)}, path, metadata={"image_size": "[32, 48]", "mean": "[0.5]", "std": "[0]"})
    with pytest.raises(ModelError, match="impossible"):
        input_of(path)


@pytest.mark.parametrize(
    "texts",
    [
        {"image_size": "[1e999, 224]"},
        {"mean": f"[1{'0' * 400}]"},
        {"std": '["' + 10_000 * "x" + '"]'},
        {"image_size": "[NaN, 224]"},
        {"image_size": "{}"},
        {"image_size": 5_000 * "["},
    ],
)
def test_impossible_metadata_is_told_in_few_words(texts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    said = {"image_size": "[32, 48]", "mean": "[0.5]", "std": "[0.25]", **texts}
    save_file({"a": torch.zeros(1)}, path, metadata=said)
    with pytest.raises(ModelError, match="impossible image_size, mean or std") as error:
        input_of(path)
    assert len(str(error.value)) < len(str(path)) + 400


def with_texts(path: Path, **texts: str) -> Path:
    save_file({"a": torch.zeros(1)}, path, metadata=texts)
    return path


def test_a_file_may_say_which_network_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    options = {"filters": [8, 16], "normalization": "before"}
    said = network_of(with_texts(path, model='"convnet"', options=json.dumps(options)))
    assert said == ("convnet", options)
    assert network_of(with_texts(path, model=f'"{RESNET}"')) == (RESNET, {})
    # What others write there, and a network of another version, say nothing.
    for text in ("convnet", "{}", '"no such network"', '"' + 10_000 * "x" + '"', 5_000 * "["):
        assert network_of(with_texts(path, model=text, options="[")) is None
    assert network_of(with_texts(path, format="pt")) is None


@pytest.mark.parametrize(
    "options", ["[]", "[", 5_000 * "[", '{"filters": "many"}', '{"custom_model": "x"}', json.dumps({10_000 * "x": 1})]
)
def test_impossible_options_are_told_in_few_words(options: str, tmp_path: Path) -> None:
    path = with_texts(tmp_path / "hostile.safetensors", model='"convnet"', options=options)
    with pytest.raises(ModelError, match="tell impossible options of convnet") as error:
        network_of(path)
    assert len(str(error.value)) < len(str(path)) + 400


@pytest.mark.parametrize("broken", [False, True])
def test_names_of_tensors_are_escaped_and_cut(broken: bool, tmp_path: Path) -> None:
    path, name = tmp_path / "hostile.safetensors", "layer1.\x1b]0;gone\x07\u202e" + 10_000 * "x"
    tensors = {**theirs(num_classes=0).state_dict(), name: torch.full((1,), float("nan") if broken else 0.0)}
    save_file(tensors, path)
    with pytest.raises(ModelError, match="not finite" if broken else "1 are unknown to it") as error:
        load_pretrained(network(), read_weights(path), name=RESNET, where=str(path))
    message = str(error.value)
    assert r"layer1.\x1b]0;gone\x07\u202exxx" in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 500
