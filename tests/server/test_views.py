"""The views of a finished picture in a real browser: gallery, steps, words, one step, plots."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from tests.server.browsing import PHONE


def draw(page, prompt="a red car", steps=4, number=1):
    """Draw, and wait until the gallery and the steps are there."""
    page.fill("#prompt", prompt)
    settings = page.locator("details:has(#num_inference_steps)")
    if settings.count() and not page.locator("#num_inference_steps").is_visible():
        settings.first.locator("summary").first.click()
    page.locator("#num_inference_steps").fill(str(steps))
    page.click("#draw")
    page.wait_for_function(
        "([n, words]) => document.querySelectorAll('#gallery .tile').length === n"
        " && document.querySelector('#views .of').textContent.startsWith(words)"
        " && !document.querySelector('#views').hidden",
        arg=[number, prompt],
    )
    return page


def body_of(page, action) -> dict:
    """Return the next request to draw."""
    with page.expect_request("**/api/draw") as request:
        action()
    return json.loads(request.value.post_data)


def pixels(visits, page, image: str) -> np.ndarray:
    """Return the pixels of what an image shows, as its server sends it."""
    page.wait_for_function("s => document.querySelector(s)?.complete", arg=image)
    url = page.locator(image).get_attribute("src")
    answer = page.request.get(f"{visits.url}{url}")
    assert answer.ok, answer.text()
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"), int)


def finish(page, count: int) -> None:
    """Wait until the gallery has so many pictures."""
    page.wait_for_function(
        "n => document.querySelectorAll('#gallery .tile').length === n", arg=count
    )


def test_strip_is_a_scrubber(visits) -> None:
    page = draw(visits.open(live=False))
    assert page.locator(".thumbs li").count() == 4
    shown, slider = ".looked-at .shown", page.locator("#step-range")
    assert page.locator(shown).get_attribute("src") == page.locator("#picture").get_attribute("src")
    whole = pixels(visits, page, shown)
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "step 1 of 4"
    assert "/steps/1/x0.png" in page.locator(shown).get_attribute("src")
    assert np.abs(pixels(visits, page, shown) - whole).max() > 30
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "step 2 of 4"
    assert page.locator('.thumbs [aria-current="step"]').get_attribute("aria-label") == "Step 2"
    page.locator(".play").click()
    page.wait_for_function("() => document.querySelector('#step-range').value === '3'")
    page.wait_for_function("() => document.querySelector('.play').textContent === 'Play'")


def test_reduced_motion_steps_instead_of_playing(visits) -> None:
    page = draw(visits.open(live=False, reduced_motion="reduce"))
    play = page.locator(".play")
    assert play.inner_text() == "Next step"
    values = []
    for _ in range(3):
        play.click()
        values.append(page.locator("#step-range").input_value())
    assert values == ["0", "1", "2"]


def test_words_show_their_attention_on_hover_and_focus(visits) -> None:
    page = draw(visits.open(live=False), "a red car on a blue background")
    heat, words = page.locator(".looked-at .heat"), page.locator(".words button")
    assert words.all_inner_texts() == ["a", "red", "car", "on", "a", "blue", "background"]
    assert not heat.is_visible()
    words.nth(2).hover()
    assert heat.is_visible() and "car" in heat.get_attribute("alt")
    car = pixels(visits, page, ".looked-at .heat")
    words.nth(6).focus()
    assert "background" in heat.get_attribute("alt")
    assert np.abs(pixels(visits, page, ".looked-at .heat") - car).max() > 30
    page.locator("#prompt").focus()
    page.locator("h1").hover()
    assert not heat.is_visible()
    words.nth(2).click()  # stays
    page.locator("#prompt").focus()
    page.locator("h1").hover()
    assert heat.is_visible() and words.nth(2).get_attribute("aria-pressed") == "true"


def table(page) -> list[list[float]]:
    """Return uncond, cond and guided of each channel, as the page shows them."""
    rows = page.locator(".numbers tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    return [[float(one.replace("−", "-")) for one in (c[0], c[2], c[4])] for c in cells]


def test_one_step_in_detail_shows_guidance_in_numbers(visits) -> None:
    page = draw(visits.open(live=False))
    page.locator(".lesson-of summary").click()
    page.locator("#step-range").fill("1")
    page.wait_for_selector(".numbers tbody tr")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.lesson img')].every(i => i.naturalWidth > 0)"
    )
    text = page.locator(".lesson").inner_text()
    assert "Ho & Salimans 2022, eq. 6" in text and "α ε − σ x" in text and "Step" not in text
    first = table(page)
    assert len(first) == 8
    for u, c, guided in first:
        assert guided == pytest.approx(u + 4 * (c - u), abs=0.02)  # three digits, and bfloat16
    page.locator("#pixel-row").fill("2")
    page.locator("#pixel-row").press("Enter")
    page.wait_for_function(
        "before => document.querySelector('.numbers .result').textContent !== before",
        arg=f"{first[0][2]:.3f}".replace("-", "−"),
    )
    page.locator(".pick").first.click(position={"x": 3, "y": 3})
    page.wait_for_function("() => document.querySelector('#pixel-row').value === '0'")
    assert page.locator("#pixel-column").input_value() == "0"


def test_gallery_again_vary_start_and_remove(visits) -> None:
    page = draw(visits.open(live=False))
    first = pixels(visits, page, "#gallery .tile img")
    tile = page.locator("#gallery li").first
    body = body_of(page, lambda: tile.get_by_role("button", name="Again").click())
    finish(page, 2)
    assert np.array_equal(pixels(visits, page, "#gallery li:first-child .tile img"), first)
    page.locator("#gallery .tile").nth(1).click()
    dialog = page.locator("dialog.large")
    assert str(body["seed"]) in dialog.locator(".facts").inner_text()
    dialog.locator("#far").fill("0.6")
    varied = body_of(page, lambda: dialog.get_by_role("button", name="Vary").click())
    assert varied["variation_strength"] == 0.6 and varied["seed"] == body["seed"]
    finish(page, 3)
    assert np.abs(pixels(visits, page, "#gallery li:first-child .tile img") - first).max() > 30
    page.locator("#gallery li").first.get_by_role("button", name="Use as start").click()
    page.wait_for_function(
        "() => document.querySelector('#drop-image img').src.startsWith('data:')"
    )
    page.reload()
    finish(page, 3)
    page.locator("#gallery .tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    finish(page, 2)
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.get_by_role("button", name="Remove all").click()
    finish(page, 2)
    page.get_by_role("button", name="Really remove 2?").click()
    finish(page, 0)


def test_settings_are_copied_and_read_back(visits) -> None:
    page = visits.open(live=False, permissions=["clipboard-read", "clipboard-write"])
    draw(page, "a blue fish", steps=3)
    page.locator("#gallery .tile").click()
    page.get_by_role("button", name="Copy settings").click()
    page.wait_for_function("() => document.querySelector('dialog.large .hint').textContent")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("a blue fish") and "Steps: 3" in copied
    page.keyboard.press("Escape")
    page.fill("#prompt", "something else")
    page.locator("#gallery .tile").click()
    page.get_by_role("button", name="Settings into the form").click()
    assert page.locator("#prompt").input_value() == "a blue fish"


def test_dropped_record_is_drawn_once_more(visits) -> None:
    page = draw(visits.open(live=False))
    with visits.server.records._lock:
        visits.server.records._kept.clear()
    page.locator("#gallery .tile").click()
    body = body_of(page, lambda: page.get_by_role("button", name="How it was drawn").click())
    assert body["record"] is True
    page.wait_for_function(
        "() => document.querySelector('#views .hint[role=status]').textContent === ''"
    )
    page.locator("#step-range").fill("0")
    page.wait_for_function("() => document.querySelector('.looked-at .shown').naturalWidth > 0")


def open_plot(page, x: tuple[str, str], y: tuple[str, str]):
    page.locator("#plots summary").click()
    for name, (setting, values) in (("x", x), ("y", y)):
        page.locator(f"#plot-{name}").select_option(setting)
        page.fill(f"#plot-{name}-values", values)
    return page.get_by_role("button", name="Fill the plot")


def test_plot_fills_and_is_one_png(visits) -> None:
    page = visits.open(live=False)
    page.fill("#prompt", "a red car")
    open_plot(page, ("num_inference_steps", "1, 2"), ("prompt", "red, green")).click()
    page.wait_for_function("() => document.querySelectorAll('.plot .tile').length === 4")
    heads = page.locator(".plot th").all_inner_texts()
    assert heads == ["Steps 1", "Steps 2", "Prompt S/R red", "Prompt S/R green"]
    cells = [
        pixels(visits, page, f".plot tbody tr:nth-child({j}) td:nth-child({i}) img")
        for j in (1, 2)
        for i in (2, 3)
    ]
    assert all(np.abs(a - b).max() > 20 for a, b in pairwise(cells))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as one PNG").click()
    sheet = np.asarray(Image.open(download.value.path()).convert("RGB"), int)
    height, width = cells[0].shape[:2]
    assert sheet.shape[0] > 2 * height and sheet.shape[1] > 2 * width
    corner = sheet[-8 - height : -8, -8 - width : -8]
    assert np.abs(corner - cells[3]).max() <= 1


def test_plot_is_cancelled_and_wrong_values_are_said(visits) -> None:
    page = visits.open(live=False)
    page.fill("#prompt", "a red car")
    fill = open_plot(page, ("num_inference_steps", "1, x"), ("seed", "1-9"))
    fill.click()
    assert "“x” is no whole number" in page.locator("#error").inner_text()
    page.fill("#plot-x-values", "40")
    fill.click()
    page.wait_for_selector(".plot img")
    page.locator("#plots").get_by_role("button", name="Cancel").click()
    page.wait_for_function(
        "() => document.querySelector('#plots [role=status]').textContent.startsWith('Cancelled')"
    )
    assert page.locator(".plot .tile").count() < 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(visits, scheme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = draw(visits.open(scheme=scheme, live=False, bypass_csp=True))
    page.locator(".lesson-of summary").click()
    page.wait_for_selector(".numbers tbody tr")
    page.locator("#plots summary").click()
    found = axe.run(page).response["violations"]
    page.locator("#gallery .tile").click()
    found += axe.run(page).response["violations"]
    serious = [
        (v["id"], v["nodes"][0]["html"][:200])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, serious


def test_phone_needs_no_scrolling_to_the_side(visits) -> None:
    page = draw(visits.open(PHONE, live=False))
    page.locator(".lesson-of summary").click()
    page.wait_for_selector(".numbers tbody tr")
    page.locator("#plots summary").click()
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= PHONE["width"], width
