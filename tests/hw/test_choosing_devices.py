"""--device: what is opened, and what the user reads when nothing can be."""

from typing import Any

import pytest

from inferplane.errors import DeviceError, PluginError
from inferplane.hw import Unavailable, impl
from inferplane.plugins import open_device
from tests.hw.backends import BROKEN, backend, plugins

ABSENT = Unavailable("no_hardware", "no card on the PCI bus", "plug one in")
LOCKED = Unavailable("no_permission", "/dev/acme not readable", "join the group 'render'")


def refusal(wanted: str, *backends: Any) -> str:
    with pytest.raises((DeviceError, PluginError)) as caught:
        open_device(plugins(*backends), wanted)
    return str(caught.value)


def test_a_device_by_name_prefix_and_number() -> None:
    host = plugins(backend("acme", 2, devices=("acme", "ac")), backend("cpu", rank=0))
    for wanted, name in (
        ("acme", "acme 0"),
        ("acme:1", "acme 1"),
        ("ac:0", "acme 0"),
        ("cpu", "cpu 0"),
    ):
        device, reason = open_device(host, wanted)
        assert (device.info.name, reason) == (name, "")


def test_only_the_named_backend_is_probed() -> None:
    device, _ = open_device(plugins(backend("cpu", rank=0), backend("acme", BROKEN)), "cpu")
    assert device.info.backend == "cpu"


def test_a_number_that_does_not_exist() -> None:
    text = refusal("acme:2", backend("acme", 2))
    assert text == "--device acme:2: acme has the devices [0, 1]"


@pytest.mark.parametrize("wanted", ["acme:x", "acme:-1", "acme:1.5"])
def test_something_that_is_no_number(wanted: str) -> None:
    number = wanted.partition(":")[2]
    assert refusal(wanted, backend("acme")) == (
        f"--device {wanted}: {number!r} is not a device number"
    )


def test_an_unknown_device_names_what_is_installed_and_a_package_to_try() -> None:
    assert refusal("ascent", backend("cpu", rank=0), backend("acme", version="0.4")) == (
        "--device ascent: backend package not installed\n"
        "  installed backends: acme 0.4, cpu 1.2\n"
        "  try: pip install 'inferplane[ascent]', or `inferplane devices` for what is here"
    )


def test_an_unknown_device_with_nothing_installed() -> None:
    assert "installed backends: none" in refusal("acme")


def test_a_named_device_that_is_not_usable() -> None:
    assert refusal("acme", backend("acme", LOCKED)) == (
        "--device acme: no usable device\n"
        "  acme     1.2      Unavailable[no_permission]: /dev/acme not readable"
        "   fix: join the group 'render'"
    )


def test_a_named_device_whose_probe_raises() -> None:
    assert refusal("acme", backend("acme", BROKEN)).splitlines()[1] == (
        "  acme     1.2      FAILED probe: OSError: libvendor.so: cannot open shared object file"
    )


@pytest.mark.parametrize("found", [0, None, "acme:0"])
def test_a_probe_that_returns_neither_devices_nor_a_reason(found: Any) -> None:
    @impl
    def probe() -> Any:
        return found or []

    assert "FAILED probe returned" in refusal("acme", backend("acme", probe=probe))


def test_a_device_that_does_not_open() -> None:
    @impl
    def create_device(info: Any, options: Any) -> Any:
        raise BROKEN

    text = refusal("acme", backend("acme", create_device=create_device))
    assert text == f"backend acme could not open cpu: OSError: {BROKEN}"


def test_auto_takes_the_accelerator_of_the_highest_rank() -> None:
    host = plugins(backend("slow", 1, rank=10), backend("fast", 3, rank=60), backend("cpu", rank=0))
    device, reason = open_device(host, "auto")
    assert (device.info.name, reason) == ("fast 0", "auto: fast 0")


def test_auto_takes_the_cpu_where_no_accelerator_is_and_says_so() -> None:
    device, reason = open_device(plugins(backend("acme", ABSENT), backend("cpu", rank=0)), "auto")
    assert (device.info.backend, reason) == ("cpu", "auto: cpu 0, no accelerator found")


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (LOCKED, "Unavailable[no_permission]: /dev/acme not readable   fix: join"),
        (BROKEN, "FAILED probe: OSError: libvendor.so"),
    ],
)
def test_auto_does_not_hide_a_broken_accelerator_behind_the_cpu(found: Any, line: str) -> None:
    text = refusal("auto", backend("acme", found), backend("cpu", rank=0))
    first, acme, cpu = text.splitlines()
    assert first == "--device auto found no usable accelerator"
    assert line in acme
    assert cpu == (
        "  cpu      1.2      available: cpu 0 (not chosen: an accelerator backend is installed but "
        "broken; pass --device cpu to accept)"
    )


def test_auto_with_one_good_and_one_broken_accelerator_takes_the_good_one() -> None:
    device, _ = open_device(plugins(backend("acme"), backend("other", BROKEN)), "auto")
    assert device.info.backend == "acme"


def test_auto_does_not_decide_between_equals() -> None:
    text = refusal("auto", backend("acme"), backend("other"), backend("cpu", rank=0))
    assert text == ("--device auto: ['acme', 'other'] fit equally well: name one with --device")


def test_auto_with_nothing_at_all() -> None:
    assert refusal("auto") == (
        "--device auto found no device\n  no backend is installed\n"
        "  try: pip install 'inferplane[BACKEND]' with the backend of your hardware"
    )
    assert "no card on the PCI bus" in refusal("auto", backend("acme", ABSENT))
