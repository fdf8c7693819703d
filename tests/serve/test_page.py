"""The page at /, in a real browser: two models answer side by side, and nobody else is asked for anything."""

import pytest

pytest.importorskip("playwright")
from lorakeet.serve.limits import Limits
from tests.browser import SCHEMES, WIDTHS, looks_right, opened, require_chromium, shown
from tests.serve.conftest import running


@pytest.fixture(scope="module")
def browser():
    require_chromium()
    with opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(build_app):
    with running(build_app(limits=Limits(max_tokens=24))) as address:
        yield address


def ask(page, text):
    page.set_default_timeout(120_000)  # the machine may be busy
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector("#send:not([hidden])")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_tuned_and_base_answer_side_by_side(browser, url, width, scheme, request):
    asked = {f"{url}/v1/models", f"{url}/v1/chat/completions"}
    with shown(browser, f"{url}/", width, scheme, may_ask=asked) as page:
        page.wait_for_selector("section")
        assert page.locator("h2").all_inner_texts() == ["one", "tiny"]
        page.fill("#temperature", "0")
        ask(page, "hello")
        ask(page, "how are you?")
        answers = [section.locator("p.assistant").all_inner_texts() for section in page.locator("section").all()]
        assert [len(texts) for texts in answers] == [2, 2]
        assert all(len(text) > 1 for texts in answers for text in texts)
        assert answers[0] != answers[1]
        assert page.locator("p.user").all_inner_texts() == ["hello", "how are you?"] * 2
        looks_right(page, width)
        if folder := request.config.getoption("--basetemp"):
            page.screenshot(path=f"{folder}/page-{width}-{scheme}.png")


def test_one_model_alone_an_error_and_a_new_conversation(browser, url):
    with shown(browser, f"{url}/", may_ask={f"{url}/v1/models"}) as page:
        page.wait_for_selector("section")
        page.uncheck("#both")
        assert page.locator("h2").all_inner_texts() == ["one"]
        page.select_option("#model", "two")
        assert page.locator("h2").all_inner_texts() == ["two"]
