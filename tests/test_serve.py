"""The server as a process of its own, and its page in a real browser."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.answers.helpers import (
    Server,
    add_pictures,
    draw_two,
    encode,
    run_command,
    save_model,
    serving,
)
from tests.browser import LocalPage, open_url
from tests.helpers import ROOT, assert_one_clear_line, edit_params

pytestmark = pytest.mark.slow  # a server loads TensorFlow

VARIANTS = ["tiny_conv", "tiny_dense"]
PNG = encode(draw_two())
NO_ANSWERS = {name: ["–"] for name in VARIANTS}
WAIT_S = 20


def train(root: Path) -> None:
    """Save models as if they had been trained, on `tiny`."""
    for seed, name in enumerate(VARIANTS):
        save_model("tiny", name, seed)


@pytest.fixture
def trained(project: Path) -> Path:
    add_pictures()
    train(project)
    return project


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of a module share; none of them ends it."""
    root = tmp_path_factory.mktemp("served")
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    def change(params: Any) -> None:
        params["datasets"]["tiny"] = dict(params["datasets"]["digits"])
        params["datasets"]["tiny"]["pictures"] = {"longer_side": 20, "centre": "mass"}

    edit_params(root / "params.yaml", change)
    here = Path.cwd()
    os.chdir(root)
    try:
        train(root)
    finally:
        os.chdir(here)
    with serving(root) as started:
        yield started


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends_at_once(trained: Path, signal_: int) -> None:
    """A server starts on a free port, answers, and ends within seconds on a signal, with code 0."""
    with serving(trained, "--variants", "tiny_dense") as server:
        answer = httpx.post(f"{server.url}/predict", content=PNG).json()
        assert list(answer["answers"]) == ["tiny_dense"]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        code, took_s = server.end(signal_)
        assert code == 0
        assert took_s < 10
        assert server.process.stdout is not None
        assert server.process.stderr is not None
        assert server.process.stdout.read() == "stopped\n"
        assert "Traceback" not in server.process.stderr.read()


def test_a_signal_twice_ends_it_too(trained: Path) -> None:
    """Signals of both kinds, one after another, end it without a traceback."""
    with serving(trained) as server:
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert server.process.stderr is not None
        assert "Traceback" not in server.process.stderr.read()


def test_what_was_asked_is_answered_before_it_ends(trained: Path) -> None:
    """A request that has begun when the signal comes is answered."""
    with serving(trained) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PNG)}\r\n\r\n"
            connection.sendall(head.encode() + PNG[:100])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(PNG[100:])
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert server.process.wait(20) == 0


def test_a_taken_port_is_one_clear_line(trained: Path) -> None:
    """If the port is taken, one line says so, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("serve", "--port", str(port), cwd=trained)
    assert_one_clear_line(
        done, f"127.0.0.1:{port} cannot be listened on (Address already in use); choose another"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "127.0.0.1:70000 cannot be listened on"),
        (["--host", "192.0.2.1"], "192.0.2.1:8000 cannot be listened on"),
        (["--variants", "tiny_con"], "has no trained 'tiny_con'; did you mean 'tiny_conv'?"),
        (["--dataset", "nosuch"], "nosuch: has no trained model; train one, or fetch it: dvc pull"),
    ],
)
def test_bad_input_is_one_clear_line(trained: Path, arguments: list[str], message: str) -> None:
    """A port that cannot be, a host that is not here, an unknown name: each is one line."""
    assert_one_clear_line(run_command("serve", *arguments, cwd=trained), message)


def test_without_a_model_nothing_is_served(project: Path) -> None:
    """If nothing is trained, one line says how to."""
    assert_one_clear_line(run_command("serve", cwd=project), "no model is trained yet; run the")


def test_malformed_requests_leave_it_answering(server: Server) -> None:
    """Two hundred requests that are no HTTP, or end early, leave it answering."""
    host, port = server.url.removeprefix("http://").split(":")
    half = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + PNG[:50]
    negative = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    for number in range(200):
        content = (os.urandom(200), half, negative, chunked, b"")[number % 5]
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(content)
    assert httpx.post(f"{server.url}/predict", content=PNG).status_code == 200
    assert server.process.poll() is None


def test_many_at_once_are_answered(server: Server) -> None:
    """Sixty requests of twelve clients at once are all answered."""
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            for _ in range(5):
                statuses.append(client.post(f"{server.url}/predict", content=PNG).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert statuses == [200] * 60


def test_too_large_a_picture_is_refused(server: Server) -> None:
    """Ten megabytes and more are refused, and the next picture is answered."""
    large = b"x" * 10_000_001
    assert httpx.post(f"{server.url}/predict", content=large).status_code == 413
    assert httpx.post(f"{server.url}/predict", content=PNG).status_code == 200


def paper_of(page: LocalPage) -> WebElement:
    return page.browser.find_element(By.ID, "paper")


def answers(page: LocalPage) -> dict[str, list[str]]:
    """Return the texts of each variant's answer: its name, the class, and each guess."""
    found: dict[str, list[str]] = page.ask(
        "Object.fromEntries([...document.querySelectorAll('.answer')].map(each => "
        "[each.dataset.variant, [each.querySelector('strong').textContent, "
        "...[...each.querySelectorAll('li')].map(item => item.textContent)]]))"
    )
    return found


def wait_for_answers(page: LocalPage) -> dict[str, list[str]]:
    """Wait until each variant has answered."""
    WebDriverWait(page.browser, WAIT_S).until(
        lambda _: all(len(each) > 1 for each in answers(page).values())
    )
    return answers(page)


def darkest(page: LocalPage) -> int:
    """Return the darkest pixel of the paper."""
    pixel: int = page.ask(
        "(() => { const copy = new OffscreenCanvas(280, 280)"
        ".getContext('2d', {willReadFrequently: true}); copy.drawImage(paper, 0, 0); return "
        "Math.min(...copy.getImageData(0, 0, 280, 280).data.filter((_, place) => place % 4 === 0));"
        " })()"
    )
    return pixel


def assert_quiet(page: LocalPage, url: str) -> None:
    """Check that nothing was logged, and nothing asked of another server."""
    assert page.messages() == []
    addresses = page.requests()
    assert addresses
    assert [each for each in addresses if not each.startswith((f"{url}/", f"blob:{url}/"))] == []


def draw(page: LocalPage) -> None:
    """Draw a seven with the mouse."""
    actions = ActionChains(page.browser, duration=20)
    actions.move_to_element_with_offset(paper_of(page), -60, -80).click_and_hold()
    for x, y in ((40, 0), (40, 0), (40, 0), (-30, 60), (-30, 60), (-20, 40)):
        actions.move_by_offset(x, y)
    actions.release().perform()


def test_a_drawing_is_answered(server: Server) -> None:
    """A digit drawn with the mouse gets three guesses of each variant, and its image is shown."""
    with open_url(server.url) as page:
        assert darkest(page) == 255
        draw(page)
        assert darkest(page) < 30
        found = wait_for_answers(page)
        assert list(found) == VARIANTS
        for best, *guesses in found.values():
            assert len(guesses) == 3
            assert guesses[0].startswith(best)
            assert all(re.fullmatch(r"\d+\.\d%", each.removeprefix(each[0])) for each in guesses)
        assert page.ask("document.querySelector('#seen img').naturalWidth") == 28
        assert page.ask("[...document.querySelectorAll('meter')].every(each => each.ariaLabel)")
        page.browser.find_element(By.ID, "clear").click()
        assert darkest(page) == 255
        assert answers(page) == NO_ANSWERS
        assert page.ask("document.querySelector('#seen').children.length") == 0
        assert_quiet(page, server.url)


def test_a_stroke_that_leaves_the_paper_ends_there(server: Server) -> None:
    """The pen is lifted when the button is, also beside the paper."""
    with open_url(server.url) as page:
        actions = ActionChains(page.browser, duration=20)
        actions.move_to_element(paper_of(page)).click_and_hold().move_by_offset(400, 0).release()
        actions.perform()
        assert page.ask("last") is None
        wait_for_answers(page)


def test_the_keyboard_draws(server: Server) -> None:
    """The space bar sets the pen down and lifts it, arrows move it, and Delete clears."""
    with open_url(server.url) as page:
        paper_of(page).send_keys(Keys.ARROW_UP * 5)
        assert darkest(page) == 255
        paper_of(page).send_keys(" ")
        message = page.browser.find_element(By.ID, "message")
        assert message.text == "The pen is down."
        paper_of(page).send_keys(Keys.ARROW_DOWN * 12, Keys.ARROW_LEFT * 3)
        assert darkest(page) < 30
        wait_for_answers(page)
        paper_of(page).send_keys(" ")
        assert message.text == "The pen is up."
        paper_of(page).send_keys(Keys.DELETE)
        assert darkest(page) == 255
        assert answers(page) == NO_ANSWERS
        assert page.ask("window.scrollY") == 0
        assert_quiet(page, server.url)


def test_a_chosen_file_is_answered(server: Server, tmp_path: Path) -> None:
    """A chosen picture is shown and answered as it is, and a file that is none is refused."""
    draw_two(600).save(tmp_path / "two.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    with open_url(server.url) as page:
        chooser = page.browser.find_element(By.ID, "file")
        chooser.send_keys(str(tmp_path / "two.png"))
        found = wait_for_answers(page)
        expected = httpx.post(f"{server.url}/predict", content=encode(draw_two(600))).json()
        for name, guesses in expected["answers"].items():
            assert found[name][0] == guesses[0]["class"]
        assert page.ask("document.querySelector('#seen img').src") == expected["image"]
        WebDriverWait(page.browser, WAIT_S).until(lambda _: darkest(page) < 30)
        assert page.messages() == []
        chooser.send_keys(str(tmp_path / "bad.png"))
        message = page.browser.find_element(By.ID, "message")
        WebDriverWait(page.browser, WAIT_S).until(lambda _: "is not a picture" in message.text)
        assert answers(page) == NO_ANSWERS


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_the_page_fits_any_width_and_scheme(server: Server, width: int, scheme: str) -> None:
    """On a phone nothing is cut off; in the dark the page is dark, and the paper white."""
    with open_url(server.url, width, scheme) as page:
        paper_of(page).send_keys(" ", Keys.ARROW_DOWN * 9)
        wait_for_answers(page)
        assert page.ask("document.documentElement.scrollWidth") <= width
        ground = page.ask("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
        assert page.ask("getComputedStyle(paper).backgroundColor") == "rgb(255, 255, 255)"
        assert page.ask("document.documentElement.lang") == "en"
        box = page.ask("(b => [b.width, b.height])(paper.getBoundingClientRect())")
        assert box[0] == pytest.approx(box[1], abs=1)
        assert page.ask(
            "[...document.querySelectorAll('button, .file')]"
            ".every(each => each.getBoundingClientRect().height >= 44)"
        )
        assert_quiet(page, server.url)


def test_without_the_server_the_page_says_so(trained: Path) -> None:
    """If the server is gone, the page says that it does not answer."""
    with serving(trained) as server, open_url(server.url) as page:
        assert server.end(signal.SIGTERM)[0] == 0
        paper_of(page).send_keys(" ", Keys.ARROW_DOWN * 5)
        message = page.browser.find_element(By.ID, "message")
        WebDriverWait(page.browser, WAIT_S).until(lambda _: "does not answer" in message.text)
