"""The demo in a real browser: headless Chromium, driven through Selenium."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from sojourn import SessionManager
from sojourn.cli.demo.site import make_app
from sojourn.testing import Clock

pytestmark = pytest.mark.browser

OPTIONS = (
    "--no-sandbox --headless=new --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --window-size=1200,900"
).split()
PAGES = ("/", "/other", "/cart", "/account", "/devices", "/tabs", "/time", "/no/such")
PATIENCE = 20


class Browser:
    """A browser with a profile of its own."""

    def __init__(self, program: str, driver: str, profile: Path, *, scripts: bool) -> None:
        options = ChromeOptions()
        options.binary_location = program
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        if not scripts:
            options.add_experimental_option(
                "prefs", {"profile.managed_default_content_settings.javascript": 2}
            )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.chrome = Chrome(options=options, service=Service(driver))

    def go(self, url: str) -> None:
        self.chrome.get(url)

    def find(self, selector: str) -> WebElement:
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def has(self, selector: str) -> bool:
        return any(
            found.is_displayed() for found in self.chrome.find_elements(By.CSS_SELECTOR, selector)
        )

    def button(self, name: str) -> WebElement:
        path = f"//main//button[normalize-space()='{name}' or @aria-label='{name}']"
        return self.chrome.find_element(By.XPATH, path)

    def press(self, button: WebElement | str) -> None:
        """Press a button, and wait for the page that it leads to."""
        page = self.find("html")
        (self.button(button) if isinstance(button, str) else button).click()
        self.wait(expected_conditions.staleness_of(page))

    def follow(self, words: str) -> None:
        page = self.find("html")
        self.chrome.find_element(By.LINK_TEXT, words).click()
        self.wait(expected_conditions.staleness_of(page))

    def wait(self, condition: Callable[[Any], Any]) -> None:
        WebDriverWait(self.chrome, PATIENCE, poll_frequency=0.05).until(condition)

    def cookie(self) -> dict[str, Any]:
        cookie = self.chrome.get_cookie("id")
        assert cookie is not None
        return cookie

    def faults(self) -> list[str]:
        """What the browser complains of: a blocked script, a missing file."""
        return [
            entry["message"]
            for entry in self.chrome.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING") and "/no/such" not in entry["message"]
        ]


@pytest.fixture
def open_browser(
    server_or_skip: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Browser]]:
    program = server_or_skip("browser", "chromium")
    driver = server_or_skip("browser", "chromedriver")
    opened: list[Browser] = []

    def run(*, scripts: bool = True) -> Browser:
        profile = tmp_path_factory.mktemp("profile")
        opened.append(Browser(program, driver, profile, scripts=scripts))
        return opened[-1]

    yield run
    for browser in opened:
        browser.chrome.quit()


DEMO = ("-m", "sojourn.cli", "demo", "--port")


def test_walk(start: Callable[..., Any], open_browser: Callable[..., Browser]) -> None:
    """A visitor does all there is to do; in the middle of it the demo is killed and restarted."""
    server = start(*DEMO, "0")
    browser = open_browser()

    # A counter on two pages.
    browser.go(server.url)
    assert browser.text("#count span") == "1"
    browser.follow("another page")
    assert browser.text("#count span") == "2"
    cookie = browser.cookie()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"

    # A cart, with messages.
    browser.follow("Cart")
    browser.press("Add Lantern to the cart")
    assert browser.text(".message") == "Lantern added to your cart."
    browser.press("Add Trail map to the cart")
    assert browser.text(".total .price") == "€ 33"
    browser.chrome.refresh()
    assert not browser.has(".message")
    browser.press("Remove one Lantern")
    assert browser.text(".total .price") == "€ 9"

    # Signing in renews the cookie and keeps the cart.
    browser.follow("Account")
    browser.find("#name").send_keys("Alice")
    browser.press("Sign in")
    assert browser.text(".who") == "Signed in as Alice"
    assert browser.cookie()["value"] != cookie["value"]
    assert "expiry" not in browser.cookie()
    cookie = browser.cookie()
    browser.press("Renew the cookie")
    assert browser.cookie()["value"] != cookie["value"]

    # kill -9, and all is still there.
    server.end(signal.SIGKILL)
    server = start(*DEMO, server.url.rpartition(":")[2])
    browser.follow("Counter")
    assert browser.text("#count span") == "3"
    assert browser.text(".who") == "Signed in as Alice"
    browser.follow("Cart")
    assert browser.text(".total .price") == "€ 9"

    # Two devices: one is ended from the other.
    other = open_browser()
    other.go(f"{server.url}/account")
    other.find("#name").send_keys("Alice")
    other.find("input[name=remember]").click()
    other.press("Sign in")
    assert other.cookie()["expiry"]
    browser.follow("Devices")
    devices = browser.chrome.find_elements(By.CSS_SELECTOR, ".devices h2")
    names = [device.text for device in devices]
    assert ["Chrome on Linux" in name for name in names] == [True, True]
    assert ["This device" in name for name in names] == [True, False]
    browser.press("End all others")
    assert browser.text(".message") == "1 other session was ended."
    other.follow("Account")
    assert other.text(".who") == "Not signed in"
    assert "because it was signed out, here or from another device" in other.text("#ended")
    other.chrome.refresh()
    assert not other.has("#ended")

    # Twenty requests at once.
    browser.follow("Two tabs")
    for count in (20, 40):
        browser.button("Send 20 requests at once").click()
        wanted = f"20 requests at once: from {count - 20} to {count}. None was lost."
        browser.wait(lambda _, wanted=wanted: browser.text("#burst-result") == wanted)
        assert browser.text("#tabs-count") == str(count)
    browser.chrome.refresh()
    assert browser.text("#tabs-count") == "40"

    # Signing out is final.
    copy = browser.cookie()
    browser.follow("Account")
    browser.press("Sign out")
    assert browser.text(".who") == "Not signed in"
    browser.chrome.delete_all_cookies()
    browser.chrome.add_cookie({"name": "id", "value": copy["value"]})
    browser.chrome.refresh()
    assert browser.text(".who") == "Not signed in"

    assert browser.faults() == []
    assert other.faults() == []


def test_expiry(serve: Callable[[Any], str], open_browser: Callable[..., Browser]) -> None:
    """A page warns before its session ends, offers to stay, and tells afterwards why it ended."""
    clock = Clock()
    sessions = SessionManager("memory://", clock=clock)
    browser = open_browser()
    browser.go(serve(make_app(sessions, "memory://", clock)) + "/time")
    browser.wait(lambda _: browser.text("#left") == "1 hour")
    browser.press("End after 30 seconds without use")
    browser.wait(lambda _: browser.text("#left") == "30 seconds")
    assert not browser.has("dialog")

    # The script looks again by itself, but not for as long as a test may wait; a browser has it
    # look when the page is seen again.
    seen = "document.dispatchEvent(new Event('visibilitychange'))"
    clock.advance(20)
    browser.chrome.execute_script(seen)
    browser.wait(lambda _: browser.has("dialog"))
    assert browser.text("#time-left") == "Your session ends soon unless you stay."
    browser.find("dialog button").click()
    browser.wait(lambda _: not browser.has("dialog"))
    browser.wait(lambda _: browser.text("#left") == "30 seconds")

    clock.advance(31)
    browser.chrome.execute_script(seen)
    browser.wait(lambda _: "Your session has ended." in browser.text("#time-left"))
    browser.wait(lambda _: browser.text("#left") == "0 seconds")
    browser.chrome.refresh()
    assert "because it was not used for too long" in browser.text("#ended")
    assert browser.faults() == []


def test_without_scripts(start: Callable[..., Any], open_browser: Callable[..., Browser]) -> None:
    """All but the one button works where scripts are off, and the page says so."""
    server = start(*DEMO, "0", "--store", "memory://")
    browser = open_browser(scripts=False)

    browser.go(f"{server.url}/cart")
    browser.press("Add Flask to the cart")
    assert browser.text(".message") == "Flask added to your cart."
    browser.follow("Account")
    browser.find("#name").send_keys("Bob")
    browser.press("Sign in")
    browser.follow("Two tabs")
    assert not browser.has("#burst-button")
    assert "scripts are off in this browser" in browser.text("#burst noscript")
    browser.press("Send one")
    assert browser.text("#tabs-count") == "1"
    browser.follow("Time left")
    assert browser.text("#left") == "1 hour"
    browser.follow("Account")
    browser.press("Sign out")
    assert browser.text(".who") == "Not signed in"


def test_layout(start: Callable[..., Any], open_browser: Callable[..., Browser]) -> None:
    """Nothing sticks out at 320 px (also 200 % zoom and more), and the focus can be seen."""
    server = start(*DEMO, "0", "--store", "memory://")
    browser = open_browser()
    browser.go(f"{server.url}/account")
    browser.find("#name").send_keys("W" * 40)
    browser.press("Sign in")
    metrics = {"width": 320, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    browser.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    for path in PAGES:
        browser.go(server.url + path)
        wide = browser.chrome.execute_script("return document.documentElement.scrollWidth")
        assert (path, wide) == (path, 320)
        browser.find("body").send_keys(Keys.TAB)
        assert browser.chrome.switch_to.active_element.text == "Skip to the content"
        for _ in range(2):
            browser.chrome.switch_to.active_element.send_keys(Keys.TAB)
            focused = browser.chrome.switch_to.active_element
            assert focused.tag_name == "a"
            assert focused.value_of_css_property("outline-style") == "solid"
    assert browser.faults() == []
