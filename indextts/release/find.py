"""Find the files of a release on this disk. Nothing is ever downloaded here."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from indextts.config import ConfigError, IndexTTSConfig, load_config
from indextts.release.layout import (
    AUXILIARIES,
    CACHE_NAME,
    CONFIG_NAME,
    GLOSSARY_NAME,
    LEXICON_NAME,
    Auxiliary,
    MissingFilesError,
    Release,
    download_command,
    has_content,
    inside,
    present,
)

logger = logging.getLogger(__name__)
PathLike = str | os.PathLike[str]

_PACKAGE = Path(__file__).resolve().parents[1]
_REPOSITORY = _PACKAGE.parent


def find_release(
    model_dir: PathLike | None = None,
    cfg_path: PathLike | None = None,
    aux_paths: Mapping[str, PathLike] | None = None,
    *,
    gpt_checkpoint_path: PathLike | None = None,
    bpe_model_path: PathLike | None = None,
) -> Release:
    """Locate a complete release.

    ``model_dir`` and ``cfg_path``: as given; one implies the other, and a folder as ``cfg_path`` means the ``config.yaml`` in it. With
    neither: ``checkpoints/`` under the working directory, then beside the package's source, whichever is complete first, else the small
    voice installed with the package.
    ``aux_paths``: places of the auxiliary models, which otherwise are looked up beside the release and then in the Hugging
    Face cache; keys ``w2v_bert`` (folder), ``semantic_codec`` (file), ``campplus`` (file), ``bigvgan`` (folder).
    ``gpt_checkpoint_path``, ``bpe_model_path``: files to use instead of the release's.

    Errors: :class:`MissingFilesError` (a ``FileNotFoundError``) that names every missing file and the command that fetches
    them; :class:`ConfigError` for a configuration that cannot be used.
    """
    given = {key: Path(value).expanduser() for key, value in (aux_paths or {}).items()}
    unknown = sorted(given.keys() - {aux.key for aux in AUXILIARIES})
    if unknown:
        raise ValueError(f"aux_paths has unknown keys {unknown}; known are {[aux.key for aux in AUXILIARIES]}")
    for key, path in {"gpt": gpt_checkpoint_path, "bpe_model": bpe_model_path}.items():
        if path is not None:
            given[key] = Path(path).expanduser()
    if model_dir is not None or cfg_path is not None:
        return _explicit(model_dir, cfg_path, given)
    return _default(given)


def bundled_voice() -> Path | None:
    """Folder of the small voice installed with the package, or None."""
    for folder in (_REPOSITORY / "checkpoints" / "small", _PACKAGE / "voices" / "small"):
        if has_content(folder / CONFIG_NAME):
            return folder
    return None


def hub_caches(model_dir: Path) -> list[Path]:
    """Hugging Face caches to look in: the model directory's own, then the user's (``HF_HUB_CACHE``, ``HF_HOME``)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    user = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return [model_dir / CACHE_NAME, Path(user).expanduser()]


def cached_snapshot(cache: Path, repo_id: str) -> Path | None:
    """Snapshot of ``repo_id`` in a hub cache: the commit of ``refs/main``, or the only one there."""
    folder = cache / ("models--" + repo_id.replace("/", "--"))
    reference = folder / "refs" / "main"
    if reference.is_file():
        snapshot = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return snapshots[0] if len(snapshots) == 1 else None


def find_auxiliary(aux: Auxiliary, model_dir: Path) -> Path | None:
    """Folder or file of an auxiliary model: its place beside the release, then the hub caches, used where they lie."""
    place = model_dir / aux.place
    if not aux.missing(place):
        return present(place)
    for cache in hub_caches(model_dir):
        snapshot = cached_snapshot(cache, aux.repo_id)
        if snapshot is not None:
            path = snapshot if aux.is_folder else snapshot / aux.files[0]
            if not aux.missing(path):
                return path
    return None


def _explicit(model_dir: PathLike | None, cfg_path: PathLike | None, given: dict[str, Path]) -> Release:
    config_file = Path(cfg_path).expanduser() if cfg_path is not None else None
    if config_file is not None and config_file.is_dir():  # the folder, given where the configuration is expected
        config_file = config_file / CONFIG_NAME
    folder = Path(model_dir).expanduser() if model_dir is not None else config_file.parent if config_file else Path()
    release, missing = _examine(folder, config_file or folder / CONFIG_NAME, given)
    if release is None:
        raise MissingFilesError(
            f"the release in {folder} is incomplete; missing: {', '.join(missing)}. To fetch what is missing: {download_command(folder)}",
            missing,
        )
    return release


def _default(given: dict[str, Path]) -> Release:
    missing: list[str] = []
    places = [Path("checkpoints")]
    if _REPOSITORY.joinpath("pyproject.toml").is_file() and Path.cwd() != _REPOSITORY:
        places.append(_REPOSITORY / "checkpoints")
    for folder in places:
        if not has_content(folder / CONFIG_NAME):
            missing = missing or _examine(folder, folder / CONFIG_NAME, given)[1]
            continue
        try:
            release, lacking = _examine(folder, folder / CONFIG_NAME, given)
        except ConfigError as error:
            logger.warning("%s is not used: %s", folder, error)
            continue
        if release is not None:
            return release
        missing = lacking
        logger.warning("%s is incomplete and not used; missing: %s (to fetch: %s)", folder, ", ".join(lacking), download_command(folder))
    small = bundled_voice()
    if small is None:
        raise MissingFilesError(
            f"no IndexTTS-2 weights in {places[0]}/ (missing: {', '.join(missing)}) and no small voice is installed. "
            f"Download the release: {download_command(places[0])}; or try the pipeline with random weights: IndexTTS2.from_random('small')",
            missing,
        )
    release, missing = _examine(small, small / CONFIG_NAME, given, bundled=True)
    if release is None:
        raise MissingFilesError(
            f"the small voice in {small} is incomplete; missing: {', '.join(missing)}. Install the package again, or download the release: "
            f"{download_command(places[0])}",
            missing,
        )
    _say_bundled(small)
    return release


@functools.cache
def _say_bundled(folder: Path) -> None:
    logger.warning("using the small voice in %s; for the full model: %s", folder, download_command(Path("checkpoints")))


def _examine(folder: Path, config_file: Path, given: Mapping[str, Path], *, bundled: bool = False) -> tuple[Release | None, list[str]]:
    """The release in ``folder``, or None and the names of all missing files (as the release's own file calls them)."""
    missing: list[str] = []
    if has_content(config_file):
        config = load_config(config_file)
    else:
        missing.append(config_file.name if config_file.parent == folder else str(config_file))
        config = IndexTTSConfig()
    folder = folder.absolute()  # a later change of the working directory must not lose the files
    wanted = {
        "bpe_model": (config.dataset.bpe_model, "dataset.bpe_model"),
        "gpt": (config.gpt_checkpoint, "gpt_checkpoint"),
        "s2mel": (config.s2mel_checkpoint, "s2mel_checkpoint"),
        "w2v_stat": (config.w2v_stat, "w2v_stat"),
        "speaker_matrix": (config.spk_matrix, "spk_matrix"),
        "emotion_matrix": (config.emo_matrix, "emo_matrix"),
    }
    paths: dict[str, Path] = {}
    for key, (relative, field) in wanted.items():
        path = given[key] if key in given else inside(folder, relative, f"{config_file}: {field}")
        paths[key] = present(path).absolute()
        if not has_content(path):
            missing.append(str(path) if key in given else relative)
    for aux in AUXILIARIES:
        if aux.key == "bigvgan" and not config.vocoder.has_weights:
            continue
        if aux.key in given:
            paths[aux.key] = present(given[aux.key]).absolute()
            missing += [str(given[aux.key] / name if aux.is_folder else given[aux.key]) for name in aux.missing(given[aux.key])]
            continue
        found = find_auxiliary(aux, folder)
        if found is not None:
            paths[aux.key] = found
            continue
        for name in aux.missing(folder / aux.place):
            missing.append(f"{aux.local(name)} ({aux.repo_id})")
    qwen = inside(folder, config.qwen_emo_path, f"{config_file}: qwen_emo_path") if config.qwen_emo_path else None
    glossary, lexicon = folder / GLOSSARY_NAME, folder / LEXICON_NAME
    if missing:
        return None, missing
    release = Release(
        model_dir=folder,
        cfg_path=config_file.absolute(),
        config=config,
        qwen_dir=qwen if qwen is not None and has_content(qwen / "model.safetensors") else None,
        glossary=glossary if glossary.is_file() else None,
        lexicon=lexicon if lexicon.is_file() else None,
        bundled=bundled,
        **paths,
    )
    return release, []
