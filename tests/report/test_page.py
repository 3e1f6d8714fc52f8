"""The page in a real browser: its numbers are the table's, and it asks nobody for anything."""

import html
import json
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from laq.charts.theme import Caption
from laq.dataset.images import ImageSet
from laq.errors import LaqError
from laq.report.page import write_page
from laq.report.page.columns import columns_of
from laq.report.page.contents import PageContents
from laq.report.page.data import page_data
from laq.report.page.examples import example_pictures, without_examples
from laq.report.tables import with_drops
from laq.subsets.subset import Subset, describe

NAMES = [
    '<b>a</b> & "b"',
    "</script><script>boo()</script>",
    "it's",
    "long_" * 12,
    *(f"class_{c}" for c in range(8)),
]
SETTINGS = [("rtn", "none"), ("gpfq", "subset"), ("gpfq", "all")]
POINTS = "VIEWS.lost_by_divergence.data('rows').map((row) => [row.subset, row.nats, row.lost_points])"
PROBE = """<script type="module">
await started;
const seen = await (async () => {{ {script} }})();
document.documentElement.dataset.seen = JSON.stringify(seen);
</script></body>"""


def divergences() -> np.ndarray:
    lying = np.random.default_rng(0).normal(size=(len(NAMES), 3))
    return 5 * ((lying[:, None] - lying[None]) ** 2).sum(-1)


def subsets() -> list[Subset]:
    rng, matrix = np.random.default_rng(1), divergences()
    kinds = [("similar", 4), ("dissimilar", 4), ("random", 3)]
    members = [[0, 1, 3]] + [rng.choice(12, 3 + n % 2, replace=False).tolist() for n in range(10)]
    names = [f"{kind}-{n + 1}" for kind, count in kinds for n in range(count)]
    return [
        describe(matrix, NAMES, name, name.rpartition("-")[0], classes)
        for name, classes in zip(names, members, strict=True)
    ]


def measured() -> pd.DataFrame:
    """A study with two seeds, two bit-widths, two networks, and images that calibration comes from."""
    rng = np.random.default_rng(2)
    rows = []

    def row(subset: Subset, variant: str, base: float, **setting: Any) -> None:
        scores = {f"top1_{side}_percent": round(base * part, 1) for side, part in (("sub", 1), ("all", 0.8))}
        who = {"dataset": "glyphs", "network": "resnet20", "subset": subset.name, "kind": subset.kind}
        size = {
            "subset_size_classes": len(subset.classes),
            "median_divergence_nats": subset.median_divergence,
        }
        rows.append({**who, **size, "variant": variant, **setting, **scores})

    for subset in subsets():
        for base, variant in [("original", "quantized"), ("finetuned", "finetuned_quantized")]:
            accuracy = rng.uniform(80, 99)
            row(subset, base, accuracy, method="float", bits="32", mean_bits=32.0, calibration="none")
            for bits in (4, 2):
                for method, calibration in SETTINGS:
                    for seed in (0, 1):
                        how = {"method": method, "bits": str(bits), "mean_bits": float(bits), "seed": seed}
                        loss = rng.uniform(0, 40 / bits) + (30 if method == "rtn" else 0)
                        row(subset, variant, accuracy - loss, calibration=calibration, **how)
    return with_drops(pd.DataFrame(rows))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    grouped = table.groupby(["variant", "method", "bits", "calibration"], sort=False)
    numbers = grouped[["top1_sub_percent", "drop_sub_points"]].agg(["mean", "std"])
    numbers.columns = [f"{name}_{what}" for name, what in numbers.columns]
    return numbers.assign(n=grouped.size()).reset_index().round(4)


def contents() -> PageContents:
    table = measured()
    tables = {"Summary": summary(table), "p & q": pd.DataFrame({"name": NAMES, "p": [None, *range(11)]})}
    verdicts = [("**Why?** Because <i>.", "Of **all**:\n\n- one <i>\n- `two` a\\*=4")]
    known = {"variant": "quantized", "method": "gpfq", "bits": "2", "calibration": "subset"}
    slopes = {"mean_low": 1.0, "mean_high": 9.0, "slope": 2.0, "slope_low": 1.0, "slope_high": 3.0}
    effects = pd.DataFrame([known | slopes])
    study = Caption("resnet20 on glyphs", 0.95, "gpfq", "2")
    plane = np.array([[c, c % 5, 4.0, 1.0, 2.0] for c in range(len(NAMES))])
    return PageContents(
        study, table, subsets(), divergences(), NAMES, tables, verdicts, "About p.", effects, plane=plane
    )


@dataclass(frozen=True)
class Browser:
    """Opens pages, and takes no message on the console for an answer."""

    path: str
    folder: Path

    def see(self, page: str, script: str, fragment: str = "") -> Any:
        """What the body of an async function, ``script``, returns in the page, as JSON."""
        file = self.folder / "page.html"
        file.write_text(page.replace("</body>", PROBE.format(script=script)), encoding="utf-8")
        return self.seen(f"{file.as_uri()}#{fragment}")

    def seen(self, address: str) -> Any:
        """What the page at ``address`` keeps in ``data-seen``, as JSON."""
        dumped = self.dump(address)
        found = re.search(r'<html[^>]* data-seen="([^"]*)"', dumped)
        assert found is not None, dumped[:300]
        return json.loads(html.unescape(found[1]))

    def dump(self, address: str) -> str:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        # The virtual clock waits for no frame of another process, which a sandboxed one would be.
        frames = "--disable-features=IsolateSandboxedIframes"
        profile = [f"--user-data-dir={self.folder}", "--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run(
            [self.path, *options, frames, *profile, address], capture_output=True, text=True, check=True
        )
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        return done.stdout


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Browser:
    return Browser(chromium, tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, contents())
    return path.read_text(encoding="utf-8")


def rows_of(asked: dict[str, str]) -> pd.DataFrame:
    """The rows that the page is asked for, means over seeds, by subset."""
    table = measured()
    variant = "quantized" if asked.get("variant", "original") == "original" else "finetuned_quantized"
    calibration = "none" if asked["method"] == "rtn" else asked.get("calibration", "subset")
    wanted = {
        "bits": asked["bits"],
        "method": asked["method"],
        "variant": variant,
        "calibration": calibration,
    }
    kept = table.loc[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    kept = kept[kept.kind.isin(asked["kind"].split(","))] if "kind" in asked else kept
    kept = kept[kept.subset_size_classes == int(asked["size"])] if "size" in asked else kept
    return kept.groupby("subset")[["median_divergence_nats", asked.get("y", "drop_sub_points")]].mean()


CASES: list[dict[str, str]] = [
    {"bits": "2", "method": "gpfq"},
    {"bits": "4", "method": "gpfq", "calibration": "all"},
    {"bits": "4", "method": "rtn", "variant": "finetuned"},
    {"bits": "2", "method": "gpfq", "variant": "finetuned", "kind": "similar,random", "size": "4"},
    {"bits": "2", "method": "rtn", "kind": "dissimilar"},
]


def fragment(asked: dict[str, str]) -> str:
    return "&".join(f"{key}={value}" for key, value in asked.items())


def check_points(points: list[tuple[str, float, float]], asked: dict[str, str]) -> None:
    expected = rows_of(asked)
    assert 2 < len(points) == len(expected)
    for name, x, y in points:
        assert (x, y) == pytest.approx(tuple(expected.loc[name]), abs=0.0051), name


def test_the_fragment_chooses_exactly_the_tables_rows(page: str, browser: Browser) -> None:
    go = f"""const found = [];
    for (const address of {json.dumps([fragment(case) for case in CASES])}) {{
        location.hash = address;
        await new Promise((done) => addEventListener("hashchange", done, {{ once: true }}));
        await draw();
        found.push([{POINTS}, document.querySelector("#status").textContent, location.hash]);
    }}
    return found;"""
    for (points, told, address), asked in zip(browser.see(page, go), CASES, strict=True):
        check_points(points, asked)
        mean = np.mean([lost for _, _, lost in points])
        assert f"{len(points)} subsets lose {mean:.1f} points".replace("-", "−") in told
        shown = dict(part.split("=") for part in address[1:].replace("%2C", ",").split("&"))
        assert asked.items() <= shown.items()


@pytest.mark.parametrize("asked", ["", "bits=99&method=none&kind=&subset=x&y=z&size=7"])
def test_what_is_not_there_is_passed_over(page: str, browser: Browser, asked: str) -> None:
    points, told = browser.see(
        page, f"return [{POINTS}, document.querySelector('#status').textContent]", asked
    )
    if "kind=" in asked:
        assert points == []
        assert "0 subsets lose – points" in told
    else:
        check_points(points, {"bits": "2", "method": "gpfq"})
    assert "original network, GPFQ, 2 bits: " in told


def test_a_link_opens_the_view_it_was_copied_from(page: str, browser: Browser) -> None:
    script = (
        f"return [{POINTS}, [...document.querySelectorAll('select')].map((one) => [one.name, one.value])]"
    )
    points, chosen = browser.see(page, script, fragment(CASES[2]) + "&subset=random-2")
    check_points(points, CASES[2])
    assert dict(chosen) == {**CASES[2], "calibration": "none", "size": "", "subset": "random-2"}


def test_charts_filter_each_other_and_show_intervals_of_all_subsets_only(page: str, browser: Browser) -> None:
    script = """const rows = () => VIEWS.points_lost.data("rows");
    const before = rows();
    const box = document.querySelector("input[value=rtn]");
    box.click(); await draw();
    const fewer = rows();
    document.querySelector("input[value=random]").click(); await draw();
    return [before, fewer, rows()];"""
    before, fewer, least = browser.see(page, script, "bits=2&method=gpfq")
    assert {row["method"] for row in before} == {"rtn", "gpfq"}
    assert {row["method"] for row in fewer} == {"gpfq"}
    known = [row for row in fewer if row["bits"] == "2"]
    assert {(row["mean_low"], row["mean_high"]) for row in known} == {(1, 9)}
    assert {row["mean_low"] for row in least} == {None}
    assert "random" not in {row["kind"] for row in least}
    # The line goes through the mean of each size, with the slope of the report.
    for size in (3, 4):
        rows = [row for row in known if row["classes"] == size]
        assert np.mean([row["fit"] for row in rows]) == pytest.approx(
            np.mean([row["lost_points"] for row in rows])
        )
        slope = -np.polyfit([np.log2(row["nats"]) for row in rows], [row["fit"] for row in rows], 1)[0]
        assert slope == pytest.approx(2)
        assert all(row["fit_low"] <= row["fit"] <= row["fit_high"] for row in rows)


READ = """const read = () => ({
    name: document.querySelector("#panel h3")?.textContent ?? null,
    classes: [...document.querySelectorAll("#panel li")].map((one) => one.textContent),
    losses: [...document.querySelectorAll("#panel tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)),
    pairs: VIEWS.divergence_matrix.data("rows").length, hash: location.hash,
});
"""


def test_a_click_tells_of_a_subset_and_shows_its_classes(page: str, browser: Browser) -> None:
    click = """picked("lost_by_divergence", { subset: "similar-1" }); await draw();
    const tapped = read();
    picked("lost_by_divergence", undefined); await draw();
    return [tapped, read()];"""
    tapped, left = browser.see(page, READ + click, "bits=4&method=gpfq")
    assert tapped["name"] == "similar-1"
    assert tapped["classes"] == [NAMES[0], NAMES[1], NAMES[3]]
    assert tapped["pairs"] == 3 * 2
    assert "subset=similar-1" in tapped["hash"]
    lost = {
        (method, bits): rows_of({"bits": bits, "method": method}).drop_sub_points["similar-1"]
        for method in ("rtn", "gpfq")
        for bits in ("2", "4")
    }
    assert [row[0] for row in tapped["losses"]] == ["round-to-nearest", "GPFQ"]
    for method, row in zip(("rtn", "gpfq"), tapped["losses"], strict=True):
        shown = [float(value.replace("−", "-")) for value in row[1:]]
        assert shown == pytest.approx([lost[method, "2"], lost[method, "4"]], abs=0.0551)
    # Without a subset, the means of those that are shown.
    means = [rows_of({"bits": bits, "method": "gpfq"}).drop_sub_points.mean() for bits in ("2", "4")]
    assert [float(value) for value in left["losses"][1][1:]] == pytest.approx(means, abs=0.0551)
    assert (left["name"], left["pairs"]) == (None, len(NAMES) * (len(NAMES) - 1))
    assert "subset=" not in left["hash"]


def test_the_selected_subsets_classes_stand_out_on_the_map(page: str, browser: Browser) -> None:
    script = "return VIEWS.class_map.data('rows').filter((row) => row.chosen).map((row) => row.number)"
    assert browser.see(page, script, "subset=similar-1") == [0, 1, 3]
    assert browser.see(page, script) == list(range(len(NAMES)))


def test_a_page_without_a_plane_has_no_map_and_all_else(tmp_path: Path, browser: Browser) -> None:
    write_page(tmp_path / "old.html", replace(contents(), plane=None))
    old = (tmp_path / "old.html").read_text(encoding="utf-8")
    assert browser.see(old, "return Object.keys(VIEWS).length") == 4
    assert 'id="map"' not in old


def test_pictures_of_the_classes_stand_beside_their_names_where_they_are_at_hand(
    page: str, tmp_path: Path, browser: Browser
) -> None:
    labels = torch.arange(len(NAMES)).repeat(2)[1:]  # the first class has its image last
    images = ImageSet(
        (20 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32), labels, tuple(NAMES)
    )
    write_page(tmp_path / "p.html", replace(contents(), examples=example_pictures(images)))
    pictured = (tmp_path / "p.html").read_text(encoding="utf-8")
    script = """
    const sheet = new Image();
    sheet.src = getComputedStyle(document.documentElement).getPropertyValue("--examples").trim().slice(4, -1);
    await sheet.decode();
    const canvas = new OffscreenCanvas(sheet.width, sheet.height).getContext("2d", { willReadFrequently: true });
    canvas.drawImage(sheet, 0, 0);
    const middle = (span) => {
      const [x, y] = span.style.backgroundPosition.split(" ").map((part) => 24 - parseInt(part));
      return canvas.getImageData(x, y, 1, 1).data[0];
    };
    const told = element("div");
    told.innerHTML = tooltip({ subset: state.subset }, String) + tooltip({ class: DATA.classes[4], other: DATA.classes[9] }, String);
    return [byId("panel"), told].map((place) => [...place.querySelectorAll(".example")].map(middle));
    """
    panel, told = browser.see(pictured, script, "subset=similar-1")
    members = next(subset.classes for subset in subsets() if subset.name == "similar-1")
    assert panel == pytest.approx([20 * c for c in members], abs=3)
    assert told == pytest.approx([20 * c for c in (*members, 4, 9)], abs=3)
    assert without_examples(pictured) == page


def test_subsets_are_walked_by_keys_and_marked_in_the_charts(page: str, browser: Browser) -> None:
    walk = f"""const chart = document.querySelector("#lost_by_divergence");
    chart.focus();
    const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {{ key: name, bubbles: true }}));
    key("ArrowRight"); key("ArrowRight"); await draw();
    const marked = VIEWS.points_lost.data("rows").filter((row) => row.chosen).map((row) => row.subset);
    const second = {POINTS}.sort((a, b) => a[1] - b[1])[1][0];
    const address = location.hash;
    key("Escape");
    return [address, second, marked, location.hash];"""
    address, second, marked, left = browser.see(page, walk)
    assert f"subset={second}" in address
    assert set(marked) == {second}
    assert "subset=" not in left


def test_tables_are_saved_as_csv(page: str, browser: Browser) -> None:
    save = """const link = [...document.querySelectorAll("a[download]")].at(-1);
    saveTable(link);
    return [link.download, decodeURIComponent(link.href)];"""
    name, content = browser.see(page, save)
    assert name == "p_&_q.csv"
    assert content.startswith('data:text/csv;charset=utf-8,"name","p"')
    assert '"<b>a</b> & ""b""",""' in content


def test_the_tables_are_the_data_frames_and_sort(page: str, browser: Browser) -> None:
    sort = """const cells = () => [...document.querySelectorAll("section table")].slice(-2).map((table) =>
        [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)));
    const heads = [...document.querySelectorAll("section table thead")].slice(-2);
    const click = (table, column) => heads[table].rows[0].cells[column].firstChild.click();
    const before = cells();
    click(0, 4); click(1, 1); click(1, 1);
    return [before, cells(), heads[1].rows[0].cells[1].getAttribute("aria-sort")];"""
    before, after, way = browser.see(page, sort)
    expected = summary(measured())
    head, *rows = before[0]
    assert head == [
        "variant",
        "method",
        "bits",
        "calibration",
        "top-1, restricted (%)",
        "drop, restricted (points)",
        "n",
    ]
    for shown, row in zip(rows, expected.to_dict("records"), strict=True):
        assert shown[:4] == [row[name] for name in ("variant", "method", "bits", "calibration")]
        mean, deviation = (float(part) for part in shown[4].split(" ± "))
        assert (mean, deviation) == pytest.approx(
            (row["top1_sub_percent_mean"], row["top1_sub_percent_std"]), abs=0.0051
        )
        assert shown[6] == str(row["n"])
    assert [row[4] for row in after[0][1:]] == [
        r[4] for r in sorted(rows, key=lambda r: float(r[4].split()[0]))
    ]
    assert [row[0] for row in after[1][1:]] == [*NAMES[:0:-1], NAMES[0]]
    assert way == "descending"


FRAME = """<!doctype html><body style="margin:0"><iframe {how} srcdoc="{page}"></iframe>
<script>addEventListener("message", ({{ data }}) => {{ document.documentElement.dataset.seen = data; }});</script></body>"""
TELL = """<script type="module">
await started;
document.querySelector("[name=subset]").value = "similar-1";
document.querySelector("[name=subset]").dispatchEvent(new Event("change", { bubbles: true }));
await draw();
const sizes = (query, of) => Math.min(...[...document.querySelectorAll(query)].map(of));
const tell = () => parent.postMessage(JSON.stringify({
    width: innerWidth, scrolled: document.documentElement.scrollWidth, points: VIEWS.lost_by_divergence.data("rows").length,
    named: document.querySelectorAll("#panel li").length,
    font: sizes("body *:not(script, noscript, style, #vg-tooltip-element, #vg-tooltip-element *)", (one) => parseFloat(getComputedStyle(one).fontSize)),
    touch: sizes("select, th button, fieldset label", (one) => one.getBoundingClientRect().height),
    drawn: Math.max(...[...document.querySelectorAll(".chart canvas")].map((one) => one.getBoundingClientRect().right)),
    columns: new Set([...document.querySelectorAll(".beside > *")].map((one) => one.getBoundingClientRect().left)).size,
}), "*");
tell();
setInterval(tell, 100); // the last counts
</script></body>"""


@pytest.mark.parametrize("how", ["width=360 height=800", "width=360 height=800 sandbox=allow-scripts"])
def test_it_fits_a_phone_and_another_page(page: str, browser: Browser, how: str) -> None:
    # A window is never as narrow as a phone, a frame is; MLflow shows artifacts in a sandboxed one.
    (browser.folder / "frame.html").write_text(
        FRAME.format(how=how + ' style="border:0"', page=html.escape(page.replace("</body>", TELL))),
        encoding="utf-8",
    )
    found = browser.seen((browser.folder / "frame.html").as_uri())
    assert found["width"] == 360
    assert found["scrolled"] <= 360
    assert 200 < found["drawn"] <= 360
    assert found["points"] == len(subsets())
    assert found["named"] == 3
    assert found["font"] >= 14
    assert found["touch"] >= 44
    assert found["columns"] == 1


def embedded(page: str) -> str:
    return page.split('<script type="application/json" id="data">')[1].split("</script>", maxsplit=1)[0]


def test_nothing_is_asked_of_anybody(page: str, browser: Browser) -> None:
    assert (
        re.findall(
            r"https?:|url\(|@import|\bimport\b|fetch\(|src=|<link(?! rel=\"icon\" href=\"data:,\")", page
        )
        == []
    )
    assert browser.see(page, "return performance.getEntriesByType('resource').map((one) => one.name)") == []


def test_an_error_on_the_console_is_seen(page: str, browser: Browser) -> None:
    with pytest.raises(AssertionError, match="boo"):
        browser.see(page, "console.error('boo'); return 1;")


def test_machines_read_the_numbers(page: str) -> None:
    data = json.loads(embedded(page))
    assert data["classes"] == NAMES
    number = next(n for n, s in enumerate(data["settings"]) if (s["bits"], s["method"]) == ("4", "rtn"))
    assert data["settings"][number]["variant"] == "original"
    assert data["settings"][data["settings"][number]["base"]]["method"] == "float"
    scores = dict(zip(data["subsets"]["name"], data["scores"]["drop_sub_points"][number], strict=True))
    assert scores == pytest.approx(
        rows_of({"bits": "4", "method": "rtn"}).drop_sub_points.to_dict(), abs=0.0051
    )
    assert np.array(data["matrix"]) == pytest.approx(divergences(), rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [(("rtn", "4"), ("rtn", "4")), (("gpfq", "2"), ("gpfq", "2")), (("gptq", "7"), ("rtn", "2"))],
)
def test_the_primary_question_is_shown_first(asked: tuple[str, str], shown: tuple[str, str]) -> None:
    data = json.loads(page_data(replace(contents(), study=Caption("", 0.95, *asked))))
    start = data["settings"][data["start"]]
    assert (start["method"], start["bits"], start["variant"]) == (*shown, "original")


def test_it_can_be_read_without_scripts(page: str) -> None:
    plain = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<noscript>" in plain
    assert "<summary><strong>Why?</strong> Because &lt;i&gt;.</summary>" in plain
    prose = (
        "<p>Of <strong>all</strong>:</p>\n<ul>\n<li>one &lt;i&gt;</li>\n<li><code>two</code> a*=4</li>\n</ul>"
    )
    assert prose in plain
    assert "<h2>p &amp; q</h2>" in plain
    assert html.escape(NAMES[1]) in plain
    assert "boo()</script>" not in plain


def test_nothing_lost_is_never_less_than_nothing() -> None:
    table = pd.DataFrame({"drop_mean": [-0.001, 3.0], "drop_std": [0.2, 0.1]})
    (column,) = columns_of(table)
    assert column.shown == ["0.00 ± 0.20", "3.00 ± 0.10"]
    effects = pd.DataFrame({"effect": [-0.001, 2.5], "effect_low": [-1.0, 2.0], "effect_high": [1.0, 3.0]})
    (column,) = columns_of(effects)
    assert column.shown == ["0.00 (−1.00 to 1.00)", "2.50 (2.00 to 3.00)"]


def test_drawn_characters_are_not_taken_for_photographs(page: str) -> None:
    assert "Dataset: glyphs, the built-in dataset of drawn characters (no photographs)." in page
    assert "n = 11 subsets of 3 or 4 classes" in page
    assert "cifar" not in page.lower()


def test_the_same_study_is_the_same_bytes(page: str, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", contents())
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_a_study_of_a_hundred_subsets_fits_in_two_megabytes(tmp_path: Path) -> None:
    table, many = measured(), subsets()
    copies = [(f"random-{n}", n % len(many)) for n in range(100)]
    more = [table[table.subset == many[s].name].assign(subset=name) for name, s in copies]
    settings = [(bits, part) for bits in ("2", "3", "4", "5", "6", "8") for part in more]
    grown = pd.concat([part.assign(bits=part.bits.replace({"2": bits})) for bits, part in settings])
    names = [f"class_{n}" for n in range(100)]
    matrix = np.random.default_rng(0).uniform(0.1, 99, (100, 100))
    matrix = (matrix + matrix.T) * (1 - np.eye(100))
    plane = np.random.default_rng(0).uniform(0, 9, (100, 5))
    big = replace(contents(), table=grown, matrix=matrix, class_names=names, plane=plane)
    write_page(
        tmp_path / "page.html", replace(big, subsets=[replace(many[s], name=name) for name, s in copies])
    )
    data = json.loads(embedded((tmp_path / "page.html").read_text(encoding="utf-8")))
    assert sum(value is not None for line in data["scores"]["drop_sub_points"] for value in line) > 3600
    assert (tmp_path / "page.html").stat().st_size < 1_500_000


def test_what_does_not_fit_together_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaqError, match="subset similar-1 of the table is not among the 10 subsets"):
        write_page(tmp_path / "page.html", replace(contents(), subsets=subsets()[1:]))
    with pytest.raises(LaqError, match=r"divergences \(12, 12\) do not fit 11 class names"):
        write_page(tmp_path / "page.html", replace(contents(), class_names=NAMES[1:]))
    assert list(tmp_path.iterdir()) == []


def test_the_answer_comes_first_and_nothing_does_where_there_is_none(page: str, tmp_path: Path) -> None:
    assert page.index('id="answers"') < page.index('id="controls"') < page.index('id="points_lost"')
    write_page(tmp_path / "bare.html", replace(contents(), verdicts=[]))
    assert 'id="answers"' not in (tmp_path / "bare.html").read_text(encoding="utf-8")
