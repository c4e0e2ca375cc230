"""Checkpoints: the state, the position in the data and the numbers not yet logged, written asynchronously and atomically."""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import pathlib
import shutil
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxface.errors import UserError
from jaxface.paths import absolute, reaching, reason_of, user_path
from jaxface.training.mirror import Mirror
from jaxface.training.workdir import (
    POSITION,
    checkpoint_step,
    write_atomically,
    writing,
)

logger = logging.getLogger(__name__)

_SMALL = 2**24  # bytes


def _not_of_orbax(record: logging.LogRecord) -> bool:
    files = [record.pathname]
    if record.exc_info and record.exc_info[2]:
        files += [frame.filename for frame in traceback.extract_tb(record.exc_info[2])]
    return record.levelno < logging.ERROR or not any(f"{os.sep}orbax{os.sep}" in file for file in files)


def _quiet_orbax() -> None:
    """Orbax raises every failure here too; tracebacks from each of its threads would bury the line that says what is wrong."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_of_orbax)  # once, however often it is asked for


class Saved(NamedTuple):
    """A checkpoint read back."""

    step: int
    state: Any
    position: dict


def _copy(leaf: jax.Array | np.ndarray) -> jax.Array:
    """A copy, of one replica where there are several: orbax would slice them all, to write them side by side."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated and jax.process_count() == 1:
        leaf = leaf.addressable_data(0)
    return jnp.copy(leaf)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_plain(state):
    """Typed random keys as their integers; the rest as it is."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _from_plain(state, abstract):
    return jax.tree.map(lambda x, a: jax.random.wrap_key_data(x) if _is_key(a) else x, state, abstract)


def _sum(x: jax.Array) -> jax.Array:
    """Two sums over the 32-bit words of an array, modulo 2^32, in which every word has an odd weight of its own.

    An odd weight cannot hide a change of one word, and two unlike weights hide a change of several once in 2^64. Integers
    add up to the same in any order, so it does not matter how the array is sharded.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, _word(x)).astype(jnp.uint32)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place, stride = place + along * np.uint32(stride % 2**32), stride * words.shape[axis]
    return jnp.stack([jnp.sum(words * weight, dtype=jnp.uint32) for weight in _weights(place)])


def _sum_on_host(x: np.ndarray) -> list[int]:
    """`_sum` of an array that is on the host, which needs no compilation."""
    words = np.ravel(x).view(_word(x)).astype(np.uint32)
    place = np.arange(words.size, dtype=np.uint32)
    return [int(np.sum(words * weight, dtype=np.uint32)) for weight in _weights(place)]


def _word(x) -> type:
    return {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)


def _weights(place):
    for factor in (0x9E3779B1, 0x85EBCA6B):
        weight = (place ^ (place >> 15)) * np.uint32(factor)
        yield (weight ^ (weight >> 13)) * np.uint32(0xC2B2AE35) | np.uint32(1)


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(leaf) for leaf in leaves])


def _checksums(plain) -> dict[str, list[int]]:
    """Path of each array -> its checksums."""
    names, leaves = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        leaves.append(leaf)
    # On the CPU the arrays of a small state are on the host already, and to compile their sums takes longer than to add them up.
    small = sum(leaf.nbytes for leaf in leaves) <= _SMALL and jax.process_count() == 1
    if (small and jax.default_backend() == "cpu") or all(isinstance(leaf, np.ndarray) for leaf in leaves):
        sums = [_sum_on_host(np.asarray(leaf)) for leaf in leaves]
    else:
        sums = np.asarray(_sums(leaves)).tolist()
    return dict(zip(names, sums, strict=True))


def _check(plain, position: dict) -> None:
    there = position["checksums"]
    for name, pair in _checksums(plain).items():
        if there.get(name) != pair:
            raise ValueError(f"{name} is not what was saved")


def _shapes(plain) -> dict[str, list[int]]:
    """Path of each array -> its shape."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(plain)
    }


def _check_shapes(plain, position: dict, folder) -> None:
    """Refuses a state of other shapes than the saved one, which is no damage: the position is sealed."""
    saved, wanted = position["shapes"], _shapes(plain)
    for name in sorted(saved.keys() | wanted.keys()):
        old, new = (tuple(shapes[name]) if name in shapes else "nothing" for shapes in (saved, wanted))
        if old != new:
            raise UserError(
                f"data: the run was saved with another number of classes, or another network: {name} is {old} in {folder} and "
                f"{new} now; give it the data that it had, or choose another workdir"
            )


def _seal(position: dict) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in position.items() if k != "seal"}).encode())


def _read_position(folder) -> dict:
    """The position in a checkpoint's folder; ValueError, OSError or KeyError where it is damaged."""
    position = json.loads((folder / POSITION).read_bytes())
    if position["seal"] != _seal(position):
        raise ValueError("the position is not what was saved")
    return position


def _score(folder) -> float | None:
    """The value by which a checkpoint may be the best; None where it has none or cannot be read."""
    try:
        score = _read_position(folder)["score"]
    except (ValueError, OSError, KeyError, TypeError):
        return None
    return None if score is None or math.isnan(score) else score


def _best(scores: dict[int, float | None]) -> int | None:
    """The step with the largest score, the first of equals."""
    return max((s for s in sorted(scores) if scores[s] is not None), key=scores.get, default=None)


def _need_room(folder: pathlib.Path, plain) -> None:
    """Refuses what cannot fit, with a MiB for what lies beside the arrays, before anything of it is written."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(plain)) // jax.process_count() + 2**20
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < needed:  # some network file systems say 0 of 0
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needed >> 20} MiB are needed)")


class _Kept:
    """Orbax asks it which checkpoints to keep: the newest, and the best of those that an earlier process wrote too."""

    # Not orbax' own LatestN and BestN: they read the scores of an earlier process too, but from a file of their own, and a
    # damaged one is an exception on opening (0.12.8), where here that checkpoint is set aside. Of equals they keep the last.

    def __init__(self, newest: int):
        self.newest, self.scores = newest, {}

    def among(self, steps: list[int]) -> set[int]:
        """Those of the steps, in rising order, that are kept."""
        return {*steps[-self.newest :], _best({step: self.scores.get(step) for step in steps})} - {None}

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = self.among([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]


class _Upload:
    """Puts a checkpoint elsewhere as soon as it is whole on this machine, while the run goes on."""

    def __init__(self, folder: pathlib.Path, put: Callable[[], None]):
        self._folder, self._put = folder, put
        self._given_up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._folder.is_dir():  # which it becomes by being renamed
                if self._given_up.wait(0.02) and not self._folder.is_dir():
                    return
            self._put()
        except Exception as error:
            self._error = error

    def finish(self) -> None:
        """Waits for it; raises what it failed with. What is not on this machine by now never comes."""
        self._given_up.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


class Checkpoints:
    """The checkpoints of one stage: the newest `keep`, and the best of those that were saved with a score.

    Where the folder is elsewhere (`gs://…`), they are written to a temporary folder of this machine and put there in the
    background, what a checkpoint says about itself last: where that is, all of it is.

    Args:
      directory: made where it does not exist; a path of this machine or an address.
      keep: how many of the newest to keep, ≥ 1.

    Raises:
      UserError: the folder cannot be written, or an address not reached.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        _quiet_orbax()
        self._mirror = Mirror(user_path("checkpoint", directory))
        self._local = self._mirror.local
        self.directory = self._mirror.folder if self._mirror.remote else self._local
        self._upload: _Upload | None = None
        self._kept = _Kept(keep)
        self._position: tuple[int, dict] | None = None  # of the newest checkpoint
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        with writing(self.directory):
            self._local.mkdir(parents=True, exist_ok=True)
            self._pull_positions()
            self._manager = ocp.CheckpointManager(
                self._local, options=options, item_names=("state", "position")
            )
        self._kept.scores = {s: _score(self._local / str(s)) for s in self._manager.all_steps()}

    def _pull_positions(self) -> None:
        """Brings all that is elsewhere but the arrays, which follow when they are read."""
        if self._mirror.remote:
            for step in checkpoint_steps(self.directory):
                for entry in (self.directory / str(step)).iterdir():
                    if entry.name != "state":
                        self._mirror.pull(f"{step}/{entry.name}")

    def _put(self, step: int) -> None:
        self._mirror.push(str(step), last=POSITION)
        self._remove_elsewhere()

    def _remove_elsewhere(self) -> None:
        """Removes there what is not to be kept, the whole or the rest of it."""
        if self._mirror.remote:
            steps = checkpoint_steps(self.directory)
            kept = {str(step) for step in self._kept.among(steps)}
            for entry in list(self.directory.iterdir()) if self.directory.is_dir() else []:
                if entry.name.isdecimal() and entry.name not in kept:
                    self._mirror.remove(entry.name, first=POSITION)

    def save(self, step: int, state, position: dict) -> None:
        """Starts writing a checkpoint and returns once the device may go on; a half-written one is never taken for whole.

        Checksums of all arrays go with it: what was written is not what is read where a disk fails.

        Args:
          step: of the stage.
          state: pytree of arrays.
          position: JSON-like; whatever else the run needs to go on. Its "score" is the value by which a checkpoint is the
            best, larger is better, or None.

        Raises:
          UserError: this checkpoint, or the one before it, could not be written.
        """
        if self._manager.latest_step() == step:
            return
        plain = _to_plain(state)
        with writing(self.directory):
            self._finish()
            _need_room(self._local, plain)
        position = {**position, "checksums": _checksums(plain), "shapes": _shapes(plain)}
        position["seal"] = _seal(position)
        self._position = step, position
        if jax.default_backend() == "cpu":
            # On the CPU a host view shares the buffer that the next step is free to reuse.
            plain = jax.tree.map(_copy, plain)
        self._kept.scores[step] = position["score"]
        args = ocp.args.Composite(state=ocp.args.StandardSave(plain), position=ocp.args.JsonSave(position))
        with writing(self.directory):
            self._manager.save(step, args=args, force=True)
            if self._mirror.remote:
                self._upload = _Upload(self._local / str(step), functools.partial(self._put, step))

    def amend(self, step: int, changes: dict) -> None:
        """Changes what the newest checkpoint, once it is on disk, says about itself: how its state was evaluated.

        Args:
          step: of the newest checkpoint.
          changes: of its position.

        Raises:
          UserError: the checkpoint, or the change, could not be written.
        """
        self.wait()
        newest, position = self._position
        if newest != step:
            raise ValueError(f"step: needs the newest checkpoint, {newest}, got {step}")
        position = {**position, **changes}
        position["seal"] = _seal(position)
        self._position = step, position
        if jax.process_index() == 0:
            with writing(self.directory):
                write_atomically(self._local / str(step) / POSITION, json.dumps(position))
                self._mirror.push(f"{step}/{POSITION}")
        self._kept.scores[step] = position["score"]
        self._tidy()

    def newest_position(self) -> dict | None:
        """The position in the newest checkpoint that has a readable one; None where there is none."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
                return _read_position(self._local / str(step))
        return None

    def restore(self, abstract, shardings) -> Saved | None:
        """The newest checkpoint that can be read and holds what was saved, or None where there is none.

        Newer ones that are damaged are set aside as `<step>.damaged`, with a line that says so.

        Args:
          abstract: pytree of ShapeDtypeStruct, what the state looks like.
          shardings: pytree of shardings, where its leaves go.

        Raises:
          UserError: there are checkpoints but none is good, or the newest has other shapes; they are left as they are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for step in steps:
            saved = None
            with reaching(self.directory):
                self._mirror.pull(f"{step}/state")
            try:
                saved = self._read(step, abstract, shardings)
            except UserError:
                raise
            except Exception as error:  # any damage to the files may surface as any exception
                damaged[step] = reason_of(error)
            if _all_agree(saved is not None):
                self._set_aside(damaged, step)
                self._position = saved.step, saved.position
                self._tidy()
                return saved
            damaged.setdefault(step, "another process cannot read it")
        if steps:
            raise UserError(
                f"workdir: none of the {len(steps)} checkpoints in {self.directory} can be read "
                f"({damaged[steps[0]]}); move {self.directory.name} away to start afresh"
            )
        return None

    def _read(self, step: int, abstract, shardings) -> Saved:
        plain = jax.eval_shape(_to_plain, abstract)
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), plain, shardings
        )
        position = _read_position(self._local / str(step))
        _check_shapes(plain, position, self.directory / str(step))
        read = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        _check(read["state"], position)
        return Saved(step, _from_plain(read["state"], abstract), position)

    def _set_aside(self, damaged: dict[int, str], used: int) -> None:
        for step, reason in damaged.items():
            folder = self.directory / str(step)
            logger.warning(
                "checkpoint %s is damaged (%s): it is set aside, and %d is used", folder, reason, used
            )
            if jax.process_index() == 0:
                names = (f"{step}.damaged{n}" for n in ("", *(f"-{k}" for k in range(2, 1000))))
                with writing(self.directory):
                    aside = next(name for name in names if not (self.directory / name).exists())
                    os.rename(self._local / str(step), self._local / aside)
                    self._mirror.push(aside)
                    self._mirror.remove(str(step), first=POSITION)
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self._manager.reload()

    def _tidy(self) -> None:
        """Removes what a process killed after its last save had not come to remove, the whole or the rest of it."""
        steps = sorted(self._manager.all_steps())
        with writing(self.directory):
            for step in sorted(set(steps) - self._kept.among(steps)):
                self._manager.delete(step)
            self._remove_elsewhere()

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def latest(self) -> os.PathLike | None:
        """Its folder."""
        step = self.latest_step()
        return None if step is None else self.directory / str(step)

    def wait(self) -> None:
        """Returns once everything is on disk.

        Raises:
          UserError: something could not be written.
        """
        with writing(self.directory):
            self._finish()

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
        finally:
            if self._upload is not None:
                upload, self._upload = self._upload, None
                upload.finish()

    def close(self) -> None:
        """Waits and lets go of the folder. Raises as `wait`."""
        with contextlib.closing(self._mirror), contextlib.closing(self._manager):
            self.wait()


def _all_agree(yes: bool) -> bool:
    if jax.process_count() == 1:
        return yes
    return bool(multihost_utils.process_allgather(np.bool_(yes)).all())


def checkpoint_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the checkpoints in a stage's folder, increasing; none where there is no such folder."""
    directory = user_path("checkpoint", directory)
    with reaching(directory):
        steps = map(checkpoint_step, directory.iterdir() if directory.is_dir() else [])
        return sorted(step for step in steps if step is not None)


@contextlib.contextmanager
def _opened(
    directory: str | os.PathLike, best: bool, step: int | None, name: str = ""
) -> Iterator[tuple[pathlib.Path, os.PathLike]]:
    """(folder on this machine, folder) of the newest checkpoint, of the best one, or of that of a step; of one elsewhere only
    the part `name` is brought here. Refusals of `restore_params`."""
    directory = absolute(user_path("checkpoint", directory))
    steps = checkpoint_steps(directory)
    if not steps:
        raise UserError(f"checkpoint: no checkpoint in {directory}")
    if step not in (None, *steps):
        raise UserError(f"checkpoint: {directory} has steps {', '.join(map(str, steps))}, got {step}")
    if step is None and best:
        step = _best({s: _score(directory / str(s)) for s in steps})
    chosen = str(steps[-1] if step is None else step)
    with contextlib.closing(Mirror(directory)) as mirror:
        with reaching(directory):
            mirror.pull(f"{chosen}/{name}" if name else chosen)
        yield mirror.local / chosen, directory / chosen


def restore_metrics(directory: str | os.PathLike, *, best: bool = False) -> dict[str, float]:
    """What the evaluation of a checkpoint has found: nothing where there was none, or none yet.

    Arguments and refusals are those of `restore_params`.
    """
    with _opened(directory, best, None, POSITION) as (folder, shown):
        try:
            return dict(_read_position(folder).get("metrics") or {})
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint: {shown} is damaged ({reason_of(error)})") from error


def restore_params(directory: str | os.PathLike, *, best: bool = False, step: int | None = None) -> dict:
    """Parameters and statistics of a checkpoint, whatever method wrote it: for teachers, fine-tuning and evaluation.

    Args:
      directory: a stage's folder of checkpoints.
      best: the checkpoint with the best metric instead of the newest.
      step: the checkpoint of this step instead.

    Returns:
      {"params": …, "extra": …} as nested dicts of numpy arrays; the moving average of the parameters where there is one.

    Raises:
      UserError: no checkpoint there, none of that step, or it is damaged.
    """
    _quiet_orbax()
    with _opened(directory, best, step) as (folder, shown):
        return _read_params(folder, shown)


def _read_params(folder: pathlib.Path, shown: os.PathLike) -> dict:
    try:
        position = _read_position(folder)
        reader = ocp.PyTreeCheckpointer()
        tree = reader.metadata(folder / "state").item_metadata.tree
        wanted = {k: v for k, v in tree.items() if k in ("params", "extra", "ema")}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        state = reader.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True),
        )
        _check(state, position)
    except Exception as error:  # any damage to the files may surface as any exception
        raise UserError(f"checkpoint: {shown} is damaged ({reason_of(error)})") from error
    average = state.get("ema")
    return {"params": average or state["params"], "extra": state.get("extra") or {}}
