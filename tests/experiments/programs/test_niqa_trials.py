"""The trials: in a real browser, by requests that no browser makes, through kills and into the selection."""

import http.client
import json
import pathlib
import shutil
import threading

import numpy as np
import pytest

from experiments.programs import niqa_trials
from jaxface import data
from jaxface.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def trial(name, start, group, score, distance):
    scores = {"cnn": score, "nss": 5.0}
    return {
        "id": name,
        "start": start,
        "changed": f"{name}.png",
        "group": group,
        "scores": scores,
        "distance": distance,
    }


@pytest.fixture
def folder(tmp_path):
    """Two starts with two changed images each, and one equal pair."""
    root = tmp_path / "images"
    root.mkdir()
    chance = np.random.default_rng(0)
    starts = {"start00.png": {"cnn": 6.0, "nss": 5.0}, "start01.png": {"cnn": 4.0, "nss": 3.0}}
    trials = [{"id": "same-00", "start": "start00.png", "changed": "start00.png"}]
    for k, start in enumerate(starts):
        trials += [
            trial(f"a{k}", start, "ssim_on_cnn", 2.0, 0.1),
            trial(f"b{k}", start, "ssim_on_cnn", 9.0, 0.4),
        ]
    for name in dict.fromkeys(name for t in trials for name in (t["start"], t["changed"])):
        image = chance.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        (root / name).write_bytes(data.encode_image(image))
    table = {"trials": trials, "starts": starts, "opinions": {"start00.png": 7.0, "start01.png": 3.0}}
    (root / niqa_trials.TABLE).write_text(json.dumps(table))
    return root


@pytest.fixture
def server(folder):
    """Serving in a thread."""
    answers = niqa_trials.Answers(folder / niqa_trials.ANSWERS)
    served = niqa_trials.TrialServer(niqa_trials.read_table(folder), folder, answers, port=0, seed=0)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()
    answers.close()


def ask(server, method, path, content=None, **headers):
    """(status, body) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    body = json.dumps(content) if isinstance(content, dict) else content
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    told = answer.status, answer.read()
    connection.close()
    return told


def step(server, path, **content):
    status, body = ask(server, "POST", path, content)
    assert status == 200, body
    return json.loads(body)


def lines(folder):
    return [json.loads(line) for line in (folder / niqa_trials.ANSWERS).read_text().splitlines()]


def test_every_trial_once_in_an_order_of_ones_own_and_on_from_there(server, folder):
    orders = {}
    for observer in ("ann", "Bo 2", "Zoë"):
        told, seen = step(server, "/next", observer=observer), []
        while told["trial"] is not None:
            assert told["done"] == len(seen) and told["total"] == 5 and len(told["images"]) == 2
            # Asked again, as after a reload, the same one comes.
            assert step(server, "/next", observer=observer) == told
            seen.append(told["trial"])
            told = step(
                server, "/answer", observer=observer, trial=told["trial"], different=seen[-1][0] == "b"
            )
        assert sorted(seen) == ["a0", "a1", "b0", "b1", "same-00"] and told["done"] == 5
        orders[observer] = tuple(seen)
    assert len(set(orders.values())) == 3
    # A second answer to one trial changes nothing.
    step(server, "/answer", observer="ann", trial="a0", different=True)
    answers = lines(folder)
    assert len(answers) == 15 and {a["observer"] for a in answers} == set(orders)
    assert all(a["different"] == (a["trial"][0] == "b") for a in answers)


def test_which_of_the_two_comes_first_is_chance(folder):
    table = niqa_trials.read_table(folder)
    turned = [flag for n in range(40) for _, flag in niqa_trials.order_of(table, f"o{n}", 0)]
    assert 60 < sum(turned) < 140


def test_images_come_by_number_alone(server, folder):
    told = step(server, "/next", observer="ann")
    status, body = ask(server, "GET", told["images"][0])
    assert status == 200 and any(body == path.read_bytes() for path in folder.glob("*.png"))
    (folder.parent / "secret.png").write_bytes(b"secret")
    paths = (
        "/../secret.png", "/image/../../secret.png", "/image/%2e%2e/secret.png", "/image/99", "/image/-1", "/image/00",
        "/image/1/../../trials.json", "/trials.json", "/answers.jsonl", "//etc/passwd", "/image/" + "9" * 400,
    )  # fmt: skip
    assert {ask(server, "GET", path)[0] for path in paths} == {404}


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/answer", {"observer": "ann", "trial": "zz", "different": True}, {}, 400),
        ("/answer", {"observer": "ann", "trial": "a0", "different": "yes"}, {}, 400),
        ("/answer", {"observer": "../ann", "trial": "a0", "different": True}, {}, 400),
        ("/next", {"observer": ""}, {}, 400),
        ("/next", {"observer": "x" * 41}, {}, 400),
        ("/next", "not JSON", {}, 400),
        ("/next", "[1]", {}, 400),
        ("/next", {"observer": "ann"}, {"Content_Type": "text/plain"}, 400),
        ("/next", {"observer": "a" * 5000}, {}, 413),
        ("/elsewhere", {"observer": "ann"}, {}, 404),
        ("/next", {"observer": "ann"}, {"Host": "evil.example:80"}, 403),
    ],
)
def test_what_no_page_of_ours_sends_is_refused(server, folder, path, content, headers, status):
    assert ask(server, "POST", path, content, **headers)[0] == status
    assert not (folder / niqa_trials.ANSWERS).read_bytes()
    assert step(server, "/next", observer="ann")["done"] == 0  # and it serves on


def test_only_this_machine_is_served(server):
    assert server.server_address[0] == "127.0.0.1" and server.address.startswith("http://127.0.0.1:")


def test_a_kill_loses_no_answer_that_was_given(folder):
    path = folder / niqa_trials.ANSWERS
    answers = niqa_trials.Answers(path)
    answers.add("ann", "a0", True)
    assert len(lines(folder)) == 1  # on the disk before anything else happens
    with pytest.raises(UserError, match="another process is writing"):
        niqa_trials.Answers(path)
    answers.close()
    path.write_bytes(path.read_bytes() + b'{"observer": "ann", "tri')
    again = niqa_trials.Answers(path)
    assert again.given == {("ann", "a0"): True}
    again.add("ann", "b0", False)
    again.close()
    assert [(a["trial"], a["different"]) for a in lines(folder)] == [("a0", True), ("b0", False)]


def test_a_full_disk_is_told_and_leaves_no_half_line(server, folder, monkeypatch):
    told = step(server, "/next", observer="ann")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(niqa_trials.os, "fsync", full)
        content = {"observer": "ann", "trial": told["trial"], "different": True}
        assert ask(server, "POST", "/answer", content) == (
            500,
            b"cannot keep the answer: No space left on device",
        )
    assert not (folder / niqa_trials.ANSWERS).read_bytes()
    assert step(server, "/next", observer="ann") == told


def test_the_farthest_that_people_could_not_tell_is_the_counterexample(folder, capsys):
    answers = niqa_trials.Answers(folder / niqa_trials.ANSWERS)
    for number in range(4):
        observer = f"o{number}"
        answers.add(observer, "a0", False)
        answers.add(observer, "b0", number < 2)  # half of them saw it
        answers.add(observer, "a1", number < 1)
        answers.add(observer, "b1", number < 1)
        answers.add(observer, "same-00", number == 3)
    answers.close()
    niqa_trials.main(["select", "--images", str(folder)])
    said = capsys.readouterr().out
    assert "o3: saw a difference in 1 of 1 equal pairs" in said and "ssim_on_cnn, by 4 observers" in said
    told = json.loads((folder / "selection.json").read_text())["ssim_on_cnn"]
    assert told["chosen"] == {"start00.png": "a0", "start01.png": "b1"}
    metrics = told["metrics"]
    assert metrics["found"] == 2 and metrics["cnn/change"] == pytest.approx((4 + 5) / 2)
    assert metrics["cnn/robustness"] == pytest.approx(np.mean([np.log(6 / 4), np.log(6 / 5)]))
    assert metrics["cnn/srcc"] < 0 < 1e-9 + metrics["nss/srcc"]
    niqa_trials.main(["select", "--images", str(folder), "--threshold", "0.5"])
    told = json.loads((folder / "selection.json").read_text())["ssim_on_cnn"]
    assert told["chosen"]["start00.png"] == "a0"  # 4 levels against 3


def test_images_to_show_are_those_that_could_be_chosen():
    changes, distances = np.array([1, 3, 2, 5, 4, 5.0]), np.array([0.1, 0.2, 0.3, 0.5, 0.4, 0.6])
    assert niqa_trials.spread_along(changes, distances, 9) == [0, 1, 4, 3]
    assert niqa_trials.spread_along(changes, distances, 2) == [0, 3]
    assert niqa_trials.spread_along(changes, distances, 1) == [0]


def edited(folder, **fields):
    path = folder / niqa_trials.TABLE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def outside(folder):
    shutil.copy(folder / "a0.png", folder.parent / "other.png")
    edited(folder, trials=[{"id": "x", "start": "start00.png", "changed": "../other.png"}])


def doubled(folder):
    edited(folder, trials=2 * [{"id": "x", "start": "a0.png", "changed": "a1.png"}])


def linked(folder):
    (folder.parent / "other.png").write_bytes(b"")
    (folder / "link.png").symlink_to(folder.parent / "other.png")
    edited(folder, trials=[{"id": "x", "start": "start00.png", "changed": "link.png"}])


@pytest.mark.parametrize(
    ("damage", "arguments", "words"),
    [
        (outside, "serve", "names '../other.png', which is no .png inside"),
        (linked, "serve", "names 'link.png', which is no .png inside"),
        (lambda folder: (folder / "a1.png").unlink(), "serve", "names 'a1.png', which is no .png inside"),
        (lambda folder: edited(folder, trials=[]), "serve", "has no trial"),
        (lambda folder: edited(folder, trials=[{"id": "x"}]), "serve", "is no table of trials"),
        (doubled, "serve", "two trials of one id"),
        (lambda folder: (folder / niqa_trials.TABLE).unlink(), "serve", "images: needs a folder with trials.json"),
        (lambda folder: (folder / niqa_trials.ANSWERS).write_text("{}\n"), "serve", "line 1 of"),
        (lambda folder: None, "serve --port 70000", "port: needs an integer from 0 to 65535, got 70000"),
        (lambda folder: None, "select", "answers: cannot read"),
        (lambda folder: None, "export", "run: needs the work directory of a finished run"),
        (lambda folder: None, "export --run {folder}/nowhere", "holds no attack"),
        (lambda folder: None, "export --run {folder} --per-start 0", "per-start: needs an integer from 1"),
        (lambda folder: None, "show", "invalid choice: 'show'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(folder, refusal, damage, arguments, words):
    damage(folder)
    command, *more = arguments.format(folder=folder).split()
    assert words in refusal(niqa_trials.main, [command, "--images", folder, *more])


def test_a_port_that_is_taken_is_refused(server, folder, refusal):
    arguments = [
        "serve",
        "--images",
        folder,
        "--answers",
        folder / "others.jsonl",
        "--port",
        server.server_port,
    ]
    assert "port: cannot serve on" in refusal(niqa_trials.main, arguments)


@pytest.fixture(scope="module")
def browser():
    """A real one, of the system."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright (pip install playwright)"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser, one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


WATCH = """
window.seen = [];
new MutationObserver(() => {
  const canvas = document.getElementById("canvas");
  const shown = canvas.classList.contains("shown");
  window.seen.push([shown, performance.now(), getComputedStyle(canvas).visibility]);
}).observe(document.getElementById("canvas"), {attributes: true, attributeFilter: ["class"]});
"""


def begin(page, server, observer):
    page.goto(server.address)
    page.evaluate(WATCH)
    page.fill("#observer", observer)
    page.click("#start")


def answered(page, count):
    """Waits until so many of the five trials have an answer; by a selector, since the page's policy forbids scripts of text."""
    page.wait_for_selector(f"#progress:text-is('{count} of 5')", state="attached", timeout=20_000)


@pytest.mark.slow
def test_an_observer_in_a_browser(browser, server, folder):
    """Buttons and keys, one second of each image and half a second of gray, stopped in the middle, on a phone too."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    begin(page, server, "ann")
    assert page.is_hidden("#question")
    page.keyboard.press("y")  # too early: nothing has been shown
    page.wait_for_selector("#yes:visible", timeout=20_000)
    assert page.inner_text("#question h1") == "Do these two look different?"
    assert page.inner_text("#progress") == "0 of 5" and not lines(folder)
    (on, start, visible), (off, end, hidden), (on2, start2, _), (off2, end2, _) = page.evaluate("window.seen")
    assert (on, off, on2, off2) == (True, False, True, False) and (visible, hidden) == ("visible", "hidden")
    for shown in (end - start, end2 - start2):
        assert 990 <= shown < 1600
    assert 490 <= start2 - end < 1100
    assert page.evaluate("[canvas.width, canvas.height]") == [32, 24]
    page.click("#yes")
    answered(page, 1)
    page.wait_for_selector("#yes:visible", timeout=20_000)
    page.keyboard.press("n")
    answered(page, 2)
    assert [answer["different"] for answer in lines(folder)] == [True, False]
    page.close()

    # On a phone, under the same name: on from there, nothing twice, and everything inside the screen.
    phone = browser.new_page(viewport={"width": 360, "height": 640}, device_scale_factor=2, has_touch=True)
    begin(phone, server, "ann")
    for number in range(2, 5):
        answered(phone, number)
        phone.wait_for_selector("#no:visible", timeout=20_000)
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for button in ("#yes", "#no"):
            box = phone.locator(button).bounding_box()
            assert box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 360
        phone.tap("#no")
    phone.wait_for_selector("#end:visible")
    answers = lines(folder)
    assert len(answers) == 5 == len({answer["trial"] for answer in answers})
    phone.close()
    assert not problems


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_and_the_answer_kept_for_it(browser, server, folder):
    page = browser.new_page()
    begin(page, server, "bo")
    page.wait_for_selector("#yes:visible", timeout=20_000)
    page.route("**/answer", lambda route: route.abort())
    page.click("#yes")
    page.wait_for_selector("#error:visible")
    page.unroute("**/answer")
    page.click("#again")
    answered(page, 1)
    assert [answer["different"] for answer in lines(folder)] == [True]
    page.close()


def test_the_table_of_an_export_is_read_back(folder):
    table = niqa_trials.read_table(folder)
    assert isinstance(table.trials[0], niqa_trials.Trial) and not table.trials[0].group
    assert pathlib.Path(table.trials[1].changed).suffix == ".png"
