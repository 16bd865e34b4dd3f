"""Finding and loading what other packages bring: backends, op packs and models.

Backends are loaded by name for --device; a listing walks all of them one by one and keeps each
failure, because one package that cannot be imported must not stop the others. Core holds no list
of them.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from inferplane import env
from inferplane.errors import DeviceError, InferplaneError, PluginError
from inferplane.hw import hookspecs
from inferplane.hw.device import BackendInfo, Device, DeviceInfo, Unavailable
from inferplane.hw.graphs import Compiler
from inferplane.hw.ops import TABLE
from inferplane.hw.version import CONTRACT, negotiate

log = logging.getLogger(__name__)

BACKENDS = "inferplane.backends"
OPS = "inferplane.ops"
MODELS = "inferplane.models"


@dataclass(slots=True)
class Loaded:
    """One backend or op pack, or why it could not be loaded."""

    name: str
    group: str
    package: str = ""
    module: Any = None
    info: BackendInfo | None = None
    failure: str = ""
    note: str = ""


@dataclass(slots=True)
class Probed:
    """What one backend found on this machine."""

    backend: Loaded
    devices: list[DeviceInfo] = field(default_factory=list)
    unavailable: Unavailable | None = None
    failure: str = ""

    def line(self, not_chosen: str = "") -> str:
        version = self.backend.info.version if self.backend.info else ""
        head = f"  {self.backend.name:<8} {version:<8}"
        if self.backend.failure or self.failure:
            return f"{head} FAILED {self.backend.failure or self.failure}"
        if self.unavailable:
            found = self.unavailable
            return f"{head} Unavailable[{found.code}]: {found.reason}   fix: {found.fix}"
        return f"{head} available: " + ", ".join(d.name for d in self.devices) + not_chosen


class Plugins:
    """The packages of this process. One instance lives as long as the engine."""

    def __init__(self) -> None:
        env.disable_device_autoload()
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._loaded: dict[tuple[str, str], Loaded] = {}

    def register(self, name: str, module: Any, group: str = BACKENDS, package: str = "") -> Loaded:
        """Add a plugin that no entry point names, as tests do. Raises PluginError."""
        loaded = Loaded(name=name, group=group, package=package, module=module)
        try:
            self.manager.register(module, name=f"{group}:{name}")
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name}: {error}") from error
        try:
            self._check(loaded)
        except PluginError:
            self.manager.unregister(module)
            raise
        self._loaded[group, name] = loaded
        return loaded

    def _check(self, loaded: Loaded) -> None:
        """Required hooks, contract version, and no hook that does not exist."""
        have = {caller.name for caller in self.manager.get_hookcallers(loaded.module) or ()}
        required = hookspecs.MANDATORY if loaded.group == BACKENDS else ("op_impls",)
        unknown = sorted(have - set(hookspecs.ALL))
        missing = [name for name in required if name not in have]
        if missing:
            also = f", and has {unknown}, which no host calls" if unknown else ""
            kind = "backend" if loaded.group == BACKENDS else "op pack"
            raise PluginError(f"{kind} {loaded.name} lacks the required hooks {missing}{also}")
        if loaded.group == BACKENDS:
            loaded.info = info = self._info(loaded)
            name = f"backend {loaded.name} {info.version}"
            _, loaded.note = negotiate(name, *info.api)
        if unknown and loaded.note:  # made for a newer contract
            loaded.note += f" ({', '.join(unknown)} ignored)"
        elif unknown:
            raise PluginError(
                f"plugin {loaded.name} has unknown hooks {unknown}: "
                f"the hooks are {', '.join(hookspecs.ALL)}"
            )

    def _info(self, loaded: Loaded) -> BackendInfo:
        try:
            info = self.call("backend_info", loaded)
        except Exception as error:
            raise PluginError(
                f"backend {loaded.name}: backend_info: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(info, BackendInfo):
            raise PluginError(
                f"backend {loaded.name}: backend_info returned {info!r}, not a BackendInfo"
            )
        return info

    def call(self, hook: str, loaded: Loaded, **arguments: Any) -> Any:
        """Call a hook of one plugin only."""
        others = [p for p in self.manager.get_plugins() if p is not loaded.module]
        return self.manager.subset_hook_caller(hook, remove_plugins=others)(**arguments)

    def load(self, group: str, name: str) -> Loaded:
        """One plugin by name. Raises PluginError if it is missing or broken."""
        if (group, name) in self._loaded:
            return self._loaded[group, name]
        points = [p for p in entry_points(group=group) if p.name == name]
        if not points:
            raise PluginError(f"no {group} plugin named {name!r} is installed")
        try:
            module = points[0].load()
        except Exception as error:
            raise PluginError(f"plugin {name}: {type(error).__name__}: {error}") from error
        return self.register(name, module, group, package_of(points[0]))

    def names(self, group: str) -> list[str]:
        found = {p.name for p in entry_points(group=group)}
        return sorted(found | {name for where, name in self._loaded if where == group})

    def load_all(self, group: str) -> list[Loaded]:
        """Every plugin of a group; those that fail carry the failure."""
        result = []
        for name in self.names(group):
            try:
                result.append(self.load(group, name))
            except PluginError as error:
                result.append(Loaded(name=name, group=group, failure=str(error)))
        return result

    def probe(self, loaded: Loaded) -> Probed:
        """Ask one backend for its devices; a probe that raises is kept as a failure."""
        if loaded.failure:
            return Probed(loaded)
        try:
            found = self.call("probe", loaded)
        except Exception as error:
            return Probed(loaded, failure=f"probe: {type(error).__name__}: {error}")
        if isinstance(found, Unavailable):
            return Probed(loaded, unavailable=found)
        if not found or not all(isinstance(device, DeviceInfo) for device in found):
            return Probed(loaded, failure=f"probe returned {found!r}, not devices or Unavailable")
        return Probed(loaded, devices=list(found))

    def op_impls(self, device: Device) -> list[tuple[str, Any]]:
        """(op, implementation) of the device's backend and of every op pack."""
        result: list[tuple[str, Any]] = []
        for loaded in self._serving(device):
            try:
                for offered in self.call("op_impls", loaded, device=device):
                    result.extend(self._known(loaded, offered))
            except Exception as error:
                text = f"plugin {loaded.name}: op_impls: {type(error).__name__}: {error}"
                if loaded.group == BACKENDS:
                    raise PluginError(text) from error
                loaded.failure = text
                log.warning("%s: its ops are not used", text)
        return result

    def compilers(self, device: Device) -> list[Compiler]:
        """Of the device's backend and of every op pack."""
        return [c for x in self._serving(device) for c in self.call("compiler", x, device=device)]

    def _serving(self, device: Device) -> list[Loaded]:
        """The device's backend and every op pack that has not failed."""
        packs = self.load_all(OPS)
        backend = [x for (g, n), x in self._loaded.items() if g == BACKENDS and x.info]
        own = [x for x in backend if x.info and x.info.name == device.info.backend]
        return own + [p for p in packs if not p.failure]

    def _known(self, loaded: Loaded, offered: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Without implementations of ops that only a newer contract has."""
        pairs = list(offered)
        strange = sorted({op for op, _ in pairs} - set(TABLE))
        if strange:
            text = f"contract {CONTRACT[0]}.{CONTRACT[1]} has no op {', '.join(strange)}: ignored"
            loaded.note = f"{loaded.note}; {text}" if loaded.note else text
            log.warning("plugin %s: %s", loaded.name, text)
        return [pair for pair in pairs if pair[0] in TABLE]

    def optional(self, hook: str, device: Device) -> Any:
        """A first-result hook of the device's backend, or None."""
        for (group, _), loaded in self._loaded.items():
            if group == BACKENDS and loaded.info and loaded.info.name == device.info.backend:
                return self.call(hook, loaded, device=device)
        return None


def open_device(
    plugins: Plugins, wanted: str, options: Mapping[str, Any] | None = None
) -> tuple[Device, str]:
    """The device that `--device wanted` means, and the reason when it was chosen automatically.
    `options`: see the hook create_device.

    Raises DeviceError or PluginError with what was found and what to change.
    """
    if wanted == "auto":
        return _automatic(plugins, options or {})
    prefix, _, ordinal = wanted.partition(":")
    if ordinal and not ordinal.isdigit():
        raise DeviceError(f"--device {wanted}: {ordinal!r} is not a device number")
    loaded = _backend_for(plugins, prefix)
    probed = plugins.probe(loaded)
    if not probed.devices:
        raise DeviceError(f"--device {wanted}: no usable device\n{probed.line()}")
    index = int(ordinal or 0)
    for info in probed.devices:
        if info.ordinal == index:
            return _create(plugins, loaded, info, options or {}), ""
    numbers = [d.ordinal for d in probed.devices]
    raise DeviceError(f"--device {wanted}: {loaded.name} has the devices {numbers}")


def _backend_for(plugins: Plugins, prefix: str) -> Loaded:
    if prefix in plugins.names(BACKENDS):
        return plugins.load(BACKENDS, prefix)
    installed = plugins.load_all(BACKENDS)
    for loaded in installed:
        if loaded.info and prefix in loaded.info.devices:
            return loaded
    have = ", ".join(f"{x.name} {x.info.version if x.info else '(broken)'}" for x in installed)
    raise PluginError(
        f"--device {prefix}: backend package not installed\n"
        f"  installed backends: {have or 'none'}\n"
        f"  try: pip install 'inferplane[{prefix}]', or `inferplane devices` for what is here"
    )


def _automatic(plugins: Plugins, options: Mapping[str, Any]) -> tuple[Device, str]:
    probed = [plugins.probe(loaded) for loaded in plugins.load_all(BACKENDS)]
    usable = [p for p in probed if p.devices]
    accelerators = [p for p in usable if p.backend.info and p.backend.info.is_accelerator]
    broken = [
        p
        for p in probed
        if p.failure
        or p.backend.failure
        or (p.unavailable and p.unavailable.code != "no_hardware" and _is_accelerator(p))
    ]
    if not accelerators and broken:
        lines = "\n".join(
            p.line(
                " (not chosen: an accelerator backend is installed but broken; "
                f"pass --device {p.backend.name} to accept)"
            )
            for p in probed
        )
        raise DeviceError(f"--device auto found no usable accelerator\n{lines}")
    lines = "\n".join(p.line() for p in probed)
    best = sorted(accelerators or usable, key=lambda p: -_rank(p))
    if not best:
        raise DeviceError(
            f"--device auto found no device\n{lines or '  no backend is installed'}\n"
            "  try: pip install 'inferplane[BACKEND]' with the backend of your hardware"
        )
    if len(best) > 1 and _rank(best[0]) == _rank(best[1]):
        names = [p.backend.name for p in best]
        raise DeviceError(f"--device auto: {names} fit equally well: name one with --device")
    choice = best[0]
    info = choice.devices[0]
    reason = f"auto: {info.name}" + ("" if accelerators else ", no accelerator found")
    return _create(plugins, choice.backend, info, options), reason


def _rank(probed: Probed) -> int:
    return probed.backend.info.rank if probed.backend.info else -1


def _is_accelerator(probed: Probed) -> bool:
    return probed.backend.info is None or probed.backend.info.is_accelerator


def _create(
    plugins: Plugins, loaded: Loaded, info: DeviceInfo, options: Mapping[str, Any]
) -> Device:
    try:
        device: Device = plugins.call("create_device", loaded, info=info, options=options)
    except InferplaneError:
        raise
    except Exception as error:
        raise DeviceError(
            f"backend {loaded.name} could not open {info.torch_device}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return device


def package_of(point: EntryPoint) -> str:
    """Distribution and version behind an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""


def model_rows() -> Iterable[tuple[str, ModuleType | Any, str]]:
    """(name, module, package) of each installed model package. Raises PluginError if one fails."""
    for point in entry_points(group=MODELS):
        try:
            yield point.name, point.load(), package_of(point)
        except Exception as error:
            raise PluginError(
                f"model package {point.name}: {type(error).__name__}: {error}"
            ) from error
