"""The report in a real browser, and at the end of a real run."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from drawn_run import NAME, ROOT, SCRIPT, drawn_run
from PIL import Image

from pipelines.commands.run import run_adaptation
from pipelines.report.page import report

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(report(drawn_run(folder)).html, encoding="utf-8")
    return path


def browse(page, *options):
    """Chromium without a window; no host name resolves, and it says what scripts would say."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"there is no browser here ({', '.join(PROGRAMS)})")
    return subprocess.run(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
            "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={page.parent}/profile", "--enable-logging=stderr", "--v=0",
            *options, page.as_uri(),
        ],
        capture_output=True, text=True,
    )  # fmt: skip


class Elements(HTMLParser):
    """What a browser has made of a page: elements with attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data


def test_page__offline__no_scripts__names_are_text(page):
    result = browse(page, "--dump-dom")
    assert result.returncode == 0, result.stderr
    assert "CONSOLE" not in result.stderr, result.stderr  # script errors, what the policy refused
    seen = Elements(result.stdout)
    tags = {tag for tag, _ in seen.elements}
    assert {"svg", "img", "table", "details"} <= tags
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    for tag, attributes in seen.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    # Every contents link has its place, and every image says what it is.
    links = {a["href"][1:] for tag, a in seen.elements if tag == "a"}
    assert links <= set(ids) and {"scores", "ranks", "attention", "settings"} <= links
    pictures = [a for tag, a in seen.elements if tag == "img"]
    assert len(pictures) > 50 and all(a["alt"] for a in pictures)
    # The hostile names are there, as text.
    assert NAME in seen.text and SCRIPT in seen.text and ROOT in seen.text
    assert any(SCRIPT in a["alt"] for a in pictures)


@pytest.mark.parametrize("dark", [False, True])
def test_page__light_and_dark(page, tmp_path, dark):
    picture = tmp_path / "page.png"
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    result = browse(page, f"--screenshot={picture}", "--window-size=1200,1500", *options)
    assert result.returncode == 0, result.stderr
    pixels = np.asarray(Image.open(picture).convert("L")).astype(int)
    paper = np.median(pixels)
    assert (paper < 60) if dark else (paper > 235)
    assert 0.01 < (abs(pixels - paper) > 80).mean() < 0.5  # letters, and no blank page


def test_page__fits_a_phone(page):
    around = page.with_name("phone.html")  # a window can't be as narrow; a frame can
    around.write_text(
        f"""<iframe src="{page.name}" style="width: 390px; height: 800px; border: 0" onload="
        document.body.dataset.width = this.contentDocument.documentElement.scrollWidth"></iframe>"""
    )
    result = browse(around, "--allow-file-access-from-files", "--hide-scrollbars", "--dump-dom")
    (body,) = (attributes for tag, attributes in Elements(result.stdout).elements if tag == "body")
    assert body["data-width"] == "390"  # wide tables scroll by themselves


@pytest.mark.ray
def test_adapt__leaves_a_report__once__unless_switched_off(finished_run):
    config, out = finished_run.config, finished_run.out
    page = out / "report.html"
    html = page.read_text(encoding="utf-8")
    assert "Not shown" not in html and "drawn images" in html
    score = json.loads((out / "summary.json").read_text())["adapted"]["rank1"]
    assert f"{100 * score:.1f}" in html
    assert len(html) < 5_000_000

    # A finished run has its report; one that was deleted is made again, if it can be.
    written = page.stat().st_mtime_ns
    run_adaptation(config)
    assert page.stat().st_mtime_ns == written
    page.unlink()
    run_adaptation(config.model_copy(update={"report": False}))
    assert not page.exists()
    run_adaptation(config)
    assert page.exists()
