"""Repositories on the Hugging Face Hub: which files they hold, and bringing the few that are needed here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from seamark.errors import FormatError

_ADDRESS = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<inside>.+?))?/?")


@dataclass(frozen=True)
class Repository:
    """`owner/name`, at a revision (None: main), as seen with a token (None: the one that is logged in)."""

    id: str
    revision: str | None = None
    token: str | None = None

    def files(self) -> list[str]:
        """Paths of its files; those that are already here where the Hub cannot be reached."""
        try:
            return self._files_on_hub()
        except FormatError as e:
            if not isinstance(e.__cause__, ConnectionError | TimeoutError | OfflineModeIsEnabled | _UnreachableError):
                raise
            here = self._cached()
            if here is None:
                raise
            return sorted(p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file())

    def _files_on_hub(self) -> list[str]:
        with _errors(self):
            info = HfApi().repo_info(self.id, revision=self.revision, token=self.token)
            return sorted(sibling.rfilename for sibling in info.siblings or ())

    def _cached(self) -> Path | None:
        try:
            # No patterns, no files asked for: whatever part of the repository is here is enough.
            found = snapshot_download(self.id, revision=self.revision, local_files_only=True, allow_patterns=[])
        except LocalEntryNotFoundError:
            return None
        return Path(found)

    def bring(self, files: Iterable[str]) -> Path:
        """Fetch files that are not here yet; the folder that stands for the repository."""
        root = Path()
        with _errors(self):
            for name in files:
                local = Path(hf_hub_download(self.id, name, revision=self.revision, token=self.token))
                root = local.parents[len(Path(name).parts) - 1]
        return root


def push(folder: Path, repository: Repository, *, private: bool, message: str) -> str:
    """Upload a folder's files as one commit, creating the repository where it is missing; returns its address.

    Raises:
        FormatError: the Hub cannot be reached, or refuses.
    """
    api = HfApi(token=repository.token)
    with _errors(repository):
        url = api.create_repo(repository.id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.id, folder_path=folder, revision=repository.revision, commit_message=message
        )
    return str(url)


class _UnreachableError(Exception):
    """Kinds of lost connections that huggingface_hub takes from its HTTP library."""


def parse(address: str, revision: str | None, token: str | None) -> tuple[Repository, str] | None:
    """`owner/name[/folder]` or `hf://owner/name[@revision][/folder]` as a repository and a path inside; else None."""
    match = _ADDRESS.fullmatch(address.removeprefix("hf://"))
    if match is None or ".." in address:
        return None
    return Repository(match["repo"], revision or match["revision"], token), match["inside"] or ""


@contextlib.contextmanager
def _errors(repository: Repository) -> Iterator[None]:
    """Turn what huggingface_hub raises into one clear line."""
    where = repository.id + (f"@{repository.revision}" if repository.revision else "")
    network = "Check the network (and HF_HUB_OFFLINE), or give a folder"
    try:
        yield
    except GatedRepoError as e:
        fix = "Accept its terms on its page, then log in (hf auth login) or give a token"
        raise FormatError("access to this repository must be asked for", where=where, fix=fix) from e
    except RepositoryNotFoundError as e:
        fix = "Check the name; if it is private, log in (hf auth login) or give a token"
        raise FormatError("there is no such repository on the Hub, nor such a folder here", where=where, fix=fix) from e
    except RevisionNotFoundError as e:
        raise FormatError("the repository has no such revision", where=where) from e
    except HFValidationError as e:
        raise FormatError(f"not a name on the Hub ({_line(e)})", where=where) from e
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as e:
        raise FormatError("neither here nor to be fetched from the Hub", where=where, fix=network) from e
    except EntryNotFoundError as e:
        raise FormatError(f"the repository lacks a file ({_line(e)})", where=where) from e
    except HfHubHTTPError as e:
        raise FormatError(f"the Hub refuses ({_line(e)})", where=where, fix=network) from e
    except Exception as e:
        if type(e).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise
        raise FormatError(f"the Hub cannot be reached ({_line(e)})", where=where, fix=network) from _UnreachableError(
            str(e)
        )


def _line(e: BaseException) -> str:
    text = " ".join(str(e).split())
    return text if len(text) <= 160 else text[:157] + "…"
