"""Two replicas on the CPU, as `serve run` starts them: each draws the same picture."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="the extra ldm[ray] is not installed")
import ray
from ray import serve

from ldm.images.files import load_image
from ldm.pipeline import Pipeline

BODY = {"prompt": "a red car", "seed": 7, "num_inference_steps": 2}
# In a process of its own, as the tests have no network. It draws, and then looks for each picture
# several times: a replica knows its own pictures alone.
CLIENT = """
import json, sys, urllib.error, urllib.request
address, body, output = sys.argv[1:]
headers = {"Content-Type": "application/json"}
ends, missed, found = [], [], b""
for _ in range(6):
    request = urllib.request.Request(address + "/api/draw", body.encode(), headers)
    block = urllib.request.urlopen(request, timeout=60).read().decode().strip().split("\\n\\n")[-1]
    ends.append(json.loads(block.split("\\n")[1].removeprefix("data: ")))
for end in ends * 5:
    try:
        found = urllib.request.urlopen(address + end["pictures"][0]["url"], timeout=60).read()
    except urllib.error.HTTPError as error:
        missed.append([error.code, error.read().decode()])
open(output, "wb").write(found)
print(json.dumps({"states": [end["state"] for end in ends], "missed": missed}))
"""


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Two replicas, each with one core and so with one thread."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    from ldm.server.ray import app

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a token there
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # what `serve run ldm.server.ray:app replicas=2 …` does with its arguments, which are texts
        serve.run(build(app, {"replicas": "2", "num_gpus": "0", "dtype": "float32"}), name="ldm")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_two_replicas_draw_the_same_picture(address, tmp_path) -> None:
    output = tmp_path / "served.png"
    command = [sys.executable, "-c", CLIENT, address, json.dumps(BODY), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["states"] == ["done"] * 6
    assert 0 < len(said["missed"]) < 30, "both replicas answer"
    assert {code for code, _ in said["missed"]} == {404}
    assert all("there is no picture" in words for _, words in said["missed"])
    served = np.asarray(load_image(output)).astype(int)
    pipe = Pipeline.from_pretrained().optimize()
    ours = np.asarray(pipe("a red car", seed=7, num_inference_steps=2).images[0])
    assert np.abs(served - ours).max() <= 1  # another number of threads rounds otherwise


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3, above max_replicas 2"),
        ({"min_replicas": 3}, "min_replicas needs max_replicas"),
        ({"replica": 2}, "replica"),
        ({"num_gpus": -1}, "num_gpus"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words) -> None:
    from ldm.server.ray import Arguments

    with pytest.raises(ValueError, match=words):
        Arguments(**arguments)


def test_options_of_the_deployment() -> None:
    from ldm.server.ray import Arguments

    fixed = Arguments(replicas=3, num_gpus=0.5).options()
    assert fixed["num_replicas"] == 3 and fixed["ray_actor_options"]["num_gpus"] == 0.5
    scaled = Arguments(max_replicas=8, model="x").options()["autoscaling_config"]
    assert (scaled["min_replicas"], scaled["max_replicas"]) == (1, 8)
    assert Arguments(model="x", model_dir="models").settings().model == "x"
