"""The many exceptions of the hub client and the network, in llamacli's words."""

from typing import TYPE_CHECKING

from llamacli.background import Stopped
from llamacli.errors import (
    AuthenticationError,
    LlamacliError,
    LocalIOError,
    NetworkError,
    NotFoundError,
    printable,
)
from llamacli.hub.client import Refused

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

LATER = "try again later"
TOKEN_PAGE = "https://huggingface.co/settings/tokens"


def translate(problem: Exception, name: str, revision: str | None, *, has_token: bool) -> Exception:
    """The exception to raise instead; subclasses come before their parents."""
    from huggingface_hub import errors

    shown = printable(name)
    if isinstance(problem, (LlamacliError, Stopped)):
        return problem
    if isinstance(problem, errors.HFValidationError):
        return NotFoundError(f"there is no folder {printable(repr(name))}, and no hub model")
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return NotFoundError(f"{shown} cannot be asked for: offline mode is on")
    if isinstance(problem, errors.HfHubHTTPError):
        return _refusal(problem, shown, printable(revision or "main"), has_token)
    if isinstance(problem, Refused):
        hint = "check HF_ENDPOINT and your network"
        return NetworkError(f"the answer is not a hub's: {printable(problem)}", hint=hint)
    if isinstance(problem, OSError) and problem.errno is not None:
        where = printable(problem.filename or "the cache")
        return LocalIOError(f"cannot write {where}: {problem.strerror}")
    reason = _reason(problem)
    return NetworkError(f"cannot reach the hub for {shown}: {reason}", hint=LATER)


def _refusal(problem: "HfHubHTTPError", name: str, revision: str, has_token: bool) -> LlamacliError:
    from huggingface_hub import errors

    status, headers = problem.response.status_code, problem.response.headers
    page, message = f"https://huggingface.co/{name}", headers.get("X-Error-Message", "")
    if status == 403 and "fine-grained" in message:
        hint = f"allow it to read gated repositories on {TOKEN_PAGE}"
        return AuthenticationError(f"{name} is gated, and your token may not read such", hint=hint)
    if isinstance(problem, errors.GatedRepoError) and (status == 401 or not has_token):
        hint = f"accept the license on {page}, then: hf auth login"
        return AuthenticationError(f"{name} is gated, and there is no token", hint=hint)
    if isinstance(problem, errors.GatedRepoError):
        what = "your account has no access yet"
        return AuthenticationError(f"{name} is gated: {what}", hint=f"ask for it on {page}")
    if isinstance(problem, errors.RepositoryNotFoundError):
        hint = "check the spelling; a private repository needs a token: hf auth login"
        return NotFoundError(f"there is no folder {name}, and no such hub model", hint=hint)
    if isinstance(problem, errors.RevisionNotFoundError):
        return NotFoundError(f"{name} has no revision {revision}")
    if isinstance(problem, errors.RemoteEntryNotFoundError):
        return NotFoundError(f"{name} lists a file that the hub does not have")
    if isinstance(problem, errors.DisabledRepoError):
        return AuthenticationError(f"the hub has disabled {name}", hint=f"see {page}")
    if status in (401, 403):
        hint = "hf auth login, or a valid HF_TOKEN"
        return AuthenticationError(f"the hub refuses {name} (HTTP {status})", hint=hint)
    # The bridge to Xet's storage gives 400 for a file that is too large for it: the limit was 50 GB
    # of one request, and a few hundred in ranges (issues 238 and 592 of huggingface/xet-core).
    hint = "hf download fetches files that are too large for HTTP" if status == 400 else LATER
    return NetworkError(f"the hub fails on {name} (HTTP {status})", hint=hint)


def _reason(problem: Exception) -> str:
    """Which part of the way is broken."""
    import httpx2

    text = printable(problem) or type(problem).__name__
    if isinstance(problem, httpx2.ProxyError):
        return f"the proxy fails ({text})"
    if isinstance(problem, (ValueError, httpx2.InvalidURL, httpx2.UnsupportedProtocol)):
        return f"HF_ENDPOINT or a proxy variable is no address ({text})"
    return "it is silent" if isinstance(problem, httpx2.TimeoutException) else text
