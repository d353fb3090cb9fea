"""The stages on a few pictures: losses fall on a fixed batch, resuming is exact, what is exported loads as usual."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from dbexp.config.schema import ClipConfig, DinoConfig, LpipsConfig
from dbexp.core.errors import ConfigError
from dbexp.evaluate.backbones.clip import Clip
from dbexp.evaluate.backbones.dino import Dino
from dbexp.evaluate.backbones.lpips import Lpips
from dbexp.storybook.pretrain import architecture, pretrain, start, train_unet, train_vae
from dbexp.storybook.pretrain.architecture import build_vae
from dbexp.storybook.pretrain.corpus import NAMES
from dbexp.storybook.pretrain.export import export_metric_nets, export_pipeline, name_the_rare_token
from dbexp.storybook.pretrain.latent_pool import REUSE, LatentPool, token_ids
from dbexp.storybook.pretrain.metric_nets import DINO_KWARGS, DINO_NAME
from dbexp.storybook.pretrain.pairs import NO_COLOUR, Pairs, draw_pairs
from dbexp.storybook.pretrain.stream import draw_broad, draw_captioned
from dbexp.storybook.pretrain.tokenizer import RARE_TOKEN, build_tokenizer
from dbexp.storybook.pretrain.train_metric_nets import TASKS, caption_loss, distorted, identity_loss, retrieval
from dbexp.storybook.pretrain.train_unet import UnetTask, loss_weights, spread_timesteps, v_errors
from dbexp.storybook.pretrain.train_vae import VaeTask, psnr, to_tensor
from dbexp.storybook.pretrain.training import Recipe, Task, Trainer, generator
from dbexp.storybook.world.subjects import draw_subject
from tests.builders import torch_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same architectures with few channels."""
    monkeypatch.setattr(architecture, "VAE_WIDTHS", (16, 24, 48))
    monkeypatch.setattr(architecture, "UNET_WIDTHS", (16, 16, 32))


def test_the_parts_have_the_promised_sizes() -> None:
    vae, unet = architecture.build_vae(), architecture.build_unet()
    assert 0.5e6 < sum(p.numel() for p in vae.parameters()) < 1e6
    assert 6e6 < sum(p.numel() for p in unet.parameters()) < 9e6
    blocks = [*unet.down_blocks, *unet.up_blocks]
    assert all(len(block.attentions) > 0 for block in blocks)  # at 16 x 16, 8 x 8 and 4 x 4
    assert unet.config.in_channels == vae.config.latent_channels == 16


def build(name: str, folder: Path) -> Task:
    if name == "vae":
        return VaeTask(CPU, 0)
    if name == "unet":
        torch.manual_seed(0)
        return UnetTask(build_vae().eval(), folder / "latents", CPU, 0, shard=16)
    return TASKS[name](CPU, 0)


class FixedBatch:
    """A task that sees its first batch again and again."""

    def __init__(self, task: Task) -> None:
        self.task, self.name, self.modules = task, task.name, task.modules

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        return self.task.loss(0, count)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", pretrain.STAGES)
def test_losses_fall_on_a_fixed_batch(name: str, tmp_path: Path) -> None:
    task = cast(Task, FixedBatch(build(name, tmp_path)))  # all that a trainer asks of one
    batch = 2 if name in ("vae", "unet") else 8
    trainer = Trainer(task, Recipe(10**6, batch, 2e-2), tmp_path / name, CPU, autocast=False)
    losses = [trainer.step()["loss"].item() for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vae", "unet"])
def test_resumed_stages_repeat_the_uninterrupted_run(name: str, tmp_path: Path) -> None:
    recipe = Recipe(10**6, 2, 1e-3)

    def start(where: str) -> Trainer:
        return Trainer(build(name, tmp_path / where), recipe, tmp_path / where / name, CPU)

    straight = start("straight")
    for _ in range(2):
        straight.step()
    stopped = start("stopped")
    stopped.step()
    stopped.save()
    stopped.step()  # lost with the process
    resumed = start("stopped")
    resumed.step()
    for part, module in straight.task.modules.items():
        for (key, a), b in zip(module.named_parameters(), resumed.task.modules[part].parameters(), strict=True):
            assert torch.equal(a, b), key


@pytest.mark.usefixtures("small")
def test_the_pool_gives_the_same_batches_from_disk_and_forgets_old_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, tokenizer = build_vae().eval(), build_tokenizer()

    def pool() -> LatentPool:
        return LatentPool(vae, tokenizer, tmp_path, CPU, 0, shard=4)

    first = pool()
    latents, ids = first.batch(0, 6)
    assert latents.shape == (6, 16, 16, 16)
    assert ids.shape == (6, 24)
    late = 4 * REUSE * 14
    expected = first.batch(late, 6)[0]
    assert 0 < len(list(tmp_path.iterdir())) <= 12
    assert torch.equal(pool().batch(late, 6)[0], expected)
    assert torch.equal(pool().batch(0, 6)[0], latents)


def test_latents_have_unit_scale(tmp_path: Path) -> None:
    latents, _ = LatentPool(VaeTask(CPU, 0).vae.eval(), build_tokenizer(), tmp_path, CPU, 0, shard=32).batch(0, 32)
    assert latents.std().item() == pytest.approx(1.0, abs=0.25)


@pytest.mark.usefixtures("small")
def test_v_of_a_perfect_prediction_is_no_loss(tmp_path: Path) -> None:
    task = UnetTask(build_vae().eval(), tmp_path, CPU, 0, shard=4)
    latents, ids = task.pool.batch(0, 4)
    noise, steps = torch.randn(latents.shape, generator=generator(CPU, "v")), torch.tensor([0, 300, 600, 999])
    alphas = task.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    expected = task.scheduler.get_velocity(latents, noise, steps)
    assert torch.allclose(alphas.sqrt() * noise - (1 - alphas).sqrt() * latents, expected, atol=1e-6)

    class Oracle(torch.nn.Module):
        def forward(self, noised: Tensor, steps: Tensor, states: Tensor) -> object:
            assert torch.allclose(noised, task.scheduler.add_noise(latents, noise, steps), atol=1e-6)
            return type("Output", (), {"sample": expected})

    errors = v_errors(Oracle(), task.text_encoder, task.scheduler, latents, noise, steps, ids)
    assert errors.shape == (4,)
    assert errors.max().item() < 1e-10


def test_timesteps_of_a_batch_cover_the_whole_range() -> None:
    random = generator(CPU, "timesteps")
    steps = torch.stack([spread_timesteps(8, random) for _ in range(4000)])
    assert steps.dtype == torch.int64
    assert sorted(set(steps.flatten().tolist())) == list(range(1000))
    for batch in (steps // 125)[:50].tolist():
        assert sorted(batch) == list(range(8))  # one from every eighth
        assert len(set(batch)) == 8
    assert steps[:, 0].float().mean().item() == pytest.approx(499.5, abs=20)  # each row uniform, whatever its place


def test_weights_are_those_of_min_snr_over_a_floor() -> None:
    """Signal-to-noise ratios of 99, 9, 1 and 1/9: min(SNR, 5) / (SNR + 1), and the floor."""
    weights = loss_weights(torch.tensor([0.99, 0.9, 0.5, 0.1])) - train_unet.WEIGHT_FLOOR
    assert weights.tolist() == pytest.approx([0.05, 0.5, 0.5, 0.1], abs=1e-6)


@pytest.mark.usefixtures("small")
def test_the_loss_is_weighted_and_the_plain_error_is_logged_beside_it(tmp_path: Path) -> None:
    task = UnetTask(build_vae().eval(), tmp_path, CPU, 0, shard=4)
    losses = task.loss(0, 4)
    assert (train_unet.WEIGHT_FLOOR * losses["v_loss"] < losses["loss"]).item()
    assert losses["loss"] < (train_unet.WEIGHT_FLOOR + 0.84) * losses["v_loss"]  # 5 / 6 is the largest weight
    assert not losses["v_loss"].requires_grad


def test_the_command_line_adjusts_a_recipe() -> None:
    recipe = Recipe(samples=1000, batch=32, lr=1e-3, muon_lr=0.02)
    options = pretrain.build_parser().parse_args(["--out", "x", "--samples", "50", "--batch", "64", "--rate", "0.5"])
    assert pretrain.adjusted(recipe, options) == Recipe(samples=50, batch=64, lr=5e-4, muon_lr=0.01)
    assert pretrain.adjusted(recipe, pretrain.build_parser().parse_args(["--out", "x"])) == recipe


def test_psnr_of_a_known_error() -> None:
    picture = torch.zeros(2, 3, 8, 8)
    assert psnr(picture + 0.2, picture).tolist() == pytest.approx([20.0, 20.0], abs=1e-3)


def test_pictures_become_tensors_in_range() -> None:
    tensor = to_tensor(np.array([[[[0, 127, 255]]]], dtype=np.uint8), CPU)
    assert tensor.flatten().tolist() == pytest.approx([-1.0, -0.004, 1.0], abs=1e-3)


def test_pairs_are_labelled_and_show_the_same_character() -> None:
    pairs = draw_pairs(0, 0, 40)
    assert pairs.first.shape == pairs.second.shape == (40, 64, 64, 3)
    assert (pairs.first_labels[:, 0] == pairs.second_labels[:, 0]).all()
    for column, size in enumerate(Pairs.LABEL_SIZES):
        values = pairs.first_labels[:, column]
        assert ((values >= 0) & (values < size) | (values == NO_COLOUR)).all()
    assert 0 < len(pairs.recognisable) < 40
    red = [caption.startswith(("a red", "a purple")) for caption in pairs.first_captions]
    told = {i for i in range(40) if red[i] and pairs.first_labels[i, 3] > 0}
    assert told.isdisjoint(pairs.recognisable.tolist())


def test_contrastive_losses_know_a_perfect_match() -> None:
    eye = torch.eye(4)
    assert identity_loss(eye, eye).item() < 1e-3 < identity_loss(eye, eye.roll(1, 0)).item()
    assert retrieval(eye, eye) == 1.0
    assert retrieval(eye, eye.roll(1, 0)) == 0.0
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scale = torch.tensor(50.0)
    assert caption_loss(twins, twins, scale, ["a", "a", "b"]).item() == pytest.approx(np.log(2) * 2 / 3, abs=1e-3)


def test_shifts_are_mild_although_they_change_more_pixels() -> None:
    pictures = to_tensor(draw_captioned(0, 0, 64)[0], CPU)
    mild, strong = distorted(pictures, generator(CPU, "distorted"))
    assert mild.shape == strong.shape == pictures.shape
    changed = [(side - pictures).abs().flatten(1).mean(1) for side in (mild, strong)]
    assert (changed[0] > 0).all()
    assert (changed[0] > changed[1]).float().mean() > 0.1  # so pixels alone cannot order them


@pytest.mark.usefixtures("small")
def test_the_command_line_trains_stops_and_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end with a handful of samples; the exported folder is a pipeline like any other."""
    monkeypatch.setattr(train_unet, "EVALUATION_PICTURES", 2)
    monkeypatch.setattr(train_vae, "held_out_pictures", lambda: {"gamut": draw_broad(-1, 0, 4)})
    out, common = tmp_path / "out", ["--device", "cpu", "--workers", "0"]
    assert pretrain.main(["--out", str(out), "--stage", "unet", "--samples", "1", *common]) == 1
    assert "--stage vae" in capsys.readouterr().err

    assert pretrain.main(["--out", str(out), "--stage", "vae", "--samples", "8", *common]) == 0
    pretrain.pin_vae(out / "unet", "a vae")
    pretrain.pin_vae(out / "unet", "a vae")
    with pytest.raises(ConfigError, match="another VAE"):
        pretrain.pin_vae(out / "unet", "another")
    task = UnetTask(train_unet.load_vae(out, CPU), out / "latents", CPU, 0, shard=4)
    assert Trainer(task, Recipe(2, 2, 1e-3), out / "unet", CPU).run()
    folder = export_pipeline(out, out / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("a sks dog in the snow", num_inference_steps=2).images
    assert picture.size == (64, 64)
    assert "| vae | 8 |" in (folder / "README.md").read_text()

    again = tmp_path / "again"
    assert pretrain.main(["--out", str(again), "--from", str(folder), "--stage", "export", *common]) == 0
    assert "vae, unet go on" in capsys.readouterr().out
    shipped, reread = (torch.load(at / "unet" / "checkpoint.pt")["average"]["unet"] for at in (out, again))
    assert all(torch.allclose(reread[name], shipped[name].half().float()) for name in shipped)
    with pytest.raises(ConfigError, match=r"model_index\.json"):
        start.start_from(tmp_path, tmp_path / "third")


def test_the_rare_token_is_exported_as_far_from_the_names_as_they_are_from_each_other() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = architecture.build_text_encoder(tokenizer)
    table = encoder.get_input_embeddings().weight
    ids = {word: token_ids(tokenizer, [word])[0, 1].item() for word in (*NAMES, RARE_TOKEN)}
    names = [ids[name] for name in NAMES]
    with torch.no_grad():
        table[names] *= 2.0  # as training does
    before = table.detach().clone()
    name_the_rare_token(encoder, tokenizer)
    mean = before[names].mean(0)
    distance = (before[names] - mean).norm(dim=1).mean()
    rare = table[ids[RARE_TOKEN]].detach() - mean
    assert rare.norm().item() == pytest.approx(distance.item(), rel=1e-5)
    assert torch.cosine_similarity(rare, before[ids[RARE_TOKEN]] - mean, dim=0).item() == pytest.approx(1.0, abs=1e-5)
    changed = (table.detach() != before).any(1).nonzero().flatten().tolist()
    assert changed == [ids[RARE_TOKEN]]
    after = table.detach().clone()
    name_the_rare_token(encoder, tokenizer)
    assert torch.allclose(table, after, atol=1e-6)


def test_exported_metric_networks_compute_what_was_trained(tmp_path: Path) -> None:
    """Loaded through dbexp's own backbones, they agree with the networks in training up to fp16 rounding."""
    tasks: dict[str, Any] = {name: task(CPU, 0) for name, task in TASKS.items()}
    for name, task in tasks.items():
        Trainer(task, Recipe(8, 8, 1e-3), tmp_path / name, CPU).save()
        for module in task.modules.values():
            module.eval()
    nets = tmp_path / "metrics"
    assert export_metric_nets(tmp_path, nets) == ["dino", "clip", "lpips"]
    paths = draw_subject("dog", tmp_path / "dog")[:2]
    pictures = np.stack([np.asarray(Image.open(path)) for path in paths])

    shape = {key: value for key, value in DINO_KWARGS.items() if key != "num_classes"}
    weights = str(nets / "dino" / "dino.safetensors")
    dino = Dino(DinoConfig(name=DINO_NAME, weights=weights, kwargs=shape, resize=64, crop=64), CPU)
    assert cosine(dino.embed_images(paths), tasks["dino"]._features(tasks["dino"].modules["dino"], pictures)) > 0.9999

    clip, trained = (
        Clip(ClipConfig(name=f"local-dir:{nets / 'clip'}", weights=None), CPU),
        tasks["clip"].modules["clip"],
    )
    ids = token_ids(build_tokenizer(), ["a sks dog in the snow"])
    assert cosine(clip.embed_images(paths), tasks["clip"]._pictures(trained, pictures)) > 0.9999
    assert cosine(clip.embed_texts(["a sks dog in the snow"]), trained.encode_text(ids)) > 0.9999

    trunk, heads = (str(nets / "lpips" / f"{part}.safetensors") for part in ("trunk", "heads"))
    lpips = Lpips(LpipsConfig(net="squeeze", trunk=trunk, heads=heads, size=64), CPU)
    first, second = to_tensor(pictures, CPU).split(1)
    model = tasks["lpips"].modules["lpips"]
    expected = model.distance(model.layers(first), model.layers(second)).item()
    assert lpips.model(first, second).item() == pytest.approx(expected, rel=1e-3)


def cosine(first: Any, second: Tensor) -> float:
    """The smallest cosine between corresponding rows."""
    return torch.nn.functional.cosine_similarity(torch.as_tensor(first), second.detach()).min().item()
