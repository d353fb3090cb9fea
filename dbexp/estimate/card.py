"""A card that is not there: what runs on it is looked at, and nothing is computed. No GPU and no native code is needed.

Inside the block of a `PretendedCard`, a tensor on `cuda` is one of torch's meta tensors, which have shapes and no
numbers, while tensors on the CPU are real. So the package's own code runs as it would on a card, backward pass and
optimizer included, and one sees its operations and their precisions, the memory of their results, and each place where
the host waits for the card. Small tensors that came from the host keep their numbers, for code that branches on them;
whatever else is read back from the card is random.

Torch's private parts, and what depends on them, are all in this file. Checked with torch 2.15.0: `TorchDispatchMode`
(torch.utils._python_dispatch), which sees every operation; `torch._C._nn.scaled_dot_product_attention` and the kernels
that a card chooses for it; `torch.autograd._engine_run_backward`; what `torch.utils.checkpoint` compares; which devices
`torch.utils._foreach_utils` knows; `torch.cuda._lazy_init`.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace, TracebackType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils, checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from dbexp.core.device import temporary_state
from dbexp.estimate.operation import (
    LAYOUT_ONLY,
    META,
    WRITES_ALONE,
    Operation,
    aten,
    counts_flops,
    description,
    is_view,
    made_of,
    shapes,
    signature_of,
    tensors_in,
    writes_first,
)

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_BLOCK = 512
"""Bytes that torch's allocator rounds a tensor up to."""
_PAGEABLE = 1 << 16
"""Bytes up to which a copy from memory that is not pinned returns before it is done, if it may."""
_REMEMBERED = 1 << 16
"""Numbers of a tensor up to which they are kept, if they are known."""
_WIDEST_HEAD = 256
"""Of flash attention."""

_STREAM = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: None, wait_stream=lambda _: None)


class PretendedCard:
    """A context manager, see above.

    Args:
        name: as CUDA tells it.
        memory: bytes.
        capability: of compute; below (8, 0) it has no bf16.

    Attributes:
        operations: how often each was launched.
        waits: (what made the host wait, file and function) -> how often.
        allocated, peak: bytes of tensors on it, now and at most.
    """

    def __init__(self, name: str = "a pretended card", memory: int = 80 << 30, capability: tuple[int, int] = (9, 0)):
        self.name, self.memory, self.capability = name, memory, capability
        self.operations: Counter[Operation] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.allocated = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._pinned: dict[int, Tensor] = {}
        self._random = torch.Generator().manual_seed(0)
        self._names, self._launches = _Names(self), _Launches(self)
        self._paused = False
        self._block: ExitStack | None = None

    def __enter__(self) -> PretendedCard:
        with ExitStack() as stack:
            for name, value in self._cuda().items():
                stack.enter_context(patch.object(torch.cuda, name, value))
            stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", self._run_backward))
            many = [*_foreach_utils._get_foreach_kernels_supported_devices(), META.type]
            stack.enter_context(patch.object(_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: many))
            stack.enter_context(patch.dict(checkpoint._allowed_determinism_checks_to_fns, {"default": _looks}))
            stack.enter_context(patch.object(torch.accelerator, "current_stream", lambda *_: _STREAM))
            stack.enter_context(temporary_state())
            stack.enter_context(self._launches)
            stack.enter_context(self._names)
            self._block = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._block is not None
        self._block.__exit__(kind, error, at)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block meta tensors are meta tensors: for code that makes models without weights by them."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _run_backward(self, *args: Any, **kwargs: Any) -> Any:
        """The backward pass, in which what is computed again sees the same card as before."""
        with self._names:
            return _RUN_BACKWARD(*args, **kwargs)

    def forget(self) -> None:
        """Count operations and waits anew."""
        self.operations.clear()
        self.waits.clear()

    def _cuda(self) -> dict[str, Any]:
        """What `torch.cuda` says of it."""
        major, minor = self.capability
        properties = SimpleNamespace(
            name=self.name, total_memory=self.memory, major=major, minor=minor, multi_processor_count=132
        )

        def reset(*_: Any) -> None:
            self.peak = self.allocated

        return {
            "is_available": lambda: True,
            "is_initialized": lambda: False,
            "is_bf16_supported": lambda *_: self.capability >= (8, 0),
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda *_: None,
            "get_device_name": lambda *_: self.name,
            "get_device_capability": lambda *_: self.capability,
            "get_device_properties": lambda *_: properties,
            "mem_get_info": lambda *_: (self.memory - self.allocated, self.memory),
            "memory_allocated": lambda *_: self.allocated,
            "memory_reserved": lambda *_: self.allocated,
            "max_memory_allocated": lambda *_: self.peak,
            "max_memory_reserved": lambda *_: self.peak,
            "reset_peak_memory_stats": reset,
            "empty_cache": lambda: None,
            "ipc_collect": lambda: None,
            "synchronize": lambda *_: self.wait("synchronize"),
            "Event": lambda **_: SimpleNamespace(
                record=lambda *_: None, query=lambda: True, synchronize=lambda: self.wait("an event")
            ),
            "current_stream": lambda *_: _STREAM,
            "is_current_stream_capturing": lambda: False,
            "_lazy_init": lambda: None,
        }

    # -- what was seen ----------------------------------------------------------------------------------------------

    def wait(self, why: str) -> None:
        """Note that the host waits for the card."""
        self.waits[why, _place()] += 1

    def note(self, func: Any, args: Any, kwargs: Any, read: Sequence[Tensor], out: Any) -> Operation | None:
        """Note an operation, and the memory of what it made; None: it is none for the card."""
        made = [tensor for tensor in tensors_in((out,)) if tensor.device == META]
        for tensor in made:
            self._track(tensor)
        if func in LAYOUT_ONLY or is_view(func):
            return None
        flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) if counts_flops(func) else 0
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
        operation = Operation(str(func), shapes(read), shapes(made), moved, int(flops))
        self.operations[operation] += 1
        return operation

    def note_again(self, operation: Operation, out: Any) -> None:
        """The same for one that was told of before."""
        for tensor in tensors_in((out,)):
            self._track(tensor)
        self.operations[operation] += 1

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self.allocated += self._sizes[key]
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.allocated -= self._sizes.pop(key, 0)

    # -- between host and card --------------------------------------------------------------------------------------

    def pin(self, tensor: Tensor) -> Tensor:
        """Memory that a copy to the card need not wait for."""
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it is such memory."""
        return tensor.device == CPU and tensor.untyped_storage().data_ptr() in self._pinned

    def arrives(self, host: Tensor, card: Tensor, non_blocking: bool) -> None:
        """A tensor of the host is copied to the card."""
        if not self.is_pinned(host) and (not non_blocking or host.nbytes > _PAGEABLE):
            self.wait("copy to the card")
        if host.numel() <= _REMEMBERED:
            _remember(card, host.detach().to(card.dtype, copy=True))

    def numbers(self, card: Tensor) -> Tensor:
        """What the host reads of a tensor on the card: its numbers where they are known, else random ones."""
        known = _known(card)
        if known is not None:
            return known.clone()
        if card.dtype.is_floating_point:
            return (torch.rand(card.shape, generator=self._random) * 0.8 + 0.1).to(card.dtype)
        return torch.ones(card.shape, dtype=card.dtype)


# -- what Python code sees --------------------------------------------------------------------------------------------


class _Names(TorchFunctionMode):
    """Calls meta tensors `cuda`, and asks torch for meta tensors where `cuda` is asked for."""

    def __init__(self, card: PretendedCard) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._card._paused or func is torch.device:
            return func(*args, **kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _lists_to_tensors(args[1]), *args[2:])
        if func in _ANSWERS:
            return _ANSWERS[func](self._card, *args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": CPU}).to(META)
        if kwargs.pop("pin_memory", False):
            return self._card.pin(func(*args, **kwargs))
        args = tuple(map(_real_device, args))
        return func(*args, **{name: _real_device(value) for name, value in kwargs.items()})


def _looks(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """What a tensor that is computed again must have in common with the first: not what its device is called, which
    depends on whether Python or torch asks."""
    return tensor.shape, tensor.dtype


def _lists_to_tensors(index: Any) -> Any:
    """An index whose lists are tensors of the host, as they become on the way to a card."""
    if isinstance(index, tuple):
        return tuple(map(_lists_to_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _real_device(value: Any) -> Any:
    return META if _is_cuda(value) else value


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.partition(":")[0] == "cuda"
    )


def _device(card: PretendedCard, tensor: Tensor) -> torch.device:
    return CUDA if tensor.is_meta else tensor.device


def _attention(
    card: PretendedCard,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the kernel that a card has for it: flash where it can, else the one that saves memory too."""
    if not query.is_meta:
        same = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        return _SDPA(query, key, value, **same, enable_gqa=enable_gqa)  # type: ignore[no-any-return]  # it is untyped
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    if query.dtype.itemsize == 2 and attn_mask is None and query.shape[-1] <= _WIDEST_HEAD:
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
    else:
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
            attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        saved = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, saved, dropout_p, is_causal, scale=scale
        )
    attended: Tensor = out[0]
    return attended


_RUN_BACKWARD: Any = torch.autograd._engine_run_backward  # type: ignore[attr-defined]  # a private function
_SDPA: Any = torch._C._nn.scaled_dot_product_attention
_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.device.__get__: _device,
    torch.Tensor.is_cuda.__get__: lambda card, tensor: tensor.is_meta,  # type: ignore[attr-defined]  # likewise
    torch.Tensor.is_meta.__get__: lambda card, tensor: False,  # type: ignore[attr-defined]  # likewise
    torch.Tensor.cuda: lambda card, tensor, *_, **__: tensor.to(META),
    torch.Tensor.pin_memory: lambda card, tensor, *_: card.pin(tensor),
    torch.Tensor.is_pinned: lambda card, tensor, *_: card.is_pinned(tensor),
    _SDPA: _attention,
}


# -- what is launched -------------------------------------------------------------------------------------------------


_SEEN: dict[Any, tuple[Any, Operation]] = {}
"""Signature -> what it made, see `description`. Torch computes shapes in Python, which takes longer than anything else
here; there are some thousand different ones in all that is ever looked at."""


class _Launches(TorchDispatchMode):
    """Sees every operation below autograd."""

    def __init__(self, card: PretendedCard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self._card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._card._paused:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        card = self._card
        tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
        there = [tensor for tensor in tensors if tensor.device == META]
        here = [tensor for tensor in tensors if tensor.device != META]
        device = kwargs.get("device")
        if not there and device != META:
            return func(*args, **kwargs)
        if _is_made_of_others(func):  # comes so in inference mode; otherwise autograd has taken it apart before
            with self:
                return func.decompose(*args, **kwargs)
        if func in _READS and there:
            return _READS[func](card, *args, **kwargs)
        if func is aten._to_copy.default and there and device == CPU:
            if not kwargs.get("non_blocking"):
                card.wait("copy to the host")
            return card.numbers(there[0]).to(kwargs.get("dtype") or there[0].dtype)
        if func is aten.copy_.default and args[0].device != META:
            if not (len(args) > 2 and args[2] and card.is_pinned(args[0])):
                card.wait("copy to the host")
            return args[0].copy_(card.numbers(args[1]))
        if func is aten.index.Tensor:
            args = (args[0], [index for each in args[1] for index in self._indices(each)])
        elif func in (aten.index_put_.default, aten.index_put.default):
            args = (args[0], [index for each in args[1] for index in self._indices(each)], *args[2:])
        elif func not in (aten._to_copy.default, aten.copy_.default) and any(tensor.dim() for tensor in here):
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
        signature = None if here else signature_of(func, args, kwargs)
        if signature in _SEEN:
            spec, operation = _SEEN[signature]
            out: Any = args[0] if writes_first(func) else made_of(spec)
            if there:
                _follow(func, args, kwargs, tensors, out)
            card.note_again(operation, out)
            return out
        out = None if func in WRITES_ALONE else func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default) and here:
            waits_not = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
            card.arrives(here[0], out, bool(waits_not))
        elif there or here:
            _follow(func, args, kwargs, tensors, out)
        noted = card.note(func, args, kwargs, there, out)
        if signature is not None and noted is not None and all(each.device == META for each in tensors_in((out,))):
            _SEEN[signature] = description(out), noted
        return out

    def _indices(self, index: Tensor | None) -> list[Tensor | None]:
        """An index that is on the card; a mask as the places that it marks, an index for each of its dimensions."""
        if index is None:
            return [None]
        mask, here = index.dtype == torch.bool, index.device != META
        if mask or here:
            self._card.wait("index by a mask" if mask else "index by numbers of the host")
        if not mask:
            return [index.to(META)]
        known = index if here else _known(index)
        count = index.numel() if known is None else int(known.sum())
        return [torch.empty(count, dtype=torch.int64, device=META) for _ in index.shape]


def _item(card: PretendedCard, tensor: Tensor) -> Any:
    card.wait("a number is read")
    return card.numbers(tensor).reshape(()).item()


def _nonzero(card: PretendedCard, tensor: Tensor) -> Tensor:
    card.wait("places that are not zero")
    places = card.numbers(tensor).nonzero()
    found = torch.empty(places.shape, dtype=places.dtype, device=META)
    _remember(found, places)
    card.note(aten.nonzero.default, (tensor,), {}, [tensor], found)
    return found


def _equal(card: PretendedCard, one: Tensor, other: Tensor) -> bool:
    card.wait("tensors are compared")
    return one.shape == other.shape


_READS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _item,
    aten.nonzero.default: _nonzero,
    aten.equal.default: _equal,
}


def _known(tensor: Tensor) -> Tensor | None:
    """The numbers of a tensor on the card, if they are known."""
    known: Tensor | None = getattr(tensor, "known_numbers", None)
    return known


def _remember(tensor: Tensor, numbers: Tensor) -> None:
    tensor.known_numbers = numbers  # type: ignore[attr-defined]  # tensors take attributes, and keep them


def _follow(func: Any, args: Any, kwargs: dict[str, Any], tensors: Sequence[Tensor], out: Any) -> None:
    """Do an operation with the numbers too, where those of all its tensors are known and few."""
    made = list(tensors_in((out,)))
    if not made or sum(tensor.numel() for tensor in made) > _REMEMBERED:
        return
    numbers = [tensor if tensor.device != META else _known(tensor) for tensor in tensors]
    if any(known is None for known in numbers):
        for tensor in made:  # written over by what nobody knows
            vars(tensor).pop("known_numbers", None)
        return
    of = dict(zip(map(id, tensors), numbers, strict=True))
    args, kwargs = tree_map(lambda value: of.get(id(value), value), (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = CPU
    for tensor, known in zip(made, tensors_in((func(*args, **kwargs),)), strict=True):
        _remember(tensor, known)


@cache
def _is_made_of_others(func: Any) -> bool:
    has: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has(func.name(), "CompositeImplicitAutograd") and not has(func.name(), "Meta"))


def _place() -> str:
    """File and function of the package that called torch, or else of whoever did."""
    frame, outer = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if "/dbexp/" in name and name != __file__:
            return f"{name.rpartition('/dbexp/')[2]} {frame.f_code.co_name}"
        if not outer and "/torch/" not in name and name != __file__:
            outer = f"{name.rpartition('/site-packages/')[2]} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return outer
