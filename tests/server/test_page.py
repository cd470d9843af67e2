"""The page in a real browser: drawing, live mode, canvas, drops, keys, colours, a phone."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from tests.server.browsing import PATIENCE, PHONE

PICTURE = "document.querySelector('#picture')"
NO_FEW_STEPS = {"own_few_steps": None}


def status(page, start: str) -> None:
    """Wait until the page says that."""
    page.wait_for_function(
        "start => document.querySelector('#status').textContent.startsWith(start)", arg=start
    )


def body_of(page, action) -> dict:
    """Return the next request to draw."""
    with page.expect_request("**/api/draw") as request:
        action()
    return json.loads(request.value.post_data)


def decode(url: str) -> np.ndarray:
    """Return the pixels of a data URL."""
    content = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def shown(visits, page) -> np.ndarray:
    """Return the pixels of the finished picture."""
    name = page.locator("#picture").get_attribute("src").split("/")[-1].removesuffix(".png")
    return np.asarray(Image.open(io.BytesIO(visits.server.pictures.get(name).data)))


def set_range(page, name: str, value: float) -> None:
    """Move a slider."""
    page.locator(f"#{name}").evaluate(
        "(field, value) => { field.value = value;"
        " field.dispatchEvent(new Event('input', {bubbles: true})) }",
        value,
    )


def stroke(page, *points: tuple[float, float]) -> None:
    """Draw on the canvas by the pointer; points are fractions of its sides."""
    box = page.locator(".surface").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up()


def drop(page, selector: str, data: bytes, name="dropped.png") -> None:
    """Drop a file."""
    page.evaluate(
        """([selector, base64, name]) => {
            const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type: "image/png"}));
            const event = new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true});
            document.querySelector(selector).dispatchEvent(event);
        }""",
        [selector, base64.b64encode(data).decode(), name],
    )


def png(size=(96, 64), colour="red") -> bytes:
    """Return a file of a picture of one colour."""
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def test_picture_changes_while_one_types(visits) -> None:
    page = visits.open()
    status(page, "Draft")  # of the first prompt, before anything is typed
    sources = {page.locator("#picture").get_attribute("src")}
    for words in ("a green", " tree"):
        before = page.locator("#picture").get_attribute("src")
        page.keyboard.type(words)
        page.wait_for_function(f"before => {PICTURE}.src !== before", arg=before)
        page.wait_for_function(
            f"before => {PICTURE}.src.includes('/api/pictures/')"
            f" && !{PICTURE}.src.endsWith(before)",
            arg=before,
        )
        sources.add(page.locator("#picture").get_attribute("src"))
    assert page.locator("#prompt").input_value() == "a green tree"  # typed over the first prompt
    assert len(sources) == 3
    assert page.locator("#draw").is_enabled()


def test_live_mode_takes_the_models_own_few_steps(visits) -> None:
    bodies = []
    page = visits.open(live=False, choices={"loras": ["LCM_of_nobody"]})
    page.on("request", lambda one: bodies.append(one.post_data) if "draw" in one.url else None)
    page.locator("#live").check()
    status(page, "Draft: 128 × 128, 4 steps")
    body = json.loads(bodies[-1])
    assert body["few_steps"] and body["draft"] and body["num_inference_steps"] == 4
    assert not body.keys() & {"sampler", "schedule", "guidance_scale"}
    assert "4 steps with the model's own LoRA" in page.locator("#live-hint").inner_text()
    page.locator("#draw").click()  # the picture itself has the form's steps, as before
    status(page, "Finished")
    assert page.locator("#num_inference_steps").input_value() == "20"


def test_live_mode_takes_an_lcm_lora_unless_it_does_not_fit(visits) -> None:
    bodies = []
    page = visits.open(live=False, choices={"loras": ["style", "LCM_of_nobody"]} | NO_FEW_STEPS)
    page.on("request", lambda one: bodies.append(one.post_data) if "draw" in one.url else None)
    page.locator("#live").check()
    status(page, "Draft")
    first, *_, last = (json.loads(body) for body in bodies)
    assert (first["sampler"], first["num_inference_steps"]) == ("lcm", 4)
    assert first["loras"] == [{"name": "LCM_of_nobody", "scale": 1}]
    assert "LCM_of_nobody does not fit" in page.locator("#live-hint").inner_text()
    assert last["num_inference_steps"] == 5 and "loras" not in last and last["draft"]


def test_draws_what_the_form_says(visits) -> None:
    page = visits.open(live=False)
    page.locator("#prompt").fill("a red car")
    page.locator("#negative_prompt").fill("blue")
    page.locator("#seed").fill("7")
    page.locator("#random-seed").uncheck()
    set_range(page, "num_inference_steps", 2)
    page.locator("#num_images_per_prompt").fill("2")
    body = body_of(page, lambda: page.locator("#draw").click())
    expected = {"prompt": "a red car", "negative_prompt": "blue", "seed": 7, "model": "built-in"}
    expected |= {"num_inference_steps": 2, "num_images_per_prompt": 2, "width": 128, "height": 128}
    assert body == expected | {"guidance_scale": 4, "record": True}
    status(page, "2 pictures: 128 × 128, 2 steps, seed 7")
    assert page.locator("#strip img").count() == 2
    page.locator("#strip button").nth(1).click()
    status(page, "2 pictures: 128 × 128, 2 steps, seed 8")
    again = body_of(page, lambda: page.locator("[data-use=vary]").click())
    assert (again["seed"], again["variation_strength"]) == (8, 0.25)
    assert "num_images_per_prompt" not in again
    status(page, "Finished")


def test_cancels(visits) -> None:
    page = visits.open(live=False)
    set_range(page, "num_inference_steps", 60)
    page.locator("#prompt").press("Control+Enter")
    status(page, "Step")
    page.locator("#picture").wait_for()  # a preview
    page.keyboard.press("Escape")
    status(page, "Cancelled")
    assert page.locator("#cancel").is_disabled()
    job = list(visits.server.jobs.values())[-1]
    page.wait_for_timeout(300)
    assert job.status.state == "cancelled" and job.status.step < 60


def test_refusals_are_words(visits) -> None:
    page = visits.open(live=False)
    page.locator("#width").fill("99999999")
    page.locator("#draw").click()
    page.locator("#error").wait_for()
    assert "pixels are too many" in page.locator("#error p").inner_text()
    assert page.locator("#width").get_attribute("aria-invalid") == "true"
    page.locator("#width").fill("100")  # which the worker refuses, not the body
    page.locator("#prompt").fill("a cat <lora:nobody:1>")
    page.locator("#draw").click()
    page.get_by_text("lora 'nobody' is not known").wait_for()
    assert page.locator("[aria-invalid]").count() == 0
    page.locator("#prompt").fill("a cat")
    page.locator("#draw").click()
    page.get_by_text("width is 100; it must be a positive multiple of 8").wait_for()
    assert page.locator("[aria-invalid]").get_attribute("id") == "width"
    page.get_by_label("Close the message").click()
    assert page.locator("#error").is_hidden()


def test_painted_mask_is_drawn_anew_and_the_rest_stays(visits) -> None:
    page = visits.open(live=False)
    drop(page, "#drop-image", png((128, 128), "navy"))
    page.locator("#drop-image img").wait_for()
    page.locator("#toggle-canvas").click()
    page.get_by_role("button", name="Mask", exact=True).click()
    page.locator("#canvas-tools").get_by_label("Size").fill("20")
    stroke(page, (0.3, 0.5), (0.7, 0.5))
    page.get_by_role("button", name="Undo").click()
    stroke(page, (0.3, 0.3), (0.7, 0.3))
    set_range(page, "num_inference_steps", 2)
    set_range(page, "mask_blur", 0)
    body = body_of(page, lambda: page.locator("#draw").click())
    assert (decode(body["mask_image"])[38, 64] == 255).all()
    mask = decode(body["mask_image"])[..., 0] > 0
    assert mask[38, 64] and not mask[64, 64] and 0.05 < mask.mean() < 0.2
    assert (decode(body["image"]) == [0, 0, 128]).all()
    status(page, "Finished")
    outside = (shown(visits, page) == [0, 0, 128]).all(-1)[~mask]
    assert outside.all()
    assert (shown(visits, page)[mask] != [0, 0, 128]).any()


def test_sketch_steers_controlnet(visits) -> None:
    page = visits.open(live=False)
    page.locator("#control-options summary").click()
    page.locator("#drop-control_image [data-action=sketch]").click()
    stroke(page, (0.2, 0.7), (0.5, 0.2), (0.8, 0.7), (0.2, 0.7))
    set_range(page, "num_inference_steps", 2)
    body = body_of(page, lambda: page.locator("#draw").click())
    sent = body["control_image"]
    assert sent["preprocessor"] == "scribble"
    assert decode(sent["image"]).min() < 50 < 250 < decode(sent["image"]).max()
    assert body["controlnet_conditioning_scale"] == 1 and "strength" not in body
    status(page, "Finished")


def test_handles_extend_the_picture(visits) -> None:
    page = visits.open(live=False)
    drop(page, "#drop-image", png((128, 128)))
    page.locator("#drop-image img").wait_for()
    page.locator("#toggle-canvas").click()
    page.get_by_role("button", name="Extend").click()
    handle = page.get_by_role("slider", name="Extend right")
    box = handle.bounding_box()
    width = page.locator(".frame").bounding_box()["width"]
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 10 + width / 2, box["y"] + 10, steps=3)
    page.mouse.up()
    page.get_by_role("slider", name="Extend top").press("ArrowUp")
    set_range(page, "num_inference_steps", 2)
    body = body_of(page, lambda: page.locator("#draw").click())
    assert body["outpaint"] == [0, 8, 64, 0] and not {"width", "strength"} & set(body)
    status(page, "Finished: 192 × 136")


def test_dropped_picture_is_offered_with_its_settings(visits) -> None:
    page = visits.open(live=False)
    page.locator("#prompt").fill("a purple cat")
    page.locator("#seed").fill("5")
    page.locator("#random-seed").uncheck()
    set_range(page, "num_inference_steps", 3)
    page.locator("#draw").click()
    status(page, "Finished")
    name = page.locator("#picture").get_attribute("src").split("/")[-1].removesuffix(".png")
    data = visits.server.pictures.get(name).data

    other = visits.open(live=False)
    drop(other, "body", data)
    dialog = other.get_by_role("dialog")
    dialog.wait_for()
    assert "a purple cat" in dialog.inner_text()
    dialog.get_by_role("button", name="Read its settings").click()
    values = {id: other.locator(f"#{id}").input_value() for id in ("prompt", "seed")}
    assert values == {"prompt": "a purple cat", "seed": "5"}
    assert other.locator("#num_inference_steps").input_value() == "3"

    drop(other, "body", png((300, 150)))
    dialog.wait_for()
    assert "no settings" in dialog.inner_text()
    dialog.get_by_role("button", name="Start from it").click()
    other.locator("#drop-image img").wait_for()
    sides = [int(other.locator(f"#{side}").input_value()) for side in ("width", "height")]
    assert sides == [184, 88]  # its shape, about as many pixels as the model's 128 x 128
    drop(other, "#drop-ip_adapter_image", png())
    other.locator("#ip-options.used").wait_for()
    drop(other, "body", b"no picture", "notes.png")
    other.locator("#error").wait_for()
    assert "notes.png is no picture" in other.locator("#error p").inner_text()


def test_keyboard_alone(visits) -> None:
    page = visits.open(live=False)
    set_range(page, "num_inference_steps", 1)
    skip = page.get_by_role("link", name="Skip to the prompt")
    skip.focus()
    assert skip.bounding_box()["width"] > 50  # visible now
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Tab")
    seen, last = [], ""
    for _ in range(60):  # to the end of the page, without a trap
        last = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        seen.append(last.strip())
        if page.evaluate("document.activeElement === document.body"):
            break
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.closest('.file')"
            " ?? document.activeElement).outlineStyle"
        )
        assert outline != "none", last
        page.keyboard.press("Tab")
    assert {"draw", "live", "negative_prompt", "seed", "toggle-canvas"} <= set(seen)
    assert len(seen) < 60

    page.locator("#toggle-canvas").focus()
    page.keyboard.press("Enter")
    page.locator(".surface").focus()
    for key in ("Space", "ArrowRight", "Shift+ArrowDown", "Space"):
        page.keyboard.press(key)
    page.locator("#drop-image img").wait_for(state="attached")
    page.keyboard.press("Control+z")
    page.wait_for_function("() => document.querySelector('#drop-image img').hidden")
    page.locator("#prompt").focus()
    page.keyboard.type("a dog")
    page.keyboard.press("Control+Enter")
    status(page, "Finished")


@pytest.mark.parametrize("size", [None, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_all_looks(visits, scheme, size) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"scheme": scheme} | ({} if size is None else {"size": size, "has_touch": True})
    page = visits.open(live=False, **options)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    for opened in (False, True):
        if opened:
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            page.locator("#toggle-canvas").click()
            page.get_by_role("button", name="Extend").click()
        grave = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in axe.run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not grave
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= page.viewport_size["width"]


def test_touch_paints(visits) -> None:
    page = visits.open(size=PHONE, live=False, has_touch=True)
    page.locator("#toggle-canvas").click()
    page.locator(".surface").tap()
    page.locator("#drop-image img").wait_for(state="attached")
    assert page.evaluate("document.querySelector('#drop-image img').src.startsWith('data:')")


def test_colours_can_be_chosen_and_settings_stay(visits) -> None:
    page = visits.open(live=False)
    page.locator("#prompt").fill("an owl")
    page.locator("#scheme").click()
    page.locator("#scheme").click()
    assert page.locator("#scheme").inner_text() == "Colours: dark"
    page.reload()
    page.wait_for_function("() => document.querySelector('#prompt').value === 'an owl'")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    assert not page.locator("#live").is_checked()


def test_measure_of_live_mode(visits) -> None:
    from tools.page_latency import measure

    page = visits.open()
    (one,) = measure(page, "x", PATIENCE)
    assert 0 < one.first_preview <= one.whole
