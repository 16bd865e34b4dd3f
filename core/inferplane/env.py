"""The environment variables of inferplane, for secrets and debugging; settings are in Config.

No other module of core or models touches the process environment, so that this page is complete.
"""

import os
from pathlib import Path

VARIABLES = {
    "INFERPLANE_API_KEY": "key that clients of the server must send; or use --api-key-file",
    "INFERPLANE_CACHE": "folder for the demo model, converted vocabularies, packed weights and "
    "compiled kernels; default: inferplane in the user's cache folder",
}
"""name -> help. At most eight; each has a reader below."""


def api_key() -> str | None:
    """The server's key; an empty variable is no key."""
    return os.environ.get("INFERPLANE_API_KEY") or None


def cache_dir() -> Path:
    """Where downloads and converted files are kept. Not created here."""
    chosen = os.environ.get("INFERPLANE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "inferplane"


def snapshot() -> dict[str, str]:
    """A copy of the process environment, for the probes of backends and for child processes."""
    return dict(os.environ)


def disable_device_autoload() -> None:
    """Keep `import torch` from importing every installed device extension.

    One that cannot load would make `import torch` fail, and two that claim the same device key
    collide; the chosen backend imports its own. Must run before the first import of torch.
    """
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
