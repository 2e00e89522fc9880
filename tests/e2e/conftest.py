"""A real Chromium in front of a live server: what the browser suite shares.

Run by `make e2e`, which finds or brings a Chromium and names it in CHROMIUM and CHROMIUM_FLAGS.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from licensing.models import Member
from tests import factories

# Playwright's own loop runs in this thread; the database is asked from it all the same.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

MEND = "No Chromium found: run `make e2e`, or install one (Debian: apt-get install chromium), or set CHROMIUM."
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not path or not os.access(path, os.X_OK):
        pytest.fail(MEND, pytrace=False)
    flags = os.environ.get("CHROMIUM_FLAGS", "--no-sandbox").split()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--disable-gpu", "--disable-dev-shm-usage", *flags]
        )
        yield browser
        browser.close()


@pytest.fixture
def site(live_server: Any, settings: Any) -> str:
    """Return the address of a server that runs our site, without pauses between sign-ins."""
    settings.ACCOUNT_RATE_LIMITS = False
    settings.CSRF_TRUSTED_ORIGINS = [live_server.url]
    return str(live_server.url)


@pytest.fixture
def open_page(browser: Browser, site: str) -> Iterator[Callable[..., Page]]:
    """Return a function that opens an empty page of its own, wide and light unless said otherwise.

    Whatever the page's console reports as an error fails the test: a script refused by the content security
    policy, a file that is not there. Answers of the 400s to pages themselves are part of the tests.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def heard(message: Any) -> None:
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            complaints.append(f"{message.text} ({message.location.get('url')})")

    def make(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "base_url": site} | options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


@pytest.fixture
def sign_in() -> Callable[[Page, Any], None]:
    """Return a function that signs a member's person in through the form."""

    def through_the_form(page: Page, member: Member) -> None:
        page.goto("/")
        page.get_by_label("Email").fill(member.user.email)
        page.get_by_label("Password").fill(factories.PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Licenses", exact=True).wait_for()

    return through_the_form


@pytest.fixture
def assert_accessible() -> Callable[[Page], None]:
    """Return a function that fails with what axe finds wrong with a page (WCAG 2.2 A and AA, best practice)."""

    def check(page: Page) -> None:
        found = Axe().run(page)
        assert found.response["passes"], "axe looked at nothing"
        assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"

    return check


@pytest.fixture
def assert_fits() -> Callable[[Page], None]:
    """Return a function that fails when a page must be scrolled sideways."""

    def check(page: Page) -> None:
        wide, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= shown, f"{page.url} is {wide} px wide, {shown} px are shown"

    return check
