"""The LPIPS backbone against the lpips package and torchmetrics, pair by pair, and its errors."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import lpips as package
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from dbexp.config.schema import LpipsConfig
from dbexp.core.errors import ConfigError
from dbexp.evaluate.backbones.lpips import Lpips
from dbexp.evaluate.pictures import square, to_tensor

SIZE = 64
HALF = (0.5, 0.5, 0.5)


def config(net: str = "alex") -> LpipsConfig:
    return LpipsConfig(net=net, trunk="random", size=SIZE)


@pytest.fixture(scope="module")
def lpips(cpu: torch.device) -> Lpips:
    return Lpips(config(), cpu)


def pixels(path: Path, size: int = SIZE) -> Tensor:
    return to_tensor(square(Image.open(path).convert("RGB"), size, size), HALF, HALF)[None]


def with_trunk_of(reference: nn.Module, ours: Lpips) -> nn.Module:
    """A reference network with our random trunk, whose tensors come in the same order under other names."""
    trunk = list(ours.model.net.state_dict().values())
    net = reference.get_submodule("net")
    names = list(net.state_dict())
    net.load_state_dict(dict(zip(names, trunk, strict=True)))
    return reference.eval()


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_mean_distances_are_the_loop_over_pairs_of_lpips_and_of_torchmetrics(
    net: Literal["alex", "vgg", "squeeze"], cpu: torch.device, pictures: list[Path]
) -> None:
    ours = Lpips(config(net), cpu)
    four = pictures[:4]
    references = [ours.model]  # lpips.LPIPS itself
    if net != "vgg":  # torchmetrics takes seconds to initialise this one, and adds nothing to the other two
        references.append(with_trunk_of(_LPIPS(net=net, pnet_rand=True), ours))
    for reference in references:
        with torch.inference_mode():
            pairs = {(i, j): float(reference(pixels(four[i]), pixels(four[j]))) for i, j in combinations(range(4), 2)}
        expected = [np.mean([d for pair, d in pairs.items() if i in pair]) for i in range(4)]
        assert min(pairs.values()) > 1e-4
        np.testing.assert_allclose(ours.mean_distances(four), expected, rtol=1e-5, atol=1e-5)
        assert ours.mean_distances(four).mean() == pytest.approx(np.mean(list(pairs.values())), abs=1e-5)


def test_squared_distances_of_embeddings_are_lpips(lpips: Lpips, pictures: list[Path]) -> None:
    a, b = lpips.embed_images(pictures[:2])
    expected = lpips.model(pixels(pictures[0]), pixels(pictures[1])).item()
    assert ((a - b) ** 2).sum().item() == pytest.approx(expected, rel=1e-5)


def test_duplicates_are_at_no_distance(lpips: Lpips, pictures: list[Path]) -> None:
    assert lpips.mean_distances([pictures[0]] * 3).max() < 1e-9


def test_many_pictures_in_two_passes_give_what_one_gives(
    lpips: Lpips, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = lpips.mean_distances(pictures)
    monkeypatch.setattr("dbexp.evaluate.backbones.lpips._MOST_AT_ONCE", 2)
    np.testing.assert_allclose(lpips.mean_distances(pictures), at_once, rtol=1e-5)


def test_results_do_not_depend_on_batch_size_or_order(lpips: Lpips, pictures: list[Path]) -> None:
    whole = lpips.mean_distances(pictures, batch_size=6)
    np.testing.assert_allclose(lpips.mean_distances(pictures, batch_size=1), whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(lpips.mean_distances(pictures[::-1])[::-1], whole, rtol=0, atol=1e-5)


def test_pictures_smaller_than_the_size_are_compared_at_their_own(cpu: torch.device, pictures: list[Path]) -> None:
    large, fitting = Lpips(LpipsConfig(trunk="random", size=512), cpu), Lpips(LpipsConfig(trunk="random", size=96), cpu)
    two = [pictures[0], pictures[5]]  # 96 and 200 pixels
    np.testing.assert_array_equal(large.mean_distances(two), fitting.mean_distances(two))


def test_random_trunks_are_the_same_every_time(lpips: Lpips, cpu: torch.device) -> None:
    torch.manual_seed(7)
    assert Lpips(config(), cpu).id == lpips.id
    assert lpips.random and "random weights" in lpips.id


def test_a_local_trunk_in_torchvisions_layout_loads(
    lpips: Lpips, cpu: torch.device, tmp_path: Path, pictures: list[Path]
) -> None:
    names = {name: "features." + name.partition(".")[2] for name in lpips.model.net.state_dict()}
    state = {names[name]: tensor for name, tensor in lpips.model.net.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    loaded = Lpips(LpipsConfig(trunk=str(tmp_path / "alexnet.pth"), size=SIZE), cpu)
    assert loaded.id.rpartition(":")[2] == lpips.id.rpartition(":")[2] and not loaded.random
    np.testing.assert_array_equal(loaded.mean_distances(pictures), lpips.mean_distances(pictures))


def test_local_heads_replace_the_bundled_ones(
    lpips: Lpips, cpu: torch.device, tmp_path: Path, pictures: list[Path]
) -> None:
    bundled = torch.load(Path(package.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu")
    torch.save({name: 2 * tensor for name, tensor in bundled.items()}, tmp_path / "twice.pth")
    twice = Lpips(LpipsConfig(trunk="random", heads=str(tmp_path / "twice.pth"), size=SIZE), cpu)
    np.testing.assert_allclose(twice.mean_distances(pictures), 2 * lpips.mean_distances(pictures), rtol=1e-5)
    torch.save({name: tensor - 1 for name, tensor in bundled.items()}, tmp_path / "negative.pth")
    with pytest.raises(ConfigError, match=r"evaluate\.lpips\.heads=.*negative\.pth: .*negative weights"):
        Lpips(LpipsConfig(trunk="random", heads=str(tmp_path / "negative.pth")), cpu)


def test_bad_fields_are_named(cpu: torch.device, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.lpips\.net=resnet: choose one of alex, vgg, squeeze"):
        Lpips(LpipsConfig(net="resnet"), cpu)
    with pytest.raises(ConfigError, match=r"evaluate\.lpips\.trunk=/no/file\.pth: there is no such file"):
        Lpips(LpipsConfig(trunk="/no/file.pth"), cpu)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"evaluate\.lpips\.trunk=.*part\.pth: does not fit the architecture: slice1"):
        Lpips(LpipsConfig(trunk=str(tmp_path / "part.pth")), cpu)


def test_without_network_the_error_says_what_to_pass_instead(
    cpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(ConfigError, match=r"evaluate\.lpips\.trunk=null: .*resolution.* evaluate\.lpips\.trunk=FILE"):
        Lpips(LpipsConfig(), cpu)
