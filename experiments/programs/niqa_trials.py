"""Yes/no trials of changed images in the browser: `python -m experiments.programs.niqa_trials serve --images DIR`.

    niqa_trials export --run RUN --images DIR         # images of a finished run of niqa_attack, from hardly to much changed
    niqa_trials serve --images DIR [--port 8731]      # the trials, on this machine alone; answers go to DIR/answers.jsonl
    niqa_trials select --images DIR                   # counterexamples by what people could not see, and their effect

"Do these two look different?": an image and what became of it, 1 s each with 0.5 s of gray between, in a random order that is an
observer's own. An answer is on the disk before the page goes on. Whoever stops goes on where they were, by giving the same name.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import random
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from jaxface import data, training
from jaxface.cli import console
from jaxface.errors import UserError
from jaxface.metrics.image import jnd_from_trials, robustness_r, select_counterexample, srcc
from jaxface.paths import local_path
from jaxface.training.workdir import read_descriptions

TABLE, ANSWERS = "trials.json", "answers.jsonl"
PAGE = pathlib.Path(__file__).with_suffix(".html")
PORT = 8731
OBSERVERS = r"[\w .-]{1,40}"
LONGEST_REQUEST = 4096  # bytes


@dataclasses.dataclass(frozen=True)
class Trial:
    """A pair of images that is shown, a line of the table.

    `group` is what one counterexample is chosen among with all trials of the same `start`, as `ssim_on_cnn`; empty for two equal
    images, which tell how often somebody sees what is not there. `scores` are those of all models for the changed image.
    """

    id: str
    start: str
    changed: str
    group: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    distance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Table:
    """The trials of a folder, and of every start (the name of its file) the scores of all models and the opinion of it."""

    trials: tuple[Trial, ...]
    starts: Mapping[str, Mapping[str, float]]
    opinions: Mapping[str, float]


def read_table(folder: pathlib.Path) -> Table:
    """The table of a folder.

    Raises:
      UserError: none, one that cannot be understood, or an image that is not there or not inside the folder.
    """
    path = folder / TABLE
    try:
        content = json.loads(path.read_text("utf-8"))
        trials = tuple(Trial(**trial) for trial in content["trials"])
        table = Table(trials, dict(content.get("starts", {})), dict(content.get("opinions", {})))
    except OSError as error:
        raise UserError(f"images: needs a folder with {TABLE}, {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"images: {path} is no table of trials ({type(error).__name__}: {error}); export it again"
        ) from None
    if not trials:
        raise UserError(f"images: {path} has no trial")
    if len({trial.id for trial in trials}) < len(trials):
        raise UserError(f"images: {path} has two trials of one id")
    root = folder.resolve()
    for name in dict.fromkeys(name for trial in trials for name in (trial.start, trial.changed)):
        file = (root / str(name)).resolve()
        if not (file.is_relative_to(root) and file.suffix == ".png" and file.is_file()):
            raise UserError(f"images: {path} names {name!r}, which is no .png inside {folder}")
    return table


class Answers:
    """The answers of all observers in a file, a JSON object a line; held by one process at a time.

    A line is written whole and is on the disk when `add` returns. What a kill left of the line after it, if anything, was never
    acknowledged and is cut off.

    Args:
      path: the file; made if there is none.

    Raises:
      UserError: a file that cannot be written, is held by another process, or has a line that is no answer.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self._lock = path, threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"answers: cannot write {path}: {error.strerror}") from None
        try:
            self._hold()
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            self.given = answers_of(path, whole)
            if len(whole) < len(content):
                os.truncate(path, len(whole))
        except BaseException:
            self.close()
            raise

    def _hold(self) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"answers: another process is writing {self.path}") from None

    def add(self, observer: str, trial: str, different: bool) -> None:
        """Keeps an answer; a second one of the same observer to the same trial, such as of a double click, changes nothing."""
        with self._lock:
            if (observer, trial) in self.given:
                return
            line = json.dumps({"observer": observer, "trial": trial, "different": different}) + "\n"
            content, written = line.encode(), 0
            size = os.fstat(self._file).st_size
            try:
                while written < len(content):
                    written += os.write(self._file, content[written:])
                os.fsync(self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)  # half a line would join the next one
                raise
            self.given[observer, trial] = different

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._file)


def answers_of(path: pathlib.Path, content: bytes) -> dict[tuple[str, str], bool]:
    """(observer, trial) -> whether they looked different, of whole lines."""
    given = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            answer = json.loads(line)
            observer, trial, different = answer["observer"], answer["trial"], answer["different"]
            if not (isinstance(observer, str) and isinstance(trial, str) and isinstance(different, bool)):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(f"answers: line {number} of {path} is no answer") from None
        given.setdefault((observer, trial), different)
    return given


def order_of(table: Table, observer: str, seed: int) -> list[tuple[Trial, bool]]:
    """An observer's trials in the order in which they are shown, each with whether the changed image comes first."""
    chance = random.Random(f"{seed}/{observer}")
    trials = list(table.trials)
    chance.shuffle(trials)
    return [(trial, chance.random() < 0.5) for trial in trials]


class TrialServer(ThreadingHTTPServer):
    """Serves the page, the images of a table and what comes next, on this machine alone.

    Args:
      table: what is shown. folder: where its images are. answers: where answers go.
      port: of 127.0.0.1; 0 takes a free one.
      seed: of the orders.
    """

    daemon_threads = True

    def __init__(self, table: Table, folder: pathlib.Path, answers: Answers, *, port: int, seed: int):
        self.table, self.folder, self.answers, self.seed = table, folder, answers, seed
        names = dict.fromkeys(name for trial in table.trials for name in (trial.start, trial.changed))
        self.files = list(names)
        self._number = {name: number for number, name in enumerate(self.files)}
        self._ids = {trial.id for trial in table.trials}
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://127.0.0.1:{self.server_port}/"

    def next_of(self, observer: str) -> dict:
        """The first trial of an observer that has no answer: its id and the paths of its two images, in the order to show."""
        order = order_of(self.table, observer, self.seed)
        left = [(t, turned) for t, turned in order if (observer, t.id) not in self.answers.given]
        told = {"done": len(order) - len(left), "total": len(order), "trial": None}
        if left:
            trial, turned = left[0]
            names = (trial.start, trial.changed)[:: -1 if turned else 1]
            told |= {"trial": trial.id, "images": [f"/image/{self._number[name]}" for name in names]}
        return told

    def knows(self, trial: object) -> bool:
        """Whether there is such a trial."""
        return isinstance(trial, str) and trial in self._ids


class _Refused(Exception):
    """What the page did wrong, as a status."""

    def __init__(self, status: HTTPStatus):
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """`/` the page, `/image/NUMBER`, `POST /next` {observer}, `POST /answer` {observer, trial, different}."""

    server: TrialServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        with self._refusals():
            if self.path == "/":
                return self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
            if self.path == "/favicon.ico":  # which browsers ask for by themselves
                return self._send(b"", "image/x-icon", HTTPStatus.NO_CONTENT)
            # By number alone: no name of a file ever comes from the browser.
            number = re.fullmatch(r"/image/(0|[1-9][0-9]{0,6})", self.path)
            if number is None or int(number[1]) >= len(self.server.files):
                raise _Refused(HTTPStatus.NOT_FOUND)
            content = (self.server.folder / self.server.files[int(number[1])]).read_bytes()
            return self._send(content, "image/png")

    def do_POST(self):
        with self._refusals():
            if self.path not in ("/next", "/answer"):
                raise _Refused(HTTPStatus.NOT_FOUND)
            told = self._json()
            observer = told.get("observer")
            if not (isinstance(observer, str) and re.fullmatch(OBSERVERS, observer)):
                raise _Refused(HTTPStatus.BAD_REQUEST)
            if self.path == "/answer":
                if not (self.server.knows(told.get("trial")) and isinstance(told.get("different"), bool)):
                    raise _Refused(HTTPStatus.BAD_REQUEST)
                self.server.answers.add(observer, told["trial"], told["different"])
            return self._send(json.dumps(self.server.next_of(observer)).encode(), "application/json")

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            # A page of elsewhere may make a browser call this machine under another name.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                raise _Refused(HTTPStatus.FORBIDDEN)
            yield
        except _Refused as refused:
            self.close_connection = True
            self._send(refused.status.phrase.encode(), "text/plain; charset=utf-8", refused.status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except OSError as error:
            self.close_connection = True
            text = f"cannot keep the answer: {error.strerror}"
            self._send(text.encode(), "text/plain; charset=utf-8", HTTPStatus.INTERNAL_SERVER_ERROR)

    def _json(self) -> dict:
        length = self.headers.get("Content-Length", "")
        # A form of elsewhere cannot have this type without asking first.
        if self.headers.get("Content-Type") != "application/json" or not re.fullmatch(r"[0-9]{1,6}", length):
            raise _Refused(HTTPStatus.BAD_REQUEST)
        if int(length) > LONGEST_REQUEST:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            told = json.loads(self.rfile.read(int(length)))
        except ValueError:
            raise _Refused(HTTPStatus.BAD_REQUEST) from None
        if not isinstance(told, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST)
        return told

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        del format, args  # an observer's terminal is no log


def spread_along(changes: np.ndarray, distances: np.ndarray, count: int) -> list[int]:
    """Which of many images to show people: of those that no other moves the score farther at no more distance, some evenly.

    Args:
      changes: [N] |f(x) - f(x₀)|. distances: [N] D(x, x₀). count: at most, ≥ 1.

    Returns:
      Places in [0, N), from hardly to much changed.
    """
    front, best = [], -math.inf
    for place in np.lexsort((-changes, distances)):
        if changes[place] > best:
            front.append(int(place))
            best = changes[place]
    steps = np.linspace(0, len(front) - 1, min(count, len(front))).round().astype(int)
    return [front[step] for step in dict.fromkeys(steps.tolist())]


def export(run: str, folder: pathlib.Path, per_start: int) -> int:
    """Writes images and the table of trials of a finished run of niqa_attack; how many trials they are.

    Raises:
      UserError: a run without attacks, a folder that is not empty, or a disk that is full.
    """
    described = [d for d in read_descriptions(run) if d[1].get("kind") == "perceptual_attack"]
    if not described:
        raise UserError(f"run: {run} holds no attack; needs a finished run of niqa_attack")
    folder = training.open_workdir(folder, {"tool": "niqa_trials", "run": str(local_path("run", run).resolve()),
                                            "per_start": per_start})  # fmt: skip
    trials, starts, opinions = [], {}, {}
    for place, description in described:
        saved = training.restore_params(place)["params"]
        names, attacked = description["models"], description["models"].index(description["model"])
        for s, start in enumerate(saved["starts"]):
            name = f"start{s:02d}.png"
            if name not in starts:
                _save(folder / name, start)
                starts[name] = dict(zip(names, map(float, saved["start_scores"][:, s]), strict=True))
                opinions[name] = float(saved["opinions"][s])
                trials.append(Trial(f"same-{s:02d}", name, name))
            scores = saved["scores"][:, s]
            changes = np.abs(scores[attacked] - saved["start_scores"][attacked, s])
            for k in spread_along(changes, saved["distances"][s], per_start):
                group = description["name"]
                changed = f"{group}-{s:02d}-{k:03d}.png"
                _save(folder / changed, saved["images"][s, k])
                of_image = dict(zip(names, map(float, scores[:, k]), strict=True))
                distance = float(saved["distances"][s, k])
                trials.append(Trial(changed.removesuffix(".png"), name, changed, group, of_image, distance))
    content = {
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "starts": starts,
        "opinions": opinions,
    }
    training.write_atomically(folder / TABLE, json.dumps(content, indent=1) + "\n")
    return len(trials)


def _save(path: pathlib.Path, image: np.ndarray) -> None:
    try:
        training.write_atomically(path, data.encode_image(image))
    except OSError as error:
        raise UserError(f"images: cannot write {path}: {error.strerror}") from None


def select(
    table: Table, given: Mapping[tuple[str, str], bool], threshold: float
) -> dict[str, dict[str, object]]:
    """Counterexamples by what people could not see, and what they do to the models.

    Returns:
      group -> {"chosen": {start: trial}, "metrics": {model/srcc, model/robustness, model/change of every model; found}}; the SRCC
      is that of the opinions with the starts and as many images more, a start again where it has no counterexample.
    """
    observers = sorted({observer for observer, _ in given})
    report: dict[str, dict[str, object]] = {}
    for group in dict.fromkeys(trial.group for trial in table.trials if trial.group):
        attacked = group.rpartition("_on_")[2]
        chosen: dict[str, Trial] = {}
        for start, before in table.starts.items():
            trials = [t for t in table.trials if t.group == group and t.start == start]
            if not trials:
                continue
            same = np.array([[_same(given.get((o, t.id))) for o in observers] for t in trials])
            below = jnd_from_trials(same.reshape(len(trials), -1), threshold=threshold)
            distances = np.array([t.distance for t in trials])
            scores = np.array([t.scores[attacked] for t in trials])
            place, _ = select_counterexample(scores, before[attacked], below, distances)
            if place is not None:
                chosen[start] = trials[place]
        metrics: dict[str, float] = {"found": float(len(chosen))}
        names = list(table.starts)
        for model in next(iter(table.starts.values())):
            clean = np.array([table.starts[name][model] for name in names])
            after = np.array(
                [chosen[n].scores[model] if n in chosen else table.starts[n][model] for n in names]
            )
            opinions = [table.opinions[name] for name in names]
            found = np.array([name in chosen for name in names])
            metrics[f"{model}/srcc"] = srcc(np.concatenate([clean, after]), opinions + opinions)
            metrics[f"{model}/change"] = float(np.abs(after - clean)[found].mean()) if found.any() else 0.0
            metrics[f"{model}/robustness"] = robustness_r(clean[found], after[found])
        report[group] = {"chosen": {start: trial.id for start, trial in chosen.items()}, "metrics": metrics}
    return report


def _same(different: bool | None) -> float:
    return math.nan if different is None else float(not different)


def false_alarms(table: Table, given: Mapping[tuple[str, str], bool]) -> dict[str, tuple[int, int]]:
    """Observer -> (equal pairs that looked different, equal pairs that were answered)."""
    equal = {trial.id for trial in table.trials if not trial.group}
    report: dict[str, tuple[int, int]] = {}
    for (observer, trial), different in given.items():
        wrong, count = report.get(observer, (0, 0))
        report[observer] = (wrong + (different and trial in equal), count + (trial in equal))
    return report


def _read_answers(path: pathlib.Path) -> dict[tuple[str, str], bool]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"answers: cannot read {path}: {error.strerror}") from None
    return answers_of(path, content[: content.rfind(b"\n") + 1])


@console.exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    parser = console.Arguments(prog="niqa_trials", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("command", choices=("export", "serve", "select"))
    parser.add_argument("--images", required=True, help="folder of the images and their table")
    parser.add_argument("--run", help="export: work directory of a finished run of niqa_attack")
    parser.add_argument(
        "--per-start", type=int, default=8, help="export: images of a start and an attack (default 8)"
    )
    parser.add_argument("--answers", help=f"file of the answers (default {ANSWERS} in --images)")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"serve: of this machine, 0 for a free one (default {PORT})"
    )
    parser.add_argument("--seed", type=int, default=0, help="serve: of the orders")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.75,
        help="select: share of trials that see no change (default 0.75)",
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
    folder = local_path("images", options.images)
    answers = folder / ANSWERS if options.answers is None else local_path("answers", options.answers)
    if options.command == "export":
        if options.run is None:
            raise UserError("run: needs the work directory of a finished run, got none")
        if options.per_start < 1:
            raise UserError(f"per-start: needs an integer from 1, got {options.per_start}")
        count = export(options.run, folder, options.per_start)
        console.say(f"{count} trials: {folder}")
    elif options.command == "serve":
        serve(folder, answers, options.port, options.seed)
    else:
        table, given = read_table(folder), _read_answers(answers)
        for observer, (wrong, count) in sorted(false_alarms(table, given).items()):
            console.say(f"{observer}: saw a difference in {wrong} of {count} equal pairs")
        report = select(table, given, options.threshold)
        for group, told in report.items():
            metrics = told["metrics"]
            assert isinstance(metrics, dict)
            console.show_metrics(metrics, f"{group}, by {len({o for o, _ in given})} observers")
        training.write_atomically(folder / "selection.json", json.dumps(report, indent=1) + "\n")


def serve(folder: pathlib.Path, path: pathlib.Path, port: int, seed: int) -> None:
    """Serves the trials of a folder until it is interrupted."""
    if not 0 <= port <= 65535:
        raise UserError(f"port: needs an integer from 0 to 65535, got {port}")
    table = read_table(folder)
    answers = Answers(path)
    try:
        try:
            server = TrialServer(table, folder, answers, port=port, seed=seed)
        except OSError as error:
            raise UserError(f"port: cannot serve on {port}: {error.strerror}") from None
        with server, contextlib.suppress(KeyboardInterrupt):
            console.say(f"{server.address}: {len(table.trials)} trials, answers go to {path}; Ctrl-C stops")
            sys.stdout.flush()
            server.serve_forever()
    finally:
        answers.close()


if __name__ == "__main__":
    main()
