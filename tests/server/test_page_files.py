"""The page's files: their types and headers, and what the form offers."""

import pytest
from PIL import Image

from ldm.server.routes.page import FOLDER, TYPES
from ldm.server.store import Pictures

PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize("path", ["/", "/page/style.css", "/page/js/main.js", "/page/icon.svg"])
def test_files_have_a_type_a_policy_and_a_tag(client, path) -> None:
    answer = client.get(path)
    kind = TYPES[".html" if path == "/" else path[path.rindex(".") :]]
    assert answer.headers["content-type"].split(";")[0] == kind
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["etag"]
    if path != "/":
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content


def test_page_needs_nothing_from_elsewhere() -> None:
    for path in FOLDER.rglob("*"):
        if path.is_dir():
            continue
        assert path.suffix in TYPES, path
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, path
        if path.suffix == ".html":  # which the policy would refuse
            assert "style=" not in text and "onclick" not in text and "<script>" not in text


def test_choices_are_of_the_model_in_memory(client) -> None:
    found = client.get("/page/choices.json").json()
    assert found["loaded"] == found["current"] == "built-in"
    defaults = {"width": 128, "height": 128, "num_inference_steps": 20, "guidance_scale": 4.0}
    assert found["defaults"] == defaults | {"few_steps": False}
    assert found["able"] == {"controlnet": True, "ip_adapter": True}
    assert found["samplers"]["dpmpp_2m"] == "DPM++ 2M" and "scribble" in found["preprocessors"]


def test_drafts_are_not_written_into_the_folder(tmp_path) -> None:
    pictures = Pictures(10**6, tmp_path)
    assert pictures.add("draft", 0, PICTURE, draft=True).data
    assert not list(tmp_path.iterdir())
    pictures.add("whole", 0, PICTURE)
    assert len(list(tmp_path.iterdir())) == 1
