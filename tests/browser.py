"""A real headless browser for the pages; as a command, it takes the screenshots for the docs."""

import base64
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

HEIGHT = 900
NO_REQUESTS_OF_ITS_OWN = (
    "--disable-background-networking", "--disable-sync", "--disable-component-update",
    "--no-first-run",
)  # fmt: skip


def require_program(*names: str) -> str:
    """Return the first program that is installed; else skip, or fail if REQUIRE_SERVICES is set."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    reason = f"{' or '.join(names)} is not installed: make services"
    if os.environ.get("REQUIRE_SERVICES"):
        pytest.fail(reason)
    pytest.skip(reason)


def start_browser(*arguments: str) -> webdriver.Chrome:
    """Start Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = require_program("chromium", "chromium-browser", "google-chrome")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", *NO_REQUESTS_OF_ITS_OWN, *arguments):
        options.add_argument(argument)
    return webdriver.Chrome(options, Service(require_program("chromedriver")))


class LocalPage:
    """A page from a file, opened in a browser."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.browser.execute_script(f"return {expression}")

    def messages(self) -> list[dict[str, Any]]:
        """Return the console's messages, which include errors and blocked requests."""
        log: list[dict[str, Any]] = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return log

    def requests(self) -> list[str]:
        """Return the requested addresses, except for data inside the page."""
        entries = self.browser.get_log("performance")  # type: ignore[no-untyped-call]
        events = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def print_on_screen(self) -> None:
        """Show the page as it is printed, for a reader who prefers dark."""
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
        )

    def photograph(self, width: int, height: int) -> bytes:
        """Return the top of the page as a PNG."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        picture = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
        )
        return base64.b64decode(picture["data"])


@contextmanager
def open_url(url: str, width: int = 1200, scheme: str = "light") -> Iterator[LocalPage]:
    """Open a page in a window of a width, for a reader who prefers ``"light"`` or ``"dark"``."""
    browser = start_browser("--hide-scrollbars")
    try:
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.get(url)
        yield LocalPage(browser)
    finally:
        browser.quit()


def open_page(path: Path, width: int, scheme: str) -> AbstractContextManager[LocalPage]:
    """Open a page from a file, as `open_url` does."""
    return open_url(path.absolute().as_uri(), width, scheme)


def main(source: str, target: str) -> None:
    """Take screenshots of a report in light, in dark, and on a phone."""
    for name, width, height, scheme in (
        ("light", 1200, 2400, "light"), ("dark", 1200, 2400, "dark"), ("phone", 390, 2400, "light"),
    ):  # fmt: skip
        with open_page(Path(source), width, scheme) as page:
            picture = Path(target) / f"report-{name}.png"
            picture.write_bytes(page.photograph(width, height))


if __name__ == "__main__":
    main(*sys.argv[1:])
