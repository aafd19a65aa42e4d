"""From a repository's name to a folder with its files: what is missing is fetched, and checked."""

import errno
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeVar

from llamacli.background import Crew, Progress, Report, Step, Stopped, ignore, run_in_background
from llamacli.errors import CheckpointError, LocalIOError, printable
from llamacli.hub import transfer
from llamacli.hub.cache import CachedModel
from llamacli.hub.client import HubClient
from llamacli.hub.errors import translate
from llamacli.hub.listing import Choice, HubFile, Listing, choose, fetch_listing
from llamacli.hub.target import CacheTarget, FolderTarget

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 4
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a download will do.

    Attributes:
        name: of the repository.
        revision: as asked for.
        choice: the wanted files.
        missing: those of them that are not there yet, with the bytes that need not be fetched:
            the cache has the file for another commit, or an earlier try left a part.
    """

    name: str
    revision: str
    listing: Listing
    choice: Choice
    target: CacheTarget | FolderTarget
    missing: dict[HubFile, int]

    @property
    def nbytes(self) -> int:
        """Bytes to fetch."""
        return sum(file.size - present for file, present in self.missing.items())

    @property
    def disk_bytes(self) -> int:
        """Bytes that the disk is to take."""
        return self.nbytes + sum(map(self.target.copied, self.missing))

    @property
    def free(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self.target.existing_folder).free


def make_plan(
    name: str,
    revision: str | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    folder: Path | None = None,
    report: Report = ignore,
) -> Plan:
    """Ask the hub for the files of a repository, and look what of them is there.

    Args:
        name: of the repository, such as "meta-llama/Llama-3.2-1B".
        revision: branch, tag or commit; the main branch by default.
        include: patterns of files to fetch instead of those that a run needs.
        exclude: patterns of files to leave out.
        folder: where plain files go; the cache by default.
        report: is told what takes long.

    Raises:
        LlamacliError: see `hub.resolve` and `listing.choose`.
    """
    model = CachedModel(name)
    revision = revision or "main"

    def work(client: HubClient) -> Plan:
        _check_name(name)
        listing = _listing(client, name, revision)
        choice = choose(listing, name, include, exclude)
        target = (
            CacheTarget(model, listing.commit) if folder is None else FolderTarget(folder, model)
        )

        def present(file: HubFile) -> int:
            if model.has_blob(file):
                return file.size
            return transfer.present(file, target.part(file))

        missing = {file: present(file) for file in choice.wanted if not target.has(file, client)}
        return Plan(name, revision, listing, choice, target, missing)

    return _with_client(work, name, revision, report)


def _check_name(name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)


def _listing(client: HubClient, name: str, revision: str) -> Listing:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return fetch_listing(client, name, revision)
    except RepositoryNotFoundError as problem:
        if not isinstance(problem, GatedRepoError):
            with suppress(HfHubHTTPError):
                client.get_json(f"{client.endpoint}/api/datasets/{name}")
                raise CheckpointError(f"{printable(name)} is a dataset, not a model") from None
        raise


def fetch(plan: Plan, report: Report = ignore) -> Path:
    """Fetch what is missing; the folder with the files.

    Raises:
        LlamacliError: see `hub.resolve`. What came is kept for the next time.
    """
    if plan.missing:
        _check_space(plan)
        if plan.nbytes:
            report(Progress(Step.BEGIN, plan.name, plan.nbytes))
        _with_client(lambda client: _fetch_all(client, plan), plan.name, plan.revision, report)
    plan.target.finish(plan.revision, plan.listing)
    return plan.target.folder


def _check_space(plan: Plan) -> None:
    if plan.free < plan.disk_bytes:
        where = printable(plan.target.existing_folder)
        raise LocalIOError(
            f"{plan.name} needs {plan.disk_bytes / 1e9:.2f} GB, the disk of {where} has"
            f" {plan.free / 1e9:.2f} GB left",
            hint="make room, or set HF_HOME to a folder on another disk",
        )


def _with_client(work: Callable[[HubClient], T], name: str, revision: str, report: Report) -> T:
    """The result of work in the background, its errors in llamacli's words."""

    def body(report: Report, stop: Event) -> T:
        client = None
        try:
            client = HubClient(report, stop)
            return work(client)
        except Exception as problem:
            has_token = client is not None and client.has_token
            raise translate(problem, name, revision, has_token=has_token) from problem

    return run_in_background(body, report)


def _fetch_all(client: HubClient, plan: Plan) -> None:
    plan.target.begin(plan.listing)
    small_first = sorted(plan.missing, key=lambda file: file.size)
    Crew(small_first, lambda file: _fetch(client, plan, file), FILES_AT_ONCE, client.stop).join()


def _fetch(client: HubClient, plan: Plan, file: HubFile) -> None:
    target = plan.target
    with _locked(client, file, target.lock(file)) as is_ours:
        part = target.part(file, is_ours=is_ours)
        try:
            if target.take(file, part, client):  # maybe another process brought it meanwhile
                came = file.size - plan.missing[file]
                client.report(Progress(Step.BYTES, file.path, came))
            else:
                lacks = file.size - transfer.present(file, part)
                client.report(Progress(Step.FILE, file.path, lacks))
                part.parent.mkdir(parents=True, exist_ok=True)
                url = client.file_url(plan.name, plan.listing.commit, file.path)
                transfer.fetch(client, file, url, part)
                target.publish(file, part, client)
        except OSError as problem:
            if problem.errno in _DISK_IS_FULL:
                part.unlink(missing_ok=True)
            raise
    client.report(Progress(Step.DONE, file.path, file.size))


@contextmanager
def _locked(client: HubClient, file: HubFile, path: Path) -> Iterator[bool]:
    """Hold huggingface_hub's lock of a file; false if the system gives none, which is noted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            _acquire(stack, client, file, path)
            is_ours = True
        except (OSError, NotImplementedError) as problem:
            what = f"{printable(file.path)} cannot be locked ({printable(problem)})"
            logger.warning("%s: another process may download it, too", what)
            is_ours = False
        yield is_ours


def _acquire(stack: ExitStack, client: HubClient, file: HubFile, path: Path) -> None:
    from huggingface_hub.utils import WeakFileLock

    patience_s = 0.1
    while not client.stop.is_set():
        try:
            stack.enter_context(WeakFileLock(path, timeout=patience_s))
            return
        except TimeoutError:
            if patience_s == 0.1:
                client.report(Progress(Step.LOCKED, file.path))
            patience_s = 0.5
    raise Stopped
