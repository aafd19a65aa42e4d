"""Requests to the hub: bounded in time and size, tried again, and over when nobody waits."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from llamacli.background import Progress, Report, Step, Stopped
from llamacli.errors import AuthenticationError, NetworkError
from llamacli.hub.settings import constants

if TYPE_CHECKING:
    from httpx2 import Response

TRIES = 5
MAX_WAIT_S = 300.0  # the hub counts requests in windows of five minutes
MAX_JSON_BYTES = 16_000_000  # a page of a listing has 1,000 files
_READ_BYTES = 1_000_000  # with httpx's own 64 kB a loopback download took twice as long
_SLOWEST = 1_000  # bytes per second; below, a server counts as silent
_TEMPORARY = (408, 429, 500, 502, 503, 504)


class CutShort(Exception):
    """The server ended, or almost stopped, before all was there."""


class Refused(Exception):
    """The answer is not one of a hub."""


class HubClient:
    """Asks the hub in the name of the user.

    Attributes:
        endpoint: the hub's address.
        has_token: whether the requests carry one.
        timeout_s: how long a server may be silent.
    """

    def __init__(self, report: Report, stop: Event) -> None:
        known = constants()
        from huggingface_hub.utils import build_hf_headers

        self.endpoint: str = known.ENDPOINT
        self.timeout_s = float(known.HF_HUB_DOWNLOAD_TIMEOUT)
        self.report, self.stop = report, stop
        self._headers = build_hf_headers(library_name="llamacli") | {"Accept-Encoding": "identity"}
        self._has_answered = False
        token = self._headers.get("authorization", "")
        self.has_token = bool(token)
        if not (token.isascii() and token.isprintable()):  # an error about it would show it
            raise AuthenticationError(
                "the Hugging Face token has characters that no token has",
                hint="hf auth login, or a valid HF_TOKEN",
            )

    def file_url(self, name: str, commit: str, path: str) -> str:
        """The address of a file; as huggingface_hub's hf_hub_url, which takes 20 ms to import."""
        template: str = constants().HUGGINGFACE_CO_URL_TEMPLATE
        return template.format(repo_id=name, revision=commit, filename=quote(path))

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> "Iterator[Response]":
        """The answer to one request, its body not yet read.

        The token stays with the hub: httpx drops it where a redirect leads to another host.

        Raises:
            HfHubHTTPError: the hub refuses.
            httpx2.HTTPError: it cannot be reached.
        """
        import httpx2
        from huggingface_hub.utils import get_session, hf_raise_for_status

        if self.stop.is_set():
            raise Stopped
        headers = self._headers | dict(headers or {})
        with get_session().stream(
            "GET", url, headers=headers, timeout=self.timeout_s, follow_redirects=True
        ) as response:
            self._has_answered = True
            # Without the body, which would be read whole, however long it is.
            hf_raise_for_status(
                httpx2.Response(
                    response.status_code, headers=response.headers, request=response.request
                )
            )
            yield response

    def body(self, response: "Response", limit: int) -> Iterator[bytes]:
        """The body, decoded, but not more than `limit` bytes of it.

        Raises:
            CutShort: there are fewer than announced, or they come too slowly.
            Stopped: nobody waits for them.
        """
        began, in_window = time.monotonic(), 0
        for chunk in _chunks(response, limit, self.timeout_s):
            if self.stop.is_set():
                raise Stopped
            yield chunk[:limit]
            limit -= len(chunk)
            if limit <= 0:
                return
            in_window += len(chunk)
            if (passed := time.monotonic() - began) > self.timeout_s:
                if in_window < _SLOWEST * passed:
                    raise CutShort("it is almost silent")
                began, in_window = time.monotonic(), 0

    def get_json(self, url: str) -> tuple[object, str | None]:
        """A JSON value, and the address of the next page.

        Raises:
            Refused: it is not JSON, or too long.
        """
        patience = Patience(self)
        while True:
            try:
                return self._get_json(url)
            except Exception as problem:
                patience.wait(problem)

    def _get_json(self, url: str) -> tuple[object, str | None]:
        with self.open(url) as response:
            data = b"".join(self.body(response, MAX_JSON_BYTES + 1))
            page = response.links.get("next", {}).get("url")
        if len(data) > MAX_JSON_BYTES:
            raise Refused(f"an answer is longer than {MAX_JSON_BYTES:,} bytes")
        if page is not None:  # a mirror passes on links to another host, which gets no token
            scheme, host, *_ = urlsplit(self.endpoint)
            page = urlsplit(page)._replace(scheme=scheme, netloc=host).geturl()
        try:
            return json.loads(data), page
        except (ValueError, RecursionError) as problem:
            raise Refused("an answer is not JSON") from problem

    def is_temporary(self, problem: Exception) -> bool:
        """Whether the same request may succeed a little later."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        if isinstance(problem, HfHubHTTPError):
            return problem.response.status_code in _TEMPORARY
        if isinstance(problem, httpx2.ConnectError):
            return self._has_answered
        passing = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
        return isinstance(problem, (CutShort, *passing))


class Patience:
    """Waits between tries, longer each time."""

    def __init__(self, client: HubClient) -> None:
        self._client, self._failures = client, 0

    def renew(self) -> None:
        """Something came: the next failure is the first one again."""
        self._failures = 0

    def wait(self, problem: Exception) -> None:
        """Wait before the next try, and tell it each second.

        Raises:
            Exception: the problem, if another try is in vain.
            Stopped: nobody waits any more.
        """
        self._failures += 1
        if self._failures >= TRIES or not self._client.is_temporary(problem):
            raise problem
        asked = wait_asked_for(getattr(problem, "response", None))
        if asked is not None and asked > MAX_WAIT_S:
            message = f"the hub allows the next request in {asked:,.0f} s"
            raise NetworkError(message, hint="try again later") from problem
        wait_s = self._client.timeout_s / 20 * 2**self._failures if asked is None else asked
        reason = _reason(problem)
        while wait_s > 0:
            self._client.report(Progress(Step.WAIT, reason, wait_s))
            if self._client.stop.wait(min(wait_s, 1)):
                raise Stopped
            wait_s -= 1


def wait_asked_for(response: "Response | None") -> float | None:
    """Seconds until the next request by RateLimit or Retry-After, a number or a date."""
    if response is None:
        return None
    from huggingface_hub.utils import parse_ratelimit_headers

    value = response.headers.get("Retry-After", "").strip()
    try:
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
        if value.isascii() and value.isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reason(problem: Exception) -> str:
    if (response := getattr(problem, "response", None)) is not None:
        return f"HTTP {response.status_code}"
    return str(problem) or type(problem).__name__


def _chunks(response: "Response", limit: int, timeout_s: float) -> Iterator[bytes]:
    """The body as it comes; from the socket itself, in large reads, where nothing is encoded."""
    import httpcore2

    headers = response.headers
    encoded = {"Transfer-Encoding", "Content-Encoding"} & {name.title() for name in headers}
    if encoded or "Content-Length" not in headers or response.http_version != "HTTP/1.1":
        yield from response.iter_bytes()
        return
    stream = response.extensions["network_stream"]
    left = min(limit, int(headers["Content-Length"]))
    buffered = response.iter_raw()  # what came together with the headers
    chunk = next(buffered, b"") if left else b""
    while chunk:
        yield chunk
        left -= len(chunk)
        try:
            chunk = stream.read(min(_READ_BYTES, left), timeout=timeout_s) if left > 0 else b""
        except httpcore2.TimeoutException as problem:
            raise CutShort("it is silent") from problem
        except httpcore2.NetworkError as problem:
            raise CutShort(f"the connection broke ({problem})") from problem
    if left > 0:
        raise CutShort("the connection ended too early")
