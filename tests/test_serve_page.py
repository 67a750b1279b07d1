"""The search page in a real Chromium."""

import contextlib
import re
import shutil
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from inranker.collection import Documents
from inranker.retrieve import BM25
from inranker.serve.app import AppSettings, build_app
from inranker.serve.search import BackgroundSearch, SearchService
from inranker.types import Document
from serve_helpers import WordEngine, application, live, one_collection, ranking_service

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "install Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, url, path="/", **options):
    """A page that has met no script error and asked nobody but this server."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    page = context.new_page()
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url + path)
    yield page
    context.close()
    assert errors == []
    assert {urlsplit(u).netloc for u in asked} == {urlsplit(url).netloc}


def animals(engine=None, teacher=False):
    student = ranking_service(engine)
    other = None
    if teacher:
        other = ranking_service()
        other.start()
    return build_app(student, search=one_collection(student, other))


def numbers(count):
    """An application over `count` documents that all say "item"."""
    student = ranking_service()
    documents = Documents.of(Document(f"d{i:03}", "item " + "word " * (i % 37 + 1), f"Item {i}") for i in range(count))
    search = SearchService("items", documents, BM25.index(documents), student, None, [])
    return build_app(student, search=BackgroundSearch(lambda: search))


@pytest.fixture(scope="module")
def url():
    with live(animals()) as address:
        yield address


def titles(page, side):
    return page.locator(f"#{side} .title").all_inner_texts()


def search(page, text):
    page.get_by_label("Search", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("body")).not_to_have_class(re.compile("busy"))


def test_a_query_shows_both_orders_with_moves_scores_and_times(browser, url):
    with opened(browser, url) as page:
        expect(page.locator("#about")).to_have_text("animals, 4 documents, ranked by words")
        search(page, "fox fear")
        assert len(titles(page, "left")) == len(titles(page, "right")) == 3
        assert titles(page, "left") != titles(page, "right")
        for place, title in enumerate(titles(page, "right")):
            move = page.locator("#right .move").nth(place)
            came = titles(page, "left").index(title) - place
            arrow = "=" if came == 0 else f"{'▲' if came > 0 else '▼'} {abs(came)}"
            expect(move).to_have_text(arrow)
            if came:
                expect(move).to_have_attribute("aria-label", re.compile(rf"(up|down) {abs(came)}, from \d"))
        expect(page.locator("#left h2 .time")).to_have_text(re.compile(r"^\d.* ms$"))
        expect(page.locator("#right h2 .time")).to_have_text(re.compile(r"^\d.* ms$"))
        expect(page.locator("#status")).to_contain_text("3 documents found in")
        for text in page.locator("#right .score").all_inner_texts():
            assert 0 < float(text) < 1
        assert page.locator("#moves path").count() == 3
        assert page.locator("#moves path.up").count() >= 1
        assert "q=fox+fear" in page.url


def test_a_document_with_markup_is_shown_as_text(browser, url):
    with opened(browser, url, "/?q=fox") as page:
        expect(page.locator("#right .title", has_text="<img src=x onerror=alert(1)>")).to_be_visible()
        card = page.locator("#right .card", has_text="<script>")
        card.locator("summary").click()
        expect(card.locator(".whole")).to_contain_text("<script>document.title = 'hacked'</script> a fox <b>bold</b>")
        assert page.title() == "fox · InRanker"
        assert page.locator("#board img, #board script, .whole b:text('bold')").count() == 0


def test_a_query_with_markup_is_text_too(browser, url):
    with opened(browser, url, "/?q=%3Cimg%20src%3Dx%3E%20fox") as page:
        expect(page.locator("#right .card")).to_have_count(3)
        assert page.get_by_label("Search", exact=True).input_value() == "<img src=x> fox"


def test_the_slider_changes_how_many_are_reranked(browser):
    with live(numbers(120)) as url, opened(browser, url, "/?q=item") as page:
        expect(page.locator("#status")).to_contain_text("50 documents found")
        slider = page.get_by_label("Rerank the first")
        slider.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#depth-shown")).to_have_text("55")
        expect(page.locator("#status")).to_contain_text("55 documents found")
        slider.fill("10")
        expect(page.locator("#status")).to_contain_text("10 documents found")
        expect(page.locator("#right .card")).to_have_count(10)
        assert "depth=10" in page.url
        page.reload()
        expect(page.locator("#status")).to_contain_text("10 documents found")


def test_all_results_can_be_shown(browser):
    with live(numbers(40)) as url, opened(browser, url, "/?q=item") as page:
        expect(page.locator("#right .card")).to_have_count(20)
        page.get_by_role("button", name="Show all 40").click()
        expect(page.locator("#right .card")).to_have_count(40)


def test_the_page_says_when_the_server_goes_away_and_when_it_is_back(browser):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        url = first.enter_context(live(animals()))
        page = stack.enter_context(opened(browser, url, "/?q=fox"))
        expect(page.locator("#right .card")).to_have_count(3)
        first.close()
        page.get_by_label("Search", exact=True).fill("hens")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="The server does not answer")).to_be_visible()
        expect(page.locator("#results")).to_be_hidden()
        stack.enter_context(live(animals(), urlsplit(url).port))
        expect(page.locator("#right .card")).to_have_count(1, timeout=10_000)
        expect(page.locator("#panel")).to_be_hidden()


def test_loading_empty_and_refused_states(browser):
    engine = WordEngine()
    with live(animals(engine)) as url, opened(browser, url) as page:
        expect(page.get_by_role("heading", name="Two orders, side by side")).to_be_visible()
        engine.gate.clear()
        page.get_by_role("button", name="lazy dogs").click()
        expect(page.locator("body")).to_have_class("busy")
        expect(page.get_by_role("status")).to_have_text("Searching …")
        engine.gate.set()
        expect(page.locator("#right .card")).to_have_count(1)
        search(page, "zebra")
        expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
        search(page, "fox explode")
        expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
        search(page, "")
        expect(page.get_by_role("heading", name="Two orders, side by side")).to_be_visible()


def test_a_busy_server_is_asked_again(browser):
    engine = WordEngine()
    engine.gate.clear()
    student = ranking_service(engine, places=1)
    app = build_app(student, search=one_collection(student))
    with live(app) as url, opened(browser, url, "/?q=fox") as first, opened(browser, url, "/?q=fox") as second:
        expect(second.get_by_role("heading", name="The server is busy")).to_be_visible()
        engine.gate.set()
        expect(first.locator("#right .card")).to_have_count(3)
        expect(second.locator("#right .card")).to_have_count(3, timeout=10_000)


def test_a_key_is_asked_for_and_kept_for_the_tab(browser):
    student = ranking_service()
    app = build_app(student, AppSettings(api_key="sesame"), search=one_collection(student))
    with live(app) as url, opened(browser, url, "/?q=fox") as page:
        field = page.get_by_label("API key")
        field.fill("wrong")
        page.keyboard.press("Enter")
        field.fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#right .card")).to_have_count(3)
        page.reload()
        expect(page.locator("#right .card")).to_have_count(3)


def test_everything_works_by_keyboard(browser, url):
    with opened(browser, url) as page:
        page.locator("h1").click()
        page.goto(url)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("/")
        page.keyboard.type("fox fear")
        page.keyboard.press("Enter")
        expect(page.locator("#right .card")).to_have_count(3)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#right summary").nth(1)).to_be_focused()
        second = titles(page, "right")[1]
        page.keyboard.press("ArrowLeft")
        focused = page.locator("#left summary:focus .title")
        expect(focused).to_have_text(second)
        assert page.locator("#moves path.traced").count() == 1
        page.keyboard.press("Enter")
        expect(page.locator("#left details[open] .title")).to_have_text(second)


def test_a_phone_shows_one_order_at_a_time(browser, url):
    with opened(browser, url, "/?q=fox") as page:
        page.set_viewport_size({"width": 360, "height": 700})
        expect(page.locator("#right .card").first).to_be_visible()
        expect(page.locator("#left")).to_be_hidden()
        page.get_by_role("button", name="BM25").click()
        expect(page.locator("#left .card").first).to_be_visible()
        expect(page.locator("#right")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def contrast(page, selector):
    """WCAG contrast of an element's text with what lies behind it."""
    return page.locator(selector).first.evaluate(
        """element => {
        const parse = c => c.match(/[\\d.]+/g).map(Number);
        const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = c => c.slice(0, 3).map(v => linear(v / 255))
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        let behind = element, ground;
        do { ground = parse(getComputedStyle(behind).backgroundColor); behind = behind.parentElement; }
        while (ground.length > 3 && ground[3] === 0 && behind);
        const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground)].sort((x, y) => y - x);
        return (a + .05) / (b + .05);
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(browser, url, scheme):
    with opened(browser, url, "/?q=fox+fear", color_scheme=scheme) as page:
        expect(page.locator("#right .card")).to_have_count(3)
        for selector in (
            "#status",
            ".title",
            ".snippet",
            ".rank",
            ".move.up",
            ".move.down",
            ".score",
            "mark",
            "form button",
        ):
            assert contrast(page, selector) >= 4.5, selector
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(17, 20, 29)") == (scheme == "dark")


def test_the_student_against_the_teacher(browser):
    with live(animals(teacher=True)) as url, opened(browser, url, "/?q=fox") as page:
        expect(page.locator("#left h2")).to_contain_text("BM25")
        page.get_by_text("Teacher", exact=True).click()
        expect(page.locator("#left h2")).to_contain_text("teacher")
        expect(page.locator("#right h2")).to_contain_text("student")
        expect(page.locator("#status")).to_contain_text("3 of the first 3 are the same on both sides")
        assert titles(page, "left") == titles(page, "right")


def test_a_server_without_a_collection_says_so(browser):
    with live(application()) as url, opened(browser, url) as page:
        expect(page.get_by_role("heading", name="Nothing to search here")).to_be_visible()


def test_the_api_is_described_without_help_from_elsewhere(browser, url):
    with opened(browser, url, "/docs") as page:
        expect(page.locator("article")).to_have_count(10)
        expect(page.locator("article").first).to_contain_text("/v2/rerank")
        expect(page.locator("article").first).to_contain_text("max_tokens_per_doc")
