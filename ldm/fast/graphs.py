"""Networks recorded as CUDA graphs: one launch of a whole step instead of about 800.

A fast GPU waits for the CPU to launch its kernels: it computes a step of Stable Diffusion 1.5 in a
quarter of the time that the launches take. A graph does the same work in the same order, so its
results are bit-identical.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.fast.cache import READ, Computed
from ldm.fast.recorder import Inputs, Output, Recorder, Recording, tensors_of
from ldm.fast.strips import widest
from ldm.layers import KeysValues
from ldm.memory.networks import AT_ONCE
from ldm.memory.shortage import is_shortage
from ldm.unet import ImagePrompt, Residuals, UNetEncoder
from ldm.vae import AutoencoderKL

# With and without guidance, a last smaller batch, some sizes. They share their memory, so that one
# more costs its inputs and what the driver keeps: by NVIDIA's documentation some 64 KB a launch.
MOST_RECORDINGS = 8
MOST_KINDS = 64  # of calls that are remembered, to record those that come again
MOST_DECODED = 1 << 30  # bytes that a decode that is recorded may take, which the recording holds

PICTURE = "picture "  # before the numbers of what an IP-Adapter gives each block
# Before the numbers of a ControlNet's residuals and of a T2I-Adapter's features among the inputs.
RESIDUAL, FEATURE = "residual ", "feature "

Kind = tuple[object, ...]
EVERY: weakref.WeakSet[Recorded] = weakref.WeakSet()


class Kept:
    """A recording, with what is to be done before a replay."""

    def __init__(self, recording: Recording, read: list[tuple[Any, Computed]]) -> None:
        """read: keys, values and 8-bit weights that are read, but not computed, in a replay."""
        self.recording, self.read = recording, read
        self.given: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    def note(self, name: str, y: Tensor) -> None:
        """Remember which tensor an input is a copy of."""
        if not y.is_inference():  # whose changes PyTorch does not count
            self.given[name] = weakref.ref(y), y._version

    def fill(self, given: Inputs) -> None:
        """Copy those inputs that are not there yet, and renew what follows from them."""
        for name, y in given.items():
            if not self._has(name, y):
                self.recording.inputs[name].copy_(y)
                self.note(name, y)
        for layer, computed in self.read:
            computed.renew(layer)

    def _has(self, name: str, y: Tensor) -> bool:
        known = self.given.get(name)
        if known is None or y.is_inference():
            return False
        tensor, version = known
        return tensor() is y and version == y._version

    def output(self) -> Any:
        """Return a copy of the output, as the next replay writes there."""
        copies = [y.clone() for y in tensors_of(self.recording.output)]
        return copies[0] if torch.is_tensor(self.recording.output) else copies


class Recorded:
    """A network's calls, recorded at the second one of each kind.

    The first one is computed plainly, so that a picture of one step is not slower than without.
    Calls are of one kind if their inputs have the same shapes, strides and dtypes, and the weights
    have not moved in memory: new values in them take effect, moving them records again. Threads
    call one after the other, as a recording has one memory. A copy has no recordings. Where a call
    cannot be recorded, such as for want of memory, there is a warning, and it is computed plainly.
    """

    what = "calls"  # as warnings say it

    def __init__(
        self,
        network: nn.Module,
        record: Callable[[Callable[..., Any], Inputs], Recording] | None = None,
    ) -> None:
        """Record nothing yet. ``record`` can be replaced in tests, without CUDA."""
        self.network, self._given = network, record
        self.record = record or Recorder()
        self.recordings: OrderedDict[Kind, Kept] = OrderedDict()
        self.seen: OrderedDict[Kind, bool] = OrderedDict()  # whether it is to be recorded
        self._one_call = threading.RLock()
        self._weights: list[tuple[dict[str, Any], str]] | None = None
        self._stream: torch.cuda.Stream | None = None  # of the last call
        EVERY.add(self)

    def __reduce__(self) -> tuple[type[Recorded], tuple[object, ...]]:
        """Copy and pickle without the recordings."""
        return type(self), (self.network, self._given)

    def parameters(self) -> Iterator[nn.Parameter]:
        """As ``nn.Module.parameters``."""
        return self.network.parameters()

    @property
    def held(self) -> int:
        """Bytes that the recordings keep from others."""
        return self.record.held if isinstance(self.record, Recorder) else 0

    def forget(self) -> None:
        """Free the recordings; what comes again is recorded again."""
        with self._one_call:
            self.recordings.clear()

    def compute(self, given: Inputs, blocks: Sequence[nn.Module] = ()) -> Any:
        """Return what ``call`` does with these inputs; blocks: those that read pictures."""
        kind = (
            *map(id, blocks),
            *((name, y.shape, y.stride(), y.dtype, y.device) for name, y in given.items()),
            *self._places(),
        )
        with self._one_call:
            self._wait(next(iter(given.values())).device)
            return self._compute(kind, given, list(blocks))

    def call(self, blocks: list[nn.Module], **inputs: Tensor) -> Output:
        """Call the network plainly."""
        raise NotImplementedError

    def _places(self) -> Iterator[int]:
        """Yield where the weights lie. Looked up in their layers' own tables, as that is fast."""
        if self._weights is None:
            self._weights = [
                (module._parameters, name)
                for module in self.network.modules()
                for name, parameter in module._parameters.items()
                if parameter is not None
            ]
        return (layer[name].data_ptr() for layer, name in self._weights)

    def _wait(self, device: torch.device) -> None:
        """Wait on the GPU for the last call, if it was another stream's: they share memory."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            if self._stream is not None and self._stream != stream:
                stream.wait_stream(self._stream)
            self._stream = stream

    def _compute(self, kind: Kind, given: Inputs, blocks: list[nn.Module]) -> Any:
        """Replay a call of this kind, record it, or compute it plainly."""
        kept = self.recordings.pop(kind, None)
        if kept is not None:
            self.recordings[kind] = kept  # the last one used
            kept.fill(given)
            kept.recording.replay()
            return kept.output()
        again = self.seen.pop(kind, None)
        if again:
            try:
                return self._record(kind, given, blocks)
            except RuntimeError as error:
                self._give_up(error)
                again = False
        self.seen[kind] = again is None
        while len(self.seen) > MOST_KINDS:
            self.seen.popitem(last=False)
        return self.call(blocks, **given)

    def _record(self, kind: Kind, given: Inputs, blocks: list[nn.Module]) -> Any:
        while len(self.recordings) >= MOST_RECORDINGS:
            self.recordings.popitem(last=False)
        memory = {name: y.clone() for name, y in given.items()}
        read: list[tuple[Any, Computed]] = []

        def call(**inputs: Tensor) -> Output:
            read.clear()  # the last call is the one recorded
            before = READ.set(read)
            try:
                return self.call(blocks, **inputs)
            finally:
                READ.reset(before)

        recording = self.record(call, memory)
        kept = self.recordings[kind] = Kept(recording, list(read))
        for name, y in given.items():
            kept.note(name, y)
        self.seen[kind] = True  # dropped for others, it is recorded at its next call
        if not recording.computed:
            recording.replay()
        return kept.output()

    def _give_up(self, error: RuntimeError) -> None:
        """Warn that a call is not recorded; for want of memory, free the others."""
        causes = [one for one in (error, error.__context__) if one is not None]
        short = any(is_shortage(one) for one in causes)
        if short:
            self.forget()
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        lines = str(causes[-1]).strip().splitlines() or [type(error).__name__]
        why = "there is too little memory" if short else f"CUDA refused: {lines[0]:.200}"
        warnings.warn(
            f"{self.what} of this size are computed without recording them, slower: {why}",
            stacklevel=5,
        )


class Graphs(Recorded):
    """A U-Net or ControlNet to call in the place of ``unet``, recorded: see ``Recorded``."""

    what = "steps"

    def __init__(
        self,
        unet: UNetEncoder,
        record: Callable[[Callable[..., Any], Inputs], Recording] | None = None,
    ) -> None:
        super().__init__(unet, record)
        self.unet, self.config = unet, unet.config

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        residuals: Residuals | None = None,
        features: Sequence[Tensor] = (),
        image_prompt: ImagePrompt | None = None,
        **conditioning: Tensor | None,
    ) -> Any:
        """As the network's ``forward``, without gradients."""
        given = {"x": x, "t": t} | {
            name: value for name, value in conditioning.items() if value is not None
        }
        if residuals is not None:
            every = [*residuals.skips, residuals.middle]
            given |= {f"{RESIDUAL}{i}": y for i, y in enumerate(every) if y is not None}
        given |= {f"{FEATURE}{i}": y for i, y in enumerate(features)}
        blocks = image_prompt or {}
        given |= {
            f"{PICTURE}{i} {j} {field}": value
            for i, pictures in enumerate(blocks.values())
            for j, picture in enumerate(pictures)
            for field, value in picture._asdict().items()
            if value is not None
        }
        return self.compute(given, list(blocks))

    def call(self, blocks: list[nn.Module], **inputs: Tensor) -> Output:
        """See ``Recorded``."""
        prompt: dict[nn.Module, list[KeysValues]] = {}
        for name in [name for name in inputs if name.startswith(f"{PICTURE}")]:
            i, _, field = name.removeprefix(PICTURE).split()
            pictures, value = prompt.setdefault(blocks[int(i)], []), inputs.pop(name)
            if field == KeysValues._fields[0]:
                pictures.append(KeysValues(value, value))
            pictures[-1] = pictures[-1]._replace(**{field: value})
        more: dict[str, Any] = {"image_prompt": prompt} if prompt else {}
        found = [y for name, y in inputs.items() if name.startswith(RESIDUAL)]
        features = [y for name, y in inputs.items() if name.startswith(FEATURE)]
        numbered = (RESIDUAL, FEATURE)
        options = {name: y for name, y in inputs.items() if not name.startswith(numbered)} | more
        if found:
            options["residuals"] = Residuals(found[:-1], found[-1])
        if features:
            options["features"] = features
        return self.unet(**options)


class DecoderGraphs(Recorded):
    """A VAE's decoder to call in the place of ``vae.decode``, recorded: see ``Recorded``.

    Large pictures are decoded plainly: that takes longer to compute than to launch, so that a
    recording would only hold memory.
    """

    what = "decodes"

    def __init__(
        self,
        vae: AutoencoderKL,
        record: Callable[[Callable[..., Any], Inputs], Recording] | None = None,
    ) -> None:
        super().__init__(vae, record)
        self.vae = vae

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Any:
        """As ``AutoencoderKL.decode``, without gradients."""
        if AT_ONCE * widest(self.vae, z) > MOST_DECODED:
            return self.vae.decode(z)
        return self.compute({"z": z})

    def call(self, blocks: list[nn.Module], **inputs: Tensor) -> Output:
        """See ``Recorded``."""
        return self.vae.decode(**inputs)


def held_by_recordings(device: torch.device) -> int:
    """Count the bytes that recordings keep from others on a device."""
    return sum(graphs.held for graphs in _on(device))


def forget_recordings(device: torch.device) -> bool:
    """Free the memory of all recordings on a device; return whether there were any."""
    found = [graphs for graphs in _on(device) if graphs.recordings]
    for graphs in found:
        graphs.forget()
    if found and device.type == "cuda":
        torch.cuda.empty_cache()
    return bool(found)


def _on(device: torch.device) -> list[Recorded]:
    return [graphs for graphs in list(EVERY) if next(graphs.parameters()).device == device]
