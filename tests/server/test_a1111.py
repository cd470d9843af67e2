"""A1111's interface with its client from PyPI, webuiapi, as it is."""

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi")
webuiapi = pytest.importorskip("webuiapi")
uvicorn = pytest.importorskip("uvicorn")

from ldm.cli.main import main
from ldm.images.files import load_image
from ldm.server.app import create_app
from ldm.server.settings import Settings

STEPS = 3
SMALL = {"width": 128, "height": 128, "steps": STEPS, "cfg_scale": 7.0}
EULER = {"sampler_name": "Euler", "scheduler": "Automatic", "eta": None}


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    """The port of a server with the built-in model and prompt styles."""
    folder = tmp_path_factory.mktemp("models")
    rows = ["name,prompt,negative_prompt", 'ink,"ink drawing of {prompt}, black",colour', "b,neon,"]
    (folder / "styles.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = create_app(Settings(model_dir=folder))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def api(port):
    return webuiapi.WebUIApi(port=port)


def generate(path, *arguments: str) -> Image.Image:
    """A picture of the command, with the settings of ``SMALL`` and the sampler Euler."""
    options = ["--steps", str(STEPS), "--cfg-scale", "7", "--sampler", "euler", "--quiet"]
    command = ["generate", *arguments, *options, "--width", "128", "--height", "128"]
    assert main([*command, "--output", str(path)]) == 0
    return Image.open(path)


def same(ours: Image.Image, theirs: Image.Image) -> bool:
    return bool((np.asarray(ours) == np.asarray(theirs)).all())


def sketch() -> Image.Image:
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((30, 30, 100, 100), "red", "black", 4)
    return picture


def square(box=(40, 40, 80, 80)) -> Image.Image:
    mask = Image.new("L", (128, 128))
    mask.paste(255, box)
    return mask


def test_text_to_image_equals_the_command_s(api, tmp_path) -> None:
    result = api.txt2img(prompt="a red car", seed=7, batch_size=2, n_iter=1, **SMALL, **EULER)
    assert [picture.size for picture in result.images] == [(128, 128)] * 2
    info = result.info
    assert info["all_seeds"] == [7, 8] and info["sampler_name"] == "Euler"
    assert info["all_prompts"] == ["a red car"] * 2 and info["ignored"] == []
    for i, picture in enumerate(result.images):
        assert same(picture, generate(tmp_path / f"{i}.png", "a red car", "--seed", str(7 + i)))
        assert picture.info["parameters"] == info["infotexts"][i]
    assert result.parameters["steps"] == STEPS and result.parameters["seed"] == 7


def test_variation_clip_skip_tiling_and_schedule_equal_the_command_s(api, tmp_path) -> None:
    result = api.txt2img(
        prompt="a red car",
        seed=7,
        subseed=9,
        subseed_strength=0.5,
        n_iter=2,
        tiling=True,
        override_settings={"CLIP_stop_at_last_layers": 2, "samples_format": "png"},
        **SMALL | EULER | {"scheduler": "Karras"},
    )
    assert result.info["all_seeds"] == [7, 7] and result.info["all_subseeds"] == [9, 10]
    more = ["--clip-skip", "2", "--tiling", "--schedule", "karras", "--seed", "7"]
    vary = ["--variation-strength", "0.5", "--variation-seed", "10"]
    assert same(result.images[1], generate(tmp_path / "a.png", "a red car", *more, *vary))


def test_automatic_is_the_schedule_that_a1111_prefers(api) -> None:
    result = api.txt2img(prompt="x", seed=1, **SMALL, sampler_name="DPM++ 2M")
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in result.info["infotexts"][0]
    result = api.txt2img(prompt="x", seed=1, **SMALL, sampler_name="DPM++ 2M SDE Karras")
    assert "Sampler: DPM++ 2M SDE, Schedule type: Karras" in result.info["infotexts"][0]


def test_second_pass_by_an_upscaler_s_name(api, tmp_path) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    result = api.txt2img(
        prompt="a red car",
        seed=7,
        hr_upscaler=webuiapi.HiResUpscaler.Latent,
        **hires,
        **SMALL,
        **EULER,
    )
    assert result.image.size == (192, 192)
    assert "Hires upscaler: Latent" in result.info["infotexts"][0]
    options = ["--hires-scale", "1.5", "--hires-strength", "0.6", "--hires-upscaler", "latent"]
    options += ["--hires-steps", str(STEPS)]  # of the second pass, as in A1111
    assert same(result.image, generate(tmp_path / "a.png", "a red car", "--seed", "7", *options))
    by_size = api.txt2img(
        prompt="a red car", seed=7, hr_upscaler="Latent", hr_resize_x=192, hr_resize_y=192,
        enable_hr=True, denoising_strength=0.6, **SMALL, **EULER,
    )  # fmt: skip
    assert same(by_size.image, result.image)


def test_image_to_image_equals_the_command_s(api, tmp_path) -> None:
    start = sketch()
    start.save(tmp_path / "start.png")
    settings = {"seed": 7, "denoising_strength": 0.8, **SMALL, **EULER}
    result = api.img2img(images=[start], prompt="a red car", **settings)
    given = ["--seed", "7", "--image", str(tmp_path / "start.png"), "--strength", "0.8"]
    assert same(result.image, generate(tmp_path / "a.png", "a red car", *given))
    assert result.parameters["init_images"] is None
    two = api.img2img(images=[start, Image.new("RGB", (128, 128), "blue")], batch_size=2,
                      n_iter=2, prompt="a red car", include_init_images=True, **settings)  # fmt: skip
    assert same(two.images[0], result.image) and len(two.images) == 4
    assert two.info["all_seeds"] == [7, 8, 9, 10]
    seeds = [text.split("Seed: ")[1].split(",")[0] for text in two.info["infotexts"]]
    assert seeds == ["7", "8", "9", "10"]
    assert len(two.parameters["init_images"]) == 2


def test_inpainting_keeps_the_rest_and_inverts(api, tmp_path) -> None:
    start, mask = sketch(), square()
    start.save(tmp_path / "start.png")
    mask.save(tmp_path / "mask.png")
    settings = {"seed": 7, "denoising_strength": 1.0, "mask_blur": 2, **SMALL, **EULER}
    whole = {"inpaint_full_res": False, "inpainting_fill": 1, "images": [start]}
    result = api.img2img(prompt="a red car", mask_image=mask, **whole, **settings)
    given = ["--image", str(tmp_path / "start.png"), "--mask", str(tmp_path / "mask.png")]
    given += ["--mask-blur", "2", "--strength", "1", "--seed", "7"]
    assert same(result.image, generate(tmp_path / "a.png", "a red car", *given))
    inverted = Image.eval(mask, lambda value: 255 - value)
    again = api.img2img(
        prompt="a red car", mask_image=inverted, inpainting_mask_invert=1, **whole, **settings
    )
    assert same(again.image, result.image)
    transparent = Image.new("RGBA", mask.size, "blue")  # what is opaque is drawn
    transparent.putalpha(mask)
    again = api.img2img(prompt="a red car", mask_image=transparent, **whole, **settings)
    assert same(again.image, result.image)


def test_only_masked_draws_the_region_at_the_size_and_puts_it_back(api) -> None:
    start = sketch().resize((300, 200))
    mask = Image.new("L", (300, 200))
    mask.paste(255, (200, 100, 240, 140))
    result = api.img2img(
        images=[start], mask_image=mask, prompt="a red car", seed=7, inpaint_full_res=True,
        inpaint_full_res_padding=8, mask_blur=0, denoising_strength=1.0, **SMALL, **EULER,
    )  # fmt: skip
    ours, before = np.asarray(result.image), np.asarray(start)
    assert ours.shape == before.shape
    changed = np.argwhere((ours != before).any(-1))
    assert changed.min(0).tolist() >= [100, 200] and changed.max(0).tolist() <= [139, 239]
    assert len(changed) > 800  # of 1600 pixels
    text = result.info["infotexts"][0]
    assert "Inpaint area: Only masked, Masked area padding: 8, Version" in text
    assert "Size: 128x128" in text and result.image.info["parameters"] == text


def test_controlnet_reads_edges_on_the_built_in_model(api, tmp_path) -> None:
    assert api.controlnet_model_list() == ["the model's own"]
    assert {"canny", "none", "scribble"} <= set(api.controlnet_module_list())
    picture = sketch()
    picture.save(tmp_path / "sketch.png")
    unit = webuiapi.ControlNetUnit(
        image=picture, module="canny", pixel_perfect=True, weight=0.8, guidance_end=0.9,
        threshold_a=100, threshold_b=200,
    )  # fmt: skip
    result = api.txt2img(prompt="an apple", seed=7, controlnet_units=[unit], **SMALL, **EULER)
    given = ["--control", f"canny:{tmp_path / 'sketch.png'}", "--control-scale", "0.8"]
    given += ["--control-end", "0.9", "--seed", "7"]
    assert same(result.images[0], generate(tmp_path / "a.png", "an apple", *given))
    assert "Module: canny" in result.info["infotexts"][0]
    detected = api.controlnet_detect([picture], "canny", 128, 100, 200)
    assert same(result.images[1], detected.image) and np.asarray(detected.image).any()
    small = webuiapi.ControlNetUnit(image=picture, module="canny", processor_res=64)
    other = api.txt2img(prompt="an apple", seed=7, controlnet_units=[small], **SMALL, **EULER)
    assert not same(other.images[1], detected.image)
    plain = api.txt2img(prompt="an apple", seed=7, **SMALL, **EULER)
    assert len(plain.images) == 1 and not same(plain.image, result.images[0])


def test_img2img_s_units_read_its_image_and_references_need_no_model(api) -> None:
    unit = webuiapi.ControlNetUnit(module="scribble", pixel_perfect=True)
    reference = webuiapi.ControlNetUnit(image=sketch(), module="reference_only", threshold_a=0.5)
    result = api.img2img(
        images=[sketch()], prompt="an apple", seed=7, controlnet_units=[unit, reference],
        **SMALL, **EULER,
    )  # fmt: skip
    text = result.info["infotexts"][0]
    assert "Module: scribble" in text and "Module: reference_only" in text
    assert len(result.images) == 2  # and what the ControlNet read


def test_progress_with_a_preview_and_interrupt(api) -> None:
    assert api.get_progress()["state"]["job_count"] == 0
    api.util_wait_for_ready()
    found: list = []
    settings = {"prompt": "a red car", "seed": 7, **SMALL, **EULER, "steps": 150}
    thread = threading.Thread(target=lambda: found.append(api2(api).txt2img(**settings)))
    thread.start()
    progress = {}
    while not progress.get("current_image"):
        assert thread.is_alive()
        progress = api.get_progress()
    assert 0 < progress["progress"] < 1 and progress["eta_relative"] > 0
    assert progress["state"]["sampling_steps"] == 150 and progress["state"]["job_count"] == 1
    preview = Image.open(io.BytesIO(base64.b64decode(progress["current_image"])))
    assert preview.size == (128, 128)
    assert api.interrupt() == {}
    thread.join()
    assert len(found[0].images) == 1 and "Steps: 150" in found[0].info["infotexts"][0]
    assert api.get_progress()["progress"] == 0.0


def api2(api):
    """Another connection of the same client."""
    return webuiapi.WebUIApi(baseurl=api.baseurl)


def test_skip_goes_on_with_the_next_pictures(api) -> None:
    found: list = []
    settings = {"prompt": "a red car", "seed": 7, **SMALL, **EULER, "steps": 100}
    thread = threading.Thread(target=lambda: found.append(api2(api).txt2img(n_iter=9, **settings)))
    thread.start()
    while api.get_progress()["progress"] <= 0.01:
        assert thread.is_alive()
    api.skip()
    while api.get_progress()["state"]["job_no"] == 0:  # of the first batch, of eight
        assert thread.is_alive()
    assert thread.is_alive()
    thread.join()
    assert len(found[0].images) == 9


def test_png_info_extras_and_interrogate(api) -> None:
    result = api.txt2img(prompt="a red car", seed=7, **SMALL, **EULER)
    read = api.png_info(result.image)
    assert read.info == result.info["infotexts"][0]
    assert read.parameters["Seed"] == "7" and read.parameters["Size-1"] == "128"
    large = api.extra_single_image(result.image, upscaler_1="Lanczos", upscaling_resize=1.5)
    assert large.image.size == (192, 192) and "Lanczos" in large.info
    both = api.extra_batch_images(
        [result.image, sketch()], upscaler_1=webuiapi.Upscaler.Nearest, resize_mode=1,
        upscaling_resize_w=100, upscaling_resize_h=200, upscaler_2="Lanczos",
        extras_upscaler_2_visibility=0.5,
    )  # fmt: skip
    assert [picture.size for picture in both.images] == [(100, 200)] * 2
    same_again = api.extra_single_image(sketch(), upscaler_1="None")
    assert same(same_again.image, sketch())
    with pytest.raises(RuntimeError, match="needs a model that describes pictures"):
        api.interrogate(sketch())


def test_styles_are_put_around_the_prompt(api) -> None:
    assert [row["name"] for row in api.get_prompt_styles()] == ["ink", "b"]
    result = api.txt2img(prompt="a cat", negative_prompt="x", styles=["ink", "b"], **SMALL, **EULER)
    assert result.info["prompt"] == "ink drawing of a cat, black, neon"
    assert result.info["negative_prompt"] == "x, colour"


def test_every_listing(api) -> None:
    assert api.util_get_model_names() == ["built-in"] == [api.util_get_current_model()]
    api.util_set_model("Built in")
    assert {"Euler a", "DPM++ 2M"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    assert "Lanczos" in [row["name"] for row in api.get_upscalers()]
    assert "Latent" in [row["name"] for row in api.get_latent_upscale_modes()]
    empty = ("loras", "sd_vae", "hypernetworks", "face_restorers", "realesrgan_models")
    assert all(getattr(api, f"get_{name}")() == [] for name in empty)
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_cmd_flags()["api"] is True and api.get_memory()["ram"]["total"] > 0
    assert api.get_scripts()["txt2img"] == ["controlnet"] and api.controlnet_version() == 3
    assert api.refresh_checkpoints() == {}
    for name in ("refresh-vae", "refresh-loras", "refresh-embeddings", "unload-checkpoint"):
        assert api.session.post(f"{api.baseurl}/{name}").json() == {}
    assert api.session.get(f"{api.baseurl}/script-info").json()[0]["name"] == "controlnet"
    assert api.session.post(f"{api.baseurl}/reload-checkpoint").json() == {}


def test_options_are_set_for_all_and_for_one_request(api) -> None:
    settings = {"prompt": "x", "seed": 1, **SMALL, **EULER}
    answer = api.set_options({"CLIP_stop_at_last_layers": 2, "show_progressbar": True})
    assert answer == {"ignored": ["the option 'show_progressbar' means nothing here"]}
    try:
        assert "Clip skip: 2" in api.txt2img(**settings).info["infotexts"][0]
        own = {"CLIP_stop_at_last_layers": 1, "samples_format": "webp"}
        result = api.txt2img(**settings, override_settings=own)
        assert "Clip skip" not in result.info["infotexts"][0] and result.image.format == "WEBP"
        assert load_image(result.image).size == (128, 128)
        assert api.get_options()["CLIP_stop_at_last_layers"] == 2
        api.txt2img(**settings, override_settings=own, override_settings_restore_afterwards=False)
        assert api.get_options()["samples_format"] == "webp"
    finally:
        api.set_options({"CLIP_stop_at_last_layers": 1, "samples_format": "png"})


def test_the_client_s_asynchronous_calls(api) -> None:
    pytest.importorskip("aiohttp")

    async def draw():
        return await api.txt2img(prompt="x", seed=1, use_async=True, **SMALL, **EULER)

    assert asyncio.run(draw()).image.size == (128, 128)
