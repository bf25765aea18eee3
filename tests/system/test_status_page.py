"""The status page of a real monitor in a real browser, at a desk and on a phone."""

from pathlib import Path

import pytest

from tests.support.browser import Page, browser, find_browser
from tests.support.monitoring import Monitor, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory):
    if find_browser() is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("browser") / "profile") as page:
        for domain in ("Runtime", "Log", "Network"):
            page.command(f"{domain}.enable")
        yield page


@pytest.fixture
def monitor(tmp_path: Path):
    with Monitor(tmp_path, "pipeline.time_scale=0.2") as monitor:
        monitor.wait_for_batches(5)
        wait_until(lambda: monitor.get("/readyz")[0] == 200, what="readiness")
        yield monitor


def look(page: Page, monitor: Monitor, *, width: int) -> None:
    page.goto("about:blank")  # the page before asks its own monitor until then
    page.evaluate("1")
    page.events.clear()
    page.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.goto(monitor.info["http"])
    page.wait_for("document.readyState === 'complete' && !!document.getElementById('content')", timeout_s=20)


def complaints(page: Page) -> list[str]:
    page.evaluate("1")  # what was said so far has been read then
    named = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")
    return [f"{event['method']}: {event['params']}" for event in page.events if event.get("method") in named]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_refreshes_itself_and_asks_no_other_host(page: Page, monitor: Monitor, width: int) -> None:
    look(page, monitor, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('.pill').textContent") == "ready"
    assert page.evaluate("[...document.querySelectorAll('td.name')].map(cell => cell.textContent)")[0] == "model_1"
    assert page.evaluate("getComputedStyle(document.querySelector('section')).borderRadius") == "10px"
    page.evaluate("window.before = document.getElementById('content'); 1")
    page.wait_for("document.getElementById('content') !== window.before", timeout_s=20)
    assert page.evaluate("document.getElementById('contact').hidden") is True
    asked = [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert len(asked) >= 2
    assert {url.partition("/")[0] + "//" + url.split("/")[2] for url in asked if not url.startswith("data:")} == {
        monitor.info["http"]
    }
    assert complaints(page) == []


def test_text_that_is_being_copied_stays_and_so_does_the_focus(page: Page, monitor: Monitor) -> None:
    look(page, monitor, width=1280)
    page.evaluate("document.querySelector('footer a').focus(); window.before = document.getElementById('content'); 1")
    page.wait_for("document.getElementById('content') !== window.before", timeout_s=20)
    assert page.evaluate("document.activeElement.textContent") == "metrics"
    page.evaluate("getSelection().selectAllChildren(document.querySelector('dl code')); 1")
    page.wait_for("document.getElementById('contact').textContent.includes('while text is selected')", timeout_s=20)
    assert page.evaluate("getSelection().toString()") == monitor.info["run_id"]
    page.evaluate("getSelection().empty(); window.before = document.getElementById('content'); 1")
    page.wait_for("document.getElementById('content') !== window.before", timeout_s=20)
    assert page.evaluate("document.getElementById('contact').hidden") is True
    assert complaints(page) == []


def test_it_says_when_the_recorder_is_gone(page: Page, monitor: Monitor) -> None:
    look(page, monitor, width=1280)
    assert monitor.end() == 0
    page.wait_for("!document.getElementById('contact').hidden", timeout_s=20)
    assert "No contact with the recorder since" in page.evaluate("document.getElementById('contact').textContent")


def test_what_an_injected_script_would_do_is_nothing(page: Page, monitor: Monitor) -> None:
    """The page's policy, in case a name should ever get through unescaped."""
    look(page, monitor, width=1280)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.harmed = 1\">'); 1")
    page.evaluate(
        "{const s = document.createElement('script'); s.textContent = 'window.harmed = 2'; document.body.append(s)}; 1"
    )
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.evaluate("window.harmed") is None
    assert any("Content Security Policy" in text for text in complaints(page))
