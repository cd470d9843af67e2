"""A1111's interface: what is not done is refused in words, or named; nothing is a server error."""

import base64
import io
import json
import random

import pytest
from PIL import Image

pytest.importorskip("fastapi")

from ldm.server.routes.a1111.bodies import ImageToImageBody, TextToImageBody
from ldm.server.routes.a1111.requests import read_sampler
from ldm.server.settings import Settings

T2I, I2I = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
JSON = {"content-type": "application/json"}
SMALL = {"steps": 1, "width": 64, "height": 64}


def encoded(size=(64, 64), mode="RGB", color="red") -> str:
    content = io.BytesIO()
    Image.new(mode, size, color).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


PICTURE, BLACK, WHITE = encoded(), encoded(mode="L", color=0), encoded(mode="L", color=255)


def unit(**fields) -> dict:
    return {"alwayson_scripts": {"ControlNet": {"args": [{"image": PICTURE, **fields}]}}}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"sampler_name": "Euler b"}, 400, "did you mean 'euler' or 'euler_a'?"),
        ({"scheduler": "karas"}, 400, "did you mean 'karras'"),
        ({"width": 10**9, "height": 8}, 400, "1000000000x8 pixels are too many"),
        ({"steps": 10**9}, 400, "num_inference_steps is 1000000000"),
        ({"batch_size": 10**9}, 400, "pictures"),
        ({"batch_size": 0}, 422, "batch_size"),
        ({"steps": "many"}, 422, "steps: expected a integer"),
        ({"prompt": "a" * 10**6}, 400, "prompt has 1,000,000 characters"),
        ({"prompt": "\ud800"}, 400, "half of a character"),
        ({"prompt": "<lora:none:1>"}, 404, "lora 'none' is not known"),
        ({"styles": ["ink"]}, 404, "style 'ink' is not known"),
        ({"seed": 10**30}, 400, "seed is 1000"),
        ({"width": -8}, 400, "width is -8"),
        ({"override_settings": {"sd_model_checkpoint": "built-inn"}}, 404, "'built-in'"),
        ({"override_settings": {"sd_vae": "other.pt"}}, 400, "cannot be 'other.pt' here"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, 400, "it must be in [1, 12]"),
        ({"override_settings": {"samples_format": "exe"}}, 400, "it must be one of png"),
        ({"restore_faces": True}, 422, "restore_faces is True, which is not done here"),
        ({"seed_resize_from_w": 512}, 422, "seed_resize_from_w is 512"),
        ({"s_churn": 1}, 422, "s_churn is 1.0"),
        ({"refiner_checkpoint": "xl"}, 422, "refiner_checkpoint is 'xl'"),
        ({"sampler_name": "Euler a", "eta": 0.5}, 422, "eta is 0.5; Euler a has 1 here"),
        ({"script_name": "X/Y/Z plot"}, 422, "there are no scripts here"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, 422, "only controlnet is"),
        ({"alwayson_scripts": {"controlnet": 3}}, 400, "must be an object with a list"),
        ({"enable_hr": True, "hr_upscaler": "/etc/passwd"}, 404, "upscaler '/etc/passwd' is not"),
        ({"enable_hr": True, "hr_prompt": "other"}, 422, "hr_prompt is another text"),
        ({"enable_hr": True, "hr_sampler_name": "DDIM"}, 422, "both passes have the same here"),
        ({"enable_hr": True, "hr_resize_x": 128, "hr_resize_y": 96}, 422, "another shape"),
        ({"enable_hr": True, "hr_scale": 100}, 400, "hires_scale is 100"),
        ({"enable_hr": True, "denoising_strength": 1e-9}, 400, "steps would be planned"),
        (unit(image="aGVsbG8="), 400, "ControlNet 0: image is no picture"),
        (unit(image="/etc/passwd"), 400, "image is no base64"),
        (unit(image=None), 422, "ControlNet 0: image is missing"),
        (unit(module="depth_midas"), 422, "only a network can make it"),
        (unit(module="cany"), 422, "did you mean 'canny'?"),
        (unit(module="canny", threshold_a=200, threshold_b=100), 400, "low must not be above"),
        (unit(module="canny", processor_res=9), 400, "processor_res is 9"),
        (unit(model="control_sd15"), 404, "controlnet 'control_sd15' is not known"),
        (unit(control_mode=1), 422, "control_mode is 'My prompt is more important'"),
        (unit(resize_mode=7), 422, "resize_mode is 7"),
        (unit(weight="heavy"), 422, "ControlNet 0: weight"),
        (unit(guidance_start=1, guidance_end=0), 400, "the start must be less"),
        (unit(mask=WHITE), 422, "mask is read by the module inpaint alone"),
    ],
)
def test_text_to_image_is_refused_in_words(client, body, status, words) -> None:
    answer = client.post(T2I, content=json.dumps({**SMALL, **body}), headers=JSON)
    found = answer.json()
    assert set(found) == {"error", "detail", "body", "errors"}
    assert answer.status_code == status and words in found["detail"], found["detail"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"init_images": []}, 422, "init_images is missing"),
        ({"init_images": ["aGVsbG8="]}, 400, "init_images 1 is no picture"),
        ({"init_images": ["http://x/a.png"]}, 400, "is an address; send the picture itself"),
        ({"init_images": [PICTURE] * 2}, 422, "2 pictures for batch_size 1"),
        ({"mask": BLACK}, 400, "mask_image has no white"),
        ({"mask": BLACK, "inpaint_full_res": False}, 400, "has no white"),
        ({"mask": WHITE, "inpainting_fill": 2}, 422, "latent noise; give 0 or 1"),
        ({"mask": WHITE, "mask_blur": 10**6}, 422, "mask_blur is 1e+06"),
        ({"mask": WHITE, "inpaint_full_res_padding": -1}, 400, "padding is -1"),
        ({"mask": WHITE, "width": 10**9}, 400, "pixels are too many"),
        ({"resize_mode": 3}, 422, "resize_mode is 3"),
        ({"resize_mode": 1, "width": 10**9}, 400, "pixels are too many"),
        ({"resize_mode": 1, "width": 0}, 422, "at least 8"),
        ({"denoising_strength": 2}, 400, "strength is 2"),
    ],
)
def test_image_to_image_is_refused_in_words(client, body, status, words) -> None:
    answer = client.post(I2I, json={"init_images": [PICTURE], **SMALL, **body})
    found = answer.json()
    assert answer.status_code == status and words in found["detail"], found["detail"]


def test_what_has_no_effect_is_named(client) -> None:
    body = {
        **SMALL,
        "prompt": "x",
        "seed": 1,
        "wrong_field": 1,
        "save_images": True,
        "eta": 0.5,
        "override_settings": {"return_grid": False},
        "alwayson_scripts": {"ADetailer": {"args": [False]}},
    }
    info = json.loads(client.post(T2I, json=body).json()["info"])
    assert info["ignored"] == [
        "wrong_field: no such field",
        "the option 'return_grid' means nothing here",
        "eta: Euler has none",
        "save_images: this server has no folder of pictures (--output-dir)",
        "alwayson_scripts.ADetailer: it is off, and not there",
    ]


def test_null_is_the_default_and_images_may_stay_here(client) -> None:
    names = set(TextToImageBody.model_fields) - set(SMALL)
    answer = client.post(T2I, json={**SMALL, **dict.fromkeys(names)}).json()
    assert len(answer["images"]) == 1 and answer["parameters"]["cfg_scale"] == 7.0
    assert client.post(T2I, json={**SMALL, "send_images": False}).json()["images"] == []


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/sdapi/v1/png-info", {"image": "!"}, "image is no"),
        ("/sdapi/v1/png-info", {}, "image: it is missing"),
        ("/sdapi/v1/options", {"sd_model_checkpoint": "none"}, "model 'none' is not known"),
        ("/sdapi/v1/options", {"sd_model_checkpoint": 3}, "give a model's title"),
        ("/sdapi/v1/options", [], "the body is no JSON object"),
        ("/sdapi/v1/extra-single-image", {"image": PICTURE, "upscaler_1": "lanzos"}, "'Lanczos'"),
        ("/sdapi/v1/extra-single-image", {"image": PICTURE, "gfpgan_visibility": 1}, "no faces"),
        (
            "/sdapi/v1/extra-single-image",
            {"image": PICTURE, "upscaling_resize": 10**6, "upscaler_1": "Lanczos"},
            "pixels are too many",
        ),
        ("/sdapi/v1/extra-batch-images", {"imageList": []}, "imageList has 0 pictures"),
        ("/sdapi/v1/interrogate", {"image": PICTURE}, "describes pictures"),
        ("/controlnet/detect", {"controlnet_module": "canny"}, "has 0 pictures"),
        (
            "/controlnet/detect",
            {"controlnet_module": "reference_only", "controlnet_input_images": [PICTURE]},
            "makes no picture",
        ),
    ],
)
def test_other_routes_refuse_in_words(client, path, body, words) -> None:
    answer = client.post(path, json=body)
    assert 400 <= answer.status_code < 500 and words in answer.json()["detail"]


def test_bodies_that_are_no_json(client) -> None:
    for content in (b"{", b"", b"\xff\xfe", b"[" * 10**5, b'{"steps": NaN}', b"null"):
        answer = client.post(T2I, content=content, headers=JSON)
        assert 400 <= answer.status_code < 500, content[:10]


def test_values_of_any_type_are_no_server_error(client) -> None:
    """A fixed sample: every field with values that make no sense."""
    values = [None, True, -1, 10**40, 0.5, "", "\ud800", [], {}, ["x"], {"args": [1]}, 1e308]
    picker = random.Random(0)
    fields = [(T2I, name) for name in TextToImageBody.model_fields]
    fields += [(I2I, name) for name in ImageToImageBody.model_fields]
    for path, name in fields:
        for value in picker.sample(values, 4):
            body = {"init_images": [PICTURE], "mask": WHITE} if path == I2I else {"enable_hr": True}
            body |= {**SMALL, "batch_size": 1, "n_iter": 99, name: value}  # 99: refused in the end
            answer = client.post(path, content=json.dumps(body), headers=JSON)
            assert answer.status_code < 500, (name, value, answer.text)
            assert answer.status_code >= 400 or name == "n_iter", (name, value)


def test_automatic_schedules_are_a1111_s() -> None:
    assert read_sampler("DPM++ 2M", "Automatic") == ("dpmpp_2m", "karras")
    assert read_sampler("DPM++ 3M SDE", None) == ("dpmpp_3m_sde", "exponential")
    assert read_sampler("Euler a", "automatic") == ("euler_a", None)
    assert read_sampler("DPM++ 2M Karras", "automatic") == ("dpmpp_2m", "karras")
    assert read_sampler("DPM++ 2M", "SGM Uniform") == ("dpmpp_2m", "sgm_uniform")


def test_models_are_set_by_title_and_files_are_named_without_folders(limited, tmp_path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "wrong.safetensors").write_bytes(b"no lora")
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    with limited(Settings(model_dir=tmp_path, lora_dir=tmp_path / "lora")) as client:
        models = client.get("/sdapi/v1/sd-models").json()
        assert [row["filename"] for row in models] == ["built-in", "broken.safetensors", *(
            row["filename"] for row in models[2:]
        )]  # fmt: skip
        assert client.get("/sdapi/v1/loras").json()[0]["path"] == "wrong.safetensors"
        wanted = {"sd_model_checkpoint": "broken.safetensors [0123456789]"}
        answer = client.post("/sdapi/v1/options", json=wanted)
        assert answer.status_code == 422 and "broken" in answer.json()["detail"]
        assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "built-in"
        assert client.post(T2I, json=SMALL).status_code == 200
