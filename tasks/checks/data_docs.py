"""Data Docs: Great Expectations' own pages, made to stand alone in a browser without a network."""

import html
import re
from pathlib import Path
from typing import Any

# Values of the data stand in the pages unescaped: nothing in them may run or load.
POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
STYLE = """
:root { color-scheme: light; --line: #dfe3e8; --soft: #f5f7f9; --good: #1a7f4b; --bad: #b3261e; --link: #0b5cad; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 24px; } h4, h5 { font-size: 18px; margin: 0 0 4px; } h6, .h6 { font-size: 15px; margin: 0;
  font-weight: 600; }
nav.navbar-expand-md { height: auto !important; padding: 12px 24px; border-bottom: 1px solid var(--line); }
.navbar-brand, footer, #ge-cta-footer, .btn-group, .ge-walkthrough-modal, .modal { display: none !important; }
.breadcrumb { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 8px; }
.breadcrumb-item + .breadcrumb-item::before { content: "/ "; color: #8792a2; }
.container-fluid { max-width: 1240px; margin: 0 auto; padding: 16px 24px; }
.container-fluid .container-fluid { padding: 0; }
body > .container-fluid > .row { display: grid; grid-template-columns: 200px minmax(0, 1fr); gap: 32px; }
.sticky > .card:first-of-type { display: none; }
.sticky { position: sticky; top: 16px; } .ge-navigation-sidebar-content { list-style: none; margin: 0;
  padding: 8px; overflow: auto; }
.ge-navigation-sidebar-content a { display: block; padding: 2px 8px; }
.card { border: 1px solid var(--line); border-radius: 6px; margin-bottom: 12px; }
.card-header { background: var(--soft); padding: 8px 12px; } .card-body { padding: 8px 12px; }
.alert { background: var(--soft); border-left: 4px solid #8792a2; border-radius: 4px; padding: 10px 14px;
  margin-bottom: 8px; }
.table-responsive, .show-scrollbars { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 4px 0 12px; }
th, td { border-bottom: 1px solid var(--line); padding: 6px 10px; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { background: var(--soft); } thead[hidden] { display: none; }
thead:not([hidden]) th:first-child { width: 84px; } th { overflow-wrap: normal; } td:last-child { min-width: 110px; }
[id*="-cell-"] p { margin: 0 0 6px; }
.badge { background: #e8edf3; border-radius: 4px; padding: 1px 6px; font-family: ui-monospace, monospace;
  font-size: 13px; }
.text-success, .passed { color: var(--good); } .text-danger, .failed { color: var(--bad); } .text-warning {
  color: #9a6700; }
.fas { font-style: normal; font-weight: 700; } .fa-check-circle::before { content: "\\2713"; } .fa-times::before {
  content: "\\2717"; }
.fa-exclamation-triangle::before, .fa-exclamation-circle::before { content: "!"; }
.cooltip .top { display: none; } .cooltip:hover .top { display: block; }
details > summary { cursor: pointer; color: var(--link); }
@media (max-width: 760px) {
  body > .container-fluid > .row { grid-template-columns: minmax(0, 1fr); } .sticky { display: none; }
  .container-fluid { padding: 12px; } th, td { padding: 6px; min-width: 70px; }
}
"""


def write_page(folder: Path, suite: str, result: Any) -> None:
    """Renders one validation result as `<folder>/<suite>.html` and writes the index anew.

    Args:
        folder: made where it does not exist.
        suite: the page's name.
        result: Great Expectations' `ExpectationSuiteValidationResult`.
    """
    import numpy as np
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    folder.mkdir(parents=True, exist_ok=True)
    for item in result.results:
        # The pages name failing rows only where they think that all of them are there.
        if some := item.result.get("partial_unexpected_index_list"):
            item.result["unexpected_index_list"] = some
        # Great Expectations formats numbers by their repr, which NumPy 2 writes as `np.float64(0.5)`.
        if isinstance(item.result.get("observed_value"), np.generic):
            item.result["observed_value"] = item.result["observed_value"].item()
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    page = _alone(DefaultJinjaPageView().render(document), suite)  # type: ignore[no-untyped-call]
    verdict = "passed" if result.success else "failed"
    _replace(folder / f"{suite}.html", f"<!-- {verdict} -->\n{page}")
    _write_index(folder)


def _alone(page: str, suite: str) -> str:
    """A page without scripts and without anything from elsewhere, in this program's style."""
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    page = re.sub(r"<style\b.*?</style>", "", page, flags=re.DOTALL)
    page = re.sub(r"<link\b[^>]*>", "", page)
    page = re.sub(r"<img\b[^>]*>", "", page)
    page = re.sub(r"<footer\b.*?</footer>", "", page, flags=re.DOTALL)
    page = re.sub(r"<title>.*?</title>", "", page, flags=re.DOTALL)
    # Great Expectations spreads a site over folders; here all pages lie beside each other.
    page = re.sub(r'<a href="[./]*expectations/[^>]*>(.*?)</a>', r"\1", page)
    page = re.sub(r'href="[./]*/index\.html"', 'href="index.html"', page)
    page = page.replace(" / __none__", "").replace("Data asset: None<br>", "")
    return page.replace("<head>", f"<head>{POLICY}<title>{html.escape(suite)}</title><style>{STYLE}</style>", 1)


def _write_index(folder: Path) -> None:
    """One line for each page."""
    lines = []
    for page in sorted(folder.glob("*.html")):
        if page.name == "index.html":
            continue
        with page.open(encoding="utf-8") as stream:
            verdict = "passed" if "passed" in stream.readline() else "failed"
        name = html.escape(page.stem)
        lines.append(f'<tr><td class="{verdict}">{verdict}</td><td><a href="{name}.html">{name}</a></td></tr>')
    _replace(
        folder / "index.html",
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Data Docs</title>'
        f'<style>{STYLE}</style></head><body><div class="container-fluid"><h1>Data Docs</h1>'
        "<p>What Great Expectations found the last time each gate was run.</p>"
        f"<table><thead><tr><th>result</th><th>gate</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        "</div></body></html>\n",
    )


def _replace(file: Path, text: str) -> None:
    """Writes beside, then renames: stages of several teachers share the folder."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)
