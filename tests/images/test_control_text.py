"""ControlNets in the web UI's text: what its extension writes, of several versions."""

from __future__ import annotations

import pytest

from ldm.images.control_text import control_labels, take_units
from ldm.images.generation_info import from_text

HEAD = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, RNG: CPU, Seed: 1, Size: 512x512, "
NEW = (
    'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8, Resize '
    "Mode: Crop and Resize, Low Vram: False, Processor Res: 512, Threshold A: 100, Threshold B: "
    "200, Guidance Start: 0, Guidance End: 0.6, Pixel Perfect: True, Control Mode: ControlNet is "
    'more important, Hr Option: Both, Save Detected Map: True", Version: v1.7.0'
)
TWO = (
    'ControlNet 0: "Module: none, Model: edges [0123456789], Weight: 1, Guidance Start: 0, '
    'Guidance End: 1, Control Mode: Balanced", ControlNet 1: "Module: None, Model: depth, '
    'Weight: 0.5, Guidance Start: 0.1, Guidance End: 1, Control Mode: My prompt is more important"'
)
OLD = (
    'ControlNet 0: "preprocessor: none, model: control_sd15_depth [fef5e48e], weight: 0.7, '
    "starting/ending: (0.1, 0.9), resize mode: Crop and Resize, pixel perfect: False, "
    'control mode: Balanced, preprocessor params: (512, -1, -1)"'
)


def test_one_of_a_new_version() -> None:
    info = from_text(HEAD + NEW)
    assert info.controlnets == ("control_v11p_sd15_canny",)
    assert info.arguments["controlnet_conditioning_scale"] == 0.8
    assert info.arguments["control_guidance_end"] == 0.6
    assert "control_guidance_start" not in info.arguments
    assert info.arguments["guess_mode"] is True
    assert info.images == {"control_image": ""}
    assert info.preprocessors == ("canny",)
    assert info.notes == ()
    other = from_text(HEAD + NEW.replace("A: 100", "A: 50").replace("Perfect: True", "Perfect: F"))
    assert other.preprocessors == ("canny,low=50",)
    assert other.notes == ("ControlNet 0 Processor Res 512",)


def test_a_preprocessor_that_is_not_here() -> None:
    info = from_text(HEAD + NEW.replace("Module: canny", "Module: depth_midas"))
    assert info.preprocessors == ()
    assert info.notes == ("ControlNet 0 Module depth_midas (give the picture that it ma",)
    with pytest.raises(ValueError, match="its Threshold A 'x'; expected a number"):
        from_text(HEAD + NEW.replace("Threshold A: 100", "Threshold A: x"))


def test_two() -> None:
    info = from_text(HEAD + TWO)
    assert info.controlnets == ("edges", "depth")
    assert info.arguments["controlnet_conditioning_scale"] == (1.0, 0.5)
    assert info.arguments["control_guidance_start"] == (0.0, 0.1)
    assert "guess_mode" not in info.arguments
    assert info.notes == ("ControlNet 1 Control Mode My prompt is more important",)


def test_an_old_version() -> None:
    info = from_text(HEAD + OLD)
    assert info.controlnets == ("control_sd15_depth",)
    assert info.arguments["controlnet_conditioning_scale"] == 0.7
    assert info.arguments["control_guidance_start"] == 0.1
    assert info.arguments["control_guidance_end"] == 0.9
    assert info.notes == ()


ADAPTER = (
    'ControlNet 0: "Module: t2ia_sketch_pidi, Model: t2iadapter_sketch_sd14v1 [e5d4b846], Weight: '
    '0.9, Guidance Start: 0.1, Guidance End: 0.7, Control Mode: Balanced", ControlNet 1: "Module: '
    'None, Model: depth, Weight: 0.5, Guidance Start: 0, Guidance End: 1, Control Mode: Balanced", '
    'ControlNet 2: "Module: None, Model: t2i-adapter_diffusers_xl_canny [bb0a8a4e], Weight: 1, '
    'Guidance Start: 0, Guidance End: 1, Control Mode: ControlNet is more important"'
)


def test_t2i_adapters_are_units_named_so() -> None:
    info = from_text(HEAD + ADAPTER)
    assert info.controlnets == ("depth",)
    assert info.t2i_adapters == ("t2iadapter_sketch_sd14v1", "t2i-adapter_diffusers_xl_canny")
    assert info.arguments["controlnet_conditioning_scale"] == 0.5
    assert info.arguments["adapter_conditioning_scale"] == (0.9, 1.0)
    assert info.arguments["adapter_conditioning_factor"] == (0.7, 1.0)
    assert "guess_mode" not in info.arguments
    assert info.images == {"control_image": "", "adapter_image": ""}
    start, module, mode = info.notes
    assert start == "ControlNet 0 Guidance Start 0.1"
    assert module.startswith("ControlNet 0 Module t2ia_sketch_pidi (give the picture")
    assert mode == "ControlNet 2 Control Mode ControlNet is more important"


def test_written_and_read_again() -> None:
    arguments = {
        "controlnet_conditioning_scale": 0.5, "guess_mode": True,
        "adapter_conditioning_scale": "0.9,1.0", "adapter_conditioning_factor": 0.7,
    }  # fmt: skip
    labels = control_labels(arguments, ("depth",), ("t2iadapter_sketch", "my,edges"))
    assert "Model: t2iadapter_my edges, Weight: 1, " in labels["ControlNet 2"]
    units = take_units(dict(labels))
    assert (units.controlnets, units.notes) == (("depth",), [])
    assert units.t2i_adapters == ("t2iadapter_sketch", "t2iadapter_my edges")
    assert units.arguments == arguments | {
        "adapter_conditioning_scale": (0.9, 1.0), "adapter_conditioning_factor": (0.7, 0.7),
    }  # fmt: skip


def test_a_weight_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="its ControlNet 0 has the weight 'much'; expected a num"):
        from_text(HEAD + 'ControlNet 0: "Model: x, Weight: much, Control Mode: Balanced"')


REFERENCE = (
    'ControlNet 0: "Module: reference_only, Model: None, Weight: 1, Resize Mode: Crop and Resize, '
    "Threshold A: 0.7, Guidance Start: 0, Guidance End: 0.8, Pixel Perfect: True, Control Mode: "
    'Balanced"'
)


def test_a_reference_is_no_network() -> None:
    info = from_text(HEAD + REFERENCE)
    assert info.controlnets == ()
    assert info.arguments["reference_mode"] == "attention"
    assert info.arguments["reference_fidelity"] == 0.7
    assert info.images == {"reference_image": ""}
    assert info.notes == ("ControlNet 0 guidance end 0.8",)
    info = from_text(HEAD + REFERENCE.replace("Balanced", "My prompt is more important"))
    assert info.arguments["reference_fidelity"] == 0
    info = from_text(HEAD + REFERENCE.replace("reference_only", "reference_adain"))
    assert info.arguments["reference_mode"] == "adain"
    with pytest.raises(ValueError, match="its ControlNet 0 has the threshold a 'x'; expected a nu"):
        from_text(HEAD + REFERENCE.replace("0.7", "x"))
