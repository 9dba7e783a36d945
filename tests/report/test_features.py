"""LPIPS and rFID from files of random weights in the published layouts: the network, what is refused, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tokenshard.cli.main import cli
from tokenshard.errors import FormatError, SpecError
from tokenshard.report.features import FeatureMeasures
from tokenshard.report.inception import Inception, load_inception
from tokenshard.training.perceptual import Lpips

pytestmark = pytest.mark.usefixtures("one_thread")
Change = Callable[[dict[str, Tensor]], object]


def inception_state() -> dict[str, Tensor]:
    """Random weights and statistics of every layer, as the port of FID's Inception has them."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, tensor in Inception().state_dict().items():
        if name.endswith("conv.weight"):
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif name.endswith(("bn.bias", "running_mean")):
            state[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
        else:
            state[name] = torch.tensor(0)
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return inception_state()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(state, file, _use_new_zipfile_serialization=False)  # as the published file is
    return file


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:160, 150:330])


# -- the network ------------------------------------------------------------------------------------------------------


def by_hand(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network written out, float64: what each layer reads, one after the other."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        kernel, mean, variance = (w[f"{name}.{part}"].double() for part in ("conv.weight", *BN[:2]))
        scale, shift = (w[f"{name}.{part}"].double() for part in BN[2:])
        y = functional.conv2d(x, kernel, None, stride, padding)
        normal = (y - mean[:, None, None]) / (variance[:, None, None] + 0.001).sqrt()
        return (normal * scale[:, None, None] + shift[:, None, None]).clamp_min(0)

    def mean_of_neighbours(x: Tensor) -> Tensor:
        """Of those inside the map."""
        ones = functional.avg_pool2d(torch.ones_like(x[:, :1]), 3, 1, 1)
        return functional.avg_pool2d(x, 3, 1, 1) / ones

    def a(n: str, x: Tensor) -> Tensor:
        five = conv(f"{n}.branch5x5_2", conv(f"{n}.branch5x5_1", x), 1, (2, 2))
        double = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), 1, (1, 1))
        double = conv(f"{n}.branch3x3dbl_3", double, 1, (1, 1))
        pool = conv(f"{n}.branch_pool", mean_of_neighbours(x))
        return torch.cat([conv(f"{n}.branch1x1", x), five, double, pool], 1)

    def c(n: str, x: Tensor) -> Tensor:
        seven, double = conv(f"{n}.branch7x7_1", x), conv(f"{n}.branch7x7dbl_1", x)
        for number, padding in ((2, (0, 3)), (3, (3, 0))):
            seven = conv(f"{n}.branch7x7_{number}", seven, 1, padding)
        for number, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = conv(f"{n}.branch7x7dbl_{number}", double, 1, padding)
        pool = conv(f"{n}.branch_pool", mean_of_neighbours(x))
        return torch.cat([conv(f"{n}.branch1x1", x), seven, double, pool], 1)

    def e(n: str, x: Tensor, pooled: Tensor) -> Tensor:
        three = conv(f"{n}.branch3x3_1", x)
        double = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), 1, (1, 1))
        parts = [conv(f"{n}.branch1x1", x)]
        parts += [conv(f"{n}.branch3x3_2a", three, 1, (0, 1)), conv(f"{n}.branch3x3_2b", three, 1, (1, 0))]
        parts += [conv(f"{n}.branch3x3dbl_3a", double, 1, (0, 1)), conv(f"{n}.branch3x3dbl_3b", double, 1, (1, 0))]
        return torch.cat([*parts, conv(f"{n}.branch_pool", pooled)], 1)

    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x.double(), 2)), 1, (1, 1))
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", functional.max_pool2d(x, 3, 2)))
    x = a("Mixed_5d", a("Mixed_5c", a("Mixed_5b", functional.max_pool2d(x, 3, 2))))
    double = conv("Mixed_6a.branch3x3dbl_2", conv("Mixed_6a.branch3x3dbl_1", x), 1, (1, 1))
    parts = [conv("Mixed_6a.branch3x3", x, 2), conv("Mixed_6a.branch3x3dbl_3", double, 2)]
    x = torch.cat([*parts, functional.max_pool2d(x, 3, 2)], 1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = c(name, x)
    seven = conv("Mixed_7a.branch7x7x3_2", conv("Mixed_7a.branch7x7x3_1", x), 1, (0, 3))
    seven = conv("Mixed_7a.branch7x7x3_4", conv("Mixed_7a.branch7x7x3_3", seven, 1, (3, 0)), 2)
    parts = [conv("Mixed_7a.branch3x3_2", conv("Mixed_7a.branch3x3_1", x), 2), seven]
    x = torch.cat([*parts, functional.max_pool2d(x, 3, 2)], 1)
    x = e("Mixed_7b", x, mean_of_neighbours(x))
    return e("Mixed_7c", x, functional.max_pool2d(x, 3, 1, 1)).mean((2, 3))


BN = ("bn.running_mean", "bn.running_var", "bn.weight", "bn.bias")


def test_the_features_are_those_of_the_network_written_out(weights: Path, state: dict[str, Tensor]) -> None:
    network = load_inception(str(weights))
    images = 2 * torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) - 1
    found, expected = network(images), by_hand(state, images)
    assert found.shape == (1, 2048)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    # Inception-v3 has 23,834,568 weights without its auxiliary classifier, 2,049,000 of them in that of 1,000 classes
    assert sum(weight.numel() for weight in network.parameters()) == 23_834_568 - 2_049_000


LAYOUT = r"not the Inception network of FID \(pt_inception-2015-12-05\): "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("Mixed_5b.branch1x1.conv.weight"), r"lacks Mixed_5b\.branch1x1\.conv\.weight$"),
        (lambda s: [s.pop(name) for name in list(s) if ".bn." in name], r"lacks .*bias, .* and 371 more$"),
        (lambda s: s.update({"AuxLogits.fc.bias": torch.zeros(1)}), r"holds what .* to it: AuxLogits\.fc\.bias$"),
        (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048)}), r"fc\.weight is \[1000, 2048\], expected \[1008,"),
        (lambda s: [s.update({f"net.{name}": s.pop(name)}) for name in list(s)], r"lacks Conv2d_1a_3x3\.bn\.bias, "),
    ],
    ids=["missing", "many missing", "of torchvision", "1000 classes", "other names"],
)
def test_other_layouts_are_refused_in_one_line(
    change: Change, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = dict(state)
    change(changed)
    safetensors.torch.save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match=LAYOUT + message) as error:
        load_inception(str(tmp_path / "x.safetensors"))
    assert "\n" not in str(error.value)


def test_counters_of_batches_may_be_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    safetensors.torch.save_file(kept, tmp_path / "x.safetensors")
    assert torch.equal(load_inception(str(tmp_path / "x.safetensors")).Mixed_7c.branch_pool.bn.bias, kept[LAST])


LAST = "Mixed_7c.branch_pool.bn.bias"


# -- the measures -----------------------------------------------------------------------------------------------------


def test_rfid_of_the_images_themselves_is_0_and_more_with_noise(weights: Path, photo: np.ndarray) -> None:
    network, rng = load_inception(str(weights)), np.random.default_rng(0)
    images = [photo, photo[40:120, 20:160]]
    found = []
    for noise in (0, 20):
        measures = FeatureMeasures(inception=network)
        for image in images:
            made = np.clip(image + noise * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)
            measures.add(np.ascontiguousarray(image), made)
        found.append(measures.results()["rfid"])
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert found[1] > 1e-3
    alone = FeatureMeasures(inception=network)
    alone.add(photo, photo)
    with pytest.raises(SpecError, match="at least two images"):
        alone.results()


def test_an_image_too_small_for_lpips_is_named(photo: np.ndarray) -> None:
    measures = FeatureMeasures(Lpips("alex"))
    measures.add(photo[:31], photo[:31])
    with pytest.raises(SpecError, match="an image of 30 x 180 pixels: LPIPS with alex needs 31 a side"):
        measures.add(photo[:30], photo[:30])


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures_them_only_when_asked(weights: Path, photo: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.fromarray(photo[:, 60 * number :][:, :96]).save(tmp_path / "photos" / f"{number}.png")
    lpips = Lpips("alex")
    state = {name: torch.rand_like(tensor) / 50 for name, tensor in lpips.state_dict().items()}
    theirs = {name.replace("linear.", "lin") + (".model.1.weight" if "linear" in name else ""): tensor
              for name, tensor in state.items()}  # fmt: skip
    safetensors.torch.save_file(theirs, tmp_path / "alex.safetensors")
    words = ["tokenizer", "eval", "patch:8x8,k=16", str(tmp_path / "photos")]
    asked = ["--lpips", str(tmp_path / "alex.safetensors"), "--rfid", str(weights)]
    plain, measured = (CliRunner().invoke(cli, [*words, *more, "--json"]) for more in ([], asked))
    assert plain.exit_code == measured.exit_code == 0, measured.output
    before, after = json.loads(plain.stdout), json.loads(measured.stdout)
    assert after.keys() - before.keys() == {"lpips", "lpips_network", "lpips_weights", "rfid", "rfid_weights"}
    assert after["psnr"] == before["psnr"]
    assert after["lpips"] > 0
    assert after["rfid"] > 0
    assert "rFID of 2 images is far too high" in measured.stderr
    table = CliRunner().invoke(cli, [*words, "--lpips", str(tmp_path / "alex.safetensors")]).stdout
    assert f"(alex, weights {after['lpips_weights'][:8]})" in table
    assert "rFID" not in table
    refused = CliRunner().invoke(cli, [*words, "--rfid", str(tmp_path / "alex.safetensors")])
    assert isinstance(refused.exception, FormatError)
