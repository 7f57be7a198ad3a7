"""The encoder: sees what it was trained on, the same function in training and inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.arithmetic import round_to_stored
from wsi_ips.model.encoder import Architecture, Encoder, build_encoder, in_fixed_batches, rebuild_encoder

NARROW = {"channels": [8, 8, 8, 8]}


class MeanColour(nn.Module):
    """A network whose answer is known: the mean of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def _mean_encoder() -> Encoder:
    a = Architecture("mean", {}, 3, 4, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), "bicubic")
    return Encoder(MeanColour(), a)


def test_pixels_are_scaled_and_normalised_a_channel() -> None:
    """(value / 255 - mean) / std, in RGB order, nothing resized or cropped; to the precision of float16."""
    tile = np.zeros((1, 4, 4, 3), np.uint8)
    tile[..., 0], tile[..., 1], tile[..., 2] = 255, 0, 51
    tile[0, 0, 0, 2] = 51 + 160  # a corner pixel counts: no crop
    out = _mean_encoder()(torch.from_numpy(tile))
    assert out.dtype == torch.float32
    assert out[0].tolist() == pytest.approx([1.0, -1.0, (51 + 10) / 255], abs=1e-4)


class TopLeft(nn.Module):
    """Means of the upper and of the left half of the first channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0, :2].mean((1, 2)), x[:, 0, :, :2].mean((1, 2))], 1)


def test_rows_and_columns_stay_what_they_are() -> None:
    """A tile whose upper half is bright reaches the network with its upper half bright."""
    tile = np.zeros((1, 4, 4, 3), np.uint8)
    tile[:, :2] = 255
    encoder = Encoder(TopLeft(), Architecture("halves", {}, 3, 4, (0.0,) * 3, (1.0,) * 3, "bicubic"))
    assert encoder(torch.from_numpy(tile))[0].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("shape", [(1, 5, 4, 3), (1, 4, 4, 1), (1, 3, 4, 4)])
def test_other_tiles_than_the_encoders_own_are_refused(shape: tuple[int, ...]) -> None:
    """A tile of another side, channel count or layout is an error that names what was expected."""
    with pytest.raises(ModelError, match=r"expected uint8 tiles \(n, 4, 4, 3\)"):
        _mean_encoder()(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ModelError, match="float32"):
        _mean_encoder()(torch.zeros(1, 4, 4, 3))


@pytest.mark.parametrize(
    "kwargs", [{}, {"norm_layer": "groupnorm"}, {"norm_layer": "groupnorm1"}, {"norm_layer": "layernorm2d"}]
)
def test_small_nets_from_scratch(kwargs: dict[str, str]) -> None:
    """Width and normalisation of a net are a matter of settings."""
    encoder = build_encoder(EncoderSettings(weights="none", kwargs=NARROW | kwargs), 32)
    assert encoder.width == 8
    assert encoder(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 8)


def test_groupnorm_keeps_timms_meaning_on_wide_layers() -> None:
    """32 groups where they divide the channels, so that stock weights mean the same."""
    encoder = build_encoder(EncoderSettings(weights="none", kwargs={"norm_layer": "groupnorm"}), 32)
    groups = {m.num_groups for m in encoder.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {32}


def test_other_numbers_of_channels() -> None:
    """One channel and five channels work; normalisation has one number a channel."""
    for channels in (1, 5):
        encoder = build_encoder(EncoderSettings(weights="none", kwargs=NARROW, in_channels=channels), 32)
        assert encoder(torch.zeros(1, 32, 32, channels, dtype=torch.uint8)).shape == (1, 8)
        assert len(encoder.architecture.mean) == len(encoder.architecture.std) == channels


def test_wrong_arguments_are_named() -> None:
    """An argument timm does not know is an error that shows it."""
    with pytest.raises(ModelError, match="bananas"):
        build_encoder(EncoderSettings(weights="none", kwargs={"bananas": 3}), 32)
    with pytest.raises(ModelError, match="near: resnet"):
        build_encoder(EncoderSettings(name="resnet1888", weights="none"), 32)
    with pytest.raises(ModelError, match="global_pool: avg"):
        build_encoder(EncoderSettings(weights="none", kwargs=NARROW | {"global_pool": ""}), 32)


def test_fault_108_training_mode_changes_nothing() -> None:
    """Batch statistics and dropout stay off: training computes the function that selection used."""
    encoder = build_encoder(EncoderSettings(weights="none", kwargs=NARROW | {"drop_path_rate": 0.5}), 32)
    tiles = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    before = encoder(tiles)
    buffers = [b.clone() for b in encoder.buffers()]
    assert torch.equal(encoder.train()(tiles), before)
    assert all(torch.equal(a, b) for a, b in zip(buffers, encoder.buffers(), strict=True))


def test_stages_open_from_the_end() -> None:
    """0 freezes all, k opens the last k stages and what follows, -1 opens all, more than there are is an error."""
    encoder = build_encoder(EncoderSettings(weights="none", kwargs=NARROW), 32)

    def learning() -> set[str]:
        return {n.split(".")[0] for n, p in encoder.net.named_parameters() if p.requires_grad}

    assert encoder.set_trainable(0) == 0
    assert learning() == set()
    assert encoder.set_trainable(2) > 0
    assert learning() == {"layer3", "layer4"}
    assert encoder.set_trainable(-1) == sum(p.numel() for p in encoder.parameters())
    assert learning() == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    with pytest.raises(ModelError, match="9 stages asked for"):
        encoder.set_trainable(9)


def test_transformers_open_by_blocks_and_take_the_tile_size() -> None:
    """A net built for one input side is built for the tile's side; its last block and final norm open together."""
    kwargs = {"depth": 3, "embed_dim": 12, "num_heads": 2}
    encoder = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", weights="none", kwargs=kwargs), 48)
    assert encoder(torch.zeros(1, 48, 48, 3, dtype=torch.uint8)).shape == (1, 12)
    encoder.set_trainable(1)
    open_now = {".".join(n.split(".")[:2]) for n, p in encoder.net.named_parameters() if p.requires_grad}
    assert open_now == {"blocks.2", "norm.weight", "norm.bias"}


def test_fault_110_an_embedding_does_not_depend_on_its_company(make_classifier, tiles: torch.Tensor) -> None:
    """Padded to one batch shape, the first tiles come out bit for bit the same whatever follows them."""
    encoder = make_classifier().encoder
    with torch.no_grad():
        many = in_fixed_batches(encoder, tiles, 4)
        few = [in_fixed_batches(encoder, tiles[:k], 4) for k in range(1, 7)]
    assert many.shape == (7, 8)
    assert all(torch.equal(part, many[: len(part)]) for part in few)


def test_the_same_encoder_again_without_network(make_classifier, tiles: torch.Tensor) -> None:
    """An architecture is enough to build the shape again; with the weights it is the same function."""
    encoder = make_classifier(norm_layer="groupnorm").encoder
    again = rebuild_encoder(encoder.architecture)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(tiles), encoder(tiles))


def test_embeddings_are_numbers_that_float16_holds(make_classifier, tiles: torch.Tensor) -> None:
    """Every pass sees the stored type: a float16 copy loses nothing, and is near the network's own answer."""
    encoder = make_classifier().encoder
    encoder.precision = "float32"
    out = encoder(tiles)
    assert out.dtype == torch.float32
    assert torch.equal(out, out.half().float())
    plain = encoder.double()(tiles)
    assert not torch.equal(plain, plain.half().double())  # float64 weights: not rounded
    assert torch.allclose(out.double(), plain, rtol=2**-10, atol=1e-5)
    assert (out.double() - plain).abs().max() > 1e-5


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    """Straight through: the slope is 1, whatever the rounding did; too large a number becomes infinite."""
    x = torch.tensor([1.0, 1.0 + 2**-12, 3e-9, 7e4, -0.3], requires_grad=True)
    out = round_to_stored(x)
    (out[[0, 1, 2, 4]] * torch.tensor([1.0, 2.0, 3.0, 5.0])).sum().backward()
    assert out[:4].tolist() == [1.0, 1.0, 0.0, float("inf")]
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 0.0, 5.0]


def test_fault_109_an_embedding_beyond_float16_is_refused_by_scanning(make_classifier, tiles: torch.Tensor) -> None:
    """An overflow never becomes a label, with or without a projector."""
    for dim in (None, 12):
        classifier = make_classifier(dim=dim)
        with torch.no_grad():
            for parameter in classifier.encoder.net.layer4.parameters():
                parameter *= 100.0
        with pytest.raises(ModelError, match="not finite"):
            classifier.scan(tiles, 4)


def test_the_hash_is_architecture_weights_and_buffers(make_classifier) -> None:
    """Equal encoders agree; another weight, buffer, type or mean, changed by whatever means, is another hash."""
    encoder = make_classifier().encoder
    again = rebuild_encoder(encoder.architecture)
    again.load_state_dict(encoder.state_dict())
    hashes = [encoder.hash]
    assert len(encoder.hash) == 64
    assert again.hash == encoder.hash
    weight = encoder.net.layer2[0].conv1.weight
    with torch.no_grad():
        weight[3, 2, 1, 1] += 1e-3
    hashes.append(encoder.hash)
    weight.data.mul_(1.01)
    hashes.append(encoder.hash)
    encoder.net.bn1.running_mean[1] += 1
    hashes.append(encoder.hash)
    optimiser = torch.optim.AdamW([weight], lr=1e-3)
    weight.sum().backward()
    optimiser.step()
    hashes.append(encoder.hash)
    hashes.append(encoder.double().hash)
    other = Encoder(again.net, again.architecture._replace(kwargs={"channels": [8, 8, 8, 8], "aa": None}))
    hashes.append(other.hash)
    assert len(set(hashes)) == 7


def test_the_arithmetic_is_named(make_classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind of device and type of numbers, as they will be used; part of the identity of embeddings."""
    classifier = make_classifier()
    monkeypatch.setattr("wsi_ips.model.encoder.is_bf16_native", lambda _kind: True)
    fast = classifier.embedding_hash
    assert classifier.encoder.compute == "cpu/bfloat16"
    classifier.encoder.precision = "float32"
    assert classifier.encoder.compute == "cpu/float32"
    assert classifier.embedding_hash != fast
    assert classifier.double().encoder.compute == "cpu/float64"


def test_parameters_are_grouped_by_stage() -> None:
    """From the stem to the last stage, each that learns exactly once; frozen stages are left out."""
    encoder = build_encoder(EncoderSettings(weights="none", kwargs=NARROW), 32)
    names = {id(p): n for n, p in encoder.net.named_parameters()}

    def stages() -> list[set[str]]:
        return [{names[id(p)].split(".")[0] for p in group} for group in encoder.parameter_groups()]

    encoder.set_trainable(-1)
    assert stages() == [{"conv1", "bn1", "layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert sorted(id(p) for group in encoder.parameter_groups() for p in group) == sorted(names)
    encoder.set_trainable(2)
    assert stages() == [{"layer3"}, {"layer4"}]
    encoder.set_trainable(0)
    assert stages() == []


def test_a_transformers_groups_are_its_blocks() -> None:
    """Embedding with the first block, final norm with the last; block 1 is not block 10."""
    kwargs = {"depth": 11, "embed_dim": 12, "num_heads": 2}
    encoder = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", weights="none", kwargs=kwargs), 32)
    names = {id(p): n for n, p in encoder.net.named_parameters()}
    groups = [{".".join(names[id(p)].split(".")[:2]) for p in group} for group in encoder.parameter_groups()]
    assert len(groups) == 11
    assert groups[0] == {"cls_token", "pos_embed", "patch_embed.proj", "blocks.0"}
    assert groups[1] == {"blocks.1"}
    assert groups[10] == {"blocks.10", "norm.weight", "norm.bias"}


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_first_stages_are_those_of_the_whole_net(stages: int) -> None:
    """Cut behind a stage an encoder gives the mean of that stage's map, and can be built again without it all."""
    whole = build_encoder(EncoderSettings(name="resnet18", weights="none", kwargs={"channels": [4, 8, 12, 16]}, in_channels=1), 40, precision="float32")
    settings = EncoderSettings(name="resnet18", weights="none", kwargs={"channels": [4, 8, 12, 16]}, in_channels=1, stages=stages)
    cut = build_encoder(settings, 40, precision="float32")
    assert (cut.width, cut.stages()) == ((4, 8, 12)[stages - 1], ["layer1", "layer2", "layer3"][:stages])
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if k in cut.state_dict()})
    tiles = torch.randint(0, 256, (3, 40, 40, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = (tiles.float().permute(0, 3, 1, 2) / 255.0 - whole.mean) / whole.std
    with torch.no_grad():
        found, wanted = cut(tiles), whole.net.forward_intermediates(x, indices=[stages], intermediates_only=True)[0].mean((2, 3))
    assert torch.allclose(found, wanted, atol=2e-3)
    again = rebuild_encoder(cut.architecture, "float32")
    again.load_state_dict(cut.state_dict())
    assert torch.equal(again(tiles), found)
    assert again.hash == cut.hash


def test_more_stages_than_there_are_is_an_error() -> None:
    """The sentence names them."""
    with pytest.raises(ModelError, match="stages 5 asked for; it has 4: layer1, layer2"):
        build_encoder(EncoderSettings(name="resnet18", weights="none", kwargs=NARROW, stages=5), 32)
