"""A network as OpenVINO's model: converted at the first call, compiled for each shape of inputs.

The conversion traces a call of the plain layers. Its result holds for inputs of any shape, so it is
what is kept on disk (``store``). Compiled for fixed shapes it is a third faster than for any shape
(the built-in U-Net: 14.7 against 18.9 ms), but each compiled one has a copy of the weights, so only
a few are kept.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.fast.cache import same_marks
from ldm.fast.openvino import store
from ldm.fast.openvino.library import Engine, core, load
from ldm.fast.packed import version

# Compiled models that are kept: as many as fit into these bytes, within these limits. With and
# without guidance there are two kinds of call.
BYTES, FEWEST, MANY = 1 << 30, 2, 8
PLAIN = (bool, int, float, str, tuple, type(None))  # types of a layer's settings

Shapes = tuple[torch.Size, ...]


class State:
    """A network's layers and weights at one time: whether it still is as it was."""

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self.children = [(m._modules, tuple(m._modules.values())) for m in modules if m._modules]
        self.places = [
            (table, name)
            for m in modules
            for table in (m._parameters, m._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        self.tensors = self._tensors()
        self.convolutions = [(m, m.padding_mode) for m in modules if isinstance(m, nn.Conv2d)]
        self.hooks = [each for m in modules for each in (m._forward_hooks, m._forward_pre_hooks)]

    def _tensors(self) -> tuple[object, ...]:
        found = [table.get(name) for table, name in self.places]
        there = [each for each in found if each is not None]
        # ``module.to`` gives a tensor other values, which it does not count as a change.
        return (*found, *map(version, there), *(each.data_ptr() for each in there))

    def holds(self) -> bool:
        """Whether no layer was exchanged and no weight has changed since."""
        return (
            all(tuple(table.values()) == before for table, before in self.children)
            and all(layer.padding_mode == mode for layer, mode in self.convolutions)
            and same_marks(self.tensors, self._tensors())
        )

    @property
    def counted(self) -> bool:
        """Whether PyTorch counts the changes of all weights."""
        return same_marks(self.tensors, self.tensors)

    @property
    def trained(self) -> bool:
        """Whether gradients of a weight are wanted."""
        return any(isinstance(each, Tensor) and each.requires_grad for each in self.tensors)


class Converted:
    """A function of float32 tensors by OpenVINO, or None from it where that cannot compute.

    Threads call one after the other, as compiled models have one memory. A copy has nothing
    converted.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        call: nn.Module,
        engine: Engine,
        example: Sequence[tuple[int, ...]],
    ) -> None:
        """Convert nothing yet.

        name: "the U-Net", for messages.
        call: what is traced, from float32 to float32; it computes with ``network``.
        example: small shapes of inputs that go every usual way through the network.
        """
        self.name, self.network, self.call = name, network, call
        self.engine, self.example = engine, example
        self._one_call = threading.RLock()
        self.state: State | None = None
        self.model: Any = None  # OpenVINO's, for any shapes
        self.compiled: OrderedDict[Shapes, Any] = OrderedDict()
        self.said: set[str] = set()

    def __reduce__(self) -> tuple[type[Converted], tuple[object, ...]]:
        """Copy and pickle without what is converted."""
        return Converted, (self.name, self.network, self.call, self.engine, self.example)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    def __call__(self, *inputs: Tensor) -> list[Tensor] | None:
        """Return the outputs, float32; None, with a warning, for what PyTorch is to compute."""
        with self._one_call:
            state = self.state
            if state is None or not state.holds():
                state = self.renew()
            obstacle = self.obstacle(state, inputs)
            if obstacle is not None:
                self.refuse(obstacle)
                return None
            values = [x.detach().float().contiguous().numpy() for x in inputs]
            try:
                compiled = self.compile(tuple(x.shape for x in inputs))
                outputs = compiled(values, share_inputs=True, share_outputs=False)
            except RuntimeError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self.refuse(f"OpenVINO says: {lines[-1]:.300}")
                return None
            return [torch.from_numpy(outputs[i]) for i in range(len(outputs))]

    def renew(self) -> State:
        """Forget what was converted from other weights."""
        self.model = None
        self.compiled.clear()
        self.state = State(self.network)
        return self.state

    def obstacle(self, state: State, inputs: Sequence[Tensor]) -> str | None:
        """Say why a call is PyTorch's; None if it is not."""
        if self.network.training:
            return "it is in training mode"
        wanted = torch.is_grad_enabled()
        if wanted and (state.trained or any(x.requires_grad for x in inputs)):
            return "gradients are wanted"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on"
        if any(state.hooks):
            return "there are hooks on its layers"
        return None if state.counted else "its weights were made in inference mode"

    def refuse(self, why: str) -> None:
        """Warn, once for each reason, that PyTorch computes."""
        if why not in self.said:
            self.said.add(why)
            warnings.warn(
                f"{self.name} is computed by PyTorch, not by OpenVINO: {why}", stacklevel=4
            )

    def compile(self, shapes: Shapes) -> Any:
        """Return the compiled model for such inputs."""
        kept = self.compiled.pop(shapes, None)
        if kept is None:
            if self.model is None:
                self.model = self.find()
            model = self.model.clone()
            model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            weights = sum(p.nbytes for p in self.network.parameters())
            most = max(FEWEST, min(MANY, BYTES // max(1, weights)))
            while len(self.compiled) >= most:
                self.compiled.popitem(last=False)
            settings = self.engine.settings(self.dtype)
            kept = core().compile_model(model, self.engine.device, settings)
        self.compiled[shapes] = kept  # the last one used
        return kept

    def find(self) -> Any:
        """Return the model for inputs of any shape: from the disk, or converted and kept there."""
        name = self.key()
        file = store.find(name)
        if file is None:
            model = self.convert()
            file = store.keep(name, lambda path: load().save_model(model, path, False))
            if file is None:
                return model
        return core().read_model(file)

    @torch.no_grad()
    def convert(self) -> Any:
        """Convert the network as it is now.

        As ``openvino.convert_model``, without its second trace and its telemetry.
        """
        load()
        decoder = import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
        frontend = import_module("openvino.frontend").FrontEndManager()
        frontend = frontend.load_by_framework("pytorch")
        example = tuple(torch.zeros(shape) for shape in self.example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of branches that all inputs take alike
            traced = torch.jit.trace(self.call.eval(), example, check_trace=False)
            read = decoder(traced, example_input=example, shared_memory=True)
            return frontend.convert(frontend.load(read))

    def key(self) -> str:
        """Return a digest of all that a conversion depends on: versions, code, layers, weights."""
        digest = hashlib.sha256()
        for line in (load().__version__, torch.__version__, *settings_of(self.call)):
            digest.update(f"{line}\n".encode())
        for file in sources(self.call):
            digest.update(file.read_bytes())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(values.numpy()))
        return digest.hexdigest()[:40]


def settings_of(network: nn.Module) -> Iterator[str]:
    """Yield a line for each layer: its place, its class and its settings."""
    for path, layer in network.named_modules():
        own = {
            name: getattr(value, "__qualname__", value)
            for name, value in sorted(vars(layer).items())
            if not name.startswith("_") and (isinstance(value, PLAIN) or inspect.isroutine(value))
        }
        yield f"{path} {type(layer).__module__}.{type(layer).__qualname__} {own}"


def sources(network: nn.Module) -> list[Path]:
    """Return the files of ours that the layers' classes are in, and this one."""
    modules = {type(layer).__module__ for layer in network.modules()} | {__name__}
    files = (inspect.getsourcefile(import_module(name)) for name in modules if name[:4] == "ldm.")
    return sorted(Path(file) for file in files if file is not None)
