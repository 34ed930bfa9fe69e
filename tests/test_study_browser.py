"""docs/study.html in Debian's Chromium: what a reader does with mouse, keys, a small screen, a printer."""

import base64
import json
import re
import shutil
from pathlib import Path

import predict
from common.checkpoint import save_checkpoint
from common.config import Config
from study.maps import SMALL
from study.page import STAGES

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "study.html"
URL = PAGE.as_uri()
MEASURED = json.loads((Path(__file__).parents[1] / "study" / "measured.json").read_text(encoding="utf-8"))
BN, STEP = "model/double_conv/bn", "train/make_train_step"
BEFORE = "getComputedStyle(item, '::before').content"
CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def look(browser):
    """look(anchor, width, ...) -> the page, with `page.errors` and `page.requests`."""
    contexts = []

    def look(anchor="", width=1600, height=1000, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(URL + anchor)
        return page

    yield look
    for context in contexts:
        assert not [error for page in context.pages for error in page.errors]
        context.close()


def row(page, name):
    return page.locator(f'[id="{name}"]')


def lit(page):
    return page.eval_on_selector_all(".row.lit", "rows => rows.map(row => row.id)")


def test_hovering_lights_three_columns_and_an_arrow_begins_in_sight(look):
    page = look()
    name = "model/forward/up/concat"
    row(page, name).scroll_into_view_if_needed()
    row(page, name).locator(".cell").nth(2).hover()
    row(page, name).and_(page.locator(".lit")).wait_for()  # after a moment, for rows that are only crossed are not meant
    assert lit(page) == [name]
    assert row(page, name).locator(".cell:not(.none)").count() == 3
    assert row(page, name).evaluate("row => getComputedStyle(row).backgroundColor") == "rgb(253, 243, 212)"
    assert page.locator("#what").text_content() == name
    assert page.locator(".u a.here").first.get_attribute("data-part") == "skip"
    row(page, BN).evaluate("row => row.scrollIntoView({ block: 'center' })")
    before = page.evaluate("scrollY")
    page.keyboard.press("ArrowDown")
    assert len(lit(page)) == 1 and abs(page.evaluate("scrollY") - before) < 50
    page.evaluate("document.getElementById('traps').scrollIntoView()")
    page.wait_for_function("document.getElementById('dock').hidden")


def test_a_link_leads_to_the_figures_that_were_measured(look):
    page = look(f"#{BN}")
    assert lit(page) == [BN] and 0 < row(page, BN).bounding_box()["y"] < 600
    table = page.locator("#content .becomes")
    for stage, (title, _) in STAGES.items():
        line = table.locator("tr", has=page.get_by_role("rowheader", name=title, exact=True))
        for name, counts in MEASURED["rows"][BN][stage].items():
            shown = line.locator(f'td[data-of="{name}"] li').all_inner_texts()
            texts = [re.fullmatch(r"(?:≠\s)?(\w+) ([\d,]+)", text).groups() for text in shown]
            assert {kind: int(number.replace(",", "")) for kind, number in texts} == counts
    ms, total = MEASURED["rows"][BN]["ms"]["lowlevel"], MEASURED["totals"]["lowlevel"]["ms"]
    assert f"{100 * ms['forward'] / total:.1f} %" in page.locator("#content .cost").first.inner_text()
    exact, written = page.locator("#content .proof.exact"), page.locator("#content .proof.written")
    assert exact.is_hidden() and written.is_visible()
    page.select_option("#tier", "exact")
    assert exact.is_visible() and written.is_hidden()
    keras, text = row(page, f"{STEP}/gradients").locator(".cell").nth(2), f"item => {BEFORE.replace('before', 'after')}"
    assert page.input_value("#heat") == "difference" and keras.evaluate(text) == '"0"'
    page.select_option("#tier", "written")
    assert re.fullmatch(r'"\d\.\de-\d\d"', keras.evaluate(text))
    page.select_option("#heat", "time")
    of = [cell.evaluate(text) for cell in row(page, BN).locator(".cell").all()]
    assert re.fullmatch(r'"Σ [\d.]+ %"', of[0]) and re.fullmatch(r'"[\d.]+ %"', of[1]), "lowlevel calls a function of its own"
    page.locator(".u a[data-part=deconv]").first.click()
    assert lit(page) == ["model/forward/up/deconv"]
    page.goto(URL + "#no/such/row")


def test_keys(look):
    page = look()
    page.locator(".row").first.focus()
    names = page.eval_on_selector_all(".row", "rows => rows.map(row => row.id)")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert lit(page) == [names[3]] and page.evaluate("document.activeElement.id") == names[3]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.url.endswith("#" + names[2])
    row(page, names[5]).hover()
    assert lit(page) == [names[2]], "what is kept open stays"
    page.keyboard.press("Escape")
    assert "#" not in page.url and page.locator("#dock").is_hidden()
    assert page.locator("#closed").is_visible(), "how to see it again"
    page.keyboard.press("Enter")
    assert page.locator("#dock").is_visible() and page.locator("#closed").is_hidden()
    row(page, "train/Adam/apply/v").scroll_into_view_if_needed()
    row(page, "train/Adam/apply/v").click()
    page.keyboard.press("1")  # the row is hidden with the column that alone has it: what comes next stands there
    assert -100 < row(page, "train/SGD").bounding_box()["y"] < 1000
    page.keyboard.press("1")
    page.keyboard.press("2")
    assert row(page, BN).locator('[data-of="highlevel"]').first.is_hidden()


@pytest.mark.parametrize("width, height", [(1600, 1000), (800, 1000), (390, 844)])
def test_the_first_screen_says_what_this_is(look, width, height):
    page = look(width=width, height=height)
    block = page.locator(".row").first
    assert block.get_attribute("id") == "model/double_conv" and block.bounding_box()["y"] < height - 100
    assert page.evaluate("scrollY") == 0
    questions = page.locator(".questions a")
    assert questions.count() == 5 and "2,203" in questions.nth(1).inner_text()
    for control in page.locator(".tools > *:visible").all():
        box = control.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width, "no part of the tools is cut off"
    if width > 900:
        assert lit(page) == [BN] and row(page, BN).bounding_box()["y"] < page.locator("#dock").bounding_box()["y"]
        assert row(page, BN).locator(".cell").first.evaluate(f"item => {BEFORE.replace('before', 'after')}") != "none"
        assert page.locator("#content .m:visible").count() > 30, "what it does to an image"
    for k in range(5 if width == 800 else 1):
        href = questions.nth(k).get_attribute("href")
        questions.nth(k).click()
        row(page, href[1:]).and_(page.locator(".lit")).wait_for()


def test_a_map_tells_its_numbers(look):
    page = look("#model/double_conv/conv")
    of = page.locator('#content .m[data-map="down0/conv1"]').first
    of.hover(position={"x": 20, "y": 15})
    page.wait_for_timeout(200)  # the sheet is decoded once
    of.hover(position={"x": 21, "y": 16})
    text = page.locator("#number").inner_text()
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d+", text)]
    shown, image, kernel = numbers[0], numbers[1:10], numbers[10:19]
    assert abs(shown - sum(x * k for x, k in zip(image, kernel))) < 0.05, text
    page.select_option("#image", "2")
    of.hover(position={"x": 20, "y": 15})
    page.wait_for_timeout(200)
    of.hover(position={"x": 21, "y": 16})
    assert page.locator("#number").inner_text() != text


def test_find_reaches_everything(look):
    page = look()
    row(page, "model/forward").scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    page.keyboard.press("/")
    assert page.evaluate("scrollY") == before
    page.keyboard.type("FusedBatchNormGradV3")
    count = page.locator(".row:not(.dim)").count()
    assert 0 < count < 40 and page.locator("#found").text_content().startswith("1 of ")
    first = lit(page)
    assert "FusedBatchNormGradV3" in row(page, first[0]).text_content()
    page.keyboard.press("ArrowDown")
    assert page.locator("#found").text_content().startswith("2 of ") and lit(page) != first
    page.keyboard.press("Escape")
    assert page.evaluate("scrollY") == before and page.input_value("#search") == "" and not page.locator(".dim").count()
    page.keyboard.press("/")
    page.keyboard.type("update norm batch")  # in any order
    assert page.locator("#found").text_content().startswith("1 of ")
    page.keyboard.type(" qqq")
    assert page.locator("#found").text_content() == "nothing" and not page.locator(".dim").count()
    for text, place in (
        ("Unit in the last place", ".text dl > div"),  # of the words
        ("ReductionToOneDevice", ".text > section"),  # code of a trap, which opens
        ("summed over the threads", "[aria-labelledby=measured]"),
    ):
        page.fill("#search", text)
        hit = page.locator(f"{place}.match")
        assert page.locator("#found").text_content().startswith("1 of ") and text in hit.text_content()
        hit.get_by_text(text, exact=False).first.wait_for()
        assert page.evaluate("CSS.highlights.get('found').size") > 0
        assert hit.evaluate(
            "hit => { const box = hit.getBoundingClientRect(); return box.top < innerHeight && box.bottom > 0; }"
        )


def test_what_was_found_and_clicked_stays(look):
    page = look()
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")  # wherever the focus is, as the line says
    assert page.locator("#dock").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#dock").is_hidden()
    page.fill("#search", "stateless")
    assert page.locator("#dock").is_visible(), "the words may stand in it"
    found = row(page, lit(page)[0])
    at = page.evaluate("scrollY")
    found.click()
    assert page.input_value("#search") == "" and not page.locator(".dim").count() and at > 0
    page.keyboard.press("Escape")
    assert page.evaluate("scrollY") == at, "the search was over: nothing to undo"


@pytest.mark.parametrize("width", [1200, 390])
def test_bars_move_nothing_and_nothing_is_wider_than_the_screen(look, width):
    page = look(f"#{BN}", width=width, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 390:
        assert row(page, BN).locator(".more .becomes").is_visible(), "the panel is below the row"
        left = row(page, BN).locator(".cell").evaluate_all("cells => cells.map(cell => cell.getBoundingClientRect().left)")
        assert len(set(left)) == 1, "the columns are stacked"
    at = row(page, BN).bounding_box()["y"]
    for heat in ("time", "difference", ""):
        page.select_option("#heat", heat)
        assert abs(row(page, BN).bounding_box()["y"] - at) < 2, heat
    page.evaluate("document.querySelector('[data-column=lowlevel]').click()")
    assert abs(row(page, BN).bounding_box()["y"] - at) < 2


def test_hidden_columns_are_compared_no_more(look):
    page = look("#model/forward/head")
    pair = page.locator('#content [data-pair="lowlevel keras_impl"]').first
    mark, shown = "#content [data-of=lowlevel] [data-ne=keras_impl]", f"items => items.map(item => {BEFORE})"
    assert pair.is_visible() and set(page.eval_on_selector_all(mark, shown)) != {"none"}
    page.keyboard.press("3")
    assert pair.is_hidden() and set(page.eval_on_selector_all(mark, shown)) == {"none"}


def test_a_column_without_the_code(look):
    page = look("#model/conv2d/conv2d")
    cells = page.locator("#content td:is([data-of=highlevel], [data-of=keras_impl])").all_inner_texts()
    assert len(cells) > 10 and set(cells) == {"–"}
    says = row(page, f"{STEP}/apply").locator("[data-of=keras_impl] .says")
    assert "fit" in says.inner_text(), "what does it there"
    alone = page.locator(".alone").filter(has=row(page, "model/conv2d")).locator(".stack")
    tops = [stack.locator(".row").first.bounding_box()["y"] for stack in alone.all() if stack.locator(".row").count()]
    assert len(tops) > 1 and len(set(tops)) == 1, "what single columns bring along stands beside each other"


def test_dark_and_no_request(look):
    dark, light = look(color_scheme="dark"), look(color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert dark.evaluate(paper) == "rgb(20, 24, 28)" and light.evaluate(paper) == "rgb(252, 252, 251)"
    light.click("#theme")
    assert light.evaluate(paper) == "rgb(20, 24, 28)"
    requests = [url.partition("#")[0] for url in light.requests if not url.startswith("data:")]
    assert requests == [URL], "nothing is asked of the network"


def test_without_javascript(look):
    page = look(java_script_enabled=False)
    assert row(page, BN).locator(".cell").nth(2).is_visible() and page.locator(".tools").is_hidden()
    row(page, BN).locator("summary").click()
    assert row(page, BN).locator(".becomes").is_visible()


def test_it_prints_on_a4(look, tmp_path):
    page = look()
    data = page.pdf(prefer_css_page_size=True)
    sizes = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox ?\[([^\]]*)\]", data)}
    assert len(sizes) == 1
    _, _, width, height = sizes.pop()
    assert abs(width - 842) < 2 and abs(height - 595) < 2, "landscape"


def violations(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return "\n".join(f"{v['id']}: {v['help']}: {[n['target'] for n in v['nodes'][:5]]}" for v in found)


ALL = pytest.mark.slow  # axe-core looks at every element: 25 s
VIEWS = [("dark", 1600, False)]
VIEWS += [pytest.param(*view, True, marks=ALL) for view in (("dark", 1600), ("light", 390), ("light", 1600))]


@pytest.mark.parametrize("scheme, width, every_row", VIEWS)
def test_rules_of_accessibility(look, scheme, width, every_row):
    page = look(f"#{BN}", width=width, color_scheme=scheme)
    rest = ".file > .row:not(.lit):nth-of-type(n + 4), .alone ~ .alone, .text section:nth-of-type(n + 2)"
    if not every_row:
        page.evaluate("rest => document.querySelectorAll(rest).forEach(element => element.remove())", rest)
        assert 5 < page.locator(".row").count() < 50
    assert not violations(page)


def test_broken_rules_are_seen(look):
    page = look()
    faint = '<p style="color: #ccc; background: #fff">faint</p>'
    page.evaluate("body => { document.body.innerHTML = body; }", f"<main><h1>a</h1><button></button>{faint}</main>")
    assert {"button-name", "color-contrast"} <= {line.split(":")[0] for line in violations(page).splitlines()}


def test_the_page_predicts_as_predict_does(look, tmp_path):
    """The network that it runs, on its own image and on a coloured one of the reader's."""
    live, page = MEASURED["live"], look("#live")
    read = {
        name: np.frombuffer(base64.b64decode(text), "<f2").reshape(shape) for name, (shape, text) in live["weights"].items()
    }
    config = Config.of(**SMALL, batch_norm="none", channels=1, classes=1).as_dict()
    weights = {name: tf.constant(values.astype(np.float32)) for name, values in read.items()}
    save_checkpoint(tmp_path / "live.safetensors", weights, {}, config=config, implementation="lowlevel")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/own.png").write_bytes(base64.b64decode(live["image"]))
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(noise).save(tmp_path / "in/noise.png")
    command = f"--checkpoint {tmp_path}/live.safetensors {tmp_path}/in --output {tmp_path}/out --probabilities"
    assert predict.main(command.split()) == 0
    for name in ("own", "noise"):
        if name == "noise":
            page.evaluate("probability = null")
            page.locator("#live-file").set_input_files(tmp_path / "in/noise.png")
        page.wait_for_function("globalThis.probability")
        found, expected = page.evaluate("[...probability]"), np.load(tmp_path / f"out/probabilities/{name}.npy")
        assert 0.01 < expected.std()
        np.testing.assert_allclose(found, expected.ravel(), rtol=0, atol=1e-4)  # 1e-6 measured
    assert page.locator("#live-maps canvas").count() == 7 * 4 + 2


def test_drawing_on_the_image_runs_the_network(look):
    page = look("#live")
    page.locator("#live-clear").click()
    assert page.evaluate("Math.max(...probability)") < 0.5
    box = page.locator("#live-image").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 110, box["y"] + 104)
    page.mouse.up()
    assert page.evaluate("probability[128 * 51 + 52]") > 0.5, "where something was drawn"
    assert page.evaluate("probability[128 * 100 + 100]") < 0.5
