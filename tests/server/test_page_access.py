"""The page in a real browser with a second model, and behind an API key."""

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from ldm.server.settings import Settings
from tests.server.browsing import Visits, browsing, serving
from tests.server.test_page import status

WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


def test_switches_to_another_model(browser, tmp_path) -> None:
    # The second model is the built-in one with other advice: its own steps and guidance.
    second = tmp_path / "second"
    second.mkdir()
    for part in WEIGHTS.iterdir():
        if part.name != "generation_config.json":
            (second / part.name).symlink_to(part)
    advice = {"num_inference_steps": 3, "guidance_scale": 2.5}
    (second / "generation_config.json").write_text(json.dumps(advice))
    with serving(Settings(model_dir=tmp_path)) as (url, server):
        visits = Visits(browser, url, server)
        page = visits.open(live=False)
        bodies = []
        page.on("request", lambda one: bodies.append(one.post_data) if "draw" in one.url else None)
        page.locator("#model").select_option("second")
        page.wait_for_function("() => document.querySelector('#num_inference_steps').value === '3'")
        page.locator("#draw").click()
        page.wait_for_function(
            "() => /^(Finished|.*3 steps)/.test(document.querySelector('#status').textContent)"
        )
        body = json.loads(bodies[-1])
        assert (body["model"], body["num_inference_steps"]) == ("second", 3)
        assert body["guidance_scale"] == 2.5
        assert server.model.name == "second"
        visits.close()


def test_key_is_asked_for_once(browser) -> None:
    with serving(Settings(api_key="a long key")) as (url, server):
        visits = Visits(browser, url, server)
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.locator("[name=key]").fill("a wrong key")
        page.locator("button").click()
        assert "not the key" in page.locator("[role=alert]").inner_text()
        page.locator("[name=key]").fill("a long key")
        page.locator("button").click()
        page.wait_for_function("() => document.querySelector('#model').options.length > 0")
        status(page, "Draft")  # pictures, events and all go through the cookie
        page.reload()
        status(page, "Draft")
        assert "a long key" not in json.dumps(context.cookies())
        context.close()
        visits.close()
