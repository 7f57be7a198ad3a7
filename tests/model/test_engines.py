"""Inference engines: the encoder's own function, tile by tile, and never of weights that have moved on."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ConfigError, ModelError
from wsi_ips.model import engines, openvino_engine
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.embedder import Embedder, relative_error
from wsi_ips.model.encoder import Encoder, Precision, build_encoder
from wsi_ips.model.engines import make_engine, set_engine, use_engine
from wsi_ips.model.ensemble import EnsembleClassifier

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "batchnorm": ("resnet18", {"channels": [16, 16, 32, 32]}),
    "groupnorm": ("resnet18", {"channels": [16, 16, 32, 32], "norm_layer": "groupnorm"}),
    "transformer": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "convnext": ("convnext_atto", {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}),
}
ENGINES = ["torch", pytest.param("openvino", marks=pytest.mark.skipif(not HAS_OPENVINO, reason="needs OpenVINO"))]
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="needs OpenVINO")


def _encoder(kind: str, precision: Precision = "auto", seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    name, kwargs = NETS[kind]
    encoder = build_encoder(EncoderSettings(name=name, weights="none", kwargs=kwargs), 64, precision=precision)
    for key, parameter in encoder.net.named_parameters():
        if key.endswith("weight") and parameter.ndim == 1:  # blocks start switched off
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for module in encoder.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


@pytest.fixture
def wide(tiles: torch.Tensor) -> torch.Tensor:
    """Seven noisy tiles of 64 px."""
    return tiles.repeat(1, 2, 2, 1)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_computes_what_the_encoder_computes(kind: str, name: str, wide: torch.Tensor) -> None:
    """Within bfloat16's rounding by default, and to a few last bits in float32; every number is one of float16."""
    with torch.no_grad():
        exact, own = _encoder(kind, "float32")(wide), _encoder(kind)(wide)
    # the last norms of a tiny net see so few values that they blow rounding up, the model's own as well
    rounding = max(1e-2, 1.5 * float((own - exact).norm() / exact.norm()))
    for precision, allowed in (("auto", rounding), ("float32", 1e-4)):
        encoder = _encoder(kind, precision)  # type: ignore[arg-type]
        found = make_engine(encoder, name, 64).embed(wide)
        assert found.shape == (7, encoder.width)
        assert torch.equal(found, found.half().float())
        assert float((found - exact).norm() / exact.norm()) < allowed


@pytest.mark.parametrize("name", ENGINES)
def test_a_tile_counts_alone(name: str, make_classifier: Callable[..., IPSClassifier], tiles: torch.Tensor) -> None:
    """A tile's embedding has the same bits in any company and order, and again; `scan` sees what `embed_tiles` gives."""
    classifier = make_classifier()
    many = tiles.repeat(4, 1, 1, 1)[:25].numpy()
    use_engine(classifier, name)
    whole = classifier.embed_tiles(many, 3)
    assert np.array_equal(whole, classifier.embed_tiles(many, 3))
    assert np.array_equal(whole[::-1], classifier.embed_tiles(many[::-1], 3))
    for n in (1, 2, 8, 17):
        assert np.array_equal(whole[:n], classifier.embed_tiles(many[:n], 3))
    assert classifier.embed_tiles(many[:0], 3).shape == (0, 8)
    from_tiles, from_embeddings = classifier.scan(many, 3), classifier.scan(whole, 3)
    assert np.array_equal(from_tiles.logits, from_embeddings.logits)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_never_serves_weights_that_have_changed(
    name: str, make_classifier: Callable[..., IPSClassifier], tiles: torch.Tensor
) -> None:
    """A step of learning, other weights or a changed bit behind torch's back is an error; made again, it serves."""
    classifier = make_classifier()

    def step() -> None:
        classifier.encode(tiles).sum().backward()
        torch.optim.SGD(classifier.encoder.parameters(), 1e-4).step()

    for change in (step, lambda: classifier.load_state_dict(make_classifier(seed=5).state_dict())):
        use_engine(classifier, name)
        before = classifier.embed_tiles(tiles, 3)
        change()
        with pytest.raises(ModelError, match="has changed since its inference engine was made: call use_engine again"):
            classifier.embed_tiles(tiles, 3)
        with pytest.raises(ModelError, match="call use_engine again"):
            _ = classifier.embedding_hash
        use_engine(classifier, name)
        assert not np.array_equal(classifier.embed_tiles(tiles, 3), before)
    next(classifier.encoder.parameters()).data.add_(1.0)  # counts no version up; the cache's key looks at every bit
    with pytest.raises(ModelError, match="call use_engine again"):
        _ = classifier.embedding_hash
    assert copy.deepcopy(classifier).embedder is None  # what learns on a copy has no engine


def test_gradients_and_training_see_the_module_alone(
    make_classifier: Callable[..., IPSClassifier], tiles: torch.Tensor
) -> None:
    """With an engine in place `encode` gives the same bits and gradients, and the state to store is the same."""
    plain, fast = make_classifier(), make_classifier()
    use_engine(fast, "torch")
    grads = []
    for classifier in (plain, fast):
        features = classifier.encode(tiles)
        features.square().sum().backward()
        grads.append((features.detach(), [p.grad for p in classifier.encoder.parameters()]))
    assert torch.equal(grads[0][0], grads[1][0])
    assert all(torch.equal(a, b) for a, b in zip(grads[0][1], grads[1][1], strict=True))
    assert plain.state_dict().keys() == fast.state_dict().keys()


def test_which_engine_ran_is_part_of_the_embeddings_identity(make_classifier: Callable[..., IPSClassifier]) -> None:
    """So a cache never mixes them; `module` takes the engine away again."""
    classifier = make_classifier()
    seen = [classifier.embedding_hash]
    for name in ["torch", *["openvino"][: int(HAS_OPENVINO)]]:
        use_engine(classifier, name)
        seen.append(classifier.embedding_hash)
    assert len(set(seen)) == len(seen)
    use_engine(classifier, "module")
    assert classifier.embedding_hash == seen[0]


def test_each_different_encoder_of_an_ensemble_has_an_engine(
    make_classifier: Callable[..., IPSClassifier], tiles: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members that share an encoder share its engine."""
    made: list[Encoder] = []
    whole = engines.make_engine
    monkeypatch.setattr(engines, "make_engine", lambda e, *a, **k: made.append(e) or whole(e, *a, **k))
    ensemble = EnsembleClassifier([make_classifier(seed=0), make_classifier(seed=0), make_classifier(seed=1)]).eval()
    plain = ensemble.embed_tiles(tiles, 3)
    use_engine(ensemble, "torch")
    assert len(made) == 2
    found = ensemble.embed_tiles(tiles, 3)
    assert found.shape == plain.shape == (7, 16)
    assert np.linalg.norm(found - plain) < 1e-2 * np.linalg.norm(plain)
    assert ensemble.scan(tiles, 3).logits.shape == (7, 2, 6)


def test_an_engine_that_computes_something_else_is_refused() -> None:
    """It is tried on a few tiles before it serves."""
    encoder, other = _encoder("batchnorm"), _encoder("batchnorm", seed=9)
    with pytest.raises(ModelError, match="the torch engine computes other embeddings than the model"):
        Embedder(encoder, make_engine(other, "torch", 64))
    with pytest.raises(ModelError, match="expected uint8 tiles"):
        Embedder(encoder, make_engine(encoder, "torch", 64))(torch.zeros(2, 16, 32, 3, dtype=torch.uint8))


def test_a_net_that_cannot_be_traced_or_folded_still_runs() -> None:
    """Control flow that depends on the pixels leaves the copy as it was built."""

    class Branching(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x) if x.mean() > -1e9 else x
            return out

    encoder = _encoder("batchnorm", "float32")
    encoder.net = Branching(encoder.net)
    net = engines.FastNet(encoder)
    assert net.form == "plain"
    assert relative_error(encoder, engines.TorchEngine(net, 2)) < 1e-4


@pytest.mark.parametrize("kind", NETS)
def test_lanes_compute_what_one_does_and_each_has_one_core(
    kind: str, wide: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever thread took a batch, the bits are the same; torch's own threads in them would fight for the cores."""
    net, threads, before = engines.FastNet(_encoder(kind)), [], torch.get_num_threads()
    forward = net.net.forward
    monkeypatch.setattr(net.net, "forward", lambda x: (threads.append(torch.get_num_threads()), forward(x))[1])
    one, three = engines.TorchEngine(net, 2), engines.TorchEngine(net, 2, lanes=3)
    wanted = one.embed(wide)
    threads.clear()
    for _ in range(3):
        assert torch.equal(three.embed(wide), wanted)
    assert threads == [1] * 12
    assert torch.get_num_threads() == before


def test_an_error_in_a_lane_is_raised_and_the_lanes_go_on(wide: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, for one, must reach who can do with less."""
    net = engines.FastNet(_encoder("batchnorm"))
    engine = engines.TorchEngine(net, 2, lanes=2)
    wanted = engine.embed(wide)
    with monkeypatch.context() as broken:
        broken.setattr(net.net, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("not enough memory")))
        with pytest.raises(RuntimeError, match="not enough memory"):
            engine.embed(wide)
    assert torch.equal(engine.embed(wide), wanted)


def test_a_missing_package_is_one_clear_sentence(
    make_classifier: Callable[..., IPSClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for, it is refused with the cure; chosen by `auto`, torch stands in and says so."""
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails now
    classifier = make_classifier()
    with pytest.raises(ConfigError, match=r'pip install "wsi-ips\[fast\]"'):
        set_engine(classifier, {"name": "openvino", "or_torch": False}, None)
    name, note = set_engine(classifier, {"name": "openvino", "or_torch": True}, None)
    assert name == "torch"
    assert note.endswith("; torch encodes instead")
    assert classifier.embedder is not None
    with pytest.raises(ConfigError, match="there is no such engine on cpu"):
        use_engine(classifier, "cuda")
    with pytest.raises(ConfigError, match="float32"):
        use_engine(make_classifier().double(), "torch")


@needs_openvino
def test_fault_136_openvino_reports_nothing_to_anyone() -> None:
    """It is loaded without its telemetry, which importing alone would set off."""
    openvino_engine.load_openvino()
    assert sys.modules.get("openvino_telemetry") is None
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]


@needs_openvino
def test_a_converted_encoder_is_found_again_and_a_damaged_one_made_anew(
    tmp_path: Path, wide: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept by weights and shape under plain data with a seal; one wrong byte counts as absent; other weights are another."""
    place, encoder = tmp_path / "engines", _encoder("batchnorm")
    made = []
    whole = openvino_engine._converted
    monkeypatch.setattr(openvino_engine, "_converted", lambda *a: made.append(1) or whole(*a))

    def embedded(one: Encoder) -> torch.Tensor:
        return make_engine(one, "openvino", 64, place=place).embed(wide)

    first = embedded(encoder)
    folder = next(place.iterdir())
    assert sorted(p.name for p in folder.iterdir()) == ["net.bin", "net.xml", "sha256.json"]
    assert torch.equal(embedded(encoder), first)
    assert len(made) == 1
    weights = bytearray((folder / "net.bin").read_bytes())
    weights[100] ^= 1
    (folder / "net.bin").write_bytes(weights)
    assert torch.equal(embedded(encoder), first)
    assert len(made) == 2
    assert torch.equal(embedded(encoder), first)
    embedded(_encoder("batchnorm", seed=3))
    assert len(made) == 3
    assert len(list(place.iterdir())) == 2  # and nothing left behind
    (tmp_path / "file").write_text("")
    engine = make_engine(encoder, "openvino", 64, place=tmp_path / "file" / "engines")
    assert "the converted encoder cannot be kept (Not a directory)" in engine.note
    assert torch.equal(engine.embed(wide), first)


@needs_openvino
def test_only_the_nets_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder does not grow with every model that was ever used."""
    monkeypatch.setattr(openvino_engine, "_N_KEPT", 2)
    for seed in range(3):
        make_engine(_encoder("batchnorm", seed=seed), "openvino", 64, place=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_resnet18_selects_and_labels_as_the_module_does(name: str, tmp_path: Path) -> None:
    """At full size: 256 tiles of 224 px, 32 of them of another kind that the query points to: the same top 32 but for 1 %,
    probabilities within 0.005.

    A query drawn at random ranks tiles that hardly differ, and bfloat16 alone then swaps one or two at the border.
    """
    from wsi_ips.config import AttentionSettings, ModelSettings, SelectionSettings, TaskSettings, TileSpec
    from wsi_ips.model.ledger import scores_from_logits, top_rows

    settings = ModelSettings(
        encoder=EncoderSettings(name="resnet18", weights="none"), attention=AttentionSettings(dim=64, n_heads=4),
        selection=SelectionSettings(memory_size=32, chunk_size=64), tile=TileSpec(size_px=224, mpp=0.5),
        tasks=(TaskSettings(name="tumour", classes=("no", "yes")),),
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = build_encoder(settings.encoder, 224)
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 240, (256, 14, 14, 3)).astype(np.uint8)
    tiles = coarse.repeat(16, 1).repeat(16, 2)
    planted = rng.permutation(256)[:32]
    tiles[planted] = np.roll(tiles[planted], 4, axis=2) // 2 + rng.integers(0, 100, (32, 224, 224, 3)).astype(np.uint8)
    encoder.set_norm_statistics(torch.from_numpy(tiles[:64]))
    made = IPSClassifier(encoder, settings)
    with torch.no_grad():
        features = torch.from_numpy(made.scan(tiles, 64).features)
        others = np.setdiff1d(np.arange(256), planted)
        for layer in (made.attention.to_query, made.attention.to_key):
            layer.weight.copy_(torch.eye(64))
        made.attention.query.copy_(16.0 * (features[planted].mean(0) - features[others].mean(0))[None])
    save_bundle(tmp_path / "m", made, settings, card="# test")
    classifier = load_bundle(tmp_path / "m").classifier
    found = []
    for engine in ("module", name):
        use_engine(classifier, engine)
        scan = classifier.scan(tiles, 64)
        top = top_rows(scores_from_logits(scan.logits), 32)
        found.append((set(top.tolist()), 1.0 / (1.0 + np.exp(-classifier.read_out(scan.features[top]).outputs))))
    assert len(found[0][0] & set(planted.tolist())) > 20
    assert len(found[0][0] & found[1][0]) >= 0.99 * 32
    assert np.abs(found[0][1] - found[1][1]).max() < 0.005


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", NETS)
def test_the_graph_on_a_gpu_computes_what_the_encoder_computes(kind: str, wide: torch.Tensor) -> None:
    """From pageable, pinned and the GPU's own memory, in several batches, in any company, to the last bit alike."""
    encoder = _encoder(kind).cuda()
    engine = make_engine(encoder, "cuda", 4)
    many = wide.repeat(3, 1, 1, 1)[:18]
    found = Embedder(encoder, engine)(many)
    assert engine.note == ""
    with torch.no_grad():
        exact = encoder(many)
    assert float((found - exact).norm() / exact.norm()) < 1e-2
    assert torch.equal(engine.embed(many.pin_memory()), found)
    assert torch.equal(engine.embed(many.cuda()), found)
    assert torch.equal(engine.embed(many[5:6]), found[5:6])
    pinned = many.pin_memory()
    kept = engine.embed(pinned)
    pinned.zero_()  # the caller's memory is free again once the call returns
    assert torch.equal(kept, found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_net_that_cannot_be_captured_runs_without_a_graph(wide: torch.Tensor) -> None:
    """The run goes on, and says so."""

    class Asking(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * (2.0 if float(x.sum()) > 0 else 1.0)  # asks the GPU, which a graph cannot

    encoder = _encoder("batchnorm").cuda()
    encoder.net, encoder.width = Asking(), 3
    engine = make_engine(encoder, "cuda", 4)
    assert float((engine.embed(wide) - encoder(wide)).norm()) < 0.1
    assert "cannot be captured as a CUDA graph" in engine.note
