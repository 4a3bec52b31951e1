"""DenoiserSlots: the named denoisers of a switch, and the pipe's attributes that they take."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from flowblend_plugin.denoisers.compatibility import config_mismatches
from flowblend_plugin.denoisers.loading import denoiser_name, load_denoiser
from flowblend_plugin.denoisers.offloading import is_placed
from flowblend_plugin.errors import PairMismatchError, SwitchError
from flowblend_plugin.stages import EXTRAPOLATED

Source = nn.Module | str | os.PathLike[str]
Denoiser = Source | Sequence[Source]
DenoiserSlots = dict[str, nn.Module]
"""A pipe's denoiser attributes, each with the module that is to sit there."""

_SECOND_EXPERT = "transformer_2"


def all_denoisers(
    small: Denoiser | None, denoisers: Mapping[str, Denoiser] | None
) -> dict[str, Denoiser]:
    """Collect the further denoisers by name.

    Raises:
        SwitchError: The small one was given twice.
    """
    given = dict(denoisers or {})
    if small is not None and "small" in given:
        raise SwitchError("the small denoiser was given twice: as small= and in denoisers=")
    return given if small is None else {"small": small, **given}


def own_slots(pipe: Any) -> DenoiserSlots:
    """Find the pipe's own denoiser; for Wan 2.2 ``transformer`` and ``transformer_2``, or one.

    Raises:
        SwitchError: The pipeline has no denoiser, or another pipeline inside it runs that.
    """
    names = dict.fromkeys((denoiser_name(pipe), _SECOND_EXPERT))
    found = {n: getattr(pipe, n) for n in names if isinstance(getattr(pipe, n, None), nn.Module)}
    for name, part in vars(pipe).items():
        inner = (
            [getattr(part, n, None) for n in found] if isinstance(part, DiffusionPipeline) else []
        )
        if any(module in found.values() for module in inner):
            raise SwitchError(
                f"{type(pipe).__name__} has its steps run by another pipeline, in pipe.{name}: "
                f"attach the switch to pipe.{name}"
            )
    return found


def followed(slots: Mapping[str, DenoiserSlots]) -> dict[nn.Module, nn.Module]:
    """Give each further denoiser the one of the pipe's own whose place it takes.

    Args:
        slots: Role -> its denoisers; ``"large"`` is the pipe's own.
    """
    own = slots["large"]
    found: dict[nn.Module, nn.Module] = {}
    for denoisers in slots.values():
        for name, module in denoisers.items():
            if module not in own.values():
                found.setdefault(module, own[name])
    return found


def place(pipe: Any, name: str, denoiser: Denoiser, own: DenoiserSlots) -> DenoiserSlots:
    """Load a denoiser where it is a folder or a Hub id, check it, and say where it goes.

    Args:
        pipe: The pipeline.
        name: The denoiser's name, for errors.
        denoiser: One denoiser, which takes every place of ``own``, or one for each place in order.
        own: The pipe's own denoisers, which the denoiser has to fit.

    Raises:
        PairMismatchError: It doesn't fit; every mismatch is listed.
        SwitchError: The number of denoisers is neither one nor that of the places.
    """
    given = list(denoiser) if isinstance(denoiser, (list, tuple)) else [denoiser]
    if len(given) not in (1, len(own)):
        places = " and ".join(own)
        raise SwitchError(
            f"denoiser {name!r} has {len(given)} modules: give one, or one for each of {places}"
        )
    vae_config = getattr(getattr(pipe, "vae", None), "config", None)
    modules: list[nn.Module] = []
    for source, (attribute, large) in zip(given, own.items(), strict=False):
        if isinstance(source, (str, os.PathLike)):
            source = load_denoiser(source, uncompiled(large), attribute, vae_config)
        elif not isinstance(source, nn.Module):
            raise SwitchError(
                f"denoiser {name!r} is {type(source).__name__}: expected a module, a folder or a "
                "Hub id"
            )
        modules.append(source)
    if len(modules) == 1:
        modules *= len(own)
    for module, large in zip(modules, own.values(), strict=True):
        check_pair(uncompiled(large), uncompiled(module))
    return dict(zip(own, modules, strict=True))


def check_names(denoisers: Mapping[str, Denoiser], roles: Sequence[str]) -> None:
    """Check that every stage's denoiser was given, and that no name is taken.

    Raises:
        SwitchError: It wasn't, or a denoiser is named ``large``, which is the pipe's own, or
            ``extrapolated``; or the letter E may have been meant for one.
    """
    if "large" in denoisers:
        raise SwitchError("'large' is the pipe's own denoiser: give the others other names")
    if EXTRAPOLATED in denoisers:
        raise SwitchError(
            f"{EXTRAPOLATED!r} steps are those that no denoiser runs: give this one another name"
        )
    meant = [name for name in denoisers if name[:1].upper() == "E" and name not in roles]
    if EXTRAPOLATED in roles and meant:
        raise SwitchError(
            f"the stages have {EXTRAPOLATED} steps (E in a stage string) and never use the "
            f"denoiser {meant[0]!r}: rename it, or leave it out"
        )
    missing = [role for role in roles if role not in ("large", EXTRAPOLATED, *denoisers)]
    if missing:
        how = "small=" if missing == ["small"] else "denoisers={...}"
        raise SwitchError(
            f"the stages use the denoiser{'s' * (len(missing) > 1)} {', '.join(missing)}, which "
            f"{'was' if len(missing) == 1 else 'were'} not given: pass {how}"
        )


def uncompiled(module: nn.Module) -> Any:
    """Give the module itself, where ``torch.compile`` wrapped it."""
    return getattr(module, "_orig_mod", module)


def check_pair(large: nn.Module, small: nn.Module) -> None:
    """Check that two loaded denoisers can take turns.

    Raises:
        PairMismatchError: They can't; every mismatch is listed.
    """
    found = _mismatches(large, small)
    found += [f"{what}; move the small one with .to(...)" for what in _apart(large, small)]
    if found:
        raise PairMismatchError(type(large).__name__, type(small).__name__, tuple(found))


def _mismatches(large: nn.Module, small: nn.Module) -> list[str]:
    return list(config_mismatches(_config(large), _config(small)))


def _config(module: Any) -> dict[str, Any]:
    """A denoiser's config, with what an IP-Adapter sets in its attributes alone."""
    config = module.config
    found = {key: getattr(config, key, value) for key, value in config.items()}
    return {**found, "_class_name": type(module).__name__}


def _apart(large: Any, small: Any) -> list[str]:
    """Say in what two denoisers' weights are kept apart, where that is for the user to say."""
    comparable = []
    if not (_is_quantized(large) or _is_quantized(small)):
        comparable.append("dtype")
    if not (is_placed(large) or is_placed(small)):  # otherwise hooks bring it to its device
        comparable.append("device")
    pairs = ((what, getattr(large, what), getattr(small, what)) for what in comparable)
    return [f"{what}: large {a}, small {b}" for what, a, b in pairs if a != b]


def check_storage(slots: Mapping[str, DenoiserSlots], roles: Sequence[str]) -> None:
    """Check that the pipe's own denoiser wasn't moved, cast or changed away from the others since.

    Args:
        slots: Role -> its denoisers; ``"large"`` is the pipe's own.
        roles: Those that the trajectory runs.

    Raises:
        SwitchError: It was.
    """
    for role in roles:
        for name, module in slots.get(role, {}).items():
            large = slots["large"][name]
            if module is large:
                continue
            pair = uncompiled(large), uncompiled(module)
            if changed := _mismatches(*pair):
                raise SwitchError(
                    f"the {role} denoiser doesn't fit the pipe's own any more: "
                    f"{'; '.join(changed)}. Load what changes a denoiser, such as an IP-Adapter, "
                    "into both"
                )
            if found := _apart(*pair):
                raise SwitchError(
                    f"the {role} denoiser isn't where and what the pipe's own is any more: "
                    f"{'; '.join(found)}. Call pipe.to(...) before the switch is attached, or move "
                    f"the {role} one too, with .to(...)"
                )


def check_present(pipe: Any, slots: Mapping[str, DenoiserSlots]) -> None:
    """Check that nobody has replaced a denoiser in the pipe.

    Args:
        pipe: The pipeline.
        slots: Role -> its denoisers, of which one role's may be there.

    Raises:
        SwitchError: There is another.
    """
    for name in next(iter(slots.values())):
        present = getattr(pipe, name, None)
        if all(present is not denoisers[name] for denoisers in slots.values()):
            raise SwitchError(
                f"pipe.{name} was replaced while the switch was attached, by a "
                f"{type(present).__name__} that it didn't put there: load, compile and set the "
                "pipe's denoiser first, then attach the switch"
            )


def _is_quantized(module: nn.Module) -> bool:
    return getattr(module, "hf_quantizer", None) is not None


# Per pipe its switch, its own denoisers, and the others: a switch may be forgotten while one of
# them is installed.
_Others = weakref.WeakSet[nn.Module]
_attached: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Any], DenoiserSlots, _Others]] = (
    weakref.WeakKeyDictionary()
)


def note_switch(pipe: Any, switch: Any, slots: Mapping[str, DenoiserSlots]) -> None:
    """Note that a switch is attached to a pipe with these denoisers, ``"large"`` its own."""
    others = weakref.WeakSet(followed(slots))
    _attached[pipe] = (weakref.ref(switch), slots["large"], others)


def forget_switch(pipe: Any) -> None:
    """Note that a pipe's switch was detached."""
    del _attached[pipe]


def living_switch(pipe: Any) -> Any:
    """Find the switch that is attached to a pipe; None where there is none, or nobody holds it."""
    entry = _attached.get(pipe)
    return entry[0]() if entry is not None else None


def take_back(pipe: Any) -> DenoiserSlots:
    """Find a pipe's own denoisers, after a switch that was forgotten in mid-trajectory, too.

    Raises:
        SwitchError: The pipe has a switch, or no denoiser.
    """
    if living_switch(pipe) is not None:
        raise SwitchError(
            "this pipe has a DenoiserSwitch already: leave its with block, or detach() it, before "
            "attaching another"
        )
    found = own_slots(pipe)
    entry = _attached.pop(pipe, None)
    if entry is None:
        return found
    for name, module in entry[1].items():
        if getattr(pipe, name) in entry[2]:  # otherwise the user has set another since
            setattr(pipe, name, module)
    return own_slots(pipe)
