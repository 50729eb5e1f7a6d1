"""Many members of one architecture as one program: stacked parameters and `torch.func.vmap`."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from companion.errors import CompanionError


class _Host(nn.Module):
    """Runs a function on a module while `functional_call` has swapped that module's tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.module, *arguments)


class Ensemble(nn.Module):
    """Members of equal architecture, every parameter stacked as `[members, ...]`.

    Raises CompanionError for members that differ in more than their tensors, and for layers that
    `vmap` cannot run faithfully: running statistics (updated in place), dropout (draws its own noise).
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        if not modules:
            raise CompanionError("an Ensemble needs at least one member")
        for module in modules:
            _check_layers(module)
            _check_alike(modules[0], module)
        parameters, buffers = stack_module_state(list(modules))
        template = copy.deepcopy(modules[0])
        stacked: dict[int, Tensor] = {}
        for name, weight in template.named_parameters():
            stacked[id(weight)] = nn.Parameter(parameters[name].detach(), requires_grad=weight.requires_grad)
        for name, buffer in template.named_buffers():
            stacked[id(buffer)] = buffers[name].detach()
        _replace(template, lambda tensor: stacked[id(tensor)])
        self._host = _Host(template)
        self._members = len(modules)

    def __len__(self) -> int:
        return self._members

    def call(self, function: Callable[..., Any], *stacked: Any) -> Any:
        """Return `function(member, *arguments)` of every member, its tensors stacked as `[members, ...]`.

        `member` is the module itself with that member's tensors in place: its methods and attributes work,
        and so do `torch.func.vjp`, `grad`, `jacrev`. Tensors in `stacked` are `[members, ...]` (any pytree);
        what all members share belongs in the closure. `function` returns tensors and draws no noise.
        """
        state = {**dict(self._host.named_parameters()), **dict(self._host.named_buffers())}
        # A leaf that is no tensor (None for "no noise here") is the same for every member.
        dims = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, stacked)

        def one(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            return functional_call(self._host, tensors, (function, *arguments))

        return vmap(one, in_dims=(0, *dims))(state, *stacked)

    def member(self, index: int) -> nn.Module:
        """Return a copy of one member as an ordinary module. Raises CompanionError where there is none."""
        if not 0 <= index < len(self):
            raise CompanionError(f"member {index} of an ensemble of {len(self)}: count from 0 to {len(self) - 1}")
        module = copy.deepcopy(self._host.module)
        slices: dict[int, Tensor] = {}

        def pick(tensor: Tensor) -> Tensor:
            if id(tensor) not in slices:
                own = tensor.detach()[index].clone()
                parameter = isinstance(tensor, nn.Parameter)
                slices[id(tensor)] = nn.Parameter(own, requires_grad=tensor.requires_grad) if parameter else own
            return slices[id(tensor)]

        _replace(module, pick)
        return module

    def clip_gradients(self, limit: float) -> None:
        """Scale each member's gradient to an L2 norm of at most `limit`, as `clip_grad_norm_` does alone."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients]  # also of scalars
        total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        scale = (limit / (total + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _replace(module: nn.Module, tensor_for: Callable[[Tensor], Tensor]) -> None:
    # Shared (tied) tensors stay shared: `tensor_for` is asked for each name and answers by identity.
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = tensor_for(tensor)  # type: ignore[assignment]


def _check_layers(module: nn.Module) -> None:
    for name, part in module.named_modules():
        layer = f"layer '{name}' ({type(part).__name__})"
        if isinstance(part, _NormBase) and part.track_running_stats:
            raise CompanionError(
                f"{layer} keeps running statistics, which an Ensemble cannot update: "
                "use track_running_stats=False, GroupNorm or LayerNorm"
            )
        if isinstance(part, _DropoutNd) and part.p > 0:
            raise CompanionError(
                f"{layer} draws its own noise, which an Ensemble cannot give to each member: "
                "draw the mask in `noise` and use it in the loss"
            )


def _check_alike(first: nn.Module, other: nn.Module) -> None:
    parts, others = dict(first.named_modules()), dict(other.named_modules())
    if {name: type(part) for name, part in parts.items()} != {name: type(part) for name, part in others.items()}:
        raise CompanionError("the members of an Ensemble must have the same layers; train other architectures apart")
    for name, part in parts.items():
        mine, theirs = _settings(part), _settings(others[name])
        for key in mine.keys() | theirs.keys():
            if mine.get(key) != theirs.get(key):
                raise CompanionError(
                    f"members of the Ensemble differ in '{name + '.' if name else ''}{key}' "
                    f"({mine.get(key)} and {theirs.get(key)}); pass what differs through `hyper`"
                )


def _settings(module: nn.Module) -> dict[str, Any]:
    """What makes a layer besides its stacked values: attributes, functions by their code, shapes."""
    settings = {name: _comparable(value) for name, value in vars(module).items() if name not in _TENSORS_AND_HOOKS}
    for name, tensor in {**module._parameters, **module._buffers}.items():
        settings[name] = tensor if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
    return settings


_TENSORS_AND_HOOKS = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}


def _comparable(value: Any) -> Any:
    """Return what two attributes that do the same have in common: members would all use the first one's."""
    if isinstance(value, nn.Module):
        return None  # compared by itself
    if isinstance(value, int | float | str | None):
        return value
    if isinstance(value, tuple | list):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, Tensor):  # neither parameter nor buffer
        return value.tolist()
    if isinstance(value, partial):
        return [_comparable(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    if isinstance(value, MethodType):
        return [_comparable(value.__func__), _comparable(value.__self__)]
    if hasattr(value, "__code__"):  # two lambdas have one name
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [value.__defaults__ or (), value.__kwdefaults__ or {}]
        return value.__qualname__, value.__code__, _comparable([cells, *defaults])
    if isinstance(value, torch.dtype | torch.device | bytes | complex | set | frozenset | range | slice):
        return value
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    return type(value).__name__, _comparable(getattr(value, "__dict__", {}))
