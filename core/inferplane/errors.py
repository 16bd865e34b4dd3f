"""The exceptions of inferplane. Every message names the subject, the value and what to change."""


class InferplaneError(Exception):
    """Root of all errors that inferplane raises on purpose."""


class ConfigError(InferplaneError):
    """A setting is unknown, out of range, or contradicts another one."""


class DeviceError(InferplaneError):
    """The requested device does not exist, is not usable, or failed."""


class PluginError(InferplaneError):
    """A backend, op pack or model package is missing, broken, or built for another contract."""


class ResolveError(InferplaneError):
    """No implementation of an op satisfies the spec and the user's restrictions."""


class ModelError(InferplaneError):
    """A model cannot be found, read, or is of an unsupported architecture."""


class RequestError(InferplaneError):
    """A request is refused. Only the request is affected: the engine and others live on.

    `status` is the HTTP status, `param` the request field at fault, `code` a stable machine word.
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class ProgramError(InferplaneError):
    """A program of the frontend language is wrong, or one of its calls failed."""


class EngineDeadError(InferplaneError):
    """The engine stopped after a failure that it cannot recover from. Restart the server."""
