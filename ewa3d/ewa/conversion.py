"""From a plain model to experts and back, on modules and on state dicts."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .experts import Experts, FusedExperts, mean_tensor
from .routed import RoutedExperts

ROUTINGS: dict[str, type[Experts]] = {cls.routing: cls for cls in (Experts, RoutedExperts, FusedExperts)}
FFN_NAMES = ("mlp", "ffn", "feed_forward", "feedforward", "mlp_channels")
_EXPERT_KEY = re.compile(r"^(?P<layer>(?:.+\.)?)experts\.(?P<index>\d+)\.(?P<rest>.+)$")
Weights = Mapping[str, Sequence[float]] | Sequence[float]

Where = Iterable[str] | Callable[[str, nn.Module], bool]
Model = TypeVar("Model", bound=nn.Module)
Init = str | Callable[[nn.Module], None]


def expert_layers(model: nn.Module) -> dict[str, Experts]:
    """The `Experts` layers of a model by name, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Experts)}


def is_routed(model: nn.Module) -> bool:
    """Whether a model has a learned router: then it does not compute what its merged one does."""
    return any(isinstance(layer, RoutedExperts) for layer in expert_layers(model).values())


def find_ffns(model: nn.Module) -> dict[str, nn.Module]:
    """The FFNs of a transformer's blocks by name, in module order.

    A block is a module with a normalisation layer and a token mixer (attention, or a Mixer's token MLP) among its
    children; its FFN is the child named ``mlp``, ``ffn``, ``feed_forward`` or ``mlp_channels``. Helper MLPs, such as
    those that compute relative position biases, have no such siblings and are left out. So are all within the modules
    that the model names in an attribute ``no_experts``: a decoder that serves training only, for example.
    """
    found = {}
    dense = tuple(f"{name}." for name in getattr(model, "no_experts", ()))
    for block_name, block in model.named_modules():
        if f"{block_name}.".startswith(dense):
            continue
        children = dict(block.named_children())
        has_norm = any("norm" in type(child).__name__.lower() for child in children.values())
        for name, child in children.items():
            if name not in FFN_NAMES or isinstance(child, nn.Identity):
                continue
            has_mixer = any(_is_mixer(m) for n, m in children.items() if n != name)
            if has_norm and has_mixer:
                found[f"{block_name}.{name}" if block_name else name] = child
    return found


def _is_mixer(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


def upcycle(
    model: Model,
    num_experts: int = 4,
    *,
    every: int | None = None,
    where: Where | None = None,
    init: Init = "copy",
    routing: str = "random",
    **options: Any,
) -> Model:
    """Turn FFNs of ``model`` into `Experts`, in place.

    Args:
        model: any vision or point-cloud transformer: ours, timm's (ViT, Swin, EVA02, …), your own.
        num_experts: experts a layer, at least 2.
        every: take every ``every``-th of the FFNs: 2 (the default without ``where``) takes the second, fourth, …
        where: which modules are FFNs: their names, or a predicate ``(name, module) -> bool``. Found by `find_ffns`
            where ``None``.
        init: ``copy`` (each expert starts as the FFN, for fine-tuning and from scratch), ``independent`` (the first
            keeps the FFN's weights, the others are initialised anew by the model's own ``_init_weights`` where it has
            one, else by ``reset_parameters``), or a function that initialises the FFN it is given.
        routing: ``random`` (EWA's random uniform partition, `Experts`), ``topk`` (a learned router, `RoutedExperts`) or
            ``fused`` (one FFN by learned weights, `FusedExperts`).
        options: of the layer: for ``topk`` those of `RoutedExperts` (``top_k``, ``shared``, ``capacity_factor``, …).

    Returns:
        The model itself.

    Raises:
        ValueError: ``num_experts`` < 2, an unknown routing or option, ``every`` < 1, experts already present, a name
            that the model does not have, no FFN found, or an FFN that does not act on each token alone, or that is
            within another or shared.
    """
    if num_experts < 2:
        raise ValueError(f"num_experts must be 2 or more, got {num_experts}")
    if present := expert_layers(model):
        raise ValueError(f"the model is upcycled already: {next(iter(present))} is an expert layer; merge it first")
    step = every if every is not None else (2 if where is None else 1)
    if step < 1:
        raise ValueError(f"every must be 1 or more, got {step}")
    candidates = find_ffns(model) if where is None else _select(model, where)
    chosen = dict(list(candidates.items())[step - 1 :: step])
    if not chosen:
        hint = f"{len(candidates)} found, but every={step} passes them over" if candidates else "none found"
        raise ValueError(f"no FFN to upcycle in {type(model).__name__} ({hint}): name them with where=")
    _check_separate(model, chosen)
    for name, ffn in chosen.items():
        _check_tokenwise(name, ffn)
    make_layer = _layer_maker(routing, options)
    initialise = _initialiser(model, init)
    for name, ffn in chosen.items():
        copies = [deepcopy(ffn) for _ in range(num_experts - 1)]
        if initialise is not None:
            for copy in copies:
                initialise(copy)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make_layer([ffn, *copies]).train(ffn.training))
    return model


def merge(model: Model, weights: Weights | None = None) -> Model:
    """A new, plain model in which every `Experts` layer is one FFN with the experts' mean weights.

    Architecture, cost and state-dict keys are those of the model before `upcycle`; ``model`` is left as it is. A model
    whose tokens are dealt at random, or whose experts are fused, computes in eval mode what its merged one does; one
    that routes them does not.

    Args:
        model: with `Experts` layers.
        weights: of the experts, at least 0 and summing to 1: N of them for all layers, or N a layer by its name. Where
            ``None`` all experts count alike, and fused ones by their learned weights.

    Raises:
        ValueError: the model has no expert layers; weights of another number, or that are no convex combination.
    """
    layers = expert_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no expert layers: it is a plain model already")
    shares: Any = weights if isinstance(weights, Mapping) else dict.fromkeys(layers, weights)
    if set(shares) != set(layers):
        raise ValueError(f"weights are needed for {', '.join(layers)}, and given for {', '.join(shares)}")
    for name, layer in layers.items():
        _check_weights(name, layer, shares[name])
    # deepcopy with the layers' merged FFNs put in place by its memo: the N experts are never copied
    memo = {id(layer): layer.merged(shares[name]) for name, layer in layers.items()}
    return deepcopy(model, memo)


def _check_weights(name: str, layer: Experts, weights: Sequence[float] | None) -> None:
    if weights is None:
        return
    values = [float(weight) for weight in weights]
    if len(values) != layer.num_experts:
        raise ValueError(f"{name} has {layer.num_experts} experts, and {len(values)} weights are given")
    if not all(value >= 0 for value in values) or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"the weights of {name} are no convex combination (0 or more, sum 1): {values}")


def merge_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`merge` on a state dict: ``X.experts.0.K``, ``X.experts.1.K``, … become their mean ``X.K``; other keys stay.

    A learned router is left out, a shared expert ``X.shared.K`` counts half, fused experts by ``X.fusion``.

    Raises:
        ValueError: no expert keys, or experts of a layer that differ in number, names or shapes.
    """
    layers = {match["layer"] for match in map(_EXPERT_KEY.match, state) if match}
    if not layers:
        raise ValueError("the state dict has no expert keys (….experts.0.…): it is a plain model's already")
    merged: dict[str, Tensor] = {}
    groups: dict[tuple[str, str], dict[int, Tensor]] = {}
    for key, tensor in state.items():
        if match := _EXPERT_KEY.match(key):
            groups.setdefault((match["layer"], match["rest"]), {})[int(match["index"])] = tensor
            merged.setdefault(match["layer"] + match["rest"], tensor)  # keeps the key's place in the order
        elif not any(key.startswith((f"{layer}router.", f"{layer}shared.", f"{layer}fusion")) for layer in layers):
            merged[key] = tensor
    for (layer, rest), tensors in groups.items():
        if sorted(tensors) != list(range(len(tensors))) or len({t.shape for t in tensors.values()}) > 1:
            raise ValueError(f"the experts of {layer}{rest} are incomplete or differ in shape: {sorted(tensors)}")
        fusion, shared = state.get(f"{layer}fusion"), state.get(f"{layer}shared.{rest}")
        weights = None if fusion is None else fusion.softmax(dim=0)
        mean = mean_tensor([tensors[i] for i in range(len(tensors))], weights)
        merged[layer + rest] = mean if shared is None else torch.lerp(mean, shared, 0.5)
    return merged


def upcycle_state_dict(state: Mapping[str, Tensor], layers: Iterable[str], num_experts: int) -> dict[str, Tensor]:
    """`upcycle` (by copy) on a state dict: ``X.K`` becomes ``X.experts.0.K``, … for every X in ``layers``."""
    names = tuple(layers)
    upcycled: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer = next((name for name in names if key.startswith(f"{name}.")), None)
        if layer is None:
            upcycled[key] = tensor
        else:
            for i in range(num_experts):
                upcycled[f"{layer}.experts.{i}{key[len(layer) :]}"] = tensor.clone()
    return upcycled


def _layer_maker(routing: str, options: Mapping[str, Any]) -> Callable[[list[nn.Module]], Experts]:
    """What makes a layer of FFNs, checked."""
    if routing not in ROUTINGS:
        near = difflib.get_close_matches(routing, ROUTINGS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(ROUTINGS)}"
        raise ValueError(f"unknown routing {routing!r}: {hint}")
    cls: Any = ROUTINGS[routing]
    known = [name for name in inspect.signature(cls).parameters if name != "experts"]
    if unknown := next((name for name in options if name not in known), None):
        hint = f"choose from {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"routing {routing!r} has no option {unknown!r}: {hint}")
    return lambda experts: cls(experts, **options)


def _select(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    modules = {name: module for name, module in model.named_modules() if name}
    if callable(where):
        return {name: module for name, module in modules.items() if where(name, module)}
    names = [where] if isinstance(where, str) else list(where)
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1)
            raise ValueError(f"the model has no module {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    return {name: modules[name] for name in modules if name in set(names)}


def _initialiser(model: nn.Module, init: Init) -> Callable[[nn.Module], None] | None:
    if init == "copy":
        return None
    if callable(init):
        return init
    if init != "independent":
        raise ValueError(f"unknown init {init!r}: choose copy, independent, or pass a function")

    own_rule: Any = getattr(model, "_init_weights", None)

    def initialise(ffn: nn.Module) -> None:
        for module in ffn.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
        if callable(own_rule):
            ffn.apply(own_rule)

    return initialise


def _check_separate(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Refuse FFNs within one another, and one that the model uses in several places: only one would be replaced."""
    for name in chosen:
        if inner := next((other for other in chosen if other.startswith(f"{name}.")), None):
            raise ValueError(f"where= names {name} and {inner} within it: choose one of them")
    for name, module in model.named_modules(remove_duplicate=False):
        if first := next((other for other, ffn in chosen.items() if ffn is module and other != name), None):
            raise ValueError(f"{first} and {name} are one module in two places: leave it dense")


def _check_tokenwise(name: str, ffn: nn.Module) -> None:
    """Refuse an FFN whose output for one token depends on the others: dealt to experts, it would compute otherwise."""
    problem = None
    if "token" in name.rpartition(".")[2]:
        problem = "a token-mixing MLP"
    elif norm := next((m for m in ffn.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None):
        problem = f"{type(norm).__name__} inside uses statistics over tokens"
    elif linear := next((m for m in ffn.modules() if isinstance(m, nn.Linear)), None):
        problem = _probe(ffn, linear)
    elif any(isinstance(m, nn.modules.conv._ConvNd) for m in ffn.modules()):
        problem = "it is made of convolutions"
    if problem:
        raise ValueError(f"{name} ({type(ffn).__name__}) does not act on each token alone ({problem}): leave it dense")


@torch.no_grad()
def _probe(ffn: nn.Module, linear: nn.Linear) -> str | None:
    """Run the FFN on random tokens ``(6, C)`` and on half of them; say what is wrong, or nothing."""
    if linear.weight.is_meta:
        return None
    was_training = {module: module.training for module in ffn.modules()}
    try:
        ffn.eval()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(6, linear.in_features, generator=generator).to(linear.weight)
        together, alone = ffn(tokens), ffn(tokens[1::2])
        if not torch.allclose(together[1::2], alone, rtol=1e-3, atol=1e-4):
            return "its output for a token changes with the other tokens"
    except Exception as error:  # whatever an arbitrary module raises on plain tokens, it cannot be an expert
        return f"it cannot be called on tokens (n, {linear.in_features}): {str(error).splitlines()[0]}"
    finally:
        for module, mode in was_training.items():
            module.training = mode
    return None
